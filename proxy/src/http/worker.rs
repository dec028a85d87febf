//! What the HTTP connections of a worker share: clusters, pools, route tables by name, and the news of changes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::{self, Arc};

use bytes::Bytes;
use hyper::Uri;
use tokio::sync::Notify;

use super::client::{self, Answer, ClientError};
use super::filters::jwt::{Fetch, FetchError, JwksStore};
use super::filters::local_rate_limit::{self, TokenBucket};
use super::message::{RequestHead, Version};
use super::pool::Pools;
use super::tracers::Tracers;
use crate::model::http::{GrpcStats, LocalRateLimit};
use crate::model::jwt::RemoteJwks;
use crate::model::listener::{Listener, Terminal};
use crate::model::{Name, Node, RouteConfiguration, Snapshot};
use crate::telemetry::metrics::http::{
    ConnectionManagerMetrics, GrpcMetrics, HttpRbacMetrics, LocalRateLimitMetrics,
};
use crate::telemetry::metrics::listener_stat_name;
use crate::upstream::{ClusterManager, ConnectError};

/// How long a key set may be; a token is signed by one of a handful.
const MAX_JWKS_BYTES: usize = super::filters::jwt::jwks::MAX_BYTES;

/// A local rate limit as it runs.
pub(super) struct RateLimit {
    /// Of all workers.
    pub(super) bucket: Option<Arc<TokenBucket>>,
    pub(super) metrics: LocalRateLimitMetrics,
}

/// One a worker.
pub struct HttpWorker {
    pub(super) clusters: Rc<ClusterManager>,
    pub(super) pools: Rc<Pools>,
    /// Key sets of JWT providers.
    pub(super) jwks: JwksStore,
    routes: RefCell<BTreeMap<Name, Arc<RouteConfiguration>>>,
    /// Who this proxy is.
    node: RefCell<Arc<Node>>,
    /// Spans on their way to collectors.
    pub(super) tracers: Tracers,
    /// Rate limits' buckets and counters, by their configuration.
    limits: RefCell<Vec<(sync::Weak<LocalRateLimit>, Rc<RateLimit>)>>,
    /// By the connection manager's prefix and the filter's.
    rbac: RefCell<BTreeMap<(Name, Name), Rc<HttpRbacMetrics>>>,
    /// Calls of gRPC by cluster.
    grpc: RefCell<Vec<(Name, GrpcStats, Rc<GrpcMetrics>)>>,
    /// By `stat_prefix` and listener.
    metrics: RefCell<BTreeMap<(Name, String), Weak<ConnectionManagerMetrics>>>,
    /// Of the connection managers that are configured: they count on while none has a connection.
    configured: RefCell<Vec<(Name, Rc<ConnectionManagerMetrics>)>>,
    /// Told of every snapshot, for streams that live long.
    pub(super) changed: Notify,
}

impl HttpWorker {
    /// Over the worker's clusters.
    pub fn new(clusters: Rc<ClusterManager>) -> Self {
        let pools = Rc::<Pools>::default();
        Self {
            jwks: JwksStore::new(fetch(&pools, &clusters)),
            tracers: Tracers::new(&pools, &clusters),
            clusters,
            pools,
            routes: RefCell::default(),
            node: RefCell::default(),
            limits: RefCell::default(),
            rbac: RefCell::default(),
            grpc: RefCell::default(),
            metrics: RefCell::default(),
            configured: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// Takes the route tables of a snapshot, and what it says of this proxy.
    pub fn apply(&self, snapshot: &Snapshot) {
        self.keep_counts(snapshot);
        self.routes.borrow_mut().clone_from(&snapshot.routes);
        self.node.borrow_mut().clone_from(&snapshot.node);
        self.tracers.apply(&snapshot.node, snapshot.tracing.as_ref());
    }

    /// Connects to an endpoint of the cluster called `name`, for requests to come.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, name: &Name) -> Result<(), ConnectError> {
        self.pools.connect(&self.clusters, name).await
    }

    /// Counts belong to what is configured: they end with it, and not before.
    fn keep_counts(&self, snapshot: &Snapshot) {
        let of = |listener: &Arc<Listener>| {
            let address = listener_stat_name(listener);
            let managers = listener.chains().filter_map(|chain| match &chain.terminal {
                Terminal::HttpConnectionManager(manager) => Some(&manager.stat_prefix),
                Terminal::TcpProxy(_) => None,
            });
            managers
                .map(|prefix| (Name::clone(prefix), self.metrics(prefix, &address)))
                .collect::<Vec<_>>()
        };
        let configured: Vec<_> = snapshot.listeners.values().flat_map(of).collect();
        let has = |prefix: &Name| configured.iter().any(|(of, _)| of == prefix);
        self.rbac.borrow_mut().retain(|(manager, _), _| has(manager));
        self.grpc.borrow_mut().retain(|(name, ..)| {
            snapshot
                .clusters
                .values()
                .any(|cluster| cluster.stat_name() == name)
        });
        self.configured.replace(configured);
    }

    /// Listeners and routes are those of a newer snapshot now: streams that newer rules deny are to end.
    pub fn applied(&self) {
        self.jwks.sweep();
        self.changed.notify_waiters();
    }

    /// The counters of the connection managers of this `stat_prefix` on a listener.
    pub(super) fn metrics(&self, stat_prefix: &Name, listener: &str) -> Rc<ConnectionManagerMetrics> {
        let mut all = self.metrics.borrow_mut();
        let key = (Name::clone(stat_prefix), listener.to_owned());
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, metrics| metrics.strong_count() > 0);
        let made = Rc::new(ConnectionManagerMetrics::new(stat_prefix, listener));
        all.insert(key, Rc::downgrade(&made));
        made
    }

    /// What a rate limit decides by and counts.
    pub(super) fn rate_limit(&self, options: &Arc<LocalRateLimit>) -> Rc<RateLimit> {
        let mut all = self.limits.borrow_mut();
        let known = all.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(options));
        if let Some((_, known)) = known {
            return Rc::clone(known);
        }
        all.retain(|(of, _)| of.strong_count() > 0);
        let made = Rc::new(RateLimit {
            bucket: local_rate_limit::shared(options),
            metrics: LocalRateLimitMetrics::new(&options.stat_prefix),
        });
        all.push((Arc::downgrade(options), Rc::clone(&made)));
        made
    }

    /// The counters of RBAC filters with these prefixes.
    pub(super) fn rbac(&self, manager: &Name, filter: &Name) -> Rc<HttpRbacMetrics> {
        let mut all = self.rbac.borrow_mut();
        let key = (Name::clone(manager), Name::clone(filter));
        let made = all
            .entry(key)
            .or_insert_with(|| Rc::new(HttpRbacMetrics::new(manager, filter, "")));
        Rc::clone(made)
    }

    /// The counters of the calls to a cluster, by its name in statistics.
    pub(super) fn grpc(&self, cluster: &Name, options: GrpcStats) -> Rc<GrpcMetrics> {
        let mut all = self.grpc.borrow_mut();
        if let Some((_, _, known)) = all
            .iter()
            .find(|(name, with, _)| name == cluster && *with == options)
        {
            return Rc::clone(known);
        }
        let made = Rc::new(GrpcMetrics::new(cluster, options));
        all.push((Name::clone(cluster), options, Rc::clone(&made)));
        made
    }

    /// Who this proxy is.
    pub(super) fn node(&self) -> Arc<Node> {
        Arc::clone(&self.node.borrow())
    }

    /// The route table called `name`; none while it is not known.
    pub(super) fn routes(&self, name: &str) -> Option<Arc<RouteConfiguration>> {
        self.routes.borrow().get(name).cloned()
    }
}

impl std::fmt::Debug for HttpWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpWorker").finish_non_exhaustive()
    }
}

/// Gets key sets over the worker's pools.
fn fetch(pools: &Rc<Pools>, clusters: &Rc<ClusterManager>) -> Fetch {
    let (pools, clusters) = (Rc::downgrade(pools), Rc::downgrade(clusters));
    Rc::new(move |source: &RemoteJwks| {
        let (pools, clusters) = (pools.clone(), clusters.clone());
        let (uri, cluster) = (Arc::clone(&source.uri), Name::clone(&source.cluster));
        Box::pin(async move {
            let broken = |why: String| FetchError {
                why,
                retriable: false,
            };
            let (Some(pools), Some(clusters)) = (pools.upgrade(), clusters.upgrade()) else {
                return Err(broken("the worker ends".to_owned()));
            };
            let head = get(&uri).ok_or_else(|| broken(format!("{uri:?} is no URI")))?;
            let asked = client::ask(&pools, &clusters, &cluster, &head, Bytes::new(), MAX_JWKS_BYTES).await;
            match asked {
                Ok(answer) if answer.status == hyper::StatusCode::OK => Ok(answer.body),
                Ok(Answer { status, .. }) => Err(FetchError {
                    why: format!("the answer is {status}"),
                    retriable: status.is_server_error(),
                }),
                Err(error) => Err(FetchError {
                    retriable: !matches!(error, ClientError::TooLarge(_)),
                    why: error.to_string(),
                }),
            }
        })
    })
}

fn get(uri: &str) -> Option<RequestHead> {
    let uri: Uri = uri.parse().ok()?;
    Some(RequestHead {
        scheme: if uri.scheme_str() == Some("https") {
            "https"
        } else {
            "http"
        },
        authority: uri.authority()?.as_str().to_owned(),
        target: uri
            .path_and_query()
            .map_or("/", |target| target.as_str())
            .to_owned(),
        version: Version::Http11,
        ..RequestHead::nothing(hyper::Method::GET)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limits;
    use crate::model::filter_chain_match::FilterChainMatch;
    use crate::model::http::{HttpConnectionManager, Routes};
    use crate::model::listener::{Address, Direction, FilterChain, ListenerFilters};

    fn snapshot(prefix: &str) -> Snapshot {
        let table = RouteConfiguration::new("r".into(), Vec::new()).unwrap();
        let manager = HttpConnectionManager::new(prefix.into(), Routes::Inline(Arc::new(table)));
        let chain = FilterChain {
            name: "".into(),
            matches: FilterChainMatch::default(),
            transport: None,
            filters: Vec::new(),
            terminal: Terminal::HttpConnectionManager(Arc::new(manager)),
        };
        let listener = Listener {
            name: "l".into(),
            address: Address::Socket(([127, 0, 0, 1], 1).into()),
            direction: Direction::Inbound,
            stat_prefix: None,
            filters: ListenerFilters::default(),
            filter_chains: vec![Arc::new(chain)],
            default_filter_chain: None,
            exact_balance: false,
            access_log: Vec::new(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.listeners.insert("l".into(), Arc::new(listener));
        snapshot
    }

    #[test]
    fn counts_stay_while_their_manager_is_configured() {
        let worker = HttpWorker::new(Rc::new(ClusterManager::new(Limits::default(), true)));
        let prefix = Name::from("counts_stay");
        worker.apply(&snapshot(&prefix));
        // As a connection holds them while it lives.
        let manager = Rc::downgrade(&worker.metrics(&prefix, "127.0.0.1_1"));
        let rbac = Rc::downgrade(&worker.rbac(&prefix, &"".into()));
        assert!(manager.upgrade().is_some(), "no connection has them now");
        worker.apply(&snapshot(&prefix));
        assert!(manager.upgrade().is_some() && rbac.upgrade().is_some());
        worker.apply(&snapshot("another"));
        assert!(manager.upgrade().is_none() && rbac.upgrade().is_none());
    }
}
