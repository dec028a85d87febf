//! Static bootstraps of TCP listeners and clusters, each run by Attaché and by Envoy with the same
//! outcome. Without an Envoy on PATH the scenario says so, and Attaché's half is looked at still.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use attache::demo::standin::{IssueOptions, Issued};
use attache_tests::app::Line;
use attache_tests::bytes::dial_to_end;
use attache_tests::envoy::{Program, Static, place};
use attache_tests::mesh::get;
use attache_tests::{App, Folder, Mesh, eventually, free_port, peer};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::xds_mesh::OURS;

const BOTH: [Program; 2] = [OURS, Program::Envoy];
const TYPE: &str = "type.googleapis.com/envoy.extensions";

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

pub(crate) fn tcp_proxy(fields: Value) -> Value {
    filter("tcp_proxy.v3.TcpProxy", fields)
}

fn filter(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("{TYPE}.filters.network.{kind}").into();
    if config.get("stat_prefix").is_none() && !kind.starts_with("sni_cluster") {
        config["stat_prefix"] = "scenario".into();
    }
    let name = kind.split('.').next().unwrap();
    json!({ "name": format!("envoy.filters.network.{name}"), "typed_config": config })
}

fn listener(at: SocketAddr, filters: &[Value]) -> Value {
    json!({ "name": "listener", "address": place(at), "filter_chains": [{ "filters": filters }] })
}

/// A cluster with these endpoints, all of one priority.
pub(crate) fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|at| json!({ "endpoint": { "address": place(*at) } }))
        .collect();
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
    })
}

async fn ask(at: SocketAddr) -> String {
    let answered = async { Line::connect(at).await?.ask("hi").await };
    answered.await.unwrap_or_else(|_| "closed".to_owned())
}

/// How often each answer comes among `n`.
async fn answers(at: SocketAddr, n: usize) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for _ in 0..n {
        *all.entry(ask(at).await).or_default() += 1;
    }
    all
}

#[tokio::test]
async fn weighted_clusters_get_their_shares() {
    let (a, b) = (App::echo("a").await, App::echo("b").await);
    let at = loopback();
    let weights = json!({ "clusters": [
        { "name": "a", "weight": 80 }, { "name": "b", "weight": 20 },
    ]});
    let resources = json!({
        "listeners": [listener(at, &[tcp_proxy(json!({ "weighted_clusters": weights }))])],
        "clusters": [cluster("a", &[a.address]), cluster("b", &[b.address])],
    });
    for program in BOTH {
        let Some(_proxy) = Static::start(program, &resources).await else {
            continue;
        };
        let shares = answers(at, 300).await;
        // Of 300, 240 in the mean with a deviation of 7: five of them.
        assert!((205..=275).contains(&shares["a: hi"]), "{program:?}: {shares:?}");
        assert_eq!(shares["a: hi"] + shares["b: hi"], 300, "{program:?}: {shares:?}");
    }
}

#[tokio::test]
async fn an_aggregate_cluster_fails_over_and_comes_back() {
    let resources = |at: SocketAddr, first: SocketAddr, second: SocketAddr| {
        let outlier = json!({ "consecutive_5xx": 1, "interval": "0.2s", "base_ejection_time": "0.5s",
            "max_ejection_percent": 100 });
        let mut primary = cluster("primary", &[first]);
        primary["outlier_detection"] = outlier;
        json!({
            "listeners": [listener(at, &[tcp_proxy(json!({ "cluster": "both", "max_connect_attempts": 3 }))])],
            "clusters": [
                { "name": "both", "connect_timeout": "2s", "lb_policy": "CLUSTER_PROVIDED",
                  "cluster_type": { "name": "envoy.clusters.aggregate", "typed_config": {
                    "@type": format!("{TYPE}.clusters.aggregate.v3.ClusterConfig"),
                    "clusters": ["primary", "spare"],
                }}},
                primary, cluster("spare", &[second]),
            ],
        })
    };
    for program in BOTH {
        let spare = App::echo("spare").await;
        let (at, first) = (loopback(), loopback());
        let Some(_proxy) = Static::start(program, &resources(at, first, spare.address)).await else {
            continue;
        };
        eventually("the spare one answers for the one that refuses", || async {
            (ask(at).await == "spare: hi").then_some(())
        })
        .await;
        let _primary = App::echo_at(first, "primary").await;
        eventually("the first one answers when it is there", || async {
            (ask(at).await == "primary: hi").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_lower_priority_answers_while_the_higher_one_is_ejected() {
    for program in BOTH {
        let (spare, at, gone) = (App::echo("spare").await, loopback(), loopback());
        let mut cluster = cluster("api", &[gone]);
        cluster["load_assignment"]["endpoints"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "priority": 1, "lb_endpoints": [
                { "endpoint": { "address": place(spare.address) } },
            ]}));
        cluster["outlier_detection"] = json!({ "consecutive_5xx": 1, "interval": "0.2s",
            "base_ejection_time": "60s", "max_ejection_percent": 100 });
        let resources = json!({
            "listeners": [listener(at, &[tcp_proxy(json!({ "cluster": "api" }))])],
            "clusters": [cluster],
        });
        let Some(_proxy) = Static::start(program, &resources).await else {
            continue;
        };
        eventually("the first failure ejects it", || async {
            (ask(at).await == "spare: hi").then_some(())
        })
        .await;
        let all = answers(at, 20).await;
        assert_eq!(all, BTreeMap::from([("spare: hi".to_owned(), 20)]), "{program:?}");
    }
}

/// Two endpoints, one of which refuses and is ejected at its second failure. Gives that one.
fn one_refuses(at: SocketAddr, good: SocketAddr) -> (Value, SocketAddr) {
    let gone = loopback();
    let mut both = cluster("api", &[good, gone]);
    both["outlier_detection"] = json!({ "consecutive_5xx": 2, "interval": "0.2s",
        "base_ejection_time": "60s", "max_ejection_percent": 100 });
    let resources = json!({
        "listeners": [listener(at, &[tcp_proxy(json!({ "cluster": "api" }))])],
        "clusters": [both],
    });
    (resources, gone)
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_left_out() {
    for program in BOTH {
        let (good, at) = (App::echo("good").await, loopback());
        let (resources, gone) = one_refuses(at, good.address);
        let Some(proxy) = Static::start(program, &resources).await else {
            continue;
        };
        eventually(&format!("{program:?} ejects it"), || async {
            ask(at).await;
            match program {
                Program::Attache(_) => proxy.process.log().contains("ejected: it failed again and again"),
                Program::Envoy => shows_ejected(&proxy, gone).await,
            }
            .then_some(())
        })
        .await;
        let all = answers(at, 30).await;
        assert_eq!(all, BTreeMap::from([("good: hi".to_owned(), 30)]), "{program:?}");
    }
}

async fn shows_ejected(proxy: &Static, gone: SocketAddr) -> bool {
    let (_, clusters) = get(proxy.admin, "/clusters").await.unwrap_or_default();
    clusters.contains(&format!("api::{gone}::health_flags::/failed_outlier_check"))
}

#[tokio::test]
async fn the_admin_api_shows_an_ejection() {
    for program in BOTH {
        let (good, at) = (App::echo("good").await, loopback());
        let (resources, gone) = one_refuses(at, good.address);
        let Some(proxy) = Static::start(program, &resources).await else {
            continue;
        };
        eventually(&format!("{program:?} shows it in /clusters"), || async {
            ask(at).await;
            shows_ejected(&proxy, gone).await.then_some(())
        })
        .await;
        eventually(&format!("{program:?} counts it"), || async {
            let active = "envoy_cluster_outlier_detection_ejections_active";
            (proxy.metric(active, &["api"]).await? == 1.0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_name_is_looked_up() {
    for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
        for program in BOTH {
            let (app, at) = (App::echo("app").await, loopback());
            let mut named = cluster("api", &[app.address]);
            named["type"] = kind.into();
            named["dns_lookup_family"] = "V4_ONLY".into();
            named["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
                ["address"] = "localhost".into();
            let resources = json!({
                "listeners": [listener(at, &[tcp_proxy(json!({ "cluster": "api" }))])],
                "clusters": [named],
            });
            let Some(_proxy) = Static::start(program, &resources).await else {
                continue;
            };
            eventually(&format!("{program:?} reaches {kind}"), || async {
                (ask(at).await == "app: hi").then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn no_more_connections_than_the_limit() {
    for program in BOTH {
        let (app, at) = (App::echo("app").await, loopback());
        let limit = filter(
            "connection_limit.v3.ConnectionLimit",
            json!({ "max_connections": 2 }),
        );
        let resources = json!({
            "listeners": [listener(at, &[limit, tcp_proxy(json!({ "cluster": "api" }))])],
            "clusters": [cluster("api", &[app.address])],
        });
        let Some(proxy) = Static::start(program, &resources).await else {
            continue;
        };
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut line = Line::connect(at).await.unwrap();
            assert_eq!(line.ask("1").await.unwrap(), "app: 1", "{program:?}");
            held.push(line);
        }
        assert_eq!(ask(at).await, "closed", "{program:?}");
        let limited = "envoy_connection_limit_limited_connections";
        eventually("the third one is counted", || async {
            (proxy.metric(limited, &["scenario"]).await? == 1.0).then_some(())
        })
        .await;
        assert_eq!(held[0].ask("2").await.unwrap(), "app: 2", "{program:?}");
        held.pop();
        eventually("a place is free again", || async {
            (ask(at).await == "app: hi").then_some(())
        })
        .await;
    }
}

/// Version 1 (a line) and 2 (binary) of HAProxy's header, and none.
#[tokio::test]
async fn a_proxy_header_tells_who_calls() {
    for program in BOTH {
        let folder = Folder::new();
        let (app, at) = (App::echo("app").await, loopback());
        let log = json!({ "name": "envoy.access_loggers.file", "typed_config": {
            "@type": format!("{TYPE}.access_loggers.file.v3.FileAccessLog"),
            "path": folder.file("log"),
            "log_format": { "text_format_source": { "inline_string":
                "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS%\n" } },
        }});
        let mut listening = listener(at, &[tcp_proxy(json!({ "cluster": "api", "access_log": [log] }))]);
        listening["listener_filters"] = json!([{ "name": "envoy.filters.listener.proxy_protocol",
            "typed_config": { "@type": format!("{TYPE}.filters.listener.proxy_protocol.v3.ProxyProtocol") } }]);
        let resources = json!({
            "listeners": [listening],
            "clusters": [cluster("api", &[app.address])],
        });
        let arguments = ["--concurrency", "1", "--file-flush-interval-msec", "50"];
        let Some(_proxy) = Static::start_with(program, &resources, &arguments).await else {
            continue;
        };
        let first = b"PROXY TCP4 10.1.2.3 10.1.2.4 77 88\r\n".to_vec();
        let mut second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        second.extend([10, 1, 2, 5, 10, 1, 2, 6, 0, 99, 0, 100]);
        for header in [first, second] {
            let mut line = Line::connect(at).await.unwrap();
            line.stream().write_all(&header).await.unwrap();
            assert_eq!(line.ask("hi").await.unwrap(), "app: hi", "{program:?}");
        }
        assert_eq!(ask(at).await, "closed", "{program:?}: without a header");
        let wanted = ["10.1.2.3:77 10.1.2.4:88\n", "10.1.2.5:99 10.1.2.6:100\n"].concat();
        eventually(&format!("{program:?} writes both"), || async {
            let text = std::fs::read_to_string(folder.path("log")).ok()?;
            text.starts_with(&wanted).then_some(())
        })
        .await;
    }
}

/// A downstream TLS context with a leaf.
fn server(issued: &Issued) -> Value {
    json!({ "name": "tls", "typed_config": {
        "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": { "tls_certificates": [{
            "certificate_chain": { "inline_string": issued.chain_pem },
            "private_key": { "inline_string": issued.key_pem },
        }]},
    }})
}

#[tokio::test]
async fn the_name_in_a_client_hello_chooses_the_filter_chain() {
    let mesh = Mesh::start(crate::ATTACHE).await;
    let issued = |service: &str| mesh.consul.issue(service, &IssueOptions::default()).unwrap();
    let (exact, wild) = (issued("exact"), issued("wild"));
    let (a, b) = (App::echo("exact").await, App::echo("wild").await);
    let at = loopback();
    let chain = |names: Value, issued: &Issued, to: &str| {
        json!({ "filter_chain_match": { "server_names": names, "transport_protocol": "tls" },
            "transport_socket": server(issued),
            "filters": [tcp_proxy(json!({ "cluster": to }))] })
    };
    // One passes through without ending TLS, by the name itself.
    let (inner, inner_at) = (App::echo("inner").await, loopback());
    let resources = json!({
        "listeners": [
            { "name": "outer", "address": place(at),
              "listener_filters": [{ "name": "envoy.filters.listener.tls_inspector", "typed_config": {
                "@type": format!("{TYPE}.filters.listener.tls_inspector.v3.TlsInspector") } }],
              "filter_chains": [
                chain(json!(["api.exact.test"]), &exact, "a"),
                chain(json!(["*.wild.test"]), &wild, "b"),
                { "filter_chain_match": { "server_names": ["*.through.test"] },
                  "filters": [filter("sni_cluster.v3.SniCluster", json!({})),
                    tcp_proxy(json!({ "cluster": "none" }))] },
            ]},
            { "name": "inner", "address": place(inner_at),
              "filter_chains": [{ "transport_socket": server(&wild),
                "filters": [tcp_proxy(json!({ "cluster": "c" }))] }] },
        ],
        "clusters": [
            cluster("a", &[a.address]), cluster("b", &[b.address]), cluster("c", &[inner.address]),
            cluster("inner.through.test", &[inner_at]), cluster("none", &[]),
        ],
    });
    for program in BOTH {
        let Some(_proxy) = Static::start(program, &resources).await else {
            continue;
        };
        for (name, answer) in [
            ("api.exact.test", Some("exact: hi")),
            ("x.wild.test", Some("wild: hi")),
            ("inner.through.test", Some("inner: hi")),
            ("other.test", None),
            ("wild.test", None),
        ] {
            let heard = peer::ask_named(at, name).await.ok();
            assert_eq!(heard.as_deref(), answer, "{program:?} {name}");
        }
        // No TLS at all: no chain.
        assert_eq!(ask(at).await, "closed", "{program:?}");
    }
}

/// The text and JSON formats of a tcp_proxy's log, and a listener's log of what found no chain.
#[tokio::test]
async fn access_logs_are_written_alike() {
    let mut written = BTreeMap::new();
    for program in BOTH {
        let folder = Arc::new(Folder::new());
        let app = App::echo("app").await;
        let (text_at, json_at, none_at) = (loopback(), loopback(), loopback());
        let log = |name: &str, format: Value| {
            json!({ "name": "envoy.access_loggers.file", "typed_config": {
                "@type": format!("{TYPE}.access_loggers.file.v3.FileAccessLog"),
                "path": folder.file(name), "log_format": format,
            }})
        };
        let text = "[%BYTES_RECEIVED% %BYTES_SENT%] %RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %PROTOCOL% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(:METHOD)%\n";
        let inline = |text: &str| json!({ "text_format_source": { "inline_string": text } });
        let structured = json!({ "json_format": {
            "received": "%BYTES_RECEIVED%", "sent": "%BYTES_SENT%", "flags": "%RESPONSE_FLAGS%",
            "cluster": "%UPSTREAM_CLUSTER%", "both": "%BYTES_RECEIVED%/%BYTES_SENT%",
            "nested": { "none": "%CONNECTION_TERMINATION_DETAILS%" },
        }});
        let logged = |log: Value| tcp_proxy(json!({ "cluster": "api", "access_log": [log] }));
        let mut nowhere = listener(none_at, &[tcp_proxy(json!({ "cluster": "api" }))]);
        nowhere["name"] = "nowhere".into();
        nowhere["filter_chains"][0]["filter_chain_match"] =
            json!({ "prefix_ranges": [{ "address_prefix": "10.1.2.3", "prefix_len": 32 }] });
        let no_route = json!({ "response_flag_filter": { "flags": ["NR"] } });
        let mut nr = log(
            "nr",
            inline("%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS%\n"),
        );
        nr["filter"] = no_route;
        nowhere["access_log"] = json!([nr]);
        let mut second = listener(json_at, &[logged(log("json", structured))]);
        second["name"] = "json".into();
        let resources = json!({
            "listeners": [listener(text_at, &[logged(log("text", inline(text)))]), second, nowhere],
            "clusters": [cluster("api", &[app.address])],
        });
        let arguments = ["--concurrency", "1", "--file-flush-interval-msec", "50"];
        let Some(_proxy) = Static::start_with(program, &resources, &arguments).await else {
            continue;
        };
        assert_eq!(ask(text_at).await, "app: hi");
        assert_eq!(ask(json_at).await, "app: hi");
        let (heard, _) = dial_to_end(none_at, b"").await;
        assert_eq!(heard, b"");
        let mut lines = BTreeMap::new();
        for name in ["text", "json", "nr"] {
            let line = eventually(&format!("{program:?} writes {name}"), || async {
                let text = std::fs::read_to_string(folder.path(name)).ok()?;
                text.ends_with('\n').then_some(text)
            })
            .await;
            lines.insert(name, line);
        }
        let structured: Value = serde_json::from_str(&lines["json"]).unwrap();
        assert_eq!(structured["received"], 3, "{program:?}: {structured}");
        assert_eq!(structured["both"], "3/8", "{program:?}: {structured}");
        lines.insert("json", serde_json::to_string(&sorted(&structured)).unwrap());
        written.insert(format!("{program:?}"), lines);
    }
    let mut all = written.values();
    let first = all.next().unwrap();
    assert_eq!(first["text"], "[3 8] - api - 127.0.0.1 -\n");
    assert!(first["nr"].starts_with("NR "), "{first:?}");
    assert!(all.all(|other| other == first), "{written:#?}");
}

fn sorted(value: &Value) -> Value {
    match value.as_object() {
        Some(fields) => {
            let fields: BTreeMap<_, _> = fields.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            json!(fields)
        }
        None => value.clone(),
    }
}
