//! Connections to endpoints that requests share: idle ones of HTTP/1, all of HTTP/2. One set a worker.
//!
//! Owns the idle connections and the tasks that drive HTTP/2 ones. A connection that ends while it is idle is
//! taken out at once: a request never finds it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until, timeout};

use super::h1::client::is_idle;
use super::h2::io::Io;
use super::h2::{CONNECTION_WINDOW, FRAME_BUDGET, SEND_BUFFER, STREAM_WINDOW};
use super::tally::Tallied;
use super::wire::Wire;
use crate::model::Name;
use crate::model::cluster::HttpProtocol;
use crate::net::Duplex;
use crate::net::relay::Counts;
use crate::telemetry::metrics::http::HttpVersion;
use crate::upstream::breaker::Place;
use crate::upstream::cluster::ClusterState;
use crate::upstream::connect::Lease;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::error::Breaker;
use crate::upstream::{
    ClusterManager, ConnectError, Connected, LoadBalancerContext, Reached, RequestPlace, UpstreamStream,
    reach, wait_in_line,
};

/// A connection that carried nothing for this long is closed: Envoy's default for an upstream's
/// `idle_timeout`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Of a response's head over HTTP/2, in bytes as RFC 9113 section 6.5.2 counts them: Envoy's default for
/// `max_response_headers_kb`.
const RESPONSE_HEADERS: u32 = 60 * 1024;

/// Streams of one HTTP/2 connection before another is made, where the endpoint allows more.
const STREAMS: usize = 1024;

/// The pools of a worker.
#[derive(Debug, Default)]
pub(super) struct Pools {
    by_endpoint: RefCell<HashMap<*const EndpointState, Rc<Pool>>>,
    /// A connection was given back or ended: who waits for one may have it, or its place.
    freed: Notify,
}

/// The connections to one endpoint.
#[derive(Debug)]
struct Pool {
    /// Keeps the key alive: no other endpoint can have its address in memory.
    endpoint: Rc<EndpointState>,
    cluster: Rc<ClusterState>,
    /// The one used last is used next.
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Http2>>>,
    /// An HTTP/2 connection is being made: further requests wait for it.
    dialling: Cell<bool>,
    dialled: Notify,
    /// Of the task that watches the idle ones.
    keeper: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Idle {
    wire: Wire,
    lease: Lease,
    since: Instant,
}

/// A connection of HTTP/2.
#[derive(Debug)]
pub(super) struct Http2 {
    pub(super) sender: RefCell<SendRequest<Bytes>>,
    streams: Cell<usize>,
    closed: Cell<bool>,
}

/// What a request is sent over.
#[derive(Debug)]
pub(super) enum Link {
    Http1 { wire: Wire, lease: Lease },
    Http2(Stream),
}

/// One stream's place on a connection.
#[derive(Debug)]
pub(super) struct Stream(pub(super) Rc<Http2>);

/// A connection to an endpoint, and a place for a request there.
#[derive(Debug)]
pub(super) struct Acquired {
    pub(super) link: Link,
    pub(super) endpoint: Rc<EndpointState>,
    pub(super) cluster: Rc<ClusterState>,
    /// It has carried requests before: it may turn out to have ended.
    pub(super) reused: bool,
    pub(super) place: RequestPlace,
}

/// Found without dialling.
enum Found {
    Link(Link, Rc<ClusterState>, Rc<EndpointState>),
    /// Somebody dials already.
    Wait(Rc<Pool>),
}

/// Ends the waiting of others, however the dial ended.
struct Dialling(Rc<Pool>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.dialling.set(false);
        self.0.dialled.notify_waiters();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Stream {
    fn open(connection: &Rc<Http2>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self(Rc::clone(connection))
    }
}

impl Http2 {
    fn has_room(&self) -> bool {
        let allowed = self.sender.borrow().current_max_send_streams().min(STREAMS);
        !self.closed.get() && self.streams.get() < allowed && self.takes_requests()
    }

    /// After a GOAWAY it takes none, however long those under way go on.
    fn takes_requests(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

impl Pools {
    /// A connection to an endpoint of the cluster called `name`, an idle one where there is one. `http2` is
    /// said of a downstream that speaks it.
    ///
    /// # Errors
    /// As [`reach`], and where as many requests are under way as may be.
    pub(super) async fn acquire(
        self: &Rc<Self>,
        clusters: &Rc<ClusterManager>,
        name: &Name,
        context: LoadBalancerContext,
        http2: bool,
    ) -> Result<Acquired, ConnectError> {
        let mut line: Option<Place> = None;
        let mut dialling = Vec::new();
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let reached = reach(clusters, name, context, |cluster, endpoint| {
                self.find(cluster, endpoint, http2, &mut dialling)
            });
            let (link, cluster, endpoint, reused) = match reached.await {
                Ok(Reached::Reused(Found::Link(link, cluster, endpoint))) => (link, cluster, endpoint, true),
                Ok(Reached::Reused(Found::Wait(pool))) => {
                    let dialled = pool.dialled.notified();
                    if pool.dialling.get() {
                        let patience = pool.cluster.config().connect_timeout;
                        // Whether it came or not: looked at again.
                        let _ = timeout(patience, dialled).await;
                    }
                    continue;
                }
                Ok(Reached::Connected(connected)) => self.connected(clusters, connected, http2).await?,
                Err(ConnectError::Overflow {
                    breaker: Breaker::Connections,
                    cluster,
                    ..
                }) => {
                    let cluster = clusters.get(&cluster).ok_or(ConnectError::NoCluster(cluster))?;
                    if line.is_none() {
                        line = Some(wait_in_line(&cluster)?);
                    }
                    freed.await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let place = match RequestPlace::acquire(&cluster, &endpoint) {
                Ok(place) => place,
                Err(error) => {
                    self.give_back_link(link);
                    return Err(error);
                }
            };
            return Ok(Acquired {
                link,
                endpoint,
                cluster,
                reused,
                place,
            });
        }
    }

    fn find(
        self: &Rc<Self>,
        cluster: &Rc<ClusterState>,
        endpoint: &Rc<EndpointState>,
        http2: bool,
        dialling: &mut Vec<Dialling>,
    ) -> Option<Found> {
        let found = |link| Some(Found::Link(link, Rc::clone(cluster), Rc::clone(endpoint)));
        if !speaks_http2(cluster, http2) {
            let pool = self.get(endpoint)?;
            let mut cx = Context::from_waker(Waker::noop());
            loop {
                let Idle { mut wire, lease, .. } = pool.idle.borrow_mut().pop()?;
                if is_idle(&mut wire, &mut cx) {
                    return found(Link::Http1 { wire, lease });
                }
            }
        }
        let pool = self.get_or_make(cluster, endpoint);
        if let Some(connection) = pool
            .http2
            .borrow()
            .iter()
            .find(|connection| connection.has_room())
        {
            return found(Link::Http2(Stream::open(connection)));
        }
        // By this very request, which dials it again.
        if dialling.iter().any(|dialling| Rc::ptr_eq(&dialling.0, &pool)) {
            return None;
        }
        if pool.dialling.replace(true) {
            return Some(Found::Wait(pool));
        }
        dialling.push(Dialling(pool));
        None
    }

    async fn connected(
        self: &Rc<Self>,
        clusters: &Rc<ClusterManager>,
        connected: Connected,
        http2: bool,
    ) -> Result<(Link, Rc<ClusterState>, Rc<EndpointState>, bool), ConnectError> {
        let lease = connected.lease;
        lease.pool();
        let (cluster, endpoint) = (Rc::clone(lease.cluster()), Rc::clone(lease.endpoint()));
        let stream: Box<dyn Duplex> = match connected.stream {
            UpstreamStream::Plain(stream) => Box::new(stream),
            UpstreamStream::Tls(stream) => stream,
        };
        let metrics = &cluster.metrics;
        let stream = Box::new(Tallied::new(stream, &metrics.received, &metrics.sent));
        let link = if speaks_http2(&cluster, http2) {
            let pool = self.get_or_make(&cluster, &endpoint);
            self.keep(clusters, &pool);
            cluster.http_metrics().connection_begins(HttpVersion::Http2);
            let connection = self.speak_http2(&pool, stream, lease).await?;
            Link::Http2(Stream::open(&connection))
        } else {
            let wire = Wire::new(stream, Rc::<Counts>::default());
            cluster.http_metrics().connection_begins(HttpVersion::Http1);
            self.keep(clusters, &self.get_or_make(&cluster, &endpoint));
            Link::Http1 { wire, lease }
        };
        Ok((link, cluster, endpoint, false))
    }

    async fn speak_http2(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        stream: Box<dyn Duplex>,
        lease: Lease,
    ) -> Result<Rc<Http2>, ConnectError> {
        let io = Io::new(stream, bytes::BytesMut::new(), Rc::default());
        let shaken = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(FRAME_BUDGET)
            .enable_push(false)
            .max_header_list_size(RESPONSE_HEADERS)
            .handshake::<_, Bytes>(io)
            .await;
        let (sender, connection) = shaken.map_err(|error| ConnectError::Http {
            cluster: Name::clone(&pool.cluster.name),
            endpoint: pool.endpoint.address.clone(),
            why: error.to_string(),
        })?;
        let http2 = Rc::new(Http2 {
            sender: RefCell::new(sender),
            streams: Cell::new(0),
            closed: Cell::new(false),
        });
        pool.http2.borrow_mut().push(Rc::clone(&http2));
        let (pools, weak, driven) = (Rc::downgrade(self), Rc::downgrade(pool), Rc::downgrade(&http2));
        spawn_local(async move {
            // Held for the length of the connection.
            let lease = lease;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an upstream's HTTP/2 connection ended");
            }
            lease.ended_by_endpoint();
            drop(lease);
            if let Some(connection) = driven.upgrade() {
                connection.closed.set(true);
            }
            if let Some(pool) = weak.upgrade() {
                pool.http2
                    .borrow_mut()
                    .retain(|connection| !connection.closed.get());
            }
            if let Some(pools) = pools.upgrade() {
                pools.freed.notify_waiters();
            }
        });
        Ok(http2)
    }

    /// Gives back what carried nothing.
    fn give_back_link(&self, link: Link) {
        match link {
            Link::Http1 { wire, lease } => self.give_back(wire, lease),
            Link::Http2(_) => {}
        }
    }

    /// Another request may have this connection.
    pub(super) fn give_back(&self, mut wire: Wire, lease: Lease) {
        if let Some(pool) = self.get(lease.endpoint())
            && !pool.endpoint.is_gone()
        {
            let keeper = pool.keeper.borrow().clone();
            let waker = keeper.unwrap_or_else(|| Waker::noop().clone());
            if is_idle(&mut wire, &mut Context::from_waker(&waker)) {
                let since = Instant::now();
                pool.idle.borrow_mut().push(Idle { wire, lease, since });
            }
        }
        self.freed.notify_waiters();
    }

    /// No request is to find a connection to `endpoint` any more; those under way go on.
    pub(super) fn forget(&self, endpoint: &Rc<EndpointState>) {
        if let Some(pool) = self.get(endpoint) {
            pool.idle.borrow_mut().clear();
            pool.http2.borrow_mut().clear();
        }
        self.freed.notify_waiters();
    }

    /// Connects to an endpoint of the cluster called `name`, and keeps the connection for a request.
    ///
    /// # Errors
    /// As [`reach`].
    pub(super) async fn connect(
        self: &Rc<Self>,
        clusters: &Rc<ClusterManager>,
        name: &Name,
    ) -> Result<(), ConnectError> {
        let context = LoadBalancerContext::default();
        match reach(clusters, name, context, |_, _| None::<Infallible>).await? {
            Reached::Connected(connected) => {
                let (link, ..) = self.connected(clusters, connected, false).await?;
                self.give_back_link(link);
                Ok(())
            }
            Reached::Reused(never) => match never {},
        }
    }

    /// A connection has ended.
    pub(super) fn ended(&self) {
        self.freed.notify_waiters();
    }

    fn get(&self, endpoint: &Rc<EndpointState>) -> Option<Rc<Pool>> {
        self.by_endpoint.borrow().get(&Rc::as_ptr(endpoint)).cloned()
    }

    fn get_or_make(&self, cluster: &Rc<ClusterState>, endpoint: &Rc<EndpointState>) -> Rc<Pool> {
        let mut pools = self.by_endpoint.borrow_mut();
        let pool = pools.entry(Rc::as_ptr(endpoint)).or_insert_with(|| {
            Rc::new(Pool {
                endpoint: Rc::clone(endpoint),
                cluster: Rc::clone(cluster),
                idle: RefCell::default(),
                http2: RefCell::default(),
                dialling: Cell::new(false),
                dialled: Notify::new(),
                keeper: RefCell::new(None),
            })
        });
        Rc::clone(pool)
    }

    /// Has a task watch over the pool's idle connections, unless one does.
    fn keep(self: &Rc<Self>, clusters: &Rc<ClusterManager>, pool: &Rc<Pool>) {
        let mut keeper = pool.keeper.borrow_mut();
        if keeper.is_none() {
            *keeper = Some(Waker::noop().clone());
            spawn_local(watch(
                Rc::downgrade(self),
                Rc::downgrade(clusters),
                Rc::downgrade(pool),
            ));
        }
    }
}

/// Takes out idle connections that end or were idle for too long, and the whole pool once its endpoint has
/// left: what is under way goes on.
async fn watch(pools: Weak<Pools>, clusters: Weak<ClusterManager>, pool: Weak<Pool>) {
    loop {
        let Some(clusters) = clusters.upgrade() else {
            return;
        };
        let mut changed = pin!(clusters.changed());
        let Some(oldest) = pool.upgrade().map(|pool| pool.oldest()) else {
            return;
        };
        let mut timer = pin!(sleep_until(oldest + IDLE_TIMEOUT));
        poll_fn(|cx| {
            let Some(pool) = pool.upgrade() else {
                return Poll::Ready(());
            };
            pool.look(cx);
            if changed.as_mut().poll(cx).is_ready() || timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        let (Some(pools), Some(pool)) = (pools.upgrade(), pool.upgrade()) else {
            return;
        };
        let now = Instant::now();
        pool.idle
            .borrow_mut()
            .retain(|idle| now < idle.since + IDLE_TIMEOUT);
        if pool.endpoint.is_gone() {
            pools.by_endpoint.borrow_mut().remove(&Rc::as_ptr(&pool.endpoint));
            pool.idle.borrow_mut().clear();
            pool.http2.borrow_mut().clear();
            pools.freed.notify_waiters();
            return;
        }
    }
}

impl Pool {
    fn oldest(&self) -> Instant {
        let idle = self.idle.borrow();
        idle.iter()
            .map(|idle| idle.since)
            .min()
            .unwrap_or_else(Instant::now)
    }

    fn look(&self, cx: &mut Context<'_>) {
        let mut keeper = self.keeper.borrow_mut();
        if !keeper.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *keeper = Some(cx.waker().clone());
        }
        self.idle.borrow_mut().retain_mut(|idle| {
            let good = is_idle(&mut idle.wire, cx);
            if !good {
                idle.lease.ended_by_endpoint();
                idle.wire.finished();
            }
            good
        });
    }
}

fn speaks_http2(cluster: &ClusterState, downstream: bool) -> bool {
    match cluster.config().http {
        HttpProtocol::Http1 => false,
        HttpProtocol::Http2 => true,
        HttpProtocol::Downstream => downstream,
    }
}
