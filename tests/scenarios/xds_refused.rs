//! What a sidecar in Envoy's place refuses to carry out, from a real Consul: by name, with everything
//! else going on, until it is taken out again.

use attache_tests::agent::Agent;
use attache_tests::mesh::get;
use attache_tests::sidecar::Service;
use attache_tests::{Folder, Load, eventually};
use serde_json::{Value, json};
use std::time::Duration;

use crate::xds_mesh::{OURS, grpc};

/// A public listener by the escape hatch, with another filter before the TCP proxy. Consul puts its RBAC
/// and TLS in.
fn hatch(service: &Service, filter: &Value) -> Value {
    let listener = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "public_listener:by-hand",
        "address": { "socket_address": {
            "address": "127.0.0.1", "port_value": service.public.port(),
        }},
        "filter_chains": [{ "filters": [filter, {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "by_hand", "cluster": "local_app",
            },
        }]}],
    });
    json!({ "envoy_public_listener_json": listener.to_string() })
}

fn http_with(filter: &str, config: Value) -> Value {
    let mut typed = config;
    typed["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{filter}").into();
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "by_hand",
            "route_config": { "name": "r" },
            "http_filters": [
                { "name": "the.suspect", "typed_config": typed },
                { "name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                }},
            ],
        },
    })
}

/// Refused by name at Attaché, in Consul's log and in the dump; and well again without it.
async fn refused(filter: Value, words: &[&str]) {
    let (settings, xds) = grpc(json!({}));
    let Some(agent) = Agent::dev(settings).await else {
        return;
    };
    let folder = Folder::new();
    let api = Service::registered(&agent, "api", 1, &[]).await;
    let web = Service::registered(&agent, "web", 1, &["api"]).await;
    let api_sidecar = api.sidecar(OURS, &agent, &xds, &folder).await;
    let web_sidecar = web.sidecar(OURS, &agent, &xds, &folder).await;
    api.ready(&api_sidecar).await;
    web.ready(&web_sidecar).await;
    web.hears("api", "api-1").await;
    let load = Load::start(web.upstreams["api"], "api-1", 2, Duration::from_millis(20));

    api.register(&agent, hatch(&api, &filter)).await;
    let said = [
        "a response is refused; what was accepted before, if anything, goes on",
        "lds",
    ];
    let line = api_sidecar.says(&said).await;
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line}");
    }
    eventually("the dump shows why", || async {
        let (_, dump) = get(api.admin, "/config_dump").await?;
        let dump: Value = serde_json::from_str(&dump).ok()?;
        let found = error_states(&dump);
        found
            .iter()
            .any(|why| words.iter().all(|word| why.contains(word)))
            .then_some(())
    })
    .await;
    eventually("Consul says that it was refused", || async {
        let log = agent.log();
        let mut lines = log.lines();
        lines.find(|line| words.iter().all(|word| line.contains(word)))?;
        Some(())
    })
    .await;
    load.goes_on().await;

    let before = api_sidecar.lines();
    api.register(&agent, json!({})).await;
    // What Consul has to say of listeners now is what it believes to be here already: nothing. The next
    // change brings a response.
    agent.intentions("api", &[("nobody", "deny")]).await;
    let again = ["what the control plane sends is accepted again"];
    api_sidecar.says_after(before, &again).await;
    load.goes_on().await;
    let figures = load.finish().await;
    assert!(figures.failures.is_empty(), "{figures:#?}");
    eventually("the dump is clean", || async {
        let (_, dump) = get(api.admin, "/config_dump").await?;
        let dump: Value = serde_json::from_str(&dump).ok()?;
        error_states(&dump).is_empty().then_some(())
    })
    .await;
    agent.intentions("api", &[("web", "deny")]).await;
    eventually("newer configuration arrives", || async {
        web.ask("api", "?").await.err()
    })
    .await;
}

/// The details of each `error_state` in a dump.
fn error_states(dump: &Value) -> Vec<String> {
    let all = dump["configs"].as_array().into_iter().flatten();
    let listeners = all.flat_map(|section| section["dynamic_listeners"].as_array().into_iter().flatten());
    listeners
        .filter_map(|listener| Some(listener["error_state"]["details"].as_str()?.to_owned()))
        .collect()
}

#[tokio::test]
async fn lua_is_refused_by_name_and_taking_it_out_recovers() {
    let lua = http_with(
        "lua.v3.Lua",
        json!({ "inline_code": "function envoy_on_request(h) end" }),
    );
    refused(lua, &["public_listener:by-hand", "lua"]).await;
}

#[tokio::test]
async fn a_network_filter_that_is_not_known_is_refused_by_name_and_taking_it_out_recovers() {
    let unknown = json!({ "name": "the.suspect", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo",
    }});
    refused(unknown, &["public_listener:by-hand", "echo.v3.Echo"]).await;
}
