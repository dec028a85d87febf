//! Configuration entries of HTTP on a real Consul agent, and what a sidecar that reads them over the HTTP API
//! makes of them while they change. Where there is no `consul` on PATH each scenario says that it is skipped.
//!
//! What it does to requests is none of this module's business; that both sources make the same of one mesh is
//! held by `control/consul/equivalence_tests`.

use attache_tests::agent::Agent;
use attache_tests::free_port;
use attache_tests::process::Process;
use serde_json::{Value, json};

use crate::ATTACHE;

/// An agent with two services of HTTP.
async fn agent() -> Option<Agent> {
    let agent = Agent::dev(json!({ "default_intention_policy": "deny" })).await?;
    for (kind, name) in [("service-defaults", "web"), ("service-defaults", "api")] {
        entry(&agent, json!({ "Kind": kind, "Name": name, "Protocol": "http" })).await;
    }
    Some(agent)
}

async fn entry(agent: &Agent, entry: Value) {
    agent.api("PUT", "/v1/config", Some(entry)).await;
}

/// A registered service and its sidecar's process.
async fn sidecar(agent: &Agent, service: &str, upstreams: Value) -> Process {
    let proxy = json!({ "LocalServicePort": free_port(), "Upstreams": upstreams });
    let body = json!({
        "Name": service,
        "Address": "127.0.0.1",
        "Port": free_port(),
        "Connect": { "SidecarService": { "Port": free_port(), "Proxy": proxy } },
    });
    agent.api("PUT", "/v1/agent/service/register", Some(body)).await;
    let admin = format!("127.0.0.1:{}", free_port());
    let address = agent.http.to_string();
    // That a configuration was published is said at debug.
    let arguments = [
        "run",
        "--sidecar-for",
        service,
        "--admin-bind",
        &admin,
        "--http-addr",
        &address,
        "--log-level",
        "debug",
    ];
    Process::start(service, ATTACHE, &arguments.map(str::to_owned), &[])
}

fn intentions(sources: Value) -> Value {
    json!({ "Kind": "service-intentions", "Name": "api", "Sources": sources })
}

#[tokio::test]
async fn permissions_and_providers_are_followed_live() {
    let Some(agent) = agent().await else {
        return;
    };
    let provider = |keys: &str| {
        let keys = json!({ "Local": { "JWKS": keys } });
        json!({ "Kind": "jwt-provider", "Name": "okta", "Issuer": "okta", "JSONWebKeySet": keys })
    };
    entry(&agent, provider("e30=")).await;
    let get = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/a", "Methods": ["GET"] } });
    let rules = json!([{ "Name": "web", "Permissions": [get] }]);
    entry(&agent, intentions(rules)).await;
    let api = sidecar(&agent, "api", json!([])).await;
    let default = "default=\"default policy: deny\"";
    api.says(&[
        "the rules in force rules=2",
        default,
        "web -> api: permission 1: allow",
    ])
    .await;
    api.says(&["the first configuration is complete"]).await;

    let token = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/" }, "JWT": { "Providers": [{ "Name": "okta" }] } });
    let deny = json!({ "Action": "deny", "HTTP": { "PathExact": "/b" } });
    let rules = json!([{ "Name": "web", "Permissions": [deny, token] }]);
    entry(&agent, intentions(rules)).await;
    api.says(&["the rules in force rules=4", "permission 2: deny without its JWT"])
        .await;

    // Without an intention about anybody else the default stays Consul's word.
    agent.no_intentions("api").await;
    api.says(&["the rules in force rules=0", default]).await;
}

#[tokio::test]
async fn routes_are_followed_live_and_a_version_is_asked_for_them() {
    let Some(agent) = agent().await else {
        return;
    };
    let upstream = json!([{ "DestinationName": "api", "LocalBindPort": free_port() }]);
    let web = sidecar(&agent, "web", upstream).await;
    web.says(&["the first configuration is complete listeners=2 clusters=2"])
        .await;
    let router = |destination: Value| {
        let route = json!({ "Match": { "HTTP": { "PathPrefix": "/new" } }, "Destination": destination });
        json!({ "Kind": "service-router", "Name": "api", "Routes": [route] })
    };
    entry(&agent, router(json!({ "Service": "web" }))).await;
    web.says(&["a new configuration listeners=2 clusters=3"]).await;
    let version = agent.api("GET", "/v1/agent/version", None).await;
    if version["HumanVersion"] == "1.23.0-dev" {
        web.says(&["upstream api", "cut off the prefix that matched"])
            .await;
        entry(&agent, router(json!({ "Service": "web", "PrefixRewrite": "/x" }))).await;
        web.says(&["no longer so: upstream api", "cut off the prefix that matched"])
            .await;
    }
    agent.api("DELETE", "/v1/config/service-router/api", None).await;
    let said = web.lines();
    web.says_after(
        said.saturating_sub(3),
        &["a new configuration listeners=2 clusters=2"],
    )
    .await;
}
