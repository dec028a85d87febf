//! Where bytes go: clusters, their endpoints, the choice among them, dialling.
//!
//! One [`ClusterManager`] a worker; nothing here is shared between threads but counts against limits and
//! what outlier detection knows.

pub mod breaker;
pub mod cluster;
pub mod connect;
pub mod dial;
mod dns;
pub mod endpoint;
pub mod error;
pub mod load_balancer;
pub mod manager;
pub mod outlier;
pub mod priority;

pub use connect::{Connected, LoadBalancerContext, Reached, RequestPlace, connect, reach, wait_in_line};
pub use dial::UpstreamStream;
pub use error::{AttemptError, ConnectError};
pub use manager::ClusterManager;
