//! What a cluster says of limits, health and protocols, and what of it has no effect here.

use std::time::Duration;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::cluster::v3::{
    Cluster as Wire, OutlierDetection as WireOutliers, cluster::ClusterProtocolSelection, cluster::LbConfig,
};
use attache_proto::envoy::config::core::v3::{
    HttpProtocolOptions as CommonHttp, RoutingPriority, UpstreamHttpProtocolOptions,
};
use attache_proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
};

use super::common::{enumeration, percent, positive, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::cluster::{CircuitBreakers, HttpProtocol, Keepalive, OutlierDetection};

/// Envoy's default of `healthy_panic_threshold`.
const PANIC_THRESHOLD: u8 = 50;

pub(super) fn refuse_unsupported(cluster: &Wire, at: &At<'_>) -> Result<(), DecodeError> {
    if !cluster.health_checks.is_empty() {
        return Err(at
            .field("health_checks")
            .refuse("is not supported: nothing is probed; outlier_detection is supported"));
    }
    let (slow_start, bias) = match &cluster.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) => (config.slow_start_config.is_some(), false),
        Some(LbConfig::LeastRequestLbConfig(config)) => (
            config.slow_start_config.is_some(),
            config.active_request_bias.is_some(),
        ),
        _ => (false, false),
    };
    unsupported(
        at,
        &[
            (slow_start, "lb_config.slow_start_config"),
            (bias, "least_request_lb_config.active_request_bias"),
            (
                !cluster.transport_socket_matches.is_empty(),
                "transport_socket_matches",
            ),
            (
                cluster.transport_socket_matcher.is_some(),
                "transport_socket_matcher",
            ),
            (cluster.upstream_bind_config.is_some(), "upstream_bind_config"),
            (cluster.lb_subset_config.is_some(), "lb_subset_config"),
            (!cluster.filters.is_empty(), "filters"),
            (cluster.load_balancing_policy.is_some(), "load_balancing_policy"),
            (cluster.upstream_config.is_some(), "upstream_config"),
            (cluster.queuing_policies.is_some(), "queuing_policies"),
        ],
    )
}

pub(super) fn note_without_effect(cluster: &Wire, at: &At<'_>, ctx: &mut Context<'_>) {
    without_effect(
        at,
        ctx,
        &[
            (cluster.stats_matcher.is_some(), "stats_matcher"),
            (
                cluster.per_connection_buffer_limit_bytes.is_some(),
                "per_connection_buffer_limit_bytes",
            ),
            (
                cluster.per_connection_buffer_high_watermark_timeout.is_some(),
                "per_connection_buffer_high_watermark_timeout",
            ),
            (
                cluster.max_requests_per_connection.is_some(),
                "max_requests_per_connection",
            ),
            (cluster.http_protocol_options.is_some(), "http_protocol_options"),
            (cluster.dns_jitter.is_some(), "dns_jitter"),
            (
                cluster.dns_failure_refresh_rate.is_some(),
                "dns_failure_refresh_rate",
            ),
            (cluster.respect_dns_ttl, "respect_dns_ttl"),
            (cluster.wait_for_warm_on_init.is_some(), "wait_for_warm_on_init"),
            (cluster.cleanup_interval.is_some(), "cleanup_interval"),
            (
                cluster.close_connections_on_host_health_failure,
                "close_connections_on_host_health_failure",
            ),
            (
                cluster.ignore_health_on_host_removal,
                "ignore_health_on_host_removal",
            ),
            (cluster.lrs_server.is_some(), "lrs_server"),
            (
                !cluster.lrs_report_endpoint_metrics.is_empty(),
                "lrs_report_endpoint_metrics",
            ),
            (cluster.track_timeout_budgets, "track_timeout_budgets"),
            (cluster.track_cluster_stats.is_some(), "track_cluster_stats"),
            (cluster.preconnect_policy.is_some(), "preconnect_policy"),
            (
                cluster.connection_pool_per_downstream_connection,
                "connection_pool_per_downstream_connection",
            ),
        ],
    );
}

pub(super) fn panic_threshold(cluster: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<u8, DecodeError> {
    let Some(common) = &cluster.common_lb_config else {
        return Ok(PANIC_THRESHOLD);
    };
    let at = at.field("common_lb_config");
    unsupported(
        &at,
        &[
            (
                common.locality_config_specifier.is_some(),
                "locality_config_specifier",
            ),
            (
                common.consistent_hashing_lb_config.is_some(),
                "consistent_hashing_lb_config",
            ),
            (common.override_host_status.is_some(), "override_host_status"),
        ],
    )?;
    without_effect(
        &at,
        ctx,
        &[
            (common.update_merge_window.is_some(), "update_merge_window"),
            (
                common.ignore_new_hosts_until_first_hc,
                "ignore_new_hosts_until_first_hc",
            ),
            (
                common.close_connections_on_host_set_change,
                "close_connections_on_host_set_change",
            ),
        ],
    );
    match &common.healthy_panic_threshold {
        None => Ok(PANIC_THRESHOLD),
        // As Envoy: to the nearest whole number.
        Some(percent) if (0.0..=100.0).contains(&percent.value) => Ok(percent.value.round() as u8),
        Some(_) => Err(at
            .field("healthy_panic_threshold")
            .refuse("is not between 0 and 100")),
    }
}

pub(super) fn circuit_breakers(
    cluster: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<CircuitBreakers, DecodeError> {
    let Some(breakers) = &cluster.circuit_breakers else {
        return Ok(CircuitBreakers::default());
    };
    let at = at.field("circuit_breakers");
    unsupported(
        &at,
        &[(!breakers.per_host_thresholds.is_empty(), "per_host_thresholds")],
    )?;
    let all = at.field("thresholds");
    let mut found = None;
    for (index, thresholds) in breakers.thresholds.iter().enumerate() {
        let at = all.index(index);
        let priority: RoutingPriority = enumeration(thresholds.priority, &at.field("priority"))?;
        if priority == RoutingPriority::High {
            ctx.notice(&at, "is for the priority HIGH and has no effect");
            continue;
        }
        without_effect(
            &at,
            ctx,
            &[
                (thresholds.retry_budget.is_some(), "retry_budget"),
                (thresholds.track_remaining, "track_remaining"),
                (thresholds.max_connection_pools.is_some(), "max_connection_pools"),
            ],
        );
        // Of several for one priority Envoy takes the first.
        found.get_or_insert(CircuitBreakers {
            max_connections: thresholds.max_connections,
            max_pending_requests: thresholds.max_pending_requests,
            max_requests: thresholds.max_requests,
            max_retries: thresholds.max_retries,
        });
    }
    Ok(found.unwrap_or_default())
}

pub(super) fn outlier_detection(
    cluster: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<OutlierDetection>, DecodeError> {
    let Some(wire) = &cluster.outlier_detection else {
        return Ok(None);
    };
    let at = at.field("outlier_detection");
    unsupported(&at, &[(!wire.monitors.is_empty(), "monitors")])?;
    note_ejection_by_rates(wire, &at, ctx);
    let default = OutlierDetection::default();
    let share = |value, default, field: &str| percent(value, default, &at.field(field));
    let time = |value: &Option<prost_types::Duration>, default: Duration, field: &str| {
        positive(value.as_ref(), default, &at.field(field))
    };
    let base = time(
        &wire.base_ejection_time,
        default.base_ejection_time,
        "base_ejection_time",
    )?;
    Ok(Some(OutlierDetection {
        consecutive_5xx: wire.consecutive_5xx.unwrap_or(default.consecutive_5xx),
        enforcing_consecutive_5xx: share(
            wire.enforcing_consecutive_5xx,
            default.enforcing_consecutive_5xx,
            "enforcing_consecutive_5xx",
        )?,
        consecutive_gateway_failure: (wire.consecutive_gateway_failure)
            .unwrap_or(default.consecutive_gateway_failure),
        enforcing_consecutive_gateway_failure: share(
            wire.enforcing_consecutive_gateway_failure,
            default.enforcing_consecutive_gateway_failure,
            "enforcing_consecutive_gateway_failure",
        )?,
        interval: time(&wire.interval, default.interval, "interval")?,
        base_ejection_time: base,
        // Envoy's default grows with the base.
        max_ejection_time: time(
            &wire.max_ejection_time,
            default.max_ejection_time.max(base),
            "max_ejection_time",
        )?,
        max_ejection_percent: share(
            wire.max_ejection_percent,
            default.max_ejection_percent,
            "max_ejection_percent",
        )?,
    }))
}

/// Endpoints are ejected for failures in a row only.
fn note_ejection_by_rates(wire: &WireOutliers, at: &At<'_>, ctx: &mut Context<'_>) {
    // That it is switched off is no news.
    let on = |share: Option<u32>| share.is_some_and(|share| share > 0);
    without_effect(
        at,
        ctx,
        &[
            (on(wire.enforcing_success_rate), "enforcing_success_rate"),
            (
                wire.success_rate_minimum_hosts.is_some(),
                "success_rate_minimum_hosts",
            ),
            (
                wire.success_rate_request_volume.is_some(),
                "success_rate_request_volume",
            ),
            (
                wire.success_rate_stdev_factor.is_some(),
                "success_rate_stdev_factor",
            ),
            (
                wire.split_external_local_origin_errors,
                "split_external_local_origin_errors",
            ),
            (
                wire.consecutive_local_origin_failure.is_some(),
                "consecutive_local_origin_failure",
            ),
            (
                on(wire.enforcing_consecutive_local_origin_failure),
                "enforcing_consecutive_local_origin_failure",
            ),
            (
                on(wire.enforcing_local_origin_success_rate),
                "enforcing_local_origin_success_rate",
            ),
            (
                wire.failure_percentage_threshold.is_some(),
                "failure_percentage_threshold",
            ),
            (
                on(wire.enforcing_failure_percentage),
                "enforcing_failure_percentage",
            ),
            (
                on(wire.enforcing_failure_percentage_local_origin),
                "enforcing_failure_percentage_local_origin",
            ),
            (
                wire.failure_percentage_minimum_hosts.is_some(),
                "failure_percentage_minimum_hosts",
            ),
            (
                wire.failure_percentage_request_volume.is_some(),
                "failure_percentage_request_volume",
            ),
            (
                wire.max_ejection_time_jitter.is_some(),
                "max_ejection_time_jitter",
            ),
            (
                wire.successful_active_health_check_uneject_host.is_some(),
                "successful_active_health_check_uneject_host",
            ),
            (wire.always_eject_one_host == Some(false), "always_eject_one_host"),
            (wire.detect_degraded_hosts == Some(true), "detect_degraded_hosts"),
        ],
    );
}

pub(super) fn keepalive(cluster: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Option<Keepalive> {
    let options = cluster.upstream_connection_options.as_ref()?;
    let at = at.field("upstream_connection_options");
    let interface = options.set_local_interface_name_on_upstream_connections;
    without_effect(
        &at,
        ctx,
        &[(interface, "set_local_interface_name_on_upstream_connections")],
    );
    let keepalive = options.tcp_keepalive.as_ref()?;
    let seconds = |seconds: Option<u32>| seconds.map(|seconds| Duration::from_secs(seconds.into()));
    Some(Keepalive {
        time: seconds(keepalive.keepalive_time),
        interval: seconds(keepalive.keepalive_interval),
        probes: keepalive.keepalive_probes,
    })
}

/// How HTTP is spoken: by the extension's options, or by the fields that they replace.
pub(super) fn http(cluster: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<HttpProtocol, DecodeError> {
    let selection_at = at.field("protocol_selection");
    let selection: ClusterProtocolSelection = enumeration(cluster.protocol_selection, &selection_at)?;
    shared(
        cluster.common_http_protocol_options.as_ref(),
        cluster.upstream_http_protocol_options.as_ref(),
        at,
        ctx,
    )?;
    let mut protocol = if selection == ClusterProtocolSelection::UseDownstreamProtocol {
        HttpProtocol::Downstream
    } else if cluster.http2_protocol_options.is_some() {
        HttpProtocol::Http2
    } else {
        HttpProtocol::Http1
    };
    let all = at.field("typed_extension_protocol_options");
    for (name, config) in &cluster.typed_extension_protocol_options {
        let at = all.key(name);
        if type_name(config) != HttpProtocolOptions::TYPE_NAME {
            return Err(at.refuse(format!("is a {:?}, which is not supported", type_name(config))));
        }
        protocol = options(&unpack(config, &at)?, &at, ctx)?;
    }
    Ok(protocol)
}

fn options(
    options: &HttpProtocolOptions,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<HttpProtocol, DecodeError> {
    unsupported(
        at,
        &[
            (!options.http_filters.is_empty(), "http_filters"),
            (
                options.header_validation_config.is_some(),
                "header_validation_config",
            ),
            (!options.hash_policy.is_empty(), "hash_policy"),
            (options.retry_policy.is_some(), "retry_policy"),
            (options.outlier_detection.is_some(), "outlier_detection"),
            (
                !options.request_mirror_policies.is_empty(),
                "request_mirror_policies",
            ),
        ],
    )?;
    shared(
        options.common_http_protocol_options.as_ref(),
        options.upstream_http_protocol_options.as_ref(),
        at,
        ctx,
    )?;
    match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            let at = at.field("explicit_http_config");
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(HttpProtocol::Http1),
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(HttpProtocol::Http2),
                _ => Err(at.refuse("is neither HTTP/1 nor HTTP/2")),
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => Ok(HttpProtocol::Downstream),
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            Err(at.field("auto_config").refuse("is not supported"))
        }
        None => Err(at.refuse("says no protocol")),
    }
}

/// What both forms say besides the protocol.
fn shared(
    common: Option<&CommonHttp>,
    upstream: Option<&UpstreamHttpProtocolOptions>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(), DecodeError> {
    if let Some(upstream) = upstream {
        unsupported(
            &at.field("upstream_http_protocol_options"),
            &[
                (upstream.auto_sni, "auto_sni"),
                (upstream.auto_san_validation, "auto_san_validation"),
                (
                    !upstream.override_auto_sni_header.is_empty(),
                    "override_auto_sni_header",
                ),
            ],
        )?;
    }
    without_effect(at, ctx, &[(common.is_some(), "common_http_protocol_options")]);
    Ok(())
}
