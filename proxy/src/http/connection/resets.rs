//! Requests that a downstream begins only to give them up: each costs it a few bytes, and somebody else a dial.

use std::cell::Cell;
use std::time::Duration;

/// So many requests are looked at together at least; Envoy's `overload.premature_reset_total_stream_count`.
const TOTAL: u64 = 500;

/// Who waited for so long wanted an answer. Envoy counts whole seconds and takes one for premature.
const PATIENCE: Duration = Duration::from_secs(2);

/// The requests of one connection that have ended.
#[derive(Debug, Default)]
pub(super) struct Resets {
    all: Cell<u64>,
    premature: Cell<u64>,
}

impl Resets {
    /// One ended, `answered` or not.
    pub(super) fn ended(&self, answered: bool, after: Duration) {
        self.all.set(self.all.get() + 1);
        if !answered && after < PATIENCE {
            self.premature.set(self.premature.get() + 1);
        }
    }

    /// Whether the connection is to end: half of its requests were given up at once (CVE-2023-44487).
    pub(super) fn are_too_many(&self) -> bool {
        self.premature.get() * 2 >= self.all.get().max(TOTAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_them_are_too_many() {
        let resets = Resets::default();
        for _ in 0..249 {
            resets.ended(false, Duration::from_millis(5));
        }
        assert!(!resets.are_too_many());
        resets.ended(false, Duration::from_millis(5));
        assert!(resets.are_too_many());
        for _ in 0..251 {
            resets.ended(true, Duration::ZERO);
            resets.ended(false, PATIENCE);
        }
        assert!(!resets.are_too_many(), "among many others they are few");
    }
}
