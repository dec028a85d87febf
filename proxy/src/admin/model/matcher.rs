//! Matchers, as Envoy's.

use serde_json::{Value, json};

use super::{list, message, unless_default};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::matcher::{
    Cidr, HeaderCheck, HeaderMatcher, MetadataMatcher, StringMatcher, StringPattern,
};

pub(super) fn string(matcher: &StringMatcher) -> Value {
    let (kind, value) = match &matcher.pattern {
        StringPattern::Exact(text) => ("exact", json!(&**text)),
        StringPattern::Prefix(text) => ("prefix", json!(&**text)),
        StringPattern::Suffix(text) => ("suffix", json!(&**text)),
        StringPattern::Contains(text) => ("contains", json!(&**text)),
        StringPattern::Regex(regex) => ("safe_regex", json!({ "regex": regex.as_str() })),
    };
    message([
        (kind, value),
        ("ignore_case", unless_default(matcher.ignore_case)),
    ])
}

pub(super) fn header(matcher: &HeaderMatcher) -> Value {
    let (kind, value) = match &matcher.check {
        HeaderCheck::Present(present) => ("present_match", json!(present)),
        HeaderCheck::Value(value) => ("string_match", string(value)),
        HeaderCheck::Range(start, end) => (
            "range_match",
            // 64-bit numbers are texts in proto3 JSON.
            json!({ "start": start.to_string(), "end": end.to_string() }),
        ),
    };
    message([
        ("name", json!(&*matcher.name)),
        (kind, value),
        ("invert_match", unless_default(matcher.invert)),
        (
            "treat_missing_header_as_empty",
            unless_default(matcher.missing_as_empty),
        ),
    ])
}

pub(super) fn metadata(matcher: &MetadataMatcher) -> Value {
    message([
        ("filter", json!(&*matcher.filter)),
        (
            "path",
            list(matcher.path.iter().map(|key| json!({ "key": &**key })).collect()),
        ),
        ("value", json!({ "string_match": string(&matcher.value) })),
        ("invert", unless_default(matcher.invert)),
    ])
}

pub(super) fn cidr(range: &Cidr) -> Value {
    let text = range.to_string();
    let address = text.split_once('/').map_or(&*text, |(address, _)| address);
    json!({ "address_prefix": address, "prefix_len": range.length() })
}

/// Null where every connection matches.
pub(super) fn filter_chain(matches: &FilterChainMatch) -> Value {
    let texts = |texts: &[std::sync::Arc<str>]| list(texts.iter().map(|text| json!(&**text)).collect());
    let protocol = |tls| if tls { "tls" } else { "raw_buffer" };
    let source = |local| if local { "SAME_IP_OR_LOOPBACK" } else { "EXTERNAL" };
    let ranges = |ranges: &[Cidr]| list(ranges.iter().map(cidr).collect());
    let matches = message([
        ("destination_port", json!(matches.destination_port)),
        ("prefix_ranges", ranges(&matches.prefix_ranges)),
        ("server_names", texts(&matches.server_names)),
        (
            "transport_protocol",
            json!(matches.transport_protocol.map(protocol)),
        ),
        ("application_protocols", texts(&matches.application_protocols)),
        ("source_type", json!(matches.source_is_local.map(source))),
        ("source_prefix_ranges", ranges(&matches.source_prefix_ranges)),
        (
            "source_ports",
            list(matches.source_ports.iter().map(|port| json!(port)).collect()),
        ),
    ]);
    match matches.as_object() {
        Some(fields) if fields.is_empty() => Value::Null,
        _ => matches,
    }
}
