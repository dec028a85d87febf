//! What is said of a request when it is over: the configured access logs, and our own line for one that went
//! wrong. Also the same facts by then for headers with command operators.
//!
//! Borrows everything of the stream; owns nothing.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::header::HeaderMap;

use super::connection::Connection;
use super::local_reply::LocalReply;
use super::message::{RequestHead, Version};
use super::stream::Stream;
use crate::model::access_log::AccessLog;
use crate::model::flags::ResponseFlags;
use crate::model::route::Route;
use crate::telemetry::access_log::request::{ConnectionFacts, RequestBytes, RequestTimes};
use crate::telemetry::access_log::{AddressText, RequestFacts, UpstreamFacts, request};

/// Has `use_them` look at what is known by now of a request with this head, whose headers may be elsewhere.
pub(super) fn with_facts_of<T>(
    stream: &Stream,
    head: &RequestHead,
    request_headers: Option<&HeaderMap>,
    response_headers: Option<&HeaderMap>,
    use_them: impl FnOnce(&RequestFacts<'_>) -> T,
) -> T {
    let request_headers = request_headers.unwrap_or(&head.headers);
    let connection = &stream.connection;
    let downstream = stream.downstream.borrow();
    let connection = ConnectionFacts {
        listener: &connection.listener,
        filter_chain: connection.filter_chain.as_deref(),
        connection_id: connection.id,
        downstream: &connection.downstream,
        tls: connection.tls,
    };
    let facts = &stream.facts;
    let details = facts.details.borrow();
    let (cluster, endpoint) = (facts.cluster.borrow(), facts.endpoint.borrow());
    let trace_ids = facts.trace_ids.borrow();
    let (route, metadata) = (facts.route.borrow(), stream.metadata.borrow());
    let upstream = UpstreamFacts {
        cluster: facts.stat_name.borrow().clone(),
        attempts: facts.attempts.get(),
        ..UpstreamFacts::default()
    };
    let mut flags = ResponseFlags::NONE;
    for (flag, _) in facts.why.borrow().iter() {
        flags.insert(*flag);
    }
    let duration = stream.clock.began.elapsed();
    let now = SystemTime::now();
    let text = |name: &str| request_headers.get(name).and_then(|value| value.to_str().ok());
    use_them(&RequestFacts {
        duration,
        times: RequestTimes {
            request_end: stream.clock.request_end(),
            upstream_send_begin: facts.sent_begin.get(),
            upstream_send_end: facts.sent_begin.get(),
            upstream_receive_begin: facts.answered_at.get(),
            upstream_receive_end: facts.answered_at.get().map(|_| duration),
            response_begin: facts.started_at.get(),
            response_end: facts.started_at.get().map(|_| duration),
            ..RequestTimes::default()
        },
        protocol: Some(head.version.as_str()),
        method: Some(head.method.as_str()),
        scheme: Some(head.scheme),
        path: Some(&*head.target).filter(|target| !target.is_empty()),
        authority: Some(&*head.authority).filter(|host| !host.is_empty()),
        request_headers: Some(request_headers),
        response_headers,
        status: facts.status.get().map(|status| status.as_u16()),
        response_code_details: Some(&**details).filter(|details| !details.is_empty()),
        flags,
        bytes: RequestBytes {
            received: stream.body.received.get(),
            sent: facts.sent.get(),
            ..RequestBytes::default()
        },
        downstream_remote: downstream.source,
        route_name: route.as_ref().map(|route| &*route.name),
        cluster: cluster.as_deref(),
        upstream_host: endpoint.as_deref().map(AddressText::Text),
        upstream: cluster.is_some().then_some(&upstream),
        upstream_protocol: facts.upstream_protocol.get().map(Version::as_str),
        attempts: facts.attempts.get(),
        metadata: Some(&metadata),
        request_id: text("x-request-id"),
        trace_id: trace_ids.as_ref().map(|(trace, _)| &**trace),
        span_id: trace_ids.as_ref().map(|(_, span)| &**span),
        traced: facts.traced.get(),
        ..RequestFacts::new(&connection, now.checked_sub(duration).unwrap_or(now))
    })
}

/// Writes the access logs of what never became a request: nothing of its head is told, as by Envoy.
pub(super) fn write_refused(connection: &Connection, logs: &[Arc<AccessLog>], reply: &LocalReply) {
    tell_refused(connection, reply);
    if logs.is_empty() {
        return;
    }
    let facts = ConnectionFacts {
        listener: &connection.listener,
        filter_chain: connection.filter_chain.as_deref(),
        connection_id: connection.id,
        downstream: &connection.downstream,
        tls: connection.tls,
    };
    let mut flags = ResponseFlags::NONE;
    if let Some((flag, _)) = &reply.why {
        flags.insert(*flag);
    }
    let facts = RequestFacts {
        protocol: Some(Version::Http11.as_str()),
        status: Some(reply.status.as_u16()),
        response_code_details: Some(&*reply.details),
        flags,
        bytes: RequestBytes {
            sent: reply.body.len() as u64,
            ..RequestBytes::default()
        },
        ..RequestFacts::new(&facts, SystemTime::now())
    };
    request::write(logs, &facts);
}

/// Our own line of it.
fn tell_refused(connection: &Connection, reply: &LocalReply) {
    let (flags, reason) = match &reply.why {
        Some((flag, why)) => (flag.as_str(), &**why),
        None => ("-", &*reply.details),
    };
    tracing::info!(
        target: "access",
        listener = %connection.listener,
        peer = connection.downstream.spiffe_id().map_or("-", |peer| peer.as_str()),
        status = reply.status.as_u16(),
        flags,
        reason,
        "request"
    );
}

/// The name of a route, if it has one: Consul gives none.
fn route(route: Option<&Route>) -> &str {
    match route {
        Some(route) if !route.name.is_empty() => &route.name,
        _ => "-",
    }
}

/// What went wrong with a request, in a flag and in words; nothing did with one whose response is the app's or a
/// route's own.
fn wrong(stream: &Stream) -> Option<(&'static str, String)> {
    if let Some((flag, why)) = &*stream.facts.why.borrow() {
        return Some((flag.as_str(), why.clone()));
    }
    let details = stream.facts.details.borrow();
    let refused = stream
        .facts
        .status
        .get()
        .is_some_and(|status| status.as_u16() >= 400);
    let by_us = !["", "via_upstream", "direct_response"].contains(&&**details);
    (refused && by_us).then(|| ("-", details.to_string()))
}

/// Writes what there is to be written of a request that is over.
pub(super) fn write(stream: &Stream) {
    let logs = &stream.manager.access_log;
    if !logs.is_empty() {
        let response = stream.facts.response_headers.borrow();
        let head = stream.head.borrow();
        with_facts_of(stream, &head, None, response.as_ref(), |facts| {
            request::write(logs, facts)
        });
    }
    if let Some((flags, reason)) = wrong(stream) {
        let head = stream.head.borrow();
        let facts = &stream.facts;
        tracing::info!(
            target: "access",
            listener = %stream.connection.listener,
            peer = stream.connection.downstream.spiffe_id().map_or("-", |peer| peer.as_str()),
            method = %head.method,
            path = head.path(),
            host = &*head.authority,
            status = facts.status.get().map_or(0, |status| status.as_u16()),
            route = route(facts.route.borrow().as_deref()),
            cluster = facts.cluster.borrow().as_deref().unwrap_or("-"),
            endpoint = facts.endpoint.borrow().as_deref().unwrap_or("-"),
            attempts = facts.attempts.get(),
            flags,
            reason,
            "request"
        );
    }
}
