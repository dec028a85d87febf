//! One downstream connection that speaks HTTP, from its first byte to its end.
//!
//! Owns the stream and what its requests share. HTTP/1 requests are served one after the other (`http1`), each
//! stream of HTTP/2 by a task that ends with the connection (`http2`).

mod http1;
mod http2;
mod resets;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use self::resets::Resets;
use super::client_cert::{ClientCert, PeerCertificate};
use super::clock::Alarm;
use super::filters::local_rate_limit::{self, TokenBucket};
use super::message::{RequestHead, Version};
use super::stream::Stream;
use super::tally::Tallied;
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

/// The details of a request whose downstream left.
pub(super) const DISCONNECT: &str = "downstream_remote_disconnect";

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
    /// Told that the local app refused a connection.
    pub(super) app_refused: Box<dyn Fn()>,
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
    /// The downstream left in the middle of a request.
    left: Cell<bool>,
    requests: Cell<u64>,
    /// Those that the downstream gave up at once.
    resets: Resets,
    /// The last endpoint connected to, and its cluster.
    endpoint: RefCell<Option<(Name, Rc<str>)>>,
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
    /// Told that the local app refused a connection.
    pub app_refused: Box<dyn Fn()>,
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
            app_refused: accepted.app_refused,
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
    pub(super) fn stream_begins(&self, head: &RequestHead) {
        self.state.active.set(self.state.active.get() + 1);
        self.metrics.request_begins(http_version(head.version));
        if head.upgrade.is_some() {
            self.metrics.upgrade_begins();
        }
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
        self.state
            .resets
            .ended(facts.status.get().is_some(), stream.clock.began.elapsed());
        let gone = facts.why.borrow().as_ref().map(|(flag, _)| *flag);
        if let Some(ResponseFlag::DownstreamRemoteReset | ResponseFlag::DownstreamConnectionTermination) =
            gone
        {
            self.metrics.counts.rq_rx_reset.increment(1);
            // The flag is also that of a request that took too long and was answered.
            let left = *facts.details.borrow() == DISCONNECT;
            self.state.left.set(self.state.left.get() || left);
        }
        if stream.head.borrow().upgrade.is_some() {
            self.metrics.upgrade_ends();
        }
        if let (Some(cluster), Some(endpoint)) = (&*facts.cluster.borrow(), &*facts.endpoint.borrow()) {
            *self.state.endpoint.borrow_mut() = Some((Arc::clone(cluster), Rc::clone(endpoint)));
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
            active_request: self.state.active.get() > 0 || self.state.left.get(),
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
    let counts = &connection.metrics.counts;
    let stream = Tallied::new(stream, &counts.cx_rx_bytes_total, &counts.cx_tx_bytes_total);
    let mut wire = Wire::new(Box::new(stream), Rc::clone(&log.counts));
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
        Ok(false) => http1::serve(&connection, wire, &manager, draining).await,
        Ok(true) => http2::serve(&connection, wire, &manager, draining).await,
        Err(end) => end,
    };
    record(&connection, end, log);
}

/// Whether the first bytes are HTTP/2's.
async fn sniff(
    wire: &mut Wire,
    manager: &HttpConnectionManager,
    connection: &Connection,
    mut draining: Pin<&mut impl Future<Output = ()>>,
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
        log.endpoint(endpoint.as_ref().into());
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
