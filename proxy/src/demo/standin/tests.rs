//! The stand-in over its own port, as a client of Consul meets it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Action, Fault, Health, IssueOptions, KeyType, Registration, Sidecar, StandIn, StandInOptions};
use crate::demo::client::{ClientError, Consul};

struct Got {
    status: u16,
    index: u64,
    headers: hyper::HeaderMap,
    body: Value,
}

async fn start(options: StandInOptions) -> StandIn {
    StandIn::start(options).await.unwrap()
}

async fn ask(standin: &StandIn, path: &str) -> Result<Got, ClientError> {
    ask_as(standin, path, None).await
}

async fn ask_as(standin: &StandIn, path: &str, token: Option<&str>) -> Result<Got, ClientError> {
    let consul = Consul::new(&standin.address().to_string(), token.map(str::to_owned)).unwrap();
    let answer = consul.get(path).await?;
    let index = answer.headers.get("x-consul-index");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    Ok(Got {
        status: answer.status,
        index: index.map_or(0, |it| it.to_str().unwrap().parse().unwrap()),
        headers: answer.headers.clone(),
        body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
    })
}

async fn get(standin: &StandIn, path: &str) -> Got {
    ask(standin, path).await.unwrap()
}

/// Starts a blocking query and comes back once the stand-in has it waiting.
async fn wait_on(standin: &StandIn, path: String) -> tokio::task::JoinHandle<Got> {
    let before = standin.waiting("/");
    let handle = standin.clone();
    let asked = tokio::spawn(async move { get(&handle, &path).await });
    while standin.waiting("/") == before {
        tokio::task::yield_now().await;
    }
    asked
}

/// Lets the server turn its loop by another exchange, after which the query still waits.
async fn still_waiting(standin: &StandIn) {
    get(standin, "/v1/status/leader").await;
    assert_eq!(standin.waiting("/"), 1);
}

fn mesh(standin: &StandIn) -> (String, String) {
    let api = standin.register_sidecar("api", 9001, Sidecar::new()).unwrap();
    let web = Registration::new("web", 9002)
        .id("web-1")
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(21_003).upstream("api", 8080));
    (api, standin.register(&web).unwrap())
}

#[tokio::test]
async fn a_sidecar_gets_consuls_defaults() {
    let standin = start(StandInOptions::default()).await;
    let (api, web) = mesh(&standin);
    assert_eq!(
        (api.as_str(), web.as_str()),
        ("api-sidecar-proxy", "web-1-sidecar-proxy")
    );
    let got = get(&standin, "/v1/agent/service/web-1-sidecar-proxy").await;
    let mut body = got.body;
    let hash = body["ContentHash"].take();
    assert_eq!(got.headers["x-consul-contenthash"], hash.as_str().unwrap());
    let address = json!({ "Address": "127.0.0.1", "Port": 21003 });
    assert_eq!(
        body,
        json!({
            "Kind": "connect-proxy", "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy",
            "Tags": [], "Meta": {}, "Port": 21003, "Address": "127.0.0.1",
            "TaggedAddresses": {
                "consul-virtual": { "Address": "240.0.0.2", "Port": 21003 },
                "lan_ipv4": address, "wan_ipv4": address,
            },
            "Weights": { "Passing": 1, "Warning": 1 }, "EnableTagOverride": false,
            "ContentHash": null,
            "Proxy": {
                "DestinationServiceName": "web", "DestinationServiceID": "web-1",
                "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 9002,
                "Upstreams": [{
                    "DestinationType": "service", "DestinationName": "api",
                    "LocalBindPort": 8080, "MeshGateway": {},
                }],
                "MeshGateway": {}, "Expose": {},
            },
            "Datacenter": "dc1",
        })
    );
    let chosen = get(&standin, "/v1/agent/service/api-sidecar-proxy").await;
    assert_eq!(chosen.body["Port"], 21_000);
    let unknown = get(&standin, "/v1/agent/service/nope").await;
    assert_eq!(
        (unknown.status, unknown.body),
        (404, json!("unknown service ID: nope"))
    );
}

#[tokio::test]
async fn only_the_answer_that_changes_wakes() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    let first = get(&standin, "/v1/health/connect/api?passing=1").await;
    assert_eq!(first.body.as_array().unwrap().len(), 1);
    let path = format!("/v1/health/connect/api?passing=1&index={}&wait=5m", first.index);
    let asked = wait_on(&standin, path).await;
    standin.register_service("unrelated", 1).unwrap();
    standin.set_intention("web", "api", Action::Deny);
    still_waiting(&standin).await;
    assert_eq!(standin.waiting("/v1/health/connect/api"), 1);
    standin.set_health("api-sidecar-proxy", Health::Critical);
    let second = asked.await.unwrap();
    assert!(second.index > first.index);
    assert_eq!((second.body, standin.waiting("/")), (json!([]), 0));
}

#[tokio::test]
async fn a_sidecar_is_no_healthier_than_its_service() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    standin.set_health("api", Health::Critical);
    let passing = get(&standin, "/v1/health/connect/api?passing=1").await;
    let all = get(&standin, "/v1/health/connect/api").await;
    assert_eq!(passing.body, json!([]));
    assert_eq!(all.body[0]["Checks"][1]["Status"], "critical");
    standin.deregister("api");
    assert_eq!(get(&standin, "/v1/health/connect/api").await.body, json!([]));
}

#[tokio::test]
async fn a_wait_ends_after_its_time_with_the_same_index() {
    let standin = start(StandInOptions::default()).await;
    let roots = get(&standin, "/v1/agent/connect/ca/roots").await;
    for index in [roots.index, roots.index + 1_000] {
        let since = Instant::now();
        let path = format!("/v1/agent/connect/ca/roots?index={index}&wait=160ms");
        assert_eq!(get(&standin, &path).await.index, roots.index);
        assert!(since.elapsed() >= Duration::from_millis(160));
    }
    for (query, text) in [
        ("index=x", "Invalid index"),
        ("index=1&wait=x", "Invalid wait time"),
    ] {
        let refused = get(&standin, &format!("/v1/agent/connect/ca/roots?{query}")).await;
        assert_eq!((refused.status, refused.body), (400, json!(text)));
    }
}

#[tokio::test]
async fn an_agents_service_blocks_on_its_hash() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    let path = "/v1/agent/service/web-1-sidecar-proxy";
    let first = get(&standin, path).await;
    let hash = first.body["ContentHash"].as_str().unwrap().to_owned();
    let asked = wait_on(&standin, format!("{path}?hash={hash}&wait=5m")).await;
    let upstreams = Sidecar::new().port(21_003).upstream("api", 8081);
    let changed = Registration::new("web", 9002).id("web-1").sidecar(upstreams);
    standin.register(&changed).unwrap();
    let second = asked.await.unwrap();
    assert_eq!(second.body["Proxy"]["Upstreams"][0]["LocalBindPort"], 8081);
    assert_ne!(second.body["ContentHash"], first.body["ContentHash"]);
}

#[tokio::test]
async fn a_leaf_is_renewed_before_it_ends() {
    let options = StandInOptions {
        leaf_ttl: Duration::from_secs(1),
        ..StandInOptions::default()
    };
    let standin = start(options).await;
    let path = "/v1/agent/connect/ca/leaf/api";
    let first = get(&standin, path).await;
    let since = Instant::now();
    let second = get(&standin, &format!("{path}?index={}", first.index)).await;
    let waited = since.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_millis(1_500));
    assert!(second.index > first.index);
    assert_ne!(second.body["CertPEM"], first.body["CertPEM"]);
    assert_eq!(second.body["ServiceURI"], json!(standin.service_uri("api")));
}

#[tokio::test]
async fn rotating_leaf_and_root_wakes_their_queries() {
    let standin = start(StandInOptions::default()).await;
    let leaf = get(&standin, "/v1/agent/connect/ca/leaf/api").await;
    let path = format!("/v1/agent/connect/ca/leaf/api?index={}", leaf.index);
    let asked = wait_on(&standin, path).await;
    standin.rotate_leaf("other").unwrap();
    still_waiting(&standin).await;
    standin.rotate_leaf("api").unwrap();
    assert_ne!(
        asked.await.unwrap().body["SerialNumber"],
        leaf.body["SerialNumber"]
    );
    let roots = get(&standin, "/v1/agent/connect/ca/roots").await;
    let path = format!("/v1/agent/connect/ca/roots?index={}", roots.index);
    let asked = wait_on(&standin, path).await;
    standin.rotate_root().unwrap();
    let both = asked.await.unwrap().body;
    assert_eq!(both["Roots"].as_array().unwrap().len(), 2);
    assert_eq!(both["ActiveRootID"], both["Roots"][1]["ID"]);
    assert_eq!(both["Roots"][0]["Active"], json!(false));
}

#[tokio::test]
async fn intentions_are_found_by_destination() {
    let standin = start(StandInOptions::default()).await;
    let path = "/v1/connect/intentions/match?by=destination&name=api";
    let none = get(&standin, path).await;
    assert_eq!(none.body, json!({ "api": null }));
    let asked = wait_on(&standin, format!("{path}&index={}", none.index)).await;
    standin.set_intention("*", "*", Action::Allow);
    let wild = asked.await.unwrap();
    assert_eq!(wild.body["api"][0]["Precedence"], 5);
    let asked = wait_on(&standin, format!("{path}&index={}", wild.index)).await;
    standin.set_intention("web", "db", Action::Deny);
    still_waiting(&standin).await;
    standin.set_intention("web", "api", Action::Deny);
    let exact = asked.await.unwrap().body;
    assert_eq!(exact["api"][0]["SourceName"], "web");
    assert_eq!(exact["api"][1]["SourceName"], "*");
}

#[tokio::test]
async fn authorize_follows_intentions_and_the_default_policy() {
    let options = StandInOptions {
        default_policy: Action::Deny,
        ..StandInOptions::default()
    };
    let standin = start(options).await;
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let caller = standin.service_uri("web");
    let verdict = async || {
        let body = json!({ "Target": "api", "ClientCertURI": caller, "ClientCertSerial": "0" });
        let answer = consul.send("POST", "/v1/agent/connect/authorize", &body);
        answer.await.unwrap().json().unwrap()
    };
    let unnamed = verdict().await;
    assert_eq!(
        unnamed,
        json!({ "Authorized": false, "Reason": "Default intention policy" })
    );
    standin.set_intention("web", "api", Action::Allow);
    assert_eq!(verdict().await["Authorized"], json!(true));
    let header = get(&standin, "/v1/agent/self").await.headers;
    assert_eq!(header["x-consul-default-acl-policy"], "allow");
}

#[tokio::test]
async fn comes_back_with_lower_indexes_and_the_same_data() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    for _ in 0..50 {
        standin.set_intention("web", "api", Action::Allow);
    }
    let paths = [
        "/v1/health/connect/api?passing=1",
        "/v1/connect/intentions/match?by=destination&name=api",
        "/v1/agent/connect/ca/leaf/web",
        "/v1/agent/connect/ca/roots",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(get(&standin, path).await);
    }
    let asked = {
        let path = format!("{}&index={}", paths[0], before[0].index);
        let handle = standin.clone();
        tokio::spawn(async move { ask(&handle, &path).await.is_err() })
    };
    while standin.waiting("/") == 0 {
        tokio::task::yield_now().await;
    }
    standin.stop().await;
    assert!(asked.await.unwrap(), "a waiting query is cut");
    assert_eq!((standin.open_connections(), standin.waiting("/")), (0, 0));
    assert!(ask(&standin, paths[0]).await.is_err());
    standin.resume(true).await.unwrap();
    for (path, before) in paths.iter().zip(before) {
        let after = get(&standin, path).await;
        assert!(after.index < before.index, "{path}");
        assert_eq!(after.body["CertPEM"], before.body["CertPEM"]);
        assert_eq!(after.body[0]["Service"]["ID"], before.body[0]["Service"]["ID"]);
    }
}

#[tokio::test]
async fn an_empty_restart_brings_another_authority() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    let domain = standin.trust_domain();
    standin.stop().await;
    standin.replace_authority(KeyType::P384).unwrap();
    standin.resume(false).await.unwrap();
    assert_ne!(standin.trust_domain(), domain);
    assert_eq!(get(&standin, "/v1/agent/services").await.body, json!({}));
    let roots = get(&standin, "/v1/agent/connect/ca/roots").await.body;
    assert_eq!(roots["TrustDomain"], json!(standin.trust_domain()));
    let issued = standin.issue("api", &IssueOptions::default()).unwrap();
    assert!(issued.uri.contains(&standin.trust_domain()));
}

#[tokio::test]
async fn a_token_is_required_and_must_be_known() {
    let options = StandInOptions {
        token: Some("secret".to_owned()),
        ..StandInOptions::default()
    };
    let standin = start(options).await;
    let path = "/v1/agent/services";
    let text = async |token| {
        let got = ask_as(&standin, path, token).await.unwrap();
        (got.status, got.body)
    };
    assert_eq!(text(None).await, (403, json!("Permission denied")));
    assert_eq!(text(Some("other")).await, (403, json!("ACL not found")));
    assert_eq!(text(Some("secret")).await, (200, json!({})));
    assert_eq!(get(&standin, "/v1/agent/connect/ca/roots").await.status, 200);
    standin.set_token(Some("new".to_owned()));
    assert_eq!(text(Some("secret")).await.0, 403);
}

#[tokio::test]
async fn faults_go_as_they_came() {
    let standin = start(StandInOptions::default()).await;
    let path = "/v1/agent/connect/ca/roots";
    let index = get(&standin, path).await.index;
    let asked = wait_on(&standin, format!("{path}?index={index}")).await;
    standin.fail_path_with("/v1/agent/connect", Some(Fault::Status(500)));
    assert_eq!(asked.await.unwrap().status, 500);
    assert_eq!(get(&standin, "/v1/agent/services").await.status, 200);
    standin.fail_path_with("/v1/agent/connect", Some(Fault::Truncated));
    assert!(ask(&standin, path).await.is_err());
    standin.fail_path_with("/v1/agent/connect", Some(Fault::Rubbish));
    assert!(get(&standin, path).await.body.is_string());
    standin.fail_path_with("/v1/agent/connect", None);
    standin.fail_with(Some(Fault::Slow(Duration::from_millis(50))));
    let since = Instant::now();
    assert_eq!(get(&standin, path).await.status, 200);
    assert!(since.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn overrides_answer_for_their_path_and_query() {
    let standin = start(StandInOptions::default()).await;
    let redirect = json!({ "Chain": { "ServiceName": "api" } });
    let plain = get(&standin, "/v1/discovery-chain/api").await;
    assert_eq!(
        plain.body["Chain"]["StartNode"],
        "resolver:api.default.default.dc1"
    );
    standin.set_discovery_chain("api", redirect.clone());
    let first = get(&standin, "/v1/discovery-chain/api").await;
    assert_eq!(first.body, redirect);
    standin.override_path(
        "/v1/health/connect/api?dc=dc2",
        500,
        json!("No path to datacenter"),
    );
    let far = get(&standin, "/v1/health/connect/api?passing=1&dc=dc2").await;
    assert_eq!((far.status, far.body), (500, json!("No path to datacenter")));
    assert_eq!(get(&standin, "/v1/health/connect/api").await.body, json!([]));
    standin.clear_override("/v1/discovery-chain/api");
    assert_eq!(get(&standin, "/v1/discovery-chain/api").await.body, plain.body);
}

#[tokio::test]
async fn connections_above_the_limit_are_answered_with_429() {
    let options = StandInOptions {
        max_connections: Some(1),
        ..StandInOptions::default()
    };
    let standin = start(options).await;
    let index = get(&standin, "/v1/agent/connect/ca/roots").await.index;
    while standin.open_connections() > 0 {
        tokio::task::yield_now().await;
    }
    let path = format!("/v1/agent/connect/ca/roots?index={index}");
    let asked = wait_on(&standin, path).await;
    // The server may close before it has read the request: either way it is no success.
    if let Ok(refused) = ask(&standin, "/v1/agent/services").await {
        assert_eq!(refused.status, 429);
    }
    standin.rotate_root().unwrap();
    asked.await.unwrap();
}

#[tokio::test]
async fn config_entries_are_written_read_and_removed() {
    let standin = start(StandInOptions::default()).await;
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let missing = get(&standin, "/v1/config/mesh/mesh").await;
    assert_eq!(
        missing.body,
        json!("Config entry not found for \"mesh\" / \"mesh\"")
    );
    let asked = wait_on(&standin, format!("/v1/config/mesh/mesh?index={}", missing.index)).await;
    let mesh = json!({ "Kind": "mesh", "TLS": { "Incoming": { "TLSMinVersion": "TLSv1_3" } } });
    consul.send("PUT", "/v1/config", &mesh).await.unwrap();
    assert_eq!(asked.await.unwrap().body["TLS"], mesh["TLS"]);
    let entry = json!({ "Kind": "service-intentions", "Name": "api",
        "Sources": [{ "Name": "web", "Action": "deny" }] });
    consul.send("PUT", "/v1/config", &entry).await.unwrap();
    let shown = get(&standin, "/v1/config/service-intentions/api").await.body;
    assert_eq!(shown["Sources"][0]["Precedence"], 9);
    let gone = "/v1/config/service-intentions/api";
    consul.send("DELETE", gone, &Value::Null).await.unwrap();
    assert_eq!(get(&standin, gone).await.status, 404);
}

#[tokio::test]
async fn requests_are_counted_and_prepared_queries_answered() {
    let standin = start(StandInOptions::default()).await;
    mesh(&standin);
    standin.set_prepared_query("near", "api");
    let got = get(&standin, "/v1/query/near/execute?connect=true").await;
    assert_eq!(got.body["Nodes"][0]["Service"]["ID"], "api-sidecar-proxy");
    assert_eq!(get(&standin, "/v1/query/nope/execute").await.status, 404);
    assert_eq!((standin.requests("/v1/query"), standin.requests("/")), (2, 2));
}
