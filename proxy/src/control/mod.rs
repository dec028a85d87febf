//! Control sources: what turns an outside description of the mesh into snapshots of the model.
//!
//! Owns the vocabulary in which a source tells how it is doing ([`SourceStatus`]), for the log, the
//! admin API and metrics. What a source reads and how it publishes is the business of its own module;
//! nothing here opens a socket.

mod backoff;
pub mod consul;
mod dial;
mod executor;
mod file;
mod system_roots;
pub mod xds;

use std::collections::BTreeMap;
use std::time::Instant;

use tokio::sync::watch;

/// How one source is doing, as of now.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    /// The first snapshot was published; never becomes false again.
    pub ready: bool,
    /// By the watch's name, such as `leaf` or `endpoints api`.
    pub watches: BTreeMap<String, WatchStatus>,
    /// What stands in the configuration but is not carried out, in words for a person.
    pub notices: Vec<String>,
}

/// One thing that is kept up to date.
#[derive(Clone, Debug)]
pub struct WatchStatus {
    /// What it is doing.
    pub state: WatchState,
    /// When an answer last arrived, changed or not.
    pub last_update: Option<Instant>,
}

/// What a watch is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// It has no answer yet, or what it watches went away; it goes on by itself.
    Waiting {
        /// For what, in words for a person.
        reason: String,
        /// Since when.
        since: Instant,
    },
    /// The last question was answered.
    Current {
        /// Since when without a failure.
        since: Instant,
        /// Consul's index, where it has one.
        index: Option<u64>,
    },
    /// The last question failed; the last good answer, if any, goes on serving.
    Failing {
        /// Since when.
        since: Instant,
        /// In words for a person.
        why: String,
        /// A short label for metrics, such as `unreachable` or `status_403`.
        kind: String,
    },
}

impl SourceStatus {
    /// For `/config_dump`: every watch with its state and the seconds since its last answer.
    pub fn to_json(&self) -> serde_json::Value {
        let watches: serde_json::Map<_, _> = self
            .watches
            .iter()
            .map(|(name, watch)| (name.clone(), watch.to_json()))
            .collect();
        serde_json::json!({ "ready": self.ready, "watches": watches, "notices": self.notices })
    }
}

impl WatchStatus {
    fn to_json(&self) -> serde_json::Value {
        let seconds = |at: &Instant| at.elapsed().as_secs();
        let mut json = match &self.state {
            WatchState::Waiting { reason, since } => {
                serde_json::json!({ "state": "waiting", "for": reason, "since_s": seconds(since) })
            }
            WatchState::Current { since, index } => {
                serde_json::json!({ "state": "current", "since_s": seconds(since), "index": index })
            }
            WatchState::Failing { since, why, kind } => {
                serde_json::json!({ "state": "failing", "why": why, "kind": kind, "since_s": seconds(since) })
            }
        };
        json["last_update_s"] = self.last_update.as_ref().map(seconds).into();
        json
    }
}

/// The writing end of a [`SourceStatus`]; clones write to the same one.
#[derive(Clone, Debug)]
pub struct StatusPublisher(watch::Sender<SourceStatus>);

/// A fresh pair: the writing end for the source, the reading end for admin and `--wait`.
pub fn status_channel() -> (StatusPublisher, watch::Receiver<SourceStatus>) {
    let (sender, receiver) = watch::channel(SourceStatus::default());
    (StatusPublisher(sender), receiver)
}

/// What a new state means for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    /// It is not the state of before: worth a line.
    pub(crate) changed: bool,
    /// When it was failing before, since when.
    pub(crate) was_failing: Option<Instant>,
}

impl StatusPublisher {
    /// Everything is published once.
    pub(crate) fn set_ready(&self) {
        self.0
            .send_if_modified(|s| !std::mem::replace(&mut s.ready, true));
    }

    /// Whether there is something to serve.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.borrow().ready
    }

    pub(crate) fn set_notices(&self, notices: Vec<String>) {
        self.0.send_if_modified(|s| {
            let changed = s.notices != notices;
            s.notices = notices;
            changed
        });
    }

    pub(crate) fn forget(&self, watch: &str) {
        self.0.send_if_modified(|s| s.watches.remove(watch).is_some());
    }

    pub(crate) fn waiting(&self, watch: &str, reason: &str) -> Transition {
        let now = Instant::now();
        self.update(watch, |status| {
            let since = match &status.state {
                WatchState::Waiting { since, reason: old } if old == reason => return false,
                WatchState::Waiting { since, .. } => *since,
                _ => now,
            };
            status.state = WatchState::Waiting {
                reason: reason.to_owned(),
                since,
            };
            true
        })
    }

    pub(crate) fn current(&self, watch: &str, index: Option<u64>) -> Transition {
        let now = Instant::now();
        self.update(watch, |status| {
            status.last_update = Some(now);
            let (since, changed) = match status.state {
                WatchState::Current { since, .. } => (since, false),
                _ => (now, true),
            };
            status.state = WatchState::Current { since, index };
            changed
        })
    }

    pub(crate) fn failing(&self, watch: &str, kind: &str, why: &str) -> Transition {
        let now = Instant::now();
        self.update(watch, |status| {
            let (since, changed) = match &status.state {
                WatchState::Failing { since, kind: old, .. } => (*since, old != kind),
                _ => (now, true),
            };
            status.state = WatchState::Failing {
                since,
                why: why.to_owned(),
                kind: kind.to_owned(),
            };
            changed
        })
    }

    /// Since when a watch fails, if it does.
    pub(crate) fn failing_since(&self, watch: &str) -> Option<Instant> {
        match self.0.borrow().watches.get(watch)?.state {
            WatchState::Failing { since, .. } => Some(since),
            _ => None,
        }
    }

    /// How many watches fail right now with a kind of failure.
    pub(crate) fn failing_count(&self, kind: &str) -> usize {
        let failing = |w: &&WatchStatus| matches!(&w.state, WatchState::Failing { kind: k, .. } if k == kind);
        self.0.borrow().watches.values().filter(failing).count()
    }

    fn update(&self, watch: &str, change: impl FnOnce(&mut WatchStatus) -> bool) -> Transition {
        let mut transition = Transition {
            changed: false,
            was_failing: None,
        };
        self.0.send_modify(|all| {
            let status = all
                .watches
                .entry(watch.to_owned())
                .or_insert_with(|| WatchStatus {
                    state: WatchState::Waiting {
                        reason: "the first answer".to_owned(),
                        since: Instant::now(),
                    },
                    last_update: None,
                });
            if let WatchState::Failing { since, .. } = status.state {
                transition.was_failing = Some(since);
            }
            transition.changed = change(status);
        });
        transition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_beginning_and_is_told_once() {
        let (publisher, reader) = status_channel();
        assert!(publisher.current("leaf", Some(4)).changed);
        assert!(publisher.failing("leaf", "unreachable", "refused").changed);
        let WatchState::Failing { since, .. } = reader.borrow().watches["leaf"].state.clone() else {
            panic!()
        };
        assert!(!publisher.failing("leaf", "unreachable", "refused again").changed);
        assert_eq!(publisher.failing_count("unreachable"), 1);
        assert_eq!(publisher.failing_since("leaf"), Some(since));
        let back = publisher.current("leaf", Some(5));
        assert_eq!((back.changed, back.was_failing), (true, Some(since)));
        assert!(!publisher.current("leaf", Some(6)).changed);
    }
}
