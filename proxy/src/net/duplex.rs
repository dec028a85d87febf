//! The verbs that the relay asks of a stream, plain or TLS: receive, send, flush, finish, finished.
//!
//! A stream is dropped as a reset unless [`Duplex::finished`] was said: the kernel does it, so even a
//! process that is killed cannot make a cut transfer look complete.

use std::io;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use super::departure::{Departure, Leaving};

/// A stream of bytes both ways. Dropping it resets the connection (RST), unless it was
/// [finished](Duplex::finished).
pub trait Duplex {
    /// Receives into a lent buffer. `Ok(0)` is the peer's clean end (FIN; close_notify over TLS);
    /// a cut is an error: [`io::ErrorKind::ConnectionReset`], or `UnexpectedEof` where TLS ended
    /// without close_notify.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Takes bytes to send, gathered from several slices; may take fewer. A TLS stream that has
    /// taken bytes may still hold their records: [`Self::poll_flush`].
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Ready when nothing taken waits in user space; no more is read for this stream before.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Half-closes: what was taken, then the clean end. Receiving goes on.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Watches for the peer's leaving while nobody receives. `None` where that cannot be told.
    fn departure(&self, leaving: Leaving) -> Option<Departure>;

    /// The protocol that was agreed on in a handshake (ALPN, RFC 7301).
    fn alpn(&self) -> Option<&[u8]> {
        None
    }

    /// The socket, where its bytes are those of the stream: they may be moved past [`Self::poll_receive`] and
    /// [`Self::poll_send`]. None over TLS, and for what splice(2) is not measured for.
    fn plain_tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// Bytes that the kernel was given so far, where they are others than those taken (records of TLS); none
    /// where they are the same.
    fn handed(&self) -> Option<u64>;

    /// Bytes that the kernel was given and the peer's kernel has not acknowledged; none where nobody can tell.
    /// Asked once a stream has failed, so it may cost a system call.
    fn unacknowledged(&self) -> Option<u64>;

    /// Both directions have ended cleanly: makes the coming drop an ordinary close.
    fn finished(&mut self);
}
