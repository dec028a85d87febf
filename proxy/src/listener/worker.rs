//! One worker: a thread with a single-threaded runtime, its own sockets, clusters and connections.
//!
//! Owns everything it serves; other threads reach it only through [`WorkerHandle`].

use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::accept::Acceptor;
use super::active::{ActiveChain, ActiveConfig, ActiveListener, Serving};
use super::balance::Balances;
use super::dispatch::{Dispatch, HandedOver};
use super::live::CutReason;
use super::local_app::LocalApps;
use crate::filter::network::NetworkFilters;
use crate::http::HttpWorker;
use crate::limit::Limits;
use crate::model::listener::{Address, Direction, Listener, Terminal};
use crate::model::{Name, Snapshot};
use crate::net::socket::ListenSocket;
use crate::telemetry::metrics::TcpProxyMetrics;
use crate::tls::ConfigCache;
use crate::upstream::ClusterManager;

/// After the drain's deadline, the time for cut connections to write their records.
const CUT_GRACE: Duration = Duration::from_millis(200);

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// A newer snapshot, and the sockets to accept from.
    Apply(Arc<Snapshot>, Sockets),
    /// A connection that another worker has accepted.
    Serve(HandedOver),
    /// Stop accepting, let connections end until the deadline, cut the rest, answer. Given again, it
    /// cuts them at once.
    Drain(Duration, oneshot::Sender<Drained>),
}

/// The sockets that a worker accepts from.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those that are new.
    pub new: Vec<(Address, ListenSocket)>,
    /// All, with the listener that each is of. What is not here is closed.
    pub owners: Arc<BTreeMap<Address, Name>>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline.
    pub cut: usize,
}

/// The other threads' end of a worker.
#[derive(Debug)]
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: std::thread::JoinHandle<()>,
}

impl WorkerHandle {
    /// Starts so many workers, at least one.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(workers: usize, limits: &Limits) -> std::io::Result<Vec<Self>> {
        let (senders, inboxes): (Vec<_>, Vec<_>) =
            (0..workers.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let weak: Vec<_> = senders.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let balances = Balances::new(senders.len());
        let start = |(index, (commands, inbox))| {
            let (limits, balances, workers) = (limits.clone(), balances.clone(), weak.clone());
            let run = move || {
                let built = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => {
                        runtime.block_on(Worker::new(index, limits, balances, workers).run(inbox));
                    }
                    Err(error) => tracing::error!(%error, "a worker's runtime cannot be had"),
                }
            };
            let name = format!("worker-{index}");
            let thread = std::thread::Builder::new().name(name).spawn(run)?;
            Ok(Self { commands, thread })
        };
        senders.into_iter().zip(inboxes).enumerate().map(start).collect()
    }

    /// Hands over a snapshot and the sockets to accept from. A worker that is gone takes none.
    pub fn apply(&self, snapshot: Arc<Snapshot>, sockets: Sockets) {
        let _ = self.commands.send(Command::Apply(snapshot, sockets));
    }

    /// Begins a drain; the receiver is ready when it is over. A second call cuts what is left.
    pub fn drain(&self, deadline: Duration) -> oneshot::Receiver<Drained> {
        let (done, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Drain(deadline, done));
        receiver
    }

    /// Whether the thread has ended, which only a bug makes it do before [`Self::drain`].
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }
}

struct Worker {
    clusters: Rc<ClusterManager>,
    http: Rc<HttpWorker>,
    listeners: BTreeMap<Name, Rc<ActiveListener>>,
    acceptors: BTreeMap<Address, Acceptor>,
    dispatch: Rc<Dispatch>,
    /// No longer in the snapshot, but maybe with connections still: those obey the newest rules too.
    retired: Vec<Rc<ActiveListener>>,
    serving: Rc<Serving>,
    tls: ConfigCache,
    limits: Limits,
    balances: Balances,
    apps: Rc<LocalApps>,
}

impl Worker {
    fn new(
        index: usize,
        limits: Limits,
        balances: Balances,
        workers: Vec<mpsc::WeakUnboundedSender<Command>>,
    ) -> Self {
        let clusters = Rc::new(ClusterManager::new(limits.clone(), index == 0));
        let http = Rc::new(HttpWorker::new(Rc::clone(&clusters)));
        Self {
            dispatch: Rc::new(Dispatch {
                index,
                clusters: Rc::clone(&clusters),
                http: Rc::clone(&http),
                workers,
            }),
            http,
            clusters,
            listeners: BTreeMap::new(),
            acceptors: BTreeMap::new(),
            retired: Vec::new(),
            serving: Rc::default(),
            tls: ConfigCache::default(),
            limits,
            balances,
            apps: Rc::default(),
        }
    }

    /// Ends after a drain, or when the other end is gone.
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Apply(snapshot, sockets) => self.apply(&snapshot, sockets),
                Command::Serve(handed_over) => self.take(handed_over),
                Command::Drain(deadline, done) => {
                    let (drained, again) = self.drain(deadline, &mut inbox).await;
                    for done in [Some(done), again].into_iter().flatten() {
                        let _ = done.send(drained);
                    }
                    return;
                }
            }
        }
    }

    fn apply(&mut self, snapshot: &Snapshot, sockets: Sockets) {
        // Clusters first: a listener must not accept for a cluster that is not there yet.
        self.clusters.apply(snapshot, &mut self.tls);
        self.http.apply(snapshot);
        self.apps.apply(snapshot);
        self.listeners.retain(|name, listener| {
            let stays = snapshot.listeners.contains_key(name);
            if !stays {
                self.retired.push(Rc::clone(listener));
            }
            stays
        });
        for listener in snapshot.listeners.values() {
            self.update(listener);
        }
        self.rule_retired(snapshot);
        self.apply_sockets(sockets);
        self.tls.sweep();
        self.http.applied();
    }

    /// Make before break: new sockets accept before old ones end.
    fn apply_sockets(&mut self, sockets: Sockets) {
        for (address, socket) in sockets.new {
            let owner = sockets.owners.get(&address);
            let Some(listener) = owner.and_then(|name| self.listeners.get(name)) else {
                continue;
            };
            match Acceptor::start(socket, Rc::clone(listener), Rc::clone(&self.dispatch)) {
                Ok(acceptor) => {
                    self.acceptors.insert(address, acceptor);
                }
                Err(error) => {
                    tracing::error!(listener = %listener.name, %error, "the socket cannot be polled");
                }
            }
        }
        for (address, acceptor) in std::mem::take(&mut self.acceptors) {
            let owner = sockets.owners.get(&address);
            match owner.and_then(|name| self.listeners.get(name)) {
                Some(listener) => {
                    acceptor.hand_over(listener);
                    self.acceptors.insert(address, acceptor);
                }
                None => acceptor.close(Rc::clone(&self.dispatch)),
            }
        }
    }

    /// Of a listener that is gone here nobody serves what another worker accepted for it just now.
    fn take(&self, handed_over: HandedOver) {
        let retired = || self.retired.iter().find(|l| l.name == handed_over.listener);
        let listener = self.listeners.get(&handed_over.listener).or_else(retired);
        if let Some(listener) = listener.cloned() {
            self.dispatch.take(handed_over, listener);
        }
    }

    /// Swaps a listener's chains under its socket, and looks again at its live connections if the
    /// rules changed.
    fn update(&mut self, config: &Arc<Listener>) {
        let old = self.listeners.get(&config.name).map(|listener| listener.config());
        if old.as_ref().is_some_and(|old| Arc::ptr_eq(&old.listener, config)) {
            return;
        }
        let active = Rc::new(self.activate(config, old.as_deref()));
        let Some(listener) = self.listeners.get(&config.name) else {
            let balance = self.balances.get(&config.name);
            let apps = Rc::clone(&self.apps);
            let listener = ActiveListener::new(apps, balance, active, Rc::clone(&self.serving));
            self.listeners.insert(Arc::clone(&config.name), Rc::new(listener));
            return;
        };
        listener.swap(active);
    }

    /// A public listener whose address changes is another listener. The connections of the old one
    /// stay, under the rules of the one that is public now; while there is none, under the last.
    fn rule_retired(&mut self, snapshot: &Snapshot) {
        self.retired.retain(|listener| Rc::strong_count(listener) > 1);
        let mut inbound = snapshot.listeners.values();
        let public = inbound
            .find(|listener| listener.direction == Direction::Inbound)
            .and_then(|listener| self.listeners.get(&listener.name))
            .map(|listener| listener.config());
        let Some(public) = public else {
            return;
        };
        for listener in &self.retired {
            if listener.config().has_rules() {
                listener.swap(Rc::clone(&public));
            }
        }
    }

    /// Where the newer TLS context cannot be used, the last good one goes on with the newer filters.
    fn activate(&mut self, listener: &Arc<Listener>, old: Option<&ActiveConfig>) -> ActiveConfig {
        let mut chains = Vec::new();
        for config in listener.chains() {
            let same = |old: &&Rc<ActiveChain>| old.config.matches == config.matches;
            let old = old.and_then(|old| old.chains.iter().find(same));
            if let Some(old) = old.filter(|old| Arc::ptr_eq(&old.config, config)) {
                chains.push(Rc::clone(old));
                continue;
            }
            let transport = config.transport.as_ref().map(|tls| {
                self.tls.server(tls).or_else(|error| {
                    tracing::error!(listener = %listener.name, %error, "the TLS context of a listener cannot be used");
                    match old.and_then(|old| old.transport.clone()) {
                        Some(Ok(last_good)) => Ok(last_good),
                        _ => Err(error.to_string()),
                    }
                })
            });
            // What a chain takes tells it from every other one of its listener.
            let key = format!("listener {} chain {:?}", listener.name, config.matches);
            chains.push(Rc::new(ActiveChain {
                filters: NetworkFilters::new(config, &key, &self.limits),
                tcp_proxy: match &config.terminal {
                    Terminal::TcpProxy(proxy) => Some(Rc::new(TcpProxyMetrics::new(&proxy.stat_prefix))),
                    Terminal::HttpConnectionManager(_) => None,
                },
                config: Arc::clone(config),
                transport,
            }));
        }
        ActiveConfig::new(listener, chains)
    }

    /// Newer rules go on reaching live connections. Gives the sender of a second command, if one cut it
    /// short.
    async fn drain(
        &mut self,
        deadline: Duration,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> (Drained, Option<oneshot::Sender<Drained>>) {
        for acceptor in std::mem::take(&mut self.acceptors).into_values() {
            acceptor.close(Rc::clone(&self.dispatch));
        }
        for listener in self.listeners.values().chain(&self.retired) {
            listener.live.drain();
        }
        let serving = Rc::clone(&self.serving);
        let mut deadline = pin!(sleep(deadline));
        let again = loop {
            tokio::select! {
                () = serving.until_idle() => {
                    // From now on other workers keep what they would have handed over; what they
                    // already have is served.
                    inbox.close();
                    while let Ok(command) = inbox.try_recv() {
                        if let Command::Serve(handed_over) = command {
                            self.take(handed_over);
                        }
                    }
                    if serving.count() == 0 {
                        return (Drained::default(), None);
                    }
                }
                () = &mut deadline => break None,
                Some(command) = inbox.recv() => match command {
                    // Nothing new is accepted: sockets that come now are of listeners that nobody knew.
                    Command::Apply(snapshot, _) => self.apply(&snapshot, Sockets::default()),
                    Command::Serve(handed_over) => self.take(handed_over),
                    Command::Drain(_, done) => break Some(done),
                },
            }
        };
        let drained = Drained { cut: serving.count() };
        for listener in self.listeners.values().chain(&self.retired) {
            listener.live.cut(|_| Some(CutReason::DrainDeadline));
        }
        let _ = timeout(CUT_GRACE, serving.until_idle()).await;
        (drained, again)
    }
}
