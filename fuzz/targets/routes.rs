//! A route table and requests: each goes where a reader of Envoy's documentation would send it, its path has one
//! normal form, and what a route makes of it is one request.
//!
//! Lines: `host DOMAIN…` begins a virtual host and `KIND VALUE` a route of it (`prefix`, `path`, `separated`,
//! `regex`; `~` before it leaves the case out). What follows is asked of it, `header NAME MATCHER` and `query
//! NAME MATCHER`, or done by it: `rewrite PREFIX`, `replace REGEX SUBSTITUTION`, `redirect WHAT VALUE`. `ports`
//! has ports of hosts ignored. Then requests as in `matching`.

#![no_main]

use attache::control::xds::decode::route;
use attache::http::fuzzing::{self, Limits, Normalized};
use attache::model::Metadata;
use attache::model::http::{Normalization, PathWithEscapedSlashes};
use attache::model::route::{PathRewrite, Redirect, Route, RouteAction, RouteConfiguration, RouteDecision};
use attache_fuzz::matching::{self, Asked};
use attache_proto::envoy::config::route::v3::{
    QueryParameterMatcher, RedirectAction, Route as WireRoute, RouteAction as WireAction,
    RouteConfiguration as Wire, RouteMatch, VirtualHost,
    query_parameter_matcher::QueryParameterMatchSpecifier as QueryCheck,
    redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
    route::Action,
    route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};
use attache_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use regex::{Captures, Regex};

/// More lines are no other table, and each may be an expression to compile.
const MAX_LINES: usize = 64;

/// Of what is read again.
const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    fields: 100,
};

fuzz_target!(|text: &str| {
    let (mut table, mut asked): (Wire, Vec<Asked>) = (Wire::default(), Vec::new());
    for line in text.lines().take(MAX_LINES) {
        if let Some(request) = Asked::begin(line) {
            asked.push(request);
        } else if !asked.last_mut().is_some_and(|request| request.add(line)) {
            configure(&mut table, line);
        }
    }
    for request in &asked {
        normal_form(&request.target);
    }
    let bytes = table.encode_to_vec();
    match matching::decoded(|ctx| route::decode_bytes(&bytes, ctx)) {
        Ok(decoded) => {
            for request in &asked {
                routed(&table, &decoded, request);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// Takes a line of the table. One that is none is left out.
fn configure(table: &mut Wire, line: &str) {
    let (word, value) = line.split_once(' ').unwrap_or((line, ""));
    let name = table.virtual_hosts.len().to_string();
    match word {
        "ports" => table.ignore_port_in_host_matching = true,
        "host" => table.virtual_hosts.push(VirtualHost {
            name,
            domains: value.split(' ').map(str::to_owned).collect(),
            ..VirtualHost::default()
        }),
        _ => {
            if let Some(host) = table.virtual_hosts.last_mut() {
                of_host(host, word, value);
            }
        }
    }
}

fn of_host(host: &mut VirtualHost, word: &str, value: &str) {
    let text = value.to_owned();
    let kind = word.strip_prefix('~').unwrap_or(word);
    let path = match kind {
        "prefix" => PathSpecifier::Prefix(text),
        "path" => PathSpecifier::Path(text),
        "separated" => PathSpecifier::PathSeparatedPrefix(text),
        "regex" => PathSpecifier::SafeRegex(matching::regex(text)),
        _ => {
            if let Some(route) = host.routes.last_mut() {
                of_route(route, word, value);
            }
            return;
        }
    };
    let action = WireAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".to_owned())),
        ..WireAction::default()
    };
    host.routes.push(WireRoute {
        name: host.routes.len().to_string(),
        r#match: Some(RouteMatch {
            path_specifier: Some(path),
            case_sensitive: (kind != word).then_some(false),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..WireRoute::default()
    });
}

fn of_route(route: &mut WireRoute, word: &str, value: &str) {
    let Some(matches) = &mut route.r#match else { return };
    match word {
        "header" => matches.headers.extend(matching::header(value)),
        "query" => matches.query_parameters.extend(query(value)),
        "redirect" => {
            let mut redirect = match route.action.take() {
                Some(Action::Redirect(redirect)) => redirect,
                _ => RedirectAction::default(),
            };
            led(&mut redirect, value);
            route.action = Some(Action::Redirect(redirect));
        }
        _ => {
            let Some(Action::Route(action)) = &mut route.action else {
                return;
            };
            match word {
                "rewrite" => value.clone_into(&mut action.prefix_rewrite),
                "replace" => action.regex_rewrite = substitution(value),
                _ => {}
            }
        }
    }
}

/// A parameter: its name, and a matcher of text or `present` or `absent`.
fn query(words: &str) -> Option<QueryParameterMatcher> {
    let mut words = words.splitn(3, ' ');
    let (name, kind, value) = (words.next()?, words.next()?, words.next().unwrap_or(""));
    let check = match kind {
        "present" => QueryCheck::PresentMatch(true),
        "absent" => QueryCheck::PresentMatch(false),
        _ => QueryCheck::StringMatch(matching::string(kind, value)?),
    };
    Some(QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(check),
    })
}

fn substitution(words: &str) -> Option<RegexMatchAndSubstitute> {
    let (pattern, substitution) = words.split_once(' ')?;
    Some(RegexMatchAndSubstitute {
        pattern: Some(matching::regex(pattern.to_owned())),
        substitution: substitution.to_owned(),
    })
}

fn led(redirect: &mut RedirectAction, words: &str) {
    let (word, value) = words.split_once(' ').unwrap_or((words, ""));
    let text = value.to_owned();
    match word {
        "https" => redirect.scheme_rewrite_specifier = Some(SchemeRewriteSpecifier::HttpsRedirect(true)),
        "host" => redirect.host_redirect = text,
        "port" => redirect.port_redirect = value.parse().unwrap_or_default(),
        "path" => redirect.path_rewrite_specifier = Some(PathRewriteSpecifier::PathRedirect(text)),
        "prefix" => redirect.path_rewrite_specifier = Some(PathRewriteSpecifier::PrefixRewrite(text)),
        "replace" => {
            redirect.path_rewrite_specifier = substitution(value).map(PathRewriteSpecifier::RegexRewrite);
        }
        "strip" => redirect.strip_query = true,
        _ => {}
    }
}

/// The request goes where it should, and on as one.
fn routed(wire: &Wire, table: &RouteConfiguration, asked: &Asked) {
    let metadata = Metadata::default();
    let mut request = asked.request();
    let found = table.find(&asked.host, &request.view(&metadata));
    let names = found.map(|(host, route)| (&*host.name, &*route.name));
    let expected = expected_host(wire, &asked.host).and_then(|host| {
        let holds = |route: &&WireRoute| route_holds(route.r#match.as_ref().expect("it is there"), asked);
        let route = host.routes.iter().find(holds)?;
        Some((&*host.name, &*route.name))
    });
    assert_eq!(names, expected, "{asked:?}");
    let Some((_, route)) = found else { return };
    if asked.target.contains('#') {
        // No such request comes as far as this.
        return;
    }
    match &route.action {
        RouteDecision::Route(action) => {
            if request.rewrite(route, action) {
                rewritten(route, action, asked, request.target());
                passed_on(&request);
            }
        }
        RouteDecision::Redirect(redirect) => {
            let location = request.location(redirect, &route.matches);
            led_to(&location, redirect, asked);
        }
        RouteDecision::DirectResponse(_) => {}
    }
}

/// A redirect leads to the host that it says, whatever the path becomes.
fn led_to(location: &str, redirect: &Redirect, asked: &Asked) {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or(&asked.host);
    let rest = location.strip_prefix(&format!("{scheme}://"));
    let rest = rest.expect("it begins with its scheme");
    let brackets = host.find(']').unwrap_or_default();
    let name = &host[..host[brackets..]
        .find(':')
        .map_or(host.len(), |colon| brackets + colon)];
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let authorities = [
        host.to_owned(),
        name.to_owned(),
        format!("{host}{port}"),
        format!("{name}{port}"),
    ];
    let leads = |authority: &String| rest.starts_with(&format!("{authority}/"));
    assert!(authorities.iter().any(leads), "{location}");
    if redirect.strip_query && redirect.path.is_none() {
        let host = authorities.iter().any(|authority| authority.contains('?'));
        assert!(host || !rest.contains('?'), "{location}");
    }
}

/// By Envoy's documentation of `VirtualHost.domains`: all that fit, and the best of them.
fn expected_host<'a>(wire: &'a Wire, host: &str) -> Option<&'a VirtualHost> {
    let mut host = host.to_ascii_lowercase();
    if wire.ignore_port_in_host_matching
        && let Some((name, port)) = host.rsplit_once(':')
        && !port.contains(']')
    {
        host.truncate(name.len());
    }
    let domains = wire
        .virtual_hosts
        .iter()
        .flat_map(|own| own.domains.iter().map(move |domain| (own, domain)));
    let fitting = domains.filter_map(|(own, domain)| {
        let domain = domain.to_ascii_lowercase();
        let rank = if domain == "*" {
            (0, 0)
        } else if let Some(suffix) = domain.strip_prefix('*') {
            (host.len() > suffix.len() && host.ends_with(suffix)).then_some((2, suffix.len()))?
        } else if let Some(prefix) = domain.strip_suffix('*') {
            (host.len() > prefix.len() && host.starts_with(prefix)).then_some((1, prefix.len()))?
        } else {
            (host == domain).then_some((3, 0))?
        };
        Some((rank, own))
    });
    fitting.max_by_key(|(rank, _)| *rank).map(|(_, own)| own)
}

fn route_holds(matches: &RouteMatch, asked: &Asked) -> bool {
    let fold = |text: &str| match matches.case_sensitive {
        Some(false) => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    let path = fold(asked.path());
    let path = match matches.path_specifier.as_ref().expect("there is one") {
        PathSpecifier::Prefix(prefix) => path.starts_with(&fold(prefix)),
        PathSpecifier::Path(whole) => path == fold(whole),
        PathSpecifier::SafeRegex(regex) => matching::regex_holds(regex, asked.path()),
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            let prefix = fold(prefix);
            path == prefix || path.starts_with(&format!("{prefix}/"))
        }
        _ => unreachable!("no line makes it"),
    };
    let mut headers = matches.headers.iter();
    let mut query = matches.query_parameters.iter();
    path && headers.all(|header| matching::header_holds(header, asked))
        && query.all(|parameter| query_holds(parameter, asked))
}

fn query_holds(parameter: &QueryParameterMatcher, asked: &Asked) -> bool {
    let target = asked.target.split('#').next().unwrap_or_default();
    let value = target.split_once('?').and_then(|(_, query)| {
        query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == parameter.name).then_some(value)
        })
    });
    match parameter.query_parameter_match_specifier.as_ref() {
        None => value.is_some(),
        Some(QueryCheck::PresentMatch(wanted)) => value.is_some() == *wanted,
        Some(QueryCheck::StringMatch(matcher)) => {
            value.is_some_and(|value| matching::string_holds(matcher, value))
        }
    }
}

/// The path is what the route says, and the query what it was.
fn rewritten(route: &Route, action: &RouteAction, asked: &Asked, target: &str) {
    let (path, query) = asked
        .target
        .split_at(asked.target.find('?').unwrap_or(asked.target.len()));
    let expected = match &action.path_rewrite {
        None => path.to_owned(),
        Some(PathRewrite::Prefix(with)) => {
            let matched = route.matches.path.matched_length(asked.path());
            format!("{with}{}", &path[matched..])
        }
        Some(PathRewrite::Regex(rewrite)) => {
            let pattern = Regex::new(rewrite.expression()).expect("it was compiled before");
            let with = |found: &Captures<'_>| substituted(rewrite.substitution(), found);
            pattern.replace_all(path, with).into_owned()
        }
    };
    // Of nothing Envoy makes no path.
    let expected = if expected.is_empty() { path } else { &expected };
    assert_eq!(target, format!("{expected}{query}"));
    assert!(
        !target.is_empty() && !target.contains(' '),
        "{target:?} is no target"
    );
}

/// Group by group, from left to right.
fn substituted(substitution: &str, found: &Captures<'_>) -> String {
    let mut text = String::new();
    let mut rest = substitution.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next().and_then(|digit| digit.to_digit(10)) {
                Some(group) => text.push_str(found.get(group as usize).map_or("", |group| group.as_str())),
                None => text.push('\\'),
            },
            c => text.push(c),
        }
    }
    text
}

/// What an upstream is sent is one request or, where a configuration makes no path, none.
fn passed_on(request: &fuzzing::Request) {
    let sent = request.sent();
    let again = fuzzing::requests(&[&sent], LIMITS, &[]);
    assert!(again.accepted.len() <= 1);
    if let [same] = &again.accepted[..] {
        assert_eq!(same.target(), request.target());
        assert_eq!(again.end, "Ended");
    }
}

/// Under all options: what is normal stays, and nothing is left that another reader could take for a step up.
fn normal_form(target: &str) {
    use PathWithEscapedSlashes::{KeepUnchanged, RejectRequest, UnescapeAndForward, UnescapeAndRedirect};
    for path_with_escaped_slashes in [
        KeepUnchanged,
        RejectRequest,
        UnescapeAndForward,
        UnescapeAndRedirect,
    ] {
        for (normalize_path, merge_slashes) in [(false, false), (false, true), (true, false), (true, true)] {
            let options = Normalization {
                normalize_path,
                merge_slashes,
                path_with_escaped_slashes,
                ..Normalization::default()
            };
            let normal = match fuzzing::normalize(target, &options) {
                Normalized::Target(normal) | Normalized::Redirected(normal) => normal,
                Normalized::Rejected => continue,
            };
            // Dots that were encoded, or behind a backslash, and have parameters, are not resolved: as in Envoy,
            // which would resolve them in what it makes of them.
            let dots = |segment: &str| segment.starts_with(".;") || segment.starts_with("..;");
            let path = normal.split('?').next().unwrap_or_default();
            if !path.split('/').any(dots) {
                assert_eq!(
                    fuzzing::normalize(&normal, &options),
                    Normalized::Target(normal.clone()),
                    "{target} under {options:?}"
                );
            }
            is_normal(target, &normal, &options);
        }
    }
}

fn is_normal(target: &str, normal: &str, options: &Normalization) {
    let query = |target: &str| target.split_once('?').map(|(_, query)| query.to_owned());
    assert_eq!(query(normal), query(target));
    let path = normal.split('?').next().unwrap_or_default();
    assert!(path.starts_with('/'));
    if options.merge_slashes {
        assert!(path == "//" || !path.contains("//"), "{path}");
    }
    let lower = path.to_ascii_lowercase();
    if options.path_with_escaped_slashes != PathWithEscapedSlashes::KeepUnchanged {
        assert!(!lower.contains("%2f") && !lower.contains("%5c"), "{path}");
    }
    if options.normalize_path {
        assert!(
            !path.contains('\\') && !lower.contains("%2e") && !lower.contains("%00"),
            "{path}"
        );
        assert!(
            !path.split('/').any(|segment| segment == "." || segment == ".."),
            "{path}"
        );
    }
}
