//! The upstream's end of one HTTP/2 stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, SendStream};
use hyper::header::{CONNECTION, HeaderMap, UPGRADE};
use hyper::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use hyper::{Method, Request};

use super::Received;
use crate::http::body::{BodyError, Chunk};
use crate::http::message::{RequestHead, ResponseHead};

/// So many informational responses are kept at once; further ones are left out.
const MAX_INTERIM: usize = 16;

/// A request under way, and its response.
#[derive(Debug)]
pub(in crate::http) struct Exchange {
    body: SendStream<Bytes>,
    response: ResponseFuture,
    received: Option<Received>,
    sent: bool,
    answered: bool,
    /// Informational responses that nobody took yet.
    interim: Vec<ResponseHead>,
}

/// Why a request cannot be sent over HTTP/2.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum BeginError {
    /// Its head has something that HTTP/2 cannot say.
    #[error("the request cannot be said in HTTP/2: {0}")]
    Head(hyper::http::Error),
    /// The connection takes none any more.
    #[error("{0}")]
    Connection(h2::Error),
}

impl Exchange {
    /// Begins a stream; `bodyless` ends the request there.
    ///
    /// # Errors
    /// [`BeginError`]; nothing was sent.
    pub(in crate::http) fn begin(
        connection: &mut SendRequest<Bytes>,
        request: &RequestHead,
        bodyless: bool,
    ) -> Result<Self, BeginError> {
        let request = head(request).map_err(BeginError::Head)?;
        let (response, body) = connection
            .send_request(request, bodyless)
            .map_err(BeginError::Connection)?;
        Ok(Self {
            body,
            response,
            received: None,
            sent: bodyless,
            answered: false,
            interim: Vec::new(),
        })
    }

    /// Ready once the upstream takes some of so many bytes.
    pub(in crate::http) fn poll_ready(
        &mut self,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        super::poll_capacity(&mut self.body, bytes, cx)
    }

    /// Sends a piece of the request's body.
    pub(in crate::http) fn write(&mut self, bytes: Bytes) -> Result<(), h2::Error> {
        self.body.send_data(bytes, false)
    }

    /// Ends the request, with trailers where there are some.
    pub(in crate::http) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), h2::Error> {
        if std::mem::replace(&mut self.sent, true) {
            return Ok(());
        }
        match trailers {
            Some(trailers) => self.body.send_trailers(trailers),
            None => self.body.send_data(Bytes::new(), true),
        }
    }

    /// Whether the upstream has answered.
    pub(in crate::http) fn is_answered(&self) -> bool {
        self.answered
    }

    /// The informational responses that [`Self::poll_head`] came across.
    pub(in crate::http) fn take_interim(&mut self) -> Vec<ResponseHead> {
        std::mem::take(&mut self.interim)
    }

    /// The response's head. Informational ones are kept for [`Self::take_interim`].
    pub(in crate::http) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, h2::Error>> {
        while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            let (parts, ()) = interim.into_parts();
            if self.interim.len() < MAX_INTERIM {
                self.interim.push(ResponseHead {
                    status: parts.status,
                    headers: parts.headers,
                });
            }
        }
        let (parts, body) = ready!(Pin::new(&mut self.response).poll(cx))?.into_parts();
        self.answered = true;
        self.received = Some(Received::new(body));
        Poll::Ready(Ok(ResponseHead {
            status: parts.status,
            headers: parts.headers,
        }))
    }

    /// Whether nothing more of the response comes.
    pub(in crate::http) fn has_ended(&self) -> bool {
        self.received.as_ref().is_some_and(Received::has_ended)
    }

    /// The next piece of the response.
    pub(in crate::http) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Chunk, BodyError>>> {
        match &mut self.received {
            Some(received) => received.poll(cx),
            None => Poll::Ready(None),
        }
    }

    /// Fetches what was received of the response while nobody takes it.
    pub(in crate::http) fn fetch(&mut self, cx: &mut Context<'_>) {
        if let Some(received) = &mut self.received {
            received.fetch(cx);
        }
    }

    /// Gives the stream up.
    pub(in crate::http) fn reset(&mut self, reason: Reason) {
        self.body.send_reset(reason);
    }
}

/// The path and query; what an HTTP/1 downstream may say and the HTTP/2 library may not is percent-encoded, which
/// is the same resource (RFC 3986 section 2.4).
fn path_and_query(target: &str) -> Result<PathAndQuery, hyper::http::Error> {
    if let Ok(same) = target.parse() {
        return Ok(same);
    }
    let mut encoded = String::with_capacity(target.len() + 8);
    for &byte in target.as_bytes() {
        match byte {
            b'!'..=b'~' if !br#"<>`#"#.contains(&byte) => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    Ok(encoded.parse()?)
}

fn head(request: &RequestHead) -> Result<Request<()>, hyper::http::Error> {
    let mut head = Request::new(());
    *head.method_mut() = request.method.clone();
    head.headers_mut().clone_from(&request.headers);
    for hop in [CONNECTION, UPGRADE] {
        head.headers_mut().remove(hop);
    }
    if let Some(protocol) = &request.upgrade {
        *head.method_mut() = Method::CONNECT;
        head.extensions_mut().insert(Protocol::from(&**protocol));
    }
    let mut uri = hyper::http::uri::Parts::default();
    uri.scheme = Some(if request.scheme == "https" {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    uri.authority = Some(request.authority.parse::<Authority>()?);
    uri.path_and_query = Some(path_and_query(&request.target)?);
    *head.uri_mut() = Uri::from_parts(uri)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_the_library_does_not_take_is_encoded() {
        for (target, sent) in [
            ("/a?b", "/a?b"),
            ("/a%3cb", "/a%3cb"),
            ("/a<b>`?c<d", "/a%3Cb%3E%60?c%3Cd"),
            ("*", "*"),
        ] {
            assert_eq!(path_and_query(target).unwrap().as_str(), sent);
        }
    }
}
