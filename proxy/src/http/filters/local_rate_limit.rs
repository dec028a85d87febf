//! `envoy.filters.http.local_ratelimit`: a token bucket that decides whether a request goes on, as Envoy
//! 1.40's.
//!
//! Pure: the time is given. What is answered and counted is the caller's; a bucket may be shared by threads.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::model::http::{LocalRateLimit, Sampling, TokenBucketOptions};

/// What a refusal says.
const BODY: &str = "local_rate_limited";

/// gRPC's UNAVAILABLE, which 429 is to gRPC.
const UNAVAILABLE: u8 = 14;

/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u8 = 8;

/// Tokens that come back evenly, not in bursts: a half of the interval brings half of them. Full at first.
#[derive(Debug)]
pub(in crate::http) struct TokenBucket {
    /// When it was empty, or would have been, in nanoseconds of the caller's clock: what came since is there.
    empty_at: AtomicI64,
    /// Nanoseconds that a token takes, at least 1.
    token: i64,
    /// Nanoseconds that all of them take.
    full: i64,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Verdict {
    /// Not looked at.
    Disabled,
    /// There was a token for it. It counts as `ok`.
    Allowed,
    /// There was none, but that is only watched: it goes on, with
    /// [`LocalRateLimit::request_headers_to_add`]. It counts as `rate_limited`, and its log line has `RL`.
    NotEnforced,
    /// There was none. It counts as `rate_limited` and `enforced`; answered by `status` and `body` as
    /// `text/plain`, or `grpc_status` to gRPC, with [`LocalRateLimit::response_headers_to_add`], the flag `RL`
    /// and the connection kept.
    Refused {
        /// HTTP's.
        status: u16,
        /// gRPC's.
        grpc_status: u8,
        /// To gRPC, its `grpc-message`.
        body: &'static str,
    },
}

impl TokenBucket {
    /// A full one at `now`, by any clock that goes on.
    pub(in crate::http) fn new(options: &TokenBucketOptions, now: Duration) -> Self {
        let interval = nanoseconds(options.fill_interval);
        let token = (interval / i64::from(options.tokens_per_fill.max(1))).max(1);
        let full = token.saturating_mul(i64::from(options.max_tokens));
        Self {
            empty_at: AtomicI64::new(nanoseconds(now).saturating_sub(full)),
            token,
            full,
        }
    }

    /// Takes a token, if there is a whole one at `now`.
    pub(in crate::http) fn take(&self, now: Duration) -> bool {
        let now = nanoseconds(now);
        let take = |empty_at: i64| {
            // What came after it was full ran over.
            let empty_at = empty_at
                .max(now.saturating_sub(self.full))
                .saturating_add(self.token);
            (empty_at <= now).then_some(empty_at)
        };
        // Nothing else is guarded by it.
        self.empty_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

/// The buckets of all workers, each as long as its configuration. A worker looks here once for each.
static BUCKETS: Mutex<Vec<(Weak<LocalRateLimit>, Arc<TokenBucket>)>> = Mutex::new(Vec::new());

/// The process' bucket of a configuration; none limits nothing. To be kept by whoever asks, not on a request's
/// path.
pub(in crate::http) fn shared(options: &Arc<LocalRateLimit>) -> Option<Arc<TokenBucket>> {
    let mut all = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(of, _)| of.strong_count() > 0);
    let known = all.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(options));
    if let Some((_, bucket)) = known {
        return Some(Arc::clone(bucket));
    }
    let bucket = Arc::new(TokenBucket::new(options.bucket.as_ref()?, now()));
    all.push((Arc::downgrade(options), Arc::clone(&bucket)));
    Some(bucket)
}

/// Since the first call in this process.
pub(in crate::http) fn now() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}

/// Saturates after 292 years.
fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Decides on a request. `bucket` is the listener's or the connection's
/// ([`LocalRateLimit::per_connection`]); `chance` draws whether a share includes this request.
pub(in crate::http) fn check(
    options: &LocalRateLimit,
    bucket: Option<&TokenBucket>,
    now: Duration,
    chance: impl Fn(Sampling) -> bool,
) -> Verdict {
    let Some(bucket) = bucket.filter(|_| chance(options.enabled)) else {
        return Verdict::Disabled;
    };
    if bucket.take(now) {
        return Verdict::Allowed;
    }
    if !chance(options.enforced) {
        return Verdict::NotEnforced;
    }
    Verdict::Refused {
        status: options.status,
        grpc_status: if options.grpc_resource_exhausted {
            RESOURCE_EXHAUSTED
        } else {
            UNAVAILABLE
        },
        body: BODY,
    }
}

#[cfg(test)]
mod tests {
    //! What Envoy 1.40.0 answered, at these times since the first request.

    use super::*;

    fn options(max_tokens: u32, tokens_per_fill: u32, fill_interval_ms: u64) -> TokenBucketOptions {
        TokenBucketOptions {
            max_tokens,
            tokens_per_fill,
            fill_interval: Duration::from_millis(fill_interval_ms),
        }
    }

    /// A digit a request: whether it got a token.
    fn taken(options: &TokenBucketOptions, at_ms: &[u64]) -> String {
        let start = Duration::from_secs(1_000_000);
        let bucket = TokenBucket::new(options, start);
        let take = |at: &u64| bucket.take(start + Duration::from_millis(*at));
        at_ms.iter().map(|at| if take(at) { '1' } else { '0' }).collect()
    }

    #[test]
    fn tokens_come_back_evenly_and_only_whole_ones_count() {
        let times = [
            0, 10, 20, 500, 900, 990, 1020, 1030, 1900, 2050, 2060, 4900, 4910, 4920,
        ];
        assert_eq!(taken(&options(2, 1, 1000), &times), "11000010010110");
        let ten = options(10, 10, 1000);
        let times: Vec<u64> = (0..14)
            .chain([110, 120, 210, 220, 550, 551, 552, 553, 554, 1200])
            .collect();
        assert_eq!(taken(&ten, &times), "111111111100001010111001");
        let times = [0, 10, 20, 30, 150, 250, 300, 450, 500, 650, 700];
        assert_eq!(taken(&options(2, 50, 10_000), &times), "11000101010");
        assert_eq!(taken(&options(3, 1, 600_000), &[0, 0, 0, 0, 100]), "11100");
    }

    #[test]
    fn extremes_do_no_harm() {
        let most = options(u32::MAX, u32::MAX, 50);
        assert_eq!(taken(&most, &[0, 0, 1_000_000]), "111");
        let longest = TokenBucketOptions {
            fill_interval: Duration::MAX,
            ..options(u32::MAX, 1, 0)
        };
        assert_eq!(taken(&longest, &[0]), "1");
        assert_eq!(taken(&options(0, 0, 0), &[0, 5]), "00");
        // A clock that goes back brings nothing.
        let bucket = TokenBucket::new(&options(1, 1, 1000), Duration::from_secs(9));
        assert!(bucket.take(Duration::from_secs(9)) && !bucket.take(Duration::from_secs(3)));
    }

    #[test]
    fn who_finds_no_token_is_refused_where_that_is_enforced() {
        let share = |percent| Sampling::from_percent(percent).unwrap();
        let all = |sampling: Sampling| sampling == Sampling::ALL;
        let options = LocalRateLimit {
            stat_prefix: "s".into(),
            status: 429,
            bucket: Some(options(1, 1, 1000)),
            enabled: Sampling::ALL,
            enforced: Sampling::ALL,
            request_headers_to_add: Vec::new(),
            response_headers_to_add: Vec::new(),
            per_connection: false,
            grpc_resource_exhausted: false,
        };
        let bucket = TokenBucket::new(&options.bucket.unwrap(), Duration::ZERO);
        let verdict = |options: &LocalRateLimit| check(options, Some(&bucket), Duration::ZERO, all);
        let off = LocalRateLimit {
            enabled: share(0.0),
            ..options.clone()
        };
        assert_eq!(verdict(&off), Verdict::Disabled);
        assert_eq!(check(&options, None, Duration::ZERO, all), Verdict::Disabled);
        assert_eq!(verdict(&options), Verdict::Allowed);
        let refused = |status, grpc_status| Verdict::Refused {
            status,
            grpc_status,
            body: "local_rate_limited",
        };
        assert_eq!(verdict(&options), refused(429, 14));
        let watched = LocalRateLimit {
            enforced: share(0.0),
            ..options.clone()
        };
        assert_eq!(verdict(&watched), Verdict::NotEnforced);
        let other = LocalRateLimit {
            status: 503,
            grpc_resource_exhausted: true,
            ..options
        };
        assert_eq!(verdict(&other), refused(503, 8));
    }
}
