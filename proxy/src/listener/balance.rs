//! `exact_balance`: which worker takes a connection, so that all have equally many.
//!
//! Owns the counts of the listeners that ask for it. Each worker accepts from its own socket and hands
//! the connection to the one with the fewest; the lock that makes that exact is taken at the start
//! and the end of such a listener's connections only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The counts of all listeners, by name. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Balances {
    workers: usize,
    by_listener: Arc<Mutex<HashMap<String, Balance>>>,
}

/// One listener's live connections, by worker. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Balance(Arc<Mutex<Vec<u32>>>);

/// One connection in a worker's count; given back when dropped.
#[derive(Debug)]
pub struct Place {
    balance: Balance,
    /// Whose it is.
    pub worker: usize,
}

impl Balances {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            by_listener: Arc::default(),
        }
    }

    /// The counts of the listener called `name`.
    pub fn get(&self, name: &str) -> Balance {
        let mut all = self.by_listener.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, balance| Arc::strong_count(&balance.0) > 1);
        let fresh = || Balance(Arc::new(Mutex::new(vec![0; self.workers])));
        all.entry(name.to_owned()).or_insert_with(fresh).clone()
    }
}

impl Balance {
    /// A place at the worker with the fewest connections; `own` where several have as few, which saves
    /// handing it over.
    pub fn place(&self, own: usize) -> Place {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fewest = counts.iter().copied().min().unwrap_or_default();
        let worker = if counts.get(own) == Some(&fewest) {
            own
        } else {
            counts.iter().position(|count| *count == fewest).unwrap_or(own)
        };
        self.enter(&mut counts, worker)
    }

    /// A place at `worker`, where nobody else can take the connection.
    pub fn place_at(&self, worker: usize) -> Place {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter(&mut counts, worker)
    }

    fn enter(&self, counts: &mut [u32], worker: usize) -> Place {
        if let Some(count) = counts.get_mut(worker) {
            *count += 1;
        }
        Place {
            balance: self.clone(),
            worker,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.balance.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(self.worker) {
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_take_it_and_places_are_given_back() {
        let balances = Balances::new(3);
        let balance = balances.get("l");
        let places: Vec<Place> = (0..6).map(|_| balance.place(1)).collect();
        let workers: Vec<usize> = places.iter().map(|place| place.worker).collect();
        assert_eq!(workers, [1, 0, 2, 1, 0, 2]);
        drop(places);
        assert_eq!(balances.get("l").place(0).worker, 0, "all are idle again");
        let busy = balance.place_at(0);
        assert_eq!(balance.place(0).worker, 1);
        drop(busy);
    }
}
