//! A request's body on its way to an upstream: read once, kept as far as it may have to be sent again.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::header::HeaderMap;

use super::h1;
use super::h2;

/// What is kept of a request's body where a retry policy wants further tries: Envoy's default for
/// `per_connection_buffer_limit_bytes`, which bounds it there. A longer body is tried once.
pub(super) const RETRY_BYTES: usize = 1024 * 1024;

/// What is kept of it otherwise, for a connection that turns out to have ended and an endpoint whose app is not
/// there: most requests whole, uploads at the cost of one buffer.
pub(super) const REPEAT_BYTES: usize = 64 * 1024;

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
    kept: RefCell<Option<Vec<Chunk>>>,
    kept_bytes: Cell<usize>,
    /// So many bytes at most.
    keeps: Cell<usize>,
    ended: Cell<bool>,
    /// Bytes of data read from the downstream.
    pub(super) received: Cell<u64>,
}

/// A place in a request's body: each try has its own.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Chunks taken of what is kept.
    chunks: usize,
}

impl RequestBody {
    pub(super) fn new(source: Source) -> Self {
        let ended = match &source {
            Source::Http1(server) => server.body_has_ended(),
            Source::Http2(incoming) => incoming.borrow().has_ended(),
        };
        Self {
            source,
            kept: RefCell::new(None),
            kept_bytes: Cell::new(0),
            keeps: Cell::new(0),
            ended: Cell::new(ended),
            received: Cell::new(0),
        }
    }

    /// From now on what is read is kept, so that it can be sent again, unless it is over `most` bytes.
    pub(super) fn keep(&self, most: usize) {
        self.keeps.set(most);
        self.kept.borrow_mut().get_or_insert_default();
    }

    /// Whether all of it was read from the downstream.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether nothing of it was or will be read: there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.has_ended() && self.received.get() == 0 && self.kept.borrow().as_ref().is_none_or(Vec::is_empty)
    }

    /// Whether a new try would see all of it.
    pub(super) fn can_be_replayed(&self) -> bool {
        self.kept.borrow().is_some() || self.received.get() == 0
    }

    /// Whether nothing is left for a try that is at `place`.
    pub(super) fn is_over(&self, place: &Place) -> bool {
        self.has_ended()
            && self
                .kept
                .borrow()
                .as_ref()
                .is_none_or(|kept| place.chunks >= kept.len())
    }

    /// The next piece for the try that is at `place`.
    pub(super) fn poll(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, BodyError>>> {
        if let Some(kept) = &*self.kept.borrow()
            && let Some(chunk) = kept.get(place.chunks)
        {
            place.chunks += 1;
            return Poll::Ready(Some(Ok(chunk.clone())));
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
        match chunk {
            Chunk::Data(bytes) => {
                let length = bytes.len();
                self.received.set(self.received.get() + length as u64);
                self.kept_bytes.set(self.kept_bytes.get() + length);
            }
            Chunk::Trailers(_) => self.ended.set(true),
        }
        let over = match &self.source {
            Source::Http1(server) => server.body_has_ended(),
            Source::Http2(incoming) => incoming.borrow().has_ended(),
        };
        if over {
            self.ended.set(true);
        }
        let mut kept = self.kept.borrow_mut();
        if self.kept_bytes.get() > self.keeps.get() {
            *kept = None;
        }
        if let Some(kept) = &mut *kept {
            kept.push(chunk.clone());
            place.chunks = kept.len();
        }
    }
}
