//! `accesslog.v3.AccessLog`, to standard output, standard error and files.

use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::accesslog::v3::{
    AccessLog as Wire, access_log::ConfigType, access_log_filter::FilterSpecifier,
};
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

use super::common::{need, type_name, unpack, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::ResponseFlag;
use crate::model::access_log::{AccessLog, AccessLogFormat, AccessLogSink};

/// Envoy's format where none is given (Envoy documentation, "Default format string").
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Envoy's flags that nothing here ever ends with.
const FLAGS_NEVER_SET: [&str; 17] = [
    "LH", "UT", "UR", "UPE", "DI", "FI", "RL", "RLSE", "IH", "URX", "NFCF", "UMSDR", "RFCF", "DT", "DF",
    "DO", "DR",
];

/// The access logs of a list; those that could never write a line are left out.
///
/// # Errors
/// Names the log and its kind or filter that is not supported.
pub fn decode(logs: &[Wire], at: &At<'_>, ctx: &mut Context<'_>) -> Result<Vec<Arc<AccessLog>>, DecodeError> {
    let mut decoded = Vec::with_capacity(logs.len());
    for (index, log) in logs.iter().enumerate() {
        decoded.extend(one(log, &at.index(index), ctx)?.map(Arc::new));
    }
    Ok(decoded)
}

fn one(log: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Option<AccessLog>, DecodeError> {
    let Some(ConfigType::TypedConfig(config)) = &log.config_type else {
        return Err(at.refuse(format!("{:?} has no typed_config", log.name)));
    };
    let typed = at.field("typed_config");
    let (sink, format) = sink(config, &typed, ctx)?;
    let Some(only) = flags(log, &at.field("filter"))? else {
        return Ok(None);
    };
    Ok(Some(AccessLog { sink, format, only }))
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
        None => AccessLogFormat::Text(DEFAULT_FORMAT.into()),
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
        None => AccessLogFormat::Text(DEFAULT_FORMAT.into()),
        Some(FileFormat::Format(text)) if text.is_empty() => AccessLogFormat::Text(DEFAULT_FORMAT.into()),
        Some(FileFormat::Format(text)) => AccessLogFormat::Text(text.as_str().into()),
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
    if let Some(formatter) = format.formatters.first() {
        let why = format!("{:?} is not supported", formatter.name);
        return Err(at.field("formatters").index(0).refuse(why));
    }
    without_effect(at, ctx, &[(format.omit_empty_values, "omit_empty_values")]);
    match &format.format {
        Some(Format::TextFormat(text)) => Ok(AccessLogFormat::Text(text.as_str().into())),
        Some(Format::JsonFormat(json)) => self::json(json, &at.field("json_format")),
        Some(Format::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            match &source.specifier {
                Some(Specifier::InlineString(text)) => Ok(AccessLogFormat::Text(text.as_str().into())),
                Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(AccessLogFormat::Text(text.into())),
                    Err(_) => Err(at.field("inline_bytes").refuse("is not UTF-8")),
                },
                _ => Err(at.refuse("is not inline: not supported")),
            }
        }
        None => Err(at.refuse("has no format")),
    }
}

fn json(json: &Struct, at: &At<'_>) -> Result<AccessLogFormat, DecodeError> {
    let member = |(key, value): (&String, &prost_types::Value)| match &value.kind {
        Some(Kind::StringValue(text)) => Ok((key.as_str().into(), text.as_str().into())),
        _ => Err(at
            .key(key)
            .refuse("is not a string: nested and typed members are not supported")),
    };
    let members = json.fields.iter().map(member);
    members.collect::<Result<_, _>>().map(AccessLogFormat::Json)
}

/// Which connections are logged: empty is all, `None` is none.
fn flags(log: &Wire, at: &At<'_>) -> Result<Option<Vec<ResponseFlag>>, DecodeError> {
    let Some(filter) = &log.filter else {
        return Ok(Some(Vec::new()));
    };
    let Some(FilterSpecifier::ResponseFlagFilter(filter)) = &filter.filter_specifier else {
        return Err(at.refuse("is not a response_flag_filter, which alone is supported"));
    };
    if filter.flags.is_empty() {
        // For Envoy: whoever ended with any flag.
        return Ok(Some(ResponseFlag::ALL.to_vec()));
    }
    let at = at.field("response_flag_filter.flags");
    let mut only = Vec::new();
    for (index, name) in filter.flags.iter().enumerate() {
        match ResponseFlag::ALL.iter().find(|flag| flag.as_str() == name) {
            Some(flag) => only.push(*flag),
            None if FLAGS_NEVER_SET.contains(&name.as_str()) => {}
            None => return Err(at.index(index).refuse(format!("{name:?} is no response flag"))),
        }
    }
    Ok((!only.is_empty()).then_some(only))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, any};
    use super::*;
    use attache_proto::envoy::config::accesslog::v3::{AccessLogFilter, ResponseFlagFilter};
    use attache_proto::envoy::config::core::v3::TypedExtensionConfig;

    const AT: At<'static> = At::resource("Listener", "l");

    fn log(config: Any, flags: Option<&[&str]>) -> Wire {
        Wire {
            name: "log".to_owned(),
            filter: flags.map(|flags| AccessLogFilter {
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
            (log.sink.clone(), text.to_string())
        };
        let (sink, format) = text(&log(stdout(None), None));
        assert_eq!(sink, AccessLogSink::Stdout);
        assert!(format.starts_with("[%START_TIME%] ") && format.ends_with("\"%UPSTREAM_HOST%\"\n"));
        let hello = Some(Format::TextFormat("hello".to_owned()));
        assert_eq!(text(&log(stdout(hello), None)).1, "hello");
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
            assert_eq!(text(&log(any(&file), None)), (sink, "x".to_owned()));
        }
        let no_path = read(&log(any(&FileAccessLog::default()), None)).unwrap_err();
        assert_eq!(no_path.path, "[0].typed_config.path");
    }

    #[test]
    fn json_members_are_strings() {
        let value = |kind| prost_types::Value { kind: Some(kind) };
        let json = |kind| {
            let fields = [("a".to_owned(), value(kind))].into_iter().collect();
            read(&log(stdout(Some(Format::JsonFormat(Struct { fields }))), None))
        };
        let good = json(Kind::StringValue("%BYTES_SENT%".to_owned())).unwrap();
        let members = AccessLogFormat::Json(vec![("a".into(), "%BYTES_SENT%".into())]);
        assert_eq!(good[0].format, members);
        let bad = json(Kind::BoolValue(true)).unwrap_err();
        assert_eq!(bad.path, "[0].typed_config.log_format.json_format[\"a\"]");
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
        filtered.filter = Some(AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::DurationFilter(Default::default())),
        });
        assert_eq!(read(&filtered).unwrap_err().path, "[0].filter");
    }

    #[test]
    fn flags_select_connections() {
        let only = |flags: &[&str]| read(&log(stdout(None), Some(flags)));
        assert_eq!(only(&["NR"]).unwrap()[0].only, [ResponseFlag::NoRouteFound]);
        let with_never = only(&["NR", "FI"]).unwrap();
        assert_eq!(with_never[0].only, [ResponseFlag::NoRouteFound]);
        // Only flags that never are: never a line. That is not "all".
        assert!(only(&["FI"]).unwrap().is_empty());
        assert!(
            only(&[]).unwrap()[0]
                .only
                .contains(&ResponseFlag::OverloadManager)
        );
        assert_eq!(
            only(&["XX"]).unwrap_err().path,
            "[0].filter.response_flag_filter.flags[0]"
        );
    }
}
