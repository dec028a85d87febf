//! Least loaded: the fewest connections for the weight, ties broken at random.
//!
//! Stands where Envoy takes turns: connections of TCP are long, and turns do not see their ends.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::upstream::endpoint::EndpointState;

/// Up to here every endpoint is looked at; of more, as many are drawn: the best of 128 is close to the best
/// of thousands, whose counts would all have to be fetched from memory for each connection.
const LOOKED_AT: usize = 128;

/// The endpoint with the fewest live connections for its weight. Every one of several equally loaded
/// endpoints is as likely as the others.
pub(super) fn choose(
    endpoints: &[Rc<EndpointState>],
    avoid: impl Fn(&EndpointState) -> bool,
) -> Option<&Rc<EndpointState>> {
    if endpoints.len() > LOOKED_AT {
        let drawn = (0..LOOKED_AT).map(|_| &endpoints[fastrand::usize(..endpoints.len())]);
        if let Some(best) = least(drawn, &avoid) {
            return Some(best);
        }
    }
    least(endpoints.iter(), avoid)
}

fn least<'a>(
    endpoints: impl Iterator<Item = &'a Rc<EndpointState>>,
    avoid: impl Fn(&EndpointState) -> bool,
) -> Option<&'a Rc<EndpointState>> {
    let mut best: Option<&Rc<EndpointState>> = None;
    let mut ties = 0;
    for endpoint in endpoints.filter(|endpoint| !avoid(endpoint)) {
        match best.map(|best| compare(endpoint, best)) {
            Some(Ordering::Greater) => {}
            Some(Ordering::Equal) => {
                ties += 1;
                if fastrand::u32(0..ties) == 0 {
                    best = Some(endpoint);
                }
            }
            Some(Ordering::Less) | None => {
                ties = 1;
                best = Some(endpoint);
            }
        }
    }
    best
}

/// Compares connections by weight, crosswise so that nothing is rounded.
fn compare(a: &EndpointState, b: &EndpointState) -> Ordering {
    let load = |x: &EndpointState, y: &EndpointState| u64::from(x.active.get()) * u64::from(y.weight.get());
    load(a, b).cmp(&load(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::load_balancer::endpoints;

    #[test]
    fn the_least_loaded_for_its_weight_wins() {
        let endpoints = endpoints(&[(1, 1), (4, 3), (1, 2)]);
        let best = choose(&endpoints, |_| false).unwrap();
        assert!(Rc::ptr_eq(best, &endpoints[1]));
        let next = choose(&endpoints, |e| e.weight.get() == 4).unwrap();
        assert!(Rc::ptr_eq(next, &endpoints[0]));
    }

    #[test]
    fn ties_are_spread() {
        let endpoints = endpoints(&[(1, 0), (1, 0), (1, 0)]);
        for wanted in &endpoints {
            // A choice that never came up in 1,000 draws of 1 in 3 would be a broken tie-break.
            assert!((0..1000).any(|_| Rc::ptr_eq(choose(&endpoints, |_| false).unwrap(), wanted)));
        }
    }

    #[test]
    fn of_thousands_an_idle_one_is_found() {
        let mut loads = vec![(1, 5); 2000];
        loads[..1000].fill((1, 0));
        let endpoints = endpoints(&loads);
        assert!((0..100).all(|_| choose(&endpoints, |_| false).unwrap().active.get() == 0));
        let last = endpoints.last().unwrap();
        let only = choose(&endpoints, |e| e.address != last.address).unwrap();
        assert!(Rc::ptr_eq(only, last));
    }
}
