//! Blocking queries: who waits, for how long, and what ends the wait.
//!
//! A query with an index waits while the answer's own index is not above it, also when it is far
//! below (Consul does the same after a restart with smaller indexes). A query with a hash waits
//! while the content is the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::{Answer, Ask};
use super::clock::parse_duration;
use super::endpoints;
use super::state::State;

/// Consul's default for `wait`.
const DEFAULT_WAIT: Duration = Duration::from_secs(5 * 60);
/// Longer waits are cut down to this.
const MAX_WAIT: Duration = Duration::from_secs(10 * 60);
/// Consul adds up to a sixteenth of the wait, so that queries started together do not end together.
const JITTER_PART: u32 = 16;

/// The state, and the bell that rings when it changes.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Reads or changes the state; those who wait look again after a change.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let (result, version) = {
            let mut state = self.lock();
            (act(&mut state), state.version)
        };
        self.changes
            .send_if_modified(|seen| std::mem::replace(seen, version) != version);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request waits for.
#[derive(Debug)]
struct Wait {
    index: u64,
    hash: Option<String>,
    until: Instant,
}

impl Wait {
    fn of(ask: &Ask) -> Result<Self, Answer> {
        let index = match ask.param("index") {
            None | Some("") => 0,
            Some(text) => text.parse().map_err(|_| Answer::text(400, "Invalid index"))?,
        };
        let wait = match ask.param("wait") {
            None | Some("") => DEFAULT_WAIT,
            Some(text) => parse_duration(text).ok_or_else(|| Answer::text(400, "Invalid wait time"))?,
        };
        let wait = wait.min(MAX_WAIT);
        let jitter = (wait / JITTER_PART).mul_f64(fastrand::f64());
        Ok(Self {
            index,
            hash: ask.param("hash").filter(|it| !it.is_empty()).map(str::to_owned),
            until: Instant::now() + wait + jitter,
        })
    }

    fn goes_on(&self, answer: &Answer) -> bool {
        let same_hash = self.hash.is_some() && self.hash == answer.hash;
        let same_index = self.index > 0 && answer.index.is_some_and(|index| index <= self.index);
        same_hash || same_index
    }
}

/// Counts a waiting query for as long as it waits, also when its connection goes away meanwhile.
struct Waiting<'a>(&'a Shared, &'a str);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, path: &'a str) -> Self {
        shared.with(|state| *state.waiting.entry(path.to_owned()).or_default() += 1);
        Self(shared, path)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.with(|state| {
            if let Some(count) = state.waiting.get_mut(self.1) {
                *count -= 1;
            }
        });
    }
}

/// The answer, at once or when it changes or when the wait is over.
pub(super) async fn answer(shared: &Shared, ask: &Ask) -> Answer {
    let wait = match Wait::of(ask) {
        Ok(wait) => wait,
        Err(refusal) => return refusal,
    };
    let mut changes = shared.changes.subscribe();
    let mut waiting = None;
    loop {
        changes.borrow_and_update();
        let answer = shared.with(|state| endpoints::answer(state, ask));
        if !wait.goes_on(&answer) {
            return answer;
        }
        waiting.get_or_insert_with(|| Waiting::new(shared, &ask.path));
        let by_itself = answer.changes_at.map_or(wait.until, Instant::from_std);
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(by_itself.min(wait.until)) => {
                if Instant::now() >= wait.until {
                    return answer;
                }
            }
        }
    }
}
