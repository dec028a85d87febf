//! One listener as a worker holds it: its newest filter chain, its live connections, its counts.
//!
//! Owned by the worker; the accept loop and every connection hold it by `Rc` and see its chain change
//! under them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::balance::Balance;
use super::filters;
use super::live::{CutReason, LiveConnections};
use super::local_app::LocalApps;
use crate::filter::network::NetworkFilters;
use crate::filter::rbac;
use crate::model::listener::ListenerFilters;
use crate::model::{Action, Downstream, FilterChain, Listener, Name};
use crate::telemetry::metrics::{ListenerMetrics, TcpProxyMetrics};
use crate::tls::ServerTls;

/// Handshakes under way at once in a listener and worker. Strangers hold what an unfinished handshake
/// costs, some 11 KiB and at most 35, for its time limit: all together stay well below the 128 MB that
/// Nomad gives a sidecar. A whole mesh that reconnects at once is served in less than a second.
pub const MAX_HANDSHAKES: u32 = 2048;

/// A listener in use. Survives updates of its chain.
#[derive(Debug)]
pub struct ActiveListener {
    /// The listener's name.
    pub name: Name,
    /// This worker's counters.
    pub metrics: Rc<ListenerMetrics>,
    /// Authorised connections of this worker.
    pub live: LiveConnections,
    /// The worker's local apps.
    pub apps: Rc<LocalApps>,
    /// Connections by worker, for `exact_balance`.
    pub balance: Balance,
    config: RefCell<Rc<ActiveConfig>>,
    serving: Rc<Serving>,
    /// TLS handshakes under way.
    handshakes: Cell<u32>,
}

/// A listener's configuration with what was made from it once.
#[derive(Debug)]
pub struct ActiveConfig {
    /// As it came.
    pub listener: Arc<Listener>,
    /// Its chains, in the order of [`Listener::chains`].
    pub chains: Vec<Rc<ActiveChain>>,
    /// The listener filters to run ([`filters::needed`]).
    pub filters: ListenerFilters,
}

/// A filter chain with what was made from it once.
#[derive(Debug)]
pub struct ActiveChain {
    /// The chain.
    pub config: Arc<FilterChain>,
    /// Its network filters.
    pub filters: NetworkFilters,
    /// What its TCP proxy counts, if that is its terminal filter.
    pub tcp_proxy: Option<Rc<TcpProxyMetrics>>,
    /// TLS, or why it cannot be had: then connections are refused.
    pub transport: Option<Result<ServerTls, String>>,
}

/// Counts the connections of a worker, to know when a drain is over.
#[derive(Debug, Default)]
pub struct Serving {
    count: Cell<usize>,
    idle: Notify,
}

/// One handshake's place, given back when dropped.
#[derive(Debug)]
pub struct Handshake<'a>(&'a Cell<u32>);

/// One connection in the count; given back when dropped.
#[derive(Debug)]
pub struct ServingGuard(Rc<Serving>);

impl ActiveListener {
    /// A listener with its first configuration; `serving` is the worker's count.
    pub fn new(
        apps: Rc<LocalApps>,
        balance: Balance,
        config: Rc<ActiveConfig>,
        serving: Rc<Serving>,
    ) -> Self {
        let name = Arc::clone(&config.listener.name);
        Self {
            metrics: Rc::new(ListenerMetrics::of(&config.listener)),
            name,
            live: LiveConnections::default(),
            apps,
            balance,
            config: RefCell::new(config),
            handshakes: Cell::new(0),
            serving,
        }
    }

    /// The newest configuration.
    pub fn config(&self) -> Rc<ActiveConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// Makes `config` the newest. Live connections keep their chain; of the one that would take them now
    /// they take the rules, and those that it denies are cut.
    pub fn swap(&self, config: Rc<ActiveConfig>) {
        let old = self.config.replace(Rc::clone(&config));
        if old.has_rules_of(&config) {
            return;
        }
        self.live.cut(|downstream| {
            let chain = config.listener.find_filter_chain(downstream)?;
            rbac::check(chain, downstream)
                .filter(|verdict| verdict.action == Action::Deny)
                .map(|verdict| CutReason::Denied(verdict.policy))
        });
    }

    /// A place for a handshake; `None` when [`MAX_HANDSHAKES`] are under way.
    pub fn handshake(&self) -> Option<Handshake<'_>> {
        let under_way = self.handshakes.get();
        if under_way >= MAX_HANDSHAKES {
            return None;
        }
        self.handshakes.set(under_way + 1);
        Some(Handshake(&self.handshakes))
    }

    /// Counts a connection for as long as the guard lives.
    pub fn serving(&self) -> ServingGuard {
        self.serving.count.set(self.serving.count.get() + 1);
        ServingGuard(Rc::clone(&self.serving))
    }
}

impl ActiveConfig {
    /// `chains` in the order of [`Listener::chains`].
    pub fn new(listener: &Arc<Listener>, chains: Vec<Rc<ActiveChain>>) -> Self {
        Self {
            filters: filters::needed(listener),
            listener: Arc::clone(listener),
            chains,
        }
    }

    /// The chain that takes a connection.
    pub fn find(&self, downstream: &Downstream) -> Option<Rc<ActiveChain>> {
        let found = self.listener.find_filter_chain(downstream)?;
        let is_found = |chain: &&Rc<ActiveChain>| Arc::ptr_eq(&chain.config, found);
        self.chains.iter().find(is_found).cloned()
    }

    /// Whether any chain has RBAC rules.
    pub fn has_rules(&self) -> bool {
        self.listener.chains().any(|chain| rbac::has_rules(chain))
    }

    /// Whether the same connections fall under the same rules as in `other`.
    fn has_rules_of(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<FilterChain>, &Arc<FilterChain>)| {
            Arc::ptr_eq(a, b) || (a.matches == b.matches && rbac::same_rules(a, b))
        };
        self.chains.len() == other.chains.len()
            && self.listener.chains().zip(other.listener.chains()).all(same)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Serving {
    /// Connections now.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Ready when no connection is left.
    pub async fn until_idle(&self) {
        while self.count.get() > 0 {
            self.idle.notified().await;
        }
    }
}

impl Drop for ServingGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
