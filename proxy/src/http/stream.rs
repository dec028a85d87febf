//! The life of one request, as named phases: checks, filters, route, tries, response.
//!
//! Owns the request and its limits in time; borrows the downstream's end of the stream for as long. The
//! upstream's end is the exchange's, dropped with the stream, and so reset, unless it ended in order.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName};
use tokio::time::{Instant, sleep};

use super::body::{BodyError, Chunk, Place, RequestBody};
use super::clock::{Clock, Overdue};
use super::connection::{Connection, DISCONNECT};
use super::failed::Failed;
use super::filters;
use super::filters::grpc_stats::Call;
use super::headers;
use super::local_reply::LocalReply;
use super::message::{RequestHead, RequestView, ResponseHead, Version};
use super::record;
use super::retry::{Decision, Retries};
use super::route::{self, Plan};
use super::sink::{Gone, Sink};
use super::trace::{self, Traced};
use super::upstream::{self, Live, TryError};
use crate::model::http::{HttpConnectionManager, HttpFilter, Routes};
use crate::model::route::{Route, RouteConfiguration, RouteDecision, VirtualHost};
use crate::model::{Downstream, Metadata, Name};
use crate::telemetry::ResponseFlag;
use crate::telemetry::metrics::http::{Backoff, HttpClusterCounts, Response};
use crate::upstream::cluster::ClusterState;

/// What is read of a request that is answered without it, so that its connection can go on.
const UNWANTED_BYTES: u64 = 64 * 1024;

/// Of tries, told to either side.
pub(super) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// One request and its response.
pub(super) struct Stream {
    pub(super) connection: Rc<Connection>,
    pub(super) manager: Arc<HttpConnectionManager>,
    pub(super) head: RefCell<RequestHead>,
    pub(super) metadata: RefCell<Metadata>,
    /// The connection's, unless a trusted hop says that somebody else asks.
    pub(super) downstream: RefCell<Rc<Downstream>>,
    pub(super) body: RequestBody,
    pub(super) sink: Sink,
    pub(super) clock: Clock,
    /// The response's head was sent.
    pub(super) started: Cell<bool>,
    /// It came to its end; one that did not is dropped with its connection.
    over: Cell<bool>,
    /// A call of gRPC that is counted.
    pub(super) call: RefCell<Option<Call>>,
    /// Its span, where it has one.
    pub(super) trace: RefCell<Option<Traced>>,
    pub(super) facts: Facts,
}

/// What the record of a stream says, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) table: RefCell<Option<Arc<RouteConfiguration>>>,
    pub(super) host: RefCell<Option<Arc<VirtualHost>>>,
    pub(super) route: RefCell<Option<Arc<Route>>>,
    pub(super) cluster: RefCell<Option<Name>>,
    pub(super) endpoint: RefCell<Option<Rc<str>>>,
    pub(super) attempts: Cell<u32>,
    pub(super) status: Cell<Option<StatusCode>>,
    pub(super) sent: Cell<u64>,
    pub(super) why: RefCell<Option<(ResponseFlag, String)>>,
    pub(super) details: RefCell<Cow<'static, str>>,
    /// The cluster's name in statistics and logs.
    pub(super) stat_name: RefCell<Option<Name>>,
    /// As they were sent, where a log may tell of them.
    pub(super) response_headers: RefCell<Option<HeaderMap>>,
    /// What is spoken to the upstream.
    pub(super) upstream_protocol: Cell<Option<Version>>,
    /// When the request was sent on, the upstream answered, and the response began; since the beginning.
    pub(super) sent_begin: Cell<Option<Duration>>,
    pub(super) answered_at: Cell<Option<Duration>>,
    pub(super) started_at: Cell<Option<Duration>>,
    /// Of its trace and span.
    pub(super) trace_ids: RefCell<Option<(String, String)>>,
    /// It was chosen to be traced.
    pub(super) traced: Cell<bool>,
}

/// Why the phases of a stream ended before the response did.
pub(super) enum Stop {
    /// It is answered here.
    Reply(Box<LocalReply>),
    /// It cannot be answered any more.
    Reset(ResponseFlag, String),
    /// The downstream takes no more.
    Gone,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The response was sent as a whole.
    Answered,
    /// It was cut.
    Cut,
}

impl From<LocalReply> for Stop {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Stream {
    pub(super) fn new(
        connection: &Rc<Connection>,
        manager: Arc<HttpConnectionManager>,
        head: RequestHead,
        body: RequestBody,
        sink: Sink,
    ) -> Self {
        let clock = Clock::new(Instant::now());
        clock.idle.set(manager.limits.stream_idle_timeout);
        clock.request.set(manager.limits.request_timeout);
        clock.duration.set(manager.limits.max_stream_duration);
        if body.has_ended() {
            clock.request_ended();
        }
        connection.stream_begins(&head);
        Self {
            connection: Rc::clone(connection),
            manager,
            head: RefCell::new(head),
            metadata: RefCell::default(),
            downstream: RefCell::new(Rc::clone(&connection.downstream)),
            body,
            sink,
            clock,
            started: Cell::new(false),
            over: Cell::new(false),
            call: RefCell::default(),
            trace: RefCell::default(),
            facts: Facts::default(),
        }
    }

    /// Serves the request to its end.
    pub(super) async fn serve(&self) -> Ended {
        let stop = {
            let mut phases = pin!(self.phases());
            poll_fn(|cx| {
                if let Poll::Ready(done) = phases.as_mut().poll(cx) {
                    return Poll::Ready(done.err());
                }
                self.poll_watch(cx).map(Some)
            })
            .await
        };
        let ended = match stop {
            None => Ended::Answered,
            Some(Stop::Reply(reply)) if !self.started.get() => self.answer(*reply).await,
            Some(Stop::Reply(reply)) => {
                let words = String::from_utf8_lossy(&reply.body).into_owned();
                self.reset(reply.why.unwrap_or((ResponseFlag::LocalReset, words)))
                    .await
            }
            Some(Stop::Reset(flag, why)) => self.reset((flag, why)).await,
            Some(Stop::Gone) => {
                self.gone(
                    ResponseFlag::DownstreamConnectionTermination,
                    "the downstream is gone",
                );
                Ended::Cut
            }
        };
        self.over.set(true);
        ended
    }

    /// Notes by what the downstream gave the stream up.
    fn gone(&self, flag: ResponseFlag, why: &str) {
        let details = match flag {
            ResponseFlag::DownstreamRemoteReset => Some("http2.remote_reset"),
            ResponseFlag::DownstreamProtocolError => Some("codec_error"),
            ResponseFlag::DownstreamConnectionTermination => Some(DISCONNECT),
            _ => None,
        };
        if let Some(details) = details.filter(|_| self.facts.why.borrow().is_none()) {
            self.facts.details.replace(details.into());
        }
        self.note(flag, why);
    }

    /// Answers a request that never became one.
    pub(super) async fn refuse(&self, reply: LocalReply) {
        self.answer(reply).await;
        self.over.set(true);
    }

    /// What may end a stream from outside its phases: the downstream, or time.
    fn poll_watch(&self, cx: &mut Context<'_>) -> Poll<Stop> {
        self.body.fetch(cx);
        if let Poll::Ready(flag) = self.sink.poll_gone(cx) {
            self.gone(flag, "the downstream gave it up");
            return Poll::Ready(Stop::Gone);
        }
        self.clock.poll(cx).map(|overdue| self.overdue(overdue).into())
    }

    fn overdue(&self, overdue: Overdue) -> LocalReply {
        let has_request = self.clock.has_request();
        let counts = &self.connection.metrics.counts;
        match overdue {
            Overdue::Route => {
                if let Some(cluster) = self.cluster() {
                    cluster.http_metrics().counts.rq_timeout.increment(1);
                    self.answered_for(&cluster, StatusCode::GATEWAY_TIMEOUT);
                }
            }
            Overdue::Idle => counts.rq_idle_timeout.increment(1),
            Overdue::Request => counts.rq_timeout.increment(1),
            Overdue::Duration => counts.rq_max_duration_reached.increment(1),
        }
        let idle = ResponseFlag::StreamIdleTimeout;
        match overdue {
            Overdue::Route => LocalReply::timeout(),
            Overdue::Idle => LocalReply::overdue(has_request, "stream timeout", idle, "stream_idle_timeout"),
            Overdue::Request => LocalReply::overdue(
                false,
                "request timeout",
                ResponseFlag::DownstreamConnectionTermination,
                "request_overall_timeout",
            ),
            Overdue::Duration => LocalReply::overdue(
                has_request,
                "downstream duration timeout",
                ResponseFlag::UpstreamMaxStreamDurationReached,
                "max_duration_timeout",
            )
            .with_grpc_status(4),
        }
    }

    /// Whether the response's head was sent.
    pub(super) fn has_started(&self) -> bool {
        self.started.get()
    }

    /// Begins to count a call of gRPC, where a filter does.
    fn count_call(&self) {
        let counted = |filter: &HttpFilter| match filter {
            HttpFilter::GrpcStats(options) => Some(*options),
            _ => None,
        };
        let Some(options) = self.manager.http_filters.iter().find_map(counted) else {
            return;
        };
        let head = self.head.borrow();
        if let Some(cluster) = self.cluster().filter(|_| head.is_grpc()) {
            let metrics = self.connection.worker.grpc(cluster.config().stat_name(), options);
            *self.call.borrow_mut() = metrics.call(&head.target).map(Call::new);
        }
    }

    /// The cluster that the request goes to, once that is known.
    pub(super) fn cluster(&self) -> Option<Rc<ClusterState>> {
        let name = self.facts.cluster.borrow().clone()?;
        self.connection.worker.clusters.get(&name)
    }

    /// Counts a response that the downstream gets, of a cluster or in its place.
    fn answered_for(&self, cluster: &ClusterState, status: StatusCode) {
        cluster.http_metrics().response(Response {
            code: status.as_u16(),
            internal: false,
        });
    }

    async fn phases(&self) -> Result<(), Stop> {
        headers::receive(self)?;
        trace::begin(self);
        filters::run(self).await?;
        let router = &self.connection.metrics.router;
        router.rq_total.increment(1);
        let (table, host, route) = self.find_route().inspect_err(|_| router.no_route.increment(1))?;
        *self.facts.table.borrow_mut() = Some(Arc::clone(&table));
        *self.facts.host.borrow_mut() = Some(Arc::clone(&host));
        *self.facts.route.borrow_mut() = Some(Arc::clone(&route));
        match &route.action {
            RouteDecision::DirectResponse(direct) => Err(route::direct(direct, &self.head.borrow()).into()),
            RouteDecision::Redirect(redirect) => {
                router.rq_direct_response.increment(1);
                Err(route::redirect(redirect, &route, &self.head.borrow()).into())
            }
            RouteDecision::Route(action) => {
                let plan = route::plan(self, &host, &route, action)?;
                self.count_call();
                self.forward(&plan).await
            }
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "the three that a route is found in, named by the caller"
    )]
    fn find_route(&self) -> Result<(Arc<RouteConfiguration>, Arc<VirtualHost>, Arc<Route>), Stop> {
        let table = match &self.manager.routes {
            Routes::Inline(table) => Arc::clone(table),
            Routes::Rds(name) => self
                .connection
                .worker
                .routes(name)
                .ok_or_else(LocalReply::no_route)?,
        };
        let found = {
            let (head, metadata) = (self.head.borrow(), self.metadata.borrow());
            let view = RequestView {
                head: &head,
                metadata: &metadata,
            };
            let found = table.find(&head.authority, &view);
            found.map(|(host, route)| (Arc::clone(host), Arc::clone(route)))
        };
        let (host, route) = found.ok_or_else(LocalReply::no_route)?;
        Ok((table, host, route))
    }

    fn retries(&self, plan: &Plan<'_>) -> Retries {
        let (head, metadata) = (self.head.borrow(), self.metadata.borrow());
        let view = RequestView {
            head: &head,
            metadata: &metadata,
        };
        Retries::new(plan.retry_policy, &view)
    }

    /// Tries until a response stands.
    async fn forward(&self, plan: &Plan<'_>) -> Result<(), Stop> {
        let mut retries = self.retries(plan);
        self.body.keep(plan.retry_policy.is_some());
        loop {
            retries.attempts += 1;
            self.facts.attempts.set(retries.attempts);
            if plan.tell_attempts.0 {
                let headers = &mut self.head.borrow_mut().headers;
                headers.insert(ATTEMPT_COUNT, retries.attempts.into());
            }
            let (decision, tried) = match upstream::attempt(self, plan, &retries).await {
                Ok((head, live)) => {
                    let cluster = Rc::clone(live.cluster());
                    live.answered(head.status);
                    let decision = match self.body.can_be_replayed() {
                        true => retries.after_response(head.status, &head.headers, &cluster),
                        false => Decision::Stands,
                    };
                    (decision, Ok((head, live)))
                }
                Err(TryError::Stop(stop)) => return Err(stop),
                Err(TryError::Failed(failed)) => {
                    trace::failed(self, &failed.why);
                    let decision = match self.body.can_be_replayed() {
                        true => retries.after_failure(failed.failure, failed.sent, failed.cluster.as_ref()),
                        false => Decision::Stands,
                    };
                    (decision, Err(failed))
                }
            };
            let flag = match decision {
                Decision::Again(pause) => {
                    self.again(&tried);
                    drop(tried);
                    sleep(pause).await;
                    self.clock.moved();
                    continue;
                }
                Decision::Stands => None,
                Decision::Exhausted => {
                    self.count_retries(|counts| counts.rq_retry_limit_exceeded.increment(1));
                    Some(ResponseFlag::UpstreamRetryLimitExceeded)
                }
                Decision::Overflow => {
                    self.count_retries(|counts| counts.rq_retry_overflow.increment(1));
                    Some(ResponseFlag::UpstreamOverflow)
                }
            };
            return match tried {
                Ok((head, live)) => {
                    if let Some(flag) = flag {
                        self.note(flag, "no more retries");
                    }
                    self.answered_for(live.cluster(), head.status);
                    if retries.attempts > 1 && flag.is_none() {
                        self.count_retries(|counts| counts.rq_retry_success.increment(1));
                    }
                    self.respond(plan, head, live).await
                }
                Err(failed) => {
                    let cluster = failed.cluster.clone();
                    let reply = failed.into_reply(plan, &retries, &self.connection);
                    if let Some(cluster) = cluster {
                        self.answered_for(&cluster, reply.status);
                    }
                    Err(reply.into())
                }
            };
        }
    }

    fn count_retries(&self, count: impl FnOnce(&HttpClusterCounts)) {
        if let Some(cluster) = self.cluster() {
            count(&cluster.http_metrics().counts);
        }
    }

    /// Counts that a try is followed by another.
    fn again(&self, tried: &Result<(ResponseHead, Live), Box<Failed>>) {
        let cluster = match tried {
            Ok((head, live)) => {
                live.cluster()
                    .http_metrics()
                    .response_retried(head.status.as_u16());
                Some(live.cluster())
            }
            Err(failed) => failed.cluster.as_ref(),
        };
        if let Some(cluster) = cluster {
            cluster.http_metrics().retry(Backoff::Exponential);
        }
    }

    /// Answers here.
    async fn answer(&self, reply: LocalReply) -> Ended {
        if let Some((flag, why)) = &reply.why {
            self.note(*flag, why);
        }
        self.facts.details.replace(reply.details.clone());
        // One that was refused at once is not read at all, as by Envoy.
        let tried = reply.why.as_ref().is_some_and(|(flag, _)| {
            use ResponseFlag as F;
            let at_once = [
                F::NoHealthyUpstream,
                F::UpstreamOverflow,
                F::NoClusterFound,
                F::NoRouteFound,
            ];
            !at_once.contains(flag)
        });
        if tried && self.facts.attempts.get() > 0 {
            poll_fn(|cx| {
                self.read_on(cx);
                Poll::Ready(())
            })
            .await;
        }
        let closes = reply.close || reply.status == StatusCode::BAD_REQUEST;
        if closes && let Sink::Http1(http1) = &self.sink {
            http1.close.set(true);
        }
        let grpc = self.head.borrow().is_grpc();
        let (head, body) = reply.into_response(grpc);
        if let Some(call) = &mut *self.call.borrow_mut() {
            call.ended(&head.headers);
        }
        let sending = self.send_whole(head, body);
        let mut sending = pin!(sending);
        let sent = poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(sent.is_ok());
            }
            // Only what concerns the downstream ends it now.
            match self.poll_watch(cx) {
                Poll::Ready(Stop::Gone) => Poll::Ready(false),
                _ => Poll::Pending,
            }
        })
        .await;
        if sent { Ended::Answered } else { Ended::Cut }
    }

    /// Reads what is there of a request that nobody wants: where that is all of it, its connection can go on.
    fn read_on(&self, cx: &mut Context<'_>) {
        let mut place = Place::default();
        while !self.body.has_ended() && self.body.received.get() < UNWANTED_BYTES {
            match self.poll_body(&mut place, cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) | Poll::Pending => return,
            }
        }
    }

    async fn send_whole(&self, mut head: ResponseHead, body: Bytes) -> Result<(), Stop> {
        route::change_response(self, None, &mut head.headers);
        self.finish_response_headers(&mut head);
        let body = if self.head.borrow().method == hyper::Method::HEAD {
            Bytes::new()
        } else {
            body
        };
        self.start(head, body.is_empty())?;
        if !body.is_empty() {
            self.facts.sent.set(body.len() as u64);
            poll_fn(|cx| self.sink.poll_ready(body.len(), cx)).await?;
            self.sink.write(Chunk::Data(body))?;
            self.sink.end()?;
        }
        poll_fn(|cx| self.sink.poll_flush(cx)).await?;
        Ok(())
    }

    pub(super) fn finish_response_headers(&self, head: &mut ResponseHead) {
        headers::sent_response(self, head);
    }

    pub(super) fn start(&self, head: ResponseHead, end: bool) -> Result<(), Gone> {
        self.started.set(true);
        self.facts.status.set(Some(head.status));
        self.connection.metrics.response(head.status.as_u16());
        if !self.body.has_ended() {
            self.connection
                .metrics
                .counts
                .rq_response_before_rq_complete
                .increment(1);
        }
        if self.connection.is_draining()
            && let Sink::Http1(http1) = &self.sink
        {
            http1.close.set(true);
        }
        self.clock.moved();
        self.facts.started_at.set(Some(self.clock.began.elapsed()));
        trace::responded(self, &head.headers);
        if !self.manager.access_log.is_empty() || trace::is_reported(self) {
            *self.facts.response_headers.borrow_mut() = Some(head.headers.clone());
        }
        self.sink.write_head(head, end)
    }

    async fn reset(&self, (flag, why): (ResponseFlag, String)) -> Ended {
        match flag {
            ResponseFlag::DownstreamRemoteReset | ResponseFlag::DownstreamConnectionTermination => {
                self.gone(flag, &why);
            }
            _ => self.note(flag, &why),
        }
        if self.has_started()
            && let Some(details) = details_of_a_cut(flag)
        {
            self.facts.details.replace(details.into());
        }
        if matches!(self.sink, Sink::Http2(_)) && self.has_started() {
            // What was sent is to go out before the reset: its connection's task has to run.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        self.sink.reset(h2::Reason::INTERNAL_ERROR);
        Ended::Cut
    }

    /// The first reason given stands: what follows it is a consequence.
    pub(super) fn note(&self, flag: ResponseFlag, why: &str) {
        self.facts
            .why
            .borrow_mut()
            .get_or_insert_with(|| (flag, why.to_owned()));
    }

    /// The next piece of the request for a try at `place`.
    pub(super) fn poll_body(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, BodyError>>> {
        let read = ready!(self.body.poll(place, cx));
        self.clock.moved();
        if let (Some(Ok(Chunk::Data(bytes))), Some(call)) = (&read, &mut *self.call.borrow_mut()) {
            call.requested(bytes);
        }
        if self.body.has_ended() {
            self.clock.request_ended();
        }
        Poll::Ready(read)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.over.get() {
            let (flag, why) = self.connection.why_streams_end();
            self.gone(flag, &why);
        }
        record::write(self);
        trace::end(self);
        self.connection.record(self);
    }
}

/// What Envoy says of a response that is cut by this, where it has begun.
fn details_of_a_cut(flag: ResponseFlag) -> Option<&'static str> {
    Some(match flag {
        ResponseFlag::StreamIdleTimeout => "stream_idle_timeout",
        ResponseFlag::UpstreamRemoteReset => "upstream_reset_after_response_started{remote_reset}",
        ResponseFlag::UpstreamConnectionTermination => {
            "upstream_reset_after_response_started{connection_termination}"
        }
        ResponseFlag::UpstreamProtocolError => "upstream_reset_after_response_started{protocol_error}",
        _ => return None,
    })
}
