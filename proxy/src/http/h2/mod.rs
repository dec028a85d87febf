//! HTTP/2 (RFC 9113) by the h2 crate: both ends of a stream behind the verbs that HTTP/1 has.
//!
//! Flow control is the backpressure: what a peer sent is acknowledged once the other side has taken it.

pub(super) mod client;
pub(super) mod io;
pub(super) mod server;

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::body::{BodyError, Chunk};

/// What a peer may send on one stream before it is acknowledged: bounds what a slow reader on the other side
/// costs. Envoy has 16 MiB.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;

/// Likewise on a connection: room for 32 streams that nobody reads before the others wait for them.
pub(super) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// A body as it is received.
#[derive(Debug)]
pub(super) struct Received {
    stream: RecvStream,
    /// Handed out and not acknowledged.
    held: usize,
    ended: bool,
}

impl Received {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            ended: stream.is_end_stream(),
            stream,
            held: 0,
        }
    }

    /// Whether nothing more comes.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Says that what was handed out was taken, which the connection's window wants too.
    fn acknowledge(&mut self) {
        if self.held > 0 {
            // Fails only for a stream that is gone, which the next poll tells.
            let _ = self
                .stream
                .flow_control()
                .release_capacity(std::mem::take(&mut self.held));
        }
    }

    /// The next piece. Asking for it says that the one before was taken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.acknowledge();
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.stream.poll_data(cx)) {
            Some(Ok(bytes)) => {
                self.held = bytes.len();
                self.ended = self.stream.is_end_stream();
                Some(Ok(Chunk::Data(bytes)))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                let trailers = ready!(self.stream.poll_trailers(cx));
                self.ended = true;
                match trailers {
                    Ok(Some(trailers)) => Some(Ok(Chunk::Trailers(trailers))),
                    Ok(None) => None,
                    Err(error) => Some(Err(error.into())),
                }
            }
        })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.acknowledge();
    }
}

/// Ready once the peer takes some of the `bytes` that are in hand. Nothing is reserved for bytes that are still
/// to come: streams that wait for theirs would keep the connection's window from those that have some.
pub(super) fn poll_capacity(
    stream: &mut SendStream<Bytes>,
    bytes: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    if bytes == 0 {
        return Poll::Ready(Ok(()));
    }
    stream.reserve_capacity(bytes);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(granted) => drop(granted?),
            // The stream is over: the peer has reset it.
            None => return Poll::Ready(Err(h2::Reason::CANCEL.into())),
        }
    }
    Poll::Ready(Ok(()))
}
