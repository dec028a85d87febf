//! `/config_dump`: the snapshot being served in Envoy's words, without keys.

use serde_json::{Value, json};

use crate::model::cluster::{Cluster, ClusterKind, ClusterLoadAssignment};
use crate::model::listener::{Listener, NetworkFilter, Terminal};
use crate::model::rbac::{Principal, Rbac};
use crate::model::{DownstreamTls, Identity, Snapshot, TrustBundle, UpstreamTls};

/// Renders a snapshot and the state of the source it came from.
pub fn render(snapshot: Option<&Snapshot>, source: Value) -> Value {
    let Some(snapshot) = snapshot else {
        return json!({ "source": source, "listeners": [], "clusters": [] });
    };
    json!({
        "source": source,
        "listeners": snapshot.listeners.values().map(|l| listener(l)).collect::<Vec<_>>(),
        "clusters": snapshot.clusters.values().map(|c| {
            cluster(c, snapshot.endpoints.get(&c.name).map(AsRef::as_ref))
        }).collect::<Vec<_>>(),
    })
}

fn listener(listener: &Listener) -> Value {
    let chain = &listener.filter_chain;
    let mut filters: Vec<Value> = chain.filters.iter().map(filter).collect();
    let Terminal::TcpProxy(proxy) = &chain.terminal;
    filters.push(json!({
        "name": "envoy.filters.network.tcp_proxy",
        "cluster": &*proxy.cluster,
        "idle_timeout_s": proxy.idle_timeout.map(|t| t.as_secs_f64()),
    }));
    json!({
        "name": &*listener.name,
        "address": listener.address.to_string(),
        "traffic_direction": format!("{:?}", listener.direction).to_uppercase(),
        "transport_socket": chain.transport.as_deref().map(downstream_tls),
        "filters": filters,
    })
}

fn filter(filter: &NetworkFilter) -> Value {
    match filter {
        NetworkFilter::Rbac(rules) => json!({ "name": "envoy.filters.network.rbac", "rules": rbac(rules) }),
        NetworkFilter::ConnectionLimit { max_connections } => {
            json!({ "name": "envoy.filters.network.connection_limit", "max_connections": max_connections })
        }
    }
}

fn rbac(rbac: &Rbac) -> Value {
    let rules: Vec<Value> = rbac
        .rules
        .iter()
        .map(|rule| {
            let Principal::Service {
                trust_domain,
                partition,
                namespace,
                service,
            } = &rule.principal;
            json!({
                "name": &*rule.name,
                "action": rule.action.to_string(),
                "principal": {
                    "trust_domain": trust_domain.as_deref(),
                    "partition": partition.as_deref().unwrap_or("*"),
                    "namespace": namespace.as_deref().unwrap_or("*"),
                    "service": service.as_deref().unwrap_or("*"),
                },
            })
        })
        .collect();
    json!({
        "rules": rules,
        "default_action": rbac.default_action.to_string(),
        "default_name": &*rbac.default_name,
    })
}

fn cluster(cluster: &Cluster, assignment: Option<&ClusterLoadAssignment>) -> Value {
    let kind = match &cluster.kind {
        ClusterKind::Endpoints => json!("endpoints"),
        ClusterKind::Aggregate(names) => {
            json!({ "aggregate": names.iter().map(|n| &**n).collect::<Vec<_>>() })
        }
    };
    let endpoints = assignment.map(|assignment| {
        assignment
            .endpoints
            .iter()
            .map(|e| json!({ "address": e.address.to_string(), "weight": e.weight, "healthy": e.healthy }))
            .collect::<Vec<_>>()
    });
    json!({
        "name": &*cluster.name,
        "kind": kind,
        "connect_timeout_s": cluster.connect_timeout.as_secs_f64(),
        "max_connections": cluster.max_connections,
        "transport_socket": cluster.transport.as_deref().map(upstream_tls),
        // Null while they are not known yet.
        "endpoints": endpoints,
    })
}

fn downstream_tls(tls: &DownstreamTls) -> Value {
    json!({
        "require_client_certificate": true,
        "identity": identity(&tls.identity),
        "trust": trust(&tls.trust),
        "versions": format!("{:?} to {:?}", tls.params.min, tls.params.max),
        "cipher_suites": tls.params.cipher_suites,
    })
}

fn upstream_tls(tls: &UpstreamTls) -> Value {
    json!({
        "sni": tls.sni,
        "expected": tls.spiffe_ids.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        "identity": identity(&tls.identity),
        "trust": trust(&tls.trust),
        "versions": format!("{:?} to {:?}", tls.params.min, tls.params.max),
        "cipher_suites": tls.params.cipher_suites,
    })
}

fn identity(identity: &Identity) -> Value {
    json!({
        "spiffe_id": identity.spiffe_id.as_str(),
        "serial_number": identity.leaf.serial,
        "expiration_time": super::certs::rfc3339(identity.leaf.not_after),
        "private_key": "[redacted]",
    })
}

fn trust(trust: &TrustBundle) -> Value {
    json!({
        "trust_domain": &*trust.trust_domain,
        "roots": trust.facts.iter().map(|facts| json!({
            "serial_number": facts.serial,
            "expiration_time": super::certs::rfc3339(facts.not_after),
        })).collect::<Vec<_>>(),
    })
}
