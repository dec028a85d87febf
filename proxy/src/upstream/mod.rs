//! Where bytes go: clusters, their endpoints, the choice among them, dialling.
//!
//! One [`ClusterManager`] a worker; nothing here is shared between threads but counts against limits.

pub mod cluster;
pub mod connect;
pub mod load_balancer;
pub mod manager;

pub use connect::{ConnectError, Connected, UpstreamStream, connect};
pub use manager::ClusterManager;
