//! Counts that all workers share: connections of a listener or cluster against a configured limit.
//!
//! The only atomics on a connection's path, one at its start and one at its end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// All counts of a process, by name. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Limits(Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>);

/// One count.
#[derive(Clone, Debug)]
pub struct Limit(Arc<AtomicU64>);

/// One unit of a count, given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU64>);

impl Limits {
    /// The count called `name`. To be resolved once, not on a connection's path.
    pub fn get(&self, name: &str) -> Limit {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What only this map holds is gone from every worker and counts nothing.
        counts.retain(|_, count| Arc::strong_count(count) > 1);
        Limit(Arc::clone(counts.entry(name.to_owned()).or_default()))
    }
}

impl Limit {
    /// Takes a unit unless `max` are taken.
    pub fn acquire(&self, max: u64) -> Option<Permit> {
        if self.0.fetch_add(1, Ordering::Relaxed) >= max {
            self.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_given_back() {
        let limits = Limits::default();
        let limit = limits.get("x");
        let first = limit.acquire(1);
        assert!(first.is_some() && limits.get("x").acquire(1).is_none());
        drop(first);
        assert!(limits.get("x").acquire(1).is_some());
    }
}
