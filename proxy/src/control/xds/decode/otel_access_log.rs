//! `OpenTelemetryAccessLogConfig`, which Consul's extension `builtin/otel-access-logging` puts into HTTP
//! connection managers.

use std::sync::Arc;
use std::time::Duration;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::accesslog::v3::{AccessLog as Wire, access_log::ConfigType};
use attache_proto::envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier};
use attache_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use attache_proto::opentelemetry::proto::common::v1::{AnyValue, KeyValueList, any_value::Value};

use super::common::{duration, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::access_log::{OpenTelemetryAccessLog, Template};

/// Envoy's defaults.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
const BUFFER_BYTES: u32 = 16_384;

/// Takes the logs of this kind out of a list; what is left is of other kinds.
///
/// # Errors
/// Names the log and what of it is not supported.
pub(super) fn split(
    logs: &[Wire],
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(Vec<Wire>, Vec<Arc<OpenTelemetryAccessLog>>), DecodeError> {
    let (mut others, mut found) = (Vec::new(), Vec::new());
    for (index, log) in logs.iter().enumerate() {
        match &log.config_type {
            Some(ConfigType::TypedConfig(any))
                if type_name(any) == OpenTelemetryAccessLogConfig::TYPE_NAME =>
            {
                let at = at.index(index);
                unsupported(&at, &[(log.filter.is_some(), "filter")])?;
                let typed = at.field("typed_config");
                found.push(Arc::new(one(&unpack(any, &typed)?, &typed, ctx)?));
            }
            _ => others.push(log.clone()),
        }
    }
    Ok((others, found))
}

fn one(
    config: &OpenTelemetryAccessLogConfig,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<OpenTelemetryAccessLog, DecodeError> {
    let common = config.common_config.clone().unwrap_or_default();
    unsupported(
        at,
        &[
            (!config.formatters.is_empty(), "formatters"),
            (
                !config.custom_tags.is_empty() || !common.custom_tags.is_empty(),
                "custom_tags",
            ),
            (!config.resource_detectors.is_empty(), "resource_detectors"),
            (config.http_service.is_some(), "http_service"),
        ],
    )?;
    let objects =
        !config.filter_state_objects_to_log.is_empty() || !common.filter_state_objects_to_log.is_empty();
    without_effect(at, ctx, &[(objects, "filter_state_objects_to_log")]);
    let service = config.grpc_service.as_ref().or(common.grpc_service.as_ref());
    let flush = config
        .buffer_flush_interval
        .as_ref()
        .or(common.buffer_flush_interval.as_ref());
    let flush_interval = duration(flush, &at.field("buffer_flush_interval"))?;
    let log_name = match config.log_name.as_str() {
        "" => common.log_name.as_str(),
        name => name,
    };
    Ok(OpenTelemetryAccessLog {
        cluster: cluster(service, &at.field("grpc_service"))?,
        log_name: log_name.into(),
        body: match &config.body {
            Some(body) => Some(template(body, &at.field("body"))?),
            None => None,
        },
        attributes: list(config.attributes.as_ref(), &at.field("attributes"), template)?,
        resource_attributes: list(
            config.resource_attributes.as_ref(),
            &at.field("resource_attributes"),
            |value, at| text(value, at).map(Into::into),
        )?,
        flush_interval: flush_interval.unwrap_or(FLUSH_INTERVAL),
        buffer_bytes: config
            .buffer_size_bytes
            .or(common.buffer_size_bytes)
            .unwrap_or(BUFFER_BYTES),
        retries: common
            .grpc_stream_retry_policy
            .and_then(|policy| policy.num_retries)
            .unwrap_or(0),
    })
}

fn cluster(service: Option<&GrpcService>, at: &At<'_>) -> Result<Arc<str>, DecodeError> {
    match service.and_then(|service| service.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(target)) if !target.cluster_name.is_empty() => {
            Ok(target.cluster_name.as_str().into())
        }
        _ => Err(at.refuse("names no cluster (envoy_grpc.cluster_name)")),
    }
}

fn list<T>(
    list: Option<&KeyValueList>,
    at: &At<'_>,
    read: impl Fn(&AnyValue, &At<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<(Arc<str>, T)>, DecodeError> {
    let mut found = Vec::new();
    for entry in list.iter().flat_map(|list| &list.values) {
        let at = at.key(&entry.key);
        let value = entry.value.as_ref().ok_or_else(|| at.refuse("has no value"))?;
        found.push((entry.key.as_str().into(), read(value, &at)?));
    }
    Ok(found)
}

fn text<'a>(value: &'a AnyValue, at: &At<'_>) -> Result<&'a str, DecodeError> {
    match &value.value {
        Some(Value::StringValue(text)) => Ok(text),
        _ => Err(at.refuse("is no text, which alone is supported")),
    }
}

fn template(value: &AnyValue, at: &At<'_>) -> Result<Template, DecodeError> {
    Template::parse(text(value, at)?).map_err(|error| at.refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use attache_proto::envoy::config::core::v3::grpc_service::EnvoyGrpc;
    use attache_proto::envoy::extensions::access_loggers::grpc::v3::CommonGrpcAccessLogConfig;
    use attache_proto::opentelemetry::proto::common::v1::KeyValue;

    use super::super::testing::{Bench, any};
    use super::*;

    const AT: At<'static> = At::resource("Listener", "l");

    fn attribute(key: &str, value: Value) -> KeyValueList {
        let value = Some(AnyValue { value: Some(value) });
        KeyValueList {
            values: vec![KeyValue {
                key: key.to_owned(),
                value,
                ..KeyValue::default()
            }],
        }
    }

    fn read(config: &OpenTelemetryAccessLogConfig) -> Result<OpenTelemetryAccessLog, DecodeError> {
        let log = Wire {
            name: "otel".to_owned(),
            filter: None,
            config_type: Some(ConfigType::TypedConfig(any(config))),
        };
        let mut bench = Bench::default();
        let (others, found) = split(&[log], &AT, &mut bench.context())?;
        assert!(others.is_empty());
        Ok((*found[0]).clone())
    }

    fn common() -> CommonGrpcAccessLogConfig {
        CommonGrpcAccessLogConfig {
            log_name: "requests".to_owned(),
            grpc_service: Some(GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                    cluster_name: "collector".to_owned(),
                    ..EnvoyGrpc::default()
                })),
                ..GrpcService::default()
            }),
            ..CommonGrpcAccessLogConfig::default()
        }
    }

    #[test]
    fn consuls_extension() {
        let read = read(&OpenTelemetryAccessLogConfig {
            common_config: Some(common()),
            attributes: Some(attribute("path", Value::StringValue("%REQ(:PATH)%".to_owned()))),
            resource_attributes: Some(attribute("type", Value::StringValue("compute".to_owned()))),
            ..OpenTelemetryAccessLogConfig::default()
        })
        .unwrap();
        assert_eq!((&*read.cluster, &*read.log_name), ("collector", "requests"));
        assert_eq!(
            read.attributes,
            [("path".into(), Template::parse("%REQ(:PATH)%").unwrap())]
        );
        assert_eq!(read.resource_attributes, [("type".into(), "compute".into())]);
        assert_eq!(
            (read.flush_interval, read.buffer_bytes),
            (FLUSH_INTERVAL, BUFFER_BYTES)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let none = read(&OpenTelemetryAccessLogConfig::default()).unwrap_err();
        assert_eq!(none.path, "[0].typed_config.grpc_service");
        let number = read(&OpenTelemetryAccessLogConfig {
            common_config: Some(common()),
            attributes: Some(attribute("n", Value::IntValue(1))),
            ..OpenTelemetryAccessLogConfig::default()
        });
        assert_eq!(number.unwrap_err().path, "[0].typed_config.attributes[\"n\"]");
    }
}
