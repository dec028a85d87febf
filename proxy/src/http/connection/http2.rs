//! One HTTP/2 connection: a task for each stream, the end of all of them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use hyper::Request;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::http1::refused_head;
use super::{Connection, End, HEADERS_TIMEOUT};
use crate::http::body::{RequestBody, Source};
use crate::http::clock::Alarm;
use crate::http::h1::head::HeadError;
use crate::http::h2::io::Io;
use crate::http::h2::server::{Incoming, Responder};
use crate::http::h2::{CONNECTION_WINDOW, FRAME_BUDGET, SEND_BUFFER, STREAM_WINDOW};
use crate::http::message::RequestHead;
use crate::http::request;
use crate::http::sink::Sink;
use crate::http::stream::Stream;
use crate::http::wire::Wire;
use crate::model::http::HttpConnectionManager;
use crate::telemetry::ResponseFlag;

/// Envoy's default for `max_concurrent_streams`.
const MAX_STREAMS: u32 = 1024;

/// Streams that a downstream may reset before they were taken up; with one more its connection ends. As many
/// as [`Resets`] allows it: whoever gives up a fan-out of calls is not to lose the others.
const RESETS_BEFORE_ACCEPT: usize = 250;

pub(super) async fn serve(
    connection: &Rc<Connection>,
    wire: Wire,
    manager: &HttpConnectionManager,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> End {
    let mut http2 = match handshake(wire, manager).await {
        Ok(http2) => http2,
        Err(end) => return end,
    };
    let (opened, mut idle_since) = (Instant::now(), Instant::now());
    let mut streams = JoinSet::new();
    let mut served: u32 = 0;
    let mut alarm = Alarm::default();
    let mut ending = None;
    let end = poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some(_)) = streams.poll_join_next(cx) {
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
                Poll::Ready(None) => return Poll::Ready(ending.map_or(End::ByDownstream, End::InOrder)),
                Poll::Pending => {}
            }
            if connection.state.resets.are_too_many() {
                connection
                    .metrics
                    .counts
                    .rq_too_many_premature_resets
                    .increment(1);
                let why = "too many of its requests were given up at once";
                return Poll::Ready(End::Broken(ResponseFlag::DownstreamProtocolError, why.to_owned()));
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

/// The settings of both sides.
async fn handshake(
    wire: Wire,
    manager: &HttpConnectionManager,
) -> Result<h2::server::Connection<Io, Bytes>, End> {
    let options = manager.http2.unwrap_or_default();
    let (stream, received, counts) = wire.into_parts();
    let mut builder = h2::server::Builder::new();
    builder
        .max_pending_accept_reset_streams(RESETS_BEFORE_ACCEPT)
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
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAME_BUDGET)
        .max_header_list_size(manager.limits.max_request_headers_kb.saturating_mul(1024));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    let shaken = timeout(
        HEADERS_TIMEOUT,
        builder.handshake::<_, Bytes>(Io::new(stream, received, counts)),
    )
    .await;
    let broken = |why: String| End::Broken(ResponseFlag::DownstreamProtocolError, why);
    match shaken {
        Ok(Ok(http2)) => Ok(http2),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(_) => Err(broken("no HTTP/2 settings came".to_owned())),
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
    let head = request::from_http2(parts, connection.encrypted, &manager.upgrade_types);
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
