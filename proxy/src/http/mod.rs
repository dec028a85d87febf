//! The HTTP connection manager: HTTP/1.1 from a downstream, routed, to an upstream or answered here.
//!
//! Runs what `control/xds` lets through: exact, prefix and other path matches, path rewrites, direct
//! responses, and clusters. HTTP/2, HTTP filters, RDS, retries by policy and header mutations are not
//! carried yet.

mod activity;
mod body;
mod close;
pub mod header_mutation;
mod headers;
mod io;
mod local_reply;
mod request;
mod router;
mod serve;
mod upstream;

#[cfg(test)]
mod tests;

pub use serve::{Connection, serve};
