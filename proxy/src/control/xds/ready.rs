//! The ready listener at the address that Nomad tells: what Consul writes into a gateway's bootstrap, and
//! into a sidecar's not.

use std::net::SocketAddr;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::bootstrap::v3::Bootstrap as Message;
use attache_proto::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use attache_proto::envoy::config::core::v3::{Address, address, socket_address};
use attache_proto::json::{self, Diagnostics};
use prost::Message as _;
use serde_json::{Value, json};

use super::bootstrap::BootstrapError;

/// Begins the names of what is added, as in Consul's own.
const LISTENER: &str = "envoy_ready_listener";
const CLUSTER: &str = "self_admin";

/// Adds a listener at `ready` that hands `/ready` to the admin API, unless one is there already.
///
/// # Errors
/// None: what is added is a constant but for two addresses, and a test reads it.
pub(super) fn listen(
    statics: &mut StaticResources,
    ready: Option<SocketAddr>,
    admin: Option<SocketAddr>,
) -> Result<(), BootstrapError> {
    let (Some(ready), Some(admin)) = (ready, admin) else {
        return Ok(());
    };
    let taken = |listener: &attache_proto::envoy::config::listener::v3::Listener| {
        listener.name == LISTENER
            || listener
                .address
                .as_ref()
                .is_some_and(|address| is_at(address, ready))
    };
    if statics.listeners.iter().any(taken) {
        return Ok(());
    }
    let mut added = json!({ "listeners": [listener(ready)] });
    if !statics.clusters.iter().any(|cluster| cluster.name == CLUSTER) {
        added["clusters"] = json!([cluster(admin)]);
    }
    let added = json!({ "static_resources": added });
    let wire = json::to_wire(Message::TYPE_NAME, &added, &mut Diagnostics::default())?;
    let added =
        Message::decode(wire.as_slice()).map_err(|error| BootstrapError::Syntax(error.to_string()))?;
    let added = added.static_resources.unwrap_or_default();
    statics.clusters.extend(added.clusters);
    statics.listeners.extend(added.listeners);
    Ok(())
}

fn is_at(address: &Address, ready: SocketAddr) -> bool {
    let Some(address::Address::SocketAddress(socket)) = &address.address else {
        return false;
    };
    let port = socket_address::PortSpecifier::PortValue(ready.port().into());
    socket.address == ready.ip().to_string() && socket.port_specifier == Some(port)
}

fn place(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster(admin: SocketAddr) -> Value {
    json!({
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": CLUSTER, "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": place(admin) } }] },
        ]},
    })
}

fn listener(ready: SocketAddr) -> Value {
    const TYPE: &str = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": LISTENER,
        "address": place(ready),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{TYPE}.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "envoy_ready",
                "codec_type": "HTTP1",
                "route_config": { "name": "self_admin_route", "virtual_hosts": [{
                    "name": "self_admin", "domains": ["*"], "routes": [
                        { "match": { "path": "/ready" }, "route": { "cluster": CLUSTER, "prefix_rewrite": "/ready" } },
                        { "match": { "prefix": "/" }, "direct_response": { "status": 404 } },
                    ],
                }]},
                "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
                    "@type": format!("{TYPE}.http.router.v3.Router"),
                }}],
            },
        }]}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_added_once_and_only_where_nothing_listens() {
        let (ready, admin) = ("127.0.0.1:19101".parse().ok(), "127.0.0.2:19001".parse().ok());
        let mut statics = StaticResources::default();
        listen(&mut statics, None, admin).unwrap();
        assert!(statics.listeners.is_empty());
        listen(&mut statics, ready, admin).unwrap();
        assert_eq!((statics.listeners.len(), statics.clusters.len()), (1, 1));
        listen(&mut statics, ready, admin).unwrap();
        assert_eq!(statics.listeners.len(), 1);
        statics.listeners[0].name = "mine".to_owned();
        listen(&mut statics, ready, admin).unwrap();
        assert_eq!(statics.listeners.len(), 1, "somebody else is there");
    }
}
