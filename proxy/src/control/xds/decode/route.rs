//! `route.v3.RouteConfiguration`: virtual hosts, routes and what they match; what is done with a request is in
//! `route_action`.

use std::sync::Arc;

use attache_proto::envoy::config::core::v3::{
    HeaderValueOption as WireHeader, header_value_option::HeaderAppendAction as WireAppend,
};
use attache_proto::envoy::config::route::v3::{
    QueryParameterMatcher as WireQueryParameter, Route as WireRoute, RouteConfiguration as Wire,
    RouteMatch as WireMatch, VirtualHost as WireHost,
    query_parameter_matcher::QueryParameterMatchSpecifier as QueryParameter, route_match::PathSpecifier,
};

use super::common::{enumeration, known_fields, need, parse, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{matcher, route_action};
use crate::model::header_value;
use crate::model::route::{
    Domain, HeaderAppendAction, HeaderMutations, HeaderValueError, HeaderValueOption, PathMatch,
    QueryParameterCheck, QueryParameterMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost,
};

/// Envoy's default of `max_direct_response_body_size_bytes`.
const MAX_DIRECT_RESPONSE: usize = 4096;

/// A route table as it came over the wire.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub fn decode_bytes(bytes: &[u8], ctx: &mut Context<'_>) -> Result<RouteConfiguration, DecodeError> {
    let table: Wire = parse(bytes, &At::resource("RouteConfiguration", ""))?;
    let at = At::resource("RouteConfiguration", &table.name);
    known_fields::<Wire>(bytes, &at, ctx)?;
    self::table(&table, &at, ctx)
}

/// A route table.
///
/// # Errors
/// Names the field that is invalid or not supported; a domain that is given twice.
pub(super) fn table(
    wire: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<RouteConfiguration, DecodeError> {
    unsupported(
        at,
        &[
            (!wire.internal_only_headers.is_empty(), "internal_only_headers"),
            (!wire.vhost_header.is_empty(), "vhost_header"),
            (
                wire.ignore_path_parameters_in_path_matching,
                "ignore_path_parameters_in_path_matching",
            ),
            (
                !wire.typed_per_filter_config.is_empty(),
                "typed_per_filter_config",
            ),
            (!wire.route_specifiers.is_empty(), "route_specifiers"),
        ],
    )?;
    without_effect(at, ctx, &[(wire.metadata.is_some(), "metadata")]);
    let max_body = wire
        .max_direct_response_body_size_bytes
        .map_or(MAX_DIRECT_RESPONSE, |max| {
            usize::try_from(max).unwrap_or(usize::MAX)
        });
    let hosts_at = at.field("virtual_hosts");
    let mut hosts = Vec::with_capacity(wire.virtual_hosts.len());
    for (index, host) in wire.virtual_hosts.iter().enumerate() {
        let host = virtual_host(host, max_body, &hosts_at.index(index), ctx)?;
        hosts.push(Arc::new(host));
    }
    let mut table = RouteConfiguration::new(wire.name.as_str().into(), hosts)
        .map_err(|error| hosts_at.refuse(format!("cannot be used: {error}")))?;
    table.headers = Mutations {
        request_add: &wire.request_headers_to_add,
        request_remove: &wire.request_headers_to_remove,
        response_add: &wire.response_headers_to_add,
        response_remove: &wire.response_headers_to_remove,
    }
    .decode(at)?;
    table.most_specific_header_mutations_wins = wire.most_specific_header_mutations_wins;
    table.validate_clusters = wire.validate_clusters == Some(true);
    table.ignore_port_in_host_matching = wire.ignore_port_in_host_matching;
    Ok(table)
}

fn virtual_host(
    wire: &WireHost,
    max_body: usize,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<VirtualHost, DecodeError> {
    unsupported(
        at,
        &[
            (wire.matcher.is_some(), "matcher"),
            (wire.require_tls != 0, "require_tls"),
            (
                !wire.typed_per_filter_config.is_empty(),
                "typed_per_filter_config",
            ),
            (
                wire.retry_policy_typed_config.is_some(),
                "retry_policy_typed_config",
            ),
            (!wire.route_specifiers.is_empty(), "route_specifiers"),
        ],
    )?;
    let buffer_limit = wire.per_request_buffer_limit_bytes.is_some();
    without_effect(
        at,
        ctx,
        &[
            (
                wire.include_is_timeout_retry_header,
                "include_is_timeout_retry_header",
            ),
            (buffer_limit, "per_request_buffer_limit_bytes"),
            (
                wire.request_body_buffer_limit.is_some(),
                "request_body_buffer_limit",
            ),
            (!wire.rate_limits.is_empty(), "rate_limits"),
            (wire.metadata.is_some(), "metadata"),
        ],
    );
    let domains_at = at.field("domains");
    if wire.domains.is_empty() {
        return Err(domains_at.refuse("is empty"));
    }
    let mut domains = Vec::with_capacity(wire.domains.len());
    for (index, domain) in wire.domains.iter().enumerate() {
        let domain = Domain::parse(domain);
        domains.push(domain.map_err(|error| domains_at.index(index).refuse(format!("is refused: {error}")))?);
    }
    let routes_at = at.field("routes");
    let mut routes = Vec::with_capacity(wire.routes.len());
    for (index, route) in wire.routes.iter().enumerate() {
        let route = self::route(route, max_body, &routes_at.index(index), ctx)?;
        routes.push(Arc::new(route));
    }
    Ok(VirtualHost {
        name: wire.name.as_str().into(),
        domains,
        headers: Mutations {
            request_add: &wire.request_headers_to_add,
            request_remove: &wire.request_headers_to_remove,
            response_add: &wire.response_headers_to_add,
            response_remove: &wire.response_headers_to_remove,
        }
        .decode(at)?,
        routes,
        retry_policy: match &wire.retry_policy {
            Some(policy) => Some(route_action::retry_policy(
                policy,
                &at.field("retry_policy"),
                ctx,
            )?),
            None => None,
        },
        include_request_attempt_count: wire.include_request_attempt_count,
        include_attempt_count_in_response: wire.include_attempt_count_in_response,
    })
}

fn route(
    wire: &WireRoute,
    max_body: usize,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Route, DecodeError> {
    unsupported(
        at,
        &[
            (
                !wire.typed_per_filter_config.is_empty(),
                "typed_per_filter_config",
            ),
            (!wire.route_specifiers.is_empty(), "route_specifiers"),
        ],
    )?;
    let buffer_limit = wire.per_request_buffer_limit_bytes.is_some();
    without_effect(
        at,
        ctx,
        &[
            (wire.metadata.is_some(), "metadata"),
            (wire.decorator.is_some(), "decorator"),
            (wire.tracing.is_some(), "tracing"),
            (buffer_limit, "per_request_buffer_limit_bytes"),
            (
                wire.request_body_buffer_limit.is_some(),
                "request_body_buffer_limit",
            ),
            (!wire.stat_prefix.is_empty(), "stat_prefix"),
        ],
    );
    let match_at = at.field("match");
    let matches = wire
        .r#match
        .as_ref()
        .ok_or_else(|| match_at.refuse("is missing"))?;
    Ok(Route {
        name: wire.name.as_str().into(),
        matches: route_match(matches, &match_at)?,
        action: route_action::decode(wire.action.as_ref(), max_body, at, ctx)?,
        headers: Mutations {
            request_add: &wire.request_headers_to_add,
            request_remove: &wire.request_headers_to_remove,
            response_add: &wire.response_headers_to_add,
            response_remove: &wire.response_headers_to_remove,
        }
        .decode(at)?,
    })
}

/// Which requests.
///
/// # Errors
/// Names the field that is invalid or not supported: without it more requests would match.
pub(super) fn route_match(wire: &WireMatch, at: &At<'_>) -> Result<RouteMatch, DecodeError> {
    unsupported(
        at,
        &[
            (wire.runtime_fraction.is_some(), "runtime_fraction"),
            (!wire.cookies.is_empty(), "cookies"),
            (wire.grpc.is_some(), "grpc"),
            (wire.tls_context.is_some(), "tls_context"),
            (!wire.dynamic_metadata.is_empty(), "dynamic_metadata"),
            (!wire.filter_state.is_empty(), "filter_state"),
        ],
    )?;
    let path = match &wire.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.as_str().into()),
        Some(PathSpecifier::Path(path)) => PathMatch::Path(path.as_str().into()),
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Regex(matcher::regex(regex, &at.field("safe_regex"))?)
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') {
                let why = "does not begin with a slash, or ends with one";
                return Err(at.field("path_separated_prefix").refuse(why));
            }
            PathMatch::PathSeparatedPrefix(prefix.as_str().into())
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return Err(at.field("connect_matcher").refuse("is not supported"));
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(at.field("path_match_policy").refuse("is not supported"));
        }
        None => return Err(at.refuse("has no path, prefix or safe_regex")),
    };
    let headers_at = at.field("headers");
    let headers = wire.headers.iter().enumerate();
    let query_at = at.field("query_parameters");
    let query_parameters = wire.query_parameters.iter().enumerate();
    Ok(RouteMatch {
        // An expression says itself what it takes.
        case_sensitive: wire.case_sensitive != Some(false) || matches!(path, PathMatch::Regex(_)),
        path,
        headers: headers
            .map(|(index, header)| matcher::header(header, &headers_at.index(index)))
            .collect::<Result<_, _>>()?,
        query_parameters: query_parameters
            .map(|(index, parameter)| query_parameter(parameter, &query_at.index(index)))
            .collect::<Result<_, _>>()?,
    })
}

fn query_parameter(wire: &WireQueryParameter, at: &At<'_>) -> Result<QueryParameterMatcher, DecodeError> {
    Ok(QueryParameterMatcher {
        name: need(&wire.name, &at.field("name"))?.into(),
        check: match &wire.query_parameter_match_specifier {
            Some(QueryParameter::StringMatch(value)) => {
                QueryParameterCheck::Value(matcher::string(value, &at.field("string_match"))?)
            }
            Some(QueryParameter::PresentMatch(present)) => QueryParameterCheck::Present(*present),
            None => QueryParameterCheck::Present(true),
        },
    })
}

/// The changes of headers at one place, of which there are several kinds of messages.
pub(super) struct Mutations<'a> {
    pub(super) request_add: &'a [WireHeader],
    pub(super) request_remove: &'a [String],
    pub(super) response_add: &'a [WireHeader],
    pub(super) response_remove: &'a [String],
}

impl Mutations<'_> {
    pub(super) fn decode(&self, at: &At<'_>) -> Result<HeaderMutations, DecodeError> {
        let add = |headers: &[WireHeader], at: At<'_>| {
            let headers = headers.iter().enumerate();
            headers
                .map(|(index, header)| header_value(header, &at.index(index)))
                .collect::<Result<Vec<_>, _>>()
        };
        let remove = |names: &[String], at: At<'_>| {
            let names = names.iter().enumerate();
            names
                .map(|(index, name)| removable(name, &at.index(index)))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(HeaderMutations {
            request_add: add(self.request_add, at.field("request_headers_to_add"))?,
            request_remove: remove(self.request_remove, at.field("request_headers_to_remove"))?,
            response_add: add(self.response_add, at.field("response_headers_to_add"))?,
            response_remove: remove(self.response_remove, at.field("response_headers_to_remove"))?,
        })
    }
}

/// A header that is added.
pub(super) fn header_value(wire: &WireHeader, at: &At<'_>) -> Result<HeaderValueOption, DecodeError> {
    let header_at = at.field("header");
    let header = wire
        .header
        .as_ref()
        .ok_or_else(|| header_at.refuse("is missing"))?;
    let raw = !header.raw_value.is_empty();
    unsupported(&header_at, &[(raw, "raw_value")])?;
    let action_at = at.field("append_action");
    let append = match (wire.append, enumeration(wire.append_action, &action_at)?) {
        (None | Some(true), WireAppend::AppendIfExistsOrAdd) => HeaderAppendAction::AppendIfExistsOrAdd,
        (Some(false), WireAppend::AppendIfExistsOrAdd) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        (Some(_), _) => return Err(action_at.refuse("is set beside append: choose one")),
        (None, WireAppend::AddIfAbsent) => HeaderAppendAction::AddIfAbsent,
        (None, WireAppend::OverwriteIfExistsOrAdd) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        (None, WireAppend::OverwriteIfExists) => HeaderAppendAction::OverwriteIfExists,
    };
    let mut option = HeaderValueOption::new(&header.key, &header.value, append).map_err(|error| {
        let field = match error {
            HeaderValueError::Name(_) | HeaderValueError::Unchangeable(_) => "key",
            HeaderValueError::Format(_) | HeaderValueError::Value => "value",
        };
        header_at.field(field).refuse(error.to_string())
    })?;
    option.keep_empty_value = wire.keep_empty_value;
    Ok(option)
}

/// The name of a header that may be removed.
fn removable(name: &str, at: &At<'_>) -> Result<Arc<str>, DecodeError> {
    let name = header_value::mutable(need(name, at)?).map_err(|error| at.refuse(error.to_string()))?;
    Ok(name.as_str().into())
}
