//! Names and labels against what a real Envoy answered under Consul's own bootstrap file.
//!
//! `recorded/` holds that file's `stats_config`, and of the answer one series a metric without its value.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::registry::{Identity, Sample, Value};
use super::render::prometheus;
use super::tags::{TagRules, TagSpecifier, TagValue};
use super::*;

const API: &str = "api.default.dc1.internal.17b1d5da-eec0-1b75-21ab-f4bbdf0e280a.consul";

pub(super) fn recorded_config() -> StatsConfig {
    let json: serde_json::Value = serde_json::from_str(include_str!("recorded/stats_config.json")).unwrap();
    let tags = json["stats_tags"].as_array().unwrap();
    StatsConfig {
        stats_tags: tags
            .iter()
            .map(|tag| TagSpecifier {
                tag_name: tag["tag_name"].as_str().unwrap().to_owned(),
                value: match tag["regex"].as_str() {
                    Some(regex) => TagValue::Regex(regex.to_owned()),
                    None => TagValue::Fixed(tag["fixed_value"].as_str().unwrap().to_owned()),
                },
            })
            .collect(),
        use_all_default_tags: json["use_all_default_tags"].as_bool().unwrap(),
    }
}

/// The series, such as `envoy_server_live{…}`, that `config` makes of full names.
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
    prometheus::render(&samples, false)
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("_bucket{") && !line.contains("_sum{"))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

/// A sample for names that no handle is needed for.
fn named(name: &str) -> Sample {
    Sample {
        name: name.to_owned(),
        identity: Identity {
            name: "".into(),
            tags: Arc::default(),
        },
        value: Value::Counter { total: 0, delta: 0 },
        used: false,
    }
}

#[test]
fn every_series_is_named_and_labelled_as_envoy_does() {
    let cluster = ClusterMetrics::new(API);
    cluster.tls_established("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", Some("X25519"));
    let listener = ListenerMetrics::new("public_listener:127.0.0.1:21003");
    let _held = (
        cluster,
        listener,
        CircuitBreakerMetrics::new(API, "default"),
        OutlierMetrics::new(API),
        ClusterMembership::new(API),
        SubscriptionMetrics::of_cluster(API),
        TcpProxyMetrics::new("upstream.api.default.default.dc1"),
        (
            SubscriptionMetrics::new("cluster_manager.cds."),
            SubscriptionMetrics::new("listener_manager.lds."),
            ServerMetrics::new(),
            ListenerManagerMetrics::new(),
            ClusterManagerMetrics::new(),
            ControlPlaneMetrics::new(),
        ),
    );
    let mine = |name: &str| {
        let parts = [
            "listener.127.0.0.1_21003.",
            "tcp.upstream.api.default.default.dc1.",
            API,
        ];
        let whole = [
            "server.",
            "listener_manager.",
            "cluster_manager.",
            "control_plane.",
            "connect_authz.",
        ];
        parts.iter().any(|part| name.contains(part)) || whole.iter().any(|part| name.starts_with(part))
    };
    let samples = registry().collect(mine);
    let ours = series(&recorded_config(), &samples);
    let theirs: BTreeSet<String> = include_str!("recorded/stats_prometheus.txt")
        .lines()
        .map(str::to_owned)
        .collect();
    let unknown: Vec<&String> = ours.difference(&theirs).collect();
    assert!(unknown.is_empty(), "Envoy has no such series: {unknown:#?}");
    assert!(ours.len() > 90, "{}", ours.len());
}

#[test]
fn tags_without_a_bootstrap_file_are_those_of_consuls() {
    let names = [
        &format!("cluster.{API}.upstream_cx_total"),
        "cluster.local_app.upstream_cx_total",
        "tcp.upstream.api.default.default.dc1.downstream_cx_total",
        "listener.127.0.0.1_21003.downstream_cx_total",
        "connect_authz.rbac.allowed",
    ]
    .map(named);
    let own = StatsConfig::consul().with_source("web", "default", "default", "dc1");
    let mut recorded = recorded_config();
    // Tags that Consul has for older versions of itself.
    recorded.stats_tags.retain(|tag| {
        !tag.tag_name.starts_with("consul.")
            || ["destination", "upstream", "source"]
                .iter()
                .any(|kind| tag.tag_name.starts_with(&format!("consul.{kind}.")))
    });
    assert_eq!(series(&own, &names), series(&recorded, &names));
}

#[test]
fn names_of_http_are_tagged_as_recorded_too() {
    let labels = |config: StatsConfig, name: &str| {
        let series = series(&config, &[named(name)]);
        series.first().unwrap().clone()
    };
    let plain = |name| labels(StatsConfig::default(), name);
    for (name, wanted) in [
        (
            "listener.127.0.0.1_21103.http.public_listener.downstream_rq_1xx",
            "envoy_listener_http_downstream_rq_xx{envoy_response_code_class=\"1\",\
             envoy_http_conn_manager_prefix=\"public_listener\",envoy_listener_address=\"127.0.0.1_21103\"}",
        ),
        (
            "http.public_listener.rbac.allowed",
            "envoy_http_rbac_allowed{envoy_http_conn_manager_prefix=\"public_listener\"}",
        ),
        (
            "cluster.local_app.grpc.svc.Method.total",
            "envoy_cluster_grpc_total{envoy_grpc_bridge_method=\"Method\",envoy_grpc_bridge_service=\"svc\",\
             envoy_cluster_name=\"local_app\"}",
        ),
        (
            "listener.127.0.0.1_9191.worker_0.downstream_cx_total",
            "envoy_listener_worker_downstream_cx_total{envoy_worker_id=\"0\",\
             envoy_listener_address=\"127.0.0.1_9191\"}",
        ),
        (
            "listener.admin.http.admin.downstream_rq_5xx",
            "envoy_listener_admin_http_downstream_rq_xx{envoy_response_code_class=\"5\",\
             envoy_http_conn_manager_prefix=\"admin\"}",
        ),
    ] {
        assert_eq!(plain(name), wanted, "{name}");
    }
    // Its route's name stays: Envoy looks for it behind a prefix of one word only.
    assert_eq!(
        plain("http.upstream.api.default.default.dc1.rds.api.update_success"),
        "envoy_http_api_default_default_dc1_rds_api_update_success{envoy_http_conn_manager_prefix=\"upstream\"}"
    );
}
