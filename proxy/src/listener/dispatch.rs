//! From an accepted socket to the task that serves it, in this worker or in another.
//!
//! Owns nothing of a connection: it is handed on at once.

use std::rc::Rc;

use tokio::sync::mpsc::WeakUnboundedSender;
use tokio::task::spawn_local;

use super::active::ActiveListener;
use super::balance::Place;
use super::connection::serve;
use super::worker::Command;
use crate::http::HttpWorker;
use crate::model::{Downstream, Name};
use crate::net::PlainStream;
use crate::upstream::ClusterManager;

/// What the accept loops of a worker know of it and of the others.
#[derive(Debug)]
pub struct Dispatch {
    /// This worker's number.
    pub index: usize,
    /// This worker's clusters.
    pub clusters: Rc<ClusterManager>,
    /// What its HTTP connections share.
    pub http: Rc<HttpWorker>,
    /// All workers, by number. Weak: a worker ends when nobody else can reach it.
    pub workers: Vec<WeakUnboundedSender<Command>>,
}

/// A connection on its way from one worker to another.
#[derive(Debug)]
pub struct HandedOver {
    /// Who serves it.
    pub listener: Name,
    /// Whose connection it is.
    pub downstream: Downstream,
    socket: Detached,
    place: Place,
}

/// A socket of no runtime.
#[derive(Debug)]
enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Dispatch {
    /// Has a connection served by this worker, or under `exact_balance` by the one with the fewest.
    pub fn balanced(&self, stream: PlainStream, downstream: Downstream, listener: Rc<ActiveListener>) {
        if self.workers.len() < 2 || !listener.config().listener.exact_balance {
            self.spawn(stream, downstream, listener, None);
            return;
        }
        let place = listener.balance.place(self.index);
        if place.worker == self.index {
            self.spawn(stream, downstream, listener, Some(place));
            return;
        }
        let worker = self
            .workers
            .get(place.worker)
            .and_then(WeakUnboundedSender::upgrade);
        let Some((worker, socket)) = worker.zip(detach(stream)) else {
            return;
        };
        let handed_over = HandedOver {
            listener: listener.name.clone(),
            downstream,
            socket,
            place,
        };
        // A worker that has ended gives it back.
        if let Err(refused) = worker.send(Command::Serve(handed_over))
            && let Command::Serve(back) = refused.0
        {
            self.take(back, listener);
        }
    }

    /// Has a connection served by this worker.
    pub fn here(&self, stream: PlainStream, downstream: Downstream, listener: Rc<ActiveListener>) {
        let place = listener
            .config()
            .listener
            .exact_balance
            .then(|| listener.balance.place_at(self.index));
        self.spawn(stream, downstream, listener, place);
    }

    /// Serves what another worker handed over.
    pub fn take(&self, handed_over: HandedOver, listener: Rc<ActiveListener>) {
        if let Some(stream) = attach(handed_over.socket) {
            self.spawn(stream, handed_over.downstream, listener, Some(handed_over.place));
        }
    }

    fn spawn(
        &self,
        stream: PlainStream,
        downstream: Downstream,
        listener: Rc<ActiveListener>,
        place: Option<Place>,
    ) {
        let serving = listener.serving();
        let (clusters, http) = (Rc::clone(&self.clusters), Rc::clone(&self.http));
        spawn_local(async move {
            serve(stream, downstream, listener, clusters, http).await;
            drop((serving, place));
        });
    }
}

fn detach(stream: PlainStream) -> Option<Detached> {
    match stream {
        PlainStream::Tcp(stream) => stream.into_std().ok().map(Detached::Tcp),
        PlainStream::Unix(stream) => stream.into_std().ok().map(Detached::Unix),
    }
}

fn attach(socket: Detached) -> Option<PlainStream> {
    match socket {
        Detached::Tcp(socket) => tokio::net::TcpStream::from_std(socket).ok().map(PlainStream::Tcp),
        Detached::Unix(socket) => tokio::net::UnixStream::from_std(socket)
            .ok()
            .map(PlainStream::Unix),
    }
}
