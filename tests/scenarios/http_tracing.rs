//! Tracing beside a real Envoy: what the upstream is told of a trace, and the spans that a collector gets.
//!
//! IDs that a proxy makes are named by when they come first, so that relations are compared and not chance.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use attache_tests::envoy::{Program, Static, place};
use attache_tests::eventually;
use attache_tests::free_port;
use attache_tests::http::case::Ask;
use attache_tests::http::diff::lines;
use attache_tests::http::h1::Connection;
use attache_tests::http::seen::{Book, Seen};
use attache_tests::http::upstream::Upstream;
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// A request ID that says nothing yet of tracing; by its first digits within every share but none.
const REQUEST_ID: &str = "00002710-1234-4234-8234-123456789abc";

const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
const SPAN: &str = "e457b5a2e4d86bd1";
const PARENT: &str = "05e3ac9a4f6e3b90";

/// Headers that are compared: those of a trace.
const TOLD: [&str; 9] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-request-id",
    "x-envoy-decorator-operation",
];

/// A listener: its name, its direction, its `tracing`.
type Listening = (&'static str, &'static str, Value);

/// A request: its name, and its headers.
type Asking = (&'static str, Vec<(&'static str, String)>);

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.config.trace.v3.{kind}").into();
    json!({ "name": kind, "typed_config": config })
}

fn zipkin(more: &Value) -> Value {
    let mut config = json!({ "collector_cluster": "collector", "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON" });
    attache_tests::http::config::merge(&mut config, more.clone());
    typed("ZipkinConfig", config)
}

fn otlp_http() -> Value {
    typed(
        "OpenTelemetryConfig",
        json!({ "service_name": "web", "http_service": { "http_uri": {
            "uri": "http://collector.test/v1/traces", "cluster": "collector", "timeout": "2s" } } }),
    )
}

fn otlp_grpc() -> Value {
    typed(
        "OpenTelemetryConfig",
        json!({ "service_name": "web", "grpc_service": { "envoy_grpc": { "cluster_name": "collector-h2" } } }),
    )
}

fn listeners() -> Vec<Listening> {
    let all = |provider: Value| json!({ "provider": provider });
    let none = |provider: Value| json!({ "provider": provider, "random_sampling": { "value": 0 } });
    let spawning = |provider: Value| json!({ "provider": provider, "spawn_upstream_span": true });
    let tagged = json!({ "provider": zipkin(&json!({})), "max_path_tag_length": 8, "custom_tags": [
        { "tag": "literal", "literal": { "value": "said" } },
        { "tag": "header", "request_header": { "name": "x-tag", "default_value": "none" } },
        { "tag": "empty", "request_header": { "name": "x-no-tag" } },
        { "tag": "unset", "environment": { "name": "NO_SUCH_VARIABLE", "default_value": "default" } },
    ]});
    let off = json!({ "provider": zipkin(&json!({})), "overall_sampling": { "value": 0 } });
    let wide = json!({ "trace_id_128bit": true, "trace_context_option": "USE_B3_WITH_W3C_PROPAGATION" });
    vec![
        ("zipkin", "INBOUND", all(zipkin(&json!({})))),
        ("zipkin-egress", "OUTBOUND", all(zipkin(&json!({})))),
        ("zipkin-none", "INBOUND", none(zipkin(&json!({})))),
        ("zipkin-off", "INBOUND", off),
        ("zipkin-wide", "OUTBOUND", all(zipkin(&wide))),
        ("zipkin-spawns", "OUTBOUND", spawning(zipkin(&json!({})))),
        ("zipkin-tagged", "INBOUND", tagged),
        (
            "zipkin-silent",
            "INBOUND",
            json!({ "provider": zipkin(&json!({})), "no_context_propagation": true }),
        ),
        ("no-provider", "INBOUND", json!({})),
        ("otlp", "INBOUND", all(otlp_http())),
        ("otlp-egress", "OUTBOUND", all(otlp_http())),
        ("otlp-none", "INBOUND", none(otlp_http())),
        ("otlp-spawns", "INBOUND", spawning(otlp_http())),
        ("otlp-grpc", "INBOUND", all(otlp_grpc())),
    ]
}

fn requests() -> Vec<Asking> {
    let b3 = |sampled: &str| {
        vec![
            ("x-b3-traceid", TRACE.to_owned()),
            ("x-b3-spanid", SPAN.to_owned()),
            ("x-b3-parentspanid", PARENT.to_owned()),
            ("x-b3-sampled", sampled.to_owned()),
        ]
    };
    let w3c = |flags: &str| {
        vec![
            ("traceparent", format!("00-{TRACE}-{SPAN}-{flags}")),
            ("tracestate", "a=b".to_owned()),
        ]
    };
    let one = |name, value: String| vec![(name, value)];
    vec![
        ("plain", vec![]),
        ("asked", one("x-client-trace-id", "mine".to_owned())),
        ("chosen", one("x-request-id", REQUEST_ID.replacen("-4", "-9", 1))),
        ("b3", b3("1")),
        ("b3-not", b3("0")),
        ("b3-one", one("b3", format!("{TRACE}-{SPAN}-1-{PARENT}"))),
        ("b3-no", one("b3", "0".to_owned())),
        ("w3c", w3c("01")),
        ("w3c-not", w3c("00")),
        ("w3c-broken", one("traceparent", "00-1-2-01".to_owned())),
        (
            "decorated",
            one("x-envoy-decorator-operation", "of a caller".to_owned()),
        ),
        ("not-decorated", one("x-envoy-decorator-operation", String::new())),
        ("tagged", one("x-tag", "mine".to_owned())),
        ("fails", one("x-do", "status=503".to_owned())),
        ("elsewhere/none", vec![]),
        ("refused/none", vec![]),
        ("host/a", vec![]),
        // The last one: what came before it has been collected once this has.
        ("answered/here", vec![]),
    ]
}

fn listener((name, direction, tracing): &Listening, at: SocketAddr) -> Value {
    let to = |prefix: &str, mut route: Value, cluster: &str| {
        route["cluster"] = cluster.into();
        json!({ "match": { "prefix": prefix }, "route": route })
    };
    let routes = json!([
        to("/elsewhere", json!({}), "nowhere"),
        to("/refused", json!({}), "refused"),
        to("/host", json!({ "host_rewrite_literal": "else.test", "prefix_rewrite": "/rewritten" }), "app"),
        { "match": { "prefix": "/answered" }, "direct_response": { "status": 418 } },
        to("/", json!({}), "app"),
    ]);
    let manager = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name, "tracing": tracing,
        "route_config": { "name": "routes", "validate_clusters": false,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [{ "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{TYPE}.filters.http.router.v3.Router") } }],
    });
    json!({ "name": name, "address": place(at), "traffic_direction": direction, "filter_chains": [{ "filters": [
        { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager } ] }] })
}

fn cluster(name: &str, endpoint: SocketAddr, http2: bool) -> Value {
    let mut cluster = json!({ "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": { "cluster_name": name, "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": place(endpoint) } }] }] } });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": {} } }});
    }
    cluster
}

/// What the proxies stand between; shared by both, one after the other.
struct Around {
    told: Book,
    app: Upstream,
    collected: Book,
    collector: Upstream,
    refused: SocketAddr,
}

/// What came of a request: what the upstream was told, then its spans, by the request's path.
type Outcome = BTreeMap<String, Vec<String>>;

/// Runs every request; `None` without an Envoy where one is wanted.
async fn run(program: Program, around: &Around) -> Option<Outcome> {
    let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listening: Vec<(Listening, SocketAddr)> =
        listeners().into_iter().map(|one| (one, address())).collect();
    let resources = json!({
        "listeners": listening.iter().map(|(one, at)| listener(one, *at)).collect::<Vec<_>>(),
        "clusters": [
            cluster("app", around.app.address, false),
            cluster("refused", around.refused, false),
            cluster("collector", around.collector.address, false),
            cluster("collector-h2", around.collector.address, true),
        ],
    });
    let proxy = Static::start(program, &resources).await?;
    let mut told: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for ((name, ..), at) in &listening {
        let mut connection = Connection::open(*at).await;
        for (request, headers) in requests() {
            let path = format!("/{request}/{name}");
            let mut ask = Ask::new("GET", &path);
            ask.headers = headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            if !ask.headers.iter().any(|(name, _)| name == "x-request-id") {
                ask.headers
                    .push(("x-request-id".to_owned(), REQUEST_ID.to_owned()));
            }
            let got = connection.ask(&ask).await;
            assert!(got.iter().all(|one| one.stop.is_none()), "{path}: {got:?}");
            told.insert(path, around.told.take().await);
        }
    }
    let spans = collected(around, &told).await;
    drop(proxy);
    let of = |path: &str, seen: &[Seen]| {
        let mut names = Names::default();
        let mut lines: Vec<String> = seen.iter().flat_map(|seen| names.headers(seen)).collect();
        lines.extend(spans.get(path).into_iter().flatten().map(|span| names.span(span)));
        (path.to_owned(), lines)
    };
    Some(told.iter().map(|(path, seen)| of(path, seen)).collect())
}

/// The spans by the path of their request, once those of the last request of each listener are there.
async fn collected(around: &Around, told: &BTreeMap<String, Vec<Seen>>) -> BTreeMap<String, Vec<Span>> {
    let mut spans: Vec<Span> = Vec::new();
    let sent: Vec<&str> = listeners()
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| traces(name))
        .collect();
    let sentinels: Vec<String> = sent.iter().map(|name| format!("/answered/here/{name}")).collect();
    assert!(sentinels.iter().all(|path| told.contains_key(path)));
    let all = tokio::sync::Mutex::new(&mut spans);
    eventually("the spans of every listener", || async {
        let mut all = all.lock().await;
        all.extend(around.collected.take().await.iter().flat_map(spans_of));
        let there = |path: &String| all.iter().any(|span| span.path().is_some_and(|url| url == path));
        sentinels.iter().all(there).then_some(())
    })
    .await;
    let mut of: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    let roots: BTreeMap<String, String> = spans
        .iter()
        .filter_map(|span| Some((span.id.clone(), span.path()?.to_owned())))
        .collect();
    for span in spans {
        let path = match span.path() {
            Some(path) => path.to_owned(),
            // A try's span is its request's child.
            None => roots.get(&span.parent).cloned().unwrap_or_default(),
        };
        of.entry(path).or_default().push(span);
    }
    for spans in of.values_mut() {
        spans.sort_by_key(|span| (span.path().is_none(), span.lines.clone()));
    }
    of
}

/// Whether a request that asks for nothing has a span that is sent.
fn traces(listener: &str) -> bool {
    ![
        "zipkin-none",
        "zipkin-off",
        "no-provider",
        "otlp-none",
        "zipkin-tagged",
    ]
    .contains(&listener)
}

/// A span in words; its IDs apart.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    lines: Vec<String>,
}

impl Span {
    /// Of its request, where it tells.
    fn path(&self) -> Option<&str> {
        let url = self
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("http.url="))?;
        url.strip_prefix("http://test.local")
            .or_else(|| url.strip_prefix("http://else.test"))
    }
}

/// Names for IDs that a proxy made.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn of(&mut self, id: &str) -> String {
        if id.is_empty() || [TRACE, SPAN, PARENT].contains(&id) {
            return id.to_owned();
        }
        let at = self.0.iter().position(|known| known == id).unwrap_or_else(|| {
            self.0.push(id.to_owned());
            self.0.len() - 1
        });
        format!("<{} digits: {at}>", id.len())
    }

    fn headers(&mut self, seen: &Seen) -> Vec<String> {
        let told = seen
            .headers
            .iter()
            .filter(|(name, _)| TOLD.contains(&name.as_str()));
        let mut lines: Vec<String> = told
            .map(|(name, value)| {
                let is_id = |part: &str| {
                    matches!(part.len(), 16 | 32) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
                };
                let parts = value.split('-');
                let named = parts.map(|part| {
                    if is_id(part) {
                        self.of(part)
                    } else {
                        part.to_owned()
                    }
                });
                format!("> {name}: {}", named.collect::<Vec<_>>().join("-"))
            })
            .collect();
        lines.sort();
        lines
    }

    fn span(&mut self, span: &Span) -> String {
        let ids = [&span.trace, &span.id, &span.parent].map(|id| self.of(id));
        format!("span {} {}", ids.join(" "), span.lines.join(" | "))
    }
}

/// The spans of a request to the collector.
fn spans_of(seen: &Seen) -> Vec<Span> {
    if seen.first.contains("/api/v2/spans") {
        let list: Value = serde_json::from_slice(&seen.body).unwrap();
        return list.as_array().unwrap().iter().map(zipkin_span).collect();
    }
    let message = match seen.first.contains("TraceService/Export") {
        true => &seen.body[5..],
        false => &seen.body[..],
    };
    let of = |message: &[u8], number: u32| -> Vec<Vec<u8>> {
        let all = fields(message).into_iter();
        all.filter(|(field, _)| *field == number)
            .map(|(_, value)| value)
            .collect()
    };
    let mut spans = Vec::new();
    for resource in of(message, 1) {
        for scope in of(&resource, 2) {
            spans.extend(of(&scope, 2).iter().map(|span| otlp_span(span)));
        }
    }
    spans
}

fn zipkin_span(span: &Value) -> Span {
    let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = ["name", "kind", "shared"]
        .iter()
        .map(|name| format!("{name}: {}", span[name]))
        .collect();
    // Its members come in no order.
    let local = span["localEndpoint"].as_object().unwrap().iter();
    let local: BTreeMap<&String, &Value> = local.collect();
    lines.push(format!("localEndpoint: {local:?}"));
    let events = span["annotations"].as_array().into_iter().flatten();
    lines.extend(events.map(|event| format!("event {}", event["value"])));
    let tags = span["tags"].as_object().unwrap();
    let mut tags: Vec<String> = tags
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap()))
        .collect();
    tags.sort();
    lines.extend(tags);
    Span {
        trace: text("traceId"),
        id: text("id"),
        parent: text("parentId"),
        lines,
    }
}

fn otlp_span(span: &[u8]) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (mut ids, mut lines) = ([const { String::new() }; 3], Vec::new());
    for (field, value) in fields(span) {
        match field {
            1 => ids[0] = hex(&value),
            2 => ids[1] = hex(&value),
            4 => ids[2] = hex(&value),
            // When.
            7 | 8 => {}
            9 => {
                let pair = fields(&value);
                let value = fields(&pair[1].1);
                let text = String::from_utf8_lossy(&value[0].1).into_owned();
                lines.push(format!("{}={text}", String::from_utf8_lossy(&pair[0].1)));
            }
            3 | 5 => lines.push(format!("{field}: {}", String::from_utf8_lossy(&value))),
            // Nothing said is the same as a status that says nothing.
            15 if value.is_empty() => {}
            _ => lines.push(format!("{field}: {}", hex(&value))),
        }
    }
    lines.retain(|line| line != "3: ");
    lines.sort();
    let [trace, id, parent] = ids;
    Span {
        trace,
        id,
        parent,
        lines,
    }
}

/// The fields of a protobuf message; numbers as their bytes on the wire.
fn fields(mut rest: &[u8]) -> Vec<(u32, Vec<u8>)> {
    fn number(rest: &mut &[u8]) -> (u64, usize) {
        let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap();
        let value = rest[..=end]
            .iter()
            .rev()
            .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *rest = &rest[end + 1..];
        (value, end + 1)
    }
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (key, _) = number(&mut rest);
        let field = u32::try_from(key >> 3).unwrap();
        let length = match key & 7 {
            0 => {
                let before = rest;
                let (_, length) = number(&mut rest);
                all.push((field, before[..length].to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => usize::try_from(number(&mut rest).0).unwrap(),
        };
        let (value, after) = rest.split_at(length);
        all.push((field, value.to_vec()));
        rest = after;
    }
    all
}

#[tokio::test]
async fn http_tracing() {
    let (told, collected) = (Book::default(), Book::default());
    let around = Around {
        app: Upstream::start("app", &told).await,
        collector: Upstream::start("collector", &collected).await,
        refused: SocketAddr::from(([127, 0, 0, 1], free_port())),
        told,
        collected,
    };
    let Some(envoy) = run(Program::Envoy, &around).await else {
        println!("skipped: no envoy on PATH");
        return;
    };
    let ours = run(OURS, &around).await.unwrap();
    let spans = |outcome: &Outcome| {
        let all = outcome.values().flatten();
        all.filter(|line| line.starts_with("span")).count()
    };
    assert!(spans(&envoy) > 100, "{} spans", spans(&envoy));
    let mut differ = Vec::new();
    for (path, theirs) in &envoy {
        let lines = lines(theirs, &ours[path]);
        if !lines.is_empty() {
            differ.push(format!("{path}\n  {}", lines.join("\n  ")));
        }
    }
    assert!(
        differ.is_empty(),
        "{} requests differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
}
