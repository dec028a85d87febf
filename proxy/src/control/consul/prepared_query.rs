//! Prepared queries: an upstream whose instances the answer names, whatever services they are of.
//!
//! Pure, a part of [`super::upstreams`]. Before the answer nobody is expected, so nobody is dialled.

use std::sync::Arc;
use std::time::Duration;

use super::compile::Parts;
use super::health::QueryResult;
use super::http_manager::{self, Protocol};
use super::registration::Upstream;
use super::state::{QueryKey, Want};
use super::upstreams::{Dial, Scene, assignment, dialled, tcp_proxy};
use super::{chain, upstream_limits};
use crate::model::cluster::HttpProtocol;
use crate::model::http::Routes;
use crate::model::route::{PathMatch, RouteAction};
use crate::model::spiffe::ServiceId;
use crate::model::{Name, SpiffeId, Terminal};

/// What carries connections to the answer of a query; none while it cannot even be named.
pub(super) fn query(
    upstream: &Upstream,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Result<Option<Terminal>, String> {
    let protocol = upstream.config.text("protocol").and_then(Protocol::parse);
    let Some(cluster) = query_cluster(upstream, protocol, scene, parts)? else {
        return Ok(None);
    };
    let Some(protocol) = protocol else {
        return Ok(Some(tcp_proxy(cluster, upstream, scene)));
    };
    let name: Name = upstream.name().into();
    let table = http_manager::simple_table(
        Arc::clone(&name),
        Arc::clone(&name),
        PathMatch::Prefix("/".into()),
        RouteAction::to(cluster),
    )?;
    let limit = http_manager::max_request_headers_kb(scene.registration, parts);
    // A colon would part the name in statistics.
    let stat_prefix = format!("upstream.{}", name.replace(':', "_")).into();
    let manager = http_manager::manager(protocol, stat_prefix, Routes::Inline(table), limit);
    Ok(Some(Terminal::HttpConnectionManager(Arc::new(manager))))
}

fn query_cluster(
    upstream: &Upstream,
    protocol: Option<Protocol>,
    scene: &Scene<'_>,
    parts: &mut Parts,
) -> Result<Option<Name>, String> {
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
    let dial = Dial {
        connect_timeout: timeout,
        limits: upstream_limits::of(upstream, protocol.is_some(), parts),
        http: protocol.map_or(HttpProtocol::default(), Protocol::of_upstream),
        balancer: None,
    };
    let Some(result) = known else {
        let ids = nobody(trust_domain);
        dialled(&name, &sni, ids, dial, scene, parts);
        return Ok(Some(name));
    };
    if !result.peer.is_empty() {
        let peer = &result.peer;
        return Err(format!(
            "the cluster peer {peer:?} answered: that needs the xds source"
        ));
    }
    let spiffe_ids = identities(result, trust_domain)?;
    dialled(&name, &sni, spiffe_ids, dial, scene, parts);
    let here = scene.here;
    let endpoint = |i: &super::health::Instance| i.endpoint(false, here.datacenter, here.partition);
    let endpoints = result.instances.iter().filter_map(endpoint).collect();
    parts.endpoints.insert(Arc::clone(&name), assignment(endpoints));
    Ok(Some(name))
}

/// Whom the instances of the answer are expected to be.
fn identities(result: &QueryResult, trust_domain: &str) -> Result<Vec<SpiffeId>, String> {
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
    Ok(spiffe_ids)
}

/// Expected of an endpoint before Consul has said whom to expect: nobody has this identity, so a
/// connection that was waiting cannot end up anywhere.
fn nobody(trust_domain: &str) -> Vec<SpiffeId> {
    let id = SpiffeId::parse(&format!("spiffe://{trust_domain}/attache/not-known-yet"));
    id.into_iter().collect()
}
