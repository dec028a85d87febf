//! What one sees of a sidecar: the admin API, the access log, and no secret in either.

use attache::demo::standin::{Registration, Sidecar, StandInOptions};
use attache_tests::mesh::{get, post};
use attache_tests::{Mesh, eventually};
use serde_json::Value;

use crate::ATTACHE;

/// Asserts that a page of metrics is in Prometheus' text format, and gives the number of samples.
fn parse_metrics(page: &str) -> usize {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    let mut samples = 0;
    let mut typed: Vec<&str> = Vec::new();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            assert!(
                is_name(name) && ["counter", "gauge", "histogram"].contains(&kind),
                "{line}"
            );
            assert!(!typed.contains(&name), "declared twice: {line}");
            typed.push(name);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = match series.split_once('{') {
            Some((name, labels)) => {
                // As Envoy writes a series without labels.
                let none = (labels == "}").then_some("");
                let labels = none
                    .or_else(|| labels.strip_suffix("\"}"))
                    .unwrap_or_else(|| panic!("{line}"));
                for label in labels.split("\",").filter(|label| !label.is_empty()) {
                    let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                    assert!(is_name(key) && !value.contains('"'), "{line}");
                }
                name
            }
            None => series,
        };
        assert!(is_name(name), "{line}");
        assert!(
            typed.last().is_some_and(|family| name.starts_with(family)),
            "no type: {line}"
        );
        samples += 1;
    }
    samples
}

#[tokio::test]
async fn every_page_of_the_admin_api_answers() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    assert_eq!(
        get(web.admin, "/ready").await.unwrap(),
        (200, "LIVE\n".to_owned())
    );

    let metrics = web.admin("/stats/prometheus").await;
    assert!(parse_metrics(&metrics) > 50, "{metrics}");
    // As Consul's dashboards ask for them.
    for (name, labels) in [
        (
            "envoy_cluster_upstream_cx_total",
            &["local_cluster=\"web\"", "consul_destination_service=\"api\""][..],
        ),
        (
            "envoy_tcp_downstream_cx_total",
            &["consul_upstream_service=\"api\"", "envoy_tcp_prefix=\"upstream\""],
        ),
        (
            "envoy_cluster_membership_healthy",
            &["consul_destination_service=\"api\""],
        ),
        ("envoy_server_live", &["consul_source_service=\"web\""]),
    ] {
        assert_eq!(web.metric(name, labels).await, 1.0, "{name}: {metrics}");
    }
    let clusters: Value = serde_json::from_str(&web.admin("/clusters?format=json").await).unwrap();
    let healths = clusters["cluster_statuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cluster| cluster["host_statuses"][0]["health_status"]["eds_health_status"].as_str());
    assert!(healths.eq([Some("HEALTHY"), Some("HEALTHY")]), "{clusters:#}");

    let certs: Value = serde_json::from_str(&web.admin("/certs").await).unwrap();
    let leaf = &certs["certificates"][0]["cert_chain"][0];
    let names = &leaf["subject_alt_names"];
    assert_eq!(names[0]["uri"], mesh.consul.service_uri("web"), "{certs:#}");

    let dump: Value = serde_json::from_str(&web.admin("/config_dump").await).unwrap();
    let configs = dump["configs"].as_array().unwrap();
    let listeners = configs
        .iter()
        .find_map(|config| config["dynamic_listeners"].as_array());
    let listeners = listeners.unwrap();
    assert_eq!(listeners.len(), 2, "{dump:#}");
    let mut listeners = listeners
        .iter()
        .map(|listener| &listener["active_state"]["listener"]);
    let public = listeners
        .find(|listener| listener["traffic_direction"] == "INBOUND")
        .unwrap();
    let tls = &public["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"];
    let certificate = &tls["tls_certificates"][0];
    assert_eq!(
        certificate["private_key"]["inline_string"], "[redacted]",
        "{public:#}"
    );
    assert!(
        certificate["certificate_chain"]["inline_string"].is_string(),
        "{public:#}"
    );

    let (status, help) = get(web.admin, "/nowhere").await.unwrap();
    assert_eq!(status, 404);
    for (path, what) in help.lines().filter_map(|line| line.trim().split_once(": ")) {
        // What changes something is asked for by POST.
        let status = if what.ends_with("(POST)") { 405 } else { 200 };
        assert_eq!(get(web.admin, path).await.unwrap().0, status, "{path}");
    }
}

/// What Consul's Grafana dashboards ask of a sidecar that carries TCP, with the labels that they group and
/// select by; the others that they ask for are of HTTP.
const DASHBOARDS: [(&str, &[&str]); 15] = [
    ("envoy_cluster_membership_healthy", OF_CLUSTER),
    ("envoy_cluster_membership_total", OF_CLUSTER),
    ("envoy_cluster_upstream_cx_active", OF_CLUSTER),
    ("envoy_cluster_upstream_cx_total", OF_CLUSTER),
    ("envoy_cluster_upstream_rq_total", OF_CLUSTER),
    ("envoy_listener_downstream_cx_overload_reject", OF_PROXY),
    ("envoy_listener_downstream_global_cx_overflow", OF_PROXY),
    ("envoy_server_live", OF_PROXY),
    ("envoy_server_memory_allocated", OF_PROXY),
    ("envoy_server_memory_heap_size", OF_PROXY),
    ("envoy_tcp_downstream_cx_rx_bytes_buffered", OF_PROXY),
    ("envoy_tcp_downstream_cx_rx_bytes_total", OF_PROXY),
    ("envoy_tcp_downstream_cx_total", OF_PROXY),
    ("envoy_tcp_downstream_cx_tx_bytes_buffered", OF_PROXY),
    ("envoy_tcp_downstream_cx_tx_bytes_total", OF_PROXY),
];
const OF_PROXY: &[&str] = &["local_cluster=\"web\""];
const OF_CLUSTER: &[&str] = &[
    "local_cluster=\"web\"",
    "envoy_cluster_name=\"api\"",
    "consul_destination_service=\"api\"",
    "consul_destination_datacenter=\"dc1\"",
    "consul_destination_target=\"api.default.dc1\"",
];

#[tokio::test]
async fn consuls_dashboards_find_what_they_ask_for() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let mut live = web.dial("api").await;
    assert_eq!(live.ask("hi").await.unwrap(), "api-1: hi");
    let metrics = web.admin("/stats/prometheus").await;
    for (name, labels) in DASHBOARDS {
        let found = metrics.lines().any(|line| {
            let series = line.strip_prefix(name).filter(|rest| rest.starts_with('{'));
            series.is_some_and(|series| labels.iter().all(|label| series.contains(label)))
        });
        assert!(found, "{name} with {labels:?} is not in\n{metrics}");
    }
    // Of a connection that still lives: `hi\n` up, `api-1: hi\n` down.
    let upstream = &["consul_upstream_service=\"api\""];
    for (name, labels, value) in [
        ("envoy_tcp_downstream_cx_rx_bytes_total", upstream, 3.0),
        ("envoy_tcp_downstream_cx_tx_bytes_total", upstream, 10.0),
        ("envoy_cluster_upstream_cx_tx_bytes_total", &["\"api\""], 3.0),
        ("envoy_cluster_upstream_cx_active", &["\"api\""], 1.0),
        ("envoy_cluster_ssl_handshake", &["\"api\""], 1.0),
        (
            "envoy_cluster_circuit_breakers_default_cx_open",
            &["\"api\""],
            0.0,
        ),
    ] {
        assert_eq!(web.metric(name, labels).await, value, "{name}: {metrics}");
    }
    let clusters = web.admin("/clusters").await;
    assert!(clusters.contains("::cx_active::1\n"), "{clusters}");
}

#[tokio::test]
async fn the_access_log_tells_both_ends_of_a_connection() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    let inbound = api.sidecar.says(&["access", "public_listener"]).await;
    let outbound = web.sidecar.says(&["access", "listener=api:"]).await;
    let peer = format!("peer=\"{}\"", mesh.consul.service_uri("web"));
    let endpoints = [api.app.address, api.public].map(|address| format!("endpoint=\"{address}\""));
    for (line, words) in [
        (&inbound, [&*peer, "cluster=\"local_app\"", &*endpoints[0]]),
        (
            &outbound,
            ["peer=\"-\"", "cluster=\"api.default.dc1", &*endpoints[1]],
        ),
    ] {
        // `hi\n` up, `api-1: hi\n` down.
        let bytes = ["bytes_received=3 bytes_sent=10", "duration_ms="];
        let ending = ["flags=\"-\"", "reason=\"both sides closed\""];
        for word in words.iter().chain(&bytes).chain(&ending) {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    }
    assert!(inbound.contains("policy="), "{inbound}");
}

#[tokio::test]
async fn no_secret_is_shown_or_logged_even_at_trace_level() {
    let token = "5ec2e7aa-0000-4000-8000-00000badf00d";
    let options = StandInOptions {
        token: Some(token.to_owned()),
        ..StandInOptions::default()
    };
    let mesh = Mesh::with(ATTACHE, options).await;
    let loud = ["-l", "trace"];
    let secret = |name| {
        mesh.service(name)
            .arguments(&loud)
            .environment("CONSUL_HTTP_TOKEN", token)
    };
    let api = secret("api").start().await;
    let web = secret("web").upstream("api").start().await;
    assert_eq!(web.eventually_hears("api", "api-1").await, "api-1: hi");
    web.sidecar.says(&["DEBUG"]).await;

    // The key is the stand-in's own to tell, once it asks for no token.
    mesh.consul.set_token(None);
    let (_, leaf) = get(mesh.consul.address(), "/v1/agent/connect/ca/leaf/web")
        .await
        .unwrap();
    let leaf: Value = serde_json::from_str(&leaf).unwrap();
    let serial = leaf["SerialNumber"].as_str().unwrap().replace(':', "");
    let key = leaf["PrivateKeyPEM"].as_str().unwrap();
    let parts: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!parts.is_empty(), "{key}");

    let shown = [
        web.sidecar.log(),
        web.admin("/certs").await,
        web.admin("/config_dump?include_eds").await,
        web.admin("/stats/prometheus").await,
        web.admin("/attache/source").await,
        web.admin("/stats").await,
    ];
    let certs = shown[1].replace(':', "").to_lowercase();
    assert!(
        certs.contains(&serial.to_lowercase()),
        "another leaf is in use: {certs}"
    );
    for text in &shown {
        for secret in parts.iter().chain(&[token, "PRIVATE KEY"]) {
            assert!(!text.contains(secret), "{secret} is shown in:\n{text}");
        }
    }
    drop(api);
}

#[tokio::test]
async fn metrics_of_an_upstream_that_is_gone_go_with_it() {
    let mesh = Mesh::start(ATTACHE).await;
    let web = mesh.service("web").upstream("api").start().await;
    let counted = |page: &str| {
        page.lines().any(|line| {
            line.starts_with("envoy_cluster_upstream_cx_total{")
                && line.contains("envoy_cluster_name=\"api\"")
        })
    };
    eventually("the upstream is counted", || async {
        counted(&web.admin("/stats/prometheus").await).then_some(())
    })
    .await;
    let bare = Registration::new("web", web.app.address.port())
        .id("web-1")
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(web.public.port()));
    mesh.consul.register(&bare).unwrap();
    eventually("the upstream is gone", || async {
        (!counted(&web.admin("/stats/prometheus").await)).then_some(())
    })
    .await;
    // Its listener is closed as well, and the public one stays.
    assert_eq!(web.ask("api", "hi").await, "ConnectionRefused");
    assert!(tokio::net::TcpStream::connect(web.public).await.is_ok());
}

#[tokio::test]
async fn the_admin_api_does_what_it_is_asked_by_post() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let mut web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    let does = async |path: &str| {
        let (status, body) = post(web.admin, path).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        body
    };

    does("/reset_counters").await;
    assert_eq!(
        web.metric("envoy_cluster_upstream_cx_total", &["\"api\""]).await,
        0.0
    );
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    assert_eq!(
        web.metric("envoy_cluster_upstream_cx_total", &["\"api\""]).await,
        1.0
    );

    let levels = does("/logging?paths=access:debug,upstream:trace").await;
    assert!(levels.contains("\n  access: debug\n"), "{levels}");
    assert!(levels.contains("\n  listener: info\n"), "{levels}");

    // Connections go on, and what is not inbound is still accepted.
    let mut lasting = web.dial("api").await;
    assert_eq!(lasting.ask("one").await.unwrap(), "api-1: one");
    does("/drain_listeners?inboundonly").await;
    eventually("the public listener is closed", || async {
        let refused = tokio::net::TcpStream::connect(web.public).await.is_err();
        refused.then_some(())
    })
    .await;
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    does("/drain_listeners").await;
    eventually("the upstream listener is closed", || async {
        (web.ask("api", "hi").await == "ConnectionRefused").then_some(())
    })
    .await;
    assert_eq!(lasting.ask("two").await.unwrap(), "api-1: two");
    drop(lasting);

    does("/quitquitquit").await;
    assert!(web.sidecar.ended().await.success());
    assert!(
        web.sidecar.log().contains("told to quit by the admin API"),
        "{}",
        web.sidecar.log()
    );
    drop(api);
}
