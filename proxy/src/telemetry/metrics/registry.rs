//! All statistics of a process, by Envoy's full dotted names.
//!
//! Statistics live in scopes, such as `cluster.local_app.`: a scope is there for as long as somebody
//! holds it, so those of a cluster end when the last worker and connection let go of it, and one that
//! comes back meanwhile goes on. Owns the shares of all threads; a scrape sums them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::ThreadId;

use super::cell::{Buckets, Cell, Counter, Distribution, Gauge, Histogram};
use super::sanitized;
use super::tags::{Extracted, TagRules};

/// All statistics.
#[derive(Debug, Default)]
pub struct Registry {
    scopes: Mutex<BTreeMap<Arc<str>, Scoped>>,
    rules: RwLock<Arc<TagRules>>,
}

/// Statistics whose names begin alike, kept until the last holder drops.
#[derive(Debug)]
pub struct Scope {
    registry: &'static Registry,
    prefix: Arc<str>,
}

#[derive(Debug, Default)]
struct Scoped {
    holders: usize,
    /// By the rest of the name.
    stats: BTreeMap<Cow<'static, str>, Stat>,
}

#[derive(Debug)]
struct Stat {
    value: Shares,
    /// Found when first shown.
    identity: Option<Identity>,
}

#[derive(Debug)]
enum Shares {
    Counter {
        threads: Vec<(ThreadId, Cell)>,
        /// For the `metrics` facade, whose handles may go to any thread.
        shared: Option<Arc<AtomicU64>>,
        /// What had been counted when the counters were last reset.
        reset_at: u64,
        /// What had been counted at the last flush to a sink.
        flushed: u64,
    },
    Gauge(Vec<(ThreadId, Cell)>),
    /// The `metrics` facade's, as the bits of a float.
    SharedGauge(Arc<AtomicU64>),
    Histogram {
        threads: Vec<(ThreadId, Arc<Buckets>)>,
        shared: Option<Arc<Buckets>>,
        /// What there was at the last flush to a sink.
        flushed: Option<Box<Distribution>>,
    },
    Text(Arc<str>),
}

/// Tags and their values, shared by the statistics that have the same.
pub type Tags = Arc<[(Arc<str>, String)]>;

/// How Prometheus and DogStatsD name a statistic.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name without its tags. Attaché's own statistics begin with `attache_`.
    pub name: Arc<str>,
    /// Its tags, in the order of the rules.
    pub tags: Tags,
}

/// What a statistic says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Since the start or the last reset; and since the last flush, for a sink.
    Counter {
        /// Since the start or the last reset.
        total: u64,
        /// Since the last [`Registry::flush`].
        delta: u64,
    },
    /// A level.
    Gauge(i64),
    /// A level that is no whole number.
    FloatGauge(f64),
    /// Samples.
    Histogram {
        /// Since the start.
        all: Box<Distribution>,
        /// Since the last [`Registry::flush`].
        interval: Box<Distribution>,
    },
    /// Words: Envoy's text readout.
    Text(Arc<str>),
}

/// One statistic as it is now.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The full dotted name.
    pub name: String,
    /// Its name and tags.
    pub identity: Identity,
    /// Its value.
    pub value: Value,
    /// Whether anything was ever counted, set or recorded.
    pub used: bool,
}

impl Registry {
    /// Joins the scope of `prefix`, which ends in a dot, or is empty for statistics that stay.
    pub fn scope(&'static self, prefix: &str) -> Scope {
        let mut scopes = self.lock();
        let prefix = match scopes.get_key_value(prefix) {
            Some((prefix, _)) => Arc::clone(prefix),
            None => Arc::from(prefix),
        };
        scopes.entry(Arc::clone(&prefix)).or_default().holders += 1;
        Scope {
            registry: self,
            prefix,
        }
    }

    /// Makes `rules` the ones that tags are found by.
    pub fn set_rules(&self, rules: TagRules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        for stat in self
            .lock()
            .values_mut()
            .flat_map(|scope| scope.stats.values_mut())
        {
            // Attaché's own have tags by birth.
            stat.identity.take_if(|identity| !identity.is_own());
        }
    }

    /// Every statistic that `wanted` accepts the name of, in the order of names.
    pub fn collect(&self, wanted: impl Fn(&str) -> bool) -> Vec<Sample> {
        self.visit(wanted, false)
    }

    /// Every statistic, for a sink: the next flush's deltas begin here.
    pub fn flush(&self) -> Vec<Sample> {
        self.visit(|_| true, true)
    }

    /// Sets every counter to 0, as far as anybody can see; sinks still get all that is counted.
    pub fn reset_counters(&self) {
        for stat in self
            .lock()
            .values_mut()
            .flat_map(|scope| scope.stats.values_mut())
        {
            let counted = stat.value.counted();
            if let Shares::Counter { reset_at, .. } = &mut stat.value {
                *reset_at = counted;
            }
        }
    }

    fn visit(&self, wanted: impl Fn(&str) -> bool, flush: bool) -> Vec<Sample> {
        let rules = Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner));
        let mut samples = Vec::new();
        for (prefix, scope) in self.lock().iter_mut() {
            // Most statistics of a scope have the same tags: they share them.
            let mut last_tags = Tags::default();
            for (rest, stat) in &mut scope.stats {
                let name = format!("{prefix}{rest}");
                if !wanted(&name) {
                    continue;
                }
                let identity = stat.identity.get_or_insert_with(|| {
                    let Extracted { name, tags } = rules.extract(&name);
                    if *tags != *last_tags {
                        last_tags = tags.into();
                    }
                    Identity {
                        name: name.into(),
                        tags: Arc::clone(&last_tags),
                    }
                });
                last_tags = Arc::clone(&identity.tags);
                samples.push(Sample {
                    name,
                    identity: identity.clone(),
                    used: stat.value.used(),
                    value: stat.value.read(flush),
                });
            }
        }
        samples.sort_by(|a, b| a.name.cmp(&b.name));
        samples
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Scoped>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scope {
    /// This thread's handle of a counter.
    pub fn counter(&self, rest: impl Into<Cow<'static, str>>) -> Counter {
        Counter::of(self.thread_cell(rest.into(), None, Shares::counter, Cell::counter))
    }

    /// This thread's handle of a gauge.
    pub fn gauge(&self, rest: impl Into<Cow<'static, str>>) -> Gauge {
        let new = || Shares::Gauge(Vec::new());
        Gauge::of(self.thread_cell(rest.into(), None, new, Cell::gauge))
    }

    /// This thread's handle of a histogram.
    pub fn histogram(&self, rest: impl Into<Cow<'static, str>>) -> Histogram {
        self.with(rest.into(), None, Shares::histogram, |shares| match shares {
            Shares::Histogram { threads, .. } => {
                Some(Histogram::of(Arc::clone(of_thread(threads, Arc::default))))
            }
            _ => None,
        })
        .unwrap_or_else(|| Histogram::of(Arc::default()))
    }

    /// This thread's handle of a counter that Envoy has not: `name` is for Prometheus as it stands and
    /// begins with `attache_`.
    pub fn own_counter(&self, name: &'static str, labels: &[(&str, &str)]) -> Counter {
        let (rest, identity) = own(name, labels);
        Counter::of(self.thread_cell(rest, Some(identity), Shares::counter, Cell::counter))
    }

    /// Sets a text readout.
    pub fn text(&self, rest: impl Into<Cow<'static, str>>, text: &str) {
        self.with(
            rest.into(),
            None,
            || Shares::Text(Arc::default()),
            |shares| {
                if let Shares::Text(shown) = shares {
                    *shown = text.into();
                }
            },
        );
    }

    /// A counter of the `metrics` facade.
    pub(super) fn shared_counter(&self, name: &str, labels: &[(&str, &str)]) -> Arc<AtomicU64> {
        let (rest, identity) = own(name, labels);
        self.with(rest, Some(identity), Shares::counter, |shares| match shares {
            Shares::Counter { shared, .. } => Arc::clone(shared.get_or_insert_default()),
            _ => Arc::default(),
        })
    }

    /// A gauge of the `metrics` facade: the bits of a float.
    pub(super) fn shared_gauge(&self, name: &str, labels: &[(&str, &str)]) -> Arc<AtomicU64> {
        let (rest, identity) = own(name, labels);
        let new = || Shares::SharedGauge(Arc::default());
        self.with(rest, Some(identity), new, |shares| match shares {
            Shares::SharedGauge(shared) => Arc::clone(shared),
            _ => Arc::default(),
        })
    }

    /// A histogram of the `metrics` facade.
    pub(super) fn shared_histogram(&self, name: &str, labels: &[(&str, &str)]) -> Arc<Buckets> {
        let (rest, identity) = own(name, labels);
        self.with(rest, Some(identity), Shares::histogram, |shares| match shares {
            Shares::Histogram { shared, .. } => Arc::clone(shared.get_or_insert_default()),
            _ => Arc::default(),
        })
    }

    /// This thread's share. Where the name is taken by another kind, which only a bug makes it, what
    /// is counted shows nowhere.
    fn thread_cell(
        &self,
        rest: Cow<'static, str>,
        identity: Option<Identity>,
        new: fn() -> Shares,
        cell: fn() -> Cell,
    ) -> Cell {
        let wanted = std::mem::discriminant(&new());
        self.with(rest, identity, new, |shares| {
            let fits = std::mem::discriminant(shares) == wanted;
            match shares {
                Shares::Counter { threads, .. } | Shares::Gauge(threads) if fits => {
                    Some(of_thread(threads, cell).clone())
                }
                _ => None,
            }
        })
        .unwrap_or_else(cell)
    }

    fn with<T>(
        &self,
        rest: Cow<'static, str>,
        identity: Option<Identity>,
        new: impl FnOnce() -> Shares,
        f: impl FnOnce(&mut Shares) -> T,
    ) -> T {
        let mut scopes = self.registry.lock();
        let scope = scopes.entry(Arc::clone(&self.prefix)).or_default();
        let stat = scope.stats.entry(rest).or_insert_with(|| Stat {
            value: new(),
            identity,
        });
        f(&mut stat.value)
    }
}

impl Clone for Scope {
    fn clone(&self) -> Self {
        self.registry.scope(&self.prefix)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let mut scopes = self.registry.lock();
        if let Some(scope) = scopes.get_mut(&self.prefix) {
            scope.holders -= 1;
            if scope.holders == 0 {
                scopes.remove(&self.prefix);
            }
        }
    }
}

/// The calling thread's entry.
fn of_thread<T>(threads: &mut Vec<(ThreadId, T)>, new: impl FnOnce() -> T) -> &T {
    let thread = std::thread::current().id();
    let at = threads
        .iter()
        .position(|(id, _)| *id == thread)
        .unwrap_or_else(|| {
            threads.push((thread, new()));
            threads.len() - 1
        });
    &threads[at].1
}

/// The dotted name and the identity of a statistic that Envoy has not.
fn own(name: &str, labels: &[(&str, &str)]) -> (Cow<'static, str>, Identity) {
    let mut rest = name.to_owned();
    for (key, value) in labels {
        rest.push('.');
        rest.push_str(key);
        rest.push('.');
        rest.push_str(&sanitized(value));
    }
    let identity = Identity {
        name: name.into(),
        tags: labels
            .iter()
            .map(|(key, value)| (Arc::from(*key), (*value).to_owned()))
            .collect(),
    };
    (rest.into(), identity)
}

impl Identity {
    /// Whether Envoy has no such statistic: its name is then used as it stands.
    pub fn is_own(&self) -> bool {
        self.name.starts_with("attache_")
    }
}

impl Shares {
    fn counter() -> Self {
        Self::Counter {
            threads: Vec::new(),
            shared: None,
            reset_at: 0,
            flushed: 0,
        }
    }

    fn histogram() -> Self {
        Self::Histogram {
            threads: Vec::new(),
            shared: None,
            flushed: None,
        }
    }

    /// All that a counter ever counted; 0 for what is none.
    fn counted(&self) -> u64 {
        match self {
            Self::Counter { threads, shared, .. } => threads
                .iter()
                .map(|(_, cell)| cell.count())
                .chain(shared.iter().map(|shared| shared.load(Relaxed)))
                .fold(0, u64::wrapping_add),
            _ => 0,
        }
    }

    fn used(&self) -> bool {
        match self {
            Self::Counter { .. } => self.counted() > 0,
            Self::Gauge(threads) => threads.iter().any(|(_, cell)| cell.level().is_some()),
            Self::SharedGauge(_) => true,
            Self::Histogram { .. } => self.distribution().range.is_some(),
            Self::Text(text) => !text.is_empty(),
        }
    }

    fn distribution(&self) -> Distribution {
        match self {
            Self::Histogram { threads, shared, .. } => {
                Distribution::sum(threads.iter().map(|(_, share)| &**share).chain(shared.as_deref()))
            }
            _ => Distribution::default(),
        }
    }

    fn read(&mut self, flush: bool) -> Value {
        let (counted, all) = (self.counted(), self.distribution());
        match self {
            Self::Counter {
                reset_at, flushed, ..
            } => {
                let delta = counted.wrapping_sub(*flushed);
                if flush {
                    *flushed = counted;
                }
                Value::Counter {
                    total: counted.wrapping_sub(*reset_at),
                    delta,
                }
            }
            Self::Gauge(threads) => Value::Gauge(
                threads
                    .iter()
                    .filter_map(|(_, cell)| cell.level())
                    .fold(0, i64::wrapping_add),
            ),
            Self::SharedGauge(shared) => Value::FloatGauge(f64::from_bits(shared.load(Relaxed))),
            Self::Histogram { flushed, .. } => {
                let interval = all.since(flushed.as_deref());
                if flush {
                    *flushed = Some(Box::new(all.clone()));
                }
                Value::Histogram {
                    all: Box::new(all),
                    interval: Box::new(interval),
                }
            }
            Self::Text(text) => Value::Text(Arc::clone(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::StatsConfig;

    fn fresh() -> &'static Registry {
        let registry = Box::leak(Box::<Registry>::default());
        registry.set_rules(TagRules::new(&StatsConfig::default()).unwrap());
        registry
    }

    fn shown(registry: &Registry) -> Vec<String> {
        let line = |sample: Sample| format!("{} {:?}", sample.name, sample.value);
        registry.collect(|_| true).into_iter().map(line).collect()
    }

    #[test]
    fn threads_are_summed() {
        let registry = fresh();
        let scope = registry.scope("cluster.a.");
        scope.counter("c").increment(2);
        // A second handle of one thread is the same share.
        scope.counter("c").increment(1);
        scope.gauge("g").add(5);
        scope.gauge("untouched");
        scope.histogram("h").record(3.0);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let scope = registry.scope("cluster.a.");
                scope.counter("c").increment(3);
                scope.gauge("g").sub(1);
                scope.histogram("h").record(4.0);
            });
        });
        let samples = registry.collect(|name| name.starts_with("cluster.a."));
        let by_name = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap();
        assert_eq!(
            by_name("cluster.a.c").value,
            Value::Counter { total: 6, delta: 6 }
        );
        assert_eq!(by_name("cluster.a.g").value, Value::Gauge(4));
        assert!(!by_name("cluster.a.untouched").used && by_name("cluster.a.g").used);
        let Value::Histogram { all, .. } = &by_name("cluster.a.h").value else {
            panic!("{samples:?}");
        };
        assert_eq!((all.count(), all.sum), (2, 7.0));
        let identity = &by_name("cluster.a.c").identity;
        assert_eq!(&*identity.name, "cluster.c");
        assert!(Arc::ptr_eq(&identity.tags, &by_name("cluster.a.h").identity.tags));
    }

    #[test]
    fn a_scope_ends_with_its_last_holder_and_not_before() {
        let registry = fresh();
        let worker = registry.scope("cluster.a.");
        let counted = worker.counter("c");
        counted.increment(1);
        let connection = worker.clone();
        // The cluster goes and comes back while a connection still lives: its counts go on.
        drop(worker);
        counted.increment(1);
        let again = registry.scope("cluster.a.");
        again.counter("c").increment(1);
        drop(connection);
        assert_eq!(shown(registry), ["cluster.a.c Counter { total: 3, delta: 3 }"]);
        drop(again);
        assert_eq!(shown(registry), [""; 0]);
        // What is left of the old one counts nowhere.
        counted.increment(1);
        let fresh = registry.scope("cluster.a.");
        fresh.counter("c");
        assert_eq!(shown(registry), ["cluster.a.c Counter { total: 0, delta: 0 }"]);
    }

    #[test]
    fn a_reset_hides_what_was_counted_and_a_flush_does_not_mind() {
        let registry = fresh();
        let scope = registry.scope("s.");
        let counter = scope.counter("c");
        counter.increment(5);
        registry.reset_counters();
        counter.increment(1);
        let flushed: Vec<Value> = registry.flush().into_iter().map(|s| s.value).collect();
        assert_eq!(flushed, [Value::Counter { total: 1, delta: 6 }]);
        counter.increment(2);
        assert_eq!(shown(registry), ["s.c Counter { total: 3, delta: 2 }"]);
    }

    #[test]
    fn a_name_is_of_one_kind() {
        let registry = fresh();
        let scope = registry.scope("s.");
        scope.counter("x").increment(1);
        scope.gauge("x").set(7);
        scope.histogram("x").record(1.0);
        scope.text("x", "words");
        assert_eq!(shown(registry), ["s.x Counter { total: 1, delta: 1 }"]);
    }

    #[test]
    fn rules_given_later_hold_for_what_was_shown_before() {
        let registry = fresh();
        let scope = registry.scope("cluster.a.");
        let _counter = scope.counter("c");
        let _own = scope.own_counter("attache_x", &[("k", "v")]);
        let tags = || -> Vec<(String, usize)> {
            let samples = registry.collect(|_| true);
            samples
                .iter()
                .map(|s| (s.name.clone(), s.identity.tags.len()))
                .collect()
        };
        let own = ("cluster.a.attache_x.k.v".to_owned(), 1);
        assert_eq!(tags(), [own.clone(), ("cluster.a.c".to_owned(), 1)]);
        let config = StatsConfig::default().with_source("web", "default", "default", "dc1");
        registry.set_rules(TagRules::new(&config).unwrap());
        assert_eq!(tags(), [own, ("cluster.a.c".to_owned(), 6)]);
    }
}
