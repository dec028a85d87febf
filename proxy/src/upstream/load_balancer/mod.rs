//! The choice of one endpoint among those of a priority (Envoy's `lb_policy`), one module a kind.
//!
//! Random draws are the thread's `fastrand`. Whom to avoid is the caller's: every kind steps over those and
//! says none only if all are to be avoided.

mod least_loaded;
mod least_request;
mod maglev;
mod random;
mod ring_hash;
mod round_robin;

use std::cell::OnceCell;
use std::rc::Rc;

use super::endpoint::EndpointState;
use crate::model::cluster::LoadBalancer;

/// Further places looked at in a ring or table, beyond one for each endpoint, before any endpoint will do.
const EXTRA_PROBES: usize = 16;

/// Endpoints to choose from, with what the choice needs to know of them all. Immutable: a change of the
/// endpoints, their weights or health is another pool.
#[derive(Debug, Default)]
pub struct Pool {
    endpoints: Vec<Rc<EndpointState>>,
    table: OnceCell<Table>,
    turns: round_robin::Turns,
}

/// Where hashes lead; made when the first connection asks.
#[derive(Debug)]
enum Table {
    Ring(ring_hash::Ring),
    Maglev(maglev::Maglev),
}

impl Pool {
    /// Of these.
    pub fn new(endpoints: Vec<Rc<EndpointState>>) -> Self {
        Self {
            turns: round_robin::Turns::new(&endpoints),
            endpoints,
            table: OnceCell::new(),
        }
    }

    /// They.
    pub fn endpoints(&self) -> &[Rc<EndpointState>] {
        &self.endpoints
    }

    /// One of them that is not to be avoided. `hash` leads where the kind is a consistent hash; every call
    /// on one pool has the same `kind`.
    pub fn choose(
        &self,
        kind: &LoadBalancer,
        hash: u64,
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<&Rc<EndpointState>> {
        match kind {
            LoadBalancer::RoundRobin => least_loaded::choose(&self.endpoints, avoid),
            LoadBalancer::LeastRequest { choice_count } => {
                least_request::choose(&self.endpoints, *choice_count, avoid)
            }
            LoadBalancer::Random => random::choose(&self.endpoints, avoid),
            LoadBalancer::RingHash { .. } | LoadBalancer::Maglev { .. } => {
                self.choose_by_hash(self.table.get_or_init(|| self.table(kind)), hash, avoid)
            }
        }
    }

    /// The one whose turn it is among those that are not to be avoided, for requests. Envoy's least request is
    /// this where weights differ, `by_load`: what is under way takes its part of an endpoint's weight.
    pub fn take_turn(
        &self,
        by_load: bool,
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<&Rc<EndpointState>> {
        self.turns.take(&self.endpoints, by_load, avoid)
    }

    /// Whether weights differ.
    pub fn is_weighted(&self) -> bool {
        self.turns.is_weighted()
    }

    fn choose_by_hash(
        &self,
        table: &Table,
        hash: u64,
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<&Rc<EndpointState>> {
        for attempt in 0..self.endpoints.len() + EXTRA_PROBES {
            let index = match table {
                Table::Ring(ring) => ring.choose(hash, attempt)?,
                Table::Maglev(maglev) => maglev.choose(hash, attempt)?,
            };
            let endpoint = self.endpoints.get(index)?;
            if !avoid(endpoint) {
                return Some(endpoint);
            }
        }
        self.endpoints.iter().find(|endpoint| !avoid(endpoint))
    }

    fn table(&self, kind: &LoadBalancer) -> Table {
        let keys: Vec<(String, u32)> = self
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.address.to_string(), endpoint.weight.get().max(1)))
            .collect();
        match kind {
            LoadBalancer::Maglev { table_size } => Table::Maglev(maglev::Maglev::new(&keys, *table_size)),
            LoadBalancer::RingHash {
                minimum_ring_size,
                maximum_ring_size,
            } => Table::Ring(ring_hash::Ring::new(
                &keys,
                *minimum_ring_size,
                *maximum_ring_size,
            )),
            LoadBalancer::RoundRobin | LoadBalancer::LeastRequest { .. } | LoadBalancer::Random => {
                Table::Ring(ring_hash::Ring::new(&[], 0, 0))
            }
        }
    }
}

fn xxhash64(bytes: &[u8], seed: u64) -> u64 {
    twox_hash::XxHash64::oneshot(seed, bytes)
}

/// Endpoints for the tests of the kinds.
#[cfg(test)]
fn endpoints(weights_and_active: &[(u32, u32)]) -> Vec<Rc<EndpointState>> {
    (1..)
        .zip(weights_and_active)
        .map(|(port, &(weight, active))| {
            let state = EndpointState::for_tests(port, weight);
            state.active.set(active);
            Rc::new(state)
        })
        .collect()
}

/// What Envoy 1.40.0 chose for the 1,000 values `key-0` to `key-999` of a header, among the endpoints
/// 127.0.0.1:21001 to :21005 of these weights: the first choices, and xxHash64 of all of them.
#[cfg(test)]
struct EnvoysChoice {
    weights: [u32; 5],
    /// Indices, as digits.
    first: &'static str,
    all: u64,
}

#[cfg(test)]
impl EnvoysChoice {
    fn keys(&self) -> Vec<(String, u32)> {
        let keys = (21_001..).map(|port| format!("127.0.0.1:{port}"));
        keys.zip(self.weights).collect()
    }

    fn assert(&self, choose: impl Fn(u64) -> Option<usize>) {
        let chosen: String = (0..1000)
            .map(|i| {
                choose(xxhash64(format!("key-{i}").as_bytes(), 0))
                    .unwrap()
                    .to_string()
            })
            .collect();
        assert_eq!(&chosen[..self.first.len()], self.first, "{:?}", self.weights);
        assert_eq!(xxhash64(chosen.as_bytes(), 0), self.all, "{:?}", self.weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_steps_over_whom_to_avoid() {
        let kinds = [
            LoadBalancer::RoundRobin,
            LoadBalancer::LeastRequest { choice_count: 2 },
            LoadBalancer::Random,
            LoadBalancer::RingHash {
                minimum_ring_size: 8,
                maximum_ring_size: 1024,
            },
            LoadBalancer::Maglev { table_size: 251 },
        ];
        for kind in kinds {
            let pool = Pool::new(endpoints(&[(1, 0), (3, 5), (2, 0), (1, 1)]));
            for hash in (0..200).map(|i| i * (u64::MAX / 200)) {
                let only = &pool.endpoints()[1];
                let chosen = pool.choose(&kind, hash, |e| e.address != only.address);
                assert_eq!(chosen.unwrap().address, only.address, "{kind:?}");
                assert!(pool.choose(&kind, hash, |_| true).is_none(), "{kind:?}");
                assert!(pool.choose(&kind, hash, |_| false).is_some(), "{kind:?}");
            }
            assert!(Pool::default().choose(&kind, 1, |_| false).is_none(), "{kind:?}");
        }
    }

    #[test]
    fn a_hash_always_leads_to_the_same_endpoint() {
        for kind in [
            LoadBalancer::RingHash {
                minimum_ring_size: 1024,
                maximum_ring_size: 8192,
            },
            LoadBalancer::Maglev { table_size: 65_537 },
        ] {
            let before = Pool::new(endpoints(&[(1, 0), (1, 0), (1, 0)]));
            let after = Pool::new(endpoints(&[(1, 9), (1, 9)]));
            let mut kept = 0;
            for hash in (0..300).map(|i| i * (u64::MAX / 300)) {
                let chosen = before.choose(&kind, hash, |_| false).unwrap();
                let third = chosen.address == before.endpoints()[2].address;
                let now = after.choose(&kind, hash, |_| false).unwrap();
                kept += usize::from(!third && now.address == chosen.address);
            }
            // Two thirds stay, but for the few that a table moves.
            assert!(kept > 150, "{kind:?}: {kept}");
        }
    }
}
