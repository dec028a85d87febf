//! The HTTP parts of Envoy's files, as Consul 1.23 fills them: connection managers with their
//! routes and filters, and which version of HTTP goes where.

use serde_json::{Value, json};

use crate::envoy::EXTENSIONS;
use crate::kind::Kind;

/// What Consul takes out of a caller's certificate, in the order of the groups of [`CALLER`].
const CALLER_PARTS: [&str; 5] = ["trust-domain", "partition", "namespace", "datacenter", "service"];

/// Consul's pattern for them.
const CALLER: &str = ".*URI=spiffe://([^/]+.[^/]+)(?:/ap/([^/]+))?/ns/([^/]+)/dc/([^/]+)/svc/([^/;,]+).*";

/// An upstream listener's connection manager.
pub(crate) fn outbound(kind: Kind, stat_prefix: &str, cluster: &str) -> Value {
    let mut filters = grpc_filters(kind);
    filters.push(router());
    manager(kind, manager_config(stat_prefix, cluster, &filters))
}

/// The public listener's: intentions, and the caller's name in a header (Consul leaves that out
/// for gRPC), whose parts become metadata unless a run is to do without.
pub(crate) fn inbound(kind: Kind, rules: &Value, metadata: bool) -> Value {
    let mut filters = grpc_filters(kind);
    filters.push(filter("rbac", "rbac.v3.RBAC", json!({ "rules": rules })));
    if kind != Kind::Grpc && metadata {
        filters.push(caller_to_metadata());
    }
    filters.push(router());
    let mut config = manager_config("public_listener", "local_app", &filters);
    config["normalize_path"] = json!(true);
    if kind != Kind::Grpc {
        config["forward_client_cert_details"] = json!("APPEND_FORWARD");
        config["set_current_client_cert_details"] =
            json!({ "subject": true, "cert": true, "dns": true, "uri": true, "chain": true });
    }
    manager(kind, config)
}

/// What the public listener offers by ALPN.
pub(crate) fn alpn(kind: Kind) -> Option<Value> {
    match kind {
        Kind::Tcp => None,
        Kind::Http1 => Some(json!(["http/1.1"])),
        Kind::Http2 | Kind::Grpc => Some(json!(["h2", "http/1.1"])),
    }
}

/// A cluster that is spoken to over HTTP/2.
pub(crate) fn explicit_http2() -> Value {
    protocol(json!({ "explicit_http_config": { "http2_protocol_options": {} } }))
}

/// A cluster that is spoken to in the version in which the request came.
pub(crate) fn as_downstream() -> Value {
    protocol(json!({
        "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
    }))
}

fn protocol(mut options: Value) -> Value {
    options["@type"] = json!(format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"));
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options })
}

fn manager(kind: Kind, mut config: Value) -> Value {
    if kind.has_streams() {
        config["http2_protocol_options"] = json!({});
    }
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": config })
}

fn manager_config(stat_prefix: &str, cluster: &str, filters: &[Value]) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
    json!({
        "@type": format!(
            "{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": stat_prefix,
        "route_config": {
            "name": stat_prefix,
            "virtual_hosts": [{ "name": stat_prefix, "domains": ["*"], "routes": [route] }],
        },
        "http_filters": filters,
        "tracing": { "random_sampling": {} },
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
    })
}

fn grpc_filters(kind: Kind) -> Vec<Value> {
    if kind != Kind::Grpc {
        return Vec::new();
    }
    vec![
        filter(
            "grpc_stats",
            "grpc_stats.v3.FilterConfig",
            json!({ "stats_for_all_methods": true }),
        ),
        filter("grpc_http1_bridge", "grpc_http1_bridge.v3.Config", json!({})),
    ]
}

fn caller_to_metadata() -> Value {
    let rule = |(index, key): (usize, &&str)| {
        json!({
            "header": "x-forwarded-client-cert",
            "on_header_present": {
                "metadata_namespace": "consul",
                "key": key,
                "regex_value_rewrite": {
                    "pattern": { "regex": CALLER },
                    "substitution": format!("\\{}", index + 1),
                },
            },
        })
    };
    let rules: Vec<Value> = CALLER_PARTS.iter().enumerate().map(rule).collect();
    filter(
        "header_to_metadata",
        "header_to_metadata.v3.Config",
        json!({ "request_rules": rules }),
    )
}

fn router() -> Value {
    filter("router", "router.v3.Router", json!({}))
}

fn filter(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("{EXTENSIONS}.filters.http.{kind}"));
    json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": config })
}
