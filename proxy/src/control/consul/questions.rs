//! Which question to Consul keeps which part of the state up to date.
//!
//! Owns the paths of Consul's API; asks nothing itself.

use std::time::Duration;

use serde_json::json;

use super::client::{Request, escape};
use super::state::{ChainKey, HealthKey, QueryKey};
use super::watch::{Blocking, Priority, Question};

/// For a question that Consul answers at once.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);

fn question(name: String, target: String, blocking: Blocking) -> Question {
    Question {
        name,
        request: Request::get(target, TIMEOUT),
        blocking,
        missing_is_answer: false,
    }
}

const ESSENTIAL: Blocking = Blocking::Index(Priority::Essential);

pub(super) fn registration(id: &str) -> Question {
    let target = format!("/v1/agent/service/{}", escape(id));
    Question {
        missing_is_answer: true,
        ..question("registration".to_owned(), target, Blocking::Hash)
    }
}

pub(super) fn services() -> Request {
    let filter = escape("Kind == \"connect-proxy\"");
    Request::get(format!("/v1/agent/services?filter={filter}"), TIMEOUT)
}

pub(super) fn roots() -> Question {
    question(
        "roots".to_owned(),
        "/v1/agent/connect/ca/roots".to_owned(),
        ESSENTIAL,
    )
}

pub(super) fn leaf(service: &str) -> Question {
    let target = format!("/v1/agent/connect/ca/leaf/{}", escape(service));
    question("leaf".to_owned(), target, ESSENTIAL)
}

pub(super) fn intentions(service: &str) -> Question {
    let service = escape(service);
    let target = format!("/v1/connect/intentions/match?by=destination&name={service}");
    question("intentions".to_owned(), target, ESSENTIAL)
}

/// There need not be a mesh entry.
pub(super) fn mesh() -> Question {
    let mut mesh = question("mesh".to_owned(), "/v1/config/mesh/mesh".to_owned(), ESSENTIAL);
    mesh.missing_is_answer = true;
    // Mesh entries know partitions, not namespaces: the scope of a service does not fit.
    mesh.request.scoped = false;
    mesh
}

/// There need not be such a provider. As with mesh entries, the scope of a service does not fit.
pub(super) fn provider(name: &str) -> Question {
    let target = format!("/v1/config/jwt-provider/{}", escape(name));
    let mut provider = question(format!("jwt-provider {name}"), target, ESSENTIAL);
    provider.missing_is_answer = true;
    provider.request.scoped = false;
    provider
}

/// Agents before 1.14 do not tell it.
pub(super) fn version() -> Question {
    let target = "/v1/agent/version".to_owned();
    let mut version = question("agent version".to_owned(), target, Blocking::Never);
    version.missing_is_answer = true;
    version.request.scoped = false;
    version
}

/// Whether a caller that no intention names may connect. Name and namespace are made up for each
/// question: no exact intention can name them.
pub(super) fn authorize(service: &str, trust_domain: &str, partition: &str, dc: &str) -> Request {
    let nobody = |length| -> String { (0..length).map(|_| fastrand::alphanumeric()).collect() };
    let (namespace, name) = (nobody(24).to_lowercase(), nobody(48).to_lowercase());
    let partition = match partition {
        "default" => String::new(),
        other => format!("/ap/{}", escape(other)),
    };
    let dc = escape(dc);
    let uri = format!("spiffe://{trust_domain}{partition}/ns/{namespace}/dc/{dc}/svc/{name}");
    let body = json!({ "Target": service, "ClientCertURI": uri, "ClientCertSerial": "" });
    Request::post("/v1/agent/connect/authorize", body.to_string(), TIMEOUT)
}

/// The chain is compiled for the upstream's datacenter but asked in the agent's own.
pub(super) fn chain(key: &ChainKey) -> Question {
    let mut target = format!("/v1/discovery-chain/{}", escape(&key.service));
    let mut name = format!("chain {}", key.service);
    let pairs = [
        ("compile-dc", &key.datacenter),
        ("ns", &key.namespace),
        ("partition", &key.partition),
    ];
    push(
        &mut target,
        &mut name,
        &pairs.map(|(k, v)| (k, v.as_deref().unwrap_or(""))),
    );
    let mut body = serde_json::Map::new();
    if let Some(protocol) = &key.protocol {
        body.insert("OverrideProtocol".to_owned(), json!(protocol));
    }
    if let Some(ms) = key.connect_timeout_ms {
        body.insert("OverrideConnectTimeout".to_owned(), json!(format!("{ms}ms")));
    }
    if !key.mesh_gateway.is_empty() {
        body.insert(
            "OverrideMeshGateway".to_owned(),
            json!({ "Mode": key.mesh_gateway }),
        );
    }
    let mut chain = question(name, target, Blocking::Index(Priority::Chain));
    if !body.is_empty() {
        let body = serde_json::Value::Object(body).to_string();
        chain.name = format!("{} {body}", chain.name);
        chain.request = Request::post(chain.request.target, body, TIMEOUT);
    }
    chain.request.scoped = false;
    chain
}

/// Warnings and failures are asked for too: whether an instance with a warning is used, and with what
/// weight, is for the compiler to decide as Consul does.
pub(super) fn health(key: &HealthKey) -> Question {
    let mut target = format!("/v1/health/connect/{}", escape(&key.service));
    let mut name = format!("endpoints {}", key.service);
    let unless_default = |text: &str| {
        if text == "default" {
            String::new()
        } else {
            text.to_owned()
        }
    };
    let (ns, partition) = (unless_default(&key.namespace), unless_default(&key.partition));
    let pairs = [
        ("dc", key.datacenter.as_str()),
        ("ns", &ns),
        ("partition", &partition),
        ("filter", &key.filter),
    ];
    push(&mut target, &mut name, &pairs);
    let mut health = question(name, target, Blocking::Index(Priority::Endpoints));
    health.request.scoped = false;
    health
}

pub(super) fn query(key: &QueryKey) -> Question {
    let mut target = format!("/v1/query/{}/execute?connect=true", escape(&key.name));
    let mut name = format!("query {}", key.name);
    push(
        &mut target,
        &mut name,
        &[("dc", key.datacenter.as_deref().unwrap_or(""))],
    );
    let mut query = question(name, target, Blocking::Never);
    query.request.scoped = false;
    query
}

fn push(target: &mut String, name: &mut String, pairs: &[(&str, &str)]) {
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(&format!("{key}={}", escape(value)));
        name.push_str(&format!(" {key}={value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_posted_and_parameters_escaped() {
        let mut key = ChainKey {
            service: "a/b".to_owned(),
            datacenter: Some("dc 2".to_owned()),
            ..ChainKey::default()
        };
        let plain = chain(&key).request;
        assert_eq!(plain.target, "/v1/discovery-chain/a%2Fb?compile-dc=dc%202");
        assert!(plain.body.is_none());
        key.connect_timeout_ms = Some(1500);
        let posted = chain(&key).request;
        assert_eq!(posted.body.unwrap(), r#"{"OverrideConnectTimeout":"1500ms"}"#);
        let health = health(&HealthKey {
            service: "api".to_owned(),
            datacenter: "dc1".to_owned(),
            namespace: "default".to_owned(),
            filter: "Service.Meta.version == v1".to_owned(),
            ..HealthKey::default()
        });
        assert_eq!(
            health.request.target,
            "/v1/health/connect/api?dc=dc1&filter=Service.Meta.version%20%3D%3D%20v1"
        );
    }
}
