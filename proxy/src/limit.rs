//! What all workers share: counts of a listener's or cluster's connections against a configured limit, and
//! state of other modules by name.
//!
//! The only atomics on a connection's path, one at its start and one at its end.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// All counts of a process, by name. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    counts: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
    shared: Arc<Mutex<HashMap<(TypeId, String), Shared>>>,
}

/// State of another module, of the type that its key says.
type Shared = Arc<dyn Any + Send + Sync>;

/// One count.
#[derive(Clone, Debug)]
pub struct Limit(Arc<AtomicU64>);

/// One unit of a count, given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU64>);

impl Limits {
    /// The count called `name`. To be resolved once, not on a connection's path.
    pub fn get(&self, name: &str) -> Limit {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // What only this map holds is gone from every worker and counts nothing.
        counts.retain(|_, count| Arc::strong_count(count) > 1);
        Limit(Arc::clone(counts.entry(name.to_owned()).or_default()))
    }

    /// The `T` called `name`, made when the first worker asks. To be resolved once, not on a connection's
    /// path.
    pub fn shared<T: Default + Send + Sync + 'static>(&self, name: &str) -> Arc<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, state| Arc::strong_count(state) > 1);
        let state = shared
            .entry((TypeId::of::<T>(), name.to_owned()))
            .or_insert_with(|| Arc::<T>::default());
        // The key holds the type, so the other branch is never taken.
        Arc::clone(state).downcast().unwrap_or_default()
    }
}

impl Limit {
    /// How many are taken; a moment's figure, which a refused [`Self::acquire`] overstates by one.
    pub fn taken(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

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

    #[test]
    fn state_is_shared_by_type_and_name_while_anybody_has_it() {
        let limits = Limits::default();
        let first: Arc<AtomicU64> = limits.shared("x");
        first.store(7, Ordering::Relaxed);
        assert!(Arc::ptr_eq(&first, &limits.shared("x")));
        assert!(!Arc::ptr_eq(&first, &limits.shared("y")));
        assert!(!*limits.shared::<Mutex<bool>>("x").lock().unwrap());
        drop(first);
        assert_eq!(limits.shared::<AtomicU64>("x").load(Ordering::Relaxed), 0);
    }
}
