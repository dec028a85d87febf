//! Answers that the proxy makes because of its upstreams: none, refused, too many, broken off, malformed.

use attache_tests::http::{Case, Group, Manager, Path, case, cluster, get, post};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

fn breaker(fields: Value) -> Value {
    json!({ "circuit_breakers": { "thresholds": [fields] } })
}

/// Each cluster is reached by a prefix of its name.
const CLUSTERS: [&str; 7] = [
    "refused",
    "empty",
    "no-requests",
    "no-pending",
    "no-connections",
    "no-retries",
    "one-request",
];

fn group(name: &str, cases: Vec<Case>) -> Group {
    let mut routes: Vec<Value> = CLUSTERS
        .iter()
        .map(|name| action(&format!("/{name}"), json!({ "cluster": name })))
        .collect();
    routes.push(action("/", json!({})));
    Group::new(name)
        .manager(Manager::new("main").routes(json!(routes)))
        .cluster(cluster("refused").endpoints(&["closed"]))
        .cluster(cluster("empty").endpoints(&[]))
        .cluster(
            cluster("no-requests")
                .endpoints(&["a"])
                .with(breaker(json!({ "max_requests": 0 }))),
        )
        .cluster(
            cluster("no-pending")
                .endpoints(&["a"])
                .with(breaker(json!({ "max_pending_requests": 0 }))),
        )
        .cluster(
            cluster("no-connections")
                .endpoints(&["a"])
                .with(breaker(json!({ "max_connections": 0 }))),
        )
        .cluster(
            cluster("no-retries")
                .endpoints(&["a"])
                .with(breaker(json!({ "max_retries": 0 }))),
        )
        .cluster(
            cluster("one-request")
                .endpoints(&["a"])
                .with(breaker(json!({ "max_requests": 1 }))),
        )
        .cases(cases)
}

#[tokio::test]
async fn http_upstreams_that_do_not_serve() {
    let mut cases = Vec::new();
    for name in CLUSTERS {
        let path = format!("/{name}");
        cases.extend([
            get(&format!("GET {name}"), &path),
            post(&format!("POST {name}"), &path),
            case(&format!("HEAD {name}"), "HEAD", &path),
            get(&format!("GET {name} twice"), &path)
                .times(2)
                .over(&Path::SAME),
            post(&format!("gRPC {name}"), &path).grpc(),
        ]);
    }
    group("upstreams that do not serve", cases).run(OURS).await;
}

/// What an HTTP/1 upstream sends instead of an answer.
const NONSENSE: &[(&str, &str)] = &[
    ("no HTTP", "hello\\r\\n\\r\\n"),
    ("no status", "HTTP/1.1\\r\\n\\r\\n"),
    (
        "a status of four digits",
        "HTTP/1.1 2000 OK\\r\\ncontent-length: 0\\r\\n\\r\\n",
    ),
    (
        "a status of 999",
        "HTTP/1.1 999 Odd\\r\\ncontent-length: 0\\r\\n\\r\\n",
    ),
    ("no reason", "HTTP/1.1 200\\r\\ncontent-length: 2\\r\\n\\r\\nhi"),
    ("HTTP/1.0", "HTTP/1.0 200 OK\\r\\n\\r\\nhi"),
    (
        "HTTP/1.0 with a length",
        "HTTP/1.0 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi",
    ),
    ("HTTP/2.0", "HTTP/2.0 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n"),
    (
        "two lengths",
        "HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\ncontent-length: 3\\r\\n\\r\\nhi!",
    ),
    (
        "both lengths",
        "HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n2\\r\\nhi\\r\\n0\\r\\n\\r\\n",
    ),
    (
        "a bad chunk",
        "HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\nzz\\r\\nhi\\r\\n0\\r\\n\\r\\n",
    ),
    (
        "a space before the colon",
        "HTTP/1.1 200 OK\\r\\nx-a : 1\\r\\ncontent-length: 0\\r\\n\\r\\n",
    ),
    ("half a head", "HTTP/1.1 200 OK\\r\\nx-a"),
    (
        "less than its length",
        "HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\nhi",
    ),
    (
        "more than its length",
        "HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi, and more",
    ),
    (
        "204 with a body",
        "HTTP/1.1 204 No\\r\\ncontent-length: 2\\r\\n\\r\\nhi",
    ),
    ("an interim answer alone", "HTTP/1.1 103 Early\\r\\n\\r\\n"),
];

#[tokio::test]
async fn http_upstreams_that_break_off() {
    let from_h1 = [Path::H1_H1, Path::H2_H1];
    let mut cases: Vec<Case> = Vec::new();
    for wish in [
        "hangup",
        "refuse",
        "hangup=headers;chunked",
        "hangup=headers",
        "hangup=body;size=100",
        "hangup=body;size=100;chunked",
    ] {
        cases.extend([
            get(&format!("GET, {wish}"), "/").wish(wish),
            post(&format!("POST, {wish}"), "/").wish(wish),
            get(&format!("a good one first, {wish}"), "/")
                .wish(wish)
                .times(2)
                .over(&Path::SAME),
        ]);
    }
    for (name, answer) in NONSENSE {
        let ask = get(&format!("answers {name}"), "/").wish(&format!("bytes={answer}"));
        cases.push(four_digits(ask.over(&from_h1)));
    }
    group("upstreams that break off", cases).run(OURS).await;
}

/// A status that is none is no answer.
fn four_digits(case: Case) -> Case {
    if case.name != "answers a status of four digits" {
        return case;
    }
    let id = "Statuses of four digits";
    let body =
        "+body \"upstream connect error or disconnect/reset before headers. reset reason: protocol error\"";
    let from_h1 = [
        "-HTTP/1.1 2000 Unknown",
        "-content-length: 0",
        "+HTTP/1.1 502 Bad Gateway",
        "+content-length: 87",
        "+content-type: text/plain",
        "-x-envoy-upstream-service-time: <milliseconds>",
        "-body \"\"",
        body,
    ];
    let from_h2 = [
        "-cut: GOAWAY PROTOCOL_ERROR",
        "-connection ended: GOAWAY PROTOCOL_ERROR",
        "+HTTP/2 502",
        "+content-length: 87",
        "+content-type: text/plain",
        "+date: <date>",
        "+server: envoy",
        body,
        "+connection kept",
    ];
    case.deviates_over(&[Path::H1_H1], id, &from_h1)
        .deviates_over(&[Path::H2_H1], id, &from_h2)
}
