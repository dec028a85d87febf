//! A request's body on its way to an upstream: read once, kept as far as it may have to be sent again.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::header::HeaderMap;

use super::h1;
use super::h2;

/// What is kept of a request's body for further tries; Envoy's default for `per_connection_buffer_limit_bytes`,
/// which bounds it there. A longer body is tried once.
const REPLAY_BYTES: usize = 1024 * 1024;

/// Pieces below this many bytes are kept in one another's company: a piece by itself costs some hundred bytes more.
const SMALL_BYTES: usize = 4096;

/// Up to this many bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The peer ended in the middle.
    #[error("the body ended before its end")]
    Incomplete,
    /// It breaks the rules of its version of HTTP.
    #[error("{0}")]
    Malformed(&'static str),
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// HTTP/2: a reset, or the connection's end.
    #[error("{0}")]
    Http2(#[from] ::h2::Error),
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub(crate) enum Chunk {
    /// Bytes.
    Data(Bytes),
    /// Trailers: the end.
    Trailers(HeaderMap),
}

/// Where a request's body comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// Over HTTP/1.
    Http1(Rc<h1::server::Server>),
    /// Over HTTP/2.
    Http2(RefCell<h2::server::Incoming>),
}

/// A request's body.
#[derive(Debug)]
pub(super) struct RequestBody {
    source: Source,
    /// What was read already, while it may be sent again; none once that is too much, or never asked for.
    kept: RefCell<Option<Kept>>,
    ended: Cell<bool>,
    /// Bytes of data read from the downstream.
    pub(super) received: Cell<u64>,
}

/// What was read of a body.
#[derive(Debug, Default)]
struct Kept {
    chunks: Vec<Chunk>,
    /// Pieces too small to be kept one by one, after `chunks`.
    tail: BytesMut,
    bytes: usize,
    /// Nobody begins anew: what is here is for one that has not caught up.
    released: bool,
}

/// A place in a request's body: each try has its own.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Chunks taken of what is kept.
    chunks: usize,
    /// Bytes taken of its tail.
    tail: usize,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn is_over(&self, place: &Place) -> bool {
        place.chunks >= self.chunks.len() && place.tail >= self.tail.len()
    }

    /// What follows `place`; none at the end of what is kept.
    fn next(&self, place: &mut Place) -> Option<Chunk> {
        if let Some(chunk) = self.chunks.get(place.chunks) {
            place.chunks += 1;
            return Some(chunk.clone());
        }
        let rest = self.tail.get(place.tail..).filter(|rest| !rest.is_empty())?;
        place.tail = self.tail.len();
        Some(Chunk::Data(Bytes::copy_from_slice(rest)))
    }

    /// Keeps what was read at `place`, which is the end.
    fn push(&mut self, chunk: &Chunk, place: &mut Place) {
        match chunk {
            Chunk::Data(bytes) if bytes.len() < SMALL_BYTES => {
                self.bytes += bytes.len();
                self.tail.extend_from_slice(bytes);
                if self.tail.len() >= PIECE_BYTES {
                    self.freeze_tail();
                }
            }
            chunk => {
                if let Chunk::Data(bytes) = chunk {
                    self.bytes += bytes.len();
                }
                self.freeze_tail();
                self.chunks.push(chunk.clone());
            }
        }
        (place.chunks, place.tail) = (self.chunks.len(), self.tail.len());
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.chunks.push(Chunk::Data(tail.freeze()));
        }
    }
}

impl RequestBody {
    pub(super) fn new(source: Source) -> Self {
        let body = Self {
            source,
            kept: RefCell::new(None),
            ended: Cell::new(false),
            received: Cell::new(0),
        };
        body.ended.set(body.source.has_ended());
        body
    }

    /// From now on what is read is kept, so that it can be sent again.
    pub(super) fn keep(&self) {
        self.kept.borrow_mut().get_or_insert_default();
    }

    /// No try follows the one that is under way: nothing is kept any more. A body may last for days.
    pub(super) fn release(&self) {
        if let Some(kept) = &mut *self.kept.borrow_mut() {
            kept.released = true;
        }
    }

    /// To be called while nobody reads the body: HTTP/2 wants what it received fetched all the same.
    pub(super) fn fetch(&self, cx: &mut Context<'_>) {
        match &self.source {
            // What it sent waits in the kernel.
            Source::Http1(_) => {}
            Source::Http2(incoming) => incoming.borrow_mut().fetch(cx),
        }
    }

    /// Whether all of it was read from the downstream.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether nothing of it was or will be read: there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.has_ended() && self.received.get() == 0 && self.kept.borrow().as_ref().is_none_or(Kept::is_empty)
    }

    /// Whether a new try would see all of it.
    pub(super) fn can_be_replayed(&self) -> bool {
        let kept = self.kept.borrow();
        kept.as_ref().is_some_and(|kept| !kept.released) || self.received.get() == 0
    }

    /// Whether nothing is left for a try that is at `place`.
    pub(super) fn is_over(&self, place: &Place) -> bool {
        self.has_ended() && self.kept.borrow().as_ref().is_none_or(|kept| kept.is_over(place))
    }

    /// The next piece for the try that is at `place`.
    pub(super) fn poll(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, BodyError>>> {
        let kept = self.kept.borrow().as_ref().and_then(|kept| kept.next(place));
        if let Some(chunk) = kept {
            return Poll::Ready(Some(Ok(chunk)));
        }
        if self.has_ended() {
            return Poll::Ready(None);
        }
        let read = match &self.source {
            Source::Http1(server) => ready!(server.poll_body(cx)).map(|read| read.map(Chunk::Data)),
            Source::Http2(incoming) => ready!(incoming.borrow_mut().poll(cx)),
        };
        self.note(&read, place);
        Poll::Ready(read)
    }

    fn note(&self, read: &Option<Result<Chunk, BodyError>>, place: &mut Place) {
        let chunk = match read {
            None => return self.ended.set(true),
            Some(Err(_)) => return,
            Some(Ok(chunk)) => chunk,
        };
        if let Chunk::Data(bytes) = chunk {
            self.received.set(self.received.get() + bytes.len() as u64);
        }
        if matches!(chunk, Chunk::Trailers(_)) || self.source.has_ended() {
            self.ended.set(true);
        }
        let mut kept = self.kept.borrow_mut();
        if let Some(all) = &mut *kept {
            all.push(chunk, place);
        }
        // Who reads here has caught up.
        if kept
            .as_ref()
            .is_some_and(|kept| kept.released || kept.bytes > REPLAY_BYTES)
        {
            *kept = None;
        }
    }
}

impl Source {
    fn has_ended(&self) -> bool {
        match self {
            Self::Http1(server) => server.body_has_ended(),
            Self::Http2(incoming) => incoming.borrow().has_ended(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize, byte: u8) -> Chunk {
        Chunk::Data(vec![byte; length].into())
    }

    fn from_the_beginning(kept: &Kept) -> (usize, Vec<u8>) {
        let (mut pieces, mut all, mut place) = (0, Vec::new(), Place::default());
        while let Some(Chunk::Data(bytes)) = kept.next(&mut place) {
            pieces += 1;
            all.extend_from_slice(&bytes);
        }
        assert!(kept.is_over(&place));
        (pieces, all)
    }

    #[test]
    fn what_is_kept_in_bytes_is_kept_as_few_pieces_in_order() {
        let (mut kept, mut place, mut all) = (Kept::default(), Place::default(), Vec::new());
        for (length, times) in [(1, 40_000), (SMALL_BYTES, 2), (7, 3)] {
            for time in 0..times {
                let byte = u8::try_from(time % 251).unwrap();
                kept.push(&data(length, byte), &mut place);
                all.extend(std::iter::repeat_n(byte, length));
                assert!(kept.next(&mut place).is_none(), "the one that read it has it");
            }
        }
        let (pieces, read) = from_the_beginning(&kept);
        assert_eq!(read, all);
        assert_eq!(kept.bytes, all.len());
        assert!(pieces < 10, "{pieces} pieces");
    }

    #[test]
    fn who_is_behind_is_given_the_rest_of_the_tail() {
        let (mut kept, mut first, mut second) = (Kept::default(), Place::default(), Place::default());
        kept.push(&data(3, 1), &mut first);
        assert!(matches!(kept.next(&mut second), Some(Chunk::Data(bytes)) if bytes == [1, 1, 1][..]));
        kept.push(&data(2, 2), &mut first);
        assert!(matches!(kept.next(&mut second), Some(Chunk::Data(bytes)) if bytes == [2, 2][..]));
        assert!(kept.next(&mut second).is_none());
    }
}
