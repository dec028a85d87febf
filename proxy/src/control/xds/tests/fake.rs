//! A gRPC server of our own that does what a test tells it to, over pipes in memory.
//!
//! It shares no code with the client but the generated messages: framing is written here once more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use attache_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::control::executor::LocalExecutor;
use crate::control::xds::subscription::Response;
use crate::control::xds::target::Connector;
use crate::control::xds::{Address, Target};

/// What meets an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Welcome {
    /// A server.
    Serve,
    /// A reset.
    Refuse,
    /// Nothing, for ever.
    Hang,
    /// A connection with nobody at its end.
    Ignore,
}

/// The network: each attempt to connect ends here.
pub(crate) struct Network {
    attempts: mpsc::UnboundedSender<Attempt>,
    /// What meets the next attempts; then servers.
    welcomes: RefCell<VecDeque<Welcome>>,
    ignored: RefCell<Vec<DuplexStream>>,
    /// How many bytes of requests a server takes before it has read them.
    window: Cell<u32>,
}

struct Attempt {
    at: Instant,
    address: Address,
    wire: Option<Wire>,
}

/// The test's end of the network.
pub(crate) struct Server {
    attempts: mpsc::UnboundedReceiver<Attempt>,
    network: Rc<Network>,
    /// When each attempt so far was made, and where to.
    pub(crate) seen: Vec<(Instant, Address)>,
}

pub(crate) fn network() -> (Rc<Network>, Server) {
    let (sender, attempts) = mpsc::unbounded_channel();
    let network = Rc::new(Network {
        attempts: sender,
        welcomes: VecDeque::new().into(),
        ignored: Vec::new().into(),
        window: Cell::new(1 << 20),
    });
    let server = Server {
        attempts,
        network: Rc::clone(&network),
        seen: Vec::new(),
    };
    (network, server)
}

impl Connector for Network {
    type Io = DuplexStream;

    async fn connect(&self, _: &Target, address: &Address) -> io::Result<DuplexStream> {
        let welcome = self.welcomes.borrow_mut().pop_front();
        let welcome = welcome.unwrap_or(Welcome::Serve);
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let mut attempt = Attempt {
            at: Instant::now(),
            address: address.clone(),
            wire: None,
        };
        if welcome == Welcome::Serve {
            attempt.wire = Some(Wire::new(theirs));
        } else if welcome == Welcome::Ignore {
            self.ignored.borrow_mut().push(theirs);
        }
        drop(self.attempts.send(attempt));
        match welcome {
            Welcome::Serve | Welcome::Ignore => Ok(ours),
            Welcome::Refuse => Err(io::ErrorKind::ConnectionRefused.into()),
            Welcome::Hang => std::future::pending().await,
        }
    }
}

impl Server {
    /// What meets the next attempts.
    pub(crate) fn then(&self, welcome: Welcome, times: usize) {
        let more = std::iter::repeat_n(welcome, times);
        self.network.welcomes.borrow_mut().extend(more);
    }

    /// How many bytes of requests the next servers take before they have read them.
    pub(crate) fn window(&self, bytes: u32) {
        self.network.window.set(bytes);
    }

    /// The next call.
    pub(crate) async fn accept(&mut self) -> Call {
        loop {
            let attempt = self.attempts.recv().await.unwrap();
            self.seen.push((attempt.at, attempt.address));
            if let Some(wire) = attempt.wire {
                return serve(wire, self.network.window.get()).await;
            }
        }
    }
}

/// A pipe that can freeze: nothing comes or goes, and nobody is told.
struct Wire {
    io: DuplexStream,
    frozen: Rc<Cell<bool>>,
}

impl Wire {
    fn new(io: DuplexStream) -> Self {
        let frozen = Rc::new(Cell::new(false));
        Self { io, frozen }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.frozen.get() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.frozen.get() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The server's end of one call.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    pub(crate) path: String,
    requests: Incoming,
    buffer: Vec<u8>,
    /// Go's server sends its headers with the first message.
    answer: Option<oneshot::Sender<hyper::Response<Answer>>>,
    frames: mpsc::UnboundedSender<Frame<Bytes>>,
    queue: Option<mpsc::UnboundedReceiver<Frame<Bytes>>>,
    frozen: Rc<Cell<bool>>,
    connection: JoinHandle<()>,
}

struct Answer(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

async fn serve(wire: Wire, window: u32) -> Call {
    let frozen = Rc::clone(&wire.frozen);
    let (calls, mut called) = mpsc::unbounded_channel();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (sender, receiver) = oneshot::channel::<hyper::Response<Answer>>();
        drop(calls.send((request, sender)));
        receiver
    });
    let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
    builder.initial_stream_window_size(window);
    let task = builder.serve_connection(TokioIo::new(wire), service);
    let connection = tokio::task::spawn_local(async move { drop(task.await) });
    let (request, answer) = called.recv().await.unwrap();
    let (frames, queue) = mpsc::unbounded_channel();
    let (head, requests) = request.into_parts();
    Call {
        headers: head.headers,
        path: head.uri.path().to_owned(),
        requests,
        buffer: Vec::new(),
        answer: Some(answer),
        frames,
        queue: Some(queue),
        frozen,
        connection,
    }
}

impl Call {
    /// The next request; `None` when the client has gone.
    pub(crate) async fn request(&mut self) -> Option<DeltaDiscoveryRequest> {
        loop {
            if let Some(prefix) = self.buffer.get(..5) {
                assert_eq!(prefix[0], 0, "uncompressed");
                let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let message: Vec<u8> = self.buffer.drain(..5 + length).skip(5).collect();
                    return Some(DeltaDiscoveryRequest::decode(&*message).unwrap());
                }
            }
            let frame = self.requests.frame().await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }

    /// Until the client has gone, whatever it still says.
    pub(crate) async fn gone(&mut self) {
        while self.request().await.is_some() {}
    }

    pub(crate) fn respond(&mut self, response: &Response) {
        self.send(&encode(response));
    }

    /// Any bytes as a message.
    pub(crate) fn send(&mut self, message: &[u8]) {
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(message);
        if let (Some(answer), Some(queue)) = (self.answer.take(), self.queue.take()) {
            let response = hyper::Response::builder()
                .header("content-type", "application/grpc")
                .body(Answer(queue));
            drop(answer.send(response.unwrap()));
        }
        drop(self.frames.send(Frame::data(framed.into())));
    }

    /// Ends the call with a status: in trailers, or in the headers when nothing was sent before.
    pub(crate) fn end(mut self, code: u8, message: &str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
        trailers.insert("grpc-message", HeaderValue::from_str(message).unwrap());
        let (Some(answer), Some(queue)) = (self.answer.take(), self.queue.take()) else {
            drop(self.frames.send(Frame::trailers(trailers)));
            return;
        };
        let mut response = hyper::Response::new(Answer(queue));
        trailers.insert("content-type", HeaderValue::from_static("application/grpc"));
        *response.headers_mut() = trailers;
        drop(answer.send(response));
    }

    /// Cuts the connection.
    pub(crate) fn cut(self) {
        self.connection.abort();
    }

    /// Leaves the connection open and never says or reads anything again.
    pub(crate) fn freeze(&self) {
        self.frozen.set(true);
    }
}

fn encode(response: &Response) -> Vec<u8> {
    use attache_proto::envoy::service::discovery::v3::Resource;
    let resources = response.resources.iter().map(|resource| Resource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(prost_types::Any {
            type_url: resource.type_url.clone(),
            value: resource.body.to_vec(),
        }),
        ..Resource::default()
    });
    let message = DeltaDiscoveryResponse {
        resources: resources.collect(),
        type_url: response.type_url.clone(),
        nonce: response.nonce.clone(),
        removed_resources: response.removed.clone(),
        ..DeltaDiscoveryResponse::default()
    };
    message.encode_to_vec()
}
