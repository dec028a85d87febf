//! Names, kinds and labels against what a real Envoy 1.40 answered.
//!
//! `recorded/http_prometheus.txt` is of one with a static configuration, after requests of all sorts: the
//! kind and the series without its value. `recorded/http_consul.txt` has lines of one under Consul.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::model::http::GrpcStats;
use crate::telemetry::metrics::recorded_tests::recorded_config;
use crate::telemetry::metrics::registry::{Identity, Sample, Value};
use crate::telemetry::metrics::render::prometheus;
use crate::telemetry::metrics::tags::{StatsConfig, TagRules};
use crate::telemetry::metrics::{CircuitBreakerMetrics, registry};

const RECORDED: &str = include_str!("../recorded/http_prometheus.txt");

/// Series that Envoy has and Attaché does not count: it has none of what they are about.
const NOT_COUNTED: [&str; 13] = [
    "http3",
    "internal_redirect",
    "0rtt",
    "0_rtt",
    "nghttp2",
    "http1_soft_drain",
    "canary",
    "upstream_queue_overloaded",
    "oghttp2",
    "_http2_cookie",
    "_http2_header_count",
    "_http2_header_list",
    "_http2_metadata_empty_frames",
];

/// Inner workings of Envoy's codec and pools.
const INNER: [&str; 7] = [
    "http2_deferred_stream_close",
    "http2_headers_cb_no_stream",
    "http2_outbound_frames_active",
    "http2_outbound_control_frames_active",
    "upstream_cx_pool_overflow",
    "upstream_rq_rx_reset_no_error",
    "upstream_cx_connect_with",
];

/// The kind and series, such as `counter envoy_http_no_route{…}`, that `config` makes of samples.
fn series(config: &StatsConfig, samples: &[Sample]) -> BTreeSet<String> {
    let rules = TagRules::new(config).unwrap();
    let samples: Vec<Sample> = samples
        .iter()
        .filter(|sample| !sample.identity.is_own())
        .map(|sample| {
            let extracted = rules.extract(&sample.name);
            Sample {
                identity: Identity {
                    name: extracted.name.into(),
                    tags: extracted.tags.into(),
                },
                ..sample.clone()
            }
        })
        .collect();
    let mut kind = String::new();
    let mut found = BTreeSet::new();
    for line in prometheus::render(&samples, false).lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            family.rsplit_once(' ').unwrap().1.clone_into(&mut kind);
        } else if !line.contains("_bucket{") && !line.contains("_sum{") {
            found.insert(format!("{kind} {}", line.rsplit_once(' ').unwrap().0));
        }
    }
    found
}

/// Everything that the recorded Envoy was asked to do, told to the handles.
fn everything() -> impl Sized {
    let public = ConnectionManagerMetrics::new("public_listener", "127.0.0.1_24101");
    let upstream = ConnectionManagerMetrics::new("upstream.api.default.default.dc1", "127.0.0.1_24102");
    let clusters = ["rec-app", "rec-apph2", "rec-dead"].map(HttpClusterMetrics::new);
    let [app, apph2, dead] = &clusters;
    app.connection_begins(HttpVersion::Http1);
    apph2.connection_begins(HttpVersion::Http2);
    dead.connection_begins(HttpVersion::Http1);
    for (cluster, codes) in [
        (app, &[101, 200, 404, 503, 504][..]),
        (apph2, &[200]),
        (dead, &[503]),
    ] {
        for code in codes {
            cluster.response(Response {
                code: *code,
                internal: false,
            });
        }
    }
    app.response_retried(503);
    app.response_complete(false, Duration::from_millis(3));
    apph2.response_complete(false, Duration::from_millis(3));
    let by_method = GrpcStats {
        stats_for_all_methods: true,
        enable_upstream_stats: true,
        ..GrpcStats::default()
    };
    let grpc = [
        GrpcMetrics::new("rec-apph2", by_method),
        GrpcMetrics::new("rec-apph2", GrpcStats::default()),
        GrpcMetrics::new("rec-dead", by_method),
        GrpcMetrics::new("rec-dead", GrpcStats::default()),
    ];
    for (metrics, path, status) in [
        (&grpc[0], "/pkg.Svc/Ok", 0),
        (&grpc[0], "/pkg.Svc/X", 7),
        (&grpc[0], "/pkg.Svc/Bad", 17),
        (&grpc[1], "/pkg.Svc/Ok", 0),
        (&grpc[1], "/pkg.Svc/X", 7),
        (&grpc[2], "/pkg.Dead/M", 14),
        (&grpc[3], "/pkg.Dead/M", 14),
    ] {
        let call = metrics.call(path).unwrap();
        call.request_messages(1);
        call.finished(status);
        if status != 14 {
            call.upstream_complete(Duration::from_millis(1));
        }
    }
    let filters = (
        HttpRbacMetrics::new("public_listener", "", ""),
        HttpRbacMetrics::new("public_listener", "second", "sh_"),
        JwtAuthnMetrics::new("public_listener"),
        LocalRateLimitMetrics::new("lrl"),
    );
    let rest = (
        Http1Metrics::downstream(),
        Http2Metrics::downstream(),
        ZipkinMetrics::new(),
        OpenTelemetryMetrics::new(),
    );
    (public, upstream, clusters, grpc, filters, rest)
}

#[test]
fn every_series_is_envoys_and_none_of_envoys_is_missing() {
    let _held = everything();
    let mine = |name: &str| {
        let parts = [
            ".rec-app.",
            ".rec-apph2.",
            ".rec-dead.",
            "_24101.http.",
            "_24102.http.",
        ];
        let prefixes = [
            "http.public_listener.",
            "http.upstream.api.default.default.dc1.",
            "http1.",
            "http2.",
            "lrl.",
            "tracing.",
        ];
        parts.iter().any(|part| name.contains(part)) || prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let samples = registry().collect(|name| mine(name) && !name.contains(".rds."));
    let ours = series(&StatsConfig::default(), &samples);
    let theirs: BTreeSet<String> = RECORDED.lines().map(str::to_owned).collect();
    let unknown: Vec<&String> = ours.difference(&theirs).collect();
    assert!(unknown.is_empty(), "Envoy has no such series: {unknown:#?}");
    let missing: Vec<&String> = theirs
        .difference(&ours)
        .filter(|series| !NOT_COUNTED.iter().chain(&INNER).any(|part| series.contains(part)))
        .collect();
    assert!(missing.is_empty(), "only Envoy has: {missing:#?}");
}

#[test]
fn consuls_tags_are_found_in_the_names_of_http() {
    const CLUSTER: &str = "v1.api.default.dc1.internal.2469e4eb-eabd-52ea-3ee3-ea989743333b.consul";
    let cluster = HttpClusterMetrics::new(CLUSTER);
    cluster.connection_begins(HttpVersion::Http1);
    cluster.response(Response {
        code: 200,
        internal: false,
    });
    cluster.response_complete(false, Duration::ZERO);
    let _held = (
        cluster,
        ConnectionManagerMetrics::new("upstream.api.default.default.dc1", "127.0.0.1_1"),
        CircuitBreakerMetrics::new(CLUSTER, "default"),
    );
    let samples = registry()
        .collect(|name| name.contains(CLUSTER) || name.starts_with("http.upstream.api.default.default.dc1."));
    let ours = series(&recorded_config(), &samples);
    let recorded: Vec<&str> = include_str!("../recorded/http_consul.txt").lines().collect();
    assert!(recorded.len() > 10);
    for line in recorded {
        assert!(ours.contains(line), "{line} is not in {ours:#?}");
    }
}

/// The total of a counter, or the level of a gauge; none where there is no such statistic.
fn shown(name: &str) -> Option<i64> {
    let samples = registry().collect(|found| found == name);
    match &samples.first()?.value {
        Value::Counter { total, .. } => i64::try_from(*total).ok(),
        Value::Gauge(level) => Some(*level),
        Value::Histogram { all, .. } => i64::try_from(all.count()).ok(),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_connection_and_its_requests_leave_nothing_active() {
    let metrics = ConnectionManagerMetrics::new("hcm-life", "life");
    metrics.connection_begins(true);
    metrics.version_known(HttpVersion::Http2);
    for code in [100, 200, 999] {
        metrics.request_begins(HttpVersion::Http2);
        metrics.response(code);
        metrics.request_ends(Duration::from_millis(2));
    }
    metrics.upgrade_begins();
    let active = |what: &str| shown(&format!("http.hcm-life.downstream_{what}"));
    assert_eq!(active("cx_http2_active"), Some(1));
    assert_eq!(active("cx_upgrades_active"), Some(1));
    metrics.upgrade_ends();
    metrics.connection_ends(&ConnectionEnd {
        version: Some(HttpVersion::Http2),
        tls: true,
        remote: true,
        active_request: true,
        duration: Duration::from_secs(1),
    });
    for what in [
        "cx_active",
        "cx_ssl_active",
        "cx_http2_active",
        "cx_upgrades_active",
        "rq_active",
    ] {
        assert_eq!(active(what), Some(0), "{what}");
    }
    for (what, count) in [
        ("cx_total", 1),
        ("cx_ssl_total", 1),
        ("cx_destroy", 1),
        ("cx_destroy_remote", 1),
        ("cx_destroy_local", 0),
        ("cx_destroy_active_rq", 1),
        ("cx_destroy_remote_active_rq", 1),
        ("cx_length_ms", 1),
        ("rq_total", 3),
        ("rq_http2_total", 3),
        ("rq_completed", 3),
        ("rq_1xx", 1),
        ("rq_2xx", 1),
        ("rq_5xx", 0),
        ("rq_time", 3),
    ] {
        assert_eq!(active(what), Some(count), "{what}");
    }
    assert_eq!(
        shown("listener.life.http.hcm-life.downstream_rq_completed"),
        Some(3)
    );
    assert_eq!(shown("listener.life.http.hcm-life.downstream_rq_2xx"), Some(1));
}

/// What Envoy was seen to count for a request whose first try got 503 and whose second got 200.
#[test]
fn a_retried_request_counts_one_response() {
    let metrics = HttpClusterMetrics::new("http-retried");
    let of = |what: &str| shown(&format!("cluster.http-retried.{what}"));
    assert_eq!(of("upstream_rq_completed"), Some(0));
    for lazy in [
        "upstream_rq_200",
        "upstream_rq_2xx",
        "upstream_rq_time",
        "external.upstream_rq_completed",
    ] {
        assert_eq!(of(lazy), None, "{lazy} is there from the first response on");
    }
    metrics.request_begins();
    metrics.response_retried(503);
    metrics.request_ends();
    metrics.retry(Backoff::Exponential);
    metrics.request_begins();
    metrics.counts.rq_retry_success.increment(1);
    metrics.response(Response {
        code: 200,
        internal: true,
    });
    metrics.response_complete(true, Duration::from_millis(1));
    metrics.request_ends();
    for (what, count) in [
        ("upstream_rq_total", Some(2)),
        ("upstream_rq_active", Some(0)),
        ("upstream_rq_retry", Some(1)),
        ("upstream_rq_retry_backoff_exponential", Some(1)),
        ("retry.upstream_rq_503", Some(1)),
        ("retry.upstream_rq_5xx", Some(1)),
        ("retry.upstream_rq_completed", Some(1)),
        ("upstream_rq_503", None),
        ("upstream_rq_200", Some(1)),
        ("upstream_rq_2xx", Some(1)),
        ("upstream_rq_completed", Some(1)),
        ("internal.upstream_rq_200", Some(1)),
        ("internal.upstream_rq_completed", Some(1)),
        ("external.upstream_rq_completed", None),
        ("upstream_rq_time", Some(1)),
        ("internal.upstream_rq_time", Some(1)),
        ("retry.upstream_rq_time", None),
    ] {
        assert_eq!(of(what), count, "{what}");
    }
}

/// The names that Consul's dashboards for Grafana ask for.
#[test]
fn the_dashboards_find_their_series() {
    let _held = everything();
    let ours = series(&StatsConfig::default(), &registry().collect(|_| true));
    for name in [
        "counter envoy_http_downstream_rq_xx",
        "counter envoy_http_downstream_rq_total",
        "counter envoy_http_downstream_rq_completed",
        "histogram envoy_http_downstream_rq_time_count",
        "gauge envoy_http_downstream_cx_active",
        "counter envoy_http_downstream_cx_tx_bytes_total",
        "counter envoy_cluster_upstream_rq_total",
        "counter envoy_cluster_upstream_rq_xx",
        "histogram envoy_cluster_upstream_rq_time_count",
        "counter envoy_cluster_upstream_rq_timeout",
        "counter envoy_cluster_upstream_rq_pending_overflow",
        "counter envoy_cluster_upstream_rq_retry",
        "histogram envoy_cluster_external_upstream_rq_time_count",
    ] {
        let series = format!("{name}{{");
        assert!(ours.iter().any(|one| one.starts_with(&series)), "{name}");
    }
}
