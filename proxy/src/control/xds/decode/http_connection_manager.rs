//! `envoy.filters.network.http_connection_manager`; its filters, routes and tracing have files of their own.

use std::sync::Arc;
use std::time::Duration;

use attache_proto::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions,
    http_protocol_options::HeadersWithUnderscoresAction,
};
use attache_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager as Wire,
    http_connection_manager::{
        CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
        ServerHeaderTransformation as WireServerHeader, SetCurrentClientCertDetails, StripPortMode,
    },
};
use prost_types::Any;

use super::cluster::over_ads;
use super::common::{enumeration, limit, need, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{access_log, http_filters, http_tracing, otel_access_log, route};
use crate::model::Terminal;
use crate::model::http::{
    Codec, ForwardClientCert, ForwardClientCertMode, Forwarding, HeadersWithUnderscores, Http2Options,
    HttpConnectionManager, HttpLimits, Normalization, PathWithEscapedSlashes, RequestId, Routes,
    ServerHeader, ServerHeaderTransformation, SetCurrentClientCert, StripHostPort,
};

/// Envoy's own bound of `max_request_headers_kb`.
const MAX_HEADERS_KB: u32 = 8192;

/// A connection manager and its routes.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub(super) fn decode(config: &Any, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Terminal, DecodeError> {
    let manager = unpack(config, at)?;
    self::manager(&manager, at, ctx).map(|manager| Terminal::HttpConnectionManager(Arc::new(manager)))
}

fn manager(wire: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<HttpConnectionManager, DecodeError> {
    refuse_unsupported(wire, at)?;
    note_without_effect(wire, at, ctx);
    let (http_filters, router) = http_filters::decode(&wire.http_filters, &at.field("http_filters"), ctx)?;
    if let Some(http1) = &wire.http_protocol_options {
        self::http1(http1, &at.field("http_protocol_options"), ctx)?;
    }
    let http2 = match &wire.http2_protocol_options {
        Some(http2) => Some(self::http2(http2, &at.field("http2_protocol_options"), ctx)?),
        None => None,
    };
    let tracing = match &wire.tracing {
        Some(tracing) => Some(Arc::new(http_tracing::decode(
            tracing,
            &at.field("tracing"),
            ctx,
        )?)),
        None => None,
    };
    let logs_at = at.field("access_log");
    let (logs, otel_access_log) = otel_access_log::split(&wire.access_log, &logs_at, ctx)?;
    Ok(HttpConnectionManager {
        stat_prefix: wire.stat_prefix.as_str().into(),
        codec: codec(wire.codec_type, &at.field("codec_type"))?,
        http2,
        routes: routes(wire.route_specifier.as_ref(), at, ctx)?,
        http_filters,
        forward_client_cert: forward_client_cert(wire, at)?,
        normalization: normalization(wire, at)?,
        forwarding: Forwarding {
            use_remote_address: wire.use_remote_address == Some(true),
            xff_num_trusted_hops: wire.xff_num_trusted_hops,
            skip_xff_append: wire.skip_xff_append,
            append_x_forwarded_port: wire.append_x_forwarded_port,
            ipv4_as_mapped_ipv6: wire.represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            via: wire.via.as_str().into(),
            add_user_agent: wire.add_user_agent == Some(true),
        },
        limits: limits(wire, at, ctx)?,
        upgrade_types: upgrade_types(wire, &at.field("upgrade_configs"))?,
        server_header: server_header(wire, at)?,
        request_id: RequestId {
            generate: wire.generate_request_id != Some(false),
            preserve_external: wire.preserve_external_request_id,
            always_in_response: wire.always_set_request_id_in_response,
        },
        tracing,
        access_log: access_log::of_requests(&logs, &logs_at, ctx)?,
        otel_access_log,
        proxy_100_continue: wire.proxy_100_continue,
        suppress_envoy_headers: router.suppress_envoy_headers,
    })
}

fn refuse_unsupported(wire: &Wire, at: &At<'_>) -> Result<(), DecodeError> {
    unsupported(
        at,
        &[
            (
                !wire.original_ip_detection_extensions.is_empty(),
                "original_ip_detection_extensions",
            ),
            (
                !wire.early_header_mutation_extensions.is_empty(),
                "early_header_mutation_extensions",
            ),
            (
                wire.forward_client_cert_matcher.is_some(),
                "forward_client_cert_matcher",
            ),
            (
                wire.typed_header_validation_config.is_some(),
                "typed_header_validation_config",
            ),
        ],
    )
}

fn note_without_effect(wire: &Wire, at: &At<'_>, ctx: &mut Context<'_>) {
    without_effect(
        at,
        ctx,
        &[
            (
                wire.http1_safe_max_connection_duration,
                "http1_safe_max_connection_duration",
            ),
            (wire.stream_flush_timeout.is_some(), "stream_flush_timeout"),
            (wire.drain_timeout_jitter.is_some(), "drain_timeout_jitter"),
            (
                wire.access_log_flush_interval.is_some(),
                "access_log_flush_interval",
            ),
            (
                wire.flush_access_log_on_new_request,
                "flush_access_log_on_new_request",
            ),
            (
                wire.stream_error_on_invalid_http_message.is_some(),
                "stream_error_on_invalid_http_message",
            ),
            (wire.append_local_overload, "append_local_overload"),
            (
                wire.add_proxy_protocol_connection_state.is_some(),
                "add_proxy_protocol_connection_state",
            ),
        ],
    );
}

fn codec(codec: i32, at: &At<'_>) -> Result<Codec, DecodeError> {
    match enumeration(codec, at)? {
        CodecType::Auto => Ok(Codec::Auto),
        CodecType::Http1 => Ok(Codec::Http1),
        CodecType::Http2 => Ok(Codec::Http2),
        CodecType::Http3 => Err(at.refuse("HTTP3 is not supported")),
    }
}

fn http1(options: &Http1ProtocolOptions, at: &At<'_>, ctx: &mut Context<'_>) -> Result<(), DecodeError> {
    unsupported(
        at,
        &[
            (options.accept_http_10, "accept_http_10"),
            (options.enable_trailers, "enable_trailers"),
            (options.allow_chunked_length, "allow_chunked_length"),
            (options.allow_custom_methods, "allow_custom_methods"),
            (
                !options.ignore_http_11_upgrade.is_empty(),
                "ignore_http_11_upgrade",
            ),
            (options.allow_absolute_url == Some(false), "allow_absolute_url"),
        ],
    )?;
    let invalid = options.override_stream_error_on_invalid_http_message.is_some();
    without_effect(
        at,
        ctx,
        &[
            (
                !options.default_host_for_http_10.is_empty(),
                "default_host_for_http_10",
            ),
            (invalid, "override_stream_error_on_invalid_http_message"),
            (options.send_fully_qualified_url, "send_fully_qualified_url"),
            (options.use_balsa_parser.is_some(), "use_balsa_parser"),
        ],
    );
    Ok(())
}

fn http2(
    options: &Http2ProtocolOptions,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Http2Options, DecodeError> {
    unsupported(at, &[(options.allow_metadata, "allow_metadata")])?;
    let heeded = Http2ProtocolOptions {
        allow_connect: options.allow_connect,
        max_concurrent_streams: options.max_concurrent_streams,
        initial_stream_window_size: options.initial_stream_window_size,
        initial_connection_window_size: options.initial_connection_window_size,
        ..Http2ProtocolOptions::default()
    };
    if heeded != *options {
        ctx.notice(
            at,
            "has bounds on frames, headers or resets that have no effect: Attaché has its own",
        );
    }
    Ok(Http2Options {
        max_concurrent_streams: options.max_concurrent_streams,
        initial_stream_window_size: options.initial_stream_window_size,
        initial_connection_window_size: options.initial_connection_window_size,
        allow_connect: options.allow_connect,
    })
}

fn routes(
    specifier: Option<&RouteSpecifier>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Routes, DecodeError> {
    match specifier {
        Some(RouteSpecifier::RouteConfig(table)) => {
            let table = route::table(table, &at.field("route_config"), ctx)?;
            Ok(Routes::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            let source_at = at.field("config_source");
            let source = rds.config_source.as_ref();
            // How long the source waits for the table it decides by itself: what served goes on.
            over_ads(source.ok_or_else(|| source_at.refuse("is missing"))?, &source_at)?;
            let name = need(&rds.route_config_name, &at.field("route_config_name"))?;
            Ok(Routes::Rds(name.into()))
        }
        None => Err(at.refuse("has neither route_config nor rds")),
    }
}

fn forward_client_cert(wire: &Wire, at: &At<'_>) -> Result<ForwardClientCert, DecodeError> {
    let mode = enumeration(
        wire.forward_client_cert_details,
        &at.field("forward_client_cert_details"),
    )?;
    let details = wire.set_current_client_cert_details.unwrap_or_default();
    let details_at = at.field("set_current_client_cert_details");
    let SetCurrentClientCertDetails {
        subject,
        cert,
        chain,
        dns,
        uri,
        issuer,
        format,
    } = details;
    unsupported(&details_at, &[(issuer, "issuer"), (format != 0, "format")])?;
    Ok(ForwardClientCert {
        mode: match mode {
            ForwardClientCertDetails::Sanitize => ForwardClientCertMode::Sanitize,
            ForwardClientCertDetails::ForwardOnly => ForwardClientCertMode::ForwardOnly,
            ForwardClientCertDetails::AppendForward => ForwardClientCertMode::AppendForward,
            ForwardClientCertDetails::SanitizeSet => ForwardClientCertMode::SanitizeSet,
            ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCertMode::AlwaysForwardOnly,
        },
        set_current: SetCurrentClientCert {
            subject: subject == Some(true),
            cert,
            chain,
            dns,
            uri,
        },
    })
}

fn normalization(wire: &Wire, at: &At<'_>) -> Result<Normalization, DecodeError> {
    let slashes_at = at.field("path_with_escaped_slashes_action");
    let common = wire.common_http_protocol_options.as_ref();
    let underscores = common.map_or(0, |common| common.headers_with_underscores_action);
    let underscores_at = at.field("common_http_protocol_options.headers_with_underscores_action");
    Ok(Normalization {
        normalize_path: wire.normalize_path == Some(true),
        merge_slashes: wire.merge_slashes,
        path_with_escaped_slashes: match enumeration(wire.path_with_escaped_slashes_action, &slashes_at)? {
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged => PathWithEscapedSlashes::KeepUnchanged,
            PathWithEscapedSlashesAction::RejectRequest => PathWithEscapedSlashes::RejectRequest,
            PathWithEscapedSlashesAction::UnescapeAndRedirect => PathWithEscapedSlashes::UnescapeAndRedirect,
            PathWithEscapedSlashesAction::UnescapeAndForward => PathWithEscapedSlashes::UnescapeAndForward,
        },
        headers_with_underscores: match enumeration(underscores, &underscores_at)? {
            HeadersWithUnderscoresAction::Allow => HeadersWithUnderscores::Allow,
            HeadersWithUnderscoresAction::RejectRequest => HeadersWithUnderscores::RejectRequest,
            HeadersWithUnderscoresAction::DropHeader => HeadersWithUnderscores::DropHeader,
        },
        strip_host_port: match (wire.strip_matching_host_port, &wire.strip_port_mode) {
            (true, Some(StripPortMode::StripAnyHostPort(true))) => {
                let why = "is set beside strip_any_host_port: choose one";
                return Err(at.field("strip_matching_host_port").refuse(why));
            }
            (true, _) => StripHostPort::Matching,
            (false, Some(StripPortMode::StripAnyHostPort(true))) => StripHostPort::Any,
            (false, _) => StripHostPort::No,
        },
        strip_trailing_host_dot: wire.strip_trailing_host_dot,
    })
}

fn limits(wire: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<HttpLimits, DecodeError> {
    let default = HttpLimits::default();
    let time = |value: &Option<prost_types::Duration>, unset: Option<Duration>, field: &str| match value {
        Some(_) => limit(value.as_ref(), &at.field(field)),
        None => Ok(unset),
    };
    let max_request_headers_kb = wire
        .max_request_headers_kb
        .unwrap_or(default.max_request_headers_kb);
    if !(1..=MAX_HEADERS_KB).contains(&max_request_headers_kb) {
        let why = format!("{max_request_headers_kb} is not between 1 and {MAX_HEADERS_KB}");
        return Err(at.field("max_request_headers_kb").refuse(why));
    }
    let none = HttpProtocolOptions::default();
    let common = wire.common_http_protocol_options.as_ref().unwrap_or(&none);
    let common_at = at.field("common_http_protocol_options");
    without_effect(
        &common_at,
        ctx,
        &[
            (
                common.max_connection_duration_jitter.is_some(),
                "max_connection_duration_jitter",
            ),
            (
                common.max_response_headers_kb.is_some(),
                "max_response_headers_kb",
            ),
        ],
    );
    let max_headers_count = common.max_headers_count.unwrap_or(default.max_headers_count);
    if max_headers_count == 0 {
        return Err(common_at.field("max_headers_count").refuse("is 0"));
    }
    Ok(HttpLimits {
        max_request_headers_kb,
        max_headers_count,
        max_requests_per_connection: common.max_requests_per_connection.filter(|max| *max > 0),
        stream_idle_timeout: time(
            &wire.stream_idle_timeout,
            default.stream_idle_timeout,
            "stream_idle_timeout",
        )?,
        request_timeout: time(&wire.request_timeout, None, "request_timeout")?,
        request_headers_timeout: time(&wire.request_headers_timeout, None, "request_headers_timeout")?,
        idle_timeout: time(
            &common.idle_timeout,
            default.idle_timeout,
            "common_http_protocol_options.idle_timeout",
        )?,
        max_connection_duration: time(
            &common.max_connection_duration,
            None,
            "common_http_protocol_options.max_connection_duration",
        )?,
        max_stream_duration: time(
            &common.max_stream_duration,
            None,
            "common_http_protocol_options.max_stream_duration",
        )?,
        drain_timeout: time(&wire.drain_timeout, None, "drain_timeout")?.unwrap_or(default.drain_timeout),
        delayed_close_timeout: time(
            &wire.delayed_close_timeout,
            default.delayed_close_timeout,
            "delayed_close_timeout",
        )?,
    })
}

fn upgrade_types(wire: &Wire, at: &At<'_>) -> Result<Vec<Arc<str>>, DecodeError> {
    let mut types = Vec::new();
    for (index, upgrade) in wire.upgrade_configs.iter().enumerate() {
        let at = at.index(index);
        unsupported(&at, &[(!upgrade.filters.is_empty(), "filters")])?;
        let name = need(&upgrade.upgrade_type, &at.field("upgrade_type"))?.to_ascii_lowercase();
        if upgrade.enabled != Some(false) {
            types.push(name.into());
        }
    }
    Ok(types)
}

fn server_header(wire: &Wire, at: &At<'_>) -> Result<ServerHeader, DecodeError> {
    let transformation_at = at.field("server_header_transformation");
    let transformation = match enumeration(wire.server_header_transformation, &transformation_at)? {
        WireServerHeader::Overwrite => ServerHeaderTransformation::Overwrite,
        WireServerHeader::AppendIfAbsent => ServerHeaderTransformation::AppendIfAbsent,
        WireServerHeader::PassThrough => ServerHeaderTransformation::PassThrough,
    };
    let default = ServerHeader::default();
    Ok(ServerHeader {
        name: match wire.server_name.as_str() {
            "" => default.name,
            name => name.into(),
        },
        transformation,
    })
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
