//! What is written about connections and requests: our own log line, and the access logs that are configured.
//!
//! [`ConnectionLog`] collects the facts of one connection and hands them, as a [`Record`], to each access
//! log; [`request`] takes those of a request from the connection manager. [`render`] makes the line, and
//! headers with operators; [`sink`] takes a line without ever holding up a worker. No access log, no cost:
//! one branch a fact.

mod connection;
mod facts;
pub mod record;
pub mod render;
pub mod request;
pub mod sink;
mod time;

pub use connection::ConnectionLog;
pub use facts::{UpstreamFacts, connection_id};
pub use record::{AddressText, Record, RecordKind, TlsSession};
pub use request::RequestFacts;
