//! Changes of headers that route tables, virtual hosts, routes and weighted clusters ask for, in Envoy's order.
//!
//! At each place removals come first. Then all values are made, of the headers as they are by then; then what
//! overwrites is set, and what is added is added. Owns nothing; a value without operators is not copied.

use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::forwarding::joined;
use crate::model::header_value::{HeaderAppendAction, HeaderFormat, HeaderValueOption};
use crate::model::route::{ClusterWeight, HeaderMutations, Route, RouteConfiguration, VirtualHost};
use crate::telemetry::access_log::{Record, RecordKind, RequestFacts, render};

/// The places whose changes a request and its response have.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The route table.
    pub table: &'a RouteConfiguration,
    /// The virtual host.
    pub virtual_host: &'a VirtualHost,
    /// The route.
    pub route: &'a Route,
    /// The weighted cluster chosen; none where the route names one cluster.
    pub cluster: Option<&'a ClusterWeight>,
}

/// Which headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request's, without `:path` and its like.
    Request,
    /// A response's, without `:status`.
    Response,
}

/// Headers of which Envoy holds one at most in requests: what is appended is joined to it by a comma.
/// Measured, but for those that it takes away again before it sends them.
const JOINED_IN_REQUESTS: [&str; 51] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "proxy-status",
    "referer",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-upstream-alt-stat-name",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

/// Headers of which Envoy holds one at most in responses.
const JOINED_IN_RESPONSES: [&str; 37] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-allow-private-network",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "etag",
    "expires",
    "grpc-message",
    "grpc-status",
    "keep-alive",
    "last-modified",
    "location",
    "proxy-connection",
    "proxy-status",
    "server",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-service-time",
    "x-request-id",
];

impl Places<'_> {
    /// Whether none of them changes anything.
    pub fn is_empty(&self) -> bool {
        self.in_order()
            .into_iter()
            .flatten()
            .all(HeaderMutations::is_empty)
    }

    /// In the order in which Envoy makes their changes: the weighted cluster first, always; then from the
    /// route to the table, or the other way round, so that the last one wins.
    fn in_order(&self) -> [Option<&HeaderMutations>; 4] {
        let mut others = [
            Some(&self.route.headers),
            Some(&self.virtual_host.headers),
            Some(&self.table.headers),
        ];
        if self.table.most_specific_header_mutations_wins {
            others.reverse();
        }
        let [first, second, third] = others;
        [self.cluster.map(|cluster| &cluster.headers), first, second, third]
    }
}

/// Changes a request's headers, before its path and host are rewritten. `facts` are those of the request by
/// then; their `request_headers` are these headers, whatever they say.
pub fn mutate_request(headers: &mut HeaderMap, places: &Places<'_>, facts: &RequestFacts<'_>) {
    for mutations in places.in_order().into_iter().flatten() {
        let (remove, add) = (&mutations.request_remove, &mutations.request_add);
        remove.iter().for_each(|name| drop(headers.remove(&**name)));
        apply(headers, Side::Request, add, facts);
    }
}

/// Changes a response's headers: the upstream's, or those of an answer of our own that a route has. `facts`
/// are those of the request by then; their `response_headers` are these headers, whatever they say.
pub fn mutate_response(headers: &mut HeaderMap, places: &Places<'_>, facts: &RequestFacts<'_>) {
    for mutations in places.in_order().into_iter().flatten() {
        let (remove, add) = (&mutations.response_remove, &mutations.response_add);
        remove.iter().for_each(|name| drop(headers.remove(&**name)));
        apply(headers, Side::Response, add, facts);
    }
}

/// Adds headers. A value that no header can have is left out (Envoy sends it as it is, or fails).
pub fn apply(headers: &mut HeaderMap, side: Side, options: &[HeaderValueOption], facts: &RequestFacts<'_>) {
    if options.is_empty() {
        return;
    }
    // All are made before the first is added: none sees another of the same place.
    let values = values(headers, side, options, facts);
    let overwrites = |option: &HeaderValueOption| match option.append {
        HeaderAppendAction::OverwriteIfExistsOrAdd | HeaderAppendAction::OverwriteIfExists => true,
        HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::AddIfAbsent => false,
    };
    let (overwriting, adding): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|(option, _)| overwrites(option));
    for (option, value) in overwriting {
        headers.insert(option.name.clone(), value);
    }
    for (option, value) in adding {
        append(headers, side, &option.name, value);
    }
}

/// The headers that are to be there, with their values.
fn values<'o>(
    headers: &HeaderMap,
    side: Side,
    options: &'o [HeaderValueOption],
    facts: &RequestFacts<'_>,
) -> Vec<(&'o HeaderValueOption, HeaderValue)> {
    let facts = match side {
        Side::Request => RequestFacts {
            request_headers: Some(headers),
            ..*facts
        },
        Side::Response => RequestFacts {
            response_headers: Some(headers),
            ..*facts
        },
    };
    let mut record: Option<Record<'_>> = None;
    let mut values = Vec::with_capacity(options.len());
    for option in options {
        let wanted = match option.append {
            HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::OverwriteIfExistsOrAdd => true,
            HeaderAppendAction::AddIfAbsent => !headers.contains_key(&option.name),
            HeaderAppendAction::OverwriteIfExists => headers.contains_key(&option.name),
        };
        if !wanted {
            continue;
        }
        let value = match &option.value {
            HeaderFormat::Literal(value) => Some(value.clone()),
            HeaderFormat::Operators(template) => {
                let record = record.get_or_insert_with(|| facts.record(RecordKind::NotSet));
                HeaderValue::from_maybe_shared(Bytes::from(render::header(template, record))).ok()
            }
        };
        if let Some(value) = value.filter(|value| option.keep_empty_value || !value.is_empty()) {
            values.push((option, value));
        }
    }
    values
}

/// Makes one header of those that came several times and of which Envoy holds one at most; empty ones add nothing.
pub(super) fn join(headers: &mut HeaderMap, side: Side) {
    if headers.len() == headers.keys_len() {
        return;
    }
    let known: &[&str] = match side {
        Side::Request => &JOINED_IN_REQUESTS,
        Side::Response => &JOINED_IN_RESPONSES,
    };
    let several =
        |name: &&HeaderName| known.contains(&name.as_str()) && headers.get_all(*name).iter().nth(1).is_some();
    let several: Vec<HeaderName> = headers.keys().filter(several).cloned().collect();
    for name in several {
        let all = joined(headers, &name).unwrap_or_default();
        // Of parts that are values, with commas between.
        if let Ok(all) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
            headers.insert(name, all);
        }
    }
}

fn append(headers: &mut HeaderMap, side: Side, name: &HeaderName, value: HeaderValue) {
    let joined: &[&str] = match side {
        Side::Request => &JOINED_IN_REQUESTS,
        Side::Response => &JOINED_IN_RESPONSES,
    };
    let is_there = headers.get(name).is_some_and(|there| !there.is_empty());
    if !is_there || !joined.contains(&name.as_str()) {
        headers.append(name.clone(), value);
        return;
    }
    let mut all = Vec::new();
    for part in headers.get_all(name).iter().chain([&value]) {
        if !all.is_empty() {
            all.push(b',');
        }
        all.extend_from_slice(part.as_bytes());
    }
    // Of parts that are values, with commas between.
    if let Ok(all) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        headers.insert(name.clone(), all);
    }
}

#[cfg(test)]
mod tests;
