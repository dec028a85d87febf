//! gRPC between a client and a server in Python through two sidecars over mTLS: two of ours, and ours with a
//! real Envoy on either side. Where `python3` cannot import grpc the scenario says that it is skipped.

use std::io::Write;
use std::net::SocketAddr;

use attache::demo::standin::{IssueOptions, StandIn, StandInOptions};
use attache_tests::envoy::{Program, Static};
use attache_tests::{Process, free_port, tools};

use crate::sidecars::{Spoken, inbound, outbound};
use crate::xds_mesh::OURS;

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
        let inbound = inbound(public, (app, Spoken::Http2), &api, &roots, Spoken::Http2);
        let outbound = outbound(upstream, &[public], &web, &roots, Spoken::Http2);
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
