//! Least request: the better of a few drawn at random (power of two choices).

use std::rc::Rc;

use crate::upstream::endpoint::EndpointState;

/// The best of `count` drawn (2 at least; one may be drawn twice, as in Envoy): the fewest connections for
/// its weight, the new one included, so that weights count among idle endpoints too.
pub(super) fn choose(
    endpoints: &[Rc<EndpointState>],
    count: u32,
    avoid: impl Fn(&EndpointState) -> bool,
) -> Option<&Rc<EndpointState>> {
    if endpoints.is_empty() {
        return None;
    }
    (0..count.max(2))
        .map(|_| &endpoints[fastrand::usize(..endpoints.len())])
        .filter(|endpoint| !avoid(endpoint))
        .reduce(better)
        // All drawn ones are to be avoided: any other will do.
        .or_else(|| {
            endpoints
                .iter()
                .filter(|endpoint| !avoid(endpoint))
                .reduce(better)
        })
}

/// The one with less to carry for its weight; the first of equals, whose order is random already.
fn better<'a>(a: &'a Rc<EndpointState>, b: &'a Rc<EndpointState>) -> &'a Rc<EndpointState> {
    let load = |x: &EndpointState, y: &EndpointState| {
        (u64::from(x.active.get()) + 1) * u64::from(y.weight.get().max(1))
    };
    if load(b, a) < load(a, b) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::load_balancer::endpoints;

    #[test]
    fn the_better_of_two() {
        for (pair, expected) in [
            ([(1, 3), (1, 2)], 1),
            ([(1, 2), (1, 3)], 0),
            ([(1, 0), (1, 0)], 0),
            ([(1, 0), (5, 0)], 1),
            ([(1, 0), (2, 2)], 0),
        ] {
            let pair = endpoints(&pair);
            assert!(Rc::ptr_eq(better(&pair[0], &pair[1]), &pair[expected]));
        }
    }

    #[test]
    fn the_busiest_is_chosen_only_against_itself() {
        let endpoints = endpoints(&[(1, 9), (1, 0), (1, 0), (1, 0)]);
        let busy = |count| {
            (0..4000)
                .filter(|_| choose(&endpoints, count, |_| false).unwrap().active.get() == 9)
                .count()
        };
        // 1 in 16 for two draws, 1 in 256 for four.
        assert!((100..450).contains(&busy(2)), "{}", busy(2));
        assert!(busy(4) < 60, "{}", busy(4));
    }
}
