//! The downstream's end of one HTTP/2 stream.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};

use crate::http::message::ResponseHead;
use crate::telemetry::ResponseFlag;

/// A request's body.
pub(in crate::http) use super::Received as Incoming;

/// Where the response goes.
#[derive(Debug)]
pub(in crate::http) struct Responder {
    respond: RefCell<SendResponse<Bytes>>,
    body: RefCell<Option<SendStream<Bytes>>>,
    /// The end was said: h2 takes a second one for a mistake.
    ended: Cell<bool>,
}

impl Responder {
    pub(in crate::http) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            respond: RefCell::new(respond),
            body: RefCell::new(None),
            ended: Cell::new(false),
        }
    }

    /// Sends the head; `end` is all there is.
    pub(in crate::http) fn write_head(&self, head: ResponseHead, end: bool) -> Result<(), h2::Error> {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        let body = self.respond.borrow_mut().send_response(response, end)?;
        *self.body.borrow_mut() = Some(body);
        self.ended.set(end);
        Ok(())
    }

    /// Sends `100 Continue`.
    pub(in crate::http) fn go_on(&self) -> Result<(), h2::Error> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        self.respond.borrow_mut().send_informational(response)
    }

    /// Sends an informational response.
    pub(in crate::http) fn write_interim(&self, head: ResponseHead) -> Result<(), h2::Error> {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        self.respond.borrow_mut().send_informational(response)
    }

    /// Sends a piece of the body.
    pub(in crate::http) fn write_data(&self, bytes: Bytes) -> Result<(), h2::Error> {
        self.with_body(|body| body.send_data(bytes, false))
    }

    /// Ends the body, with trailers where there are some.
    pub(in crate::http) fn write_end(&self, trailers: Option<HeaderMap>) -> Result<(), h2::Error> {
        if self.ended.replace(true) {
            return Ok(());
        }
        self.with_body(|body| match trailers {
            Some(trailers) => body.send_trailers(trailers),
            None => body.send_data(Bytes::new(), true),
        })
    }

    /// Ready once the downstream takes some of so many bytes.
    pub(in crate::http) fn poll_ready(
        &self,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        match &mut *self.body.borrow_mut() {
            Some(body) => super::poll_capacity(body, bytes, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ready once the downstream has given the stream up, or its connection.
    pub(in crate::http) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<ResponseFlag> {
        let reset = match &mut *self.body.borrow_mut() {
            Some(body) => ready!(body.poll_reset(cx)),
            None => ready!(self.respond.borrow_mut().poll_reset(cx)),
        };
        Poll::Ready(match reset {
            Ok(_) => ResponseFlag::DownstreamRemoteReset,
            Err(_) => ResponseFlag::DownstreamConnectionTermination,
        })
    }

    /// Gives the stream up.
    pub(in crate::http) fn reset(&self, reason: Reason) {
        match &mut *self.body.borrow_mut() {
            Some(body) => body.send_reset(reason),
            None => self.respond.borrow_mut().send_reset(reason),
        }
    }

    fn with_body(
        &self,
        send: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>,
    ) -> Result<(), h2::Error> {
        match &mut *self.body.borrow_mut() {
            Some(body) => send(body),
            None => Ok(()),
        }
    }
}
