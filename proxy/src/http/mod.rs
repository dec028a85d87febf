//! The HTTP connection manager: HTTP/1.1 from a downstream, routed, to an upstream or answered here.
//!
//! Runs what `control/xds` lets through: exact, prefix and other path matches, path rewrites, direct
//! responses, and clusters. HTTP/2, HTTP filters, RDS, retries by policy and header mutations are not
//! carried yet.

mod activity;
mod body;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod client_cert;
mod close;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod forwarding;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod hash;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod header_to_metadata;
mod headers;
mod io;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod local_rate_limit;
mod local_reply;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod path;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "used by the connection manager to come")
)]
mod redirect;
mod request;
mod router;
mod serve;
mod upstream;

#[cfg(test)]
mod tests;

pub use serve::{Connection, serve};
