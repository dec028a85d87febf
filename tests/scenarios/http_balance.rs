//! Which endpoint takes a request: by hash Envoy's very one, by chance with Envoy's shares.

use std::collections::BTreeMap;
use std::sync::Arc;

use attache_tests::envoy::Program;
use attache_tests::http::case::{Ask, Version};
use attache_tests::http::config::{Cluster, merge};
use attache_tests::http::{Bed, Manager, Upstreams, cluster, h1};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

const ENDPOINTS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Requests of each kind.
const REQUESTS: usize = 1000;

async fn upstreams() -> Arc<Upstreams> {
    Arc::new(Upstreams::start(&ENDPOINTS.map(str::to_owned)).await)
}

/// Who answers each of these requests, one after the other on a connection.
async fn answers(bed: &Bed, asks: impl Iterator<Item = Ask>) -> Vec<String> {
    let mut connection = h1::Connection::open(bed.address("main", Version::H1)).await;
    let mut names = Vec::new();
    for ask in asks {
        let got = connection.ask(&ask).await;
        let last = got.last().unwrap();
        assert_eq!(last.status(), 200, "{} of {}: {last:?}", ask.method, ask.path);
        names.push(String::from_utf8(last.body.clone()).unwrap());
    }
    names
}

/// A cluster of all endpoints that balances so.
fn balanced(name: &str, policy: &str, fields: Value) -> Cluster {
    let cluster = cluster(name).endpoints(&ENDPOINTS);
    cluster.with(json!({ "lb_policy": policy })).with(fields)
}

/// Clusters that balance by hash.
fn hashing() -> Vec<Cluster> {
    let ring = |fields: Value| json!({ "ring_hash_lb_config": fields });
    let weighted = [1, 2, 3, 4, 10];
    vec![
        balanced("ring", "RING_HASH", json!({})),
        balanced(
            "small-ring",
            "RING_HASH",
            ring(json!({ "minimum_ring_size": 10, "maximum_ring_size": 20 })),
        ),
        balanced(
            "large-ring",
            "RING_HASH",
            ring(json!({ "minimum_ring_size": 5000, "maximum_ring_size": 10000 })),
        ),
        balanced("weighted-ring", "RING_HASH", json!({})).weights(&weighted),
        balanced("maglev", "MAGLEV", json!({})),
        balanced(
            "small-maglev",
            "MAGLEV",
            json!({ "maglev_lb_config": { "table_size": 1009 } }),
        ),
        balanced("weighted-maglev", "MAGLEV", json!({})).weights(&weighted),
    ]
}

/// What is hashed, by the first part of the path.
fn policies() -> Vec<(&'static str, Value)> {
    let header = json!({ "header": { "header_name": "x-key" } });
    let cookie = json!({ "cookie": { "name": "session" } });
    let query = json!({ "query_parameter": { "name": "q" } });
    let mut first = header.clone();
    first["terminal"] = true.into();
    let rewritten = json!({ "header": { "header_name": "x-key", "regex_rewrite": {
        "pattern": { "regex": "^key-([0-9]*)[0-9]$" }, "substitution": "\\1" } } });
    vec![
        ("header", json!([header])),
        ("cookie", json!([cookie])),
        ("query", json!([query])),
        ("header-and-cookie", json!([header, cookie])),
        ("header-then-query", json!([first, query])),
        ("rewritten", json!([rewritten])),
    ]
}

/// The request with this key for a kind of hash and a cluster.
fn keyed(kind: &str, cluster: &str, key: usize) -> Ask {
    let mut ask = Ask::new("GET", &format!("/{kind}/{cluster}/?a=b&q=key-{key}"));
    ask.headers.push(("x-key".to_owned(), format!("key-{key}")));
    ask.headers
        .push(("cookie".to_owned(), format!("other=x; session=key-{key}; more=y")));
    ask
}

#[tokio::test]
async fn http_hashes_choose_envoys_endpoint() {
    let clusters = hashing();
    let mut routes = Vec::new();
    for (kind, policy) in policies() {
        for cluster in &clusters {
            let fields = json!({ "cluster": cluster.name, "hash_policy": policy });
            routes.push(action(&format!("/{kind}/{}/", cluster.name), fields));
        }
    }
    let managers = [Manager::new("main").routes(json!(routes))];
    let upstreams = upstreams().await;
    let beds = [Program::Envoy, OURS]
        .map(|program| Bed::start(program, Arc::clone(&upstreams), &managers, &clusters));
    let [theirs, ours] = beds;
    let (Some(theirs), Some(ours)) = tokio::join!(theirs, ours) else {
        return;
    };
    for cluster in &clusters {
        for (kind, _) in policies() {
            // Every key by a header; what else is hashed is found out by fewer.
            let keys = if kind == "header" { REQUESTS } else { 100 };
            let asks = || (0..keys).map(|key| keyed(kind, &cluster.name, key));
            let (theirs, ours) = tokio::join!(answers(&theirs, asks()), answers(&ours, asks()));
            let other: Vec<usize> = (0..keys)
                .filter(|&key| theirs.get(key) != ours.get(key))
                .collect();
            let used: BTreeMap<&String, usize> = counts(&theirs);
            assert!(
                used.len() > 1,
                "Envoy sends all to one by {kind} in {}",
                cluster.name
            );
            assert!(
                other.is_empty(),
                "{} of {keys} keys go elsewhere by {kind} in {}: {:?}",
                other.len(),
                cluster.name,
                other.first()
            );
        }
    }
}

fn counts(names: &[String]) -> BTreeMap<&String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Clusters and routes by chance, each with the shares of the endpoints in the mean.
fn by_chance() -> Vec<(&'static str, Value, [f64; 5])> {
    let even = [0.2; 5];
    let weights = [0.05, 0.1, 0.15, 0.2, 0.5];
    let split = json!({ "weighted_clusters": { "clusters": [
        { "name": "only-a", "weight": 8000 }, { "name": "only-b", "weight": 2000 },
    ]}});
    let three = json!({ "weighted_clusters": { "clusters": [
        { "name": "only-a", "weight": 1 }, { "name": "only-b", "weight": 1 }, { "name": "only-c", "weight": 2 },
    ]}});
    vec![
        ("round-robin", json!({ "cluster": "round-robin" }), even),
        ("least-request", json!({ "cluster": "least-request" }), even),
        ("five-choices", json!({ "cluster": "five-choices" }), even),
        ("random", json!({ "cluster": "random" }), even),
        (
            "weighted-round-robin",
            json!({ "cluster": "weighted-round-robin" }),
            weights,
        ),
        (
            "weighted-least-request",
            json!({ "cluster": "weighted-least-request" }),
            weights,
        ),
        ("ring-without-a-key", json!({ "cluster": "ring" }), [f64::NAN; 5]),
        ("split", split, [0.8, 0.2, 0.0, 0.0, 0.0]),
        ("split-in-three", three, [0.25, 0.25, 0.5, 0.0, 0.0]),
    ]
}

#[tokio::test]
async fn http_loads_have_envoys_shares() {
    let weighted = [1, 2, 3, 4, 10];
    let choices = json!({ "least_request_lb_config": { "choice_count": 5 } });
    let clusters = [
        balanced("round-robin", "ROUND_ROBIN", json!({})),
        balanced("least-request", "LEAST_REQUEST", json!({})),
        balanced("five-choices", "LEAST_REQUEST", choices),
        balanced("random", "RANDOM", json!({})),
        balanced("weighted-round-robin", "ROUND_ROBIN", json!({})).weights(&weighted),
        balanced("weighted-least-request", "LEAST_REQUEST", json!({})).weights(&weighted),
        balanced("ring", "RING_HASH", json!({})),
        cluster("only-a").endpoints(&["a"]),
        cluster("only-b").endpoints(&["b"]),
        cluster("only-c").endpoints(&["c"]),
    ];
    let routes: Vec<Value> = by_chance()
        .into_iter()
        .map(|(name, mut fields, _)| {
            merge(&mut fields, json!({ "timeout": "5s" }));
            action(&format!("/{name}/"), fields)
        })
        .collect();
    let managers = [Manager::new("main").routes(json!(routes))];
    let upstreams = upstreams().await;
    let mut wrong = Vec::new();
    for program in [Program::Envoy, OURS] {
        let Some(bed) = Bed::start(program, Arc::clone(&upstreams), &managers, &clusters).await else {
            continue;
        };
        for (name, _, shares) in by_chance() {
            let asks = (0..REQUESTS).map(|_| Ask::new("GET", &format!("/{name}/")));
            let answers = answers(&bed, asks).await;
            let got = counts(&answers);
            for (endpoint, share) in ENDPOINTS.iter().zip(shares) {
                let got = got.get(&(*endpoint).to_owned()).copied().unwrap_or(0);
                if !within_four_sigma(got, share) {
                    wrong.push(format!(
                        "{program:?} {name}: {got} of {REQUESTS} to {endpoint}, not {share}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether `got` of [`REQUESTS`] is what a share of them is like; no number is any.
#[expect(clippy::cast_precision_loss, reason = "a thousand requests")]
fn within_four_sigma(got: usize, share: f64) -> bool {
    let requests = REQUESTS as f64;
    let sigma = (requests * share * (1.0 - share)).sqrt();
    share.is_nan() || (got as f64 - requests * share).abs() <= 4.0 * sigma
}
