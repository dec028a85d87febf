//! What the codecs count: `http1.…` and `http2.…` of all downstreams together, and of each cluster.

use super::handles;
use crate::telemetry::metrics::{Scope, registry, sanitized};

handles! {
    /// A worker's handles for HTTP/1.
    Http1Metrics {
        /// `dropped_headers_with_underscores`.
        dropped_headers_with_underscores: Counter = counter "http1.dropped_headers_with_underscores",
        /// `requests_rejected_with_underscores_in_headers`.
        requests_rejected_with_underscores_in_headers: Counter =
            counter "http1.requests_rejected_with_underscores_in_headers",
        /// `response_flood`: connections closed because too many responses waited to be taken.
        response_flood: Counter = counter "http1.response_flood",
        /// `metadata_not_supported_error`: stays 0, as there is no metadata in HTTP/1.
        metadata_not_supported_error: Counter = counter "http1.metadata_not_supported_error",
    }
}

handles! {
    /// A worker's handles for HTTP/2.
    Http2Metrics {
        /// `dropped_headers_with_underscores`.
        dropped_headers_with_underscores: Counter = counter "http2.dropped_headers_with_underscores",
        /// `requests_rejected_with_underscores_in_headers`.
        requests_rejected_with_underscores_in_headers: Counter =
            counter "http2.requests_rejected_with_underscores_in_headers",
        /// `header_overflow`: more headers than are allowed.
        header_overflow: Counter = counter "http2.header_overflow",
        /// `rx_messaging_error`: messages that break the rules.
        rx_messaging_error: Counter = counter "http2.rx_messaging_error",
        /// `rx_reset`: RST_STREAM received.
        rx_reset: Counter = counter "http2.rx_reset",
        /// `tx_reset`: RST_STREAM sent.
        tx_reset: Counter = counter "http2.tx_reset",
        /// `stream_refused_errors`: streams that the peer refused.
        stream_refused_errors: Counter = counter "http2.stream_refused_errors",
        /// `goaway_sent`.
        goaway_sent: Counter = counter "http2.goaway_sent",
        /// `trailers`: received.
        trailers: Counter = counter "http2.trailers",
        /// `keepalive_timeout`: connections closed because a PING was not answered.
        keepalive_timeout: Counter = counter "http2.keepalive_timeout",
        /// `tx_flush_timeout`: streams reset because their window stayed shut.
        tx_flush_timeout: Counter = counter "http2.tx_flush_timeout",
        /// `inbound_empty_frames_flood`: connections closed over empty DATA, HEADERS and CONTINUATION.
        inbound_empty_frames_flood: Counter = counter "http2.inbound_empty_frames_flood",
        /// `inbound_priority_frames_flood`.
        inbound_priority_frames_flood: Counter = counter "http2.inbound_priority_frames_flood",
        /// `inbound_window_update_frames_flood`.
        inbound_window_update_frames_flood: Counter = counter "http2.inbound_window_update_frames_flood",
        /// `outbound_flood`: connections closed because too many frames waited to be taken.
        outbound_flood: Counter = counter "http2.outbound_flood",
        /// `outbound_control_flood`: likewise of PING, SETTINGS and RST_STREAM.
        outbound_control_flood: Counter = counter "http2.outbound_control_flood",
        /// `streams_active`.
        streams_active: Gauge = gauge "http2.streams_active",
        /// `pending_send_bytes`: what windows keep back.
        pending_send_bytes: Gauge = gauge "http2.pending_send_bytes",
    }
}

fn of_cluster(cluster: &str) -> Scope {
    registry().scope(&format!("cluster.{}.", sanitized(cluster)))
}

impl Http1Metrics {
    /// Those of downstreams, for this thread.
    pub fn downstream() -> Self {
        Self::resolve(registry().scope(""))
    }

    /// Those of the endpoints of `cluster`, by its name in statistics; Envoy has them from the first
    /// connection on.
    pub fn upstream(cluster: &str) -> Self {
        Self::resolve(of_cluster(cluster))
    }
}

impl Http2Metrics {
    /// Those of downstreams, for this thread; Envoy has them from the first connection on.
    pub fn downstream() -> Self {
        Self::resolve(registry().scope(""))
    }

    /// Those of the endpoints of `cluster`, by its name in statistics; Envoy has them from the first
    /// connection on.
    pub fn upstream(cluster: &str) -> Self {
        Self::resolve(of_cluster(cluster))
    }
}
