//! Who may connect or ask for what: ordered rules over a connection and request, and the pure decision.
//!
//! First match wins, then the default. This holds both Consul's precedence order and Envoy's RBAC
//! (action ALLOW: every policy an allow rule, default deny; action DENY: the reverse).

use std::fmt;
use std::sync::Arc;

use super::downstream::Downstream;
use super::matcher::{Cidr, HeaderMatcher, MetadataMatcher, Request, StringMatcher};

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
    /// Denies whoever has no SPIFFE ID before any rule is asked: Consul's intentions are about services,
    /// and a default that allows must not let in who has no name at all.
    pub spiffe_only: bool,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Names the rule in logs: for Consul, the intention (`web -> api: deny`).
    pub name: Arc<str>,
    /// What happens to a connection or request that matches.
    pub action: Action,
    /// Whom it matches.
    pub principal: Principal,
    /// What it matches.
    pub permission: Permission,
}

/// Whom a rule matches (Envoy's `Principal`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Everybody, the nameless included.
    Any,
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
    /// `authenticated`: a verified certificate, with a name that matches where one is asked for
    /// ([`super::downstream::Peer::principals`]).
    Authenticated(Option<StringMatcher>),
    /// `source_ip` and `remote_ip`: the address that connected, or that a PROXY header says did.
    SourceIp(Cidr),
    /// `direct_remote_ip`: the address that connected, which nobody can make up.
    DirectRemoteIp(Cidr),
    /// `header`: of a request.
    Header(HeaderMatcher),
    /// `url_path`: of a request, without its query.
    UrlPath(StringMatcher),
    /// `metadata`: what an earlier filter found out about a request.
    Metadata(MetadataMatcher),
    /// `and_ids`.
    All(Vec<Principal>),
    /// `or_ids`.
    AnyOf(Vec<Principal>),
    /// `not_id`.
    Not(Box<Principal>),
}

/// What a rule matches (Envoy's `Permission`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Everything.
    Any,
    /// `destination_ip`: where the connection went.
    DestinationIp(Cidr),
    /// `destination_port` and `destination_port_range`: from the first (included) to the second
    /// (excluded).
    DestinationPorts(u32, u32),
    /// `requested_server_name`: the SNI; none is the empty text.
    RequestedServerName(StringMatcher),
    /// `header`: of a request.
    Header(HeaderMatcher),
    /// `url_path`: of a request, without its query.
    UrlPath(StringMatcher),
    /// `metadata`: what an earlier filter found out about a request.
    Metadata(MetadataMatcher),
    /// `and_rules`.
    All(Vec<Permission>),
    /// `or_rules`.
    AnyOf(Vec<Permission>),
    /// `not_rule`.
    Not(Box<Permission>),
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
            spiffe_only: true,
        }
    }

    /// The verdict on a connection, or on a request of it.
    pub fn evaluate(&self, downstream: &Downstream, request: Option<&dyn Request>) -> Verdict {
        if self.spiffe_only && downstream.spiffe_id().is_none() {
            return Verdict {
                action: Action::Deny,
                policy: "no SPIFFE ID".into(),
            };
        }
        let matches = |rule: &&Rule| {
            rule.principal.matches(downstream, request) && rule.permission.matches(downstream, request)
        };
        match self.rules.iter().find(matches) {
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
    fn matches(&self, downstream: &Downstream, request: Option<&dyn Request>) -> bool {
        match self {
            Self::Any => true,
            Self::Service {
                trust_domain,
                partition,
                namespace,
                service,
            } => {
                let Some((peer, id)) = downstream.spiffe_id().and_then(|p| Some((p, p.service()?))) else {
                    return false;
                };
                let part = |want: &Option<Arc<str>>, have: &str| want.as_deref().is_none_or(|w| w == have);
                part(trust_domain, peer.trust_domain())
                    && part(partition, &id.partition)
                    && part(namespace, &id.namespace)
                    && part(service, &id.service)
            }
            Self::Authenticated(name) => downstream.peer.as_ref().is_some_and(|peer| match name {
                None => true,
                Some(name) => peer.principals().any(|principal| name.matches(principal)),
            }),
            Self::SourceIp(range) => downstream
                .source
                .is_some_and(|source| range.contains(source.ip())),
            Self::DirectRemoteIp(range) => downstream
                .direct_source()
                .is_some_and(|source| range.contains(source.ip())),
            Self::Header(header) => request.is_some_and(|request| header.matches(request)),
            Self::UrlPath(path) => request.is_some_and(|request| path.matches(request.path())),
            Self::Metadata(metadata) => metadata.matches(request),
            Self::All(all) => all.iter().all(|p| p.matches(downstream, request)),
            Self::AnyOf(any) => any.iter().any(|p| p.matches(downstream, request)),
            Self::Not(principal) => !principal.matches(downstream, request),
        }
    }
}

impl Permission {
    fn matches(&self, downstream: &Downstream, request: Option<&dyn Request>) -> bool {
        match self {
            Self::Any => true,
            Self::DestinationIp(range) => downstream
                .destination
                .is_some_and(|destination| range.contains(destination.ip())),
            Self::DestinationPorts(from, to) => downstream
                .destination
                .is_some_and(|destination| (*from..*to).contains(&u32::from(destination.port()))),
            Self::RequestedServerName(name) => name.matches(downstream.server_name.as_deref().unwrap_or("")),
            Self::Header(header) => request.is_some_and(|request| header.matches(request)),
            Self::UrlPath(path) => request.is_some_and(|request| path.matches(request.path())),
            Self::Metadata(metadata) => metadata.matches(request),
            Self::All(all) => all.iter().all(|p| p.matches(downstream, request)),
            Self::AnyOf(any) => any.iter().any(|p| p.matches(downstream, request)),
            Self::Not(permission) => !permission.matches(downstream, request),
        }
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
    use super::super::downstream::Peer;
    use super::super::matcher::SafeRegex;
    use super::super::matcher::StringPattern;
    use super::super::spiffe::SpiffeId;
    use super::*;

    fn service(name: Option<&str>) -> Principal {
        Principal::Service {
            trust_domain: Some("td.consul".into()),
            partition: Some("default".into()),
            namespace: Some("default".into()),
            service: name.map(Into::into),
        }
    }

    fn peer(uri: &str) -> Downstream {
        Downstream {
            peer: Some(Arc::new(Peer::of(SpiffeId::parse(uri).unwrap()))),
            ..Downstream::default()
        }
    }

    fn rule(name: &str, action: Action, principal: Principal) -> Rule {
        Rule {
            name: name.into(),
            action,
            principal,
            permission: Permission::Any,
        }
    }

    fn rules(rules: Vec<Rule>, default_action: Action) -> Rbac {
        Rbac {
            rules,
            default_action,
            default_name: "default".into(),
            spiffe_only: false,
        }
    }

    #[test]
    fn first_match_wins_and_is_named() {
        let rbac = rules(
            vec![
                rule("web", Action::Deny, service(Some("web"))),
                rule("*", Action::Allow, service(None)),
            ],
            Action::Deny,
        );
        let verdict = |uri| rbac.evaluate(&peer(uri), None);
        let web = verdict("spiffe://td.consul/ns/default/dc/dc1/svc/web");
        assert_eq!((web.action, &*web.policy), (Action::Deny, "web"));
        let other = verdict("spiffe://td.consul/ns/default/dc/dc9/svc/other");
        assert_eq!((other.action, &*other.policy), (Action::Allow, "*"));
        let foreign = verdict("spiffe://other.consul/ns/default/dc/dc1/svc/web");
        assert_eq!((foreign.action, &*foreign.policy), (Action::Deny, "default"));
        assert_eq!(
            &*verdict("spiffe://td.consul/ns/prod/dc/dc1/svc/web").policy,
            "default"
        );
    }

    #[test]
    fn the_nameless_are_denied_even_by_default_allow() {
        let mut rbac = rules(vec![], Action::Allow);
        assert_eq!(rbac.evaluate(&Downstream::default(), None).action, Action::Allow);
        rbac.spiffe_only = true;
        assert_eq!(rbac.evaluate(&Downstream::default(), None).action, Action::Deny);
        let gateway = peer("spiffe://td.consul/gateway/mesh/dc/dc1");
        assert_eq!(rbac.evaluate(&gateway, None).action, Action::Allow);
    }

    #[test]
    fn envoys_trees() {
        let regex = |text: &str| StringMatcher {
            pattern: StringPattern::Regex(SafeRegex::new(text).unwrap()),
            ignore_case: false,
        };
        let everyone = Principal::Authenticated(Some(regex("^spiffe://td.consul/.*$")));
        let intruder = Principal::Authenticated(Some(regex("^.*/svc/intruder$")));
        let mut allowed = rule(
            "consul-intentions-layer4",
            Action::Allow,
            Principal::All(vec![everyone, Principal::Not(Box::new(intruder))]),
        );
        allowed.permission = Permission::AnyOf(vec![
            Permission::DestinationPorts(80, 81),
            Permission::DestinationIp(Cidr::new([10, 0, 0, 0].into(), 8).unwrap()),
        ]);
        let rbac = rules(vec![allowed], Action::Deny);
        let to = |destination: &str, service: &str| {
            let mut downstream = peer(&format!("spiffe://td.consul/ns/default/dc/dc1/svc/{service}"));
            downstream.destination = Some(destination.parse().unwrap());
            rbac.evaluate(&downstream, None).action
        };
        assert_eq!(to("1.2.3.4:80", "web"), Action::Allow);
        assert_eq!(to("10.2.3.4:81", "web"), Action::Allow);
        assert_eq!(to("1.2.3.4:81", "web"), Action::Deny);
        assert_eq!(to("1.2.3.4:80", "intruder"), Action::Deny);
    }

    #[test]
    fn every_name_of_a_certificate_counts() {
        let named = |name: &str| Principal::Authenticated(Some(StringMatcher::exact(name)));
        let mut web = Peer::of(SpiffeId::parse("spiffe://td.consul/ns/default/dc/dc1/svc/web").unwrap());
        web.dns_names = vec!["web.td.consul".into()];
        web.subject = "CN=web".into();
        let web = Downstream {
            peer: Some(Arc::new(web)),
            ..Downstream::default()
        };
        for name in [
            "spiffe://td.consul/ns/default/dc/dc1/svc/web",
            "web.td.consul",
            "CN=web",
        ] {
            assert!(named(name).matches(&web, None), "{name}");
        }
        assert!(!named("").matches(&web, None));
    }

    #[test]
    fn a_proxy_header_changes_no_direct_source() {
        let range = |address: [u8; 4]| Cidr::new(address.into(), 32).unwrap();
        let (relay, client) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut downstream = Downstream {
            source: Some((relay, 1).into()),
            ..Downstream::default()
        };
        assert!(Principal::DirectRemoteIp(range(relay)).matches(&downstream, None));
        downstream.restore_source((client, 2).into());
        assert!(Principal::DirectRemoteIp(range(relay)).matches(&downstream, None));
        assert!(!Principal::DirectRemoteIp(range(client)).matches(&downstream, None));
        assert!(Principal::SourceIp(range(client)).matches(&downstream, None));
    }

    #[test]
    fn a_connection_has_no_metadata_which_can_be_asked_for() {
        let metadata = |invert| {
            Principal::Metadata(MetadataMatcher {
                filter: "f".into(),
                path: vec!["k".into()],
                value: StringMatcher::exact("v"),
                invert,
            })
        };
        assert!(!metadata(false).matches(&Downstream::default(), None));
        assert!(metadata(true).matches(&Downstream::default(), None));
    }

    #[test]
    fn what_a_request_would_have_matches_no_connection() {
        let path = Permission::UrlPath(regex_any());
        let mut allowed = rule("path", Action::Allow, Principal::Any);
        allowed.permission = path;
        let rbac = rules(vec![allowed], Action::Deny);
        assert_eq!(rbac.evaluate(&Downstream::default(), None).action, Action::Deny);
    }

    fn regex_any() -> StringMatcher {
        StringMatcher {
            pattern: StringPattern::Prefix("".into()),
            ignore_case: false,
        }
    }
}
