//! The RBAC network filter: one pure check at a connection's start, the same again when rules change.

use std::sync::Arc;

use crate::model::listener::{FilterChain, NetworkFilter};
use crate::model::{Action, Downstream, Rbac, Verdict};

/// The verdict of a chain's RBAC filters on a connection: the first denial, else the last allowance. `None`
/// where the chain has no RBAC filter.
pub fn check(chain: &FilterChain, downstream: &Downstream) -> Option<Verdict> {
    let mut allowed = None;
    for rbac in rules(chain) {
        let verdict = rbac.evaluate(downstream, None);
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

/// Whether a chain has an RBAC filter.
pub fn has_rules(chain: &FilterChain) -> bool {
    rules(chain).next().is_some()
}

fn rules(chain: &FilterChain) -> impl Iterator<Item = &Arc<Rbac>> {
    chain.filters.iter().filter_map(|filter| match filter {
        NetworkFilter::Rbac { rules, .. } => Some(rules),
        NetworkFilter::ConnectionLimit { .. } | NetworkFilter::SniCluster => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::filter_chain_match::FilterChainMatch;
    use crate::model::listener::{TcpProxy, Terminal};

    fn chain(filters: Vec<NetworkFilter>) -> FilterChain {
        let terminal = Terminal::TcpProxy(TcpProxy::to("c".into(), "c".into()));
        FilterChain {
            name: "".into(),
            matches: FilterChainMatch::default(),
            transport: None,
            filters,
            terminal,
        }
    }

    fn rbac(default_action: Action, name: &str) -> NetworkFilter {
        NetworkFilter::Rbac {
            rules: Arc::new(Rbac {
                rules: vec![],
                default_action,
                default_name: name.into(),
                spiffe_only: false,
            }),
            stat_prefix: "connect_authz".into(),
        }
    }

    #[test]
    fn one_denial_among_several_filters_denies() {
        let nobody = Downstream::default();
        let both = chain(vec![rbac(Action::Allow, "a"), rbac(Action::Deny, "b")]);
        let verdict = check(&both, &nobody).unwrap();
        assert_eq!((verdict.action, &*verdict.policy), (Action::Deny, "b"));
        assert!(check(&chain(vec![]), &nobody).is_none());
        assert!(same_rules(&both, &both.clone()));
        assert!(!same_rules(&both, &chain(vec![rbac(Action::Allow, "a")])));
    }
}
