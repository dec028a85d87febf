//! The spans of one request: its own, and where configured one for each try.
//!
//! Decides whether there is one, has the headers tell the upstream, collects what the spans say, and hands
//! them to the worker's reporter when the stream ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::exchange::ExchangeError;
use super::failed::FailedBy;
use super::message::{RequestHead, Version};
use super::record;
use super::stream::Stream;
use super::tracers::Tracer;
use crate::model::Name;
use crate::model::http::Tracing;
use crate::telemetry::ResponseFlag;
use crate::telemetry::access_log::request::RequestTimes;
use crate::telemetry::access_log::{RecordKind, render};
use crate::telemetry::trace::{
    self, Direction, Grpc, RequestFacts, ResponseFacts, Span, TraceAsked, TraceReason, UpstreamFacts,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// A request that has a span.
pub(super) struct Traced {
    tracer: Rc<Tracer>,
    tracing: Arc<Tracing>,
    span: Span,
    grpc: GrpcOutcome,
    /// The last one.
    tried: Option<Try>,
}

/// One try that has a span.
struct Try {
    span: Span,
    number: u32,
    endpoint: Option<Rc<str>>,
    /// Once it is connected.
    protocol: Option<Version>,
    status: Option<StatusCode>,
    grpc: GrpcOutcome,
    /// Envoy's words for how the endpoint ended it.
    reset: Option<&'static str>,
    flag: Option<ResponseFlag>,
    canceled: bool,
}

/// What `grpc-status` and `grpc-message` said.
#[derive(Clone, Debug, Default)]
struct GrpcOutcome {
    status: Option<u32>,
    message: Option<String>,
}

/// Decides on a request that is well formed, and begins its span. To be run before the filters, as by Envoy:
/// its ID says from here on why it is traced.
pub(super) fn begin(stream: &Stream) {
    let Some(tracing) = &stream.manager.tracing else {
        return;
    };
    let mut head = stream.head.borrow_mut();
    let reason = decide(tracing, &mut head.headers);
    stream.connection.metrics.tracing.decided(reason);
    stream.facts.traced.set(reason != TraceReason::NotTraceable);
    let direction = stream.connection.direction;
    let Some(tracer) = stream.connection.worker.tracers.get(tracing) else {
        take_operation(direction, &mut head.headers);
        return;
    };
    let header = |name: &str| text(&head.headers, name);
    let begun = trace::begin(
        tracing,
        &tracer.provider,
        direction,
        reason,
        &head.authority,
        header,
    );
    let Some((context, name)) = begun else { return };
    let name = take_operation(direction, &mut head.headers).unwrap_or(name);
    *stream.facts.trace_ids.borrow_mut() = Some(context.ids());
    let now = SystemTime::now();
    let start = now.checked_sub(stream.clock.began.elapsed()).unwrap_or(now);
    *stream.trace.borrow_mut() = Some(Traced {
        tracer,
        tracing: Arc::clone(tracing),
        span: Span::new(context, name, start),
        grpc: GrpcOutcome::default(),
        tried: None,
    });
}

/// What a caller's proxy wants the span of an incoming request to be called. The upstream is not told.
fn take_operation(direction: Direction, headers: &mut HeaderMap) -> Option<String> {
    if direction == Direction::Egress {
        return None;
    }
    let operation = headers.remove(OPERATION)?;
    let operation = operation.to_str().ok().filter(|operation| !operation.is_empty());
    operation.map(str::to_owned)
}

fn decide(tracing: &Tracing, headers: &mut HeaderMap) -> TraceReason {
    let asked = TraceAsked {
        client_trace_id: headers.contains_key(CLIENT_TRACE_ID),
        force_trace: headers.contains_key(FORCE_TRACE),
    };
    let decision = trace::decide(
        tracing,
        headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()),
        asked,
        fastrand::u16(..10_000),
    );
    let changed = decision.request_id.map(HeaderValue::try_from);
    if let Some(Ok(changed)) = changed {
        headers.insert(X_REQUEST_ID, changed);
    }
    decision.reason
}

/// Whether the request's span will be sent.
pub(super) fn is_reported(stream: &Stream) -> bool {
    let trace = stream.trace.borrow();
    trace
        .as_ref()
        .is_some_and(|traced| traced.span.context.sampled && traced.tracer.reporter.is_some())
}

/// A try begins: it has a span of its own where that is configured.
pub(super) fn begin_try(stream: &Stream) {
    end_try(stream);
    let mut trace = stream.trace.borrow_mut();
    let Some(traced) = trace.as_mut().filter(|traced| traced.tracing.spawn_upstream_span) else {
        return;
    };
    let name = cluster_name(stream).unwrap_or_default();
    let context = traced.span.context.child();
    traced.tried = Some(Try {
        span: Span::new(context, trace::upstream_name(&name), SystemTime::now()),
        number: stream.facts.attempts.get(),
        endpoint: None,
        protocol: None,
        status: None,
        grpc: GrpcOutcome::default(),
        reset: None,
        flag: None,
        canceled: false,
    });
}

/// There was nothing to try: Envoy has no span of that.
pub(super) fn no_try(stream: &Stream) {
    if let Some(traced) = &mut *stream.trace.borrow_mut() {
        traced.tried = None;
    }
}

/// Writes the context into the headers of a request that goes to an endpoint.
pub(super) fn send(stream: &Stream, head: &mut RequestHead, endpoint: &Rc<str>, protocol: Version) {
    let mut trace = stream.trace.borrow_mut();
    let Some(traced) = &mut *trace else { return };
    if let Some(tried) = &mut traced.tried {
        tried.endpoint = Some(Rc::clone(endpoint));
        tried.protocol = Some(protocol);
    }
    if traced.tracing.no_context_propagation {
        return;
    }
    let context = match &traced.tried {
        Some(tried) => &tried.span.context,
        None => &traced.span.context,
    };
    for (name, value) in context.inject() {
        if let Ok(value) = HeaderValue::try_from(value) {
            head.headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The endpoint has answered the try.
pub(super) fn answered(stream: &Stream, status: StatusCode) {
    if let Some(traced) = &mut *stream.trace.borrow_mut()
        && let Some(tried) = &mut traced.tried
    {
        tried.status = Some(status);
    }
}

/// Headers or trailers of the response that goes to the downstream.
pub(super) fn responded(stream: &Stream, headers: &HeaderMap) {
    let mut trace = stream.trace.borrow_mut();
    let Some(traced) = &mut *trace else { return };
    let status = text(headers, "grpc-status").and_then(|status| status.parse().ok());
    if status.is_none() {
        return;
    }
    traced.grpc = GrpcOutcome {
        status,
        message: text(headers, "grpc-message").map(str::to_owned),
    };
    if let Some(tried) = traced.tried.as_mut().filter(|tried| tried.status.is_some()) {
        tried.grpc = traced.grpc.clone();
    }
}

/// The try has failed.
pub(super) fn failed(stream: &Stream, why: &FailedBy) {
    let mut trace = stream.trace.borrow_mut();
    let Some(tried) = trace.as_mut().and_then(|traced| traced.tried.as_mut()) else {
        return;
    };
    (tried.reset, tried.flag) = match why {
        FailedBy::PerTryTimeout => {
            tried.canceled = true;
            (None, Some(ResponseFlag::UpstreamRequestTimeout))
        }
        FailedBy::Connect(_) => (
            Some("remote connection failure"),
            Some(ResponseFlag::UpstreamConnectionFailure),
        ),
        FailedBy::Exchange(error) => match error {
            ExchangeError::Ended { .. } => (
                Some("connection termination"),
                Some(ResponseFlag::UpstreamConnectionTermination),
            ),
            ExchangeError::Reset(_) => (Some("remote reset"), Some(ResponseFlag::UpstreamRemoteReset)),
            ExchangeError::Refused | ExchangeError::GoneAway => (
                Some("remote refused stream reset"),
                Some(ResponseFlag::UpstreamRemoteReset),
            ),
            ExchangeError::Protocol(_) => (Some("protocol error"), Some(ResponseFlag::UpstreamProtocolError)),
        },
    };
    if tried.endpoint.is_none() {
        tried.endpoint.clone_from(&stream.facts.endpoint.borrow());
    }
}

/// Reports the span of the try, which is over.
fn end_try(stream: &Stream) {
    let mut trace = stream.trace.borrow_mut();
    let Some(traced) = &mut *trace else { return };
    let Some(mut tried) = traced.tried.take() else {
        return;
    };
    let Some(reporter) = traced
        .tracer
        .reporter
        .as_ref()
        .filter(|_| tried.span.context.sampled)
    else {
        return;
    };
    let cluster = cluster_name(stream);
    let response = ResponseFacts {
        cluster: cluster.as_deref(),
        status: tried.status.map(|status| status.as_u16()),
        flags: tried.flag.unwrap_or(ResponseFlag::None).as_str(),
        grpc_status: tried.grpc.status,
        grpc_message: tried.grpc.message.as_deref(),
    };
    let upstream = UpstreamFacts {
        protocol: tried.protocol.map_or("-", Version::as_str),
        address: tried.endpoint.as_deref(),
        retry: tried.number.checked_sub(1).filter(|retry| *retry > 0),
        canceled: tried.canceled || tried.status.is_none() && tried.reset.is_none(),
        reset: tried.reset,
    };
    response.tag_upstream(&mut tried.span, &upstream);
    tried.span.finish(SystemTime::now());
    reporter.report(tried.span);
}

/// Reports the span of a stream that ends.
pub(super) fn end(stream: &Stream) {
    end_try(stream);
    let Some(traced) = stream.trace.borrow_mut().take() else {
        return;
    };
    let Traced {
        tracer,
        tracing,
        mut span,
        grpc,
        ..
    } = traced;
    let Some(reporter) = tracer.reporter.as_ref().filter(|_| span.context.sampled) else {
        return;
    };
    let head = stream.head.borrow();
    tag_request(stream, &head, &tracer, &tracing, &mut span);
    tag_response(stream, &grpc, &mut span);
    let response_headers = stream.facts.response_headers.borrow();
    record::with_facts_of(stream, &head, None, response_headers.as_ref(), |facts| {
        let record = facts.record(RecordKind::NotSet);
        tracer.custom.apply(
            &mut span,
            |name| text(&head.headers, name),
            |template| String::from_utf8_lossy(&render::header(template, &record)).into_owned(),
        );
        if tracing.verbose {
            annotate(&mut span, &facts.times);
        }
    });
    span.finish(SystemTime::now());
    reporter.report(span);
}

fn tag_request(stream: &Stream, head: &RequestHead, tracer: &Tracer, tracing: &Tracing, span: &mut Span) {
    let header = |name: &str| text(&head.headers, name);
    let peer = stream.connection.downstream.direct_source();
    let peer = peer.map_or_else(String::new, |peer| peer.ip().to_string());
    let request = RequestFacts {
        request_id: header(X_REQUEST_ID.as_str()),
        client_trace_id: header("x-client-trace-id"),
        scheme: head.scheme,
        authority: &head.authority,
        path: header("x-envoy-original-path").unwrap_or(&head.target),
        method: head.method.as_str(),
        downstream_cluster: header("x-envoy-downstream-service-cluster"),
        user_agent: header("user-agent"),
        protocol: head.version.as_str(),
        peer: &peer,
        grpc: head.is_grpc().then(|| Grpc {
            content_type: header("content-type").unwrap_or_default(),
            timeout: header("grpc-timeout"),
        }),
    };
    request.tag(span, &tracer.local, tracing.max_path_tag_length);
}

fn tag_response(stream: &Stream, grpc: &GrpcOutcome, span: &mut Span) {
    let facts = &stream.facts;
    let cluster = cluster_name(stream);
    let flag = facts
        .why
        .borrow()
        .as_ref()
        .map_or(ResponseFlag::None, |(flag, _)| *flag);
    let response = ResponseFacts {
        cluster: cluster.as_deref(),
        status: facts.status.get().map(|status| status.as_u16()),
        flags: flag.as_str(),
        grpc_status: grpc.status,
        grpc_message: grpc.message.as_deref(),
    };
    response.tag_downstream(span, stream.body.received.get(), facts.sent.get());
}

/// By its name in statistics; none where there is none of the route's name.
fn cluster_name(stream: &Stream) -> Option<Name> {
    let cluster = stream.cluster()?;
    Some(Name::clone(cluster.config().stat_name()))
}

/// Envoy's events of a stream, as far as they happened.
fn annotate(span: &mut Span, times: &RequestTimes) {
    let start = span.start;
    let events: [(Option<Duration>, &'static str); 7] = [
        (times.request_end, "last_downstream_rx_byte_received"),
        (times.upstream_send_begin, "first_upstream_tx_byte_sent"),
        (times.upstream_send_end, "last_upstream_tx_byte_sent"),
        (times.upstream_receive_begin, "first_upstream_rx_byte_received"),
        (times.upstream_receive_end, "last_upstream_rx_byte_received"),
        (times.response_begin, "first_downstream_tx_byte_sent"),
        (times.response_end, "last_downstream_tx_byte_sent"),
    ];
    for (at, what) in events {
        if let Some(at) = at.and_then(|at| start.checked_add(at)) {
            span.annotate(at, what);
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
