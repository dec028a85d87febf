//! gRPC between a client and a server in Python through two sidecars over mTLS: two of ours, and ours with a
//! real Envoy on either side. Where `python3` cannot import grpc the scenario says that it is skipped.

use std::io::Write;
use std::net::SocketAddr;

use attache::demo::standin::{IssueOptions, Issued, StandIn, StandInOptions};
use attache_tests::envoy::{Program, Static, place};
use attache_tests::{Process, free_port, tools};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// The server and the client.
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/grpc/peer.py");

/// `python3` on PATH, if it can import grpc.
async fn python() -> Option<String> {
    let python = tools::on_path("python3")?.to_string_lossy().into_owned();
    let found = tokio::process::Command::new(&python)
        .args(["-c", "import grpc"])
        .output()
        .await
        .unwrap();
    if !found.status.success() {
        // Past libtest's capture, as for what is not on PATH.
        let _ = writeln!(std::io::stderr(), "skipped: no grpc in python3");
        return None;
    }
    Some(python)
}

fn tls(kind: &str, issued: &Issued, roots: &str) -> Value {
    json!({ "name": "tls", "typed_config": {
        "@type": format!("{TYPE}.transport_sockets.tls.v3.{kind}"),
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": { "inline_string": issued.chain_pem },
                "private_key": { "inline_string": issued.key_pem },
            }],
            "validation_context": { "trusted_ca": { "inline_string": roots } },
        },
    }})
}

/// One listener with a connection manager, and one cluster of HTTP/2 behind it.
fn resources(
    at: SocketAddr,
    to: SocketAddr,
    listener_tls: Option<Value>,
    cluster_tls: Option<Value>,
) -> Value {
    let manager = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "grpc",
        "http2_protocol_options": {},
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "next", "timeout": "0s" } },
        ]}]},
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPE}.filters.http.router.v3.Router") } }],
    }});
    let mut chain = json!({ "filters": [manager] });
    if let Some(tls) = listener_tls {
        chain["transport_socket"] = tls;
    }
    let mut cluster = json!({
        "name": "next", "type": "STATIC", "connect_timeout": "5s",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": {} },
        }},
        "load_assignment": { "cluster_name": "next", "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": place(to) } }] },
        ]},
    });
    if let Some(tls) = cluster_tls {
        cluster["transport_socket"] = tls;
    }
    json!({
        "listeners": [{ "name": "listener", "address": place(at), "filter_chains": [chain] }],
        "clusters": [cluster],
    })
}

#[tokio::test]
async fn every_kind_of_grpc_call_passes_two_sidecars() {
    let Some(python) = python().await else { return };
    let run = |arguments: &[&str]| {
        let arguments: Vec<String> = [PEER]
            .iter()
            .chain(arguments)
            .map(|&one| one.to_owned())
            .collect();
        Process::start("the gRPC peer", &python, &arguments, &[])
    };
    let server = run(&["serve"]);
    let said = server.says(&["listens on "]).await;
    let app = SocketAddr::from(([127, 0, 0, 1], said.rsplit(' ').next().unwrap().parse().unwrap()));
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let issued = |service: &str| consul.issue(service, &IssueOptions::default()).unwrap();
    let (web, api, roots) = (issued("web"), issued("api"), consul.roots_pem());
    for (outer, inner) in [(OURS, OURS), (OURS, Program::Envoy), (Program::Envoy, OURS)] {
        let [upstream, public] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut demanding = tls("DownstreamTlsContext", &api, &roots);
        demanding["typed_config"]["require_client_certificate"] = true.into();
        let inbound = resources(public, app, Some(demanding), None);
        let outbound = resources(
            upstream,
            public,
            None,
            Some(tls("UpstreamTlsContext", &web, &roots)),
        );
        let Some(_inner) = Static::start(inner, &inbound).await else {
            return;
        };
        let Some(_outer) = Static::start(outer, &outbound).await else {
            return;
        };
        let mut client = run(&["call", &upstream.port().to_string()]);
        // Each has its time: together they may take longer than a harness waits.
        for call in ["unary", "big", "turns", "many", "deadline", "cancel"] {
            client.says(&[&format!("fine: {call}")]).await;
        }
        let ended = client.ended().await;
        assert!(
            ended.success(),
            "through {outer:?} and {inner:?}:\n{}",
            client.log()
        );
    }
}
