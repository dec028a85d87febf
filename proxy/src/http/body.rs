//! Bodies on their way: the request's to the upstream, the response's to the downstream.
//!
//! Each tells, when it ends or is dropped, whoever waits for that. Trailers are left out, as by Envoy over
//! HTTP/1.1 unless configured.

use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::activity::{Activity, Phase};
use super::upstream::Upstream;

/// Why a body ended before its end.
pub(super) type BodyError = Box<dyn Error + Send + Sync>;

/// When a request was there as a whole.
#[derive(Debug, Default)]
pub(super) struct RequestEnd {
    at: Cell<Option<Instant>>,
    told: Notify,
}

/// A request's body, on its way to an upstream.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// None has no byte, and can be sent again.
    body: Option<Incoming>,
    end: Rc<RequestEnd>,
}

/// A response's body, on its way to the downstream.
#[derive(Debug)]
pub(super) struct ResponseBody {
    source: Source,
    /// Told that the response ended; none until the response is handed out.
    activity: Option<Rc<Activity>>,
}

#[derive(Debug)]
enum Source {
    Full(Bytes),
    Upstream(Box<UpstreamBody>),
}

/// The rest of an upstream's response.
pub(super) struct UpstreamBody {
    pub(super) body: Incoming,
    /// The route's timeout, which bounds the whole response.
    pub(super) timeout: Pin<Box<dyn Future<Output = ()>>>,
    /// Given back once the response ended.
    pub(super) upstream: Option<Upstream>,
    pub(super) request_end: Rc<RequestEnd>,
}

impl std::fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}

/// The route's timeout ended a response on its way.
#[derive(Debug, thiserror::Error)]
#[error("the route's timeout ended the response")]
pub(super) struct ResponseTimeout;

impl RequestEnd {
    fn mark(&self) {
        if self.at.get().is_none() {
            self.at.set(Some(Instant::now()));
            self.told.notify_waiters();
        }
    }

    /// When it was; none if it is not there yet.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at.get()
    }

    /// Ready once the request is there.
    pub(super) async fn wait(&self) {
        let told = self.told.notified();
        if self.at.get().is_none() {
            told.await;
        }
    }
}

impl RequestBody {
    pub(super) fn new(body: Incoming, end: &Rc<RequestEnd>) -> Self {
        if body.is_end_stream() {
            end.mark();
            return Self::empty(end);
        }
        Self {
            body: Some(body),
            end: Rc::clone(end),
        }
    }

    pub(super) fn empty(end: &Rc<RequestEnd>) -> Self {
        Self {
            body: None,
            end: Rc::clone(end),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.body.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(poll_data(body, cx));
        if frame.is_none() || body.is_end_stream() {
            this.end.mark();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl ResponseBody {
    /// One made here.
    pub(super) fn full(bytes: Bytes) -> Self {
        Self {
            source: Source::Full(bytes),
            activity: None,
        }
    }

    /// An upstream's.
    pub(super) fn upstream(mut body: UpstreamBody) -> Self {
        body.give_back_if_ended();
        Self {
            source: Source::Upstream(Box::new(body)),
            activity: None,
        }
    }

    /// Has the end of the response told.
    pub(super) fn telling(mut self, activity: &Rc<Activity>) -> Self {
        self.activity = Some(Rc::clone(activity));
        self
    }
}

impl UpstreamBody {
    /// A connection whose request is still on its way cannot carry another one: it is dropped then.
    fn give_back_if_ended(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(upstream) = self.upstream.take()
            && self.request_end.at().is_some()
        {
            upstream.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Upstream(upstream) => {
                let Poll::Ready(frame) = poll_data(&mut upstream.body, cx) else {
                    ready!(upstream.timeout.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(ResponseTimeout.into())));
                };
                if frame.is_none() {
                    upstream.give_back();
                } else {
                    upstream.give_back_if_ended();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_empty(),
            Source::Upstream(upstream) => upstream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(upstream) => upstream.body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(activity) = &self.activity {
            activity.enter(Phase::Idle);
        }
    }
}

/// The next data frame; trailers are the end.
fn poll_data(body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let frame = ready!(Pin::new(body).poll_frame(cx));
    Poll::Ready(match frame {
        Some(Ok(frame)) if frame.is_data() => Some(Ok(frame)),
        Some(Ok(_)) | None => None,
        Some(Err(error)) => Some(Err(error.into())),
    })
}
