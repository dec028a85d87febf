//! A downstream in memory: what it sends is there at once, and what it is sent is taken at once.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use attache::net::Duplex;
use attache::net::departure::{Departure, Leaving};

/// The proxy's end.
pub(crate) struct Proxys(Rc<RefCell<Pipe>>);

/// The downstream's end.
pub(crate) struct Downstreams(Rc<RefCell<Pipe>>);

#[derive(Default)]
struct Pipe {
    to_proxy: Vec<u8>,
    from_proxy: Vec<u8>,
    /// The proxy waits for bytes.
    proxy: Option<Waker>,
    /// The downstream waits for bytes.
    downstream: Option<Waker>,
}

/// Both ends.
pub(crate) fn pipe() -> (Proxys, Downstreams) {
    let pipe = Rc::<RefCell<Pipe>>::default();
    (Proxys(Rc::clone(&pipe)), Downstreams(pipe))
}

impl Downstreams {
    /// Sends, and forgets what was received.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let pipe = &mut *self.0.borrow_mut();
        pipe.from_proxy.clear();
        pipe.to_proxy.extend_from_slice(bytes);
        pipe.proxy.take().map(Waker::wake).unwrap_or_default();
    }

    /// Ready once `is_all` of what was received.
    pub(crate) fn poll_received(
        &self,
        is_all: impl Fn(&mut Vec<u8>) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let pipe = &mut *self.0.borrow_mut();
        if is_all(&mut pipe.from_proxy) {
            return Poll::Ready(());
        }
        pipe.downstream = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Duplex for Proxys {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        let length = pipe.to_proxy.len().min(buffer.len());
        if length == 0 {
            pipe.proxy = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buffer[..length].copy_from_slice(&pipe.to_proxy[..length]);
        pipe.to_proxy.drain(..length);
        Poll::Ready(Ok(length))
    }

    fn poll_send(&mut self, _: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        let before = pipe.from_proxy.len();
        for slice in bytes {
            pipe.from_proxy.extend_from_slice(slice);
        }
        pipe.downstream.take().map(Waker::wake).unwrap_or_default();
        Poll::Ready(Ok(pipe.from_proxy.len() - before))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn handed(&self) -> Option<u64> {
        None
    }

    fn unacknowledged(&self) -> Option<u64> {
        None
    }

    fn departure(&self, _: Leaving) -> Option<Departure> {
        None
    }

    fn finished(&mut self) {}
}
