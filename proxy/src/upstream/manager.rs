//! The clusters of one worker: applies snapshots, answers which endpoints may be dialled.
//!
//! Owns every [`ClusterState`]; a cluster that a snapshot no longer has lives on only in the
//! connections that use it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

use super::cluster::{Availability, ClusterState};
use crate::limit::Limits;
use crate::model::{ClusterKind, Name, Snapshot};
use crate::tls::ConfigCache;

/// Envoy bounds nothing here; a cycle of aggregates in a bad snapshot must not loop.
const MAX_AGGREGATE_DEPTH: u32 = 8;

/// All clusters of one worker.
#[derive(Debug)]
pub struct ClusterManager {
    clusters: RefCell<HashMap<Name, Rc<ClusterState>>>,
    limits: Limits,
    /// Wakes connections that wait for an endpoint, after each snapshot.
    changed: Notify,
}

impl ClusterManager {
    /// Without clusters yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            clusters: RefCell::default(),
            limits,
            changed: Notify::new(),
        }
    }

    /// Takes the clusters and endpoints of a snapshot.
    pub fn apply(&self, snapshot: &Snapshot, tls: &mut ConfigCache) {
        let mut clusters = self.clusters.borrow_mut();
        clusters.retain(|name, _| snapshot.clusters.contains_key(name));
        for (name, config) in &snapshot.clusters {
            let cluster = clusters.entry(name.clone()).or_insert_with(|| {
                let connections = self.limits.get(&format!("cluster {name}"));
                Rc::new(ClusterState::new(config, connections, tls))
            });
            cluster.update(config, tls);
            cluster.update_endpoints(snapshot.endpoints.get(name).map(AsRef::as_ref));
        }
        drop(clusters);
        self.changed.notify_waiters();
    }

    /// The cluster called `name`.
    pub fn get(&self, name: &str) -> Option<Rc<ClusterState>> {
        self.clusters.borrow().get(name).cloned()
    }

    /// The cluster to dial for `name`: itself, or of an aggregate the first with a healthy endpoint.
    /// Where none has one, the cluster with the best prospect: unknown, then the latest lost.
    pub fn resolve(&self, name: &str) -> Option<(Rc<ClusterState>, Availability)> {
        self.resolve_within(name, MAX_AGGREGATE_DEPTH)
    }

    fn resolve_within(&self, name: &str, depth: u32) -> Option<(Rc<ClusterState>, Availability)> {
        let cluster = self.get(name)?;
        let config = cluster.config();
        let ClusterKind::Aggregate(names) = &config.kind else {
            let availability = cluster.availability();
            return Some((cluster, availability));
        };
        let depth = depth.checked_sub(1)?;
        names
            .iter()
            .filter_map(|name| self.resolve_within(name, depth))
            .max_by(|(_, a), (_, b)| rank(a).cmp(&rank(b)).then(std::cmp::Ordering::Greater))
    }

    /// Ready once a snapshot was applied after the call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn rank(availability: &Availability) -> (u8, Option<std::time::Instant>) {
    match availability {
        Availability::Never => (0, None),
        Availability::Lost(at) => (1, Some(*at)),
        Availability::Unknown => (2, None),
        Availability::Endpoints(_) => (3, None),
    }
}
