//! `HttpConnectionManager.Tracing`, custom tags, and the providers: Zipkin here, OpenTelemetry in `otel_tracing`.

use attache_proto::TypeUrl;
use attache_proto::envoy::config::trace::v3::{
    OpenTelemetryConfig, ZipkinConfig,
    Tracing as BootstrapTracing,
    tracing::{Http, http::ConfigType},
    zipkin_config::{CollectorEndpointVersion, TraceContextOption},
};
use attache_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as Wire;
use attache_proto::envoy::r#type::tracing::v3::{self as tag, custom_tag::Type};
use attache_proto::envoy::r#type::v3::Percent;

use super::common::{enumeration, need, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::otel_tracing;
use crate::model::http::{
    CustomTag, CustomTagValue, Sampling, Tracing, TracingProvider, Zipkin, ZipkinFormat,
};

/// Envoy's default of `max_path_tag_length`.
const MAX_PATH_TAG_LENGTH: u32 = 256;

/// How spans are made.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub(super) fn decode(wire: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Tracing, DecodeError> {
    without_effect(
        at,
        ctx,
        &[
            (!wire.operation.is_empty(), "operation"),
            (!wire.upstream_operation.is_empty(), "upstream_operation"),
        ],
    );
    let sampling = |percent: Option<&Percent>, field: &str| match percent {
        None => Ok(Sampling::ALL),
        Some(percent) => Sampling::from_percent(percent.value)
            .ok_or_else(|| at.field(field).refuse("is not between 0 and 100")),
    };
    let tags_at = at.field("custom_tags");
    let mut custom_tags = Vec::with_capacity(wire.custom_tags.len());
    for (index, tag) in wire.custom_tags.iter().enumerate() {
        custom_tags.push(custom_tag(tag, &tags_at.index(index))?);
    }
    Ok(Tracing {
        client_sampling: sampling(wire.client_sampling.as_ref(), "client_sampling")?,
        random_sampling: sampling(wire.random_sampling.as_ref(), "random_sampling")?,
        overall_sampling: sampling(wire.overall_sampling.as_ref(), "overall_sampling")?,
        verbose: wire.verbose,
        max_path_tag_length: wire.max_path_tag_length.unwrap_or(MAX_PATH_TAG_LENGTH),
        custom_tags,
        provider: match &wire.provider {
            Some(provider) => Some(self::provider(provider, &at.field("provider"), ctx)?),
            None => None,
        },
        spawn_upstream_span: wire.spawn_upstream_span == Some(true),
        no_context_propagation: wire.no_context_propagation,
    })
}

fn custom_tag(wire: &tag::CustomTag, at: &At<'_>) -> Result<CustomTag, DecodeError> {
    let value = match &wire.r#type {
        Some(Type::Literal(literal)) => {
            CustomTagValue::Literal(need(&literal.value, &at.field("literal.value"))?.into())
        }
        Some(Type::Environment(variable)) => CustomTagValue::Environment {
            name: need(&variable.name, &at.field("environment.name"))?.into(),
            default: variable.default_value.as_str().into(),
        },
        Some(Type::RequestHeader(header)) => CustomTagValue::RequestHeader {
            name: need(&header.name, &at.field("request_header.name"))?
                .to_ascii_lowercase()
                .into(),
            default: header.default_value.as_str().into(),
        },
        Some(Type::Value(format)) => CustomTagValue::Format(format.as_str().into()),
        None => return Err(at.refuse("has no value that is supported")),
    };
    let tag = need(&wire.tag, &at.field("tag"))?.into();
    Ok(CustomTag { tag, value })
}

/// The bootstrap's `tracing`: the provider of connection managers that name none.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub fn bootstrap(
    wire: Option<&BootstrapTracing>,
    ctx: &mut Context<'_>,
) -> Result<Option<TracingProvider>, DecodeError> {
    let Some(http) = wire.and_then(|tracing| tracing.http.as_ref()) else {
        return Ok(None);
    };
    let at = At::resource("Bootstrap", "tracing");
    let at = at.field("http");
    provider(http, &at, ctx).map(Some)
}

fn provider(wire: &Http, at: &At<'_>, ctx: &mut Context<'_>) -> Result<TracingProvider, DecodeError> {
    let Some(ConfigType::TypedConfig(config)) = &wire.config_type else {
        return Err(at.refuse(format!("{:?} has no typed_config", wire.name)));
    };
    let at = at.field("typed_config");
    let name = type_name(config);
    match name {
        ZipkinConfig::TYPE_NAME => zipkin(&unpack(config, &at)?, &at, ctx).map(TracingProvider::Zipkin),
        OpenTelemetryConfig::TYPE_NAME => {
            otel_tracing::decode(&unpack(config, &at)?, &at, ctx).map(TracingProvider::OpenTelemetry)
        }
        _ => Err(at.refuse(format!("is a {name:?}: Zipkin and OpenTelemetry are supported"))),
    }
}

fn zipkin(wire: &ZipkinConfig, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Zipkin, DecodeError> {
    without_effect(at, ctx, &[(wire.timestamp_trace_ids, "timestamp_trace_ids")]);
    unsupported(at, &[(wire.collector_service.is_some(), "collector_service")])?;
    let version_at = at.field("collector_endpoint_version");
    let context_at = at.field("trace_context_option");
    Ok(Zipkin {
        collector_cluster: need(&wire.collector_cluster, &at.field("collector_cluster"))?.into(),
        collector_endpoint: need(&wire.collector_endpoint, &at.field("collector_endpoint"))?.into(),
        collector_hostname: wire.collector_hostname.as_str().into(),
        format: match enumeration(wire.collector_endpoint_version, &version_at)? {
            CollectorEndpointVersion::HttpJson => ZipkinFormat::Json,
            CollectorEndpointVersion::HttpProto => ZipkinFormat::Proto,
            CollectorEndpointVersion::Grpc | CollectorEndpointVersion::DeprecatedAndUnavailableDoNotUse => {
                return Err(version_at.refuse("is neither HTTP_JSON nor HTTP_PROTO"));
            }
        },
        trace_id_128bit: wire.trace_id_128bit,
        shared_span_context: wire.shared_span_context != Some(false),
        split_spans_for_request: wire.split_spans_for_request,
        w3c_propagation: match enumeration(wire.trace_context_option, &context_at)? {
            TraceContextOption::UseB3 => false,
            TraceContextOption::UseB3WithW3cPropagation => true,
        },
    })
}

#[cfg(test)]
mod tests {
    use attache_proto::json::{Diagnostics, to_wire};
    use prost::Message;
    use serde_json::{Value, json};

    use super::super::testing::Bench;
    use super::*;

    fn decoded(kind: &str, config: Value) -> Result<Option<TracingProvider>, String> {
        let mut config = config;
        config["@type"] = format!("type.googleapis.com/envoy.config.trace.v3.{kind}").into();
        let json = json!({ "http": { "name": "envoy.tracers.any", "typed_config": config } });
        let mut diagnostics = Diagnostics::default();
        let bytes = to_wire(BootstrapTracing::TYPE_NAME, &json, &mut diagnostics).unwrap();
        let wire = BootstrapTracing::decode(&*bytes).unwrap();
        bootstrap(Some(&wire), &mut Bench::default().context()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_bootstrap_names_a_provider_or_none() {
        let config = json!({ "collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans",
            "collector_endpoint_version": "HTTP_JSON" });
        let found = decoded("ZipkinConfig", config).unwrap();
        let Some(TracingProvider::Zipkin(zipkin)) = found else {
            panic!("{found:?}")
        };
        assert_eq!(
            (&*zipkin.collector_cluster, zipkin.shared_span_context),
            ("zipkin", true)
        );
        let error = decoded("ZipkinConfig", json!({ "collector_endpoint": "/" })).unwrap_err();
        assert!(error.contains("http.typed_config.collector_cluster"), "{error}");
        let none = bootstrap(None, &mut Bench::default().context());
        assert!(matches!(none, Ok(None)));
    }
}
