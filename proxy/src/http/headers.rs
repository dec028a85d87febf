//! The headers of a request as it comes in, of a response as it comes from an upstream and as it goes out.
//!
//! What Envoy does with each is in `path` and `forwarding`; this is their order.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{DATE, Entry, HeaderMap, HeaderName, HeaderValue, LOCATION};

use super::forwarding::{self, Hop, Node};
use super::header_mutation::{Side, join};
use super::local_reply::LocalReply;
use super::message::{RequestHead, ResponseHead, Version};
use super::path::{self, PathOutcome};
use super::route::Plan;
use super::stream::{Stop, Stream};
use crate::model::http::HttpConnectionManager;
use crate::net::machine;
use crate::telemetry::ResponseFlag;

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Of a request, before anything looks at it.
///
/// # Errors
/// The answer to one that is refused, or to be asked otherwise.
pub(super) fn receive(stream: &Stream) -> Result<(), Stop> {
    let head = &mut *stream.head.borrow_mut();
    let manager = &stream.manager;
    let downstream = &stream.connection.downstream;
    let port = downstream.destination.map(|address| address.port());
    if path::underscores(&mut head.headers, manager.normalization.headers_with_underscores).is_err() {
        let why = "a header name has an underscore";
        return Err(match head.version {
            Version::Http2 => Stop::Reset(ResponseFlag::DownstreamProtocolError, why.to_owned()),
            _ => LocalReply::bad_request(why, "http1.unexpected_underscore").into(),
        });
    }
    let host = path::normalize_host(&head.authority, &manager.normalization, port);
    if host.len() != head.authority.len() {
        head.authority = host.into_owned();
    }
    if !head.target.starts_with('/') {
        let details = if head.target.is_empty() {
            "missing_path_rejected"
        } else {
            "absolute_path_rejected"
        };
        return Err(LocalReply::empty(StatusCode::NOT_FOUND, details).into());
    }
    normalize(head, manager)?;
    let node = stream.connection.worker.node();
    let hop = Hop {
        remote: downstream.source,
        local: downstream.destination,
        encrypted: stream.connection.encrypted,
        machine: machine::address(),
        node: Node {
            cluster: &node.cluster,
            id: &node.id,
        },
    };
    join(&mut head.headers, Side::Request);
    let upgrade = head.upgrade.is_some();
    let client_cert = stream.connection.client_cert(&manager.forward_client_cert);
    let trusted = forwarding::received_request(&mut head.headers, manager, &hop, upgrade);
    client_cert.apply(&mut head.headers);
    if head.version != Version::Http2 {
        head.scheme = forwarding::scheme(&head.headers, stream.connection.encrypted);
    }
    // It is answered here, if it asks for nothing but that.
    if super::request::expects_continue(&head.headers) && !manager.proxy_100_continue {
        head.headers.remove(hyper::header::EXPECT);
    }
    if let Some(trusted) = trusted.filter(|trusted| Some(*trusted) != downstream.source) {
        let mut told = downstream.as_ref().clone();
        told.restore_source(trusted);
        *stream.downstream.borrow_mut() = Rc::new(told);
    }
    Ok(())
}

fn normalize(head: &mut RequestHead, manager: &HttpConnectionManager) -> Result<(), Stop> {
    match path::normalize(&head.target, &manager.normalization) {
        PathOutcome::Unchanged => Ok(()),
        PathOutcome::Changed(target) => {
            head.target = target;
            Ok(())
        }
        PathOutcome::Redirect(to) if !head.is_grpc() => {
            let mut reply = LocalReply::empty(StatusCode::TEMPORARY_REDIRECT, "path_normalization_failed");
            let location = HeaderValue::from_str(&to);
            reply
                .headers
                .extend(location.map(|location| (LOCATION, location)));
            Err(reply.into())
        }
        PathOutcome::Redirect(_) | PathOutcome::Reject => {
            let reply = LocalReply::empty(StatusCode::BAD_REQUEST, "path_normalization_failed");
            Err(reply.closing().into())
        }
    }
}

/// Of an upstream's response.
pub(super) fn received_response(stream: &Stream, plan: &Plan<'_>, headers: &mut HeaderMap) {
    join(headers, Side::Response);
    for cookie in &plan.set_cookies {
        headers.append(hyper::header::SET_COOKIE, cookie.clone());
    }
    let switches = stream.head.borrow().upgrade.is_some();
    if !stream.manager.suppress_envoy_headers && stream.clock.has_request() && !switches {
        let millis = u64::try_from(stream.clock.since_request_end().as_millis()).unwrap_or(u64::MAX);
        headers.insert(SERVICE_TIME, millis.into());
    }
}

/// Of every response, before it is sent.
pub(super) fn sent_response(stream: &Stream, response: &mut ResponseHead) {
    let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let request = stream.head.borrow();
    let id = request.headers.get(X_REQUEST_ID);
    forwarding::sent_response(&mut response.headers, &stream.manager, id, switches);
    if response.status == StatusCode::NO_CONTENT {
        response.headers.remove(hyper::header::CONTENT_LENGTH);
    }
    if let Entry::Vacant(vacant) = response.headers.entry(DATE) {
        vacant.insert(date());
    }
}

/// What every response says of who sends it and when.
pub(super) fn stamp(headers: &mut HeaderMap, manager: &HttpConnectionManager) {
    forwarding::sent_response(headers, manager, None, false);
    headers.insert(DATE, date());
}

/// The date of now (RFC 9110 section 5.6.7), made once a second a thread.
fn date() -> HeaderValue {
    thread_local! {
        static DATE_NOW: std::cell::RefCell<(u64, HeaderValue)> =
            const { std::cell::RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    DATE_NOW.with_borrow_mut(|(at, text)| {
        if *at != second
            && let Ok(newer) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            (*at, *text) = (second, newer);
        }
        text.clone()
    })
}
