//! Bodies of requests and responses of the HTTP kinds, made while they are sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, SizeHint};

use crate::message::{BLOCK, Message};

/// What is to be sent.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Nothing.
    Empty,
    /// These bytes.
    Short(Bytes),
    /// A message from there on.
    Message(Message, usize),
    /// The same, and then the trailers of a successful call.
    Reply(Message, usize),
    /// The trailers have been sent.
    Replied,
    /// Blocks until then; whoever reads them sees where they end.
    Blocks(Instant),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let data = match this {
            Self::Empty | Self::Replied => None,
            Self::Short(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Some(bytes)
            }
            Self::Message(message, at) | Self::Reply(message, at) => {
                let piece = message.piece(*at);
                *at += piece.as_ref().map_or(0, Bytes::len);
                piece
            }
            Self::Blocks(until) => (Instant::now() < *until).then(|| BLOCK.clone()),
        };
        if data.is_none() && matches!(this, Self::Reply(..)) {
            *this = Self::Replied;
            let status = HeaderValue::from_static("0");
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status)]);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Replied => true,
            Self::Message(message, at) => *at >= message.length(),
            Self::Short(_) | Self::Reply(..) | Self::Blocks(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = match self {
            Self::Empty | Self::Replied => 0,
            Self::Short(bytes) => bytes.len(),
            Self::Message(message, at) => message.length() - at,
            Self::Reply(..) | Self::Blocks(_) => return SizeHint::default(),
        };
        SizeHint::with_exact(length as u64)
    }
}
