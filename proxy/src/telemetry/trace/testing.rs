//! Providers and a span for tests.

use std::time::{Duration, SystemTime};

use super::context::{Direction, TraceContext};
use super::propagation::Extracted;
use super::span::Span;
use crate::model::http::{
    CollectorHeaders, OpenTelemetryTracer, TracerTarget, TracingProvider, Zipkin, ZipkinFormat,
};

/// A trace ID of 128 bits.
pub(super) const TRACE: u128 = 0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7;

/// Zipkin with Envoy's defaults, and W3C's header beside B3 where `w3c` is set.
pub(super) fn zipkin(w3c: bool) -> TracingProvider {
    zipkin_with(|zipkin| zipkin.w3c_propagation = w3c)
}

/// Zipkin with Envoy's defaults, changed.
pub(super) fn zipkin_with(change: impl FnOnce(&mut Zipkin)) -> TracingProvider {
    let mut zipkin = Zipkin {
        collector_cluster: "collector".into(),
        collector_endpoint: "/api/v2/spans".into(),
        collector_hostname: "".into(),
        format: ZipkinFormat::Json,
        trace_id_128bit: false,
        shared_span_context: true,
        split_spans_for_request: false,
        w3c_propagation: false,
    };
    change(&mut zipkin);
    TracingProvider::Zipkin(zipkin)
}

/// OpenTelemetry with Envoy's defaults.
pub(super) fn open_telemetry() -> TracingProvider {
    TracingProvider::OpenTelemetry(OpenTelemetryTracer {
        target: Some(TracerTarget::Grpc {
            cluster: "collector".into(),
        }),
        headers: CollectorHeaders::default(),
        service_name: "web".into(),
        max_cache_size: 1024,
        sdk_attributes: true,
        service_name_attribute: true,
        instrumentation_scope: true,
    })
}

/// A sampled span of a server that ends after 1.5 ms.
pub(super) fn span(start: SystemTime) -> Span {
    let nothing = Extracted::None {
        sampled: None,
        single: false,
    };
    let context = TraceContext::begin(&zipkin(false), Direction::Ingress, true, false, nothing);
    let mut span = Span::new(context.unwrap(), "web:80".to_owned(), start);
    span.context.trace_id = TRACE;
    span.context.span_id = 0xe457_b5a2_e4d8_6bd1;
    span.context.parent_id = Some(0x05e3_ac9a_4f6e_3b90);
    span.finish(start + Duration::from_micros(1500));
    span
}

/// The fields of a protobuf message: numbers of variable length as their least bytes.
pub(super) fn wire(message: &[u8]) -> Vec<(u32, Vec<u8>)> {
    fn number(rest: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, after) = rest.split_first().unwrap();
            *rest = after;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = number(&mut rest);
        let length = match key & 7 {
            0 => {
                let value = number(&mut rest).to_le_bytes();
                let used = value.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                fields.push((u32::try_from(key >> 3).unwrap(), value[..used].to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => usize::try_from(number(&mut rest)).unwrap(),
        };
        let (value, after) = rest.split_at(length);
        fields.push((u32::try_from(key >> 3).unwrap(), value.to_vec()));
        rest = after;
    }
    fields
}
