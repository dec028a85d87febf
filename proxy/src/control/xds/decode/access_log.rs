//! `accesslog.v3.AccessLog`, to standard output, standard error and files.

use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::accesslog::v3::{AccessLog as Wire, access_log::ConfigType};
use attache_proto::envoy::config::core::v3::{
    SubstitutionFormatString, data_source::Specifier, substitution_format_string::Format,
};
use attache_proto::envoy::extensions::access_loggers::{
    file::v3::{FileAccessLog, file_access_log::AccessLogFormat as FileFormat},
    stream::v3::{
        StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as StderrFormat,
        stdout_access_log::AccessLogFormat as StdoutFormat,
    },
};
use prost_types::{Any, Struct, value::Kind};
use serde_json::{Map, Value};

use super::access_log_filter;
use super::common::{need, type_name, unpack, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::access_log::{
    AccessLog, AccessLogFilter, AccessLogFormat, AccessLogSink, JsonTemplate, Template,
};

/// Formatters that add an operator which is always there in Attaché.
const FORMATTERS: [&str; 2] = [
    "envoy.extensions.formatter.metadata.v3.Metadata",
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
];

/// The access logs of a list, of connections.
///
/// # Errors
/// Names the log and its kind, filter or operator that is not supported.
pub fn decode(logs: &[Wire], at: &At<'_>, ctx: &mut Context<'_>) -> Result<Vec<Arc<AccessLog>>, DecodeError> {
    let decoded = of_requests(logs, at, ctx)?;
    for (index, log) in decoded.iter().enumerate() {
        let operators = log.format.operators();
        if let Some(operator) = operators.iter().find(|operator| operator.is_of_requests_alone()) {
            let why = format!("has an operator that is supported in logs of requests only: {operator:?}");
            return Err(at.index(index).field("typed_config").refuse(why));
        }
    }
    Ok(decoded)
}

/// The access logs of a list, of requests.
///
/// # Errors
/// Names the log and its kind, filter or operator that is not supported.
pub fn of_requests(
    logs: &[Wire],
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Vec<Arc<AccessLog>>, DecodeError> {
    let mut decoded = Vec::with_capacity(logs.len());
    for (index, log) in logs.iter().enumerate() {
        decoded.push(Arc::new(one(log, &at.index(index), ctx)?));
    }
    Ok(decoded)
}

fn one(log: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<AccessLog, DecodeError> {
    let Some(ConfigType::TypedConfig(config)) = &log.config_type else {
        return Err(at.refuse(format!("{:?} has no typed_config", log.name)));
    };
    let typed = at.field("typed_config");
    let (sink, format) = sink(config, &typed, ctx)?;
    let filter = match &log.filter {
        None => AccessLogFilter::All,
        Some(filter) => access_log_filter::decode(filter, &at.field("filter"), ctx)?,
    };
    Ok(AccessLog { sink, format, filter })
}

fn sink(
    config: &Any,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(AccessLogSink, AccessLogFormat), DecodeError> {
    let name = type_name(config);
    let (sink, log_format) = if name == StdoutAccessLog::TYPE_NAME {
        let log = unpack::<StdoutAccessLog>(config, at)?;
        let format = log
            .access_log_format
            .map(|StdoutFormat::LogFormat(format)| format);
        (AccessLogSink::Stdout, format)
    } else if name == StderrAccessLog::TYPE_NAME {
        let log = unpack::<StderrAccessLog>(config, at)?;
        let format = log
            .access_log_format
            .map(|StderrFormat::LogFormat(format)| format);
        (AccessLogSink::Stderr, format)
    } else if name == FileAccessLog::TYPE_NAME {
        return file(&unpack(config, at)?, at, ctx);
    } else {
        return Err(at.refuse(format!(
            "is a {name:?}: access logs go to stdout, stderr and files only"
        )));
    };
    let format = match &log_format {
        Some(format) => substitution(format, &at.field("log_format"), ctx)?,
        None => default(at)?,
    };
    Ok((sink, format))
}

fn file(
    log: &FileAccessLog,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(AccessLogSink, AccessLogFormat), DecodeError> {
    // The special files cannot always be opened by a process that has them as descriptors.
    let sink = match need(&log.path, &at.field("path"))? {
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        path => AccessLogSink::File(path.into()),
    };
    let format = match &log.access_log_format {
        None => default(at)?,
        Some(FileFormat::Format(format)) if format.is_empty() => default(at)?,
        Some(FileFormat::Format(format)) => text(format, &at.field("format"))?,
        Some(FileFormat::JsonFormat(json)) => self::json(json, &at.field("json_format"))?,
        Some(FileFormat::TypedJsonFormat(json)) => self::json(json, &at.field("typed_json_format"))?,
        Some(FileFormat::LogFormat(format)) => substitution(format, &at.field("log_format"), ctx)?,
    };
    Ok((sink, format))
}

fn substitution(
    format: &SubstitutionFormatString,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<AccessLogFormat, DecodeError> {
    for (index, formatter) in format.formatters.iter().enumerate() {
        let known = formatter.typed_config.as_ref().map(type_name);
        if !known.is_some_and(|name| FORMATTERS.contains(&name)) {
            let why = format!("{:?} is not supported", formatter.name);
            return Err(at.field("formatters").index(index).refuse(why));
        }
    }
    without_effect(at, ctx, &[(format.omit_empty_values, "omit_empty_values")]);
    match &format.format {
        Some(Format::TextFormat(format)) => text(format, &at.field("text_format")),
        Some(Format::JsonFormat(json)) => self::json(json, &at.field("json_format")),
        Some(Format::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            match &source.specifier {
                Some(Specifier::InlineString(format)) => text(format, &at.field("inline_string")),
                Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
                    Ok(format) => text(format, &at.field("inline_bytes")),
                    Err(_) => Err(at.field("inline_bytes").refuse("is not UTF-8")),
                },
                _ => Err(at.refuse("is not inline: not supported")),
            }
        }
        None => Err(at.refuse("has no format")),
    }
}

fn default(at: &At<'_>) -> Result<AccessLogFormat, DecodeError> {
    let template = Template::envoy_default().map_err(|error| at.refuse(error.to_string()))?;
    Ok(AccessLogFormat::Text(template))
}

fn text(format: &str, at: &At<'_>) -> Result<AccessLogFormat, DecodeError> {
    let template = Template::parse(format).map_err(|error| at.refuse(error.to_string()))?;
    Ok(AccessLogFormat::Text(template))
}

fn json(json: &Struct, at: &At<'_>) -> Result<AccessLogFormat, DecodeError> {
    let members = object(json, MAX_NESTING).ok_or_else(|| at.refuse("is nested too deeply"))?;
    let template = JsonTemplate::parse(&members).map_err(|error| at.refuse(error.to_string()))?;
    Ok(AccessLogFormat::Json(template))
}

/// A log line is read by people; Consul's formats are flat.
const MAX_NESTING: u32 = 16;

fn object(json: &Struct, depth: u32) -> Option<Map<String, Value>> {
    let depth = depth.checked_sub(1)?;
    let member = |(key, member): (&String, &prost_types::Value)| Some((key.clone(), value(member, depth)?));
    json.fields.iter().map(member).collect()
}

fn value(json: &prost_types::Value, depth: u32) -> Option<Value> {
    Some(match &json.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::StructValue(members)) => object(members, depth)?.into(),
        Some(Kind::ListValue(list)) => {
            let depth = depth.checked_sub(1)?;
            let values = list.values.iter().map(|item| value(item, depth));
            Value::Array(values.collect::<Option<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, any};
    use super::*;
    use crate::model::ResponseFlag;
    use attache_proto::envoy::config::accesslog::v3::{
        AccessLogFilter as WireFilter, ResponseFlagFilter, access_log_filter::FilterSpecifier,
    };
    use attache_proto::envoy::config::core::v3::TypedExtensionConfig;

    const AT: At<'static> = At::resource("Listener", "l");

    fn log(config: Any, flags: Option<&[&str]>) -> Wire {
        Wire {
            name: "log".to_owned(),
            filter: flags.map(|flags| WireFilter {
                filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
                    flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                })),
            }),
            config_type: Some(ConfigType::TypedConfig(config)),
        }
    }

    fn stdout(format: Option<Format>) -> Any {
        any(&StdoutAccessLog {
            access_log_format: format.map(|format| {
                StdoutFormat::LogFormat(SubstitutionFormatString {
                    format: Some(format),
                    ..SubstitutionFormatString::default()
                })
            }),
        })
    }

    fn read(log: &Wire) -> Result<Vec<Arc<AccessLog>>, DecodeError> {
        let mut bench = Bench::default();
        decode(std::slice::from_ref(log), &AT, &mut bench.context())
    }

    #[test]
    fn sinks_and_formats() {
        let text = |log: &Wire| {
            let log = read(log).unwrap().remove(0);
            let AccessLogFormat::Text(text) = &log.format else {
                panic!("no text")
            };
            (log.sink.clone(), text.clone())
        };
        let (sink, format) = text(&log(stdout(None), None));
        assert_eq!(
            (sink, format),
            (AccessLogSink::Stdout, Template::envoy_default().unwrap())
        );
        let hello = Some(Format::TextFormat("hello".to_owned()));
        assert_eq!(
            text(&log(stdout(hello), None)).1,
            Template::parse("hello").unwrap()
        );
        let stderr = any(&StderrAccessLog::default());
        assert_eq!(text(&log(stderr, None)).0, AccessLogSink::Stderr);
        for (path, sink) in [
            ("/dev/stdout", AccessLogSink::Stdout),
            ("/dev/stderr", AccessLogSink::Stderr),
            ("/var/log/x", AccessLogSink::File("/var/log/x".into())),
        ] {
            let file = FileAccessLog {
                path: path.to_owned(),
                access_log_format: Some(FileFormat::Format("x".to_owned())),
            };
            assert_eq!(
                text(&log(any(&file), None)),
                (sink, Template::parse("x").unwrap())
            );
        }
        let no_path = read(&log(any(&FileAccessLog::default()), None)).unwrap_err();
        assert_eq!(no_path.path, "[0].typed_config.path");
    }

    #[test]
    fn json_members() {
        let value = |kind| prost_types::Value { kind: Some(kind) };
        let json = |kind| {
            let fields = [("a".to_owned(), value(kind))].into_iter().collect();
            read(&log(stdout(Some(Format::JsonFormat(Struct { fields }))), None))
        };
        let good = json(Kind::StringValue("%BYTES_SENT%".to_owned())).unwrap();
        let members = serde_json::json!({ "a": "%BYTES_SENT%" });
        let wanted = JsonTemplate::parse(members.as_object().unwrap()).unwrap();
        assert_eq!(good[0].format, AccessLogFormat::Json(wanted));
        let bad = json(Kind::StringValue("%NO_SUCH%".to_owned())).unwrap_err();
        assert_eq!(bad.path, "[0].typed_config.log_format.json_format");
        assert!(bad.to_string().contains("NO_SUCH"), "{bad}");
        let mut deep = Kind::StringValue("x".to_owned());
        // Deeper than 16, and still within what prost decodes.
        for _ in 0..20 {
            let fields = [("a".to_owned(), value(deep))].into_iter().collect();
            deep = Kind::StructValue(Struct { fields });
        }
        assert!(json(deep).unwrap_err().to_string().contains("nested too deeply"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let other = Any {
            type_url: "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig"
                .to_owned(),
            value: Vec::new(),
        };
        let error = read(&log(other, None)).unwrap_err().to_string();
        assert!(error.contains("TcpGrpcAccessLogConfig"), "{error}");
        let formatter = SubstitutionFormatString {
            formatters: vec![TypedExtensionConfig {
                name: "cel".to_owned(),
                typed_config: None,
            }],
            ..SubstitutionFormatString::default()
        };
        let config = any(&StdoutAccessLog {
            access_log_format: Some(StdoutFormat::LogFormat(formatter)),
        });
        assert!(
            read(&log(config, None))
                .unwrap_err()
                .to_string()
                .ends_with("\"cel\" is not supported")
        );
        let mut filtered = log(stdout(None), None);
        filtered.filter = Some(WireFilter {
            filter_specifier: Some(FilterSpecifier::ExtensionFilter(Default::default())),
        });
        assert_eq!(read(&filtered).unwrap_err().path, "[0].filter.extension_filter");
    }

    #[test]
    fn what_only_requests_have_is_refused_of_connections() {
        let format = |text: &str| log(stdout(Some(Format::TextFormat(text.to_owned()))), None);
        let moments = format("a %COMMON_DURATION(DS_RX_BEG:DS_TX_END)%");
        let mut bench = Bench::default();
        assert!(of_requests(std::slice::from_ref(&moments), &AT, &mut bench.context()).is_ok());
        let refused = read(&moments).unwrap_err();
        assert_eq!(refused.path, "[0].typed_config");
        assert!(read(&format("%PATH% %REQ(a)%")).is_ok());
    }

    #[test]
    fn a_formatter_whose_operator_is_there_anyway_is_taken() {
        let formatter = |kind: &str| {
            let typed_config = Some(Any {
                type_url: format!("type.googleapis.com/envoy.extensions.formatter.{kind}"),
                value: Vec::new(),
            });
            any(&StdoutAccessLog {
                access_log_format: Some(StdoutFormat::LogFormat(SubstitutionFormatString {
                    formatters: vec![TypedExtensionConfig {
                        name: "x".to_owned(),
                        typed_config,
                    }],
                    format: Some(Format::TextFormat("%REQ_WITHOUT_QUERY(:PATH)%".to_owned())),
                    ..SubstitutionFormatString::default()
                })),
            })
        };
        assert!(read(&log(formatter("req_without_query.v3.ReqWithoutQuery"), None)).is_ok());
        assert!(read(&log(formatter("cel.v3.Cel"), None)).is_err());
    }

    #[test]
    fn flags_select_connections() {
        let only =
            |flags: &[&str]| Ok::<_, DecodeError>(read(&log(stdout(None), Some(flags)))?[0].filter.clone());
        let nr = AccessLogFilter::Flags(vec![ResponseFlag::NoRouteFound]);
        assert_eq!(only(&["NR"]).unwrap(), nr);
        assert_eq!(only(&[]).unwrap(), AccessLogFilter::AnyFlag);
        assert_eq!(
            only(&["XX"]).unwrap_err().path,
            "[0].filter.response_flag_filter.flags[0]"
        );
    }
}
