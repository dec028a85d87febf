//! Bodies too long to be kept: an app that makes and counts them, and downstreams that read or send them as
//! fast, or as slowly, as a scenario says.
//!
//! The app serves both versions of HTTP on one port and knows `GET /down/<bytes>/<piece>`, whose body is written
//! in pieces of so many bytes, `POST /up` (its answer is how many bytes came), `POST /early`, which is answered before
//! its body is read, and `POST /stuck`, whose body it leaves unread until [`App::let_go`]. Every byte of a body is the low byte of its place, so that what is lost, doubled or
//! swapped shows.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::case::Version;

/// Sent at once, unless said otherwise: over HTTP/2 in one frame as far as that may be so long.
pub const PIECE: usize = 64 * 1024;

/// Of connections that are to be fast.
const LARGE_WINDOW: u32 = 1 << 20;

/// The ends bear as many small frames as windows allow: it is the proxy that is asked how many it bears.
const ANY_PIECES: usize = 1 << 30;

/// What a cut shows as.
pub type Cut = String;

/// The app.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    let_go: watch::Sender<bool>,
    sent: AtomicU64,
    received: AtomicU64,
    begun: AtomicUsize,
    cut: AtomicUsize,
    connections: AtomicUsize,
    windows: Option<u32>,
}

impl App {
    /// Starts it. `windows` are those of its HTTP/2 streams and connections; none are HTTP's own, 65,535 bytes.
    pub async fn start(windows: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            let_go: watch::Sender::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            begun: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            windows,
        });
        let of_all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                of_all.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, Arc::clone(&of_all)));
            }
        });
        Self { address, shared }
    }

    /// Reads what it has left unread, and leaves nothing unread any more.
    pub fn let_go(&self) {
        self.shared.let_go.send_replace(true);
    }

    /// Bytes that it was able to hand to its sockets or streams.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Bytes that it has read of bodies.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Requests that it got.
    pub fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Requests and answers that ended in their middle.
    pub fn cut(&self) -> usize {
        self.shared.cut.load(Ordering::Relaxed)
    }

    /// Connections that it got.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut first = [0; 3];
    let peeked = stream.peek(&mut first).await;
    if peeked.is_ok_and(|length| first[..length].starts_with(b"PRI")) {
        serve_http2(stream, shared).await;
    } else {
        let mut stream = stream;
        while serve_http1(&mut stream, &shared).await.is_some() {}
    }
}

async fn serve_http1(stream: &mut TcpStream, shared: &Shared) -> Option<()> {
    let head = head(stream).await?;
    shared.begun.fetch_add(1, Ordering::Relaxed);
    let result = answer_http1(stream, &head, shared).await;
    if result.is_err() {
        shared.cut.fetch_add(1, Ordering::Relaxed);
    }
    result.ok()
}

async fn answer_http1(stream: &mut TcpStream, head: &str, shared: &Shared) -> Result<(), Cut> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    if let Some(bytes) = path.strip_prefix("/down/") {
        let (bytes, piece) = down(bytes);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.map_err(told)?;
        return write(stream, bytes, piece, Some(&shared.sent)).await;
    }
    if path == "/early" {
        let early = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(early).await.map_err(told)?;
    }
    if path == "/stuck" {
        let gone = async {
            let ready = stream.ready(Interest::ERROR).await;
            format!("{ready:?}")
        };
        until_let_go(shared, gone).await?;
    }
    let bytes = match field(head, "content-length") {
        Some(length) => read(stream, length, Some(&shared.received)).await?,
        None => 0,
    };
    if path == "/early" {
        return stream.write_all(b"0\r\n\r\n").await.map_err(told);
    }
    let body = bytes.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.map_err(told)
}

/// What is asked for by what follows `/down/`.
fn down(rest: &str) -> (u64, usize) {
    let (bytes, piece) = rest.split_once('/').unwrap();
    (bytes.parse().unwrap(), piece.parse().unwrap())
}

async fn until_let_go(shared: &Shared, gone: impl Future<Output = Cut>) -> Result<(), Cut> {
    let mut told = shared.let_go.subscribe();
    tokio::select! {
        _ = told.wait_for(|let_go| *let_go) => Ok(()),
        cut = gone => Err(cut),
    }
}

async fn serve_http2(stream: TcpStream, shared: Arc<Shared>) {
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(ANY_PIECES);
    if let Some(bytes) = shared.windows {
        builder
            .initial_window_size(bytes)
            .initial_connection_window_size(bytes);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.begun.fetch_add(1, Ordering::Relaxed);
            if answer_http2(request, respond, &shared).await.is_err() {
                shared.cut.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

async fn answer_http2(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    shared: &Shared,
) -> Result<(), Cut> {
    let path = request.uri().path().to_owned();
    let answer = |bytes: u64| {
        Response::builder()
            .header("content-length", bytes)
            .body(())
            .unwrap()
    };
    if let Some(bytes) = path.strip_prefix("/down/") {
        let (bytes, piece) = down(bytes);
        let mut body = respond.send_response(answer(bytes), false).map_err(told)?;
        return send(&mut body, bytes, piece, true, Some(&shared.sent)).await;
    }
    if path == "/stuck" {
        let gone = async {
            let reset = poll_fn(|cx| respond.poll_reset(cx)).await;
            format!("{reset:?}")
        };
        until_let_go(shared, gone).await?;
    }
    if path == "/early" {
        let mut body = respond.send_response(Response::new(()), false).map_err(told)?;
        receive(request.into_body(), Some(&shared.received)).await?;
        return body.send_data(Bytes::new(), true).map_err(told);
    }
    let bytes = receive(request.into_body(), Some(&shared.received))
        .await?
        .to_string();
    let mut body = respond
        .send_response(answer(bytes.len() as u64), false)
        .map_err(told)?;
    body.send_data(bytes.into(), true).map_err(told)
}

/// A downstream's connection; over HTTP/1 each request has one of its own.
#[derive(Debug)]
pub enum Line {
    /// Where the proxy listens.
    H1(SocketAddr),
    /// A connection, which ends with the last handle of its streams.
    H2(SendRequest<Bytes>),
}

impl Line {
    /// Connects, with large windows.
    pub async fn open(to: SocketAddr, version: Version) -> Self {
        Self::open_with(to, version, LARGE_WINDOW).await
    }

    /// Connects; with these windows of HTTP/2.
    pub async fn open_with(to: SocketAddr, version: Version, windows: u32) -> Self {
        if version == Version::H1 {
            return Self::H1(to);
        }
        let stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.set_nodelay(true);
        let shaken = h2::client::Builder::new()
            .data_frame_budget(ANY_PIECES)
            .initial_window_size(windows)
            .initial_connection_window_size(windows.max(65_535))
            .handshake::<_, Bytes>(stream)
            .await;
        let (requests, connection) = shaken.unwrap();
        tokio::spawn(connection);
        Self::H2(requests)
    }

    /// Asks for so many bytes, of which none is read yet.
    pub async fn down(&self, bytes: u64) -> Answer {
        self.down_in_pieces(bytes, PIECE).await
    }

    /// As [`Self::down`], in pieces of so many bytes.
    pub async fn down_in_pieces(&self, bytes: u64, piece: usize) -> Answer {
        let path = format!("/down/{bytes}/{piece}");
        self.begin("GET", &path, None).await.answer().await
    }

    /// Begins to send a body of so many bytes to `path`, of which none is sent yet.
    pub async fn up(&self, path: &str, bytes: u64) -> Upload {
        self.begin("POST", path, Some(bytes)).await
    }

    /// As [`Self::up`], in pieces of so many bytes.
    pub async fn up_in_pieces(&self, path: &str, bytes: u64, piece: usize) -> Upload {
        let upload = self.begin("POST", path, Some(bytes)).await;
        Upload { piece, ..upload }
    }

    async fn begin(&self, method: &str, path: &str, body: Option<u64>) -> Upload {
        let length = body.map(|bytes| format!("content-length: {bytes}\r\n"));
        let left = body.unwrap_or_default();
        match self {
            Self::H1(to) => {
                let mut stream = TcpStream::connect(to).await.unwrap();
                let _ = stream.set_nodelay(true);
                let length = length.unwrap_or_default();
                let head = format!("{method} {path} HTTP/1.1\r\nhost: bulk\r\n{length}\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                Upload {
                    to: To::H1(stream),
                    left,
                    piece: PIECE,
                }
            }
            Self::H2(requests) => {
                let mut requests = requests.clone().ready().await.unwrap();
                let mut request = Request::new(());
                *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
                *request.uri_mut() = format!("http://bulk{path}").parse().unwrap();
                if let Some(bytes) = body {
                    request.headers_mut().insert("content-length", bytes.into());
                }
                let (answer, body) = requests.send_request(request, body.is_none()).unwrap();
                Upload {
                    to: To::H2(answer, body),
                    left,
                    piece: PIECE,
                }
            }
        }
    }
}

/// A request under way. Dropping it gives it up: over HTTP/1 by a reset.
#[derive(Debug)]
pub struct Upload {
    to: To,
    left: u64,
    piece: usize,
}

#[derive(Debug)]
enum To {
    H1(TcpStream),
    H2(ResponseFuture, SendStream<Bytes>),
    Answered(RecvStream, SendStream<Bytes>),
}

impl Upload {
    /// Sends the body.
    ///
    /// # Errors
    /// How it was cut.
    pub async fn send(&mut self) -> Result<(), Cut> {
        match &mut self.to {
            To::H1(stream) => write(stream, self.left, self.piece, None).await,
            To::H2(_, body) | To::Answered(_, body) => send(body, self.left, self.piece, true, None).await,
        }
    }

    /// Waits until the answer has begun, and leaves it unread.
    #[must_use]
    pub async fn answered(self) -> Self {
        let to = match self.to {
            To::H1(mut stream) => {
                let head = head(&mut stream).await.unwrap();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                To::H1(stream)
            }
            To::H2(answer, body) => {
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                To::Answered(answer.into_body(), body)
            }
            to @ To::Answered(..) => to,
        };
        Self { to, ..self }
    }

    /// Sends so many of its bytes and leaves the rest.
    ///
    /// # Errors
    /// How it was cut.
    pub async fn send_some(&mut self, bytes: u64) -> Result<(), Cut> {
        match &mut self.to {
            To::H1(stream) => write(stream, bytes, self.piece, None).await,
            To::H2(_, body) | To::Answered(_, body) => send(body, bytes, self.piece, false, None).await,
        }
    }

    /// Sends all that the proxy takes, until it has taken nothing for as long as this.
    pub async fn stuff(&mut self, quiet: Duration) -> u64 {
        let sent = AtomicU64::new(0);
        let (left, piece) = (self.left, self.piece);
        let sending = async {
            match &mut self.to {
                To::H1(stream) => write(stream, left, piece, Some(&sent)).await,
                To::H2(_, body) | To::Answered(_, body) => send(body, left, piece, true, Some(&sent)).await,
            }
        };
        tokio::select! {
            ended = sending => ended.unwrap(),
            () = settled(quiet, || sent.load(Ordering::Relaxed)) => {}
        }
        sent.load(Ordering::Relaxed)
    }

    /// The answer, once its head is there.
    pub async fn answer(self) -> Answer {
        match self.to {
            To::H1(mut stream) => {
                let head = head(&mut stream).await.unwrap();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                Answer {
                    left: field(&head, "content-length").unwrap_or_default(),
                    from: From::H1(stream),
                }
            }
            To::H2(answer, _) => {
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                Answer {
                    from: From::H2(answer.into_body()),
                    left: 0,
                }
            }
            To::Answered(body, _) => Answer {
                from: From::H2(body),
                left: 0,
            },
        }
    }

    /// Ends in order what cannot be ended: HTTP/1's FIN in the middle of a request, a reset over HTTP/2.
    pub async fn walk_away(self) {
        match self.to {
            To::H1(mut stream) => stream.shutdown().await.unwrap(),
            To::H2(_, mut body) | To::Answered(_, mut body) => body.send_reset(h2::Reason::CANCEL),
        }
    }

    /// Resets the connection, or the stream.
    pub fn reset(self) {
        match self.to {
            To::H1(stream) => stream.set_zero_linger().unwrap(),
            To::H2(_, mut body) | To::Answered(_, mut body) => body.send_reset(h2::Reason::CANCEL),
        }
    }
}

/// An answer under way.
#[derive(Debug)]
pub struct Answer {
    from: From,
    left: u64,
}

#[derive(Debug)]
enum From {
    H1(TcpStream),
    H2(RecvStream),
}

impl Answer {
    /// Reads it: how many bytes they were.
    ///
    /// # Errors
    /// How it was cut.
    pub async fn read(self) -> Result<u64, Cut> {
        match self.from {
            From::H1(mut stream) => read(&mut stream, self.left, None).await,
            From::H2(body) => receive(body, None).await,
        }
    }

    /// Reads it as text.
    ///
    /// # Errors
    /// How it was cut.
    pub async fn text(self) -> Result<String, Cut> {
        let mut text = Vec::new();
        match self.from {
            From::H1(stream) => {
                stream
                    .take(self.left)
                    .read_to_end(&mut text)
                    .await
                    .map_err(told)?;
            }
            From::H2(mut body) => {
                while let Some(bytes) = body.data().await {
                    text.extend(bytes.map_err(told)?);
                }
            }
        }
        String::from_utf8(text).map_err(told)
    }
}

/// Returns once `count` has stood still for as long as this.
pub async fn settled(quiet: Duration, count: impl Fn() -> u64) {
    let (mut last, mut since) = (count(), std::time::Instant::now());
    while since.elapsed() < quiet {
        tokio::time::sleep(crate::LOOK).await;
        let now = count();
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
    }
}

/// Enough of a body for every piece: each byte is its place's.
fn pattern() -> Bytes {
    (0..PIECE + 256).map(|at| (at & 0xff) as u8).collect()
}

/// Where in the pattern the bytes from `place` on are, and how many make the next piece.
fn next(place: u64, left: u64, piece: usize) -> std::ops::Range<usize> {
    let at = usize::from(place.to_le_bytes()[0]);
    at..at + piece.min(PIECE).min(usize::try_from(left).unwrap_or(PIECE))
}

/// Whether these are the bytes of a body from this place on.
fn check(bytes: &[u8], place: u64) -> Result<(), Cut> {
    let wrong = |(at, byte): (u64, &u8)| u64::from(*byte) != at & 0xff;
    match (place..).zip(bytes).find(|&pair| wrong(pair)) {
        Some((at, _)) => Err(format!("a wrong byte at {at}")),
        None => Ok(()),
    }
}

async fn write(
    stream: &mut TcpStream,
    bytes: u64,
    piece: usize,
    sent: Option<&AtomicU64>,
) -> Result<(), Cut> {
    let pattern = pattern();
    let mut place = 0;
    while place < bytes {
        let taken = stream.write(&pattern[next(place, bytes - place, piece)]).await;
        let taken = taken.map_err(told)? as u64;
        place += taken;
        if let Some(sent) = sent {
            sent.fetch_add(taken, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, bytes: u64, count: Option<&AtomicU64>) -> Result<u64, Cut> {
    let mut place = 0;
    let mut buffer = vec![0; PIECE];
    while place < bytes {
        let most = PIECE.min(usize::try_from(bytes - place).unwrap_or(PIECE));
        let length = stream.read(&mut buffer[..most]).await.map_err(told)?;
        if length == 0 {
            return Err(format!("ended after {place} bytes"));
        }
        check(&buffer[..length], place)?;
        place += length as u64;
        if let Some(count) = count {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
    Ok(place)
}

async fn send(
    body: &mut SendStream<Bytes>,
    bytes: u64,
    piece: usize,
    end: bool,
    sent: Option<&AtomicU64>,
) -> Result<(), Cut> {
    let pattern = pattern();
    let mut place = 0;
    while place < bytes {
        let mut next = next(place, bytes - place, piece);
        body.reserve_capacity(next.len());
        while body.capacity() == 0 {
            let granted = poll_fn(|cx| body.poll_capacity(cx)).await;
            granted.ok_or("the stream is over")?.map_err(told)?;
        }
        next.end = next.end.min(next.start + body.capacity());
        let taken = next.len() as u64;
        place += taken;
        body.send_data(pattern.slice(next), end && place == bytes)
            .map_err(told)?;
        if let Some(sent) = sent {
            sent.fetch_add(taken, Ordering::Relaxed);
        }
        tokio::task::consume_budget().await;
    }
    Ok(())
}

async fn receive(mut body: RecvStream, count: Option<&AtomicU64>) -> Result<u64, Cut> {
    let mut place = 0;
    while let Some(bytes) = body.data().await {
        let bytes = bytes.map_err(told)?;
        check(&bytes, place)?;
        place += bytes.len() as u64;
        if let Some(count) = count {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        let _ = body.flow_control().release_capacity(bytes.len());
    }
    Ok(place)
}

/// A head without its last empty line; none at an end or error.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A header with a number.
fn field(head: &str, name: &str) -> Option<u64> {
    let named = |line: &&str| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
    head.lines().find(named)?.split_once(':')?.1.trim().parse().ok()
}

fn told(error: impl std::fmt::Display) -> Cut {
    error.to_string()
}
