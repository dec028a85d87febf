//! h2spec on an upstream listener, on a public one through a forwarder that brings the client certificate, and on
//! real Envoy. Where there is no `h2spec` on PATH the scenario says that it is skipped.

use std::net::SocketAddr;
use std::sync::Arc;

use attache::demo::standin::{IssueOptions, Issued, StandIn, StandInOptions};
use attache_tests::envoy::{Program, Static, place};
use attache_tests::{free_port, peer, tools};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::xds_mesh::OURS;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// What fails on a listener that speaks both versions without TLS: what is no preface of HTTP/2 is taken for
/// HTTP/1 there, and answered in it, by Envoy too.
const PLAIN: [&str; 1] = ["http2/3.5: Sends invalid connection preface"];

fn manager(cluster: Option<&str>) -> Value {
    let answer = json!({ "direct_response": { "status": 200, "body": { "inline_string": "answered" } } });
    let mut route = match cluster {
        Some(cluster) => json!({ "route": { "cluster": cluster } }),
        None => answer,
    };
    route["match"] = json!({ "prefix": "/" });
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "h2spec",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPE}.filters.http.router.v3.Router") } }],
        // So long Envoy waits before it ends a connection that it has refused.
        "delayed_close_timeout": "0.1s",
    }})
}

/// A plain listener and one of mTLS, both to an app that is a third listener.
fn resources(plain: SocketAddr, public: SocketAddr, issued: &Issued, roots: &str) -> Value {
    let app = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listener = |name: &str, at: SocketAddr, chain: Value| json!({ "name": name, "address": place(at), "filter_chains": [chain] });
    let tls = json!({ "name": "tls", "typed_config": {
        "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": { "inline_string": issued.chain_pem },
                "private_key": { "inline_string": issued.key_pem },
            }],
            "validation_context": { "trusted_ca": { "inline_string": roots } },
        },
    }});
    json!({
        "listeners": [
            listener("plain", plain, json!({ "filters": [manager(Some("app"))] })),
            listener("public", public, json!({ "filters": [manager(Some("app"))], "transport_socket": tls })),
            listener("app", app, json!({ "filters": [manager(None)] })),
        ],
        "clusters": [{ "name": "app", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": place(app) } }] }],
        }}],
    })
}

/// Carries each connection to `public` as the holder of `issued` who speaks HTTP/2.
async fn forwarder(public: SocketAddr, issued: Issued) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let issued = Arc::new(issued);
    tokio::spawn(async move {
        while let Ok((plain, _)) = listener.accept().await {
            let issued = Arc::clone(&issued);
            tokio::spawn(async move {
                if let Ok(tls) = peer::connect_speaking(public, &issued, b"h2").await {
                    carry(plain, tls).await;
                }
            });
        }
    });
    at
}

/// Until either side ends: what h2spec looks at is whether the sidecar does.
async fn carry(plain: TcpStream, tls: tokio_rustls::client::TlsStream<TcpStream>) {
    let (mut from_plain, mut to_plain) = plain.into_split();
    let (mut from_tls, mut to_tls) = tokio::io::split(tls);
    // An error is an end, too.
    tokio::select! {
        _ = tokio::io::copy(&mut from_plain, &mut to_tls) => {}
        _ = tokio::io::copy(&mut from_tls, &mut to_plain) => {}
    }
}

/// The failures of h2spec's cases, strict ones included, as `<section>: <title>`, sorted.
async fn failures(h2spec: &std::path::Path, at: SocketAddr) -> Vec<String> {
    let folder = attache_tests::Folder::new();
    let report = folder.file("report.xml");
    let port = at.port().to_string();
    let arguments = ["-h", "127.0.0.1", "-p", &port, "-S", "-o", "5", "-j", &report];
    let ended = Command::new(h2spec).args(arguments).output().await.unwrap();
    let report = String::from_utf8_lossy(&std::fs::read(&report).unwrap()).into_owned();
    let cases: Vec<&str> = report.split("<testcase ").skip(1).collect();
    assert!(
        cases.len() > 140,
        "only {} cases: {}",
        cases.len(),
        String::from_utf8_lossy(&ended.stdout)
    );
    let attribute = |case: &str, name: &str| {
        let from = case.split_once(&format!("{name}=\""))?.1;
        Some(from.split_once('"')?.0.to_owned())
    };
    let failed = cases
        .into_iter()
        .filter(|case| case.contains("<error") || case.contains("<failure"));
    let name = |case: &str| {
        Some(format!(
            "{}: {}",
            attribute(case, "package")?,
            attribute(case, "classname")?
        ))
    };
    let mut failed: Vec<String> = failed.map(|case| name(case).unwrap()).collect();
    failed.sort();
    failed
}

#[tokio::test]
async fn h2spec_finds_nothing_that_envoy_does_better() {
    let Some(h2spec) = tools::on_path("h2spec") else {
        return;
    };
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let issued = |service: &str| consul.issue(service, &IssueOptions::default()).unwrap();
    for program in [OURS, Program::Envoy] {
        let [plain, public] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let resources = resources(plain, public, &issued("api"), &consul.roots_pem());
        let Some(_proxy) = Static::start(program, &resources).await else {
            continue;
        };
        let over_tls = forwarder(public, issued("web")).await;
        let failed = [failures(&h2spec, plain).await, failures(&h2spec, over_tls).await];
        if program == OURS {
            assert_eq!(failed, [PLAIN.map(str::to_owned).to_vec(), vec![]]);
        } else {
            println!(
                "Envoy fails {} and {}: {failed:#?}",
                failed[0].len(),
                failed[1].len()
            );
            let as_listed = |listed: &&str| failed[0].iter().any(|one| one == listed);
            assert!(PLAIN.iter().all(as_listed), "{failed:#?}");
        }
    }
}
