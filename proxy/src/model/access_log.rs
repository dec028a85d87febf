//! Access logs as they are configured (Envoy's `AccessLog`): where lines go, how they look, which are
//! written.

use std::path::PathBuf;
use std::sync::Arc;

use super::flags::ResponseFlag;

/// One access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: AccessLogSink,
    /// How a line looks.
    pub format: AccessLogFormat,
    /// `response_flag_filter`: only connections that ended with one of these; empty is all.
    pub only: Vec<ResponseFlag>,
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

/// How a line looks. Text with command operators such as `%BYTES_SENT%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One text; its line end is part of it.
    Text(Arc<str>),
    /// One JSON object a line, by member.
    Json(Vec<(Arc<str>, Arc<str>)>),
}
