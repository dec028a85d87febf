//! The one upstream connection that a downstream connection keeps: made when a request needs it, kept for
//! the next request to the same cluster.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::task::{AbortHandle, spawn_local};

use super::activity::Activity;
use super::body::RequestBody;
use super::io::{HyperIo, Side};
use crate::model::Name;
use crate::net::Duplex;
use crate::upstream::connect::Lease;
use crate::upstream::{ClusterManager, ConnectError, LoadBalancerContext, UpstreamStream, connect};

/// Where it waits between two requests.
pub(super) type Slot = Rc<RefCell<Option<Upstream>>>;

/// A connection that speaks HTTP/1.1 to an endpoint. One that is dropped without [`Self::give_back`] is cut:
/// something was still on its way.
#[derive(Debug)]
pub(super) struct Upstream {
    cluster: Name,
    sender: SendRequest<RequestBody>,
    driver: Driver,
    /// Weak, because it is in there while it waits.
    slot: Weak<RefCell<Option<Upstream>>>,
}

/// The task that reads and writes the connection.
#[derive(Debug)]
struct Driver {
    task: AbortHandle,
    /// While it is true nothing is on its way, and the task ends the connection in an orderly manner by itself
    /// once the sender is gone.
    idle: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.idle {
            self.task.abort();
        }
    }
}

/// What is said of an endpoint that was connected to.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) cluster: Name,
    pub(super) address: String,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum OpenError {
    /// No endpoint could be connected to.
    Connect(ConnectError),
    /// hyper would not speak on it.
    Http(hyper::Error),
}

/// Why a request got no response.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) error: hyper::Error,
    /// The request, where nothing of it was sent.
    pub(super) unsent: Option<Box<Request<RequestBody>>>,
}

impl Upstream {
    /// The one that waits in `slot`, if it is `cluster`'s and open.
    pub(super) fn reuse(slot: &Slot, cluster: &Name) -> Option<Self> {
        let mut upstream = slot.borrow_mut().take()?;
        if upstream.cluster != *cluster || upstream.sender.is_closed() {
            return None;
        }
        upstream.driver.idle = false;
        Some(upstream)
    }

    /// A new one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn connect(
        clusters: &ClusterManager,
        cluster: &Name,
        slot: &Slot,
        activity: &Rc<Activity>,
    ) -> Result<(Self, Endpoint), OpenError> {
        let connected = connect(clusters, cluster, LoadBalancerContext::default())
            .await
            .map_err(OpenError::Connect)?;
        let activity = Rc::clone(activity);
        let (sender, task) = match connected.stream {
            UpstreamStream::Plain(stream) => speak(stream, connected.lease, activity).await,
            UpstreamStream::Tls(stream) => speak(*stream, connected.lease, activity).await,
        }
        .map_err(OpenError::Http)?;
        let endpoint = Endpoint {
            cluster: connected.cluster,
            address: connected.endpoint,
        };
        let upstream = Self {
            cluster: Name::clone(cluster),
            sender,
            driver: Driver { task, idle: false },
            slot: Rc::downgrade(slot),
        };
        Ok((upstream, endpoint))
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`].
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<hyper::Response<Incoming>, SendError> {
        if let Err(error) = self.sender.ready().await {
            let unsent = Some(Box::new(request));
            return Err(SendError { error, unsent });
        }
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut failed| SendError {
                unsent: failed.take_message().map(Box::new),
                error: failed.into_error(),
            })
    }

    /// Nothing is on its way any more: the next request may have it.
    pub(super) fn give_back(mut self) {
        self.driver.idle = true;
        if let Some(slot) = self.slot.upgrade() {
            *slot.borrow_mut() = Some(self);
        }
    }
}

async fn speak<D: Duplex + Unpin + 'static>(
    stream: D,
    lease: Lease,
    activity: Rc<Activity>,
) -> hyper::Result<(SendRequest<RequestBody>, AbortHandle)> {
    let io = HyperIo::new(stream, Side::Upstream, activity);
    let (sender, connection) = http1::Builder::new().handshake(io).await?;
    let task = spawn_local(async move {
        // Held for the length of the connection, idle or not.
        let _lease = lease;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an upstream's HTTP connection ended");
        }
    });
    Ok((sender, task.abort_handle()))
}
