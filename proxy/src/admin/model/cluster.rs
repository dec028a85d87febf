//! Clusters and their endpoints, as Envoy's.

use serde_json::{Value, json};

use super::{address, duration, list, message, tls, type_url};
use crate::model::cluster::{CircuitBreakers, Dns, DnsFamily, HttpProtocol, LoadBalancer, OutlierDetection};
use crate::model::listener::Address;
use crate::model::{Cluster, ClusterKind, ClusterLoadAssignment, Endpoint, Target};

pub(super) fn cluster(cluster: &Cluster) -> Value {
    let (kind, custom) = match &cluster.kind {
        ClusterKind::Endpoints => (json!("EDS"), Value::Null),
        ClusterKind::Dns(Dns { strict: true, .. }) => (json!("STRICT_DNS"), Value::Null),
        ClusterKind::Dns(_) => (json!("LOGICAL_DNS"), Value::Null),
        ClusterKind::OriginalDestination => (json!("ORIGINAL_DST"), Value::Null),
        ClusterKind::Aggregate(names) => {
            let config = json!({
                "@type": type_url("envoy.extensions.clusters.aggregate.v3.ClusterConfig"),
                "clusters": names.iter().map(|name| &**name).collect::<Vec<_>>(),
            });
            let custom = json!({ "name": "envoy.clusters.aggregate", "typed_config": config });
            (Value::Null, custom)
        }
    };
    let (policy, policy_config, policy_options) = load_balancer(cluster);
    let dns = match &cluster.kind {
        ClusterKind::Dns(dns) => Some(dns),
        _ => None,
    };
    message([
        ("@type", json!(type_url("envoy.config.cluster.v3.Cluster"))),
        ("name", json!(&*cluster.name)),
        ("type", kind),
        ("cluster_type", custom),
        ("connect_timeout", duration(cluster.connect_timeout)),
        ("lb_policy", policy),
        (policy_config, policy_options),
        ("circuit_breakers", circuit_breakers(&cluster.circuit_breakers)),
        (
            "outlier_detection",
            cluster
                .outlier_detection
                .as_ref()
                .map_or(Value::Null, outlier_detection),
        ),
        (
            "dns_refresh_rate",
            dns.map_or(Value::Null, |dns| duration(dns.refresh)),
        ),
        (
            "dns_lookup_family",
            dns.map_or(Value::Null, |dns| dns_family(dns.family)),
        ),
        (
            "common_lb_config",
            json!({ "healthy_panic_threshold": { "value": cluster.panic_threshold } }),
        ),
        (
            "transport_socket",
            cluster.transport.as_deref().map_or(Value::Null, tls::upstream),
        ),
        ("alt_stat_name", json!(cluster.alt_stat_name.as_deref())),
        ("upstream_connection_options", keepalive(cluster)),
        ("typed_extension_protocol_options", http(cluster.http)),
    ])
}

fn load_balancer(cluster: &Cluster) -> (Value, &'static str, Value) {
    if matches!(
        cluster.kind,
        ClusterKind::Aggregate(_) | ClusterKind::OriginalDestination
    ) {
        return (json!("CLUSTER_PROVIDED"), "", Value::Null);
    }
    match &cluster.load_balancer {
        LoadBalancer::RoundRobin => (Value::Null, "", Value::Null),
        LoadBalancer::LeastRequest { choice_count } => (
            json!("LEAST_REQUEST"),
            "least_request_lb_config",
            json!({ "choice_count": choice_count }),
        ),
        LoadBalancer::Random => (json!("RANDOM"), "", Value::Null),
        LoadBalancer::RingHash {
            minimum_ring_size,
            maximum_ring_size,
        } => (
            json!("RING_HASH"),
            "ring_hash_lb_config",
            json!({
                "minimum_ring_size": minimum_ring_size.to_string(),
                "maximum_ring_size": maximum_ring_size.to_string(),
            }),
        ),
        LoadBalancer::Maglev { table_size } => (
            json!("MAGLEV"),
            "maglev_lb_config",
            json!({ "table_size": table_size.to_string() }),
        ),
    }
}

fn dns_family(family: DnsFamily) -> Value {
    match family {
        DnsFamily::Auto => Value::Null,
        DnsFamily::V4Only => json!("V4_ONLY"),
        DnsFamily::V6Only => json!("V6_ONLY"),
        DnsFamily::V4Preferred => json!("V4_PREFERRED"),
        DnsFamily::All => json!("ALL"),
    }
}

fn circuit_breakers(breakers: &CircuitBreakers) -> Value {
    if *breakers == CircuitBreakers::default() {
        return Value::Null;
    }
    let threshold = message([
        ("max_connections", json!(breakers.max_connections)),
        ("max_pending_requests", json!(breakers.max_pending_requests)),
        ("max_requests", json!(breakers.max_requests)),
        ("max_retries", json!(breakers.max_retries)),
    ]);
    json!({ "thresholds": [threshold] })
}

fn outlier_detection(outlier: &OutlierDetection) -> Value {
    json!({
        "consecutive_5xx": outlier.consecutive_5xx,
        "interval": duration(outlier.interval),
        "base_ejection_time": duration(outlier.base_ejection_time),
        "max_ejection_percent": outlier.max_ejection_percent,
        "enforcing_consecutive_5xx": outlier.enforcing_consecutive_5xx,
        "consecutive_gateway_failure": outlier.consecutive_gateway_failure,
        "enforcing_consecutive_gateway_failure": outlier.enforcing_consecutive_gateway_failure,
        "max_ejection_time": duration(outlier.max_ejection_time),
    })
}

fn keepalive(cluster: &Cluster) -> Value {
    let Some(keepalive) = &cluster.keepalive else {
        return Value::Null;
    };
    let seconds = |time: Option<std::time::Duration>| json!(time.map(|time| time.as_secs()));
    let options = message([
        ("keepalive_probes", json!(keepalive.probes)),
        ("keepalive_time", seconds(keepalive.time)),
        ("keepalive_interval", seconds(keepalive.interval)),
    ]);
    json!({ "tcp_keepalive": options })
}

fn http(protocol: HttpProtocol) -> Value {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let (kind, config) = match protocol {
        HttpProtocol::Http1 => return Value::Null,
        HttpProtocol::Http2 => ("explicit_http_config", json!({ "http2_protocol_options": {} })),
        HttpProtocol::Downstream => (
            "use_downstream_protocol_config",
            json!({ "http_protocol_options": {}, "http2_protocol_options": {} }),
        ),
    };
    json!({ OPTIONS: { "@type": type_url(OPTIONS), kind: config } })
}

pub(super) fn assignment(cluster: &str, assignment: &ClusterLoadAssignment) -> Value {
    let mut priorities: Vec<u32> = assignment.endpoints.iter().map(|e| e.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let localities = priorities.into_iter().map(|priority| {
        let endpoints = assignment.endpoints.iter().filter(|e| e.priority == priority);
        let mut locality = json!({
            "locality": {},
            "lb_endpoints": endpoints.map(endpoint).collect::<Vec<_>>(),
        });
        if priority > 0 {
            locality["priority"] = json!(priority);
        }
        locality
    });
    message([
        (
            "@type",
            json!(type_url("envoy.config.endpoint.v3.ClusterLoadAssignment")),
        ),
        ("cluster_name", json!(cluster)),
        ("endpoints", list(localities.collect())),
        (
            "policy",
            json!({ "overprovisioning_factor": assignment.overprovisioning_factor }),
        ),
    ])
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let health = if endpoint.healthy { "HEALTHY" } else { "UNHEALTHY" };
    json!({
        "endpoint": { "address": target(&endpoint.address), "health_check_config": {} },
        "health_status": health,
        "load_balancing_weight": endpoint.weight,
    })
}

/// A host name stands where an address would.
fn target(target: &Target) -> Value {
    match target {
        Target::Address(Address::Pipe { path, .. }) => address(&Address::Pipe {
            path: path.clone(),
            mode: None,
        }),
        Target::Address(socket) => address(socket),
        Target::Host { host, port } => {
            json!({ "socket_address": { "address": &**host, "port_value": port } })
        }
    }
}
