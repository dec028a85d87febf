//! The time limits of one stream, behind one timer.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set only when its time has come nearer, not at every change.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

/// The limits.
#[derive(Debug)]
pub(super) struct Clock {
    pub(super) began: Instant,
    /// When a byte last moved.
    moved: Cell<Instant>,
    /// When the request was there as a whole.
    request_end: Cell<Option<Instant>>,
    /// How long nothing may move.
    pub(super) idle: Cell<Option<Duration>>,
    /// Until the request must be there.
    pub(super) request: Cell<Option<Duration>>,
    /// From the beginning to the end.
    pub(super) duration: Cell<Option<Duration>>,
    /// From the request's end to the response's (the route's `timeout`).
    pub(super) route: Cell<Option<Duration>>,
    alarm: RefCell<Alarm>,
}

/// Which limit was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    Idle,
    Request,
    Duration,
    Route,
}

impl Alarm {
    /// Ready once it is `deadline`; never for none.
    pub(super) fn poll(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        loop {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }
}

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            moved: Cell::new(now),
            request_end: Cell::new(None),
            idle: Cell::new(None),
            request: Cell::new(None),
            duration: Cell::new(None),
            route: Cell::new(None),
            alarm: RefCell::default(),
        }
    }

    /// A byte moved.
    pub(super) fn moved(&self) {
        self.moved.set(Instant::now());
    }

    /// Since when nothing moved.
    pub(super) fn quiet_since(&self) -> Instant {
        self.moved.get()
    }

    /// The request is there as a whole.
    pub(super) fn request_ended(&self) {
        if self.request_end.get().is_none() {
            self.request_end.set(Some(Instant::now()));
        }
    }

    /// When that was, since the beginning.
    pub(super) fn request_end(&self) -> Option<Duration> {
        self.request_end.get().map(|at| at - self.began)
    }

    /// How long ago that was; zero while it is not there.
    pub(super) fn since_request_end(&self) -> Duration {
        self.request_end.get().map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Whether the request is there as a whole.
    pub(super) fn has_request(&self) -> bool {
        self.request_end.get().is_some()
    }

    /// Ready once a limit is passed.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Overdue> {
        let after = |at: Instant, limit: Option<Duration>| limit.and_then(|limit| at.checked_add(limit));
        let request = if self.has_request() {
            None
        } else {
            after(self.began, self.request.get())
        };
        let limits = [
            (after(self.moved.get(), self.idle.get()), Overdue::Idle),
            (request, Overdue::Request),
            (after(self.began, self.duration.get()), Overdue::Duration),
            (
                self.request_end.get().and_then(|at| after(at, self.route.get())),
                Overdue::Route,
            ),
        ];
        let next = limits
            .into_iter()
            .filter_map(|(deadline, what)| Some((deadline?, what)))
            .min_by_key(|(deadline, _)| *deadline);
        let Some((deadline, what)) = next else {
            return Poll::Pending;
        };
        self.alarm.borrow_mut().poll(Some(deadline), cx).map(|()| what)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_nearest_limit_counts() {
        let clock = Clock::new(Instant::now());
        clock.idle.set(Some(Duration::from_secs(30)));
        clock.duration.set(Some(Duration::from_secs(50)));
        for _ in 0..4 {
            advance(Duration::from_secs(10)).await;
            clock.moved();
        }
        let overdue = poll_fn(|cx| clock.poll(cx)).await;
        assert_eq!(
            (overdue, clock.began.elapsed().as_secs()),
            (Overdue::Duration, 50)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_routes_limit_begins_with_the_requests_end() {
        let clock = Clock::new(Instant::now());
        clock.route.set(Some(Duration::from_secs(5)));
        clock.request.set(Some(Duration::from_secs(60)));
        advance(Duration::from_secs(20)).await;
        assert_eq!(clock.since_request_end(), Duration::ZERO);
        clock.request_ended();
        let overdue = poll_fn(|cx| clock.poll(cx)).await;
        assert_eq!((overdue, clock.began.elapsed().as_secs()), (Overdue::Route, 25));
    }
}
