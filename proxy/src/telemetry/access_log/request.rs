//! The facts of one HTTP request, for access logs and for headers with command operators.
//!
//! Plain data that the connection manager fills; it borrows everything. Holds no socket and no time of its
//! own: moments are told as time since the request began.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::facts::{self, UpstreamFacts};
use super::record::{AddressText, Record, RecordKind, TlsSession};
use crate::model::access_log::{AccessLog, TimePoint};
use crate::model::{Downstream, Metadata, ResponseFlags};

#[cfg(test)]
mod recorded_tests;

/// What the requests of one downstream connection have in common.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// The chain's name.
    pub filter_chain: Option<&'a str>,
    /// Of [`super::connection_id`].
    pub connection_id: u64,
    /// Addresses, server name and peer.
    pub downstream: &'a Downstream,
    /// TLS with it.
    pub tls: Option<TlsSession<'a>>,
}

/// All that is known of a request by now. What is unknown, not yet so, or does not apply is none.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Where it came from.
    pub connection: &'a ConnectionFacts<'a>,
    /// When it began.
    pub start: SystemTime,
    /// Since then.
    pub duration: Duration,
    /// When what happened.
    pub times: RequestTimes,
    /// `HTTP/1.1` and its like.
    pub protocol: Option<&'a str>,
    /// `:method`.
    pub method: Option<&'a str>,
    /// `:scheme`.
    pub scheme: Option<&'a str>,
    /// `:path`: with its query, rewritten if it was.
    pub path: Option<&'a str>,
    /// `:authority`, which is what `host` is too; rewritten if it was.
    pub authority: Option<&'a str>,
    /// As they were sent on, without those above.
    pub request_headers: Option<&'a HeaderMap>,
    /// As they were sent on.
    pub response_headers: Option<&'a HeaderMap>,
    /// As they were sent on.
    pub response_trailers: Option<&'a HeaderMap>,
    /// The response's.
    pub status: Option<u16>,
    /// Envoy's response code details, such as `via_upstream`.
    pub response_code_details: Option<&'a str>,
    /// Why a rule ended the connection.
    pub termination_details: Option<&'a str>,
    /// Why it ended as it did.
    pub flags: ResponseFlags,
    /// What went over the wire.
    pub bytes: RequestBytes,
    /// Whom `x-forwarded-for` tells; none is the connection's own.
    pub downstream_remote: Option<SocketAddr>,
    /// The route that took it; may be empty.
    pub route_name: Option<&'a str>,
    /// The cluster that it was sent to.
    pub cluster: Option<&'a str>,
    /// The endpoint that it was sent to, or tried last.
    pub upstream_host: Option<AddressText<'a>>,
    /// What is known of the connection to it; one that has failed was never made.
    pub upstream: Option<&'a UpstreamFacts>,
    /// `HTTP/1.1` and its like.
    pub upstream_protocol: Option<&'a str>,
    /// The number of the connection to it; 0 without one.
    pub upstream_connection_id: u64,
    /// How often it was tried to send it; 0 where it was not to be sent.
    pub attempts: u32,
    /// Until the pool gave a connection or failed to.
    pub pool_ready: Option<Duration>,
    /// What filters wrote.
    pub metadata: Option<&'a Metadata>,
    /// `x-request-id`.
    pub request_id: Option<&'a str>,
    /// Of its trace, in hexadecimal digits.
    pub trace_id: Option<&'a str>,
    /// Of its span, in hexadecimal digits.
    pub span_id: Option<&'a str>,
    /// Whether it has a span that is sent.
    pub traced: bool,
}

/// When what happened, since the request began. Of several attempts the last one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// The last byte of the request was there.
    pub request_end: Option<Duration>,
    /// The upstream connection was begun; zero if it was there before the request.
    pub upstream_connect_begin: Option<Duration>,
    /// It was made; zero if it was there before the request.
    pub upstream_connect_end: Option<Duration>,
    /// Its TLS handshake was done; zero if it was there before the request, none without TLS.
    pub upstream_handshake_end: Option<Duration>,
    /// The first byte of the request was sent on.
    pub upstream_send_begin: Option<Duration>,
    /// The last byte of the request was sent on.
    pub upstream_send_end: Option<Duration>,
    /// The first byte of the response was there.
    pub upstream_receive_begin: Option<Duration>,
    /// The first byte of its body was there.
    pub upstream_body_begin: Option<Duration>,
    /// Its last byte was there.
    pub upstream_receive_end: Option<Duration>,
    /// The first byte of the response, ours included, was sent.
    pub response_begin: Option<Duration>,
    /// Its last byte was sent.
    pub response_end: Option<Duration>,
}

/// What went over the wire for one request, without TLS' own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestBytes {
    /// The request's body.
    pub received: u64,
    /// The response's body.
    pub sent: u64,
    /// The request with its headers.
    pub downstream_wire_received: u64,
    /// The response with its headers.
    pub downstream_wire_sent: u64,
    /// Headers of the request: in HTTP/1 the fields without the request line, in HTTP/2 compressed.
    pub downstream_header_received: u64,
    /// Headers of the response.
    pub downstream_header_sent: u64,
    /// The upstream's response with its headers.
    pub upstream_wire_received: u64,
    /// The request with its headers, as it went to the upstream; of all attempts.
    pub upstream_wire_sent: u64,
    /// Headers of the upstream's response.
    pub upstream_header_received: u64,
    /// Headers of the request, as they went to the upstream; of all attempts.
    pub upstream_header_sent: u64,
}

/// Writes a request's lines, where the logs' filters take it. Without a log it costs one branch; then the
/// facts need not be gathered either.
pub fn write(logs: &[Arc<AccessLog>], request: &RequestFacts<'_>) {
    if logs.is_empty() {
        return;
    }
    let record = request.record(RecordKind::DownstreamEnd);
    for log in logs {
        facts::write(log, &record);
    }
}

impl<'a> RequestFacts<'a> {
    /// A request of which nothing is known but where and when it came.
    pub fn new(connection: &'a ConnectionFacts<'a>, start: SystemTime) -> Self {
        Self {
            connection,
            start,
            duration: Duration::ZERO,
            times: RequestTimes::default(),
            protocol: None,
            method: None,
            scheme: None,
            path: None,
            authority: None,
            request_headers: None,
            response_headers: None,
            response_trailers: None,
            status: None,
            response_code_details: None,
            termination_details: None,
            flags: ResponseFlags::NONE,
            bytes: RequestBytes::default(),
            downstream_remote: None,
            route_name: None,
            cluster: None,
            upstream_host: None,
            upstream: None,
            upstream_protocol: None,
            upstream_connection_id: 0,
            attempts: 0,
            pool_ready: None,
            metadata: None,
            request_id: None,
            trace_id: None,
            span_id: None,
            traced: false,
        }
    }

    /// The request as a line or a header sees it.
    pub fn record(&'a self, kind: RecordKind) -> Record<'a> {
        let (connection, upstream) = (self.connection, self.upstream);
        let downstream = connection.downstream;
        let socket = |address: Option<SocketAddr>| address.map(AddressText::Socket);
        Record {
            kind,
            start: self.start,
            emitted: SystemTime::now(),
            duration: self.duration,
            bytes_received: self.bytes.received,
            bytes_sent: self.bytes.sent,
            upstream_bytes_received: self.bytes.upstream_wire_received,
            upstream_bytes_sent: self.bytes.upstream_wire_sent,
            flags: self.flags,
            response_code_details: self.response_code_details,
            termination_details: self.termination_details,
            local_close_reason: None,
            downstream_transport_failure: None,
            upstream_transport_failure: upstream.and_then(|upstream| upstream.failure.as_deref()),
            listener: connection.listener,
            filter_chain: connection.filter_chain,
            connection_id: connection.connection_id,
            stream_id: 0,
            hostname: facts::hostname(),
            downstream_remote: socket(self.downstream_remote.or(downstream.source)),
            downstream_direct_remote: socket(downstream.direct_source()),
            downstream_local: socket(downstream.destination),
            downstream_direct_local: socket(downstream.destination),
            server_name: downstream.server_name.as_deref(),
            downstream_peer: downstream.peer.as_deref(),
            downstream_tls: connection.tls,
            cluster: upstream
                .and_then(|upstream| upstream.cluster.as_deref())
                .or(self.cluster),
            cluster_raw: self.cluster,
            endpoint_name: upstream.and_then(|upstream| upstream.name.as_deref()),
            upstream_host: self.upstream_host,
            upstream_remote: self
                .upstream_host
                .filter(|_| upstream.is_some_and(|upstream| upstream.failure.is_none())),
            upstream_local: socket(upstream.and_then(|upstream| upstream.local)),
            attempts: self.attempts,
            upstream_peer: upstream.and_then(|upstream| upstream.peer.as_deref()),
            upstream_tls: upstream.and_then(|upstream| upstream.tls),
            request: Some(self),
        }
    }

    /// When a moment was.
    pub(super) fn at(&self, point: TimePoint) -> Option<Duration> {
        let times = &self.times;
        match point {
            TimePoint::DownstreamReceiveBegin => Some(Duration::ZERO),
            TimePoint::DownstreamReceiveEnd => times.request_end,
            TimePoint::UpstreamConnectBegin => times.upstream_connect_begin,
            TimePoint::UpstreamConnectEnd => times.upstream_connect_end,
            TimePoint::UpstreamHandshakeEnd => times.upstream_handshake_end,
            TimePoint::UpstreamSendBegin => times.upstream_send_begin,
            TimePoint::UpstreamSendEnd => times.upstream_send_end,
            TimePoint::UpstreamReceiveBegin => times.upstream_receive_begin,
            TimePoint::UpstreamBodyBegin => times.upstream_body_begin,
            TimePoint::UpstreamReceiveEnd => times.upstream_receive_end,
            TimePoint::DownstreamSendBegin => times.response_begin,
            TimePoint::DownstreamSendEnd => times.response_end,
        }
    }

    /// A request header by its lower-case name, of several the first: `:path` and its like are headers too.
    pub(super) fn request_header(&self, name: &str) -> Option<&'a [u8]> {
        let text = match name {
            ":method" => self.method,
            ":scheme" => self.scheme,
            ":path" => self.path,
            ":authority" | "host" => self.authority,
            _ => return Some(self.request_headers?.get(name)?.as_bytes()),
        };
        text.map(str::as_bytes)
    }

    /// Likewise, of several all with commas between, as matchers see them.
    pub(super) fn joined_request_header(&self, name: &str) -> Option<Cow<'a, str>> {
        let headers = match self.request_headers {
            Some(headers) if !name.starts_with(':') && name != "host" => headers,
            _ => return self.request_header(name).map(String::from_utf8_lossy),
        };
        let mut values = headers.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        Some(values.fold(first, |joined, value| {
            let value = String::from_utf8_lossy(value.as_bytes());
            format!("{joined},{value}").into()
        }))
    }

    /// Names and values of the request's headers, `:path` and its like included.
    pub(super) fn request_headers_bytes(&self) -> u64 {
        let pseudo = [
            (":method", self.method),
            (":scheme", self.scheme),
            (":path", self.path),
            (":authority", self.authority),
        ];
        let of_pseudo = pseudo.iter().map(|(name, value)| match value {
            Some(value) => name.len() + value.len(),
            None => 0,
        });
        count(of_pseudo.sum::<usize>() + fields_bytes(self.request_headers))
    }

    /// Names and values of the response's headers, `:status` included.
    pub(super) fn response_headers_bytes(&self) -> u64 {
        let status = self.status.map_or(0, |_| ":status200".len());
        count(status + fields_bytes(self.response_headers))
    }

    /// Names and values of the response's trailers.
    pub(super) fn response_trailers_bytes(&self) -> u64 {
        count(fields_bytes(self.response_trailers))
    }

    /// Whether it is a gRPC request, by its content type.
    pub(super) fn is_grpc(&self) -> bool {
        let content_type = self.request_headers.and_then(|headers| headers.get(CONTENT_TYPE));
        content_type.is_some_and(|value| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            matches!(rest, Some([] | [b'+', ..]))
        })
    }

    /// The status in the trailers, or in the headers, or what the HTTP status stands for. One that is no
    /// number is -1, as in Envoy.
    pub(super) fn grpc_status(&self) -> Option<i64> {
        let told = [self.response_trailers, self.response_headers];
        let told = told
            .into_iter()
            .flatten()
            .find_map(|headers| headers.get("grpc-status"));
        match told {
            Some(status) => {
                let number = status.to_str().ok().and_then(|status| status.parse::<u32>().ok());
                Some(number.map_or(-1, i64::from))
            }
            None => self.status.map(grpc_of_http),
        }
    }
}

/// What an HTTP status stands for in gRPC ("HTTP to gRPC Status Code Mapping").
fn grpc_of_http(status: u16) -> i64 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

fn fields_bytes(headers: Option<&HeaderMap>) -> usize {
    let fields = headers.into_iter().flatten();
    fields
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
