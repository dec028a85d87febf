//! Bytes from app to app through two sidecars: over TCP and unix sockets, whoever speaks first.

use attache::demo::standin::{IssueOptions, KeyType, StandInOptions};
use attache_tests::app::Line;
use attache_tests::{App, Folder, Mesh, eventually, peer};
use rustls::version::TLS12;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::ATTACHE;

#[tokio::test]
async fn two_sidecars_carry_lines_both_ways() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.eventually_hears("api", "api-1").await, "api-1: hi");
    let mut line = web.dial("api").await;
    for i in 0..100 {
        assert_eq!(line.ask(&i.to_string()).await.unwrap(), format!("api-1: {i}"));
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_by_a_silent_client() {
    let mesh = Mesh::start(ATTACHE).await;
    let db = App::greeting("db").await;
    let _db = mesh.service("db").app(db).start().await;
    let web = mesh.service("web").upstream("db").start().await;
    let mut line = web.dial("db").await;
    assert_eq!(line.hear().await.unwrap(), "db greets you");
    assert_eq!(line.ask("hi").await.unwrap(), "db: hi");
}

#[tokio::test]
async fn app_and_upstream_may_be_unix_sockets() {
    let mesh = Mesh::start(ATTACHE).await;
    let folder = Folder::new();
    let (app, upstream) = (folder.path("app.sock"), folder.path("api.sock"));
    let _api = mesh.service("api").app_socket(&app).start().await;
    let _web = mesh
        .service("web")
        .upstream_socket("api", &upstream)
        .start()
        .await;
    let mut stream = BufReader::new(UnixStream::connect(&upstream).await.unwrap());
    stream.write_all(b"hi\n").await.unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    assert_eq!(answer, "api-1: hi\n");
    // The client's end reaches the app, and the app's end the client.
    stream.shutdown().await.unwrap();
    answer.clear();
    assert_eq!(stream.read_line(&mut answer).await.unwrap(), 0);
}

#[tokio::test]
async fn two_upstreams_of_one_service_do_not_mix() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let _db = mesh.service("db").start().await;
    let web = mesh.service("web").upstream("api").upstream("db").start().await;
    for _ in 0..5 {
        assert_eq!(web.ask("api", "hi").await, "api-1: hi");
        assert_eq!(web.ask("db", "hi").await, "db-1: hi");
    }
}

#[tokio::test]
async fn roots_and_leaves_of_every_key_type_are_used() {
    for key in [KeyType::P256, KeyType::P384, KeyType::P521, KeyType::Rsa2048] {
        let options = StandInOptions {
            authority_key: key,
            ..StandInOptions::default()
        };
        let mesh = Mesh::with(ATTACHE, options).await;
        let api = mesh.service("api").start().await;
        let web = mesh.service("web").upstream("api").start().await;
        assert_eq!(web.ask("api", "hi").await, "api-1: hi", "roots of {key:?}");

        let options = IssueOptions {
            key,
            ..IssueOptions::default()
        };
        let caller = mesh.consul.issue("web", &options).unwrap();
        let answer = peer::ask(api.public, Some(&caller), &[&TLS12]).await;
        assert_eq!(answer.unwrap(), "api-1: hi", "a leaf of {key:?}");
    }
}

#[tokio::test]
async fn two_workers_share_the_ports() {
    let mesh = Mesh::start(ATTACHE).await;
    let two = ["--concurrency", "2"];
    let api = mesh.service("api").arguments(&two).start().await;
    let web = mesh.service("web").upstream("api").arguments(&two).start().await;
    let mut lines: Vec<Line> = Vec::new();
    for _ in 0..60 {
        lines.push(web.dial("api").await);
    }
    for line in &mut lines {
        assert_eq!(line.ask("hi").await.unwrap(), "api-1: hi");
    }
    for member in [&api, &web] {
        let threads = member.sidecar.threads();
        for worker in ["worker-0", "worker-1"] {
            assert!(threads.iter().any(|name| name == worker), "{threads:?}");
        }
    }
    // The counters of both workers add up, and every connection is given back.
    let active = "envoy_cluster_upstream_cx_active";
    assert_eq!(web.metric(active, &["api.default"]).await, 60.0);
    drop(lines);
    eventually("no connection is left", || async {
        let left = web.metric(active, &["api.default"]).await + api.metric(active, &["local_app"]).await;
        (left == 0.0).then_some(())
    })
    .await;
}
