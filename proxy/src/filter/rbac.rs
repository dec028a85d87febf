//! The RBAC network filter: one pure check at a connection's start, the same again when rules change.

use std::sync::Arc;

use crate::model::listener::{FilterChain, NetworkFilter};
use crate::model::{Action, Rbac, SpiffeId, Verdict};

/// The verdict of a chain's RBAC filters on a peer: the first denial, else the last allowance. `None`
/// where the chain has no RBAC filter.
pub fn check(chain: &FilterChain, peer: Option<&SpiffeId>) -> Option<Verdict> {
    let mut allowed = None;
    for rbac in rules(chain) {
        let verdict = rbac.evaluate(peer);
        if verdict.action == Action::Deny {
            return Some(verdict);
        }
        allowed = Some(verdict);
    }
    allowed
}

/// Whether two chains have the same rules, so that live connections need no second look.
pub fn same_rules(a: &FilterChain, b: &FilterChain) -> bool {
    rules(a).eq(rules(b))
}

fn rules(chain: &FilterChain) -> impl Iterator<Item = &Arc<Rbac>> {
    chain.filters.iter().filter_map(|filter| match filter {
        NetworkFilter::Rbac(rbac) => Some(rbac),
        NetworkFilter::ConnectionLimit { .. } => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::listener::{TcpProxy, Terminal};

    fn chain(filters: Vec<NetworkFilter>) -> FilterChain {
        let terminal = Terminal::TcpProxy(TcpProxy {
            cluster: "c".into(),
            idle_timeout: None,
        });
        FilterChain {
            transport: None,
            filters,
            terminal,
        }
    }

    fn rbac(default_action: Action, name: &str) -> NetworkFilter {
        NetworkFilter::Rbac(Arc::new(Rbac {
            rules: vec![],
            default_action,
            default_name: name.into(),
        }))
    }

    #[test]
    fn one_denial_among_several_filters_denies() {
        let peer = SpiffeId::parse("spiffe://td/ns/default/dc/dc1/svc/web").unwrap();
        let both = chain(vec![rbac(Action::Allow, "a"), rbac(Action::Deny, "b")]);
        let verdict = check(&both, Some(&peer)).unwrap();
        assert_eq!((verdict.action, &*verdict.policy), (Action::Deny, "b"));
        assert!(check(&chain(vec![]), Some(&peer)).is_none());
        assert!(same_rules(&both, &both.clone()));
        assert!(!same_rules(&both, &chain(vec![rbac(Action::Allow, "a")])));
    }
}
