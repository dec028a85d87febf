//! What the client tells about itself: log lines, the status of the source, counters.
//!
//! Owns the names: Envoy's statistics where it has them for a whole service (CDS, LDS, the stream);
//! what it counts for a single cluster, route or secret is the store's to count.

use std::collections::BTreeMap;

use super::ResourceKind;
use super::leg::Failure;
use super::subscription::Outcome;
use crate::control::StatusPublisher;
use crate::telemetry::metrics::{ControlPlaneMetrics, Counter, Scope, registry};

/// The watch of the stream that serves.
const STREAM: &str = "ads";
/// The watch of the stream that is to take its place.
const NEXT: &str = "ads with the new token";
/// The only state of a kind that is worth a watch of its own.
const REFUSED: &str = "refused";

pub(super) struct Reporter {
    status: StatusPublisher,
    /// What was refused last and not accepted since.
    refused: BTreeMap<ResourceKind, String>,
    control_plane: ControlPlaneMetrics,
    clusters: UpdateMetrics,
    listeners: UpdateMetrics,
}

/// `….update_…` of CDS or LDS.
struct UpdateMetrics {
    attempt: Counter,
    success: Counter,
    failure: Counter,
    rejected: Counter,
    _scope: Scope,
}

impl UpdateMetrics {
    fn new(service: &str) -> Self {
        let scope = registry().scope(service);
        Self {
            attempt: scope.counter("update_attempt"),
            success: scope.counter("update_success"),
            failure: scope.counter("update_failure"),
            rejected: scope.counter("update_rejected"),
            _scope: scope,
        }
    }
}

impl Reporter {
    pub(super) fn new(status: StatusPublisher) -> Self {
        status.waiting(STREAM, "the first response");
        let reporter = Self {
            status,
            refused: BTreeMap::new(),
            control_plane: ControlPlaneMetrics::new(),
            clusters: UpdateMetrics::new("cluster_manager.cds."),
            listeners: UpdateMetrics::new("listener_manager.lds."),
        };
        for service in [&reporter.clusters, &reporter.listeners] {
            service.attempt.increment(1);
        }
        reporter.connected(false);
        reporter
    }

    /// What is counted for a whole service; what is counted for a cluster, route or secret is not ours.
    fn updates(&self, kind: ResourceKind) -> Option<&UpdateMetrics> {
        match kind {
            ResourceKind::Cluster => Some(&self.clusters),
            ResourceKind::Listener => Some(&self.listeners),
            ResourceKind::Endpoint | ResourceKind::Secret | ResourceKind::Route => None,
        }
    }

    fn connected(&self, is_connected: bool) {
        self.control_plane.connected_state.set(u64::from(is_connected));
    }

    pub(super) fn opened(&self, place: &str) {
        tracing::debug!(place, "an ADS stream is open");
        self.connected(true);
    }

    pub(super) fn failed(&self, failure: &Failure, holds_something: bool) {
        let (kind, why) = (failure.kind(), failure.to_string());
        self.connected(false);
        ended(kind);
        for service in [&self.clusters, &self.listeners] {
            service.attempt.increment(1);
            service.failure.increment(1);
        }
        let news = self.status.failing(STREAM, kind, &why);
        if !news.changed {
            tracing::debug!(why, "no ADS stream");
        } else if holds_something {
            tracing::warn!(kind, why, "no ADS stream; the last good configuration goes on");
        } else {
            tracing::warn!(kind, why, "no ADS stream; waiting for the first configuration");
        }
    }

    pub(super) fn next_failed(&self, failure: &Failure) {
        let (kind, why) = (failure.kind(), failure.to_string());
        ended(kind);
        if self.status.failing(NEXT, kind, &why).changed {
            tracing::warn!(
                kind,
                why,
                "the new token or target does not work; the old stream goes on"
            );
        }
    }

    pub(super) fn next_is_awaited(&self) {
        tracing::info!("a new token or target: trying it beside the old stream");
        self.status.waiting(NEXT, "its first response");
    }

    pub(super) fn next_took_over(&self, place: &str) {
        tracing::info!(place, "the new token or target is used from now on");
        self.status.forget(NEXT);
        self.connected(true);
    }

    pub(super) fn next_is_gone(&self) {
        self.status.forget(NEXT);
    }

    /// A response arrived by the stream that serves.
    pub(super) fn received(&mut self, place: &str, outcome: &Outcome) {
        if let Some(since) = self.status.current(STREAM, None).was_failing {
            let seconds = since.elapsed().as_secs();
            tracing::info!(place, seconds, "the control plane answers again");
        }
        self.outcome(outcome);
    }

    /// What became of a response.
    pub(super) fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Accepted {
                kind,
                changed,
                removed,
            } => {
                if let Some(updates) = self.updates(*kind) {
                    updates.attempt.increment(1);
                    updates.success.increment(1);
                }
                let xds = kind.abbreviation();
                tracing::debug!(xds, changed, removed, "a response is accepted");
                if self.refused.remove(kind).is_some() {
                    tracing::info!(xds, "what the control plane sends is accepted again");
                    self.status.forget(&watch(*kind));
                }
            }
            Outcome::Refused { kind, refused } => {
                if let Some(updates) = self.updates(*kind) {
                    updates.attempt.increment(1);
                    updates.rejected.increment(1);
                }
                let (xds, why) = (kind.abbreviation(), &refused.message);
                self.status.failing(&watch(*kind), REFUSED, why);
                if self.refused.insert(*kind, why.clone()).as_ref() != Some(why) {
                    tracing::error!(
                        xds,
                        why,
                        "a response is refused; the last good configuration goes on"
                    );
                }
            }
            Outcome::Replayed { kind } => {
                let xds = kind.abbreviation();
                tracing::warn!(xds, "a response came twice and is not applied again");
            }
            Outcome::Unasked => tracing::warn!("a response of a type that was not asked for is ignored"),
        }
    }
}

fn watch(kind: ResourceKind) -> String {
    format!("{STREAM} {kind}")
}

fn ended(kind: &'static str) {
    metrics::counter!("attache_xds_stream_failed_total", "reason" => kind).increment(1);
}
