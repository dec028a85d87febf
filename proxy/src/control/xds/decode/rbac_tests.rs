//! Every principal and permission, what is refused of them, and verdicts as Envoy's.

use attache_proto::envoy::config::rbac::v3::{
    Permission as WirePermission, Policy, Principal as WirePrincipal,
};
use attache_proto::envoy::config::route::v3::HeaderMatcher as WireHeader;
use attache_proto::envoy::r#type::matcher::v3::{
    MetadataMatcher, PathMatcher, RegexMatcher, StringMatcher as WireString, ValueMatcher, metadata_matcher,
    path_matcher, string_matcher::MatchPattern, value_matcher,
};
use attache_proto::envoy::r#type::v3::Int32Range;

use super::super::testing::Bench;
use super::*;
use crate::model::downstream::{Downstream, Peer};
use crate::model::matcher::{HeaderCheck, StringMatcher};
use crate::model::spiffe::SpiffeId;

const AT: At<'static> = At::resource("Listener", "l");

fn read(rbac: &wire::Rbac, scope: Scope) -> Result<Arc<Rbac>, DecodeError> {
    scoped(rbac, scope, &AT, &mut Bench::default().context())
}

fn who(identifier: Identifier) -> WirePrincipal {
    WirePrincipal {
        identifier: Some(identifier),
    }
}

fn what(rule: PermissionRule) -> WirePermission {
    WirePermission { rule: Some(rule) }
}

fn anybody() -> WirePrincipal {
    who(Identifier::Any(true))
}

fn anything() -> WirePermission {
    what(PermissionRule::Any(true))
}

fn rbac(name: &str, principals: Vec<WirePrincipal>, permissions: Vec<WirePermission>) -> wire::Rbac {
    let policy = Policy {
        principals,
        permissions,
        ..Policy::default()
    };
    wire::Rbac {
        policies: [(name.to_owned(), policy)].into_iter().collect(),
        ..wire::Rbac::default()
    }
}

fn principal_of(principal: WirePrincipal, scope: Scope) -> Result<Principal, DecodeError> {
    let rbac = read(&rbac("p", vec![principal], vec![anything()]), scope)?;
    Ok(rbac.rules[0].principal.clone())
}

fn permission_of(permission: WirePermission) -> Result<Permission, DecodeError> {
    let rbac = read(&rbac("p", vec![anybody()], vec![permission]), Scope::Http)?;
    Ok(rbac.rules[0].permission.clone())
}

fn range(prefix: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: prefix.to_owned(),
        prefix_len: Some(length),
    }
}

fn exact(text: &str) -> WireString {
    WireString {
        match_pattern: Some(MatchPattern::Exact(text.to_owned())),
        ignore_case: false,
    }
}

fn spiffe(regex: &str) -> WirePrincipal {
    who(Identifier::Authenticated(wire::principal::Authenticated {
        principal_name: Some(WireString {
            match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                regex: regex.to_owned(),
                engine_type: None,
            })),
            ignore_case: false,
        }),
    }))
}

fn header() -> WireHeader {
    WireHeader {
        name: ":method".to_owned(),
        ..WireHeader::default()
    }
}

fn path() -> PathMatcher {
    PathMatcher {
        rule: Some(path_matcher::Rule::Path(exact("/a"))),
    }
}

fn metadata() -> MetadataMatcher {
    MetadataMatcher {
        filter: "jwt".to_owned(),
        path: vec![metadata_matcher::PathSegment {
            segment: Some(metadata_matcher::path_segment::Segment::Key("iss".to_owned())),
        }],
        value: Some(ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(exact("i"))),
        }),
        invert: false,
    }
}

fn caller(service: &str) -> Downstream {
    let id = SpiffeId::parse(&format!("spiffe://td/ns/default/dc/dc1/svc/{service}")).unwrap();
    Downstream {
        peer: Some(Arc::new(Peer::of(id))),
        ..Downstream::default()
    }
}

#[test]
fn consuls_intentions() {
    // `rules: {}` denies everybody, `{action: DENY}` allows everybody.
    let none = wire::Rbac::default();
    let verdict = read(&none, Scope::Network)
        .unwrap()
        .evaluate(&caller("web"), None);
    assert_eq!(
        (verdict.action, &*verdict.policy),
        (Action::Deny, "no policy matches: deny")
    );
    let deny = |mut rbac: wire::Rbac| {
        rbac.action = action::Action::Deny.into();
        rbac
    };
    let verdict = read(&deny(none), Scope::Network)
        .unwrap()
        .evaluate(&caller("web"), None);
    assert_eq!(
        (verdict.action, &*verdict.policy),
        (Action::Allow, "no policy matches: allow")
    );

    let not_admin = who(Identifier::NotId(Box::new(spiffe(
        "^spiffe://[^/]+/.*/svc/admin$",
    ))));
    let all = wire::principal::Set {
        ids: vec![spiffe("^spiffe://td/.*$"), not_admin],
    };
    let everybody_else = who(Identifier::AndIds(all));
    let layer4 = rbac("consul-intentions-layer4", vec![everybody_else], vec![anything()]);
    let verdict = |rbac: &wire::Rbac, service: &str| {
        let verdict = read(rbac, Scope::Network)
            .unwrap()
            .evaluate(&caller(service), None);
        (verdict.action, verdict.policy.to_string())
    };
    let named = |action| (action, "consul-intentions-layer4".to_owned());
    assert_eq!(verdict(&layer4, "web"), named(Action::Allow));
    assert_eq!(verdict(&layer4, "admin").0, Action::Deny);
    assert_eq!(verdict(&deny(layer4), "web"), named(Action::Deny));
}

#[test]
fn principals() {
    let network = |identifier| principal_of(who(identifier), Scope::Network).unwrap();
    let ten = || Principal::SourceIp(cidr(&range("10.0.0.0", 8), &AT).unwrap());
    assert_eq!(network(Identifier::Any(true)), Principal::Any);
    assert_eq!(network(Identifier::SourceIp(range("10.1.0.0", 8))), ten());
    assert_eq!(network(Identifier::RemoteIp(range("10.0.0.0", 8))), ten());
    assert_eq!(
        network(Identifier::DirectRemoteIp(range("10.0.0.0", 8))),
        Principal::DirectRemoteIp(cidr(&range("10.0.0.0", 8), &AT).unwrap())
    );
    let authenticated = wire::principal::Authenticated::default();
    assert_eq!(
        network(Identifier::Authenticated(authenticated)),
        Principal::Authenticated(None)
    );
    let both = || wire::principal::Set {
        ids: vec![anybody(), who(Identifier::UrlPath(path()))],
    };
    let two = || vec![Principal::Any, Principal::UrlPath(StringMatcher::exact("/a"))];
    assert_eq!(network(Identifier::AndIds(both())), Principal::All(two()));
    assert_eq!(network(Identifier::OrIds(both())), Principal::AnyOf(two()));
    let not = network(Identifier::NotId(Box::new(anybody())));
    assert_eq!(not, Principal::Not(Box::new(Principal::Any)));
    assert!(matches!(
        principal_of(who(Identifier::Header(header())), Scope::Http).unwrap(),
        Principal::Header(header) if header.check == HeaderCheck::Present(true)
    ));
    assert!(matches!(
        network(Identifier::Metadata(metadata())),
        Principal::Metadata(_)
    ));
    // Several principals of a policy are alternatives.
    let several = read(
        &rbac("p", vec![anybody(), anybody()], vec![anything()]),
        Scope::Http,
    );
    let any_of = Principal::AnyOf(vec![Principal::Any, Principal::Any]);
    assert_eq!(several.unwrap().rules[0].principal, any_of);
}

#[test]
fn permissions() {
    let read = |rule| permission_of(what(rule)).unwrap();
    assert_eq!(read(PermissionRule::Any(true)), Permission::Any);
    assert_eq!(
        read(PermissionRule::DestinationPort(65535)),
        Permission::DestinationPorts(65535, 65536)
    );
    let ports = |start, end| PermissionRule::DestinationPortRange(Int32Range { start, end });
    assert_eq!(read(ports(80, 90)), Permission::DestinationPorts(80, 90));
    for (start, end) in [(90, 80), (-1, 5), (0, 65537)] {
        assert!(permission_of(what(ports(start, end))).is_err(), "{start}..{end}");
    }
    let ip = cidr(&range("10.0.0.0", 8), &AT).unwrap();
    assert_eq!(
        read(PermissionRule::DestinationIp(range("10.0.0.9", 8))),
        Permission::DestinationIp(ip)
    );
    let sni = PermissionRule::RequestedServerName(exact("a"));
    assert_eq!(
        read(sni),
        Permission::RequestedServerName(StringMatcher::exact("a"))
    );
    assert_eq!(
        read(PermissionRule::UrlPath(path())),
        Permission::UrlPath(StringMatcher::exact("/a"))
    );
    assert!(matches!(
        read(PermissionRule::Header(header())),
        Permission::Header(_)
    ));
    assert!(matches!(
        read(PermissionRule::Metadata(metadata())),
        Permission::Metadata(_)
    ));
    let set = || wire::permission::Set {
        rules: vec![anything(), anything()],
    };
    let two = || vec![Permission::Any, Permission::Any];
    assert_eq!(read(PermissionRule::AndRules(set())), Permission::All(two()));
    assert_eq!(read(PermissionRule::OrRules(set())), Permission::AnyOf(two()));
    let not = read(PermissionRule::NotRule(Box::new(anything())));
    assert_eq!(not, Permission::Not(Box::new(Permission::Any)));
}

#[test]
fn what_cannot_be_decided_is_refused_by_name() {
    let principal = |identifier| principal_of(who(identifier), Scope::Http).unwrap_err().path;
    let at = |field: &str| format!("policies[\"p\"].{field}");
    assert_eq!(
        principal(Identifier::RemoteIp(range("10.0.0.0", 8))),
        at("principals[0].remote_ip")
    );
    assert_eq!(
        principal(Identifier::FilterState(Default::default())),
        at("principals[0].filter_state")
    );
    assert_eq!(
        principal(Identifier::SourcedMetadata(Default::default())),
        at("principals[0].sourced_metadata")
    );
    assert_eq!(
        principal(Identifier::Custom(Default::default())),
        at("principals[0].custom")
    );
    assert_eq!(principal(Identifier::Any(false)), at("principals[0].any"));
    let nested = Identifier::NotId(Box::new(who(Identifier::AndIds(Default::default()))));
    assert_eq!(principal(nested), at("principals[0].not_id.and_ids.ids"));
    let nobody = principal_of(WirePrincipal::default(), Scope::Http).unwrap_err();
    assert_eq!(nobody.path, at("principals[0]"));

    let permission = |rule| permission_of(what(rule)).unwrap_err().path;
    assert_eq!(
        permission(PermissionRule::Matcher(Default::default())),
        at("permissions[0].matcher")
    );
    assert_eq!(
        permission(PermissionRule::UriTemplate(Default::default())),
        at("permissions[0].uri_template")
    );
    assert_eq!(permission(PermissionRule::Any(false)), at("permissions[0].any"));
    let empty = WireString {
        match_pattern: Some(MatchPattern::Prefix(String::new())),
        ignore_case: false,
    };
    assert_eq!(
        permission(PermissionRule::RequestedServerName(empty)),
        at("permissions[0].requested_server_name.prefix")
    );

    let refused = |rbac: &wire::Rbac| read(rbac, Scope::Network).unwrap_err().path;
    let by_header = || who(Identifier::Header(header()));
    let not = who(Identifier::NotId(Box::new(by_header())));
    assert_eq!(
        refused(&rbac("p", vec![not], vec![anything()])),
        at("principals[0].not_id.header")
    );
    let headed = what(PermissionRule::Header(header()));
    assert_eq!(
        refused(&rbac("p", vec![anybody()], vec![headed])),
        at("permissions[0].header")
    );
    assert_eq!(refused(&rbac("p", vec![], vec![anything()])), at("principals"));
    assert_eq!(refused(&rbac("p", vec![anybody()], vec![])), at("permissions"));
    let mut logged = rbac("p", vec![anybody()], vec![anything()]);
    logged.action = action::Action::Log.into();
    assert_eq!(refused(&logged), "action");
    logged.action = 7;
    assert_eq!(refused(&logged), "action");
    let mut cel = rbac("p", vec![anybody()], vec![anything()]);
    cel.policies.get_mut("p").unwrap().condition = Some(Default::default());
    assert_eq!(refused(&cel), at("condition"));
}

#[test]
fn equal_rules_are_one() {
    let mut bench = Bench::default();
    let rbac = rbac("p", vec![anybody()], vec![anything()]);
    let first = rules(&rbac, &AT, &mut bench.context()).unwrap();
    let second = rules(&rbac, &AT, &mut bench.context()).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
}
