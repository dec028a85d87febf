//! What a connection is doing and since when, so that a stranger cannot hold it for nothing.
//!
//! Written by the streams and the router, watched by one timer a connection.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::io::Side;
use crate::model::http::HttpLimits;
use crate::net::relay::Counts;

/// A request's headers, the first one's on a new connection included, must be there after this long. Envoy
/// has no limit of its own for them, only that of a stream without a byte.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The headers of a request are on their way, or those of the first one awaited.
    Headers,
    /// A request is under way.
    Stream,
    /// Between two requests.
    Idle,
}

/// The record.
#[derive(Debug)]
pub(super) struct Activity {
    counts: Rc<Counts>,
    phase: Cell<Phase>,
    /// When the phase began; of a stream, when a byte last moved.
    since: Cell<Instant>,
}

/// Ready once the phase that a connection is in has lasted for too long. To be polled whenever the connection
/// was: that is when phases change.
#[derive(Debug)]
pub(super) struct Overdue<'a> {
    activity: &'a Activity,
    limits: &'a HttpLimits,
    timer: Pin<Box<Sleep>>,
}

impl Activity {
    /// Of a connection just accepted.
    pub(super) fn new(counts: Rc<Counts>) -> Self {
        Self {
            counts,
            phase: Cell::new(Phase::Headers),
            since: Cell::new(Instant::now()),
        }
    }

    pub(super) fn received(&self, side: Side, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if side == Side::Downstream {
            self.counts
                .received
                .set(self.counts.received.get() + bytes as u64);
            if self.phase.get() == Phase::Idle {
                self.enter(Phase::Headers);
            }
        }
        self.moved();
    }

    pub(super) fn sent(&self, side: Side, bytes: usize) {
        if side == Side::Downstream {
            self.counts.sent.set(self.counts.sent.get() + bytes as u64);
        }
        self.moved();
    }

    /// A request began, or its response ended.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    fn moved(&self) {
        if self.phase.get() == Phase::Stream {
            self.since.set(Instant::now());
        }
    }

    /// Watches over the phases.
    pub(super) fn overdue<'a>(&'a self, limits: &'a HttpLimits) -> Overdue<'a> {
        Overdue {
            activity: self,
            limits,
            timer: Box::pin(sleep(HEADERS_TIMEOUT)),
        }
    }
}

impl Future for Overdue<'_> {
    type Output = Phase;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Phase> {
        loop {
            let phase = self.activity.phase.get();
            let limit = match phase {
                Phase::Headers => Some(self.limits.request_headers_timeout.unwrap_or(HEADERS_TIMEOUT)),
                Phase::Stream => self.limits.stream_idle_timeout,
                Phase::Idle => self.limits.idle_timeout,
            };
            // A limit too far away to be written down is none.
            let Some(deadline) = limit.and_then(|limit| self.activity.since.get().checked_add(limit)) else {
                return Poll::Pending;
            };
            if deadline <= Instant::now() {
                return Poll::Ready(phase);
            }
            // A timer that fires too early is set anew then, instead of at every byte.
            if deadline < self.timer.deadline() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn limits() -> HttpLimits {
        HttpLimits {
            stream_idle_timeout: Some(Duration::from_secs(30)),
            idle_timeout: None,
            ..HttpLimits::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_headers_do_not_take_for_ever() {
        let began = Instant::now();
        let activity = Activity::new(Rc::default());
        assert_eq!(activity.overdue(&limits()).await, Phase::Headers);
        assert_eq!(began.elapsed().as_secs(), HEADERS_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_trickle_prolong_a_stream_but_no_headers() {
        let limits = limits();
        let activity = Activity::new(Rc::default());
        let trickle = async {
            loop {
                sleep(Duration::from_secs(4)).await;
                activity.received(Side::Downstream, 1);
            }
        };
        let began = Instant::now();
        tokio::select! {
            biased;
            () = trickle => {}
            phase = activity.overdue(&limits) => assert_eq!(phase, Phase::Headers),
        }
        assert_eq!(began.elapsed().as_secs(), HEADERS_TIMEOUT.as_secs());

        activity.enter(Phase::Stream);
        let began = Instant::now();
        let moving = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(20)).await;
                activity.received(Side::Upstream, 1);
            }
            pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = moving => {}
            phase = activity.overdue(&limits) => assert_eq!(phase, Phase::Stream),
        }
        assert_eq!(began.elapsed().as_secs(), 230);
        assert_eq!(
            activity.counts.received.get(),
            3,
            "an upstream's bytes are not the downstream's"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_ends_an_idleness_without_limit() {
        let limits = limits();
        let activity = Activity::new(Rc::default());
        activity.enter(Phase::Idle);
        let began = Instant::now();
        let byte = async {
            sleep(Duration::from_secs(1000)).await;
            activity.received(Side::Downstream, 1);
            pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = byte => {}
            phase = activity.overdue(&limits) => assert_eq!(phase, Phase::Headers),
        }
        assert_eq!(began.elapsed().as_secs(), 1000 + HEADERS_TIMEOUT.as_secs());
    }
}
