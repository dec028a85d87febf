//! Random: any endpoint, as often as its weight says.

use std::rc::Rc;

use crate::upstream::endpoint::EndpointState;

/// Draws one. (Envoy's `RANDOM` ignores weights; Consul's weights are meant, so here they count.)
pub(super) fn choose(
    endpoints: &[Rc<EndpointState>],
    avoid: impl Fn(&EndpointState) -> bool,
) -> Option<&Rc<EndpointState>> {
    let may = || endpoints.iter().filter(|endpoint| !avoid(endpoint));
    let sum: u64 = may().map(|endpoint| u64::from(endpoint.weight.get())).sum();
    if sum == 0 {
        return may().next();
    }
    let mut left = fastrand::u64(..sum);
    may().find(|endpoint| {
        let weight = u64::from(endpoint.weight.get());
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::load_balancer::endpoints;

    #[test]
    fn shares_follow_the_weights() {
        let endpoints = endpoints(&[(1, 0), (3, 0)]);
        let heavy = (0..4000)
            .filter(|_| choose(&endpoints, |_| false).unwrap().weight.get() == 3)
            .count();
        // 3,000 expected; ten standard deviations (27 each) either way.
        assert!((2700..3300).contains(&heavy), "{heavy}");
    }
}
