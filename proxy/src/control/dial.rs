//! Opening one connection to a control plane: TCP or unix socket, with or without TLS.
//!
//! Owns how long each step may take. Which address, and which certificates are believed, is the
//! source's to say; the connection belongs to whoever dialled.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// One address that does not answer must not use up the time of the others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The first address of a host that takes a connection. A silent peer is found by keepalive in half a
/// minute.
pub(super) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = None;
    for address in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A question to Consul may be silent for minutes: only keepalive tells that the host is gone.
                let keepalive = socket2::TcpKeepalive::new()
                    .with_time(Duration::from_secs(15))
                    .with_interval(Duration::from_secs(5))
                    .with_retries(3);
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
}

/// A socket that a file leads to.
pub(super) async fn unix(path: &Path) -> io::Result<Stream> {
    Ok(Stream::Unix(UnixStream::connect(path).await?))
}

/// Shakes hands over a connection; says also whether HTTP/2 was agreed on.
pub(super) async fn tls(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    plain: Stream,
) -> io::Result<(Stream, bool)> {
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, plain);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, handshake).await??;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Stream::Tls(Box::new(stream)), h2))
}

/// Whether a handshake failed because the other end does not speak TLS.
pub(super) fn is_plain_text(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType
        ))
    )
}

/// The bytes of one connection, whatever carries them.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<Stream>>),
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
