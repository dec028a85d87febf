//! The downstream's end of an HTTP/1 connection: heads and bodies of requests in, responses out, in order.
//!
//! Owned by the connection's task, shared with the one request that is under way. Decides nothing about
//! requests.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, StatusCode};

use super::framing::{Reader, Writer};
use super::head::{HeadError, HeadLimits, RawRequest, take_request, write_response};
use crate::http::body::BodyError;
use crate::http::message::{ResponseHead, Version};
use crate::http::wire::Wire;
use crate::net::departure::{Departure, Leaving};

/// Bytes of requests that were sent ahead and are kept while one is answered; more are left to the kernel.
const PIPELINED_BYTES: usize = 64 * 1024;

/// The connection.
#[derive(Debug)]
pub(in crate::http) struct Server {
    wire: RefCell<Wire>,
    reader: RefCell<Reader>,
    writer: Cell<Writer>,
    delimited: Cell<bool>,
    switched: Cell<bool>,
    /// A byte of a request's head was received.
    begun: Cell<bool>,
    /// Somebody waits for more of the body, and so hears of an end. Nobody does while it is not taken.
    reads: Cell<bool>,
    /// While nobody does.
    departure: RefCell<Option<Departure>>,
}

/// Why there is no next request.
#[derive(Debug)]
pub(in crate::http) enum ReadError {
    /// The downstream ended, or broke, between two requests.
    Ended,
    /// It did so in the middle of a head.
    Cut(String),
    /// It sent something that is refused.
    Head(HeadError),
}

impl Server {
    pub(in crate::http) fn new(wire: Wire) -> Self {
        Self {
            wire: RefCell::new(wire),
            reader: RefCell::new(Reader::Ended),
            writer: Cell::new(Writer::None),
            delimited: Cell::new(false),
            switched: Cell::new(false),
            begun: Cell::new(false),
            reads: Cell::new(false),
            departure: RefCell::new(None),
        }
    }

    /// Bytes that were received and not read.
    #[cfg(any(test, fuzzing))]
    pub(in crate::http) fn unread(&self) -> usize {
        self.wire.borrow_mut().input().len()
    }

    /// Whether a byte of the next request is there.
    pub(in crate::http) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// The next request's head.
    pub(in crate::http) fn poll_head(
        &self,
        cx: &mut Context<'_>,
        limits: HeadLimits,
    ) -> Poll<Result<RawRequest, ReadError>> {
        let wire = &mut *self.wire.borrow_mut();
        loop {
            match take_request(wire.input(), limits) {
                Err(error) => return Poll::Ready(Err(ReadError::Head(error))),
                Ok(Some(request)) => {
                    self.begun.set(false);
                    wire.rest();
                    return Poll::Ready(Ok(request));
                }
                Ok(None) => {}
            }
            self.begun.set(!wire.input().is_empty());
            let begun = self.begun.get();
            if !begun {
                wire.rest();
            }
            match ready!(wire.poll_fill(cx)) {
                Ok(0) if begun => return cut("the downstream ended in the middle of a head"),
                Err(error) if begun => return cut(&error.to_string()),
                Ok(0) | Err(_) => return Poll::Ready(Err(ReadError::Ended)),
                Ok(_) => {}
            }
        }
    }

    /// The body of the request just read is as `reader` says. `upgrade` reads on whatever comes.
    pub(in crate::http) fn begin_body(&self, reader: Reader) {
        *self.reader.borrow_mut() = reader;
        self.reads.set(false);
    }

    /// Whether the request was read to its end.
    pub(in crate::http) fn body_has_ended(&self) -> bool {
        self.reader.borrow().has_ended()
    }

    /// The next bytes of the request's body.
    pub(in crate::http) fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let read = self.reader.borrow_mut().poll(&mut self.wire.borrow_mut(), cx);
        self.reads.set(read.is_pending());
        read
    }

    /// Ready once the downstream is gone. While its request is not taken its end counts although bytes wait before
    /// it: read later, it would cut the request all the same.
    pub(in crate::http) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body_has_ended() {
            return match self.reads.get() {
                true => Poll::Pending,
                false => self.poll_departed(cx),
            };
        }
        if self.switched.get() {
            return Poll::Pending;
        }
        self.departure.take();
        let wire = &mut *self.wire.borrow_mut();
        while wire.input().len() < PIPELINED_BYTES {
            match ready!(wire.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Ready once the downstream has left without anybody's receiving.
    fn poll_departed(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Of a protocol that was switched to, an end says nothing of the other direction.
        let leaving = match self.switched.get() {
            true => Leaving::ByReset,
            false => Leaving::AnyHow,
        };
        let departure = &mut *self.departure.borrow_mut();
        if departure.is_none() {
            *departure = self.wire.borrow().departure(leaving);
        }
        match departure {
            Some(departure) => departure.poll(cx),
            None => Poll::Pending,
        }
    }

    /// Sends `100 Continue`.
    pub(in crate::http) fn go_on(&self) {
        self.wire.borrow_mut().write(b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    /// Queues an informational response's head.
    pub(in crate::http) fn write_interim(&self, head: &ResponseHead) {
        let mut wire = self.wire.borrow_mut();
        wire.write_with(|out| write_response(out, Version::Http11, head.status, &head.headers));
    }

    /// Queues a response's head. `bodyless` is said of one that has no body whatever its headers say, `end`
    /// of one that ends here. Gives whether the connection must end after it, its length being unknown.
    pub(in crate::http) fn write_head(
        &self,
        request: (&Method, Version),
        mut head: ResponseHead,
        end: bool,
    ) -> bool {
        let (method, version) = request;
        let status = head.status;
        let headers = &mut head.headers;
        let bodyless = *method == Method::HEAD || status.is_informational() || has_no_body(status);
        let mut until_end = false;
        headers.remove(TRANSFER_ENCODING);
        let writer = if status == StatusCode::SWITCHING_PROTOCOLS {
            Writer::Raw
        } else if bodyless {
            if status == StatusCode::NO_CONTENT || status.is_informational() {
                headers.remove(CONTENT_LENGTH);
            } else if *method == Method::HEAD && !has_no_body(status) && !headers.contains_key(CONTENT_LENGTH)
            {
                // What a GET would have, as far as it is known.
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Writer::None
        } else if headers.contains_key(CONTENT_LENGTH) {
            Writer::Raw
        } else if end {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            Writer::None
        } else if version == Version::Http10 {
            until_end = true;
            Writer::Raw
        } else {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Writer::Chunked
        };
        self.writer.set(writer);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.switched.set(true);
            // It was over another way of leaving.
            self.departure.take();
        }
        self.delimited
            .set(!until_end && status != StatusCode::SWITCHING_PROTOCOLS);
        let mut wire = self.wire.borrow_mut();
        wire.write_with(|out| write_response(out, version, status, headers));
        until_end
    }

    /// Queues a piece of the body.
    pub(in crate::http) fn write_data(&self, bytes: Bytes) {
        self.writer.get().data(&mut self.wire.borrow_mut(), bytes);
    }

    /// Ends the body; trailers are left out, as by Envoy unless configured.
    pub(in crate::http) fn write_end(&self) {
        self.writer.replace(Writer::None).end(&mut self.wire.borrow_mut());
    }

    /// Ready while more may be queued.
    pub(in crate::http) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.borrow_mut().poll_ready(cx)
    }

    /// Ready once all was sent.
    pub(in crate::http) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.borrow_mut().poll_flush(cx)
    }

    /// Ready once the end was said.
    pub(in crate::http) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.borrow_mut().poll_finish(cx)
    }

    /// Ready once the downstream ended; what it still sends is thrown away.
    pub(in crate::http) fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self.wire.borrow_mut();
        loop {
            wire.input().clear();
            if ready!(wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether a response under way shows by itself that it is cut: its length was said, or it is in chunks.
    pub(in crate::http) fn shows_a_cut(&self) -> bool {
        self.delimited.get()
    }

    /// Whether the connection speaks another protocol by now.
    pub(in crate::http) fn has_switched(&self) -> bool {
        self.switched.get()
    }

    /// The coming drop is an ordinary close.
    pub(in crate::http) fn finished(&self) {
        self.wire.borrow_mut().finished();
    }
}

fn cut<T>(why: &str) -> Poll<Result<T, ReadError>> {
    Poll::Ready(Err(ReadError::Cut(why.to_owned())))
}

/// Whether a status never has a body (RFC 9110 section 6.4.1).
pub(in crate::http) fn has_no_body(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}
