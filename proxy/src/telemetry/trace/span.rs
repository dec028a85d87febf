//! A span: one request as one proxy saw it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use super::context::TraceContext;

/// Which side of a call a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The called one.
    Server,
    /// The calling one.
    Client,
}

/// Who reports: the same in all spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalService {
    /// The node's cluster: the service's name to Zipkin.
    pub cluster: String,
    /// The node's ID, a tag of every span.
    pub node_id: String,
    /// The node's zone, likewise; Zipkin leaves it out where it is empty.
    pub zone: String,
    /// The address of this process, if known.
    pub address: Option<IpAddr>,
}

/// One span. It is worth filling only while [`TraceContext::sampled`] says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its place in its trace.
    pub context: TraceContext,
    /// Its name.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// When it ended; not before it began.
    pub end: SystemTime,
    /// In the order in which they were set; a name may come again, and the last one holds.
    pub tags: Vec<(Cow<'static, str>, String)>,
    /// What happened when.
    pub annotations: Vec<(SystemTime, Cow<'static, str>)>,
    /// The status code of the response; none where there was no response.
    pub status: Option<u16>,
    /// `grpc-status` of the response.
    pub grpc_status: Option<u32>,
}

impl Span {
    /// A span that begins `now`.
    pub fn new(context: TraceContext, name: String, now: SystemTime) -> Self {
        Self {
            context,
            name,
            start: now,
            end: now,
            tags: Vec::new(),
            annotations: Vec::new(),
            status: None,
            grpc_status: None,
        }
    }

    /// Sets a tag.
    pub fn tag(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.tags.push((name.into(), value.into()));
    }

    /// Notes that something happened; Envoy does where `verbose` is set.
    pub fn annotate(&mut self, at: SystemTime, what: &'static str) {
        self.annotations.push((at, what.into()));
    }

    /// Ends it `now`.
    pub fn finish(&mut self, now: SystemTime) {
        self.end = now.max(self.start);
    }
}
