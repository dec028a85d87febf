//! What is not in the recorded meshes: everything that must fail closed.

use super::*;
use crate::control::consul::{intentions, jwt_provider};
use crate::model::matcher::Request;
use crate::model::{Downstream, Metadata, Peer, SpiffeId};

struct Get(&'static str, Metadata);

impl Request for Get {
    fn header(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        (name == ":method").then_some("GET".into())
    }

    fn path(&self) -> &str {
        self.0
    }

    fn metadata(&self, filter: &str, path: &[Arc<str>]) -> Option<std::borrow::Cow<'_, str>> {
        Some(self.1.get(filter, path)?.as_str()?.into())
    }
}

/// The rules of what Consul would answer with these sources.
fn rules(sources: &str, default: DefaultPolicy, providers: &Providers) -> (Rbac, BTreeSet<String>) {
    let list = intentions::decode_for(format!(r#"{{"api":[{sources}]}}"#).as_bytes(), "api").unwrap();
    let trust_domain = Arc::from("td.consul");
    let to = Destination {
        trust_domain: &trust_domain,
        is_tcp: false,
        partition: "default",
    };
    let mut notices = BTreeSet::new();
    let rules = compile(&list, &default, &to, providers, &mut notices);
    (rules, notices)
}

fn ask(rules: &Rbac, service: &str, path: &'static str, metadata: Metadata) -> String {
    let id = SpiffeId::parse(&format!("spiffe://td.consul/ns/default/dc/dc1/svc/{service}")).unwrap();
    let downstream = Downstream {
        peer: Some(Arc::new(Peer::of(id))),
        ..Downstream::default()
    };
    let verdict = rules.evaluate(&downstream, Some(&Get(path, metadata)));
    format!("{} by {}", verdict.action, verdict.policy)
}

fn source(name: &str, rest: &str) -> String {
    format!(r#"{{"SourceName":"{name}","DestinationName":"api",{rest}}}"#)
}

const ALLOW: DefaultPolicy = DefaultPolicy::Known(Action::Allow);

#[test]
fn a_permission_that_is_not_understood_lets_nobody_in() {
    let permission = |http: &str| format!(r#""Permissions":[{{"Action":"allow","HTTP":{{{http}}}}}]"#);
    for (rest, field) in [
        (permission(r#""PathRegex":"(""#), "Permissions[0].HTTP.PathRegex"),
        (
            permission(r#""Query":"x""#),
            "Permissions[0].HTTP.Query: is not known",
        ),
        (
            permission(r#""Header":[{"Name":"x"}]"#),
            "Permissions[0].HTTP.Header[0].Name",
        ),
        (
            permission(r#""PathExact":7"#),
            "Permissions[0].HTTP.PathExact: not a string",
        ),
        (
            r#""Permissions":[{"Action":"log"}]"#.to_owned(),
            "Permissions[0].Action: \"log\"",
        ),
        (
            r#""Permissions":[{"Action":"allow","TCP":{"A":1}}]"#.to_owned(),
            "Permissions[0].TCP",
        ),
        (
            r#""Action":"allow","JWT":{"Issuers":["x"]}"#.to_owned(),
            "JWT.Issuers: is not known",
        ),
    ] {
        let all = format!("{},{}", source("web", &rest), source("*", r#""Action":"allow""#));
        let (rules, notices) = rules(&all, ALLOW, &Providers::new());
        let said = ask(&rules, "web", "/", Metadata::default());
        let start = "deny by web -> api: deny (it cannot be carried out: ";
        assert!(said.starts_with(&format!("{start}{field}")), "{said}");
        assert_eq!(notices.len(), 1, "{notices:?}");
        // The others are none of its business.
        assert_eq!(
            ask(&rules, "shop", "/", Metadata::default()),
            "allow by * -> api: allow"
        );
    }
}

#[test]
fn permissions_decide_alone_and_in_their_order() {
    let web = source(
        "web",
        r#""Permissions":[{"Action":"deny","HTTP":{"PathPrefix":"/a/secret"}},
        {"Action":"allow","HTTP":{"PathPrefix":"/a"}},{"Action":"deny","HTTP":{"PathPrefix":"/b"}}]"#,
    );
    let all = format!("{web},{}", source("*", r#""Action":"allow""#));
    let ask = |default, path| {
        let (rules, _) = rules(&all, default, &Providers::new());
        ask(&rules, "web", path, Metadata::default())
    };
    let deny = || DefaultPolicy::Known(Action::Deny);
    assert_eq!(
        ask(deny(), "/a/secret/x"),
        "deny by web -> api: permission 1: deny"
    );
    assert_eq!(ask(deny(), "/a/x"), "allow by web -> api: permission 2: allow");
    assert_eq!(
        ask(deny(), "/c"),
        "deny by web -> api: no permission matches: deny"
    );
    assert_eq!(ask(ALLOW, "/b"), "deny by web -> api: permission 3: deny");
    assert_eq!(
        ask(ALLOW, "/c"),
        "allow by web -> api: no permission matches: allow"
    );
    let unknown = DefaultPolicy::Unknown("asked in vain".to_owned());
    assert_eq!(
        ask(unknown, "/c"),
        "deny by web -> api: no permission matches: deny"
    );
}

fn provider(name: &str) -> (String, Option<Provider>) {
    let body =
        format!(r#"{{"Name":"{name}","Issuer":"iss-{name}","JSONWebKeySet":{{"Local":{{"JWKS":"e30="}}}}}}"#);
    let none: jwt_provider::ReadFile<'_> = &|_| Err("no file".to_owned());
    let provider = jwt_provider::decode(body.as_bytes(), name, none).unwrap();
    (name.to_owned(), Some(provider))
}

fn token(provider: &str, issuer: &str) -> Metadata {
    let mut metadata = Metadata::default();
    let payload = serde_json::json!({ "iss": issuer, "role": "x" });
    metadata.set(JWT_FILTER, &payload_key(provider), payload);
    metadata
}

#[test]
fn a_token_of_nobody_known_opens_nothing() {
    let jwt = r#""JWT":{"Providers":[{"Name":"okta","VerifyClaims":[{"Path":["role"],"Value":"x"}]}]}"#;
    let all = format!(
        "{},{}",
        source("web", &format!(r#""Action":"allow",{jwt}"#)),
        source("*", r#""Action":"allow""#)
    );
    let deny = DefaultPolicy::Known(Action::Deny);
    let gone = [("okta".to_owned(), None)].into();
    for (default, providers, yet) in [
        (deny.clone(), Providers::new(), " yet"),
        (ALLOW, Providers::new(), " yet"),
        (ALLOW, gone, ""),
    ] {
        let (rules, notices) = rules(&all, default, &providers);
        let said = ask(&rules, "web", "/", token("okta", "iss-okta"));
        let why = format!("deny by web -> api: deny (its JWT provider \"okta\" is not known{yet})");
        assert_eq!(said, why);
        assert_eq!(notices.len(), usize::from(yet.is_empty()), "{notices:?}");
    }
    let known = [provider("okta")].into();
    let (rules, notices) = rules(&all, deny, &known);
    assert!(notices.is_empty(), "{notices:?}");
    let web = |metadata| ask(&rules, "web", "/", metadata);
    assert_eq!(web(token("okta", "iss-okta")), "allow by web -> api: allow");
    assert_eq!(
        web(token("okta", "other")),
        "deny by web -> api: deny without its JWT"
    );
    assert_eq!(
        web(token("auth0", "iss-okta")),
        "deny by web -> api: deny without its JWT"
    );
    assert_eq!(
        web(Metadata::default()),
        "deny by web -> api: deny without its JWT"
    );
}

#[test]
fn one_of_several_tokens_is_enough_and_both_levels_are_asked() {
    let web = source(
        "web",
        r#""JWT":{"Providers":[{"Name":"okta"},{"Name":"gone"}]},"Permissions":[{"Action":"allow",
        "HTTP":{"PathPrefix":"/p"},"JWT":{"Providers":[{"Name":"auth0"}]}},
        {"Action":"allow","HTTP":{"PathPrefix":"/"}}]"#,
    );
    let known = [provider("okta"), provider("auth0")].into();
    let (rules, _) = rules(&web, DefaultPolicy::Known(Action::Deny), &known);
    let mut both = token("okta", "iss-okta");
    assert_eq!(
        ask(&rules, "web", "/", both.clone()),
        "allow by web -> api: permission 2: allow"
    );
    let without = "deny by web -> api: permission 1: deny without its JWT";
    assert_eq!(ask(&rules, "web", "/p", both.clone()), without);
    assert_eq!(ask(&rules, "web", "/p", token("auth0", "iss-auth0")), without);
    let payload = serde_json::json!({ "iss": "iss-auth0" });
    both.set(JWT_FILTER, "jwt_payload_auth0", payload);
    assert_eq!(
        ask(&rules, "web", "/p", both),
        "allow by web -> api: permission 1: allow"
    );
}

#[test]
fn callers_that_cannot_be_told_apart_are_kept_out() {
    let web = source("web", r#""SourcePeer":"west","Permissions":[{"Action":"allow"}]"#);
    let (peer, notices) = rules(&web, DefaultPolicy::Known(Action::Deny), &Providers::new());
    assert!(peer.rules.is_empty());
    assert!(
        notices
            .iter()
            .all(|notice| notice.contains("cluster peer \"west\""))
            && notices.len() == 1
    );
    for field in [r#""SourceSamenessGroup":"sg""#, r#""SourceType":"vm""#] {
        let web = source("web", &format!(r#"{field},"Permissions":[{{"Action":"allow"}}]"#));
        let (rules, _) = rules(&web, ALLOW, &Providers::new());
        let said = ask(&rules, "web", "/", Metadata::default());
        assert_eq!(
            said,
            "deny by web -> api: deny (its source or action is not known)"
        );
    }
    let odd = source("web", r#""Action":"log""#);
    let (odd, _) = rules(&odd, ALLOW, &Providers::new());
    let said = ask(&odd, "web", "/", Metadata::default());
    assert_eq!(said, "deny by web -> api: deny (unknown action \"log\")");
}
