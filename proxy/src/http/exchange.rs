//! A request under way to an endpoint and its response, over either version of HTTP.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderMap};

use super::body::{BodyError, Chunk};
use super::h1::client::ResponseError;
use super::message::ResponseHead;
use super::{h1, h2};

/// Headers of a response over HTTP/2: Envoy's default for `max_headers_count`, which takes more of them for a
/// reset. Over HTTP/1 the codec has the same bound.
const RESPONSE_FIELDS: usize = 100;

/// The exchange.
#[derive(Debug)]
pub(super) enum Exchange {
    Http1(Box<h1::client::Exchange>),
    Http2(Box<h2::client::Exchange>),
}

/// Why an exchange failed, as far as a retry or an answer depends on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The connection ended before the response.
    #[error("{why}")]
    Ended {
        /// How.
        why: String,
        /// By a reset: what was sent last went unread.
        by_reset: bool,
    },
    /// The endpoint reset the stream.
    #[error("the endpoint reset the stream: {0}")]
    Reset(::h2::Reason),
    /// It had not looked at the request, and said so (HTTP/2's `REFUSED_STREAM`).
    #[error("the endpoint refused the stream")]
    Refused,
    /// It ended the connection in order, and had not looked at the request (HTTP/2's GOAWAY).
    #[error("the endpoint ended the connection before the request")]
    GoneAway,
    /// What came breaks the rules.
    #[error("{0}")]
    Protocol(String),
}

impl Exchange {
    /// Ready once the upstream takes some of so many bytes.
    pub(super) fn poll_ready(
        &mut self,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ExchangeError>> {
        match self {
            Self::Http1(exchange) => exchange.poll_ready(cx).map_err(|error| ended(&error)),
            Self::Http2(exchange) => exchange.poll_ready(bytes, cx).map_err(ExchangeError::from),
        }
    }

    pub(super) fn write(&mut self, bytes: Bytes) -> Result<(), ExchangeError> {
        match self {
            Self::Http1(exchange) => {
                exchange.write(bytes);
                Ok(())
            }
            Self::Http2(exchange) => Ok(exchange.write(bytes)?),
        }
    }

    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), ExchangeError> {
        match self {
            Self::Http1(exchange) => {
                exchange.end();
                Ok(())
            }
            Self::Http2(exchange) => Ok(exchange.end(trailers)?),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        match self {
            Self::Http1(exchange) => exchange.poll_flush(cx).map_err(|error| ended(&error)),
            // Its connection has a task that writes.
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Whether anything of the response was received.
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.is_answered(),
            Self::Http2(exchange) => exchange.is_answered(),
        }
    }

    /// Whether it is certain that the endpoint read nothing of the request, once the connection has ended.
    pub(super) fn went_unread(&self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.went_unread(),
            // Its GOAWAY would have told.
            Self::Http2(_) => false,
        }
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        match self {
            Self::Http1(exchange) => exchange.poll_head(cx).map_err(|error| match error {
                ResponseError::Ended(error) => ended(&error),
                error => ExchangeError::Protocol(error.to_string()),
            }),
            Self::Http2(exchange) => match ready!(exchange.poll_head(cx)) {
                // The h2 crate takes a length twice where both are the same; joined they would be none.
                Ok(head) if head.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() => {
                    Poll::Ready(Err(ExchangeError::Protocol("it has two lengths".to_owned())))
                }
                Ok(head) if head.headers.len() > RESPONSE_FIELDS => {
                    Poll::Ready(Err(ExchangeError::Reset(::h2::Reason::PROTOCOL_ERROR)))
                }
                head => Poll::Ready(head.map_err(ExchangeError::from)),
            },
        }
    }

    /// The informational responses that [`Self::poll_head`] came across.
    pub(super) fn take_interim(&mut self) -> Vec<ResponseHead> {
        match self {
            Self::Http1(exchange) => exchange.take_interim(),
            Self::Http2(exchange) => exchange.take_interim(),
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.has_ended(),
            Self::Http2(exchange) => exchange.has_ended(),
        }
    }

    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        match self {
            Self::Http1(exchange) => {
                Poll::Ready(ready!(exchange.poll_body(cx)).map(|read| read.map(Chunk::Data)))
            }
            Self::Http2(exchange) => exchange.poll_body(cx),
        }
    }

    /// To be called while nobody takes the response: HTTP/2 wants what it received fetched all the same.
    pub(super) fn fetch(&mut self, cx: &mut Context<'_>) {
        match self {
            // What it sent waits in the kernel.
            Self::Http1(_) => {}
            Self::Http2(exchange) => exchange.fetch(cx),
        }
    }

    /// Gives the request up: the endpoint is not to work on it any more.
    pub(super) fn abandon(&mut self) {
        match self {
            // The connection is dropped, and so reset.
            Self::Http1(_) => {}
            Self::Http2(exchange) => exchange.reset(::h2::Reason::CANCEL),
        }
    }
}

fn ended(error: &std::io::Error) -> ExchangeError {
    use std::io::ErrorKind;
    ExchangeError::Ended {
        why: match error.kind() {
            ErrorKind::UnexpectedEof => "the endpoint ended the connection".to_owned(),
            _ => error.to_string(),
        },
        by_reset: matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

impl From<::h2::Error> for ExchangeError {
    fn from(error: ::h2::Error) -> Self {
        match error.reason() {
            Some(::h2::Reason::REFUSED_STREAM) => Self::Refused,
            Some(_) if error.is_go_away() && error.is_remote() => Self::GoneAway,
            Some(reason) if error.is_remote() => Self::Reset(reason),
            Some(reason) if error.is_library() => Self::Protocol(reason.to_string()),
            _ => Self::Ended {
                why: error.to_string(),
                by_reset: false,
            },
        }
    }
}
