//! `/clusters`: every cluster with its endpoints as they are now, as text and as Envoy's `Clusters`.
//!
//! Endpoints come from the snapshot, and from the workers where they resolved or dialled some; the counts are
//! the workers'.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::model::cluster::{Cluster, ClusterKind};
use crate::model::{Snapshot, Target};
use crate::telemetry::endpoints::{Counts, Facts, collect};

/// A cluster's endpoints by address.
type Hosts = BTreeMap<String, (Facts, Counts)>;

/// Envoy's defaults of its circuit breakers.
const DEFAULT_LIMIT: u32 = 1024;
const DEFAULT_RETRIES: u32 = 3;

/// A cluster as it is shown.
pub(super) struct Status<'a> {
    config: &'a Cluster,
    added_via_api: bool,
    hosts: Hosts,
}

/// The clusters of a snapshot; `fixed` names those that did not come from a control plane.
pub(super) fn statuses<'a>(snapshot: Option<&'a Snapshot>, fixed: &BTreeSet<String>) -> Vec<Status<'a>> {
    let mut live: BTreeMap<String, Hosts> = BTreeMap::new();
    for (cluster, address, facts, counts) in collect() {
        live.entry(cluster).or_default().insert(address, (facts, counts));
    }
    let clusters = snapshot.iter().flat_map(|snapshot| {
        snapshot
            .clusters
            .iter()
            .map(|(name, config)| (config, snapshot.endpoints.get(name)))
    });
    clusters
        .map(|(config, assignment)| {
            let mut hosts = live.remove(&*config.name).unwrap_or_default();
            if config.kind == ClusterKind::Endpoints {
                // One that has left has counts for as long as it has connections.
                hosts.retain(|address, _| {
                    let mut all = assignment.iter().flat_map(|assignment| &assignment.endpoints);
                    all.any(|endpoint| endpoint.address.to_string() == *address)
                });
            }
            for endpoint in assignment.iter().flat_map(|assignment| &assignment.endpoints) {
                // A host name is shown by the addresses that it was resolved to.
                if let Target::Address(address) = &endpoint.address {
                    let facts = Facts {
                        hostname: String::new(),
                        weight: endpoint.weight,
                        priority: endpoint.priority,
                        healthy: endpoint.healthy,
                        locality: Default::default(),
                    };
                    let host = hosts
                        .entry(address.to_string())
                        .or_insert_with(|| (facts.clone(), Counts::default()));
                    host.0 = facts;
                }
            }
            Status {
                config,
                added_via_api: !fixed.contains(&*config.name),
                hosts,
            }
        })
        .collect()
}

/// The limits of a priority, as Envoy calls them. Attaché's are those of the default one.
fn limits(cluster: &Cluster, default_priority: bool) -> [(&'static str, u32); 4] {
    let breakers = cluster.circuit_breakers;
    let limit = |limit: Option<u32>, default| limit.filter(|_| default_priority).unwrap_or(default);
    [
        ("max_connections", limit(breakers.max_connections, DEFAULT_LIMIT)),
        (
            "max_pending_requests",
            limit(breakers.max_pending_requests, DEFAULT_LIMIT),
        ),
        ("max_requests", limit(breakers.max_requests, DEFAULT_LIMIT)),
        ("max_retries", limit(breakers.max_retries, DEFAULT_RETRIES)),
    ]
}

/// Envoy's flags of what is wrong with an endpoint.
fn health_flags(facts: &Facts, counts: &Counts) -> String {
    let mut flags = String::new();
    if counts.ejected > 0 {
        flags.push_str("/failed_outlier_check");
    }
    if !facts.healthy {
        flags.push_str("/failed_eds_health");
    }
    if flags.is_empty() {
        flags.push_str("healthy");
    }
    flags
}

/// `<cluster>::<…>::<value>`, a line each.
pub(super) fn text(statuses: &[Status<'_>]) -> String {
    let mut out = String::new();
    for status in statuses {
        let name = &status.config.name;
        let _ = writeln!(out, "{name}::observability_name::{}", status.config.stat_name());
        for (priority, default) in [("default", true), ("high", false)] {
            for (limit, value) in limits(status.config, default) {
                let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{value}");
            }
        }
        let _ = writeln!(out, "{name}::added_via_api::{}", status.added_via_api);
        for (address, (facts, counts)) in &status.hosts {
            let [region, zone, sub_zone] = &facts.locality;
            for (what, value) in [
                ("cx_active", &counts.active as &dyn std::fmt::Display),
                ("cx_connect_fail", &counts.connect_failures),
                ("cx_total", &counts.connections),
                ("hostname", &facts.hostname),
                ("health_flags", &health_flags(facts, counts)),
                ("weight", &facts.weight),
                ("region", region),
                ("zone", zone),
                ("sub_zone", sub_zone),
                ("canary", &false),
                ("priority", &facts.priority),
                ("success_rate", &-1),
                ("local_origin_success_rate", &-1),
            ] {
                let _ = writeln!(out, "{name}::{address}::{what}::{value}");
            }
        }
    }
    out
}

/// Envoy's `Clusters`.
pub(super) fn json(statuses: &[Status<'_>]) -> Value {
    let statuses: Vec<Value> = statuses.iter().map(cluster).collect();
    if statuses.is_empty() {
        return json!({});
    }
    json!({ "cluster_statuses": statuses })
}

fn cluster(status: &Status<'_>) -> Value {
    let thresholds = [true, false].map(|default| {
        let mut threshold = serde_json::Map::new();
        if !default {
            threshold.insert("priority".to_owned(), json!("HIGH"));
        }
        // proto3 leaves a plain 0 out, but these are wrapped.
        threshold
            .extend(limits(status.config, default).map(|(limit, value)| (limit.to_owned(), json!(value))));
        Value::from(threshold)
    });
    let hosts: Vec<Value> = status
        .hosts
        .iter()
        .map(|(address, host)| self::host(address, host))
        .collect();
    let mut shown = json!({ "name": &*status.config.name });
    if status.added_via_api {
        shown["added_via_api"] = json!(true);
    }
    if !hosts.is_empty() {
        shown["host_statuses"] = hosts.into();
    }
    shown["circuit_breakers"] = json!({ "thresholds": thresholds });
    shown["observability_name"] = json!(**status.config.stat_name());
    shown
}

fn host(address: &str, (facts, counts): &(Facts, Counts)) -> Value {
    // As proto3 JSON leaves a 0 and the first name of an enum out.
    let metric = |name: &str, gauge: bool, value: u64| {
        let mut metric = serde_json::Map::new();
        if gauge {
            metric.insert("type".to_owned(), json!("GAUGE"));
        }
        if value > 0 {
            metric.insert("value".to_owned(), json!(value.to_string()));
        }
        metric.insert("name".to_owned(), json!(name));
        Value::from(metric)
    };
    let mut health = json!({
        "eds_health_status": if facts.healthy { "HEALTHY" } else { "UNHEALTHY" },
    });
    if counts.ejected > 0 {
        health["failed_outlier_check"] = json!(true);
    }
    let mut shown = json!({
        "address": self::address(address),
        "stats": [
            metric("cx_connect_fail", false, counts.connect_failures),
            metric("cx_total", false, counts.connections),
            metric("cx_active", true, counts.active),
        ],
        "health_status": health,
        "weight": facts.weight,
        "locality": {},
    });
    if !facts.hostname.is_empty() {
        shown["hostname"] = json!(facts.hostname);
    }
    if facts.priority > 0 {
        shown["priority"] = json!(facts.priority);
    }
    for (part, value) in ["region", "zone", "sub_zone"].into_iter().zip(&facts.locality) {
        if !value.is_empty() {
            shown["locality"][part] = json!(value);
        }
    }
    shown
}

/// What is no socket address is the path of a unix socket.
fn address(text: &str) -> Value {
    match text.parse::<SocketAddr>() {
        Ok(socket) => super::model::address(&crate::model::listener::Address::Socket(socket)),
        Err(_) => json!({ "pipe": { "path": text } }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::{Dns, DnsFamily};
    use crate::model::listener::Address;
    use crate::model::{ClusterLoadAssignment, Endpoint};
    use crate::telemetry::endpoints::EndpointMetrics;
    use std::sync::Arc;

    fn snapshot() -> Snapshot {
        let endpoint = |port: u16, healthy| Endpoint {
            address: Target::Address(Address::Socket(([127, 0, 0, 1], port).into())),
            weight: 1,
            healthy,
            priority: 0,
            hostname: None,
        };
        let mut snapshot = Snapshot::default();
        let resolved = ClusterKind::Dns(Dns {
            strict: true,
            refresh: std::time::Duration::from_secs(5),
            family: DnsFamily::Auto,
        });
        for (name, kind) in [("clusters-a", ClusterKind::Endpoints), ("clusters-b", resolved)] {
            let cluster = Cluster {
                name: name.into(),
                kind,
                ..Cluster::default()
            };
            snapshot.clusters.insert(name.into(), Arc::new(cluster));
        }
        let assignment = ClusterLoadAssignment {
            endpoints: vec![endpoint(1, true), endpoint(2, false)],
            ..ClusterLoadAssignment::default()
        };
        snapshot
            .endpoints
            .insert("clusters-a".into(), Arc::new(assignment));
        snapshot
    }

    #[test]
    fn endpoints_with_their_counts() {
        let snapshot = snapshot();
        let facts = |hostname: &str| Facts {
            hostname: hostname.to_owned(),
            weight: 7,
            priority: 1,
            healthy: true,
            locality: Default::default(),
        };
        let dialled = EndpointMetrics::new("clusters-a", "127.0.0.1:1", facts(""));
        dialled.connections.increment(3);
        dialled.active.add(2);
        dialled.ejected.set(1);
        let _resolved = EndpointMetrics::new("clusters-b", "10.0.0.1:80", facts("api.example"));
        let fixed = BTreeSet::from(["clusters-b".to_owned()]);
        let statuses = statuses(Some(&snapshot), &fixed);

        let page = text(&statuses);
        for line in [
            "clusters-a::observability_name::clusters-a\n",
            "clusters-a::default_priority::max_connections::1024\n",
            "clusters-a::high_priority::max_retries::3\n",
            "clusters-a::added_via_api::true\n",
            "clusters-b::added_via_api::false\n",
            "clusters-a::127.0.0.1:1::cx_active::2\n",
            "clusters-a::127.0.0.1:1::cx_total::3\n",
            // The snapshot knows better.
            "clusters-a::127.0.0.1:1::weight::1\n",
            "clusters-a::127.0.0.1:1::health_flags::/failed_outlier_check\n",
            "clusters-a::127.0.0.1:2::health_flags::/failed_eds_health\n",
            "clusters-b::10.0.0.1:80::hostname::api.example\n",
            "clusters-b::10.0.0.1:80::priority::1\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }

        let shown = json(&statuses);
        let a = &shown["cluster_statuses"][0];
        assert_eq!(a["added_via_api"], true);
        assert_eq!(
            a["host_statuses"][0],
            json!({
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": 1 } },
                "stats": [
                    { "name": "cx_connect_fail" },
                    { "value": "3", "name": "cx_total" },
                    { "type": "GAUGE", "value": "2", "name": "cx_active" },
                ],
                "health_status": { "eds_health_status": "HEALTHY", "failed_outlier_check": true },
                "weight": 1,
                "locality": {},
            })
        );
        assert_eq!(
            a["host_statuses"][1]["health_status"],
            json!({ "eds_health_status": "UNHEALTHY" })
        );
        let thresholds = &a["circuit_breakers"]["thresholds"];
        assert_eq!(thresholds[1]["priority"], "HIGH");
        assert_eq!(
            shown["cluster_statuses"][1]["host_statuses"][0]["hostname"],
            "api.example"
        );
    }
}
