//! The requests of one HTTP/1 connection, one after the other, from the first head to the close.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Connection, End, HEADERS_TIMEOUT};
use crate::http::body::{RequestBody, Source};
use crate::http::clock::Alarm;
use crate::http::h1::framing::Reader;
use crate::http::h1::head::{HeadError, HeadLimits, RawRequest};
use crate::http::h1::server::{ReadError, Server};
use crate::http::local_reply::LocalReply;
use crate::http::message::Version;
use crate::http::not_sent;
use crate::http::record;
use crate::http::request;
use crate::http::sink::{self, Sink};
use crate::http::stream::{Ended, Stream};
use crate::http::wire::Wire;
use crate::model::http::HttpConnectionManager;
use crate::telemetry::ResponseFlag;
use crate::telemetry::metrics::http::HttpVersion;

fn limits(manager: &HttpConnectionManager) -> HeadLimits {
    let bytes = usize::try_from(manager.limits.max_request_headers_kb).unwrap_or(usize::MAX);
    HeadLimits {
        bytes: bytes.saturating_mul(1024),
        fields: usize::try_from(manager.limits.max_headers_count).unwrap_or(usize::MAX),
    }
}

pub(super) async fn serve(
    connection: &Rc<Connection>,
    wire: Wire,
    first: &HttpConnectionManager,
    mut draining: Pin<&mut impl Future<Output = ()>>,
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

/// Whether an ordinary end shows that the response was cut by this: its framing does, or, as with Envoy, it is
/// of a protocol that was switched to, which says its own end. A reset might take that from the downstream.
fn ends_visibly(server: &Server, flag: ResponseFlag) -> bool {
    match flag {
        ResponseFlag::DownstreamConnectionTermination => false,
        ResponseFlag::UpstreamConnectionTermination | ResponseFlag::UpstreamRemoteReset => {
            server.shows_a_cut() || server.has_switched()
        }
        _ => server.shows_a_cut(),
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
                if stream.has_started() && ends_visibly(server, flag) {
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
        Err(false) if connection.is_draining() => {
            if not_sent::is_heard_by(connection) {
                // Broken or not, it ends.
                let _ = send(connection, server, not_sent::goodbye()).await;
            }
            Err(End::InOrder("drained"))
        }
        Err(false) => Err(End::InOrder("idle for too long")),
    }
}

pub(super) fn refused_head(error: HeadError) -> LocalReply {
    match error {
        HeadError::TooLarge => LocalReply::text(
            hyper::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Request Header Fields Too Large",
            "http1.headers_too_large",
        )
        .because(ResponseFlag::DownstreamProtocolError, "the headers are too large"),
        HeadError::Value => LocalReply::bad_request(&error.to_string(), "http1.invalid_characters"),
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
    let manager = (connection.manager)();
    record::write_refused(connection, &manager.access_log, &reply);
    match (send(connection, server, reply).await, why) {
        (Ok(()), Some((flag, why))) => {
            *connection.state.failure.borrow_mut() = Some((flag, why));
            End::InOrder("closed")
        }
        (Ok(()), None) => End::InOrder("closed"),
        (Err(error), _) => End::Broken(ResponseFlag::DownstreamConnectionTermination, error.to_string()),
    }
}

/// The last response of the connection.
async fn send(connection: &Connection, server: &Server, reply: LocalReply) -> io::Result<()> {
    let (mut head, body) = reply.into_response(false);
    let headers = &mut head.headers;
    crate::http::headers::stamp(headers, &(connection.manager)());
    headers.insert(hyper::header::CONNECTION, crate::http::h1::client::CLOSE);
    let method = hyper::Method::GET;
    server.begin_body(Reader::Ended);
    server.write_head((&method, Version::Http11), head, body.is_empty());
    server.write_data(body);
    server.write_end();
    poll_fn(|cx| server.poll_flush(cx)).await
}
