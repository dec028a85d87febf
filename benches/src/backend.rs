//! The service behind the inbound sidecar: a thread of this process, so that its CPU time is
//! nobody's figure. It lives until the process ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::wire::{self, BLOCK, BLOCK_LENGTH, REQUEST_LENGTH, Verb};

/// Room for every connection of a figure to arrive at once.
const BACKLOG: u32 = 4096;

/// How long accepting rests when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Starts it on a free loopback port.
pub(crate) fn start() -> io::Result<SocketAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _guard = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        socket.listen(BACKLOG)?
    };
    let address = listener.local_addr()?;
    thread::Builder::new()
        .name("backend".to_owned())
        .spawn(move || runtime.block_on(accept(listener)))?;
    Ok(address)
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            // A connection that breaks is seen and counted by the load at its other end.
            Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = [0; REQUEST_LENGTH];
    loop {
        stream.read_exact(&mut head).await?;
        let Some((verb, number)) = wire::parse(&head) else {
            return Ok(());
        };
        let number = match verb {
            Verb::Count | Verb::Close => number,
            Verb::Fetch => send_blocks(&mut stream, Duration::from_millis(number)).await?,
            Verb::Store => take_blocks(&mut stream).await?,
        };
        stream.write_all(&wire::response(number)).await?;
        if verb != Verb::Count {
            return stream.shutdown().await;
        }
    }
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
