//! From a cluster's name to a connected stream: wait for an endpoint, choose, dial, handshake; go elsewhere
//! where that fails.
//!
//! Hands out a [`Connected`], which gives back the endpoint's and the cluster's counts when dropped. What is
//! done with one endpoint is `dial`'s.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::breaker::Place;
use super::cluster::{Availability, ClusterState, Transport};
use super::dial::{UpstreamStream, attempt};
use super::endpoint::EndpointState;
use super::error::{AttemptError, Breaker, ConnectError, DestinationError};
use super::manager::{ClusterManager, Resolved};
use crate::model::listener::Address;
use crate::model::{ClusterKind, Endpoint, Name, Target};
use crate::telemetry::metrics::ClusterMetrics;

/// Endpoints tried for one connection, unless configured: enough to step over one that just died and one
/// that is dying, few enough that a dead cluster costs a storm of connections little. Endpoints that have
/// left the cluster since do not count.
const MAX_ATTEMPTS: usize = 3;

/// Endpoints tried for one connection within its connect timeout, as long as there are some that have not
/// failed a moment ago: a connection is not to fail while an endpoint lives, and those that fail are known to
/// the next one.
const MAX_FRESH_ATTEMPTS: usize = 10;

/// How long after the loss of the last endpoint a connection still waits for a returning one: an ordinary
/// redeploy of a single instance on Nomad takes 5 to 12 s.
const RETURN_WINDOW: Duration = Duration::from_secs(15);

/// How long after its start a connection that every endpoint has failed waits for newer endpoints. One that
/// is stopped refuses before its source has said that it is gone: Consul's agent, servers and the stream
/// take some hundred milliseconds for that, a second when busy.
const NEWS_WINDOW: Duration = Duration::from_secs(2);

/// How soon one that may still be starting is dialled again.
const REDIAL: Duration = Duration::from_millis(100);

/// Envoy's default for `circuit_breakers.max_connections` and `max_pending_requests`.
const DEFAULT_LIMIT: u32 = 1024;

/// What a connection brings along (Envoy's `LoadBalancerContext`).
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadBalancerContext {
    /// Where the downstream's connection went, for clusters of its original destination.
    pub destination: Option<SocketAddr>,
    /// Where a consistent hash leads it; none is anywhere.
    pub hash: Option<u64>,
    /// Endpoints tried at most, those that left included; none is Attaché's own number.
    pub max_attempts: Option<u32>,
    /// It is one request of many that share connections: endpoints take turns where connections would go to
    /// the least loaded.
    pub per_request: bool,
}

/// A connected stream with its place in the counts.
pub struct Connected {
    /// To be relayed.
    pub stream: UpstreamStream,
    /// The endpoint connected to.
    pub endpoint: String,
    /// The cluster it is of.
    pub cluster: Name,
    /// Endpoints tried, this one included.
    pub attempts: usize,
    /// Held for the length of the connection.
    pub lease: Lease,
}

/// What was reached: something that was connected already, or a new connection.
pub enum Reached<P> {
    /// What the caller had.
    Reused(P),
    /// Connected just now.
    Connected(Connected),
}

/// A live connection in the counts of its endpoint and cluster. Boxed: it is part of many a future.
#[derive(Debug)]
pub struct Lease(Box<Held>);

#[derive(Debug)]
struct Held {
    cluster: Rc<ClusterState>,
    endpoint: Rc<EndpointState>,
    /// Known to its cluster, so that it is shown among its endpoints.
    listed: bool,
    made: Cell<Option<Instant>>,
    carries: Cell<bool>,
    remote: Cell<bool>,
    /// It counts as load of its endpoint; a pooled connection's requests do instead.
    loads: Cell<bool>,
    _place: Place,
}

/// One connection in search of an endpoint.
struct Search<'a> {
    clusters: &'a ClusterManager,
    began: Instant,
    hash: u64,
    per_request: bool,
    max_attempts: Option<usize>,
    /// Not to be tried again.
    tried: Vec<Rc<EndpointState>>,
    attempts: usize,
    /// Dials of endpoints that had been tried, but may be starting.
    redials: usize,
    /// The last attempt's.
    failure: Option<ConnectError>,
    waited: bool,
    /// Its place among a cluster's connections that are not made yet.
    pending: Option<(Name, Place)>,
}

/// Why there is nothing to dial, as far as waiting may help.
#[derive(Debug)]
enum Missing {
    /// Endpoints are there, but all were tried, or enough of them; whether a source of them may still say
    /// that they are gone, and until when one of them may be starting.
    Tried {
        may_leave: bool,
        starts_until: Option<Instant>,
    },
    /// As [`Availability`] has them.
    Unknown(Arc<str>),
    Lost(Instant),
    Never,
}

/// Connects to an endpoint of the cluster called `name`.
///
/// # Errors
/// [`ConnectError`], at once where nothing is to be hoped for. Else after at most a wait (the cluster's connect
/// timeout for first endpoints, 15 s after the loss of the last one, 2 s where all have failed, 5 s
/// after it came where one may be starting) and the connect
/// timeout for each endpoint tried.
pub async fn connect(
    clusters: &ClusterManager,
    name: &Name,
    context: LoadBalancerContext,
) -> Result<Connected, ConnectError> {
    match reach(clusters, name, context, |_, _| None::<std::convert::Infallible>).await? {
        Reached::Connected(connected) => Ok(connected),
        Reached::Reused(never) => match never {},
    }
}

/// As [`connect`], unless `reuse` has something for the endpoint that was chosen.
///
/// # Errors
/// As [`connect`].
pub async fn reach<P>(
    clusters: &ClusterManager,
    name: &Name,
    context: LoadBalancerContext,
    mut reuse: impl FnMut(&Rc<ClusterState>, &Rc<EndpointState>) -> Option<P>,
) -> Result<Reached<P>, ConnectError> {
    let mut search = Search {
        clusters,
        began: Instant::now(),
        hash: context.hash.unwrap_or_else(|| fastrand::u64(..)),
        per_request: context.per_request,
        max_attempts: context.max_attempts.map(|max| max as usize),
        tried: Vec::new(),
        attempts: 0,
        redials: 0,
        failure: None,
        waited: false,
        pending: None,
    };
    loop {
        let Some(resolved) = clusters.resolve(name) else {
            return Err(ConnectError::NoCluster(Arc::clone(name)));
        };
        if resolved.cluster.config().kind == ClusterKind::OriginalDestination {
            let endpoint = original_destination(clusters, &resolved.cluster, context.destination)?;
            return match search.attempt(&resolved.cluster, &endpoint).await? {
                Some(connected) => Ok(Reached::Connected(connected)),
                None => Err(search.give_up(&resolved.cluster, String::new())),
            };
        }
        match search.choose(&resolved) {
            Some((cluster, endpoint)) => {
                let (cluster, endpoint) = (Rc::clone(cluster), Rc::clone(endpoint));
                drop(resolved);
                if let Some(reused) = reuse(&cluster, &endpoint) {
                    return Ok(Reached::Reused(reused));
                }
                if let Some(connected) = search.attempt(&cluster, &endpoint).await? {
                    return Ok(Reached::Connected(connected));
                }
            }
            None => search.wait(&resolved).await?,
        }
    }
}

/// The endpoint that stands for a redirected connection's destination: made for it, known to no one else.
fn original_destination(
    clusters: &ClusterManager,
    cluster: &ClusterState,
    destination: Option<SocketAddr>,
) -> Result<Rc<EndpointState>, ConnectError> {
    let why = match destination {
        None => DestinationError::Unknown,
        Some(ourselves) if clusters.is_ourselves(ourselves) => DestinationError::Ourselves(ourselves),
        Some(destination) => {
            let endpoint = Endpoint {
                address: Target::Address(Address::Socket(destination)),
                weight: 1,
                healthy: true,
                priority: 0,
                hostname: None,
            };
            return Ok(Rc::new(EndpointState::new(&endpoint, Arc::default())));
        }
    };
    cluster.metrics.original_dst_host_invalid.increment(1);
    cluster.metrics.none_healthy.increment(1);
    let cluster = Arc::clone(&cluster.name);
    Err(ConnectError::OriginalDestination { cluster, why })
}

impl Search<'_> {
    /// The next endpoint to try: one not tried that did not fail a moment ago, else one not tried. None when
    /// enough were.
    fn choose<'r>(&self, resolved: &'r Resolved) -> Option<(&'r Rc<ClusterState>, &'r Rc<EndpointState>)> {
        let now = Instant::now();
        let (fresh, any) = match self.max_attempts {
            Some(max) => (self.attempts < max, self.attempts < max),
            None => {
                let failed = self.tried.iter().filter(|endpoint| !endpoint.is_gone());
                let failed = failed.count();
                let early = now - self.began < resolved.cluster.config().connect_timeout;
                (failed < MAX_FRESH_ATTEMPTS && early, failed < MAX_ATTEMPTS)
            }
        };
        if !fresh && !any {
            return None;
        }
        let chosen = resolved.choose(self.hash, self.per_request, |endpoint| {
            endpoint.is_last(now) || self.was_tried(endpoint)
        });
        match chosen {
            None if any => resolved.choose(self.hash, self.per_request, |endpoint| self.was_tried(endpoint)),
            chosen => chosen,
        }
    }

    /// Whether the cluster has an endpoint to try once the one under way, which is gone, is given up.
    fn has_another(&self, cluster: &Rc<ClusterState>) -> bool {
        self.max_attempts.is_none_or(|max| self.attempts + 1 < max)
            && cluster
                .endpoints()
                .to_dial()
                .any(|endpoint| !self.was_tried(endpoint))
    }

    fn was_tried(&self, endpoint: &EndpointState) -> bool {
        self.tried
            .iter()
            .any(|tried| std::ptr::eq(&raw const **tried, endpoint))
    }

    /// Tries one endpoint. None if that failed and another may be tried.
    async fn attempt(
        &mut self,
        cluster: &Rc<ClusterState>,
        endpoint: &Rc<EndpointState>,
    ) -> Result<Option<Connected>, ConnectError> {
        if cluster.config().circuit_breakers.max_pending_requests.is_some() {
            self.pend(cluster)?;
        }
        let lease = Lease::acquire(cluster, endpoint, u32::from(self.per_request))?;
        let began = Instant::now();
        let source = match self.attempt_until_gone(cluster, endpoint).await {
            Ok(stream) => {
                endpoint.connected(self.per_request);
                lease.made();
                return Ok(Some(Connected {
                    stream,
                    endpoint: endpoint.address.to_string(),
                    cluster: Arc::clone(&cluster.name),
                    attempts: self.attempts + 1,
                    lease,
                }));
            }
            Err(source) => source,
        };
        lease.failed(&source);
        if matches!(source, AttemptError::Handshake(_) | AttemptError::Timeout(_)) {
            endpoint.took_a_connection();
        }
        match &source {
            // Told already, or soon, by whoever dials it first: dialling it again says nothing new.
            AttemptError::Dial(_) if self.redials > 0 && endpoint.starts_until(began).is_some() => {}
            AttemptError::Dial(_) | AttemptError::Handshake(_) | AttemptError::Timeout(_) => {
                cluster.failed(endpoint, began.elapsed());
            }
            // Not for anything that the endpoint did.
            AttemptError::Left | AttemptError::Unusable(_) => {}
        }
        self.attempts += 1;
        self.tried.push(Rc::clone(endpoint));
        let error = ConnectError::Failed {
            cluster: Arc::clone(&cluster.name),
            endpoint: endpoint.address.clone(),
            attempts: self.attempts,
            source,
        };
        tracing::debug!(%error, "another endpoint is tried, if there is one");
        self.failure = Some(error);
        Ok(None)
    }

    /// An endpoint that leaves the cluster while it is dialled is given up for another.
    async fn attempt_until_gone(
        &self,
        cluster: &Rc<ClusterState>,
        endpoint: &Rc<EndpointState>,
    ) -> Result<UpstreamStream, AttemptError> {
        let mut attempting = pin!(attempt(cluster, endpoint));
        loop {
            tokio::select! {
                biased;
                attempted = &mut attempting => return attempted,
                () = self.clusters.changed() => {
                    if endpoint.is_gone() && self.has_another(cluster) {
                        return Err(AttemptError::Left);
                    }
                }
            }
        }
    }

    /// Waits for the next change where that may bring an endpoint; errs where it may not, or not any more.
    async fn wait(&mut self, resolved: &Resolved) -> Result<(), ConnectError> {
        let cluster = &resolved.cluster;
        let missing = match &resolved.availability {
            // Mesh endpoints speak TLS and come from a catalog. A plain one is the local app or of a static
            // list; there a refusal is news enough, and the peer is to know of it at once.
            Availability::Endpoints => Missing::Tried {
                may_leave: !matches!(cluster.transport(), Transport::Plain),
                starts_until: self.starts_until(Instant::now()),
            },
            Availability::Unknown(why) => Missing::Unknown(Arc::clone(why)),
            // An endpoint that is ejected is to be left alone, not waited for: a request is told at once. A
            // connection may well outlast the ejection.
            Availability::Lost(_) if self.per_request && cluster.endpoints().endpoints().next().is_some() => {
                Missing::Never
            }
            Availability::Lost(at) => Missing::Lost(*at),
            Availability::Never => Missing::Never,
        };
        let timeout = cluster.config().connect_timeout;
        let now = Instant::now();
        let Some(deadline) = missing
            .deadline(self.began, timeout)
            .filter(|deadline| now < *deadline)
        else {
            let waited = (now - self.began).as_secs_f64();
            let waited = if self.waited {
                format!("; waited {waited:.1} s")
            } else {
                String::new()
            };
            return Err(self.give_up(cluster, format!("{}{waited}", missing.why(now))));
        };
        self.pend(cluster)?;
        if !std::mem::replace(&mut self.waited, true) {
            cluster.metrics.waited.increment(1);
        }
        // Out of time or not: what there is now decides.
        let starts = matches!(missing, Missing::Tried { starts_until, .. } if starts_until.is_some());
        let pause = if starts {
            deadline.min(now + REDIAL)
        } else {
            deadline
        };
        let _ = timeout_at(pause, self.clusters.changed()).await;
        if starts {
            self.forget_starting();
        }
        if matches!(missing, Missing::Lost(_)) {
            // What can be dialled after that is there anew, at the same address or not.
            self.tried.clear();
        }
        Ok(())
    }

    /// Until when one of those tried may be starting.
    fn starts_until(&self, now: Instant) -> Option<Instant> {
        self.tried
            .iter()
            .filter_map(|endpoint| endpoint.starts_until(now))
            .max()
    }

    /// Those that may be starting are dialled again, and told of once.
    fn forget_starting(&mut self) {
        let now = Instant::now();
        let before = self.tried.len();
        self.tried.retain(|endpoint| endpoint.starts_until(now).is_none());
        let forgotten = before - self.tried.len();
        self.attempts -= forgotten;
        self.redials += forgotten;
    }

    /// The error of a search that ends: an endpoint's own failure says more than that none is left.
    fn give_up(&mut self, cluster: &ClusterState, why: String) -> ConnectError {
        if let Some(failure) = self.failure.take() {
            cluster.metrics.connect_attempts_exceeded.increment(1);
            return failure;
        }
        cluster.metrics.none_healthy.increment(1);
        let cluster = Arc::clone(&cluster.name);
        ConnectError::NoHealthy { cluster, why }
    }

    /// Takes a place among the cluster's connections that are not made yet, unless it has one. Envoy counts
    /// every connection that is being made; here Envoy's default counts only those that wait for an
    /// endpoint, a configured limit all: a burst of short dials is the kernel's to queue.
    fn pend(&mut self, cluster: &ClusterState) -> Result<(), ConnectError> {
        if self
            .pending
            .as_ref()
            .is_some_and(|(name, _)| *name == cluster.name)
        {
            return Ok(());
        }
        let configured = cluster.config().circuit_breakers.max_pending_requests;
        let permit = acquire(cluster, Breaker::Pending, configured)?;
        self.pending = Some((Arc::clone(&cluster.name), permit));
        Ok(())
    }
}

impl Missing {
    /// Until when a connection that began at `began` waits; none does not wait.
    fn deadline(&self, began: Instant, connect_timeout: Duration) -> Option<Instant> {
        match self {
            Self::Unknown(_) => Some(began + connect_timeout),
            // Who comes after the window has nothing to hope for; who is in it when it closes may have come
            // just before.
            Self::Lost(at) => {
                let closes = *at + RETURN_WINDOW;
                (began <= closes).then(|| closes.max(began + connect_timeout))
            }
            Self::Tried {
                may_leave,
                starts_until,
            } => may_leave.then(|| starts_until.unwrap_or(began).max(began + NEWS_WINDOW)),
            Self::Never => None,
        }
    }

    fn why(&self, now: Instant) -> String {
        match self {
            Self::Unknown(why) => why.to_string(),
            Self::Lost(at) => format!("the last one went {:.1} s ago", (now - *at).as_secs_f64()),
            Self::Tried { .. } => "every endpoint was tried".to_owned(),
            Self::Never => "there was none since the start".to_owned(),
        }
    }
}

/// A request in the counts of its cluster and endpoint; given back when dropped.
#[derive(Debug)]
pub struct RequestPlace {
    cluster: Rc<ClusterState>,
    endpoint: Rc<EndpointState>,
    _place: Place,
}

impl RequestPlace {
    /// Counts a request that is about to be sent to `endpoint`.
    ///
    /// # Errors
    /// [`ConnectError::Overflow`] where as many are under way as may be.
    pub fn acquire(cluster: &Rc<ClusterState>, endpoint: &Rc<EndpointState>) -> Result<Self, ConnectError> {
        let configured = cluster.config().circuit_breakers.max_requests;
        let place = acquire(cluster, Breaker::Requests, configured)?;
        cluster.metrics.requests.increment(1);
        cluster.metrics.requests_active.add(1);
        endpoint.active.set(endpoint.active.get() + 1);
        Ok(Self {
            cluster: Rc::clone(cluster),
            endpoint: Rc::clone(endpoint),
            _place: place,
        })
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.endpoint.active.set(self.endpoint.active.get() - 1);
        self.cluster.metrics.requests_active.sub(1);
    }
}

/// A place among the connections or requests of a cluster that wait.
///
/// # Errors
/// [`ConnectError::Overflow`] where as many wait as may.
pub fn wait_in_line(cluster: &ClusterState) -> Result<Place, ConnectError> {
    acquire(
        cluster,
        Breaker::Pending,
        cluster.config().circuit_breakers.max_pending_requests,
    )
}

fn acquire(cluster: &ClusterState, breaker: Breaker, configured: Option<u32>) -> Result<Place, ConnectError> {
    let max = configured.unwrap_or(DEFAULT_LIMIT);
    let (limit, overflow) = match breaker {
        Breaker::Connections => (&cluster.connections, &cluster.metrics.overflow),
        Breaker::Pending => (&cluster.pending, &cluster.metrics.pending_overflow),
        Breaker::Requests => (&cluster.requests, &cluster.metrics.pending_overflow),
    };
    limit.acquire(max).ok_or_else(|| {
        overflow.increment(1);
        ConnectError::Overflow {
            cluster: Arc::clone(&cluster.name),
            breaker,
            max,
            by_default: configured.is_none(),
        }
    })
}

impl Lease {
    /// Counts a connection that is about to be dialled. `at_least` so many are allowed whatever the limit is:
    /// Envoy has one for requests always.
    fn acquire(
        cluster: &Rc<ClusterState>,
        endpoint: &Rc<EndpointState>,
        at_least: u32,
    ) -> Result<Self, ConnectError> {
        let config = cluster.config();
        let place = acquire(
            cluster,
            Breaker::Connections,
            config
                .circuit_breakers
                .max_connections
                .map(|max| max.max(at_least)),
        )?;
        endpoint.active.set(endpoint.active.get() + 1);
        // One of an original destination is made for this connection alone.
        let listed = config.kind != ClusterKind::OriginalDestination;
        if listed {
            let counts = endpoint.metrics(&cluster.name);
            counts.connections.increment(1);
            counts.active.add(1);
        }
        let metrics = &cluster.metrics;
        metrics.active.add(1);
        metrics.pending.increment(1);
        metrics.pending_active.add(1);
        Ok(Self(Box::new(Held {
            cluster: Rc::clone(cluster),
            endpoint: Rc::clone(endpoint),
            listed,
            made: Cell::new(None),
            carries: Cell::new(false),
            remote: Cell::new(false),
            loads: Cell::new(true),
            _place: place,
        })))
    }

    /// The connection is there.
    fn made(&self) {
        self.0.made.set(Some(Instant::now()));
        self.0.cluster.metrics.pending_active.sub(1);
    }

    /// There will be none.
    fn failed(&self, why: &AttemptError) {
        self.0.cluster.metrics.pending_failed.increment(1);
        self.0
            .remote
            .set(matches!(why, AttemptError::Dial(_) | AttemptError::Handshake(_)));
        if self.0.listed {
            self.0
                .endpoint
                .metrics(&self.0.cluster.name)
                .connect_failures
                .increment(1);
        }
    }

    /// The connection carries one downstream connection for as long as it lasts, which Envoy counts as a
    /// request of TCP.
    pub fn carry(&self) {
        if !self.0.carries.replace(true) {
            self.0.cluster.metrics.requests.increment(1);
            self.0.cluster.metrics.requests_active.add(1);
        }
    }

    /// The connection is kept for many requests, each of which counts as load of the endpoint while it lasts.
    pub fn pool(&self) {
        if self.0.loads.replace(false) {
            self.0.endpoint.active.set(self.0.endpoint.active.get() - 1);
        }
    }

    /// The endpoint connected to.
    pub fn endpoint(&self) -> &Rc<EndpointState> {
        &self.0.endpoint
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Rc<ClusterState> {
        &self.0.cluster
    }

    /// It was the endpoint that ended the connection.
    pub fn ended_by_endpoint(&self) {
        self.0.remote.set(true);
    }

    /// The counters of its cluster.
    pub fn metrics(&self) -> &ClusterMetrics {
        &self.0.cluster.metrics
    }

    /// The name of its cluster in statistics and access logs.
    pub fn stat_name(&self) -> Name {
        Arc::clone(self.0.cluster.config().stat_name())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool();
        if self.0.listed {
            self.0.endpoint.metrics(&self.0.cluster.name).active.sub(1);
        }
        let metrics = &self.0.cluster.metrics;
        metrics.active.sub(1);
        match self.0.made.get() {
            Some(made) => metrics.closed(Some(made.elapsed()), self.0.remote.get()),
            None => {
                metrics.pending_active.sub(1);
                metrics.closed(None, self.0.remote.get());
            }
        }
        if self.0.carries.get() {
            metrics.requests_active.sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
