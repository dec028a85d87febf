//! One pooled HTTP client to Consul's API.
//!
//! Owns the connections: idle HTTP/1.1 ones for reuse, HTTP/2 ones shared by many requests. Each is
//! closed when its task sees the peer close it or the client drops its sender. Adds the token and the
//! enterprise parameters to every request; decides nothing about when to ask again.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::Read as _;
use std::rc::Rc;
use std::time::Duration;

use attache_bootstrap::config::ConsulAgent;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use zeroize::Zeroizing;

use super::dial::Dialer;
use super::json::DecodeError;
use super::token::TokenReader;
use crate::control::executor::LocalExecutor;

/// An answer larger than this, compressed or not, is refused: it would be no service's.
const MAX_BODY: usize = 32 << 20;
/// How much of a refusal's text is told.
const MAX_EXCERPT: usize = 200;
/// Idle HTTP/1.1 connections kept; blocking queries hand theirs back for a moment between two waits.
const MAX_IDLE: usize = 32;
/// Requests on one HTTP/2 connection. Go's server allows 250 streams.
const MAX_STREAMS: usize = 200;
/// An HTTP/2 connection whose ping is not answered is given up.
const H2_PING: Duration = Duration::from_secs(20);

/// Why Consul gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsulError {
    /// No connection, or it broke.
    #[error("Consul at {place} cannot be reached: {why}")]
    Unreachable {
        /// The agent's address.
        place: String,
        /// The last reason.
        why: String,
    },
    /// Consul refused.
    #[error("Consul answered {code}: {excerpt}")]
    Status {
        /// The HTTP status.
        code: u16,
        /// The beginning of what it said, without control characters.
        excerpt: String,
    },
    /// It answered with something else than it documents.
    #[error("Consul's answer is not understood: {0}")]
    Rubbish(#[from] DecodeError),
    /// The answer has more than 32 MiB.
    #[error("Consul's answer is larger than 32 MiB")]
    TooLarge,
    /// No answer in time.
    #[error("Consul did not answer within {0:?}")]
    Timeout(Duration),
}

impl ConsulError {
    /// A short label for metrics and status.
    pub fn kind(&self) -> String {
        match self {
            Self::Unreachable { .. } => "unreachable".to_owned(),
            Self::Status { code, .. } => format!("status_{code}"),
            Self::Rubbish(_) => "rubbish".to_owned(),
            Self::TooLarge => "too_large".to_owned(),
            Self::Timeout(_) => "timeout".to_owned(),
        }
    }
}

/// What to ask.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path and query, escaped, without `ns` and `partition`.
    pub(super) target: String,
    /// What is asked instead where the connection broke and a new one is made: an agent that came
    /// back meanwhile may have another history, whose indexes would not be reached for minutes.
    pub(super) afresh: Option<Box<Self>>,
    pub(super) body: Option<Bytes>,
    pub(super) timeout: Duration,
    /// Whether the agent's own `ns` and `partition` are added.
    pub(super) scoped: bool,
}

impl Request {
    pub(super) fn get(target: impl Into<String>, timeout: Duration) -> Self {
        Self {
            method: Method::GET,
            target: target.into(),
            afresh: None,
            body: None,
            timeout,
            scoped: true,
        }
    }

    pub(super) fn post(target: impl Into<String>, body: String, timeout: Duration) -> Self {
        Self {
            method: Method::POST,
            body: Some(body.into()),
            ..Self::get(target, timeout)
        }
    }
}

/// What came back, decompressed. The body may hold a key: it is zeroed when dropped, never printed.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) index: Option<u64>,
    pub(super) hash: Option<String>,
    /// The token hides some of what was asked for.
    pub(super) filtered: bool,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The refusal that a status other than 2xx is.
    pub(super) fn refusal(&self) -> Option<ConsulError> {
        if (200..300).contains(&self.status) {
            return None;
        }
        Some(ConsulError::Status {
            code: self.status,
            excerpt: excerpt(&self.body),
        })
    }
}

/// The client; clones share the connections.
#[derive(Clone)]
pub(super) struct Client(Rc<Inner>);

struct Inner {
    dialer: Dialer,
    token: TokenReader,
    scope: String,
    idle: RefCell<Vec<http1::SendRequest<Full<Bytes>>>>,
    shared: RefCell<Vec<Shared>>,
    multiplexes: Cell<bool>,
    /// Held by the task of each HTTP/1.1 connection.
    open: Rc<()>,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    streams: Rc<()>,
}

enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Shared(Shared),
}

impl Client {
    pub(super) fn new(agent: &ConsulAgent, token: TokenReader) -> Self {
        let mut scope = String::new();
        for (key, value) in [("ns", &agent.namespace), ("partition", &agent.partition)] {
            if let Some(value) = value {
                let _ = write!(scope, "&{key}={}", escape(value));
            }
        }
        Self(Rc::new(Inner {
            dialer: Dialer::new(agent),
            token,
            scope,
            idle: RefCell::new(Vec::new()),
            shared: RefCell::new(Vec::new()),
            multiplexes: Cell::new(false),
            open: Rc::new(()),
        }))
    }

    /// Whether requests share connections (HTTP/2), as far as is known.
    pub(super) fn multiplexes(&self) -> bool {
        self.0.multiplexes.get()
    }

    /// How many HTTP/1.1 connections are open.
    pub(super) fn connections(&self) -> usize {
        Rc::strong_count(&self.0.open) - 1
    }

    /// Sees the token that the next request is sent with.
    pub(super) fn token(&self) -> TokenReader {
        self.0.token.clone()
    }

    /// Where it connects to.
    pub(super) fn place(&self) -> String {
        self.0.dialer.place()
    }

    /// Asks once; any status is an answer.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, ConsulError> {
        let token = self.0.token.current();
        let sent = tokio::time::timeout(request.timeout, self.exchange(request, &token)).await;
        let result = sent.unwrap_or(Err(ConsulError::Timeout(request.timeout)));
        let label = match &result {
            Ok(answer) if answer.refusal().is_none() => "ok".to_owned(),
            Ok(answer) => format!("status_{}", answer.status),
            Err(error) => error.kind(),
        };
        metrics::counter!("attache_consul_requests_total", "result" => label).increment(1);
        if let Ok(answer) = &result
            && answer.status == 403
            && excerpt(&answer.body).contains("ACL not found")
        {
            self.0.token.rejected(token.generation);
        }
        result
    }

    async fn exchange(&self, request: &Request, token: &super::token::Token) -> Result<Answer, ConsulError> {
        let (connection, reused) = match self.take() {
            Some(connection) => (connection, true),
            None => (self.connect().await?, false),
        };
        match self.on(connection, request, token).await {
            // The agent may have closed an idle connection as it was picked up.
            Err(ConsulError::Unreachable { .. }) if reused => {
                let request = request.afresh.as_deref().unwrap_or(request);
                let again = async {
                    let fresh = self.connect().await?;
                    self.on(fresh, request, token).await
                };
                let answered = tokio::time::timeout(request.timeout, again).await;
                answered.unwrap_or(Err(ConsulError::Timeout(request.timeout)))
            }
            result => result,
        }
    }

    fn take(&self) -> Option<Connection> {
        let mut shared = self.0.shared.borrow_mut();
        shared.retain(|one| !one.sender.is_closed());
        let free = |one: &&Shared| Rc::strong_count(&one.streams) <= MAX_STREAMS;
        if let Some(one) = shared.iter().find(free) {
            return Some(Connection::Shared(one.clone()));
        }
        let mut idle = self.0.idle.borrow_mut();
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(Connection::One(sender));
            }
        }
        None
    }

    async fn connect(&self) -> Result<Connection, ConsulError> {
        let dialed = self.0.dialer.dial().await.map_err(|e| self.unreachable(&e))?;
        self.0.multiplexes.set(dialed.h2);
        let io = TokioIo::new(dialed.stream);
        if dialed.h2 {
            let mut builder = http2::Builder::new(LocalExecutor);
            builder
                .timer(TokioTimer::new())
                .keep_alive_interval(H2_PING)
                .keep_alive_timeout(H2_PING);
            let (sender, task) = builder.handshake(io).await.map_err(|e| self.unreachable(&e))?;
            tokio::task::spawn_local(task);
            let streams = Rc::new(());
            let shared = Shared { sender, streams };
            self.0.shared.borrow_mut().push(shared.clone());
            return Ok(Connection::Shared(shared));
        }
        let (sender, task) = http1::handshake(io).await.map_err(|e| self.unreachable(&e))?;
        let open = Rc::clone(&self.0.open);
        tokio::task::spawn_local(async move {
            // What ends a connection is told to the request that was on it.
            drop(task.await);
            drop(open);
        });
        Ok(Connection::One(sender))
    }

    async fn on(
        &self,
        connection: Connection,
        request: &Request,
        token: &super::token::Token,
    ) -> Result<Answer, ConsulError> {
        match connection {
            Connection::Shared(mut shared) => {
                let message = self.message(request, token, true)?;
                let sent = shared.sender.send_request(message).await;
                self.read(sent.map_err(|e| self.unreachable(&e))?).await
            }
            Connection::One(mut sender) => {
                let message = self.message(request, token, false)?;
                let sent = sender.send_request(message).await;
                let answer = self.read(sent.map_err(|e| self.unreachable(&e))?).await?;
                let mut idle = self.0.idle.borrow_mut();
                if idle.len() < MAX_IDLE && !sender.is_closed() {
                    idle.push(sender);
                }
                Ok(answer)
            }
        }
    }

    fn message(
        &self,
        request: &Request,
        token: &super::token::Token,
        h2: bool,
    ) -> Result<hyper::Request<Full<Bytes>>, ConsulError> {
        let mut target = request.target.clone();
        if request.scoped && !self.0.scope.is_empty() {
            let joint = if target.contains('?') { "&" } else { "?" };
            target.push_str(joint);
            target.push_str(&self.0.scope[1..]);
        }
        let authority = self.0.dialer.authority();
        if h2 {
            let scheme = if self.0.dialer.is_tls() { "https" } else { "http" };
            target = format!("{scheme}://{authority}{target}");
        }
        let mut builder = hyper::Request::builder()
            .method(request.method.clone())
            .uri(target)
            .header(ACCEPT_ENCODING, "gzip");
        if !h2 {
            builder = builder.header(HOST, authority);
        }
        if request.body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        if let Some(secret) = &token.secret {
            let mut value = HeaderValue::from_str(secret.expose())
                .map_err(|_| DecodeError::new("token", "has characters that no HTTP header can carry"))?;
            value.set_sensitive(true);
            builder = builder.header("x-consul-token", value);
        }
        let body = Full::new(request.body.clone().unwrap_or_default());
        builder
            .body(body)
            .map_err(|error| DecodeError::new("request", error.to_string()).into())
    }

    async fn read(&self, response: hyper::Response<Incoming>) -> Result<Answer, ConsulError> {
        let (head, mut body) = response.into_parts();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.unreachable(&e))?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > MAX_BODY {
                    return Err(ConsulError::TooLarge);
                }
                bytes.extend_from_slice(data);
            }
        }
        let gzip = head.headers.get(CONTENT_ENCODING).is_some_and(|v| v == "gzip");
        let body = if gzip { inflate(&bytes)? } else { bytes };
        Ok(answer(head.status, &head.headers, body))
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ConsulError {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let _ = write!(why, ": {error}");
            source = error.source();
        }
        ConsulError::Unreachable {
            place: self.place(),
            why,
        }
    }
}

fn answer(status: StatusCode, headers: &HeaderMap, body: Zeroizing<Vec<u8>>) -> Answer {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Answer {
        status: status.as_u16(),
        index: text("x-consul-index").and_then(|index| index.parse().ok()),
        hash: text("x-consul-contenthash").map(str::to_owned),
        filtered: text("x-consul-results-filtered-by-acls") == Some("true"),
        body,
    }
}

fn inflate(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, ConsulError> {
    let mut body = Zeroizing::new(Vec::new());
    let limit = MAX_BODY as u64 + 1;
    let read = flate2::read::GzDecoder::new(bytes)
        .take(limit)
        .read_to_end(&mut body);
    match read {
        Ok(_) if body.len() > MAX_BODY => Err(ConsulError::TooLarge),
        Ok(_) => Ok(body),
        Err(error) => Err(DecodeError::new("body", format!("broken gzip: {error}")).into()),
    }
}

fn excerpt(body: &[u8]) -> String {
    let head = &body[..body.len().min(MAX_EXCERPT)];
    let text = String::from_utf8_lossy(head);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect::<String>().trim().to_owned()
}

/// Percent-encodes a path segment or a query value.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_bomb_is_refused_and_a_broken_stream_named() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let chunk = vec![0_u8; 1 << 20];
        for _ in 0..33 {
            encoder.write_all(&chunk).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        assert_eq!(inflate(&bomb).unwrap_err(), ConsulError::TooLarge);
        assert!(matches!(inflate(&bomb[..200]), Err(ConsulError::Rubbish(_))));
    }

    #[test]
    fn excerpts_are_short_and_plain() {
        let text = excerpt(format!("rpc error\n\x1b[31m{}", "x".repeat(500)).as_bytes());
        assert!(text.starts_with("rpc error  [31mxx") && text.len() <= MAX_EXCERPT);
    }
}
