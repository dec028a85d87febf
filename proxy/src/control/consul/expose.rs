//! Paths of the service that are reachable without mutual TLS: one listener each.
//!
//! Pure, a part of [`super::compile`]. What says who may ask for them cannot be told by the HTTP API (paths
//! of checks), so such a path gets no listener.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::compile::{self, Parts};
use super::http_manager::{self, Protocol};
use super::registration::{ExposedPath, Registration};
use crate::model::cluster::HttpProtocol;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::http::Routes;
use crate::model::listener::{Address, Direction};
use crate::model::route::{PathMatch, RouteAction};
use crate::model::{FilterChain, Name, Terminal};

/// The listeners of the exposed paths, at `ip`.
pub(super) fn compile(registration: &Registration, ip: IpAddr, parts: &mut Parts) {
    for path in &registration.exposed {
        if let Err(why) = one(path, registration, ip, parts) {
            let ExposedPath {
                path, listener_port, ..
            } = path;
            parts.notices.insert(format!(
                "Proxy.Expose: the path {path} on port {listener_port} is refused: {why}"
            ));
        }
    }
}

fn one(path: &ExposedPath, registration: &Registration, ip: IpAddr, parts: &mut Parts) -> Result<(), String> {
    let protocol = Protocol::parse(&path.protocol)
        .ok_or_else(|| format!("its protocol {:?} is not known", path.protocol))?;
    if path.listener_port == 0 {
        return Err("it has no ListenerPort".to_owned());
    }
    let address = Address::Socket(SocketAddr::new(ip, path.listener_port));
    if let Some(other) = parts.listeners.values().find(|l| l.address == address) {
        return Err(format!("the listener {} has its address already", other.name));
    }
    let cluster: Name = if path.local_port == registration.local_port {
        compile::LOCAL_APP.into()
    } else {
        let name: Name = format!("exposed_cluster_{}", path.local_port).into();
        let http = match protocol {
            Protocol::Http => HttpProtocol::Http1,
            Protocol::Http2 | Protocol::Grpc => HttpProtocol::Http2,
        };
        compile::local_cluster(&name, path.local_port, http, registration, parts);
        name
    };
    let letters: String = path.path.chars().filter(char::is_ascii_alphanumeric).collect();
    let filter: Name = format!("exposed_path_filter_{letters}_{}", path.listener_port).into();
    let table = http_manager::simple_table(
        Arc::clone(&filter),
        Arc::clone(&filter),
        PathMatch::Path(path.path.as_str().into()),
        RouteAction::to(cluster),
    )?;
    let limit = http_manager::max_request_headers_kb(registration, parts);
    let manager = http_manager::manager(protocol, filter, Routes::Inline(table), limit);
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        transport: None,
        filters: Vec::new(),
        terminal: Terminal::HttpConnectionManager(Arc::new(manager)),
    };
    let name: Name = format!("exposed_path_{letters}:{address}").into();
    let listener = compile::listener(Arc::clone(&name), address, Direction::Inbound, chain);
    parts.listeners.insert(name, listener);
    Ok(())
}
