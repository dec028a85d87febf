//! What a connection manager counts, and its router: `http.<stat_prefix>.…`, and by listener.

use std::time::Duration;

use super::codes::Classes;
use super::{handles, milliseconds, scope};
use crate::telemetry::metrics::{registry, sanitized};

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A worker's handles for the connection managers of one `stat_prefix` on one listener.
#[derive(Debug)]
pub struct ConnectionManagerMetrics {
    /// What is counted one by one.
    pub counts: ConnectionManagerCounts,
    /// Of its router.
    pub router: RouterMetrics,
    /// Of its tracing.
    pub tracing: TracingMetrics,
    responses: Classes,
    by_listener: Classes,
}

handles! {
    /// `http.<stat_prefix>.…`, one by one.
    ConnectionManagerCounts {
        /// `downstream_cx_total`.
        cx_total: Counter = counter "downstream_cx_total",
        /// `downstream_cx_active`.
        cx_active: Gauge = gauge "downstream_cx_active",
        /// `downstream_cx_ssl_total`: over TLS.
        cx_ssl_total: Counter = counter "downstream_cx_ssl_total",
        /// `downstream_cx_ssl_active`.
        cx_ssl_active: Gauge = gauge "downstream_cx_ssl_active",
        /// `downstream_cx_http1_total`: counted when the version is known.
        cx_http1_total: Counter = counter "downstream_cx_http1_total",
        /// `downstream_cx_http1_active`.
        cx_http1_active: Gauge = gauge "downstream_cx_http1_active",
        /// `downstream_cx_http2_total`: counted when the version is known.
        cx_http2_total: Counter = counter "downstream_cx_http2_total",
        /// `downstream_cx_http2_active`.
        cx_http2_active: Gauge = gauge "downstream_cx_http2_active",
        /// `downstream_cx_upgrades_total`: requests for an upgrade that the configuration allows.
        cx_upgrades_total: Counter = counter "downstream_cx_upgrades_total",
        /// `downstream_cx_upgrades_active`.
        cx_upgrades_active: Gauge = gauge "downstream_cx_upgrades_active",
        /// `downstream_cx_length_ms`: from accept to end.
        cx_length_ms: Histogram = histogram "downstream_cx_length_ms",
        /// `downstream_cx_destroy`: ended.
        cx_destroy: Counter = counter "downstream_cx_destroy",
        /// `downstream_cx_destroy_local`: by us.
        cx_destroy_local: Counter = counter "downstream_cx_destroy_local",
        /// `downstream_cx_destroy_remote`: by the downstream.
        cx_destroy_remote: Counter = counter "downstream_cx_destroy_remote",
        /// `downstream_cx_destroy_active_rq`: with a request under way.
        cx_destroy_active_rq: Counter = counter "downstream_cx_destroy_active_rq",
        /// `downstream_cx_destroy_local_active_rq`.
        cx_destroy_local_active_rq: Counter = counter "downstream_cx_destroy_local_active_rq",
        /// `downstream_cx_destroy_remote_active_rq`.
        cx_destroy_remote_active_rq: Counter = counter "downstream_cx_destroy_remote_active_rq",
        /// `downstream_cx_rx_bytes_total`: as they are in the codec, without TLS.
        cx_rx_bytes_total: Counter = counter "downstream_cx_rx_bytes_total",
        /// `downstream_cx_rx_bytes_buffered`: received and not parsed yet.
        cx_rx_bytes_buffered: Gauge = gauge "downstream_cx_rx_bytes_buffered",
        /// `downstream_cx_tx_bytes_total`.
        cx_tx_bytes_total: Counter = counter "downstream_cx_tx_bytes_total",
        /// `downstream_cx_tx_bytes_buffered`: what the downstream has not taken yet.
        cx_tx_bytes_buffered: Gauge = gauge "downstream_cx_tx_bytes_buffered",
        /// `downstream_cx_drain_close`: closed after a response because of draining.
        cx_drain_close: Counter = counter "downstream_cx_drain_close",
        /// `downstream_cx_idle_timeout`.
        cx_idle_timeout: Counter = counter "downstream_cx_idle_timeout",
        /// `downstream_cx_max_duration_reached`.
        cx_max_duration_reached: Counter = counter "downstream_cx_max_duration_reached",
        /// `downstream_cx_max_requests_reached`: `max_requests_per_connection`.
        cx_max_requests_reached: Counter = counter "downstream_cx_max_requests_reached",
        /// `downstream_cx_overload_disable_keepalive`: closed after a response because too much was under way.
        cx_overload_disable_keepalive: Counter = counter "downstream_cx_overload_disable_keepalive",
        /// `downstream_cx_protocol_error`: broke the rules of HTTP.
        cx_protocol_error: Counter = counter "downstream_cx_protocol_error",
        /// `downstream_cx_delayed_close_timeout`: did not read the last bytes in time.
        cx_delayed_close_timeout: Counter = counter "downstream_cx_delayed_close_timeout",
        /// `downstream_flow_control_paused_reading_total`: not read from because an upstream was slow.
        flow_control_paused_reading_total: Counter = counter "downstream_flow_control_paused_reading_total",
        /// `downstream_flow_control_resumed_reading_total`.
        flow_control_resumed_reading_total: Counter = counter "downstream_flow_control_resumed_reading_total",
        /// `downstream_rq_total`.
        rq_total: Counter = counter "downstream_rq_total",
        /// `downstream_rq_active`.
        rq_active: Gauge = gauge "downstream_rq_active",
        /// `downstream_rq_http1_total`.
        rq_http1_total: Counter = counter "downstream_rq_http1_total",
        /// `downstream_rq_http2_total`.
        rq_http2_total: Counter = counter "downstream_rq_http2_total",
        /// `downstream_rq_time`: milliseconds of a request and its response.
        rq_time: Histogram = histogram "downstream_rq_time",
        /// `downstream_rq_rx_reset`: the downstream gave it up: a reset stream, a lost connection, or one
        /// closed by us over a broken request.
        rq_rx_reset: Counter = counter "downstream_rq_rx_reset",
        /// `downstream_rq_tx_reset`: given up by us.
        rq_tx_reset: Counter = counter "downstream_rq_tx_reset",
        /// `downstream_rq_response_before_rq_complete`: answered before all of it had come.
        rq_response_before_rq_complete: Counter = counter "downstream_rq_response_before_rq_complete",
        /// `downstream_rq_too_large`: more of a body than is buffered: 413.
        rq_too_large: Counter = counter "downstream_rq_too_large",
        /// `downstream_rq_non_relative_path`: a path that does not begin with `/`: 404.
        rq_non_relative_path: Counter = counter "downstream_rq_non_relative_path",
        /// `downstream_rq_failed_path_normalization`: 400.
        rq_failed_path_normalization: Counter = counter "downstream_rq_failed_path_normalization",
        /// `downstream_rq_redirected_with_normalized_path`: 307 over escaped slashes.
        rq_redirected_with_normalized_path: Counter = counter "downstream_rq_redirected_with_normalized_path",
        /// `downstream_rq_rejected_via_ip_detection`.
        rq_rejected_via_ip_detection: Counter = counter "downstream_rq_rejected_via_ip_detection",
        /// `downstream_rq_header_timeout`: `request_headers_timeout`.
        rq_header_timeout: Counter = counter "downstream_rq_header_timeout",
        /// `downstream_rq_timeout`: `request_timeout`: 408.
        rq_timeout: Counter = counter "downstream_rq_timeout",
        /// `downstream_rq_idle_timeout`: `stream_idle_timeout`.
        rq_idle_timeout: Counter = counter "downstream_rq_idle_timeout",
        /// `downstream_rq_max_duration_reached`: `max_stream_duration`.
        rq_max_duration_reached: Counter = counter "downstream_rq_max_duration_reached",
        /// `downstream_rq_overload_close`: 503 because too much was under way.
        rq_overload_close: Counter = counter "downstream_rq_overload_close",
        /// `downstream_rq_too_many_premature_resets`: the connection closed because of them.
        rq_too_many_premature_resets: Counter = counter "downstream_rq_too_many_premature_resets",
        /// `downstream_rq_ws_on_non_ws_route`: an upgrade where none is allowed: 403.
        rq_ws_on_non_ws_route: Counter = counter "downstream_rq_ws_on_non_ws_route",
        /// `rs_too_large`: more of a response than is buffered: 500.
        rs_too_large: Counter = counter "rs_too_large",
    }
}

handles! {
    /// A worker's handles for the router behind a connection manager: `http.<stat_prefix>.…`.
    RouterMetrics {
        /// `rq_total`: every request that reaches the router, with a route or not.
        rq_total: Counter = counter "rq_total",
        /// `no_route`: 404.
        no_route: Counter = counter "no_route",
        /// `no_cluster`: a route to a cluster that is not there.
        no_cluster: Counter = counter "no_cluster",
        /// `rq_direct_response`: answered by the route; Envoy counts its redirects here too.
        rq_direct_response: Counter = counter "rq_direct_response",
        /// `rq_redirect`: a redirect that depends on the cluster; Consul's routes have none.
        rq_redirect: Counter = counter "rq_redirect",
        /// `rq_reset_after_downstream_response_started`: the upstream's reset cut a response.
        rq_reset_after_downstream_response_started: Counter =
            counter "rq_reset_after_downstream_response_started",
        /// `rq_overload_local_reply`: answered here because too much was under way.
        rq_overload_local_reply: Counter = counter "rq_overload_local_reply",
    }
}

handles! {
    /// A worker's handles for the tracing of a connection manager: `http.<stat_prefix>.tracing.…`. Each
    /// request counts in one of them, and not at all where there is no tracing.
    TracingMetrics {
        /// `random_sampling`.
        random_sampling: Counter = counter "tracing.random_sampling",
        /// `client_enabled`: asked for by the client.
        client_enabled: Counter = counter "tracing.client_enabled",
        /// `service_forced`: asked for by a service.
        service_forced: Counter = counter "tracing.service_forced",
        /// `not_traceable`: not chosen.
        not_traceable: Counter = counter "tracing.not_traceable",
        /// `health_check`.
        health_check: Counter = counter "tracing.health_check",
    }
}

/// Why a request is traced or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceReason {
    /// Not.
    NotTraceable,
    /// Chosen at random.
    Sampling,
    /// A service forced it.
    ServiceForced,
    /// The client asked for it.
    ClientForced,
}

impl TracingMetrics {
    /// Counts a request.
    pub fn decided(&self, reason: TraceReason) {
        let counter = match reason {
            TraceReason::NotTraceable => &self.not_traceable,
            TraceReason::Sampling => &self.random_sampling,
            TraceReason::ServiceForced => &self.service_forced,
            TraceReason::ClientForced => &self.client_enabled,
        };
        counter.increment(1);
    }
}

/// How a connection was and ended.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionEnd {
    /// What was told to [`ConnectionManagerMetrics::version_known`], if anything.
    pub version: Option<HttpVersion>,
    /// What was told to [`ConnectionManagerMetrics::connection_begins`].
    pub tls: bool,
    /// Whether the downstream ended it.
    pub remote: bool,
    /// Whether a request was under way.
    pub active_request: bool,
    /// From accept to now.
    pub duration: Duration,
}

impl ConnectionManagerMetrics {
    /// Resolves the handles for this thread. `listener` is the listener's name among statistics, as
    /// [`crate::telemetry::metrics::ListenerMetrics::address`] tells it.
    pub fn new(stat_prefix: &str, listener: &str) -> Self {
        let by_listener = registry().scope(&format!("listener.{listener}."));
        Self {
            counts: ConnectionManagerCounts::resolve(scope(stat_prefix)),
            router: RouterMetrics::resolve(scope(stat_prefix)),
            tracing: TracingMetrics::resolve(scope(stat_prefix)),
            responses: Classes::new(scope(stat_prefix), ""),
            by_listener: Classes::new(by_listener, &format!("http.{}.", sanitized(stat_prefix))),
        }
    }

    /// A connection reached the filter.
    pub fn connection_begins(&self, tls: bool) {
        let counts = &self.counts;
        counts.cx_total.increment(1);
        counts.cx_active.add(1);
        if tls {
            counts.cx_ssl_total.increment(1);
            counts.cx_ssl_active.add(1);
        }
    }

    /// Its first bytes, or ALPN, told what it speaks; one that never speaks has no version.
    pub fn version_known(&self, version: HttpVersion) {
        let counts = &self.counts;
        let (total, active) = match version {
            HttpVersion::Http1 => (&counts.cx_http1_total, &counts.cx_http1_active),
            HttpVersion::Http2 => (&counts.cx_http2_total, &counts.cx_http2_active),
        };
        total.increment(1);
        active.add(1);
    }

    /// It ended.
    pub fn connection_ends(&self, end: &ConnectionEnd) {
        let counts = &self.counts;
        counts.cx_active.sub(1);
        if end.tls {
            counts.cx_ssl_active.sub(1);
        }
        match end.version {
            Some(HttpVersion::Http1) => counts.cx_http1_active.sub(1),
            Some(HttpVersion::Http2) => counts.cx_http2_active.sub(1),
            None => {}
        }
        let (side, side_active_rq) = if end.remote {
            (&counts.cx_destroy_remote, &counts.cx_destroy_remote_active_rq)
        } else {
            (&counts.cx_destroy_local, &counts.cx_destroy_local_active_rq)
        };
        counts.cx_destroy.increment(1);
        side.increment(1);
        if end.active_request {
            counts.cx_destroy_active_rq.increment(1);
            side_active_rq.increment(1);
        }
        counts.cx_length_ms.record(milliseconds(end.duration));
    }

    /// A request begins: with its first byte in HTTP/1, with its stream in HTTP/2.
    pub fn request_begins(&self, version: HttpVersion) {
        let counts = &self.counts;
        counts.rq_total.increment(1);
        counts.rq_active.add(1);
        match version {
            HttpVersion::Http1 => counts.rq_http1_total.increment(1),
            HttpVersion::Http2 => counts.rq_http2_total.increment(1),
        }
    }

    /// The headers of a response go downstream. A `100 Continue` counts like every other.
    pub fn response(&self, code: u16) {
        self.responses.count(code);
        self.by_listener.count(code);
    }

    /// A request and its response are over, however they ended.
    pub fn request_ends(&self, duration: Duration) {
        self.counts.rq_active.sub(1);
        self.counts.rq_time.record(milliseconds(duration));
    }

    /// A connection becomes something else than HTTP, or an extended CONNECT's stream does.
    pub fn upgrade_begins(&self) {
        self.counts.cx_upgrades_total.increment(1);
        self.counts.cx_upgrades_active.add(1);
    }

    /// And that is over.
    pub fn upgrade_ends(&self) {
        self.counts.cx_upgrades_active.sub(1);
    }
}
