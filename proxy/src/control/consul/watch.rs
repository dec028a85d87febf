//! One question to Consul, asked again and again: blocking where that is possible, else by polling.
//!
//! Owns the position in Consul's index, the pauses after failures and the status of one watch. A
//! [`Watch`] hands out only answers whose body is not the one of before; what they mean is decided
//! elsewhere. Dropping it cancels the question and frees its share of the [`Budget`].

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Answer, Client, ConsulError, Request};
use super::json::DecodeError;
use crate::control::StatusPublisher;
use crate::control::backoff::{Backoff, jitter};

/// How long Consul may hold a question without news.
const WAIT: Duration = Duration::from_secs(300);
/// The same for a question that holds a connection of its own: Consul does not notice that an asker is
/// gone before the wait is over, and a sidecar that starts again would find no place for so long.
const WAIT_ALONE: Duration = Duration::from_secs(60);
/// Consul adds up to a sixteenth of the wait, so that not all its clients come back at once.
const WAIT_JITTER_SHARE: u32 = 16;
/// For the way there and back and for a slow server.
const SLACK: Duration = Duration::from_secs(10);
/// Between two questions where Consul cannot hold them.
const POLL: Duration = Duration::from_secs(10);
/// The same for a prepared query, as Consul's own agent asks it.
const QUERY_POLL: Duration = Duration::from_secs(30);
/// Polling questions under way at once: they share this many connections.
const POLLS_AT_ONCE: usize = 4;
/// Blocking questions over HTTP/1.1, each of which holds a connection. Consul refuses an address that
/// has more than 200, and other programs on it want some too.
const MAX_BLOCKING: usize = 150;
/// The share of it for discovery chains: endpoints change far more often.
const MAX_BLOCKING_CHAINS: usize = 50;
/// The budget never shrinks below this.
const MIN_BLOCKING: usize = 8;
/// After Consul complained, the budget grows by one question in this time.
const REGROW: Duration = Duration::from_secs(60);
/// The longest pause while Consul is away: it is used again within three seconds of its return.
pub(super) const UNREACHABLE_CAP: Duration = Duration::from_secs(3);
/// The longest pause when it refuses: asking more often would only make it worse.
pub(super) const REFUSED_CAP: Duration = Duration::from_secs(20);
/// The pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The kind of failure that all watches have at once.
const UNREACHABLE: &str = "unreachable";
/// Complaints that come together are one; a question that Consul holds frees its place when it ends.
const SHRINK_PAUSE: Duration = Duration::from_secs(65);
/// Answers that come at once are taken this often before the watch is slowed down.
const BURST: f64 = 20.0;
/// And this often a second from then on.
const REFILL: f64 = 5.0;

/// Who gets a blocking question when there are not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Registration, authority, leaf, intentions: always.
    Essential,
    /// Healthy endpoints of a service.
    Endpoints,
    /// Discovery chains.
    Chain,
}

/// How a question waits for news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocking {
    /// `index=`.
    Index(Priority),
    /// `hash=`, for what the agent itself knows.
    Hash,
    /// It cannot: prepared queries.
    Never,
}

/// What is asked, and under which name it is told.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// For status, metrics and the log.
    pub(super) name: String,
    /// The request without what makes it block.
    pub(super) request: Request,
    pub(super) blocking: Blocking,
    /// 404 is an answer, not a failure.
    pub(super) missing_is_answer: bool,
}

/// What all watches of a source share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) budget: Rc<Budget>,
    pub(super) status: StatusPublisher,
}

/// One question that is kept asked.
pub(super) struct Watch {
    shared: Shared,
    question: Question,
    index: u64,
    hash: Option<String>,
    seen: Option<(u16, u64)>,
    backoff: Backoff,
    bucket: Bucket,
    permit: Option<Permit>,
    /// The last answer said nothing to wait on.
    unanchored: bool,
    generation: u64,
}

impl Watch {
    pub(super) fn new(shared: Shared, question: Question) -> Self {
        let news = shared.status.waiting(&question.name, "the first answer");
        recovered(&shared.status, &question.name, news.was_failing);
        gauge(&question.name, None);
        Self {
            shared,
            question,
            index: 0,
            hash: None,
            seen: None,
            backoff: backoff(),
            bucket: Bucket::new(),
            permit: None,
            unanchored: false,
            generation: 0,
        }
    }

    /// The next answer that is not the one of before. Failures are told, waited out and not returned.
    pub(super) async fn next(&mut self) -> Answer {
        loop {
            match self.ask().await {
                None => self.restart(),
                Some(Err(error)) => self.failed(&error).await,
                Some(Ok(answer)) => {
                    let seen = (answer.status, digest(&answer.body));
                    self.advance(&answer);
                    if self.seen != Some(seen) {
                        self.seen = Some(seen);
                        return answer;
                    }
                    self.accepted();
                }
            }
        }
    }

    /// The answer that was handed out last is good.
    pub(super) fn accepted(&mut self) {
        self.backoff.reset();
        let index = (self.index > 0).then_some(self.index);
        let name = &self.question.name;
        let transition = self.shared.status.current(name, index);
        recovered(&self.shared.status, name, transition.was_failing);
    }

    /// What is asked for is not there: [`Self::wait_again`] comes next. Says whether that is news.
    pub(super) fn absent(&mut self, reason: &str) -> bool {
        let name = &self.question.name;
        let news = self.shared.status.waiting(name, reason);
        recovered(&self.shared.status, name, news.was_failing);
        self.restart();
        self.seen = None;
        news.changed
    }

    /// Until what is absent is worth another question: ever longer, up to three seconds.
    pub(super) async fn wait_again(&mut self) {
        self.pause(UNREACHABLE_CAP).await;
    }

    /// Waits out a failure; another token is a reason to ask at once.
    async fn pause(&mut self, cap: Duration) {
        let mut token = self.shared.client.token();
        tokio::select! {
            () = tokio::time::sleep(self.backoff.next(cap)) => {}
            () = token.newer_than(self.generation) => {}
        }
    }

    /// The answer that was handed out last is not understood: it is told and asked for again.
    pub(super) async fn rejected(&mut self, error: DecodeError) {
        self.failed(&ConsulError::Rubbish(error)).await;
        self.seen = None;
    }

    fn restart(&mut self) {
        self.index = 0;
        self.hash = None;
    }

    async fn failed(&mut self, error: &ConsulError) {
        self.restart();
        let cap = match error {
            ConsulError::Status { code: 429, .. } => {
                self.permit = None;
                let open = self.shared.client.connections();
                self.shared.budget.shrink(open, Instant::now());
                REFUSED_CAP
            }
            ConsulError::Status { code: 403, .. } => REFUSED_CAP,
            ConsulError::Rubbish(_) | ConsulError::TooLarge => REFUSED_CAP,
            ConsulError::Unreachable { .. } | ConsulError::Timeout(_) | ConsulError::Status { .. } => {
                UNREACHABLE_CAP
            }
        };
        let name = &self.question.name;
        let why = error.to_string();
        let kind = error.kind();
        // With Consul gone or overrun every watch fails alike: one line is enough.
        let all_alike = matches!(
            error,
            ConsulError::Unreachable { .. }
                | ConsulError::Timeout(_)
                | ConsulError::Status {
                    code: 429 | 500..,
                    ..
                }
        );
        let common = all_alike && self.shared.status.failing_count(&kind) > 0;
        let news = self.shared.status.failing(name, &kind, &why);
        let since = news.was_failing.unwrap_or_else(std::time::Instant::now);
        gauge(name, Some(since));
        if news.changed && !common && self.shared.status.is_ready() {
            tracing::warn!(
                watch = name,
                why,
                "Consul fails; the last good state goes on serving"
            );
        } else if news.changed && !common {
            tracing::warn!(watch = name, why, "Consul fails; waiting for it");
        } else {
            tracing::debug!(watch = name, why, "Consul fails");
        }
        self.pause(cap).await;
    }

    fn advance(&mut self, answer: &Answer) {
        match self.question.blocking {
            Blocking::Index(_) => {
                self.index = next_index(self.index, answer.index);
                self.unanchored = answer.index.is_none();
            }
            Blocking::Hash => {
                self.hash.clone_from(&answer.hash);
                self.unanchored = answer.hash.is_none();
            }
            Blocking::Never => self.unanchored = true,
        }
    }

    /// Asks once; `None` when the token changed meanwhile.
    async fn ask(&mut self) -> Option<Result<Answer, ConsulError>> {
        self.take_permit();
        let polls = self.permit.is_none() && self.question.blocking != Blocking::Hash;
        let repeats = self.backoff.is_fresh() && self.seen.is_some();
        let mut token = self.shared.client.token();
        if self.generation == 0 {
            self.generation = token.current().generation;
        }
        if repeats && (polls || self.unanchored) {
            let pause = match self.question.blocking {
                Blocking::Never => QUERY_POLL,
                Blocking::Index(_) | Blocking::Hash => POLL,
            };
            tokio::select! {
                () = tokio::time::sleep(jitter(pause)) => {}
                () = token.newer_than(self.generation) => {}
            }
        }
        tokio::time::sleep(self.bucket.pause(Instant::now())).await;
        self.generation = token.current().generation;
        let request = self.request(polls);
        let budget = Rc::clone(&self.shared.budget);
        let exchange = async {
            let _turn = if polls {
                budget.turns.acquire().await.ok()
            } else {
                None
            };
            self.shared.client.send(&request).await
        };
        let answer = tokio::select! {
            answer = exchange => answer,
            () = token.newer_than(self.generation) => return None,
        };
        Some(answer.and_then(|answer| match answer.refusal() {
            Some(_) if answer.status == 404 && self.question.missing_is_answer => Ok(answer),
            Some(refusal) => Err(refusal),
            None => Ok(answer),
        }))
    }

    fn request(&self, polls: bool) -> Request {
        let mut request = self.question.request.clone();
        let position = match (&self.hash, self.index) {
            (Some(hash), _) => format!("hash={}", super::client::escape(hash)),
            (None, index) if index > 0 && !polls => format!("index={index}"),
            _ => return request,
        };
        let joint = if request.target.contains('?') { '&' } else { '?' };
        let alone = self.permit.as_ref().is_some_and(|permit| permit.spare);
        let wait = if alone { WAIT_ALONE } else { WAIT };
        let blocking = format!("{joint}{position}&wait={}s", wait.as_secs());
        request.afresh = Some(Box::new(request.clone()));
        request.target.push_str(&blocking);
        request.timeout = wait + wait / WAIT_JITTER_SHARE + SLACK;
        request
    }

    fn take_permit(&mut self) {
        let budget = &self.shared.budget;
        let too_many = budget.used.get() > budget.limit(Instant::now());
        if too_many && self.permit.as_ref().is_some_and(|permit| permit.spare) {
            self.permit = None;
            return;
        }
        if let (None, Blocking::Index(priority)) = (&self.permit, self.question.blocking) {
            let unlimited = self.shared.client.multiplexes();
            self.permit = Budget::take(&self.shared.budget, priority, unlimited, Instant::now());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        gauge(&self.question.name, None);
        self.shared.status.forget(&self.question.name);
    }
}

/// Since when a watch fails, as a metric; zero when it does not.
pub(super) fn gauge(name: &str, failing_since: Option<std::time::Instant>) {
    let seconds = failing_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    metrics::gauge!("attache_consul_failing_since_seconds", "watch" => name.to_owned()).set(seconds);
}

/// Tells that something which failed since then does so no more. Whatever comes back last after an
/// outage says so for all.
pub(super) fn recovered(status: &StatusPublisher, name: &str, failing_since: Option<std::time::Instant>) {
    let Some(since) = failing_since else {
        return;
    };
    gauge(name, None);
    let seconds = since.elapsed().as_secs();
    if status.failing_count(UNREACHABLE) == 0 {
        tracing::info!(watch = name, seconds, "Consul answers again");
    } else {
        tracing::debug!(watch = name, seconds, "Consul answers again");
    }
}

fn digest(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// Where to wait next. An index that went backwards is another history: ask without waiting. Zero
/// would not wait at all and is taken for one.
fn next_index(current: u64, answered: Option<u64>) -> u64 {
    match answered {
        None => 0,
        Some(index) if index < current => 0,
        Some(index) => index.max(1),
    }
}

/// The pauses after failures of Consul's HTTP API.
pub(super) fn backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE)
}

/// Bounds how often one watch wakes up.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self {
            tokens: BURST,
            at: Instant::now(),
        }
    }

    fn pause(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + elapsed * REFILL).min(BURST) - 1.0;
        Duration::from_secs_f64((-self.tokens).max(0.0) / REFILL)
    }
}

/// How many questions may hold a connection.
pub(super) struct Budget {
    used: Cell<usize>,
    chains: Cell<usize>,
    shrunk: Cell<Option<(Instant, usize)>>,
    told: Cell<bool>,
    turns: tokio::sync::Semaphore,
}

/// One question's share; given back when dropped.
struct Permit {
    budget: Rc<Budget>,
    chain: bool,
    /// It may be asked back.
    spare: bool,
}

impl Budget {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            used: Cell::new(0),
            chains: Cell::new(0),
            shrunk: Cell::new(None),
            told: Cell::new(false),
            turns: tokio::sync::Semaphore::new(POLLS_AT_ONCE),
        })
    }

    fn limit(&self, now: Instant) -> usize {
        let Some((at, limit)) = self.shrunk.get() else {
            return MAX_BLOCKING;
        };
        let regrown = now.saturating_duration_since(at).as_secs() / REGROW.as_secs();
        MAX_BLOCKING.min(limit + usize::try_from(regrown).unwrap_or(MAX_BLOCKING))
    }

    fn take(this: &Rc<Self>, priority: Priority, unlimited: bool, now: Instant) -> Option<Permit> {
        let chain = priority == Priority::Chain;
        let limit = this.limit(now);
        let free =
            this.used.get() < limit && (!chain || this.chains.get() < MAX_BLOCKING_CHAINS.min(limit / 3));
        if !free && !unlimited && priority != Priority::Essential {
            if !this.told.replace(true) {
                let blocking = this.used.get();
                tracing::info!(
                    blocking,
                    poll_seconds = POLL.as_secs(),
                    "Consul allows an address only so many connections: further queries poll"
                );
            }
            return None;
        }
        this.used.set(this.used.get() + 1);
        this.chains.set(this.chains.get() + usize::from(chain));
        Some(Permit {
            budget: Rc::clone(this),
            chain,
            spare: priority != Priority::Essential && !unlimited,
        })
    }

    /// Consul complained while `open` connections were open: a quarter of them is for others.
    fn shrink(&self, open: usize, now: Instant) {
        if let Some((at, _)) = self.shrunk.get()
            && now.saturating_duration_since(at) < SHRINK_PAUSE
        {
            return;
        }
        let limit = (open * 3 / 4).max(MIN_BLOCKING).min(self.limit(now));
        self.shrunk.set(Some((now, limit)));
        tracing::info!(
            blocking = limit,
            "Consul has too many connections from here: fewer wait"
        );
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.set(self.budget.used.get().saturating_sub(1));
        let chain = usize::from(self.chain);
        self.budget
            .chains
            .set(self.budget.chains.get().saturating_sub(chain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_goes_on_or_starts_again() {
        for (current, answered, next) in [
            (0, Some(7), 7),
            (7, Some(7), 7),
            (7, Some(9), 9),
            (9, Some(8), 0),
            (9, Some(0), 0),
            (0, Some(0), 1),
            (9, None, 0),
            (0, None, 0),
        ] {
            assert_eq!(next_index(current, answered), next, "{current} {answered:?}");
        }
    }

    #[test]
    fn pauses_grow_to_a_cap_and_are_never_zero() {
        let mut backoff = backoff();
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            let pause = backoff.next(UNREACHABLE_CAP);
            assert!(pause >= Duration::from_millis(100) && pause <= UNREACHABLE_CAP);
            longest = longest.max(pause);
        }
        assert!(longest > Duration::from_millis(1400));
    }

    #[test]
    fn a_watch_that_is_woken_all_the_time_is_slowed_down() {
        let mut bucket = Bucket::new();
        let begin = Instant::now();
        let mut now = begin;
        for _ in 0..120 {
            now += bucket.pause(now);
        }
        let elapsed = now - begin;
        assert!(elapsed > Duration::from_secs(18), "{elapsed:?}");
        assert!(elapsed < Duration::from_secs(25), "{elapsed:?}");
    }

    #[test]
    fn the_budget_is_kept_shrinks_and_grows_again() {
        let budget = Budget::new();
        let now = Instant::now();
        let take = |priority| Budget::take(&budget, priority, false, now);
        let chains: Vec<_> = std::iter::from_fn(|| take(Priority::Chain)).collect();
        assert_eq!(chains.len(), MAX_BLOCKING_CHAINS);
        let mut rest: Vec<_> = std::iter::from_fn(|| take(Priority::Endpoints)).collect();
        assert_eq!(chains.len() + rest.len(), MAX_BLOCKING);
        assert!(take(Priority::Essential).is_some());
        assert!(Budget::take(&budget, Priority::Chain, true, now).is_some());
        budget.shrink(MAX_BLOCKING, now);
        budget.shrink(MAX_BLOCKING / 2, now);
        assert_eq!(budget.limit(now), MAX_BLOCKING * 3 / 4);
        rest.truncate(MAX_BLOCKING * 3 / 4 - MAX_BLOCKING_CHAINS);
        assert!(take(Priority::Endpoints).is_none());
        assert_eq!(budget.limit(now + REGROW * 15), MAX_BLOCKING * 3 / 4 + 15);
        assert_eq!(budget.limit(now + REGROW * 1000), MAX_BLOCKING);
    }
}
