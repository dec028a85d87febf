//! Access logs that go to a collector (Envoy's `OpenTelemetryAccessLogConfig`).

use std::sync::Arc;
use std::time::Duration;

use super::Template;
use crate::model::Name;

/// One such access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTelemetryAccessLog {
    /// Where records are sent, over gRPC.
    pub cluster: Name,
    /// `log_name`, an attribute of the resource.
    pub log_name: Arc<str>,
    /// The body of a record.
    pub body: Option<Template>,
    /// Attributes of a record.
    pub attributes: Vec<(Arc<str>, Template)>,
    /// Attributes of the resource that the records are of.
    pub resource_attributes: Vec<(Arc<str>, Arc<str>)>,
    /// How long records are gathered; Envoy's default is 1 s.
    pub flush_interval: Duration,
    /// How many bytes of records are gathered at most; Envoy's default is 16,384.
    pub buffer_bytes: u32,
    /// How often a failed export is tried again.
    pub retries: u32,
}
