//! The route of a request in a table of 20 routes, such as service routers make, on the last of ten hosts.

use std::hint::black_box;
use std::sync::Arc;

use attache::model::RouteConfiguration;
use attache::model::matcher::{HeaderCheck, HeaderMatcher, StringMatcher};
use attache::model::route::{
    Domain, HeaderMutations, PathMatch, QueryParameterCheck, QueryParameterMatcher, Route, RouteAction,
    RouteDecision, RouteMatch, VirtualHost,
};
use http::HeaderMap;

use crate::bench::{Bench, Outcome, repeat};
use crate::rbac::{Asked, regex};

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "route-first",
        times: 500,
        run: |times| find(times, "/api/service-0/items?page=7", "service-0"),
    },
    Bench {
        name: "route-last",
        times: 500,
        run: |times| find(times, "/anything/items?page=7", "everything-else"),
    },
    Bench {
        name: "route-expression",
        times: 500,
        run: |times| find(times, "/users/4711/orders?page=7", "expression"),
    },
];

/// 20 routes: sixteen by prefix, of which some ask for a header or a parameter, two exact ones, an expression
/// and one for everything else. Each goes to a cluster of its own.
///
/// # Errors
/// Says what is wrong with the table.
pub(crate) fn table() -> Result<RouteConfiguration, String> {
    let mut routes = Vec::new();
    for index in 0..16 {
        let name = format!("service-{index}");
        let mut matches = RouteMatch::path(PathMatch::Prefix(format!("/api/{name}/").into()));
        if index % 4 == 1 {
            matches.headers.push(HeaderMatcher {
                name: "x-version".into(),
                check: HeaderCheck::Value(StringMatcher::exact("2")),
                invert: false,
                missing_as_empty: false,
            });
        }
        if index % 4 == 3 {
            matches.query_parameters.push(QueryParameterMatcher {
                name: "debug".into(),
                check: QueryParameterCheck::Present(true),
            });
        }
        routes.push(route(&name, matches));
    }
    for path in ["health", "metrics"] {
        let matches = RouteMatch::path(PathMatch::Path(format!("/{path}").into()));
        routes.push(route(path, matches));
    }
    let expression = regex("/users/[0-9]+/orders(/.*)?")?;
    let attache::model::matcher::StringPattern::Regex(expression) = expression.pattern else {
        return Err("no expression".to_owned());
    };
    routes.push(route(
        "expression",
        RouteMatch::path(PathMatch::Regex(expression)),
    ));
    routes.push(route(
        "everything-else",
        RouteMatch::path(PathMatch::Prefix("/".into())),
    ));
    let host = |index| {
        let name = format!("api-{index}.example.com");
        Arc::new(VirtualHost {
            domains: vec![Domain::Exact(name.as_str().into())],
            name: name.into(),
            headers: HeaderMutations::default(),
            routes: routes.clone(),
            retry_policy: None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
        })
    };
    RouteConfiguration::new("api".into(), (0..10).map(host).collect()).map_err(|error| error.to_string())
}

/// The host that requests are for.
pub(crate) const HOST: &str = "api-9.example.com";

fn route(cluster: &str, matches: RouteMatch) -> Arc<Route> {
    Arc::new(Route {
        name: cluster.into(),
        matches,
        action: RouteDecision::Route(Box::new(RouteAction::to(cluster.into()))),
        headers: HeaderMutations::default(),
    })
}

fn find(times: u32, target: &'static str, expected: &str) -> Outcome {
    let table = table()?;
    let asked = Asked {
        method: "GET",
        target,
        headers: HeaderMap::new(),
    };
    let found = table.find(HOST, &asked).map(|(_, route)| &*route.name);
    if found != Some(expected) {
        return Err(format!("the route {found:?}").into());
    }
    repeat(times, || {
        black_box(black_box(&table).find(black_box(HOST), black_box(&asked)));
    });
    Ok(())
}
