//! What the control thread counts as snapshots come: listeners and clusters that came, changed and went.
//! Endpoints are counted where they are known: in the data plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClusterManagerMetrics, ListenerManagerMetrics};
use crate::model::{Cluster, Listener, Name, Snapshot};

/// The counts, with what they compare the next snapshot to.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    /// `listener_manager.…`; what a snapshot does not tell is for the listener manager to count.
    pub listener_manager: ListenerManagerMetrics,
    /// `cluster_manager.…`.
    pub cluster_manager: ClusterManagerMetrics,
    listeners: BTreeMap<Name, Arc<Listener>>,
    clusters: BTreeMap<Name, Arc<Cluster>>,
}

impl SnapshotMetrics {
    /// Takes a newer snapshot. Snapshots that were skipped count as one with it.
    pub fn apply(&mut self, snapshot: &Snapshot) {
        self.apply_listeners(snapshot);
        self.apply_clusters(snapshot);
    }

    fn apply_listeners(&mut self, snapshot: &Snapshot) {
        let manager = &self.listener_manager;
        self.listeners.retain(|name, _| {
            let stays = snapshot.listeners.contains_key(name);
            if !stays {
                manager.removed.increment(1);
            }
            stays
        });
        for (name, config) in &snapshot.listeners {
            match self.listeners.insert(Arc::clone(name), Arc::clone(config)) {
                None => manager.added.increment(1),
                Some(old) if Arc::ptr_eq(&old, config) || old == *config => {}
                Some(old) if old.address == config.address => {
                    manager.modified.increment(1);
                    manager.in_place_updated.increment(1);
                }
                Some(_) => manager.modified.increment(1),
            }
        }
        manager.active.set(count(self.listeners.len()));
    }

    fn apply_clusters(&mut self, snapshot: &Snapshot) {
        let manager = &self.cluster_manager;
        self.clusters.retain(|name, _| {
            let stays = snapshot.clusters.contains_key(name);
            if !stays {
                manager.removed.increment(1);
            }
            stays
        });
        for (name, config) in &snapshot.clusters {
            match self.clusters.insert(Arc::clone(name), Arc::clone(config)) {
                None => manager.added.increment(1),
                Some(old) if Arc::ptr_eq(&old, config) || old == *config => {}
                Some(_) => manager.modified.increment(1),
            }
        }
        manager.active.set(count(self.clusters.len()));
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::registry;
    use crate::telemetry::metrics::registry::Value;

    fn counted(name: &str) -> u64 {
        match registry()
            .collect(|found| found == name)
            .first()
            .map(|s| &s.value)
        {
            Some(Value::Counter { total, .. }) => *total,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn clusters_that_come_change_and_go() {
        let mut metrics = SnapshotMetrics::default();
        let events =
            || ["added", "modified", "removed"].map(|e| counted(&format!("cluster_manager.cluster_{e}")));
        let name: Name = "snapshot-test".into();
        let mut snapshot = Snapshot::default();
        let mut before = events();
        let mut apply = |snapshot: &Snapshot, grown: [bool; 3]| {
            metrics.apply(snapshot);
            let now = events();
            // Other tests count too.
            for ((before, now), grown) in before.iter().zip(now).zip(grown) {
                assert!(!grown || now > *before, "{before:?} {now:?}");
            }
            before = now;
        };
        snapshot.clusters.insert(Arc::clone(&name), Arc::default());
        apply(&snapshot, [true, false, false]);
        let panicky = Cluster {
            panic_threshold: 7,
            ..Cluster::default()
        };
        snapshot.clusters.insert(name, Arc::new(panicky));
        apply(&snapshot, [false, true, false]);
        snapshot.clusters.clear();
        apply(&snapshot, [false, false, true]);
    }
}
