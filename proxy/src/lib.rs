//! Attaché: the sidecar that stands where Envoy stands in a Consul service mesh on Nomad.
//!
//! ```text
//! consul | xds | file -> Publisher = watch<Arc<Snapshot>> = Reader -> listeners, clusters, identities
//! accept -> filter chain -> TLS -> peer -> network filters -> tcp_proxy -> cluster -> endpoint -> copy
//! ```
//! Modules depend downward only (see ARCHITECTURE.md; `tests/` enforces it).

pub mod admin;
pub mod app;
pub mod cli;
pub mod control;
#[cfg(feature = "demo")]
pub mod demo;
pub mod drain;
pub mod dump;
pub mod filter;
pub mod http;
pub mod limit;
pub mod listener;
pub mod model;
pub mod net;
pub mod snapshot;
pub mod telemetry;
pub mod tls;
pub mod upstream;
