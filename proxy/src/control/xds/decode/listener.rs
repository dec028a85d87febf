//! `listener.v3.Listener` and its listener filters.

use std::time::Duration;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::core::v3::TrafficDirection;
use attache_proto::envoy::config::listener::v3::{
    Listener as Wire, ListenerFilter, listener::DrainType, listener::connection_balance_config::BalanceType,
    listener_filter::ConfigType,
};
use attache_proto::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3::ProxyProtocol,
    tls_inspector::v3::TlsInspector,
};
use prost_types::Any;

use super::common::{
    duration, enumeration, known_fields, parse, type_name, unpack, unsupported, without_effect,
};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{access_log, address, filter_chain};
use crate::model::Listener;
use crate::model::listener::{Direction, ListenerFilters};

/// Envoy's default of `listener_filters_timeout`.
const FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// A listener as it came over the wire.
///
/// # Errors
/// As [`decode`]; a field within TLS or RBAC that is unknown here.
pub fn decode_bytes(bytes: &[u8], ctx: &mut Context<'_>) -> Result<Listener, DecodeError> {
    let listener: Wire = parse(bytes, &At::resource("Listener", ""))?;
    known_fields::<Wire>(bytes, &At::resource("Listener", &listener.name), ctx)?;
    decode(&listener, ctx)
}

/// A listener.
///
/// # Errors
/// Names the field that is invalid or not supported; [`super::Why::Waiting`] for a secret.
pub fn decode(listener: &Wire, ctx: &mut Context<'_>) -> Result<Listener, DecodeError> {
    let at = At::resource("Listener", &listener.name);
    refuse_unsupported(listener, &at)?;
    note_without_effect(listener, &at, ctx)?;
    let address = address::listen(listener.address.as_ref(), &at.field("address"))?;
    let direction = enumeration(listener.traffic_direction, &at.field("traffic_direction"))?;
    let filters = listener_filters(listener, &at, ctx)?;
    let chains_at = at.field("filter_chains");
    let mut filter_chains = Vec::with_capacity(listener.filter_chains.len());
    for (index, chain) in listener.filter_chains.iter().enumerate() {
        filter_chains.push(filter_chain::decode(chain, &chains_at.index(index), ctx)?);
    }
    filter_chain::distinct(&filter_chains, &chains_at)?;
    let default_at = at.field("default_filter_chain");
    let default_filter_chain = match &listener.default_filter_chain {
        Some(chain) => Some(filter_chain::decode(chain, &default_at, ctx)?),
        None => None,
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(chains_at.refuse("is empty"));
    }
    let access_log = access_log::decode(&listener.access_log, &at.field("access_log"), ctx)?;
    Ok(Listener {
        // A bootstrap's listener may have none; Envoy makes one up.
        name: match listener.name.as_str() {
            "" => address.to_string().into(),
            name => name.into(),
        },
        address,
        direction: match direction {
            TrafficDirection::Unspecified => Direction::Unspecified,
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound => Direction::Outbound,
        },
        stat_prefix: (!listener.stat_prefix.is_empty()).then(|| listener.stat_prefix.as_str().into()),
        filters,
        filter_chains,
        default_filter_chain,
        exact_balance: exact_balance(listener, &at)?,
        access_log,
    })
}

fn refuse_unsupported(listener: &Wire, at: &At<'_>) -> Result<(), DecodeError> {
    if listener.bind_to_port == Some(false) {
        return Err(at
            .field("bind_to_port")
            .refuse("false is not supported: connections are not handed from one listener to another"));
    }
    unsupported(
        at,
        &[
            (!listener.additional_addresses.is_empty(), "additional_addresses"),
            (listener.fcds_config.is_some(), "fcds_config"),
            (listener.filter_chain_matcher.is_some(), "filter_chain_matcher"),
            (listener.deprecated_v1.is_some(), "deprecated_v1"),
            (listener.transparent == Some(true), "transparent"),
            (listener.freebind == Some(true), "freebind"),
            (!listener.socket_options.is_empty(), "socket_options"),
            (listener.udp_listener_config.is_some(), "udp_listener_config"),
            (listener.api_listener.is_some(), "api_listener"),
            (listener.listener_specifier.is_some(), "internal_listener"),
        ],
    )
}

fn note_without_effect(listener: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<(), DecodeError> {
    let drain: DrainType = enumeration(listener.drain_type, &at.field("drain_type"))?;
    without_effect(
        at,
        ctx,
        &[
            (listener.stats_matcher.is_some(), "stats_matcher"),
            (
                listener.per_connection_buffer_limit_bytes.is_some(),
                "per_connection_buffer_limit_bytes",
            ),
            (
                listener.per_connection_buffer_high_watermark_timeout.is_some(),
                "per_connection_buffer_high_watermark_timeout",
            ),
            (drain != DrainType::Default, "drain_type"),
            (
                listener.tcp_fast_open_queue_length.is_some(),
                "tcp_fast_open_queue_length",
            ),
            (listener.enable_reuse_port.is_some(), "enable_reuse_port"),
            (listener.reuse_port, "reuse_port"),
            (listener.tcp_backlog_size.is_some(), "tcp_backlog_size"),
            (
                listener.max_connections_to_accept_per_socket_event.is_some(),
                "max_connections_to_accept_per_socket_event",
            ),
            (listener.enable_mptcp, "enable_mptcp"),
            (listener.ignore_global_conn_limit, "ignore_global_conn_limit"),
            (listener.bypass_overload_manager, "bypass_overload_manager"),
            (listener.tcp_keepalive.is_some(), "tcp_keepalive"),
        ],
    );
    Ok(())
}

fn exact_balance(listener: &Wire, at: &At<'_>) -> Result<bool, DecodeError> {
    let balance = listener.connection_balance_config.as_ref();
    match balance.map(|balance| balance.balance_type.as_ref()) {
        None => Ok(false),
        Some(Some(BalanceType::ExactBalance(_))) => Ok(true),
        Some(_) => Err(at
            .field("connection_balance_config")
            .refuse("is not exact_balance, which alone is supported")),
    }
}

fn listener_filters(
    listener: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<ListenerFilters, DecodeError> {
    let timeout_at = at.field("listener_filters_timeout");
    let timeout = duration(listener.listener_filters_timeout.as_ref(), &timeout_at)?;
    let timeout = timeout.unwrap_or(FILTERS_TIMEOUT);
    let mut filters = ListenerFilters {
        timeout: (!timeout.is_zero()).then_some(timeout),
        continue_on_timeout: listener.continue_on_listener_filters_timeout,
        ..ListenerFilters::default()
    };
    if listener.use_original_dst == Some(true) {
        filters.original_dst = true;
        ctx.notice(
            &at.field("use_original_dst"),
            "finds the destination, but hands no connection to another listener",
        );
    }
    let all = at.field("listener_filters");
    for (index, filter) in listener.listener_filters.iter().enumerate() {
        listener_filter(filter, &mut filters, &all.index(index), ctx)?;
    }
    Ok(filters)
}

fn listener_filter(
    filter: &ListenerFilter,
    filters: &mut ListenerFilters,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(), DecodeError> {
    unsupported(at, &[(filter.filter_disabled.is_some(), "filter_disabled")])?;
    let typed = at.field("typed_config");
    let kind = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => {
            checked(config, &typed, ctx)?;
            type_name(config)
        }
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(at.field("config_discovery").refuse("is not supported"));
        }
        // Without a configuration the well-known name says what it is.
        None => match filter.name.as_str() {
            "envoy.filters.listener.tls_inspector" => TlsInspector::TYPE_NAME,
            "envoy.filters.listener.original_dst" => OriginalDst::TYPE_NAME,
            "envoy.filters.listener.http_inspector" => HttpInspector::TYPE_NAME,
            "envoy.filters.listener.proxy_protocol" => ProxyProtocol::TYPE_NAME,
            other => other,
        },
    };
    let found = if kind == TlsInspector::TYPE_NAME {
        &mut filters.tls_inspector
    } else if kind == OriginalDst::TYPE_NAME {
        &mut filters.original_dst
    } else if kind == HttpInspector::TYPE_NAME {
        &mut filters.http_inspector
    } else if kind == ProxyProtocol::TYPE_NAME {
        &mut filters.proxy_protocol
    } else {
        return Err(at.refuse(format!("{:?} is a {kind:?}, which is not supported", filter.name)));
    };
    *found = true;
    Ok(())
}

/// Whether what a listener filter's configuration says can be carried out.
fn checked(config: &Any, at: &At<'_>, ctx: &mut Context<'_>) -> Result<(), DecodeError> {
    if type_name(config) == TlsInspector::TYPE_NAME {
        let inspector: TlsInspector = unpack(config, at)?;
        let close = inspector.close_connection_on_client_hello_parsing_errors;
        unsupported(at, &[(close, "close_connection_on_client_hello_parsing_errors")])?;
        let (ja3, ja4) = (
            inspector.enable_ja3_fingerprinting == Some(true),
            inspector.enable_ja4_fingerprinting == Some(true),
        );
        without_effect(
            at,
            ctx,
            &[
                (ja3, "enable_ja3_fingerprinting"),
                (ja4, "enable_ja4_fingerprinting"),
                (
                    inspector.initial_read_buffer_size.is_some(),
                    "initial_read_buffer_size",
                ),
                (inspector.max_client_hello_size.is_some(), "max_client_hello_size"),
            ],
        );
    } else if type_name(config) == ProxyProtocol::TYPE_NAME {
        let proxy: ProxyProtocol = unpack(config, at)?;
        let optional = proxy.allow_requests_without_proxy_protocol;
        unsupported(
            at,
            &[
                (!proxy.rules.is_empty(), "rules"),
                (optional, "allow_requests_without_proxy_protocol"),
                (!proxy.disallowed_versions.is_empty(), "disallowed_versions"),
            ],
        )?;
        without_effect(
            at,
            ctx,
            &[
                (proxy.pass_through_tlvs.is_some(), "pass_through_tlvs"),
                (!proxy.stat_prefix.is_empty(), "stat_prefix"),
                (proxy.tlv_location != 0, "tlv_location"),
            ],
        );
    }
    Ok(())
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
