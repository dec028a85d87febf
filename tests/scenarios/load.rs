//! Much at once: bulk both ways, hundreds of connections, and readers that are slower than senders.

use std::sync::Arc;
use std::time::Duration;

use attache::net::socket::raise_descriptor_limit;
use attache_tests::app::Line;
use attache_tests::bytes::{AppEnds, exchange, pattern, to_end};
use attache_tests::{App, Mesh, eventually};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ATTACHE;

/// Connections at once.
const MANY: usize = 500;

/// Connections whose readers do not read.
const FLOODED: usize = 16;

/// Far above what the sockets of one path hold, far below what a machine has.
const FLOOD_BYTES: usize = 64 << 20;

/// A path whose writer had no progress for this long is full.
const STALL: Duration = Duration::from_millis(500);

/// What a sidecar may hold while its readers are slow: some of this is a debug build's own.
const BOUND_BYTES: u64 = 64 << 20;

#[tokio::test]
async fn ten_megabytes_each_way_at_once_arrive_intact() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").app(App::by_hand().await).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let client = web.dial("api").await.into_stream();
    let app = api.app.accept().await;
    exchange(client, app, 10 << 20, AppEnds::AtOnce).await;
    let line = web.sidecar.says(&["access", "both sides closed"]).await;
    let carried = 10 << 20;
    assert!(
        line.contains(&format!("bytes_received={carried} bytes_sent={carried}")),
        "{line}"
    );
}

#[tokio::test]
async fn hundreds_of_connections_are_served_at_once() {
    raise_descriptor_limit();
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let address = web.upstreams["api"];
    let before = [&api, &web].map(|member| member.sidecar.descriptors());
    let asking: Vec<_> = (0..MANY)
        .map(|i| {
            tokio::spawn(async move {
                let mut line = Line::connect(address).await.unwrap();
                let answer = line.ask(&i.to_string()).await.unwrap();
                assert_eq!(answer, format!("api-1: {i}"));
                line
            })
        })
        .collect();
    let mut lines = Vec::new();
    for asked in asking {
        lines.push(asked.await.unwrap());
    }
    // All of them are still open, and each has its own connection to the app.
    assert_eq!(api.app.accepted(), MANY);
    for line in &mut lines {
        assert_eq!(line.ask("again").await.unwrap(), "api-1: again");
    }
    drop(lines);
    // Every connection is given back, in the counters and to the system; what is left over are a few
    // connections to Consul, which come and go.
    for (member, before) in [&api, &web].into_iter().zip(before) {
        eventually(&format!("{} has no connection left", member.id), || async {
            let active = member.metric("envoy_listener_downstream_cx_active", &[]).await;
            (active == 0.0 && member.sidecar.descriptors() < before + MANY / 10).then_some(())
        })
        .await;
    }
}

/// Sends `block` again and again until nothing is taken any more; gives back how much was.
async fn flood(mut client: TcpStream, block: Arc<Vec<u8>>) -> (TcpStream, usize) {
    let mut sent = 0;
    while sent < FLOOD_BYTES {
        match timeout(STALL, client.write(&block[sent % block.len()..])).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    (client, sent)
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender_and_bounds_the_memory() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").app(App::by_hand().await).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let block = Arc::new(pattern(7, 64 * 1024));
    let mut flooding = Vec::new();
    for i in 0..FLOODED {
        let client = web.dial("api").await.into_stream();
        let app = api.app.accept().await;
        // Half of them upload, half download.
        let (sender, reader) = if i % 2 == 0 { (client, app) } else { (app, client) };
        let flood = flood(sender, Arc::clone(&block));
        flooding.push((reader, tokio::spawn(flood)));
    }
    let mut paths = Vec::new();
    for (reader, flood) in flooding {
        let (sender, sent) = flood.await.unwrap();
        assert!(sent < FLOOD_BYTES, "the sender was never slowed down");
        paths.push((sender, reader, sent));
    }
    for member in [&api, &web] {
        let held = member.sidecar.resident_bytes();
        assert!(held < BOUND_BYTES, "{} holds {held} bytes", member.id);
    }
    // What waited arrives, all of it, once the readers read.
    for (mut sender, mut reader, sent) in paths {
        sender.shutdown().await.unwrap();
        let (received, ended) = to_end(&mut reader).await;
        ended.unwrap();
        assert_eq!(received.len(), sent);
        assert!(
            received
                .chunks(block.len())
                .all(|part| part == &block[..part.len()])
        );
    }
}

#[tokio::test]
async fn a_full_circuit_breaker_refuses_one_more_and_says_so() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let limits = json!({ "Config": { "limits": { "max_connections": 2 } } });
    let web = mesh.service("web").upstream_with("api", limits).start().await;
    let (mut first, mut second) = (web.dial("api").await, web.dial("api").await);
    assert_eq!(first.ask("hi").await.unwrap(), "api-1: hi");
    assert_eq!(second.ask("hi").await.unwrap(), "api-1: hi");
    assert_eq!(web.ask("api", "hi").await, "ConnectionReset");
    let line = web.sidecar.says(&["access", "flags=\"UO\""]).await;
    assert!(line.contains("limit of 2 connections"), "{line}");
    assert_eq!(
        web.metric("envoy_cluster_upstream_cx_overflow", &["api."]).await,
        1.0
    );
    drop(first);
    web.eventually_hears("api", "api-1").await;
    assert_eq!(second.ask("still").await.unwrap(), "api-1: still");
}

#[tokio::test]
async fn a_full_public_listener_refuses_one_more_and_says_so() {
    let mesh = Mesh::start(ATTACHE).await;
    let limit = json!({ "max_inbound_connections": 2 });
    let api = mesh.service("api").config(limit).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let (mut first, mut second) = (web.dial("api").await, web.dial("api").await);
    assert_eq!(first.ask("hi").await.unwrap(), "api-1: hi");
    assert_eq!(second.ask("hi").await.unwrap(), "api-1: hi");
    assert_eq!(web.ask("api", "hi").await, "ConnectionReset");
    let line = api.sidecar.says(&["access", "flags=\"OM\""]).await;
    assert!(line.contains("limit of 2 connections"), "{line}");
    assert_eq!(api.metric("attache_downstream_cx_ended", &["OM"]).await, 1.0);
    drop(first);
    web.eventually_hears("api", "api-1").await;
    assert_eq!(second.ask("still").await.unwrap(), "api-1: still");
}
