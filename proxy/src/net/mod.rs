//! Sockets and bytes: binding, dialling, lent buffers, and the relay between two streams.
//!
//! Knows addresses (from `model`) and nothing else of the mesh.

pub mod buffer;
pub mod closing;
pub mod departure;
pub mod duplex;
pub mod holder;
pub mod machine;
pub mod peek;
pub mod plain;
pub mod relay;
pub mod sock_diag;
pub mod socket;
mod splice;

pub use duplex::Duplex;
pub use plain::PlainStream;
