//! gRPC: statuses in trailers, in headers, of answers that the proxy makes itself, and the HTTP/1 bridge.

use attache_tests::http::{Case, Group, Manager, Path, cluster, get, post};
use serde_json::json;

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

/// An answer of a gRPC server: its wishes.
const SAYS: &str = "chunked;header=content-type: application/grpc";

fn call(name: &str, path: &str) -> Case {
    post(name, path).grpc()
}

fn calls() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for status in [0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 14, 16] {
        cases.push(
            call(&format!("status {status}"), "/pkg.Svc/Call")
                .wish(&format!("{SAYS};trailer=grpc-status: {status}")),
        );
    }
    for status in [400, 401, 403, 404, 429, 500, 502, 503, 504] {
        cases.push(
            call(&format!("HTTP status {status} of the app"), "/pkg.Svc/Call")
                .wish(&format!("status={status}")),
        );
    }
    cases.extend([
        call("trailers only", "/pkg.Svc/Call").wish("no-length;header=content-type: application/grpc;header=grpc-status: 5;header=grpc-message: not here"),
        call("a message in trailers", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 3;trailer=grpc-message: bad%20thing")),
        call("metadata both ways", "/pkg.Svc/Call").header("x-meta-bin", "AAEC").wish(&format!("{SAYS};header=x-meta: 1;trailer=grpc-status: 0;trailer=x-meta-bin: AAEC")),
        call("no status at all", "/pkg.Svc/Call").wish(SAYS),
        call("over HTTP/1 upstream", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 0")).over(&[Path::H2_H1]),
        call("from HTTP/1", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 0")).over(&Path::FROM_H1),
        call("a request timeout", "/pkg.Svc/Call").header("grpc-timeout", "100m").wish("delay=400"),
        post("grpc-web", "/pkg.Svc/Call")
            .header("content-type", "application/grpc-web")
            .over(&[Path::H2_H2]),
        call("no route", "/none/Call"),
        call("no cluster", "/nowhere/Call"),
        call("refused connection", "/refused/Call"),
        call("overflow", "/overflow/Call"),
        call("the route's time", "/short/Call").wish("never"),
        call("the app hangs up", "/pkg.Svc/Call").wish("hangup"),
        call("the app hangs up after the headers", "/pkg.Svc/Call").wish(&format!("{SAYS};hangup=headers")),
        call("the app hangs up in the body", "/pkg.Svc/Call").wish(&format!("{SAYS};size=100;hangup=body")),
        call("the app refuses the stream", "/pkg.Svc/Call").wish("refuse"),
        call("denied", "/denied/Call").on("guarded"),
        call("a direct answer", "/direct/Call"),
        call("a redirect", "/redirect/Call"),
        post("content type with a parameter", "/none/Call").header("content-type", "application/grpc+proto").over(&[Path::H2_H2]),
        post("content type that only begins alike", "/none/Call").header("content-type", "application/grpcfoo").over(&[Path::H2_H2]),
        post("content type in capitals", "/none/Call").header("content-type", "Application/GRPC").over(&[Path::H2_H2]),
        get("GET of that type", "/none/Call").header("content-type", "application/grpc").over(&Path::SAME),
    ]);
    cases
}

/// The routes of every manager here.
fn routes() -> serde_json::Value {
    json!([
        { "match": { "prefix": "/none" }, "direct_response": { "status": 404 } },
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 429, "body": { "inline_string": "slow down" } } },
        { "match": { "prefix": "/redirect" }, "redirect": { "host_redirect": "else.test" } },
        action("/nowhere", json!({ "cluster": "nowhere" })),
        action("/refused", json!({ "cluster": "c" })),
        action("/overflow", json!({ "cluster": "b" })),
        action("/short", json!({ "timeout": "0.3s" })),
        action("/limited", json!({ "max_stream_duration": { "grpc_timeout_header_max": "5s" } })),
        action("/offset", json!({ "max_stream_duration": { "grpc_timeout_header_max": "5s",
            "grpc_timeout_header_offset": "0.05s" } })),
        action("/early", json!({ "max_stream_duration": { "grpc_timeout_header_max": "9s",
            "grpc_timeout_header_offset": "2s" } })),
        action("/endless", json!({ "max_stream_duration": { "max_stream_duration": "0s" } })),
        action("/own", json!({ "timeout": "0.1s", "max_stream_duration": { "max_stream_duration": "5s" } })),
        action("/", json!({})),
    ])
}

#[tokio::test]
async fn http_grpc() {
    let deny = json!({ "rules": { "action": "DENY", "policies": { "one": {
        "permissions": [{ "any": true }], "principals": [{ "any": true }] } } } });
    Group::new("gRPC")
        .manager(Manager::new("main").routes(routes()))
        .manager(
            Manager::new("guarded")
                .routes(routes())
                .filter("rbac", "rbac.v3.RBAC", deny),
        )
        .cluster(cluster("c").endpoints(&["closed"]))
        .cluster(cluster("b").with(json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } })))
        .cases(calls())
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_grpc_timeouts() {
    let times = [
        "200m",
        "1S",
        "1M",
        "1H",
        "200000u",
        "0m",
        "99999999m",
        "x",
        "",
        "1",
        "123456789m",
        "10S",
    ];
    let of = |time: &str, path: &str| {
        call(&format!("{path} with {time:?}"), path)
            .header("grpc-timeout", time)
            .wish("delay=350")
    };
    // Over at once: how much of the request the upstream gets before is left to chance.
    let capped = times.iter().filter(|time| **time != "0m");
    let capped = capped.map(|time| of(time, "/limited/Call"));
    let cases = times.iter().map(|time| of(time, "/plain/Call")).chain(capped);
    let managers = json!({ "common_http_protocol_options": { "max_stream_duration": "5s" } });
    Group::new("gRPC timeouts")
        .manager(Manager::new("main").routes(routes()))
        .manager(Manager::new("stream").routes(routes()).with(managers))
        .cases(cases)
        .cases([
            of("200m", "/offset/Call"),
            of("5S", "/early/Call"),
            of("95001u", "/limited/Call"),
            of("200m", "/own/Call"),
            of("10S", "/plain/Call").on("stream"),
            of("10S", "/limited/Call").on("stream"),
            of("10S", "/endless/Call").on("stream"),
            of("x", "/own/Call"),
            of("10S", "/endless/Call"),
            call("none given, a limit", "/own/Call"),
            call("none given", "/limited/Call").wish("delay=50"),
        ])
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_grpc_http1_bridge() {
    let paths = [Path::H1_H2];
    let ask = |name: &str, path: &str| {
        post(name, path)
            .header("content-type", "application/grpc")
            .body(b"\0\0\0\0\x04ping".to_vec())
            .over(&paths)
    };
    let mut cases = Vec::new();
    for status in [0, 5, 13, 14] {
        cases.push(ask(&format!("status {status}"), "/pkg.Svc/Call").wish(&format!(
            "{SAYS};trailer=grpc-status: {status};trailer=grpc-message: words"
        )));
    }
    cases.extend([
        ask("trailers only", "/pkg.Svc/Call").wish("no-length;header=content-type: application/grpc;header=grpc-status: 5;header=grpc-message: not here"),
        ask("no status", "/pkg.Svc/Call").wish(SAYS),
        ask("metadata in trailers", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 0;trailer=x-meta: 1")),
        ask("a body", "/pkg.Svc/Call").wish(&format!("{SAYS};size=1000;trailer=grpc-status: 0")),
        ask("HTTP status 503", "/pkg.Svc/Call").wish("status=503"),
        ask("no route", "/none/Call"),
        ask("refused connection", "/refused/Call"),
        ask("the app hangs up", "/pkg.Svc/Call").wish("hangup"),
        post("another type", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 5")).over(&paths),
        ask("twice", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 0")).times(2),
        ask("over HTTP/2 downstream", "/pkg.Svc/Call").wish(&format!("{SAYS};trailer=grpc-status: 5")).over(&[Path::H2_H2]),
    ]);
    let bridge = Manager::new("main").routes(routes());
    Group::new("gRPC bridge")
        .manager(bridge.filter("grpc_http1_bridge", "grpc_http1_bridge.v3.Config", json!({})))
        .cluster(cluster("c").endpoints(&["closed"]))
        .cases(cases)
        .run(OURS)
        .await;
}
