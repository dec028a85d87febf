//! The relay: bytes both ways between a downstream and an upstream until both have ended.
//!
//! Borrows the streams, owns at most one block of backlog a direction, and only under backpressure.
//! It never closes a socket: the caller resets or drops the streams by the [`Outcome`].

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::buffer::{Backlog, with_plain};
use super::duplex::Duplex;

/// Bytes relayed so far; shared with the access log, which reads them when the connection ends.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the downstream (Envoy's `BYTES_RECEIVED`).
    pub received: Cell<u64>,
    /// To the downstream (Envoy's `BYTES_SENT`).
    pub sent: Cell<u64>,
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The accepted one.
    Downstream,
    /// The dialled one.
    Upstream,
}

/// Why a relay stopped before both directions had ended cleanly.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", match side { Side::Downstream => "downstream", Side::Upstream => "upstream" })]
pub struct Cut {
    /// Whose socket failed.
    pub side: Side,
    /// How.
    pub source: io::Error,
}

/// Relays until both directions have ended cleanly.
///
/// # Errors
/// [`Cut`] at the first failure of either stream; the caller must then reset both.
pub fn relay<'a, D: Duplex, U: Duplex>(
    downstream: &'a mut D,
    upstream: &'a mut U,
    counts: &'a Counts,
) -> impl Future<Output = Result<(), Cut>> + use<'a, D, U> {
    Relay {
        downstream,
        upstream,
        counts,
        up: Direction::default(),
        down: Direction::default(),
    }
}

struct Relay<'a, D, U> {
    downstream: &'a mut D,
    upstream: &'a mut U,
    counts: &'a Counts,
    up: Direction,
    down: Direction,
}

#[derive(Default)]
struct Direction {
    /// Plaintext read but not taken by the other side. While it is not empty nothing more is read:
    /// a slow reader holds one block and slows the sender down by its own window.
    backlog: Backlog,
    phase: Phase,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Flowing,
    /// The end was read; it is passed on once everything before it was.
    Finishing,
    Ended,
}

impl<D: Duplex, U: Duplex> Future for Relay<'_, D, U> {
    type Output = Result<(), Cut>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Relay {
            downstream,
            upstream,
            counts,
            up,
            down,
        } = &mut *self;
        let cut = |side: Side, source| Cut { side, source };
        let up = up
            .poll(cx, *downstream, *upstream, &counts.received)
            .map_err(|(from, e)| cut(if from { Side::Downstream } else { Side::Upstream }, e))?;
        let down = down
            .poll(cx, *upstream, *downstream, &counts.sent)
            .map_err(|(from, e)| cut(if from { Side::Upstream } else { Side::Downstream }, e))?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}

impl Direction {
    /// Moves what can be moved. An error says whether it was `from` that failed.
    fn poll<F: Duplex, T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: &Cell<u64>,
    ) -> Result<Poll<()>, (bool, io::Error)> {
        loop {
            let step = match self.phase {
                Phase::Ended => return Ok(Poll::Ready(())),
                _ if !self.backlog.is_empty() => self.poll_backlog(cx, to),
                Phase::Flowing => self.poll_move(cx, from, to, count),
                Phase::Finishing => to
                    .poll_finish(cx)
                    .map_ok(|()| self.phase = Phase::Ended)
                    .map_err(|e| (false, e)),
            };
            match step {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    fn poll_backlog<T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
    ) -> Poll<Result<(), (bool, io::Error)>> {
        let taken = ready!(to.poll_send(cx, &[io::IoSlice::new(self.backlog.waiting())]));
        Poll::Ready(
            taken
                .and_then(nonzero)
                .map(|n| self.backlog.advance(n))
                .map_err(|e| (false, e)),
        )
    }

    /// One block from `from` to `to`; what is not taken becomes backlog.
    fn poll_move<F: Duplex, T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: &Cell<u64>,
    ) -> Poll<Result<(), (bool, io::Error)>> {
        ready!(to.poll_flush(cx)).map_err(|e| (false, e))?;
        with_plain(|block| {
            let received = ready!(from.poll_receive(cx, block)).map_err(|e| (true, e))?;
            if received == 0 {
                self.phase = Phase::Finishing;
                return Poll::Ready(Ok(()));
            }
            count.set(count.get() + received as u64);
            let mut waiting = &block[..received];
            while !waiting.is_empty() {
                match to.poll_send(cx, &[io::IoSlice::new(waiting)]) {
                    Poll::Ready(taken) => {
                        waiting = &waiting[taken.and_then(nonzero).map_err(|e| (false, e))?..];
                    }
                    Poll::Pending => {
                        self.backlog.push(waiting);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

fn nonzero(n: usize) -> io::Result<usize> {
    if n == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(n)
    }
}
