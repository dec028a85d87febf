//! The stand-in's HTTP/1.1 server: accepts, limits and counts connections, and turns exchanges into
//! bytes. Stopping it closes the port and every connection.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answer::{Answer, Ask};
use super::blocking::{self, Shared};

/// Consul leaves smaller bodies uncompressed: they fit one packet anyway.
const GZIP_FROM_BYTES: usize = 1_400;

/// A request body above this is refused; the largest registration is a few kilobytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A port that was just closed may be held for a moment by connections that are still ending.
const REBIND_TRIES: u32 = 50;
const REBIND_PAUSE: Duration = Duration::from_millis(20);

/// Listens, patiently when the same port was ours a moment ago.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < REBIND_TRIES => {
                tries += 1;
                tokio::time::sleep(REBIND_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Serves until the task is aborted; the connections go with it.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Shared,
    open: Arc<AtomicUsize>,
    max_connections: Option<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Out of descriptors: the connections that end will free some.
                    tokio::time::sleep(REBIND_PAUSE).await;
                    continue;
                };
                if max_connections.is_some_and(|max| open.load(Ordering::Relaxed) >= max) {
                    connections.spawn(refuse(stream));
                } else {
                    connections.spawn(serve_connection(stream, shared.clone(), Open::new(&open)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Keeps the count of open connections right, however one ends.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Consul answers before it has read anything, and closes.
async fn refuse(mut stream: TcpStream) {
    let body = "Your IP is issuing too many concurrent connections, please rate limit your calls\n";
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len(),
    );
    // A peer that is gone already needs no answer.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn serve_connection(stream: TcpStream, shared: Shared, _open: Open) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(exchange(&shared, request).await) }
    });
    // What breaks a connection is the peer's business; the next one starts afresh.
    let _ = hyper::server::conn::http1::Builder::new()
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn exchange(shared: &Shared, request: Request<Incoming>) -> Response<Payload> {
    let (parts, body) = request.into_parts();
    let body = match http_body_util::Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return respond(shared, &Answer::text(400, &error.to_string()), false),
    };
    let ask = Ask::new(parts.method, &parts.uri, &parts.headers, body);
    shared.with(|state| *state.requests.entry(ask.path.clone()).or_default() += 1);
    let answer = blocking::answer(shared, &ask).await;
    if let Some(delay) = answer.delay {
        tokio::time::sleep(delay).await;
    }
    respond(shared, &answer, ask.gzip)
}

fn respond(shared: &Shared, answer: &Answer, gzip: bool) -> Response<Payload> {
    let acl_default = shared.with(|state| state.acl_default_policy);
    let packed = (gzip && answer.body.len() >= GZIP_FROM_BYTES)
        .then(|| compress(&answer.body).ok())
        .flatten();
    let mut response = Response::builder()
        .status(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for (name, value) in answer.headers(acl_default) {
        response = response.header(name, value);
    }
    if packed.is_some() {
        response = response.header("content-encoding", "gzip");
    }
    let payload = Payload::new(packed.unwrap_or_else(|| answer.body.clone()), answer.cut);
    response.body(payload).unwrap_or_else(|_| {
        let mut failed = Response::new(Payload::new(Vec::new(), false));
        *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        failed
    })
}

fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// A body that is sent whole, or announced whole and cut in the middle.
#[derive(Debug)]
struct Payload {
    bytes: Option<Bytes>,
    announced: u64,
    cut: bool,
}

impl Payload {
    fn new(body: Vec<u8>, cut: bool) -> Self {
        let announced = body.len() as u64;
        let mut bytes = Bytes::from(body);
        if cut {
            bytes.truncate(bytes.len() / 2);
        }
        Self {
            bytes: Some(bytes),
            announced,
            cut,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.bytes.take() {
            Some(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            _ if self.cut => Poll::Ready(Some(Err(io::Error::other("cut by a fault")))),
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.announced == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}
