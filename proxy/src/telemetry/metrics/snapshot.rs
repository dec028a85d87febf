//! What the control thread counts as snapshots come: listeners and clusters that came, changed and went,
//! and the endpoints of clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClusterManagerMetrics, ClusterMembership, ListenerManagerMetrics};
use crate::model::{Cluster, ClusterLoadAssignment, Listener, Name, Snapshot};

/// The counts, with what they compare the next snapshot to.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    /// `listener_manager.…`; what a snapshot does not tell is for the listener manager to count.
    pub listener_manager: ListenerManagerMetrics,
    /// `cluster_manager.…`.
    pub cluster_manager: ClusterManagerMetrics,
    listeners: BTreeMap<Name, Arc<Listener>>,
    clusters: BTreeMap<Name, Known>,
}

#[derive(Debug)]
struct Known {
    config: Arc<Cluster>,
    assignment: Option<Arc<ClusterLoadAssignment>>,
    membership: ClusterMembership,
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
            let assignment = snapshot.endpoints.get(name);
            match self.clusters.get_mut(name) {
                None => {
                    manager.added.increment(1);
                    let stat_name = config.alt_stat_name.as_ref().unwrap_or(name);
                    let mut known = Known {
                        config: Arc::clone(config),
                        assignment: None,
                        membership: ClusterMembership::new(stat_name),
                    };
                    known.take(assignment);
                    self.clusters.insert(Arc::clone(name), known);
                }
                Some(known) => {
                    if !Arc::ptr_eq(&known.config, config) && known.config != *config {
                        manager.modified.increment(1);
                    }
                    known.config = Arc::clone(config);
                    known.take(assignment);
                }
            }
        }
        manager.active.set(count(self.clusters.len()));
    }
}

impl Known {
    /// Takes newer endpoints. An assignment that is not there (any more) changes nothing.
    fn take(&mut self, assignment: Option<&Arc<ClusterLoadAssignment>>) {
        let Some(assignment) = assignment else { return };
        if self
            .assignment
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, assignment))
        {
            return;
        }
        let members = |assignment: &ClusterLoadAssignment| {
            let mut members: Vec<_> = assignment.endpoints.iter().map(|e| e.address.clone()).collect();
            members.sort();
            members
        };
        let before = self.assignment.as_deref().map(members).unwrap_or_default();
        if before != members(assignment) {
            self.membership.changes.increment(1);
        }
        let endpoints = &assignment.endpoints;
        let healthy = endpoints.iter().filter(|endpoint| endpoint.healthy).count();
        let weight = endpoints.iter().map(|endpoint| endpoint.weight).max();
        self.membership.total.set(count(endpoints.len()));
        self.membership.healthy.set(count(healthy));
        self.membership.max_host_weight.set(weight.unwrap_or(0).into());
        self.assignment = Some(Arc::clone(assignment));
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::listener::Address;
    use crate::model::{Endpoint, Target};
    use crate::telemetry::metrics::registry;
    use crate::telemetry::metrics::registry::Value;

    fn shown(prefix: &str) -> BTreeMap<String, u64> {
        let samples = registry().collect(|name| name.starts_with(prefix));
        samples
            .into_iter()
            .filter(|sample| sample.used)
            .filter_map(|sample| match sample.value {
                Value::Counter { total, .. } => Some((sample.name[prefix.len()..].to_owned(), total)),
                Value::Gauge(level) => Some((sample.name[prefix.len()..].to_owned(), level.cast_unsigned())),
                _ => None,
            })
            .collect()
    }

    fn assignment(endpoints: &[(u16, u32, bool)]) -> Arc<ClusterLoadAssignment> {
        let endpoint = |&(port, weight, healthy): &(u16, u32, bool)| Endpoint {
            address: Target::Address(Address::Socket(([127, 0, 0, 1], port).into())),
            weight,
            healthy,
            priority: 0,
        };
        Arc::new(ClusterLoadAssignment {
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..ClusterLoadAssignment::default()
        })
    }

    #[test]
    fn endpoints_of_a_cluster_that_comes_and_goes() {
        let name: Name = "snapshot-test".into();
        let mut snapshot = Snapshot::default();
        let cluster = Cluster {
            name: Arc::clone(&name),
            alt_stat_name: Some("snapshot-alt".into()),
            ..Cluster::default()
        };
        snapshot.clusters.insert(Arc::clone(&name), Arc::new(cluster));
        let mut metrics = SnapshotMetrics::default();
        metrics.apply(&snapshot);
        let prefix = "cluster.snapshot-alt.";
        assert_eq!(shown(prefix), BTreeMap::new());

        let one = assignment(&[(1, 3, true), (2, 1, false)]);
        snapshot.endpoints.insert(Arc::clone(&name), one);
        metrics.apply(&snapshot);
        metrics.apply(&snapshot);
        let wanted = |total, healthy, weight, changes| {
            let named = [
                ("max_host_weight", weight),
                ("membership_change", changes),
                ("membership_healthy", healthy),
                ("membership_total", total),
            ];
            BTreeMap::from(named.map(|(name, value)| (name.to_owned(), value)))
        };
        assert_eq!(shown(prefix), wanted(2, 1, 3, 1));

        // Another health is no other member.
        snapshot
            .endpoints
            .insert(Arc::clone(&name), assignment(&[(2, 1, true), (1, 3, true)]));
        metrics.apply(&snapshot);
        assert_eq!(shown(prefix), wanted(2, 2, 3, 1));
        snapshot.endpoints.insert(Arc::clone(&name), assignment(&[]));
        metrics.apply(&snapshot);
        assert_eq!(shown(prefix), wanted(0, 0, 0, 2));

        snapshot.clusters.clear();
        metrics.apply(&snapshot);
        assert_eq!(shown(prefix), BTreeMap::new());
        let clusters = shown("cluster_manager.");
        assert!(
            clusters["cluster_added"] >= 1 && clusters["cluster_removed"] >= 1,
            "{clusters:?}"
        );
    }
}
