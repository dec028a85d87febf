//! From a cluster's name to a connected stream: wait for an endpoint, choose, dial, handshake.
//!
//! Hands out a [`Connected`], which gives back the endpoint's and the cluster's counts when dropped.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::cluster::{Availability, ClusterState, EndpointState, Transport};
use super::load_balancer::least_loaded;
use super::manager::ClusterManager;
use crate::limit::Permit;
use crate::model::{Name, Target};
use crate::net::{PlainStream, socket};
use crate::telemetry::ResponseFlag;
use crate::tls::{HandshakeError, TlsStream};

/// Endpoints tried for one connection: enough to step over one that just died and one that is
/// dying, few enough that a dead cluster costs a storm of connections little.
const MAX_ATTEMPTS: usize = 3;

/// How long after the loss of the last healthy endpoint a connection still waits for a returning
/// one: an ordinary redeploy of a single instance on Nomad takes 5 to 12 s.
const RETURN_WINDOW: Duration = Duration::from_secs(15);

/// Connections of one worker that may wait for an endpoint of a cluster, Envoy's default for pending
/// requests: each holds its app's socket and a timer.
const MAX_WAITING: u32 = 1024;

/// Envoy's default for `circuit_breakers.max_connections`.
const DEFAULT_MAX_CONNECTIONS: u32 = 1024;

/// A stream to an endpoint.
pub enum UpstreamStream {
    /// Without TLS.
    Plain(PlainStream),
    /// Mutual TLS.
    Tls(Box<TlsStream>),
}

/// A connected stream with its place in the counts.
pub struct Connected {
    /// To be relayed.
    pub stream: UpstreamStream,
    /// The endpoint connected to.
    pub endpoint: String,
    /// The cluster it is of.
    pub cluster: Name,
    /// Held for the length of the connection.
    pub lease: Lease,
}

/// A live connection in the counts of its endpoint and cluster.
#[derive(Debug)]
pub struct Lease {
    cluster: Rc<ClusterState>,
    endpoint: Rc<EndpointState>,
    _permit: Permit,
}

/// Why no endpoint could be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The snapshot has no such cluster.
    #[error("there is no cluster {0}")]
    NoCluster(Name),
    /// No healthy endpoint, and none came in time.
    #[error("{cluster} has no healthy endpoint ({why})")]
    NoHealthy {
        /// The cluster.
        cluster: Name,
        /// Since when, and whether it was waited for.
        why: String,
    },
    /// The circuit breaker is open.
    #[error("{cluster} has its limit of {max} connections{}", if *.by_default { " (Envoy's default; set limits.max_connections for more)" } else { "" })]
    Overflow {
        /// The cluster.
        cluster: Name,
        /// The limit.
        max: u32,
        /// Whether nobody configured it.
        by_default: bool,
    },
    /// Every endpoint tried failed; the last one's reason.
    #[error("{attempts} endpoint(s) of {cluster} tried, the last {endpoint}: {source}")]
    Failed {
        /// The cluster.
        cluster: Name,
        /// The last endpoint tried.
        endpoint: Target,
        /// How many were tried.
        attempts: usize,
        /// Why the last failed.
        source: AttemptError,
    },
}

/// Why one endpoint could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The dial.
    #[error("{0}")]
    Dial(#[from] io::Error),
    /// The handshake.
    #[error("{0}")]
    Handshake(Box<HandshakeError>),
    /// Dial and handshake together took too long.
    #[error("not connected within {0:?}")]
    Timeout(Duration),
    /// The cluster's TLS context is broken, so nothing is dialled.
    #[error("the TLS context cannot be used: {0}")]
    Unusable(Arc<str>),
}

impl ConnectError {
    /// Envoy's flag for it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoCluster(_) => ResponseFlag::NoClusterFound,
            Self::NoHealthy { .. } => ResponseFlag::NoHealthyUpstream,
            Self::Overflow { .. } => ResponseFlag::UpstreamOverflow,
            Self::Failed { .. } => ResponseFlag::UpstreamConnectionFailure,
        }
    }
}

/// Connects to an endpoint of the cluster called `name`.
///
/// # Errors
/// [`ConnectError`], after at most the cluster's connect timeout of waiting for an endpoint and as
/// much again for each of [`MAX_ATTEMPTS`] dials.
pub async fn connect(clusters: &ClusterManager, name: &Name) -> Result<Connected, ConnectError> {
    let began = Instant::now();
    let mut tried: Vec<Target> = Vec::new();
    let mut failure: Option<ConnectError> = None;
    let mut waited = false;
    loop {
        let (cluster, availability) = clusters
            .resolve(name)
            .ok_or_else(|| ConnectError::NoCluster(Arc::clone(name)))?;
        let endpoints = match availability {
            Availability::Endpoints(endpoints) => endpoints,
            // An endpoint was there and failed: its reason says more than that it is gone now.
            missing => match failure {
                Some(failure) => return Err(failure),
                None => {
                    wait_for_endpoint(clusters, &cluster, &missing, began, &mut waited).await?;
                    continue;
                }
            },
        };
        let Some(endpoint) = least_loaded(&endpoints, &tried) else {
            return Err(
                failure.unwrap_or_else(|| no_healthy(&cluster, "every endpoint was tried".to_owned()))
            );
        };
        let lease = Lease::acquire(&cluster, &endpoint)?;
        match attempt(&cluster, &endpoint.address).await {
            Ok(stream) => {
                let cluster = Arc::clone(&cluster.name);
                return Ok(Connected {
                    stream,
                    endpoint: endpoint.address.to_string(),
                    cluster,
                    lease,
                });
            }
            Err(source) => {
                tried.push(endpoint.address.clone());
                let error = ConnectError::Failed {
                    cluster: Arc::clone(&cluster.name),
                    endpoint: endpoint.address.clone(),
                    attempts: tried.len(),
                    source,
                };
                if tried.len() >= MAX_ATTEMPTS {
                    return Err(error);
                }
                tracing::debug!(%error, "another endpoint is tried");
                failure = Some(error);
            }
        }
    }
}

/// Waits for the next snapshot where that may bring an endpoint; errs at once where there has been
/// none for longer than [`RETURN_WINDOW`]. `waited` becomes true, so that a connection counts once.
async fn wait_for_endpoint(
    clusters: &ClusterManager,
    cluster: &ClusterState,
    missing: &Availability,
    began: Instant,
    waited: &mut bool,
) -> Result<(), ConnectError> {
    let none = |why: String| {
        cluster.metrics.none_healthy.increment(1);
        no_healthy(cluster, why)
    };
    let why = match missing {
        Availability::Endpoints(_) => return Ok(()),
        Availability::Unknown => "its endpoints are not known yet".to_owned(),
        Availability::Never => return Err(none("there was none since the start".to_owned())),
        Availability::Lost(at) => {
            let gone = format!("the last one went {:.1} s ago", at.elapsed().as_secs_f64());
            // A wait that began within the window may end after it.
            if at.elapsed().saturating_sub(began.elapsed()) > RETURN_WINDOW {
                return Err(none(gone));
            }
            gone
        }
    };
    if cluster.waiting.get() >= MAX_WAITING {
        return Err(none(format!("{why}; {MAX_WAITING} connections wait already")));
    }
    let limit = cluster.config().connect_timeout;
    let Some(left) = limit.checked_sub(began.elapsed()) else {
        return Err(none(format!("{why}; waited {limit:?}")));
    };
    if !std::mem::replace(waited, true) {
        cluster.metrics.waited.increment(1);
    }
    let _place = Waiting::enter(&cluster.waiting);
    match timeout(left, clusters.changed()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(none(format!("{why}; waited {limit:?}"))),
    }
}

fn no_healthy(cluster: &ClusterState, why: String) -> ConnectError {
    ConnectError::NoHealthy {
        cluster: Arc::clone(&cluster.name),
        why,
    }
}

/// A place among the waiting, given back however the wait ends.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn enter(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn attempt(cluster: &ClusterState, address: &Target) -> Result<UpstreamStream, AttemptError> {
    let limit = cluster.config().connect_timeout;
    let began = Instant::now();
    cluster.metrics.dialled.increment(1);
    let attempted = match timeout(limit, dial_and_shake(cluster.transport(), address)).await {
        Ok(attempted) => attempted,
        Err(_) => {
            cluster.metrics.connect_timeout.increment(1);
            Err(AttemptError::Timeout(limit))
        }
    };
    match &attempted {
        Ok(_) => cluster
            .metrics
            .connect_ms
            .record(began.elapsed().as_secs_f64() * 1000.0),
        Err(_) => cluster.metrics.connect_fail.increment(1),
    }
    attempted
}

async fn dial_and_shake(transport: Transport, address: &Target) -> Result<UpstreamStream, AttemptError> {
    if let Transport::Unusable(why) = transport {
        return Err(AttemptError::Unusable(why));
    }
    let plain = match address {
        Target::Address(address) => socket::dial(address).await?,
        Target::Host { host, port } => {
            let resolved = tokio::net::lookup_host((&**host, *port)).await?.next();
            let resolved = resolved.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            socket::dial(&crate::model::listener::Address::Socket(resolved)).await?
        }
    };
    match (transport, plain) {
        (Transport::Tls { config, sni }, PlainStream::Tcp(tcp)) => {
            let stream = TlsStream::connect(tcp, config, sni)
                .await
                .map_err(|e| AttemptError::Handshake(Box::new(e)))?;
            Ok(UpstreamStream::Tls(Box::new(stream)))
        }
        (Transport::Tls { .. }, PlainStream::Unix(_)) => Err(AttemptError::Unusable(
            "mutual TLS over a unix socket is not supported".into(),
        )),
        (Transport::Plain | Transport::Unusable(_), plain) => Ok(UpstreamStream::Plain(plain)),
    }
}

impl Lease {
    fn acquire(cluster: &Rc<ClusterState>, endpoint: &Rc<EndpointState>) -> Result<Self, ConnectError> {
        let configured = cluster.config().circuit_breakers.max_connections;
        let max = configured.unwrap_or(DEFAULT_MAX_CONNECTIONS);
        let Some(permit) = cluster.connections.acquire(u64::from(max)) else {
            cluster.metrics.overflow.increment(1);
            let cluster = Arc::clone(&cluster.name);
            return Err(ConnectError::Overflow {
                cluster,
                max,
                by_default: configured.is_none(),
            });
        };
        endpoint.active.set(endpoint.active.get() + 1);
        cluster.metrics.active.increment(1.0);
        Ok(Self {
            cluster: Rc::clone(cluster),
            endpoint: Rc::clone(endpoint),
            _permit: permit,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.active.set(self.endpoint.active.get() - 1);
        self.cluster.metrics.active.decrement(1.0);
    }
}
