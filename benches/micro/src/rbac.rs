//! Verdicts: intentions as Consul's xDS server writes them, and as the Consul source compiles them.
//!
//! Ten callers are let in by name, everybody else is denied.

use std::borrow::Cow;
use std::hint::black_box;
use std::sync::Arc;

use attache::filter::rbac::check;
use attache::model::filter_chain_match::FilterChainMatch;
use attache::model::listener::{TcpProxy, Terminal};
use attache::model::matcher::{HeaderCheck, HeaderMatcher, Request, SafeRegex, StringMatcher, StringPattern};
use attache::model::rbac::{Permission, Principal, Rule};
use attache::model::{Action, Downstream, FilterChain, NetworkFilter, Peer, Rbac, SpiffeId};
use http::HeaderMap;

use crate::bench::{Bench, Outcome, repeat};

pub(crate) const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

const CALLERS: [&str; 10] = [
    "admin", "billing", "cart", "frontend", "gateway", "orders", "reports", "search", "web", "worker",
];

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "rbac-network-allow",
        times: 500,
        run: |times| network(times, by_expression(Permission::Any)?, "web", Action::Allow),
    },
    Bench {
        name: "rbac-network-deny",
        times: 500,
        run: |times| network(times, by_expression(Permission::Any)?, "intruder", Action::Deny),
    },
    Bench {
        name: "rbac-network-consul-allow",
        times: 500,
        run: |times| network(times, by_name(), "web", Action::Allow),
    },
    Bench {
        name: "rbac-network-consul-deny",
        times: 500,
        run: |times| network(times, by_name(), "intruder", Action::Deny),
    },
    Bench {
        name: "rbac-http-allow",
        times: 500,
        run: |times| http(times, "/api/v2/items/42?page=7", Action::Allow),
    },
    Bench {
        name: "rbac-http-deny",
        times: 500,
        run: |times| http(times, "/internal/items", Action::Deny),
    },
];

/// A request as rules and routes look at it.
pub(crate) struct Asked {
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) headers: HeaderMap,
}

impl Request for Asked {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some(self.method.into()),
            ":path" => Some(self.target.into()),
            _ => Some(String::from_utf8_lossy(self.headers.get(name)?.as_bytes())),
        }
    }

    fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
        None
    }
}

/// What Consul calls a service in its certificate.
pub(crate) fn uri(service: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{service}")
}

/// A downstream of this service.
pub(crate) fn downstream(service: &str) -> Result<Downstream, String> {
    let id = SpiffeId::parse(&uri(service)).map_err(|error| error.to_string())?;
    Ok(Downstream {
        source: Some(([10, 1, 2, 3], 40_000).into()),
        destination: Some(([10, 1, 2, 4], 20_000).into()),
        peer: Some(Arc::new(Peer::of(id))),
        ..Downstream::default()
    })
}

pub(crate) fn regex(source: &str) -> Result<StringMatcher, String> {
    let regex = SafeRegex::new(source).map_err(|error| error.to_string())?;
    Ok(StringMatcher {
        pattern: StringPattern::Regex(regex),
        ignore_case: false,
    })
}

/// One policy with an expression a caller: the form of Consul's xDS server.
fn by_expression(permission: Permission) -> Result<Rbac, String> {
    let principal = |service: &&str| {
        let uri = format!("^spiffe://{TRUST_DOMAIN}/ns/default/dc/[^/]+/svc/{service}$");
        regex(&uri).map(|name| Principal::Authenticated(Some(name)))
    };
    let rule = Rule {
        name: "consul-intentions-layer4".into(),
        action: Action::Allow,
        principal: Principal::AnyOf(CALLERS.iter().map(principal).collect::<Result<_, _>>()?),
        permission,
    };
    Ok(rbac(vec![rule]))
}

/// A rule a caller, by the parts of its SPIFFE ID: the form of the Consul source.
fn by_name() -> Rbac {
    let rule = |service: &&str| Rule {
        name: format!("{service} -> api: allow").into(),
        action: Action::Allow,
        principal: Principal::Service {
            trust_domain: Some(TRUST_DOMAIN.into()),
            partition: Some("default".into()),
            namespace: Some("default".into()),
            service: Some((*service).into()),
        },
        permission: Permission::Any,
    };
    rbac(CALLERS.iter().map(rule).collect())
}

fn rbac(rules: Vec<Rule>) -> Rbac {
    Rbac {
        rules,
        default_action: Action::Deny,
        default_name: "no policy matches: deny".into(),
        spiffe_only: false,
    }
}

/// `GET` and `HEAD` under one of three prefixes.
pub(crate) fn by_request() -> Result<Rbac, String> {
    let prefix = |path: &str| {
        Permission::UrlPath(StringMatcher {
            pattern: StringPattern::Prefix(path.into()),
            ignore_case: false,
        })
    };
    let method = Permission::Header(HeaderMatcher {
        name: ":method".into(),
        check: HeaderCheck::Value(regex("GET|HEAD")?),
        invert: false,
        missing_as_empty: false,
    });
    let allowed = |path: &str| Permission::All(vec![prefix(path), method.clone()]);
    let paths = ["/health", "/metrics", "/api/"].map(allowed);
    by_expression(Permission::AnyOf(paths.into()))
}

fn network(times: u32, rules: Rbac, caller: &str, expected: Action) -> Outcome {
    let chain = FilterChain {
        name: "".into(),
        matches: FilterChainMatch::default(),
        transport: None,
        filters: vec![NetworkFilter::Rbac {
            rules: Arc::new(rules),
            stat_prefix: "connect_authz".into(),
        }],
        terminal: Terminal::TcpProxy(TcpProxy::to("local_app".into(), "public_listener".into())),
    };
    let downstream = downstream(caller)?;
    if check(&chain, &downstream).map(|verdict| verdict.action) != Some(expected) {
        return Err("another verdict".into());
    }
    repeat(times, || {
        black_box(check(black_box(&chain), black_box(&downstream)));
    });
    Ok(())
}

fn http(times: u32, target: &'static str, expected: Action) -> Outcome {
    let (rules, downstream) = (by_request()?, downstream("web")?);
    let asked = Asked {
        method: "GET",
        target,
        headers: HeaderMap::new(),
    };
    if rules.evaluate(&downstream, Some(&asked)).action != expected {
        return Err("another verdict".into());
    }
    repeat(times, || {
        black_box(black_box(&rules).evaluate(black_box(&downstream), Some(black_box(&asked))));
    });
    Ok(())
}
