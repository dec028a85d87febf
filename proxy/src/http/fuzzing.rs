//! What the fuzz targets reach of this folder. Built for them and for tests alone: no part of the crate otherwise.
//!
//! Does with messages what a connection does, over pieces of bytes instead of a socket, and decides nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};

use super::body::BodyError;
use super::forwarding::{self, Hop, Node};
use super::h1::client::Exchange;
use super::h1::framing::Reader;
use super::h1::head::{HeadLimits, RawRequest};
use super::h1::server::Server;
use super::header_mutation::{Side, join};
use super::message::{RequestHead, RequestView, ResponseHead, Version};
use super::path::{self, PathOutcome};
use super::redirect::{self, Requested};
use super::request;
use super::wire::Wire;
use crate::model::Metadata;
use crate::model::http::{HttpConnectionManager, Normalization};
use crate::model::matcher;
use crate::model::route::{Redirect, Route, RouteAction, RouteMatch};
use crate::net::Duplex;
use crate::net::departure::{Departure, Leaving};
use crate::net::relay::Counts;

/// What a request's head may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes, first line included.
    pub bytes: usize,
    /// Header fields.
    pub fields: usize,
}

/// How long a message's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All until the peer ends.
    Rest,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    head: RequestHead,
    framing: Framing,
    /// As much of its body as came.
    pub body: Vec<u8>,
    /// All of it came.
    pub complete: bool,
}

/// What a downstream said on one connection.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Those that were accepted. The last one's body may be cut.
    pub accepted: Vec<Request>,
    /// Why there are no more.
    pub end: String,
    /// The most bytes that were kept unread while the rest of a head was waited for.
    pub kept: usize,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// As much of its body as came.
    pub body: Vec<u8>,
}

/// What an upstream said to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The statuses of informational responses, those that are kept.
    pub interim: Vec<u16>,
    /// The final response.
    pub response: Option<Response>,
    /// What came after it, or why there is none.
    pub end: String,
    /// Whether another request may follow on the connection.
    pub reusable: bool,
}

/// What becomes of a request's target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalized {
    /// The request goes on with this one.
    Target(String),
    /// It is refused.
    Rejected,
    /// It is to be asked with this one.
    Redirected(String),
}

/// A peer that sends these pieces, one a poll, then ends. What it is sent is kept.
struct Pieces {
    coming: VecDeque<Vec<u8>>,
    /// The next poll gives one.
    due: bool,
    sent: Rc<RefCell<Vec<u8>>>,
}

impl Duplex for Pieces {
    fn poll_receive(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.due = !self.due;
        if !self.due {
            return Poll::Pending;
        }
        let Some(piece) = self.coming.front_mut() else {
            return Poll::Ready(Ok(0));
        };
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        piece.drain(..length);
        if piece.is_empty() {
            self.coming.pop_front();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_send(&mut self, _: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut sent = self.sent.borrow_mut();
        let before = sent.len();
        for slice in bytes {
            sent.extend_from_slice(slice);
        }
        Poll::Ready(Ok(sent.len() - before))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn handed(&self) -> Option<u64> {
        None
    }

    fn unacknowledged(&self) -> Option<u64> {
        None
    }

    fn departure(&self, _: Leaving) -> Option<Departure> {
        None
    }

    fn finished(&mut self) {}
}

/// A connection to a peer that sends `pieces`, and what it is sent.
fn wire(pieces: &[&[u8]]) -> (Wire, Rc<RefCell<Vec<u8>>>) {
    let sent = Rc::default();
    let peer = Pieces {
        // An empty one would be the end.
        coming: pieces
            .iter()
            .filter(|piece| !piece.is_empty())
            .map(|piece| piece.to_vec())
            .collect(),
        due: false,
        sent: Rc::clone(&sent),
    };
    (Wire::new(Box::new(peer), Rc::new(Counts::default())), sent)
}

/// Polls until ready; `between` is told of each time that it was not.
fn wait<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>, mut between: impl FnMut()) -> T {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => between(),
        }
    }
}

/// Reads a body to its end. Says how that came too soon.
fn read_body(
    body: &mut Vec<u8>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>>,
) -> Result<(), String> {
    while let Some(read) = wait(&mut poll, || {}) {
        body.extend_from_slice(&read.map_err(|error| format!("{error:?}"))?);
    }
    Ok(())
}

/// Reads the requests that come in `pieces`, as a connection does: until one is refused, or asks for another
/// protocol, one of `upgrades`.
pub fn requests(pieces: &[&[u8]], limits: Limits, upgrades: &[Arc<str>]) -> Requests {
    let (wire, _) = wire(pieces);
    let server = Server::new(wire);
    let (mut accepted, mut kept) = (Vec::new(), 0);
    let end = loop {
        if let Err(end) = next(&server, limits, upgrades, &mut accepted, &mut kept) {
            break end;
        }
    };
    Requests { accepted, end, kept }
}

/// Reads one more request.
fn next(
    server: &Server,
    limits: Limits,
    upgrades: &[Arc<str>],
    accepted: &mut Vec<Request>,
    kept: &mut usize,
) -> Result<(), String> {
    let between = || *kept = (*kept).max(server.unread());
    let limits = HeadLimits {
        bytes: limits.bytes,
        fields: limits.fields,
    };
    let raw: RawRequest =
        wait(|cx| server.poll_head(cx, limits), between).map_err(|error| format!("{error:?}"))?;
    let (head, reader) = request::from_http1(raw, false, upgrades)
        .map_err(|reply| format!("{} {} {:?}", reply.status, reply.details, reply.why))?;
    let framing = match &reader {
        Reader::Ended => Framing::None,
        Reader::Length(length) => Framing::Length(*length),
        Reader::Chunked(_) => Framing::Chunked,
        Reader::Rest => Framing::Rest,
    };
    server.begin_body(reader);
    let mut body = Vec::new();
    let read = read_body(&mut body, |cx| server.poll_body(cx));
    accepted.push(Request {
        head,
        framing,
        body,
        complete: read.is_ok(),
    });
    match read {
        Ok(()) if framing == Framing::Rest => Err("switched".to_owned()),
        read => read,
    }
}

impl Request {
    /// One that nobody sent, without a body; its method is one of HTTP's.
    pub fn new(method: Method, authority: &str, target: &str, headers: HeaderMap) -> Self {
        let head = RequestHead {
            authority: authority.to_owned(),
            target: target.to_owned(),
            version: Version::Http11,
            headers,
            ..RequestHead::nothing(method)
        };
        Self {
            head,
            framing: Framing::None,
            body: Vec::new(),
            complete: true,
        }
    }

    /// `GET` and the like.
    pub fn method(&self) -> &str {
        self.head.method.as_str()
    }

    /// Its host, with a port where it has one.
    pub fn authority(&self) -> &str {
        &self.head.authority
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.head.target
    }

    /// Its fields but for the host.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The protocol that it would go on with.
    pub fn upgrade(&self) -> Option<&str> {
        self.head.upgrade.as_deref()
    }

    /// How long its body is.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// As rules and routes see it.
    pub fn view<'a>(&'a self, metadata: &'a Metadata) -> impl matcher::Request + 'a {
        RequestView {
            head: &self.head,
            metadata,
        }
    }

    /// Makes of it what a connection manager looks at; none if it answers the request at once.
    pub fn received(&self, manager: &HttpConnectionManager) -> Option<Self> {
        let mut request = self.clone();
        let head = &mut request.head;
        path::underscores(&mut head.headers, manager.normalization.headers_with_underscores).ok()?;
        head.authority = path::normalize_host(&head.authority, &manager.normalization, None).into_owned();
        if !head.target.starts_with('/') {
            return None;
        }
        match path::normalize(&head.target, &manager.normalization) {
            PathOutcome::Unchanged => {}
            PathOutcome::Changed(target) => head.target = target,
            PathOutcome::Reject | PathOutcome::Redirect(_) => return None,
        }
        join(&mut head.headers, Side::Request);
        let hop = Hop {
            remote: None,
            local: None,
            encrypted: false,
            machine: Ipv4Addr::LOCALHOST.into(),
            node: Node::default(),
        };
        let upgrade = head.upgrade.is_some();
        forwarding::received_request(&mut head.headers, manager, &hop, upgrade);
        Some(request)
    }

    /// As an upstream of HTTP/1 is sent it, its body in two pieces.
    pub fn sent(&self) -> Vec<u8> {
        let (wire, sent) = wire(&[]);
        let bodyless = self.framing == Framing::None;
        let mut exchange = Exchange::begin(wire, &self.head, bodyless);
        if !bodyless {
            let (first, second) = self.body.split_at(self.body.len() / 2);
            exchange.write(Bytes::copy_from_slice(first));
            exchange.write(Bytes::copy_from_slice(second));
            exchange.end();
        }
        // Its peer takes everything.
        let _ = wait(|cx| exchange.poll_flush(cx), || {});
        sent.take()
    }

    /// Rewrites its path as its route says; false if it is answered instead.
    pub fn rewrite(&mut self, route: &Route, action: &RouteAction) -> bool {
        super::route::rewrite_path(&mut self.head, route, action).is_ok()
    }

    /// Where a redirect sends it.
    pub fn location(&self, redirect: &Redirect, matches: &RouteMatch) -> String {
        let requested = Requested {
            scheme: self.head.scheme,
            authority: &self.head.authority,
            target: &self.head.target,
        };
        redirect::location(redirect, matches, &requested)
    }
}

/// Reads the answer that comes in `pieces` to `request`, as a connection to an upstream does.
pub fn answer(pieces: &[&[u8]], request: &Request) -> Answer {
    let (wire, _) = wire(pieces);
    let mut exchange = Exchange::begin(wire, &request.head, true);
    let mut answer = Answer {
        interim: Vec::new(),
        response: None,
        end: String::new(),
        reusable: false,
    };
    // What is not sent yet goes out while the answer is waited for.
    let _ = wait(|cx| exchange.poll_flush(cx), || {});
    let head = wait(|cx| exchange.poll_head(cx), || {});
    let interim = exchange.take_interim().into_iter();
    answer.interim = interim.map(|head| head.status.as_u16()).collect();
    let head = match head {
        Ok(head) => head,
        Err(error) => {
            answer.end = error.to_string();
            return answer;
        }
    };
    let mut body = Vec::new();
    let read = read_body(&mut body, |cx| exchange.poll_body(cx));
    answer.response = Some(Response {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
    });
    match read {
        Ok(()) => answer.reusable = exchange.into_connection().is_some(),
        Err(end) => answer.end = end,
    }
    answer
}

impl Response {
    /// Makes of it what a connection manager sends.
    pub fn received(&self, manager: &HttpConnectionManager) -> Self {
        let mut response = self.clone();
        join(&mut response.headers, Side::Response);
        let switches = self.status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
        forwarding::sent_response(&mut response.headers, manager, None, switches);
        response
    }

    /// As a downstream of HTTP/1.1 that asked by `method` is sent it, its body in two pieces; and whether its
    /// end is the connection's.
    pub fn sent(&self, method: &Method) -> (Vec<u8>, bool) {
        let (wire, sent) = wire(&[]);
        let server = Server::new(wire);
        let head = ResponseHead {
            status: StatusCode::from_u16(self.status).unwrap_or_default(),
            headers: self.headers.clone(),
        };
        let until_end = server.write_head((method, Version::Http11), head, self.body.is_empty());
        let (first, second) = self.body.split_at(self.body.len() / 2);
        server.write_data(Bytes::copy_from_slice(first));
        server.write_data(Bytes::copy_from_slice(second));
        server.write_end();
        // Its peer takes everything.
        let _ = wait(|cx| server.poll_flush(cx), || {});
        (sent.take(), until_end)
    }
}

/// What becomes of a request's target under `options`.
pub fn normalize(target: &str, options: &Normalization) -> Normalized {
    match path::normalize(target, options) {
        PathOutcome::Unchanged => Normalized::Target(target.to_owned()),
        PathOutcome::Changed(target) => Normalized::Target(target),
        PathOutcome::Reject => Normalized::Rejected,
        PathOutcome::Redirect(target) => Normalized::Redirected(target),
    }
}
