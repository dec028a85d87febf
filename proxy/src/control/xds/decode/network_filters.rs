//! Network filters: RBAC, connection limit, SNI cluster, and what carries the bytes.

use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::listener::v3::{Filter, filter::ConfigType};
use attache_proto::envoy::extensions::filters::network::{
    connection_limit::v3::ConnectionLimit,
    ext_authz::v3::ExtAuthz,
    http_connection_manager::v3::HttpConnectionManager,
    rbac::v3::{Rbac, rbac::EnforcementType},
    sni_cluster::v3::SniCluster,
    tcp_proxy::v3::{self as tcp, TcpProxy, tcp_proxy::ClusterSpecifier},
    wasm::v3::Wasm,
};
use prost_types::Any;

use super::access_log;
use super::common::{duration, enumeration, limit, need, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::http_connection_manager;
use super::rbac::{self, Scope};
use crate::model::listener::{self, WeightedCluster};
use crate::model::{Name, NetworkFilter, Terminal};

/// The well-known name of a filter that needs no configuration.
const SNI_CLUSTER: &str = "envoy.filters.network.sni_cluster";

/// The filters of a chain in order, and the one that carries the bytes, which must be the last.
///
/// # Errors
/// Names the filter that is not supported or stands where it must not.
pub(super) fn decode(
    filters: &[Filter],
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(Vec<NetworkFilter>, Terminal), DecodeError> {
    let (mut before, mut terminal) = (Vec::new(), None);
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index(index);
        if terminal.is_some() {
            return Err(at.refuse(format!(
                "{:?} stands behind a filter that carries the bytes, which must be the last",
                filter.name
            )));
        }
        match one(filter, &at, ctx)? {
            Decoded::Before(filter) => before.push(filter),
            Decoded::Terminal(filter) => terminal = Some(filter),
            Decoded::Nothing => {}
        }
    }
    match terminal {
        None => Err(at.refuse("do not end with one that carries the bytes, such as tcp_proxy")),
        Some(Terminal::TcpProxy(tcp)) if has_no_cluster(&tcp, &before) => Err(at.refuse(
            "end with a tcp_proxy that has no cluster, and there is no sni_cluster before it to give one",
        )),
        Some(terminal) => Ok((before, terminal)),
    }
}

enum Decoded {
    Before(NetworkFilter),
    Terminal(Terminal),
    Nothing,
}

fn has_no_cluster(tcp: &listener::TcpProxy, before: &[NetworkFilter]) -> bool {
    tcp.clusters.iter().any(|cluster| cluster.name.is_empty()) && !before.contains(&NetworkFilter::SniCluster)
}

fn one(filter: &Filter, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Decoded, DecodeError> {
    let config = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(at.field("config_discovery").refuse("is not supported"));
        }
        None if filter.name == SNI_CLUSTER => return Ok(Decoded::Before(NetworkFilter::SniCluster)),
        None => return Err(at.refuse(format!("{:?} has no typed_config", filter.name))),
    };
    let inner = at.field("typed_config");
    let name = type_name(config);
    if name == TcpProxy::TYPE_NAME {
        return tcp_proxy(&unpack(config, &inner)?, &inner, ctx)
            .map(|tcp| Decoded::Terminal(Terminal::TcpProxy(tcp)));
    }
    if name == HttpConnectionManager::TYPE_NAME {
        return http_connection_manager::decode(config, &inner, ctx).map(Decoded::Terminal);
    }
    if name == Rbac::TYPE_NAME {
        let filter = connection_rbac(&unpack(config, &inner)?, &inner, ctx)?;
        return Ok(filter.map_or(Decoded::Nothing, Decoded::Before));
    }
    if name == ConnectionLimit::TYPE_NAME {
        return connection_limit(config, &inner).map(Decoded::Before);
    }
    if name == SniCluster::TYPE_NAME {
        return Ok(Decoded::Before(NetworkFilter::SniCluster));
    }
    // These two Consul's extensions can ask for.
    Err(at.refuse(if name == ExtAuthz::TYPE_NAME {
        format!(
            "{:?} is ext_authz, which is not supported: nobody would be asked",
            filter.name
        )
    } else if name == Wasm::TYPE_NAME {
        format!("{:?} is wasm, which is not supported", filter.name)
    } else {
        format!("{:?} is a {name:?}, which is not supported", filter.name)
    }))
}

fn connection_rbac(
    filter: &Rbac,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<NetworkFilter>, DecodeError> {
    unsupported(at, &[(filter.matcher.is_some(), "matcher")])?;
    // Continuous enforcement asks again when bytes arrive; here is asked again when the rules change, and
    // nothing else that they look at can.
    enumeration::<EnforcementType>(filter.enforcement_type, &at.field("enforcement_type"))?;
    without_effect(
        at,
        ctx,
        &[
            (filter.shadow_rules.is_some(), "shadow_rules"),
            (filter.shadow_matcher.is_some(), "shadow_matcher"),
            (filter.delay_deny.is_some(), "delay_deny"),
        ],
    );
    let Some(rules) = &filter.rules else {
        ctx.notice(at, "has no rules and lets everybody in");
        return Ok(None);
    };
    Ok(Some(NetworkFilter::Rbac {
        rules: rbac::scoped(rules, Scope::Network, &at.field("rules"), ctx)?,
        stat_prefix: filter.stat_prefix.as_str().into(),
    }))
}

fn connection_limit(config: &Any, at: &At<'_>) -> Result<NetworkFilter, DecodeError> {
    let filter: ConnectionLimit = unpack(config, at)?;
    // Without its key being set at run time it is as it defaults.
    let enabled = filter
        .runtime_enabled
        .as_ref()
        .and_then(|flag| flag.default_value);
    if enabled == Some(false) {
        return Err(at
            .field("runtime_enabled")
            .refuse("is false: leave the filter out instead"));
    }
    match filter.max_connections {
        Some(max_connections) if max_connections > 0 => Ok(NetworkFilter::ConnectionLimit {
            max_connections,
            delay: duration(filter.delay.as_ref(), &at.field("delay"))?,
            stat_prefix: filter.stat_prefix.as_str().into(),
        }),
        _ => Err(at.field("max_connections").refuse("is missing or 0")),
    }
}

fn tcp_proxy(
    filter: &TcpProxy,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<listener::TcpProxy, DecodeError> {
    let mode_at = at.field("upstream_connect_mode");
    let mode: tcp::UpstreamConnectMode = enumeration(filter.upstream_connect_mode, &mode_at)?;
    unsupported(
        at,
        &[
            (filter.on_demand.is_some(), "on_demand"),
            (filter.metadata_match.is_some(), "metadata_match"),
            (!filter.hash_policy.is_empty(), "hash_policy"),
            (filter.tunneling_config.is_some(), "tunneling_config"),
            (!filter.proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs"),
            (
                mode != tcp::UpstreamConnectMode::Immediate,
                "upstream_connect_mode",
            ),
            (
                filter.downstream_idle_timeout.is_some(),
                "downstream_idle_timeout",
            ),
            (filter.upstream_idle_timeout.is_some(), "upstream_idle_timeout"),
        ],
    )?;
    let jitter = filter
        .max_downstream_connection_duration_jitter_percentage
        .is_some();
    without_effect(
        at,
        ctx,
        &[
            (filter.backoff_options.is_some(), "backoff_options"),
            (jitter, "max_downstream_connection_duration_jitter_percentage"),
            (
                filter.access_log_flush_interval.is_some(),
                "access_log_flush_interval",
            ),
            (
                filter.flush_access_log_on_connected,
                "flush_access_log_on_connected",
            ),
            (filter.access_log_options.is_some(), "access_log_options"),
            (
                filter.proxy_protocol_tlv_merge_policy != 0,
                "proxy_protocol_tlv_merge_policy",
            ),
            (filter.max_early_data_bytes.is_some(), "max_early_data_bytes"),
            (filter.check_drain_close.is_some(), "check_drain_close"),
        ],
    );
    let max_connect_attempts = filter.max_connect_attempts;
    if max_connect_attempts == Some(0) {
        return Err(at.field("max_connect_attempts").refuse("is 0"));
    }
    let duration_at = at.field("max_downstream_connection_duration");
    Ok(listener::TcpProxy {
        stat_prefix: filter.stat_prefix.as_str().into(),
        clusters: clusters(filter.cluster_specifier.as_ref(), at)?,
        // 0 is "no timeout", as absence here.
        idle_timeout: limit(filter.idle_timeout.as_ref(), &at.field("idle_timeout"))?,
        max_duration: limit(filter.max_downstream_connection_duration.as_ref(), &duration_at)?,
        max_connect_attempts,
        access_log: access_log::decode(&filter.access_log, &at.field("access_log"), ctx)?,
    })
}

fn clusters(specifier: Option<&ClusterSpecifier>, at: &At<'_>) -> Result<Vec<WeightedCluster>, DecodeError> {
    let weighted = match specifier {
        None => return Err(at.refuse("has neither cluster nor weighted_clusters")),
        Some(ClusterSpecifier::Cluster(name)) => {
            let name = Name::from(name.as_str());
            return Ok(vec![WeightedCluster { name, weight: 1 }]);
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => &weighted.clusters,
    };
    let at = at.field("weighted_clusters.clusters");
    let (mut clusters, mut sum) = (Vec::with_capacity(weighted.len()), 0_u32);
    for (index, cluster) in weighted.iter().enumerate() {
        let at = at.index(index);
        unsupported(&at, &[(cluster.metadata_match.is_some(), "metadata_match")])?;
        let name = need(&cluster.name, &at.field("name"))?;
        let weight_at = at.field("weight");
        if cluster.weight == 0 {
            return Err(weight_at.refuse("is 0"));
        }
        let total = sum.checked_add(cluster.weight);
        sum = total.ok_or_else(|| weight_at.refuse("makes the sum of all weights too large"))?;
        clusters.push(WeightedCluster {
            name: Arc::from(name),
            weight: cluster.weight,
        });
    }
    if clusters.is_empty() {
        return Err(at.refuse("is empty"));
    }
    Ok(clusters)
}

#[cfg(test)]
#[path = "network_filters_tests.rs"]
mod tests;
