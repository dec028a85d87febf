//! Envoy's two static bootstrap files: what Consul would send for the same two services, with the
//! certificates written into them. A peer named with `--config-file-peer` runs on them as well.

use std::net::SocketAddr;

use attache::demo::standin::Issued;
use serde_json::{Value, json};

use crate::scene::{CALLEE, INTRUDER, Scene};

/// Envoy's clients keep to TLS 1.2 and resume sessions unless told otherwise, so that all but the
/// first few of its handshakes are short ones. Attaché's are all full ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshakes {
    /// As Consul configures it.
    Resumed,
    /// The same work as Attaché's.
    Full,
}

/// How a peer with full handshakes differs from Envoy.
pub(crate) const FULL_NOTE: &str = "no session is resumed, and TLS 1.3 on both sides";

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// The outbound sidecar: an upstream listener, and a cluster over TLS that demands the callee's
/// exact SPIFFE ID.
pub(crate) fn outbound(scene: &Scene, handshakes: Handshakes) -> Value {
    let mut context = tls_context(&scene.caller, &scene.roots);
    context["validation_context"]["match_typed_subject_alt_names"] =
        json!([{ "san_type": "URI", "matcher": { "exact": scene.callee.uri } }]);
    let mut tls = json!({ "sni": scene.sni() });
    if handshakes == Handshakes::Full {
        context["tls_params"]["tls_maximum_protocol_version"] = json!("TLSv1_3");
        tls["max_session_keys"] = json!(0);
    }
    tls["common_tls_context"] = context;
    let socket = transport_socket("UpstreamTlsContext", tls);
    let mut upstream = cluster(&scene.sni(), scene.inbound);
    upstream["transport_socket"] = socket;
    let chain = json!({ "filters": [tcp_proxy("upstream.count-api", &scene.sni())] });
    let listener = listener(CALLEE, scene.outbound, "OUTBOUND", &chain);
    bootstrap(scene.outbound_admin, &listener, &upstream)
}

/// The inbound sidecar: a listener that demands a client certificate and asks the intentions.
pub(crate) fn inbound(scene: &Scene, handshakes: Handshakes) -> Value {
    let context = tls_context(&scene.callee, &scene.roots);
    let mut tls = json!({ "common_tls_context": context, "require_client_certificate": true });
    if handshakes == Handshakes::Full {
        tls["disable_stateless_session_resumption"] = json!(true);
        tls["disable_stateful_session_resumption"] = json!(true);
    }
    let socket = transport_socket("DownstreamTlsContext", tls);
    let chain = json!({
        "filters": [intentions(&scene.trust_domain), tcp_proxy("public_listener", "local_app")],
        "transport_socket": socket,
    });
    let listener = listener("public_listener", scene.inbound, "INBOUND", &chain);
    bootstrap(
        scene.inbound_admin,
        &listener,
        &cluster("local_app", scene.backend),
    )
}

fn bootstrap(admin: SocketAddr, listener: &Value, cluster: &Value) -> Value {
    json!({
        "admin": { "address": socket_address(admin) },
        "node": { "cluster": "bench", "id": "bench" },
        "static_resources": { "listeners": [listener], "clusters": [cluster] },
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

fn cluster(name: &str, endpoint: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": socket_address(endpoint) } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
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

/// One denying intention, in the form that Consul compiles it to.
fn intentions(trust_domain: &str) -> Value {
    let domain = trust_domain.replace('.', r"\.");
    let regex = format!("^spiffe://{domain}/ns/default/dc/[^/]+/svc/{INTRUDER}$");
    let principal = json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": regex } } } });
    let policy = json!({ "permissions": [{ "any": true }], "principals": [principal] });
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.rbac.v3.RBAC"),
            "rules": { "action": "DENY", "policies": { "consul-intentions-layer4": policy } },
            "stat_prefix": "connect_authz",
        },
    })
}
