//! A stream of ours as the h2 crate reads and writes one.
//!
//! Owns the stream and what h2 had no room for yet: at most one lent block. Gives h2 only so much in one turn of the
//! connection's task: its streams fetch that before more is read.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::Duplex;
use crate::net::buffer::{BLOCK_BYTES, with_plain};
use crate::net::relay::Counts;

/// What h2 is given in one turn. Read without a pause, a burst of small frames would be kept by it at many times its
/// size, since the streams that they are for have no turn meanwhile.
const TURN_BYTES: usize = BLOCK_BYTES;

/// The adapter. Dropping it resets the connection unless it was shut down, as with every [`Duplex`].
pub(in crate::http) struct Io {
    stream: Box<dyn Duplex>,
    /// Read, but not by h2 yet. A TLS stream opens whole records: it wants a larger buffer than h2's.
    received: BytesMut,
    /// Given to h2 in this turn.
    given: usize,
    counts: Rc<Counts>,
}

impl Io {
    /// `received` was read of the stream already.
    pub(in crate::http) fn new(stream: Box<dyn Duplex>, received: BytesMut, counts: Rc<Counts>) -> Self {
        Self {
            stream,
            received,
            given: 0,
            counts,
        }
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let taken = self
            .received
            .split_to(self.received.len().min(buffer.remaining()));
        buffer.put_slice(&taken);
        self.given += taken.len();
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given >= TURN_BYTES {
            this.given = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.received.is_empty() {
            this.give(buffer);
            return Poll::Ready(Ok(()));
        }
        with_plain(|block| {
            let Poll::Ready(received) = this.stream.poll_receive(cx, block) else {
                this.given = 0;
                return Poll::Pending;
            };
            let received = received?;
            this.counts
                .received
                .set(this.counts.received.get() + received as u64);
            let (now, later) = block[..received].split_at(received.min(buffer.remaining()));
            buffer.put_slice(now);
            this.given += now.len();
            this.received.extend_from_slice(later);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.stream.poll_send(cx, bytes))?;
        self.counts.sent.set(self.counts.sent.get() + sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.poll_finish(cx))?;
        self.stream.finished();
        Poll::Ready(Ok(()))
    }
}
