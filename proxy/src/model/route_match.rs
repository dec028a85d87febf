//! Finding the route of a request: the virtual host by its domain, then the first route that matches.
//!
//! Pure. The search order is Envoy's: exact domains, the longest suffix wildcard (`*.foo.com`), the longest
//! prefix wildcard (`foo.*`), the lone `*`.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::matcher::Request;
use super::route::{
    PathMatch, QueryParameterCheck, QueryParameterMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost,
};

/// A host, or hosts, that a virtual host is for. Lower case: hosts have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// This host; a port is part of it.
    Exact(Arc<str>),
    /// `*.foo.com`: one that ends with this and has at least one byte before it.
    Suffix(Arc<str>),
    /// `foo.*`: one that begins with this and has at least one byte after it.
    Prefix(Arc<str>),
    /// `*`: every host.
    Any,
}

/// Why domains cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// A domain without a byte.
    #[error("a domain is empty; write * for every host")]
    Empty,
    /// Two virtual hosts, or one twice, are for the same domain.
    #[error("the domain {domain} is given twice, the second time by the virtual host {virtual_host}")]
    Twice {
        /// The domain.
        domain: Domain,
        /// Who has it the second time.
        virtual_host: String,
    },
}

/// Virtual hosts by domain, each by its place in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DomainIndex {
    exact: BTreeMap<Arc<str>, usize>,
    /// By length, the longest first.
    suffixes: BTreeMap<Reverse<usize>, BTreeMap<Arc<str>, usize>>,
    prefixes: BTreeMap<Reverse<usize>, BTreeMap<Arc<str>, usize>>,
    any: Option<usize>,
}

impl Domain {
    /// Reads a domain as it is configured.
    ///
    /// # Errors
    /// [`DomainError::Empty`].
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let text = text.to_ascii_lowercase();
        Ok(match text.as_str() {
            "" => return Err(DomainError::Empty),
            "*" => Self::Any,
            _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(suffix), _) => Self::Suffix(suffix.into()),
                (None, Some(prefix)) => Self::Prefix(prefix.into()),
                (None, None) => Self::Exact(text.into()),
            },
        })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl DomainIndex {
    pub(super) fn new(virtual_hosts: &[Arc<VirtualHost>]) -> Result<Self, DomainError> {
        let mut index = Self::default();
        for (place, host) in virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                if index.insert(domain, place).is_some() {
                    return Err(DomainError::Twice {
                        domain: domain.clone(),
                        virtual_host: host.name.to_string(),
                    });
                }
            }
        }
        Ok(index)
    }

    /// What stood for `domain` before.
    fn insert(&mut self, domain: &Domain, place: usize) -> Option<usize> {
        match domain {
            Domain::Exact(host) => self.exact.insert(Arc::clone(host), place),
            Domain::Suffix(suffix) => self
                .suffixes
                .entry(Reverse(suffix.len()))
                .or_default()
                .insert(Arc::clone(suffix), place),
            Domain::Prefix(prefix) => self
                .prefixes
                .entry(Reverse(prefix.len()))
                .or_default()
                .insert(Arc::clone(prefix), place),
            Domain::Any => self.any.replace(place),
        }
    }

    fn find(&self, host: &str) -> Option<usize> {
        let longest = |wildcards: &BTreeMap<Reverse<usize>, BTreeMap<Arc<str>, usize>>, suffix: bool| {
            wildcards
                .iter()
                .filter(|(Reverse(length), _)| host.len() > *length)
                .find_map(|(Reverse(length), wildcards)| {
                    let part = if suffix {
                        host.get(host.len() - length..)
                    } else {
                        host.get(..*length)
                    };
                    wildcards.get(part?).copied()
                })
        };
        self.exact
            .get(host)
            .copied()
            .or_else(|| longest(&self.suffixes, true))
            .or_else(|| longest(&self.prefixes, false))
            .or(self.any)
    }
}

impl RouteConfiguration {
    /// The virtual host for `host` (the `:authority`) and its first route that matches `request`.
    pub fn find(&self, host: &str, request: &dyn Request) -> Option<(&Arc<VirtualHost>, &Arc<Route>)> {
        let virtual_host = self.find_virtual_host(host)?;
        let route = virtual_host
            .routes
            .iter()
            .find(|route| route.matches.matches(request))?;
        Some((virtual_host, route))
    }

    /// The virtual host for `host`, whose letters are looked at without their case.
    pub fn find_virtual_host(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        let host = if self.ignore_port_in_host_matching {
            without_port(host)
        } else {
            host
        };
        self.virtual_hosts()
            .get(self.index().find(&host.to_ascii_lowercase())?)
    }
}

impl RouteMatch {
    /// Whether everything asked holds of `request`.
    pub fn matches(&self, request: &dyn Request) -> bool {
        self.path.matches(request.path(), self.case_sensitive)
            && self.headers.iter().all(|header| header.matches(request))
            && (self.query_parameters.is_empty() || {
                let path = request.header(":path").unwrap_or_default();
                self.query_parameters.iter().all(|asked| asked.matches(&path))
            })
    }
}

impl PathMatch {
    /// Whether `path`, without query and fragment, is what is asked for.
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        let begins = |with: &str| {
            path.as_bytes().get(..with.len()).is_some_and(|start| {
                if case_sensitive {
                    start == with.as_bytes()
                } else {
                    start.eq_ignore_ascii_case(with.as_bytes())
                }
            })
        };
        match self {
            Self::Prefix(prefix) => begins(prefix),
            Self::Path(whole) => whole.len() == path.len() && begins(whole),
            Self::Regex(regex) => regex.matches(path),
            Self::PathSeparatedPrefix(prefix) => {
                begins(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
        }
    }

    /// How many bytes of a path that matches are the matched part, which `prefix_rewrite` replaces.
    pub fn matched_length(&self, path: &str) -> usize {
        match self {
            Self::Prefix(prefix) | Self::PathSeparatedPrefix(prefix) => prefix.len().min(path.len()),
            Self::Path(_) | Self::Regex(_) => path.len(),
        }
    }
}

impl QueryParameterMatcher {
    /// Whether the query of `path`, a request target, has what is asked for.
    pub fn matches(&self, path: &str) -> bool {
        let value = query_parameter(path, &self.name);
        match &self.check {
            QueryParameterCheck::Present(wanted) => value.is_some() == *wanted,
            QueryParameterCheck::Value(matcher) => value.is_some_and(|value| matcher.matches(&value)),
        }
    }
}

/// The first value of the parameter `name` in the query of `path`. One without `=` is empty.
pub fn query_parameter<'a>(path: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    let (_, query) = path.split_once('?')?;
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(Cow::Borrowed(value))
    })
}

/// `host` without its port. The colons of an IPv6 address in brackets are none of a port.
pub fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if host.rfind(']').is_none_or(|bracket| bracket < colon) => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::super::matcher::{HeaderCheck, HeaderMatcher, SafeRegex, StringMatcher};
    use super::super::route::{HeaderMutations, RouteAction, RouteDecision};
    use super::*;

    struct Get(&'static str);

    impl Request for Get {
        fn header(&self, name: &str) -> Option<Cow<'_, str>> {
            match name {
                ":method" => Some("GET".into()),
                ":path" => Some(self.0.into()),
                _ => None,
            }
        }

        fn path(&self) -> &str {
            self.0.split(['?', '#']).next().unwrap_or_default()
        }

        fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
            None
        }
    }

    fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
        Arc::new(Route {
            name: name.into(),
            matches,
            action: RouteDecision::Route(Box::new(RouteAction::to(name.into()))),
            headers: HeaderMutations::default(),
        })
    }

    fn host(name: &str, domains: &[&str], routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
        Arc::new(VirtualHost {
            name: name.into(),
            domains: domains.iter().map(|d| Domain::parse(d).unwrap()).collect(),
            headers: HeaderMutations::default(),
            routes,
            retry_policy: None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
        })
    }

    fn table(hosts: &[(&str, &[&str])]) -> RouteConfiguration {
        let hosts = hosts
            .iter()
            .map(|(name, domains)| host(name, domains, vec![]))
            .collect();
        RouteConfiguration::new("table".into(), hosts).unwrap()
    }

    #[test]
    fn virtual_hosts_in_envoys_order() {
        let table = table(&[
            ("any", &["*"]),
            ("prefix", &["api.*"]),
            ("longer-prefix", &["api.example.*"]),
            ("suffix", &["*.com"]),
            ("longer-suffix", &["*.example.com", "*-x.example.com"]),
            ("exact", &["API.example.com", "api.example.com:8080"]),
        ]);
        let find = |host: &str| table.find_virtual_host(host).map(|host| host.name.to_string());
        assert_eq!(find("api.Example.com").unwrap(), "exact");
        assert_eq!(find("api.example.com:8080").unwrap(), "exact");
        assert_eq!(find("www.example.com").unwrap(), "longer-suffix");
        assert_eq!(find("example.com").unwrap(), "suffix");
        assert_eq!(find("api.example.org").unwrap(), "longer-prefix");
        assert_eq!(find("api.other.org").unwrap(), "prefix");
        assert_eq!(
            find(".com").unwrap(),
            "any",
            "the wildcard stands for at least one byte"
        );
        assert_eq!(find("api.").unwrap(), "any");
        assert_eq!(find("é.com").unwrap(), "suffix");
        assert_eq!(find("").unwrap(), "any");
    }

    #[test]
    fn without_a_match_there_is_no_virtual_host() {
        let mut table = table(&[("one", &["one"])]);
        assert!(table.find_virtual_host("two").is_none());
        assert!(table.find_virtual_host("one:80").is_none());
        table.ignore_port_in_host_matching = true;
        assert!(table.find_virtual_host("one:80").is_some());
    }

    #[test]
    fn a_domain_is_given_once() {
        let twice = vec![host("a", &["x", "*.y"], vec![]), host("b", &["X"], vec![])];
        assert_eq!(
            RouteConfiguration::new("t".into(), twice)
                .unwrap_err()
                .to_string(),
            "the domain x is given twice, the second time by the virtual host b"
        );
        assert_eq!(Domain::parse(""), Err(DomainError::Empty));
    }

    #[test]
    fn ports() {
        assert_eq!(without_port("host:80"), "host");
        assert_eq!(without_port("host"), "host");
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
    }

    #[test]
    fn the_first_route_that_matches_takes_the_request() {
        let mut post = RouteMatch::path(PathMatch::Prefix("/".into()));
        post.headers.push(HeaderMatcher {
            name: ":method".into(),
            check: HeaderCheck::Value(StringMatcher::exact("POST")),
            invert: false,
            missing_as_empty: false,
        });
        let mut v2 = RouteMatch::path(PathMatch::Prefix("/v".into()));
        v2.query_parameters.push(QueryParameterMatcher {
            name: "v".into(),
            check: QueryParameterCheck::Value(StringMatcher::exact("2")),
        });
        let mut folded = RouteMatch::path(PathMatch::Path("/Health".into()));
        folded.case_sensitive = false;
        let routes = vec![
            route("post", post),
            route("v2", v2),
            route("folded", folded),
            route(
                "regex",
                RouteMatch::path(PathMatch::Regex(SafeRegex::new("/u/[0-9]+").unwrap())),
            ),
            route(
                "separated",
                RouteMatch::path(PathMatch::PathSeparatedPrefix("/api".into())),
            ),
            route("exact", RouteMatch::path(PathMatch::Path("/exact".into()))),
        ];
        let table = RouteConfiguration::new("t".into(), vec![host("h", &["*"], routes)]).unwrap();
        let find = |path| {
            table
                .find("h", &Get(path))
                .map(|(_, route)| route.name.to_string())
        };
        assert_eq!(find("/v?v=2&v=1").unwrap(), "v2");
        assert_eq!(find("/v?v=1&v=2"), None);
        assert_eq!(find("/v#?v=2"), None);
        assert_eq!(find("/hEALTH?x").unwrap(), "folded");
        assert_eq!(find("/u/12").unwrap(), "regex");
        assert_eq!(find("/u/12/x"), None);
        assert_eq!(find("/api/x").unwrap(), "separated");
        assert_eq!(find("/api").unwrap(), "separated");
        assert_eq!(find("/apix"), None);
        assert_eq!(find("/exact?q").unwrap(), "exact");
        assert_eq!(find("/EXACT"), None);
        assert_eq!(find("/exact/"), None);
    }
}
