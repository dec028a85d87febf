//! Counters, gauges and histograms under Envoy's names, and the handles that count.
//!
//! Each thread that uses a statistic has a share of its own, so counting never contends, and a scrape
//! sums the shares. Handles are resolved once a listener or cluster, never on a connection's path.
//! Owns the process's registry; the formats are [`render`]'s, the tags [`tags`]'.

pub mod cell;
mod cluster;
mod consul;
mod facade;
pub mod http;
mod listener;
pub mod registry;
pub mod render;
mod server;
mod snapshot;
pub mod tags;
mod well_known;

#[cfg(test)]
mod recorded_tests;

use std::sync::LazyLock;

pub use cell::{Counter, Gauge, Histogram};
pub use cluster::{
    CircuitBreakerMetrics, ClusterMembership, ClusterMetrics, DnsMetrics, OutlierMetrics,
    SubscriptionMetrics, UpstreamTlsMetrics,
};
pub use listener::{
    ConnectionLimitMetrics, DownstreamTlsMetrics, ListenerMetrics, RbacMetrics, TcpProxyMetrics,
    listener_address, listener_stat_name,
};
pub use registry::{Registry, Scope};
pub use server::{ClusterManagerMetrics, ControlPlaneMetrics, ListenerManagerMetrics, ServerMetrics};
pub use snapshot::SnapshotMetrics;
pub use tags::StatsConfig;

/// The one registry of a process.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);
    &REGISTRY
}

/// Makes [`registry`] the recorder behind `metrics::counter!` and its kin, with the tags of `config`.
///
/// # Errors
/// When a tag cannot be used; nothing is changed then.
pub fn install(config: &StatsConfig) -> Result<(), tags::TagError> {
    registry().set_rules(tags::TagRules::new(config)?);
    // A second installation in one process (tests) finds the same registry in place.
    let _ = metrics::set_global_recorder(facade::Facade(registry().scope("")));
    Ok(())
}

/// A name as a part of a dotted one, as Envoy writes it: without colons, and without dots at its ends. Nor
/// has it anything that would end a line.
fn sanitized(name: &str) -> String {
    let inner = name.strip_suffix('.').unwrap_or(name);
    let inner = inner.strip_prefix('.').unwrap_or(inner);
    inner
        .replace("://", "_")
        .replace(":/", "_")
        .replace(|c: char| c == ':' || c.is_control(), "_")
}
