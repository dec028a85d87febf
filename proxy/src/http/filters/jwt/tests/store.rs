//! Remote keys, on paused time: when they are fetched, who waits, and what is served meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Bytes;
use serde_json::json;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use super::Asked;
use super::keys::{Private, set};
use crate::http::filters::jwt::{Fetch, FetchError, JwksStore, JwtError, JwtFilter, METADATA_NAMESPACE};
use crate::model::jwt::{
    Jwks, JwksAsyncFetch, JwksRetry, JwtAuthn, JwtCache, JwtClaimToHeader, JwtProvider, JwtRequirement,
    JwtRule, RemoteJwks,
};
use crate::model::metadata::Metadata;
use crate::model::route::{PathMatch, RouteMatch};

const SECOND: Duration = Duration::from_secs(1);

/// What an issuer answers.
#[derive(Clone)]
enum Answer {
    Keys(String),
    Fails { retriable: bool },
    Never,
}

/// An issuer that counts who asks.
struct Issuer {
    answer: RefCell<Answer>,
    /// How long each answer takes.
    takes: Cell<Duration>,
    asked: Cell<u32>,
}

impl Issuer {
    fn new(answer: Answer) -> Rc<Self> {
        Rc::new(Self {
            answer: RefCell::new(answer),
            takes: Cell::new(SECOND),
            asked: Cell::new(0),
        })
    }

    fn store(self: &Rc<Self>) -> JwksStore {
        let issuer = Rc::clone(self);
        let fetch: Fetch = Rc::new(move |remote| {
            assert_eq!(&*remote.uri, "https://issuer/keys");
            let issuer = Rc::clone(&issuer);
            Box::pin(async move {
                issuer.asked.set(issuer.asked.get() + 1);
                let answer = issuer.answer.borrow().clone();
                sleep(issuer.takes.get()).await;
                match answer {
                    Answer::Keys(keys) => Ok(Bytes::from(keys)),
                    Answer::Fails { retriable } => Err(FetchError {
                        why: "refused".to_owned(),
                        retriable,
                    }),
                    Answer::Never => std::future::pending().await,
                }
            })
        });
        JwksStore::new(fetch)
    }
}

fn remote() -> RemoteJwks {
    RemoteJwks {
        uri: "https://issuer/keys".into(),
        cluster: "issuer".into(),
        timeout: 5 * SECOND,
        cache_duration: 60 * SECOND,
        async_fetch: None,
        retry: None,
    }
}

fn background() -> RemoteJwks {
    RemoteJwks {
        async_fetch: Some(JwksAsyncFetch {
            fast_listener: false,
            failed_refetch: 3 * SECOND,
        }),
        ..remote()
    }
}

/// A filter that asks everybody for a token of one provider.
fn config(jwks: Jwks) -> Arc<JwtAuthn> {
    let provider = JwtProvider {
        issuer: None,
        audiences: Vec::new(),
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        clock_skew: 60 * SECOND,
        jwks,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward: true,
        forward_payload_header: None,
        pad_forward_payload_header: false,
        claim_to_headers: Vec::new(),
        payload_in_metadata: Some("payload".into()),
        space_delimited_claims: Vec::new(),
        header_in_metadata: None,
        failed_status_in_metadata: Some("failed".into()),
        clear_route_cache: false,
        cache: Some(JwtCache {
            size: 10,
            max_token_size: 4096,
        }),
    };
    Arc::new(JwtAuthn {
        providers: BTreeMap::from([("p".into(), Arc::new(provider))]),
        rules: vec![JwtRule {
            matches: RouteMatch::path(PathMatch::Prefix("/".into())),
            requires: Some(JwtRequirement::Provider {
                name: "p".into(),
                audiences: None,
            }),
        }],
        bypass_cors_preflight: false,
        strip_failure_response: false,
        stat_prefix: "".into(),
    })
}

/// A key, its set and a token of it that ends in the year 2100.
struct Signer {
    private: Private,
    set: String,
    token: String,
}

impl Signer {
    fn new() -> Self {
        let private = Private::p256();
        let set = set([private.jwk()]);
        let token = private.token(
            &json!({ "alg": "ES256" }),
            &json!({ "sub": "a", "exp": 4_102_444_800_u64 }),
        );
        Self { private, set, token }
    }

    fn keys(&self) -> Answer {
        Answer::Keys(self.set.clone())
    }
}

async fn ask(filter: &JwtFilter, token: &str) -> Result<(), JwtError> {
    ask_at(filter, token, 1_700_000_000).await
}

async fn ask_at(filter: &JwtFilter, token: &str, now: u64) -> Result<(), JwtError> {
    let mut request = Asked::get("/").bearer(token);
    let mut metadata = Metadata::default();
    let now = UNIX_EPOCH + Duration::from_secs(now);
    let result = filter.authenticate(&mut request, &mut metadata, now).await;
    match result {
        Ok(_) => {
            assert!(metadata.get(METADATA_NAMESPACE, &["payload", "sub"]).is_some());
            Ok(())
        }
        Err(refusal) => {
            let reason = refusal.reason.unwrap();
            assert_eq!(refusal.body, reason.to_string());
            let code = metadata.get(METADATA_NAMESPACE, &["failed", "code"]);
            assert_eq!(code, Some(&reason.code().into()));
            Err(reason)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_wait_wait_for_one_fetch() {
    LocalSet::new()
        .run_until(async {
            let signer = Rc::new(Signer::new());
            let issuer = Issuer::new(signer.keys());
            let store = issuer.store();
            let config = config(Jwks::Remote(remote()));
            let filter = store.filter(&config, "http.t.");
            assert_eq!(issuer.asked.get(), 0, "nobody has asked yet");
            let began = Instant::now();
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let (filter, signer) = (Rc::clone(&filter), Rc::clone(&signer));
                    spawn_local(async move { ask(&filter, &signer.token).await })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(()));
            }
            assert_eq!((issuer.asked.get(), began.elapsed()), (1, SECOND));
            // Another key is none of a rotation's: the set is used until it is too old.
            let stranger = Signer::new();
            for _ in 0..10 {
                assert_eq!(
                    ask(&filter, &stranger.token).await,
                    Err(JwtError::VerificationFails)
                );
            }
            let unknown = signer
                .private
                .token(&json!({ "alg": "RS256", "kid": "x" }), &json!({ "sub": "a" }));
            assert_eq!(ask(&filter, &unknown).await, Err(JwtError::VerificationFails));
            sleep(59 * SECOND).await;
            assert_eq!(
                ask(&filter, &stranger.token).await,
                Err(JwtError::VerificationFails)
            );
            assert_eq!(issuer.asked.get(), 1);
            sleep(SECOND).await;
            assert_eq!(
                ask(&filter, &stranger.token).await,
                Err(JwtError::VerificationFails)
            );
            assert_eq!(issuer.asked.get(), 2);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn who_asked_first_may_leave() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(signer.keys());
            let store = issuer.store();
            let config = config(Jwks::Remote(remote()));
            let filter = store.filter(&config, "http.t.");
            tokio::select! {
                biased;
                _ = ask(&filter, &signer.token) => panic!("the answer takes longer"),
                () = sleep(SECOND / 2) => {}
            }
            let began = Instant::now();
            assert_eq!(ask(&filter, &signer.token).await, Ok(()));
            assert_eq!((issuer.asked.get(), began.elapsed()), (1, SECOND / 2));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn without_keys_nobody_passes() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let bad = ["", "{}", "{\"keys\":[]}"].map(|text| Answer::Keys(text.to_owned()));
            let failing = [Answer::Fails { retriable: true }];
            for answer in bad.into_iter().chain(failing) {
                let issuer = Issuer::new(answer);
                let store = issuer.store();
                let config = config(Jwks::Remote(remote()));
                let filter = store.filter(&config, "http.t.");
                assert_eq!(ask(&filter, &signer.token).await, Err(JwtError::FetchFailed));
                // The next request tries again, and may find keys.
                *issuer.answer.borrow_mut() = signer.keys();
                assert_eq!(ask(&filter, &signer.token).await, Ok(()));
                assert_eq!(issuer.asked.get(), 2);
                // Too old is as good as none, as with Envoy.
                *issuer.answer.borrow_mut() = Answer::Fails { retriable: false };
                sleep(61 * SECOND).await;
                let other = signer
                    .private
                    .token(&json!({ "alg": "ES256" }), &json!({ "sub": "b" }));
                assert_eq!(ask(&filter, &other).await, Err(JwtError::FetchFailed));
                // But a token that was good stays good, as with Envoy.
                assert_eq!(ask(&filter, &signer.token).await, Ok(()));
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_fetch_takes_so_long_at_most() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(Answer::Never);
            let store = issuer.store();
            let config = config(Jwks::Remote(remote()));
            let filter = store.filter(&config, "http.t.");
            let began = Instant::now();
            assert_eq!(ask(&filter, &signer.token).await, Err(JwtError::FetchFailed));
            assert_eq!(began.elapsed(), 5 * SECOND);
            *issuer.answer.borrow_mut() = signer.keys();
            assert_eq!(ask(&filter, &signer.token).await, Ok(()));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_zero_has_no_end() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(signer.keys());
            issuer.takes.set(1000 * SECOND);
            let store = issuer.store();
            let config = config(Jwks::Remote(RemoteJwks {
                timeout: Duration::ZERO,
                ..remote()
            }));
            let filter = store.filter(&config, "http.t.");
            assert_eq!(ask(&filter, &signer.token).await, Ok(()));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn tries_as_often_as_the_policy_says() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            for (retriable, timeout, asked) in [
                (true, 600 * SECOND, 4),
                (false, 600 * SECOND, 1),
                // All tries together, with their pauses.
                (true, SECOND / 2, 1),
            ] {
                let issuer = Issuer::new(Answer::Fails { retriable });
                let store = issuer.store();
                let config = config(Jwks::Remote(RemoteJwks {
                    timeout,
                    retry: Some(JwksRetry {
                        num_retries: 3,
                        base_interval: 10 * SECOND,
                        max_interval: 15 * SECOND,
                    }),
                    ..remote()
                }));
                let filter = store.filter(&config, "http.t.");
                let began = Instant::now();
                assert_eq!(ask(&filter, &signer.token).await, Err(JwtError::FetchFailed));
                assert_eq!(issuer.asked.get(), asked);
                assert!(began.elapsed() <= (4 + 10 + 15 + 15) * SECOND);
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn in_the_background_keys_are_there_before_anybody_asks() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(signer.keys());
            let store = issuer.store();
            let config = config(Jwks::Remote(background()));
            let filter = store.filter(&config, "http.t.");
            sleep(2 * SECOND).await;
            let began = Instant::now();
            assert_eq!(ask(&filter, &signer.token).await, Ok(()));
            assert_eq!((issuer.asked.get(), began.elapsed()), (1, Duration::ZERO));
            // Fetched at 1 s, and again 5 s before it is 60 s old.
            sleep(53 * SECOND).await;
            assert_eq!(issuer.asked.get(), 1);
            sleep(2 * SECOND).await;
            assert_eq!(issuer.asked.get(), 2);
            // From then on it fails, each 3 s anew, and the last keys are used.
            *issuer.answer.borrow_mut() = Answer::Fails { retriable: false };
            sleep(600 * SECOND).await;
            let other = signer
                .private
                .token(&json!({ "alg": "ES256" }), &json!({ "sub": "b" }));
            assert_eq!(ask(&filter, &other).await, Ok(()));
            let tries = issuer.asked.get();
            assert!((100..=150).contains(&tries), "{tries}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn in_the_background_a_rotation_is_seen() {
    LocalSet::new()
        .run_until(async {
            let (old, new) = (Signer::new(), Signer::new());
            let issuer = Issuer::new(old.keys());
            let store = issuer.store();
            let config = config(Jwks::Remote(background()));
            let filter = store.filter(&config, "http.t.");
            assert_eq!(
                ask(&filter, &old.token).await,
                Ok(()),
                "it waits for the fetch under way"
            );
            assert_eq!(issuer.asked.get(), 1);
            *issuer.answer.borrow_mut() = new.keys();
            sleep(60 * SECOND).await;
            assert_eq!(ask(&filter, &new.token).await, Ok(()));
            let gone = Err(JwtError::VerificationFails);
            assert_eq!(
                ask(&filter, &old.token).await,
                gone,
                "it is remembered, but not its key"
            );
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_remembered_token_ends_too() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(signer.keys());
            let store = issuer.store();
            let config = config(Jwks::Remote(remote()));
            let filter = store.filter(&config, "http.t.");
            for _ in 0..2 {
                assert_eq!(ask(&filter, &signer.token).await, Ok(()));
            }
            let ends = 4_102_444_800;
            assert_eq!(ask_at(&filter, &signer.token, ends + 60).await, Ok(()));
            let ended = ask_at(&filter, &signer.token, ends + 61).await;
            assert_eq!(ended, Err(JwtError::Expired));
            assert_eq!(issuer.asked.get(), 1);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn filters_share_keys_and_take_them_along() {
    LocalSet::new()
        .run_until(async {
            let signer = Signer::new();
            let issuer = Issuer::new(signer.keys());
            let store = issuer.store();
            let (one, two) = (
                config(Jwks::Remote(background())),
                config(Jwks::Remote(background())),
            );
            let first = store.filter(&one, "http.t.");
            assert!(Rc::ptr_eq(&first, &store.filter(&one, "http.t.")));
            assert!(!Rc::ptr_eq(&first, &store.filter(&one, "http.u.")));
            sleep(2 * SECOND).await;
            drop((first, one));
            // A newer configuration with the same source finds the keys.
            let second = store.filter(&two, "http.t.");
            let began = Instant::now();
            assert_eq!(ask(&second, &signer.token).await, Ok(()));
            assert_eq!((issuer.asked.get(), began.elapsed()), (1, Duration::ZERO));
            drop((second, two));
            store.sweep();
            sleep(600 * SECOND).await;
            assert_eq!(issuer.asked.get(), 1, "nobody wants them any more");
        })
        .await;
}

#[tokio::test]
async fn headers_that_were_added_may_choose_another_route() {
    let signer = Signer::new();
    let store = Issuer::new(Answer::Never).store();
    for (claim, clear, expected) in [("sub", true, true), ("sub", false, false), ("none", true, false)] {
        let mut config = config(Jwks::Local(signer.set.as_str().into()));
        let wanted = Arc::make_mut(&mut config);
        let provider = Arc::make_mut(wanted.providers.get_mut("p").unwrap());
        provider.clear_route_cache = clear;
        provider.claim_to_headers = vec![JwtClaimToHeader {
            header: "x-claim".into(),
            claim: vec![claim.into()],
        }];
        let filter = store.filter(&config, "http.t.");
        let mut request = Asked::get("/").bearer(&signer.token);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let outcome = filter
            .authenticate(&mut request, &mut Metadata::default(), now)
            .await;
        assert_eq!(outcome.unwrap().clear_route_cache, expected, "{claim} {clear}");
    }
}

#[tokio::test]
async fn local_keys_that_are_none_let_nobody_pass() {
    let signer = Signer::new();
    let issuer = Issuer::new(Answer::Never);
    let store = issuer.store();
    let bad = config(Jwks::Local("{}".into()));
    let filter = store.filter(&bad, "http.t.");
    assert_eq!(ask(&filter, &signer.token).await, Err(JwtError::NoValidKeys));
    let good = config(Jwks::Local(signer.set.as_str().into()));
    let filter = store.filter(&good, "http.t.");
    assert_eq!(ask(&filter, &signer.token).await, Ok(()));
    assert_eq!(issuer.asked.get(), 0);
}
