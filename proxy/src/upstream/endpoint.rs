//! The endpoints of one cluster as a worker sees them: each with its counts, all grouped by priority and
//! health.
//!
//! An [`EndpointSet`] is immutable and shared by `Rc`; a change of endpoints, weights or health makes
//! another, so that a connection neither copies nor groups anything.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::load_balancer::Pool;
use super::outlier::{Ejections, EndpointHealth, Outliers};
use super::priority::{Health, Load, spread};
use crate::model::{ClusterLoadAssignment, Endpoint, Target};
use crate::telemetry::endpoints::{EndpointMetrics, Facts};
use crate::telemetry::metrics::ClusterMembership;
use crate::tls::{ClientTls, Sessions};

/// How long an endpoint that could not be connected to is put last, without being ejected: time enough for
/// its source to say that it is gone, short enough for one that restarts.
const PUT_LAST: Duration = Duration::from_secs(2);

/// How long after it came an endpoint that was never connected to may still be starting: Consul knows an
/// instance as soon as it is registered, its sidecar listens a second or more later.
const STARTING: Duration = Duration::from_secs(5);

/// One endpoint with its live connections; kept over updates that do not change its address.
#[derive(Debug)]
pub struct EndpointState {
    /// Where it is dialled.
    pub address: Target,
    /// From the first request on that tells it.
    address_text: OnceCell<Rc<str>>,
    hostname: RefCell<Option<Arc<str>>>,
    /// Relative share.
    pub weight: Cell<u32>,
    /// Connections of this worker that are being made or live.
    pub active: Cell<u32>,
    /// What all workers know of it.
    pub health: Arc<EndpointHealth>,
    healthy: Cell<bool>,
    priority: Cell<u32>,
    gone: Cell<bool>,
    last_until: Cell<Option<Instant>>,
    came: Instant,
    was_connected: Cell<bool>,
    /// TLS sessions with it, from the first dial on.
    sessions: RefCell<Option<Sessions>>,
    /// From the first dial on, or from its resolution.
    metrics: OnceCell<EndpointMetrics>,
}

/// The endpoints of a cluster, by priority.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// The priorities that have endpoints, the preferred one first.
    pub levels: Vec<Level>,
    /// Ejected endpoints, and all of them.
    pub ejections: Ejections,
}

/// The endpoints of one priority.
#[derive(Debug)]
pub struct Level {
    /// What the spreading over priorities asks.
    pub health: Health,
    /// What the spreading within the cluster gave it.
    pub load: Load,
    usable: Rc<Pool>,
    all: Rc<Pool>,
}

impl EndpointState {
    /// A fresh endpoint without connections.
    pub fn new(endpoint: &Endpoint, health: Arc<EndpointHealth>) -> Self {
        Self {
            address: endpoint.address.clone(),
            address_text: OnceCell::new(),
            hostname: RefCell::new(endpoint.hostname.clone()),
            weight: Cell::new(endpoint.weight),
            active: Cell::new(0),
            health,
            healthy: Cell::new(endpoint.healthy),
            priority: Cell::new(endpoint.priority),
            gone: Cell::new(false),
            last_until: Cell::new(None),
            came: Instant::now(),
            was_connected: Cell::new(false),
            sessions: RefCell::default(),
            metrics: OnceCell::new(),
        }
    }

    /// [`Self::address`] as logs and spans tell it.
    pub fn address_text(&self) -> &Rc<str> {
        self.address_text.get_or_init(|| self.address.to_string().into())
    }

    /// What it is called: as its source says, or the host name that is dialled, or was resolved.
    pub fn hostname(&self) -> Option<Arc<str>> {
        let said = self.hostname.borrow().clone();
        said.or_else(|| match &self.address {
            Target::Host { host, .. } => Some(Arc::clone(host)),
            Target::Address(_) => None,
        })
    }

    /// The TLS sessions with it under its cluster's `config`; `resumption` says whether any are kept.
    pub(super) fn sessions(&self, config: &Arc<ClientTls>, resumption: bool) -> Sessions {
        let mut held = self.sessions.borrow_mut();
        match &*held {
            Some(sessions) if sessions.are_of(config) => sessions.clone(),
            _ => held.insert(Sessions::new(config, resumption)).clone(),
        }
    }

    /// Its counts, for `/clusters`. `cluster` is its cluster's name.
    pub fn metrics(&self, cluster: &str) -> &EndpointMetrics {
        self.metrics
            .get_or_init(|| EndpointMetrics::new(cluster, &self.address.to_string(), self.facts()))
    }

    /// What is known of it, but for its name.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            hostname: String::new(),
            weight: self.weight.get(),
            priority: self.priority.get(),
            healthy: self.healthy.get(),
            locality: Default::default(),
        }
    }

    /// Says in its counts whether it is ejected, where it has some.
    pub(super) fn tell_ejection(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.ejected.set(u64::from(self.health.is_ejected()));
        }
    }

    /// Whether it is dialled outside of a panic.
    fn is_usable(&self) -> bool {
        self.healthy.get() && !self.health.is_ejected()
    }

    /// Whether it has left the cluster: its connections go on, nothing new is to be expected of it.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Whether it failed so recently that any other is preferred.
    pub fn is_last(&self, now: Instant) -> bool {
        self.last_until.get().is_some_and(|until| now < until)
    }

    /// Until when it may be starting, if it may: a refusal says little of it.
    pub fn starts_until(&self, now: Instant) -> Option<Instant> {
        let until = self.came + STARTING;
        (!self.was_connected.get() && !self.is_gone() && now < until).then_some(until)
    }

    /// Something took a connection there, whatever became of it: it is not about to start.
    pub(super) fn took_a_connection(&self) {
        self.was_connected.set(true);
    }

    /// A connection was made. Where `per_request` connections carry requests, only their answers end a row of
    /// failures: an app that takes connections and drops them is never well, as in Envoy.
    pub fn connected(&self, per_request: bool) {
        self.took_a_connection();
        self.last_until.set(None);
        if !per_request {
            self.health.succeeded();
        }
    }

    /// A connection could not be made, which took `took` to find out. It is put last for as long again, so
    /// that one that does not answer at all costs no second connection its whole timeout soon.
    pub fn put_last(&self, now: Instant, took: Duration) {
        self.last_until.set(Some(now + took.max(PUT_LAST)));
    }

    #[cfg(test)]
    pub(super) fn for_tests(port: u16, weight: u32) -> Self {
        let address = crate::model::listener::Address::Socket(([127, 0, 0, 1], port).into());
        let endpoint = Endpoint {
            address: Target::Address(address),
            weight,
            healthy: true,
            priority: 0,
            hostname: None,
        };
        Self::new(&endpoint, Arc::default())
    }
}

impl EndpointSet {
    /// The endpoints of an assignment; those of `before` that stay keep their counts.
    pub fn new(
        assignment: &ClusterLoadAssignment,
        before: &Self,
        outliers: &Outliers,
        panic_threshold: u8,
    ) -> Self {
        let mut old: HashMap<&Target, &Rc<EndpointState>> =
            before.endpoints().map(|state| (&state.address, state)).collect();
        let watched = outliers.watch(assignment.endpoints.iter().map(|endpoint| &endpoint.address));
        let states = assignment
            .endpoints
            .iter()
            .zip(watched)
            .map(|(endpoint, health)| match old.remove(&endpoint.address) {
                Some(have) => {
                    have.hostname.borrow_mut().clone_from(&endpoint.hostname);
                    have.weight.set(endpoint.weight);
                    have.healthy.set(endpoint.healthy);
                    have.priority.set(endpoint.priority);
                    Rc::clone(have)
                }
                None => Rc::new(EndpointState::new(endpoint, health)),
            });
        let states: Vec<_> = states.collect();
        for gone in old.values() {
            gone.gone.set(true);
        }
        Self::group(&states, assignment.overprovisioning_factor, panic_threshold)
    }

    /// The same endpoints after a change of health or of the threshold.
    pub fn regrouped(&self, panic_threshold: u8) -> Self {
        let states: Vec<_> = self.endpoints().cloned().collect();
        let factor = self
            .levels
            .first()
            .map_or(0, |level| level.health.overprovisioning_factor);
        Self::group(&states, factor, panic_threshold)
    }

    fn group(states: &[Rc<EndpointState>], overprovisioning_factor: u32, panic_threshold: u8) -> Self {
        let mut by_priority: BTreeMap<u32, Vec<Rc<EndpointState>>> = BTreeMap::new();
        for state in states {
            by_priority
                .entry(state.priority.get())
                .or_default()
                .push(Rc::clone(state));
        }
        let mut levels: Vec<Level> = by_priority
            .into_values()
            .map(|all| Level::new(all, overprovisioning_factor))
            .collect();
        let health: Vec<Health> = levels.iter().map(|level| level.health).collect();
        for (level, load) in levels.iter_mut().zip(spread(&health, panic_threshold)) {
            level.load = load;
        }
        let active = states.iter().filter(|state| state.health.is_ejected()).count();
        Self {
            levels,
            ejections: Ejections {
                active,
                of: states.len(),
            },
        }
    }

    /// Whether it has the same endpoints as `other`, of which it was made.
    pub(super) fn has_the_members_of(&self, other: &Self) -> bool {
        // Those that stayed are the same; so it is as many and none has gone.
        self.ejections.of == other.ejections.of && !other.endpoints().any(|endpoint| endpoint.is_gone())
    }

    /// Says how many there are.
    pub(super) fn tell(&self, membership: &ClusterMembership) {
        let all = || self.endpoints();
        let healthy = all().filter(|endpoint| endpoint.is_usable()).count();
        let weight = all().map(|endpoint| endpoint.weight.get()).max();
        membership.total.set(self.ejections.of as u64);
        membership.healthy.set(healthy as u64);
        membership.max_host_weight.set(weight.unwrap_or(0).into());
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Rc<EndpointState>> {
        self.levels.iter().flat_map(|level| level.all.endpoints())
    }

    /// Those that may be dialled now.
    pub fn to_dial(&self) -> impl Iterator<Item = &Rc<EndpointState>> {
        self.levels.iter().flat_map(|level| level.pool().endpoints())
    }

    /// Whether any may be dialled now.
    pub fn can_be_dialled(&self) -> bool {
        self.to_dial().next().is_some()
    }
}

impl Level {
    fn new(all: Vec<Rc<EndpointState>>, overprovisioning_factor: u32) -> Self {
        let usable: Vec<_> = all.iter().filter(|state| state.is_usable()).cloned().collect();
        let health = Health {
            usable: usable.len(),
            total: all.len(),
            overprovisioning_factor,
        };
        let all = Rc::new(Pool::new(all));
        let usable = if health.usable == health.total {
            Rc::clone(&all)
        } else {
            Rc::new(Pool::new(usable))
        };
        Self {
            health,
            load: Load::default(),
            usable,
            all,
        }
    }

    /// Those to choose from: all in a panic.
    pub fn pool(&self) -> &Pool {
        if self.load.panic { &self.all } else { &self.usable }
    }
}
