//! What a route makes of a request: where it goes, as what, and what is answered here.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};

use super::hash::{Hashed, RequestHash, request_hash};
use super::header_mutation::{Places, mutate_request, mutate_response};
use super::local_reply::LocalReply;
use super::message::RequestHead;
use super::record;
use super::redirect::{Requested, location, rewritten_target, tell_original_host};
use super::stream::{Stop, Stream};
use super::stream_duration;
use crate::model::Name;
use crate::model::route::{
    ClusterSpecifier, ClusterWeight, DirectResponse, HostRewrite, IdleTimeout, Redirect, RetryPolicy, Route,
    RouteAction, VirtualHost,
};
use crate::telemetry::access_log::RequestFacts;
use crate::upstream::LoadBalancerContext;

const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Where a request goes.
pub(super) struct Plan<'a> {
    pub(super) cluster: Name,
    pub(super) context: LoadBalancerContext,
    /// The answer where the cluster does not exist.
    pub(super) not_found: StatusCode,
    pub(super) retry_policy: Option<&'a Arc<RetryPolicy>>,
    /// Its virtual host wants the tries told: to the upstream, and to the downstream.
    pub(super) tell_attempts: (bool, bool),
    /// Cookies that the hash made, for the downstream to come back with.
    pub(super) set_cookies: Vec<HeaderValue>,
    /// Of several clusters, the share that it fell into.
    pub(super) share: Option<&'a ClusterWeight>,
    /// `auto_host_rewrite`, with `append_x_forwarded_host`: the host is the endpoint's.
    pub(super) auto_host: Option<bool>,
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
    *stream.facts.cluster.borrow_mut() = Some(Name::clone(cluster));
    if let Some(limits) = &action.max_stream_duration {
        let inherited = stream.manager.limits.max_stream_duration;
        let limit = stream_duration::of(limits, inherited, head.is_grpc(), &mut head.headers);
        stream.clock.duration.set(limit);
    }
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
    change_request(stream, head, share);
    rewrite_host(head, action, share);
    rewrite_path(head, route, action)?;
    let hashed = hashed(stream, head, action);
    Ok(Plan {
        cluster: Name::clone(cluster),
        context: LoadBalancerContext {
            destination: stream.connection.downstream.destination,
            hash: hashed.hash,
            max_attempts: None,
            per_request: true,
        },
        set_cookies: hashed.set_cookies,
        not_found: StatusCode::from_u16(action.cluster_not_found_response_code)
            .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        retry_policy,
        tell_attempts: (
            host.include_request_attempt_count,
            host.include_attempt_count_in_response,
        ),
        share,
        auto_host: (action.host_rewrite == Some(HostRewrite::Auto)).then_some(action.append_x_forwarded_host),
    })
}

fn hashed(stream: &Stream, head: &RequestHead, action: &RouteAction) -> RequestHash {
    if action.hash_policy.is_empty() {
        return RequestHash::default();
    }
    let downstream = stream.downstream.borrow();
    let hashed = Hashed {
        method: head.method.as_str(),
        authority: &head.authority,
        target: &head.target,
        headers: &head.headers,
        source: downstream.source.map(|source| source.ip()),
        connection: downstream.direct_source().zip(downstream.destination),
    };
    request_hash(&action.hash_policy, &hashed)
}

/// The host of the share comes first, the route's wins over it; Envoy tells of the latter alone.
fn rewrite_host(head: &mut RequestHead, action: &RouteAction, share: Option<&ClusterWeight>) {
    if let Some(host) = share.and_then(|share| share.host_rewrite.as_deref()) {
        host.clone_into(&mut head.authority);
    }
    if let Some(HostRewrite::Literal(host)) = &action.host_rewrite {
        let before = std::mem::replace(&mut head.authority, host.to_string());
        tell_original_host(&mut head.headers, &before, action.append_x_forwarded_host);
    }
}

/// Makes the path what the route wants it to be, and says what it was.
///
/// # Errors
/// The answer where that is no path.
pub(super) fn rewrite_path(head: &mut RequestHead, route: &Route, action: &RouteAction) -> Result<(), Stop> {
    let Some(rewrite) = &action.path_rewrite else {
        return Ok(());
    };
    let Some(rewritten) = rewritten_target(rewrite, &route.matches, &head.target) else {
        return Ok(());
    };
    if rewritten.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(LocalReply::bad_request("the rewritten path is none", "path_rewrite").into());
    }
    let before = std::mem::replace(&mut head.target, rewritten);
    if let Ok(before) = HeaderValue::from_str(&before) {
        head.headers.insert(ORIGINAL_PATH, before);
    }
    Ok(())
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

/// The answer that the route has. One that may tell of another place tells of the same.
pub(super) fn direct(direct: &DirectResponse, request: &RequestHead) -> LocalReply {
    let status = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = LocalReply::empty(status, "direct_response");
    reply.body = Bytes::copy_from_slice(&direct.body);
    if status == StatusCode::CREATED || status.is_redirection() {
        let here = format!("{}://{}{}", request.scheme, request.authority, request.target);
        reply
            .headers
            .extend(HeaderValue::from_str(&here).map(|here| (LOCATION, here)));
    }
    reply
}

/// The answer that sends the downstream elsewhere.
pub(super) fn redirect(redirect: &Redirect, route: &Route, request: &RequestHead) -> LocalReply {
    let requested = Requested {
        scheme: request.scheme,
        authority: &request.authority,
        target: &request.target,
    };
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let mut reply = LocalReply::empty(status, "direct_response");
    let location = HeaderValue::from_str(&location(redirect, &route.matches, &requested));
    reply
        .headers
        .extend(location.map(|location| (LOCATION, location)));
    reply
}

/// What the route table, the virtual host, the route and the share change of the request's headers.
fn change_request(stream: &Stream, head: &mut RequestHead, share: Option<&ClusterWeight>) {
    with_places(stream, share, |places| {
        let mut headers = std::mem::take(&mut head.headers);
        // Facts of the head itself are those before: it is being changed.
        let before = RequestHead {
            headers: HeaderMap::new(),
            ..head.clone()
        };
        record::with_facts_of(stream, &before, Some(&headers.clone()), None, |facts| {
            let first = RequestFacts {
                attempts: 1,
                ..*facts
            };
            mutate_request(&mut headers, places, &first);
        });
        head.headers = headers;
    });
}

/// What they change of a response, the upstream's or one that is made here.
pub(super) fn change_response(stream: &Stream, share: Option<&ClusterWeight>, headers: &mut HeaderMap) {
    with_places(stream, share, |places| {
        let head = stream.head.borrow();
        let before = headers.clone();
        record::with_facts_of(stream, &head, None, Some(&before), |facts| {
            mutate_response(headers, places, facts);
        });
    });
}

/// Has `change` look at the places where changes may be written, if any has one.
fn with_places(stream: &Stream, share: Option<&ClusterWeight>, change: impl FnOnce(&Places<'_>)) {
    let (table, host, route) = (
        stream.facts.table.borrow(),
        stream.facts.host.borrow(),
        stream.facts.route.borrow(),
    );
    let (Some(table), Some(virtual_host), Some(route)) = (&*table, &*host, &*route) else {
        return;
    };
    let places = Places {
        table,
        virtual_host,
        route,
        cluster: share,
    };
    if !places.is_empty() {
        change(&places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::HeaderMutations;

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
