//! Access logs as they are configured (Envoy's `AccessLog`): where lines go, how they look, which are
//! written.
//!
//! Formats are parsed once, into [`Operator`]s: what cannot be carried out is refused by name when a
//! configuration is read, never when a line is written. Writes nothing; rendering is telemetry's.

mod error;
mod open_telemetry;
mod operator;
mod template;
mod time_format;

use std::path::PathBuf;

use super::flags::ResponseFlag;

pub use error::FormatError;
pub use open_telemetry::OpenTelemetryAccessLog;
pub use operator::{AddressPart, GrpcStatusFormat, Header, HeaderMap, Operator, Place};
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

/// Envoy's `AccessLogFilter`, as far as it can be configured here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFilter {
    /// No filter: everything has a line.
    #[default]
    All,
    /// `response_flag_filter` without flags: what ended with any flag.
    AnyFlag,
    /// `response_flag_filter`: what ended with one of these at least.
    Flags(Vec<ResponseFlag>),
}

impl AccessLogFilter {
    /// Whether what ended with these flags has a line.
    pub fn takes(&self, flags: &[ResponseFlag]) -> bool {
        let mut set = flags.iter().filter(|flag| **flag != ResponseFlag::None);
        match self {
            Self::All => true,
            Self::AnyFlag => set.next().is_some(),
            Self::Flags(wanted) => set.any(|flag| wanted.contains(flag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_what_ended_with_one_of_its_flags() {
        use ResponseFlag as F;
        let nr = AccessLogFilter::Flags(vec![F::NoRouteFound, F::None]);
        for (filter, flags, taken) in [
            (&AccessLogFilter::All, &[][..], true),
            (&AccessLogFilter::AnyFlag, &[], false),
            (&AccessLogFilter::AnyFlag, &[F::None], false),
            (&AccessLogFilter::AnyFlag, &[F::NoClusterFound], true),
            (&nr, &[], false),
            (&nr, &[F::None], false),
            (&nr, &[F::NoClusterFound], false),
            (&nr, &[F::NoClusterFound, F::NoRouteFound], true),
        ] {
            assert_eq!(filter.takes(flags), taken, "{filter:?} {flags:?}");
        }
    }
}
