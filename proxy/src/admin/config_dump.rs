//! `/config_dump`: the snapshot being served in Envoy's words, without keys.

use serde_json::{Value, json};

use crate::model::cluster::{Cluster, ClusterKind, ClusterLoadAssignment};
use crate::model::listener::{ClientCertificate, FilterChain, Listener, NetworkFilter, Terminal};
use crate::model::rbac::{Principal, Rbac};
use crate::model::{DownstreamTls, Identity, Snapshot, SpiffeId, Trust, UpstreamTls};

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
    json!({
        "name": &*listener.name,
        "address": listener.address.to_string(),
        "traffic_direction": format!("{:?}", listener.direction).to_uppercase(),
        "filter_chains": listener.chains().map(|chain| filter_chain(chain)).collect::<Vec<_>>(),
    })
}

fn filter_chain(chain: &FilterChain) -> Value {
    let mut filters: Vec<Value> = chain.filters.iter().map(filter).collect();
    filters.push(match &chain.terminal {
        Terminal::TcpProxy(proxy) => json!({
            "name": "envoy.filters.network.tcp_proxy",
            "clusters": proxy.clusters.iter().map(|c| &*c.name).collect::<Vec<_>>(),
            "idle_timeout_s": proxy.idle_timeout.map(|t| t.as_secs_f64()),
        }),
        Terminal::HttpConnectionManager(manager) => json!({
            "name": "envoy.filters.network.http_connection_manager",
            "stat_prefix": &*manager.stat_prefix,
        }),
    });
    json!({
        "transport_socket": chain.transport.as_deref().map(downstream_tls),
        "filters": filters,
    })
}

fn filter(filter: &NetworkFilter) -> Value {
    match filter {
        NetworkFilter::Rbac { rules, .. } => {
            json!({ "name": "envoy.filters.network.rbac", "rules": rbac(rules) })
        }
        NetworkFilter::ConnectionLimit { max_connections, .. } => {
            json!({ "name": "envoy.filters.network.connection_limit", "max_connections": max_connections })
        }
        NetworkFilter::SniCluster => json!({ "name": "envoy.filters.network.sni_cluster" }),
    }
}

fn rbac(rbac: &Rbac) -> Value {
    let rules: Vec<Value> = rbac
        .rules
        .iter()
        .map(|rule| {
            json!({
                "name": &*rule.name,
                "action": rule.action.to_string(),
                "principal": principal(&rule.principal),
            })
        })
        .collect();
    json!({
        "rules": rules,
        "default_action": rbac.default_action.to_string(),
        "default_name": &*rbac.default_name,
    })
}

fn principal(principal: &Principal) -> Value {
    match principal {
        Principal::Service {
            trust_domain,
            partition,
            namespace,
            service,
        } => json!({
            "trust_domain": trust_domain.as_deref(),
            "partition": partition.as_deref().unwrap_or("*"),
            "namespace": namespace.as_deref().unwrap_or("*"),
            "service": service.as_deref().unwrap_or("*"),
        }),
        other => format!("{other:?}").into(),
    }
}

fn cluster(cluster: &Cluster, assignment: Option<&ClusterLoadAssignment>) -> Value {
    let kind = match &cluster.kind {
        ClusterKind::Endpoints => json!("endpoints"),
        ClusterKind::Dns(dns) => json!({ "dns": format!("{dns:?}") }),
        ClusterKind::OriginalDestination => json!("original destination"),
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
        "max_connections": cluster.circuit_breakers.max_connections,
        "transport_socket": cluster.transport.as_deref().map(upstream_tls),
        // Null while they are not known yet.
        "endpoints": endpoints,
    })
}

fn downstream_tls(tls: &DownstreamTls) -> Value {
    json!({
        "require_client_certificate": matches!(tls.client, ClientCertificate::Required(_)),
        "identity": identity(&tls.identity),
        "trust": match &tls.client {
            ClientCertificate::None => Value::Null,
            ClientCertificate::Optional(v) | ClientCertificate::Required(v) => trust(&v.trust),
        },
        "versions": format!("{:?} to {:?}", tls.params.min, tls.params.max),
        "cipher_suites": tls.params.cipher_suites,
    })
}

fn upstream_tls(tls: &UpstreamTls) -> Value {
    json!({
        "sni": tls.sni.as_deref(),
        "expected": tls.validation.names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>(),
        "identity": tls.identity.as_deref().map(identity),
        "trust": trust(&tls.validation.trust),
        "versions": format!("{:?} to {:?}", tls.params.min, tls.params.max),
        "cipher_suites": tls.params.cipher_suites,
    })
}

fn identity(identity: &Identity) -> Value {
    json!({
        "spiffe_id": identity.spiffe_id.as_ref().map(SpiffeId::as_str),
        "serial_number": identity.leaf.serial,
        "expiration_time": super::certs::rfc3339(identity.leaf.not_after),
        "private_key": "[redacted]",
    })
}

fn trust(trust: &Trust) -> Value {
    let domains = match trust {
        Trust::Roots(_) => &[][..],
        Trust::Spiffe(bundles) => bundles,
    };
    json!({
        "trust_domains": domains.iter().map(|bundle| &*bundle.trust_domain).collect::<Vec<_>>(),
        "roots": trust.roots().flat_map(|roots| &roots.facts).map(|facts| json!({
            "serial_number": facts.serial,
            "expiration_time": super::certs::rfc3339(facts.not_after),
        })).collect::<Vec<_>>(),
    })
}
