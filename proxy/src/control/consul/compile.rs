//! From what is known of the mesh to a snapshot of the model.
//!
//! Pure: the same state always gives the same snapshot. Parts that did not change are the previous
//! snapshot's own `Arc`s. What is not carried out is refused by name and told as a notice, never
//! skipped in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::http_manager::{self, Protocol};
use super::intentions::{self, Destination};
use super::registration::Registration;
use super::state::{Authority, Given, State, Want};
use super::{access_logs, expose, jwt_filter, request_rules, upstreams};
use crate::model::cluster::{CircuitBreakers, HttpProtocol};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::http::{
    ForwardClientCert, ForwardClientCertMode, HttpConnectionManager, HttpFilter, Routes, SetCurrentClientCert,
};
use crate::model::listener::{Address, ClientCertificate, Direction, ListenerFilters, TcpProxy};
use crate::model::rbac::Rbac;
use crate::model::route::{IdleTimeout, PathMatch, RouteAction};
use crate::model::{
    Cluster, ClusterLoadAssignment, DownstreamTls, Endpoint, FilterChain, Listener, Name, NetworkFilter,
    Node, RouteConfiguration, Snapshot, Target, Terminal, Validation,
};

/// The cluster that is the service itself.
pub(super) const LOCAL_APP: &str = "local_app";
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
    pub(super) routes: BTreeMap<Name, RouteConfiguration>,
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
    access_logs::compile(registration, &mut parts);
    parts.notices.extend(state.mesh.notices.iter().cloned());
    let (notices, wants) = (parts.notices.clone(), parts.wants.clone());
    let node = Node {
        id: registration.id.as_str().into(),
        cluster: registration.service.as_str().into(),
        zone: "".into(),
    };
    Compiled {
        snapshot: state.authority.is_some().then(|| finish(parts, node, previous)),
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
    if !registration.needed_extensions.is_empty() {
        // It may be what keeps somebody out (`ext-authz`): over xDS such a listener is refused, too.
        let names = registration.needed_extensions.join(", ");
        let what =
            format!("there is no public listener: Proxy.EnvoyExtensions asks for {names}, not carried out");
        parts.notices.insert(what);
        return;
    }
    let protocol = protocol(registration);
    let limit = number(registration, "max_inbound_connections", &mut parts.notices);
    let limit = limit.filter(|limit| *limit > 0);
    // Before the listener, whose routes may need a cluster of an exposed path.
    local_app(registration, limit, parts);
    let (filters, terminal) = match protocol {
        None => tcp_filters(state, registration, authority, limit),
        Some(protocol) => match http_filters(protocol, state, registration, authority, limit, parts) {
            Ok(filters) => filters,
            Err(why) => {
                let what = format!("there is no public listener: {why}");
                parts.notices.insert(what);
                return;
            }
        },
    };
    let transport = DownstreamTls {
        identity: Arc::clone(&authority.identity),
        client: ClientCertificate::Required(Validation::mesh(&authority.trust, &[])),
        alpn: protocol.map(Protocol::alpn).unwrap_or_default(),
        params: state.mesh.incoming.clone(),
    };
    let name: Name = format!("public_listener:{address}").into();
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        transport: Some(Arc::new(transport)),
        filters,
        terminal,
    };
    let mut listener = listener(
        Arc::clone(&name),
        Address::Socket(address),
        Direction::Inbound,
        chain,
    );
    listener.exact_balance = protocol.is_some() && exact_balance(registration, &mut parts.notices);
    parts.listeners.insert(name, listener);
    expose::compile(registration, address.ip(), parts);
}

/// What stands before the terminal filter, and that.
type Filters = (Vec<NetworkFilter>, Terminal);

fn tcp_filters(
    state: &State,
    registration: &Registration,
    authority: &Authority,
    limit: Option<u64>,
) -> Filters {
    let mut filters = vec![NetworkFilter::Rbac {
        rules: Arc::new(rules(state, registration, authority)),
        stat_prefix: RBAC_STAT_PREFIX.into(),
    }];
    filters.extend(limit.map(connection_limit));
    let tcp = TcpProxy::to(LOCAL_APP.into(), PUBLIC_STAT_PREFIX.into());
    (filters, Terminal::TcpProxy(tcp))
}

fn connection_limit(max_connections: u64) -> NetworkFilter {
    NetworkFilter::ConnectionLimit {
        max_connections,
        delay: None,
        stat_prefix: LIMIT_STAT_PREFIX.into(),
    }
}

/// The rules are asked of each request; of the connection nothing but a good certificate.
fn http_filters(
    protocol: Protocol,
    state: &State,
    registration: &Registration,
    authority: &Authority,
    limit: Option<u64>,
    parts: &mut Parts,
) -> Result<Filters, String> {
    let mut action = RouteAction::to(LOCAL_APP.into());
    if let Some(ms) = number(registration, "local_request_timeout_ms", &mut parts.notices) {
        action.timeout = (ms > 0).then(|| Duration::from_millis(ms));
    }
    if let Some(ms) = number(registration, "local_idle_timeout_ms", &mut parts.notices) {
        action.idle_timeout = match ms {
            0 => IdleTimeout::Disabled,
            ms => IdleTimeout::After(Duration::from_millis(ms)),
        };
    }
    let name: Name = PUBLIC_STAT_PREFIX.into();
    let everything = PathMatch::Prefix("/".into());
    let table = http_manager::simple_table(Arc::clone(&name), Arc::clone(&name), everything, action)?;
    let max_headers = http_manager::max_request_headers_kb(registration, parts);
    let mut manager = http_manager::manager(protocol, name, Routes::Inline(table), max_headers);
    authorize(&mut manager, state, registration, authority, parts);
    // gRPC callers are no HTTP callers to Consul: its xDS server says nothing of them.
    if protocol != Protocol::Grpc && !state.mesh.sanitize_client_cert {
        manager.forward_client_cert = ForwardClientCert {
            mode: ForwardClientCertMode::AppendForward,
            set_current: SetCurrentClientCert {
                subject: true,
                cert: true,
                chain: true,
                dns: true,
                uri: true,
            },
        };
        manager
            .http_filters
            .push(HttpFilter::HeaderToMetadata(http_manager::caller_to_metadata()?));
    }
    manager.normalization = state.mesh.normalization;
    let filters = limit.map(connection_limit).into_iter().collect();
    Ok((filters, Terminal::HttpConnectionManager(Arc::new(manager))))
}

/// The filters that decide who may ask for what, after those that are there.
fn authorize(
    manager: &mut HttpConnectionManager,
    state: &State,
    registration: &Registration,
    authority: &Authority,
    parts: &mut Parts,
) {
    let rules = match &state.intentions {
        None => Rbac::deny_all("the intentions are not known yet: deny"),
        Some(list) => {
            let jwt = jwt_filter::filter(list, &state.providers, parts);
            manager.http_filters.extend(jwt);
            let to = destination(registration, authority);
            let (default, providers) = (&state.default_policy, &state.providers);
            request_rules::compile(list, default, &to, providers, &mut parts.notices)
        }
    };
    manager.http_filters.push(HttpFilter::Rbac {
        rules: Some(Arc::new(rules)),
        stat_prefix: "".into(),
    });
}

fn exact_balance(registration: &Registration, notices: &mut BTreeSet<String>) -> bool {
    match registration.config.text("balance_inbound_connections") {
        None => false,
        Some("exact_balance") => true,
        Some(other) => {
            let field = "Proxy.Config.balance_inbound_connections";
            notices.insert(format!("{field} is not honoured: {other:?} is not known"));
            false
        }
    }
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
    intentions::compile(list, &state.default_policy, &destination(registration, authority))
}

fn destination<'a>(registration: &'a Registration, authority: &'a Authority) -> Destination<'a> {
    Destination {
        trust_domain: &authority.trust.trust_domain,
        // Without a registration nobody says what the service speaks.
        is_tcp: !registration.id.is_empty() && speaks_tcp(registration),
        partition: registration.partition.as_deref().unwrap_or("default"),
    }
}

/// What the service speaks, if Consul looks at its requests.
fn protocol(registration: &Registration) -> Option<Protocol> {
    Protocol::parse(registration.config.text("protocol")?)
}

fn speaks_tcp(registration: &Registration) -> bool {
    let protocol = registration.config.text("protocol").unwrap_or("tcp");
    protocol.eq_ignore_ascii_case("tcp")
}

fn local_app(registration: &Registration, limit: Option<u64>, parts: &mut Parts) {
    let http = protocol(registration).map_or(HttpProtocol::default(), Protocol::of_local_app);
    let name: Name = LOCAL_APP.into();
    if registration.local_socket.is_none() && registration.local_port == 0 {
        let why = "the registration has neither Proxy.LocalServicePort nor \
                   Proxy.LocalServiceSocketPath: inbound connections have nowhere to go";
        parts.notices.insert(why.to_owned());
    }
    local(&name, registration.local_port, http, limit, registration, parts);
}

/// A cluster of the local service at another port.
pub(super) fn local_cluster(
    name: &Name,
    port: u16,
    http: HttpProtocol,
    registration: &Registration,
    parts: &mut Parts,
) {
    let limit = number(registration, "max_inbound_connections", &mut parts.notices);
    let limit = limit.filter(|limit| *limit > 0);
    local(name, port, http, limit, registration, parts);
}

fn local(
    name: &Name,
    port: u16,
    http: HttpProtocol,
    limit: Option<u64>,
    registration: &Registration,
    parts: &mut Parts,
) {
    let timeout = number(registration, "local_connect_timeout_ms", &mut parts.notices);
    let timeout = timeout.filter(|ms| *ms > 0).unwrap_or(LOCAL_CONNECT_TIMEOUT_MS);
    let cluster = Cluster {
        name: Arc::clone(name),
        connect_timeout: Duration::from_millis(timeout),
        circuit_breakers: CircuitBreakers {
            max_connections: limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
            ..CircuitBreakers::default()
        },
        http,
        ..Cluster::default()
    };
    let address = match (&registration.local_socket, registration.local_address.as_str()) {
        (Some(path), _) => Some(Target::Address(Address::Pipe {
            path: path.into(),
            mode: None,
        })),
        (None, _) if port == 0 => None,
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
        hostname: None,
    };
    let endpoints = address.into_iter().map(endpoint).collect();
    parts.clusters.insert(Arc::clone(name), cluster);
    let assignment = ClusterLoadAssignment {
        endpoints,
        ..ClusterLoadAssignment::default()
    };
    parts.endpoints.insert(Arc::clone(name), assignment);
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
    let is_http = protocol(registration).is_some();
    if !speaks_tcp(registration) && !is_http {
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
        if plain == "maxrequestheaderskb" && has_http_upstream(registration) {
            continue;
        }
        if is_http && (http_only.contains(&plain.as_str()) || plain == "balanceinboundconnections") {
            continue;
        }
        if http_only.contains(&plain.as_str()) {
            notices.insert(format!("Proxy.Config.{key} is not honoured: it needs HTTP"));
        } else if !carried_out.contains(&plain.as_str()) {
            notices.insert(format!("Proxy.Config.{key} is not honoured"));
        }
    }
}

fn has_http_upstream(registration: &Registration) -> bool {
    let protocols = registration
        .upstreams
        .iter()
        .filter_map(|u| u.config.text("protocol"));
    protocols.into_iter().any(|text| Protocol::parse(text).is_some())
}

fn finish(parts: Parts, node: Node, previous: Option<&Snapshot>) -> Snapshot {
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
        routes: reuse(parts.routes, &previous.routes),
        node: match *previous.node == node {
            true => Arc::clone(&previous.node),
            false => Arc::new(node),
        },
        tracing: None,
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
    let (Terminal::HttpConnectionManager(new), Terminal::HttpConnectionManager(old)) =
        (&mut chain.terminal, &old.terminal)
    else {
        return;
    };
    if let Some(manager) = Arc::get_mut(new) {
        lend_manager(manager, old);
    }
    lend(new, old);
}

/// New rules leave the routes what they are.
fn lend_manager(manager: &mut HttpConnectionManager, old: &HttpConnectionManager) {
    if let (Routes::Inline(new), Routes::Inline(old)) = (&mut manager.routes, &old.routes) {
        lend(new, old);
    }
    for (new, old) in manager.http_filters.iter_mut().zip(&old.http_filters) {
        match (new, old) {
            (HttpFilter::Rbac { rules: Some(new), .. }, HttpFilter::Rbac { rules: Some(old), .. }) => {
                lend(new, old)
            }
            (HttpFilter::JwtAuthn(new), HttpFilter::JwtAuthn(old)) => lend(new, old),
            (HttpFilter::HeaderToMetadata(new), HttpFilter::HeaderToMetadata(old)) => lend(new, old),
            _ => {}
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
