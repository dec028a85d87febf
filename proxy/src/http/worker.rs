//! What the HTTP connections of a worker share: clusters, pools, route tables by name, and the news of changes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::pool::Pools;
use crate::model::{Name, RouteConfiguration, Snapshot};
use crate::upstream::ClusterManager;

/// One a worker.
#[derive(Debug)]
pub struct HttpWorker {
    pub(super) clusters: Rc<ClusterManager>,
    pub(super) pools: Rc<Pools>,
    routes: RefCell<BTreeMap<Name, Arc<RouteConfiguration>>>,
    /// Told of every snapshot, for streams that live long.
    pub(super) changed: Notify,
}

impl HttpWorker {
    /// Over the worker's clusters.
    pub fn new(clusters: Rc<ClusterManager>) -> Self {
        Self {
            clusters,
            pools: Rc::default(),
            routes: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// Takes the route tables of a snapshot.
    pub fn apply(&self, snapshot: &Snapshot) {
        self.routes.borrow_mut().clone_from(&snapshot.routes);
    }

    /// Listeners and routes are those of a newer snapshot now: streams that newer rules deny are to end.
    pub fn applied(&self) {
        self.changed.notify_waiters();
    }

    /// The route table called `name`; none while it is not known.
    pub(super) fn routes(&self, name: &str) -> Option<Arc<RouteConfiguration>> {
        self.routes.borrow().get(name).cloned()
    }
}
