//! Bounds that are kept: circuit breakers under requests at once, ejected endpoints, local rate limits.

use attache_tests::http::{Case, Group, Manager, Path, cluster, get, post};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

/// A route to each of these clusters, by a prefix of its name.
fn routes(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| action(&format!("/{name}/"), json!({ "cluster": name })))
        .collect()
}

#[tokio::test]
async fn http_circuit_breakers() {
    let bounds = [
        ("one-request", json!({ "max_requests": 1 })),
        ("three-requests", json!({ "max_requests": 3 })),
        ("one-connection", json!({ "max_connections": 1 })),
        (
            "one-pending",
            json!({ "max_connections": 1, "max_pending_requests": 1 }),
        ),
        (
            "no-pending",
            json!({ "max_connections": 1, "max_pending_requests": 0 }),
        ),
        ("high-only", json!({ "priority": "HIGH", "max_requests": 1 })),
    ];
    let names = bounds.each_ref().map(|(name, _)| *name);
    let mut group = Group::new("circuit breakers").manager(Manager::new("main").routes(routes(&names)));
    for (name, bound) in bounds {
        let fields = json!({ "circuit_breakers": { "thresholds": [bound] } });
        let path = format!("/{name}/");
        let at_once = |what: &str, number: usize| {
            get(&format!("{name}, {what}"), &path)
                .wish("delay=150")
                .at_once(number)
        };
        group = group
            .cluster(cluster(name).endpoints(&["a"]).with(fields))
            .cases([
                at_once("one", 1),
                at_once("two at once", 2),
                at_once("six at once", 6),
                get(&format!("{name}, one after the other"), &path).times(3),
            ]);
    }
    group.run(OURS).await;
}

/// Ejects for good, every endpoint if it must, as Consul configures it.
fn ejecting(fields: Value) -> Value {
    let mut detection = json!({ "base_ejection_time": "600s", "max_ejection_time": "600s", "interval": "600s",
        "max_ejection_percent": 100 });
    attache_tests::http::config::merge(&mut detection, fields);
    json!({ "outlier_detection": detection, "common_lb_config": { "healthy_panic_threshold": {} } })
}

#[tokio::test]
async fn http_ejected_endpoints() {
    let kinds = [
        (
            "five",
            json!({ "consecutive_5xx": 3, "enforcing_consecutive_5xx": 100 }),
        ),
        (
            "gateway",
            json!({ "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0 }),
        ),
        (
            "watched-only",
            json!({ "consecutive_5xx": 1, "enforcing_consecutive_5xx": 0 }),
        ),
        ("defaults", json!({})),
    ];
    let mut names: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
    names.extend(["refused", "unhealthy", "none-in-panic"]);
    let unhealthy = json!([{ "lb_endpoints": [{ "health_status": "UNHEALTHY", "endpoint": {
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": "@a" } } } }] }]);
    let threshold = json!({ "common_lb_config": { "healthy_panic_threshold": {} } });
    let assigned = json!({ "load_assignment": { "endpoints": unhealthy } });
    let refused = ejecting(json!({ "consecutive_5xx": 2 }));
    let mut group = Group::new("ejected endpoints")
        .manager(Manager::new("main").routes(routes(&names)))
        .cluster(cluster("refused").endpoints(&["closed"]).with(refused))
        .cluster(cluster("unhealthy").with(assigned.clone()).with(threshold))
        .cluster(cluster("none-in-panic").with(assigned));
    for (name, fields) in kinds {
        group = group.cluster(cluster(name).endpoints(&["a"]).with(ejecting(fields)));
    }
    let again = |what: &str, path: &str, wish: &str, times: usize| {
        get(what, path).wish(wish).times(times).over(&Path::SAME)
    };
    // The workers are told of an ejection a moment later.
    let ejected = |what: &str, path: &str| again(what, path, "", 2).until("no healthy upstream");
    let cases: Vec<Case> = vec![
        again("500s between good ones", "/five/", "status=500;fail=2", 4),
        again("500s, as many as it takes", "/five/", "status=500", 3),
        ejected("ejected by 500s", "/five/"),
        again("500s are no gateway's", "/gateway/", "status=500", 4),
        again("502s, as many as it takes", "/gateway/", "status=502", 2),
        ejected("ejected by 502s", "/gateway/"),
        again("hang-ups, as many as it takes", "/defaults/", "hangup", 5),
        ejected("ejected by hang-ups", "/defaults/"),
        again("only watched", "/watched-only/", "status=500", 4),
        again("refused connections", "/refused/", "", 2),
        ejected("ejected by refused connections", "/refused/"),
        again("none is healthy", "/unhealthy/", "", 1),
        post("none is healthy, POST", "/unhealthy/"),
        post("none is healthy, gRPC", "/unhealthy/").grpc(),
        again("none is healthy, but all are taken", "/none-in-panic/", "", 2),
    ];
    group.cases(cases).run(OURS).await;
}

/// A manager with a bucket of two tokens that is never filled again.
fn bucket(name: &str, more: Value) -> Manager {
    let all =
        json!({ "default_value": { "numerator": 100, "denominator": "HUNDRED" }, "runtime_key": "all" });
    let mut fields = json!({ "stat_prefix": "local", "filter_enabled": all, "filter_enforced": all,
        "token_bucket": { "max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "600s" } });
    attache_tests::http::config::merge(&mut fields, more);
    Manager::new(name).filter("local_ratelimit", "local_ratelimit.v3.LocalRateLimit", fields)
}

#[tokio::test]
async fn http_local_rate_limits() {
    let never =
        json!({ "default_value": { "numerator": 0, "denominator": "HUNDRED" }, "runtime_key": "none" });
    let added = json!({ "response_headers_to_add": [{ "header": { "key": "x-limited", "value": "yes" } }] });
    let managers = [
        bucket("plain", json!({})),
        bucket("dressed", added),
        bucket(
            "another status",
            json!({ "status": { "code": "ServiceUnavailable" } }),
        ),
        bucket("not enforced", json!({ "filter_enforced": never })),
        bucket("not enabled", json!({ "filter_enabled": never })),
        bucket("for gRPC", json!({})),
        bucket(
            "gRPC as it is",
            json!({ "rate_limited_as_resource_exhausted": true }),
        ),
    ];
    let mut group = Group::new("local rate limits");
    for manager in managers {
        let name = manager.name.clone();
        let four = if name.contains("gRPC") {
            post(&format!("{name}, four"), "/pkg.Svc/Call").grpc()
        } else {
            get(&format!("{name}, four"), "/").over(&Path::SAME)
        };
        group = group.manager(manager).cases([four.times(4).on(&name)]);
    }
    group.run(OURS).await;
}
