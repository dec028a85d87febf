//! What is counted of HTTP, under Envoy's names: by connection managers and their routers, by the codecs, for
//! the clusters that requests go to, and by the HTTP filters.
//!
//! Handles are resolved once a worker and owner; what Envoy creates with the first event of its kind (a
//! status code, a gRPC method) is resolved then, and kept. Owns the names; when an event happens is the
//! caller's to know.

mod codec;
mod codes;
mod connection_manager;
mod filters;
mod grpc;
#[cfg(test)]
mod recorded_tests;
mod tracers;
mod upstream;

pub use codec::{Http1Metrics, Http2Metrics};
pub use connection_manager::{
    ConnectionEnd, ConnectionManagerCounts, ConnectionManagerMetrics, HttpVersion, RouterMetrics,
    TraceReason, TracingMetrics,
};
pub use filters::{HttpRbacMetrics, JwtAuthnMetrics, LocalRateLimitMetrics};
pub use grpc::{GrpcMetrics, GrpcTotals};
pub use tracers::{OpenTelemetryMetrics, ZipkinMetrics};
pub use upstream::{Backoff, HttpClusterCounts, HttpClusterMetrics, Response};

/// A struct of handles: a line a statistic, resolved together. What is written after `scope` is what
/// [`super::Scope`] calls the kind.
macro_rules! handles {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ident = $kind:ident $stat:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub struct $name {
            $($(#[$doc])* pub $field: crate::telemetry::metrics::$type,)*
            _scope: crate::telemetry::metrics::Scope,
        }

        impl $name {
            fn resolve(scope: crate::telemetry::metrics::Scope) -> Self {
                Self {
                    $($field: scope.$kind($stat),)*
                    _scope: scope,
                }
            }
        }
    };
}
use handles;

/// The scope of a connection manager and its filters: `http.<stat_prefix>.`
fn scope(stat_prefix: &str) -> super::Scope {
    super::registry().scope(&format!("http.{}.", super::sanitized(stat_prefix)))
}

/// Milliseconds, as histograms take them.
fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
