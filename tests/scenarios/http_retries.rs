//! Which answers and failures are tried again, how often, with which headers and bodies.

use attache_tests::http::config::merge;
use attache_tests::http::{Case, Group, Manager, Path, case, cluster, get, post};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

/// A retry policy with short pauses.
fn policy(retry_on: &str, mut fields: Value) -> Value {
    fields["retry_on"] = retry_on.into();
    if fields.get("num_retries").is_none() {
        fields["num_retries"] = 2.into();
    }
    fields["retry_back_off"] = json!({ "base_interval": "0.001s", "max_interval": "0.002s" });
    fields
}

/// A route at `/<name>/` with this policy.
fn retrying(name: &str, retry_on: &str, fields: Value) -> Value {
    action(
        &format!("/{name}/"),
        json!({ "retry_policy": policy(retry_on, fields) }),
    )
}

/// The conditions by their path.
const CONDITIONS: [&str; 11] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "cancelled",
];

/// What an upstream does to the first request.
const FAILURES: [&str; 14] = [
    "status=500",
    "status=502",
    "status=503",
    "status=504",
    "status=409",
    "status=404",
    "status=429",
    "status=503;header=x-envoy-ratelimited: true",
    "status=503;header=x-envoy-overloaded: true",
    "status=404;header=x-again: yes",
    "hangup",
    "hangup=headers",
    "refuse",
    "close;status=503",
];

#[tokio::test]
async fn http_retry_conditions() {
    let codes = json!({ "retriable_status_codes": [404, 429], "retriable_headers": [
        { "name": "x-again", "string_match": { "exact": "yes" } },
    ]});
    let routes: Vec<Value> = CONDITIONS
        .iter()
        .map(|on| retrying(on, on, codes.clone()))
        .collect();
    let mut cases: Vec<Case> = Vec::new();
    for on in CONDITIONS {
        for failure in FAILURES {
            let ask = get(&format!("{on} after {failure}"), &format!("/{on}/x"));
            cases.push(ask.wish(&format!("{failure};fail=1")).over(&Path::SAME));
        }
    }
    Group::new("retry conditions")
        .manager(Manager::new("main").routes(json!(routes)))
        .cases(cases)
        .run(OURS)
        .await;
}

fn limits() -> Vec<Value> {
    let counted = |name: &str, number: Value| retrying(name, "5xx", json!({ "num_retries": number }));
    let mut on_host = action("/off/", json!({ "retry_policy": { "retry_on": "" } }));
    on_host["match"] = json!({ "prefix": "/off/" });
    vec![
        counted("0", json!(0)),
        counted("1", json!(1)),
        counted("3", json!(3)),
        action(
            "/default/",
            json!({ "retry_policy": { "retry_on": "5xx",
            "retry_back_off": { "base_interval": "0.001s" } } }),
        ),
        action("/none/", json!({})),
        on_host,
        retrying("unknown", "5xx,no-such-condition", json!({})),
        retrying(
            "two",
            "gateway-error,retriable-status-codes",
            json!({ "retriable_status_codes": [404] }),
        ),
        retrying(
            "only-marked",
            "5xx",
            json!({ "retriable_request_headers": [
                { "name": "x-may", "present_match": true },
            ]}),
        ),
        retrying("try", "5xx", json!({ "per_try_timeout": "0.2s" })),
        retrying("try-idle", "5xx,reset", json!({ "per_try_idle_timeout": "0.2s" })),
        action(
            "/refused/",
            json!({ "cluster": "c", "retry_policy": policy("connect-failure", json!({})) }),
        ),
        action(
            "/refused-5xx/",
            json!({ "cluster": "c", "retry_policy": policy("5xx", json!({})) }),
        ),
        action("/refused-none/", json!({ "cluster": "c" })),
        action(
            "/nowhere/",
            json!({ "cluster": "nowhere", "retry_policy": policy("5xx", json!({})) }),
        ),
        action(
            "/global/",
            json!({ "timeout": "0.3s", "retry_policy": policy("5xx", json!({ "num_retries": 10 })) }),
        ),
    ]
}

#[tokio::test]
async fn http_retry_limits() {
    let always = |name: &str, path: &str| get(name, path).wish("status=503;fail=99").over(&Path::SAME);
    let once = |name: &str, path: &str| get(name, path).wish("status=503;fail=1").over(&Path::SAME);
    let cases = [
        always("gives up without any", "/0/"),
        always("gives up after one", "/1/"),
        always("gives up after three", "/3/"),
        get("the last of three is good", "/3/").wish("status=503;fail=3"),
        always("one by default", "/default/"),
        once("no policy", "/none/"),
        once("an empty policy", "/off/"),
        once("a condition that nobody knows", "/unknown/"),
        get("two conditions", "/two/")
            .wish("status=404;fail=1")
            .over(&Path::SAME),
        get("two conditions, the other", "/two/")
            .wish("status=502;fail=1")
            .over(&Path::SAME),
        get("two conditions, neither", "/two/")
            .wish("status=500;fail=1")
            .over(&Path::SAME),
        once("without the mark", "/only-marked/"),
        once("with the mark", "/only-marked/").header("x-may", ""),
        get("a try takes too long", "/try/")
            .wish("never;fail=1")
            .over(&Path::SAME),
        get("every try takes too long", "/try/")
            .wish("never;fail=99")
            .over(&Path::SAME),
        get("a try says nothing", "/try-idle/")
            .wish("never;fail=1")
            .over(&Path::SAME),
        get("refused connections", "/refused/").over(&Path::SAME),
        get("refused connections are 5xx", "/refused-5xx/").over(&Path::SAME),
        get("refused connections without a policy", "/refused-none/").over(&Path::SAME),
        post("refused connections, with a body", "/refused/").over(&Path::SAME),
        get("no cluster", "/nowhere/").over(&Path::SAME),
        get("the route's time ends it", "/global/")
            .wish("never;fail=99")
            .over(&Path::SAME),
        case("HEAD", "HEAD", "/1/")
            .wish("status=503;fail=1")
            .over(&Path::SAME),
        post("POST with a body", "/1/").wish("status=503;fail=1"),
        post("POST in chunks", "/1/").chunked().wish("status=503;fail=1"),
        post("POST with trailers", "/1/")
            .trailer("x-sum", "1")
            .wish("status=503;fail=1")
            .over(&[Path::H2_H2]),
        post("POST of 100 KB", "/1/")
            .body("u".repeat(100_000))
            .wish("status=503;fail=1")
            .over(&Path::SAME),
        post("POST of 500 KB", "/1/")
            .body("u".repeat(500_000))
            .wish("status=503;fail=1")
            .over(&Path::SAME),
        post("POST, reset", "/1/").wish("hangup;fail=1").over(&Path::SAME),
        post("the first answer has a body", "/1/")
            .wish("status=503;size=50000;fail=1")
            .over(&Path::SAME),
        get("the first answer has trailers", "/1/")
            .wish("status=503;trailer=x-a: 1;fail=1")
            .over(&Path::SAME),
        get("an upstream that closes and refuses", "/1/")
            .wish("close;status=503;fail=1")
            .over(&Path::SAME),
        get("the answer breaks off in its body", "/1/")
            .wish("hangup=body;size=1000;fail=1")
            .over(&Path::SAME),
    ];
    Group::new("retry limits")
        .manager(Manager::new("main").routes(json!(limits())))
        .cluster(cluster("c").endpoints(&["closed"]))
        .cases(cases)
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_retry_attempt_counts() {
    let hosts = |fields: Value| {
        let mut host = json!({ "name": "all", "domains": ["*"],
            "retry_policy": policy("5xx", json!({})), "routes": [
            { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } },
            action("/nowhere", json!({ "cluster": "nowhere" })),
            action("/own", json!({ "retry_policy": policy("gateway-error", json!({ "num_retries": 1 })) })),
            action("/", json!({})),
        ]});
        merge(&mut host, fields);
        json!([host])
    };
    let kinds = [
        ("neither", json!({})),
        ("request", json!({ "include_request_attempt_count": true })),
        ("response", json!({ "include_attempt_count_in_response": true })),
        (
            "both",
            json!({ "include_request_attempt_count": true, "include_attempt_count_in_response": true }),
        ),
    ];
    let mut group = Group::new("attempt counts");
    for (name, fields) in kinds {
        let ask = |what: &str, path: &str| get(&format!("{name}, {what}"), path).on(name).over(&Path::SAME);
        group = group.manager(Manager::new(name).hosts(hosts(fields))).cases([
            ask("good at once", "/"),
            ask("good after one", "/").wish("status=503;fail=1"),
            ask("never good", "/").wish("status=503;fail=99"),
            ask("a claimed count", "/").header("x-envoy-attempt-count", "9"),
            ask("the app's count", "/").wish("header=x-envoy-attempt-count: 9"),
            ask("answered here", "/direct"),
            ask("no cluster", "/nowhere"),
            ask("the route's own policy", "/own").wish("status=503;fail=99"),
            ask("the route's own policy, not met", "/own").wish("status=500;fail=99"),
        ]);
    }
    group.run(OURS).await;
}

/// What a downstream may ask for.
fn wanted() -> Vec<Case> {
    let on = ("x-envoy-retry-on", "5xx");
    let ask = |name: &str, path: &str, headers: &[(&str, &str)], wish: &str| {
        let none = get(name, path).wish(wish).over(&Path::SAME);
        headers
            .iter()
            .fold(none, |case, (name, value)| case.header(name, value))
    };
    vec![
        ask("without a policy", "/", &[on], "status=500;fail=1"),
        ask("beside a policy", "/with", &[on], "status=500;fail=1"),
        ask(
            "more often",
            "/",
            &[on, ("x-envoy-max-retries", "3")],
            "status=500;fail=99",
        ),
        ask(
            "never",
            "/with",
            &[("x-envoy-max-retries", "0")],
            "status=503;fail=99",
        ),
        ask(
            "codes",
            "/",
            &[
                ("x-envoy-retry-on", "retriable-status-codes"),
                ("x-envoy-retriable-status-codes", "404,x,410"),
            ],
            "status=404;fail=1",
        ),
        ask(
            "header names",
            "/",
            &[
                ("x-envoy-retry-on", "retriable-headers"),
                ("x-envoy-retriable-header-names", "x-again"),
            ],
            "status=404;header=x-again: 1;fail=1",
        ),
        ask(
            "gRPC conditions",
            "/",
            &[("x-envoy-retry-grpc-on", "unavailable")],
            "header=grpc-status: 14;fail=1",
        ),
        ask(
            "a time for all",
            "/",
            &[("x-envoy-upstream-rq-timeout-ms", "200")],
            "delay=500",
        ),
        ask(
            "a time for each try",
            "/",
            &[on, ("x-envoy-upstream-rq-per-try-timeout-ms", "200")],
            "delay=500;fail=1",
        ),
        ask(
            "nonsense",
            "/",
            &[("x-envoy-retry-on", "what"), ("x-envoy-max-retries", "many")],
            "status=500;fail=1",
        ),
    ]
}

#[tokio::test]
async fn http_retries_asked_for_by_headers() {
    let policy = policy("gateway-error", json!({ "num_retries": 1 }));
    let routes = json!([
        action("/with", json!({ "retry_policy": policy })),
        action("/", json!({}))
    ]);
    Group::new("retries asked for")
        .manager(Manager::new("main").routes(routes.clone()))
        .manager(
            Manager::new("edge")
                .routes(routes)
                .with(json!({ "use_remote_address": true })),
        )
        .cases(wanted())
        .cases(wanted().into_iter().map(|mut case| {
            case.name = format!("at the edge, {}", case.name);
            case.header("x-forwarded-for", "8.8.8.8").on("edge")
        }))
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_retry_of_grpc() {
    let conditions = [
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    ];
    let routes: Vec<Value> = conditions
        .iter()
        .map(|on| retrying(on, on, json!({ "num_retries": 1 })))
        .collect();
    let mut cases = Vec::new();
    for on in conditions {
        for status in [1, 2, 4, 8, 13, 14] {
            let ask = |how: &str| {
                post(
                    &format!("{on} after status {status} in {how}"),
                    &format!("/{on}/x"),
                )
                .grpc()
            };
            cases.push(ask("headers").wish(&format!(
                "no-length;header=content-type: application/grpc;header=grpc-status: {status};fail=1"
            )));
        }
        let ask = post(&format!("{on} after a status in trailers"), &format!("/{on}/x")).grpc();
        cases.push(ask.wish("header=content-type: application/grpc;trailer=grpc-status: 14;fail=1"));
    }
    Group::new("retries of gRPC")
        .manager(Manager::new("main").routes(json!(routes)))
        .cases(cases)
        .run(OURS)
        .await;
}
