//! One bidirectional gRPC call over one connection of its own.
//!
//! Owns HTTP/2's settings, the five bytes before each message and the status at the end (gRPC's
//! `doc/PROTOCOL-HTTP2.md`). A message is collected as its bytes arrive: the length that a peer claims
//! allocates nothing. Dropping the call closes the connection.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use attache_bootstrap::Secret;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::status::{Code, Status};
use crate::control::executor::Tasks;

/// A message larger than this is refused. Twenty thousand endpoints are less than 4 MiB.
const MAX_MESSAGE: usize = 256 << 20;
/// How much may be under way towards us: a large message need not wait for our window.
const WINDOW: u32 = 4 << 20;
/// A connection on which nothing was received for so long is asked for a sign of life. Consul punishes
/// whoever asks more often than every fifteen seconds.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(30);
/// And is given up if there is none.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Messages that wait to be sent: there is one for each response, so more are never taken off a server
/// that reads.
const MAX_QUEUED: usize = 256;
/// One byte for compression, four for the length.
const PREFIX: usize = 5;

/// What is called.
pub(super) struct Call<'a> {
    /// `/package.Service/Method`.
    pub(super) method: &'static str,
    /// `:authority`.
    pub(super) authority: &'a str,
    /// Over TLS.
    pub(super) secure: bool,
    /// Sent as `x-consul-token`. Consul reads other metadata as query options: there is none.
    pub(super) token: Option<&'a Secret>,
}

/// The call's client end.
pub(super) struct Grpc {
    outgoing: mpsc::Sender<Bytes>,
    incoming: Reading,
    frames: Frames,
    /// A message could not be queued.
    stuck: bool,
    /// What the call broke with, while the connection is asked for its own reason.
    broken: Option<hyper::Error>,
    /// As long as it is there, the connection tells why it ended.
    sender: Option<http2::SendRequest<Outgoing>>,
    connection: JoinHandle<hyper::Result<()>>,
    tasks: Tasks,
}

type Answering = Pin<Box<dyn Future<Output = hyper::Result<hyper::Response<Incoming>>>>>;

enum Reading {
    /// Go's server sends its headers with the first message.
    Awaited(Answering),
    Open(Incoming),
}

impl Grpc {
    /// Opens the call. Whether anybody answers is seen by [`Self::next`].
    ///
    /// # Errors
    /// When the connection breaks at once, or the token has bytes that no header can carry.
    pub(super) async fn open<Io>(io: Io, call: &Call<'_>) -> Result<Self, Status>
    where
        Io: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (outgoing, queue) = mpsc::channel(MAX_QUEUED);
        let request = request(call, Outgoing(queue))?;
        let tasks = Tasks::default();
        let mut builder = http2::Builder::new(tasks.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let handshake = builder.handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = handshake.map_err(|e| broken(&e))?;
        let connection = tokio::task::spawn_local(connection);
        let answering: Answering = Box::pin(sender.send_request(request));
        Ok(Self {
            outgoing,
            incoming: Reading::Awaited(answering),
            frames: Frames::default(),
            stuck: false,
            broken: None,
            sender: Some(sender),
            connection,
            tasks,
        })
    }

    /// Queues a message. A server that has not read for long ends the call: [`Self::next`] says so.
    pub(super) fn send(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let mut framed = Vec::with_capacity(PREFIX + message.len());
        framed.push(0);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(message);
        // Where the call is over, its status is the better reason.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outgoing.try_send(framed.into()) {
            self.stuck = true;
        }
    }

    /// The next message. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// How the call ended; it has no more messages then.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, Status> {
        loop {
            if self.stuck {
                return Err(Status::new(Code::UNAVAILABLE, "it does not read what it is sent"));
            }
            if let Some(message) = self.frames.next()? {
                return Ok(message);
            }
            if let Some(error) = &self.broken {
                drop(self.sender.take());
                let ended = (&mut self.connection).await;
                let timed_out = matches!(ended, Ok(Err(reason)) if reason.is_timeout());
                return Err(if timed_out { lifeless() } else { broken(error) });
            }
            match &mut self.incoming {
                Reading::Awaited(answering) => match answering.await {
                    Ok(answer) => self.incoming = Reading::Open(accepted(answer)?),
                    Err(error) => self.broken = Some(error),
                },
                Reading::Open(body) => match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
                    Some(Ok(Ok(data))) => self.frames.push(&data),
                    Some(Ok(Err(frame))) => return Err(ended(&frame)),
                    Some(Err(error)) => self.broken = Some(error),
                    None => return Err(Status::new(Code::UNKNOWN, "it ended without a status")),
                },
            }
        }
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        // A farewell to a peer that is gone would keep the connection for as long.
        self.connection.abort();
        self.tasks.abort();
    }
}

fn request(call: &Call<'_>, body: Outgoing) -> Result<hyper::Request<Outgoing>, Status> {
    let scheme = if call.secure { "https" } else { "http" };
    let mut builder = hyper::Request::post(format!("{scheme}://{}{}", call.authority, call.method))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, concat!("attache/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = call.token {
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| {
            let why = "the token has characters that no HTTP header can carry";
            Status::new(Code::UNAUTHENTICATED, why)
        })?;
        value.set_sensitive(true);
        builder = builder.header("x-consul-token", value);
    }
    builder
        .body(body)
        .map_err(|error| Status::new(Code::INTERNAL, error.to_string()))
}

/// The body of an answer that is a stream.
fn accepted(answer: hyper::Response<Incoming>) -> Result<Incoming, Status> {
    let (head, body) = answer.into_parts();
    if let Some(status) = Status::of_trailers(&head.headers) {
        return Err(status);
    }
    if head.status != hyper::StatusCode::OK {
        return Err(Status::of_http(head.status));
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        let why = "the answer's content type is not application/grpc";
        return Err(Status::new(Code::UNKNOWN, why));
    }
    Ok(body)
}

fn ended(frame: &Frame<Bytes>) -> Status {
    let status = frame.trailers_ref().and_then(Status::of_trailers);
    status.unwrap_or_else(|| Status::new(Code::UNKNOWN, "it ended without a status"))
}

fn lifeless() -> Status {
    let seconds = (PING_INTERVAL + PING_TIMEOUT).as_secs();
    Status::new(Code::UNAVAILABLE, format!("no sign of life for {seconds} s"))
}

fn broken(error: &hyper::Error) -> Status {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(why, ": {error}");
        source = error.source();
    }
    Status::new(Code::UNAVAILABLE, why)
}

/// The queue as the request's body.
struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Bytes as they come, messages as they are whole.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// When it is compressed, which we do not offer, or too large.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Status> {
        let Some((&[flag, ref length @ ..], rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if flag != 0 {
            let why = format!("a message is compressed (flag {flag}), which was not offered");
            return Err(Status::new(Code::INTERNAL, why));
        }
        if length > MAX_MESSAGE {
            let why = format!("a message of {length} bytes is larger than 256 MiB");
            return Err(Status::new(Code::INTERNAL, why));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let after = self.buffer.split_off(PREFIX + length);
        let mut message = std::mem::replace(&mut self.buffer, after);
        message.drain(..PREFIX);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_their_bytes_are_cut() {
        let mut wire = Vec::new();
        for message in [&b"one"[..], b"", b"three"] {
            wire.push(0);
            wire.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            wire.extend_from_slice(message);
        }
        for size in 1..=wire.len() {
            let mut frames = Frames::default();
            let mut messages = Vec::new();
            for piece in wire.chunks(size) {
                frames.push(piece);
                while let Some(message) = frames.next().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"one"[..], b"", b"three"], "{size} bytes at once");
            assert!(frames.buffer.is_empty());
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing_and_has_a_limit() {
        let mut frames = Frames::default();
        frames.push(&[0, 0x0f, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(frames.next(), Ok(None));
        assert!(frames.buffer.capacity() < 64);
        let mut frames = Frames::default();
        frames.push(&[0, 0x10, 0, 0, 1]);
        assert!(frames.next().unwrap_err().message.contains("256 MiB"));
        let mut frames = Frames::default();
        frames.push(&[1, 0, 0, 0, 0]);
        assert!(frames.next().unwrap_err().message.contains("compressed"));
    }
}
