//! `/v1/discovery-chain/:service`: a chain is whole or refused by field.

#![no_main]

use attache::control::consul::chain::{self, ChainNode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(chain) = attache_fuzz::decode(body, chain::decode) else {
        return;
    };
    assert!(!chain.start.is_empty());
    for node in chain.nodes.values() {
        match node {
            ChainNode::Resolver {
                target,
                connect_timeout,
                ..
            } => {
                assert!(!target.is_empty());
                // A timeout of zero would fail every dial.
                assert!(connect_timeout.is_none_or(|timeout| !timeout.is_zero()));
            }
            ChainNode::Router { routes } => {
                assert!(routes.iter().all(|route| !route.next.is_empty()));
            }
            ChainNode::Splitter { splits, .. } => {
                assert!(
                    splits
                        .iter()
                        .all(|split| !split.next.is_empty() && split.weight <= 10_000)
                );
            }
            ChainNode::Other { kind } => assert!(!kind.is_empty() && kind != "resolver"),
        }
    }
    assert!(chain.targets.values().all(|target| !target.service.is_empty()));
});
