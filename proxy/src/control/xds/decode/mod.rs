//! From Envoy's messages to the model, one file a resource type.
//!
//! Pure but for the files that a TLS context names, which are read through [`Files`]. What is set and
//! cannot be carried out is refused by name ([`DecodeError`]) or, where nothing depends on it, told as a
//! notice ([`Context::notices`]): nothing is ignored in silence. Where a field is absent, Envoy's default
//! holds unless the model's documentation says otherwise.
//!
//! Every `decode` takes a message and where it stands ([`At`]); every `decode_bytes` takes a resource as it
//! came over the wire, and also looks for fields that are unknown here: within TLS and RBAC messages they
//! refuse the resource, elsewhere they are noticed.

pub mod access_log;
mod access_log_filter;
pub mod address;
pub mod cluster;
mod cluster_fields;
mod common;
pub mod context;
pub mod endpoint;
pub mod error;
mod filter_chain;
mod http_connection_manager;
mod http_filters;
mod http_tracing;
mod jwt;
pub mod listener;
mod local_rate_limit;
pub mod matcher;
mod network_filters;
mod otel_access_log;
mod otel_tracing;
pub mod rbac;
pub mod route;
mod route_action;
pub mod secret;
pub mod tls;
mod tls_params;

pub use cluster::{DecodedCluster, Eds};
pub use context::{Context, Disk, Files, Shared};
pub use error::{At, DecodeError, Why};
pub use http_tracing::bootstrap as bootstrap_tracing;
pub use secret::Secret;

#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod testing;
