//! What is known of the mesh so far, and the keys by which it is asked for.
//!
//! Plain data: filled by [`super::source`], read by [`super::compile`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use attache_bootstrap::Config;
use attache_bootstrap::config::{ProxyRef, UpstreamHint};

use super::agent_version::PrefixRewrites;
use super::authority::Mesh;
use super::chain::Chain;
use super::health::{Instance, QueryResult};
use super::intentions::{DefaultPolicy, Intention};
use super::registration::{Registration, Upstream};
use super::request_rules::Providers;
use crate::model::{Identity, TrustBundle};

/// One discovery chain. Upstreams that ask for the same share the question.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChainKey {
    pub(super) service: String,
    pub(super) datacenter: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) partition: Option<String>,
    /// What the upstream itself overrides, as Consul's own agent hands it on.
    pub(super) protocol: Option<String>,
    pub(super) connect_timeout_ms: Option<u64>,
    pub(super) mesh_gateway: String,
}

impl ChainKey {
    /// Whether both lead to the same service, whatever they override.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.service == other.service
            && self.datacenter == other.datacenter
            && self.namespace == other.namespace
            && self.partition == other.partition
    }
}

/// The instances of one service, or of a subset of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HealthKey {
    pub(super) service: String,
    pub(super) datacenter: String,
    pub(super) namespace: String,
    pub(super) partition: String,
    pub(super) filter: String,
}

/// One prepared query.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueryKey {
    pub(super) name: String,
    pub(super) datacenter: Option<String>,
}

/// Something that the upstreams need to be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    Chain(ChainKey),
    Health(HealthKey),
    Query(QueryKey),
    /// A `jwt-provider` entry by its name.
    Provider(String),
    /// The agent's version.
    Version,
}

/// Roots and leaf of one trust domain.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    pub(super) trust: Arc<TrustBundle>,
    pub(super) identity: Arc<Identity>,
}

/// Everything that is known.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) registration: Option<Registration>,
    pub(super) authority: Option<Authority>,
    pub(super) intentions: Option<Vec<Intention>>,
    pub(super) default_policy: DefaultPolicy,
    pub(super) mesh: Mesh,
    pub(super) chains: BTreeMap<ChainKey, Chain>,
    pub(super) instances: BTreeMap<HealthKey, Vec<Instance>>,
    pub(super) queries: BTreeMap<QueryKey, QueryResult>,
    /// By name; `None` for one that Consul does not have.
    pub(super) providers: Providers,
    /// By the agent's version.
    pub(super) prefix_rewrites: Option<PrefixRewrites>,
}

/// What of the configuration takes part.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// The environment's upstreams.
    pub(super) hints: Vec<UpstreamHint>,
    /// The environment's public listener.
    pub(super) public: Option<SocketAddr>,
    /// In an allocation the registration's address and port are the host's.
    pub(super) nomad: bool,
    /// No registration at all.
    pub(super) manual: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            registration: None,
            authority: None,
            intentions: None,
            default_policy: DefaultPolicy::Unknown("Consul was not asked yet".to_owned()),
            mesh: Mesh::default(),
            chains: BTreeMap::new(),
            instances: BTreeMap::new(),
            queries: BTreeMap::new(),
            providers: Providers::new(),
            prefix_rewrites: None,
        }
    }
}

impl State {
    /// The agent's datacenter: the registration tells it, in old versions only the leaf does.
    pub(super) fn datacenter(&self) -> Option<&str> {
        let told = self.registration.as_ref().map(|r| r.datacenter.as_str());
        told.filter(|dc| !dc.is_empty()).or_else(|| {
            let id = self.authority.as_ref()?.identity.spiffe_id.as_ref()?.service()?;
            Some(id.datacenter.as_str())
        })
    }
}

impl Given {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            hints: config.upstream_hints.clone(),
            public: config.public_hint,
            nomad: matches!(config.proxy, ProxyRef::Nomad { .. }) || config.public_hint.is_some(),
            manual: matches!(config.proxy, ProxyRef::Manual(_)),
        }
    }

    /// The upstreams that are carried, and where the environment says something else.
    pub(super) fn upstreams(&self, registration: &Registration) -> (Vec<Upstream>, Vec<String>) {
        let given: Vec<Upstream> = registration
            .upstreams
            .iter()
            .filter(|u| !u.centrally_configured && u.destination != "*")
            .cloned()
            .collect();
        if self.manual && given.is_empty() {
            return (self.hints.iter().map(from_hint).collect(), Vec::new());
        }
        let mut notices = Vec::new();
        for hint in &self.hints {
            let same = |u: &&Upstream| dashed(&u.destination) == dashed(&hint.destination);
            let places: Vec<String> = given.iter().filter(same).map(Upstream::place).collect();
            let (variable, bind) = (&hint.variable, hint.bind);
            if places.is_empty() {
                notices.push(format!(
                    "{variable} names the upstream {:?} on {bind}, the registration has none of \
                     that name: it is not carried",
                    hint.destination
                ));
            } else if !places.contains(&bind.to_string()) {
                notices.push(format!(
                    "{variable} says {bind} for the upstream {:?}, the registration says {}: the \
                     registration wins",
                    hint.destination,
                    places.join(" and ")
                ));
            }
        }
        (given, notices)
    }
}

fn from_hint(hint: &UpstreamHint) -> Upstream {
    Upstream {
        destination: hint.destination.clone(),
        kind: "service".to_owned(),
        bind_address: hint.bind.ip().to_string(),
        bind_port: hint.bind.port(),
        ..Upstream::default()
    }
}

/// Variables exist in two spellings.
fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

impl Upstream {
    /// Where the app dials it, in words for a person.
    pub(super) fn place(&self) -> String {
        match &self.bind_socket {
            Some(path) if self.bind_port == 0 => path.clone(),
            _ => {
                let ip = match self.bind_address.as_str() {
                    "" => "127.0.0.1",
                    address => address,
                };
                match ip.parse() {
                    Ok(ip) => SocketAddr::new(ip, self.bind_port).to_string(),
                    Err(_) => format!("{ip}:{}", self.bind_port),
                }
            }
        }
    }

    /// Consul's name for it: what its listener is named by.
    pub(super) fn name(&self) -> String {
        let mut name = String::new();
        if self.kind != "service" {
            name = format!("{}:", self.kind);
        }
        let other = |part: &Option<String>| part.clone().filter(|p| p != "default");
        match (other(&self.partition), other(&self.namespace)) {
            (Some(partition), namespace) => {
                let namespace = namespace.as_deref().unwrap_or("default");
                name.push_str(&format!("{partition}/{namespace}/"));
            }
            (None, Some(namespace)) => name.push_str(&format!("{namespace}/")),
            (None, None) => {}
        }
        name.push_str(&self.destination);
        match (&self.peer, &self.datacenter) {
            (Some(peer), _) => name.push_str(&format!("?peer={peer}")),
            (None, Some(datacenter)) => name.push_str(&format!("?dc={datacenter}")),
            (None, None) => {}
        }
        name
    }

    /// The chain to ask for; none for a prepared query.
    pub(super) fn chain_key(&self, registration: &Registration) -> ChainKey {
        let own = self.mesh_gateway.as_str();
        ChainKey {
            service: self.destination.clone(),
            datacenter: self.datacenter.clone(),
            namespace: self.namespace.clone().or_else(|| registration.namespace.clone()),
            partition: self.partition.clone().or_else(|| registration.partition.clone()),
            protocol: self.config.text("protocol").map(str::to_lowercase),
            connect_timeout_ms: self.config.number("connect_timeout_ms").ok().flatten(),
            mesh_gateway: if own.is_empty() {
                &registration.mesh_gateway
            } else {
                own
            }
            .to_owned(),
        }
    }
}
