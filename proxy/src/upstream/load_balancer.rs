//! The choice among endpoints: least loaded, ties broken at random.

use std::rc::Rc;

use super::cluster::EndpointState;
use crate::model::Target;

/// The healthy endpoint with the fewest live connections for its weight, among those not in `tried`.
/// Every one of several equally loaded endpoints is as likely as the others.
pub fn least_loaded(endpoints: &[Rc<EndpointState>], tried: &[Target]) -> Option<Rc<EndpointState>> {
    let mut best: Option<&Rc<EndpointState>> = None;
    let mut ties = 0;
    for endpoint in endpoints
        .iter()
        .filter(|e| e.healthy.get() && !tried.contains(&e.address))
    {
        match best.map(|b| load(endpoint).cmp(&load(b))) {
            Some(std::cmp::Ordering::Greater) => {}
            Some(std::cmp::Ordering::Equal) => {
                ties += 1;
                if fastrand::u32(0..ties) == 0 {
                    best = Some(endpoint);
                }
            }
            Some(std::cmp::Ordering::Less) | None => {
                ties = 1;
                best = Some(endpoint);
            }
        }
    }
    best.cloned()
}

/// Live connections by weight, as a fraction over the weights' common multiple.
fn load(endpoint: &EndpointState) -> u64 {
    // Weights are 1 to 128; scaling keeps the quotient's precision without floats.
    u64::from(endpoint.active.get()) * 1_000_000 / u64::from(endpoint.weight.get().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;
    use crate::model::listener::Address;

    fn endpoint(port: u16, weight: u32, active: u32) -> Rc<EndpointState> {
        let address = Target::Address(Address::Socket(([127, 0, 0, 1], port).into()));
        let state = EndpointState::new(&Endpoint {
            address,
            weight,
            healthy: true,
            priority: 0,
        });
        state.active.set(active);
        Rc::new(state)
    }

    #[test]
    fn the_least_loaded_for_its_weight_wins() {
        let endpoints = [endpoint(1, 1, 1), endpoint(2, 4, 3), endpoint(3, 1, 2)];
        assert_eq!(
            least_loaded(&endpoints, &[]).unwrap().address,
            endpoints[1].address
        );
        let tried = [endpoints[1].address.clone()];
        assert_eq!(
            least_loaded(&endpoints, &tried).unwrap().address,
            endpoints[0].address
        );
    }

    #[test]
    fn ties_are_spread() {
        let endpoints = [endpoint(1, 1, 0), endpoint(2, 1, 0), endpoint(3, 1, 0)];
        for wanted in &endpoints {
            // A choice that never came up in 1,000 draws of 1 in 3 would be a broken tie-break.
            assert!((0..1000).any(|_| least_loaded(&endpoints, &[]).unwrap().address == wanted.address));
        }
    }

    #[test]
    fn unhealthy_ones_are_never_chosen() {
        let endpoints = [endpoint(1, 1, 0)];
        endpoints[0].healthy.set(false);
        assert!(least_loaded(&endpoints, &[]).is_none());
    }
}
