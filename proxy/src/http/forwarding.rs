//! What a connection manager changes of headers on their way, and whom it believes to have sent them
//! (Envoy's `ConnectionManagerUtility`), as Envoy 1.40 does it.
//!
//! Pure but for random request IDs. XFCC is `client_cert`'s; what routes change is the router's.
//!
//! Nobody is internal: Envoy 1.40 trusts no address unless `internal_address_config` is there, which is not
//! carried. So a request's `x-envoy-…` orders never count, `x-envoy-internal` is never said.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, REFERER, SERVER, TE, UPGRADE, USER_AGENT, VIA,
};

use super::request::tokens;
use crate::model::http::{
    Forwarding, HttpConnectionManager, RequestId, Sampling, ServerHeader, ServerHeaderTransformation,
};

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const SERVICE_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const SERVICE_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");

/// How Envoy's own headers begin.
const ENVOY: &str = "x-envoy-";

/// Orders to a proxy and claims of one, behind [`ENVOY`]: taken out of every request, since none is internal.
/// The last one is taken out by Envoy's router, whoever sends it.
const INTERNAL: [&str; 16] = [
    "internal",
    "retriable-status-codes",
    "retriable-header-names",
    "retry-on",
    "retry-grpc-on",
    "max-retries",
    "upstream-alt-stat-name",
    "upstream-rq-timeout-ms",
    "upstream-rq-per-try-timeout-ms",
    "upstream-rq-timeout-alt-response",
    "expected-rq-timeout-ms",
    "force-trace",
    "ip-tags",
    "original-url",
    "hedge-on-per-try-timeout",
    "upstream-stream-duration-ms",
];

/// Taken away at the edge only; behind [`ENVOY`].
const EDGE: [&str; 5] = [
    "decorator-operation",
    "downstream-service-cluster",
    "downstream-service-node",
    "original-path",
    "original-host",
];

/// Where a request ID says why it is traced: the version of the UUID.
const REASON_AT: usize = 14;

/// A `connection` header may name no more than this.
const MAX_CONNECTION_TOKENS: usize = 9;

/// What is known of the connection that a request came on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop<'a> {
    /// Who connected; none on a unix socket.
    pub(super) remote: Option<SocketAddr>,
    /// Where to; none on a unix socket.
    pub(super) local: Option<SocketAddr>,
    /// Whether it speaks TLS.
    pub(super) encrypted: bool,
    /// This machine's address, told instead of a remote `127.0.0.1`: Envoy takes the first IPv4 address of
    /// an interface that is up and not the loopback, or else `127.0.0.1`.
    pub(super) machine: IpAddr,
    /// The bootstrap's node, for [`Forwarding::add_user_agent`].
    pub(super) node: Node<'a>,
}

/// Who this proxy is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node<'a> {
    /// `node.cluster`.
    pub(super) cluster: &'a str,
    /// `node.id`; may be empty.
    pub(super) id: &'a str,
}

/// The `connection` header names what it must not: 400, and the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection header names a header that is not a hop's, or too many")]
pub(super) struct ConnectionHeaderRejected;

/// Takes away what the `connection` header of an HTTP/1 request names, and an upgrade to HTTP/2, which is
/// ignored. A `host` that is named is gone too: the request has none then. To be run first; what is left in
/// `connection` and `upgrade` says what the request asks for.
///
/// # Errors
/// It names a pseudo header, an address of an earlier hop, or more than nine headers.
pub(super) fn remove_nominated(headers: &mut HeaderMap) -> Result<(), ConnectionHeaderRejected> {
    let mut nominated = Vec::new();
    for (index, token) in tokens(headers, &CONNECTION)
        .filter(|token| !token.is_empty())
        .enumerate()
    {
        let is = |name: &str| token.eq_ignore_ascii_case(name);
        let earlier_hop = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        if index == MAX_CONNECTION_TOKENS || token.starts_with(':') || earlier_hop.into_iter().any(is) {
            return Err(ConnectionHeaderRejected);
        }
        // What these say is looked at later; `te` has its own rule.
        let kept = [
            "keep-alive",
            "close",
            "upgrade",
            "http2-settings",
            "te",
            "connection",
        ];
        if !kept.into_iter().any(is) {
            nominated.extend(token.parse::<HeaderName>());
        }
    }
    if is_h2c_upgrade(headers) {
        nominated.extend([UPGRADE, HTTP2_SETTINGS]);
    }
    for name in nominated {
        headers.remove(name);
    }
    Ok(())
}

fn is_h2c_upgrade(headers: &HeaderMap) -> bool {
    let h2c = joined(headers, &UPGRADE).is_some_and(|to| to.eq_ignore_ascii_case(b"h2c"));
    h2c && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Brings the headers of a request up to date, before it is routed. `upgrade` keeps those that ask for one.
/// Returns the trusted downstream address: of rules by `remote_ip`, access logs and hashes. One out of
/// `x-forwarded-for` has port 0.
pub(super) fn received_request(
    headers: &mut HeaderMap,
    manager: &HttpConnectionManager,
    hop: &Hop<'_>,
    upgrade: bool,
) -> Option<SocketAddr> {
    let options = &manager.forwarding;
    let edge = options.use_remote_address;
    remove_hop_by_hop(headers, upgrade);
    reduce_te(headers);
    sanitize_referer(headers);
    let trusted = trusted_address(headers, options).or(hop.remote);
    if edge && !options.skip_xff_append {
        append_forwarded_for(headers, hop);
    }
    forwarded_proto_and_port(headers, options, hop);
    remove_those(headers, |name| {
        name.strip_prefix(ENVOY)
            .is_some_and(|order| INTERNAL.contains(&order) || edge && EDGE.contains(&order))
    });
    if options.add_user_agent {
        add_user_agent(headers, hop.node);
    }
    append(headers, VIA, ", ", &options.via);
    if let Some(trusted) = trusted.filter(|_| edge) {
        set(headers, EXTERNAL_ADDRESS, &trusted.ip().to_string());
    }
    ensure_request_id(headers, &manager.request_id, edge);
    trusted
}

/// Takes away what concerns one connection only; `upgrade` keeps what asks for one or accepts it.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    remove_those(headers, |name| match name {
        "keep-alive" | "proxy-connection" | "transfer-encoding" => true,
        "connection" | "upgrade" => !upgrade,
        _ => false,
    });
}

/// Most messages have none of them: to look at each name once costs a tenth of looking each unwanted one up.
fn remove_those(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| unwanted(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// `te` passes on that trailers are understood, in exactly this word, and nothing else.
fn reduce_te(headers: &mut HeaderMap) {
    if tokens(headers, &TE).any(|token| token == "trailers") {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// Several ones are looked at as one, as everywhere in Envoy.
fn sanitize_referer(headers: &mut HeaderMap) {
    if joined(headers, &REFERER).is_some_and(|referer| !is_referer(&referer)) {
        headers.remove(REFERER);
    }
}

/// A URL with a host or a relative reference; without user information and fragment. Envoy looks closely at
/// the scheme, host and port and at the first character of a path alone.
fn is_referer(referer: &[u8]) -> bool {
    if !referer.iter().all(u8::is_ascii_graphic) || referer.contains(&b'#') {
        return false;
    }
    let Ok(referer) = std::str::from_utf8(referer) else {
        return false;
    };
    match referer.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            is_authority(&rest[..end])
        }
        _ => is_relative(referer),
    }
}

fn is_scheme(scheme: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(rest)
}

/// A host, in brackets an address, and maybe a port.
fn is_authority(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let host = match host.strip_prefix('[') {
        Some(address) => address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<IpAddr>().is_ok()),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        }
    };
    host && port.is_none_or(digits)
}

/// No colon in what could be taken for a scheme (RFC 3986, section 4.2), and nothing that should be encoded.
fn is_relative(reference: &str) -> bool {
    let encoded = |c: char| "\"<>\\^`{|}".contains(c);
    let first = reference.split('/').next().unwrap_or_default();
    !first.contains(':') && !reference.contains(encoded)
}

/// Out of `x-forwarded-for`, as many hops from its end as are trusted; at the edge the connection is one.
fn trusted_address(headers: &HeaderMap, options: &Forwarding) -> Option<SocketAddr> {
    let hops = options.xff_num_trusted_hops;
    let from_end = if options.use_remote_address {
        hops.checked_sub(1)?
    } else {
        hops
    };
    let addresses = joined(headers, &X_FORWARDED_FOR)?;
    let address = std::str::from_utf8(&addresses)
        .ok()?
        .rsplit(',')
        .nth(usize::try_from(from_end).ok()?)?;
    Some(SocketAddr::new(address.trim().parse().ok()?, 0))
}

/// Envoy tells nobody of a loopback address, and of no unix socket.
fn append_forwarded_for(headers: &mut HeaderMap, hop: &Hop<'_>) {
    let Some(remote) = hop.remote.map(|remote| remote.ip().to_canonical()) else {
        return;
    };
    let loopback = [
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    ];
    let told = if loopback.contains(&remote) {
        hop.machine
    } else {
        remote
    };
    append(headers, X_FORWARDED_FOR, ",", &told.to_string());
}

/// Of a trusted hop they stay, even if nobody knows such a scheme.
fn forwarded_proto_and_port(headers: &mut HeaderMap, options: &Forwarding, hop: &Hop<'_>) {
    let trusted = !options.use_remote_address || options.xff_num_trusted_hops > 0;
    if !trusted || !headers.contains_key(X_FORWARDED_PROTO) {
        let proto = if hop.encrypted { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if options.append_x_forwarded_port
        && (!trusted || !headers.contains_key(X_FORWARDED_PORT))
        && let Some(local) = hop.local
    {
        headers.insert(X_FORWARDED_PORT, local.port().into());
    }
}

fn add_user_agent(headers: &mut HeaderMap, node: Node<'_>) {
    set(headers, SERVICE_CLUSTER, node.cluster);
    if headers.get(USER_AGENT).is_none_or(HeaderValue::is_empty) {
        set(headers, USER_AGENT, node.cluster);
    }
    if !node.id.is_empty() {
        set(headers, SERVICE_NODE, node.id);
    }
}

/// The scheme of a request that names none itself: what a hop before says, if it is HTTP's, or else the
/// connection's. To be asked after [`received_request`].
pub(super) fn scheme(headers: &HeaderMap, encrypted: bool) -> &'static str {
    let said = joined(headers, &X_FORWARDED_PROTO).unwrap_or_default();
    let https = match said.as_slice() {
        proto if proto.eq_ignore_ascii_case(b"https") => true,
        proto if proto.eq_ignore_ascii_case(b"http") => false,
        _ => encrypted,
    };
    if https { "https" } else { "http" }
}

fn ensure_request_id(headers: &mut HeaderMap, options: &RequestId, edge: bool) {
    let ours = edge && !options.preserve_external;
    let absent = headers.get(X_REQUEST_ID).is_none_or(HeaderValue::is_empty);
    if options.generate && (ours || absent) {
        set_bytes(headers, X_REQUEST_ID, &uuid());
    } else if options.generate && edge {
        // A stranger's ID may stay, but decides nothing about tracing.
        let id = headers.get(X_REQUEST_ID).map(HeaderValue::as_bytes);
        let id: Option<[u8; 36]> = id.and_then(|id| id.try_into().ok());
        if let Some(mut id) = id {
            id[REASON_AT] = b'4';
            set_bytes(headers, X_REQUEST_ID, &id);
        }
    }
}

/// Lets a share of all requests pass.
pub(super) fn by_chance(sampling: Sampling) -> bool {
    fastrand::u16(..10_000) < sampling.of_ten_thousand()
}

/// Brings the headers of a response up to date, before it is sent: an upstream's, and one made here.
/// `upgrade` keeps those that accept one. `request_id` is the request's.
pub(super) fn sent_response(
    headers: &mut HeaderMap,
    manager: &HttpConnectionManager,
    request_id: Option<&HeaderValue>,
    upgrade: bool,
) {
    remove_hop_by_hop(headers, upgrade);
    if manager.request_id.always_in_response
        && let Some(id) = request_id
    {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    append(headers, VIA, ", ", &manager.forwarding.via);
    server(headers, &manager.server_header);
}

fn server(headers: &mut HeaderMap, options: &ServerHeader) {
    let ours = match options.transformation {
        ServerHeaderTransformation::Overwrite => true,
        ServerHeaderTransformation::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeaderTransformation::PassThrough => false,
    };
    if ours {
        set(headers, SERVER, &options.name);
    }
}

/// All values of a header as one, as Envoy keeps those that it knows: empty ones add nothing. None if there is none.
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes().to_vec();
    Some(values.fold(first, |mut joined, value| {
        if !joined.is_empty() && !value.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(value.as_bytes());
        joined
    }))
}

/// Appends to a header, all values of which become one. Nothing is appended if there is nothing.
pub(super) fn append(headers: &mut HeaderMap, name: HeaderName, separator: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    let mut all = joined(headers, &name).unwrap_or_default();
    if !all.is_empty() {
        all.extend_from_slice(separator.as_bytes());
    }
    all.extend_from_slice(value.as_bytes());
    set_bytes(headers, name, &all);
}

/// A value that is none of HTTP's, out of a configuration, is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    set_bytes(headers, name, value.as_bytes());
}

fn set_bytes(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
}

/// A random UUID, version 4 (RFC 9562).
fn uuid() -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut uuid = [b'-'; 36];
    for (at, digit) in uuid.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at) {
            *digit = DIGITS[usize::try_from(bits >> 124).unwrap_or_default()];
            bits <<= 4;
        }
    }
    uuid
}

#[cfg(test)]
#[path = "forwarding_tests.rs"]
mod tests;
