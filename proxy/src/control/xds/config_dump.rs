//! What the store holds, as `/config_dump` shows it: Envoy's JSON, made of the very bytes that came.

use std::time::SystemTime;

use attache_bootstrap::EnvoyConfig;
use attache_proto::TypeUrl;
use attache_proto::envoy::config::bootstrap::v3::Bootstrap as BootstrapMessage;
use attache_proto::envoy::config::core::v3::Node;
use attache_proto::json::{self, Options};
use prost::Message as _;
use serde_json::Value;

use super::bootstrap::Bootstrap;
use super::held::{All, Held};
use super::store::Store;
use super::{Resource as Received, ResourceKind};
use crate::dump::{ConfigDump, ErrorState, Resource, ResourceState, ServerInfo};
use crate::model::Snapshot;

/// Renders everything, without secrets.
pub(super) fn render(store: &Store, bootstrap: &Bootstrap, read_at: SystemTime) -> ConfigDump {
    let published = store.published().map(AsRef::as_ref);
    let of = |kind| Section {
        store,
        kind,
        published,
    };
    let whole = json::from_wire(BootstrapMessage::TYPE_NAME, &bootstrap.wire, REDACTED);
    let mut endpoints = of(ResourceKind::Endpoint).resources(&store.endpoints);
    endpoints.extend(inline_assignments(store));
    let mut routes = of(ResourceKind::Route).resources(&store.routes);
    routes.extend(inline_routes(store));
    ConfigDump {
        bootstrap: whole.ok().map(|value| (value, read_at)),
        clusters: of(ResourceKind::Cluster).resources(&store.clusters),
        endpoints,
        listeners: of(ResourceKind::Listener).resources(&store.listeners),
        routes,
        secrets: of(ResourceKind::Secret).resources(&store.secrets),
    }
}

/// For `/server_info`.
pub(super) fn server_info(config: &EnvoyConfig, node: &Node) -> ServerInfo {
    let node = json::from_wire(Node::TYPE_NAME, &node.encode_to_vec(), REDACTED);
    ServerInfo {
        envoy_version: config.envoy_version.to_string(),
        command_line_options: config.command_line_options(),
        node: node.unwrap_or(Value::Null),
    }
}

const REDACTED: Options = Options {
    redact: true,
    defaults: false,
};

struct Section<'a> {
    store: &'a Store,
    kind: ResourceKind,
    published: Option<&'a Snapshot>,
}

impl Section<'_> {
    fn resources<T>(&self, all: &All<T>) -> Vec<Resource> {
        let mut resources: Vec<Resource> = all.values().map(|held| self.resource(held)).collect();
        // What was refused before any version was good is shown too, by its error.
        for ((kind, name), rejected) in &self.store.rejected {
            if *kind == self.kind && !all.contains_key(name.as_str()) {
                resources.push(Resource {
                    name: name.clone(),
                    state: ResourceState::Warming,
                    version_info: String::new(),
                    last_updated: None,
                    value: rejected.resource.as_ref().map_or(Value::Null, value),
                    error: self.error(name),
                });
            }
        }
        resources
    }

    fn resource<T>(&self, held: &Held<T>) -> Resource {
        let name = &held.resource.name;
        Resource {
            name: name.clone(),
            state: match (held.is_static, self.serves(name) && held.value.is_some()) {
                (true, _) => ResourceState::Static,
                (false, true) => ResourceState::Active,
                (false, false) => ResourceState::Warming,
            },
            version_info: held.resource.version.clone(),
            last_updated: Some(held.updated),
            value: value(&held.resource),
            error: self.error(name),
        }
    }

    fn serves(&self, name: &str) -> bool {
        let Some(published) = self.published else {
            return false;
        };
        match self.kind {
            ResourceKind::Listener => published.listeners.contains_key(name),
            ResourceKind::Cluster => published.clusters.contains_key(name),
            ResourceKind::Endpoint | ResourceKind::Route | ResourceKind::Secret => true,
        }
    }

    fn error(&self, name: &str) -> Option<ErrorState> {
        let rejected = self.store.rejected.get(&(self.kind, name.to_owned()))?;
        let version = rejected
            .resource
            .as_ref()
            .map(|resource| resource.version.clone());
        Some(ErrorState {
            details: rejected.why.clone(),
            version_info: version.unwrap_or_default(),
            last_update_attempt: rejected.at,
        })
    }
}

/// The endpoints that stand in a cluster.
fn inline_assignments(store: &Store) -> impl Iterator<Item = Resource> {
    let clusters = store.clusters.values();
    clusters.filter_map(|held| {
        let mut cluster = value(&held.resource);
        let mut assignment = cluster.get_mut("load_assignment")?.take();
        let fields = assignment.as_object_mut()?;
        let kind = ResourceKind::Endpoint.type_url();
        fields.insert("@type".to_owned(), kind.into());
        Some(Resource {
            name: held.resource.name.clone(),
            state: ResourceState::Static,
            version_info: String::new(),
            last_updated: None,
            value: assignment,
            error: None,
        })
    })
}

/// The route configurations that stand in a listener.
fn inline_routes(store: &Store) -> Vec<Resource> {
    let mut found = Vec::new();
    for held in store.listeners.values() {
        let listener = value(&held.resource);
        let chains = listener["filter_chains"].as_array().into_iter().flatten();
        for chain in chains.chain(listener.get("default_filter_chain")) {
            for filter in chain["filters"].as_array().into_iter().flatten() {
                let Some(routes) = filter["typed_config"].get("route_config") else {
                    continue;
                };
                let mut routes = routes.clone();
                if let Some(fields) = routes.as_object_mut() {
                    fields.insert("@type".to_owned(), ResourceKind::Route.type_url().into());
                }
                found.push(Resource {
                    name: routes["name"].as_str().unwrap_or_default().to_owned(),
                    state: ResourceState::Static,
                    version_info: String::new(),
                    last_updated: Some(held.updated),
                    value: routes,
                    error: None,
                });
            }
        }
    }
    found
}

/// With its `@type`, which comes first as in Envoy's dumps.
fn value(resource: &Received) -> Value {
    let type_name = resource.type_url.rsplit('/').next().unwrap_or_default();
    let rendered = json::from_wire(type_name, &resource.body, REDACTED);
    let mut value = serde_json::Map::new();
    value.insert("@type".to_owned(), resource.type_url.clone().into());
    if let Ok(Value::Object(fields)) = rendered {
        value.extend(fields);
    }
    value.into()
}
