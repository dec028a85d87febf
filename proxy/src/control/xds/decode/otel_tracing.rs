//! `OpenTelemetryConfig`: the tracer for OpenTelemetry.

use std::sync::Arc;
use std::time::Duration;

use attache_proto::envoy::config::core::v3::{
    GrpcService, HeaderValue, HttpService, grpc_service::TargetSpecifier, http_uri::HttpUpstreamType,
};
use attache_proto::envoy::config::trace::v3::OpenTelemetryConfig;

use super::common::{duration, need, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::http::{CollectorHeaders, OpenTelemetryTracer, TracerTarget};

/// Envoy's default of `max_cache_size`.
const MAX_CACHE_SIZE: u32 = 1024;

/// Where spans go, and what is said beside them.
///
/// # Errors
/// Names the field that is invalid or not supported: a sampler would decide what is traced.
pub(super) fn decode(
    wire: &OpenTelemetryConfig,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<OpenTelemetryTracer, DecodeError> {
    unsupported(
        at,
        &[
            (wire.sampler.is_some(), "sampler"),
            (wire.exporter.is_some(), "exporter"),
        ],
    )?;
    without_effect(
        at,
        ctx,
        &[(!wire.resource_detectors.is_empty(), "resource_detectors")],
    );
    let (target, headers) = match (&wire.grpc_service, &wire.http_service) {
        (Some(_), Some(_)) => return Err(at.refuse("has both a grpc_service and an http_service")),
        (Some(service), None) => grpc(service, &at.field("grpc_service"))?,
        (None, Some(service)) => http(service, &at.field("http_service"))?,
        (None, None) => (None, CollectorHeaders::default()),
    };
    Ok(OpenTelemetryTracer {
        target,
        headers,
        service_name: wire.service_name.as_str().into(),
        max_cache_size: wire.max_cache_size.unwrap_or(MAX_CACHE_SIZE),
        sdk_attributes: wire.set_telemetry_sdk_resource_attributes != Some(false),
        service_name_attribute: wire.set_service_name_resource_attribute != Some(false),
        instrumentation_scope: wire.set_instrumentation_scope != Some(false),
    })
}

type Target = (Option<TracerTarget>, CollectorHeaders);

fn grpc(service: &GrpcService, at: &At<'_>) -> Result<Target, DecodeError> {
    let cluster = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) if !target.cluster_name.is_empty() => {
            target.cluster_name.as_str().into()
        }
        _ => return Err(at.refuse("names no cluster (envoy_grpc.cluster_name)")),
    };
    let headers = headers(service.initial_metadata.iter(), &at.field("initial_metadata"))?;
    Ok((Some(TracerTarget::Grpc { cluster }), headers))
}

fn http(service: &HttpService, at: &At<'_>) -> Result<Target, DecodeError> {
    unsupported(at, &[(!service.formatters.is_empty(), "formatters")])?;
    let uri_at = at.field("http_uri");
    let uri = service
        .http_uri
        .as_ref()
        .ok_or_else(|| uri_at.refuse("is missing"))?;
    let cluster = match &uri.http_upstream_type {
        Some(HttpUpstreamType::Cluster(cluster)) => need(cluster, &uri_at.field("cluster"))?,
        None => return Err(uri_at.field("cluster").refuse("is missing")),
    };
    let (host, path) = host_and_path(need(&uri.uri, &uri_at.field("uri"))?);
    let timeout = duration(uri.timeout.as_ref(), &uri_at.field("timeout"))?;
    let target = TracerTarget::Http {
        cluster: cluster.into(),
        host: need(host, &uri_at.field("uri"))?.into(),
        path: path.into(),
        timeout: timeout.unwrap_or(Duration::ZERO),
    };
    let added = service.request_headers_to_add.iter();
    let headers_at = at.field("request_headers_to_add");
    Ok((
        Some(target),
        headers(added.filter_map(|option| option.header.as_ref()), &headers_at)?,
    ))
}

fn headers<'w>(
    list: impl Iterator<Item = &'w HeaderValue>,
    at: &At<'_>,
) -> Result<CollectorHeaders, DecodeError> {
    let mut found = Vec::new();
    for (index, header) in list.enumerate() {
        let at = at.index(index);
        unsupported(&at, &[(!header.raw_value.is_empty(), "raw_value")])?;
        let name = need(&header.key, &at.field("key"))?.to_ascii_lowercase();
        found.push((Arc::from(name), Arc::from(header.value.as_str())));
    }
    Ok(CollectorHeaders(found))
}

/// `http://collector:4318/v1/traces` is the host `collector:4318` and the path `/v1/traces`.
fn host_and_path(uri: &str) -> (&str, &str) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    }
}

#[cfg(test)]
mod tests {
    use attache_proto::TypeUrl;
    use attache_proto::json::{Diagnostics, to_wire};
    use prost::Message;
    use serde_json::{Value, json};

    use super::super::testing::Bench;
    use super::*;

    fn decoded(json: &Value) -> Result<OpenTelemetryTracer, String> {
        let mut diagnostics = Diagnostics::default();
        let bytes = to_wire(OpenTelemetryConfig::TYPE_NAME, json, &mut diagnostics).unwrap();
        assert!(diagnostics.warnings.is_empty(), "{:?}", diagnostics.warnings);
        let wire = OpenTelemetryConfig::decode(&*bytes).unwrap();
        let at = At::resource("Listener", "l");
        decode(&wire, &at, &mut Bench::default().context()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_collector_over_http() {
        let tracer = decoded(&json!({
            "http_service": {
                "http_uri": { "uri": "http://otel:4318/v1/traces?x=1", "cluster": "otel", "timeout": "0.250s" },
                "request_headers_to_add": [{ "header": { "key": "Authorization", "value": "Api-Token t0ken" } }],
            },
            "service_name": "web",
            "max_cache_size": 7,
            "set_instrumentation_scope": false,
        }))
        .unwrap();
        assert_eq!(
            tracer.target,
            Some(TracerTarget::Http {
                cluster: "otel".into(),
                host: "otel:4318".into(),
                path: "/v1/traces?x=1".into(),
                timeout: Duration::from_millis(250),
            })
        );
        assert_eq!(
            tracer.headers.0,
            [("authorization".into(), "Api-Token t0ken".into())]
        );
        assert!(!format!("{tracer:?}").contains("t0ken"));
        assert_eq!((&*tracer.service_name, tracer.max_cache_size), ("web", 7));
        assert!(tracer.sdk_attributes && tracer.service_name_attribute && !tracer.instrumentation_scope);
    }

    #[test]
    fn a_collector_over_grpc_or_none() {
        let tracer = decoded(&json!({
            "grpc_service": { "envoy_grpc": { "cluster_name": "otel" } },
        }))
        .unwrap();
        assert_eq!(
            tracer.target,
            Some(TracerTarget::Grpc {
                cluster: "otel".into()
            })
        );
        assert_eq!(tracer.max_cache_size, MAX_CACHE_SIZE);
        assert_eq!(decoded(&json!({})).unwrap().target, None);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let uri = json!({ "uri": "http://otel/", "cluster": "otel", "timeout": "1s" });
        let envoy_grpc = json!({ "envoy_grpc": { "cluster_name": "otel" } });
        for (json, field) in [
            (json!({ "sampler": { "name": "s" } }), "sampler"),
            (json!({ "grpc_service": {} }), "grpc_service"),
            (json!({ "http_service": {} }), "http_service.http_uri"),
            (
                json!({ "http_service": { "http_uri": uri }, "grpc_service": envoy_grpc }),
                "both",
            ),
        ] {
            let error = decoded(&json).unwrap_err();
            assert!(error.contains(field), "{json}: {error}");
        }
    }
}
