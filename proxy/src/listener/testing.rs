//! A manager with real workers and hand-made snapshots, for tests.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::manager::ListenerManager;
use super::worker::{Drained, WorkerHandle};
use crate::limit::Limits;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{
    Address, Direction, FilterChain, Listener, ListenerFilters, TcpProxy, Terminal,
};
use crate::model::{Cluster, ClusterLoadAssignment, Endpoint, Snapshot, Target};
use crate::snapshot::{Publisher, channel};

/// A manager with its workers, on the test's own thread.
pub(super) struct Proxy {
    pub(super) publisher: Publisher,
    pub(super) manager: ListenerManager,
    pub(super) workers: Rc<[WorkerHandle]>,
}

/// A chain to a cluster.
pub(super) fn chain(name: &str, matches: FilterChainMatch, cluster: &str) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: name.into(),
        matches,
        transport: None,
        filters: vec![],
        terminal: Terminal::TcpProxy(TcpProxy::to(cluster.into(), cluster.into())),
    })
}

/// A listener whose one chain leads to the cluster `app`.
pub(super) fn listener(name: &str, address: Address) -> Listener {
    Listener {
        name: name.into(),
        address,
        direction: Direction::Outbound,
        stat_prefix: None,
        filters: ListenerFilters::default(),
        filter_chains: vec![chain("", FilterChainMatch::default(), "app")],
        default_filter_chain: None,
        exact_balance: false,
        access_log: vec![],
    }
}

/// A snapshot with these listeners; each cluster is its name and its one endpoint.
pub(super) fn snapshot(listeners: Vec<Listener>, clusters: &[(&str, SocketAddr)]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    for listener in listeners {
        snapshot
            .listeners
            .insert(listener.name.clone(), Arc::new(listener));
    }
    for (name, address) in clusters {
        let cluster = Cluster {
            name: (*name).into(),
            ..Cluster::default()
        };
        snapshot.clusters.insert((*name).into(), Arc::new(cluster));
        let endpoint = Endpoint {
            address: Target::Address(Address::Socket(*address)),
            weight: 1,
            healthy: true,
            priority: 0,
            hostname: None,
        };
        let assignment = ClusterLoadAssignment {
            endpoints: vec![endpoint],
            ..ClusterLoadAssignment::default()
        };
        snapshot.endpoints.insert((*name).into(), Arc::new(assignment));
    }
    Arc::new(snapshot)
}

impl Proxy {
    pub(super) fn new(workers: usize) -> Self {
        let (publisher, reader) = channel();
        let workers: Rc<[WorkerHandle]> = WorkerHandle::start(workers, &Limits::default()).unwrap().into();
        Self {
            publisher,
            manager: ListenerManager::new(reader, Rc::clone(&workers)),
            workers,
        }
    }

    /// Publishes and runs the manager until `until` is ready.
    pub(super) async fn serve<T>(&mut self, snapshot: Arc<Snapshot>, until: impl Future<Output = T>) -> T {
        self.publisher.publish(snapshot);
        tokio::select! {
            () = self.manager.run() => panic!("a worker ended"),
            value = until => value,
        }
    }

    pub(super) async fn drain(&self, deadline: Duration) -> Vec<Drained> {
        let drained: Vec<_> = self.workers.iter().map(|worker| worker.drain(deadline)).collect();
        let mut all = Vec::new();
        for worker in drained {
            all.push(worker.await.unwrap());
        }
        all
    }
}

pub(super) fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

pub(super) fn tcp(address: SocketAddr) -> Address {
    Address::Socket(address)
}

/// An app that writes its name and ends once its peer has.
pub(super) async fn app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
    address
}

/// What an app behind `address` says, once there is one.
pub(super) async fn hears(address: SocketAddr, name: &str) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            let mut heard = vec![0; name.len()];
            if stream.read_exact(&mut heard).await.is_ok() && heard == name.as_bytes() {
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

pub(super) async fn refused(address: SocketAddr) {
    loop {
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            _ => tokio::task::yield_now().await,
        }
    }
}
