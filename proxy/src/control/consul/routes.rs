//! From a chain's routers, splitters and resolvers to a route table.
//!
//! Pure, a part of [`super::upstreams`]. Writes what Consul's xDS server writes for the same chain
//! (its `routes.go`); a target that cannot be dialled keeps its place, so that its share of requests is
//! answered with 503 and never goes elsewhere.

use std::sync::Arc;

use super::agent_version::PrefixRewrites;
use super::chain::{Balancing, Chain, ChainNode, ChainRoute, Split, TimeLimit};
use super::http_manager;
use crate::model::Name;
use crate::model::rewrite::RegexRewrite;
use crate::model::route::{
    ClusterSpecifier, ClusterWeight, HeaderMutations, IdleTimeout, PathMatch, PathRewrite, Route,
    RouteAction, RouteConfiguration, RouteDecision, RouteMatch,
};

/// The routes of `chain` as the table `name`.
///
/// # Errors
/// Says what of the chain does not fit together, in words for a person.
pub(super) fn table(
    name: &Name,
    chain: &Chain,
    rewrites: PrefixRewrites,
) -> Result<RouteConfiguration, String> {
    let routes = match node(chain, &chain.start)? {
        ChainNode::Router { routes } => routes
            .iter()
            .map(|route| self::route(chain, route, rewrites))
            .collect::<Result<Vec<_>, _>>()?,
        start => {
            let mut action = action(chain, start)?;
            // Consul heeds it only where no route or split stands before the resolver.
            if let ChainNode::Resolver { request_timeout, .. } = start {
                set_timeout(&mut action, *request_timeout);
            }
            let everything = RouteMatch::path(PathMatch::Prefix("/".into()));
            vec![to(everything, action, HeaderMutations::default())]
        }
    };
    http_manager::table(Arc::clone(name), Arc::clone(name), routes)
}

fn to(matches: RouteMatch, action: RouteAction, headers: HeaderMutations) -> Arc<Route> {
    Arc::new(Route {
        name: "".into(),
        matches,
        action: RouteDecision::Route(Box::new(action)),
        headers,
    })
}

fn route(chain: &Chain, route: &ChainRoute, rewrites: PrefixRewrites) -> Result<Arc<Route>, String> {
    let mut action = action(chain, node(chain, &route.next)?)?;
    let mut headers = HeaderMutations::default();
    if let Some(destination) = &route.destination {
        action.path_rewrite = rewrite(route, &destination.prefix_rewrite, rewrites)?;
        set_timeout(&mut action, destination.request_timeout);
        action.idle_timeout = match destination.idle_timeout {
            TimeLimit::Unset => IdleTimeout::Inherited,
            TimeLimit::Never => IdleTimeout::Disabled,
            TimeLimit::After(limit) => IdleTimeout::After(limit),
        };
        action.retry_policy.clone_from(&destination.retry_policy);
        headers = destination.headers.clone();
    }
    Ok(to(route.matches.clone(), action, headers))
}

fn node<'a>(chain: &'a Chain, key: &str) -> Result<&'a ChainNode, String> {
    let node = chain.nodes.get(key);
    node.ok_or_else(|| format!("its chain lacks the node {key:?}"))
}

fn set_timeout(action: &mut RouteAction, limit: TimeLimit) {
    match limit {
        TimeLimit::Unset => {}
        TimeLimit::Never => action.timeout = None,
        TimeLimit::After(limit) => action.timeout = Some(limit),
    }
}

/// To what the splitter or resolver `next` leads to.
fn action(chain: &Chain, next: &ChainNode) -> Result<RouteAction, String> {
    let (cluster, balancing) = match next {
        ChainNode::Splitter { splits, balancing } => {
            (ClusterSpecifier::Weighted(weighted(chain, splits)?), balancing)
        }
        ChainNode::Resolver { balancing, .. } => {
            (ClusterSpecifier::Cluster(cluster(chain, next)?), balancing)
        }
        ChainNode::Router { .. } => return Err("its chain has a router behind another node".to_owned()),
        ChainNode::Other { kind } => return Err(format!("its chain has a node that is not known ({kind})")),
    };
    let Balancing { hash_policy, .. } = balancing;
    let mut action = RouteAction::to("".into());
    action.cluster = cluster;
    action.hash_policy.clone_from(hash_policy);
    Ok(action)
}

fn cluster(chain: &Chain, resolver: &ChainNode) -> Result<Name, String> {
    let ChainNode::Resolver { target: id, .. } = resolver else {
        return Err("its chain has no resolver behind a splitter".to_owned());
    };
    match chain.targets.get(id) {
        Some(target) if !target.name.is_empty() => Ok(chain.cluster_name(target).into()),
        Some(_) => Err(format!("its target {id} has no name")),
        None => Err(format!("its chain lacks the target {id:?}")),
    }
}

fn weighted(chain: &Chain, splits: &[Split]) -> Result<Vec<ClusterWeight>, String> {
    let mut clusters = Vec::with_capacity(splits.len());
    for split in splits {
        clusters.push(ClusterWeight {
            name: cluster(chain, node(chain, &split.next)?)?,
            weight: split.weight,
            headers: split.headers.clone(),
            host_rewrite: None,
        });
    }
    if clusters.iter().all(|cluster| cluster.weight == 0) {
        return Err("its splits have no weight above 0".to_owned());
    }
    Ok(clusters)
}

/// What becomes of the path.
fn rewrite(
    route: &ChainRoute,
    prefix: &str,
    rewrites: PrefixRewrites,
) -> Result<Option<PathRewrite>, String> {
    let cut = match (rewrites, prefix) {
        (PrefixRewrites::CutAlways, "" | "/") => true,
        (PrefixRewrites::WithoutDoubleSlash, "/") => true,
        (_, "") => return Ok(None),
        _ => false,
    };
    if !cut {
        return Ok(Some(PathRewrite::Prefix(prefix.into())));
    }
    let matched = match &route.matches.path {
        PathMatch::Prefix(prefix) => quoted(prefix),
        _ => String::new(),
    };
    let case = if route.case_insensitive { "(?i)" } else { "" };
    RegexRewrite::new(&format!("{case}^{matched}(/?)(.*)"), r"/\2")
        .map(|rewrite| Some(PathRewrite::Regex(rewrite)))
        .map_err(|error| error.to_string())
}

/// `text` as an expression that matches it, in the form in which Go writes it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
