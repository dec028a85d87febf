//! What is counted for single endpoints, for `/clusters`.
//!
//! As with other statistics each thread has shares of its own; an endpoint is shown for as long as a thread
//! holds it. Not part of the statistics pages: there are too many, as Envoy finds too.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::metrics::cell::{Cell, Counter, Gauge};

/// What an endpoint is, as the thread that holds it last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name it was resolved from; empty for an address.
    pub hostname: String,
    /// Relative share.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u32,
    /// Whether its control plane says that it is healthy.
    pub healthy: bool,
    /// Envoy's locality: region, zone and sub-zone.
    pub locality: [String; 3],
}

/// The counts of one endpoint, over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `cx_total`: dials begun.
    pub connections: u64,
    /// `cx_connect_fail`.
    pub connect_failures: u64,
    /// `cx_active`.
    pub active: u64,
    /// In how many threads outlier detection has it out now.
    pub ejected: u64,
}

/// A thread's handles for an endpoint of a cluster: some half a kilobyte, so best had with the first dial.
/// Endpoints of the snapshot are shown without, too.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Dials begun.
    pub connections: Counter,
    /// Dials that failed.
    pub connect_failures: Counter,
    /// Connections live or being made.
    pub active: Gauge,
    /// 1 while outlier detection has it out.
    pub ejected: Gauge,
    key: Key,
}

/// Cluster and address.
type Key = (String, String);

#[derive(Debug)]
struct Entry {
    facts: Facts,
    /// A thread may hold an endpoint twice: under an old and a new configuration.
    holders: usize,
    threads: Vec<(ThreadId, Shares)>,
}

#[derive(Clone, Debug)]
struct Shares {
    connections: Cell,
    connect_failures: Cell,
    active: Cell,
    ejected: Cell,
}

fn entries() -> MutexGuard<'static, BTreeMap<Key, Entry>> {
    static ENTRIES: LazyLock<Mutex<BTreeMap<Key, Entry>>> = LazyLock::new(Mutex::default);
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EndpointMetrics {
    /// Resolves the handles for this thread. `address` is as `/clusters` shows it.
    pub fn new(cluster: &str, address: &str, facts: Facts) -> Self {
        let key = (cluster.to_owned(), address.to_owned());
        let mut entries = entries();
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            facts: facts.clone(),
            holders: 0,
            threads: Vec::new(),
        });
        entry.holders += 1;
        entry.facts = facts;
        let thread = std::thread::current().id();
        let shares = match entry.threads.iter().find(|(id, _)| *id == thread) {
            Some((_, shares)) => shares.clone(),
            None => {
                let shares = Shares {
                    connections: Cell::counter(),
                    connect_failures: Cell::counter(),
                    active: Cell::gauge(),
                    ejected: Cell::gauge(),
                };
                entry.threads.push((thread, shares.clone()));
                shares
            }
        };
        Self {
            connections: Counter::of(shares.connections),
            connect_failures: Counter::of(shares.connect_failures),
            active: Gauge::of(shares.active),
            ejected: Gauge::of(shares.ejected),
            key,
        }
    }

    /// Says what the endpoint is now.
    pub fn update(&self, facts: Facts) {
        if let Some(entry) = entries().get_mut(&self.key) {
            entry.facts = facts;
        }
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        let mut entries = entries();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.holders -= 1;
            if entry.holders == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

/// Every endpoint by cluster and address, in order.
pub fn collect() -> Vec<(String, String, Facts, Counts)> {
    entries()
        .iter()
        .map(|((cluster, address), entry)| {
            let sum = |of: fn(&Shares) -> u64| entry.threads.iter().map(|(_, shares)| of(shares)).sum();
            let level = |cell: &Cell| u64::try_from(cell.level().unwrap_or(0)).unwrap_or(0);
            let counts = Counts {
                connections: sum(|shares| shares.connections.count()),
                connect_failures: sum(|shares| shares.connect_failures.count()),
                active: entry
                    .threads
                    .iter()
                    .map(|(_, shares)| level(&shares.active))
                    .sum(),
                ejected: entry
                    .threads
                    .iter()
                    .map(|(_, shares)| level(&shares.ejected))
                    .sum(),
            };
            (cluster.clone(), address.clone(), entry.facts.clone(), counts)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_while_a_thread_holds_it() {
        let cluster = "endpoints-test";
        let mine = || -> Vec<(String, Facts, Counts)> {
            let all = collect().into_iter().filter(|(of, ..)| of == cluster);
            all.map(|(_, address, facts, counts)| (address, facts, counts))
                .collect()
        };
        let facts = |weight| Facts {
            hostname: String::new(),
            weight,
            priority: 0,
            healthy: true,
            locality: Default::default(),
        };
        let here = EndpointMetrics::new(cluster, "127.0.0.1:1", facts(1));
        here.connections.increment(2);
        here.active.add(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let there = EndpointMetrics::new(cluster, "127.0.0.1:1", facts(3));
                there.connections.increment(1);
                there.connect_failures.increment(1);
                there.ejected.set(1);
            });
        });
        let counts = Counts {
            connections: 3,
            connect_failures: 1,
            active: 1,
            ejected: 1,
        };
        assert_eq!(mine(), [("127.0.0.1:1".to_owned(), facts(3), counts)]);
        // A second holder of the same thread is the same endpoint.
        let again = EndpointMetrics::new(cluster, "127.0.0.1:1", facts(3));
        drop(here);
        again.update(facts(4));
        assert_eq!(mine()[0].1.weight, 4);
        drop(again);
        assert_eq!(mine(), []);
    }
}
