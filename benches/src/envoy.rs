//! Envoy's two static bootstrap files: what Consul would send for the same two services, with the
//! certificates written into them. A peer named with `--config-file-peer` runs on them as well, and
//! Attaché wherever the stand-in does not say what a turn is to measure.

use std::net::SocketAddr;

use attache::demo::standin::Issued;
use serde_json::{Value, json};

use crate::envoy_http;
use crate::kind::Kind;
use crate::scene::{CALLEE, INTRUDER, Scene};
use crate::setup::{Handshakes, Setup};

/// How the peer `envoy-full` differs from Envoy, whose clients keep to TLS 1.2 and resume sessions
/// unless told otherwise.
pub(crate) const FULL_NOTE: &str = "no session is resumed, and TLS 1.3 on both sides";

/// What the names of all extensions begin with.
pub(crate) const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// The outbound sidecar: upstream listeners, and to each a cluster over TLS that demands the
/// callee's exact SPIFFE ID.
pub(crate) fn outbound(scene: &Scene, setup: Setup) -> Value {
    let mut context = tls_context(&scene.caller, &scene.roots);
    context["validation_context"]["match_typed_subject_alt_names"] =
        json!([{ "san_type": "URI", "matcher": { "exact": scene.callee.uri } }]);
    let mut tls = json!({ "sni": scene.sni() });
    if setup.handshakes == Handshakes::Full {
        context["tls_params"]["tls_maximum_protocol_version"] = json!("TLSv1_3");
        tls["max_session_keys"] = json!(0);
    }
    tls["common_tls_context"] = context;
    let socket = transport_socket("UpstreamTlsContext", tls);
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    let mut add = |service: &str, cluster_name: &str, address| {
        let mut upstream = cluster(scene, cluster_name, scene.inbound);
        upstream["transport_socket"] = socket.clone();
        if setup.kind.has_streams() {
            upstream["typed_extension_protocol_options"] = envoy_http::explicit_http2();
        }
        let prefix = format!("upstream.{service}.default.default.dc1");
        let terminal = match setup.kind {
            Kind::Tcp => tcp_proxy(&prefix, cluster_name),
            kind => envoy_http::outbound(kind, &prefix, cluster_name),
        };
        let chain = json!({ "filters": [terminal] });
        listeners.push(listener(service, address, "OUTBOUND", &chain));
        clusters.push(upstream);
    };
    add(CALLEE, &scene.sni(), scene.outbound);
    if setup.further_upstreams {
        for (index, address) in scene.further_upstreams.iter().enumerate() {
            let service = format!("service-{index}");
            add(&service, &scene.sni().replace(CALLEE, &service), *address);
        }
    }
    bootstrap(scene.outbound_admin, &listeners, &clusters)
}

/// The inbound sidecar: a listener that demands a client certificate and asks the intentions.
pub(crate) fn inbound(scene: &Scene, setup: Setup) -> Value {
    let mut context = tls_context(&scene.callee, &scene.roots);
    if let Some(protocols) = envoy_http::alpn(setup.kind) {
        context["alpn_protocols"] = protocols;
    }
    let mut tls = json!({ "common_tls_context": context, "require_client_certificate": true });
    if setup.handshakes == Handshakes::Full {
        tls["disable_stateless_session_resumption"] = json!(true);
        tls["disable_stateful_session_resumption"] = json!(true);
    }
    let rules = intentions(&scene.trust_domain);
    let filters = match setup.kind {
        Kind::Tcp => json!([network_rbac(&rules), tcp_proxy("public_listener", "local_app")]),
        kind => json!([envoy_http::inbound(kind, &rules, scene.metadata)]),
    };
    let chain = json!({
        "filters": filters,
        "transport_socket": transport_socket("DownstreamTlsContext", tls),
    });
    let listener = listener("public_listener", scene.inbound, "INBOUND", &chain);
    let mut local_app = cluster(scene, "local_app", scene.backend.address(setup.kind));
    if setup.kind.has_streams() {
        local_app["typed_extension_protocol_options"] = envoy_http::as_downstream();
    }
    bootstrap(scene.inbound_admin, &[listener], &[local_app])
}

fn bootstrap(admin: SocketAddr, listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "admin": { "address": socket_address(admin) },
        "node": { "cluster": "bench", "id": "bench" },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn listener(name: &str, address: SocketAddr, direction: &str, chain: &Value) -> Value {
    json!({
        "name": format!("{name}:{address}"),
        "address": socket_address(address),
        "filter_chains": [chain],
        "traffic_direction": direction,
    })
}

fn cluster(scene: &Scene, name: &str, endpoint: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": socket_address(endpoint) } });
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    if let Some(most) = scene.limit {
        cluster["circuit_breakers"] = json!({ "thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most,
        }] });
    }
    cluster
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn tls_context(identity: &Issued, roots: &str) -> Value {
    json!({
        "tls_params": {},
        "tls_certificates": [{
            "certificate_chain": { "inline_string": identity.chain_pem },
            "private_key": { "inline_string": identity.key_pem },
        }],
        "validation_context": { "trusted_ca": { "inline_string": roots } },
    })
}

fn transport_socket(kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("{EXTENSIONS}.transport_sockets.tls.v3.{kind}"));
    json!({ "name": "tls", "typed_config": config })
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": stat_prefix,
            "cluster": cluster,
        },
    })
}

fn network_rbac(rules: &Value) -> Value {
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.rbac.v3.RBAC"),
            "rules": rules,
            "stat_prefix": "connect_authz",
        },
    })
}

/// One denying intention, in the form that Consul compiles it to.
fn intentions(trust_domain: &str) -> Value {
    let domain = trust_domain.replace('.', r"\.");
    let regex = format!("^spiffe://{domain}/ns/default/dc/[^/]+/svc/{INTRUDER}$");
    let principal = json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": regex } } } });
    let policy = json!({ "permissions": [{ "any": true }], "principals": [principal] });
    json!({ "action": "DENY", "policies": { "consul-intentions-layer4": policy } })
}
