//! A stream of ours as hyper reads and writes one.
//!
//! Owns the stream and what hyper had no room for yet: at most one lent block.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::activity::Activity;
use crate::net::Duplex;
use crate::net::buffer::{Backlog, with_plain};

/// The adapter. Dropping it resets the connection unless it was shut down, as with every [`Duplex`].
#[derive(Debug)]
pub(super) struct HyperIo<D> {
    stream: D,
    activity: Rc<Activity>,
    /// Which of the two streams this is.
    side: Side,
    /// Read, but not by hyper yet. A TLS stream opens whole records: it wants a larger buffer than hyper's.
    received: Backlog,
}

/// Which stream's bytes are counted how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The accepted one: its bytes are the connection's in the log, and begin requests.
    Downstream,
    /// A dialled one: its bytes only show that something moves.
    Upstream,
}

impl<D> HyperIo<D> {
    pub(super) fn new(stream: D, side: Side, activity: Rc<Activity>) -> Self {
        Self {
            stream,
            activity,
            side,
            received: Backlog::default(),
        }
    }

    pub(super) fn into_stream(self) -> D {
        self.stream
    }

    fn give(&mut self, cursor: &mut ReadBufCursor<'_>) {
        let waiting = self.received.waiting();
        let taken = waiting.len().min(cursor.remaining());
        cursor.put_slice(&waiting[..taken]);
        self.received.advance(taken);
    }
}

impl<D: Duplex + Unpin> Read for HyperIo<D> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.received.is_empty() {
            this.give(&mut cursor);
            return Poll::Ready(Ok(()));
        }
        with_plain(|block| {
            let received = ready!(this.stream.poll_receive(cx, block))?;
            this.activity.received(this.side, received);
            let (now, later) = block[..received].split_at(received.min(cursor.remaining()));
            cursor.put_slice(now);
            if !later.is_empty() {
                this.received.push(later);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl<D: Duplex + Unpin> Write for HyperIo<D> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.stream.poll_send(cx, bytes))?;
        self.activity.sent(self.side, sent);
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
