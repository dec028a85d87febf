//! Spans as OpenTelemetry takes them: `ExportTraceServiceRequest` of OTLP 1, in protobuf.

use std::time::{SystemTime, UNIX_EPOCH};

use super::protobuf::Message;
use super::reporter::Writer;
use super::span::{Span, SpanKind};
use super::tags::is_server_error;
use crate::model::http::OpenTelemetryTracer;

/// What Envoy calls a service that has no name.
const UNKNOWN_SERVICE: &str = "unknown_service:envoy";

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: the next flag means something.
const HAS_IS_REMOTE: u32 = 0x100;

/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the parent is another process's.
const IS_REMOTE: u32 = 0x200;

/// `STATUS_CODE_ERROR`.
const ERROR: u64 = 2;

/// Writes requests to a collector.
#[derive(Clone, Debug)]
pub struct OtlpWriter {
    config: OpenTelemetryTracer,
}

impl OtlpWriter {
    /// As `config` wants them.
    pub fn new(config: OpenTelemetryTracer) -> Self {
        Self { config }
    }

    fn resource(&self, out: &mut Message) {
        let config = &self.config;
        let name = match &*config.service_name {
            "" => UNKNOWN_SERVICE,
            name => name,
        };
        if config.sdk_attributes {
            attribute(out, 1, "telemetry.sdk.language", "rust");
            attribute(out, 1, "telemetry.sdk.name", "attache");
            attribute(out, 1, "telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        }
        if config.service_name_attribute {
            attribute(out, 1, "service.name", name);
        }
    }
}

impl Writer for OtlpWriter {
    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn write(&self, spans: &[Span]) -> Vec<u8> {
        let mut request = Message::default();
        request.message(1, |resource_spans| {
            resource_spans.message(1, |resource| self.resource(resource));
            resource_spans.message(2, |scope_spans| {
                if self.config.instrumentation_scope {
                    scope_spans.message(1, |scope| {
                        scope.bytes(1, b"attache");
                        scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
                    });
                }
                for span in spans {
                    scope_spans.message(2, |out| write(span, out));
                }
            });
        });
        request.into_bytes()
    }
}

fn write(span: &Span, out: &mut Message) {
    let context = &span.context;
    out.bytes(1, &context.trace_id.to_be_bytes());
    out.bytes(2, &context.span_id.to_be_bytes());
    out.bytes(3, context.tracestate.as_bytes());
    if let Some(parent) = context.parent_id {
        out.bytes(4, &parent.to_be_bytes());
    }
    out.bytes(5, span.name.as_bytes());
    let kind = match context.kind {
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    };
    out.varint(6, kind);
    out.fixed64(7, nanos(span.start));
    out.fixed64(8, nanos(span.end));
    for (index, (name, value)) in span.tags.iter().enumerate() {
        // Attributes' names are distinct: the last one set holds.
        if !span.tags.iter().skip(index + 1).any(|(later, _)| later == name) {
            attribute(out, 9, name, value);
        }
    }
    for (at, what) in &span.annotations {
        out.message(11, |event| {
            event.fixed64(1, nanos(*at));
            event.bytes(2, what.as_bytes());
        });
    }
    if failed(span) {
        out.message(15, |status| status.varint(3, ERROR));
    }
    let mut flags = HAS_IS_REMOTE | u32::from(context.sampled);
    if context.remote_parent {
        flags |= IS_REMOTE;
    }
    out.fixed32(16, flags);
}

/// OpenTelemetry's conventions: a server fails by its own fault alone, a client by any.
fn failed(span: &Span) -> bool {
    let server = span.context.kind == SpanKind::Server;
    let least = if server { 500 } else { 400 };
    span.status.is_some_and(|code| code >= least)
        || span.grpc_status.is_some_and(|status| {
            if server {
                is_server_error(status)
            } else {
                status != 0
            }
        })
}

/// A `KeyValue` of text; its value is there even where it is empty.
fn attribute(out: &mut Message, field: u32, key: &str, value: &str) {
    out.message(field, |pair| {
        pair.bytes(1, key.as_bytes());
        pair.message(2, |any| any.text(1, value));
    });
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::http::TracingProvider;
    use crate::telemetry::trace::testing::{self, wire};

    fn writer(change: impl FnOnce(&mut OpenTelemetryTracer)) -> OtlpWriter {
        let TracingProvider::OpenTelemetry(mut config) = testing::open_telemetry() else {
            panic!("OpenTelemetry")
        };
        change(&mut config);
        OtlpWriter::new(config)
    }

    /// A `KeyValue` as text.
    fn pair(bytes: &[u8]) -> String {
        let fields = wire(bytes);
        let value = wire(&fields[1].1);
        assert_eq!(value[0].0, 1, "text");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        format!("{}={}", text(&fields[0].1), text(&value[0].1))
    }

    fn only(span: &Span) -> Vec<(u32, Vec<u8>)> {
        let request = wire(&writer(|_| {}).write(std::slice::from_ref(span)));
        let resource_spans = wire(&request[0].1);
        let scope_spans = wire(&resource_spans[1].1);
        wire(&scope_spans[1].1)
    }

    /// In the shape of what a real Envoy sent.
    #[test]
    fn a_span_is_opentelemetrys() {
        let start = UNIX_EPOCH + Duration::from_nanos(1_795_461_402_902_635_001);
        let mut span = testing::span(start);
        span.context.remote_parent = true;
        span.context.tracestate = "a=b".to_owned();
        span.tag("zone", "");
        span.tag("component", "proxy");
        span.tag("component", "other");
        span.annotate(start, "event");
        span.status = Some(503);
        let fields = only(&span);
        let numbers: Vec<u32> = fields.iter().map(|(field, _)| *field).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 11, 15, 16]);
        assert_eq!(fields[0].1, testing::TRACE.to_be_bytes());
        assert_eq!(fields[2].1, b"a=b");
        assert_eq!(fields[5].1, [2], "a server");
        assert_eq!(fields[6].1, 1_795_461_402_902_635_001_u64.to_le_bytes());
        assert_eq!(pair(&fields[8].1), "zone=");
        assert_eq!(pair(&fields[9].1), "component=other");
        assert_eq!(wire(&fields[11].1), [(3, vec![2])]);
        assert_eq!(fields[12].1, 0x301_u32.to_le_bytes());
    }

    #[test]
    fn servers_and_clients_fail_differently() {
        let mut span = testing::span(UNIX_EPOCH);
        for (client, status, grpc, error) in [
            (false, Some(404), None, false),
            (true, Some(404), None, true),
            (false, Some(500), None, true),
            (false, Some(200), Some(7), false),
            (true, Some(200), Some(7), true),
            (false, Some(200), Some(14), true),
            (true, Some(200), Some(0), false),
            (true, None, None, false),
        ] {
            span.context.kind = if client {
                SpanKind::Client
            } else {
                SpanKind::Server
            };
            (span.status, span.grpc_status) = (status, grpc);
            let shown = only(&span).iter().any(|(field, _)| *field == 15);
            assert_eq!(shown, error, "{client} {status:?} {grpc:?}");
        }
    }

    #[test]
    fn the_resource_says_who() {
        let resource = |writer: &OtlpWriter| {
            let request = wire(&writer.write(&[]));
            let resource_spans = wire(&request[0].1);
            let pairs: Vec<String> = wire(&resource_spans[0].1)
                .iter()
                .map(|(_, bytes)| pair(bytes))
                .collect();
            (pairs, wire(&resource_spans[1].1).len())
        };
        let (pairs, scopes) = resource(&writer(|_| {}));
        assert_eq!((pairs.len(), scopes), (4, 1));
        assert_eq!(pairs[3], "service.name=web");
        let (pairs, scopes) = resource(&writer(|config| {
            config.sdk_attributes = false;
            config.instrumentation_scope = false;
            config.service_name = "".into();
        }));
        assert_eq!(
            (pairs, scopes),
            (vec!["service.name=unknown_service:envoy".to_owned()], 0)
        );
    }
}
