//! Growing pauses after failures, with jitter.
//!
//! Owns how many failures there were in a row; how long a pause may become is the asker's to say.

use std::time::Duration;

/// Doubles from its first pause with every failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure yet; the first is followed by `first` at most.
    pub(super) fn new(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// One more failure: how long to wait, at most `cap`.
    pub(super) fn next(&mut self, cap: Duration) -> Duration {
        let doubled = self.first * 2_u32.pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        jitter(doubled.min(cap))
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// No failure since it last went well.
    pub(super) fn is_fresh(self) -> bool {
        self.failures == 0
    }
}

/// Half to all of `pause`, so that many who wait do not come at once.
pub(super) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
