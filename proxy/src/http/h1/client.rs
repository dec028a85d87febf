//! The upstream's end of an HTTP/1 connection: one request and its response at a time.
//!
//! An [`Exchange`] owns the connection while it lasts and gives it back where another request may follow.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, StatusCode};

use super::framing::{LengthError, Reader, Writer};
use super::head::{HeadError, HeadLimits, RawResponse, field, take_response, write_request};
use super::server::has_no_body;
use crate::http::body::BodyError;
use crate::http::message::{RequestHead, ResponseHead, Version};
use crate::http::request::tokens;
use crate::http::wire::Wire;

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Of a response's head, as much as Envoy takes by default.
const LIMITS: HeadLimits = HeadLimits {
    bytes: 80 * 1024,
    fields: 100,
};

/// So many informational responses are kept at once; further ones are left out.
const MAX_INTERIM: usize = 16;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::http) struct Exchange {
    wire: Wire,
    writer: Writer,
    reader: Reader,
    method: Method,
    asks_upgrade: bool,
    /// The request is queued as a whole.
    sent: bool,
    /// The peer keeps the connection after the response.
    keeps: bool,
    /// A byte of the response was received.
    answered: bool,
    /// Of its first byte among all that the connection sent.
    place: u64,
    /// What follows the head is no HTTP.
    switched: bool,
    /// Informational responses that nobody took yet.
    interim: Vec<ResponseHead>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum ResponseError {
    /// The connection ended or broke before.
    #[error("the connection ended before the response: {0}")]
    Ended(io::Error),
    /// What came is no HTTP, or breaks its rules.
    #[error("no HTTP: {0}")]
    Malformed(&'static str),
    /// The head is too large.
    #[error("the response's headers are too large")]
    TooLarge,
}

impl Exchange {
    /// Queues a request's head on a connection that carries nothing else. `bodyless` ends it there.
    pub(in crate::http) fn begin(wire: Wire, request: &RequestHead, bodyless: bool) -> Self {
        let mut exchange = Self {
            place: wire.place(),
            wire,
            writer: Writer::None,
            reader: Reader::Ended,
            method: request.method.clone(),
            asks_upgrade: request.upgrade.is_some(),
            sent: bodyless,
            keeps: false,
            answered: false,
            switched: false,
            interim: Vec::new(),
        };
        let writer = &mut exchange.writer;
        exchange.wire.write_with(|out| {
            write_request(
                out,
                &request.method,
                &request.target,
                &request.authority,
                &request.headers,
            );
            *writer = match &request.upgrade {
                Some(protocol) => {
                    // Of HTTP/1 its own words were passed on.
                    if !request.headers.contains_key(UPGRADE) {
                        field(out, CONNECTION.as_str(), b"upgrade");
                        field(out, UPGRADE.as_str(), protocol.as_bytes());
                    }
                    Writer::Raw
                }
                None if request.headers.contains_key(CONTENT_LENGTH) => Writer::Raw,
                None if bodyless => {
                    if !is_bodyless(&request.method) {
                        field(out, CONTENT_LENGTH.as_str(), b"0");
                    }
                    Writer::None
                }
                None => {
                    field(out, TRANSFER_ENCODING.as_str(), b"chunked");
                    Writer::Chunked
                }
            };
            out.extend_from_slice(b"\r\n");
        });
        exchange
    }

    /// Ready while more of the request may be queued.
    pub(in crate::http) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_ready(cx)
    }

    /// Queues a piece of the request's body.
    pub(in crate::http) fn write(&mut self, bytes: Bytes) {
        self.writer.data(&mut self.wire, bytes);
    }

    /// Ends the request.
    pub(in crate::http) fn end(&mut self) {
        if !std::mem::replace(&mut self.sent, true) {
            self.writer.end(&mut self.wire);
        }
    }

    /// Ready once all that was queued is sent, and the end of a switched protocol said.
    pub(in crate::http) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.switched && self.sent {
            return self.wire.poll_finish(cx);
        }
        self.wire.poll_flush(cx)
    }

    /// Whether a byte of the response was received.
    pub(in crate::http) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether it is certain that the endpoint read nothing of the request, once the connection has ended.
    pub(in crate::http) fn went_unread(&self) -> bool {
        !self.answered && self.wire.went_unread(self.place)
    }

    /// The informational responses that [`Self::poll_head`] came across.
    pub(in crate::http) fn take_interim(&mut self) -> Vec<ResponseHead> {
        std::mem::take(&mut self.interim)
    }

    /// The final response's head. Informational ones are kept for [`Self::take_interim`].
    pub(in crate::http) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, ResponseError>> {
        loop {
            if !self.wire.input().is_empty() {
                self.answered = true;
                match take_response(self.wire.input(), LIMITS) {
                    Ok(None) => {}
                    Ok(Some(head)) if self.is_final(&head) => {
                        let framed = self.frame(&head);
                        return Poll::Ready(framed.map(|()| ResponseHead {
                            status: head.status,
                            headers: head.headers,
                        }));
                    }
                    Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                        return Poll::Ready(Err(ResponseError::Malformed("it switches protocols unasked")));
                    }
                    Ok(Some(head)) if has_length(&head) => {
                        return Poll::Ready(Err(ResponseError::Malformed(
                            "an informational response with a body",
                        )));
                    }
                    Ok(Some(head)) => {
                        if self.interim.len() < MAX_INTERIM {
                            self.interim.push(ResponseHead {
                                status: head.status,
                                headers: head.headers,
                            });
                        }
                        continue;
                    }
                    Err(HeadError::TooLarge) => return Poll::Ready(Err(ResponseError::TooLarge)),
                    Err(HeadError::Malformed(why)) => return Poll::Ready(Err(ResponseError::Malformed(why))),
                    Err(HeadError::Value) => {
                        return Poll::Ready(Err(ResponseError::Malformed(
                            "a header's value has a control character",
                        )));
                    }
                    Err(HeadError::Version) => {
                        return Poll::Ready(Err(ResponseError::Malformed(
                            "its version is neither 1.0 nor 1.1",
                        )));
                    }
                }
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if !self.wire.input().is_empty() => {
                    return Poll::Ready(Err(ResponseError::Malformed(
                        "it ended in the middle of its head",
                    )));
                }
                Ok(0) => {
                    let ended = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Err(ResponseError::Ended(ended)));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ResponseError::Ended(error))),
            }
        }
    }

    fn is_final(&self, head: &RawResponse) -> bool {
        let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
        !head.status.is_informational() || switches && self.asks_upgrade
    }

    fn frame(&mut self, head: &RawResponse) -> Result<(), ResponseError> {
        let says =
            |word: &str| tokens(&head.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(word));
        self.switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let ends = tokens(&head.headers, &PROXY_CONNECTION).any(|token| token.eq_ignore_ascii_case("close"));
        self.keeps = !ends
            && match head.version {
                Version::Http10 => says("keep-alive"),
                Version::Http11 | Version::Http2 => !says("close"),
            };
        if (self.switched || head.status == StatusCode::NO_CONTENT) && has_length(head) {
            return Err(ResponseError::Malformed("a body where there is none"));
        }
        // Also of one that has no body: the downstream is told the same, and must not be told two lengths.
        let said = Reader::of_response(&head.headers).map_err(|error| match error {
            LengthError::Malformed(why) => ResponseError::Malformed(why),
            LengthError::Both => ResponseError::Malformed("it has both a length and a transfer coding"),
            LengthError::Coding => ResponseError::Malformed("a transfer coding that is not chunked"),
        })?;
        self.reader = if self.switched {
            Reader::Rest
        } else if self.method == Method::HEAD || has_no_body(head.status) {
            Reader::Ended
        } else {
            said
        };
        Ok(())
    }

    /// Whether nothing more of the response comes.
    pub(in crate::http) fn has_ended(&self) -> bool {
        self.reader.has_ended()
    }

    /// The next bytes of the response's body.
    pub(in crate::http) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.reader.poll(&mut self.wire, cx)
    }

    /// The connection, if another request may follow on it.
    pub(in crate::http) fn into_connection(mut self) -> Option<Wire> {
        let reusable =
            self.sent && self.keeps && !self.switched && self.reader.has_ended() && self.wire.is_quiet();
        if !reusable {
            if self.reader.has_ended() && self.wire.queued() == 0 {
                self.wire.finished();
            }
            return None;
        }
        self.wire.rest();
        Some(self.wire)
    }
}

/// Whether a length is said, other than none.
fn has_length(head: &RawResponse) -> bool {
    let lengths = head.headers.get_all(CONTENT_LENGTH);
    head.headers.contains_key(TRANSFER_ENCODING) || lengths.iter().any(|length| length != "0")
}

/// Whether a request of this method has no body unless it says so; Envoy says a length of 0 for others.
fn is_bodyless(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::DELETE,
        Method::TRACE,
        Method::CONNECT,
    ]
    .contains(method)
}

/// Whether an idle connection is still good: neither ended nor sent anything unasked. Leaves the waker of
/// `cx` with its socket.
pub(in crate::http) fn is_idle(wire: &mut Wire, cx: &mut Context<'_>) -> bool {
    wire.poll_fill(cx).is_pending()
}

/// A header that says the connection ends.
pub(in crate::http) const CLOSE: HeaderValue = HeaderValue::from_static("close");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fuzzing::{Request, answer};
    use hyper::header::HeaderMap;

    #[test]
    fn a_response_without_a_body_says_no_two_lengths_either() {
        for (lengths, passes) in [
            ("content-length: 5", true),
            ("transfer-encoding: chunked", true),
            ("content-length: 5x", false),
            ("content-length: 5\r\ncontent-length: 6", false),
            ("content-length: 5\r\ntransfer-encoding: chunked", false),
            ("transfer-encoding: gzip", false),
        ] {
            for (method, status) in [(Method::HEAD, "200 OK"), (Method::GET, "304 Not Modified")] {
                let request = Request::new(method, "h", "/", HeaderMap::new());
                let response = format!("HTTP/1.1 {status}\r\n{lengths}\r\n\r\n");
                let answer = answer(&[response.as_bytes()], &request);
                assert_eq!(answer.response.is_some(), passes, "{response} {}", answer.end);
            }
        }
    }
}
