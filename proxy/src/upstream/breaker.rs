//! A circuit breaker: a count over all workers against a limit, and a gauge that tells when it is reached.
//!
//! Owns nothing but handles: the count and what was told last are shared by the workers (`limit`).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::limit::{Limit, Limits, Permit};
use crate::telemetry::metrics::Gauge;

/// One limit of a cluster, as a worker has it.
#[derive(Debug)]
pub struct CircuitBreaker {
    count: Limit,
    /// Whether the gauge says that the limit is reached.
    open: Arc<AtomicBool>,
    gauge: Gauge,
}

/// One place within the limit, given back when dropped.
#[derive(Debug)]
pub struct Place {
    /// None once it is given back.
    permit: Option<Permit>,
    breaker: Rc<CircuitBreaker>,
    max: u64,
}

impl CircuitBreaker {
    /// The breaker called `name`; `gauge` is 1, over all workers, while it is open.
    pub fn new(limits: &Limits, name: &str, gauge: Gauge) -> Rc<Self> {
        Rc::new(Self {
            count: limits.get(name),
            open: limits.shared(name),
            gauge,
        })
    }

    /// Takes a place unless `max` are taken.
    pub fn acquire(self: &Rc<Self>, max: u32) -> Option<Place> {
        let max = u64::from(max);
        let permit = self.count.acquire(max);
        self.tell(max);
        Some(Place {
            permit: Some(permit?),
            breaker: Rc::clone(self),
            max,
        })
    }

    /// Says in the gauge whether the limit is reached. Of two workers at the limit in the same moment the
    /// slower one may have the last word; the next connection puts it right.
    fn tell(&self, max: u64) {
        let open = self.count.taken() >= max;
        // Stored only where it changes something: the line stays shared between the workers' caches.
        if self.open.load(Ordering::Relaxed) != open && self.open.swap(open, Ordering::Relaxed) != open {
            self.gauge.add(if open { 1 } else { -1 });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.breaker.tell(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{CircuitBreakerMetrics, registry};

    #[test]
    fn the_gauge_is_one_while_the_limit_is_reached() {
        let limits = Limits::default();
        let shown = || {
            let samples =
                registry().collect(|name| name == "cluster.breaker-test.circuit_breakers.default.cx_open");
            format!("{:?}", samples[0].value)
        };
        let metrics = CircuitBreakerMetrics::new("breaker-test", "default");
        let worker = || CircuitBreaker::new(&limits, "breaker-test", metrics.connections_open.clone());
        let (one, two) = (worker(), worker());
        let first = one.acquire(2);
        assert_eq!(shown(), "Gauge(0)");
        let second = two.acquire(2);
        assert!(first.is_some() && second.is_some() && one.acquire(2).is_none());
        assert_eq!(shown(), "Gauge(1)");
        // Whoever opened it, another may close it.
        drop(first);
        assert_eq!(shown(), "Gauge(0)");
        assert!(two.acquire(0).is_none());
        assert_eq!(shown(), "Gauge(1)");
    }
}
