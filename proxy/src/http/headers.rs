//! What Envoy changes of headers on their way, with the defaults of a connection manager that is not at the
//! edge.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, SERVER, TE,
    TRANSFER_ENCODING, UPGRADE,
};

use super::request::tokens;
use crate::model::http::{HttpConnectionManager, ServerHeaderTransformation};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
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

/// Of a request, before it is routed. `encrypted` is the downstream's connection.
pub(super) fn received_request(headers: &mut HeaderMap, host: &str, encrypted: bool, generate_id: bool) {
    remove_hop_by_hop(headers);
    for name in INTERNAL {
        headers.remove(name);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(HOST, host);
    }
    let known = |proto: &HeaderValue| proto == "http" || proto == "https";
    if !headers.get(X_FORWARDED_PROTO).is_some_and(known) {
        let proto = if encrypted { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if generate_id
        && let Entry::Vacant(vacant) = headers.entry(X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&uuid())
    {
        vacant.insert(id);
    }
}

/// Of a request, before it is sent to an upstream.
pub(super) fn sent_request(headers: &mut HeaderMap, timeout: Option<Duration>, original_path: Option<&str>) {
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        headers.insert(EXPECTED_TIMEOUT, millis.into());
    }
    if let Some(path) = original_path.and_then(|path| HeaderValue::from_str(path).ok()) {
        headers.insert(ORIGINAL_PATH, path);
    }
}

/// Of an upstream's response. `waited` is what it took since the request was there as a whole.
pub(super) fn received_response(headers: &mut HeaderMap, waited: Duration) {
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    headers.insert(SERVICE_TIME, millis.into());
}

/// Of every response, before it is sent.
pub(super) fn sent_response(headers: &mut HeaderMap, manager: &HttpConnectionManager) {
    let ours = match manager.server_header.transformation {
        ServerHeaderTransformation::Overwrite => true,
        ServerHeaderTransformation::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeaderTransformation::PassThrough => false,
    };
    if ours && let Ok(name) = HeaderValue::from_str(&manager.server_header.name) {
        headers.insert(SERVER, name);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        // These say how the message itself is read; who names them wants to confuse.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
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
    // The one extension that a proxy can pass on.
    if tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers")) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// A random UUID, version 4 (RFC 9562).
fn uuid() -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hop_by_hop_headers_and_those_named_are_taken_away() {
        let mut headers = headers(&[
            ("host", "h"),
            ("connection", "keep-alive, x-hop, host, content-length"),
            ("x-hop", "1"),
            ("keep-alive", "3"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("content-length", "3"),
            ("x-forwarded-client-cert", "forged"),
            ("x-envoy-max-retries", "1000"),
            ("x-forwarded-for", "1.2.3.4"),
        ]);
        received_request(&mut headers, "h", false, false);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
            .collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [
                ("content-length", "3"),
                ("host", "h"),
                ("te", "trailers"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "http"),
            ]
        );
    }

    #[test]
    fn what_the_downstream_said_of_itself_stays() {
        let mut known = headers(&[("x-forwarded-proto", "https"), ("x-request-id", "mine")]);
        received_request(&mut known, "h", false, true);
        assert_eq!(known["x-forwarded-proto"], "https");
        assert_eq!(known["x-request-id"], "mine");
        let mut odd = headers(&[("x-forwarded-proto", "gopher")]);
        received_request(&mut odd, "h", true, true);
        assert_eq!(odd["x-forwarded-proto"], "https");
        assert_eq!(odd["x-request-id"].len(), 36);
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        for _ in 0..64 {
            let uuid = uuid();
            assert_eq!(uuid.len(), 36);
            assert_eq!(&uuid[14..15], "4");
            assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"), "{uuid}");
            assert_eq!(uuid.matches('-').count(), 4);
        }
    }
}
