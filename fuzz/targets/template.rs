//! Formats of access logs and headers: what is parsed is what was written, a refusal names what, a line in
//! JSON is JSON, and a header's value is one.
//!
//! A text, or the object of a `json_format`.

#![no_main]

use std::time::{Duration, SystemTime};

use attache::http::header_mutation::{self, Side};
use attache::model::access_log::{AccessLogFormat, FormatError, JsonTemplate, Operator, Piece, Template};
use attache::model::route::{HeaderAppendAction, HeaderValueOption};
use attache::model::{Downstream, Metadata, ResponseFlag};
use attache::telemetry::access_log::render;
use attache::telemetry::access_log::request::{ConnectionFacts, RequestFacts};
use attache::telemetry::access_log::{AddressText, Record, RecordKind, TlsSession};
use hyper::header::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    plain(text);
    with_request(|request| of_request(text, request));
    if let Ok(Value::Object(members)) = serde_json::from_str(text) {
        match JsonTemplate::parse(&members) {
            Ok(template) => {
                let line = json_line(template, &record());
                let ended = line.strip_suffix('\n').expect("a line ends");
                assert!(!ended.contains('\n'), "{line}");
                let read: Value = serde_json::from_str(ended).expect("a line is JSON");
                assert!(alike(&Value::Object(members), &read), "{line}");
            }
            Err(FormatError::Member { member, source }) => {
                assert!(member.starts_with("json_format."), "{member}");
                assert!(!source.to_string().is_empty());
            }
            Err(other) => panic!("it does not say where: {other}"),
        }
    }
});

fn plain(text: &str) {
    // Nothing is an operator once its percent sign is escaped.
    let escaped = Template::parse(&text.replace('%', "%%")).expect("no operator is left");
    assert_eq!(
        escaped.pieces(),
        [Piece::Literal(text.into())]
            .get(..text.len().min(1))
            .unwrap_or_default()
    );
    let parsed = match Template::parse(text) {
        Ok(parsed) => parsed,
        Err(FormatError::Syntax(at)) => {
            assert!(text[at..].starts_with('%'));
            // What stands before it is sound.
            assert!(Template::parse(&text[..at]).is_ok());
            return;
        }
        Err(error) => {
            assert!(error.to_string().contains('%'), "{error}");
            return;
        }
    };
    let pieces = parsed.pieces();
    assert!(!pieces.contains(&Piece::Literal("".into())));
    assert!(
        !pieces
            .windows(2)
            .any(|two| matches!(two, [Piece::Literal(_), Piece::Literal(_)]))
    );
    // A format is the same wherever it stands.
    let operators = |pieces: &[Piece]| {
        let all = pieces.iter().filter(|piece| matches!(piece, Piece::Operator(_)));
        all.cloned().collect::<Vec<_>>()
    };
    let twice = Template::parse(&format!("{text}{text}")).expect("what can be read once can be read twice");
    assert_eq!(
        operators(twice.pieces()),
        [operators(pieces), operators(pieces)].concat()
    );
    // A number at random is another each time.
    if parsed.operators().any(|operator| *operator == Operator::UniqueId) {
        return;
    }
    let line = |template| render::line(&AccessLogFormat::Text(template), &record());
    let once = line(parsed);
    assert_eq!(line(twice), once.repeat(2));
}

fn json_line(template: JsonTemplate, record: &Record<'_>) -> String {
    String::from_utf8(render::line(&AccessLogFormat::Json(template), record)).expect("a JSON line is text")
}

/// The same of a request, whose headers are no text, and as a header of its own.
fn of_request(text: &str, request: &RequestFacts<'_>) {
    let members = serde_json::Map::from_iter([("m".to_owned(), Value::from(text))]);
    if let Ok(template) = JsonTemplate::parse(&members) {
        let line = json_line(template, &request.record(RecordKind::DownstreamEnd));
        serde_json::from_str::<Value>(&line).expect("a line is JSON");
    }
    match HeaderValueOption::new("x-new", text, HeaderAppendAction::AppendIfExistsOrAdd) {
        Ok(option) => {
            let mut headers = request.request_headers.cloned().unwrap_or_default();
            let before = headers.len();
            header_mutation::apply(&mut headers, Side::Request, &[option], request);
            assert_eq!(headers.len(), before + usize::from(headers.contains_key("x-new")));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A request with everything that makes a line hard to read.
fn with_request(run: impl FnOnce(&RequestFacts<'_>)) {
    let mut headers = HeaderMap::new();
    for value in [&b"\xff\"\\\t\xc3"[..], b"", b"a b"] {
        headers.append("a", HeaderValue::from_bytes(value).expect("a value"));
    }
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut metadata = Metadata::default();
    metadata.set(
        "a",
        "b",
        serde_json::json!({"c": [1, 1e300, null, "\u{1}\n\""], "d": -0.5}),
    );
    metadata.set("a", "text", "x\ny".into());
    let downstream = Downstream::default();
    let connection = ConnectionFacts {
        listener: "l\"",
        filter_chain: None,
        connection_id: 1,
        downstream: &downstream,
        tls: None,
    };
    run(&RequestFacts {
        path: Some("/a?a=%&b=%zz&c=%ff&a"),
        authority: Some("h:80"),
        request_headers: Some(&headers),
        response_headers: Some(&headers),
        metadata: Some(&metadata),
        status: Some(503),
        ..RequestFacts::new(&connection, SystemTime::UNIX_EPOCH)
    });
}

/// Whether a line has the format's members, and its fixed values where they have no operator.
fn alike(format: &Value, line: &Value) -> bool {
    match (format, line) {
        (Value::Object(format), Value::Object(line)) => {
            format.len() == line.len()
                && format
                    .iter()
                    .all(|(name, value)| line.get(name).is_some_and(|other| alike(value, other)))
        }
        (Value::Array(format), Value::Array(line)) => {
            format.len() == line.len() && format.iter().zip(line).all(|(value, other)| alike(value, other))
        }
        (Value::String(format), _) if format.contains('%') => true,
        (Value::Number(format), Value::Number(line)) => format.as_f64() == line.as_f64(),
        _ => format == line,
    }
}

/// A connection with everything that makes a line hard to read.
fn record() -> Record<'static> {
    let tls = TlsSession {
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
    };
    Record {
        kind: RecordKind::TcpConnectionEnd,
        start: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 120_000_000),
        emitted: SystemTime::UNIX_EPOCH,
        duration: Duration::MAX,
        bytes_received: u64::MAX,
        bytes_sent: 0,
        upstream_bytes_received: 1,
        upstream_bytes_sent: 2,
        flags: [ResponseFlag::NoRouteFound, ResponseFlag::NoClusterFound]
            .into_iter()
            .collect(),
        response_code_details: None,
        termination_details: Some("a rule \"web\"\n\\"),
        local_close_reason: Some(""),
        downstream_transport_failure: Some("alert: \u{1}\u{e9}"),
        upstream_transport_failure: None,
        listener: "public_listener:[::1]:20000",
        filter_chain: None,
        connection_id: 7,
        stream_id: u128::MAX,
        hostname: "host",
        downstream_remote: Some(AddressText::Text("[::1]:1")),
        downstream_direct_remote: Some(AddressText::Text("/tmp/a:1")),
        downstream_local: Some(AddressText::Text("127.0.0.1:80")),
        downstream_direct_local: None,
        server_name: Some("\u{2028}\"x"),
        downstream_peer: None,
        downstream_tls: Some(tls),
        cluster: Some("local_app"),
        cluster_raw: None,
        endpoint_name: Some("name:x"),
        upstream_host: Some(AddressText::Text("[::1]")),
        upstream_remote: Some(AddressText::Text("@abstract")),
        upstream_local: None,
        attempts: u32::MAX,
        upstream_peer: None,
        upstream_tls: None,
        request: None,
    }
}
