//! What a route makes of a request: where it goes, as what, and what is answered here.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};

use super::local_reply::LocalReply;
use super::message::{RequestHead, ResponseHead};
use super::stream::{Stop, Stream};
use crate::model::Name;
use crate::model::route::{
    ClusterSpecifier, ClusterWeight, DirectResponse, HostRewrite, IdleTimeout, PathRewrite, Redirect,
    RetryPolicy, Route, RouteAction, VirtualHost,
};
use crate::upstream::LoadBalancerContext;

const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where a request goes.
pub(super) struct Plan<'a> {
    pub(super) cluster: Name,
    pub(super) context: LoadBalancerContext,
    /// The answer where the cluster does not exist.
    pub(super) not_found: StatusCode,
    pub(super) retry_policy: Option<&'a Arc<RetryPolicy>>,
    /// Of several clusters, the share that it fell into.
    pub(super) share: Option<&'a ClusterWeight>,
}

/// Chooses the cluster and makes the request what the route wants it to be.
///
/// # Errors
/// The answer where that is no request any more.
pub(super) fn plan<'a>(
    stream: &Stream,
    host: &'a VirtualHost,
    route: &'a Route,
    action: &'a RouteAction,
) -> Result<Plan<'a>, Stop> {
    let (cluster, share) = choose(action);
    let retry_policy = action.retry_policy.as_ref().or(host.retry_policy.as_ref());
    stream.clock.route.set(action.timeout);
    match action.idle_timeout {
        IdleTimeout::Inherited => {}
        IdleTimeout::Disabled => stream.clock.idle.set(None),
        IdleTimeout::After(limit) => stream.clock.idle.set(Some(limit)),
    }
    let head = &mut *stream.head.borrow_mut();
    if head.upgrade.is_some() {
        // A protocol that was switched to has no end to wait for.
        stream.clock.route.set(None);
    }
    rewrite_host(head, action, share);
    rewrite_path(head, route, action)?;
    let per_try = retry_policy.and_then(|policy| policy.per_try_timeout);
    let expected = match (action.timeout, per_try) {
        (Some(whole), Some(one)) => Some(whole.min(one)),
        (whole, one) => whole.or(one),
    };
    if let Some(expected) = expected
        && !stream.manager.suppress_envoy_headers
    {
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(EXPECTED_TIMEOUT, millis.into());
    }
    *stream.facts.cluster.borrow_mut() = Some(Name::clone(cluster));
    Ok(Plan {
        cluster: Name::clone(cluster),
        context: LoadBalancerContext {
            destination: stream.connection.downstream.destination,
            hash: None,
            max_attempts: None,
            per_request: true,
        },
        not_found: StatusCode::from_u16(action.cluster_not_found_response_code)
            .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        retry_policy,
        share,
    })
}

fn rewrite_host(head: &mut RequestHead, action: &RouteAction, share: Option<&ClusterWeight>) {
    let of_route = match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => Some(&**host),
        Some(HostRewrite::Auto) | None => None,
    };
    let Some(host) = share.and_then(|share| share.host_rewrite.as_deref()).or(of_route) else {
        return;
    };
    let before = std::mem::replace(&mut head.authority, host.to_owned());
    if action.append_x_forwarded_host
        && before != host
        && let Ok(before) = HeaderValue::from_str(&before)
    {
        head.headers.append(FORWARDED_HOST, before);
    }
}

fn rewrite_path(head: &mut RequestHead, route: &Route, action: &RouteAction) -> Result<(), Stop> {
    let Some(rewrite) = &action.path_rewrite else {
        return Ok(());
    };
    let rewritten = rewritten(head, route, rewrite);
    if !rewritten.starts_with('/') || rewritten.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(LocalReply::bad_request("the rewritten path is none", "path_rewrite").into());
    }
    let before = std::mem::replace(&mut head.target, rewritten);
    if let Ok(before) = HeaderValue::from_str(&before) {
        head.headers.insert(ORIGINAL_PATH, before);
    }
    Ok(())
}

/// The target after a rewrite; its query stays.
fn rewritten(head: &RequestHead, route: &Route, rewrite: &PathRewrite) -> String {
    let path = head.path();
    let query = &head.target[path.len()..];
    match rewrite {
        PathRewrite::Prefix(with) => {
            let rest = &path[route.matches.path.matched_length(path)..];
            format!("{with}{rest}{query}")
        }
        PathRewrite::Regex(regex) => format!("{}{query}", regex.rewrite(path)),
    }
}

/// The route's cluster, of several one by weight.
fn choose(action: &RouteAction) -> (&Name, Option<&ClusterWeight>) {
    match &action.cluster {
        ClusterSpecifier::Cluster(name) => (name, None),
        ClusterSpecifier::Weighted(clusters) => {
            let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            let chosen = at_weight(clusters, fastrand::u64(0..sum.max(1))).unwrap_or(&clusters[0]);
            (&chosen.name, Some(chosen))
        }
    }
}

/// The cluster in whose share `place` is.
fn at_weight(clusters: &[ClusterWeight], mut place: u64) -> Option<&ClusterWeight> {
    clusters.iter().find(|cluster| {
        let weight = u64::from(cluster.weight);
        let here = place < weight;
        place = place.saturating_sub(weight);
        here
    })
}

/// The head of an answer that the route has.
pub(super) fn direct(direct: &DirectResponse) -> ResponseHead {
    let mut headers = HeaderMap::new();
    if !direct.body.is_empty() {
        headers.insert(CONTENT_LENGTH, direct.body.len().into());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    ResponseHead {
        status: StatusCode::from_u16(direct.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        headers,
    }
}

/// The head of an answer that sends the downstream elsewhere.
pub(super) fn redirect(redirect: &Redirect, route: &Route, request: &RequestHead) -> ResponseHead {
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::from_str(&location(redirect, route, request)) {
        headers.insert(LOCATION, location);
    }
    ResponseHead {
        status: StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::MOVED_PERMANENTLY),
        headers,
    }
}

fn location(redirect: &Redirect, route: &Route, request: &RequestHead) -> String {
    use crate::model::route::RedirectPath;
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let before = crate::model::route_match::without_port(&request.authority);
    let host = match (&redirect.host, redirect.port) {
        (Some(host), None) => host.to_string(),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (None, Some(port)) => format!("{before}:{port}"),
        (None, None) => request.authority.clone(),
    };
    let target = match &redirect.path {
        None => request.target.clone(),
        Some(RedirectPath::Path(path)) if path.contains('?') => path.to_string(),
        Some(RedirectPath::Path(path)) => format!("{path}{}", &request.target[request.path().len()..]),
        Some(RedirectPath::Rewrite(rewrite)) => rewritten(request, route, rewrite),
    };
    let target = match redirect.strip_query {
        true => target.split('?').next().unwrap_or_default().to_owned(),
        false => target,
    };
    format!("{scheme}://{host}{target}")
}

/// What a route changes of an answer that is made here.
pub(super) fn change_local_response(_stream: &Stream, _head: &mut ResponseHead) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::message::Version;
    use crate::model::route::{HeaderMutations, PathMatch, RouteDecision, RouteMatch};

    fn request(target: &str) -> RequestHead {
        RequestHead {
            method: hyper::Method::GET,
            scheme: "http",
            authority: "h:80".to_owned(),
            target: target.to_owned(),
            version: Version::Http11,
            headers: HeaderMap::new(),
            upgrade: None,
        }
    }

    fn route(path: PathMatch) -> Route {
        Route {
            name: "".into(),
            matches: RouteMatch::path(path),
            action: RouteDecision::Route(Box::new(RouteAction::to("c".into()))),
            headers: HeaderMutations::default(),
        }
    }

    #[test]
    fn a_prefix_or_the_whole_path_is_rewritten_and_the_query_stays() {
        let to = |target: &str, path: PathMatch, with: &str| {
            rewritten(&request(target), &route(path), &PathRewrite::Prefix(with.into()))
        };
        let exact = PathMatch::Path("/metrics".into());
        assert_eq!(
            to("/metrics?a=/metrics", exact, "/stats/prometheus"),
            "/stats/prometheus?a=/metrics"
        );
        assert_eq!(to("/a/b/c?d", PathMatch::Prefix("/a/".into()), "/x/"), "/x/b/c?d");
    }

    #[test]
    fn shares_follow_the_weights() {
        let cluster = |name: &str, weight| ClusterWeight {
            name: name.into(),
            weight,
            headers: HeaderMutations::default(),
            host_rewrite: None,
        };
        let clusters = [cluster("none", 0), cluster("a", 2), cluster("b", 1)];
        let names: Vec<_> = (0..4)
            .map(|at| at_weight(&clusters, at).map(|c| &*c.name))
            .collect();
        assert_eq!(names, [Some("a"), Some("a"), Some("b"), None]);
    }
}
