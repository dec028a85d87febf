//! What is new about roots and rules, for the log.
//!
//! Compares the old with the new and says the difference; decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::http::HttpFilter;
use crate::model::rbac::Rbac;
use crate::model::{FilterChain, NetworkFilter, Snapshot, Terminal, TrustBundle};

/// How many of what came or went are named in a line.
const MAX_NAMED: usize = 10;

/// Tells the authorities that came and went.
pub(super) fn roots(old: Option<&TrustBundle>, new: &TrustBundle) {
    let serials = |bundle: Option<&TrustBundle>| -> BTreeSet<String> {
        let facts = bundle.map_or(&[][..], |bundle| &bundle.roots.facts);
        facts.iter().map(|fact| fact.serial.clone()).collect()
    };
    let (before, after) = (serials(old), serials(Some(new)));
    let (added, removed) = (beyond(&after, &before), beyond(&before, &after));
    let trust_domain = &*new.trust_domain;
    match old {
        Some(old) if old.trust_domain != new.trust_domain => {
            let old = &*old.trust_domain;
            tracing::warn!(
                old,
                trust_domain,
                added,
                removed,
                "Consul has another authority: live connections stay until its leaf and the \
                 intentions are known"
            );
        }
        _ => tracing::info!(trust_domain, added, removed, "roots"),
    }
}

/// Tells the rules in force for inbound connections where they are not the ones of before.
pub(super) fn rules(old: Option<&Snapshot>, new: &Snapshot) {
    let Some(after) = inbound(new) else {
        return;
    };
    let before = old.and_then(inbound);
    if before.is_some_and(|before| Arc::ptr_eq(before, after)) {
        return;
    }
    if let Some(news) = Change::between(before.map(|before| &**before), after) {
        let Change { added, removed } = news;
        let (rules, default) = (after.rules.len(), &*after.default_name);
        tracing::info!(rules, default, added, removed, "the rules in force");
    }
}

/// Which rules came and went, in words.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    added: String,
    removed: String,
}

impl Change {
    /// None where the same rules only stand over another trust domain.
    fn between(before: Option<&Rbac>, after: &Rbac) -> Option<Self> {
        let names = |rbac: &Rbac| -> BTreeSet<String> {
            rbac.rules.iter().map(|rule| rule.name.to_string()).collect()
        };
        let (old, new) = (before.map(names).unwrap_or_default(), names(after));
        let default_kept = before.is_some_and(|before| before.default_name == after.default_name);
        (old != new || !default_kept).then(|| Self {
            added: beyond(&new, &old),
            removed: beyond(&old, &new),
        })
    }
}

fn inbound(snapshot: &Snapshot) -> Option<&Arc<Rbac>> {
    let listeners = snapshot.listeners.values();
    let mut chains = listeners.flat_map(|listener| listener.chains());
    chains.find_map(|chain| of_connections(chain).or_else(|| of_requests(chain)))
}

fn of_connections(chain: &FilterChain) -> Option<&Arc<Rbac>> {
    chain.filters.iter().find_map(|filter| match filter {
        NetworkFilter::Rbac { rules, .. } => Some(rules),
        _ => None,
    })
}

fn of_requests(chain: &FilterChain) -> Option<&Arc<Rbac>> {
    let Terminal::HttpConnectionManager(manager) = &chain.terminal else {
        return None;
    };
    manager.http_filters.iter().find_map(|filter| match filter {
        HttpFilter::Rbac { rules, .. } => rules.as_ref(),
        _ => None,
    })
}

/// What `these` have beyond `those`, as plain text.
fn beyond(these: &BTreeSet<String>, those: &BTreeSet<String>) -> String {
    let mut more = these.difference(those);
    let named: Vec<&str> = more.by_ref().take(MAX_NAMED).map(String::as_str).collect();
    let text = named.join(", ");
    match more.count() {
        0 => text,
        rest => format!("{text} and {rest} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rbac::{Action, Permission, Principal, Rule};

    fn rbac(rules: &[&str], default: &str) -> Rbac {
        let rule = |name: &&str| Rule {
            name: (*name).into(),
            action: Action::Allow,
            principal: Principal::Service {
                trust_domain: None,
                partition: None,
                namespace: None,
                service: None,
            },
            permission: Permission::Any,
        };
        Rbac {
            rules: rules.iter().map(rule).collect(),
            default_action: Action::Deny,
            default_name: default.into(),
            spiffe_only: true,
        }
    }

    #[test]
    fn rules_that_come_and_go_are_named_in_plain_words() {
        let old = rbac(&["web -> api: allow", "x -> api: deny"], "default policy: deny");
        let new = rbac(&["web -> api: deny", "x -> api: deny"], "default policy: deny");
        let change = Change::between(Some(&old), &new).unwrap();
        assert_eq!(change.added, "web -> api: deny");
        assert_eq!(change.removed, "web -> api: allow");
        assert_eq!(Change::between(Some(&old), &old), None);
        let open = rbac(&["web -> api: allow", "x -> api: deny"], "default policy: allow");
        let change = Change::between(Some(&old), &open).unwrap();
        assert_eq!((change.added.as_str(), change.removed.as_str()), ("", ""));
        assert!(Change::between(None, &rbac(&[], "default policy: deny")).is_some());
        let many: Vec<String> = (0..12).map(|n| format!("{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let change = Change::between(None, &rbac(&many, "")).unwrap();
        assert!(change.added.ends_with("08, 09 and 2 more"), "{}", change.added);
    }
}
