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
const RETRY_BYTES: usize = 1024 * 1024;

/// What is kept of it otherwise, for a connection that turns out to have ended and an endpoint whose app is not
/// there: most requests whole, uploads at the cost of one buffer.
const REPEAT_BYTES: usize = 64 * 1024;

/// What a piece that is kept costs at least: its place and its share of a buffer, however small it is.
const PIECE_BYTES: usize = 256;

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
    /// What it costs, and may.
    kept_bytes: Cell<usize>,
    most_kept: Cell<usize>,
    /// Nothing more is kept: the response stands.
    stands: Cell<bool>,
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
            most_kept: Cell::new(0),
            stands: Cell::new(false),
            ended: Cell::new(ended),
            received: Cell::new(0),
        }
    }

    /// From now on what is read is kept, so that it can be sent again; more of it where that is `asked` for.
    pub(super) fn keep(&self, asked: bool) {
        self.most_kept.set(if asked { RETRY_BYTES } else { REPEAT_BYTES });
        self.kept.borrow_mut().get_or_insert_default();
    }

    /// No try follows the one that is at `place`: what it has had is given up.
    pub(super) fn stop_keeping(&self, place: &Place) {
        self.stands.set(true);
        self.give_up(place);
    }

    /// To be called while nobody reads the body: HTTP/2 wants what it received fetched all the same.
    pub(super) fn fetch(&self, cx: &mut Context<'_>) {
        match &self.source {
            // What it sent waits in the kernel.
            Source::Http1(_) => {}
            Source::Http2(incoming) => incoming.borrow_mut().fetch(cx),
        }
    }

    /// Gives up what is kept, once the last try has had it.
    fn give_up(&self, place: &Place) {
        let mut kept = self.kept.borrow_mut();
        if self.stands.get() && kept.as_ref().is_some_and(|kept| place.chunks >= kept.len()) {
            *kept = None;
        }
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
        self.give_up(place);
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
                self.kept_bytes
                    .set(self.kept_bytes.get() + length.max(PIECE_BYTES));
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
        if self.kept_bytes.get() > self.most_kept.get() {
            *kept = None;
        }
        if let Some(kept) = &mut *kept {
            kept.push(chunk.clone());
            place.chunks = kept.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::h1::chunked::Decoder;
    use super::super::h1::framing::Reader;
    use super::super::h1::server::Server;
    use super::super::wire::Wire;
    use super::*;
    use crate::net::PlainStream;

    /// A request's body in chunks, which are `bytes`.
    async fn sent(bytes: Vec<u8>) -> (RequestBody, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(&bytes).await.unwrap();
        let server = Server::new(Wire::new(Box::new(PlainStream::Tcp(socket)), Rc::default()));
        server.begin_body(Reader::Chunked(Decoder::of_request()));
        (RequestBody::new(Source::Http1(Rc::new(server))), client)
    }

    async fn next(body: &RequestBody, place: &mut Place) -> Option<Result<Vec<u8>, BodyError>> {
        let read = poll_fn(|cx| body.poll(place, cx)).await?;
        Some(read.map(|chunk| match chunk {
            Chunk::Data(bytes) => bytes.to_vec(),
            Chunk::Trailers(_) => Vec::new(),
        }))
    }

    fn kept(body: &RequestBody) -> Option<usize> {
        body.kept.borrow().as_ref().map(Vec::len)
    }

    #[tokio::test]
    async fn tiny_chunks_are_gathered() {
        let number = 20_000;
        let mut bytes = b"1\r\na\r\n".repeat(number);
        bytes.extend_from_slice(b"0\r\n\r\n");
        let (body, _client) = sent(bytes).await;
        body.keep(true);
        let (mut place, mut length, mut pieces) = (Place::default(), 0, 0);
        while let Some(read) = next(&body, &mut place).await {
            length += read.unwrap().len();
            pieces += 1;
        }
        assert_eq!((length, kept(&body)), (number, Some(pieces)));
        assert!(pieces < 200, "{pieces} pieces");
        let again = next(&body, &mut Place::default()).await.unwrap().unwrap();
        assert_eq!(again[0], b'a', "it can be sent again");
    }

    #[tokio::test]
    async fn what_is_wrong_behind_good_chunks_comes_after_them() {
        let (body, _client) = sent(b"1\r\na\r\n2\r\nbc\r\nzz\r\n".to_vec()).await;
        let mut place = Place::default();
        assert_eq!(next(&body, &mut place).await.unwrap().unwrap(), b"abc");
        let wrong = next(&body, &mut place).await.unwrap();
        assert!(matches!(wrong, Err(BodyError::Malformed(_))), "{wrong:?}");
    }

    #[tokio::test]
    async fn a_piece_that_is_kept_costs_more_than_its_bytes() {
        let (body, mut client) = sent(Vec::new()).await;
        body.keep(false);
        let mut place = Place::default();
        let most = REPEAT_BYTES / PIECE_BYTES;
        for piece in 1..=most + 1 {
            client.write_all(b"1\r\na\r\n").await.unwrap();
            assert_eq!(next(&body, &mut place).await.unwrap().unwrap(), b"a");
            assert_eq!(kept(&body), (piece <= most).then_some(piece));
        }
        assert!(!body.can_be_replayed());
    }

    #[tokio::test]
    async fn nothing_is_kept_once_a_response_stands() {
        let (body, mut client) = sent(b"1\r\na\r\n".to_vec()).await;
        body.keep(true);
        let mut first = Place::default();
        next(&body, &mut first).await.unwrap().unwrap();
        let mut second = Place::default();
        body.stop_keeping(&second);
        assert_eq!(kept(&body), Some(1), "the second try has not had it");
        assert_eq!(next(&body, &mut second).await.unwrap().unwrap(), b"a");
        client.write_all(b"1\r\nb\r\n0\r\n\r\n").await.unwrap();
        assert_eq!(next(&body, &mut second).await.unwrap().unwrap(), b"b");
        assert_eq!(kept(&body), None);
    }
}
