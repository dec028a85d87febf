//! The services behind the inbound sidecar, one for each kind: a thread of this process, so that
//! its CPU time is nobody's figure. It lives until the process ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use crate::backend_http;
use crate::kind::Kind;
use crate::message::{BLOCK, BLOCK_LENGTH, Message};
use crate::wire::{self, REQUEST_LENGTH, Verb};

/// Room for every connection of a figure to arrive at once.
const BACKLOG: u32 = 4096;

/// How long accepting rests when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Where each kind is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    tcp: SocketAddr,
    http1: SocketAddr,
    http2: SocketAddr,
}

impl Backend {
    /// Starts it on free loopback ports.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let [tcp, http1, http2] = [listen(&runtime)?, listen(&runtime)?, listen(&runtime)?];
        let backend = Self {
            tcp: tcp.local_addr()?,
            http1: http1.local_addr()?,
            http2: http2.local_addr()?,
        };
        let serve = async move {
            tokio::join!(
                accept(tcp, serve_tcp),
                accept(http1, backend_http::serve_http1),
                accept(http2, backend_http::serve_http2),
            );
        };
        thread::Builder::new()
            .name("backend".to_owned())
            .spawn(move || runtime.block_on(serve))?;
        Ok(backend)
    }

    /// Where this kind is served; gRPC over HTTP/2.
    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        match kind {
            Kind::Tcp => self.tcp,
            Kind::Http1 => self.http1,
            Kind::Http2 | Kind::Grpc => self.http2,
        }
    }
}

fn listen(runtime: &Runtime) -> io::Result<TcpListener> {
    let _guard = runtime.enter();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(BACKLOG)
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            // A connection that breaks is seen and counted by the load at its other end.
            Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = [0; REQUEST_LENGTH];
    loop {
        stream.read_exact(&mut head).await?;
        let Some((verb, number, size)) = wire::parse(&head) else {
            return Ok(());
        };
        let number = match verb {
            Verb::Count | Verb::Close => number,
            Verb::Fetch => send_blocks(&mut stream, Duration::from_millis(number)).await?,
            Verb::Store => take_blocks(&mut stream).await?,
        };
        send(&mut stream, &wire::response(number, size)).await?;
        if verb != Verb::Count {
            return stream.shutdown().await;
        }
    }
}

async fn send(stream: &mut TcpStream, message: &Message) -> io::Result<()> {
    let mut at = 0;
    while let Some(piece) = message.piece(at) {
        stream.write_all(&piece).await?;
        at += piece.len();
    }
    Ok(())
}

async fn send_blocks(stream: &mut TcpStream, duration: Duration) -> io::Result<u64> {
    let start = Instant::now();
    let mut blocks = 0;
    while start.elapsed() < duration {
        stream.write_all(&BLOCK).await?;
        blocks += 1;
    }
    Ok(blocks * BLOCK_LENGTH as u64)
}

/// Counts the bytes up to the end of the stream; a count that no sender has means wrong ones.
async fn take_blocks(stream: &mut TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; BLOCK_LENGTH];
    let mut blocks = 0;
    loop {
        match wire::fill(stream, &mut buffer).await? {
            0 => return Ok(blocks * BLOCK_LENGTH as u64),
            BLOCK_LENGTH if *buffer == **BLOCK => blocks += 1,
            _ => return Ok(u64::MAX),
        }
    }
}
