//! HTTP filters: RBAC, JWT, header_to_metadata, the two of gRPC, the local rate limit, and the router, which must be the last.

use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::extensions::filters::http::{
    aws_lambda::v3::Config as AwsLambda,
    ext_authz::v3::ExtAuthz,
    grpc_http1_bridge::v3::Config as GrpcHttp1Bridge,
    grpc_stats::v3::{FilterConfig as WireGrpcStats, filter_config::PerMethodStatSpecifier},
    header_to_metadata::v3::{
        Config as WireHeaderToMetadata,
        config::{KeyValuePair, Rule, ValueEncode, ValueType},
    },
    jwt_authn::v3::JwtAuthentication,
    local_ratelimit::v3::LocalRateLimit as WireLocalRateLimit,
    lua::v3::Lua,
    rbac::v3::Rbac,
    router::v3::Router as WireRouter,
    wasm::v3::Wasm,
};
use attache_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter as Wire, http_filter::ConfigType,
};
use prost_types::Any;

use super::common::{enumeration, need, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{jwt, local_rate_limit, matcher, rbac};
use crate::model::http::{
    GrpcStats, HeaderToMetadata, HeaderToMetadataRule, HttpFilter, MetadataEntry, MetadataKind,
    MetadataSource, MetadataValue,
};

/// The well-known name of the router, which needs no configuration.
const ROUTER: &str = "envoy.filters.http.router";

/// The namespace of what header_to_metadata writes without one.
const HEADER_TO_METADATA: &str = "envoy.filters.http.header_to_metadata";

/// What the router's configuration says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Router {
    pub(super) suppress_envoy_headers: bool,
}

/// The filters before the router, and what is asked of it.
///
/// # Errors
/// Names the filter that is not supported or stands where it must not.
pub(super) fn decode(
    filters: &[Wire],
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(Vec<HttpFilter>, Router), DecodeError> {
    let (mut before, mut router) = (Vec::new(), None);
    for (index, filter) in filters.iter().enumerate() {
        let at = at.index(index);
        if router.is_some() {
            let why = format!(
                "{:?} stands behind the router, which must be the last",
                filter.name
            );
            return Err(at.refuse(why));
        }
        if filter.disabled {
            // Only a route could enable it, and no route's filter configuration is supported.
            ctx.notice(&at, "is disabled and has no effect");
            continue;
        }
        match one(filter, &at, ctx)? {
            Decoded::Before(filter) => before.push(filter),
            Decoded::Router(last) => router = Some(last),
        }
    }
    let router = router.ok_or_else(|| at.refuse(format!("do not end with {ROUTER}")))?;
    Ok((before, router))
}

enum Decoded {
    Before(HttpFilter),
    Router(Router),
}

fn one(filter: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Decoded, DecodeError> {
    let config = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(at.field("config_discovery").refuse("is not supported"));
        }
        None if filter.name == ROUTER => return Ok(Decoded::Router(Router::default())),
        None => return Err(at.refuse(format!("{:?} has no typed_config", filter.name))),
    };
    let inner = at.field("typed_config");
    let name = type_name(config);
    if name == WireRouter::TYPE_NAME {
        return router(&unpack(config, &inner)?, &inner, ctx).map(Decoded::Router);
    }
    let decoded = if name == Rbac::TYPE_NAME {
        request_rbac(&unpack(config, &inner)?, &inner, ctx)?
    } else if name == JwtAuthentication::TYPE_NAME {
        let jwt = jwt::decode(&unpack(config, &inner)?, &inner, ctx)?;
        HttpFilter::JwtAuthn(Arc::new(jwt))
    } else if name == WireHeaderToMetadata::TYPE_NAME {
        let rules = header_to_metadata(&unpack(config, &inner)?, &inner, ctx)?;
        HttpFilter::HeaderToMetadata(Arc::new(rules))
    } else if name == WireGrpcStats::TYPE_NAME {
        grpc_stats(config, &inner, ctx)?
    } else if name == GrpcHttp1Bridge::TYPE_NAME {
        let bridge: GrpcHttp1Bridge = unpack(config, &inner)?;
        unsupported(
            &inner,
            &[(bridge.upgrade_protobuf_to_grpc, "upgrade_protobuf_to_grpc")],
        )?;
        without_effect(
            &inner,
            ctx,
            &[(bridge.ignore_query_parameters, "ignore_query_parameters")],
        );
        HttpFilter::GrpcHttp1Bridge
    } else if name == WireLocalRateLimit::TYPE_NAME {
        let limit = local_rate_limit::decode(&unpack(config, &inner)?, &inner, ctx)?;
        HttpFilter::LocalRateLimit(Arc::new(limit))
    } else {
        return Err(refuse(filter, name, at));
    };
    Ok(Decoded::Before(decoded))
}

/// One that may be left out (`is_optional`) is refused too: it may be the one that keeps somebody out.
fn refuse(filter: &Wire, name: &str, at: &At<'_>) -> DecodeError {
    let own = &filter.name;
    at.refuse(if name == ExtAuthz::TYPE_NAME {
        format!("{own:?} is ext_authz, which is not supported: nobody would be asked")
    } else if name == Lua::TYPE_NAME {
        format!("{own:?} is lua, which is not supported")
    } else if name == Wasm::TYPE_NAME {
        format!("{own:?} is wasm, which is not supported")
    } else if name == AwsLambda::TYPE_NAME {
        format!("{own:?} is aws_lambda, which is not supported")
    } else {
        format!("{own:?} is a {name:?}, which is not supported")
    })
}

fn router(wire: &WireRouter, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Router, DecodeError> {
    unsupported(
        at,
        &[
            (!wire.strict_check_headers.is_empty(), "strict_check_headers"),
            (wire.respect_expected_rq_timeout, "respect_expected_rq_timeout"),
            (!wire.upstream_http_filters.is_empty(), "upstream_http_filters"),
        ],
    )?;
    without_effect(
        at,
        ctx,
        &[
            (wire.dynamic_stats.is_some(), "dynamic_stats"),
            (wire.start_child_span, "start_child_span"),
            (!wire.upstream_log.is_empty(), "upstream_log"),
            (
                wire.suppress_grpc_request_failure_code_stats,
                "suppress_grpc_request_failure_code_stats",
            ),
            (
                wire.reject_connect_request_early_data.is_some(),
                "reject_connect_request_early_data",
            ),
        ],
    );
    Ok(Router {
        suppress_envoy_headers: wire.suppress_envoy_headers,
    })
}

fn request_rbac(wire: &Rbac, at: &At<'_>, ctx: &mut Context<'_>) -> Result<HttpFilter, DecodeError> {
    unsupported(at, &[(wire.matcher.is_some(), "matcher")])?;
    without_effect(
        at,
        ctx,
        &[
            (wire.shadow_rules.is_some(), "shadow_rules"),
            (wire.shadow_matcher.is_some(), "shadow_matcher"),
            (
                !wire.shadow_rules_stat_prefix.is_empty(),
                "shadow_rules_stat_prefix",
            ),
            (wire.track_per_rule_stats, "track_per_rule_stats"),
        ],
    );
    if wire.rules.is_none() {
        ctx.notice(at, "has no rules and lets everything pass");
    }
    let rules = match &wire.rules {
        Some(rules) => Some(rbac::rules(rules, &at.field("rules"), ctx)?),
        None => None,
    };
    Ok(HttpFilter::Rbac {
        rules,
        stat_prefix: wire.rules_stat_prefix.as_str().into(),
    })
}

fn grpc_stats(config: &Any, at: &At<'_>, ctx: &mut Context<'_>) -> Result<HttpFilter, DecodeError> {
    let wire: WireGrpcStats = unpack(config, at)?;
    without_effect(at, ctx, &[(wire.emit_filter_state, "emit_filter_state")]);
    let all = matches!(
        wire.per_method_stat_specifier,
        Some(PerMethodStatSpecifier::StatsForAllMethods(true))
    );
    Ok(HttpFilter::GrpcStats(GrpcStats {
        stats_for_all_methods: all,
        enable_upstream_stats: wire.enable_upstream_stats,
        replace_dots_in_grpc_service_name: wire.replace_dots_in_grpc_service_name,
    }))
}

fn header_to_metadata(
    wire: &WireHeaderToMetadata,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<HeaderToMetadata, DecodeError> {
    without_effect(at, ctx, &[(!wire.stat_prefix.is_empty(), "stat_prefix")]);
    let rules = |rules: &[Rule], at: At<'_>| {
        let rules = rules.iter().enumerate();
        rules
            .map(|(index, rule)| metadata_rule(rule, &at.index(index)))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(HeaderToMetadata {
        request_rules: rules(&wire.request_rules, at.field("request_rules"))?,
        response_rules: rules(&wire.response_rules, at.field("response_rules"))?,
    })
}

fn metadata_rule(wire: &Rule, at: &At<'_>) -> Result<HeaderToMetadataRule, DecodeError> {
    let source = match (wire.header.as_str(), wire.cookie.as_str()) {
        ("", "") => return Err(at.refuse("has neither header nor cookie")),
        ("", cookie) => MetadataSource::Cookie(cookie.into()),
        (header, "") => MetadataSource::Header(header.to_ascii_lowercase().into()),
        _ => return Err(at.refuse("has both header and cookie")),
    };
    if wire.remove && matches!(source, MetadataSource::Cookie(_)) {
        return Err(at.field("remove").refuse("is set for a cookie"));
    }
    let on_missing_at = at.field("on_header_missing");
    let on_missing = match &wire.on_header_missing {
        Some(pair) => Some(metadata_entry(pair, &on_missing_at)?),
        None => None,
    };
    if on_missing
        .as_ref()
        .is_some_and(|entry| !matches!(entry.value, MetadataValue::Constant(_)))
    {
        return Err(on_missing_at.field("value").refuse("is missing"));
    }
    let on_present = match &wire.on_header_present {
        Some(pair) => Some(metadata_entry(pair, &at.field("on_header_present"))?),
        None => None,
    };
    if on_present.is_none() && on_missing.is_none() {
        return Err(at.refuse("has neither on_header_present nor on_header_missing"));
    }
    Ok(HeaderToMetadataRule {
        source,
        on_present,
        on_missing,
        remove: wire.remove,
    })
}

fn metadata_entry(wire: &KeyValuePair, at: &At<'_>) -> Result<MetadataEntry, DecodeError> {
    let value = match (wire.value.as_str(), &wire.regex_value_rewrite) {
        ("", None) => MetadataValue::Same,
        ("", Some(rewrite)) => {
            MetadataValue::Rewritten(matcher::rewrite(rewrite, &at.field("regex_value_rewrite"))?)
        }
        (value, None) => MetadataValue::Constant(value.into()),
        (_, Some(_)) => return Err(at.refuse("has both value and regex_value_rewrite")),
    };
    let type_at = at.field("type");
    let encode: ValueEncode = enumeration(wire.encode, &at.field("encode"))?;
    Ok(MetadataEntry {
        namespace: match wire.metadata_namespace.as_str() {
            "" => HEADER_TO_METADATA,
            namespace => namespace,
        }
        .into(),
        key: need(&wire.key, &at.field("key"))?.into(),
        value,
        kind: match enumeration(wire.r#type, &type_at)? {
            ValueType::String => MetadataKind::String,
            ValueType::Number => MetadataKind::Number,
            ValueType::ProtobufValue => return Err(type_at.refuse("PROTOBUF_VALUE is not supported")),
        },
        base64: encode == ValueEncode::Base64,
    })
}
