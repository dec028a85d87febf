//! A service and its sidecar as one hands them to Consul: the body of
//! `PUT /v1/agent/service/register`, built in a few words.
//!
//! It only writes JSON; `catalog` reads it, and so does a real Consul.

use serde_json::{Map, Value, json};

/// A service definition. Its ID is its name unless said otherwise.
#[derive(Clone, Debug)]
pub struct Registration(Map<String, Value>);

/// The `Connect.SidecarService` part of a registration, or a proxy registered on its own.
#[derive(Clone, Debug, Default)]
pub struct Sidecar {
    service: Map<String, Value>,
    proxy: Map<String, Value>,
    upstreams: Vec<Value>,
}

impl Registration {
    /// A service on this port.
    pub fn new(name: &str, port: u16) -> Self {
        Self(Map::new())
            .field("Name", json!(name))
            .field("Port", json!(port))
    }

    /// Another ID than the name.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        self.field("ID", json!(id))
    }

    /// Where the service (and its sidecar) is reached; the node's address unless given.
    #[must_use]
    pub fn address(self, address: &str) -> Self {
        self.field("Address", json!(address))
    }

    /// Its metadata.
    #[must_use]
    pub fn meta(self, meta: Value) -> Self {
        self.field("Meta", meta)
    }

    /// Its tags.
    #[must_use]
    pub fn tags(self, tags: &[&str]) -> Self {
        self.field("Tags", json!(tags))
    }

    /// A sidecar that Consul registers along with it, as `<id>-sidecar-proxy`.
    #[must_use]
    pub fn sidecar(self, sidecar: Sidecar) -> Self {
        self.field("Connect", json!({ "SidecarService": sidecar.into_json() }))
    }

    /// A service that speaks mTLS itself.
    #[must_use]
    pub fn native(self) -> Self {
        self.field("Connect", json!({ "Native": true }))
    }

    /// Any other field, under Consul's name for it.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The request's body.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    pub(super) fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Self(fields)),
            _ => None,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }
}

impl Sidecar {
    /// A sidecar on a port that Consul chooses (21000 and up), without upstreams.
    pub fn new() -> Self {
        Self::default()
    }

    /// The public listener's port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field("Port", json!(port))
    }

    /// An upstream on a loopback port.
    #[must_use]
    pub fn upstream(self, service: &str, local_port: u16) -> Self {
        self.upstream_with(json!({ "DestinationName": service, "LocalBindPort": local_port }))
    }

    /// An upstream with any of Consul's fields.
    #[must_use]
    pub fn upstream_with(mut self, upstream: Value) -> Self {
        self.upstreams.push(upstream);
        self
    }

    /// `Proxy.Config`.
    #[must_use]
    pub fn config(self, config: Value) -> Self {
        self.proxy_field("Config", config)
    }

    /// Any other field of `Proxy`.
    #[must_use]
    pub fn proxy_field(mut self, name: &str, value: Value) -> Self {
        self.proxy.insert(name.to_owned(), value);
        self
    }

    /// Any other field of the sidecar's own service.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.service.insert(name.to_owned(), value);
        self
    }

    fn into_json(self) -> Value {
        let mut proxy = self.proxy;
        if !self.upstreams.is_empty() {
            proxy.insert("Upstreams".to_owned(), Value::Array(self.upstreams));
        }
        let mut service = self.service;
        if !proxy.is_empty() {
            service.insert("Proxy".to_owned(), Value::Object(proxy));
        }
        Value::Object(service)
    }
}
