//! Outlier detection: endpoints that fail again and again are ejected for a while (Envoy's
//! `outlier_detection`).
//!
//! All workers share one [`Outliers`] a cluster, as they do in Envoy: with a share of the connections each, a
//! worker alone would see a bad endpoint late. A success costs one load of a shared counter; only a failure
//! that ejects, a sweep and a change of endpoints take the lock. What an ejection means for the choice of
//! endpoints is `endpoint`'s and `priority`'s business.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Target;
use crate::model::cluster::OutlierDetection;

/// The endpoints of one cluster, watched by all workers.
#[derive(Debug, Default)]
pub struct Outliers {
    /// One more with every ejection and every end of one.
    generation: AtomicU64,
    monitors: Mutex<Monitors>,
}

#[derive(Debug, Default)]
struct Monitors {
    by_target: HashMap<Target, Monitor>,
    /// When ejections were last looked at; none while there is nothing to look at.
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Monitor {
    /// Alive as long as a worker has the endpoint.
    health: Weak<EndpointHealth>,
    ejected: Option<Instant>,
    /// Ejections not yet forgotten: one more with each, one less with each sweep that finds it healthy.
    multiplier: u32,
}

/// What is known of one endpoint, over all workers.
#[derive(Debug, Default)]
pub struct EndpointHealth {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    ejected: AtomicBool,
}

/// How many endpoints of a cluster are out already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ejections {
    /// Ejected.
    pub active: usize,
    /// All endpoints.
    pub of: usize,
}

/// What became of failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The endpoint is out.
    Ejected,
    /// As many are out as may be.
    Overflow,
    /// It stays: ejections are not enforced, or not this time.
    NotEnforced,
}

/// What a failure led to, by the two counts that it is part of; none where the limit is not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// `consecutive_gateway_failure`.
    pub gateway: Option<Detection>,
    /// `consecutive_5xx`.
    pub consecutive_5xx: Option<Detection>,
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// When to sweep again; none when there is nothing left to look at.
    pub next: Option<Instant>,
    /// Ejections that it ended.
    pub ended: i64,
}

impl Failure {
    /// Whether the endpoint was ejected by it.
    pub fn ejected(self) -> bool {
        [self.gateway, self.consecutive_5xx].contains(&Some(Detection::Ejected))
    }
}

impl EndpointHealth {
    /// Whether it is ejected now.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// A connection was made that carries no requests, or a request answered well: failures before it count no
    /// more.
    pub fn succeeded(&self) {
        for counter in [&self.consecutive_5xx, &self.consecutive_gateway_failure] {
            // Stored only where it changes something: the line stays shared between the workers' caches.
            if counter.load(Ordering::Relaxed) != 0 {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Outliers {
    /// The state of each of `targets`, in their order.
    pub fn watch<'a>(&self, targets: impl Iterator<Item = &'a Target>) -> Vec<Arc<EndpointHealth>> {
        let mut monitors = self.lock();
        targets
            .map(|target| {
                if let Some(health) = monitors.by_target.get(target).and_then(|m| m.health.upgrade()) {
                    return health;
                }
                let health = Arc::default();
                let monitor = Monitor {
                    health: Arc::downgrade(&health),
                    ..Monitor::default()
                };
                monitors.by_target.insert(target.clone(), monitor);
                health
            })
            .collect()
    }

    /// Forgets what no worker has any more: how many of those were ejected.
    pub fn forget(&self) -> i64 {
        let mut ejected = 0;
        self.lock().by_target.retain(|_, monitor| {
            let stays = monitor.health.strong_count() > 0;
            ejected += i64::from(!stays && monitor.ejected.is_some());
            stays
        });
        ejected
    }

    /// Changes whenever an endpoint is ejected or comes back.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// A request failed with a 5xx, or a connection could not be made, which Envoy counts as a 503 or 504: both
    /// a 5xx and a `gateway` failure.
    pub fn failed(
        &self,
        config: &OutlierDetection,
        target: &Target,
        health: &EndpointHealth,
        gateway: bool,
        ejections: Ejections,
        now: Instant,
    ) -> Failure {
        let counted = [
            (
                gateway,
                &health.consecutive_gateway_failure,
                config.consecutive_gateway_failure,
                config.enforcing_consecutive_gateway_failure,
            ),
            (
                true,
                &health.consecutive_5xx,
                config.consecutive_5xx,
                config.enforcing_consecutive_5xx,
            ),
        ];
        let [gateway, consecutive_5xx] = counted.map(|(counts, counter, limit, enforcing)| {
            if !counts {
                // A 500 is no gateway failure, and ends a row of them.
                counter.store(0, Ordering::Relaxed);
                return None;
            }
            let failures = counter.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if limit == 0 || failures != limit {
                return None;
            }
            counter.store(0, Ordering::Relaxed);
            if health.is_ejected() {
                return None;
            }
            Some(if !ejections.allow_another(config.max_ejection_percent) {
                Detection::Overflow
            } else if fastrand::u8(0..100) < enforcing {
                // Another worker may be faster: then it is that one's.
                return self
                    .eject(config, target, health, now)
                    .then_some(Detection::Ejected);
            } else {
                Detection::NotEnforced
            })
        });
        Failure {
            gateway,
            consecutive_5xx,
        }
    }

    fn eject(
        &self,
        config: &OutlierDetection,
        target: &Target,
        health: &EndpointHealth,
        now: Instant,
    ) -> bool {
        let mut monitors = self.lock();
        let Some(monitor) = monitors.by_target.get_mut(target) else {
            return false;
        };
        // Another worker may have been faster.
        if monitor.ejected.is_some() {
            return false;
        }
        monitor.ejected = Some(now);
        monitor.multiplier = next_multiplier(config, monitor.multiplier);
        health.ejected.store(true, Ordering::Relaxed);
        monitors.swept.get_or_insert(now);
        self.generation.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Ends ejections that have lasted long enough and forgets old ones, once an interval. Without a
    /// configuration all end.
    pub fn sweep(&self, config: Option<&OutlierDetection>, now: Instant) -> Swept {
        let mut monitors = self.lock();
        let Some(swept) = monitors.swept else {
            return Swept::default();
        };
        // An interval of 0 would spin.
        let interval = config.map_or(Duration::ZERO, |config| {
            config.interval.max(Duration::from_millis(10))
        });
        let due = swept + interval;
        if now < due {
            return Swept {
                next: Some(due),
                ended: 0,
            };
        }
        let mut busy = false;
        let mut ended = 0;
        for monitor in monitors.by_target.values_mut() {
            ended += i64::from(monitor.sweep(config, now));
            busy |= monitor.multiplier > 0;
        }
        if ended > 0 {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        monitors.swept = busy.then_some(now);
        Swept {
            next: busy.then_some(now + interval),
            ended,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Monitors> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor {
    /// True if that ended its ejection.
    fn sweep(&mut self, config: Option<&OutlierDetection>, now: Instant) -> bool {
        let over = match (self.ejected, config) {
            (None, Some(_)) => {
                self.multiplier = self.multiplier.saturating_sub(1);
                return false;
            }
            (None, None) => {
                self.multiplier = 0;
                return false;
            }
            (Some(since), Some(config)) => now - since >= ejection_time(config, self.multiplier),
            (Some(_), None) => {
                self.multiplier = 0;
                true
            }
        };
        if over {
            self.ejected = None;
            if let Some(health) = self.health.upgrade() {
                health.succeeded();
                health.ejected.store(false, Ordering::Relaxed);
            }
        }
        over
    }
}

impl Ejections {
    /// Whether one more keeps within `max_percent` of all. As in Envoy since 1.31 that holds for the first
    /// one too: of fewer than ten endpoints, Envoy's default of 10 % ejects none.
    fn allow_another(self, max_percent: u8) -> bool {
        (self.active + 1) * 100 <= usize::from(max_percent.min(100)) * self.of
    }
}

/// An ejection lasts the base time for each one not forgotten, at most the maximum.
fn ejection_time(config: &OutlierDetection, multiplier: u32) -> Duration {
    let longest = config.max_ejection_time.max(config.base_ejection_time);
    config.base_ejection_time.saturating_mul(multiplier).min(longest)
}

/// Grows with each ejection until it gives the maximum, so that forgetting begins there.
fn next_multiplier(config: &OutlierDetection, multiplier: u32) -> u32 {
    let longest = config.max_ejection_time.max(config.base_ejection_time);
    let reached = config.base_ejection_time.saturating_mul(multiplier) >= longest && multiplier > 0;
    if reached { multiplier } else { multiplier + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::listener::Address;

    fn target(port: u16) -> Target {
        Target::Address(Address::Socket(([127, 0, 0, 1], port).into()))
    }

    fn config() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }
    }

    const TWO: Ejections = Ejections { active: 0, of: 2 };

    fn fail(outliers: &Outliers, config: &OutlierDetection, health: &EndpointHealth, times: usize) -> bool {
        (0..times).any(|_| {
            outliers
                .failed(config, &target(1), health, true, TWO, Instant::now())
                .ejected()
        })
    }

    #[test]
    fn how_many_may_be_out() {
        for (active, of, percent, allowed) in [
            (0, 1, 10, false),
            (0, 9, 10, false),
            (0, 10, 10, true),
            (1, 10, 10, false),
            (0, 1, 100, true),
            (0, 2, 50, true),
            (1, 2, 50, false),
            (1, 2, 100, true),
            (0, 0, 0, false),
            (0, 5, 0, false),
        ] {
            let ejections = Ejections { active, of };
            assert_eq!(
                ejections.allow_another(percent),
                allowed,
                "{ejections:?} {percent} %"
            );
        }
    }

    #[test]
    fn how_long_ejections_last() {
        let config = OutlierDetection {
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(75),
            ..config()
        };
        let mut multiplier = 0;
        let mut seconds = Vec::new();
        for _ in 0..4 {
            multiplier = next_multiplier(&config, multiplier);
            seconds.push(ejection_time(&config, multiplier).as_secs());
        }
        assert_eq!(seconds, [30, 60, 75, 75]);
        // A base above the maximum is the maximum.
        let config = OutlierDetection {
            base_ejection_time: Duration::from_secs(600),
            ..config
        };
        assert_eq!(ejection_time(&config, next_multiplier(&config, 0)).as_secs(), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_until_a_sweep_after_the_time() {
        let outliers = Outliers::default();
        let health = outliers.watch([target(1)].iter()).remove(0);
        let config = config();
        assert!(!fail(&outliers, &config, &health, 2));
        health.succeeded();
        assert!(
            !fail(&outliers, &config, &health, 2),
            "a success resets the count"
        );
        assert!(fail(&outliers, &config, &health, 1) && health.is_ejected());
        assert_eq!(outliers.generation(), 1);

        let mut next = outliers.sweep(Some(&config), Instant::now()).next;
        let began = Instant::now();
        while let Some(at) = next.filter(|_| health.is_ejected()) {
            tokio::time::sleep_until(at).await;
            next = outliers.sweep(Some(&config), Instant::now()).next;
        }
        assert_eq!(began.elapsed().as_secs(), 30);
        assert_eq!(outliers.generation(), 2);
        // The second time within memory it is out for twice as long.
        assert!(fail(&outliers, &config, &health, 3));
        tokio::time::sleep(Duration::from_secs(59)).await;
        outliers.sweep(Some(&config), Instant::now());
        assert!(health.is_ejected());
        tokio::time::sleep(Duration::from_secs(10)).await;
        outliers.sweep(Some(&config), Instant::now());
        assert!(!health.is_ejected());
        // Each quiet sweep forgets one ejection; then there is nothing left to look at.
        for left in [true, false] {
            tokio::time::sleep(config.interval).await;
            assert_eq!(outliers.sweep(Some(&config), Instant::now()).next.is_some(), left);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_enforced_or_over_the_limit_ejects_none() {
        let outliers = Outliers::default();
        let health = outliers.watch([target(1)].iter()).remove(0);
        let lenient = OutlierDetection {
            enforcing_consecutive_5xx: 0,
            ..config()
        };
        assert!(!fail(&outliers, &lenient, &health, 20));
        let full = Ejections { active: 1, of: 2 };
        let mut failures =
            (0..20).map(|_| outliers.failed(&config(), &target(1), &health, true, full, Instant::now()));
        assert!(failures.all(|failure| !failure.ejected()));
        let gateway = OutlierDetection {
            consecutive_5xx: 0,
            consecutive_gateway_failure: 2,
            enforcing_consecutive_gateway_failure: 100,
            ..config()
        };
        health.succeeded();
        assert!(fail(&outliers, &gateway, &health, 2));
        // Without a configuration nothing stays out.
        assert_eq!(
            outliers.sweep(None, Instant::now()),
            Swept { next: None, ended: 1 }
        );
        assert!(!health.is_ejected());
    }

    #[test]
    fn endpoints_are_shared_while_any_worker_has_them() {
        let outliers = Outliers::default();
        let first = outliers.watch([target(1), target(2)].iter());
        let second = outliers.watch([target(2), target(1)].iter());
        assert!(Arc::ptr_eq(&first[0], &second[1]) && Arc::ptr_eq(&first[1], &second[0]));
        drop((first, second));
        outliers.forget();
        assert!(outliers.lock().by_target.is_empty());
    }
}
