//! From accepted resources to a snapshot: make before break.
//!
//! Pure. A new version of a listener takes the place of the old one only once everything that it needs is
//! known; until then the old one serves. What never comes is not waited for without end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::cluster::ClusterKind;
use crate::model::http::{Routes, TracingProvider};
use crate::model::route::RouteConfiguration;
use crate::model::{
    Cluster, ClusterLoadAssignment, FilterChain, Listener, Name, NetworkFilter, Node, Snapshot, Terminal,
};

/// Everything that was accepted, static or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    pub(super) listeners: BTreeMap<Name, Arc<Listener>>,
    pub(super) clusters: BTreeMap<Name, Arc<Cluster>>,
    /// By cluster.
    pub(super) endpoints: BTreeMap<Name, Arc<ClusterLoadAssignment>>,
    pub(super) routes: BTreeMap<Name, Arc<RouteConfiguration>>,
    /// Of the bootstrap.
    pub(super) node: Arc<Node>,
    /// Likewise.
    pub(super) tracing: Option<Arc<TracingProvider>>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) snapshot: Snapshot,
    /// What listeners need and nobody has said, given up or not.
    pub(super) missing: BTreeSet<Missing>,
    /// Whether a listener waits for it.
    pub(super) waits: bool,
}

/// Something that a listener needs and that is not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Missing {
    /// A cluster.
    Cluster(Name),
    /// The endpoints of a cluster that is known.
    Endpoints(Name),
    /// A route configuration.
    Routes(Name),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "the cluster {name}"),
            Self::Endpoints(name) => write!(f, "the endpoints of the cluster {name}"),
            Self::Routes(name) => write!(f, "the route configuration {name}"),
        }
    }
}

/// Puts a snapshot together. `given_up` says what has been waited for long enough.
pub(super) fn assemble(
    accepted: &Accepted,
    previous: Option<&Snapshot>,
    given_up: &dyn Fn(&Missing) -> bool,
) -> Assembled {
    let (mut missing, mut waits) = (BTreeSet::new(), false);
    let mut listeners = BTreeMap::new();
    for (name, listener) in &accepted.listeners {
        let needed = accepted.missing(listener);
        let ready = needed.iter().all(given_up);
        missing.extend(needed);
        let old = previous.and_then(|previous| previous.listeners.get(name));
        // The very listener that serves needs nothing more than it had.
        let serves = old.is_some_and(|old| Arc::ptr_eq(old, listener));
        if ready || serves {
            listeners.insert(Arc::clone(name), Arc::clone(listener));
            continue;
        }
        waits = true;
        if let Some(old) = old {
            listeners.insert(Arc::clone(name), Arc::clone(old));
        }
    }
    Assembled {
        snapshot: Snapshot {
            listeners,
            clusters: accepted.clusters.clone(),
            endpoints: accepted.endpoints.clone(),
            routes: accepted.routes.clone(),
            node: Arc::clone(&accepted.node),
            tracing: accepted.tracing.clone(),
        },
        missing,
        waits,
    }
}

impl Accepted {
    /// What `listener` needs and nobody has said yet.
    fn missing(&self, listener: &Listener) -> BTreeSet<Missing> {
        let mut missing = BTreeSet::new();
        for chain in listener.chains() {
            let (clusters, routes) = needs(chain);
            for name in clusters {
                self.missing_of_cluster(name, 0, &mut missing);
            }
            let unknown = routes.filter(|name| !self.routes.contains_key(*name));
            missing.extend(unknown.map(|name| Missing::Routes(Arc::clone(name))));
        }
        missing
    }

    fn missing_of_cluster(&self, name: &Name, depth: u32, missing: &mut BTreeSet<Missing>) {
        /// As deep as the data plane follows aggregates of aggregates.
        const MAX_DEPTH: u32 = 8;
        let Some(cluster) = self.clusters.get(name) else {
            missing.insert(Missing::Cluster(Arc::clone(name)));
            return;
        };
        match &cluster.kind {
            ClusterKind::Endpoints | ClusterKind::Dns(_) => {
                if !self.endpoints.contains_key(name) {
                    missing.insert(Missing::Endpoints(Arc::clone(name)));
                }
            }
            ClusterKind::OriginalDestination => {}
            ClusterKind::Aggregate(members) if depth < MAX_DEPTH => {
                for member in members {
                    self.missing_of_cluster(member, depth + 1, missing);
                }
            }
            ClusterKind::Aggregate(_) => {}
        }
    }
}

/// The clusters and the route configuration that a chain is made of. A chain whose cluster is given by
/// the server name needs none in particular.
fn needs(chain: &FilterChain) -> (Vec<&Name>, impl Iterator<Item = &Name>) {
    let by_name = chain
        .filters
        .iter()
        .any(|filter| matches!(filter, NetworkFilter::SniCluster));
    let (clusters, routes) = match &chain.terminal {
        Terminal::TcpProxy(_) if by_name => (Vec::new(), None),
        Terminal::TcpProxy(proxy) => (proxy.clusters.iter().map(|cluster| &cluster.name).collect(), None),
        Terminal::HttpConnectionManager(manager) => match &manager.routes {
            Routes::Inline(routes) => (routes.clusters().collect(), None),
            Routes::Rds(name) => (Vec::new(), Some(name)),
        },
    };
    (clusters, routes.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::filter_chain_match::FilterChainMatch;
    use crate::model::listener::{Address, Direction, ListenerFilters, TcpProxy};

    fn listener(name: &str, cluster: &str, port: u16) -> (Name, Arc<Listener>) {
        let chain = FilterChain {
            name: "".into(),
            matches: FilterChainMatch::default(),
            transport: None,
            filters: vec![],
            terminal: Terminal::TcpProxy(TcpProxy::to(cluster.into(), "x".into())),
        };
        let listener = Listener {
            name: name.into(),
            address: Address::Socket(([127, 0, 0, 1], port).into()),
            direction: Direction::Outbound,
            stat_prefix: None,
            filters: ListenerFilters::default(),
            filter_chains: vec![Arc::new(chain)],
            default_filter_chain: None,
            exact_balance: false,
            access_log: vec![],
        };
        (name.into(), Arc::new(listener))
    }

    fn cluster(name: &str, kind: ClusterKind) -> (Name, Arc<Cluster>) {
        let cluster = Cluster {
            name: name.into(),
            kind,
            ..Cluster::default()
        };
        (name.into(), Arc::new(cluster))
    }

    fn known(name: &str) -> (Name, Arc<ClusterLoadAssignment>) {
        (name.into(), Arc::default())
    }

    #[test]
    fn a_newer_listener_waits_while_the_old_one_serves() {
        let mut accepted = Accepted::default();
        accepted.listeners.extend([listener("l", "a", 1)]);
        accepted.clusters.extend([cluster("a", ClusterKind::Endpoints)]);
        accepted.endpoints.extend([known("a")]);
        let never = |_: &Missing| false;
        let first = assemble(&accepted, None, &never);
        assert!(!first.waits && first.missing.is_empty());

        accepted.listeners.extend([listener("l", "b", 2)]);
        let second = assemble(&accepted, Some(&first.snapshot), &never);
        assert!(second.waits);
        assert_eq!(second.missing, [Missing::Cluster("b".into())].into());
        assert_eq!(second.snapshot.listeners["l"], first.snapshot.listeners["l"]);

        accepted.clusters.extend([cluster("b", ClusterKind::Endpoints)]);
        let third = assemble(&accepted, Some(&second.snapshot), &never);
        assert_eq!(third.missing, [Missing::Endpoints("b".into())].into());
        assert_eq!(third.snapshot.listeners["l"], first.snapshot.listeners["l"]);
        let patience_is_over = assemble(&accepted, Some(&third.snapshot), &|_| true);
        assert!(!patience_is_over.waits);
        assert_eq!(patience_is_over.snapshot.listeners["l"], accepted.listeners["l"]);

        accepted.endpoints.extend([known("b")]);
        let fourth = assemble(&accepted, Some(&third.snapshot), &never);
        assert!(!fourth.waits);
        assert_eq!(fourth.snapshot.listeners["l"], accepted.listeners["l"]);
        // What serves stays, even if its cluster's endpoints are forgotten.
        accepted.endpoints.clear();
        let fifth = assemble(&accepted, Some(&fourth.snapshot), &never);
        assert!(!fifth.waits && fifth.snapshot.listeners.len() == 1);
    }

    #[test]
    fn an_aggregate_needs_its_members_and_a_loop_ends() {
        let mut accepted = Accepted::default();
        let members =
            |names: &[&str]| ClusterKind::Aggregate(names.iter().map(|name| (*name).into()).collect());
        accepted.listeners.extend([listener("l", "all", 1)]);
        accepted.clusters.extend([
            cluster("all", members(&["a", "b", "all"])),
            cluster("a", ClusterKind::OriginalDestination),
            cluster("b", ClusterKind::Endpoints),
        ]);
        let assembled = assemble(&accepted, None, &|_| false);
        assert_eq!(assembled.missing, [Missing::Endpoints("b".into())].into());
        assert!(assembled.snapshot.listeners.is_empty());
    }
}
