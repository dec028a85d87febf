//! Binds the listeners of each snapshot on the control thread and hands the sockets to the workers.
//!
//! Owns the list of what is bound; the sockets themselves belong to the workers.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::worker::WorkerHandle;
use crate::model::listener::Address;
use crate::model::{Name, Snapshot};
use crate::net::{holder, socket};
use crate::snapshot::Reader;
use crate::telemetry::metrics::SnapshotMetrics;

/// How long until a listener that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{address} ({listener}) cannot be bound: {source}{}", holder.as_ref().map(|h| format!("; held by {h}")).unwrap_or_default())]
pub struct BindError {
    /// The listener's name.
    pub listener: Name,
    /// The address.
    pub address: Address,
    /// Who listens there, where that can be told.
    pub holder: Option<String>,
    /// The kernel's reason.
    pub source: io::Error,
}

/// The listeners of a process.
pub struct ListenerManager {
    reader: Reader,
    workers: Rc<[WorkerHandle]>,
    bound: BTreeMap<Name, Address>,
    metrics: SnapshotMetrics,
}

impl ListenerManager {
    /// For these workers.
    pub fn new(reader: Reader, workers: Rc<[WorkerHandle]>) -> Self {
        Self {
            reader,
            workers,
            bound: BTreeMap::new(),
            metrics: SnapshotMetrics::default(),
        }
    }

    /// Waits for the first snapshot and binds its listeners.
    ///
    /// # Errors
    /// The first address that cannot be bound: at the start that is a mistake to be seen, not one to
    /// be lived with.
    pub async fn start(&mut self) -> Result<(), BindError> {
        if let Some(snapshot) = self.reader.next().await {
            match self.apply(&snapshot).into_iter().next() {
                Some(error) => return Err(error),
                None => tracing::info!(listeners = self.bound.len(), "listening"),
            }
        }
        Ok(())
    }

    /// Applies every later snapshot. A listener that cannot be bound is logged and tried again; the
    /// others go on. Returns only when a worker has ended by itself, which is a bug.
    pub async fn run(&mut self) {
        let mut failed = false;
        loop {
            let snapshot = tokio::select! {
                next = self.reader.next() => match next {
                    Some(snapshot) => snapshot,
                    // The source is gone; what is bound stays.
                    None => std::future::pending().await,
                },
                () = sleep(RETRY), if failed => match self.reader.latest() {
                    Some(snapshot) => snapshot,
                    None => continue,
                },
            };
            if self.workers.iter().any(WorkerHandle::is_gone) {
                return;
            }
            let errors = self.apply(&snapshot);
            failed = !errors.is_empty();
            for error in errors {
                tracing::error!(listener = %error.listener, "{error}");
            }
        }
    }

    fn apply(&mut self, snapshot: &std::sync::Arc<Snapshot>) -> Vec<BindError> {
        self.metrics.apply(snapshot);
        let metrics = &self.metrics.listener_manager;
        self.bound.retain(|name, address| {
            let stays = snapshot
                .listeners
                .get(name)
                .is_some_and(|listener| listener.address == *address);
            if !stays {
                tracing::info!(listener = %name, "listener removed");
            }
            stays
        });
        let mut sockets: Vec<Vec<(Name, socket::ListenSocket)>> =
            self.workers.iter().map(|_| Vec::new()).collect();
        let mut errors = Vec::new();
        for listener in snapshot.listeners.values() {
            if self.bound.contains_key(&listener.name) {
                continue;
            }
            match socket::listen(&listener.address, self.workers.len()) {
                Ok(bound) => {
                    metrics.create_success.increment(1);
                    tracing::info!(listener = %listener.name, address = %listener.address, "listener added");
                    self.bound.insert(listener.name.clone(), listener.address.clone());
                    for (worker, socket) in sockets.iter_mut().zip(bound) {
                        worker.push((listener.name.clone(), socket));
                    }
                }
                Err(source) => {
                    metrics.create_failure.increment(1);
                    errors.push(bind_error(
                        listener.name.clone(),
                        listener.address.clone(),
                        source,
                    ));
                }
            }
        }
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            worker.apply(std::sync::Arc::clone(snapshot), sockets);
        }
        metrics.workers_started.set(1);
        errors
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
        source,
    }
}
