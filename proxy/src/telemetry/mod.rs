//! What the proxy says about itself: counters, the access log, response flags, log lines.
//!
//! Owns the recorder behind the `metrics` facade. Never holds a secret.

pub mod access_log;
pub mod endpoints;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod sink;
pub mod trace;

pub use crate::model::ResponseFlag;
pub use access_log::ConnectionLog;
