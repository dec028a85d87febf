//! From upstreams, their chains and instances to outbound listeners and clusters.
//!
//! Pure, a part of [`super::compile`]. An upstream that cannot be carried has no listener: whoever
//! dials it is refused at once, and the notice says why.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::chain::{self, Chain, Here, Plan};
use super::compile::Parts;
use super::registration::{Registration, Upstream};
use super::state::{Authority, Given, HealthKey, QueryKey, State, Want};
use super::upstream_limits::{self, UpstreamLimits};
use crate::model::cluster::CircuitBreakers;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{Address, Direction, TcpProxy};
use crate::model::spiffe::ServiceId;
use crate::model::{
    Cluster, ClusterKind, ClusterLoadAssignment, Endpoint, FilterChain, Name, SpiffeId, Terminal,
    UpstreamTls, Validation,
};

/// Consul's prefix for the clusters inside an aggregate.
const FAILOVER: &str = "failover-target";

/// What every upstream of one proxy shares.
struct Scene<'a> {
    state: &'a State,
    registration: &'a Registration,
    authority: Option<&'a Authority>,
    here: Here<'a>,
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
    let cluster = match (&upstream.peer, upstream.kind.as_str()) {
        (Some(peer), _) => {
            return Err(format!(
                "it is in the cluster peer {peer:?}: that needs the xds source"
            ));
        }
        (None, "service") => service(upstream, scene, parts)?,
        (None, "prepared_query") => query(upstream, scene, parts)?,
        (None, kind) => return Err(format!("DestinationType {kind:?} is not known")),
    };
    let Some(cluster) = cluster else {
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
        terminal: Terminal::TcpProxy(TcpProxy::to(cluster, stat_prefix(upstream, scene))),
    };
    let listener = super::compile::listener(Arc::clone(&name), address, Direction::Outbound, chain);
    parts.listeners.insert(name, listener);
    Ok(())
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

/// The cluster of a service; none while it cannot even be named.
fn service(upstream: &Upstream, scene: &Scene<'_>, parts: &mut Parts) -> Result<Option<Name>, String> {
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
    let plan = chain.plan(scene.here)?;
    for notice in &plan.notices {
        let name = upstream.name();
        parts.notices.insert(format!("upstream {name}: {notice}"));
    }
    let limit = upstream_limits::of(upstream, parts);
    Ok(Some(clusters(chain, &plan, known.is_some(), limit, scene, parts)))
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
    let resolver = chain::ChainNode::Resolver {
        target: id.clone(),
        connect_timeout: None,
        failover: None,
        failover_policy: String::new(),
    };
    Chain {
        service: service.clone(),
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
    limit: UpstreamLimits,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Name {
    let base: Name = chain.cluster_name(plan.first).into();
    let Some(others) = &plan.failover else {
        target(
            &base,
            plan.first,
            plan.connect_timeout,
            known,
            limit,
            scene,
            parts,
        );
        return base;
    };
    let mut names = Vec::new();
    for (i, one) in std::iter::once(&plan.first).chain(others).enumerate() {
        let name: Name = format!("{FAILOVER}~{i}~{base}").into();
        target(&name, one, plan.connect_timeout, known, limit, scene, parts);
        names.push(name);
    }
    let aggregate = Cluster {
        name: Arc::clone(&base),
        kind: ClusterKind::Aggregate(names),
        connect_timeout: plan.connect_timeout,
        circuit_breakers: breakers(limit.max_connections),
        ..Cluster::default()
    };
    insert(aggregate, parts);
    base
}

fn target(
    name: &Name,
    target: &chain::Target,
    connect_timeout: Duration,
    known: bool,
    limits: UpstreamLimits,
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
    dialled(
        name,
        &target.sni,
        spiffe_ids,
        connect_timeout,
        limits,
        scene,
        parts,
    );
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
fn dialled(
    name: &Name,
    sni: &str,
    spiffe_ids: Vec<SpiffeId>,
    connect_timeout: Duration,
    limits: UpstreamLimits,
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
        connect_timeout,
        transport: Some(Arc::new(tls)),
        panic_threshold: 0,
        circuit_breakers: breakers(limits.max_connections),
        outlier_detection: Some(limits.outlier_detection),
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

fn query(upstream: &Upstream, scene: &Scene<'_>, parts: &mut Parts) -> Result<Option<Name>, String> {
    let key = QueryKey {
        name: upstream.destination.clone(),
        datacenter: upstream.datacenter.clone(),
    };
    let known = scene.state.queries.get(&key);
    parts.wants.insert(Want::Query(key));
    let (Some(authority), false) = (scene.authority, scene.here.datacenter.is_empty()) else {
        return Ok(None);
    };
    let trust_domain = &authority.trust.trust_domain;
    let datacenter = upstream.datacenter.as_deref().unwrap_or(scene.here.datacenter);
    let sni = format!(
        "{}.default.{datacenter}.query.{trust_domain}",
        upstream.destination
    );
    let name: Name = sni.as_str().into();
    let timeout = match upstream.config.number("connect_timeout_ms") {
        Ok(Some(ms)) if ms > 0 => Duration::from_millis(ms),
        _ => chain::CONNECT_TIMEOUT,
    };
    let limit = upstream_limits::of(upstream, parts);
    let Some(result) = known else {
        let ids = nobody(trust_domain);
        dialled(&name, &sni, ids, timeout, limit, scene, parts);
        return Ok(Some(name));
    };
    if !result.peer.is_empty() {
        let peer = &result.peer;
        return Err(format!(
            "the cluster peer {peer:?} answered: that needs the xds source"
        ));
    }
    let mut spiffe_ids: Vec<SpiffeId> = Vec::new();
    for instance in &result.instances {
        let id = ServiceId {
            partition: instance.partition.clone(),
            namespace: instance.namespace.clone(),
            datacenter: instance.datacenter.clone(),
            service: instance.service.clone(),
        };
        match SpiffeId::for_service(trust_domain, &id) {
            Ok(id) if !spiffe_ids.contains(&id) => spiffe_ids.push(id),
            Ok(_) => {}
            Err(why) => return Err(format!("an instance of {:?} has {why}", instance.service)),
        }
    }
    if spiffe_ids.is_empty() {
        spiffe_ids = nobody(trust_domain);
    }
    dialled(&name, &sni, spiffe_ids, timeout, limit, scene, parts);
    let here = scene.here;
    let endpoint = |i: &super::health::Instance| i.endpoint(false, here.datacenter, here.partition);
    let endpoints = result.instances.iter().filter_map(endpoint).collect();
    parts.endpoints.insert(Arc::clone(&name), assignment(endpoints));
    Ok(Some(name))
}

fn assignment(endpoints: Vec<Endpoint>) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        endpoints,
        ..ClusterLoadAssignment::default()
    }
}

fn breakers(max_connections: Option<u32>) -> CircuitBreakers {
    CircuitBreakers {
        max_connections,
        ..CircuitBreakers::default()
    }
}

/// Expected of an endpoint before Consul has said whom to expect: nobody has this identity, so a
/// connection that was waiting cannot end up anywhere.
fn nobody(trust_domain: &str) -> Vec<SpiffeId> {
    let id = SpiffeId::parse(&format!("spiffe://{trust_domain}/attache/not-known-yet"));
    id.into_iter().collect()
}
