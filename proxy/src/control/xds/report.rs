//! What the client tells about itself: log lines, the status of the source, counters.
//!
//! Owns Envoy's statistics of the stream, and of CDS and LDS what fails or is refused; what is accepted, and
//! single clusters and routes, are `metrics`'.

use std::collections::BTreeMap;

use super::ResourceKind;
use super::leg::Failure;
use super::subscription::Outcome;
use crate::control::StatusPublisher;
use crate::telemetry::metrics::{ControlPlaneMetrics, SubscriptionMetrics};

/// The watch of the stream that serves.
const STREAM: &str = "ads";
/// The watch of the stream that is to take its place.
const NEXT: &str = "ads with the new token";
/// The only state of a kind that is worth a watch of its own.
const REFUSED: &str = "refused";

pub(super) struct Reporter {
    status: StatusPublisher,
    stream: ControlPlaneMetrics,
    cds: SubscriptionMetrics,
    lds: SubscriptionMetrics,
    /// What was refused last and not accepted since.
    refused: BTreeMap<ResourceKind, String>,
}

impl Reporter {
    pub(super) fn new(status: StatusPublisher) -> Self {
        status.waiting(STREAM, "the first response");
        let subscription = |prefix| {
            let metrics = SubscriptionMetrics::new(prefix);
            metrics.attempt.increment(1);
            metrics
        };
        let stream = ControlPlaneMetrics::new();
        stream.connected_state.set(0);
        Self {
            status,
            stream,
            cds: subscription("cluster_manager.cds."),
            lds: subscription("listener_manager.lds."),
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn opened(&self, place: &str) {
        tracing::debug!(place, "an ADS stream is open");
        self.stream.connected_state.set(1);
    }

    pub(super) fn failed(&self, failure: &Failure, holds_something: bool) {
        let (kind, why) = (failure.kind(), failure.to_string());
        self.stream.connected_state.set(0);
        ended(kind);
        for metrics in [&self.cds, &self.lds] {
            metrics.attempt.increment(1);
            metrics.failure.increment(1);
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
        self.stream.connected_state.set(1);
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
                let xds = kind.abbreviation();
                tracing::debug!(xds, changed, removed, "a response is accepted");
                if self.refused.remove(kind).is_some() {
                    tracing::info!(xds, "what the control plane sends is accepted again");
                    self.status.forget(&watch(*kind));
                }
            }
            Outcome::Refused { kind, refused } => {
                if let Some(metrics) = self.metrics(*kind) {
                    metrics.attempt.increment(1);
                    metrics.rejected.increment(1);
                }
                let (xds, why) = (kind.abbreviation(), &refused.message);
                self.status.failing(&watch(*kind), REFUSED, why);
                if self.refused.insert(*kind, why.clone()).as_ref() != Some(why) {
                    tracing::error!(
                        xds,
                        why,
                        "a response is refused; what was accepted before, if anything, goes on"
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

impl Reporter {
    /// The counts of a whole discovery service. What the store takes it counts itself.
    fn metrics(&self, kind: ResourceKind) -> Option<&SubscriptionMetrics> {
        match kind {
            ResourceKind::Cluster => Some(&self.cds),
            ResourceKind::Listener => Some(&self.lds),
            ResourceKind::Endpoint | ResourceKind::Secret | ResourceKind::Route => None,
        }
    }
}

fn watch(kind: ResourceKind) -> String {
    format!("{STREAM} {kind}")
}

fn ended(kind: &'static str) {
    metrics::counter!("attache_xds_stream_failed_total", "reason" => kind).increment(1);
}
