//! Envoy's statistics of what is subscribed to: of CDS and LDS what is accepted, of endpoints by cluster and
//! routes by name everything.
//!
//! What fails or is refused of CDS and LDS is `report`'s, which hears of it even where the store does not. Owns
//! the handles; what is subscribed to is the store's to say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::assemble::Missing;
use super::store::Store;
use super::{Resource, ResourceKind};
use crate::model::http::Routes;
use crate::model::listener::Terminal;
use crate::model::{FilterChain, Name};
use crate::telemetry::metrics::{ClusterManagerMetrics, SubscriptionMetrics};

/// The handles by kind and name of a resource. Several clusters or listeners may share one: then each counts.
#[derive(Debug)]
pub(super) struct NamedMetrics {
    cds: SubscriptionMetrics,
    lds: SubscriptionMetrics,
    by_name: BTreeMap<(ResourceKind, Name), BTreeMap<Name, SubscriptionMetrics>>,
    /// For `warming_clusters`; the rest of it is counted where snapshots are applied.
    cluster_manager: ClusterManagerMetrics,
}

impl Default for NamedMetrics {
    fn default() -> Self {
        Self {
            cds: SubscriptionMetrics::new("cluster_manager.cds."),
            lds: SubscriptionMetrics::new("listener_manager.lds."),
            by_name: BTreeMap::new(),
            cluster_manager: ClusterManagerMetrics::new(),
        }
    }
}

impl NamedMetrics {
    /// Makes `wanted` the names of this kind that are subscribed to, each with whose it is: a cluster's name in
    /// statistics, or the `stat_prefix` of a connection manager.
    fn subscribe(&mut self, kind: ResourceKind, wanted: &BTreeSet<(Name, Name)>) {
        for ((of, name), all) in &mut self.by_name {
            all.retain(|owner, _| *of != kind || wanted.contains(&(Arc::clone(name), Arc::clone(owner))));
        }
        self.by_name.retain(|_, all| !all.is_empty());
        for (name, owner) in wanted {
            let all = self.by_name.entry((kind, Arc::clone(name))).or_default();
            all.entry(Arc::clone(owner)).or_insert_with(|| {
                let metrics = match kind {
                    ResourceKind::Route => SubscriptionMetrics::of_routes(owner, name),
                    _ => SubscriptionMetrics::of_cluster(owner),
                };
                metrics.attempt.increment(1);
                metrics
            });
        }
    }

    /// A response was taken, in so long a time.
    pub(super) fn accepted(&self, kind: ResourceKind, changed: &[(Name, String)], took: Duration) {
        match kind {
            ResourceKind::Cluster => accepted(&self.cds, changed, took),
            ResourceKind::Listener => accepted(&self.lds, changed, took),
            ResourceKind::Endpoint | ResourceKind::Route | ResourceKind::Secret => {
                for one in changed {
                    for metrics in self.of(kind, &one.0) {
                        accepted(metrics, std::slice::from_ref(one), took);
                    }
                }
            }
        }
    }

    /// A response was refused.
    pub(super) fn rejected(&self, kind: ResourceKind, names: &[(Name, String)]) {
        for metrics in names.iter().flat_map(|(name, _)| self.of(kind, name)) {
            metrics.attempt.increment(1);
            metrics.rejected.increment(1);
        }
    }

    /// The stream that all come by failed.
    pub(super) fn failed(&self) {
        for metrics in self.by_name.values().flat_map(BTreeMap::values) {
            metrics.attempt.increment(1);
            metrics.failure.increment(1);
        }
    }

    /// So many clusters wait for their endpoints.
    pub(super) fn warming(&self, clusters: usize) {
        self.cluster_manager.warming.set(clusters as u64);
    }

    fn of(&self, kind: ResourceKind, name: &Name) -> impl Iterator<Item = &SubscriptionMetrics> {
        let all = self.by_name.get(&(kind, Arc::clone(name)));
        all.into_iter().flat_map(BTreeMap::values)
    }
}

impl Store {
    /// Tells the statistics what is subscribed to by name.
    pub(super) fn count_subscribed(&mut self) {
        let clusters = self.clusters.values().filter(|held| !held.is_static);
        let endpoints = clusters.filter_map(|held| {
            let decoded = held.value.as_ref()?;
            let service = &decoded.eds.as_ref()?.service_name;
            Some((Arc::clone(service), Arc::clone(decoded.cluster.stat_name())))
        });
        let endpoints = endpoints.collect();
        let listeners = self.listeners.values().filter_map(|held| held.value.as_ref());
        let routes = listeners.flat_map(|listener| listener.chains().filter_map(|chain| routes_of(chain)));
        let routes = routes.collect();
        self.metrics.subscribe(ResourceKind::Endpoint, &endpoints);
        self.metrics.subscribe(ResourceKind::Route, &routes);
    }

    /// Counts what did not come in time.
    pub(super) fn count_timed_out(&self, missing: &Missing) {
        let (kind, name) = match missing {
            Missing::Cluster(_) => return,
            Missing::Routes(name) => (ResourceKind::Route, Some(name)),
            Missing::Endpoints(cluster) => {
                let decoded = self.clusters.get(cluster).and_then(|held| held.value.as_ref());
                let eds = decoded.and_then(|decoded| decoded.eds.as_ref());
                (ResourceKind::Endpoint, eds.map(|eds| &eds.service_name))
            }
        };
        for metrics in name.iter().flat_map(|name| self.metrics.of(kind, name)) {
            metrics.init_fetch_timeout.increment(1);
        }
    }
}

/// The route configuration that a chain asks for, and for whom.
fn routes_of(chain: &FilterChain) -> Option<(Name, Name)> {
    let Terminal::HttpConnectionManager(manager) = &chain.terminal else {
        return None;
    };
    match &manager.routes {
        Routes::Rds(name) => Some((Arc::clone(name), Arc::clone(&manager.stat_prefix))),
        Routes::Inline(_) => None,
    }
}

/// Counts an update that was taken. Consul gives no version of a response as a whole, so Envoy shows one
/// that never changes; here it is of what the response brought.
fn accepted(metrics: &SubscriptionMetrics, changed: &[(Name, String)], took: Duration) {
    metrics.attempt.increment(1);
    metrics.success.increment(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics
        .time
        .set(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    metrics.duration.record(took.as_secs_f64() * 1000.0);
    if !changed.is_empty() {
        metrics.version.set(hash(changed));
    }
}

/// FNV-1a: the same in every build, which std's hasher does not promise.
fn hash(changed: &[(Name, String)]) -> u64 {
    let bytes = changed
        .iter()
        .flat_map(|(name, version)| [&**name, "\0", version, "\0"]);
    bytes
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// Names and versions of resources.
pub(super) fn versions(resources: &[Resource]) -> Vec<(Name, String)> {
    let version = |resource: &Resource| (Name::from(resource.name.as_str()), resource.version.clone());
    resources.iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::registry;
    use crate::telemetry::metrics::registry::Value;

    fn counted(what: &str) -> Option<u64> {
        let name = format!("cluster.xds-metrics.{what}");
        match registry().collect(|found| found == name).first()?.value {
            Value::Counter { total, .. } => Some(total),
            Value::Gauge(level) => Some(level.cast_unsigned()),
            _ => None,
        }
    }

    #[test]
    fn a_clusters_endpoints_are_counted_while_they_are_subscribed_to() {
        let mut metrics = NamedMetrics::default();
        let kind = ResourceKind::Endpoint;
        let name: Name = "service".into();
        let wanted = BTreeSet::from([(Arc::clone(&name), "xds-metrics".into())]);
        metrics.subscribe(kind, &wanted);
        metrics.subscribe(kind, &wanted);
        assert_eq!(counted("update_attempt"), Some(1));
        let changed = [(Arc::clone(&name), "1".to_owned())];
        metrics.accepted(kind, &changed, Duration::ZERO);
        let first = counted("version").unwrap();
        metrics.accepted(kind, &[(Arc::clone(&name), "2".to_owned())], Duration::ZERO);
        assert_ne!(counted("version").unwrap(), first);
        metrics.rejected(kind, &changed);
        metrics.rejected(ResourceKind::Route, &changed);
        metrics.failed();
        for (what, count) in [
            ("update_attempt", 5),
            ("update_success", 2),
            ("update_rejected", 1),
            ("update_failure", 1),
        ] {
            assert_eq!(counted(what), Some(count), "{what}");
        }
        metrics.subscribe(kind, &BTreeSet::new());
        assert_eq!(counted("update_attempt"), None);
    }
}
