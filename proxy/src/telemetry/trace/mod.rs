//! Traces: which requests have one, how its context travels, what a span says, and how spans are written.
//!
//! Follows Envoy's tracers for Zipkin and OpenTelemetry. Nothing here waits or owns a socket: spans are
//! gathered by [`Reporter`], a worker's own, and whoever holds the other end of it sends them.

mod context;
mod otlp;
mod propagation;
mod protobuf;
mod reporter;
mod sampling;
mod span;
mod tags;
#[cfg(test)]
mod testing;
mod zipkin;

pub use crate::telemetry::metrics::http::TraceReason;
pub use context::{Direction, TraceContext};
pub use otlp::OtlpWriter;
pub use propagation::{Extracted, Parent, extract};
pub use reporter::{Batch, BatchSender, FLUSH_INTERVAL, Reporter, SendError, Writer};
pub use sampling::{Decision, TraceAsked, decide};
pub use span::{LocalService, Span, SpanKind};
pub use tags::{CustomTags, Grpc, RequestFacts, ResponseFacts, UpstreamFacts};
pub use zipkin::ZipkinWriter;

use crate::model::http::{Tracing, TracingProvider};

/// Begins the span of a request: its context, and its name. `header` looks one up by its lower-case name;
/// `authority` is the request's. `None` where the headers hold a context that cannot be read, as Envoy does:
/// the request passes without a span, and its headers as they are.
pub fn begin<'h>(
    tracing: &Tracing,
    provider: &TracingProvider,
    direction: Direction,
    reason: TraceReason,
    authority: &str,
    header: impl Fn(&str) -> Option<&'h str>,
) -> Option<(TraceContext, String)> {
    let traced = reason != TraceReason::NotTraceable;
    let extracted = extract(provider, header);
    let context = TraceContext::begin(
        provider,
        direction,
        traced,
        tracing.spawn_upstream_span,
        extracted,
    )?;
    let name = match (provider, direction) {
        (TracingProvider::Zipkin(_), _) => authority.to_owned(),
        (TracingProvider::OpenTelemetry(_), Direction::Ingress) => "ingress".to_owned(),
        (TracingProvider::OpenTelemetry(_), Direction::Egress) => format!("egress {authority}"),
    };
    Some((context, name))
}

/// The name of the span of a request to `cluster`, where `spawn_upstream_span` is set.
pub fn upstream_name(cluster: &str) -> String {
    format!("router {cluster} egress")
}
