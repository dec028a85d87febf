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
            flags: &[],
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
            downstream_remote: some,
            downstream_direct_remote: some,
            downstream_local: some,
            downstream_direct_local: some,
            server_name: some,
            downstream_peer: peer,
            downstream_tls: None,
            cluster: some,
            endpoint_name: None,
            upstream_remote: some,
            upstream_local: some,
            attempts: 2,
            upstream_peer: peer,
            upstream_tls: None,
        }
    }

    fn text_of(format: &str, record: &Record<'_>) -> String {
        line(&AccessLogFormat::Text(Template::parse(format).unwrap()), record)
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
            flags: &flags,
            downstream_remote: Some("[2001:db8::1]:80"),
            downstream_local: Some("/run/app.sock"),
            upstream_remote: Some("10.0.0.1:443"),
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
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.contains('\n'), "{body}");
            let parsed: serde_json::Map<String, Json> = serde_json::from_str(body).unwrap();
            assert_eq!(parsed["\u{1}"], 1.5);
        }
    }
}
