//! The key sets of a worker: local ones, parsed once, and remote ones, fetched, kept and fetched anew.
//!
//! Sets are shared by the filters that name the same source, and go with the last of them; what fetches then
//! ends. How a set is fetched is injected ([`Fetch`]). Everything happens in one thread.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Weak as ArcWeak};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::filter::JwtFilter;
use super::jwks::Jwks;
use super::metrics::JwtMetrics;
use super::status::JwtError;
use crate::model::jwt::{Jwks as Source, JwksRetry, JwtAuthn, RemoteJwks};

/// How long before its keys get too old a set with `async_fetch` is fetched anew (Envoy's).
const REFETCH_BEFORE: Duration = Duration::from_secs(5);

/// One try to get the body of a key set: a `GET` of the URI from the cluster, whose answer is a 200. The store
/// bounds its time; dropping it gives it up. A body larger than [`super::jwks::MAX_BYTES`] is of no use.
pub type Fetch = Rc<dyn Fn(&RemoteJwks) -> Fetching>;
/// What [`Fetch`] returns.
pub type Fetching = Pin<Box<dyn Future<Output = Result<Bytes, FetchError>>>>;

/// Why a try failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct FetchError {
    /// For the log.
    pub why: String,
    /// Whether a retry policy covers it: the connection failed or was reset, or the answer is a 5xx.
    pub retriable: bool,
}

/// All key sets of a worker, and its filters as they run.
pub struct JwksStore {
    fetch: Fetch,
    sets: RefCell<Vec<Weak<KeySet>>>,
    filters: RefCell<Vec<Known>>,
}

/// A filter's configuration, under a prefix of statistics, and what it became.
type Known = (ArcWeak<JwtAuthn>, String, Rc<JwtFilter>);

/// One source of keys, and the keys.
pub(super) struct KeySet {
    source: Source,
    keys: RefCell<Option<Keys>>,
    /// What each waiting request, and a refetch, gets the outcome of.
    under_way: RefCell<Option<Outcome>>,
    /// End with the set: what fetches now, and what fetches in the background.
    tasks: RefCell<[Option<AbortHandle>; 2]>,
    fetch: Fetch,
    metrics: JwtMetrics,
}

/// Comes once.
type Outcome = watch::Receiver<Option<Result<Rc<Jwks>, JwtError>>>;

struct Keys {
    jwks: Rc<Jwks>,
    /// What they were parsed from: the same again is not parsed again, and tokens stay cached.
    body: Bytes,
    /// When they must be fetched again; none is never.
    until: Option<Instant>,
}

impl fmt::Debug for JwksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwksStore").finish_non_exhaustive()
    }
}

/// Without what local sets were written as, which may be secret.
impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").finish_non_exhaustive()
    }
}

impl JwksStore {
    /// Without keys. `fetch` is for remote ones.
    pub fn new(fetch: Fetch) -> Self {
        Self {
            fetch,
            sets: RefCell::default(),
            filters: RefCell::default(),
        }
    }

    /// The filter of this configuration, made when it is first asked for and forgotten with the
    /// configuration. `stat_prefix` begins its statistics: the connection manager's, `http.<name>.`. Must run
    /// inside a `LocalRuntime`: sets with `async_fetch` are fetched from now on.
    pub fn filter(&self, config: &Arc<JwtAuthn>, stat_prefix: &str) -> Rc<JwtFilter> {
        let mut filters = self.filters.borrow_mut();
        let address = Arc::as_ptr(config);
        let same = |(known, prefix, _): &&Known| known.as_ptr() == address && prefix == stat_prefix;
        if let Some((_, _, filter)) = filters.iter().find(same) {
            return Rc::clone(filter);
        }
        let metrics = JwtMetrics::new(stat_prefix, &config.stat_prefix);
        // Made before what is gone is dropped: the sets that both have stay.
        let filter = Rc::new(JwtFilter::new(config, metrics, |source, metrics| {
            self.set(source, metrics)
        }));
        forget(&mut filters);
        let known = (Arc::downgrade(config), stat_prefix.to_owned(), Rc::clone(&filter));
        filters.push(known);
        filter
    }

    /// Forgets the filters whose configuration is gone. Without it they, and what they fetch in the
    /// background, end when another filter is made.
    pub fn sweep(&self) {
        forget(&mut self.filters.borrow_mut());
    }

    fn set(&self, source: &Source, metrics: &JwtMetrics) -> Rc<KeySet> {
        let mut sets = self.sets.borrow_mut();
        sets.retain(|set| set.strong_count() > 0);
        if let Some(set) = sets
            .iter()
            .filter_map(Weak::upgrade)
            .find(|set| set.source == *source)
        {
            return set;
        }
        let set = KeySet::new(source, &self.fetch, metrics);
        sets.push(Rc::downgrade(&set));
        set
    }
}

fn forget(filters: &mut Vec<Known>) {
    filters.retain(|(config, ..)| config.strong_count() > 0);
}

impl KeySet {
    fn new(source: &Source, fetch: &Fetch, metrics: &JwtMetrics) -> Rc<Self> {
        let set = Rc::new(Self {
            source: source.clone(),
            keys: RefCell::default(),
            under_way: RefCell::default(),
            tasks: RefCell::default(),
            fetch: Rc::clone(fetch),
            metrics: metrics.clone(),
        });
        match source {
            Source::Local(text) => match Jwks::parse(text.as_bytes()) {
                Ok(jwks) => {
                    *set.keys.borrow_mut() = Some(Keys {
                        jwks: Rc::new(jwks),
                        body: Bytes::new(),
                        until: None,
                    });
                }
                Err(error) => tracing::warn!(%error, "a local_jwks cannot be used"),
            },
            Source::Remote(remote) => {
                if let Some(fetch) = remote.async_fetch {
                    let keep = keep_fresh(Rc::downgrade(&set), remote.cache_duration, fetch.failed_refetch);
                    set.tasks.borrow_mut()[1] = Some(spawn_local(keep).abort_handle());
                }
            }
        }
        set
    }

    /// The keys there are, however old.
    pub(super) fn current(&self) -> Option<Rc<Jwks>> {
        self.keys.borrow().as_ref().map(|keys| Rc::clone(&keys.jwks))
    }

    /// The keys, waiting for them where there are none that may still be used. All that wait, wait for the
    /// same fetch. A key that is missing is no reason for one: the keys are used until they are too old, as
    /// by Envoy.
    ///
    /// # Errors
    /// [`JwtError::NoValidKeys`] and [`JwtError::FetchFailed`].
    pub(super) async fn get(self: &Rc<Self>) -> Result<Rc<Jwks>, JwtError> {
        if let Some(keys) = &*self.keys.borrow()
            && keys.until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(Rc::clone(&keys.jwks));
        }
        let Source::Remote(remote) = &self.source else {
            return Err(JwtError::NoValidKeys);
        };
        self.fetched(remote).await
    }

    /// The outcome of the fetch under way, or of a new one.
    async fn fetched(self: &Rc<Self>, remote: &RemoteJwks) -> Result<Rc<Jwks>, JwtError> {
        let mut outcome = self.start(remote);
        let outcome = outcome.wait_for(Option::is_some).await;
        // The task ends without an outcome with the set alone.
        outcome
            .ok()
            .and_then(|outcome| outcome.clone())
            .unwrap_or(Err(JwtError::FetchFailed))
    }

    fn start(self: &Rc<Self>, remote: &RemoteJwks) -> Outcome {
        let mut under_way = self.under_way.borrow_mut();
        if let Some(outcome) = &*under_way {
            return outcome.clone();
        }
        let (tell, outcome) = watch::channel(None);
        let (set, remote, fetch) = (Rc::downgrade(self), remote.clone(), Rc::clone(&self.fetch));
        // A task of its own: the request that asked first may be gone before the answer is there.
        let task = spawn_local(async move {
            let body = within(remote.timeout, with_retries(&remote, &fetch)).await;
            if let Some(set) = set.upgrade() {
                let result = set.take(&remote, body);
                *set.under_way.borrow_mut() = None;
                tell.send_replace(Some(result));
            }
        });
        self.tasks.borrow_mut()[0] = Some(task.abort_handle());
        *under_way = Some(outcome.clone());
        outcome
    }

    fn take(&self, remote: &RemoteJwks, body: Result<Bytes, String>) -> Result<Rc<Jwks>, JwtError> {
        let parsed = body.and_then(|body| {
            let keys = self.keys.borrow();
            let jwks = match &*keys {
                Some(keys) if keys.body == body => Rc::clone(&keys.jwks),
                _ => Rc::new(Jwks::parse(&body).map_err(|error| error.to_string())?),
            };
            Ok((jwks, body))
        });
        match parsed {
            Ok((jwks, body)) => {
                self.metrics.jwks_fetch_success.increment(1);
                // What is fetched in the background is used until there is a newer one, as by Envoy.
                let until = match remote.async_fetch {
                    Some(_) => None,
                    None => Instant::now().checked_add(remote.cache_duration),
                };
                let keys = Rc::clone(&jwks);
                *self.keys.borrow_mut() = Some(Keys { jwks, body, until });
                Ok(keys)
            }
            Err(why) => {
                self.metrics.jwks_fetch_failed.increment(1);
                tracing::warn!(uri = %remote.uri, cluster = %remote.cluster, %why, "a JWKS cannot be fetched");
                Err(JwtError::FetchFailed)
            }
        }
    }
}

impl Drop for KeySet {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().iter().flatten() {
            task.abort();
        }
    }
}

/// Fetches now, and then before the keys get too old, or some time after a failure.
async fn keep_fresh(set: Weak<KeySet>, cache_duration: Duration, failed_refetch: Duration) {
    let good = cache_duration
        .checked_sub(REFETCH_BEFORE)
        .filter(|rest| !rest.is_zero())
        .unwrap_or(cache_duration);
    loop {
        let mut outcome = match set.upgrade() {
            Some(set) => match &set.source {
                Source::Remote(remote) => set.start(remote),
                Source::Local(_) => return,
            },
            None => return,
        };
        let done = outcome.wait_for(Option::is_some).await;
        let pause = match done.as_deref() {
            Ok(Some(Ok(_))) => good,
            _ => failed_refetch,
        };
        drop(done);
        // A pause of nothing would fetch without end.
        sleep(pause.max(Duration::from_millis(1))).await;
    }
}

/// Tries as often as the policy says.
async fn with_retries(remote: &RemoteJwks, fetch: &Fetch) -> Result<Bytes, String> {
    let mut pauses = remote.retry.map(pauses).into_iter().flatten();
    loop {
        let error = match fetch(remote).await {
            Ok(body) => return Ok(body),
            Err(error) => error,
        };
        match pauses.next() {
            Some(longest) if error.retriable => sleep(longest.mul_f64(fastrand::f64())).await,
            _ => return Err(error.why),
        }
    }
}

/// The longest pause before each further try: it doubles.
fn pauses(retry: JwksRetry) -> impl Iterator<Item = Duration> {
    let double = move |pause: &Duration| Some(pause.saturating_mul(2).min(retry.max_interval));
    std::iter::successors(Some(retry.base_interval.min(retry.max_interval)), double)
        .take(retry.num_retries as usize)
}

/// A time of zero is without end, as Envoy's.
async fn within<T>(time: Duration, doing: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    if time.is_zero() {
        return doing.await;
    }
    timeout(time, doing)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {time:?}")))
}
