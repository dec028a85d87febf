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
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::accept::accept;
use super::active::{ActiveChain, ActiveConfig, ActiveListener, Serving};
use super::live::CutReason;
use crate::limit::Limits;
use crate::model::listener::{Direction, Listener};
use crate::model::{Name, Snapshot};
use crate::net::socket::ListenSocket;
use crate::tls::ConfigCache;
use crate::upstream::ClusterManager;

/// After the drain's deadline, the time for cut connections to write their records.
const CUT_GRACE: Duration = Duration::from_millis(200);

/// What a worker is told.
enum Command {
    /// A newer snapshot, with the sockets of listeners that are new in it.
    Apply(Arc<Snapshot>, Vec<(Name, ListenSocket)>),
    /// Stop accepting, let connections end until the deadline, cut the rest, answer. Given again, it
    /// cuts them at once.
    Drain(Duration, oneshot::Sender<()>),
}

/// The other threads' end of a worker.
#[derive(Debug)]
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: std::thread::JoinHandle<()>,
}

impl WorkerHandle {
    /// Starts worker `index`.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(index: usize, limits: Limits) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let built = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => runtime.block_on(Worker::new(limits).run(inbox)),
                    Err(error) => tracing::error!(%error, "a worker's runtime cannot be had"),
                }
            })?;
        Ok(Self { commands, thread })
    }

    /// Hands over a snapshot and the sockets of its new listeners. A worker that is gone takes none.
    pub fn apply(&self, snapshot: Arc<Snapshot>, sockets: Vec<(Name, ListenSocket)>) {
        let _ = self.commands.send(Command::Apply(snapshot, sockets));
    }

    /// Begins a drain; the receiver is ready when it is over. A second call cuts what is left.
    pub fn drain(&self, deadline: Duration) -> oneshot::Receiver<()> {
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
    listeners: BTreeMap<Name, (Rc<ActiveListener>, Option<AbortHandle>)>,
    /// No longer in the snapshot, but maybe with connections still: those obey the newest rules too.
    retired: Vec<Rc<ActiveListener>>,
    serving: Rc<Serving>,
    tls: ConfigCache,
    limits: Limits,
}

impl Worker {
    fn new(limits: Limits) -> Self {
        Self {
            clusters: Rc::new(ClusterManager::new(limits.clone())),
            listeners: BTreeMap::new(),
            retired: Vec::new(),
            serving: Rc::default(),
            tls: ConfigCache::default(),
            limits,
        }
    }

    /// Ends after a drain, or when the other end is gone.
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Apply(snapshot, sockets) => self.apply(&snapshot, sockets),
                Command::Drain(deadline, done) => {
                    let again = self.drain(deadline, &mut inbox).await;
                    for done in [Some(done), again].into_iter().flatten() {
                        let _ = done.send(());
                    }
                    return;
                }
            }
        }
    }

    fn apply(&mut self, snapshot: &Snapshot, sockets: Vec<(Name, ListenSocket)>) {
        // Clusters first: a listener must not accept for a cluster that is not there yet.
        self.clusters.apply(snapshot, &mut self.tls);
        self.listeners.retain(|name, (listener, accepting)| {
            let stays = snapshot.listeners.contains_key(name);
            if !stays {
                if let Some(accepting) = accepting {
                    accepting.abort();
                }
                self.retired.push(Rc::clone(listener));
            }
            stays
        });
        for listener in snapshot.listeners.values() {
            self.update(listener);
        }
        self.rule_retired(snapshot);
        for (name, socket) in sockets {
            if let Some((listener, accepting)) = self.listeners.get_mut(&name) {
                let task = accept(socket, Rc::clone(listener), Rc::clone(&self.clusters));
                if let Some(replaced) = accepting.replace(spawn_local(task).abort_handle()) {
                    replaced.abort();
                }
            }
        }
        self.tls.sweep();
    }

    /// Swaps a listener's chains under its socket, and looks again at its live connections if the
    /// rules changed.
    fn update(&mut self, config: &Arc<Listener>) {
        let old = self
            .listeners
            .get(&config.name)
            .map(|(listener, _)| listener.config());
        if old.as_ref().is_some_and(|old| Arc::ptr_eq(&old.listener, config)) {
            return;
        }
        let active = Rc::new(self.activate(config, old.as_deref()));
        let Some((listener, _)) = self.listeners.get(&config.name) else {
            let connections = self.limits.get(&format!("listener {}", config.name));
            let listener = ActiveListener::new(connections, active, Rc::clone(&self.serving));
            self.listeners
                .insert(Arc::clone(&config.name), (Rc::new(listener), None));
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
            .map(|(listener, _)| listener.config());
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
            let config = Arc::clone(config);
            chains.push(Rc::new(ActiveChain { config, transport }));
        }
        ActiveConfig {
            listener: Arc::clone(listener),
            chains,
        }
    }

    /// Newer rules go on reaching live connections. Gives the sender of a second command, if one cut it
    /// short.
    async fn drain(
        &mut self,
        deadline: Duration,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<oneshot::Sender<()>> {
        for (_, accepting) in self.listeners.values_mut() {
            if let Some(accepting) = accepting.take() {
                accepting.abort();
            }
        }
        let listeners = self.listeners.values().map(|(listener, _)| listener);
        for listener in listeners.chain(&self.retired) {
            listener.live.drain();
        }
        let serving = Rc::clone(&self.serving);
        let mut idle = pin!(serving.until_idle());
        let mut deadline = pin!(sleep(deadline));
        let again = loop {
            tokio::select! {
                () = &mut idle => return None,
                () = &mut deadline => break None,
                command = inbox.recv() => match command {
                    // Sockets of new listeners are dropped: nothing is accepted any more.
                    Some(Command::Apply(snapshot, _)) => self.apply(&snapshot, Vec::new()),
                    Some(Command::Drain(_, done)) => break Some(done),
                    None => break None,
                },
            }
        };
        let listeners = self.listeners.values().map(|(listener, _)| listener);
        for listener in listeners.chain(&self.retired) {
            listener.live.cut(|_| Some(CutReason::DrainDeadline));
        }
        let _ = timeout(CUT_GRACE, serving.until_idle()).await;
        again
    }
}
