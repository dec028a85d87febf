//! A stream with what was received and not read yet, and what was written and not taken yet.
//!
//! Owns the stream. Holds no memory while nothing waits, so that an idle connection costs its socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use crate::net::Duplex;
use crate::net::buffer::with_plain;
use crate::net::departure::{Departure, Leaving};
use crate::net::relay::Counts;

/// Pieces up to this many bytes are copied behind each other: one `send` of one slice costs the kernel less
/// than a gathering one, and a copy of this much less than either.
const COPIED_BYTES: usize = 4096;

/// Slices given to one system call.
const SLICES: usize = 16;

/// Above this many bytes that the peer has not taken, nothing more is written: what a slow reader costs.
pub(super) const HIGH_WATERMARK: usize = 256 * 1024;

/// The stream and its two buffers.
pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    input: BytesMut,
    /// Whole pieces, then the one that is being filled.
    output: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
    /// Taken by the stream, which may hold records of it still.
    unflushed: bool,
    /// The peer's clean end was received.
    ended: bool,
    counts: Rc<Counts>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("input", &self.input.len())
            .field("queued", &self.queued)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// Over a stream of which nothing was read; `counts` are told of its bytes.
    pub(super) fn new(stream: Box<dyn Duplex>, counts: Rc<Counts>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: VecDeque::new(),
            tail: BytesMut::new(),
            queued: 0,
            unflushed: false,
            ended: false,
            counts,
        }
    }

    /// The stream, and what was received of it and not read.
    pub(super) fn into_parts(self) -> (Box<dyn Duplex>, BytesMut, Rc<Counts>) {
        (self.stream, self.input, self.counts)
    }

    /// What was received and not read.
    pub(super) fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Bytes that the peer has not taken.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Whether nothing waits in either direction.
    pub(super) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.queued == 0 && !self.unflushed
    }

    /// Gives the memory of an empty input back.
    pub(super) fn rest(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Receives once into the input. `Ok(0)` is the peer's clean end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let received = with_plain(|block| {
            let received = ready!(self.stream.poll_receive(cx, block))?;
            self.input.extend_from_slice(&block[..received]);
            Poll::Ready(io::Result::Ok(received))
        });
        let received = ready!(received)?;
        self.received(received);
        Poll::Ready(Ok(received))
    }

    /// The next bytes, at most `most` of them, of the input or as they are received; empty is the end.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<io::Result<Bytes>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if !self.input.is_empty() {
            let length = most.min(self.input.len());
            return Poll::Ready(Ok(self.input.split_to(length).freeze()));
        }
        if self.ended {
            return Poll::Ready(Ok(Bytes::new()));
        }
        let received = with_plain(|block| {
            let received = ready!(self.stream.poll_receive(cx, block))?;
            let (now, later) = block[..received].split_at(received.min(most));
            self.input.extend_from_slice(later);
            Poll::Ready(io::Result::Ok((received, Bytes::copy_from_slice(now))))
        });
        let (received, bytes) = ready!(received)?;
        self.received(received);
        Poll::Ready(Ok(bytes))
    }

    fn received(&mut self, bytes: usize) {
        if bytes == 0 {
            self.ended = true;
        }
        self.counts
            .received
            .set(self.counts.received.get() + bytes as u64);
    }

    /// Queues bytes by copying them.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Queues what `append` puts behind the bytes that it is given.
    pub(super) fn write_with(&mut self, append: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        append(&mut self.tail);
        self.queued += self.tail.len() - before;
    }

    /// Queues bytes, copied only if they are few.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= COPIED_BYTES {
            return self.write(&bytes);
        }
        self.queued += bytes.len();
        if !self.tail.is_empty() {
            self.output.push_back(self.tail.split().freeze());
        }
        self.output.push_back(bytes);
    }

    /// Ready while more may be queued; sends what it can.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queued < HIGH_WATERMARK {
            return Poll::Ready(Ok(()));
        }
        while self.queued >= HIGH_WATERMARK {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once all that was queued is the kernel's.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.queued > 0 {
            ready!(self.poll_send(cx))?;
        }
        if self.unflushed {
            ready!(self.stream.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        for piece in self
            .output
            .iter()
            .map(|piece| &piece[..])
            .chain(tail)
            .take(SLICES)
        {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        let sent = ready!(self.stream.poll_send(cx, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.queued -= sent;
        self.counts.sent.set(self.counts.sent.get() + sent as u64);
        self.sent(sent);
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, mut bytes: usize) {
        while let Some(front) = self.output.front_mut() {
            if bytes < front.len() {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.output.pop_front();
        }
        self.tail.advance(bytes);
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
    }

    /// Says the end after all that was queued. Receiving goes on.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.stream.poll_finish(cx)
    }

    /// The place that the next byte has among all that were sent.
    pub(super) fn place(&self) -> u64 {
        self.stream.handed().unwrap_or(self.counts.sent.get())
    }

    /// Whether it is certain that the peer read nothing of what was sent from `place` on: none of it left, or
    /// the peer's kernel had none of it when its end was said, which acknowledges all that there is (RFC 9293
    /// section 3.10.7.4). A reset without an end proves nothing: what it leaves unacknowledged may have been read.
    /// Who says the end and reads on cannot answer, and is taken for gone.
    pub(super) fn went_unread(&self, place: u64) -> bool {
        let handed = self.place();
        handed == place
            || self.ended
                && (self.stream.unacknowledged()).is_some_and(|bytes| handed.saturating_sub(bytes) <= place)
    }

    /// Watches for the peer's leaving while nobody receives.
    pub(super) fn departure(&self, leaving: Leaving) -> Option<Departure> {
        self.stream.departure(leaving)
    }

    /// Both directions have ended in order: the coming drop is an ordinary close.
    pub(super) fn finished(&mut self) {
        self.stream.finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener};

    use crate::net::PlainStream;

    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\n\r\n";

    /// A connection, and its blocking peer.
    async fn pair() -> (Wire, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let wire = Wire::new(Box::new(PlainStream::Tcp(stream.await.unwrap())), Rc::default());
        (wire, listener.accept().unwrap().0)
    }

    /// What is sent once the peer did its part, and whether it certainly went unread.
    async fn send_after(
        first: impl FnOnce(&mut std::net::TcpStream),
        then: impl FnOnce(std::net::TcpStream),
    ) -> bool {
        let (mut wire, mut peer) = pair().await;
        let place = wire.place();
        first(&mut peer);
        wire.write(REQUEST);
        let _ = poll_fn(|cx| wire.poll_flush(cx)).await;
        then(peer);
        while !matches!(poll_fn(|cx| wire.poll_fill(cx)).await, Ok(0) | Err(_)) {}
        wire.went_unread(place)
    }

    fn read(peer: &mut std::net::TcpStream) {
        peer.read_exact(&mut [0; REQUEST.len()]).unwrap();
    }

    #[tokio::test]
    async fn what_is_sent_to_who_has_ended_goes_unread() {
        let end = |peer: &mut std::net::TcpStream| peer.shutdown(Shutdown::Both).unwrap();
        assert!(send_after(end, drop).await);
    }

    #[tokio::test]
    async fn what_may_have_been_read_is_not_said_to_be_unread() {
        assert!(
            !send_after(|_| {}, |mut peer| read(&mut peer)).await,
            "read, then ended"
        );
        assert!(
            !send_after(|_| {}, drop).await,
            "reset with the bytes unread: who knows"
        );
        let part = |mut peer: std::net::TcpStream| peer.read_exact(&mut [0; 1]).unwrap();
        assert!(!send_after(|_| {}, part).await, "reset after a byte");
    }
}
