//! The HTTP connection manager: HTTP/1 and HTTP/2 on one port, filters, routes, tries, pools.
//!
//! Life of a request: `connection` reads its head, `stream` leads it through `filters` and `route` to
//! `upstream`, whose connections are `pool`'s, and back to its `sink`.

mod body;
mod client;
mod client_cert;
mod clock;
mod connection;
mod exchange;
mod failed;
pub mod filters;
mod forwarding;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod h1;
mod h2;
mod hash;
pub mod header_mutation;
mod headers;
mod local_reply;
mod message;
mod not_sent;
mod path;
mod pool;
mod record;
mod redirect;
mod request;
mod response;
mod retry;
mod route;
mod sink;
mod stream;
mod stream_duration;
mod tally;
#[cfg(test)]
mod tests;
mod trace;
mod tracers;
mod upstream;
mod wire;
mod worker;

pub use connection::{Accepted, Certificates, Connection, serve};
pub use worker::HttpWorker;
