//! HTTP/1.1 and what Envoy takes of HTTP/1.0 (RFC 9112): heads, bodies and both ends of a connection.
//!
//! Knows nothing of routes; a connection here is bytes in order, and strict about which.

pub(super) mod chunked;
pub(super) mod client;
pub(super) mod framing;
pub(super) mod head;
pub(super) mod server;
