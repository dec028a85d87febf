//! The service of the HTTP kinds: what `backend` does with a connection of HTTP/1.1 or HTTP/2.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::body::Outgoing;
use crate::message::{LEAST, Message, grpc_prefix, is_filling};

/// The one gRPC method there is.
pub(crate) const METHOD: &str = "/count.Count/Get";

/// gRPC's media type.
pub(crate) const GRPC: &str = "application/grpc";

/// Tells the load whether the inbound sidecar named the caller, so that a peer which was to do
/// that and did not is found out.
pub(crate) const CALLER_NAMED: HeaderName = HeaderName::from_static("x-caller-named");

/// So wide that the backend holds up no one.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
const STREAMS: u32 = 10_000;

/// A connection of HTTP/1.1.
pub(crate) async fn serve_http1(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
    served.map_err(io::Error::other)
}

/// A connection of HTTP/2 without an upgrade, gRPC on it or not.
pub(crate) async fn serve_http2(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let served = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
    served.map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Outgoing>, Infallible> {
    let named = request
        .headers()
        .get("x-forwarded-client-cert")
        .is_some_and(|value| value.as_bytes().windows(13).any(|it| it == b"URI=spiffe://"));
    let mut response = find_answer(request).await.unwrap_or_else(|| {
        let mut response = Response::new(Outgoing::Empty);
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    });
    if named {
        let yes = HeaderValue::from_static("yes");
        response.headers_mut().insert(CALLER_NAMED, yes);
    }
    Ok(response)
}

async fn find_answer(request: Request<Incoming>) -> Option<Response<Outgoing>> {
    let path = request.uri().path().to_owned();
    if path == METHOD {
        return call(request).await;
    }
    let (verb, rest) = path.strip_prefix('/')?.split_once('/')?;
    let body = match verb {
        "count" => {
            let (number, size) = rest.split_once('/')?;
            let number = u64::from_str_radix(number, 16).ok()?;
            Outgoing::Message(Message::new(b"", number, size.parse().ok()?), 0)
        }
        "fetch" => Outgoing::Blocks(Instant::now() + Duration::from_millis(rest.parse().ok()?)),
        "store" => Outgoing::Message(Message::new(b"", take_blocks(request).await, LEAST), 0),
        _ => return None,
    };
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Some(response)
}

/// A call's message is the number and the size, eight bytes each.
async fn call(request: Request<Incoming>) -> Option<Response<Outgoing>> {
    if request.headers().get(CONTENT_TYPE)? != GRPC {
        return None;
    }
    let body = request.into_body().collect().await.ok()?.to_bytes();
    let message = body.strip_prefix(&grpc_prefix(16))?;
    let (number, size) = message.split_at_checked(8)?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    let size = usize::try_from(u64::from_be_bytes(size.try_into().ok()?)).ok()?;
    let mut response = Response::new(Outgoing::Reply(Message::grpc(number, size), 0));
    let grpc = HeaderValue::from_static(GRPC);
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Some(response)
}

/// Counts the bytes of the body; a count that no sender has means wrong ones, or too few.
async fn take_blocks(request: Request<Incoming>) -> u64 {
    let mut body = request.into_body();
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) if is_filling(at, &data) => at += data.len(),
            Ok(Err(_)) => {}
            _ => return u64::MAX,
        }
    }
    at as u64
}
