//! Static resources for a group of cases: connection managers, each once a protocol of the upstreams, and
//! clusters likewise. Ports are placeholders (`"@a"`) until a bed has them.

use serde_json::{Map, Value, json};

use super::case::Version;

/// The type URLs of extensions begin so.
const TYPE: &str = "type.googleapis.com/envoy.extensions";
/// The domain of the virtual host that every route table has for the probe of a connection.
pub const PROBE: &str = "probe.test";

/// A connection manager and its routes.
#[derive(Clone, Debug)]
pub struct Manager {
    /// Cases name it.
    pub name: String,
    fields: Value,
    filters: Vec<Value>,
    router: Value,
    table: Value,
}

impl Manager {
    /// One with Envoy's defaults that sends everything to the cluster `a`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            fields: json!({}),
            filters: Vec::new(),
            router: json!({}),
            table: json!({}),
        }
        .routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }]))
    }

    /// With these fields of `HttpConnectionManager`.
    pub fn with(mut self, fields: Value) -> Self {
        merge(&mut self.fields, fields);
        self
    }

    /// With this filter before the router: its name after `envoy.filters.http.`, its type after
    /// `envoy.extensions.filters.http.`, its fields.
    pub fn filter(mut self, name: &str, kind: &str, mut fields: Value) -> Self {
        fields["@type"] = format!("{TYPE}.filters.http.{kind}").into();
        self.filters
            .push(json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": fields }));
        self
    }

    /// With these fields of `Router`.
    pub fn router(mut self, fields: Value) -> Self {
        merge(&mut self.router, fields);
        self
    }

    /// With these routes for every domain.
    pub fn routes(self, routes: Value) -> Self {
        self.hosts(json!([{ "name": "all", "domains": ["*"], "routes": routes }]))
    }

    /// With these virtual hosts.
    pub fn hosts(mut self, hosts: Value) -> Self {
        self.table["virtual_hosts"] = hosts;
        self
    }

    /// With these fields of `RouteConfiguration`.
    pub fn table(mut self, fields: Value) -> Self {
        merge(&mut self.table, fields);
        self
    }

    /// Its listener, whose clusters are those of this protocol.
    pub fn listener(&self, upstream: Version, clusters: &[Cluster]) -> Value {
        let mut table = self.table.clone();
        if let Some(hosts) = table["virtual_hosts"].as_array_mut() {
            hosts.push(json!({ "name": "probe", "domains": [PROBE], "routes": [
                { "match": { "prefix": "/" }, "direct_response": { "status": 200 } },
            ]}));
        }
        table["name"] = "routes".into();
        if table.get("validate_clusters").is_none() {
            table["validate_clusters"] = false.into();
        }
        rename(&mut table, upstream, clusters);
        let mut filters = self.filters.clone();
        let mut router = self.router.clone();
        router["@type"] = format!("{TYPE}.filters.http.router.v3.Router").into();
        filters.push(json!({ "name": "envoy.filters.http.router", "typed_config": router }));
        let mut manager = json!({
            "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": self.name, "route_config": table, "http_filters": filters,
            // Envoy waits so long before it ends a connection whose request it has not read to its end.
            "delayed_close_timeout": "0.1s",
        });
        merge(&mut manager, self.fields.clone());
        let name = listener_name(&self.name, upstream);
        json!({
            "name": name,
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": format!("@{name}") } },
            "filter_chains": [{ "filters": [
                { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager },
            ]}],
        })
    }
}

/// What the listener of a manager is called.
pub fn listener_name(manager: &str, upstream: Version) -> String {
    format!("{manager}>{upstream}")
}

/// A cluster of upstreams.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Routes name it.
    pub name: String,
    endpoints: Vec<String>,
    weights: Vec<u32>,
    hostname: Option<String>,
    fields: Value,
}

/// A cluster with one endpoint, the upstream of its name.
pub fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        endpoints: vec![name.to_owned()],
        weights: Vec::new(),
        hostname: None,
        fields: json!({}),
    }
}

impl Cluster {
    /// With these upstreams as endpoints; `closed` is a port at which nobody listens.
    pub fn endpoints(mut self, upstreams: &[&str]) -> Self {
        self.endpoints = upstreams.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// With these `load_balancing_weight`s of its endpoints.
    pub fn weights(mut self, weights: &[u32]) -> Self {
        self.weights = weights.to_vec();
        self
    }

    /// With this `hostname` of its endpoints.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.to_owned());
        self
    }

    /// With these fields of `Cluster`.
    pub fn with(mut self, fields: Value) -> Self {
        merge(&mut self.fields, fields);
        self
    }

    /// With these fields of `HttpProtocolOptions`.
    pub fn options(self, fields: Value) -> Self {
        self.with(json!({ "typed_extension_protocol_options": { OPTIONS: fields } }))
    }

    /// As a resource whose upstreams are spoken to in this protocol.
    pub fn resource(&self, upstream: Version) -> Value {
        let name = cluster_name(&self.name, upstream);
        let endpoint = |(at, of): (usize, &String)| {
            let mut endpoint = json!({ "endpoint": { "address": {
                "socket_address": { "address": "127.0.0.1", "port_value": format!("@{of}") },
            }}});
            if let Some(&weight) = self.weights.get(at) {
                endpoint["load_balancing_weight"] = weight.into();
            }
            if let Some(name) = &self.hostname {
                endpoint["endpoint"]["hostname"] = name.as_str().into();
            }
            endpoint
        };
        let endpoints: Vec<Value> = self.endpoints.iter().enumerate().map(endpoint).collect();
        let protocol = match upstream {
            Version::H1 => json!({ "http_protocol_options": {} }),
            Version::H2 => json!({ "http2_protocol_options": {} }),
        };
        let mut resource = json!({
            "name": name, "type": "STATIC", "connect_timeout": "2s",
            "typed_extension_protocol_options": { OPTIONS: {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            }},
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
        });
        merge(&mut resource, self.fields.clone());
        resource
    }
}

/// The key of `HttpProtocolOptions`.
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn cluster_name(name: &str, upstream: Version) -> String {
    match upstream {
        Version::H1 => name.to_owned(),
        Version::H2 => format!("{name}-h2"),
    }
}

/// Makes every mention of a known cluster the one of this protocol.
fn rename(value: &mut Value, upstream: Version, clusters: &[Cluster]) {
    let known = |name: &str| clusters.iter().any(|cluster| cluster.name == name);
    let change = |name: &mut Value| {
        if let Some(old) = name.as_str().filter(|old| known(old)) {
            *name = cluster_name(old, upstream).into();
        }
    };
    match value {
        Value::Array(list) => list.iter_mut().for_each(|one| rename(one, upstream, clusters)),
        Value::Object(fields) => {
            if let Some(name) = fields.get_mut("cluster") {
                change(name);
            }
            let weighted = fields.get_mut("weighted_clusters");
            if let Some(Value::Array(list)) = weighted.and_then(|weighted| weighted.get_mut("clusters")) {
                list.iter_mut()
                    .filter_map(|one| one.get_mut("name"))
                    .for_each(change);
            }
            fields
                .values_mut()
                .for_each(|one| rename(one, upstream, clusters));
        }
        _ => {}
    }
}

/// Puts `more` over `value`, objects into objects.
pub fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, one) in more {
                merge(fields.entry(name).or_insert(Value::Null), one);
            }
        }
        (value, more) => *value = more,
    }
}

/// Replaces the placeholders of ports.
pub fn with_ports(value: &Value, port: &dyn Fn(&str) -> u16) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix('@') {
            Some(name) => port(name).into(),
            None => value.clone(),
        },
        Value::Array(list) => list.iter().map(|one| with_ports(one, port)).collect(),
        Value::Object(fields) => {
            let changed: Map<String, Value> = fields
                .iter()
                .map(|(name, one)| {
                    (
                        name.clone(),
                        if name == "@type" {
                            one.clone()
                        } else {
                            with_ports(one, port)
                        },
                    )
                })
                .collect();
            Value::Object(changed)
        }
        other => other.clone(),
    }
}
