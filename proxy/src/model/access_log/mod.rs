//! Access logs as they are configured (Envoy's `AccessLog`): where lines go, how they look, which are
//! written.
//!
//! Formats are parsed once, into [`Operator`]s: what cannot be carried out is refused by name when a
//! configuration is read, never when a line is written. Writes nothing; rendering is telemetry's.

mod command;
mod error;
mod filter;
mod json;
mod open_telemetry;
mod operator;
mod template;
mod time_format;

use std::path::PathBuf;

pub use error::FormatError;
pub use filter::{AccessLogFilter, Comparison, ComparisonOp, Ended, Sample};
pub use json::push_value;
pub use open_telemetry::OpenTelemetryAccessLog;
pub use operator::{
    AddressPart, DurationUnit, GrpcStatusFormat, Header, HeaderMap, MetadataOperator, Operator, PathOperator,
    PathSource, Place, ServerName, Span, TimePoint,
};
pub use template::{JsonPiece, JsonTemplate, Piece, Template};
pub use time_format::{TimeFormat, TimePart};

/// One access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: AccessLogSink,
    /// How a line looks.
    pub format: AccessLogFormat,
    /// Which connections or requests have a line.
    pub filter: AccessLogFilter,
}

/// Where an access log's lines go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessLogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

/// How a line looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Envoy's `text_format_source`; the line end is part of it.
    Text(Template),
    /// Envoy's `json_format`: one object a line.
    Json(JsonTemplate),
}

impl AccessLogFormat {
    /// Every command operator in it.
    pub fn operators(&self) -> Vec<&Operator> {
        match self {
            Self::Text(template) => template.operators().collect(),
            Self::Json(template) => {
                let mut all = Vec::new();
                for piece in template.pieces() {
                    match piece {
                        JsonPiece::Literal(_) => {}
                        JsonPiece::Value(operator) => all.push(operator),
                        JsonPiece::Text(template) => all.extend(template.operators()),
                    }
                }
                all
            }
        }
    }
}
