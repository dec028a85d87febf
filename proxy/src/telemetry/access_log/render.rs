//! From a [`Record`] and a format to a line: pure.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::Value as Json;

use super::record::Record;
use super::time;
use crate::model::access_log::{
    AccessLogFormat, AddressPart, JsonPiece, Operator, Piece, Place, Template, TimeFormat,
};
use crate::model::{Peer, ResponseFlag};

/// One fact.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Absent,
    Text(Cow<'a, str>),
    Number(u64),
}

/// The line of a record, its end included if the format has one.
pub fn line(format: &AccessLogFormat, record: &Record<'_>) -> String {
    let mut out = String::with_capacity(512);
    match format {
        AccessLogFormat::Text(template) => text(template, record, &mut out),
        AccessLogFormat::Json(template) => {
            for piece in template.pieces() {
                match piece {
                    JsonPiece::Literal(literal) => out.push_str(literal),
                    JsonPiece::Value(operator) => match value(operator, record) {
                        Value::Absent => out.push_str("null"),
                        Value::Number(number) => push(&mut out, &number),
                        Value::Text(text) => push(&mut out, &Json::from(text)),
                    },
                    JsonPiece::Text(template) => {
                        let mut string = String::new();
                        text(template, record, &mut string);
                        push(&mut out, &Json::from(string));
                    }
                }
            }
        }
    }
    out
}

fn text(template: &Template, record: &Record<'_>, out: &mut String) {
    for piece in template.pieces() {
        match piece {
            Piece::Literal(literal) => out.push_str(literal),
            Piece::Operator(operator) => match value(operator, record) {
                Value::Absent => out.push('-'),
                Value::Number(number) => push(out, &number),
                Value::Text(text) => out.push_str(&text),
            },
        }
    }
}

fn push(out: &mut String, value: &dyn std::fmt::Display) {
    // Writing to a `String` cannot fail.
    let _ = write!(out, "{value}");
}

fn value<'a>(operator: &Operator, record: &Record<'a>) -> Value<'a> {
    use Operator as O;
    let tls = record.downstream_tls;
    let upstream_tls = record.upstream_tls;
    match operator {
        O::StartTime(format) => moment(record.start, format),
        O::EmitTime(format) => moment(record.emitted, format),
        O::Duration => Value::Number(u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX)),
        O::BytesReceived | O::DownstreamWireBytesReceived => Value::Number(record.bytes_received),
        O::BytesSent | O::DownstreamWireBytesSent => Value::Number(record.bytes_sent),
        O::UpstreamWireBytesReceived => Value::Number(record.upstream_bytes_received),
        O::UpstreamWireBytesSent => Value::Number(record.upstream_bytes_sent),
        O::ResponseFlags => flags(record.flags, ResponseFlag::as_str),
        O::ResponseFlagsLong => flags(record.flags, ResponseFlag::as_long_str),
        O::ResponseCodeDetails => words(record.response_code_details),
        O::ConnectionTerminationDetails => words(record.termination_details),
        O::DownstreamLocalCloseReason => words(record.local_close_reason),
        O::DownstreamTransportFailureReason => words(record.downstream_transport_failure),
        O::UpstreamTransportFailureReason => words(record.upstream_transport_failure),
        O::UpstreamRequestAttemptCount => Value::Number(record.attempts.into()),
        O::UpstreamHostName(part) => match record.endpoint_name {
            Some(name) => host_name(name, *part),
            None => address(record.upstream_remote, *part),
        },
        O::UpstreamCluster | O::UpstreamClusterRaw => optional(record.cluster),
        O::Address(place, part) => address(at(*place, record), *part),
        O::DownstreamTlsVersion => optional(tls.map(|tls| tls.version)),
        O::DownstreamTlsCipher => optional(tls.map(|tls| tls.cipher)),
        O::DownstreamPeerUriSan => names(record.downstream_peer, |peer| &peer.uris),
        O::DownstreamPeerDnsSan => names(record.downstream_peer, |peer| &peer.dns_names),
        O::DownstreamPeerSubject => subject(record.downstream_peer),
        O::UpstreamTlsVersion => optional(upstream_tls.map(|tls| tls.version)),
        O::UpstreamTlsCipher => optional(upstream_tls.map(|tls| tls.cipher)),
        O::UpstreamPeerUriSan => names(record.upstream_peer, |peer| &peer.uris),
        O::UpstreamPeerDnsSan => names(record.upstream_peer, |peer| &peer.dns_names),
        O::UpstreamPeerSubject => subject(record.upstream_peer),
        O::RequestedServerName => optional(record.server_name),
        O::ConnectionId => Value::Number(record.connection_id),
        O::StreamId => Value::Text(uuid(record.stream_id).into()),
        O::FilterChainName => optional(record.filter_chain),
        O::ListenerName => Value::Text(record.listener.into()),
        O::Hostname => Value::Text(record.hostname.into()),
        O::AccessLogType => Value::Text(record.kind.as_str().into()),
        // Of HTTP alone. Envoy counts these of a connection too, as none.
        O::ResponseCode | O::RequestHeadersBytes | O::ResponseHeadersBytes | O::ResponseTrailersBytes => {
            Value::Number(0)
        }
        O::RequestDuration
        | O::RequestTxDuration
        | O::ResponseDuration
        | O::ResponseTxDuration
        | O::Protocol
        | O::UpstreamProtocol
        | O::GrpcStatus(_)
        | O::Header(_)
        | O::RouteName
        | O::Never => Value::Absent,
    }
}

fn optional(text: Option<&str>) -> Value<'_> {
    match text {
        None | Some("") => Value::Absent,
        Some(text) => Value::Text(text.into()),
    }
}

/// A sentence as one word, as Envoy writes it, so that a line can be split at its spaces.
fn words(text: Option<&str>) -> Value<'_> {
    match text {
        Some(text) if text.contains(char::is_whitespace) => {
            Value::Text(text.replace(char::is_whitespace, "_").into())
        }
        text => optional(text),
    }
}

fn moment(at: std::time::SystemTime, format: &TimeFormat) -> Value<'static> {
    let mut text = String::with_capacity(32);
    time::write(at, format, &mut text);
    Value::Text(text.into())
}

fn flags(flags: &[ResponseFlag], name: fn(ResponseFlag) -> &'static str) -> Value<'static> {
    match flags {
        [] => Value::Text("-".into()),
        [one] => Value::Text(name(*one).into()),
        many => {
            let many: Vec<_> = many.iter().map(|flag| name(*flag)).collect();
            Value::Text(many.join(",").into())
        }
    }
}

fn at<'a>(place: Place, record: &Record<'a>) -> Option<&'a str> {
    match place {
        Place::DownstreamRemote => record.downstream_remote,
        Place::DownstreamDirectRemote => record.downstream_direct_remote,
        Place::DownstreamLocal => record.downstream_local,
        Place::DownstreamDirectLocal => record.downstream_direct_local,
        Place::UpstreamRemote => record.upstream_remote,
        Place::UpstreamLocal => record.upstream_local,
    }
}

fn address(text: Option<&str>, part: AddressPart) -> Value<'_> {
    let Some(text) = text else { return Value::Absent };
    match (part, text.parse::<SocketAddr>()) {
        (AddressPart::WithoutPort, Ok(socket)) => Value::Text(socket.ip().to_string().into()),
        (AddressPart::Port, Ok(socket)) => Value::Number(socket.port().into()),
        (AddressPart::Port, Err(_)) => Value::Absent,
        (AddressPart::Whole | AddressPart::WithoutPort, _) => optional(Some(text)),
    }
}

fn host_name(name: &str, part: AddressPart) -> Value<'_> {
    let port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match (part, name.rsplit_once(':')) {
        (AddressPart::WithoutPort, Some((host, after))) if port(after) => optional(Some(host)),
        _ => optional(Some(name)),
    }
}

fn names<'a>(peer: Option<&'a Peer>, names: fn(&Peer) -> &[String]) -> Value<'a> {
    match peer.map(names) {
        None | Some([]) => Value::Absent,
        Some([one]) => Value::Text(one.as_str().into()),
        Some(many) => Value::Text(many.join(",").into()),
    }
}

fn subject(peer: Option<&Peer>) -> Value<'_> {
    optional(peer.map(|peer| peer.subject.as_str()))
}

/// A random number as a UUID of version 4 (RFC 9562, section 5.4).
fn uuid(random: u128) -> String {
    let bits = (random & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
