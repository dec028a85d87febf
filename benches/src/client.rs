//! One connection of the load, of any kind: exchanges and bulk transfers on it, each answer
//! compared byte by byte.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::backend_http::{CALLER_NAMED, GRPC, METHOD};
use crate::body::Outgoing;
use crate::kind::Kind;
use crate::message::{BLOCK, BLOCK_LENGTH, LEAST, Message, grpc_prefix, is_filling};
use crate::wire::{self, Verb};

/// The host that requests name, as an application does that knows its upstream by this name.
const HOST: &str = "count-api";

/// Read at once from a TCP connection: what a response of a few kilobytes fits in.
const READ: usize = 32 * 1024;

/// So wide that the load holds up no one.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;

/// An open connection, or a share in one of HTTP/2.
#[derive(Debug)]
pub(crate) enum Client {
    /// The bytes of `wire`, and room for what is read at once.
    Tcp(TcpStream, Vec<u8>),
    /// One request after the other.
    Http1(http1::SendRequest<Outgoing>),
    /// Requests side by side.
    Http2(http2::SendRequest<Outgoing>),
    /// Unary calls side by side.
    Grpc(http2::SendRequest<Outgoing>),
}

impl Client {
    /// Connects.
    pub(crate) async fn open(target: SocketAddr, kind: Kind) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(match kind {
            Kind::Tcp => Self::Tcp(stream, Vec::new()),
            Kind::Http1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(io::Error::other)?;
                // Ends with its sender; what it fails with, the exchange fails with.
                drop(tokio::spawn(connection));
                Self::Http1(sender)
            }
            Kind::Http2 | Kind::Grpc => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(io::Error::other)?;
                drop(tokio::spawn(connection));
                match kind {
                    Kind::Grpc => Self::Grpc(sender),
                    _ => Self::Http2(sender),
                }
            }
        })
    }

    /// Another one on the same connection; `None` where requests take turns.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Tcp(..) | Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
            Self::Grpc(sender) => Some(Self::Grpc(sender.clone())),
        }
    }

    /// Asks for that many bytes and takes the answer, which repeats the number.
    pub(crate) async fn exchange(&mut self, number: u64, size: usize) -> io::Result<()> {
        match self {
            Self::Tcp(stream, buffer) => {
                stream
                    .write_all(&wire::request(Verb::Count, number, size))
                    .await?;
                expect_bytes(stream, buffer, &wire::response(number, size)).await
            }
            Self::Grpc(_) => {
                let response = self.send(call(number, size)?).await?;
                expect_body(response, &Message::grpc(number, size), true).await
            }
            Self::Http1(_) | Self::Http2(_) => {
                let response = self.send(count(number, size)?).await?;
                expect_body(response, &Message::new(b"", number, size), false).await
            }
        }
    }

    /// One exchange that must be the connection's last.
    pub(crate) async fn exchange_and_end(mut self, number: u64, size: usize) -> io::Result<()> {
        let Self::Tcp(stream, buffer) = &mut self else {
            return self.exchange(number, size).await;
        };
        stream
            .write_all(&wire::request(Verb::Close, number, size))
            .await?;
        expect_bytes(stream, buffer, &wire::response(number, size)).await?;
        expect_end(stream).await
    }

    /// Whether the backend is told by the sidecars who calls; `false` for TCP.
    pub(crate) async fn is_caller_named(&mut self) -> io::Result<bool> {
        let request = match self {
            Self::Tcp(..) => return Ok(false),
            Self::Http1(_) | Self::Http2(_) => count(0, LEAST)?,
            Self::Grpc(_) => call(0, LEAST)?,
        };
        let response = self.send(request).await?;
        Ok(response.headers().contains_key(CALLER_NAMED))
    }

    /// Sends blocks for a while; gives the bytes, all of which arrived.
    pub(crate) async fn upload(mut self, duration: Duration) -> io::Result<u64> {
        if let Self::Tcp(stream, _) = &mut self {
            return upload_tcp(stream, duration).await;
        }
        let blocks = Outgoing::Blocks(Instant::now() + duration);
        let response = self.send(request(Method::POST, "/store/", blocks)?).await?;
        let body = response.into_body().collect().await.map_err(io::Error::other)?;
        let body = body.to_bytes();
        let digits = std::str::from_utf8(&body).ok();
        let bytes = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        bytes
            .filter(|bytes| *bytes > 0 && bytes.is_multiple_of(BLOCK_LENGTH as u64))
            .ok_or_else(|| wrong("an upload that did not arrive as it was sent"))
    }

    /// Takes the blocks that the backend sends for a while; gives their bytes.
    pub(crate) async fn download(mut self, duration: Duration) -> io::Result<u64> {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if let Self::Tcp(stream, _) = &mut self {
            return download_tcp(stream, milliseconds).await;
        }
        let path = format!("/fetch/{milliseconds}");
        let response = self.send(request(Method::GET, &path, Outgoing::Empty)?).await?;
        let mut body = response.into_body();
        let mut at = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                if !is_filling(at, &data) {
                    return Err(wrong("a block that is none of the backend's"));
                }
                at += data.len();
            }
        }
        if at == 0 || at % BLOCK_LENGTH != 0 {
            return Err(wrong("a download that ended within a block"));
        }
        Ok(at as u64)
    }

    async fn send(&mut self, mut request: Request<Outgoing>) -> io::Result<Response<Incoming>> {
        let response = match self {
            Self::Tcp(..) => return Err(wrong("an HTTP request over TCP")),
            Self::Http1(sender) => {
                name_host_in_header(&mut request);
                sender.ready().await.map_err(io::Error::other)?;
                sender.send_request(request).await
            }
            Self::Http2(sender) | Self::Grpc(sender) => {
                sender.ready().await.map_err(io::Error::other)?;
                sender.send_request(request).await
            }
        };
        let response = response.map_err(io::Error::other)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(wrong(&format!("a response of status {status}"))),
        }
    }
}

fn count(number: u64, size: usize) -> io::Result<Request<Outgoing>> {
    let path = format!("/count/{number:016x}/{size}");
    request(Method::GET, &path, Outgoing::Empty)
}

fn call(number: u64, size: usize) -> io::Result<Request<Outgoing>> {
    let mut message = grpc_prefix(16).to_vec();
    message.extend_from_slice(&number.to_be_bytes());
    message.extend_from_slice(&(size as u64).to_be_bytes());
    let mut call = request(Method::POST, METHOD, Outgoing::Short(message.into()))?;
    let headers = call.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    Ok(call)
}

/// As over HTTP/2, which names the host in the URI.
fn request(method: Method, path: &str, body: Outgoing) -> io::Result<Request<Outgoing>> {
    Request::builder()
        .method(method)
        .uri(format!("http://{HOST}{path}"))
        .header("user-agent", "attache-benches")
        .header("accept", "*/*")
        .body(body)
        .map_err(io::Error::other)
}

/// As applications do over HTTP/1.
fn name_host_in_header(request: &mut Request<Outgoing>) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    let host = HeaderValue::from_static(HOST);
    request.headers_mut().insert(http::header::HOST, host);
}

async fn expect_body(response: Response<Incoming>, expected: &Message, is_call: bool) -> io::Result<()> {
    let mut body = response.into_body();
    let mut at = 0;
    let mut succeeded = !is_call;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        if let Some(data) = frame.data_ref() {
            if !expected.matches(at, data) {
                return Err(wrong("a response that is not the one to the request"));
            }
            at += data.len();
        } else if let Some(trailers) = frame.trailers_ref() {
            succeeded |= trailers.get("grpc-status").is_some_and(|it| it == "0");
        }
    }
    if at != expected.length() {
        return Err(wrong("a response that ends too early"));
    }
    if !succeeded {
        return Err(wrong("a call without grpc-status 0"));
    }
    Ok(())
}

async fn expect_bytes(stream: &mut TcpStream, buffer: &mut Vec<u8>, expected: &Message) -> io::Result<()> {
    let most = READ.min(expected.length());
    if buffer.len() < most {
        buffer.resize(most, 0);
    }
    let mut at = 0;
    while at < expected.length() {
        let room = buffer.len().min(expected.length() - at);
        let read = stream.read(&mut buffer[..room]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !expected.matches(at, &buffer[..read]) {
            return Err(wrong("a response that is not the one to the request"));
        }
        at += read;
    }
    Ok(())
}

async fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(wrong("bytes after the end")),
    }
}

async fn upload_tcp(stream: &mut TcpStream, duration: Duration) -> io::Result<u64> {
    let start = Instant::now();
    stream.write_all(&wire::request(Verb::Store, 0, LEAST)).await?;
    let mut bytes = 0;
    while start.elapsed() < duration {
        stream.write_all(&BLOCK).await?;
        bytes += BLOCK_LENGTH as u64;
    }
    stream.shutdown().await?;
    expect_bytes(stream, &mut Vec::new(), &wire::response(bytes, LEAST)).await?;
    expect_end(stream).await?;
    Ok(bytes)
}

async fn download_tcp(stream: &mut TcpStream, milliseconds: u64) -> io::Result<u64> {
    let mut buffer = vec![0; BLOCK_LENGTH];
    let mut bytes = 0;
    stream
        .write_all(&wire::request(Verb::Fetch, milliseconds, LEAST))
        .await?;
    loop {
        let filled = wire::fill(stream, &mut buffer).await?;
        if filled == BLOCK_LENGTH && *buffer == **BLOCK {
            bytes += BLOCK_LENGTH as u64;
            continue;
        }
        let expected = wire::response(bytes, LEAST);
        if filled == expected.length() && expected.matches(0, &buffer[..filled]) {
            return Ok(bytes);
        }
        return Err(wrong("a block that is none of the backend's"));
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
