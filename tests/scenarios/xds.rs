//! The delta ADS client on a real Consul agent, with ACLs and TLS as in production. Where there is no
//! `consul` on PATH each scenario says that it is skipped.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use attache::control::xds::{
    Address, Refused, Resource, ResourceKind, Resources, Target, Tls, client, identify,
};
use attache::control::{SourceStatus, WatchState, status_channel};
use attache::demo::standin::Registration;
use attache_bootstrap::Secret;
use attache_proto::envoy::config::cluster::v3::Cluster;
use attache_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use attache_proto::envoy::config::core::v3::Node;
use attache_tests::agent::{Agent, https};
use attache_tests::tools::on_path;
use attache_tests::{Folder, eventually, free_port};
use prost::Message as _;
use serde_json::json;
use tokio::sync::watch;

/// A server that comes back elects itself in about ten seconds; by then the pauses between two attempts
/// have grown as long.
const RETURN: Duration = Duration::from_secs(60);

/// The names and versions of what is held; wants the endpoints of each cluster of the type EDS.
#[derive(Clone, Default)]
struct Held {
    resources: Rc<RefCell<BTreeMap<ResourceKind, BTreeMap<String, Resource>>>>,
    /// Responses, empty ones too.
    responses: Rc<Cell<usize>>,
}

impl Held {
    fn names(&self, kind: ResourceKind) -> Vec<String> {
        let held = self.resources.borrow();
        held.get(&kind)
            .into_iter()
            .flatten()
            .map(|(n, _)| n.clone())
            .collect()
    }

    fn version(&self, kind: ResourceKind, name: &str) -> Option<String> {
        Some(self.resources.borrow().get(&kind)?.get(name)?.version.clone())
    }

    /// The name of the one that starts so.
    fn starting(&self, kind: ResourceKind, start: &str) -> Option<String> {
        self.names(kind).into_iter().find(|name| name.starts_with(start))
    }
}

impl Resources for Held {
    fn apply(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Refused> {
        self.responses.set(self.responses.get() + 1);
        let mut all = self.resources.borrow_mut();
        let held = all.entry(kind).or_default();
        held.retain(|name, _| !removed.contains(name));
        held.extend(changed.into_iter().map(|r| (r.name.clone(), r)));
        Ok(())
    }

    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>> {
        let held = self.resources.borrow();
        let clusters = held.get(&ResourceKind::Cluster).into_iter().flatten();
        let wants = |resource: &Resource| {
            let cluster = Cluster::decode(resource.body.clone()).unwrap();
            let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
            kind == ResourceKind::Endpoint && cluster.cluster_discovery_type == Some(eds)
        };
        clusters
            .filter(|(_, resource)| wants(resource))
            .map(|(name, _)| Arc::from(name.as_str()))
            .collect()
    }
}

async fn registered(agent: &Agent) {
    for service in ["count-api", "count-dashboard"] {
        let upstreams = match service {
            "count-api" => json!([]),
            _ => json!([{ "DestinationName": "count-api", "LocalBindPort": free_port() }]),
        };
        let proxy = json!({
            "DestinationServiceName": service,
            "DestinationServiceID": service,
            "LocalServicePort": 9001,
            "Upstreams": upstreams,
        });
        let sidecar = Registration::new(&format!("{service}-sidecar-proxy"), 20_000)
            .address("127.0.0.1")
            .field("Kind", json!("connect-proxy"))
            .field("Proxy", proxy);
        let own = Registration::new(service, 9001).address("127.0.0.1");
        for one in [own, sidecar] {
            agent
                .api("PUT", "/v1/agent/service/register", Some(one.to_json()))
                .await;
        }
    }
}

async fn token(agent: &Agent) -> (Secret, String) {
    let identity = json!({ "ServiceIdentities": [{ "ServiceName": "count-dashboard" }] });
    let made = agent.api("PUT", "/v1/acl/token", Some(identity)).await;
    let id = made["AccessorID"].as_str().unwrap().to_owned();
    (Secret::new(made["SecretID"].as_str().unwrap()), id)
}

async fn until(status: &mut watch::Receiver<SourceStatus>, watch: &str, is: impl Fn(&WatchState) -> bool) {
    let wish = |s: &SourceStatus| s.watches.get(watch).is_some_and(|w| is(&w.state));
    let waited = tokio::time::timeout(RETURN, status.wait_for(wish)).await.is_ok();
    assert!(waited, "{watch}: {:?}", status.borrow().watches);
}

/// Runs on one thread, as the control plane does.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(test);
}

fn is_current(state: &WatchState) -> bool {
    matches!(state, WatchState::Current { .. })
}

fn target(port: u16, tls: Option<Tls>, token: Option<Secret>) -> Target {
    let mut node = Node {
        id: "count-dashboard-sidecar-proxy".to_owned(),
        ..Node::default()
    };
    identify(&mut node, [1, 35, 6]);
    Target {
        addresses: vec![Address::Tcp {
            host: "localhost".to_owned(),
            port,
        }],
        tls,
        authority: "local_agent".to_owned(),
        token,
        node,
    }
}

/// A wrong token, the right one, a new one while the old one is revoked, and a change meanwhile.
#[test]
fn a_sidecar_with_acls_over_tls_gets_its_resources_and_keeps_them_through_new_tokens() {
    local(async {
        let Some(consul) = on_path("consul") else {
            return;
        };
        let consul = consul.to_str().unwrap().to_owned();
        let folder = Folder::new();
        let (mut settings, _) = https(&consul, &folder).await;
        let grpc = free_port();
        settings["ports"]["grpc_tls"] = grpc.into();
        settings["tls"]["grpc"] = settings["tls"]["https"].clone();
        let management = "5f1f1c0e-6b0d-4a0e-9d51-0d6a6d1c7a02";
        settings["acl"] = json!({
            "enabled": true,
            "default_policy": "deny",
            "tokens": { "initial_management": management, "agent": management },
        });
        let known = Some(management.to_owned());
        let agent = Agent::start_in(folder, consul, &["-dev"], settings, known).await;
        registered(&agent).await;
        let authorities = std::fs::read(agent.folder.file("consul-agent-ca.pem")).unwrap();
        let tls = Tls::new(&authorities).unwrap();
        let held = Held::default();
        let (publisher, mut status) = status_channel();
        let wrong = Secret::new("11111111-1111-1111-1111-111111111111");
        let (handle, client) = client(target(grpc, Some(tls), Some(wrong)), publisher);
        let story = async {
            let unknown =
                |s: &WatchState| matches!(s, WatchState::Failing { kind, .. } if kind == "unauthenticated");
            until(&mut status, "ads", unknown).await;
            assert!(held.names(ResourceKind::Cluster).is_empty());
            let (first, first_id) = token(&agent).await;
            handle.replace_token(Some(first));
            until(&mut status, "ads", is_current).await;
            let upstream = eventually("the dashboard's resources are here", || async {
                held.starting(ResourceKind::Listener, "public_listener:")?;
                held.starting(ResourceKind::Listener, "count-api:")?;
                held.starting(ResourceKind::Cluster, "local_app")?;
                held.starting(ResourceKind::Endpoint, "count-api.default.dc1.internal.")
            })
            .await;
            assert!(held.names(ResourceKind::Cluster).contains(&upstream));
            for kind in ResourceKind::ALL {
                println!("{kind}: {:?}", held.names(kind));
            }
            let (second, _) = token(&agent).await;
            let before = held.responses.get();
            handle.replace_token(Some(second));
            eventually("the second stream has had its first response", || async {
                (held.responses.get() > before).then_some(())
            })
            .await;
            assert_eq!(status.borrow().watches.len(), 1);
            agent
                .api("DELETE", &format!("/v1/acl/token/{first_id}"), None)
                .await;
            let before = held.version(ResourceKind::Endpoint, &upstream);
            let away = agent.api(
                "PUT",
                "/v1/agent/service/deregister/count-api-sidecar-proxy",
                None,
            );
            away.await;
            eventually("the endpoints change", || async {
                (held.version(ResourceKind::Endpoint, &upstream) != before).then_some(())
            })
            .await;
            assert!(is_current(&status.borrow().watches["ads"].state));
        };
        tokio::select! {
            () = story => {}
            never = client.run(held.clone()) => match never {},
        }
    });
}

/// The server is killed, and comes back with its data on the same port: what was held stays, and what
/// changed meanwhile comes.
#[test]
fn a_killed_server_takes_nothing_away_and_is_found_again() {
    local(async {
        let grpc = free_port();
        let Some(mut agent) = Agent::lasting(json!({ "ports": { "grpc": grpc } })).await else {
            return;
        };
        registered(&agent).await;
        let held = Held::default();
        let (publisher, mut status) = status_channel();
        let (_handle, client) = client(target(grpc, None, None), publisher);
        let story = async {
            let upstream = eventually("the dashboard's resources are here", || async {
                held.starting(ResourceKind::Listener, "count-api:")?;
                held.starting(ResourceKind::Endpoint, "count-api.default.dc1.internal.")
            })
            .await;
            let clusters = held.names(ResourceKind::Cluster);
            let endpoints = held.version(ResourceKind::Endpoint, &upstream);
            agent.kill().await;
            let failing = |s: &WatchState| matches!(s, WatchState::Failing { .. });
            until(&mut status, "ads", failing).await;
            assert_eq!(held.names(ResourceKind::Cluster), clusters);
            agent.run().await;
            until(&mut status, "ads", is_current).await;
            assert_eq!(held.names(ResourceKind::Cluster), clusters);
            let path = "/v1/agent/service/deregister/count-api-sidecar-proxy";
            agent.api("PUT", path, None).await;
            eventually("the endpoints change", || async {
                (held.version(ResourceKind::Endpoint, &upstream) != endpoints).then_some(())
            })
            .await;
        };
        tokio::select! {
            () = story => {}
            never = client.run(held.clone()) => match never {},
        }
    });
}
