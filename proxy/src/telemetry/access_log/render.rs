//! From a [`Record`] and a format to a line or a header's value: pure.

mod request;

use std::borrow::Cow;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value as Json;

use super::record::{AddressText, Record};
use super::time;
use crate::model::access_log::{
    AccessLogFormat, AddressPart, JsonPiece, Operator, Piece, Place, ServerName, Template, TimeFormat,
    push_value,
};
use crate::model::{Peer, ResponseFlag, ResponseFlags};

/// What stands in a line for a fact that is absent.
const ABSENT: &str = "-";

/// One fact.
#[derive(Debug, PartialEq)]
enum Value<'a> {
    Absent,
    Text(Cow<'a, str>),
    /// Of a header: any bytes.
    Bytes(Cow<'a, [u8]>),
    Number(u64),
    Negative(i64),
    /// Metadata that is no text; as a text it has this many bytes at most.
    Json(Cow<'a, Json>, Option<usize>),
}

/// The line of a record, its end included if the format has one. Its bytes are text but for those of
/// headers that are none, as in Envoy.
pub fn line(format: &AccessLogFormat, record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    match format {
        AccessLogFormat::Text(template) => text(template, record, ABSENT, &mut out),
        AccessLogFormat::Json(template) => {
            for piece in template.pieces() {
                match piece {
                    JsonPiece::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
                    JsonPiece::Value(operator) => push_json(value(operator, record), &mut out),
                    JsonPiece::Text(template) => json_text(template, record, &mut out),
                }
            }
        }
    }
    out
}

/// The value of a header of several pieces, in which absent facts are empty.
pub fn header(template: &Template, record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    text(template, record, "", &mut out);
    out
}

fn text(template: &Template, record: &Record<'_>, absent: &str, out: &mut Vec<u8>) {
    for piece in template.pieces() {
        match piece {
            Piece::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
            Piece::Operator(operator) => match value(operator, record) {
                Value::Absent => out.extend_from_slice(absent.as_bytes()),
                value => push_text(value, out),
            },
        }
    }
}

fn push_text(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Absent => {}
        Value::Text(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bytes(bytes) => out.extend_from_slice(&bytes),
        Value::Number(number) => push(out, &number),
        Value::Negative(number) => push(out, &number),
        Value::Json(json, max) => {
            let start = out.len();
            push_value(&json, out);
            out.truncate(max.map_or(out.len(), |max| start.saturating_add(max)));
        }
    }
}

fn push_json(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Absent => out.extend_from_slice(b"null"),
        Value::Text(text) => push(out, &Json::from(text)),
        Value::Bytes(bytes) => {
            out.push(b'"');
            push_escaped(&bytes, out);
            out.push(b'"');
        }
        Value::Number(number) => push(out, &number),
        Value::Negative(number) => push(out, &number),
        Value::Json(json, _) => push_value(&json, out),
    }
}

/// A JSON string of several pieces. Each is escaped by itself, as Envoy does.
fn json_text(template: &Template, record: &Record<'_>, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut plain = Vec::new();
    for piece in template.pieces() {
        plain.clear();
        match piece {
            Piece::Literal(literal) => push_escaped(literal.as_bytes(), out),
            Piece::Operator(operator) => match value(operator, record) {
                Value::Absent => out.extend_from_slice(ABSENT.as_bytes()),
                value => {
                    push_text(value, &mut plain);
                    push_escaped(&plain, out);
                }
            },
        }
    }
    out.push(b'"');
}

/// The inside of a JSON string. What is no text has each byte that is not plain by its number.
fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let quoted = Json::from(text).to_string();
        let inside = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        return out.extend_from_slice(inside.unwrap_or_default().as_bytes());
    }
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => push(out, &format_args!("\\u{byte:04x}")),
            plain => out.push(*plain),
        }
    }
}

fn push(out: &mut Vec<u8>, value: &dyn std::fmt::Display) {
    // Writing to a `Vec` cannot fail.
    let _ = write!(out, "{value}");
}

fn value<'a>(operator: &Operator, record: &Record<'a>) -> Value<'a> {
    use Operator as O;
    let tls = record.downstream_tls;
    let upstream_tls = record.upstream_tls;
    match operator {
        O::StartTime(format) => moment(record.start, format),
        O::EmitTime(format) => moment(record.emitted, format),
        O::Duration => millis(record.duration),
        O::BytesReceived => Value::Number(record.bytes_received),
        O::BytesSent => Value::Number(record.bytes_sent),
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
            None => address(record.upstream_host, *part),
        },
        O::UpstreamCluster => optional(record.cluster),
        O::UpstreamClusterRaw => optional(record.cluster_raw),
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
        O::RequestedServerName(source) => server_name(*source, record),
        O::ConnectionId => Value::Number(record.connection_id),
        O::UniqueId => Value::Text(uuid(fastrand::u128(..)).into()),
        O::FilterChainName => optional(record.filter_chain),
        O::ListenerName => Value::Text(record.listener.into()),
        O::Hostname => Value::Text(record.hostname.into()),
        O::AccessLogType => Value::Text(record.kind.as_str().into()),
        O::Never => Value::Absent,
        _ => match record.request {
            Some(request) => request::value(operator, request),
            None => of_connection(operator, record),
        },
    }
}

/// What HTTP has, of a connection that spoke none as far as is known. Envoy counts some of it as none.
fn of_connection<'a>(operator: &Operator, record: &Record<'a>) -> Value<'a> {
    use Operator as O;
    match operator {
        O::DownstreamWireBytesReceived => Value::Number(record.bytes_received),
        O::DownstreamWireBytesSent => Value::Number(record.bytes_sent),
        O::StreamId => Value::Text(uuid(record.stream_id).into()),
        O::ResponseCode
        | O::RequestHeadersBytes
        | O::ResponseHeadersBytes
        | O::ResponseTrailersBytes
        | O::DownstreamHeaderBytesReceived
        | O::DownstreamHeaderBytesSent
        | O::UpstreamHeaderBytesReceived
        | O::UpstreamHeaderBytesSent => Value::Number(0),
        _ => Value::Absent,
    }
}

fn millis(duration: Duration) -> Value<'static> {
    Value::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn server_name<'a>(source: ServerName, record: &Record<'a>) -> Value<'a> {
    let host = record.request.and_then(|request| request.authority);
    optional(match source {
        ServerName::Sni => record.server_name,
        ServerName::SniFirst => record.server_name.or(host),
        ServerName::HostFirst => host.or(record.server_name),
    })
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

fn flags(flags: ResponseFlags, name: fn(ResponseFlag) -> &'static str) -> Value<'static> {
    let mut names = flags.iter().map(name);
    match (names.next(), names.next()) {
        (None, _) => Value::Text(ABSENT.into()),
        (Some(one), None) => Value::Text(one.into()),
        (Some(first), Some(second)) => {
            let all: Vec<_> = [first, second].into_iter().chain(names).collect();
            Value::Text(all.join(",").into())
        }
    }
}

fn at<'a>(place: Place, record: &Record<'a>) -> Option<AddressText<'a>> {
    match place {
        Place::DownstreamRemote => record.downstream_remote,
        Place::DownstreamDirectRemote => record.downstream_direct_remote,
        Place::DownstreamLocal => record.downstream_local,
        Place::DownstreamDirectLocal => record.downstream_direct_local,
        Place::UpstreamHost => record.upstream_host,
        Place::UpstreamRemote => record.upstream_remote,
        Place::UpstreamLocal => record.upstream_local,
    }
}

fn address(address: Option<AddressText<'_>>, part: AddressPart) -> Value<'_> {
    let (text, socket) = match (address, part) {
        (None, _) => return Value::Absent,
        (Some(AddressText::Socket(socket)), _) => (None, Some(socket)),
        (Some(AddressText::Text(text)), AddressPart::Whole) => (Some(text), None),
        (Some(AddressText::Text(text)), _) => (Some(text), text.parse::<SocketAddr>().ok()),
    };
    match (part, socket) {
        (AddressPart::Whole, Some(socket)) => Value::Text(socket.to_string().into()),
        (AddressPart::WithoutPort, Some(socket)) => Value::Text(socket.ip().to_string().into()),
        (AddressPart::Port, Some(socket)) => Value::Number(socket.port().into()),
        (AddressPart::Port, None) => Value::Absent,
        (AddressPart::Whole | AddressPart::WithoutPort, None) => optional(text),
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::record::{RecordKind, TlsSession};
    use super::*;
    use crate::model::access_log::JsonTemplate;

    fn record<'a>(peer: Option<&'a Peer>, text: &'a str) -> Record<'a> {
        let some = Some(text).filter(|text| !text.is_empty());
        Record {
            kind: RecordKind::TcpConnectionEnd,
            start: SystemTime::UNIX_EPOCH,
            emitted: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            duration: Duration::from_micros(1_500_999),
            bytes_received: 1,
            bytes_sent: 2,
            upstream_bytes_received: 3,
            upstream_bytes_sent: 4,
            flags: ResponseFlags::NONE,
            response_code_details: some,
            termination_details: some,
            local_close_reason: some,
            downstream_transport_failure: some,
            upstream_transport_failure: some,
            listener: text,
            filter_chain: some,
            connection_id: 7,
            stream_id: 0,
            hostname: text,
            downstream_remote: some.map(AddressText::Text),
            downstream_direct_remote: some.map(AddressText::Text),
            downstream_local: some.map(AddressText::Text),
            downstream_direct_local: some.map(AddressText::Text),
            server_name: some,
            downstream_peer: peer,
            downstream_tls: None,
            cluster: some,
            cluster_raw: some,
            endpoint_name: None,
            upstream_host: some.map(AddressText::Text),
            upstream_remote: some.map(AddressText::Text),
            upstream_local: some.map(AddressText::Text),
            attempts: 2,
            upstream_peer: peer,
            upstream_tls: None,
            request: None,
        }
    }

    fn text_of(format: &str, record: &Record<'_>) -> String {
        let line = line(&AccessLogFormat::Text(Template::parse(format).unwrap()), record);
        String::from_utf8(line).unwrap()
    }

    /// A format, its line of a record that has every fact, and of one that has none.
    const LINES: [(&str, &str, &str); 23] = [
        (
            "%RESPONSE_FLAGS%|%RESPONSE_FLAGS_LONG%",
            "UF,URX|UpstreamConnectionFailure,UpstreamRetryLimitExceeded",
            "-|-",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "[2001:db8::1]:80", "-"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "2001:db8::1", "-"),
        ("%DOWNSTREAM_REMOTE_PORT%", "80", "-"),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "/run/app.sock", "-"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "/run/app.sock", "-"),
        ("%DOWNSTREAM_LOCAL_PORT%", "-", "-"),
        (
            "%UPSTREAM_HOST% %UPSTREAM_REMOTE_PORT%",
            "10.0.0.1:443 443",
            "- -",
        ),
        ("%UPSTREAM_HOST_NAME%", "db.example:5432", "-"),
        ("%UPSTREAM_HOST_NAME_WITHOUT_PORT%", "db.example", "-"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://a/b,spiffe://a/c", "-"),
        ("%UPSTREAM_PEER_DNS_SAN%", "web.example", "-"),
        ("%DOWNSTREAM_PEER_SUBJECT%", "CN=web", "-"),
        (
            "%DOWNSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER%",
            "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256",
            "- -",
        ),
        ("%CONNECTION_TERMINATION_DETAILS%", "a_reason", "-"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "a_reason", "-"),
        (
            "%DURATION% %CONNECTION_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "1500 7 2",
            "1500 7 2",
        ),
        (
            "%UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_WIRE_BYTES_SENT%",
            "3 4",
            "3 4",
        ),
        (
            "%START_TIME% %EMIT_TIME(%s.%1f)%",
            "1970-01-01T00:00:00.000Z 1.5",
            "1970-01-01T00:00:00.000Z 1.5",
        ),
        (
            "%STREAM_ID%",
            "00000000-0000-4000-8000-000000000000",
            "00000000-0000-4000-8000-000000000000",
        ),
        ("%ACCESS_LOG_TYPE%", "TcpConnectionEnd", "TcpConnectionEnd"),
        (
            "%REQ(A?B):3% %GRPC_STATUS% %TLS_JA3_FINGERPRINT%",
            "- - -",
            "- - -",
        ),
        ("%RESPONSE_CODE% %REQUEST_HEADERS_BYTES%%%", "0 0%", "0 0%"),
    ];

    #[test]
    fn facts_are_written_as_envoy_writes_them() {
        let peer = Peer {
            uris: vec!["spiffe://a/b".to_owned(), "spiffe://a/c".to_owned()],
            dns_names: vec!["web.example".to_owned()],
            subject: "CN=web".to_owned(),
            ..Peer::default()
        };
        let tls = TlsSession {
            version: "TLSv1.2",
            cipher: "ECDHE-ECDSA-AES128-GCM-SHA256",
        };
        let flags = [
            ResponseFlag::UpstreamConnectionFailure,
            ResponseFlag::UpstreamRetryLimitExceeded,
        ];
        let full = Record {
            flags: flags.into_iter().collect(),
            downstream_remote: Some(AddressText::Text("[2001:db8::1]:80")),
            downstream_local: Some(AddressText::Text("/run/app.sock")),
            upstream_host: Some(AddressText::Text("10.0.0.1:443")),
            upstream_remote: Some(AddressText::Socket("10.0.0.1:443".parse().unwrap())),
            endpoint_name: Some("db.example:5432"),
            downstream_tls: Some(tls),
            upstream_tls: Some(tls),
            ..record(Some(&peer), "a reason")
        };
        let bare = record(None, "");
        for (format, of_full, of_bare) in LINES {
            assert_eq!(text_of(format, &full), of_full, "{format}");
            assert_eq!(text_of(format, &bare), of_bare, "{format}");
        }
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_json_line_is_one_object_whatever_the_facts_are() {
        const OPERATORS: [&str; 9] = [
            "%CONNECTION_TERMINATION_DETAILS%",
            "%UPSTREAM_HOST%",
            "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
            "%REQUESTED_SERVER_NAME%",
            "%START_TIME(%c%t)%",
            "%BYTES_SENT%",
            "%RESPONSE_FLAGS%",
            "%%",
            "\"\n",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5_000 {
            let mut value = || -> String {
                (0..random.usize(0..4))
                    .map(|_| OPERATORS[random.usize(..OPERATORS.len())])
                    .collect()
            };
            let json = serde_json::json!({value(): [value(), {"n": value()}], "a": value(), "\u{1}": 1.5});
            let Json::Object(members) = json else {
                unreachable!()
            };
            let template = JsonTemplate::parse(&members).unwrap();
            let fact: String = (0..random.usize(0..20)).map(|_| random.char(..)).collect();
            let line = line(&AccessLogFormat::Json(template), &record(None, &fact));
            let line = String::from_utf8(line).unwrap();
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.contains('\n'), "{body}");
            let parsed: serde_json::Map<String, Json> = serde_json::from_str(body).unwrap();
            assert_eq!(parsed["\u{1}"], 1.5);
        }
    }
}
