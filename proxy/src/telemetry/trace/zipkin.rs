//! Spans as Zipkin takes them: version 2, in JSON or protobuf.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::context::hex_trace_id;
use super::protobuf::Message;
use super::reporter::Writer;
use super::span::{LocalService, Span, SpanKind};
use crate::model::http::ZipkinFormat;

/// Writes lists of spans.
#[derive(Clone, Debug)]
pub struct ZipkinWriter {
    format: ZipkinFormat,
    local: LocalService,
}

impl ZipkinWriter {
    /// Spans of `local`, in `format`.
    pub fn new(format: ZipkinFormat, local: LocalService) -> Self {
        Self { format, local }
    }

    fn json(&self, span: &Span) -> Value {
        let context = &span.context;
        let mut out = Map::new();
        out.insert("traceId".to_owned(), hex_trace_id(context.trace_id).into());
        if let Some(parent) = context.parent_id {
            out.insert("parentId".to_owned(), format!("{parent:016x}").into());
        }
        out.insert("id".to_owned(), format!("{:016x}", context.span_id).into());
        out.insert("name".to_owned(), span.name.as_str().into());
        out.insert("timestamp".to_owned(), micros(span.start).into());
        out.insert("duration".to_owned(), duration(span).into());
        if context.shared {
            out.insert("shared".to_owned(), true.into());
        }
        let kind = match context.kind {
            SpanKind::Server => "SERVER",
            SpanKind::Client => "CLIENT",
        };
        out.insert("kind".to_owned(), kind.into());
        let mut endpoint = json!({ "serviceName": self.local.cluster, "port": 0 });
        if let (Some(address), Value::Object(endpoint)) = (self.local.address, &mut endpoint) {
            let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
            endpoint.insert(family.to_owned(), address.to_string().into());
        }
        out.insert("localEndpoint".to_owned(), endpoint);
        let annotations: Vec<Value> = annotations(span)
            .map(|(at, value)| json!({ "timestamp": micros(at), "value": value }))
            .collect();
        out.insert("annotations".to_owned(), annotations.into());
        // A map: the last value of a name holds.
        let tags: Map<String, Value> = tags(span)
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        out.insert("tags".to_owned(), tags.into());
        out.into()
    }

    fn proto(&self, span: &Span, out: &mut Message) {
        let context = &span.context;
        let trace_id = context.trace_id.to_be_bytes();
        let narrow = context.trace_id >> 64 == 0;
        out.bytes(1, if narrow { &trace_id[8..] } else { &trace_id });
        if let Some(parent) = context.parent_id {
            out.bytes(2, &parent.to_be_bytes());
        }
        out.bytes(3, &context.span_id.to_be_bytes());
        let kind = match context.kind {
            SpanKind::Client => 1,
            SpanKind::Server => 2,
        };
        out.varint(4, kind);
        out.bytes(5, span.name.as_bytes());
        out.fixed64(6, micros(span.start));
        out.varint(7, duration(span));
        out.message(8, |endpoint| {
            endpoint.bytes(1, self.local.cluster.as_bytes());
            match self.local.address {
                Some(IpAddr::V4(address)) => endpoint.bytes(2, &address.octets()),
                Some(IpAddr::V6(address)) => endpoint.bytes(3, &address.octets()),
                None => {}
            }
        });
        for (at, value) in annotations(span) {
            out.message(10, |annotation| {
                annotation.fixed64(1, micros(at));
                annotation.bytes(2, value.as_bytes());
            });
        }
        for (name, value) in tags(span) {
            out.message(11, |tag| {
                tag.bytes(1, name.as_bytes());
                tag.bytes(2, value.as_bytes());
            });
        }
        out.varint(13, context.shared.into());
    }
}

impl Writer for ZipkinWriter {
    fn content_type(&self) -> &'static str {
        match self.format {
            ZipkinFormat::Json => "application/json",
            ZipkinFormat::Proto => "application/x-protobuf",
        }
    }

    fn write(&self, spans: &[Span]) -> Vec<u8> {
        match self.format {
            ZipkinFormat::Json => {
                let list: Vec<Value> = spans.iter().map(|span| self.json(span)).collect();
                Value::from(list).to_string().into_bytes()
            }
            ZipkinFormat::Proto => {
                let mut list = Message::default();
                for span in spans {
                    list.message(1, |message| self.proto(span, message));
                }
                list.into_bytes()
            }
        }
    }
}

/// What happened, and that the response was sent or received.
fn annotations(span: &Span) -> impl Iterator<Item = (SystemTime, &str)> {
    let end = match span.context.kind {
        SpanKind::Server => "ss",
        SpanKind::Client => "cr",
    };
    let noted = span.annotations.iter().map(|(at, what)| (*at, &**what));
    noted.chain(std::iter::once((span.end, end)))
}

/// Zipkin gets no empty tags.
fn tags(span: &Span) -> impl Iterator<Item = (&str, &str)> {
    let tags = span.tags.iter().map(|(name, value)| (&**name, value.as_str()));
    tags.filter(|(_, value)| !value.is_empty())
}

fn micros(at: SystemTime) -> u64 {
    whole_micros(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn duration(span: &Span) -> u64 {
    whole_micros(span.end.duration_since(span.start).unwrap_or_default())
}

fn whole_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::telemetry::trace::testing::{self, wire};

    fn local() -> LocalService {
        LocalService {
            cluster: "web".to_owned(),
            address: Some(Ipv4Addr::new(192, 0, 2, 2).into()),
            ..LocalService::default()
        }
    }

    fn span() -> Span {
        let start = UNIX_EPOCH + Duration::from_micros(1_795_461_405_237_644);
        let mut span = testing::span(start);
        span.annotate(start + Duration::from_micros(7), "first_upstream_tx_byte_sent");
        span.tag("zone", "");
        span.tag("component", "proxy");
        span.tag("component", "other");
        span
    }

    /// In the shape of what a real Envoy sent.
    #[test]
    fn json_is_zipkins() {
        let writer = ZipkinWriter::new(ZipkinFormat::Json, local());
        let written: Value = serde_json::from_slice(&writer.write(&[span()])).unwrap();
        assert_eq!(
            written,
            json!([{
                "traceId": "80f198ee56343ba864fe8b2a57d3eff7",
                "parentId": "05e3ac9a4f6e3b90",
                "id": "e457b5a2e4d86bd1",
                "name": "web:80",
                "timestamp": 1_795_461_405_237_644_u64,
                "duration": 1500,
                "shared": true,
                "kind": "SERVER",
                "localEndpoint": { "serviceName": "web", "port": 0, "ipv4": "192.0.2.2" },
                "annotations": [
                    { "timestamp": 1_795_461_405_237_651_u64, "value": "first_upstream_tx_byte_sent" },
                    { "timestamp": 1_795_461_405_239_144_u64, "value": "ss" },
                ],
                "tags": { "component": "other" },
            }])
        );
    }

    #[test]
    fn a_client_receives_and_shares_nothing() {
        let writer = ZipkinWriter::new(ZipkinFormat::Json, LocalService::default());
        let mut span = span();
        span.context = span.context.child();
        let written: Value = serde_json::from_slice(&writer.write(&[span])).unwrap();
        let span = &written[0];
        assert_eq!((&span["kind"], &span["shared"]), (&json!("CLIENT"), &Value::Null));
        assert_eq!(span["annotations"][1]["value"], "cr");
        assert_eq!(span["parentId"], "e457b5a2e4d86bd1");
        assert_eq!(span["localEndpoint"], json!({ "serviceName": "", "port": 0 }));
    }

    #[test]
    fn protobuf_is_zipkins() {
        let writer = ZipkinWriter::new(ZipkinFormat::Proto, local());
        let mut narrow = span();
        narrow.context.trace_id = 0xe457_b5a2_e4d8_6bd1;
        let written = writer.write(&[span(), narrow]);
        let list = wire(&written);
        assert_eq!(list.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 1]);
        let first = wire(&list[0].1);
        let fields: Vec<u32> = first.iter().map(|(field, _)| *field).collect();
        assert_eq!(fields, [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 11, 11, 13]);
        assert_eq!(first[0].1, testing::TRACE.to_be_bytes());
        assert_eq!(first[3].1, [2], "a server");
        assert_eq!(first[5].1, 1_795_461_405_237_644_u64.to_le_bytes());
        assert_eq!(first[6].1, 1500_u64.to_le_bytes()[..2].to_vec());
        assert_eq!(wire(&first[7].1)[1], (2, vec![192, 0, 2, 2]));
        assert_eq!(wire(&first[9].1)[1], (2, b"ss".to_vec()));
        assert_eq!(wire(&list[1].1)[0].1, 0xe457_b5a2_e4d8_6bd1_u64.to_be_bytes());
    }
}
