//! One request: its route, and the response from there.
//!
//! Owns nothing that outlives a connection; the upstream connection waits in its slot between requests.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;

use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, sleep};

use super::activity::{Activity, Phase};
use super::body::{RequestBody, RequestEnd, ResponseBody, UpstreamBody};
use super::headers;
use super::local_reply::LocalReply;
use super::request::{RequestHead, check};
use super::serve::Connection;
use super::upstream::{Endpoint, OpenError, SendError, Slot, Upstream};
use crate::model::Name;
use crate::model::http::{HttpConnectionManager, Routes};
use crate::model::matcher::Request as _;
use crate::model::route::{
    ClusterSpecifier, ClusterWeight, DirectResponse, HostRewrite, PathRewrite, Route, RouteAction,
    RouteDecision,
};
use crate::telemetry::ResponseFlag;

/// Ready once the route's timeout is over.
type Timeout = Pin<Box<dyn Future<Output = ()>>>;

/// The router of one downstream connection.
pub(super) struct Router<'a> {
    connection: &'a Connection<'a>,
    activity: Rc<Activity>,
    slot: Slot,
    pub(super) facts: Facts,
}

/// What the connection's record will say.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Requests so far.
    pub(super) requests: Cell<u64>,
    /// The last endpoint connected to.
    pub(super) endpoint: RefCell<Option<Endpoint>>,
    /// The last response that was made here because something went wrong.
    pub(super) failure: RefCell<Option<(ResponseFlag, String)>>,
}

impl<'a> Router<'a> {
    pub(super) fn new(connection: &'a Connection<'a>, activity: &Rc<Activity>) -> Self {
        Self {
            connection,
            activity: Rc::clone(activity),
            slot: Slot::default(),
            facts: Facts::default(),
        }
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        self.activity.enter(Phase::Stream);
        self.facts.requests.set(self.facts.requests.get() + 1);
        let manager = (self.connection.manager)();
        let mut response = self.route(&manager, request).await.unwrap_or_else(|reply| {
            if let Some(why) = &reply.why {
                tracing::debug!(flags = %why.0, reason = %why.1, "a request is answered here");
                *self.facts.failure.borrow_mut() = Some(why.clone());
            }
            reply.into_response()
        });
        headers::sent_response(response.headers_mut(), &manager);
        response.map(|body| body.telling(&self.activity))
    }

    async fn route(
        &self,
        manager: &HttpConnectionManager,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, LocalReply> {
        let (mut parts, body) = request.into_parts();
        let host = check(&parts)?;
        let generate_id = manager.request_id.generate;
        headers::received_request(&mut parts.headers, &host, self.connection.encrypted, generate_id);
        let Routes::Inline(routes) = &manager.routes else {
            return Err(LocalReply::not_carried("its routes come by RDS"));
        };
        let head = RequestHead::new(&parts, &host);
        let (_, route) = routes.find(&host, &head).ok_or_else(LocalReply::no_route)?;
        match &route.action {
            RouteDecision::DirectResponse(direct) => Ok(direct_response(direct)),
            RouteDecision::Redirect(_) => Err(LocalReply::not_carried("a redirect")),
            RouteDecision::Route(action) => {
                let rewritten = rewrite(&head, route, action);
                let original = rewritten.is_some().then(|| head.target().to_owned());
                let target = rewritten.unwrap_or_else(|| head.target().to_owned());
                parts.uri = origin_form(&target)?;
                headers::sent_request(&mut parts.headers, action.timeout, original.as_deref());
                self.forward(action, parts, body).await
            }
        }
    }

    async fn forward(
        &self,
        action: &RouteAction,
        mut parts: Parts,
        body: Incoming,
    ) -> Result<Response<ResponseBody>, LocalReply> {
        let (cluster, host) = choose(action);
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok()) {
            parts.headers.insert(HOST, host);
        }
        let end = Rc::<RequestEnd>::default();
        let body = RequestBody::new(body, &end);
        let mut timeout = route_timeout(action, &end);
        let exchange = self.exchange(action, &cluster, parts, body, &end);
        let (response, upstream) = tokio::select! {
            exchanged = exchange => exchanged?,
            () = &mut timeout => return Err(LocalReply::timeout()),
        };
        let waited = end.at().map_or_else(Default::default, |at| Instant::now() - at);
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(LocalReply::upstream_protocol_error(
                "it switches protocols unasked",
            ));
        }
        headers::received_response(&mut head.headers, waited);
        let body = ResponseBody::upstream(UpstreamBody {
            body,
            timeout,
            upstream: Some(upstream),
            request_end: end,
        });
        Ok(Response::from_parts(head, body))
    }

    /// Sends the request over the connection that waits, or a new one. Where the one that waited turns out to
    /// have been closed before a byte was answered, what can be sent again goes over a new one.
    async fn exchange(
        &self,
        action: &RouteAction,
        cluster: &Name,
        parts: Parts,
        body: RequestBody,
        end: &Rc<RequestEnd>,
    ) -> Result<(Response<Incoming>, Upstream), LocalReply> {
        let mut request = Request::from_parts(parts, body);
        if let Some(mut waiting) = Upstream::reuse(&self.slot, cluster) {
            let again = again(&request, end);
            request = match waiting.send(request).await {
                Ok(response) => return Ok((response, waiting)),
                Err(SendError {
                    unsent: Some(request),
                    ..
                }) => *request,
                Err(SendError { error, unsent: None }) => match again {
                    Some(request) if !error.is_parse() => request,
                    _ => return Err(no_response(&error)),
                },
            };
        }
        let opened = Upstream::connect(self.connection.clusters, cluster, &self.slot, &self.activity).await;
        let (mut upstream, endpoint) = opened.map_err(|error| match error {
            OpenError::Connect(error) => {
                let not_found = StatusCode::from_u16(action.cluster_not_found_response_code);
                LocalReply::connect(&error, not_found.unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
            }
            OpenError::Http(error) => no_response(&error),
        })?;
        *self.facts.endpoint.borrow_mut() = Some(endpoint);
        match upstream.send(request).await {
            Ok(response) => Ok((response, upstream)),
            Err(failed) => Err(no_response(&failed.error)),
        }
    }
}

/// The same request once more, if sending it twice does no harm: no body, and a method that is safe
/// (RFC 9110 section 9.2.1).
fn again(request: &Request<RequestBody>, end: &Rc<RequestEnd>) -> Option<Request<RequestBody>> {
    if !request.body().is_empty() || !request.method().is_safe() {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty(end));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn no_response(error: &hyper::Error) -> LocalReply {
    let why = format!("no response: {error}");
    if error.is_parse() && !error.is_incomplete_message() {
        LocalReply::upstream_protocol_error(&why)
    } else {
        LocalReply::upstream_ended(&why)
    }
}

fn route_timeout(action: &RouteAction, end: &Rc<RequestEnd>) -> Timeout {
    let (limit, end) = (action.timeout, Rc::clone(end));
    Box::pin(async move {
        match limit {
            Some(limit) => {
                end.wait().await;
                sleep(limit).await;
            }
            None => pending().await,
        }
    })
}

fn direct_response(direct: &DirectResponse) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(Bytes::copy_from_slice(&direct.body)));
    *response.status_mut() = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !direct.body.is_empty() {
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}

/// The route's cluster and the host that is sent there, of several one by weight.
fn choose(action: &RouteAction) -> (Name, Option<&str>) {
    let of_route = match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => Some(&**host),
        Some(HostRewrite::Auto) | None => None,
    };
    match &action.cluster {
        ClusterSpecifier::Cluster(name) => (Name::clone(name), of_route),
        ClusterSpecifier::Weighted(clusters) => {
            let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            let chosen = at_weight(clusters, fastrand::u64(0..sum.max(1)));
            chosen.map_or_else(
                || (Name::from(""), of_route),
                |cluster| {
                    (
                        Name::clone(&cluster.name),
                        cluster.host_rewrite.as_deref().or(of_route),
                    )
                },
            )
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

/// The request target after the route's rewrite; none leaves it.
fn rewrite(head: &RequestHead<'_>, route: &Route, action: &RouteAction) -> Option<String> {
    let path = head.path();
    let query = &head.target()[path.len()..];
    let rewritten = match action.path_rewrite.as_ref()? {
        PathRewrite::Prefix(with) => {
            let rest = &path[route.matches.path.matched_length(path)..];
            format!("{with}{rest}")
        }
        PathRewrite::Regex(regex) => regex.rewrite(path).into_owned(),
    };
    Some(format!("{rewritten}{query}"))
}

fn origin_form(target: &str) -> Result<Uri, LocalReply> {
    target
        .parse::<PathAndQuery>()
        .map(Uri::from)
        .map_err(|_| LocalReply::bad_request("the rewritten path is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::{HeaderMutations, PathMatch, RouteMatch};

    fn rewritten(target: &str, path: PathMatch, with: &str) -> Option<String> {
        let mut action = RouteAction::to("c".into());
        action.path_rewrite = (!with.is_empty()).then(|| PathRewrite::Prefix(with.into()));
        let route = Route {
            name: "".into(),
            matches: RouteMatch::path(path),
            action: RouteDecision::Route(Box::new(action.clone())),
            headers: HeaderMutations::default(),
        };
        let parts = Request::get(target).body(()).unwrap().into_parts().0;
        rewrite(&RequestHead::new(&parts, "h"), &route, &action)
    }

    #[test]
    fn a_prefix_or_the_whole_path_is_rewritten_and_the_query_stays() {
        let exact = |path: &str| PathMatch::Path(path.into());
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        assert_eq!(
            rewritten("/metrics?a=/metrics", exact("/metrics"), "/stats/prometheus").unwrap(),
            "/stats/prometheus?a=/metrics"
        );
        assert_eq!(rewritten("/a/b/c?d", prefix("/a/"), "/x/").unwrap(), "/x/b/c?d");
        assert_eq!(rewritten("/a/b", prefix("/a/"), ""), None);
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
