//! What only a request can tell.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::Value as Json;

use super::super::request::RequestFacts;
use super::{Value, millis, optional};
use crate::model::access_log::{
    DurationUnit, GrpcStatusFormat, Header, HeaderMap, MetadataOperator, Operator, PathOperator, PathSource,
    Span,
};

/// The fact of a request that no connection has.
pub(super) fn value<'a>(operator: &Operator, request: &'a RequestFacts<'a>) -> Value<'a> {
    use Operator as O;
    let (times, bytes) = (&request.times, &request.bytes);
    match operator {
        O::RequestDuration => optional_millis(times.request_end),
        O::RequestTxDuration => optional_millis(times.upstream_send_end),
        O::ResponseDuration => optional_millis(times.upstream_receive_begin),
        O::ResponseTxDuration => optional_millis(between(times.upstream_receive_begin, times.response_end)),
        O::CommonDuration(span) => common_duration(*span, request),
        O::PoolReadyDuration => optional_millis(request.pool_ready),
        O::DownstreamWireBytesReceived => Value::Number(bytes.downstream_wire_received),
        O::DownstreamWireBytesSent => Value::Number(bytes.downstream_wire_sent),
        O::DownstreamHeaderBytesReceived => Value::Number(bytes.downstream_header_received),
        O::DownstreamHeaderBytesSent => Value::Number(bytes.downstream_header_sent),
        O::UpstreamHeaderBytesReceived => Value::Number(bytes.upstream_header_received),
        O::UpstreamHeaderBytesSent => Value::Number(bytes.upstream_header_sent),
        O::RequestHeadersBytes => Value::Number(request.request_headers_bytes()),
        O::ResponseHeadersBytes => Value::Number(request.response_headers_bytes()),
        O::ResponseTrailersBytes => Value::Number(request.response_trailers_bytes()),
        O::ResponseCode => Value::Number(request.status.unwrap_or(0).into()),
        O::Protocol => optional(request.protocol),
        O::UpstreamProtocol => optional(request.upstream_protocol),
        O::GrpcStatus(format) => grpc_status(*format, request),
        O::Header(header) => field(header, request),
        O::RequestHeaderWithoutQuery(header) => match field(header, request) {
            Value::Bytes(value) => without_query(value, header.max_length),
            other => other,
        },
        O::Path(operator) => path(*operator, request),
        O::QueryParameter { name, max_length } => query_parameter(name, *max_length, request),
        O::Query(max_length) => match query(request) {
            None | Some("") => Value::Absent,
            Some(query) => Value::Bytes(cut(query.as_bytes().into(), *max_length)),
        },
        O::DynamicMetadata(operator) => metadata(operator, request),
        O::RouteName => optional(request.route_name),
        O::UpstreamConnectionId => Value::Number(request.upstream_connection_id),
        O::StreamId => optional(request.request_id),
        O::TraceId => optional(request.trace_id),
        O::SpanId => optional(request.span_id),
        _ => Value::Absent,
    }
}

fn optional_millis(duration: Option<Duration>) -> Value<'static> {
    duration.map_or(Value::Absent, millis)
}

/// None where one of them was not, or the second was first.
fn between(from: Option<Duration>, to: Option<Duration>) -> Option<Duration> {
    to?.checked_sub(from?)
}

fn common_duration(span: Span, request: &RequestFacts<'_>) -> Value<'static> {
    let Some(duration) = between(request.at(span.from), request.at(span.to)) else {
        return Value::Absent;
    };
    let number = match span.unit {
        DurationUnit::Millis => duration.as_millis(),
        DurationUnit::Micros => duration.as_micros(),
        DurationUnit::Nanos => duration.as_nanos(),
    };
    Value::Number(u64::try_from(number).unwrap_or(u64::MAX))
}

/// gRPC's status codes by their numbers, in both of Envoy's spellings.
const GRPC_STATUSES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc_status(format: GrpcStatusFormat, request: &RequestFacts<'_>) -> Value<'static> {
    let Some(status) = request.grpc_status().filter(|_| request.is_grpc()) else {
        return Value::Absent;
    };
    let known = usize::try_from(status)
        .ok()
        .and_then(|status| GRPC_STATUSES.get(status));
    match (format, known) {
        (GrpcStatusFormat::Number, _) => u64::try_from(status).map_or(Value::Negative(status), Value::Number),
        (GrpcStatusFormat::CamelString, Some((camel, _))) => Value::Text((*camel).into()),
        (GrpcStatusFormat::SnakeString, Some((_, snake))) => Value::Text((*snake).into()),
        (_, None) => Value::Text(status.to_string().into()),
    }
}

fn field<'a>(header: &Header, request: &'a RequestFacts<'a>) -> Value<'a> {
    let value = |name: &str| -> Option<Cow<'a, [u8]>> {
        let headers = match header.of {
            HeaderMap::Request => return request.request_header(name).map(Cow::Borrowed),
            HeaderMap::Response if name == ":status" => {
                return Some(request.status?.to_string().into_bytes().into());
            }
            HeaderMap::Response => request.response_headers,
            HeaderMap::Trailer => request.response_trailers,
        };
        Some(headers?.get(name)?.as_bytes().into())
    };
    let found = value(&header.name).or_else(|| value(header.alternative.as_deref()?));
    found.map_or(Value::Absent, |found| Value::Bytes(cut(found, header.max_length)))
}

/// The first bytes of a text: of a letter that does not fit, a part, as in Envoy.
fn cut(bytes: Cow<'_, [u8]>, max_length: Option<usize>) -> Cow<'_, [u8]> {
    match (max_length, bytes) {
        (Some(max), Cow::Borrowed(bytes)) => bytes.get(..max).unwrap_or(bytes).into(),
        (Some(max), Cow::Owned(mut bytes)) => {
            bytes.truncate(max);
            bytes.into()
        }
        (None, bytes) => bytes,
    }
}

fn without_query(value: Cow<'_, [u8]>, max_length: Option<usize>) -> Value<'_> {
    let end = value.iter().position(|byte| *byte == b'?');
    Value::Bytes(cut(cut(value, end), max_length))
}

fn path<'a>(operator: PathOperator, request: &'a RequestFacts<'a>) -> Value<'a> {
    let original = || request.request_header("x-envoy-original-path");
    let path = || request.path.map(str::as_bytes);
    let found = match operator.source {
        PathSource::Path => path(),
        PathSource::Original => original(),
        PathSource::OriginalOrPath => original().or_else(path),
    };
    match found {
        None => Value::Absent,
        Some(path) if operator.query => Value::Bytes(cut(path.into(), operator.max_length)),
        Some(path) => without_query(path.into(), operator.max_length),
    }
}

fn query<'a>(request: &RequestFacts<'a>) -> Option<&'a str> {
    Some(request.path?.split_once('?')?.1)
}

fn query_parameter<'a>(name: &str, max_length: Option<usize>, request: &RequestFacts<'a>) -> Value<'a> {
    let parameters = query(request).unwrap_or_default().split('&');
    let mut values = parameters.filter_map(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (*percent_decoded(key) == *name.as_bytes()).then(|| percent_decoded(value))
    });
    values
        .next()
        .map_or(Value::Absent, |value| Value::Bytes(cut(value, max_length)))
}

/// What is not percent-encoded stays as it is.
fn percent_decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return text.as_bytes().into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |byte: &u8| {
            char::from(*byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        match after {
            [high, low, left @ ..] if *first == b'%' => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    rest = left;
                    continue;
                }
                _ => out.push(*first),
            },
            _ => out.push(*first),
        }
        rest = after;
    }
    out.into()
}

fn metadata<'a>(operator: &MetadataOperator, request: &'a RequestFacts<'a>) -> Value<'a> {
    let Some(metadata) = request.metadata else {
        return Value::Absent;
    };
    if operator.path.is_empty() {
        return match metadata.of(&operator.filter) {
            None => Value::Absent,
            Some(all) => Value::Json(Cow::Owned(Json::Object(all.clone())), operator.max_length),
        };
    }
    match metadata.get(&operator.filter, &operator.path) {
        None | Some(Json::Null) => Value::Absent,
        Some(Json::String(text)) => Value::Bytes(cut(text.as_bytes().into(), operator.max_length)),
        Some(other) => Value::Json(Cow::Borrowed(other), operator.max_length),
    }
}
