//! What the exporters of spans count, all of a kind together: `tracing.zipkin.…`, `tracing.opentelemetry.…`.

use super::handles;
use crate::telemetry::metrics::registry;

handles! {
    /// A worker's handles for Zipkin: `tracing.zipkin.…`.
    ZipkinMetrics {
        /// `spans_sent`: spans handed over in reports.
        spans_sent: Counter = counter "spans_sent",
        /// `timer_flushed`: times that the timer asked for a report, empty or not.
        timer_flushed: Counter = counter "timer_flushed",
        /// `reports_sent`: taken by the collector.
        reports_sent: Counter = counter "reports_sent",
        /// `reports_dropped`: the collector answered with something else than 202.
        reports_dropped: Counter = counter "reports_dropped",
        /// `reports_failed`: the collector did not answer.
        reports_failed: Counter = counter "reports_failed",
        /// `reports_skipped_no_cluster`: the collector's cluster is not there.
        reports_skipped_no_cluster: Counter = counter "reports_skipped_no_cluster",
    }
}

handles! {
    /// A worker's handles for OpenTelemetry: `tracing.opentelemetry.…`.
    OpenTelemetryMetrics {
        /// `spans_sent`: spans handed over in reports.
        spans_sent: Counter = counter "spans_sent",
        /// `spans_dropped`: spans that could not be handed over.
        spans_dropped: Counter = counter "spans_dropped",
        /// `timer_flushed`: times that the timer asked for a report, empty or not.
        timer_flushed: Counter = counter "timer_flushed",
    }
}

impl ZipkinMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        Self::resolve(registry().scope("tracing.zipkin."))
    }
}

impl Default for ZipkinMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenTelemetryMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        Self::resolve(registry().scope("tracing.opentelemetry."))
    }
}

impl Default for OpenTelemetryMetrics {
    fn default() -> Self {
        Self::new()
    }
}
