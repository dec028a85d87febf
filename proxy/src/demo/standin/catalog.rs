//! The services of the one agent and node that the stand-in plays, their health, and both JSON
//! forms: the agent's (`/v1/agent/service/…`) and the catalog's (`/v1/health/…`).
//!
//! It counts no indexes of its own: `state` says at which one a change happens.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use super::Registration;

/// Consul chooses the ports of sidecars from 21000 to 21255.
const SIDECAR_PORTS: std::ops::RangeInclusive<u16> = 21_000..=21_255;

/// The state of a health check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Takes connections.
    #[default]
    Passing,
    /// Takes connections unless only passing ones are asked for.
    Warning,
    /// Takes none.
    Critical,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Why a registration is refused, in Consul's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// `Name` is missing or empty.
    #[error("Missing service name")]
    Name,
    /// A proxy that does not say which service it stands for.
    #[error("Validation failed: Proxy.DestinationServiceName must be non-empty for Connect proxy services")]
    Destination,
    /// The body is not a JSON object.
    #[error("Request decode failed: a JSON object is expected")]
    NotAnObject,
    /// 21000 to 21255 are all taken.
    #[error("Invalid SidecarService: none left in port range [21000, 21255]")]
    NoPort,
}

#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) service: String,
    /// The service that Connect clients reach through it.
    pub(super) destination: Option<String>,
    fields: Map<String, Value>,
    /// `None` for a service without a check of its own.
    check: Option<(Health, String)>,
    /// The ID whose health counts here too.
    alias: Option<String>,
    pub(super) create: u64,
    pub(super) modify: u64,
}

#[derive(Debug)]
pub(super) struct Catalog {
    datacenter: String,
    node: String,
    node_id: String,
    address: String,
    instances: BTreeMap<String, Instance>,
    /// Consul gives each Connect service an address in 240.0.0.0/4, in the order it meets them.
    virtual_addresses: Vec<String>,
}

/// Which instances a health answer lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Service,
    Connect,
}

impl Catalog {
    pub(super) fn new(datacenter: &str, node_id: String, address: String) -> Self {
        Self {
            datacenter: datacenter.to_owned(),
            node: "standin".to_owned(),
            node_id,
            address,
            instances: BTreeMap::new(),
            virtual_addresses: Vec::new(),
        }
    }

    /// Registers a service and its sidecar; gives the IDs, the sidecar's last.
    pub(super) fn register(
        &mut self,
        registration: &Registration,
        index: u64,
    ) -> Result<Vec<String>, RegistrationError> {
        let name = registration.text("Name");
        if name.is_empty() {
            return Err(RegistrationError::Name);
        }
        let id = Some(registration.text("ID"))
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| name.clone());
        let sidecar = registration
            .get("Connect")
            .and_then(|connect| connect.get("SidecarService"))
            .filter(|sidecar| sidecar.is_object())
            .map(|sidecar| self.sidecar_of(registration, &id, &name, sidecar))
            .transpose()?;
        let mut ids = vec![self.insert(registration, &id, &name, index)?];
        if let Some(sidecar) = sidecar {
            let (id, name) = (sidecar.text("ID"), sidecar.text("Name"));
            ids.push(self.insert(&sidecar, &id, &name, index)?);
        }
        Ok(ids)
    }

    /// Consul's defaults for a sidecar: its parent's address, tags and metadata, a port of the
    /// range, a check that follows the parent.
    fn sidecar_of(
        &self,
        parent: &Registration,
        id: &str,
        name: &str,
        sidecar: &Value,
    ) -> Result<Registration, RegistrationError> {
        let sidecar_id = format!("{id}-sidecar-proxy");
        let mut made = Registration::from_json(sidecar.clone()).ok_or(RegistrationError::NotAnObject)?;
        for inherited in ["Tags", "Meta", "Address"] {
            if let (None, Some(value)) = (made.get(inherited), parent.get(inherited)) {
                made = made.field(inherited, value.clone());
            }
        }
        if made.get("Port").and_then(Value::as_u64).unwrap_or(0) == 0 {
            let port = self
                .instances
                .get(&sidecar_id)
                .and_then(Instance::port)
                .or_else(|| SIDECAR_PORTS.into_iter().find(|port| !self.has_port(*port)))
                .ok_or(RegistrationError::NoPort)?;
            made = made.field("Port", json!(port));
        }
        let mut proxy = Map::new();
        proxy.insert("DestinationServiceName".to_owned(), json!(name));
        proxy.insert("DestinationServiceID".to_owned(), json!(id));
        proxy.insert("LocalServiceAddress".to_owned(), json!("127.0.0.1"));
        if let Some(port) = parent.get("Port") {
            proxy.insert("LocalServicePort".to_owned(), port.clone());
        }
        if let Some(Value::Object(given)) = made.get("Proxy") {
            proxy.extend(given.clone());
        }
        Ok(made
            .field("ID", json!(sidecar_id))
            .field("Name", json!(format!("{name}-sidecar-proxy")))
            .field("Kind", json!("connect-proxy"))
            .field("Proxy", Value::Object(proxy)))
    }

    fn insert(
        &mut self,
        registration: &Registration,
        id: &str,
        name: &str,
        index: u64,
    ) -> Result<String, RegistrationError> {
        let proxy = registration
            .get("Proxy")
            .filter(|_| registration.text("Kind") == "connect-proxy");
        let destination = match proxy {
            Some(proxy) => {
                Some(text_of(proxy, "DestinationServiceName").ok_or(RegistrationError::Destination)?)
            }
            None => registration
                .get("Connect")
                .and_then(|connect| connect.get("Native")?.as_bool())
                .filter(|native| *native)
                .map(|_| name.to_owned()),
        };
        let alias = proxy.and_then(|proxy| text_of(proxy, "DestinationServiceID"));
        if let Some(destination) = &destination
            && !self.virtual_addresses.contains(destination)
        {
            self.virtual_addresses.push(destination.clone());
        }
        let fields = self.agent_fields(registration, id, name, destination.as_deref());
        let before = self.instances.get(id);
        let instance = Instance {
            id: id.to_owned(),
            service: name.to_owned(),
            destination,
            fields,
            check: before.and_then(|before| before.check.clone()),
            alias,
            create: before.map_or(index, |before| before.create),
            modify: index,
        };
        self.instances.insert(id.to_owned(), instance);
        Ok(id.to_owned())
    }

    /// The agent's form, in the order of the agent's fields.
    fn agent_fields(
        &self,
        registration: &Registration,
        id: &str,
        name: &str,
        destination: Option<&str>,
    ) -> Map<String, Value> {
        let port = registration.get("Port").cloned().unwrap_or(json!(0));
        let address = registration.text("Address");
        let mut tagged = registration
            .get("TaggedAddresses")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let proxied = registration.text("Kind") == "connect-proxy";
        if let Some(virtual_ip) = destination.filter(|_| proxied).and_then(|it| self.virtual_ip(it)) {
            tagged.insert(
                "consul-virtual".to_owned(),
                json!({ "Address": virtual_ip, "Port": port }),
            );
        }
        if !address.is_empty() {
            for family in ["lan_ipv4", "wan_ipv4"] {
                let here = json!({ "Address": address, "Port": port });
                tagged.entry(family).or_insert(here);
            }
        }
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        if let Some(kind) = registration.get("Kind") {
            set("Kind", kind.clone());
        }
        set("ID", json!(id));
        set("Service", json!(name));
        set("Tags", registration.get("Tags").cloned().unwrap_or(json!([])));
        set("Meta", registration.get("Meta").cloned().unwrap_or(json!({})));
        set("Port", port);
        set("Address", json!(address));
        if let Some(path) = registration.get("SocketPath") {
            set("SocketPath", path.clone());
        }
        if !tagged.is_empty() {
            set("TaggedAddresses", Value::Object(tagged));
        }
        let weights = registration.get("Weights").cloned();
        set(
            "Weights",
            weights.unwrap_or(json!({ "Passing": 1, "Warning": 1 })),
        );
        let overridable = registration.get("EnableTagOverride").cloned();
        set("EnableTagOverride", overridable.unwrap_or(json!(false)));
        if let Some(Value::Object(proxy)) = registration.get("Proxy") {
            set("Proxy", normal_proxy(proxy));
        }
        set("Datacenter", json!(self.datacenter));
        fields
    }

    /// Removes a service and the sidecar that came with it; gives what was removed.
    pub(super) fn deregister(&mut self, id: &str) -> Vec<Instance> {
        let sidecar = format!("{id}-sidecar-proxy");
        [id, &sidecar]
            .into_iter()
            .filter_map(|id| self.instances.remove(id))
            .collect()
    }

    /// Sets the check of one instance; gives those whose health this may change.
    pub(super) fn set_health(&mut self, id: &str, health: Health, index: u64) -> Vec<Instance> {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.check = Some((health, format!("set to {}", health.as_str())));
        }
        let concerned = |instance: &&mut Instance| instance.id == id || instance.alias.as_deref() == Some(id);
        self.instances
            .values_mut()
            .filter(concerned)
            .map(|instance| {
                instance.modify = index;
                instance.clone()
            })
            .collect()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Instance> {
        self.instances.get(id)
    }

    pub(super) fn clear(&mut self) {
        self.instances.clear();
        self.virtual_addresses.clear();
    }

    pub(super) fn instances_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.instances.values_mut()
    }

    pub(super) fn virtual_ip(&self, service: &str) -> Option<String> {
        let place = self.virtual_addresses.iter().position(|known| known == service)?;
        let low = u32::try_from(place + 1).ok()?;
        Some(std::net::Ipv4Addr::from_bits(0xf000_0000 | low).to_string())
    }

    /// The body of `/v1/agent/services`.
    pub(super) fn agent_services(&self) -> Value {
        let services = self
            .instances
            .values()
            .map(|instance| (instance.id.clone(), Value::Object(instance.fields.clone())));
        Value::Object(services.collect())
    }

    /// The body of `/v1/agent/service/:id`, and its content hash.
    pub(super) fn agent_service(&self, id: &str) -> Option<(Value, String)> {
        let instance = self.instances.get(id)?;
        let mut hasher = DefaultHasher::new();
        Value::Object(instance.fields.clone())
            .to_string()
            .hash(&mut hasher);
        let hash = format!("{:x}", hasher.finish());
        let mut fields = Map::new();
        for (name, value) in &instance.fields {
            fields.insert(name.clone(), value.clone());
            if name == "EnableTagOverride" {
                fields.insert("ContentHash".to_owned(), json!(hash));
            }
        }
        Some((Value::Object(fields), hash))
    }

    /// The body of `/v1/health/service/:service` and `/v1/health/connect/:service`.
    pub(super) fn health(&self, service: &str, reach: Reach, passing: bool) -> Value {
        let listed = self.instances.values().filter(|instance| match reach {
            Reach::Service => instance.service == service,
            Reach::Connect => instance.destination.as_deref() == Some(service),
        });
        listed
            .filter(|instance| !passing || self.status(instance) == Health::Passing)
            .map(|instance| self.health_entry(instance))
            .collect()
    }

    fn status(&self, instance: &Instance) -> Health {
        let own = |instance: &Instance| instance.check.as_ref().map(|check| check.0);
        let followed = instance
            .alias
            .as_ref()
            .and_then(|id| own(self.instances.get(id)?));
        own(instance).max(followed).unwrap_or_default()
    }

    fn health_entry(&self, instance: &Instance) -> Value {
        let mut service = Map::new();
        let order = [
            "Kind",
            "ID",
            "Service",
            "Tags",
            "Address",
            "TaggedAddresses",
            "Meta",
            "Port",
            "SocketPath",
            "Weights",
            "EnableTagOverride",
        ];
        for name in order {
            if let Some(value) = instance.fields.get(name) {
                service.insert(name.to_owned(), value.clone());
            }
        }
        let proxy = instance.fields.get("Proxy").cloned();
        let mut proxy = proxy.unwrap_or(json!({ "MeshGateway": {}, "Expose": {} }));
        if let Some(proxy) = proxy.as_object_mut() {
            proxy.entry("Mode").or_insert(json!(""));
        }
        let native = instance.alias.is_none() && instance.destination.as_ref() == Some(&instance.service);
        let connect = if native {
            json!({ "Native": true })
        } else {
            json!({})
        };
        service.insert("Proxy".to_owned(), proxy);
        service.insert("Connect".to_owned(), connect);
        service.insert("PeerName".to_owned(), json!(""));
        service.insert("CreateIndex".to_owned(), json!(instance.create));
        service.insert("ModifyIndex".to_owned(), json!(instance.modify));
        let mut checks = vec![self.check("serfHealth", "Serf Health Status", Health::Passing, None)];
        if instance.check.is_some() || instance.alias.is_some() {
            let id = format!("service:{}", instance.id);
            checks.push(self.check(&id, "up", self.status(instance), Some(instance)));
        }
        json!({ "Node": self.node_json(), "Service": service, "Checks": checks })
    }

    fn check(&self, id: &str, name: &str, health: Health, of: Option<&Instance>) -> Value {
        let output = match of.and_then(|instance| instance.check.as_ref()) {
            Some((_, output)) => output.as_str(),
            None if of.is_some() => "No checks found.",
            None => "Agent alive and reachable",
        };
        let alias = of.is_some_and(|instance| instance.alias.is_some());
        json!({
            "Node": self.node,
            "CheckID": id,
            "Name": name,
            "Status": health.as_str(),
            "Notes": "",
            "Output": output,
            "ServiceID": of.map_or("", |instance| &instance.id),
            "ServiceName": of.map_or("", |instance| &instance.service),
            "ServiceTags": of.and_then(|it| it.fields.get("Tags").cloned()).unwrap_or(json!([])),
            "Type": if alias { "alias" } else { "" },
            "Interval": "",
            "Timeout": "",
            "ExposedPort": 0,
            "Definition": {},
            "CreateIndex": of.map_or(2, |instance| instance.create),
            "ModifyIndex": of.map_or(2, |instance| instance.modify),
        })
    }

    fn node_json(&self) -> Value {
        json!({
            "ID": self.node_id,
            "Node": self.node,
            "Address": self.address,
            "Datacenter": self.datacenter,
            "TaggedAddresses": {
                "lan": self.address,
                "lan_ipv4": self.address,
                "wan": self.address,
                "wan_ipv4": self.address,
            },
            "Meta": { "consul-network-segment": "", "consul-version": "1.23.0" },
            "CreateIndex": 2,
            "ModifyIndex": 2,
        })
    }

    fn has_port(&self, port: u16) -> bool {
        self.instances
            .values()
            .any(|instance| instance.port() == Some(port))
    }
}

impl Instance {
    fn port(&self) -> Option<u16> {
        self.fields
            .get("Port")
            .and_then(Value::as_u64)
            .and_then(|port| u16::try_from(port).ok())
    }
}

/// `Proxy` with the fields that Consul fills in, in its order.
fn normal_proxy(given: &Map<String, Value>) -> Value {
    let mut proxy = Map::new();
    let order = [
        "DestinationServiceName",
        "DestinationServiceID",
        "LocalServiceAddress",
        "LocalServicePort",
        "LocalServiceSocketPath",
        "Mode",
        "TransparentProxy",
        "Config",
    ];
    for name in order {
        if let Some(value) = given.get(name) {
            proxy.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(Value::Array(upstreams)) = given.get("Upstreams") {
        let upstreams = upstreams.iter().map(normal_upstream).collect();
        proxy.insert("Upstreams".to_owned(), upstreams);
    }
    for name in ["MeshGateway", "Expose"] {
        let value = given.get(name).cloned().unwrap_or(json!({}));
        proxy.insert(name.to_owned(), value);
    }
    for (name, value) in given {
        if !proxy.contains_key(name) {
            proxy.insert(name.clone(), value.clone());
        }
    }
    Value::Object(proxy)
}

fn normal_upstream(given: &Value) -> Value {
    let mut upstream = Map::new();
    upstream.insert("DestinationType".to_owned(), json!("service"));
    if let Value::Object(given) = given {
        upstream.extend(given.clone());
    }
    upstream.entry("MeshGateway").or_insert(json!({}));
    Value::Object(upstream)
}

fn text_of(value: &Value, name: &str) -> Option<String> {
    value
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
