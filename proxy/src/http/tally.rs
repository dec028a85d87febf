//! A stream whose bytes are counted as they go: a connection that lives for days is seen in the statistics.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use crate::net::Duplex;
use crate::net::departure::{Departure, Leaving};
use crate::telemetry::metrics::Counter;

/// The stream. Bytes are those of HTTP, without TLS.
pub(super) struct Tallied {
    stream: Box<dyn Duplex>,
    received: Counter,
    sent: Counter,
}

impl Tallied {
    /// `received` and `sent` are told of the bytes of `stream`.
    pub(super) fn new(stream: Box<dyn Duplex>, received: &Counter, sent: &Counter) -> Self {
        Self {
            stream,
            received: received.clone(),
            sent: sent.clone(),
        }
    }
}

impl Duplex for Tallied {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let received = ready!(self.stream.poll_receive(cx, buffer))?;
        self.received.increment(received as u64);
        Poll::Ready(Ok(received))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let sent = ready!(self.stream.poll_send(cx, bytes))?;
        self.sent.increment(sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_finish(cx)
    }

    fn alpn(&self) -> Option<&[u8]> {
        self.stream.alpn()
    }

    fn handed(&self) -> Option<u64> {
        self.stream.handed()
    }

    fn unacknowledged(&self) -> Option<u64> {
        self.stream.unacknowledged()
    }

    fn departure(&self, leaving: Leaving) -> Option<Departure> {
        self.stream.departure(leaving)
    }

    fn finished(&mut self) {
        self.stream.finished();
    }
}
