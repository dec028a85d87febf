//! One downstream connection that speaks HTTP, from its first byte to its end.
//!
//! Owns the stream and what its requests share. HTTP/1 requests are served here one after the other, each
//! stream of HTTP/2 by a task that ends with the connection.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use hyper::Request;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::body::{RequestBody, Source};
use super::client_cert::{ClientCert, PeerCertificate};
use super::clock::Alarm;
use super::h1::framing::Reader;
use super::h1::head::{HeadError, HeadLimits, RawRequest};
use super::h1::server::{ReadError, Server};
use super::h2::io::Io;
use super::h2::server::{Incoming, Responder};
use super::h2::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::local_rate_limit::{self, TokenBucket};
use super::local_reply::LocalReply;
use super::message::{RequestHead, Version};
use super::request;
use super::sink::{self, Sink};
use super::stream::{Ended, Stream};
use super::wire::Wire;
use super::worker::HttpWorker;
use crate::model::http::{Codec, ForwardClientCert, HttpConnectionManager, LocalRateLimit};
use crate::model::{Downstream, Name};
use crate::net::Duplex;
use crate::telemetry::access_log::{TlsSession, connection_id};
use crate::telemetry::metrics::http::{ConnectionEnd, ConnectionManagerMetrics, HttpVersion};
use crate::telemetry::trace::Direction;
use crate::telemetry::{ConnectionLog, ResponseFlag};

/// A request's headers, once they have begun, must be there after this long. Envoy has no limit of its own
/// for them, only that of a stream without a byte.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);

/// The first bytes of every HTTP/2 connection (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Envoy's default for `max_concurrent_streams`.
const MAX_STREAMS: u32 = 1024;

/// What a connection is served with.
pub struct Connection {
    /// The newest configuration, asked for by each request: changed routes reach connections that live.
    pub manager: Box<dyn Fn() -> Arc<HttpConnectionManager>>,
    /// Who connected, where to, and what is known of the peer.
    pub downstream: Rc<Downstream>,
    /// Whether the downstream speaks TLS.
    pub encrypted: bool,
    /// The worker's.
    pub worker: Rc<HttpWorker>,
    /// What was presented in the handshake, by either side; none without TLS.
    pub certificates: Option<Certificates>,
    /// The listener's name.
    pub listener: Name,
    /// The filter chain's name, where it has one.
    pub filter_chain: Option<Name>,
    /// Whose requests it carries.
    pub direction: Direction,
    /// What was agreed in the handshake.
    pub tls: Option<TlsSession<'static>>,
    /// Its number, of the process.
    pub(super) id: u64,
    /// Of the connection manager that took it.
    pub(super) metrics: Rc<ConnectionManagerMetrics>,
    state: State,
}

/// The certificates of a handshake.
#[derive(Debug)]
pub struct Certificates {
    /// The peer's, its own first; may be empty.
    pub peer: Vec<CertificateDer<'static>>,
    /// The URIs of ours.
    pub own_uris: Vec<String>,
}

/// What the requests of a connection have in common.
#[derive(Debug, Default)]
struct State {
    draining: Cell<bool>,
    opened: Option<Instant>,
    version: Cell<Option<HttpVersion>>,
    ended_by_downstream: Cell<bool>,
    active: Cell<u32>,
    requests: Cell<u64>,
    /// The last endpoint connected to, and its cluster.
    endpoint: RefCell<Option<(Name, String)>>,
    /// The last response that was made here because something went wrong.
    failure: RefCell<Option<(ResponseFlag, String)>>,
    /// What ended the connection while streams were under way.
    cut: RefCell<Option<(ResponseFlag, String)>>,
    /// Rate limits of this connection alone.
    buckets: RefCell<Vec<(Arc<LocalRateLimit>, Rc<TokenBucket>)>>,
    /// What becomes of `x-forwarded-client-cert`, and by which options: made by the first request.
    client_cert: RefCell<Option<(ForwardClientCert, Rc<ClientCert>)>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// How a connection ended.
enum End {
    /// By HTTP's rules.
    InOrder(&'static str),
    /// The downstream ended it between two requests.
    ByDownstream,
    /// Broken, by whom and how.
    Broken(ResponseFlag, String),
}

/// What a listener knows of a connection that its HTTP connection manager takes.
#[derive(Debug)]
pub struct Accepted<'a> {
    /// Who connected, where to, and what is known of the peer.
    pub downstream: Rc<Downstream>,
    /// Whether the downstream speaks TLS.
    pub encrypted: bool,
    /// What was agreed in the handshake, where a log may tell of it.
    pub tls: Option<TlsSession<'static>>,
    /// What was presented in it.
    pub certificates: Option<Certificates>,
    /// The listener's name.
    pub listener: Name,
    /// Its name among statistics.
    pub listener_address: &'a str,
    /// The filter chain's name, where it has one.
    pub filter_chain: Option<Name>,
    /// Whose requests it carries.
    pub direction: Direction,
}

impl Connection {
    /// Of a downstream just accepted, or whose handshake is over.
    pub fn new(
        manager: Box<dyn Fn() -> Arc<HttpConnectionManager>>,
        accepted: Accepted<'_>,
        worker: Rc<HttpWorker>,
    ) -> Self {
        let metrics = worker.metrics(&manager().stat_prefix, accepted.listener_address);
        metrics.connection_begins(accepted.encrypted);
        Self {
            manager,
            downstream: accepted.downstream,
            encrypted: accepted.encrypted,
            worker,
            certificates: accepted.certificates,
            listener: accepted.listener,
            filter_chain: accepted.filter_chain,
            direction: accepted.direction,
            tls: accepted.tls,
            id: connection_id(),
            metrics,
            state: State {
                opened: Some(Instant::now()),
                ..State::default()
            },
        }
    }

    /// Whether it is to end as soon as HTTP allows.
    pub(super) fn is_draining(&self) -> bool {
        self.state.draining.get()
    }

    /// A stream begins.
    pub(super) fn stream_begins(&self, version: Version) {
        self.state.active.set(self.state.active.get() + 1);
        self.metrics.request_begins(http_version(version));
    }

    /// The connection's own bucket of a rate limit.
    pub(super) fn own_bucket(&self, options: &Arc<LocalRateLimit>) -> Option<Rc<TokenBucket>> {
        let mut all = self.state.buckets.borrow_mut();
        if let Some((_, bucket)) = all.iter().find(|(of, _)| Arc::ptr_eq(of, options)) {
            return Some(Rc::clone(bucket));
        }
        let made = TokenBucket::new(options.bucket.as_ref()?, local_rate_limit::now());
        let made = Rc::new(made);
        all.push((Arc::clone(options), Rc::clone(&made)));
        Some(made)
    }

    /// What becomes of `x-forwarded-client-cert`.
    pub(super) fn client_cert(&self, options: &ForwardClientCert) -> Rc<ClientCert> {
        let mut made = self.state.client_cert.borrow_mut();
        if let Some((by, made)) = &*made
            && by == options
        {
            return Rc::clone(made);
        }
        let certificate = self.certificates.as_ref().zip(self.downstream.peer.as_ref());
        let newer = Rc::new(ClientCert::new(
            options,
            certificate.map(|(certificates, peer)| PeerCertificate {
                peer,
                chain: &certificates.peer,
                own_uris: &certificates.own_uris,
            }),
        ));
        *made = Some((*options, Rc::clone(&newer)));
        newer
    }

    /// Why streams that are under way end with the connection: without a reason of HTTP's it is cut here.
    pub(super) fn why_streams_end(&self) -> (ResponseFlag, String) {
        let cut = self.state.cut.borrow().clone();
        cut.unwrap_or_else(|| (ResponseFlag::LocalReset, "its connection was cut".to_owned()))
    }

    /// A stream has ended.
    pub(super) fn record(&self, stream: &Stream) {
        self.state.active.set(self.state.active.get().saturating_sub(1));
        self.metrics.request_ends(stream.clock.began.elapsed());
        let facts = &stream.facts;
        if let (Some(cluster), Some(endpoint)) = (&*facts.cluster.borrow(), &*facts.endpoint.borrow()) {
            *self.state.endpoint.borrow_mut() = Some((Arc::clone(cluster), endpoint.clone()));
        }
        if let Some((flag, why)) = &*facts.why.borrow() {
            *self.state.failure.borrow_mut() = Some((*flag, why.clone()));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connection_ends(&ConnectionEnd {
            version: self.state.version.get(),
            tls: self.encrypted,
            remote: self.state.ended_by_downstream.get(),
            active_request: self.state.active.get() > 0,
            duration: self.state.opened.map(|at| at.elapsed()).unwrap_or_default(),
        });
    }
}

fn http_version(version: Version) -> HttpVersion {
    match version {
        Version::Http10 | Version::Http11 => HttpVersion::Http1,
        Version::Http2 => HttpVersion::Http2,
    }
}

/// Serves requests until the downstream ends, or takes too long, or, once `draining` is ready, the requests
/// under way are answered. Why it ended is in `log`. Dropping it resets both sides.
pub async fn serve(
    connection: Rc<Connection>,
    stream: Box<dyn Duplex>,
    draining: impl Future<Output = ()>,
    log: &mut ConnectionLog,
) {
    let manager = (connection.manager)();
    let agreed = stream.alpn().map(|protocol| protocol == b"h2");
    let mut wire = Wire::new(stream, Rc::clone(&log.counts));
    let mut draining = pin!(draining);
    let http2 = match (manager.codec, agreed) {
        (Codec::Http1, _) => Ok(false),
        (Codec::Http2, _) | (Codec::Auto, Some(true)) => Ok(true),
        (Codec::Auto, _) => sniff(&mut wire, &manager, &connection, draining.as_mut()).await,
    };
    if let Ok(http2) = http2 {
        let version = if http2 {
            HttpVersion::Http2
        } else {
            HttpVersion::Http1
        };
        connection.state.version.set(Some(version));
        connection.metrics.version_known(version);
    }
    let end = match http2 {
        Ok(false) => http1(&connection, wire, &manager, draining).await,
        Ok(true) => http2_connection(&connection, wire, &manager, draining).await,
        Err(end) => end,
    };
    record(&connection, end, log);
}

/// Whether the first bytes are HTTP/2's.
async fn sniff(
    wire: &mut Wire,
    manager: &HttpConnectionManager,
    connection: &Connection,
    mut draining: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Result<bool, End> {
    let began = Instant::now();
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        loop {
            let input = &wire.input()[..];
            let compared = input.len().min(PREFACE.len());
            if input[..compared] != PREFACE[..compared] {
                return Poll::Ready(Ok(false));
            }
            if compared == PREFACE.len() {
                return Poll::Ready(Ok(true));
            }
            let begun = compared > 0;
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Err(End::ByDownstream)),
                Poll::Ready(Ok(_)) => continue,
                Poll::Pending => {}
            }
            if draining.as_mut().poll(cx).is_ready() {
                connection.state.draining.set(true);
                return Poll::Ready(Err(End::InOrder("drained")));
            }
            let limit = if begun {
                Some(HEADERS_TIMEOUT)
            } else {
                manager.limits.idle_timeout
            };
            let deadline = limit.and_then(|limit| began.checked_add(limit));
            ready!(alarm.poll(deadline, cx));
            return Poll::Ready(Err(End::InOrder("idle for too long")));
        }
    })
    .await
}

fn limits(manager: &HttpConnectionManager) -> HeadLimits {
    let bytes = usize::try_from(manager.limits.max_request_headers_kb).unwrap_or(usize::MAX);
    HeadLimits {
        bytes: bytes.saturating_mul(1024),
        fields: usize::try_from(manager.limits.max_headers_count).unwrap_or(usize::MAX),
    }
}

async fn http1(
    connection: &Rc<Connection>,
    wire: Wire,
    first: &HttpConnectionManager,
    mut draining: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> End {
    let server = Rc::new(Server::new(wire));
    let patience = first.limits.delayed_close_timeout;
    let opened = Instant::now();
    let end = {
        let mut serving = pin!(http1_requests(connection, &server, first, opened));
        poll_fn(|cx| {
            if let Poll::Ready(end) = serving.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            // After the first look: a request that was there already is answered.
            if !connection.is_draining() && draining.as_mut().poll(cx).is_ready() {
                connection.state.draining.set(true);
                return serving.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await
    };
    if matches!(end, End::InOrder(_) | End::ByDownstream) {
        close(&server, patience).await;
    }
    end
}

/// Says the end, then waits up to `patience` for the peer's: a socket closed while bytes of the peer are
/// unread is a reset, which destroys a response on its way (RFC 9112 section 9.6). Envoy's
/// `delayed_close_timeout`. A peer that does not even take the end is reset.
async fn close(server: &Server, patience: Option<Duration>) {
    let patience = patience.unwrap_or_default();
    if matches!(
        timeout(patience, poll_fn(|cx| server.poll_finish(cx))).await,
        Ok(Ok(()))
    ) {
        // Late or broken: the peer had its time.
        let _ = timeout(patience, poll_fn(|cx| server.poll_discard(cx))).await;
        server.finished();
    }
}

async fn http1_requests(
    connection: &Rc<Connection>,
    server: &Rc<Server>,
    first: &HttpConnectionManager,
    opened: Instant,
) -> End {
    let mut served: u32 = 0;
    loop {
        let raw = match next_head(connection, server, first, opened).await {
            Ok(raw) => raw,
            Err(end) => return end,
        };
        connection.state.requests.set(connection.state.requests.get() + 1);
        served = served.saturating_add(1);
        let manager = (connection.manager)();
        let asked_close = sink::says_close(&raw.headers);
        let asked_continue = request::expects_continue(&raw.headers);
        let method = raw.method.clone();
        let (head, reader) = match request::from_http1(raw, connection.encrypted, &manager.upgrade_types) {
            Ok(request) => request,
            Err(reply) => return refuse(connection, server, reply).await,
        };
        server.begin_body(reader);
        if asked_continue && !manager.proxy_100_continue {
            server.go_on();
            if let Err(error) = poll_fn(|cx| server.poll_flush(cx)).await {
                return End::Broken(ResponseFlag::DownstreamConnectionTermination, error.to_string());
            }
        }
        let last = manager
            .limits
            .max_requests_per_connection
            .is_some_and(|most| served >= most)
            || outlived(&manager, opened);
        let sink = Sink::Http1(sink::Http1 {
            server: Rc::clone(server),
            method,
            version: head.version,
            close: Cell::new(asked_close || last),
        });
        let body = RequestBody::new(Source::Http1(Rc::clone(server)));
        let stream = Stream::new(connection, manager, head, body, sink);
        let ended = stream.serve().await;
        let Sink::Http1(sink) = &stream.sink else {
            return End::InOrder("closed");
        };
        match ended {
            Ended::Cut => {
                let why = stream.facts.why.borrow().clone();
                let (flag, why) = why.unwrap_or((ResponseFlag::LocalReset, "cut".to_owned()));
                if stream.has_started()
                    && server.shows_a_cut()
                    && flag != ResponseFlag::DownstreamConnectionTermination
                {
                    *connection.state.failure.borrow_mut() = Some((flag, why));
                    return End::InOrder("closed in the middle of a response");
                }
                return End::Broken(flag, why);
            }
            Ended::Answered if sink.close.get() || !server.body_has_ended() => return End::InOrder("closed"),
            Ended::Answered => {}
        }
    }
}

fn outlived(manager: &HttpConnectionManager, opened: Instant) -> bool {
    manager
        .limits
        .max_connection_duration
        .is_some_and(|limit| opened.elapsed() >= limit)
}

/// The next request's head.
async fn next_head(
    connection: &Connection,
    server: &Server,
    first: &HttpConnectionManager,
    opened: Instant,
) -> Result<RawRequest, End> {
    let limits = limits(first);
    let mut idle_since = Instant::now();
    let mut begun = None;
    let mut alarm = Alarm::default();
    let limit_of_head = first.limits.request_headers_timeout.unwrap_or(HEADERS_TIMEOUT);
    let read = poll_fn(|cx| {
        if let Poll::Ready(read) = server.poll_head(cx, limits) {
            return Poll::Ready(Ok(read));
        }
        if server.has_begun() {
            let began = *begun.get_or_insert_with(Instant::now);
            ready!(alarm.poll(began.checked_add(limit_of_head), cx));
            return Poll::Ready(Err(true));
        }
        if connection.is_draining() {
            return Poll::Ready(Err(false));
        }
        if let Some(began) = begun.take() {
            idle_since = began;
        }
        let idle = first
            .limits
            .idle_timeout
            .and_then(|limit| idle_since.checked_add(limit));
        let life = first
            .limits
            .max_connection_duration
            .and_then(|limit| opened.checked_add(limit));
        let deadline = [idle, life].into_iter().flatten().min();
        ready!(alarm.poll(deadline, cx));
        Poll::Ready(Err(false))
    })
    .await;
    match read {
        Ok(Ok(raw)) => Ok(raw),
        Ok(Err(ReadError::Ended)) => Err(End::ByDownstream),
        Ok(Err(ReadError::Cut(why))) => Err(End::Broken(ResponseFlag::DownstreamConnectionTermination, why)),
        Ok(Err(ReadError::Head(error))) => Err(refuse(connection, server, refused_head(error)).await),
        Err(true) => {
            let reply = LocalReply::overdue(
                false,
                "request header timeout",
                ResponseFlag::DownstreamConnectionTermination,
                "request_header_timeout",
            );
            Err(refuse(connection, server, reply).await)
        }
        Err(false) if connection.is_draining() => Err(End::InOrder("drained")),
        Err(false) => Err(End::InOrder("idle for too long")),
    }
}

fn refused_head(error: HeadError) -> LocalReply {
    match error {
        HeadError::TooLarge => LocalReply::text(
            hyper::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Request Header Fields Too Large",
            "http1.headers_too_large",
        )
        .because(ResponseFlag::DownstreamProtocolError, "the headers are too large"),
        HeadError::Malformed(_) => LocalReply::bad_request(&error.to_string(), "http1.codec_error"),
        HeadError::Version => LocalReply::upgrade_required(),
    }
}

/// Answers what never became a request, and ends the connection.
async fn refuse(connection: &Connection, server: &Server, reply: LocalReply) -> End {
    let why = reply.why.clone();
    connection.metrics.request_begins(HttpVersion::Http1);
    connection.metrics.response(reply.status.as_u16());
    connection.metrics.request_ends(Duration::ZERO);
    if matches!(why, Some((ResponseFlag::DownstreamProtocolError, _))) {
        connection.metrics.counts.cx_protocol_error.increment(1);
    }
    let (mut head, body) = reply.into_response(false);
    let headers = &mut head.headers;
    super::headers::stamp(headers, &(connection.manager)());
    headers.insert(hyper::header::CONNECTION, super::h1::client::CLOSE);
    let method = hyper::Method::GET;
    server.begin_body(Reader::Ended);
    server.write_head((&method, Version::Http11), head, body.is_empty());
    server.write_data(body);
    server.write_end();
    let sent = poll_fn(|cx| server.poll_flush(cx)).await;
    match (sent, why) {
        (Ok(()), Some((flag, why))) => {
            *connection.state.failure.borrow_mut() = Some((flag, why));
            End::InOrder("closed")
        }
        (Ok(()), None) => End::InOrder("closed"),
        (Err(error), _) => End::Broken(ResponseFlag::DownstreamConnectionTermination, error.to_string()),
    }
}

async fn http2_connection(
    connection: &Rc<Connection>,
    wire: Wire,
    manager: &HttpConnectionManager,
    mut draining: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> End {
    let options = manager.http2.unwrap_or_default();
    let (stream, received, counts) = wire.into_parts();
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .initial_window_size(
            options
                .initial_stream_window_size
                .unwrap_or(STREAM_WINDOW)
                .min(STREAM_WINDOW),
        )
        .initial_connection_window_size(
            options
                .initial_connection_window_size
                .unwrap_or(CONNECTION_WINDOW)
                .min(CONNECTION_WINDOW),
        )
        .max_header_list_size(manager.limits.max_request_headers_kb.saturating_mul(1024));
    let shaken = timeout(
        HEADERS_TIMEOUT,
        builder.handshake::<_, Bytes>(Io::new(stream, received, counts)),
    )
    .await;
    let mut http2 = match shaken {
        Ok(Ok(http2)) => http2,
        Ok(Err(error)) => return End::Broken(ResponseFlag::DownstreamProtocolError, error.to_string()),
        Err(_) => {
            return End::Broken(
                ResponseFlag::DownstreamProtocolError,
                "no HTTP/2 settings came".to_owned(),
            );
        }
    };
    let (opened, mut idle_since) = (Instant::now(), Instant::now());
    let mut streams = JoinSet::new();
    let mut served: u32 = 0;
    let mut alarm = Alarm::default();
    let mut ending = None;
    let end = poll_fn(|cx| {
        loop {
            while streams.poll_join_next(cx).is_ready_and(|joined| joined.is_some()) {
                idle_since = Instant::now();
            }
            match http2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    accept(connection, request, respond, &mut streams);
                    served = served.saturating_add(1);
                    if ending.is_none() && Some(served) == manager.limits.max_requests_per_connection {
                        connection.metrics.counts.cx_max_requests_reached.increment(1);
                        ending = Some("as many requests as it may carry");
                        http2.graceful_shutdown();
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(http2_error(&error)),
                Poll::Ready(None) => return Poll::Ready(End::InOrder(ending.unwrap_or("closed"))),
                Poll::Pending => {}
            }
            if ending.is_some() {
                return Poll::Pending;
            }
            if draining.as_mut().poll(cx).is_ready() {
                connection.state.draining.set(true);
                ending = Some("drained");
            } else {
                let idle = if streams.is_empty() {
                    manager.limits.idle_timeout
                } else {
                    None
                };
                let idle = idle.and_then(|limit| idle_since.checked_add(limit));
                let life = manager
                    .limits
                    .max_connection_duration
                    .and_then(|limit| opened.checked_add(limit));
                ready!(alarm.poll([idle, life].into_iter().flatten().min(), cx));
                ending = Some("idle for too long");
            }
            http2.graceful_shutdown();
        }
    })
    .await;
    *connection.state.cut.borrow_mut() = Some(match &end {
        End::Broken(flag, why) => (*flag, why.clone()),
        End::InOrder(_) | End::ByDownstream => (
            ResponseFlag::DownstreamConnectionTermination,
            "the downstream is gone".to_owned(),
        ),
    });
    end
}

/// [`Poll::is_ready`] with a condition.
trait IsReadyAnd<T> {
    fn is_ready_and(self, condition: impl FnOnce(T) -> bool) -> bool;
}

impl<T> IsReadyAnd<T> for Poll<T> {
    fn is_ready_and(self, condition: impl FnOnce(T) -> bool) -> bool {
        match self {
            Self::Ready(value) => condition(value),
            Self::Pending => false,
        }
    }
}

fn http2_error(error: &h2::Error) -> End {
    if error.is_io() {
        return End::Broken(ResponseFlag::DownstreamConnectionTermination, error.to_string());
    }
    End::Broken(ResponseFlag::DownstreamProtocolError, error.to_string())
}

fn accept(
    connection: &Rc<Connection>,
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
    streams: &mut JoinSet<()>,
) {
    connection.state.requests.set(connection.state.requests.get() + 1);
    let manager = (connection.manager)();
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let head = request::from_http2(parts, connection.encrypted);
    let many = |head: &RequestHead| head.headers.len() > manager.limits.max_headers_count as usize;
    let head = match head {
        Ok(head) if many(&head) => Err(refused_head(HeadError::TooLarge)),
        head => head,
    };
    let body = RequestBody::new(Source::Http2(RefCell::new(Incoming::new(body))));
    let responder = Responder::new(respond);
    if let Ok(head) = &head
        && request::expects_continue(&head.headers)
        && !manager.proxy_100_continue
    {
        // Fails only for a stream that is gone.
        let _ = responder.go_on();
    }
    let sink = Sink::Http2(responder);
    let connection = Rc::clone(connection);
    streams.spawn_local(async move {
        match head {
            Ok(head) => {
                let stream = Stream::new(&connection, manager, head, body, sink);
                stream.serve().await;
            }
            Err(reply) => {
                let head = RequestHead::nothing(method);
                let stream = Stream::new(&connection, manager, head, body, sink);
                stream.refuse(reply).await;
            }
        }
    });
}

fn record(connection: &Connection, end: End, log: &mut ConnectionLog) {
    let state = &connection.state;
    let gone = matches!(
        end,
        End::ByDownstream | End::Broken(ResponseFlag::DownstreamConnectionTermination, _)
    );
    state.ended_by_downstream.set(gone);
    if matches!(end, End::InOrder("idle for too long")) {
        connection.metrics.counts.cx_idle_timeout.increment(1);
    }
    if let Some((cluster, endpoint)) = state.endpoint.take() {
        log.cluster(cluster);
        log.endpoint(endpoint);
    }
    let requests = state.requests.get();
    let (flag, why) = match end {
        End::ByDownstream if log.counts.received.get() == 0 => return log.silent(),
        End::ByDownstream => (ResponseFlag::None, "closed".to_owned()),
        End::InOrder(_) if state.draining.get() => (ResponseFlag::None, "drained".to_owned()),
        End::InOrder(why) => (ResponseFlag::None, why.to_owned()),
        End::Broken(flag, why) => (flag, why),
    };
    match state.failure.take() {
        Some((failed, last)) => log.ended(
            failed,
            format!("{why} after {requests} request(s); the last failure: {last}"),
        ),
        None => log.ended(flag, format!("{why} after {requests} request(s)")),
    }
}
