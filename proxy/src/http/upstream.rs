//! One try of a request: a connection, the request on its way, the response's head.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use tokio::time::Instant;

use super::body::{Chunk, Place};
use super::clock::Alarm;
use super::exchange::{Exchange, ExchangeError};
use super::failed::{Failed, FailedBy};
use super::forwarding::remove_hop_by_hop;
use super::message::{RequestHead, ResponseHead, Version};
use super::pool::{Acquired, Link, Stream as Http2Stream};
use super::redirect::tell_original_host;
use super::retry::{Failure, Retries};
use super::route::Plan;
use super::stream::{Stop, Stream};
use super::{h1, h2, not_sent, trace};
use crate::telemetry::ResponseFlag;
use crate::upstream::cluster::ClusterState;
use crate::upstream::connect::Lease;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::error::Breaker;
use crate::upstream::{ConnectError, RequestPlace};

/// A try that is under way.
pub(super) struct Live {
    pub(super) exchange: Exchange,
    /// How far it has read the request's body.
    place: Place,
    /// A piece of it that the endpoint does not take yet.
    piece: Option<Bytes>,
    /// All of the request was handed over.
    request_over: bool,
    pub(super) switched: bool,
    endpoint: Rc<EndpointState>,
    cluster: Rc<ClusterState>,
    hold: Hold,
    _counted: RequestPlace,
}

/// What is given back with the exchange.
enum Hold {
    Http1(Lease),
    Http2(#[expect(dead_code, reason = "held for its drop")] Http2Stream),
}

/// How a try ended without a response.
pub(super) enum TryError {
    /// Another one may follow.
    Failed(Box<Failed>),
    /// None may.
    Stop(Stop),
}

impl Live {
    pub(super) fn cluster(&self) -> &Rc<ClusterState> {
        &self.cluster
    }

    /// Tells outlier detection of the response.
    pub(super) fn answered(&self, status: StatusCode) {
        self.cluster.answered(&self.endpoint, status.as_u16());
    }

    /// The endpoint ended the connection in the middle of it.
    pub(super) fn ended_by_endpoint(&self) {
        // One of HTTP/2 has a task that notices.
        if let Hold::Http1(lease) = &self.hold {
            lease.ended_by_endpoint();
        }
    }

    /// No other try follows this one.
    pub(super) fn stands(&self, stream: &Stream) {
        stream.body.stop_keeping(&self.place);
    }

    /// The exchange is over: its connection may carry another one.
    pub(super) fn give_back(self, stream: &Stream) {
        let pools = &stream.connection.worker.pools;
        match (self.exchange, self.hold) {
            (Exchange::Http1(exchange), Hold::Http1(lease)) => match exchange.into_connection() {
                Some(wire) => pools.give_back(wire, lease),
                None => {
                    drop(lease);
                    pools.ended();
                }
            },
            (mut exchange, hold) => {
                if !self.request_over {
                    exchange.abandon();
                }
                drop(hold);
            }
        }
    }
}

/// One try, up to the response's head. A pooled connection that turns out to have ended costs none, where the
/// request may go out twice, nor does an endpoint that says it never reached its app.
pub(super) async fn attempt(
    stream: &Stream,
    plan: &Plan<'_>,
    retries: &Retries,
) -> Result<(ResponseHead, Live), TryError> {
    let mut repeats = 0;
    trace::begin_try(stream);
    loop {
        let acquired = acquire(stream, plan).await?;
        let reused = acquired.reused;
        let mut live = begin(stream, acquired, plan)?;
        match response(stream, &mut live, retries).await {
            Ok(mut head) => {
                if not_sent::take(&mut head.headers, &live.cluster)
                    && stream.body.can_be_replayed()
                    && repeats < not_sent::MAX_REPEATS
                {
                    tracing::debug!(endpoint = %live.endpoint.address, "the endpoint's app is not there");
                    live.cluster.failed(&live.endpoint, Duration::ZERO);
                    stream.connection.worker.pools.forget(&live.endpoint);
                    repeats += 1;
                    continue;
                }
                stream.facts.answered_at.set(Some(stream.clock.began.elapsed()));
                live.switched = switches(stream, &live, head.status);
                let head = translated(stream, &live, head);
                trace::answered(stream, head.status);
                return Ok((head, live));
            }
            Err(Ended::Stop(stop)) => return Err(TryError::Stop(stop)),
            Err(Ended::Failed(FailedBy::Exchange(error)))
                if repeats < not_sent::MAX_REPEATS && may_repeat(stream, &live, &error, reused) =>
            {
                tracing::debug!(%error, "a pooled connection had ended: another one is taken");
                repeats += 1;
            }
            Err(Ended::Failed(why)) => {
                let ended = matches!(why, FailedBy::Exchange(ExchangeError::Ended { .. }));
                if ended {
                    live.ended_by_endpoint();
                }
                let failed = unanswered(live, why);
                if ended && let Some(error) = app_is_gone(stream, plan).await {
                    return Err(unreached(stream, error, plan));
                }
                return Err(failed);
            }
        }
    }
}

/// The try ends without a response.
fn unanswered(mut live: Live, why: FailedBy) -> TryError {
    let failure = match &why {
        FailedBy::PerTryTimeout => Failure::PerTryTimeout,
        FailedBy::Exchange(ExchangeError::Refused) => Failure::Refused,
        FailedBy::Exchange(_) | FailedBy::Connect(_) => Failure::Reset,
    };
    let status = if failure == Failure::PerTryTimeout {
        504
    } else {
        503
    };
    let counts = &live.cluster.http_metrics().counts;
    match failure {
        Failure::PerTryTimeout => counts.rq_per_try_timeout.increment(1),
        _ => counts.rq_rx_reset.increment(1),
    }
    live.cluster.answered(&live.endpoint, status);
    live.exchange.abandon();
    TryError::Failed(Box::new(Failed {
        failure,
        sent: true,
        cluster: Some(Rc::clone(&live.cluster)),
        why,
    }))
}

/// Whether the upstream has switched protocols.
fn switches(stream: &Stream, live: &Live, status: StatusCode) -> bool {
    let asked = stream.head.borrow().upgrade.is_some();
    match live.exchange {
        Exchange::Http1(_) => asked && status == StatusCode::SWITCHING_PROTOCOLS,
        Exchange::Http2(_) => asked && status == StatusCode::OK,
    }
}

/// A protocol that is switched to is said otherwise in each version: 101 in HTTP/1, 200 to an extended CONNECT
/// (RFC 8441).
fn translated(stream: &Stream, live: &Live, mut head: ResponseHead) -> ResponseHead {
    let request = stream.head.borrow();
    let Some(protocol) = &request.upgrade else {
        return head;
    };
    let by_http2 = matches!(live.exchange, Exchange::Http2(_));
    match (by_http2, request.version) {
        (true, Version::Http10 | Version::Http11) if head.status == StatusCode::OK => {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            if let Ok(protocol) = HeaderValue::from_str(protocol) {
                head.headers.insert(UPGRADE, protocol);
                head.headers
                    .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
        }
        (false, Version::Http2) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
            head.status = StatusCode::OK;
            head.headers.remove(UPGRADE);
            head.headers.remove(CONNECTION);
        }
        _ => {}
    }
    head
}

/// Whether a request that failed may go out again unasked: it was not looked at, or a connection that was `reused`
/// was reset before an answer and it is safe to repeat (RFC 9110 section 9.2.2). An app that reads a request and
/// ends the connection is told of as by Envoy.
fn may_repeat(stream: &Stream, live: &Live, error: &ExchangeError, reused: bool) -> bool {
    match error {
        ExchangeError::GoneAway => stream.body.can_be_replayed(),
        ExchangeError::Ended { .. } if !reused || live.exchange.is_answered() => false,
        ExchangeError::Ended { by_reset, .. } => {
            *by_reset && is_safe(stream) || stream.body.can_be_replayed() && live.exchange.went_unread()
        }
        ExchangeError::Refused | ExchangeError::Reset(_) | ExchangeError::Protocol(_) => false,
    }
}

/// Whether the request does nothing but ask (RFC 9110 section 9.2.1).
fn is_safe(stream: &Stream) -> bool {
    stream.body.is_empty() && stream.head.borrow().method.is_safe()
}

/// Of a safe request whose connection to the app just ended without an answer: why the app takes none any more,
/// if it does not. One that died has not answered anybody; the caller's sidecar asks another one.
async fn app_is_gone(stream: &Stream, plan: &Plan<'_>) -> Option<ConnectError> {
    if !not_sent::is_heard_by(&stream.connection) || !is_safe(stream) {
        return None;
    }
    let worker = &stream.connection.worker;
    worker.pools.connect(&worker.clusters, &plan.cluster).await.err()
}

async fn acquire(stream: &Stream, plan: &Plan<'_>) -> Result<Acquired, TryError> {
    let worker = &stream.connection.worker;
    let http2 = stream.head.borrow().version == Version::Http2;
    let acquired = worker
        .pools
        .acquire(&worker.clusters, &plan.cluster, plan.context, http2)
        .await;
    acquired.map_err(|error| unreached(stream, error, plan))
}

/// No connection could be had.
fn unreached(stream: &Stream, error: ConnectError, plan: &Plan<'_>) -> TryError {
    let failure = match &error {
        ConnectError::Overflow {
            breaker: Breaker::Connections | Breaker::Pending | Breaker::Requests,
            ..
        } => Failure::Overflow,
        ConnectError::NoCluster(_)
        | ConnectError::NoHealthy { .. }
        | ConnectError::OriginalDestination { .. } => {
            trace::no_try(stream);
            return TryError::Stop(
                super::local_reply::LocalReply::connect(&error, plan.not_found, false).into(),
            );
        }
        ConnectError::Failed { .. } | ConnectError::Http { .. } => Failure::Connect,
    };
    if let ConnectError::Failed { endpoint, .. } = &error {
        *stream.facts.endpoint.borrow_mut() = Some(endpoint.to_string().into());
    }
    TryError::Failed(Box::new(Failed {
        failure,
        sent: false,
        cluster: stream.connection.worker.clusters.get(&plan.cluster),
        why: FailedBy::Connect(error),
    }))
}

fn begin(stream: &Stream, acquired: Acquired, plan: &Plan<'_>) -> Result<Live, TryError> {
    let Acquired {
        link,
        endpoint,
        cluster,
        place: counted,
        ..
    } = acquired;
    *stream.facts.cluster.borrow_mut() = Some(Rc::clone(&cluster).name.clone());
    *stream.facts.endpoint.borrow_mut() = Some(Rc::clone(endpoint.address_text()));
    *stream.facts.stat_name.borrow_mut() = Some(Rc::clone(&cluster).config().stat_name().clone());
    stream.facts.upstream_protocol.set(Some(match &link {
        Link::Http1 { .. } => Version::Http11,
        Link::Http2(_) => Version::Http2,
    }));
    stream.facts.sent_begin.set(Some(stream.clock.began.elapsed()));
    let place = Place::default();
    let bodyless = stream.body.is_empty();
    let head = &mut *stream.head.borrow_mut();
    let protocol = match &link {
        Link::Http1 { .. } => Version::Http11,
        Link::Http2(_) => Version::Http2,
    };
    rewrite_host(head, plan, &endpoint);
    trace::send(stream, head, endpoint.address_text(), protocol);
    let (exchange, hold) = match link {
        Link::Http1 { wire, lease } => {
            let exchange = h1::client::Exchange::begin(wire, head, bodyless);
            (Exchange::Http1(Box::new(exchange)), Hold::Http1(lease))
        }
        Link::Http2(http2) => {
            let begun = h2::client::Exchange::begin(&mut http2.0.sender.borrow_mut(), head, bodyless);
            let exchange = begun.map_err(|error| {
                let why = match error {
                    h2::client::BeginError::Connection(error) => ExchangeError::from(error),
                    h2::client::BeginError::Head(error) => ExchangeError::Protocol(error.to_string()),
                };
                TryError::Failed(Box::new(Failed {
                    failure: Failure::Refused,
                    sent: false,
                    cluster: Some(Rc::clone(&cluster)),
                    why: FailedBy::Exchange(why),
                }))
            })?;
            (Exchange::Http2(Box::new(exchange)), Hold::Http2(http2))
        }
    };
    Ok(Live {
        exchange,
        place,
        piece: None,
        request_over: bodyless,
        switched: false,
        endpoint,
        cluster,
        hold,
        _counted: counted,
    })
}

/// The host is the endpoint's, where the route wants that and it has one. Of several tries, each tells of the
/// downstream's: what an earlier one wrote is not told of.
fn rewrite_host(head: &mut RequestHead, plan: &Plan<'_>, endpoint: &EndpointState) {
    if let Some(appends) = plan.auto_host
        && let Some(host) = endpoint.hostname()
        && *head.authority != *host
    {
        let before = std::mem::replace(&mut head.authority, host.to_string());
        tell_original_host(&mut head.headers, &before, appends);
    }
}

enum Ended {
    Failed(FailedBy),
    Stop(Stop),
}

/// Sends the request while it waits for the response's head.
async fn response(stream: &Stream, live: &mut Live, retries: &Retries) -> Result<ResponseHead, Ended> {
    let mut alarm = Alarm::default();
    let mut silence = Alarm::default();
    let per_try = retries.per_try_timeout();
    let mut since = None;
    poll_fn(|cx| {
        let sent = poll_request(stream, live, cx);
        // An endpoint may answer before it has read all: its answer counts, not that it reads no more.
        let answered = live.exchange.poll_head(cx);
        pass_on_interim(stream, live, cx);
        if let Poll::Ready(head) = answered {
            return Poll::Ready(head.map_err(|error| Ended::Failed(FailedBy::Exchange(error))));
        }
        match sent {
            Poll::Ready(Err(TryError::Stop(stop))) => return Poll::Ready(Err(Ended::Stop(stop))),
            Poll::Ready(Err(TryError::Failed(failed))) => return Poll::Ready(Err(Ended::Failed(failed.why))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if let Some(limit) = per_try
            && stream.clock.has_request()
        {
            let deadline = *since.get_or_insert_with(|| Instant::now() + limit);
            if alarm.poll(Some(deadline), cx).is_ready() {
                return Poll::Ready(Err(Ended::Failed(FailedBy::PerTryTimeout)));
            }
        }
        let quiet = retries
            .per_try_idle_timeout()
            .and_then(|limit| stream.clock.quiet_since().checked_add(limit));
        if silence.poll(quiet, cx).is_ready() {
            return Poll::Ready(Err(Ended::Failed(FailedBy::PerTryTimeout)));
        }
        Poll::Pending
    })
    .await
}

/// Hands informational responses on (`proxy_100_continue`): all of them, as Envoy does, but for a switch.
fn pass_on_interim(stream: &Stream, live: &mut Live, cx: &mut Context<'_>) {
    let interim = live.exchange.take_interim();
    if stream.manager.proxy_100_continue {
        for mut head in interim {
            remove_hop_by_hop(&mut head.headers, false);
            stream.clock.moved();
            // Whether the downstream is gone the stream notices itself.
            let _ = stream.sink.write_interim(head);
        }
        let _ = stream.sink.poll_flush(cx);
    }
}

/// Hands on what there is of the request. Ready once it is over and sent.
pub(super) fn poll_request(
    stream: &Stream,
    live: &mut Live,
    cx: &mut Context<'_>,
) -> Poll<Result<(), TryError>> {
    // What follows a request to switch protocols may be anything: an upstream that does not switch would read it
    // as further requests, which no rule has seen.
    let held = !live.switched && stream.head.borrow().upgrade.is_some();
    while !live.request_over && !held {
        if let Some(piece) = &live.piece {
            let Poll::Ready(ready) = live.exchange.poll_ready(piece.len(), cx) else {
                break;
            };
            ready.map_err(|error| failed(live, error))?;
        }
        let handed = match live.piece.take() {
            Some(piece) => live.exchange.write(piece),
            None => match stream.poll_body(&mut live.place, cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Chunk::Data(bytes)))) => {
                    live.piece = Some(bytes);
                    continue;
                }
                Poll::Ready(Some(Ok(Chunk::Trailers(trailers)))) => {
                    live.request_over = true;
                    live.exchange.end(Some(trailers))
                }
                Poll::Ready(None) => {
                    live.request_over = true;
                    live.exchange.end(None)
                }
                Poll::Ready(Some(Err(error))) => {
                    let why = format!("the request was cut: {error}");
                    return Poll::Ready(Err(TryError::Stop(downstream_broke(&error, why))));
                }
            },
        };
        handed.map_err(|error| failed(live, error))?;
        // Said together with the last bytes, where that is known already.
        if !live.request_over && stream.body.is_over(&live.place) {
            live.request_over = true;
            live.exchange.end(None).map_err(|error| failed(live, error))?;
        }
    }
    ready!(live.exchange.poll_flush(cx)).map_err(|error| failed(live, error))?;
    if live.request_over {
        Poll::Ready(Ok(()))
    } else {
        Poll::Pending
    }
}

fn downstream_broke(error: &super::body::BodyError, why: String) -> Stop {
    match error {
        super::body::BodyError::Malformed(_) => {
            super::local_reply::LocalReply::bad_request(&why, "http1.codec_error").into()
        }
        super::body::BodyError::Http2(error) if error.is_reset() && error.is_remote() => {
            Stop::Reset(ResponseFlag::DownstreamRemoteReset, why)
        }
        _ => Stop::Reset(ResponseFlag::DownstreamConnectionTermination, why),
    }
}

fn failed(live: &Live, error: ExchangeError) -> TryError {
    TryError::Failed(Box::new(Failed {
        failure: Failure::Reset,
        sent: true,
        cluster: Some(Rc::clone(&live.cluster)),
        why: FailedBy::Exchange(error),
    }))
}
