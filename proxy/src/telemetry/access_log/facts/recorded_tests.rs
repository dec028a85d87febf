//! Our lines against those that Envoy 1.40 wrote for the same ends of connections, byte for byte.
//!
//! `recorded/` was written by one Envoy with static TCP proxies, a line a case in the order of [`CASES`]:
//! its default text, Consul's default JSON, and a JSON of every type of value, with their formats.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;
use crate::model::access_log::{AccessLogFilter, AccessLogFormat, AccessLogSink, JsonTemplate, Template};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{Address, Direction, ListenerFilters, TcpProxy};

/// One end of a connection, as it was when Envoy wrote its lines.
struct Case {
    start: &'static str,
    millis: u64,
    flag: ResponseFlag,
    /// Ports: of the downstream, of the listener, of the endpoint, ours towards it; 0 is none.
    ports: [u16; 4],
    bytes: (u64, u64),
    cluster: Option<&'static str>,
    failure: Option<&'static str>,
}

const CASES: [Case; 7] = [
    case(
        "38.918",
        0,
        ResponseFlag::None,
        [44762, 18700, 18710, 52948],
        (5, 5),
        Some("app"),
    ),
    case(
        "39.552",
        2,
        ResponseFlag::UpstreamConnectionTermination,
        [44776, 18700, 18710, 52954],
        (3, 0),
        Some("app"),
    ),
    case(
        "40.165",
        3,
        ResponseFlag::DownstreamConnectionTermination,
        [44788, 18700, 18710, 52956],
        (5, 5),
        Some("app"),
    ),
    Case {
        failure: Some("delayed connect error: Connection refused"),
        ..case(
            "40.781",
            0,
            ResponseFlag::UpstreamConnectionFailure,
            [51374, 18701, 18712, 0],
            (0, 0),
            Some("dead"),
        )
    },
    case(
        "41.392",
        0,
        ResponseFlag::NoClusterFound,
        [34296, 18702, 0, 0],
        (0, 0),
        Some("absent"),
    ),
    case(
        "42.617",
        0,
        ResponseFlag::NoHealthyUpstream,
        [53344, 18704, 0, 0],
        (0, 0),
        Some("empty"),
    ),
    case(
        "42.006",
        0,
        ResponseFlag::NoRouteFound,
        [53962, 18703, 0, 0],
        (0, 0),
        None,
    ),
];

const fn case(
    start: &'static str,
    millis: u64,
    flag: ResponseFlag,
    ports: [u16; 4],
    bytes: (u64, u64),
    cluster: Option<&'static str>,
) -> Case {
    Case {
        start,
        millis,
        flag,
        ports,
        bytes,
        cluster,
        failure: None,
    }
}

impl Case {
    fn line(&self, format: &AccessLogFormat) -> String {
        let socket = |port: u16| (port != 0).then(|| format!("127.0.0.1:{port}"));
        let [remote, local, endpoint, ours] = self.ports.map(socket);
        let log = Arc::new(AccessLog {
            sink: AccessLogSink::Stdout,
            format: format.clone(),
            filter: AccessLogFilter::All,
        });
        let downstream = Downstream {
            source: remote.and_then(|address| address.parse().ok()),
            destination: local.and_then(|address| address.parse().ok()),
            ..Downstream::default()
        };
        let taken = self.flag != ResponseFlag::NoRouteFound;
        let chain = taken.then(|| Arc::new(chain(Vec::new())));
        let mut facts = Facts::of(&listener(vec![log]), chain.as_ref(), &downstream).unwrap();
        facts.upstream.local = ours.and_then(|address| address.parse().ok());
        facts.upstream.failure = self.failure.map(str::to_owned);
        let end = End {
            listener: "public",
            duration: Duration::from_millis(self.millis),
            received: self.bytes.0,
            sent: self.bytes.1,
            flag: self.flag,
            policy: None,
            cluster: self.cluster,
            endpoint: endpoint.as_deref(),
            silent: false,
        };
        let outcome = outcome(self.flag);
        let start = format!("2026-11-23T16:21:{}Z", self.start);
        let record = Record {
            start: OffsetDateTime::parse(&start, &Rfc3339).unwrap().into(),
            hostname: "vm",
            ..facts.record(&end, &outcome, None)
        };
        String::from_utf8(render::line(format, &record)).unwrap()
    }
}

pub(in crate::telemetry::access_log) fn listener(access_log: Vec<Arc<AccessLog>>) -> Listener {
    Listener {
        name: "public".into(),
        address: Address::Socket("127.0.0.1:0".parse().unwrap()),
        direction: Direction::Inbound,
        stat_prefix: None,
        filters: ListenerFilters::default(),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        exact_balance: false,
        access_log,
    }
}

pub(in crate::telemetry::access_log) fn chain(access_log: Vec<Arc<AccessLog>>) -> FilterChain {
    FilterChain {
        name: "chain".into(),
        matches: FilterChainMatch::default(),
        transport: None,
        filters: Vec::new(),
        terminal: Terminal::TcpProxy(TcpProxy {
            access_log,
            ..TcpProxy::to("app".into(), "app".into())
        }),
    }
}

fn json(format: &str) -> AccessLogFormat {
    let members: Map<String, Value> = serde_json::from_str(format).unwrap();
    AccessLogFormat::Json(JsonTemplate::parse(&members).unwrap())
}

fn compare(format: &AccessLogFormat, cases: &[Case], recorded: &str) {
    let lines: Vec<_> = recorded.split_inclusive('\n').collect();
    assert_eq!(lines.len(), cases.len());
    for (case, line) in cases.iter().zip(lines) {
        assert_eq!(case.line(format), line, "at {}", case.start);
    }
}

#[test]
fn the_default_text_is_envoys() {
    let format = AccessLogFormat::Text(Template::envoy_default().unwrap());
    compare(&format, &CASES[..6], include_str!("recorded/default.txt"));
}

#[test]
fn consuls_default_json_is_envoys() {
    let format = json(include_str!("recorded/consul_format.json"));
    compare(&format, &CASES, include_str!("recorded/consul.jsonl"));
}

#[test]
fn json_of_every_type_is_envoys() {
    let format = json(include_str!("recorded/nested_format.json"));
    compare(&format, &CASES[..6], include_str!("recorded/nested.jsonl"));
}

/// As a second Envoy wrote it of the same two ends.
#[test]
fn an_endpoint_that_was_not_connected_to_has_no_address() {
    let format = "%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_REMOTE_PORT% %UPSTREAM_HOST_NAME% \
                  %UPSTREAM_CLUSTER_RAW% %PATH% %DOWNSTREAM_HEADER_BYTES_RECEIVED%";
    let format = AccessLogFormat::Text(Template::parse(format).unwrap());
    assert_eq!(
        CASES[0].line(&format),
        "127.0.0.1:18710 127.0.0.1:18710 18710 127.0.0.1:18710 app - 0"
    );
    assert_eq!(
        CASES[3].line(&format),
        "127.0.0.1:18712 - - 127.0.0.1:18712 dead - 0"
    );
}

#[test]
fn without_an_access_log_nothing_is_kept() {
    let (plain, downstream) = (Arc::new(chain(Vec::new())), Downstream::default());
    assert!(Facts::of(&listener(Vec::new()), Some(&plain), &downstream).is_none());
    assert!(Facts::of(&listener(Vec::new()), None, &downstream).is_none());
}
