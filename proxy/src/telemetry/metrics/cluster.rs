//! What is counted for a cluster: by workers as they dial, by the control thread as it changes.

use std::cell::OnceCell;
use std::time::Duration;

use super::listener::Agreements;
use super::{Counter, Gauge, Histogram, Scope, registry, sanitized};

/// A worker's handles for one cluster: `cluster.<name>.…`.
#[derive(Debug)]
pub struct ClusterMetrics {
    /// `upstream_cx_total`: dials begun.
    pub dialled: Counter,
    /// `upstream_cx_active`.
    pub active: Gauge,
    /// `upstream_cx_connect_fail`.
    pub connect_fail: Counter,
    /// `upstream_cx_connect_timeout`.
    pub connect_timeout: Counter,
    /// `upstream_cx_connect_attempts_exceeded`: a connection given up after as many dials as it may.
    pub connect_attempts_exceeded: Counter,
    /// `upstream_cx_none_healthy`.
    pub none_healthy: Counter,
    /// `upstream_cx_overflow`: not dialled because the circuit breaker is open.
    pub overflow: Counter,
    /// `upstream_cx_destroy`: connections that ended, made or not.
    pub destroyed: Counter,
    /// `upstream_cx_destroy_local`: ended by us.
    pub destroyed_local: Counter,
    /// `upstream_cx_destroy_remote`: ended by the endpoint.
    pub destroyed_remote: Counter,
    /// `upstream_cx_idle_timeout`: kept for further requests, closed for want of any.
    pub idle_timeout: Counter,
    /// `upstream_rq_total`: for TCP, connections that were made for a downstream.
    pub requests: Counter,
    /// `upstream_rq_active`: those of them that are live.
    pub requests_active: Gauge,
    /// `upstream_rq_pending_total`: connections or requests that waited for a dial.
    pub pending: Counter,
    /// `upstream_rq_pending_active`.
    pub pending_active: Gauge,
    /// `upstream_rq_pending_overflow`: refused because as many as may be were waiting.
    pub pending_overflow: Counter,
    /// `upstream_rq_pending_failure_eject`: failed as their dial did.
    pub pending_failed: Counter,
    /// `upstream_cx_rx_bytes_total`.
    pub received: Counter,
    /// `upstream_cx_rx_bytes_buffered`: received and not yet passed on.
    pub received_buffered: Gauge,
    /// `upstream_cx_tx_bytes_total`.
    pub sent: Counter,
    /// `upstream_cx_tx_bytes_buffered`: what endpoints have not taken yet.
    pub sent_buffered: Gauge,
    /// `upstream_cx_connect_ms`: dial and handshake.
    pub connect_ms: Histogram,
    /// `upstream_cx_length_ms`: from the dial's success to the end.
    pub length_ms: Histogram,
    /// `lb_healthy_panic`: endpoints chosen regardless of their health.
    pub healthy_panic: Counter,
    /// `original_dst_host_invalid`: no original destination to dial.
    pub original_dst_host_invalid: Counter,
    /// `attache_cluster_waited`: connections that waited for a first or returning endpoint.
    pub waited: Counter,
    tls: OnceCell<UpstreamTlsMetrics>,
    agreements: Agreements,
    scope: Scope,
}

impl ClusterMetrics {
    /// Resolves the handles for this thread. `cluster` is its name in statistics: its `alt_stat_name` where
    /// it has one.
    pub fn new(cluster: &str) -> Self {
        let scope = scope(cluster);
        let counter = |rest| scope.counter(rest);
        Self {
            dialled: counter("upstream_cx_total"),
            active: scope.gauge("upstream_cx_active"),
            connect_fail: counter("upstream_cx_connect_fail"),
            connect_timeout: counter("upstream_cx_connect_timeout"),
            connect_attempts_exceeded: counter("upstream_cx_connect_attempts_exceeded"),
            none_healthy: counter("upstream_cx_none_healthy"),
            overflow: counter("upstream_cx_overflow"),
            destroyed: counter("upstream_cx_destroy"),
            destroyed_local: counter("upstream_cx_destroy_local"),
            destroyed_remote: counter("upstream_cx_destroy_remote"),
            idle_timeout: counter("upstream_cx_idle_timeout"),
            requests: counter("upstream_rq_total"),
            requests_active: scope.gauge("upstream_rq_active"),
            pending: counter("upstream_rq_pending_total"),
            pending_active: scope.gauge("upstream_rq_pending_active"),
            pending_overflow: counter("upstream_rq_pending_overflow"),
            pending_failed: counter("upstream_rq_pending_failure_eject"),
            received: counter("upstream_cx_rx_bytes_total"),
            received_buffered: scope.gauge("upstream_cx_rx_bytes_buffered"),
            sent: counter("upstream_cx_tx_bytes_total"),
            sent_buffered: scope.gauge("upstream_cx_tx_bytes_buffered"),
            connect_ms: scope.histogram("upstream_cx_connect_ms"),
            length_ms: scope.histogram("upstream_cx_length_ms"),
            healthy_panic: counter("lb_healthy_panic"),
            original_dst_host_invalid: counter("original_dst_host_invalid"),
            waited: scope.own_counter("attache_cluster_waited", &[("envoy_cluster_name", cluster)]),
            tls: OnceCell::new(),
            agreements: Agreements::default(),
            scope,
        }
    }

    /// The handles for a cluster that speaks TLS; they exist from the first call on.
    pub fn tls(&self) -> &UpstreamTlsMetrics {
        self.tls.get_or_init(|| UpstreamTlsMetrics::new(&self.scope))
    }

    /// Counts a handshake: `version` as in `TLSv1.3`, `suite` as in `ECDHE-ECDSA-AES128-GCM-SHA256` and
    /// `group` as in `X25519` (OpenSSL's words, which Envoy uses).
    pub fn tls_established(&self, version: &'static str, suite: &'static str, group: Option<&'static str>) {
        self.tls().handshakes.increment(1);
        self.agreements.count(&self.scope, version, suite, group);
    }

    /// Accounts for a dial whose connection has ended, after `duration` if it was made at all; `remote` where
    /// the endpoint ended it. [`Self::active`] and the bytes are the caller's.
    pub fn closed(&self, duration: Option<Duration>, remote: bool) {
        self.destroyed.increment(1);
        let side = if remote {
            &self.destroyed_remote
        } else {
            &self.destroyed_local
        };
        side.increment(1);
        if let Some(duration) = duration {
            self.length_ms.record(duration.as_secs_f64() * 1000.0);
        }
    }
}

fn scope(cluster: &str) -> Scope {
    registry().scope(&format!("cluster.{}.", sanitized(cluster)))
}

/// A worker's handles for TLS towards a cluster: `cluster.<name>.ssl.…`.
#[derive(Debug)]
pub struct UpstreamTlsMetrics {
    /// `handshake`.
    pub handshakes: Counter,
    /// `connection_error`.
    pub connection_error: Counter,
    /// `session_reused`.
    pub session_reused: Counter,
    /// `fail_verify_error`: the endpoint's certificate does not chain to the trusted ones.
    pub fail_verify_error: Counter,
    /// `fail_verify_san`: the endpoint is not who it should be.
    pub fail_verify_san: Counter,
}

impl UpstreamTlsMetrics {
    fn new(scope: &Scope) -> Self {
        Self {
            handshakes: scope.counter("ssl.handshake"),
            connection_error: scope.counter("ssl.connection_error"),
            session_reused: scope.counter("ssl.session_reused"),
            fail_verify_error: scope.counter("ssl.fail_verify_error"),
            fail_verify_san: scope.counter("ssl.fail_verify_san"),
        }
    }
}

/// A worker's handles for the circuit breakers of one priority: `cluster.<name>.circuit_breakers.<priority>.…`.
/// A gauge is 1 while its limit is reached. All workers share a breaker, so whoever opens it adds 1 and whoever
/// closes it takes that back, in whichever thread.
#[derive(Debug)]
pub struct CircuitBreakerMetrics {
    /// `cx_open`: no more connections.
    pub connections_open: Gauge,
    /// `rq_pending_open`: no more that wait.
    pub pending_open: Gauge,
    /// `rq_open`: no more requests.
    pub requests_open: Gauge,
    /// `rq_retry_open`: no more retries.
    pub retries_open: Gauge,
    _scope: Scope,
}

impl CircuitBreakerMetrics {
    /// Resolves the handles for this thread. `priority` is `default` or `high`.
    pub fn new(cluster: &str, priority: &str) -> Self {
        let scope = scope(cluster);
        let gauge = |what| scope.gauge(format!("circuit_breakers.{priority}.{what}"));
        Self {
            connections_open: gauge("cx_open"),
            pending_open: gauge("rq_pending_open"),
            requests_open: gauge("rq_open"),
            retries_open: gauge("rq_retry_open"),
            _scope: scope,
        }
    }
}

/// The handles for outlier detection: `cluster.<name>.outlier_detection.…`.
#[derive(Debug)]
pub struct OutlierMetrics {
    /// `ejections_active`: endpoints that are left out now. Whoever ejects one adds 1, whoever ends it takes
    /// that back, in whichever thread.
    pub active: Gauge,
    /// `ejections_enforced_total`.
    pub enforced: Counter,
    /// `ejections_overflow`: not ejected, as too large a share is already.
    pub overflow: Counter,
    /// `ejections_detected_consecutive_5xx`.
    pub detected_consecutive_5xx: Counter,
    /// `ejections_enforced_consecutive_5xx`.
    pub enforced_consecutive_5xx: Counter,
    /// `ejections_detected_consecutive_gateway_failure`.
    pub detected_gateway_failure: Counter,
    /// `ejections_enforced_consecutive_gateway_failure`.
    pub enforced_gateway_failure: Counter,
    /// `ejections_detected_success_rate`.
    pub detected_success_rate: Counter,
    /// `ejections_enforced_success_rate`.
    pub enforced_success_rate: Counter,
    _scope: Scope,
}

impl OutlierMetrics {
    /// Resolves the handles for this thread.
    pub fn new(cluster: &str) -> Self {
        let scope = scope(cluster);
        let counter = |what| scope.counter(format!("outlier_detection.ejections_{what}"));
        Self {
            active: scope.gauge("outlier_detection.ejections_active"),
            enforced: counter("enforced_total"),
            overflow: counter("overflow"),
            detected_consecutive_5xx: counter("detected_consecutive_5xx"),
            enforced_consecutive_5xx: counter("enforced_consecutive_5xx"),
            detected_gateway_failure: counter("detected_consecutive_gateway_failure"),
            enforced_gateway_failure: counter("enforced_consecutive_gateway_failure"),
            detected_success_rate: counter("detected_success_rate"),
            enforced_success_rate: counter("enforced_success_rate"),
            _scope: scope,
        }
    }
}

/// One worker's handles for a cluster's endpoints: all workers have the same ones, so a single one tells.
#[derive(Debug)]
pub struct ClusterMembership {
    /// `membership_total`.
    pub total: Gauge,
    /// `membership_healthy`: those neither said to be unhealthy nor ejected.
    pub healthy: Gauge,
    /// `membership_change`: how often endpoints came or went.
    pub changes: Counter,
    /// `max_host_weight`.
    pub max_host_weight: Gauge,
    _scope: Scope,
}

impl ClusterMembership {
    /// Resolves the handles for this thread.
    pub fn new(cluster: &str) -> Self {
        let scope = scope(cluster);
        Self {
            total: scope.gauge("membership_total"),
            healthy: scope.gauge("membership_healthy"),
            changes: scope.counter("membership_change"),
            max_host_weight: scope.gauge("max_host_weight"),
            _scope: scope,
        }
    }
}

/// A worker's handles for the host names of a cluster: `cluster.<name>.update_…`.
#[derive(Debug)]
pub struct DnsMetrics {
    /// `update_attempt`: questions asked.
    pub attempt: Counter,
    /// `update_success`: questions answered.
    pub success: Counter,
    /// `update_failure`: no answer.
    pub failure: Counter,
    /// `update_empty`: an answer without an address that could be used.
    pub empty: Counter,
    /// `update_no_rebuild`: the same answer as before.
    pub no_rebuild: Counter,
    _scope: Scope,
}

impl DnsMetrics {
    /// Resolves the handles for this thread.
    pub fn new(cluster: &str) -> Self {
        let scope = scope(cluster);
        Self {
            attempt: scope.counter("update_attempt"),
            success: scope.counter("update_success"),
            failure: scope.counter("update_failure"),
            empty: scope.counter("update_empty"),
            no_rebuild: scope.counter("update_no_rebuild"),
            _scope: scope,
        }
    }
}

/// The control thread's handles for one subscription to a control plane: `cluster.<name>.` for a cluster's
/// endpoints, `cluster_manager.cds.`, `listener_manager.lds.` and `http.<prefix>.rds.<route>.`.
#[derive(Debug)]
pub struct SubscriptionMetrics {
    /// `update_attempt`: requests sent and answers got.
    pub attempt: Counter,
    /// `update_success`.
    pub success: Counter,
    /// `update_failure`: the stream failed.
    pub failure: Counter,
    /// `update_rejected`: answers refused because they cannot be used.
    pub rejected: Counter,
    /// `init_fetch_timeout`.
    pub init_fetch_timeout: Counter,
    /// `update_time`: of the last one, milliseconds since 1970.
    pub time: Gauge,
    /// `version`: a hash of the last version taken.
    pub version: Gauge,
    /// `update_duration`: milliseconds that taking an update takes.
    pub duration: Histogram,
    _scope: Scope,
}

impl SubscriptionMetrics {
    /// Resolves the handles for this thread. `prefix` is as above, with its last dot.
    pub fn new(prefix: &str) -> Self {
        Self::of(registry().scope(prefix))
    }

    /// Those of the endpoints of `cluster`.
    pub fn of_cluster(cluster: &str) -> Self {
        Self::of(scope(cluster))
    }

    /// Those of the route configuration called `routes`, of the connection manager of `stat_prefix`.
    pub fn of_routes(stat_prefix: &str, routes: &str) -> Self {
        let (prefix, routes) = (sanitized(stat_prefix), sanitized(routes));
        Self::new(&format!("http.{prefix}.rds.{routes}."))
    }

    fn of(scope: Scope) -> Self {
        Self {
            attempt: scope.counter("update_attempt"),
            success: scope.counter("update_success"),
            failure: scope.counter("update_failure"),
            rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            time: scope.gauge("update_time"),
            version: scope.gauge("version"),
            duration: scope.histogram("update_duration"),
            _scope: scope,
        }
    }
}
