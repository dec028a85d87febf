//! The relay: bytes both ways between a downstream and an upstream until both have ended.
//!
//! Borrows the streams, owns at most one block of backlog a direction, and only under backpressure. Where both
//! streams are plain, bulk goes through a pipe.
//! It never closes a socket: the caller resets or drops the streams by the [`Outcome`].

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::buffer::{Backlog, with_plain};
use super::duplex::Duplex;
use super::splice::Pipe;

/// Bytes relayed so far; shared with the access log, which reads them when the connection ends.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the downstream (Envoy's `BYTES_RECEIVED`).
    pub received: Cell<u64>,
    /// To the downstream (Envoy's `BYTES_SENT`).
    pub sent: Cell<u64>,
    /// Of either, what was taken only after it had waited.
    pub drained: Cell<u64>,
}

/// Told of the bytes as they go.
pub trait Tally {
    /// So many came from a side.
    fn moved(&self, from: Side, bytes: u64);

    /// A side has so many more bytes waiting that it does not take, or fewer.
    fn buffered(&self, to: Side, change: i64);
}

impl Tally for Counts {
    fn moved(&self, from: Side, bytes: u64) {
        let count = match from {
            Side::Downstream => &self.received,
            Side::Upstream => &self.sent,
        };
        count.set(count.get() + bytes);
    }

    fn buffered(&self, _: Side, change: i64) {
        let drained = change.min(0).unsigned_abs();
        self.drained.set(self.drained.get() + drained);
    }
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

/// Relays until both directions have ended cleanly: gives the side that was the last to end.
///
/// # Errors
/// [`Cut`] at the first failure of either stream; the caller must then reset both.
pub fn relay<'a, D: Duplex, U: Duplex, T: Tally>(
    downstream: &'a mut D,
    upstream: &'a mut U,
    tally: &'a T,
) -> impl Future<Output = Result<Side, Cut>> + use<'a, D, U, T> {
    Relay {
        downstream,
        upstream,
        tally,
        up: Direction::from(Side::Downstream),
        down: Direction::from(Side::Upstream),
    }
}

struct Relay<'a, D, U, T: Tally> {
    downstream: &'a mut D,
    upstream: &'a mut U,
    tally: &'a T,
    up: Direction,
    down: Direction,
}

struct Direction {
    from: Side,
    /// Plaintext read but not taken by the other side. While it is not empty nothing more is read:
    /// a slow reader holds one block and slows the sender down by its own window.
    backlog: Backlog,
    /// While bulk flows between plain sockets; the backlog is empty then.
    pipe: Option<Pipe>,
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

impl<D: Duplex, U: Duplex, T: Tally> Future for Relay<'_, D, U, T> {
    type Output = Result<Side, Cut>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Relay {
            downstream,
            upstream,
            tally,
            up,
            down,
        } = &mut *self;
        let upstream_had_ended = down.phase == Phase::Ended;
        let cut = |side: Side, source| Cut { side, source };
        let up = up
            .poll(cx, *downstream, *upstream, *tally)
            .map_err(|(from, e)| cut(if from { Side::Downstream } else { Side::Upstream }, e))?;
        let down = down
            .poll(cx, *upstream, *downstream, *tally)
            .map_err(|(from, e)| cut(if from { Side::Upstream } else { Side::Downstream }, e))?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) if upstream_had_ended => Poll::Ready(Ok(Side::Downstream)),
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(Side::Upstream)),
            _ => Poll::Pending,
        }
    }
}

impl<D, U, T: Tally> Drop for Relay<'_, D, U, T> {
    fn drop(&mut self) {
        for direction in [&self.up, &self.down] {
            let piped = direction.pipe.as_ref().map_or(0, Pipe::held);
            let left = direction.backlog.waiting().len() + piped;
            if left > 0 {
                self.tally
                    .buffered(direction.from.other(), signed(left).wrapping_neg());
            }
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

impl Direction {
    fn from(from: Side) -> Self {
        Self {
            from,
            backlog: Backlog::default(),
            pipe: None,
            phase: Phase::default(),
        }
    }

    /// Moves what can be moved. An error says whether it was `from` that failed.
    fn poll<F: Duplex, T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        tally: &impl Tally,
    ) -> Result<Poll<()>, (bool, io::Error)> {
        loop {
            let step = match self.phase {
                Phase::Ended => return Ok(Poll::Ready(())),
                _ if !self.backlog.is_empty() => self.poll_backlog(cx, to, tally),
                _ if self.pipe.is_some() => self.poll_pipe(cx, from, to, tally),
                Phase::Flowing => self.poll_move(cx, from, to, tally),
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
        tally: &impl Tally,
    ) -> Poll<Result<(), (bool, io::Error)>> {
        let taken = ready!(to.poll_send(cx, &[io::IoSlice::new(self.backlog.waiting())]));
        Poll::Ready(
            taken
                .and_then(nonzero)
                .map(|n| {
                    self.backlog.advance(n);
                    tally.buffered(self.from.other(), signed(n).wrapping_neg());
                })
                .map_err(|e| (false, e)),
        )
    }

    /// What the pipe holds, or once from `from` into it. It is given back as soon as the bulk is over.
    fn poll_pipe<F: Duplex, T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &F,
        to: &T,
        tally: &impl Tally,
    ) -> Poll<Result<(), (bool, io::Error)>> {
        let (Some(mut pipe), Some(source), Some(sink)) = (self.pipe.take(), from.plain_tcp(), to.plain_tcp())
        else {
            return Poll::Ready(Ok(()));
        };
        if pipe.held() > 0 {
            let taken = pipe.poll_drain(cx, sink);
            self.pipe = Some(pipe);
            let taken = ready!(taken).map_err(|e| (false, e))?;
            tally.buffered(self.from.other(), signed(taken).wrapping_neg());
            return Poll::Ready(Ok(()));
        }
        match pipe.poll_fill(cx, source) {
            Poll::Ready(Ok(received)) if received > 0 => {
                tally.moved(self.from, received as u64);
                tally.buffered(self.from.other(), signed(received));
                self.pipe = Some(pipe);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(_)) => self.phase = Phase::Finishing,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err((true, error))),
            Poll::Pending => {
                pipe.give_back();
                return Poll::Pending;
            }
        }
        pipe.give_back();
        Poll::Ready(Ok(()))
    }

    /// One block from `from` to `to`; what is not taken becomes backlog.
    fn poll_move<F: Duplex, T: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        tally: &impl Tally,
    ) -> Poll<Result<(), (bool, io::Error)>> {
        ready!(to.poll_flush(cx)).map_err(|e| (false, e))?;
        with_plain(|block| {
            let received = ready!(from.poll_receive(cx, block)).map_err(|e| (true, e))?;
            if received == 0 {
                self.phase = Phase::Finishing;
                return Poll::Ready(Ok(()));
            }
            tally.moved(self.from, received as u64);
            // A full block is bulk: what follows it need not come here.
            if received == block.len() && from.plain_tcp().and(to.plain_tcp()).is_some() {
                self.pipe = Pipe::lend();
            }
            let mut waiting = &block[..received];
            while !waiting.is_empty() {
                match to.poll_send(cx, &[io::IoSlice::new(waiting)]) {
                    Poll::Ready(taken) => {
                        waiting = &waiting[taken.and_then(nonzero).map_err(|e| (false, e))?..];
                    }
                    Poll::Pending => {
                        self.backlog.push(waiting);
                        tally.buffered(self.from.other(), signed(waiting.len()));
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// A block's length.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn nonzero(n: usize) -> io::Result<usize> {
    if n == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(n)
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
