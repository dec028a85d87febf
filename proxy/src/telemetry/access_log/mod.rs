//! What is written about connections: our own log line, and the access logs that are configured.
//!
//! [`ConnectionLog`] collects the facts of one connection and hands them, as a [`Record`], to each access
//! log; [`render`] makes the line, [`sink`] takes it without ever holding up a worker. No access log, no
//! cost: one branch a fact.

mod connection;
mod facts;
pub mod record;
pub mod render;
pub mod sink;
mod time;

pub use connection::ConnectionLog;
pub use facts::UpstreamFacts;
pub use record::{Record, RecordKind, TlsSession};
