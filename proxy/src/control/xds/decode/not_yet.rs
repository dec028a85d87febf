//! What of HTTP decodes into the model but cannot run yet: until it can, a listener with it is refused by name.

use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::http::Forwarding;
use crate::model::http::{
    Codec, ForwardClientCertMode, HttpConnectionManager, HttpFilter, Normalization, Routes,
};
use crate::model::route::{
    ClusterSpecifier, HeaderMutations, HostRewrite, IdleTimeout, Route, RouteConfiguration, RouteDecision,
};
use crate::model::{FilterChain, Terminal};

/// Refuses a chain that cannot run yet, and notes what of one that can has no effect yet.
///
/// # Errors
/// Says what about it.
pub(super) fn check(
    chain: &FilterChain,
    outbound: bool,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(), DecodeError> {
    let Terminal::HttpConnectionManager(manager) = &chain.terminal else {
        return Ok(());
    };
    let prefix = &manager.stat_prefix;
    if let Some(what) = not_yet(manager, outbound) {
        let why = "is not supported yet";
        return Err(at.refuse(format!(
            "have the HttpConnectionManager {prefix:?} with {what}, which {why}: services whose protocol is http, http2 or grpc need Envoy as yet, or the protocol tcp"
        )));
    }
    if !manager.upgrade_types.is_empty() {
        let what = format!("have upgrade_configs ({prefix:?}): upgrades are answered with 403 as yet");
        ctx.notice(at, &what);
    }
    if !manager.access_log.is_empty() {
        let what = format!("have an access_log for requests ({prefix:?}), which is not written as yet");
        ctx.notice(at, &what);
    }
    Ok(())
}

/// Why a connection manager cannot run yet; `None` if it can. Upgrades are not among it, because Consul allows
/// `websocket` everywhere: they are answered with 403.
fn not_yet(manager: &HttpConnectionManager, outbound: bool) -> Option<String> {
    let first = |reasons: &[(bool, &str)]| {
        let reason = reasons.iter().find(|(is, _)| *is);
        reason.map(|(_, what)| (*what).to_owned())
    };
    let limits = &manager.limits;
    let of_manager = first(&[
        (outbound, "requests to an upstream"),
        (!manager.otel_access_log.is_empty(), "an OpenTelemetry access log"),
        (manager.codec == Codec::Http2 || manager.http2.is_some(), "HTTP/2"),
        (
            manager.forward_client_cert.mode != ForwardClientCertMode::Sanitize,
            "forward_client_cert_details",
        ),
        (
            manager.normalization != Normalization::default(),
            "a normalization of paths or headers",
        ),
        (
            manager.forwarding != Forwarding::default(),
            "addresses or hops of its own to tell or believe",
        ),
        (limits.request_timeout.is_some(), "request_timeout"),
        (
            limits.max_requests_per_connection.is_some(),
            "max_requests_per_connection",
        ),
        (
            limits.max_connection_duration.is_some(),
            "max_connection_duration",
        ),
        (limits.max_stream_duration.is_some(), "max_stream_duration"),
        (
            manager.request_id.always_in_response,
            "always_set_request_id_in_response",
        ),
        (
            manager
                .tracing
                .as_ref()
                .is_some_and(|tracing| tracing.provider.is_some()),
            "a tracing provider",
        ),
        (manager.proxy_100_continue, "proxy_100_continue"),
        (manager.suppress_envoy_headers, "suppress_envoy_headers"),
    ]);
    let of_filters = || {
        manager
            .http_filters
            .first()
            .map(|filter| format!("the filter {}", name(filter)))
    };
    let of_routes = || match &manager.routes {
        Routes::Rds(name) => Some(format!("the routes {name:?} by RDS")),
        Routes::Inline(table) => routes(table),
    };
    of_manager.or_else(of_filters).or_else(of_routes)
}

fn name(filter: &HttpFilter) -> &'static str {
    match filter {
        HttpFilter::Rbac { .. } => "envoy.filters.http.rbac",
        HttpFilter::JwtAuthn(_) => "envoy.filters.http.jwt_authn",
        HttpFilter::HeaderToMetadata(_) => "envoy.filters.http.header_to_metadata",
        HttpFilter::GrpcStats(_) => "envoy.filters.http.grpc_stats",
        HttpFilter::GrpcHttp1Bridge => "envoy.filters.http.grpc_http1_bridge",
        HttpFilter::LocalRateLimit(_) => "envoy.filters.http.local_ratelimit",
    }
}

fn routes(table: &RouteConfiguration) -> Option<String> {
    if mutates(&table.headers) {
        return Some("changes of headers".to_owned());
    }
    table.virtual_hosts().iter().find_map(|host| {
        let of_host = [
            (mutates(&host.headers), "changes of headers"),
            (host.retry_policy.is_some(), "a retry policy"),
            (
                host.include_request_attempt_count || host.include_attempt_count_in_response,
                "a count of attempts",
            ),
        ];
        let of_host = of_host.iter().find(|(is, _)| *is).map(|(_, what)| *what);
        let what = of_host.or_else(|| host.routes.iter().find_map(|route| self::route(route)))?;
        Some(format!("{what} (virtual host {:?})", host.name))
    })
}

fn route(route: &Route) -> Option<&'static str> {
    if mutates(&route.headers) {
        return Some("changes of headers");
    }
    let action = match &route.action {
        RouteDecision::DirectResponse(_) => return None,
        RouteDecision::Redirect(_) => return Some("a redirect"),
        RouteDecision::Route(action) => action,
    };
    let weighted = match &action.cluster {
        ClusterSpecifier::Cluster(_) => false,
        ClusterSpecifier::Weighted(clusters) => clusters.iter().any(|cluster| mutates(&cluster.headers)),
    };
    [
        (weighted, "changes of headers"),
        (
            matches!(action.host_rewrite, Some(HostRewrite::Auto)),
            "auto_host_rewrite",
        ),
        (action.append_x_forwarded_host, "append_x_forwarded_host"),
        (
            action.idle_timeout != IdleTimeout::Inherited,
            "an idle_timeout of a route",
        ),
        (action.retry_policy.is_some(), "a retry policy"),
        (!action.hash_policy.is_empty(), "a hash policy"),
    ]
    .iter()
    .find(|(is, _)| *is)
    .map(|(_, what)| *what)
}

fn mutates(headers: &HeaderMutations) -> bool {
    !headers.is_empty()
}
