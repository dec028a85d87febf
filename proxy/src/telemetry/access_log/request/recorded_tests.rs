//! Our lines against those that Envoy 1.40 wrote for the same requests, byte for byte.
//!
//! `recorded/` was written by one Envoy with a static HTTP connection manager, a line a case in the order of
//! [`CASES`]: JSON with a member an operator, the same operators as a text, and the default text. What only
//! Envoy's own sockets and clocks knew (moments, and bytes on the wire) is read from its line; operators made
//! of it are compared all the same.

use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::render;
use super::*;
use crate::model::ResponseFlag;
use crate::model::access_log::{AccessLogFilter, AccessLogFormat, AccessLogSink, JsonTemplate, Template};

const REQUEST_ID: &str = "8d9f0c1e-1111-4222-8333-444455556666";

/// One request, as it was when Envoy wrote its lines.
struct Case {
    method: Option<&'static str>,
    path: Option<&'static str>,
    authority: Option<&'static str>,
    /// Beside those that Envoy adds.
    request: &'static [(&'static str, &'static [u8])],
    /// Whether it came to a cluster, or to the search for one: then its route's header is there.
    routed: bool,
    status: Option<u16>,
    /// Beside `server` and `date`.
    response: &'static [(&'static str, &'static str)],
    details: &'static str,
    flag: ResponseFlag,
    route: Option<&'static str>,
    cluster: Option<&'static str>,
    attempts: u32,
    /// Whether an endpoint was tried, and connected to.
    tried: bool,
    connected: bool,
}

/// A request to `/get` that an endpoint answered with 200.
const GET: Case = Case {
    method: Some("GET"),
    path: Some("/get"),
    authority: Some("h:80"),
    request: &[],
    routed: true,
    status: Some(200),
    response: &[
        ("content-length", "2"),
        ("x-multi", "1"),
        ("x-multi", "2"),
        ("x-r", "up"),
        ("x-envoy-upstream-service-time", "0"),
        ("x-added", "2"),
    ],
    details: "via_upstream",
    flag: ResponseFlag::None,
    route: Some("route-get"),
    cluster: Some("up"),
    attempts: 1,
    tried: true,
    connected: true,
};

/// A request that was answered without an upstream.
const LOCAL: Case = Case {
    routed: false,
    cluster: None,
    attempts: 0,
    tried: false,
    connected: false,
    ..GET
};

const GRPC: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];

const CASES: [Case; 17] = [
    Case {
        path: Some("/get?a=1%202&b&a=3&c=&d%20e=%zz%41%c3"),
        request: &[
            ("x-multi", b"1"),
            ("x-multi", b"2"),
            ("x-one", b"one"),
            ("x-empty", b""),
            ("user-agent", b"ua/1"),
            ("x-utf", b"\xc3\xa9\xff\"\\\t/"),
            ("x-plain", b"\xc3\xa9t\xc3\xa9"),
        ],
        ..GET
    },
    Case {
        method: Some("POST"),
        path: Some("/post?x=1"),
        authority: Some("h"),
        request: &[("content-length", b"5")],
        status: Some(201),
        response: &[
            ("x-multi", "1"),
            ("x-multi", "2"),
            ("x-envoy-upstream-service-time", "50"),
            ("x-added", "2"),
        ],
        route: Some("route-pos"),
        ..GET
    },
    Case {
        path: Some("/post/new/x?q=1"),
        request: &[("x-envoy-original-path", b"/rew/x?q=1")],
        status: Some(201),
        response: &[
            ("x-multi", "1"),
            ("x-multi", "2"),
            ("x-envoy-upstream-service-time", "50"),
            ("x-added", "2"),
        ],
        route: Some("route-rew"),
        ..GET
    },
    Case {
        path: Some("/grpc"),
        request: GRPC,
        response: &[
            ("content-length", "0"),
            ("content-type", "application/grpc"),
            ("grpc-status", "7"),
            ("grpc-message", "no"),
            ("x-envoy-upstream-service-time", "0"),
            ("x-added", "2"),
        ],
        route: Some("route-gr"),
        ..GET
    },
    Case {
        path: Some("/gnum"),
        request: &[("content-type", b"application/grpc+proto")],
        response: &[
            ("content-length", "0"),
            ("grpc-status", "99"),
            ("x-envoy-upstream-service-time", "0"),
            ("x-added", "2"),
        ],
        route: Some("route-gn"),
        ..GET
    },
    Case {
        path: Some("/gbad"),
        request: GRPC,
        response: &[
            ("content-length", "0"),
            ("grpc-status", "x"),
            ("x-envoy-upstream-service-time", "0"),
            ("x-added", "2"),
        ],
        route: Some("route-gb"),
        ..GET
    },
    Case { request: GRPC, ..GET },
    Case {
        path: Some("/none"),
        request: &[("content-type", b"application/grpc-web")],
        status: Some(404),
        response: &[],
        details: "route_not_found",
        flag: ResponseFlag::NoRouteFound,
        route: None,
        ..LOCAL
    },
    Case {
        path: Some("/uh"),
        request: GRPC,
        routed: true,
        response: &[
            ("content-type", "application/grpc"),
            ("grpc-status", "14"),
            ("grpc-message", "no healthy upstream"),
            ("x-added", "2"),
        ],
        details: "no_healthy_upstream",
        flag: ResponseFlag::NoHealthyUpstream,
        route: Some("route-uh"),
        cluster: Some("empty"),
        attempts: 1,
        ..LOCAL
    },
    Case {
        path: Some("/dir"),
        status: Some(299),
        response: &[
            ("content-length", "1"),
            ("content-type", "text/plain"),
            ("x-added", "2"),
        ],
        details: "direct_response",
        route: Some("route-dir"),
        ..LOCAL
    },
    Case {
        path: Some("/uh"),
        routed: true,
        status: Some(503),
        response: &[
            ("content-length", "19"),
            ("content-type", "text/plain"),
            ("x-added", "2"),
        ],
        details: "no_healthy_upstream",
        flag: ResponseFlag::NoHealthyUpstream,
        route: Some("route-uh"),
        cluster: Some("empty"),
        attempts: 1,
        ..LOCAL
    },
    Case {
        path: Some("/uf"),
        status: Some(503),
        response: &[
            ("content-length", "98"),
            ("content-type", "text/plain"),
            ("x-added", "2"),
        ],
        details: "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
        flag: ResponseFlag::UpstreamConnectionFailure,
        route: Some("route-uf"),
        cluster: Some("dead"),
        connected: false,
        ..GET
    },
    Case {
        path: Some("/nc"),
        status: Some(503),
        response: &[("x-added", "2")],
        details: "cluster_not_found",
        flag: ResponseFlag::NoClusterFound,
        route: Some("route-nc"),
        ..LOCAL
    },
    Case {
        path: Some("/503"),
        status: Some(503),
        response: &[
            ("content-length", "0"),
            ("x-envoy-upstream-service-time", "27"),
            ("x-added", "2"),
        ],
        flag: ResponseFlag::UpstreamRetryLimitExceeded,
        route: Some("route-503"),
        attempts: 3,
        ..GET
    },
    Case {
        method: None,
        path: None,
        authority: None,
        status: Some(400),
        response: &[
            ("content-length", "11"),
            ("content-type", "text/plain"),
            ("connection", "close"),
        ],
        details: "http1.codec_error",
        flag: ResponseFlag::DownstreamProtocolError,
        route: None,
        ..LOCAL
    },
    Case {
        authority: None,
        status: Some(400),
        response: &[("connection", "close")],
        details: "missing_host_header",
        route: None,
        ..LOCAL
    },
    Case {
        path: Some("/dc"),
        status: None,
        response: &[],
        details: "downstream_remote_disconnect",
        flag: ResponseFlag::DownstreamConnectionTermination,
        route: Some("route-dc"),
        cluster: Some("blackhole"),
        ..GET
    },
];

impl Case {
    fn line(&self, format: &AccessLogFormat, start: SystemTime, recorded: &Map<String, Value>) -> Vec<u8> {
        let (request, response) = (self.request_headers(), self.response_headers());
        let (upstream, metadata) = (self.upstream(), metadata());
        let downstream = Downstream {
            source: Some("127.0.0.1:40000".parse().unwrap()),
            destination: Some("127.0.0.1:40001".parse().unwrap()),
            ..Downstream::default()
        };
        let connection = ConnectionFacts {
            listener: "l",
            filter_chain: Some("chain"),
            connection_id: 1,
            downstream: &downstream,
            tls: None,
        };
        let accepted = self.authority.is_some();
        let facts = RequestFacts {
            duration: Duration::from_millis(recorded["DURATION"].as_u64().unwrap()),
            times: times(recorded),
            protocol: Some("HTTP/1.1"),
            method: self.method,
            scheme: accepted.then_some("http"),
            path: self.path,
            authority: self.authority,
            request_headers: Some(&request),
            response_headers: Some(&response),
            status: self.status,
            response_code_details: Some(self.details),
            flags: self.flag.into(),
            bytes: bytes(recorded),
            route_name: self.route,
            cluster: self.cluster,
            upstream_host: recorded["UPSTREAM_HOST"].as_str().map(AddressText::Text),
            upstream: self.tried.then_some(&upstream),
            upstream_protocol: self.connected.then_some("HTTP/1.1"),
            attempts: self.attempts,
            pool_ready: self.tried.then_some(Duration::ZERO),
            metadata: accepted.then_some(&metadata),
            request_id: accepted.then_some(REQUEST_ID),
            ..RequestFacts::new(&connection, start)
        };
        assert_eq!(facts.upstream_host.is_some(), self.tried);
        render::line(format, &facts.record(RecordKind::DownstreamEnd))
    }

    fn request_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &[u8]| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        };
        self.request.iter().for_each(|(name, value)| add(name, value));
        if self.authority.is_some() {
            add("x-forwarded-proto", b"http");
            add("x-request-id", REQUEST_ID.as_bytes());
        }
        if self.routed {
            add("x-envoy-expected-rq-timeout-ms", b"15000");
            add("x-added", b"1");
        }
        headers
    }

    fn response_headers(&self) -> HeaderMap {
        let ours = [("server", "envoy"), ("date", "Mon, 23 Nov 2026 19:32:44 GMT")];
        let ours = ours.iter().filter(|_| self.status.is_some());
        let mut headers = HeaderMap::new();
        for (name, value) in self.response.iter().chain(ours) {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn upstream(&self) -> UpstreamFacts {
        let failure = "delayed connect error: Connection refused";
        UpstreamFacts {
            cluster: (self.cluster == Some("up")).then(|| "up_alt".into()),
            local: self.connected.then(|| "127.0.0.1:40002".parse().unwrap()),
            failure: (!self.connected).then(|| failure.to_owned()),
            ..UpstreamFacts::default()
        }
    }
}

fn metadata() -> Metadata {
    let values = serde_json::json!({
        "s": "text", "n": 1.5, "b": true, "l": [1, "x", null], "o": {"k": "v", "a": 2}, "nul": null,
        "q": "a\"b\\c", "big": 1e20
    });
    let mut metadata = Metadata::default();
    for (key, value) in values.as_object().unwrap() {
        metadata.set("m", key, value.clone());
    }
    metadata
}

fn times(recorded: &Map<String, Value>) -> RequestTimes {
    let at = |point: &str| {
        let micros = recorded[&format!("COMMON_DURATION(DS_RX_BEG:{point}:us)")].as_u64();
        micros.map(Duration::from_micros)
    };
    RequestTimes {
        request_end: at("DS_RX_END"),
        upstream_send_begin: at("US_TX_BEG"),
        upstream_send_end: at("US_TX_END"),
        upstream_receive_begin: at("US_RX_BEG"),
        upstream_receive_end: at("US_RX_END"),
        response_begin: at("DS_TX_BEG"),
        response_end: at("DS_TX_END"),
        ..RequestTimes::default()
    }
}

fn bytes(recorded: &Map<String, Value>) -> RequestBytes {
    let count = |name: &str| recorded[name].as_u64().unwrap();
    RequestBytes {
        received: count("BYTES_RECEIVED"),
        sent: count("BYTES_SENT"),
        downstream_wire_received: count("DOWNSTREAM_WIRE_BYTES_RECEIVED"),
        downstream_wire_sent: count("DOWNSTREAM_WIRE_BYTES_SENT"),
        downstream_header_received: count("DOWNSTREAM_HEADER_BYTES_RECEIVED"),
        downstream_header_sent: count("DOWNSTREAM_HEADER_BYTES_SENT"),
        upstream_wire_received: count("UPSTREAM_WIRE_BYTES_RECEIVED"),
        upstream_wire_sent: count("UPSTREAM_WIRE_BYTES_SENT"),
        upstream_header_received: count("UPSTREAM_HEADER_BYTES_RECEIVED"),
        upstream_header_sent: count("UPSTREAM_HEADER_BYTES_SENT"),
    }
}

/// The JSON lines, which tell the most.
fn recorded() -> Vec<Map<String, Value>> {
    let lines = include_str!("recorded/requests.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn format() -> Map<String, Value> {
    serde_json::from_str(include_str!("recorded/format.json")).unwrap()
}

/// When the requests began: the times of the default text.
fn starts() -> Vec<SystemTime> {
    let start = |line: &str| {
        let text = line.split(['[', ']']).nth(1).unwrap();
        OffsetDateTime::parse(text, &Rfc3339).unwrap().into()
    };
    include_str!("recorded/default.txt").lines().map(start).collect()
}

fn compare(format: &AccessLogFormat, lines: &[u8]) {
    let lines: Vec<_> = lines.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), CASES.len());
    for (((case, line), start), recorded) in CASES.iter().zip(lines).zip(starts()).zip(recorded()) {
        let ours = case.line(format, start, &recorded);
        let parts = |line: &[u8]| -> Vec<_> {
            let text = String::from_utf8_lossy(line).replace(",\"", "|\"");
            text.split('|').map(str::to_owned).collect()
        };
        for (ours, envoys) in parts(&ours).into_iter().zip(parts(line)) {
            assert_eq!(ours, envoys, "of {:?}", case.path);
        }
        assert_eq!(ours, line, "of {:?}", case.path);
    }
}

#[test]
fn every_operator_is_envoys_in_json() {
    let format = AccessLogFormat::Json(JsonTemplate::parse(&format()).unwrap());
    compare(&format, include_bytes!("recorded/requests.jsonl"));
}

#[test]
fn every_operator_is_envoys_in_text() {
    let format = format();
    let operators = format.iter().filter(|(name, _)| *name != "~mixed");
    let operators: Vec<_> = operators.map(|(_, value)| value.as_str().unwrap()).collect();
    let template = Template::parse(&(operators.join("|") + "\n")).unwrap();
    compare(
        &AccessLogFormat::Text(template),
        include_bytes!("recorded/requests.txt"),
    );
}

#[test]
fn the_default_text_is_envoys() {
    let format = AccessLogFormat::Text(Template::envoy_default().unwrap());
    compare(&format, include_bytes!("recorded/default.txt"));
}

/// What the recorded requests do not have: trailers, both ends of TLS, and moments of the connection.
#[test]
fn what_is_told_of_trailers_and_connections() {
    let (downstream, mut trailers) = (Downstream::default(), HeaderMap::new());
    trailers.insert("grpc-status", HeaderValue::from_static("5"));
    trailers.append("x-t", HeaderValue::from_static("1"));
    trailers.append("x-t", HeaderValue::from_static("2"));
    let mut response = HeaderMap::new();
    response.insert("grpc-status", HeaderValue::from_static("0"));
    let mut request = HeaderMap::new();
    request.insert("content-type", HeaderValue::from_static("application/grpc"));
    let connection = ConnectionFacts {
        listener: "l",
        filter_chain: None,
        connection_id: 7,
        downstream: &downstream,
        tls: Some(TlsSession {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
        }),
    };
    let facts = RequestFacts {
        request_headers: Some(&request),
        response_headers: Some(&response),
        response_trailers: Some(&trailers),
        times: RequestTimes {
            upstream_connect_begin: Some(Duration::from_micros(10)),
            upstream_connect_end: Some(Duration::from_micros(1_510)),
            upstream_handshake_end: Some(Duration::from_nanos(2_500_001)),
            ..RequestTimes::default()
        },
        downstream_remote: Some("10.0.0.9:1".parse().unwrap()),
        upstream_connection_id: 9,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c"),
        path: Some("/a#b?c"),
        ..RequestFacts::new(&connection, SystemTime::UNIX_EPOCH)
    };
    for (text, expected) in [
        (
            "%GRPC_STATUS% %TRAILER(x-t)% %RESPONSE_TRAILERS_BYTES%",
            "NotFound 1 20",
        ),
        (
            "%COMMON_DURATION(US_CX_BEG:US_CX_END)% %COMMON_DURATION(US_CX_BEG:US_HS_END:ns)%",
            "1 2490001",
        ),
        ("%COMMON_DURATION(US_HS_END:US_CX_BEG)%", "-"),
        (
            "%DOWNSTREAM_TLS_VERSION% %CONNECTION_ID% %UPSTREAM_CONNECTION_ID%",
            "TLSv1.3 7 9",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
            "10.0.0.9:1 -",
        ),
        ("%TRACE_ID% %SPAN_ID%", "0af7651916cd43dd8448eb211c80319c -"),
        (
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %REQ_WITHOUT_QUERY(:PATH):3%",
            "0 - /a#",
        ),
    ] {
        let format = AccessLogFormat::Text(Template::parse(text).unwrap());
        let line = render::line(&format, &facts.record(RecordKind::DownstreamEnd));
        assert_eq!(String::from_utf8(line).unwrap(), expected, "{text}");
    }
    let unique = AccessLogFormat::Text(Template::parse("%UNIQUE_ID%").unwrap());
    let record = facts.record(RecordKind::DownstreamEnd);
    assert_ne!(render::line(&unique, &record), render::line(&unique, &record));
}

#[test]
fn lines_are_written_where_a_filter_takes_the_request() {
    let path = std::env::temp_dir().join(format!("attache-requests-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let log = |format: &str, filter| {
        Arc::new(AccessLog {
            sink: AccessLogSink::File(path.clone()),
            format: AccessLogFormat::Text(Template::parse(format).unwrap()),
            filter,
        })
    };
    let logs = [
        log("all %ACCESS_LOG_TYPE% %RESPONSE_CODE%\n", AccessLogFilter::All),
        log("flagged %PATH(NQ)%\n", AccessLogFilter::AnyFlag),
    ];
    let downstream = Downstream::default();
    let connection = ConnectionFacts {
        listener: "l",
        filter_chain: None,
        connection_id: 1,
        downstream: &downstream,
        tls: None,
    };
    let mut facts = RequestFacts {
        path: Some("/a?b"),
        status: Some(200),
        ..RequestFacts::new(&connection, SystemTime::now())
    };
    write(&[], &facts);
    write(&logs, &facts);
    facts.status = Some(503);
    facts.flags.insert(ResponseFlag::NoHealthyUpstream);
    write(&logs, &facts);
    assert!(super::super::sink::flush(Duration::from_secs(30)));
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        lines,
        "all DownstreamEnd 200\nall DownstreamEnd 503\nflagged /a\n"
    );
    std::fs::remove_file(&path).unwrap();
}

/// What Envoy's filters took and left of the same requests.
#[test]
fn a_status_is_told_to_filters_of_any_request() {
    use crate::model::access_log::Ended;
    let downstream = Downstream::default();
    let connection = ConnectionFacts {
        listener: "l",
        filter_chain: None,
        connection_id: 1,
        downstream: &downstream,
        tls: None,
    };
    for (status, told, grpc) in [
        (Some(200), None, Some(2)),
        (Some(404), None, Some(12)),
        (Some(500), None, Some(2)),
        (Some(503), None, Some(14)),
        (Some(200), Some("0"), Some(0)),
        (Some(200), Some("x"), Some(-1)),
        (Some(200), Some("-1"), Some(-1)),
        (None, None, None),
    ] {
        let mut response = HeaderMap::new();
        if let Some(told) = told {
            response.insert("grpc-status", HeaderValue::from_static(told));
        }
        let facts = RequestFacts {
            status,
            response_headers: Some(&response),
            ..RequestFacts::new(&connection, SystemTime::UNIX_EPOCH)
        };
        let record = facts.record(RecordKind::DownstreamEnd);
        assert_eq!(record.grpc_status(), grpc, "{status:?} {told:?}");
        assert_eq!(Ended::status(&record), status.unwrap_or(0));
    }
}
