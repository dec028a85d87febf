//! One static bootstrap, run unchanged by Attaché and by Envoy: without Consul, side by side.

use std::io::ErrorKind;

use attache::demo::standin::{IssueOptions, Issued};
use attache_tests::app::Line;
use attache_tests::bytes::{AppEnds, dial_to_end, exchange};
use attache_tests::envoy::{Envoy, Identity, Program, Version};
use attache_tests::mesh::get;
use attache_tests::{App, Mesh, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ATTACHE;

const OURS: Program = Program::Attache(ATTACHE);

/// Every way to put the two in a row, with at least one Attaché.
const ROWS: [(Program, Program); 3] = [(OURS, OURS), (OURS, Program::Envoy), (Program::Envoy, OURS)];

/// A caller's proxy, and the proxy before an app.
struct Row {
    caller: Envoy,
    callee: Envoy,
    app: App,
}

impl Row {
    /// `None` without an Envoy where one is wanted.
    async fn start((caller, callee): (Program, Program), name: &str) -> Option<Self> {
        let mesh = Mesh::start(ATTACHE).await;
        let issue =
            |service: &str| -> Issued { mesh.consul.issue(service, &IssueOptions::default()).unwrap() };
        let (web, api) = (issue(name), issue("api"));
        let roots = mesh.consul.roots_pem();
        let as_whom = |issued| Identity {
            issued,
            roots_pem: &roots,
            version: Version::V1_3,
        };
        let app = App::by_hand().await;
        let callee = Envoy::inbound_by(callee, &as_whom(&api), app.address, &["^.*/svc/intruder$"]).await?;
        let public = callee.address;
        let caller = Envoy::outbound_by(caller, &as_whom(&web), public, "api.sni", &api.uri).await?;
        Some(Self { caller, callee, app })
    }
}

#[tokio::test]
async fn one_file_carries_alike_in_both() {
    for (caller, callee) in ROWS {
        let Some(row) = Row::start((caller, callee), "web").await else {
            println!("skipped: no envoy on PATH");
            continue;
        };
        let mut client = Line::connect(row.caller.address).await.unwrap().into_stream();
        client.write_all(b"?").await.unwrap();
        let mut app = row.app.accept().await;
        let mut byte = [0];
        app.read_exact(&mut byte).await.unwrap();
        exchange(client, app, 1_000_000, AppEnds::AfterReading).await;
    }
}

#[tokio::test]
async fn one_file_denies_alike_in_both() {
    for (caller, callee) in ROWS {
        let Some(row) = Row::start((caller, callee), "intruder").await else {
            println!("skipped: no envoy on PATH");
            continue;
        };
        let (bytes, ended) = dial_to_end(row.caller.address, b"?").await;
        let refused = ended
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        assert!(bytes.is_empty() && !refused, "nothing comes back: {ended:?}");
        if callee == OURS {
            let words = ["UAEX", "denied by consul-intentions-layer4", "/svc/intruder"];
            row.callee.process.says(&words).await;
        }
        eventually("the denial is counted", || async {
            let (_, stats) = get(row.callee.admin, "/stats/prometheus").await?;
            let line = stats
                .lines()
                .find(|line| line.starts_with("envoy_rbac_denied{"))?;
            line.ends_with(" 1").then_some(())
        })
        .await;
    }
}
