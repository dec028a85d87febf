//! Who may connect: ordered rules over a peer, and the pure decision.
//!
//! First match wins, then the default. This holds both Consul's precedence order and Envoy's RBAC
//! (action ALLOW: every policy an allow rule, default deny; action DENY: the reverse).

use std::fmt;
use std::sync::Arc;

use super::spiffe::SpiffeId;

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Allow,
    /// Refuse it.
    Deny,
}

/// The rules of one filter chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rbac {
    /// In order of precedence.
    pub rules: Vec<Rule>,
    /// For a peer that no rule names.
    pub default_action: Action,
    /// Names the default in logs, such as `default policy: deny`.
    pub default_name: Arc<str>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Names the rule in logs: for Consul, the intention (`web -> api: deny`).
    pub name: Arc<str>,
    /// What happens to a peer that matches.
    pub action: Action,
    /// Whom it matches.
    pub principal: Principal,
}

/// Whom a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A service of the mesh by its SPIFFE ID's parts; `None` is Consul's `*`. The datacenter is
    /// never looked at: Consul's intentions hold across datacenters.
    Service {
        /// Must be equal. `None` is any: a connection outlives the authority that let it in.
        trust_domain: Option<Arc<str>>,
        /// Consul Enterprise; `default` otherwise.
        partition: Option<Arc<str>>,
        /// Consul Enterprise; `default` otherwise.
        namespace: Option<Arc<str>>,
        /// The caller's service name.
        service: Option<Arc<str>>,
    },
}

/// The outcome, with the rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allow or deny.
    pub action: Action,
    /// The rule's name, or the default's.
    pub policy: Arc<str>,
}

impl Rbac {
    /// Denies everybody, saying `why`: the state before any rules are known.
    pub fn deny_all(why: &str) -> Self {
        Self {
            rules: Vec::new(),
            default_action: Action::Deny,
            default_name: why.into(),
        }
    }

    /// The verdict on a peer. Without a SPIFFE ID no rule matches and the answer is deny.
    pub fn evaluate(&self, peer: Option<&SpiffeId>) -> Verdict {
        let Some(peer) = peer else {
            return Verdict {
                action: Action::Deny,
                policy: "no SPIFFE ID".into(),
            };
        };
        match self.rules.iter().find(|rule| rule.principal.matches(peer)) {
            Some(rule) => Verdict {
                action: rule.action,
                policy: Arc::clone(&rule.name),
            },
            None => Verdict {
                action: self.default_action,
                policy: Arc::clone(&self.default_name),
            },
        }
    }
}

impl Principal {
    fn matches(&self, peer: &SpiffeId) -> bool {
        let Self::Service {
            trust_domain,
            partition,
            namespace,
            service,
        } = self;
        let Some(id) = peer.service() else {
            return false;
        };
        let part = |want: &Option<Arc<str>>, have: &str| want.as_deref().is_none_or(|w| w == have);
        part(trust_domain, peer.trust_domain())
            && part(partition, &id.partition)
            && part(namespace, &id.namespace)
            && part(service, &id.service)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: Option<&str>) -> Principal {
        Principal::Service {
            trust_domain: Some("td.consul".into()),
            partition: Some("default".into()),
            namespace: Some("default".into()),
            service: name.map(Into::into),
        }
    }

    fn peer(uri: &str) -> SpiffeId {
        SpiffeId::parse(uri).unwrap()
    }

    #[test]
    fn first_match_wins_and_is_named() {
        let rbac = Rbac {
            rules: vec![
                Rule {
                    name: "web".into(),
                    action: Action::Deny,
                    principal: service(Some("web")),
                },
                Rule {
                    name: "*".into(),
                    action: Action::Allow,
                    principal: service(None),
                },
            ],
            default_action: Action::Deny,
            default_name: "default".into(),
        };
        let verdict = rbac.evaluate(Some(&peer("spiffe://td.consul/ns/default/dc/dc1/svc/web")));
        assert_eq!((verdict.action, &*verdict.policy), (Action::Deny, "web"));
        let verdict = rbac.evaluate(Some(&peer("spiffe://td.consul/ns/default/dc/dc9/svc/other")));
        assert_eq!((verdict.action, &*verdict.policy), (Action::Allow, "*"));
        let verdict = rbac.evaluate(Some(&peer("spiffe://other.consul/ns/default/dc/dc1/svc/web")));
        assert_eq!((verdict.action, &*verdict.policy), (Action::Deny, "default"));
        let verdict = rbac.evaluate(Some(&peer("spiffe://td.consul/ns/prod/dc/dc1/svc/web")));
        assert_eq!(&*verdict.policy, "default");
    }

    #[test]
    fn nobody_is_denied_even_by_default_allow() {
        let rbac = Rbac {
            rules: vec![],
            default_action: Action::Allow,
            default_name: "d".into(),
        };
        assert_eq!(rbac.evaluate(None).action, Action::Deny);
        let gateway = peer("spiffe://td.consul/gateway/mesh/dc/dc1");
        assert_eq!(rbac.evaluate(Some(&gateway)).action, Action::Allow);
    }
}
