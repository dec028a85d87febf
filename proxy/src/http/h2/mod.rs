//! HTTP/2 (RFC 9113) by the h2 crate: both ends of a stream behind the verbs that HTTP/1 has.
//!
//! Flow control is the backpressure: what a peer sent is acknowledged once the other side has taken it. So a stream
//! holds at most [`STREAM_WINDOW`] of what it received and [`SEND_BUFFER`] of what it sends.

pub(super) mod client;
pub(super) mod io;
pub(super) mod server;

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};

use super::body::{BodyError, Chunk};
use super::wire::HIGH_WATERMARK;

/// What a peer may send on one stream before it is acknowledged: bounds what a slow reader on the other side
/// costs. Envoy has 16 MiB.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;

/// Likewise on a connection: room for 32 streams that nobody reads before the others wait for them.
pub(super) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// What waits in a stream to be written to a connection that takes no more; as for HTTP/1.
pub(super) const SEND_BUFFER: usize = HIGH_WATERMARK;

/// What frames of data may cost in h2's own books before a connection is ended for them: 256 bytes each, less their
/// data. Their streams fetch them before the next turn of the connection ([`io`]), which brings at most some 6,600.
/// h2's own default goes by the window, and would end a connection over a hundred small messages.
pub(super) const FRAME_BUDGET: usize = 4 * 1024 * 1024;

/// Frames below this many bytes are copied behind each other: kept as they are, each costs some 300 bytes more.
const COPIED_BYTES: usize = 4096;

/// Up to this many bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// A body as it is received.
#[derive(Debug)]
pub(super) struct Received {
    stream: RecvStream,
    /// Fetched and not handed out: whole pieces, then the one that is being filled. The stream's window bounds it.
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    /// Nothing more is to be fetched: the data is over, or the stream.
    fetched: bool,
    failed: Option<h2::Error>,
    /// Handed out and not acknowledged.
    held: usize,
    ended: bool,
}

impl Received {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            ended: stream.is_end_stream(),
            stream,
            pieces: VecDeque::new(),
            tail: BytesMut::new(),
            fetched: false,
            failed: None,
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

    /// Fetches what was received, without acknowledging it: h2 keeps small frames at many times their size, and ends
    /// the connection over too many.
    pub(super) fn fetch(&mut self, cx: &mut Context<'_>) {
        while !self.fetched && !self.ended {
            match self.stream.poll_data(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(bytes))) => self.keep(bytes),
                Poll::Ready(Some(Err(error))) => {
                    self.failed = Some(error);
                    self.fetched = true;
                }
                Poll::Ready(None) => self.fetched = true,
            }
        }
    }

    fn keep(&mut self, bytes: Bytes) {
        let waits = !self.pieces.is_empty() || !self.tail.is_empty();
        if waits && bytes.len() < COPIED_BYTES {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= PIECE_BYTES {
                self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
            }
        } else if !bytes.is_empty() {
            if !self.tail.is_empty() {
                self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
            }
            self.pieces.push_back(bytes);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            None if self.tail.is_empty() => return None,
            None => std::mem::take(&mut self.tail).freeze(),
            Some(piece) => piece,
        };
        self.held = piece.len();
        let last = self.pieces.is_empty() && self.tail.is_empty() && self.failed.is_none();
        self.ended = last && self.stream.is_end_stream();
        Some(piece)
    }

    /// The next piece. Asking for it says that the one before was taken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.acknowledge();
        self.fetch(cx);
        if let Some(piece) = self.take() {
            return Poll::Ready(Some(Ok(Chunk::Data(piece))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        if !self.fetched {
            return Poll::Pending;
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.ended = true;
        Poll::Ready(match trailers {
            Ok(Some(trailers)) => Some(Ok(Chunk::Trailers(trailers))),
            Ok(None) => None,
            Err(error) => Some(Err(error.into())),
        })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.held += self.pieces.iter().map(Bytes::len).sum::<usize>() + self.tail.len();
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
