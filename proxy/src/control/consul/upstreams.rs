//! From upstreams, their chains and instances to outbound listeners and clusters.
//!
//! Pure, a part of [`super::compile`]. An upstream that cannot be carried has no listener: whoever
//! dials it is refused at once, and the notice says why.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::agent_version::PrefixRewrites;
use super::chain::{self, Balancing, Chain, ChainNode, Here, Plan, TimeLimit};
use super::compile::Parts;
use super::http_manager::{self, Protocol};
use super::registration::{Registration, Upstream};
use super::state::{Authority, Given, HealthKey, State, Want};
use super::upstream_limits::{self, UpstreamLimits};
use super::{prepared_query, routes};
use crate::model::cluster::{CircuitBreakers, HttpProtocol, LoadBalancer};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::http::Routes;
use crate::model::listener::{Address, Direction, TcpProxy};
use crate::model::route::{PathMatch, RouteAction};
use crate::model::spiffe::ServiceId;
use crate::model::{
    Cluster, ClusterKind, ClusterLoadAssignment, Endpoint, FilterChain, Name, SpiffeId, Terminal,
    UpstreamTls, Validation,
};

/// Consul's prefix for the clusters inside an aggregate.
const FAILOVER: &str = "failover-target";

/// What every upstream of one proxy shares.
pub(super) struct Scene<'a> {
    pub(super) state: &'a State,
    pub(super) registration: &'a Registration,
    pub(super) authority: Option<&'a Authority>,
    pub(super) here: Here<'a>,
}

/// How the clusters of one resolver are dialled.
#[derive(Clone, Copy)]
pub(super) struct Dial<'a> {
    pub(super) connect_timeout: Duration,
    pub(super) limits: UpstreamLimits,
    pub(super) http: HttpProtocol,
    pub(super) balancer: Option<&'a LoadBalancer>,
}

pub(super) fn compile(given: &Given, state: &State, registration: &Registration, parts: &mut Parts) {
    let (upstreams, notices) = given.upstreams(registration);
    parts.notices.extend(notices);
    let scene = Scene {
        state,
        registration,
        authority: state.authority.as_ref(),
        here: Here {
            datacenter: state.datacenter().unwrap_or_default(),
            partition: registration.partition.as_deref().unwrap_or("default"),
        },
    };
    for upstream in &upstreams {
        if let Err(why) = one(upstream, &scene, parts) {
            let (name, place) = (upstream.name(), upstream.place());
            parts
                .notices
                .insert(format!("upstream {name} on {place} is refused: {why}"));
        }
    }
}

fn one(upstream: &Upstream, scene: &Scene<'_>, parts: &mut Parts) -> Result<(), String> {
    let address = address(upstream)?;
    for key in upstream.config.keys() {
        if let Some(why) = not_honoured(key) {
            let name = upstream.name();
            parts
                .notices
                .insert(format!("upstream {name}: Config.{key} is not honoured{why}"));
        }
    }
    let terminal = match (&upstream.peer, upstream.kind.as_str()) {
        (Some(peer), _) => {
            return Err(format!(
                "it is in the cluster peer {peer:?}: that needs the xds source"
            ));
        }
        (None, "service") => service(upstream, scene, parts)?,
        (None, "prepared_query") => prepared_query::query(upstream, scene, parts)?,
        (None, kind) => return Err(format!("DestinationType {kind:?} is not known")),
    };
    let Some(terminal) = terminal else {
        return Ok(());
    };
    let name: Name = format!("{}:{address}", upstream.name()).into();
    if let Some(other) = parts.listeners.values().find(|l| l.address == address) {
        return Err(format!("the listener {} has its address already", other.name));
    }
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        transport: None,
        filters: Vec::new(),
        terminal,
    };
    let listener = super::compile::listener(Arc::clone(&name), address, Direction::Outbound, chain);
    parts.listeners.insert(name, listener);
    Ok(())
}

pub(super) fn tcp_proxy(cluster: Name, upstream: &Upstream, scene: &Scene<'_>) -> Terminal {
    Terminal::TcpProxy(TcpProxy::to(cluster, stat_prefix(upstream, scene)))
}

/// As Consul calls the filter of an upstream, so that its statistics have the same tags.
fn stat_prefix(upstream: &Upstream, scene: &Scene<'_>) -> Name {
    let Upstream {
        destination,
        namespace,
        partition,
        datacenter,
        ..
    } = upstream;
    let part = |own: &Option<String>| own.clone().unwrap_or_else(|| "default".to_owned());
    let datacenter = datacenter.as_deref().unwrap_or(scene.here.datacenter);
    let (namespace, partition) = (part(namespace), part(partition));
    format!("upstream.{destination}.{namespace}.{partition}.{datacenter}").into()
}

/// Why a key of an upstream's `Config` has no effect; none when it has.
fn not_honoured(key: &str) -> Option<&'static str> {
    match super::json::plain(key).as_str() {
        "connecttimeoutms" | "protocol" | "limits" | "meshgateway" | "passivehealthcheck" => None,
        "balanceoutboundconnections" => Some(": connections are always balanced"),
        _ => Some(""),
    }
}

fn address(upstream: &Upstream) -> Result<Address, String> {
    match &upstream.bind_socket {
        Some(path) if upstream.bind_port == 0 => Ok(Address::Pipe {
            path: path.into(),
            mode: socket_mode(&upstream.bind_socket_mode)?,
        }),
        _ if upstream.bind_port == 0 => {
            Err("it has neither LocalBindPort nor LocalBindSocketPath".to_owned())
        }
        _ => {
            let ip = match upstream.bind_address.as_str() {
                "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                text => text
                    .parse()
                    .map_err(|_| format!("LocalBindAddress {text:?} is no IP address"))?,
            };
            Ok(Address::Socket(SocketAddr::new(ip, upstream.bind_port)))
        }
    }
}

/// Go's number syntax: a leading zero is octal.
fn socket_mode(text: &str) -> Result<Option<u32>, String> {
    let parsed = match text {
        "" => return Ok(None),
        _ if text.starts_with("0o") => u32::from_str_radix(&text[2..], 8),
        _ if text.starts_with('0') => u32::from_str_radix(text, 8),
        _ => text.parse(),
    };
    match parsed {
        Ok(mode) if mode <= 0o777 => Ok((mode != 0).then_some(mode)),
        _ => Err(format!("LocalBindSocketMode {text:?} is no file mode")),
    }
}

/// What carries connections to a service; none while it cannot even be named.
fn service(upstream: &Upstream, scene: &Scene<'_>, parts: &mut Parts) -> Result<Option<Terminal>, String> {
    let key = upstream.chain_key(scene.registration);
    let mut known = scene.state.chains.get(&key);
    if known.is_none()
        && let Some((old, chain)) = scene.state.chains.iter().find(|(old, _)| old.same(&key))
    {
        // The upstream's overrides were changed: the chain of before serves until the new one is known.
        parts.wants.insert(Want::Chain(old.clone()));
        known = Some(chain);
    }
    parts.wants.insert(Want::Chain(key));
    if scene.here.datacenter.is_empty() {
        return Ok(None);
    }
    let provisional;
    let chain = match known {
        Some(chain) => chain,
        None => {
            // The listener is there from the start, so that the app's first dial waits instead of
            // failing; nothing is dialled before the chain is known.
            provisional = default_chain(upstream, scene);
            &provisional
        }
    };
    if let Some(protocol) = Protocol::parse(&chain.protocol) {
        return requests(protocol, upstream, chain, known.is_some(), scene, parts).map(Some);
    }
    let plan = chain.plan(scene.here)?;
    for notice in &plan.notices {
        let name = upstream.name();
        parts.notices.insert(format!("upstream {name}: {notice}"));
    }
    let dial = Dial {
        connect_timeout: plan.connect_timeout,
        limits: upstream_limits::of(upstream, false, parts),
        http: HttpProtocol::default(),
        balancer: None,
    };
    let cluster = clusters(chain, &plan, known.is_some(), dial, scene, parts);
    Ok(Some(tcp_proxy(cluster, upstream, scene)))
}

/// The connection manager of a service of which Consul looks at requests, with its routes and clusters.
fn requests(
    protocol: Protocol,
    upstream: &Upstream,
    chain: &Chain,
    known: bool,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Result<Terminal, String> {
    let name: Name = upstream.name().into();
    let filter = filter_name(upstream, chain, scene);
    // First: of a chain that leads nowhere nothing is left behind.
    resolvers(protocol, upstream, chain, known, scene, parts)?;
    let routes = if chain.default {
        let cluster = match chain.nodes.get(&chain.start) {
            Some(node) => chain.cluster_name(chain.resolve(node, scene.here)?.first),
            None => return Err(format!("its chain lacks the node {:?}", chain.start)),
        };
        let everything = PathMatch::Prefix("/".into());
        let action = RouteAction::to(cluster.into());
        let host: Name = filter.as_str().into();
        Routes::Inline(http_manager::simple_table(
            Arc::clone(&name),
            host,
            everything,
            action,
        )?)
    } else {
        let mut table = routes::table(&name, chain, prefix_rewrites(&name, chain, scene, parts))?;
        table.validate_clusters = scene.state.mesh.validate_clusters;
        parts.routes.insert(Arc::clone(&name), table);
        Routes::Rds(Arc::clone(&name))
    };
    for notice in &chain.notices {
        parts.notices.insert(format!("upstream {name}: {notice}"));
    }
    let limit = http_manager::max_request_headers_kb(scene.registration, parts);
    let stat_prefix = format!("upstream.{filter}").into();
    let manager = http_manager::manager(protocol, stat_prefix, routes, limit);
    Ok(Terminal::HttpConnectionManager(Arc::new(manager)))
}

/// What becomes of matched prefixes, which only a router has.
fn prefix_rewrites(name: &Name, chain: &Chain, scene: &Scene<'_>, parts: &mut Parts) -> PrefixRewrites {
    let Some(ChainNode::Router { routes }) = chain.nodes.get(&chain.start) else {
        return PrefixRewrites::default();
    };
    let rewritten = |route: &chain::ChainRoute| {
        let destination = route.destination.as_ref();
        destination.is_some_and(|destination| matches!(destination.prefix_rewrite.as_str(), "" | "/"))
    };
    if !routes.iter().any(rewritten) {
        return PrefixRewrites::default();
    }
    parts.wants.insert(Want::Version);
    let rewrites = scene.state.prefix_rewrites.unwrap_or_default();
    let silent = |route: &chain::ChainRoute| {
        let destination = route.destination.as_ref();
        let silent = destination.is_some_and(|destination| destination.prefix_rewrite.is_empty());
        silent && matches!(&route.matches.path, PathMatch::Prefix(prefix) if **prefix != *"/")
    };
    if rewrites == PrefixRewrites::CutAlways && routes.iter().any(silent) {
        parts.notices.insert(format!(
            "upstream {name}: routes without a PrefixRewrite cut off the prefix that matched, as this version of \
             Consul tells Envoy to (hashicorp/consul#23339)"
        ));
    }
    rewrites
}

/// The clusters of every resolver of the chain.
///
/// # Errors
/// Why none of them can be dialled.
fn resolvers(
    protocol: Protocol,
    upstream: &Upstream,
    chain: &Chain,
    known: bool,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Result<(), String> {
    let limits = upstream_limits::of(upstream, true, parts);
    let (mut refused, mut dialled) = (Vec::new(), false);
    for (key, node) in &chain.nodes {
        let ChainNode::Resolver { balancing, .. } = node else {
            continue;
        };
        match chain.resolve(node, scene.here) {
            Ok(plan) => {
                dialled = true;
                for notice in &plan.notices {
                    let name = upstream.name();
                    parts.notices.insert(format!("upstream {name}: {notice}"));
                }
                let dial = Dial {
                    connect_timeout: plan.connect_timeout,
                    limits,
                    http: protocol.of_upstream(),
                    balancer: balancing.balancer.as_ref(),
                };
                clusters(chain, &plan, known, dial, scene, parts);
            }
            Err(why) => refused.push((key, why)),
        }
    }
    if !dialled {
        let why = refused.into_iter().next().map(|(_, why)| why);
        return Err(why.unwrap_or_else(|| "its chain has no resolver".to_owned()));
    }
    for (key, why) in refused {
        let name = upstream.name();
        parts.notices.insert(format!(
            "upstream {name}: requests that its routes send to {key} are answered with 503: {why}"
        ));
    }
    Ok(())
}

/// As Consul calls the filter of a chain, so that its statistics have the same tags.
fn filter_name(upstream: &Upstream, chain: &Chain, scene: &Scene<'_>) -> String {
    let Chain {
        service,
        namespace,
        partition,
        datacenter,
        ..
    } = chain;
    if [service, namespace, partition, datacenter]
        .iter()
        .all(|part| !part.is_empty())
    {
        return format!("{service}.{namespace}.{partition}.{datacenter}");
    }
    let prefix = stat_prefix(upstream, scene);
    prefix.strip_prefix("upstream.").unwrap_or(&prefix).to_owned()
}

/// What Consul compiles for a service without any configuration entry.
fn default_chain(upstream: &Upstream, scene: &Scene<'_>) -> Chain {
    let part = |own: &Option<String>, other: &Option<String>| {
        let part = own.as_deref().or(other.as_deref());
        part.unwrap_or("default").to_owned()
    };
    let trust_domain = scene.authority.map_or("", |a| &*a.trust.trust_domain);
    let mut target = chain::Target {
        service: upstream.destination.clone(),
        namespace: part(&upstream.namespace, &scene.registration.namespace),
        partition: part(&upstream.partition, &scene.registration.partition),
        datacenter: match &upstream.datacenter {
            Some(datacenter) => datacenter.clone(),
            None => scene.here.datacenter.to_owned(),
        },
        mesh_gateway: upstream.chain_key(scene.registration).mesh_gateway,
        ..chain::Target::default()
    };
    let (service, namespace) = (&target.service, &target.namespace);
    let (partition, datacenter) = (&target.partition, &target.datacenter);
    target.sni = if partition == "default" {
        format!("{service}.{namespace}.{datacenter}.internal.{trust_domain}")
    } else {
        format!("{service}.{namespace}.{partition}.{datacenter}.internal-v1.{trust_domain}")
    };
    target.name.clone_from(&target.sni);
    let id = "first".to_owned();
    let resolver = ChainNode::Resolver {
        target: id.clone(),
        connect_timeout: None,
        failover: None,
        failover_policy: String::new(),
        request_timeout: TimeLimit::Unset,
        balancing: Balancing::default(),
    };
    Chain {
        service: service.clone(),
        default: true,
        protocol: upstream
            .config
            .text("protocol")
            .unwrap_or_default()
            .to_lowercase(),
        start: id.clone(),
        nodes: [(id.clone(), resolver)].into(),
        targets: [(id, target)].into(),
        ..Chain::default()
    }
}

fn clusters(
    chain: &Chain,
    plan: &Plan<'_>,
    known: bool,
    dial: Dial<'_>,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Name {
    let base: Name = chain.cluster_name(plan.first).into();
    let Some(others) = &plan.failover else {
        target(&base, plan.first, known, dial, scene, parts);
        return base;
    };
    let mut names = Vec::new();
    for (i, one) in std::iter::once(&plan.first).chain(others).enumerate() {
        let name: Name = format!("{FAILOVER}~{i}~{base}").into();
        target(&name, one, known, dial, scene, parts);
        names.push(name);
    }
    let aggregate = Cluster {
        name: Arc::clone(&base),
        kind: ClusterKind::Aggregate(names),
        connect_timeout: plan.connect_timeout,
        circuit_breakers: breakers(dial.limits),
        ..Cluster::default()
    };
    insert(aggregate, parts);
    base
}

fn target(
    name: &Name,
    target: &chain::Target,
    known: bool,
    dial: Dial<'_>,
    scene: &Scene<'_>,
    parts: &mut Parts,
) {
    let id = ServiceId {
        partition: target.partition.clone(),
        namespace: target.namespace.clone(),
        datacenter: target.datacenter.clone(),
        service: target.service.clone(),
    };
    let ids = scene
        .authority
        .map(|a| SpiffeId::for_service(&a.trust.trust_domain, &id));
    let spiffe_ids = match ids {
        Some(Ok(id)) => vec![id],
        Some(Err(why)) => {
            let what = format!("cluster {name} cannot be dialled: its identity is {why}");
            parts.notices.insert(what);
            Vec::new()
        }
        None => Vec::new(),
    };
    dialled(name, &target.sni, spiffe_ids, dial, scene, parts);
    if !known {
        return;
    }
    let key = HealthKey {
        service: target.service.clone(),
        datacenter: target.datacenter.clone(),
        namespace: target.namespace.clone(),
        partition: target.partition.clone(),
        filter: target.filter.clone(),
    };
    if let Some(instances) = scene.state.instances.get(&key) {
        let endpoint = |i: &super::health::Instance| {
            i.endpoint(target.only_passing, scene.here.datacenter, scene.here.partition)
        };
        let endpoints = instances.iter().filter_map(endpoint).collect();
        let assignment = assignment(endpoints);
        parts.endpoints.insert(Arc::clone(name), assignment);
    }
    parts.wants.insert(Want::Health(key));
}

/// Adds the cluster, if there is an identity to dial with and one to expect.
pub(super) fn dialled(
    name: &Name,
    sni: &str,
    spiffe_ids: Vec<SpiffeId>,
    dial: Dial<'_>,
    scene: &Scene<'_>,
    parts: &mut Parts,
) {
    let Some(authority) = scene.authority.filter(|_| !spiffe_ids.is_empty()) else {
        return;
    };
    let tls = UpstreamTls {
        identity: Some(Arc::clone(&authority.identity)),
        validation: Validation::mesh(&authority.trust, &spiffe_ids),
        sni: Some(sni.into()),
        alpn: Vec::new(),
        params: scene.state.mesh.outgoing.clone(),
    };
    let cluster = Cluster {
        name: Arc::clone(name),
        connect_timeout: dial.connect_timeout,
        transport: Some(Arc::new(tls)),
        load_balancer: dial.balancer.cloned().unwrap_or_default(),
        panic_threshold: 0,
        circuit_breakers: breakers(dial.limits),
        outlier_detection: Some(dial.limits.outlier_detection),
        http: dial.http,
        ..Cluster::default()
    };
    insert(cluster, parts);
}

/// Upstreams that lead to the same target share its cluster, as in Consul.
fn insert(cluster: Cluster, parts: &mut Parts) {
    if let Some(first) = parts.clusters.get(&cluster.name) {
        if *first != cluster {
            let name = &cluster.name;
            parts.notices.insert(format!(
                "cluster {name}: several upstreams with different limits or timeouts lead there; \
                 the first one's hold"
            ));
        }
        return;
    }
    parts.clusters.insert(Arc::clone(&cluster.name), cluster);
}

pub(super) fn assignment(endpoints: Vec<Endpoint>) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        endpoints,
        ..ClusterLoadAssignment::default()
    }
}

fn breakers(limits: UpstreamLimits) -> CircuitBreakers {
    CircuitBreakers {
        max_connections: limits.max_connections,
        max_pending_requests: limits.max_pending_requests,
        max_requests: limits.max_requests,
        ..CircuitBreakers::default()
    }
}
