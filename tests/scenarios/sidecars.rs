//! Static bootstraps of two sidecars with HTTP between them: a caller's outbound one, and callees' inbound ones
//! with certificates of a stand-in's authority.

use std::net::SocketAddr;

use attache::demo::standin::Issued;
use attache_tests::envoy::place;
use serde_json::{Value, json};

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// HTTP/1 or HTTP/2, as a cluster says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
}

/// A listener at `at` that takes `identity`'s mutual TLS, and the plain app behind it.
pub(crate) fn inbound(
    at: SocketAddr,
    (app, app_speaks): (SocketAddr, Spoken),
    identity: &Issued,
    roots: &str,
    spoken: Spoken,
) -> Value {
    let mut demanding = tls("DownstreamTlsContext", identity, roots, spoken);
    demanding["typed_config"]["require_client_certificate"] = true.into();
    let mut listener = listener(at, "INBOUND");
    listener["filter_chains"][0]["transport_socket"] = demanding;
    json!({ "listeners": [listener], "clusters": [cluster(&[app], app_speaks)] })
}

/// A plain listener at `at`, and the callees behind it that `identity` is shown to.
pub(crate) fn outbound(
    at: SocketAddr,
    callees: &[SocketAddr],
    identity: &Issued,
    roots: &str,
    spoken: Spoken,
) -> Value {
    let mut cluster = cluster(callees, spoken);
    cluster["transport_socket"] = tls("UpstreamTlsContext", identity, roots, spoken);
    json!({ "listeners": [listener(at, "OUTBOUND")], "clusters": [cluster] })
}

fn tls(kind: &str, issued: &Issued, roots: &str, spoken: Spoken) -> Value {
    let protocol = match spoken {
        Spoken::Http1 => "http/1.1",
        Spoken::Http2 => "h2",
    };
    json!({ "name": "tls", "typed_config": {
        "@type": format!("{TYPE}.transport_sockets.tls.v3.{kind}"),
        "common_tls_context": {
            "alpn_protocols": [protocol],
            "tls_certificates": [{
                "certificate_chain": { "inline_string": issued.chain_pem },
                "private_key": { "inline_string": issued.key_pem },
            }],
            "validation_context": { "trusted_ca": { "inline_string": roots } },
        },
    }})
}

/// One with a connection manager before the cluster `next`.
fn listener(at: SocketAddr, direction: &str) -> Value {
    let manager = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "next",
        "http2_protocol_options": {},
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "next", "timeout": "0s" } },
        ]}]},
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPE}.filters.http.router.v3.Router") } }],
    }});
    json!({
        "name": "listener", "address": place(at), "traffic_direction": direction,
        "filter_chains": [{ "filters": [manager] }],
    })
}

fn cluster(to: &[SocketAddr], spoken: Spoken) -> Value {
    let endpoints: Vec<Value> = to
        .iter()
        .map(|&address| json!({ "endpoint": { "address": place(address) } }))
        .collect();
    let mut cluster = json!({
        "name": "next", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "next", "endpoints": [{ "lb_endpoints": endpoints }] },
    });
    if spoken == Spoken::Http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    cluster
}
