//! What a connection manager changes of headers on their way, in Envoy's order.

use std::time::{Duration, SystemTime};

use hyper::header::{
    CONNECTION, DATE, EXPECT, Entry, HeaderMap, HeaderName, HeaderValue, SERVER, TE, TRANSFER_ENCODING,
    UPGRADE,
};

use super::h1::server::tokens;
use super::local_reply::LocalReply;
use super::message::ResponseHead;
use super::request::wants_trailers;
use super::route::Plan;
use super::stream::{Stop, Stream};
use crate::model::http::{HttpConnectionManager, ServerHeaderTransformation};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Said by nobody but a connection manager or its operator: taken away from requests that come from outside,
/// which all do unless internal addresses are configured.
const INTERNAL: [&str; 14] = [
    "x-envoy-internal",
    "x-forwarded-client-cert",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
];

/// Of a request, before anything looks at it.
///
/// # Errors
/// The answer to one that is refused.
pub(super) fn receive(stream: &Stream) -> Result<(), Stop> {
    let head = &mut *stream.head.borrow_mut();
    if !head.target.starts_with('/') {
        return Err(LocalReply::empty(hyper::StatusCode::NOT_FOUND, "absolute_path_rejected").into());
    }
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    for name in INTERNAL {
        headers.remove(name);
    }
    let known = |proto: &HeaderValue| proto == "http" || proto == "https";
    if !headers.get(X_FORWARDED_PROTO).is_some_and(known) {
        let proto = if stream.connection.encrypted {
            "https"
        } else {
            "http"
        };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if stream.manager.request_id.generate
        && let Entry::Vacant(vacant) = headers.entry(X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&uuid())
    {
        vacant.insert(id);
    }
    Ok(())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = wants_trailers(headers);
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        // It says how the message itself is read; who names it wants to confuse.
        .filter(|name| *name != hyper::header::CONTENT_LENGTH && *name != TE)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        EXPECT,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// Of an upstream's response.
pub(super) fn received_response(stream: &Stream, _plan: &Plan<'_>, headers: &mut HeaderMap) {
    if !stream.manager.suppress_envoy_headers {
        let millis = u64::try_from(stream.clock.since_request_end().as_millis()).unwrap_or(u64::MAX);
        headers.insert(SERVICE_TIME, millis.into());
    }
}

/// Of every response, before it is sent.
pub(super) fn sent_response(stream: &Stream, head: &mut ResponseHead) {
    let headers = &mut head.headers;
    let switches = head.status == hyper::StatusCode::SWITCHING_PROTOCOLS;
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    if switches {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    stamp(headers, &stream.manager);
}

/// What every response says of who sends it and when.
pub(super) fn stamp(headers: &mut HeaderMap, manager: &HttpConnectionManager) {
    let server = &manager.server_header;
    let ours = match server.transformation {
        ServerHeaderTransformation::Overwrite => true,
        ServerHeaderTransformation::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeaderTransformation::PassThrough => false,
    };
    if ours && let Ok(name) = HeaderValue::from_str(&server.name) {
        headers.insert(SERVER, name);
    }
    if let Entry::Vacant(vacant) = headers.entry(DATE) {
        vacant.insert(date());
    }
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

/// A random UUID, version 4 (RFC 9562).
fn uuid() -> String {
    use std::fmt::Write as _;
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let mut uuid = String::with_capacity(36);
    for (at, part) in [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)] {
        let separator = if at == 0 { "" } else { "-" };
        // Writing to a String cannot fail.
        let _ = write!(uuid, "{separator}{}", &hex[at..part]);
    }
    uuid
}
