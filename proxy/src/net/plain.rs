//! Plain streams: TCP and unix sockets behind one type.
//!
//! Owns the socket; dropping it closes it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::departure::{Departure, Leaving};
use super::duplex::Duplex;

/// A connected stream without TLS.
#[derive(Debug)]
pub enum PlainStream {
    /// TCP, with `TCP_NODELAY` and keepalive set.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl PlainStream {
    /// Our end's address; none on a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Duplex for PlainStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        // tokio's `poll_read` knows that a short read has emptied the socket, which saves the
        // `EAGAIN` that a bare `try_read` loop pays on every request.
        let polled = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        };
        polled.map_ok(|()| buffer.filled().len())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match (self, bytes) {
            // `send` costs the kernel less than `writev` of one slice.
            (Self::Tcp(stream), [one]) => Pin::new(stream).poll_write(cx, one),
            (Self::Tcp(stream), many) => Pin::new(stream).poll_write_vectored(cx, many),
            (Self::Unix(stream), many) => Pin::new(stream).poll_write_vectored(cx, many),
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Unix(_) => None,
        }
    }

    fn handed(&self) -> Option<u64> {
        None
    }

    fn unacknowledged(&self) -> Option<u64> {
        match self {
            Self::Tcp(stream) => super::socket::unacknowledged(stream),
            Self::Unix(_) => None,
        }
    }

    fn departure(&self, leaving: Leaving) -> Option<Departure> {
        match self {
            Self::Tcp(stream) => Departure::of(stream, leaving),
            Self::Unix(stream) => Departure::of_unix(stream, leaving),
        }
    }

    fn finished(&mut self) {
        match self {
            Self::Tcp(stream) => super::socket::close_cleanly(stream),
            // A unix socket has no reset: its peer sees an end either way.
            Self::Unix(_) => {}
        }
    }
}
