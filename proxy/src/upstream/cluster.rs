//! One cluster as a worker holds it: configuration, endpoints with their live connections, TLS.
//!
//! Owned by the cluster manager; connections hold it by `Rc` and see it change under them. Owns the tasks
//! that resolve its host names and end its ejections; both end with it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until};

use super::breaker::CircuitBreaker;
use super::dns;
use super::endpoint::{EndpointSet, EndpointState};
use super::outlier::{Detection, Failure, Outliers};
use crate::limit::Limits;
use crate::model::cluster::OutlierDetection;
use crate::model::{Cluster, ClusterKind, ClusterLoadAssignment, Name, Target, UpstreamTls};
use crate::telemetry::endpoints::Facts;
use crate::telemetry::metrics::http::HttpClusterMetrics;
use crate::telemetry::metrics::{
    CircuitBreakerMetrics, ClusterMembership, ClusterMetrics, DnsMetrics, Gauge, OutlierMetrics,
};
use crate::tls::config::ConfigError;
use crate::tls::{ClientTls, ConfigCache};

/// A cluster in use.
#[derive(Debug)]
pub struct ClusterState {
    /// The cluster's name.
    pub name: Name,
    /// This worker's counters.
    pub metrics: ClusterMetrics,
    /// Live connections over all workers.
    pub connections: Rc<CircuitBreaker>,
    /// Connections over all workers that are not made yet.
    pub pending: Rc<CircuitBreaker>,
    /// Requests under way over all workers.
    pub requests: Rc<CircuitBreaker>,
    /// Retries under way over all workers.
    pub retries: Rc<CircuitBreaker>,
    config: RefCell<Arc<Cluster>>,
    transport: RefCell<Transport>,
    endpoints: RefCell<Known>,
    outliers: Arc<Outliers>,
    /// Woken with every change that may bring an endpoint.
    changed: Rc<Notify>,
    resolver: Resolver,
    sweeping: Cell<bool>,
    counts: Counts,
}

/// Statistics that only some clusters have.
#[derive(Debug)]
struct Counts {
    /// In the one worker that tells it.
    membership: Option<ClusterMembership>,
    /// Of a cluster of host names.
    dns: Option<DnsMetrics>,
    /// Once endpoints are ejected in this cluster.
    outliers: OnceCell<OutlierMetrics>,
    /// Once HTTP is spoken to this cluster.
    http: OnceCell<HttpClusterMetrics>,
    _breakers: CircuitBreakerMetrics,
}

/// How the cluster's endpoints are spoken to.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Without TLS.
    Plain,
    /// TLS, mutual where the context has an identity.
    Tls {
        /// Verifies the endpoint and presents us.
        config: Arc<ClientTls>,
        /// Consul's SNI.
        sni: ServerName<'static>,
        /// Whether sessions are resumed.
        resumption: bool,
    },
    /// TLS was asked for but cannot be had: nothing is dialled, least of all without it.
    Unusable(Arc<str>),
}

/// What is known of a cluster's endpoints.
#[derive(Debug, Default)]
struct Known {
    /// What they were made of last.
    source: Option<(ClusterKind, Arc<ClusterLoadAssignment>)>,
    /// None before the first answer.
    set: Option<Rc<EndpointSet>>,
    /// Of the outliers when the set was grouped.
    generation: u64,
    /// When the last one that can be dialled went; none while there is one or never was.
    lost: Option<Instant>,
    /// Why there is no answer yet, where that is known.
    why: Option<Arc<str>>,
}

/// Aborts the task that resolves host names when another takes over or the cluster goes.
#[derive(Debug, Default)]
struct Resolver(RefCell<Option<AbortHandle>>);

/// Whether anything can be dialled, and if not, what is to be expected.
#[derive(Clone, Debug)]
pub enum Availability {
    /// Something can.
    Endpoints,
    /// Not known yet, and why.
    Unknown(Arc<str>),
    /// The last one that could be dialled went at this time.
    Lost(Instant),
    /// There never was one.
    Never,
}

impl Resolver {
    fn replace(&self, task: Option<AbortHandle>) {
        if let Some(before) = std::mem::replace(&mut *self.0.borrow_mut(), task) {
            before.abort();
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.replace(None);
    }
}

impl ClusterState {
    /// A cluster whose endpoints are not known yet. `limits` has what it shares with the other workers, of
    /// which one `leads`: it tells what all of them see alike.
    pub fn new(
        config: &Arc<Cluster>,
        limits: &Limits,
        leads: bool,
        changed: Rc<Notify>,
        tls: &mut ConfigCache,
    ) -> Self {
        let name = &config.name;
        let stat_name = config.stat_name();
        let metrics = ClusterMetrics::new(stat_name);
        if config.transport.is_some() {
            metrics.tls();
        }
        let breakers = CircuitBreakerMetrics::new(stat_name, "default");
        let breaker = |what: &str, gauge: &Gauge| {
            CircuitBreaker::new(limits, &format!("cluster {name}{what}"), gauge.clone())
        };
        Self {
            name: Arc::clone(name),
            metrics,
            connections: breaker("", &breakers.connections_open),
            pending: breaker(", pending", &breakers.pending_open),
            requests: breaker(", requests", &breakers.requests_open),
            retries: breaker(", retries", &breakers.retries_open),
            counts: Counts {
                membership: leads.then(|| ClusterMembership::new(stat_name)),
                dns: matches!(config.kind, ClusterKind::Dns(_)).then(|| DnsMetrics::new(stat_name)),
                outliers: OnceCell::new(),
                http: OnceCell::new(),
                _breakers: breakers,
            },
            transport: RefCell::new(transport(config, tls, None)),
            config: RefCell::new(Arc::clone(config)),
            endpoints: RefCell::default(),
            outliers: limits.shared(name),
            changed,
            resolver: Resolver::default(),
            sweeping: Cell::new(false),
        }
    }

    /// What is counted of its host names, if it has any.
    pub(super) fn dns_metrics(&self) -> Option<&DnsMetrics> {
        self.counts.dns.as_ref()
    }

    fn outlier_metrics(&self) -> &OutlierMetrics {
        let metrics = &self.counts.outliers;
        metrics.get_or_init(|| OutlierMetrics::new(self.config().stat_name()))
    }

    /// This worker's counters of its requests over HTTP.
    pub fn http_metrics(&self) -> &HttpClusterMetrics {
        let metrics = &self.counts.http;
        metrics.get_or_init(|| HttpClusterMetrics::new(self.config().stat_name()))
    }

    /// The newest configuration.
    pub fn config(&self) -> Arc<Cluster> {
        Arc::clone(&self.config.borrow())
    }

    /// How endpoints are spoken to now: a new leaf or root is used by the next handshake.
    pub fn transport(&self) -> Transport {
        self.transport.borrow().clone()
    }

    /// Takes a newer configuration; live connections keep what they have.
    pub fn update(&self, config: &Arc<Cluster>, tls: &mut ConfigCache) {
        let before = self.config();
        if Arc::ptr_eq(&before, config) {
            return;
        }
        let newer = transport(config, tls, Some(&self.transport.borrow()));
        *self.transport.borrow_mut() = newer;
        *self.config.borrow_mut() = Arc::clone(config);
        if (before.panic_threshold, &before.load_balancer) != (config.panic_threshold, &config.load_balancer)
        {
            self.regroup();
        }
    }

    /// Takes newer endpoints; those that stay keep their counts, live connections stay on theirs. Must run
    /// inside a `LocalRuntime` if the cluster has host names.
    pub fn update_endpoints(self: &Rc<Self>, assignment: Option<&Arc<ClusterLoadAssignment>>) {
        // An assignment that goes away (a source that lost its memory) changes nothing.
        let Some(assignment) = assignment else { return };
        let config = self.config();
        {
            let known = &mut self.endpoints.borrow_mut();
            let same = known.source.as_ref().is_some_and(|(kind, before)| {
                *kind == config.kind && (Arc::ptr_eq(before, assignment) || before == assignment)
            });
            if same {
                return;
            }
            known.source = Some((config.kind.clone(), Arc::clone(assignment)));
        }
        match &config.kind {
            ClusterKind::Endpoints => {
                self.resolver.replace(None);
                self.assign(assignment);
            }
            ClusterKind::Dns(dns) => {
                let resolving = dns::resolve(Rc::downgrade(self), Arc::clone(assignment), *dns, dns::system);
                self.resolver.replace(Some(spawn_local(resolving).abort_handle()));
            }
            ClusterKind::OriginalDestination | ClusterKind::Aggregate(_) => self.resolver.replace(None),
        }
    }

    /// Takes the endpoints that host names stand for now.
    pub(super) fn resolved(&self, assignment: &ClusterLoadAssignment, names: &HashMap<Target, Arc<str>>) {
        self.assign(assignment);
        let known = self.endpoints.borrow();
        for endpoint in known.set.iter().flat_map(|set| set.endpoints()) {
            // The snapshot has names only: `/clusters` hears of these endpoints by their counts.
            let name = names.get(&endpoint.address).map_or("", |name| name);
            endpoint.metrics(&self.name).update(Facts {
                hostname: name.to_owned(),
                ..endpoint.facts()
            });
        }
        drop(known);
        self.changed.notify_waiters();
    }

    /// Host names could not be resolved: said by connections that wait for a first answer.
    pub(super) fn unresolved(&self, why: String) {
        self.endpoints.borrow_mut().why = Some(why.into());
    }

    fn assign(&self, assignment: &ClusterLoadAssignment) {
        let before = self.endpoints.borrow().set.clone().unwrap_or_default();
        let generation = self.outliers.generation();
        let threshold = self.config().panic_threshold;
        let set = EndpointSet::new(assignment, &before, &self.outliers, threshold);
        if let Some(membership) = &self.counts.membership
            && !set.has_the_members_of(&before)
        {
            membership.changes.increment(1);
        }
        self.replace(set, generation);
        drop(before);
        self.ejections_ended(self.outliers.forget());
    }

    fn ejections_ended(&self, ended: i64) {
        if ended > 0 {
            self.outlier_metrics().active.sub(ended);
        }
    }

    fn replace(&self, set: EndpointSet, generation: u64) {
        if let Some(membership) = &self.counts.membership {
            set.tell(membership);
        }
        self.endpoints.borrow_mut().replace(set, generation);
    }

    /// Groups the endpoints anew by their health.
    fn regroup(&self) {
        let generation = self.outliers.generation();
        let set = self.endpoints.borrow().set.clone();
        match set {
            Some(set) => self.replace(set.regrouped(self.config().panic_threshold), generation),
            None => self.endpoints.borrow_mut().generation = generation,
        }
    }

    /// The endpoints as their health is now; an empty set before the first answer.
    pub fn endpoints(self: &Rc<Self>) -> Rc<EndpointSet> {
        if self.take_ejections() {
            // Another worker ejected it, maybe: here too somebody has to notice when it comes back.
            self.sweep_until_quiet();
        }
        self.endpoints.borrow().set.clone().unwrap_or_default()
    }

    /// Sees what was ejected or came back since it last looked; true if there was anything. Whoever sees it
    /// first wakes those that wait.
    fn take_ejections(&self) -> bool {
        let active = || {
            self.endpoints
                .borrow()
                .set
                .as_ref()
                .map(|set| set.ejections.active)
        };
        if self.endpoints.borrow().generation == self.outliers.generation() {
            return false;
        }
        let before = active();
        self.regroup();
        for endpoint in self.endpoints.borrow().set.iter().flat_map(|set| set.endpoints()) {
            endpoint.tell_ejection();
        }
        if active() < before {
            tracing::info!(cluster = %self.name, still = active(), "ejected endpoints are back");
        }
        self.changed.notify_waiters();
        true
    }

    /// Whether anything can be dialled now, as of [`Self::endpoints`].
    pub fn availability(&self) -> Availability {
        let known = self.endpoints.borrow();
        match (&known.set, known.lost) {
            (None, _) => {
                let why = known.why.clone();
                Availability::Unknown(why.unwrap_or_else(|| "its endpoints are not known yet".into()))
            }
            (Some(set), _) if set.can_be_dialled() => Availability::Endpoints,
            (Some(_), Some(at)) => Availability::Lost(at),
            (Some(_), None) => Availability::Never,
        }
    }

    /// A connection to `endpoint` could not be made, which took `took` to find out: the endpoint is put last
    /// for a moment, and ejected if it has failed often enough.
    pub fn failed(self: &Rc<Self>, endpoint: &EndpointState, took: Duration) {
        let now = Instant::now();
        endpoint.put_last(now, took);
        let config = self.config();
        let Some(detection) = config.outlier_detection.filter(|_| !endpoint.is_gone()) else {
            return;
        };
        self.detect(&detection, endpoint, true, now);
    }

    /// `endpoint` answered a request with `status`, as far as outlier detection asks.
    pub fn answered(self: &Rc<Self>, endpoint: &EndpointState, status: u16) {
        if status < 500 {
            return endpoint.health.succeeded();
        }
        let Some(detection) = self.config().outlier_detection.filter(|_| !endpoint.is_gone()) else {
            return;
        };
        let gateway = (502..=504).contains(&status);
        self.detect(&detection, endpoint, gateway, Instant::now());
    }

    fn detect(
        self: &Rc<Self>,
        detection: &OutlierDetection,
        endpoint: &EndpointState,
        gateway: bool,
        now: Instant,
    ) {
        let ejections = self.endpoints().ejections;
        let (target, health) = (&endpoint.address, &endpoint.health);
        let failure = self
            .outliers
            .failed(detection, target, health, gateway, ejections, now);
        self.count(failure);
        if failure.ejected() {
            tracing::warn!(cluster = %self.name, endpoint = %target, "ejected: it failed again and again");
            self.take_ejections();
            self.sweep_until_quiet();
        }
    }

    fn count(&self, failure: Failure) {
        let detected = [failure.gateway, failure.consecutive_5xx];
        if detected == [None, None] {
            return;
        }
        let metrics = self.outlier_metrics();
        let counters = [
            (
                &metrics.detected_gateway_failure,
                &metrics.enforced_gateway_failure,
            ),
            (
                &metrics.detected_consecutive_5xx,
                &metrics.enforced_consecutive_5xx,
            ),
        ];
        for ((detected, enforced), detection) in counters.into_iter().zip(detected) {
            let Some(detection) = detection else { continue };
            detected.increment(1);
            match detection {
                Detection::Ejected => {
                    metrics.active.add(1);
                    metrics.enforced.increment(1);
                    enforced.increment(1);
                }
                Detection::Overflow => metrics.overflow.increment(1),
                Detection::NotEnforced => {}
            }
        }
    }

    /// Ends ejections in the background until none is left to end or to forget.
    fn sweep_until_quiet(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let cluster = Rc::downgrade(self);
        spawn_local(async move {
            while let Some(cluster) = cluster.upgrade() {
                let detection = cluster.config().outlier_detection;
                let swept = cluster.outliers.sweep(detection.as_ref(), Instant::now());
                cluster.ejections_ended(swept.ended);
                cluster.take_ejections();
                let Some(next) = swept.next else {
                    cluster.sweeping.set(false);
                    return;
                };
                drop(cluster);
                sleep_until(next).await;
            }
        });
    }

    #[cfg(test)]
    pub(super) fn for_tests(config: Cluster) -> Rc<Self> {
        let (limits, tls) = (Limits::default(), &mut ConfigCache::default());
        Rc::new(Self::new(&Arc::new(config), &limits, true, Rc::default(), tls))
    }
}

impl Known {
    fn replace(&mut self, set: EndpointSet, generation: u64) {
        let could = self.set.as_ref().is_some_and(|set| set.can_be_dialled());
        match (could, set.can_be_dialled()) {
            (_, true) => self.lost = None,
            (true, false) => self.lost = Some(Instant::now()),
            (false, false) => {}
        }
        self.set = Some(Rc::new(set));
        self.generation = generation;
    }
}

/// The transport for `config`. Where the newer TLS context cannot be used, the last good one stays.
fn transport(config: &Cluster, tls: &mut ConfigCache, last: Option<&Transport>) -> Transport {
    let Some(context) = &config.transport else {
        return Transport::Plain;
    };
    match client(context, tls) {
        Ok(transport) => transport,
        Err(error) => {
            tracing::error!(cluster = %config.name, %error, "the TLS context of a cluster cannot be used");
            match last {
                Some(good @ Transport::Tls { .. }) => good.clone(),
                _ => Transport::Unusable(error.to_string().into()),
            }
        }
    }
}

fn client(context: &Arc<UpstreamTls>, tls: &mut ConfigCache) -> Result<Transport, ConfigError> {
    let sni = match &context.sni {
        Some(name) => {
            ServerName::try_from(name.to_string()).map_err(|_| ConfigError::Sni(name.to_string()))?
        }
        // Never sent: rustls only wants to know of whom it speaks.
        None => ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()),
    };
    Ok(Transport::Tls {
        config: tls.client(context)?,
        sni,
        resumption: context.params.resumption,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;
    use crate::model::listener::Address;

    fn assignment(endpoints: &[(u16, bool)]) -> Arc<ClusterLoadAssignment> {
        let endpoint = |&(port, healthy): &(u16, bool)| Endpoint {
            address: Target::Address(Address::Socket(([127, 0, 0, 1], port).into())),
            weight: 1,
            healthy,
            priority: 0,
            hostname: None,
        };
        Arc::new(ClusterLoadAssignment {
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..ClusterLoadAssignment::default()
        })
    }

    fn cluster() -> Rc<ClusterState> {
        ClusterState::for_tests(Cluster {
            panic_threshold: 0,
            ..Cluster::default()
        })
    }

    #[test]
    fn unknown_then_never_then_some_then_lost() {
        let cluster = cluster();
        assert!(matches!(cluster.availability(), Availability::Unknown(_)));
        cluster.update_endpoints(Some(&assignment(&[])));
        assert!(matches!(cluster.availability(), Availability::Never));
        cluster.update_endpoints(Some(&assignment(&[(1, true)])));
        assert!(matches!(cluster.availability(), Availability::Endpoints));
        cluster.update_endpoints(Some(&assignment(&[(1, false)])));
        assert!(matches!(cluster.availability(), Availability::Lost(_)));
        cluster.update_endpoints(None);
        assert!(matches!(cluster.availability(), Availability::Lost(_)));
    }

    #[test]
    fn endpoints_keep_their_counts_and_know_when_they_are_gone() {
        let cluster = cluster();
        let endpoints = || cluster.endpoints().endpoints().cloned().collect::<Vec<_>>();
        cluster.update_endpoints(Some(&assignment(&[(1, true)])));
        let before = endpoints();
        before[0].active.set(7);
        cluster.update_endpoints(Some(&assignment(&[(2, true), (1, true)])));
        assert_eq!(
            endpoints().iter().map(|e| e.active.get()).collect::<Vec<_>>(),
            [0, 7]
        );
        assert!(!before[0].is_gone());
        cluster.update_endpoints(Some(&assignment(&[(2, true)])));
        assert!(before[0].is_gone());
    }

    #[test]
    fn a_changed_threshold_panics_at_once() {
        let cluster = cluster();
        cluster.update_endpoints(Some(&assignment(&[(1, false)])));
        assert!(matches!(cluster.availability(), Availability::Never));
        let panicky = Arc::new(Cluster {
            panic_threshold: 50,
            ..Cluster::default()
        });
        cluster.update(&panicky, &mut ConfigCache::default());
        assert!(matches!(cluster.availability(), Availability::Endpoints));
    }

    #[test]
    fn an_ejection_is_seen_by_every_worker_and_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let config = Arc::new(Cluster {
                panic_threshold: 0,
                outlier_detection: Some(OutlierDetection {
                    consecutive_5xx: 2,
                    max_ejection_percent: 100,
                    ..OutlierDetection::default()
                }),
                ..Cluster::default()
            });
            let limits = Limits::default();
            let worker = || {
                let tls = &mut ConfigCache::default();
                let cluster = Rc::new(ClusterState::new(&config, &limits, false, Rc::default(), tls));
                cluster.update_endpoints(Some(&assignment(&[(1, true)])));
                cluster
            };
            let (one, two) = (worker(), worker());
            let began = Instant::now();
            for cluster in [&one, &two] {
                assert!(matches!(cluster.availability(), Availability::Endpoints));
                let endpoint = Rc::clone(cluster.endpoints().endpoints().next().unwrap());
                cluster.failed(&endpoint, Duration::ZERO);
            }
            for cluster in [&one, &two] {
                assert_eq!(cluster.endpoints().ejections.active, 1);
                assert!(matches!(cluster.availability(), Availability::Lost(_)));
            }
            for cluster in [one, two] {
                while !matches!(cluster.availability(), Availability::Endpoints) {
                    cluster.changed.notified().await;
                }
                assert_eq!(began.elapsed().as_secs(), 30);
            }
        });
    }
}
