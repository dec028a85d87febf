//! Attaché: the sidecar that stands where Envoy stands in a Consul service mesh on Nomad.
//!
//! ```text
//! consul | xds | file -> Publisher = watch<Arc<Snapshot>> = Reader -> listeners, clusters, identities
//! accept -> filter chain -> TLS -> peer -> network filters -> tcp_proxy -> cluster -> endpoint -> copy
//! ```
//! Modules depend downward only (see ARCHITECTURE.md; `tests/` enforces it).

pub mod control;
pub mod model;
pub mod snapshot;
