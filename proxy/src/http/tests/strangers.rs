//! What those see who break the rules, or take their time.

use std::time::Duration;

use super::rig::{Rig, run, usual};
use crate::telemetry::metrics::http::ConnectionManagerMetrics;
use crate::telemetry::metrics::registry;
use crate::telemetry::metrics::registry::Value;

#[test]
fn what_cannot_be_understood_is_answered_and_ends() {
    run(async {
        let rig = Rig::start(usual()).await;
        for (request, status) in [
            ("GET /ready HTTP/1.0\r\nhost: h\r\n\r\n".to_owned(), 426),
            ("GET /ready HTTP/1.1\r\n\r\n".to_owned(), 400),
            (
                "GET /ready HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
                400,
            ),
            ("FOO /ready HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
            ("blah\r\n\r\n".to_owned(), 400),
            ("GET /ready HTTP/1.1\r\nhost: a\r\nx a: 1\r\n\r\n".to_owned(), 400),
            (
                "POST /up/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
                    .to_owned(),
                400,
            ),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 404),
            (
                "GET /ready HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                    .to_owned(),
                403,
            ),
            (
                format!(
                    "GET /ready HTTP/1.1\r\nhost: a\r\nx-big: {}\r\n\r\n",
                    "a".repeat(70_000)
                ),
                431,
            ),
            (
                format!("GET /ready HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(101)),
                431,
            ),
        ] {
            let mut client = rig.client().await;
            client.send(&request).await;
            let answer = client.answer("GET").await;
            let begin = &request[..request.len().min(60)];
            assert_eq!(
                (answer.status, answer.header("connection")),
                (status, Some("close")),
                "{begin}"
            );
            assert_eq!(client.rest().await.unwrap(), b"", "{begin}");
        }
        assert!(
            rig.upstream.requests.borrow().is_empty(),
            "nothing reached the upstream"
        );
    });
}

#[test]
fn a_body_that_nobody_reads_ends_the_connection_and_the_answer_arrives() {
    run(async {
        let rig = Rig::start(usual()).await;
        for (path, status) in [("/nowhere", 404), ("/teapot", 418)] {
            let mut client = rig.client().await;
            let body = "a".repeat(100_000);
            client
                .send(format!(
                    "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n{body}"
                ))
                .await;
            let answer = client.answer("POST").await;
            assert_eq!(
                (answer.status, answer.header("connection")),
                (status, Some("close"))
            );
            assert_eq!(client.rest().await.unwrap(), b"", "no reset");
        }
    });
}

#[test]
fn headers_below_the_limit_pass() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        let big = "a".repeat(55 * 1024);
        client
            .send(format!("GET /up/a HTTP/1.1\r\nhost: h\r\nx-big: {big}\r\n\r\n"))
            .await;
        assert_eq!(client.answer("GET").await.status, 200);
        assert!(rig.last().contains(&big));
    });
}

#[test]
fn headers_that_trickle_are_cut_off() {
    run(async {
        let mut manager = usual();
        manager.limits.request_headers_timeout = Some(Duration::from_millis(60));
        let rig = Rig::start(manager).await;
        let mut client = rig.client().await;
        assert_eq!(client.get("/ready").await.status, 200);
        client.send("GET /ready HTTP/1.1\r\nhost:").await;
        let refused = client.answer("GET").await;
        assert_eq!((refused.status, refused.text()), (408, "request header timeout"));
        assert_eq!(client.rest().await.unwrap(), b"");
    });
}

#[test]
fn a_body_that_stops_is_cut_off() {
    run(async {
        let mut manager = usual();
        manager.limits.stream_idle_timeout = Some(Duration::from_millis(60));
        let rig = Rig::start(manager).await;
        let mut client = rig.client().await;
        client
            .send("POST /up/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf")
            .await;
        let refused = client.answer("POST").await;
        assert_eq!((refused.status, refused.text()), (408, "stream timeout"));
        assert_eq!(client.rest().await.unwrap(), b"");
    });
}

#[test]
fn an_idle_connection_ends_cleanly() {
    run(async {
        let mut manager = usual();
        manager.limits.idle_timeout = Some(Duration::from_millis(60));
        let rig = Rig::start(manager).await;
        let mut client = rig.client().await;
        assert_eq!(client.get("/ready").await.status, 200);
        assert_eq!(client.rest().await.unwrap(), b"");
    });
}

#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        client.send("GET /up/silent HTTP/1.1\r\nhost: h\r\n\r\n").await;
        while rig.upstream.requests.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(client);
        while rig.last() != "gone" {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_client_that_goes_away_is_counted() {
    run(async {
        let mut manager = usual();
        manager.stat_prefix = "goes_away".into();
        // The counts of a connection manager that is not configured end with its last connection.
        let _kept = ConnectionManagerMetrics::new("goes_away", "test");
        let rig = Rig::start(manager).await;
        let mut client = rig.client().await;
        client.send("GET /up/silent HTTP/1.1\r\nhost: h\r\n\r\n").await;
        while rig.upstream.requests.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(client);
        let count = |what: &str| {
            let name = format!("http.goes_away.downstream_{what}");
            let samples = registry().collect(|found| found == name);
            match samples.first().map(|sample| &sample.value) {
                Some(Value::Counter { total, .. }) => *total,
                other => panic!("{name}: {other:?}"),
            }
        };
        while count("cx_destroy") == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(count("rq_rx_reset"), 1);
        assert_eq!(count("cx_destroy_remote_active_rq"), 1);
        assert!(count("cx_rx_bytes_total") > 0);
    });
}
