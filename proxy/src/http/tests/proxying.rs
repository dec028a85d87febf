//! What ordinary clients and upstreams see.

use std::sync::Arc;

use super::rig::{Rig, manager, route, run, to, usual};
use crate::model::route::PathMatch;

#[test]
fn a_ready_listener_rewrites_the_path_and_answers_404_for_the_rest() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        let ready = client.get("/ready?a=1").await;
        assert_eq!((ready.status, ready.text()), (200, "/health?a=1"));
        assert_eq!(ready.header("server"), Some("envoy"));
        assert!(
            ready
                .header("x-envoy-upstream-service-time")
                .unwrap()
                .parse::<u64>()
                .is_ok()
        );
        assert!(ready.header("date").is_some());
        assert!(ready.header("connection").is_none());
        let head = rig.last();
        assert!(head.starts_with("GET /health?a=1 HTTP/1.1\r\n"), "{head}");
        for line in [
            "host: h",
            "x-forwarded-proto: http",
            "x-envoy-expected-rq-timeout-ms: 15000",
            "x-envoy-original-path: /ready?a=1",
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
        }
        for path in ["/ready/", "/readyx", "/", "/Ready"] {
            let other = client.get(path).await;
            assert_eq!(
                (other.status, other.text(), other.header("server")),
                (404, "", Some("envoy"))
            );
            assert_eq!(other.header("content-length"), Some("0"));
        }
        assert_eq!(client.get("/pre/a%20b/../c?q").await.text(), "/post/a%20b/../c?q");
        assert_eq!(client.get("/expose").await.status, 200);
        assert!(!rig.last().contains("x-envoy-original-path"));
        assert_eq!(client.get("/expose/x").await.status, 404);
        let connections = rig.upstream.requests.borrow().iter().map(|(at, _)| *at).max();
        assert_eq!(connections, Some(1), "one connection carries all requests");
    });
}

#[test]
fn head_and_direct_responses() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        client.send("HEAD /ready HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let head = client.answer("HEAD").await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("7")));
        client.send("HEAD /teapot HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let head = client.answer("HEAD").await;
        assert_eq!((head.status, head.header("content-length")), (418, Some("15")));
        let direct = client.get("/teapot").await;
        assert_eq!((direct.status, direct.text()), (418, "short and stout"));
        assert_eq!(direct.header("content-type"), Some("text/plain"));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
        client
            .send(
                ["/up/1", "/nowhere", "/up/2", "/teapot", "/up/3"]
                    .map(request)
                    .concat(),
            )
            .await;
        let mut seen = Vec::new();
        for _ in 0..5 {
            let answer = client.answer("GET").await;
            seen.push(format!("{} {}", answer.status, answer.text()));
        }
        assert_eq!(
            seen,
            [
                "200 /up/1",
                "404 ",
                "200 /up/2",
                "418 short and stout",
                "200 /up/3"
            ]
        );
    });
}

#[test]
fn large_bodies_go_both_ways_with_and_without_a_length() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        let body: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        for path in ["/up/echo", "/up/chunked"] {
            client
                .send(format!(
                    "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                ))
                .await;
            client.send(&body).await;
            let answer = client.answer("POST").await;
            assert_eq!((answer.status, answer.body == body), (200, true));
            assert!(rig.last().contains("content-length: 100000\r\n"));

            client
                .send(format!(
                    "POST {path} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
                ))
                .await;
            for chunk in body.chunks(7000) {
                client.send(format!("{:x}\r\n", chunk.len())).await;
                client.send(chunk).await;
                client.send("\r\n").await;
            }
            client.send("0\r\n\r\n").await;
            let answer = client.answer("POST").await;
            assert_eq!((answer.status, answer.body == body), (200, true));
            assert!(rig.last().contains("transfer-encoding: chunked\r\n"));
        }
    });
}

#[test]
fn a_client_that_waits_for_it_is_told_to_continue() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        client
            .send("POST /up/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(client.answer("HEAD").await.status, 100);
        client.send("abc").await;
        assert_eq!(client.answer("POST").await.text(), "abc");
        assert!(!rig.last().contains("\r\nexpect:"));
    });
}

#[test]
fn hop_by_hop_headers_stay_behind_both_ways() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        client
            .send("GET /up/hops HTTP/1.1\r\nhost: h\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nx-stays: 2\r\n\r\n")
            .await;
        let answer = client.answer("GET").await;
        assert_eq!(
            (
                answer.status,
                answer.header("keep-alive"),
                answer.header("connection")
            ),
            (200, None, None)
        );
        let head = rig.last();
        assert!(!head.contains("x-hop") && !head.contains("connection") && head.contains("x-stays: 2\r\n"));
    });
}

#[test]
fn a_stale_connection_is_made_anew() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        for _ in 0..5 {
            assert_eq!(client.get("/up/once").await.text(), "once");
        }
        let connections: Vec<_> = rig.upstream.requests.borrow().iter().map(|(at, _)| *at).collect();
        assert_eq!(connections, [1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_request_that_was_sent_on_a_dying_connection_goes_out_again_only_if_that_is_safe() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        assert_eq!(client.get("/up/a").await.status, 200);
        // The upstream takes the second request of its connection and hangs up: it was there, and may have been
        // carried out.
        let answer = client.get("/up/hangs-up").await;
        assert_eq!(answer.status, 503);
        assert_eq!(rig.upstream.requests.borrow().len(), 2);

        assert_eq!(client.get("/up/a").await.status, 200);
        client
            .send("POST /up/hangs-up HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert_eq!(client.answer("POST").await.status, 503);
        assert_eq!(rig.upstream.requests.borrow().len(), 4, "a POST is sent once");
    });
}

#[test]
fn an_upstream_that_fails_is_told_of_in_envoys_words() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        let before = "upstream connect error or disconnect/reset before headers. reset reason: ";
        for (path, status, body) in [
            ("/dead", 503, format!("{before}remote connection failure")),
            ("/none", 503, "no healthy upstream".to_owned()),
            ("/missing", 503, String::new()),
            ("/up/hangs-up", 503, format!("{before}connection termination")),
            ("/up/garbage", 502, format!("{before}protocol error")),
            ("/quick/silent", 504, "upstream request timeout".to_owned()),
        ] {
            let answer = client.get(path).await;
            assert_eq!((answer.status, answer.text()), (status, body.as_str()), "{path}");
            assert_eq!(answer.header("server"), Some("envoy"));
            assert_eq!(answer.header("x-envoy-upstream-service-time"), None);
        }
        assert_eq!(client.get("/up/after").await.text(), "/up/after");
    });
}

#[test]
fn a_response_that_is_cut_never_looks_complete() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        client.send("GET /up/half HTTP/1.1\r\nhost: h\r\n\r\n").await;
        let rest = String::from_utf8(client.rest().await.unwrap()).unwrap();
        assert!(
            rest.contains("content-length: 10\r\n") && rest.ends_with("\r\n\r\nhalf"),
            "{rest}"
        );
    });
}

#[test]
fn changed_routes_reach_connections_that_live() {
    run(async {
        let rig = Rig::start(usual()).await;
        let mut client = rig.client().await;
        assert_eq!(client.get("/new").await.status, 404);
        let newer = manager(vec![route(PathMatch::Path("/new".into()), to("up", None))]);
        *rig.manager.borrow_mut() = Arc::new(newer);
        assert_eq!(client.get("/new").await.status, 200);
        assert_eq!(client.get("/ready").await.status, 404);
    });
}

#[test]
fn a_drain_answers_what_is_under_way_and_ends() {
    run(async {
        let rig = Rig::start(usual()).await;
        let (mut idle, mut busy) = (rig.client().await, rig.client().await);
        assert_eq!(idle.get("/up/a").await.status, 200);
        busy.send("POST /up/echo HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(busy.answer("HEAD").await.status, 100);
        rig.drain.notify_waiters();
        assert_eq!(
            idle.rest().await.unwrap(),
            b"",
            "an idle one ends at once, and cleanly"
        );
        busy.send("abc").await;
        let last = busy.answer("POST").await;
        assert_eq!((last.text(), last.header("connection")), ("abc", Some("close")));
        assert_eq!(busy.rest().await.unwrap(), b"");
    });
}
