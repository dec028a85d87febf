//! HTTP RBAC policies and requests: the verdict is that of Envoy's messages, read word by word, and the order of
//! policies means nothing to it.
//!
//! Lines: `allow` or `deny`, then `policy NAME` and its `permission WHAT` and `principal WHAT`, of which `not`
//! takes the last one before, `and N` and `or N` the last N. Then requests as in `matching`, each with what
//! is known of its connection: `metadata FILTER KEY.KEY TEXT`, `uri TEXT`, `dns TEXT`, `subject TEXT`, `from
//! ADDRESS`, `relay ADDRESS`, `to ADDRESS`, `sni NAME`.

#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use attache::control::xds::decode::error::At;
use attache::control::xds::decode::rbac;
use attache::model::downstream::Peer;
use attache::model::{Action, Downstream, Metadata};
use attache_fuzz::matching::{self, Asked};
use attache_proto::envoy::config::core::v3::CidrRange;
use attache_proto::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, permission::Rule, principal, principal::Authenticated,
    principal::Identifier, rbac as wire,
};
use attache_proto::envoy::r#type::matcher::v3::{
    MetadataMatcher, PathMatcher, StringMatcher, ValueMatcher, metadata_matcher::PathSegment,
    metadata_matcher::path_segment::Segment, path_matcher, value_matcher,
};
use attache_proto::envoy::r#type::v3::Int32Range;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// More lines are no other policies, and each may be an expression to compile.
const MAX_LINES: usize = 64;

/// A request, and the connection that it came on.
struct Came {
    asked: Asked,
    downstream: Downstream,
    metadata: Metadata,
    /// The same once more: what is asked for, and the text.
    texts: Vec<(String, String, String)>,
}

fuzz_target!(|text: &str| {
    let (mut rules, mut name, mut came): (Rbac, String, Vec<Came>) = Default::default();
    for line in text.lines().take(MAX_LINES) {
        if let Some(asked) = Asked::begin(line) {
            came.push(Came {
                asked,
                downstream: Downstream::default(),
                metadata: Metadata::default(),
                texts: Vec::new(),
            });
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match came.last_mut() {
            Some(request) => {
                if !request.asked.add(line) {
                    let _ = known(request, word, rest);
                }
            }
            None => configure(&mut rules, &mut name, word, rest),
        }
    }
    let at = At::resource("Listener", "l");
    match matching::decoded(|ctx| rbac::rules(&rules, &at, ctx)) {
        Ok(decoded) => {
            let mut turned = (*decoded).clone();
            turned.rules.reverse();
            for request in &came {
                let (view, expected) = (request.asked.request(), verdict(&rules, request));
                let view = view.view(&request.metadata);
                let first = decoded.evaluate(&request.downstream, Some(&view));
                assert_eq!(first.action, expected, "by {}", first.policy);
                assert_eq!(turned.evaluate(&request.downstream, Some(&view)).action, expected);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// Takes a line of what is known of a request. One that is none is left out.
fn known(came: &mut Came, word: &str, rest: &str) -> Option<()> {
    let text = rest.to_owned();
    let downstream = &mut came.downstream;
    let mut peer = downstream.peer.as_deref().cloned().unwrap_or_default();
    match word {
        "metadata" => {
            let mut words = rest.splitn(3, ' ');
            let (filter, path, text) = (words.next()?, words.next()?, words.next()?);
            let (first, inner) = path.split_once('.').unwrap_or((path, ""));
            let mut value = Value::from(text);
            for key in inner.rsplit('.').filter(|key| !key.is_empty()) {
                value = Value::Object([(key.to_owned(), value)].into_iter().collect());
            }
            came.metadata.set(filter, first, value);
            let path = path.split('.').filter(|key| !key.is_empty()).collect::<Vec<_>>();
            // What was there before is gone, with all that is in it.
            came.texts
                .retain(|(own, old, _)| own != filter || old.split('.').next() != Some(first));
            if !first.is_empty() {
                came.texts
                    .push((filter.to_owned(), path.join("."), text.to_owned()));
            }
            return Some(());
        }
        "uri" => peer.uris.push(text),
        "dns" => peer.dns_names.push(text),
        "subject" => peer.subject = text,
        "from" => downstream.source = Some(address(rest)?),
        "relay" => downstream.restore_source(address(rest)?),
        "to" => downstream.destination = Some(address(rest)?),
        "sni" => downstream.server_name = Some(rest.into()),
        _ => return None,
    }
    if matches!(word, "uri" | "dns" | "subject") {
        downstream.peer = Some(Arc::new(peer));
    }
    Some(())
}

fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

/// Takes a line of the rules. One that is none is left out.
fn configure(rules: &mut Rbac, name: &mut String, word: &str, rest: &str) {
    match word {
        "allow" => rules.action = wire::Action::Allow.into(),
        "deny" => rules.action = wire::Action::Deny.into(),
        "policy" => {
            rest.clone_into(name);
            rules.policies.entry(name.clone()).or_default();
        }
        "permission" | "principal" => {
            let (what, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let Some(policy) = rules.policies.get_mut(name) else {
                return;
            };
            if word == "permission" {
                let rule = permitted(&mut policy.permissions, what, rest);
                policy
                    .permissions
                    .extend(rule.map(|rule| Permission { rule: Some(rule) }));
            } else {
                let identifier = identified(&mut policy.principals, what, rest);
                let identifier = identifier.map(|identifier| Principal {
                    identifier: Some(identifier),
                });
                policy.principals.extend(identifier);
            }
        }
        _ => {}
    }
}

/// The last ones of a list, as many as a text says.
fn last<T>(list: &mut Vec<T>, count: &str) -> Option<Vec<T>> {
    let from = list.len().checked_sub(count.parse().ok()?)?;
    Some(list.split_off(from))
}

fn permitted(list: &mut Vec<Permission>, what: &str, rest: &str) -> Option<Rule> {
    Some(match what {
        "any" => Rule::Any(true),
        "not" => Rule::NotRule(Box::new(list.pop()?)),
        "and" => Rule::AndRules(permission::Set {
            rules: last(list, rest)?,
        }),
        "or" => Rule::OrRules(permission::Set {
            rules: last(list, rest)?,
        }),
        "header" => Rule::Header(matching::header(rest)?),
        "path" => Rule::UrlPath(path(rest)?),
        "metadata" => Rule::Metadata(metadata(rest)?),
        "sni" => Rule::RequestedServerName(string(rest)?),
        "ip" => Rule::DestinationIp(range(rest)?),
        "port" => Rule::DestinationPort(rest.parse().ok()?),
        "ports" => {
            let (start, end) = rest.split_once(' ')?;
            Rule::DestinationPortRange(Int32Range {
                start: start.parse().ok()?,
                end: end.parse().ok()?,
            })
        }
        _ => return None,
    })
}

fn identified(list: &mut Vec<Principal>, what: &str, rest: &str) -> Option<Identifier> {
    Some(match what {
        "any" => Identifier::Any(true),
        "not" => Identifier::NotId(Box::new(list.pop()?)),
        "and" => Identifier::AndIds(principal::Set {
            ids: last(list, rest)?,
        }),
        "or" => Identifier::OrIds(principal::Set {
            ids: last(list, rest)?,
        }),
        "header" => Identifier::Header(matching::header(rest)?),
        "path" => Identifier::UrlPath(path(rest)?),
        "metadata" => Identifier::Metadata(metadata(rest)?),
        "ip" => Identifier::DirectRemoteIp(range(rest)?),
        "authenticated" => Identifier::Authenticated(Authenticated { principal_name: None }),
        "name" => Identifier::Authenticated(Authenticated {
            principal_name: Some(string(rest)?),
        }),
        _ => return None,
    })
}

fn string(words: &str) -> Option<StringMatcher> {
    let (kind, value) = words.split_once(' ')?;
    matching::string(kind, value)
}

fn path(words: &str) -> Option<PathMatcher> {
    Some(PathMatcher {
        rule: Some(path_matcher::Rule::Path(string(words)?)),
    })
}

/// `FILTER KEY.KEY KIND TEXT`, inverted by a `!` before the filter.
fn metadata(words: &str) -> Option<MetadataMatcher> {
    let mut words = words.splitn(3, ' ');
    let (filter, path, value) = (words.next()?, words.next()?, string(words.next()?)?);
    let key = |key: &str| PathSegment {
        segment: Some(Segment::Key(key.to_owned())),
    };
    Some(MetadataMatcher {
        filter: filter.trim_start_matches('!').to_owned(),
        path: path.split('.').map(key).collect(),
        value: Some(ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(value)),
        }),
        invert: filter.starts_with('!'),
    })
}

fn range(text: &str) -> Option<CidrRange> {
    let (address, length) = text.split_once('/')?;
    Some(CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: Some(length.parse().ok()?),
    })
}

/// ALLOW lets in whom a policy matches, DENY keeps them out.
fn verdict(rules: &Rbac, came: &Came) -> Action {
    let any = rules.policies.values().any(|policy: &Policy| {
        policy
            .permissions
            .iter()
            .any(|permission| permits(permission, came))
            && policy.principals.iter().any(|principal| is(principal, came))
    });
    let allows = rules.action == i32::from(wire::Action::Allow);
    if any == allows {
        Action::Allow
    } else {
        Action::Deny
    }
}

fn permits(permission: &Permission, came: &Came) -> bool {
    let to = came.downstream.destination;
    match permission.rule.as_ref().expect("there is a rule") {
        Rule::Any(any) => *any,
        Rule::NotRule(rule) => !permits(rule, came),
        Rule::AndRules(set) => set.rules.iter().all(|rule| permits(rule, came)),
        Rule::OrRules(set) => set.rules.iter().any(|rule| permits(rule, came)),
        Rule::Header(header) => matching::header_holds(header, &came.asked),
        Rule::UrlPath(path) => path_holds(path, came),
        Rule::Metadata(metadata) => metadata_holds(metadata, came),
        Rule::RequestedServerName(name) => {
            matching::string_holds(name, came.downstream.server_name.as_deref().unwrap_or_default())
        }
        Rule::DestinationIp(range) => to.is_some_and(|to| within(range, to.ip())),
        Rule::DestinationPort(port) => to.is_some_and(|to| u32::from(to.port()) == *port),
        Rule::DestinationPortRange(range) => {
            to.is_some_and(|to| range.start <= i32::from(to.port()) && i32::from(to.port()) < range.end)
        }
        _ => unreachable!("no line makes it"),
    }
}

fn is(principal: &Principal, came: &Came) -> bool {
    match principal.identifier.as_ref().expect("there is one") {
        Identifier::Any(any) => *any,
        Identifier::NotId(id) => !is(id, came),
        Identifier::AndIds(set) => set.ids.iter().all(|id| is(id, came)),
        Identifier::OrIds(set) => set.ids.iter().any(|id| is(id, came)),
        Identifier::Header(header) => matching::header_holds(header, &came.asked),
        Identifier::UrlPath(path) => path_holds(path, came),
        Identifier::Metadata(metadata) => metadata_holds(metadata, came),
        Identifier::DirectRemoteIp(range) => {
            let from = came.downstream.relay.as_deref().copied();
            let from = from.or(came.downstream.source);
            from.is_some_and(|from| within(range, from.ip()))
        }
        Identifier::Authenticated(wanted) => {
            let Some(peer) = came.downstream.peer.as_deref() else {
                return false;
            };
            let Peer {
                uris,
                dns_names,
                subject,
                ..
            } = peer;
            let mut names = uris.iter().chain(dns_names).chain([subject]);
            let wanted = wanted.principal_name.as_ref();
            wanted.is_none_or(|wanted| names.any(|name| matching::string_holds(wanted, name)))
        }
        _ => unreachable!("no line makes it"),
    }
}

fn path_holds(matcher: &PathMatcher, came: &Came) -> bool {
    let Some(path_matcher::Rule::Path(text)) = &matcher.rule else {
        unreachable!("it has a path")
    };
    matching::string_holds(text, came.asked.path())
}

fn metadata_holds(matcher: &MetadataMatcher, came: &Came) -> bool {
    let keys = matcher.path.iter().map(|segment| {
        let Some(Segment::Key(key)) = &segment.segment else {
            unreachable!("it has a key")
        };
        key.as_str()
    });
    let path = keys.collect::<Vec<_>>().join(".");
    let pattern = matcher
        .value
        .as_ref()
        .and_then(|value| value.match_pattern.as_ref());
    let Some(value_matcher::MatchPattern::StringMatch(wanted)) = pattern else {
        unreachable!("it is matched by text")
    };
    let said = |(filter, at, _): &&(String, String, String)| *filter == matcher.filter && *at == path;
    let text = came.texts.iter().find(said);
    text.is_some_and(|(_, _, text)| matching::string_holds(wanted, text)) != matcher.invert
}

/// Bit by bit. A range is of the family that it is written in; an address of IPv4 within IPv6 is one of IPv4.
fn within(range: &CidrRange, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => format!("{:032b}", u32::from(address)),
        IpAddr::V6(address) => format!("{:0128b}", u128::from(address)),
    };
    let prefix: IpAddr = range.address_prefix.parse().expect("it is an address");
    let (prefix, address) = (bits(prefix), bits(address.to_canonical()));
    let length = range.prefix_len.unwrap_or_default() as usize;
    prefix.len() == address.len() && prefix.get(..length) == address.get(..length)
}
