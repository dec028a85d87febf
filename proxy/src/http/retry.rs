//! Whether a request is tried again, and when (Envoy's retry policies).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderMap;

use super::message::{RequestView, any_value, joined};
use crate::model::matcher::{self, HeaderMatcher};
use crate::model::route::{RetryOn, RetryPolicy};
use crate::upstream::breaker::Place;
use crate::upstream::cluster::ClusterState;

/// Envoy's default for `circuit_breakers.max_retries`: so many at once in a cluster, against storms.
const DEFAULT_MAX_RETRIES: u32 = 3;

/// What a try ended with, as far as a policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection.
    Connect,
    /// A limit of the cluster is reached: trying again would only add to it.
    Overflow,
    /// The endpoint had not looked at the request.
    Refused,
    /// The connection or stream ended before the response.
    Reset,
    /// The try took too long.
    PerTryTimeout,
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Retries {
    policy: Option<Arc<RetryPolicy>>,
    left: u32,
    /// Tries so far, the first included.
    pub(super) attempts: u32,
    /// A place among the cluster's retries, for as long as one is under way.
    place: Option<Place>,
}

/// What is done after a try.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It stands.
    Stands,
    /// Another one, after a pause.
    Again(Duration),
    /// There would be another one, but for a limit: of the policy, or of the cluster.
    Exhausted,
    /// Likewise, of the cluster.
    Overflow,
}

impl Retries {
    /// `request` decides whether the policy is for it at all.
    pub(super) fn new(policy: Option<&Arc<RetryPolicy>>, request: &RequestView<'_>) -> Self {
        let policy = policy.filter(|policy| {
            let asked = &policy.retriable_request_headers;
            asked.is_empty() || asked.iter().any(|header| header.matches(request))
        });
        Self {
            left: policy.map_or(0, |policy| policy.num_retries),
            policy: policy.cloned(),
            attempts: 0,
            place: None,
        }
    }

    /// How long one try may take.
    pub(super) fn per_try_timeout(&self) -> Option<Duration> {
        self.policy.as_ref()?.per_try_timeout
    }

    /// How long nothing may move in one try.
    pub(super) fn per_try_idle_timeout(&self) -> Option<Duration> {
        self.policy.as_ref()?.per_try_idle_timeout
    }

    /// After a response.
    pub(super) fn after_response(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        cluster: &Rc<ClusterState>,
    ) -> Decision {
        self.place = None;
        let wanted = self
            .policy
            .as_ref()
            .is_some_and(|policy| wants_response(policy, status, headers));
        self.decide(wanted, Some(cluster))
    }

    /// After a try without a response.
    pub(super) fn after_failure(
        &mut self,
        failure: Failure,
        sent: bool,
        cluster: Option<&Rc<ClusterState>>,
    ) -> Decision {
        self.place = None;
        let wanted = self
            .policy
            .as_ref()
            .is_some_and(|policy| wants_failure(policy, failure, sent));
        self.decide(wanted, cluster)
    }

    fn decide(&mut self, wanted: bool, cluster: Option<&Rc<ClusterState>>) -> Decision {
        let Some(policy) = self.policy.as_ref().filter(|_| wanted) else {
            return Decision::Stands;
        };
        if self.left == 0 {
            return Decision::Exhausted;
        }
        if let Some(cluster) = cluster {
            let most = cluster.config().circuit_breakers.max_retries;
            self.place = cluster.retries.acquire(most.unwrap_or(DEFAULT_MAX_RETRIES));
            if self.place.is_none() {
                return Decision::Overflow;
            }
        }
        self.left -= 1;
        Decision::Again(pause(policy, self.attempts))
    }
}

/// A random part of the base, doubled with each try, up to the maximum.
fn pause(policy: &RetryPolicy, attempts: u32) -> Duration {
    let doubled = policy
        .base_interval
        .saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(policy.max_interval).mul_f64(fastrand::f64())
}

fn wants_response(policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    let code = status.as_u16();
    let on = |condition| policy.retry_on.contains(&condition);
    if headers.contains_key("x-envoy-ratelimited") {
        return on(RetryOn::EnvoyRateLimited);
    }
    policy.retry_on.iter().any(|condition| match condition {
        RetryOn::FiveXx => status.is_server_error(),
        RetryOn::GatewayError => (502..=504).contains(&code),
        RetryOn::Retriable4xx => code == 409,
        RetryOn::RetriableStatusCodes => policy.retriable_status_codes.contains(&code),
        RetryOn::RetriableHeaders => has_any(&policy.retriable_headers, headers),
        RetryOn::Cancelled => is_grpc_status(headers, "1"),
        RetryOn::DeadlineExceeded => is_grpc_status(headers, "4"),
        RetryOn::Internal => is_grpc_status(headers, "13"),
        RetryOn::ResourceExhausted => is_grpc_status(headers, "8"),
        RetryOn::Unavailable => is_grpc_status(headers, "14"),
        RetryOn::Reset
        | RetryOn::ResetBeforeRequest
        | RetryOn::ConnectFailure
        | RetryOn::EnvoyRateLimited
        | RetryOn::RefusedStream => false,
    })
}

fn is_grpc_status(headers: &HeaderMap, status: &str) -> bool {
    headers.get("grpc-status").is_some_and(|value| value == status)
}

fn wants_failure(policy: &RetryPolicy, failure: Failure, sent: bool) -> bool {
    if failure == Failure::Overflow {
        return false;
    }
    policy.retry_on.iter().any(|condition| match condition {
        RetryOn::FiveXx | RetryOn::GatewayError | RetryOn::Reset => true,
        RetryOn::ResetBeforeRequest => !sent,
        RetryOn::ConnectFailure => failure == Failure::Connect,
        RetryOn::RefusedStream => failure == Failure::Refused,
        RetryOn::EnvoyRateLimited
        | RetryOn::Retriable4xx
        | RetryOn::RetriableStatusCodes
        | RetryOn::RetriableHeaders
        | RetryOn::Cancelled
        | RetryOn::DeadlineExceeded
        | RetryOn::Internal
        | RetryOn::ResourceExhausted
        | RetryOn::Unavailable => false,
    })
}

/// A response's headers as matchers look at them.
struct Response<'a>(&'a HeaderMap);

impl matcher::Request for Response<'_> {
    fn header(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        joined(self.0, name)
    }

    fn any_value(&self, name: &str, holds: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        any_value(self.0, name, holds)
    }

    fn path(&self) -> &str {
        ""
    }

    fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<std::borrow::Cow<'_, str>> {
        None
    }
}

fn has_any(matchers: &[HeaderMatcher], headers: &HeaderMap) -> bool {
    matchers.iter().any(|matcher| matcher.matches(&Response(headers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(retry_on: &[RetryOn]) -> RetryPolicy {
        RetryPolicy {
            retry_on: retry_on.to_vec(),
            retriable_status_codes: vec![418],
            ..RetryPolicy::default()
        }
    }

    fn response(status: u16, headers: &[(&'static str, &'static str)], on: RetryOn) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (
                name.parse().unwrap(),
                hyper::header::HeaderValue::from_static(value),
            )
        });
        let status = StatusCode::from_u16(status).unwrap();
        wants_response(&policy(&[on]), status, &headers.collect())
    }

    #[test]
    fn responses_by_condition() {
        for (status, on, again) in [
            (500, RetryOn::FiveXx, true),
            (499, RetryOn::FiveXx, false),
            (500, RetryOn::GatewayError, false),
            (503, RetryOn::GatewayError, true),
            (409, RetryOn::Retriable4xx, true),
            (404, RetryOn::Retriable4xx, false),
            (418, RetryOn::RetriableStatusCodes, true),
            (503, RetryOn::RetriableStatusCodes, false),
            (503, RetryOn::ConnectFailure, false),
        ] {
            assert_eq!(response(status, &[], on), again, "{status} {on:?}");
        }
        assert!(response(200, &[("grpc-status", "14")], RetryOn::Unavailable));
        assert!(!response(200, &[("grpc-status", "4")], RetryOn::Unavailable));
        let limited = [("x-envoy-ratelimited", "true")];
        assert!(!response(503, &limited, RetryOn::FiveXx));
        assert!(response(429, &limited, RetryOn::EnvoyRateLimited));
    }

    #[test]
    fn failures_by_condition() {
        let on = |condition| policy(&[condition]);
        assert!(wants_failure(
            &on(RetryOn::ConnectFailure),
            Failure::Connect,
            false
        ));
        assert!(!wants_failure(&on(RetryOn::ConnectFailure), Failure::Reset, true));
        assert!(wants_failure(&on(RetryOn::Reset), Failure::Reset, true));
        assert!(!wants_failure(
            &on(RetryOn::ResetBeforeRequest),
            Failure::Reset,
            true
        ));
        assert!(wants_failure(
            &on(RetryOn::GatewayError),
            Failure::PerTryTimeout,
            true
        ));
        assert!(wants_failure(&on(RetryOn::RefusedStream), Failure::Refused, true));
        for condition in [RetryOn::FiveXx, RetryOn::Reset] {
            assert!(!wants_failure(&on(condition), Failure::Overflow, false));
        }
    }

    #[test]
    fn pauses_grow_up_to_the_maximum() {
        let policy = policy(&[RetryOn::FiveXx]);
        for attempts in [1, 2, 5, 40, u32::MAX] {
            assert!((0..50).all(|_| pause(&policy, attempts) <= policy.max_interval));
        }
        assert!((0..200).all(|_| pause(&policy, 1) <= policy.base_interval));
    }
}
