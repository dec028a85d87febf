//! Round robin: endpoints take turns, each as often as its weight says, for requests over shared connections.
//!
//! Smooth: of weights 2 and 1 the turns are a, b, a, and not a, a, b. The first turn is any endpoint's, so that
//! many workers and sidecars do not all begin with the same one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::upstream::endpoint::EndpointState;

/// A weight is a whole number of at least 1: parts of it are counted in thousandths.
const SCALE: i64 = 1000;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The next one, where all weigh the same.
    next: Cell<usize>,
    /// What each has in hand, where they do not: the one with the most is next.
    credit: RefCell<Vec<i64>>,
}

impl Turns {
    pub(super) fn new(endpoints: &[Rc<EndpointState>]) -> Self {
        let equal = endpoints
            .windows(2)
            .all(|pair| pair[0].weight.get() == pair[1].weight.get());
        let credit =
            |endpoint: &Rc<EndpointState>| fastrand::i64(0..=i64::from(endpoint.weight.get()) * SCALE);
        Self {
            next: Cell::new(fastrand::usize(..endpoints.len().max(1))),
            credit: RefCell::new(if equal {
                Vec::new()
            } else {
                endpoints.iter().map(credit).collect()
            }),
        }
    }

    pub(super) fn is_weighted(&self) -> bool {
        !self.credit.borrow().is_empty()
    }

    pub(super) fn take<'a>(
        &self,
        endpoints: &'a [Rc<EndpointState>],
        by_load: bool,
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<&'a Rc<EndpointState>> {
        let credit = &mut *self.credit.borrow_mut();
        if credit.is_empty() {
            return self.take_equal(endpoints, avoid);
        }
        let mut best: Option<usize> = None;
        let mut sum = 0;
        for (index, endpoint) in endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| !avoid(endpoint))
        {
            let load = if by_load {
                i64::from(endpoint.active.get())
            } else {
                0
            };
            let weight = i64::from(endpoint.weight.get()) * SCALE / (load + 1);
            sum += weight;
            credit[index] += weight;
            if best.is_none_or(|best| credit[best] < credit[index]) {
                best = Some(index);
            }
        }
        let best = best?;
        credit[best] -= sum;
        endpoints.get(best)
    }

    fn take_equal<'a>(
        &self,
        endpoints: &'a [Rc<EndpointState>],
        avoid: impl Fn(&EndpointState) -> bool,
    ) -> Option<&'a Rc<EndpointState>> {
        let from = self.next.get();
        let (before, after) = endpoints.split_at_checked(from)?;
        let (offset, chosen) = after
            .iter()
            .chain(before)
            .enumerate()
            .find(|(_, endpoint)| !avoid(endpoint))?;
        self.next.set((from + offset + 1) % endpoints.len());
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::load_balancer::endpoints;

    fn count(endpoints: &[Rc<EndpointState>], turns: usize, avoided: usize) -> Vec<usize> {
        let state = Turns::new(endpoints);
        let mut counts = vec![0; endpoints.len()];
        for _ in 0..turns {
            let avoid = |endpoint: &EndpointState| {
                endpoints
                    .get(avoided)
                    .is_some_and(|avoided| avoided.address == endpoint.address)
            };
            let chosen = state.take(endpoints, false, avoid).unwrap();
            let index = endpoints.iter().position(|endpoint| Rc::ptr_eq(endpoint, chosen));
            counts[index.unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn turns_follow_the_weights() {
        assert_eq!(
            count(&endpoints(&[(1, 9), (1, 0), (1, 0)]), 300, 9),
            [100, 100, 100]
        );
        let weighted = count(&endpoints(&[(3, 0), (1, 0)]), 400, 9);
        assert!((299..=301).contains(&weighted[0]), "{weighted:?}");
    }

    #[test]
    fn load_takes_its_part_of_a_weight() {
        let endpoints = endpoints(&[(4, 3), (2, 0)]);
        let turns = Turns::new(&endpoints);
        let chosen = (0..300).map(|_| turns.take(&endpoints, true, |_| false).unwrap());
        let second = chosen.filter(|chosen| Rc::ptr_eq(chosen, &endpoints[1])).count();
        assert!((199..=201).contains(&second), "{second}");
    }

    #[test]
    fn whom_to_avoid_has_no_turn() {
        assert_eq!(count(&endpoints(&[(1, 0), (1, 0), (1, 0)]), 200, 1)[1], 0);
        assert_eq!(count(&endpoints(&[(5, 0), (1, 0), (2, 0)]), 200, 0)[0], 0);
        let all = endpoints(&[(1, 0), (2, 0)]);
        assert!(Turns::new(&all).take(&all, false, |_| true).is_none());
        assert!(Turns::new(&[]).take(&[], false, |_| false).is_none());
    }
}
