//! Whether the app behind an inbound listener still takes connections, known before the peer gets anything.
//!
//! Nomad stops the app first and the sidecar after it. A peer that is refused before its handshake goes to
//! another instance; one that is cut after it has lost a request. So before each handshake the kernel is
//! asked whether anything listens where the app did (some microseconds, of which the app notices nothing),
//! and while there is doubt the app is dialled first and that connection kept for the relay. Without
//! doubt strangers cause no connection to the app.
//!
//! Owns what is known of the local endpoints of one worker's inbound listeners.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::model::http::Routes;
use crate::model::listener::{Address, Direction, FilterChain, Listener, Terminal};
use crate::model::route::{ClusterSpecifier, Route, RouteDecision};
use crate::model::{ClusterKind, Name, Snapshot, Target};
use crate::net::sock_diag::SockDiag;

/// The local apps of a worker, by the cluster that leads to them.
#[derive(Debug)]
pub struct LocalApps {
    by_cluster: RefCell<BTreeMap<Name, Rc<LocalApp>>>,
    diag: Option<SockDiag>,
}

/// One local endpoint.
#[derive(Debug)]
pub struct LocalApp {
    /// The cluster that leads to it.
    pub cluster: Name,
    address: SocketAddr,
    /// It refused the last connection.
    refused: Cell<bool>,
    /// Somebody was seen to listen there, so that nobody listening means something: an address of another
    /// network namespace, or one that netfilter redirects, never shows a listener.
    seen: Cell<bool>,
}

impl Default for LocalApps {
    fn default() -> Self {
        Self {
            by_cluster: RefCell::default(),
            diag: SockDiag::open(),
        }
    }
}

impl LocalApps {
    /// Takes the local endpoints of a snapshot; what is known of those that stay is kept.
    pub fn apply(&self, snapshot: &Snapshot) {
        let mut apps = self.by_cluster.borrow_mut();
        let old = std::mem::take(&mut *apps);
        for listener in snapshot.listeners.values() {
            let clusters = listener
                .chains()
                .filter_map(|chain| local_cluster(listener, chain));
            for cluster in clusters {
                let Some(address) = local_endpoint(snapshot, cluster) else {
                    continue;
                };
                let known = old.get(cluster).filter(|app| app.address == address);
                let app = known.map_or_else(|| Rc::new(LocalApp::new(cluster, address)), Rc::clone);
                apps.insert(Name::clone(cluster), app);
            }
        }
    }

    /// The app that a listener's chain leads to.
    pub fn of(&self, listener: &Listener, chain: &FilterChain) -> Option<Rc<LocalApp>> {
        let cluster = local_cluster(listener, chain)?;
        self.by_cluster.borrow().get(cluster).cloned()
    }

    /// Whether an app is to be dialled before its peer is answered.
    pub fn is_doubtful(&self, app: &LocalApp) -> bool {
        if app.refused.get() {
            return true;
        }
        match self.listens(app) {
            Some(true) => {
                app.seen.set(true);
                false
            }
            Some(false) => app.seen.get(),
            None => false,
        }
    }

    /// Notes how a dial of an app ended.
    pub fn dialled(&self, app: &LocalApp, connected: bool) {
        // Where somebody listens, something else failed, such as a circuit breaker.
        app.refused.set(!connected && self.listens(app) != Some(true));
    }

    fn listens(&self, app: &LocalApp) -> Option<bool> {
        self.diag.as_ref()?.listens(app.address)
    }
}

impl LocalApp {
    fn new(cluster: &Name, address: SocketAddr) -> Self {
        Self {
            cluster: Name::clone(cluster),
            address,
            refused: Cell::new(false),
            seen: Cell::new(false),
        }
    }
}

/// The one cluster of an inbound chain with TLS.
fn local_cluster<'a>(listener: &Listener, chain: &'a FilterChain) -> Option<&'a Name> {
    if listener.direction != Direction::Inbound || chain.transport.is_none() {
        return None;
    }
    match &chain.terminal {
        Terminal::TcpProxy(proxy) => match proxy.clusters.as_slice() {
            [one] => Some(&one.name),
            _ => None,
        },
        Terminal::HttpConnectionManager(manager) => {
            let Routes::Inline(table) = &manager.routes else {
                return None;
            };
            let mut clusters = table
                .virtual_hosts()
                .iter()
                .flat_map(|host| &host.routes)
                .map(|route| routed(route));
            let first = clusters.next()??;
            clusters.all(|cluster| cluster == Some(first)).then_some(first)
        }
    }
}

/// The one cluster of a route.
fn routed(route: &Route) -> Option<&Name> {
    match &route.action {
        RouteDecision::Route(action) => match &action.cluster {
            ClusterSpecifier::Cluster(name) => Some(name),
            ClusterSpecifier::Weighted(_) => None,
        },
        RouteDecision::Redirect(_) | RouteDecision::DirectResponse(_) => None,
    }
}

/// The one endpoint of a plain cluster.
fn local_endpoint(snapshot: &Snapshot, cluster: &Name) -> Option<SocketAddr> {
    let config = snapshot.clusters.get(cluster)?;
    if config.transport.is_some() || config.kind != ClusterKind::Endpoints {
        return None;
    }
    match snapshot.endpoints.get(cluster)?.endpoints.as_slice() {
        [one] => match &one.address {
            Target::Address(Address::Socket(address)) => Some(*address),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn doubt_begins_with_a_refusal_or_a_listener_that_is_gone() {
        let apps = LocalApps::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let app = LocalApp::new(&"local_app".into(), address);
        assert!(!apps.is_doubtful(&app));
        // A failure while somebody listens is not the app's refusal.
        apps.dialled(&app, false);
        assert!(!apps.is_doubtful(&app));
        drop(listener);
        assert!(apps.is_doubtful(&app), "it was seen and is gone");
        // Where it never was seen, only a refusal tells.
        let hidden = LocalApp::new(&"local_app".into(), address);
        assert!(!apps.is_doubtful(&hidden));
        apps.dialled(&hidden, false);
        assert!(apps.is_doubtful(&hidden));
        apps.dialled(&hidden, true);
        assert!(!apps.is_doubtful(&hidden));
    }
}
