//! One downstream connection that speaks HTTP, from its first byte to its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};

use super::activity::{Activity, Phase};
use super::body::ResponseBody;
use super::close::close;
use super::io::{HyperIo, Side};
use super::router::Router;
use crate::model::http::{HttpConnectionManager, HttpLimits};
use crate::net::Duplex;
use crate::telemetry::{ConnectionLog, ResponseFlag};
use crate::upstream::ClusterManager;

/// The least that hyper can read headers into.
const MIN_HEADERS_BYTES: usize = 8192;

/// What a connection is served with.
#[derive(Clone, Copy)]
pub struct Connection<'a> {
    /// Limits, for the whole of the connection.
    pub limits: &'a HttpLimits,
    /// The newest configuration, asked for by each request: changed routes reach connections that live.
    pub manager: &'a dyn Fn() -> Arc<HttpConnectionManager>,
    /// Whether the downstream speaks TLS.
    pub encrypted: bool,
    /// Where its requests go.
    pub clusters: &'a ClusterManager,
}

/// How a connection ended.
enum Ended {
    /// By HTTP's rules, or breaking them.
    Http(hyper::Result<()>),
    /// It was in this phase for too long.
    Overdue(Phase),
}

/// Serves requests until the downstream ends, or takes too long, or, once `draining` is ready, the request
/// under way is answered. Why it ended is in `log`. Dropping it resets both sides.
pub async fn serve<D: Duplex + Unpin>(
    connection: Connection<'_>,
    stream: D,
    draining: impl Future<Output = ()>,
    log: &mut ConnectionLog,
) {
    let limits = connection.limits;
    let activity = Rc::new(Activity::new(Rc::clone(&log.counts)));
    let router = Router::new(&connection, &activity);
    let headers_bytes = usize::try_from(limits.max_request_headers_kb).unwrap_or(usize::MAX);
    let mut http = http1::Builder::new()
        // `activity` watches over the time.
        .header_read_timeout(None)
        .max_buf_size(headers_bytes.saturating_mul(1024).max(MIN_HEADERS_BYTES))
        .max_headers(usize::try_from(limits.max_headers_count).unwrap_or(usize::MAX))
        .serve_connection(
            HyperIo::new(stream, Side::Downstream, Rc::clone(&activity)),
            Requests(&router),
        );
    let (mut draining, mut drained) = (pin!(draining), false);
    let mut overdue = pin!(activity.overdue(limits));
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = http.poll_without_shutdown(cx) {
            return Poll::Ready(Ended::Http(ended));
        }
        // After the first look: a request that was there already is answered.
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            Pin::new(&mut http).graceful_shutdown();
            if let Poll::Ready(ended) = http.poll_without_shutdown(cx) {
                return Poll::Ready(Ended::Http(ended));
            }
        }
        overdue.as_mut().poll(cx).map(Ended::Overdue)
    })
    .await;
    record(&router, &ended, drained, log);
    let in_order = match &ended {
        Ended::Http(Ok(())) | Ended::Overdue(Phase::Idle) => true,
        // hyper has answered what it could not read.
        Ended::Http(Err(error)) => error.is_parse() || error.is_parse_too_large(),
        Ended::Overdue(Phase::Headers | Phase::Stream) => false,
    };
    if in_order {
        close(http.into_parts().io.into_stream(), limits.delayed_close_timeout).await;
    }
}

fn record(router: &Router<'_>, ended: &Ended, drained: bool, log: &mut ConnectionLog) {
    if let Some(endpoint) = router.facts.endpoint.take() {
        log.cluster(endpoint.cluster);
        log.endpoint(endpoint.address);
    }
    let requests = router.facts.requests.get();
    let (flag, why) = match ended {
        Ended::Http(Ok(())) if log.counts.received.get() == 0 => return log.silent(),
        Ended::Http(Ok(())) if drained => (ResponseFlag::None, "drained".to_owned()),
        Ended::Http(Ok(())) => (ResponseFlag::None, "closed".to_owned()),
        Ended::Http(Err(error)) if error.is_parse() => {
            (ResponseFlag::DownstreamProtocolError, format!("no HTTP: {error}"))
        }
        Ended::Http(Err(error)) => (ResponseFlag::DownstreamConnectionTermination, error.to_string()),
        Ended::Overdue(Phase::Idle) => (ResponseFlag::None, "idle for too long".to_owned()),
        Ended::Overdue(Phase::Headers) => (
            ResponseFlag::StreamIdleTimeout,
            "the headers of a request took too long".to_owned(),
        ),
        Ended::Overdue(Phase::Stream) => (
            ResponseFlag::StreamIdleTimeout,
            "a request on which no byte moved took too long".to_owned(),
        ),
    };
    match router.facts.failure.take() {
        Some((failed, last)) => log.ended(
            failed,
            format!("{why} after {requests} request(s); the last failure: {last}"),
        ),
        None => log.ended(flag, format!("{why} after {requests} request(s)")),
    }
}

/// The requests of a connection, for hyper.
struct Requests<'a>(&'a Router<'a>);

impl<'a> Service<Request<Incoming>> for Requests<'a> {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + 'a>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let router = self.0;
        Box::pin(async move { Ok(router.answer(request).await) })
    }
}
