//! Arguments, environment and files in, [`Config`] out.
//!
//! Pure: no sockets, no runtime, no global state. The process's environment and files reach it
//! through [`env::Env`] and [`env::Files`], so a test passes a map. Whoever calls [`load`] owns the
//! result; a secret in it is zeroed when dropped and never printed.

pub mod config;
pub mod secret;

pub use config::Config;
pub use secret::Secret;
