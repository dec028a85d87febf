//! Where a response goes: the downstream's end of a stream, over either version of HTTP.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::Method;
use hyper::header::{CONNECTION, HeaderMap, HeaderName};

use super::body::Chunk;
use super::h1::client::CLOSE;
use super::h1::server::Server;
use super::h2::server::Responder;
use super::message::{ResponseHead, Version};
use super::request::tokens;
use crate::telemetry::ResponseFlag;

/// The sink. Says itself what its version of HTTP wants said of the connection.
#[derive(Debug)]
pub(super) enum Sink {
    Http1(Http1),
    Http2(Responder),
}

/// The downstream of HTTP/1.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) server: Rc<Server>,
    pub(super) method: Method,
    pub(super) version: Version,
    /// The connection ends after this response.
    pub(super) close: Cell<bool>,
}

/// The downstream takes no more.
#[derive(Debug, thiserror::Error)]
#[error("the downstream is gone: {0}")]
pub(super) struct Gone(String);

impl Sink {
    /// Sends the head; `end` is all there is.
    pub(super) fn write_head(&self, mut head: ResponseHead, end: bool) -> Result<(), Gone> {
        match self {
            Self::Http1(http1) => {
                let switches = head.status == hyper::StatusCode::SWITCHING_PROTOCOLS;
                // The request's rest would be read as the next request.
                if !http1.server.body_has_ended() && !switches {
                    http1.close.set(true);
                }
                if http1.close.get() && !switches {
                    head.headers.insert(CONNECTION, CLOSE);
                } else if http1.version == Version::Http10 {
                    http1.close.set(true);
                }
                let until_end = http1.server.write_head((&http1.method, http1.version), head, end);
                if until_end || switches {
                    http1.close.set(true);
                }
                Ok(())
            }
            Self::Http2(responder) => Ok(responder.write_head(head, end)?),
        }
    }

    /// Sends the head of an informational response: others follow.
    pub(super) fn write_interim(&self, head: ResponseHead) -> Result<(), Gone> {
        match self {
            Self::Http1(http1) => {
                http1.server.write_interim(&head);
                Ok(())
            }
            Self::Http2(responder) => Ok(responder.write_interim(head)?),
        }
    }

    /// Sends a piece of the body. Trailers are left out over HTTP/1, as by Envoy unless configured.
    pub(super) fn write(&self, chunk: Chunk) -> Result<(), Gone> {
        match (self, chunk) {
            (Self::Http1(http1), Chunk::Data(bytes)) => {
                http1.server.write_data(bytes);
                Ok(())
            }
            (Self::Http1(_), Chunk::Trailers(_)) => self.end(),
            (Self::Http2(responder), Chunk::Data(bytes)) => Ok(responder.write_data(bytes)?),
            (Self::Http2(responder), Chunk::Trailers(trailers)) => Ok(responder.write_end(Some(trailers))?),
        }
    }

    /// Ends the response.
    pub(super) fn end(&self) -> Result<(), Gone> {
        match self {
            Self::Http1(http1) => {
                http1.server.write_end();
                Ok(())
            }
            Self::Http2(responder) => Ok(responder.write_end(None)?),
        }
    }

    /// Ready once the downstream takes some of so many bytes.
    pub(super) fn poll_ready(&self, bytes: usize, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match self {
            Self::Http1(http1) => http1
                .server
                .poll_ready(cx)
                .map_err(|error| Gone(error.to_string())),
            Self::Http2(responder) => responder.poll_ready(bytes, cx).map_err(Gone::from),
        }
    }

    /// Ready once all is sent.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match self {
            Self::Http1(http1) => http1
                .server
                .poll_flush(cx)
                .map_err(|error| Gone(error.to_string())),
            // Its connection has a task that writes.
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready once the downstream has given up: how.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<ResponseFlag> {
        match self {
            Self::Http1(http1) => http1
                .server
                .poll_gone(cx)
                .map(|()| ResponseFlag::DownstreamConnectionTermination),
            Self::Http2(responder) => responder.poll_gone(cx),
        }
    }

    /// Gives the response up in the middle.
    pub(super) fn reset(&self, reason: h2::Reason) {
        match self {
            // The connection is dropped, and so reset.
            Self::Http1(http1) => http1.close.set(true),
            Self::Http2(responder) => responder.reset(reason),
        }
    }
}

impl From<h2::Error> for Gone {
    fn from(error: h2::Error) -> Self {
        Self(error.to_string())
    }
}

/// Whether a response that has these headers says that its connection ends.
pub(super) fn says_close(headers: &HeaderMap) -> bool {
    [CONNECTION, HeaderName::from_static("proxy-connection")]
        .iter()
        .any(|name| tokens(headers, name).any(|token| token.eq_ignore_ascii_case("close")))
}
