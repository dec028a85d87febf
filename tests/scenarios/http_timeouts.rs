//! Times: of a route, of a stream, of a try, of a request, of a connection; what is answered when they are over.

use attache_tests::http::{Case, Group, Manager, Path, case, get, post, raw};
use serde_json::json;

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

fn cases() -> Vec<Case> {
    let both = |case: Case| case.over(&Path::SAME);
    let never = |name: &str, path: &str| both(get(name, path).wish("never"));
    let slow = |name: &str, path: &str| both(get(name, path).wish("delay=500"));
    vec![
        never("the route's", "/route"),
        both(post("the route's, with a body", "/route").wish("never")),
        both(case("the route's, HEAD", "HEAD", "/route").wish("never")),
        both(get("not the route's", "/route").wish("delay=20")),
        both(get("the route's, in the body", "/route").wish("size=10;pause=1500")),
        both(get("the route's, in the body in chunks", "/route").wish("size=10;pause=1500;chunked")),
        slow("none at all", "/zero"),
        slow("Envoy's default", "/default"),
        never("the stream's silence", "/idle"),
        both(get("the stream's silence, in the body", "/idle").wish("size=10;pause=1500")),
        both(get("not the stream's silence", "/idle").wish("size=10;pause=50")),
        slow("no limit of silence", "/idle-off").on("idle"),
        never("the manager's silence", "/").on("idle"),
        never("the try's", "/try"),
        never("the try's silence", "/try-idle"),
        never("the shorter of two", "/both"),
        never("the manager's for a stream", "/").on("stream"),
        both(
            get("the manager's for a stream, in the body", "/")
                .on("stream")
                .wish("size=10;pause=1500"),
        ),
        never("the route's for a stream", "/max-stream"),
        never("the answer has headers of its own", "/dressed"),
        never("gRPC", "/route")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .over(&[Path::H2_H2]),
        slow("a header asks for less", "/default").header("x-envoy-upstream-rq-timeout-ms", "200"),
        never("a header asks for another answer", "/route")
            .header("x-envoy-upstream-rq-timeout-alt-response", "1"),
        never("a header asks for less a try", "/route")
            .header("x-envoy-upstream-rq-per-try-timeout-ms", "50"),
        get("tells what is expected", "/expected").over(&Path::ALL),
        get("tells what is expected of a try", "/expected-try").over(&Path::ALL),
        get("the connection's silence", "/")
            .on("connection")
            .over(&Path::SAME),
        raw("half of a head", "GET / HTTP/1.1\r\nhost: te")
            .on("headers")
            .over(&[Path::H1_H1]),
        raw(
            "half of a body",
            "POST / HTTP/1.1\r\nhost: test.local\r\ncontent-length: 10\r\n\r\nabc",
        )
        .on("request")
        .over(&[Path::H1_H1])
        .deviates(
            "Requests that are given up in their body, to an HTTP/1 upstream",
            &[
                "->   the request was cut: closed",
                "+>   the request was cut: reset",
            ],
        ),
    ]
}

#[tokio::test]
async fn http_timeouts() {
    let retries = |fields: serde_json::Value| {
        let mut fields = fields;
        fields["retry_on"] = "reset".into();
        fields["num_retries"] = 0.into();
        fields
    };
    let mut dressed = action("/dressed", json!({ "timeout": "0.2s" }));
    dressed["response_headers_to_add"] = json!([{ "header": { "key": "x-added", "value": "yes" } }]);
    let routes = json!([
        action("/route", json!({ "timeout": "0.3s" })),
        action("/zero", json!({ "timeout": "0s" })),
        action("/default", json!({})),
        action("/idle-off", json!({ "idle_timeout": "0s" })),
        action("/idle", json!({ "idle_timeout": "0.3s" })),
        action(
            "/try-idle",
            json!({ "retry_policy": retries(json!({ "per_try_idle_timeout": "0.2s" })) })
        ),
        action(
            "/try",
            json!({ "retry_policy": retries(json!({ "per_try_timeout": "0.2s" })) })
        ),
        action("/both", json!({ "timeout": "0.2s", "idle_timeout": "3s" })),
        action(
            "/max-stream",
            json!({ "max_stream_duration": { "max_stream_duration": "0.3s" } })
        ),
        action(
            "/expected-try",
            json!({ "timeout": "5s",
            "retry_policy": retries(json!({ "per_try_timeout": "2s" })) })
        ),
        action("/expected", json!({ "timeout": "7s" })),
        dressed,
        action("/", json!({})),
    ]);
    let manager = |name: &str, fields| Manager::new(name).routes(routes.clone()).with(fields);
    let common = |fields: serde_json::Value| json!({ "common_http_protocol_options": fields });
    Group::new("timeouts")
        .manager(manager("main", json!({})))
        .manager(manager("idle", json!({ "stream_idle_timeout": "0.3s" })))
        .manager(manager(
            "stream",
            common(json!({ "max_stream_duration": "0.3s" })),
        ))
        .manager(manager("connection", common(json!({ "idle_timeout": "5s" }))))
        .manager(manager("headers", json!({ "request_headers_timeout": "0.3s" })))
        .manager(manager("request", json!({ "request_timeout": "0.3s" })))
        .cases(cases())
        .run(OURS)
        .await;
}
