//! The clusters of one worker: applies snapshots, answers which endpoints may be dialled.
//!
//! Owns every [`ClusterState`]; a cluster that a snapshot no longer has lives on only in the
//! connections that use it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::cluster::{Availability, ClusterState};
use super::endpoint::{EndpointSet, EndpointState};
use super::priority::spread;
use crate::limit::Limits;
use crate::model::cluster::LoadBalancer;
use crate::model::listener::{Address, Direction};
use crate::model::{ClusterKind, Name, Snapshot};
use crate::net::socket;
use crate::tls::ConfigCache;

/// All clusters of one worker.
#[derive(Debug)]
pub struct ClusterManager {
    clusters: RefCell<HashMap<Name, Rc<ClusterState>>>,
    limits: Limits,
    /// Whether this worker tells what all of them see alike.
    leads: bool,
    /// Where the app's own connections arrive: to dial there would be to dial oneself.
    outbound: RefCell<Vec<SocketAddr>>,
    /// Wakes connections that wait for an endpoint, after each snapshot.
    changed: Rc<Notify>,
}

/// What there is to dial for a cluster's name, at one moment.
#[derive(Debug)]
pub struct Resolved {
    /// The cluster; of an aggregate the member with the best prospect: one with endpoints, else one not
    /// known yet, else the one that lost its last most recently.
    pub cluster: Rc<ClusterState>,
    /// Its.
    pub availability: Availability,
    /// Priorities, the preferred one first; of an aggregate those of its members, one after the other.
    levels: Vec<ResolvedLevel>,
    /// Whether the choice among priorities follows the connection's hash.
    by_hash: bool,
}

#[derive(Debug)]
struct ResolvedLevel {
    cluster: Rc<ClusterState>,
    set: Rc<EndpointSet>,
    index: usize,
    percent: u32,
}

impl ClusterManager {
    /// Without clusters yet. One worker `leads`: it tells what all of them see alike, such as how many
    /// endpoints there are.
    pub fn new(limits: Limits, leads: bool) -> Self {
        Self {
            clusters: RefCell::default(),
            limits,
            leads,
            outbound: RefCell::default(),
            changed: Rc::default(),
        }
    }

    /// Takes the clusters and endpoints of a snapshot. Must run inside a `LocalRuntime` if a cluster has host
    /// names to resolve.
    pub fn apply(&self, snapshot: &Snapshot, tls: &mut ConfigCache) {
        let mut clusters = self.clusters.borrow_mut();
        clusters.retain(|name, cluster| {
            let newer = snapshot.clusters.get(name);
            // Under another name in statistics it is another cluster.
            newer.is_some_and(|newer| newer.stat_name() == cluster.config().stat_name())
        });
        for (name, config) in &snapshot.clusters {
            let cluster = clusters.entry(name.clone()).or_insert_with(|| {
                let changed = Rc::clone(&self.changed);
                Rc::new(ClusterState::new(config, &self.limits, self.leads, changed, tls))
            });
            cluster.update(config, tls);
            cluster.update_endpoints(snapshot.endpoints.get(name));
        }
        drop(clusters);
        let listeners = snapshot.listeners.values();
        *self.outbound.borrow_mut() = listeners
            .filter(|listener| listener.direction != Direction::Inbound)
            .filter_map(|listener| match listener.address {
                Address::Socket(address) => Some(address),
                Address::Pipe { .. } => None,
            })
            .collect();
        self.changed.notify_waiters();
    }

    /// The cluster called `name`.
    pub fn get(&self, name: &str) -> Option<Rc<ClusterState>> {
        self.clusters.borrow().get(name).cloned()
    }

    /// What there is to dial for `name`. None if there is no such cluster, or of an aggregate no member.
    pub fn resolve(&self, name: &str) -> Option<Resolved> {
        let cluster = self.get(name)?;
        let config = cluster.config();
        if matches!(config.kind, ClusterKind::Aggregate(_)) {
            return self.resolve_aggregate(&cluster);
        }
        let mut levels = Vec::new();
        add_levels(&cluster, &mut levels);
        Some(Resolved {
            availability: cluster.availability(),
            cluster,
            levels,
            by_hash: matches!(
                config.load_balancer,
                LoadBalancer::RingHash { .. } | LoadBalancer::Maglev { .. }
            ),
        })
    }

    /// The load is spread over the members' priorities as if they were the aggregate's own, with its panic
    /// threshold; whether a member's endpoints panic is the member's. A member without endpoints, known or
    /// not, has no priorities: it hides no later one.
    fn resolve_aggregate(&self, aggregate: &Rc<ClusterState>) -> Option<Resolved> {
        let mut members = Vec::new();
        self.members(aggregate, &mut Vec::new(), &mut members);
        let mut levels = Vec::new();
        for member in &members {
            add_levels(member, &mut levels);
        }
        let health: Vec<_> = levels
            .iter()
            .map(ResolvedLevel::level)
            .map(|level| level.health)
            .collect();
        for (level, load) in levels
            .iter_mut()
            .zip(spread(&health, aggregate.config().panic_threshold))
        {
            level.percent = load.percent;
        }
        let (cluster, availability) = members
            .into_iter()
            .map(|member| (Rc::clone(&member), member.availability()))
            .max_by(|(_, a), (_, b)| rank(a).cmp(&rank(b)).then(std::cmp::Ordering::Greater))?;
        Some(Resolved {
            cluster,
            availability,
            levels,
            by_hash: false,
        })
    }

    /// The members that are no aggregates themselves, in order. `seen` are the aggregates looked into: a
    /// cycle in a bad snapshot must not loop.
    fn members(
        &self,
        aggregate: &Rc<ClusterState>,
        seen: &mut Vec<Name>,
        members: &mut Vec<Rc<ClusterState>>,
    ) {
        let config = aggregate.config();
        let ClusterKind::Aggregate(names) = &config.kind else {
            members.push(Rc::clone(aggregate));
            return;
        };
        if seen.contains(&aggregate.name) {
            return;
        }
        seen.push(Name::clone(&aggregate.name));
        for member in names.iter().filter_map(|name| self.get(name)) {
            self.members(&member, seen, members);
        }
    }

    /// Whether `address` is one at which an outbound listener of ours accepts.
    pub fn is_ourselves(&self, address: SocketAddr) -> bool {
        self.outbound.borrow().iter().any(|listener| {
            let any = listener.ip().is_unspecified();
            listener.port() == address.port()
                && (listener.ip() == address.ip() || any && socket::is_local(address.ip()))
        })
    }

    /// With these clusters, whose endpoints are not known.
    #[cfg(test)]
    pub(crate) fn for_tests(clusters: Vec<crate::model::Cluster>) -> Self {
        let manager = Self::new(Limits::default(), true);
        let mut snapshot = Snapshot::default();
        for cluster in clusters {
            snapshot
                .clusters
                .insert(Name::clone(&cluster.name), cluster.into());
        }
        manager.apply(&snapshot, &mut ConfigCache::default());
        manager
    }

    /// Ready once something changed after the call that may bring an endpoint.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Resolved {
    /// One endpoint that is not to be avoided, and its cluster: of the priority that the load says, else of
    /// the next that has one. `per_request` has endpoints take turns.
    pub fn choose(
        &self,
        hash: u64,
        per_request: bool,
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<(&Rc<ClusterState>, &Rc<EndpointState>)> {
        let mut draw = (if self.by_hash { hash } else { fastrand::u64(..) }) % 100;
        let chosen = self.levels.iter().position(|level| {
            let here = draw < u64::from(level.percent);
            draw = draw.saturating_sub(u64::from(level.percent));
            here
        });
        let chosen = chosen.unwrap_or_default();
        let others = (0..self.levels.len()).filter(|index| *index != chosen);
        std::iter::once(chosen)
            .chain(others)
            .filter_map(|index| self.levels.get(index))
            .find_map(|level| {
                let pool = level.level().pool();
                let kind = &level.cluster.config().load_balancer;
                let chosen = match kind {
                    LoadBalancer::RoundRobin if per_request => pool.take_turn(false, &avoid)?,
                    LoadBalancer::LeastRequest { .. } if per_request && pool.is_weighted() => {
                        pool.take_turn(true, &avoid)?
                    }
                    kind => pool.choose(kind, hash, &avoid)?,
                };
                if level.level().load.panic {
                    level.cluster.metrics.healthy_panic.increment(1);
                }
                Some((&level.cluster, chosen))
            })
    }
}

impl ResolvedLevel {
    fn level(&self) -> &super::endpoint::Level {
        &self.set.levels[self.index]
    }
}

fn add_levels(cluster: &Rc<ClusterState>, levels: &mut Vec<ResolvedLevel>) {
    let set = cluster.endpoints();
    levels.extend((0..set.levels.len()).map(|index| ResolvedLevel {
        cluster: Rc::clone(cluster),
        percent: set.levels[index].load.percent,
        set: Rc::clone(&set),
        index,
    }));
}

fn rank(availability: &Availability) -> (u8, Option<Instant>) {
    match availability {
        Availability::Never => (0, None),
        Availability::Lost(at) => (1, Some(*at)),
        Availability::Unknown(_) => (2, None),
        Availability::Endpoints => (3, None),
    }
}
