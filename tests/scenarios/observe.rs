//! What one sees of a sidecar: the admin API, the access log, and no secret in either.

use attache::demo::standin::{Registration, Sidecar, StandInOptions};
use attache_tests::mesh::get;
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
    assert!(metrics.contains("envoy_cluster_upstream_cx_total{"), "{metrics}");

    let certs: Value = serde_json::from_str(&web.admin("/certs").await).unwrap();
    let leaf = &certs["certificates"][0]["cert_chain"][0];
    let names = &leaf["subject_alt_names"];
    assert_eq!(names[0]["uri"], mesh.consul.service_uri("web"), "{certs:#}");

    let dump: Value = serde_json::from_str(&web.admin("/config_dump").await).unwrap();
    assert_eq!(dump["listeners"].as_array().unwrap().len(), 2, "{dump:#}");
    let identity = &dump["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .find(|listener| listener["traffic_direction"] == "INBOUND")
        .unwrap()["transport_socket"]["identity"];
    assert_eq!(identity["private_key"], "[redacted]");

    let (status, help) = get(web.admin, "/nowhere").await.unwrap();
    assert_eq!(status, 404);
    for path in help.lines().filter_map(|line| line.split_once(": ")) {
        assert_eq!(get(web.admin, path.0).await.unwrap().0, 200, "{}", path.0);
    }
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
        web.admin("/config_dump").await,
        web.admin("/stats/prometheus").await,
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
    let series = "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"api\",";
    eventually("the upstream is counted", || async {
        web.admin("/stats/prometheus")
            .await
            .contains(series)
            .then_some(())
    })
    .await;
    let bare = Registration::new("web", web.app.address.port())
        .id("web-1")
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(web.public.port()));
    mesh.consul.register(&bare).unwrap();
    eventually("the upstream is gone", || async {
        (!web.admin("/stats/prometheus").await.contains(series)).then_some(())
    })
    .await;
    // Its listener is closed as well, and the public one stays.
    assert_eq!(web.ask("api", "hi").await, "ConnectionRefused");
    assert!(tokio::net::TcpStream::connect(web.public).await.is_ok());
}
