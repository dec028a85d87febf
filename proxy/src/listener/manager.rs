//! Binds the listeners of each snapshot on the control thread and hands the sockets to the workers.
//!
//! Owns the table of what is bound, and the files of unix sockets; the sockets themselves belong to the
//! workers. Sockets go by address: a listener whose address was bound already takes the socket over,
//! whatever its name was, and the last good address goes on while a newer one cannot be bound.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::worker::{Sockets, WorkerHandle};
use crate::model::listener::{Address, Direction, Listener};
use crate::model::{Name, Snapshot};
use crate::net::socket::{ListenSocket, SocketFile};
use crate::net::{holder, socket};
use crate::snapshot::Reader;
use crate::telemetry::metrics::SnapshotMetrics;

/// How long until a listener that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{address} ({listener}) cannot be bound: {source}{}{}", holder.as_ref().map(|h| format!("; held by {h}")).unwrap_or_default(), last_good.as_ref().map(|a| format!("; {a} goes on instead")).unwrap_or_default())]
pub struct BindError {
    /// The listener's name.
    pub listener: Name,
    /// The address.
    pub address: Address,
    /// Who listens there, where that can be told: a process, or another listener of the snapshot.
    pub holder: Option<String>,
    /// The address that the listener had before and keeps.
    pub last_good: Option<Address>,
    /// The kernel's reason.
    pub source: io::Error,
}

/// Which listeners stop (Envoy's `POST /drain_listeners`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopListeners {
    /// Those with `traffic_direction: INBOUND` (`?inboundonly`).
    Inbound,
    /// All.
    All,
}

/// Tells the listener manager from elsewhere on its thread.
#[derive(Clone, Debug)]
pub struct ListenerControl(mpsc::UnboundedSender<StopListeners>);

impl ListenerControl {
    /// Closes listeners for good: what was begun is served, new connects are refused, live connections
    /// go on, and newer snapshots do not bind them again. The process does not end by it.
    pub fn stop(&self, which: StopListeners) {
        // Without a manager any more nothing listens either.
        let _ = self.0.send(which);
    }
}

/// The listeners of a process.
pub struct ListenerManager {
    reader: Reader,
    workers: Rc<[WorkerHandle]>,
    bound: BTreeMap<Address, Bound>,
    stopped: Option<StopListeners>,
    control: ListenerControl,
    requests: mpsc::UnboundedReceiver<StopListeners>,
    /// The errors of the last attempt, so that each is told once.
    told: BTreeSet<String>,
    metrics: SnapshotMetrics,
}

/// One bound address.
struct Bound {
    owner: Name,
    /// Of a unix socket.
    file: Option<SocketFile>,
    mode: Option<u32>,
}

impl ListenerManager {
    /// For these workers.
    pub fn new(reader: Reader, workers: Rc<[WorkerHandle]>) -> Self {
        let (control, requests) = mpsc::unbounded_channel();
        Self {
            reader,
            workers,
            bound: BTreeMap::new(),
            stopped: None,
            control: ListenerControl(control),
            requests,
            told: BTreeSet::new(),
            metrics: SnapshotMetrics::default(),
        }
    }

    /// For who stops listeners from elsewhere.
    pub fn control(&self) -> ListenerControl {
        self.control.clone()
    }

    /// Waits for the first snapshot and binds its listeners.
    ///
    /// # Errors
    /// If `strict`, the first address that cannot be bound: at the start that is a mistake to be seen, not
    /// one to be lived with. Otherwise [`Self::run`] tries it again.
    pub async fn start(&mut self, strict: bool) -> Result<(), BindError> {
        let Some(snapshot) = self.reader.next().await else {
            return Ok(());
        };
        for error in self.apply(&snapshot) {
            if strict {
                return Err(error);
            }
            tracing::error!("{error}; tried again every {} s", RETRY.as_secs());
            self.told.insert(error.to_string());
        }
        tracing::info!(listeners = self.bound.len(), "listening");
        Ok(())
    }

    /// Applies every later snapshot. A listener that cannot be bound is logged and tried again; the
    /// others go on. Returns only when a worker has ended by itself, which is a bug.
    pub async fn run(&mut self) {
        loop {
            let snapshot = tokio::select! {
                next = self.reader.next() => match next {
                    Some(snapshot) => snapshot,
                    // The source is gone; what is bound stays.
                    None => std::future::pending().await,
                },
                Some(which) = self.requests.recv() => {
                    self.stop(which);
                    match self.reader.latest() {
                        Some(snapshot) => snapshot,
                        None => continue,
                    }
                },
                () = sleep(RETRY), if !self.told.is_empty() => match self.reader.latest() {
                    Some(snapshot) => snapshot,
                    None => continue,
                },
            };
            if self.workers.iter().any(WorkerHandle::is_gone) {
                return;
            }
            let errors = self.apply(&snapshot);
            let tell: BTreeSet<String> = errors.iter().map(ToString::to_string).collect();
            for error in tell.difference(&self.told) {
                tracing::error!("{error}; tried again every {} s", RETRY.as_secs());
            }
            self.told = tell;
        }
    }

    fn stop(&mut self, which: StopListeners) {
        tracing::info!(?which, "listeners stop");
        if self.stopped != Some(StopListeners::All) {
            self.stopped = Some(which);
        }
    }

    pub(super) fn apply(&mut self, snapshot: &Arc<Snapshot>) -> Vec<BindError> {
        self.metrics.apply(snapshot);
        let stopped = self.stopped;
        let (mut wanted, mut errors) = assign(snapshot, &self.bound, |l| !is_stopped(stopped, l));
        let mut new: Vec<Vec<(Address, ListenSocket)>> = self.workers.iter().map(|_| Vec::new()).collect();
        let unbound: Vec<(Address, Name)> = wanted
            .iter()
            .filter(|(address, _)| !self.bound.contains_key(*address))
            .map(|(address, name)| (address.clone(), name.clone()))
            .collect();
        for (address, name) in unbound {
            let mode = snapshot.listeners.get(&name).and_then(|l| mode(&l.address));
            match self.bind(&address, &name, mode) {
                Ok(sockets) => {
                    for (worker, socket) in new.iter_mut().zip(sockets) {
                        worker.push((address.clone(), socket));
                    }
                }
                Err(source) => {
                    self.metrics.listener_manager.create_failure.increment(1);
                    wanted.remove(&address);
                    errors.push(bind_error(name, address, source));
                }
            }
        }
        self.keep_last_good(&mut wanted, &mut errors);
        self.settle(&wanted, snapshot);
        let owners = Arc::new(wanted);
        for (worker, new) in self.workers.iter().zip(new) {
            let owners = Arc::clone(&owners);
            worker.apply(Arc::clone(snapshot), Sockets { new, owners });
        }
        self.metrics.listener_manager.workers_started.set(1);
        errors
    }

    fn bind(&mut self, address: &Address, name: &Name, mode: Option<u32>) -> io::Result<Vec<ListenSocket>> {
        let join = self.bound.keys().any(|ours| covers(ours, address));
        let with_mode = with_mode(address, mode);
        let sockets = socket::listen(&with_mode, self.workers.len(), join)?;
        tracing::info!(listener = %name, %address, "listener added");
        let bound = Bound {
            owner: Arc::clone(name),
            file: SocketFile::of(address),
            mode,
        };
        self.bound.insert(address.clone(), bound);
        self.metrics.listener_manager.create_success.increment(1);
        Ok(sockets)
    }

    /// A listener that did not get its new address keeps the one it has, unless another has it by now.
    fn keep_last_good(&self, wanted: &mut BTreeMap<Address, Name>, errors: &mut [BindError]) {
        for error in errors {
            let had = self
                .bound
                .iter()
                .find(|(address, bound)| bound.owner == error.listener && !wanted.contains_key(*address));
            if let Some((address, bound)) = had {
                wanted.insert(address.clone(), Arc::clone(&bound.owner));
                error.last_good = Some(address.clone());
            }
        }
    }

    /// Makes the table what the workers are about to be told.
    fn settle(&mut self, owners: &BTreeMap<Address, Name>, snapshot: &Snapshot) {
        self.bound.retain(|address, bound| {
            let stays = owners.contains_key(address);
            if !stays {
                tracing::info!(listener = %bound.owner, %address, "listener removed");
            }
            stays
        });
        for (address, bound) in &mut self.bound {
            let Some(owner) = owners.get(address) else {
                continue;
            };
            if bound.owner != *owner {
                tracing::info!(from = %bound.owner, to = %owner, %address, "the socket goes on under another listener");
                bound.owner = Arc::clone(owner);
            }
            let wants = snapshot.listeners.get(owner).and_then(|l| mode(&l.address));
            if let (Some(file), Some(mode)) = (&bound.file, wants)
                && bound.mode != wants
            {
                bound.mode = wants;
                if let Err(error) = file.set_mode(mode) {
                    tracing::error!(listener = %owner, %error, "the socket's mode cannot be set");
                }
            }
        }
    }
}

/// Which listener gets which address. Of two with one address it is the one that has it, else the first
/// by name; the other is an error.
fn assign(
    snapshot: &Snapshot,
    bound: &BTreeMap<Address, Bound>,
    listens: impl Fn(&Listener) -> bool,
) -> (BTreeMap<Address, Name>, Vec<BindError>) {
    let mut wanted: BTreeMap<Address, Name> = BTreeMap::new();
    let mut errors = Vec::new();
    for listener in snapshot.listeners.values().filter(|listener| listens(listener)) {
        let address = with_mode(&listener.address, None);
        let name = Arc::clone(&listener.name);
        let Some(first) = wanted.get_mut(&address) else {
            wanted.insert(address, name);
            continue;
        };
        let has_it = bound.get(&address).is_some_and(|bound| bound.owner == name);
        let refused = if has_it {
            std::mem::replace(first, name)
        } else {
            name
        };
        errors.push(BindError {
            listener: refused,
            holder: Some(format!("listener {first} of the same configuration")),
            address,
            last_good: None,
            source: io::ErrorKind::AddrInUse.into(),
        });
    }
    (wanted, errors)
}

fn is_stopped(stopped: Option<StopListeners>, listener: &Listener) -> bool {
    match stopped {
        None => false,
        Some(StopListeners::All) => true,
        Some(StopListeners::Inbound) => listener.direction == Direction::Inbound,
    }
}

/// The same address with other permission bits; they are no part of what is bound.
fn with_mode(address: &Address, mode: Option<u32>) -> Address {
    match address {
        Address::Socket(_) => address.clone(),
        Address::Pipe { path, .. } => Address::Pipe {
            path: path.clone(),
            mode,
        },
    }
}

fn mode(address: &Address) -> Option<u32> {
    match address {
        Address::Pipe { mode, .. } => *mode,
        Address::Socket(_) => None,
    }
}

/// Whether one of two TCP addresses is the wildcard of the other, so that the kernel takes both only
/// from sockets that agreed to share.
fn covers(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Socket(a), Address::Socket(b)) => {
            a.port() == b.port() && (a.ip().is_unspecified() || b.ip().is_unspecified())
        }
        _ => false,
    }
}

fn bind_error(listener: Name, address: Address, source: io::Error) -> BindError {
    let holder = match &address {
        Address::Socket(address) if source.kind() == io::ErrorKind::AddrInUse => holder::of(*address),
        Address::Socket(_) | Address::Pipe { .. } => None,
    };
    BindError {
        listener,
        address,
        holder,
        last_good: None,
        source,
    }
}
