//! The recorder behind the `metrics` facade: for the control plane's rare counts, whose names
//! (`attache_…`) and labels Prometheus sees as they stand.
//!
//! Its handles may go to any thread, so they share one cell; nothing on a connection's path uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use super::cell::Buckets;
use super::registry::Scope;

/// Hands the facade's names to a scope.
#[derive(Debug)]
pub(super) struct Facade(pub(super) Scope);

struct SharedCounter(Arc<AtomicU64>);
struct SharedGauge(Arc<AtomicU64>);
struct SharedHistogram(Arc<Buckets>);

impl CounterFn for SharedCounter {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Relaxed);
    }
}

impl GaugeFn for SharedGauge {
    fn increment(&self, value: f64) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |bits| {
            Some((f64::from_bits(bits) + value).to_bits())
        });
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

impl HistogramFn for SharedHistogram {
    fn record(&self, value: f64) {
        self.0.record_shared(value);
    }
}

impl Recorder for Facade {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(SharedCounter(
            self.0.shared_counter(key.name(), &labels(key)),
        )))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(SharedGauge(
            self.0.shared_gauge(key.name(), &labels(key)),
        )))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(SharedHistogram(
            self.0.shared_histogram(key.name(), &labels(key)),
        )))
    }
}

fn labels(key: &Key) -> Vec<(&str, &str)> {
    key.labels().map(|label| (label.key(), label.value())).collect()
}
