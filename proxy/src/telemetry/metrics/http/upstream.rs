//! What is counted of requests to a cluster: `cluster.<name>.…`.

use std::cell::OnceCell;
use std::time::Duration;

use super::codes::Codes;
use super::connection_manager::HttpVersion;
use super::{Http1Metrics, Http2Metrics, handles, milliseconds};
use crate::telemetry::metrics::{Histogram, Scope, registry, sanitized};

/// A worker's handles for one cluster that is spoken HTTP to, beside those of
/// [`crate::telemetry::metrics::ClusterMetrics`]; what both have is the same statistic.
#[derive(Debug)]
pub struct HttpClusterMetrics {
    /// What is counted one by one.
    pub counts: HttpClusterCounts,
    all: Side,
    internal: OnceCell<Side>,
    external: OnceCell<Side>,
    /// Responses that were not passed on, but led to a retry.
    retried: OnceCell<Codes>,
    http1: OnceCell<Http1Metrics>,
    http2: OnceCell<Http2Metrics>,
    cluster: String,
    scope: Scope,
}

/// Responses of all requests, or of internal or external ones.
#[derive(Debug)]
struct Side {
    codes: Codes,
    prefix: &'static str,
    /// There from the first response that came whole.
    time: OnceCell<Histogram>,
    scope: Scope,
}

handles! {
    /// `cluster.<name>.…`, one by one.
    HttpClusterCounts {
        /// `upstream_cx_http1_total`.
        cx_http1_total: Counter = counter "upstream_cx_http1_total",
        /// `upstream_cx_http2_total`.
        cx_http2_total: Counter = counter "upstream_cx_http2_total",
        /// `upstream_cx_protocol_error`: the endpoint broke the rules of HTTP.
        cx_protocol_error: Counter = counter "upstream_cx_protocol_error",
        /// `upstream_cx_close_notify`: closed after a response that asked for it, or after GOAWAY.
        cx_close_notify: Counter = counter "upstream_cx_close_notify",
        /// `upstream_cx_max_requests`: closed after as many requests as one connection may carry.
        cx_max_requests: Counter = counter "upstream_cx_max_requests",
        /// `upstream_cx_max_duration_reached`.
        cx_max_duration_reached: Counter = counter "upstream_cx_max_duration_reached",
        /// `upstream_cx_destroy_with_active_rq`: ended with a request under way.
        cx_destroy_with_active_rq: Counter = counter "upstream_cx_destroy_with_active_rq",
        /// `upstream_cx_destroy_local_with_active_rq`.
        cx_destroy_local_with_active_rq: Counter = counter "upstream_cx_destroy_local_with_active_rq",
        /// `upstream_cx_destroy_remote_with_active_rq`.
        cx_destroy_remote_with_active_rq: Counter = counter "upstream_cx_destroy_remote_with_active_rq",
        /// `upstream_rq_per_cx`: requests that a connection carried until it ended.
        rq_per_cx: Histogram = histogram "upstream_rq_per_cx",
        /// `upstream_rq_total`: requests, each try of one, that got a connection.
        rq_total: Counter = counter "upstream_rq_total",
        /// `upstream_rq_active`.
        rq_active: Gauge = gauge "upstream_rq_active",
        /// `upstream_rq_active_overflow`: refused because of `max_requests`.
        rq_active_overflow: Counter = counter "upstream_rq_active_overflow",
        /// `upstream_rq_pending_total`: requests that waited for a connection.
        rq_pending_total: Counter = counter "upstream_rq_pending_total",
        /// `upstream_rq_pending_active`.
        rq_pending_active: Gauge = gauge "upstream_rq_pending_active",
        /// `upstream_rq_pending_overflow`: refused because of `max_pending_requests`.
        rq_pending_overflow: Counter = counter "upstream_rq_pending_overflow",
        /// `upstream_rq_pending_failure_eject`: failed as their connection did.
        rq_pending_failure_eject: Counter = counter "upstream_rq_pending_failure_eject",
        /// `upstream_rq_cancelled`: given up before they had a connection.
        rq_cancelled: Counter = counter "upstream_rq_cancelled",
        /// `upstream_rq_maintenance_mode`.
        rq_maintenance_mode: Counter = counter "upstream_rq_maintenance_mode",
        /// `upstream_rq_timeout`: the route's timeout: 504.
        rq_timeout: Counter = counter "upstream_rq_timeout",
        /// `upstream_rq_per_try_timeout`: each try that took too long.
        rq_per_try_timeout: Counter = counter "upstream_rq_per_try_timeout",
        /// `upstream_rq_per_try_idle_timeout`.
        rq_per_try_idle_timeout: Counter = counter "upstream_rq_per_try_idle_timeout",
        /// `upstream_rq_max_duration_reached`: `max_stream_duration`.
        rq_max_duration_reached: Counter = counter "upstream_rq_max_duration_reached",
        /// `upstream_rq_rx_reset`: streams that endpoints reset.
        rq_rx_reset: Counter = counter "upstream_rq_rx_reset",
        /// `upstream_rq_tx_reset`: streams that we reset; HTTP/2 only.
        rq_tx_reset: Counter = counter "upstream_rq_tx_reset",
        /// `upstream_rq_retry`: tries after the first.
        rq_retry: Counter = counter "upstream_rq_retry",
        /// `upstream_rq_retry_success`: requests that such a try saved.
        rq_retry_success: Counter = counter "upstream_rq_retry_success",
        /// `upstream_rq_retry_overflow`: not tried again because of `max_retries` or the budget.
        rq_retry_overflow: Counter = counter "upstream_rq_retry_overflow",
        /// `upstream_rq_retry_limit_exceeded`: not tried again because `num_retries` were used up.
        rq_retry_limit_exceeded: Counter = counter "upstream_rq_retry_limit_exceeded",
        /// `upstream_rq_retry_backoff_exponential`.
        rq_retry_backoff_exponential: Counter = counter "upstream_rq_retry_backoff_exponential",
        /// `upstream_rq_retry_backoff_ratelimited`: waited as long as a response's header said.
        rq_retry_backoff_ratelimited: Counter = counter "upstream_rq_retry_backoff_ratelimited",
        /// `retry_or_shadow_abandoned`: not tried again because the body is too large to keep.
        retry_or_shadow_abandoned: Counter = counter "retry_or_shadow_abandoned",
        /// `upstream_flow_control_paused_reading_total`: not read from because a downstream was slow.
        flow_control_paused_reading_total: Counter = counter "upstream_flow_control_paused_reading_total",
        /// `upstream_flow_control_resumed_reading_total`.
        flow_control_resumed_reading_total: Counter = counter "upstream_flow_control_resumed_reading_total",
        /// `upstream_flow_control_backed_up_total`: the endpoint was slow.
        flow_control_backed_up_total: Counter = counter "upstream_flow_control_backed_up_total",
        /// `upstream_flow_control_drained_total`: and is no more.
        flow_control_drained_total: Counter = counter "upstream_flow_control_drained_total",
    }
}

/// Why a retry waits as long as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backoff {
    /// `retry_back_off`.
    Exponential,
    /// `rate_limited_retry_back_off`: a response's header said so.
    RateLimited,
}

/// A response that is passed on, or made here in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub code: u16,
    /// Whether the request is one of the mesh's own: it has `x-envoy-internal: true`, after the connection
    /// manager said whether it may.
    pub internal: bool,
}

impl Side {
    fn new(scope: Scope, prefix: &'static str) -> Self {
        Self {
            codes: Codes::new(scope.clone(), prefix),
            prefix,
            time: OnceCell::new(),
            scope,
        }
    }

    fn time(&self, milliseconds: f64) {
        let new = || self.scope.histogram(format!("{}upstream_rq_time", self.prefix));
        self.time.get_or_init(new).record(milliseconds);
    }
}

impl HttpClusterMetrics {
    /// Resolves the handles for this thread. `cluster` is its name in statistics.
    pub fn new(cluster: &str) -> Self {
        let scope = registry().scope(&format!("cluster.{}.", sanitized(cluster)));
        Self {
            counts: HttpClusterCounts::resolve(scope.clone()),
            all: Side::new(scope.clone(), ""),
            internal: OnceCell::new(),
            external: OnceCell::new(),
            retried: OnceCell::new(),
            http1: OnceCell::new(),
            http2: OnceCell::new(),
            cluster: cluster.to_owned(),
            scope,
        }
    }

    /// A connection to an endpoint is being made; it will speak `version`.
    pub fn connection_begins(&self, version: HttpVersion) {
        match version {
            HttpVersion::Http1 => {
                self.http1();
                self.counts.cx_http1_total.increment(1);
            }
            HttpVersion::Http2 => {
                self.http2();
                self.counts.cx_http2_total.increment(1);
            }
        }
    }

    /// The handles of the codec for HTTP/1; they exist from the first call on.
    pub fn http1(&self) -> &Http1Metrics {
        self.http1.get_or_init(|| Http1Metrics::upstream(&self.cluster))
    }

    /// The handles of the codec for HTTP/2; they exist from the first call on.
    pub fn http2(&self) -> &Http2Metrics {
        self.http2.get_or_init(|| Http2Metrics::upstream(&self.cluster))
    }

    /// A connection ended after it carried `requests`, `remote` where the endpoint ended it,
    /// `active_request` where one was under way. The rest is for
    /// [`crate::telemetry::metrics::ClusterMetrics::closed`] to count.
    pub fn connection_ends(&self, requests: u32, remote: bool, active_request: bool) {
        let counts = &self.counts;
        counts.rq_per_cx.record(f64::from(requests));
        if active_request {
            let side = if remote {
                &counts.cx_destroy_remote_with_active_rq
            } else {
                &counts.cx_destroy_local_with_active_rq
            };
            counts.cx_destroy_with_active_rq.increment(1);
            side.increment(1);
        }
    }

    /// A request, or one more try of it, got its connection.
    pub fn request_begins(&self) {
        self.counts.rq_total.increment(1);
        self.counts.rq_active.add(1);
    }

    /// That try is over, however it ended.
    pub fn request_ends(&self) {
        self.counts.rq_active.sub(1);
    }

    /// The response that the downstream gets, from the cluster or made here because there was none: once
    /// a request.
    pub fn response(&self, response: Response) {
        self.all.codes.count(response.code);
        self.side(response.internal).codes.count(response.code);
    }

    /// The cluster's response came whole, `duration` after the whole request had.
    pub fn response_complete(&self, internal: bool, duration: Duration) {
        let milliseconds = milliseconds(duration);
        self.all.time(milliseconds);
        self.side(internal).time(milliseconds);
    }

    /// A response was not passed on: the request is tried again. It counts nowhere else.
    pub fn response_retried(&self, code: u16) {
        let new = || Codes::new(self.scope.clone(), "retry.");
        self.retried.get_or_init(new).count(code);
    }

    /// A request is to be tried again.
    pub fn retry(&self, backoff: Backoff) {
        self.counts.rq_retry.increment(1);
        match backoff {
            Backoff::Exponential => self.counts.rq_retry_backoff_exponential.increment(1),
            Backoff::RateLimited => self.counts.rq_retry_backoff_ratelimited.increment(1),
        }
    }

    fn side(&self, internal: bool) -> &Side {
        let (side, prefix) = if internal {
            (&self.internal, "internal.")
        } else {
            (&self.external, "external.")
        };
        side.get_or_init(|| Side::new(self.scope.clone(), prefix))
    }
}
