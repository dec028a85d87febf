//! Intentions: decoding `/v1/connect/intentions/match`, their precedence, and the rules they become.
//!
//! Pure. Fails closed: an allow that is not fully understood lets nobody in, and a deny that is not
//! fully understood keeps out everybody whom it could mean.

use std::cmp::Reverse;
use std::sync::Arc;

use super::json::{self, DecodeError, Node};
use super::permissions;
pub use super::permissions::{JwtClaim, JwtTerms, RequestPermission, RequestTerms};
use crate::model::rbac::{Action, Permission, Principal, Rbac, Rule};

/// One intention with this service as a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intention {
    /// The caller's name, or `*`.
    pub source: String,
    /// The caller's namespace, or `*`.
    pub source_namespace: String,
    /// The caller's partition; empty for `default`.
    pub source_partition: String,
    /// A cluster peer that the caller is in; empty for this cluster.
    pub source_peer: String,
    /// Consul Enterprise: a group of partitions and peers; empty for none.
    pub source_group: String,
    /// `consul`, the only type that Consul has.
    pub source_type: String,
    /// The destination's name, or `*`.
    pub destination: String,
    /// The destination's namespace, or `*`.
    pub destination_namespace: String,
    /// The destination's partition; empty for `default`.
    pub destination_partition: String,
    /// `allow` or `deny`; empty where there are permissions.
    pub action: String,
    /// It decides by HTTP requests.
    pub has_permissions: bool,
    /// It asks for a JWT.
    pub has_jwt: bool,
    /// What it asks of requests; means nothing to connections.
    pub terms: RequestTerms,
    /// Consul's own figure; larger goes first.
    pub precedence: i64,
}

/// What happens to a caller that no intention names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DefaultPolicy {
    /// Consul said so.
    Known(Action),
    /// Deny, and why it is not known.
    Unknown(String),
}

/// What the rules are written for.
pub(super) struct Destination<'a> {
    pub(super) trust_domain: &'a Arc<str>,
    /// `tcp` when Consul knows the service's protocol to be that; JWTs mean nothing there.
    pub(super) is_tcp: bool,
    /// The partition of the proxy; an intention without a partition means it.
    pub(super) partition: &'a str,
}

/// Decodes the answer for one destination.
///
/// # Errors
/// Names the field that is not what Consul documents.
pub fn decode(body: &[u8]) -> Result<Vec<Intention>, DecodeError> {
    let value = json::parse(body)?;
    decode_all(&Node::root(&value)?)
}

/// As [`decode`], of an answer that must be about `service`: with another one's, or nobody's, every
/// denial would be gone.
pub(super) fn decode_for(body: &[u8], service: &str) -> Result<Vec<Intention>, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    // The one key is the name that was asked for, in Consul Enterprise with its namespace.
    let asked = |key: &str| {
        key.strip_suffix(service)
            .is_some_and(|before| before.is_empty() || before.ends_with('/'))
    };
    if !root.keys().any(asked) {
        return Err(root.error(service, "missing"));
    }
    decode_all(&root)
}

fn decode_all(root: &Node<'_>) -> Result<Vec<Intention>, DecodeError> {
    let mut found = Vec::new();
    for key in root.keys() {
        for node in root.objects(key)? {
            found.push(decode_one(&node)?);
        }
    }
    sort(&mut found);
    Ok(found)
}

fn decode_one(node: &Node<'_>) -> Result<Intention, DecodeError> {
    let jwt = node.object("JWT")?;
    Ok(Intention {
        source: node.need_text("SourceName")?.to_owned(),
        source_namespace: or_default(node.text("SourceNS")?),
        source_partition: node.text("SourcePartition")?.to_owned(),
        source_peer: node.text("SourcePeer")?.to_owned(),
        source_group: node.text("SourceSamenessGroup")?.to_owned(),
        source_type: node.text("SourceType")?.to_owned(),
        destination: node.need_text("DestinationName")?.to_owned(),
        destination_namespace: or_default(node.text("DestinationNS")?),
        destination_partition: node.text("DestinationPartition")?.to_owned(),
        action: node.text("Action")?.to_owned(),
        has_permissions: !node.objects("Permissions")?.is_empty(),
        has_jwt: jwt.is_some(),
        terms: permissions::decode(node),
        precedence: node.number("Precedence")?,
    })
}

fn or_default(namespace: &str) -> String {
    if namespace.is_empty() {
        "default".to_owned()
    } else {
        namespace.to_owned()
    }
}

/// Consul's order: its own figure first; where an old agent gives none, exact before wildcard,
/// destination before source. Equal ones in alphabetical order, as Consul breaks ties.
fn sort(intentions: &mut [Intention]) {
    intentions.sort_by_cached_key(|i| {
        let computed = precedence(i);
        let figure = if i.precedence > 0 { i.precedence } else { computed };
        let source = (
            i.source_group.clone(),
            i.source_peer.clone(),
            i.source_partition.clone(),
            i.source_namespace.clone(),
            i.source.clone(),
        );
        let destination = (
            i.destination_partition.clone(),
            i.destination_namespace.clone(),
            i.destination.clone(),
        );
        (Reverse(figure), Reverse(computed), source, destination)
    });
}

/// 9 for exact to exact, down to 1 for `*/*` to `*/*`.
fn precedence(intention: &Intention) -> i64 {
    let destination = exact(&intention.destination_namespace, &intention.destination);
    let source = exact(&intention.source_namespace, &intention.source);
    destination * 3 + source + 1
}

fn exact(namespace: &str, name: &str) -> i64 {
    match (namespace, name) {
        ("*", _) => 0,
        (_, "*") => 1,
        _ => 2,
    }
}

/// Whether some intention covers every caller of this cluster, so that the default never decides.
pub(super) fn covers_everybody(intentions: &[Intention]) -> bool {
    let community = intentions.iter().all(|i| i.source_partition.is_empty());
    intentions.iter().any(|i| {
        let every_namespace = i.source_namespace == "*" || (community && i.source_namespace == "default");
        i.source == "*" && every_namespace && i.source_peer.is_empty() && i.source_group.is_empty()
    })
}

/// The rules of connections in order of precedence, over `default`.
pub(super) fn compile(intentions: &[Intention], default: &DefaultPolicy, to: &Destination<'_>) -> Rbac {
    let rules = intentions.iter().filter_map(|i| rule(i, to)).collect();
    over_default(rules, intentions, default)
}

/// `rules`, which `intentions` have become, over `default`.
pub(super) fn over_default(rules: Vec<Rule>, intentions: &[Intention], default: &DefaultPolicy) -> Rbac {
    let (default_action, default_name) = match default {
        _ if covers_everybody(intentions) => {
            let name = "default policy: deny (intentions cover every service)";
            (Action::Deny, name.to_owned())
        }
        DefaultPolicy::Known(action) => (*action, format!("default policy: {action}")),
        DefaultPolicy::Unknown(why) => (Action::Deny, format!("default policy: deny (not known: {why})")),
    };
    Rbac {
        rules,
        default_action,
        default_name: default_name.into(),
        spiffe_only: true,
    }
}

fn rule(intention: &Intention, to: &Destination<'_>) -> Option<Rule> {
    let mut action = Action::Deny;
    let said = if intention.has_permissions {
        "deny (it has permissions, which need HTTP)".to_owned()
    } else if intention.has_jwt && !to.is_tcp {
        "deny (it asks for a JWT, which needs HTTP)".to_owned()
    } else {
        action = intention.plain_action();
        intention.plain_words()
    };
    intention.rule_of(to, action, said)
}

impl Intention {
    /// The rule that its action alone makes.
    pub(super) fn plain_rule(&self, to: &Destination<'_>) -> Option<Rule> {
        // Only of those that are not understood whole: they keep out, and let nobody in.
        if !self.terms.permissions.is_empty() || !self.terms.jwt.is_empty() {
            let said = "deny (its source or action is not known)".to_owned();
            return self.rule_of(to, Action::Deny, said);
        }
        self.rule_of(to, self.plain_action(), self.plain_words())
    }

    /// Its action; one that is not known denies.
    pub(super) fn plain_action(&self) -> Action {
        match self.action.as_str() {
            "allow" => Action::Allow,
            _ => Action::Deny,
        }
    }

    fn plain_words(&self) -> String {
        match self.action.as_str() {
            "allow" | "deny" => self.action.clone(),
            other => format!("deny (unknown action {other:?})"),
        }
    }

    /// Whether its action is one that Consul documents; with permissions there is none.
    pub(super) fn action_is_known(&self) -> bool {
        match self.action.as_str() {
            "allow" | "deny" => true,
            "" => self.has_permissions,
            _ => false,
        }
    }

    /// Whether it is known which callers it is about.
    pub(super) fn is_whole(&self) -> bool {
        let type_known = matches!(self.source_type.as_str(), "" | "consul");
        self.source_group.is_empty() && type_known
    }

    fn rule_of(&self, to: &Destination<'_>, action: Action, said: String) -> Option<Rule> {
        // A peer's callers have another trust domain: they are refused before any rule is asked.
        if !self.source_peer.is_empty() {
            return None;
        }
        if !self.is_whole() && action == Action::Allow {
            return None;
        }
        Some(self.rule_for(to, action, format!("{}: {said}", self.names())))
    }

    /// A rule about its callers, whatever they ask for.
    pub(super) fn rule_for(&self, to: &Destination<'_>, action: Action, name: String) -> Rule {
        let named = |text: &str| (text != "*").then(|| Arc::<str>::from(text));
        let partition = match self.source_partition.as_str() {
            _ if !self.is_whole() => None,
            "" => named(to.partition),
            partition => named(partition),
        };
        Rule {
            name: name.into(),
            action,
            principal: Principal::Service {
                // Live connections may be of an authority before this one: a denial is for them too.
                trust_domain: (action == Action::Allow).then(|| Arc::clone(to.trust_domain)),
                partition,
                namespace: named(&self.source_namespace),
                service: named(&self.source),
            },
            permission: Permission::Any,
        }
    }

    /// `web -> api`, with partition and namespace where they are not the default.
    pub(super) fn names(&self) -> String {
        let full = |partition: &str, namespace: &str, name: &str| match (partition, namespace) {
            ("" | "default", "default") => name.to_owned(),
            ("" | "default", namespace) => format!("{namespace}/{name}"),
            (partition, namespace) => format!("{partition}/{namespace}/{name}"),
        };
        let source = full(&self.source_partition, &self.source_namespace, &self.source);
        let destination = full(
            &self.destination_partition,
            &self.destination_namespace,
            &self.destination,
        );
        format!("{source} -> {destination}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SpiffeId;
    use crate::model::{Downstream, Peer};

    fn intention(source: &str, destination: &str, action: &str) -> Intention {
        let part = |text: &str| {
            let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
            (namespace.to_owned(), name.to_owned())
        };
        let (source_namespace, source) = part(source);
        let (destination_namespace, destination) = part(destination);
        Intention {
            source,
            source_namespace,
            destination,
            destination_namespace,
            source_type: "consul".to_owned(),
            action: action.to_owned(),
            ..Intention::default()
        }
    }

    fn decide(mut list: Vec<Intention>, default: DefaultPolicy, caller: &str) -> String {
        sort(&mut list);
        let trust_domain = Arc::from("td.consul");
        let to = Destination {
            trust_domain: &trust_domain,
            is_tcp: true,
            partition: "default",
        };
        let rbac = compile(&list, &default, &to);
        let peer = SpiffeId::parse(&format!("spiffe://td.consul{caller}")).unwrap();
        rbac.evaluate(&downstream(peer), None).policy.to_string()
    }

    fn downstream(peer: SpiffeId) -> Downstream {
        Downstream {
            peer: Some(Arc::new(Peer::of(peer))),
            ..Downstream::default()
        }
    }

    const WEB: &str = "/ns/default/dc/dc9/svc/web";

    #[test]
    fn precedence_is_exact_before_wildcard_and_destination_before_source() {
        let order = [
            ("web", "api"),
            ("*", "api"),
            ("*/*", "api"),
            ("web", "*"),
            ("*", "*"),
            ("*/*", "*"),
            ("web", "*/*"),
            ("*", "*/*"),
            ("*/*", "*/*"),
        ];
        for (i, (source, destination)) in order.iter().enumerate() {
            let figure = precedence(&intention(source, destination, "allow"));
            assert_eq!(figure, 9 - i64::try_from(i).unwrap(), "{source} -> {destination}");
            // Whatever order Consul answers in, the higher one decides.
            let mut list: Vec<_> = order[i..].iter().map(|(s, d)| intention(s, d, "allow")).collect();
            list[0].action = "deny".to_owned();
            list.reverse();
            let policy = decide(list, DefaultPolicy::Known(Action::Allow), WEB);
            assert!(policy.ends_with(": deny"), "{source} -> {destination}: {policy}");
        }
    }

    #[test]
    fn peers_groups_types_permissions_and_jwts_fail_closed() {
        let allow = || DefaultPolicy::Known(Action::Allow);
        let deny = || DefaultPolicy::Known(Action::Deny);
        let mut peer = intention("web", "api", "allow");
        peer.source_peer = "west".to_owned();
        assert_eq!(decide(vec![peer], deny(), WEB), "default policy: deny");
        let mut group = intention("web", "api", "allow");
        group.source_group = "sg".to_owned();
        assert_eq!(decide(vec![group.clone()], deny(), WEB), "default policy: deny");
        group.action = "deny".to_owned();
        let caller = format!("/ap/other{WEB}");
        assert_eq!(decide(vec![group], allow(), &caller), "web -> api: deny");
        let mut strange = intention("web", "api", "allow");
        strange.source_type = "vm".to_owned();
        assert_eq!(decide(vec![strange], deny(), WEB), "default policy: deny");
        let unknown = intention("web", "api", "log");
        let policy = decide(vec![unknown], allow(), WEB);
        assert_eq!(policy, "web -> api: deny (unknown action \"log\")");
        let mut jwt = intention("web", "api", "allow");
        jwt.has_jwt = true;
        assert_eq!(decide(vec![jwt.clone()], deny(), WEB), "web -> api: allow");
        let trust_domain = Arc::from("td.consul");
        let http = Destination {
            trust_domain: &trust_domain,
            is_tcp: false,
            partition: "default",
        };
        assert_eq!(rule(&jwt, &http).unwrap().action, Action::Deny);
    }

    #[test]
    fn the_default_decides_only_where_no_wildcard_covers_everybody() {
        let policy = decide(
            vec![intention("other", "api", "allow")],
            DefaultPolicy::Unknown("asked in vain".to_owned()),
            WEB,
        );
        assert_eq!(policy, "default policy: deny (not known: asked in vain)");
        let known = DefaultPolicy::Known(Action::Allow);
        assert_eq!(decide(vec![], known.clone(), WEB), "default policy: allow");
        let agent = "/agent/client/dc/dc1/id/x";
        let policy = decide(vec![intention("*", "api", "allow")], known, agent);
        assert!(policy.starts_with("default policy: deny"), "{policy}");
    }

    #[test]
    fn a_denial_is_for_callers_of_an_earlier_authority_too_and_an_allowance_is_not() {
        let verdict = |action: &str, default| {
            let trust_domain = Arc::from("new.consul");
            let to = Destination {
                trust_domain: &trust_domain,
                is_tcp: true,
                partition: "default",
            };
            let list = [intention("web", "api", action)];
            let rbac = compile(&list, &DefaultPolicy::Known(default), &to);
            let peer = SpiffeId::parse(&format!("spiffe://old.consul{WEB}")).unwrap();
            rbac.evaluate(&downstream(peer), None).policy.to_string()
        };
        assert_eq!(verdict("deny", Action::Allow), "web -> api: deny");
        assert_eq!(verdict("allow", Action::Deny), "default policy: deny");
    }

    #[test]
    fn recorded_answers() {
        let none = decode(include_bytes!("recorded/intentions_none.json")).unwrap();
        assert!(none.is_empty());
        let slow = decode(include_bytes!("recorded/intentions_slow.json")).unwrap();
        let default = DefaultPolicy::Known(Action::Allow);
        let policy = decide(slow, default.clone(), WEB);
        assert_eq!(policy, "web -> slow: deny (it has permissions, which need HTTP)");
        let admin = decode(include_bytes!("recorded/intentions_admin.json")).unwrap();
        assert_eq!(decide(admin, default, WEB), "* -> admin: allow");
    }

    #[test]
    fn an_answer_about_somebody_else_is_not_taken() {
        for body in [r#"{"api":null}"#, r#"{"api":[]}"#, r#"{"ns/api":[]}"#] {
            assert_eq!(decode_for(body.as_bytes(), "api"), Ok(Vec::new()), "{body}");
        }
        for body in ["{}", r#"{"web":[]}"#, r#"{"web-api":null}"#, r#"{"api/":null}"#] {
            let error = decode_for(body.as_bytes(), "api").unwrap_err();
            assert_eq!(error.to_string(), "api: missing", "{body}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        let error = decode(br#"{"api":[{"SourceName":"web"}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "api[0].DestinationName: missing");
        let error = decode(br#"{"api":7}"#).unwrap_err();
        assert_eq!(error.to_string(), "api: not a list");
    }
}
