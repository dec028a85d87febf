//! From what is known of the mesh to a snapshot of the model.
//!
//! Pure: the same state always gives the same snapshot. Parts that did not change are the previous
//! snapshot's own `Arc`s. What is not carried out is refused by name and told as a notice, never
//! skipped in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::intentions::{self, Destination};
use super::registration::Registration;
use super::state::{Authority, Given, State, Want};
use super::upstreams;
use crate::model::cluster::CircuitBreakers;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{Address, ClientCertificate, Direction, ListenerFilters, TcpProxy};
use crate::model::rbac::Rbac;
use crate::model::{
    Cluster, ClusterLoadAssignment, DownstreamTls, Endpoint, FilterChain, Listener, Name, NetworkFilter,
    Snapshot, Target, Terminal, Validation,
};

/// The cluster that is the service itself.
const LOCAL_APP: &str = "local_app";
/// Consul's stat prefixes, as its xDS server writes them.
const RBAC_STAT_PREFIX: &str = "connect_authz";
const LIMIT_STAT_PREFIX: &str = "inbound_connection_limit";
const PUBLIC_STAT_PREFIX: &str = "public_listener";
/// Consul's default for `local_connect_timeout_ms`.
const LOCAL_CONNECT_TIMEOUT_MS: u64 = 5000;

/// What a state compiles to.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// None while registration, roots or leaf are not known.
    pub(super) snapshot: Option<Snapshot>,
    /// What is not carried out, in words for a person.
    pub(super) notices: BTreeSet<String>,
    /// What must be watched besides the essentials.
    pub(super) wants: BTreeSet<Want>,
}

/// Collects the parts of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) listeners: BTreeMap<Name, Listener>,
    pub(super) clusters: BTreeMap<Name, Cluster>,
    pub(super) endpoints: BTreeMap<Name, ClusterLoadAssignment>,
    pub(super) notices: BTreeSet<String>,
    pub(super) wants: BTreeSet<Want>,
}

/// Compiles everything; `previous` lends what did not change.
pub(super) fn compile(given: &Given, state: &State, previous: Option<&Snapshot>) -> Compiled {
    let mut parts = Parts::default();
    let Some(registration) = &state.registration else {
        return Compiled::default();
    };
    registration_notices(registration, &mut parts.notices);
    if let Some(authority) = &state.authority {
        public(given, state, registration, authority, &mut parts);
    }
    upstreams::compile(given, state, registration, &mut parts);
    parts.notices.extend(state.mesh.notices.iter().cloned());
    let (notices, wants) = (parts.notices.clone(), parts.wants.clone());
    Compiled {
        snapshot: state.authority.is_some().then(|| finish(parts, previous)),
        notices,
        wants,
    }
}

/// Where the public listener binds.
///
/// # Errors
/// Says why nowhere, in words for a person.
pub(super) fn public_address(given: &Given, registration: &Registration) -> Result<SocketAddr, String> {
    let config = &registration.config;
    let port = match config.number("bind_port") {
        Ok(port) => u16::try_from(port.unwrap_or(0)).map_err(|_| port.unwrap_or(0).to_string()),
        Err(written) => Err(written),
    };
    let bind_port = port.map_err(|written| format!("Proxy.Config.bind_port {written} is no port"))?;
    let port = match (bind_port, given.public) {
        (0, Some(hint)) => hint.port(),
        (0, None) if given.nomad => {
            return Err("neither the registration's Proxy.Config.bind_port nor \
                        NOMAD_ALLOC_PORT_connect-proxy-<service> gives a port: the registration's \
                        own is the host's"
                .to_owned());
        }
        (0, None) => registration.port,
        (port, _) => port,
    };
    if port == 0 {
        return Err("the registration has no Port".to_owned());
    }
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let ip = match (config.text("bind_address"), given.public) {
        (Some(address), _) => address
            .parse()
            .map_err(|_| format!("Proxy.Config.bind_address {address:?} is no IP address"))?,
        (None, Some(hint)) => hint.ip(),
        (None, None) if given.nomad || registration.address.is_empty() => any,
        (None, None) => registration.address.parse().unwrap_or(any),
    };
    Ok(SocketAddr::new(ip, port))
}

fn public(
    given: &Given,
    state: &State,
    registration: &Registration,
    authority: &Authority,
    parts: &mut Parts,
) {
    if given.manual && registration.port == 0 {
        return;
    }
    let address = match public_address(given, registration) {
        Ok(address) => address,
        Err(why) => {
            parts
                .notices
                .insert(format!("there is no public listener: {why}"));
            return;
        }
    };
    let mut filters = vec![NetworkFilter::Rbac {
        rules: Arc::new(rules(state, registration, authority)),
        stat_prefix: RBAC_STAT_PREFIX.into(),
    }];
    let limit = number(registration, "max_inbound_connections", &mut parts.notices);
    let limit = limit.filter(|limit| *limit > 0);
    if let Some(max_connections) = limit {
        filters.push(NetworkFilter::ConnectionLimit {
            max_connections,
            delay: None,
            stat_prefix: LIMIT_STAT_PREFIX.into(),
        });
    }
    let transport = DownstreamTls {
        identity: Arc::clone(&authority.identity),
        client: ClientCertificate::Required(Validation::mesh(&authority.trust, &[])),
        alpn: Vec::new(),
        params: state.mesh.incoming.clone(),
    };
    let name: Name = format!("public_listener:{address}").into();
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        transport: Some(Arc::new(transport)),
        filters,
        terminal: Terminal::TcpProxy(TcpProxy::to(LOCAL_APP.into(), PUBLIC_STAT_PREFIX.into())),
    };
    let listener = listener(
        Arc::clone(&name),
        Address::Socket(address),
        Direction::Inbound,
        chain,
    );
    parts.listeners.insert(name, listener);
    local_app(registration, limit, parts);
}

/// A listener of one chain that takes every connection.
pub(super) fn listener(name: Name, address: Address, direction: Direction, chain: FilterChain) -> Listener {
    Listener {
        name,
        address,
        direction,
        stat_prefix: None,
        filters: ListenerFilters::default(),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        exact_balance: false,
        access_log: Vec::new(),
    }
}

fn rules(state: &State, registration: &Registration, authority: &Authority) -> Rbac {
    let Some(list) = &state.intentions else {
        return Rbac::deny_all("the intentions are not known yet: deny");
    };
    let to = Destination {
        trust_domain: &authority.trust.trust_domain,
        // Without a registration nobody says what the service speaks.
        is_tcp: !registration.id.is_empty() && speaks_tcp(registration),
        partition: registration.partition.as_deref().unwrap_or("default"),
    };
    intentions::compile(list, &state.default_policy, &to)
}

fn speaks_tcp(registration: &Registration) -> bool {
    let protocol = registration.config.text("protocol").unwrap_or("tcp");
    protocol.eq_ignore_ascii_case("tcp")
}

fn local_app(registration: &Registration, limit: Option<u64>, parts: &mut Parts) {
    let timeout = number(registration, "local_connect_timeout_ms", &mut parts.notices);
    let timeout = timeout.filter(|ms| *ms > 0).unwrap_or(LOCAL_CONNECT_TIMEOUT_MS);
    let name: Name = LOCAL_APP.into();
    let cluster = Cluster {
        name: Arc::clone(&name),
        connect_timeout: Duration::from_millis(timeout),
        circuit_breakers: CircuitBreakers {
            max_connections: limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
            ..CircuitBreakers::default()
        },
        ..Cluster::default()
    };
    let port = registration.local_port;
    let address = match (&registration.local_socket, registration.local_address.as_str()) {
        (Some(path), _) => Some(Target::Address(Address::Pipe {
            path: path.into(),
            mode: None,
        })),
        (None, _) if port == 0 => {
            let why = "the registration has neither Proxy.LocalServicePort nor \
                       Proxy.LocalServiceSocketPath: inbound connections have nowhere to go";
            parts.notices.insert(why.to_owned());
            None
        }
        (None, "") => Some(socket(Ipv4Addr::LOCALHOST.into(), port)),
        (None, host) => Some(match host.parse() {
            Ok(ip) => socket(ip, port),
            Err(_) => Target::Host {
                host: host.into(),
                port,
            },
        }),
    };
    let endpoint = |address| Endpoint {
        address,
        weight: 1,
        healthy: true,
        priority: 0,
    };
    let endpoints = address.into_iter().map(endpoint).collect();
    parts.clusters.insert(Arc::clone(&name), cluster);
    let assignment = ClusterLoadAssignment {
        endpoints,
        ..ClusterLoadAssignment::default()
    };
    parts.endpoints.insert(name, assignment);
}

fn socket(ip: IpAddr, port: u16) -> Target {
    Target::Address(Address::Socket(SocketAddr::new(ip, port)))
}

fn number(registration: &Registration, key: &str, notices: &mut BTreeSet<String>) -> Option<u64> {
    registration.config.number(key).unwrap_or_else(|written| {
        notices.insert(format!(
            "Proxy.Config.{key} is not honoured: {written} is no number"
        ));
        None
    })
}

fn registration_notices(registration: &Registration, notices: &mut BTreeSet<String>) {
    for field in &registration.unsupported {
        notices.insert(format!("{field} is not honoured"));
    }
    if registration.mode == "transparent" {
        let what = "Proxy.Mode \"transparent\" is not carried out: there is no outbound listener \
                    for redirected connections, only those of the upstreams that have a port";
        notices.insert(what.to_owned());
    } else if !matches!(registration.mode.as_str(), "" | "direct") {
        notices.insert(format!("Proxy.Mode {:?} is not known", registration.mode));
    }
    if !speaks_tcp(registration) {
        let protocol = registration.config.text("protocol").unwrap_or_default();
        notices.insert(format!(
            "Proxy.Config.protocol {protocol:?}: inbound connections are carried as TCP"
        ));
    }
    for key in registration.config.keys() {
        let carried_out = [
            "bindaddress",
            "bindport",
            "maxinboundconnections",
            "localconnecttimeoutms",
            "protocol",
        ];
        let http_only = [
            "localrequesttimeoutms",
            "localidletimeoutms",
            "maxrequestheaderskb",
        ];
        let plain = super::json::plain(key);
        if http_only.contains(&plain.as_str()) {
            notices.insert(format!("Proxy.Config.{key} is not honoured: it needs HTTP"));
        } else if !carried_out.contains(&plain.as_str()) {
            notices.insert(format!("Proxy.Config.{key} is not honoured"));
        }
    }
}

fn finish(parts: Parts, previous: Option<&Snapshot>) -> Snapshot {
    let empty = Snapshot::default();
    let previous = previous.unwrap_or(&empty);
    let mut listeners = parts.listeners;
    for (name, listener) in &mut listeners {
        if let Some(old) = previous.listeners.get(name) {
            lend_listener(listener, old);
        }
    }
    let mut clusters = parts.clusters;
    for (name, cluster) in &mut clusters {
        let old = previous.clusters.get(name).and_then(|old| old.transport.as_ref());
        if let (Some(new), Some(old)) = (&mut cluster.transport, old) {
            lend(new, old);
        }
    }
    Snapshot {
        listeners: reuse(listeners, &previous.listeners),
        clusters: reuse(clusters, &previous.clusters),
        endpoints: reuse(parts.endpoints, &previous.endpoints),
        ..Snapshot::default()
    }
}

/// A listener whose certificate is new still keeps the rules that are not.
fn lend_listener(listener: &mut Listener, old: &Listener) {
    for (new, old) in listener.filter_chains.iter_mut().zip(&old.filter_chains) {
        if let Some(chain) = Arc::get_mut(new) {
            lend_chain(chain, old);
        }
        lend(new, old);
    }
}

fn lend_chain(chain: &mut FilterChain, old: &FilterChain) {
    if let (Some(new), Some(old)) = (&mut chain.transport, &old.transport) {
        lend(new, old);
    }
    for (new, old) in chain.filters.iter_mut().zip(&old.filters) {
        if let (NetworkFilter::Rbac { rules: new, .. }, NetworkFilter::Rbac { rules: old, .. }) = (new, old) {
            lend(new, old);
        }
    }
}

fn lend<T: PartialEq>(new: &mut Arc<T>, old: &Arc<T>) {
    if **new == **old {
        *new = Arc::clone(old);
    }
}

fn reuse<T: PartialEq>(new: BTreeMap<Name, T>, old: &BTreeMap<Name, Arc<T>>) -> BTreeMap<Name, Arc<T>> {
    let one = |(name, value): (Name, T)| match old.get(&name) {
        Some(old) if **old == value => (name, Arc::clone(old)),
        _ => (name, Arc::new(value)),
    };
    new.into_iter().map(one).collect()
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
