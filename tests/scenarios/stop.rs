//! The stop of a proxy in Envoy's place: nobody who connects meanwhile is reset, and it lasts no longer
//! than Nomad waits.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use attache_tests::app::{App, Line};
use attache_tests::bytes::to_end;
use attache_tests::envoy::Static;
use attache_tests::eventually;
use serde_json::{Value, json};

use crate::static_tcp::{cluster, loopback, tcp_proxy};
use crate::xds_mesh::OURS;

fn resources(at: std::net::SocketAddr, app: &App) -> Value {
    json!({
        "listeners": [{
            "name": "listener", "address": attache_tests::envoy::place(at),
            "filter_chains": [{ "filters": [tcp_proxy(json!({ "cluster": "api" }))] }],
        }],
        "clusters": [cluster("api", &[app.address])],
    })
}

/// What a storm of connections saw.
#[derive(Default)]
struct Seen {
    served: AtomicUsize,
    refused: AtomicUsize,
    other: std::sync::Mutex<Vec<String>>,
    stop: AtomicBool,
}

#[tokio::test]
async fn a_connect_during_the_stop_is_served_or_refused_never_reset() {
    for _ in 0..3 {
        let (app, at) = (App::echo("app").await, loopback());
        let two = ["--concurrency", "2"];
        let mut proxy = Static::start_with(OURS, &resources(at, &app), &two)
            .await
            .unwrap();
        let seen = Arc::<Seen>::default();
        let storm: Vec<_> = (0..16)
            .map(|_| {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    while !seen.stop.load(Ordering::Relaxed) {
                        match Line::connect(at).await {
                            Ok(mut line) => match line.ask("x").await {
                                Ok(answer) if answer == "app: x" => {
                                    seen.served.fetch_add(1, Ordering::Relaxed);
                                }
                                other => seen.other.lock().unwrap().push(format!("{other:?}")),
                            },
                            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                                seen.refused.fetch_add(1, Ordering::Relaxed);
                                tokio::task::yield_now().await;
                            }
                            Err(error) => seen.other.lock().unwrap().push(format!("connect: {error:?}")),
                        }
                    }
                })
            })
            .collect();
        eventually("the storm is on", || async {
            (seen.served.load(Ordering::Relaxed) > 200).then_some(())
        })
        .await;
        proxy.process.signal("TERM").await;
        assert_eq!(proxy.process.ended().await.code(), Some(0));
        seen.stop.store(true, Ordering::Relaxed);
        for task in storm {
            task.await.unwrap();
        }
        let other = seen.other.lock().unwrap();
        assert!(
            other.is_empty(),
            "{} of {:?}: {other:?}",
            other.len(),
            seen.served
        );
        assert!(seen.refused.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test]
async fn it_ends_at_once_when_idle() {
    let (app, at) = (App::echo("app").await, loopback());
    let long = ["--concurrency", "2", "--drain-time-s", "300"];
    let mut proxy = Static::start_with(OURS, &resources(at, &app), &long)
        .await
        .unwrap();
    assert_eq!(Line::connect(at).await.unwrap().ask("1").await.unwrap(), "app: 1");
    proxy.process.says(&["both sides closed"]).await;
    proxy.process.signal("TERM").await;
    assert_eq!(proxy.process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_open_has_four_and_a_half_seconds() {
    let (app, at) = (App::echo("app").await, loopback());
    let mut proxy = Static::start(OURS, &resources(at, &app)).await.unwrap();
    let mut line = Line::connect(at).await.unwrap();
    assert_eq!(line.ask("1").await.unwrap(), "app: 1");
    let began = Instant::now();
    proxy.process.signal("TERM").await;
    proxy.process.says(&["draining"]).await;
    assert_eq!(
        line.ask("2").await.unwrap(),
        "app: 2",
        "what is in flight finishes"
    );
    let (_, ended) = to_end(line.stream()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.process.ended().await.code(), Some(0));
    let took = began.elapsed();
    let bounds = Duration::from_millis(4_300)..Duration::from_millis(5_000);
    assert!(bounds.contains(&took), "Nomad kills after 5 s: {took:?}");
    let log = proxy.process.log();
    assert!(log.contains("the deadline cut what was still open"), "{log}");
}
