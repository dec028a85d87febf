//! The connection manager that Consul's xDS server writes for a service's protocol.
//!
//! Pure. Owns what every listener of HTTP has in common; its routes and its rules come from elsewhere.

use std::sync::{Arc, OnceLock};

use super::compile::Parts;
use super::registration::Registration;
use crate::model::Name;
use crate::model::cluster::HttpProtocol;
use crate::model::http::{
    GrpcStats, HeaderToMetadata, HeaderToMetadataRule, Http2Options, HttpConnectionManager, HttpFilter,
    MetadataEntry, MetadataKind, MetadataSource, MetadataValue, Routes, Sampling, Tracing,
};
use crate::model::rewrite::RegexRewrite;
use crate::model::route::{
    Domain, HeaderMutations, PathMatch, Route, RouteAction, RouteConfiguration, RouteDecision, RouteMatch,
    VirtualHost,
};

/// Envoy's own bound of `max_request_headers_kb`.
const MAX_HEADERS_KB: u64 = 8192;
/// Envoy's default of `max_path_tag_length`.
const MAX_PATH_TAG_LENGTH: u32 = 256;

/// A protocol of which Consul looks at requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Http2,
    Grpc,
}

impl Protocol {
    /// `None` for everything that Consul takes for TCP.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "http" => Some(Self::Http),
            "http2" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }

    /// What the public listener offers (ALPN).
    pub(super) fn alpn(self) -> Vec<Arc<str>> {
        match self {
            Self::Http => vec!["http/1.1".into()],
            Self::Http2 | Self::Grpc => vec!["h2".into(), "http/1.1".into()],
        }
    }

    /// How a service of the mesh is spoken to.
    pub(super) fn of_upstream(self) -> HttpProtocol {
        match self {
            Self::Http => HttpProtocol::Http1,
            Self::Http2 | Self::Grpc => HttpProtocol::Http2,
        }
    }

    /// How the local service is spoken to.
    pub(super) fn of_local_app(self) -> HttpProtocol {
        match self {
            Self::Http => HttpProtocol::Http1,
            Self::Http2 | Self::Grpc => HttpProtocol::Downstream,
        }
    }
}

/// A connection manager without rules.
pub(super) fn manager(
    protocol: Protocol,
    stat_prefix: Name,
    routes: Routes,
    max_request_headers_kb: Option<u32>,
) -> HttpConnectionManager {
    let mut manager = HttpConnectionManager::new(stat_prefix, routes);
    manager.upgrade_types = vec!["websocket".into()];
    manager.tracing = Some(Arc::new(tracing()));
    if protocol != Protocol::Http {
        manager.http2 = Some(Http2Options::default());
    }
    if protocol == Protocol::Grpc {
        manager.http_filters = vec![
            HttpFilter::GrpcStats(GrpcStats {
                stats_for_all_methods: true,
                ..GrpcStats::default()
            }),
            HttpFilter::GrpcHttp1Bridge,
        ];
    }
    if let Some(kb) = max_request_headers_kb {
        manager.limits.max_request_headers_kb = kb;
    }
    manager
}

/// Makes no span on its own account: only for requests that bring a context which asks for it.
fn tracing() -> Tracing {
    Tracing {
        client_sampling: Sampling::ALL,
        random_sampling: Sampling::from_percent(0.0).unwrap_or(Sampling::ALL),
        overall_sampling: Sampling::ALL,
        verbose: false,
        max_path_tag_length: MAX_PATH_TAG_LENGTH,
        custom_tags: Vec::new(),
        provider: None,
        spawn_upstream_span: false,
        no_context_propagation: false,
    }
}

/// What Consul takes out of `x-forwarded-client-cert`, for log lines and whoever else looks at metadata.
///
/// # Errors
/// None that is known; says why the expression is none.
pub(super) fn caller_to_metadata() -> Result<Arc<HeaderToMetadata>, String> {
    // The same for every listener, and its expressions are compiled once.
    static FILTER: OnceLock<Result<Arc<HeaderToMetadata>, String>> = OnceLock::new();
    FILTER
        .get_or_init(|| make_caller_to_metadata().map(Arc::new))
        .clone()
}

fn make_caller_to_metadata() -> Result<HeaderToMetadata, String> {
    let part = "[^/]+";
    let caller =
        format!(".*URI=spiffe://({part}.{part})(?:/ap/({part}))?/ns/({part})/dc/({part})/svc/([^/;,]+).*");
    let keys = ["trust-domain", "partition", "namespace", "datacenter", "service"];
    let mut request_rules = Vec::with_capacity(keys.len());
    for (index, key) in keys.into_iter().enumerate() {
        let rewrite = RegexRewrite::new(&caller, &format!("\\{}", index + 1));
        request_rules.push(HeaderToMetadataRule {
            source: MetadataSource::Header("x-forwarded-client-cert".into()),
            on_present: Some(MetadataEntry {
                namespace: "consul".into(),
                key: key.into(),
                value: MetadataValue::Rewritten(rewrite.map_err(|error| error.to_string())?),
                kind: MetadataKind::String,
                base64: false,
            }),
            on_missing: None,
            remove: false,
        });
    }
    Ok(HeaderToMetadata {
        request_rules,
        response_rules: Vec::new(),
    })
}

/// `max_request_headers_kb` of the proxy, for every listener of HTTP.
pub(super) fn max_request_headers_kb(registration: &Registration, parts: &mut Parts) -> Option<u32> {
    let written = registration.config.number("max_request_headers_kb");
    let mut refuse = |what: String| {
        let field = "Proxy.Config.max_request_headers_kb";
        parts.notices.insert(format!(
            "{field} is not honoured: {what} is no number up to {MAX_HEADERS_KB}"
        ));
        None
    };
    match written {
        Ok(None | Some(0)) => None,
        Ok(Some(kb)) => match u32::try_from(kb) {
            Ok(kb) if u64::from(kb) <= MAX_HEADERS_KB => Some(kb),
            _ => refuse(kb.to_string()),
        },
        Err(written) => refuse(written),
    }
}

/// A table of one route for every host.
///
/// # Errors
/// None that is known; says why the table is none.
pub(super) fn simple_table(
    name: Name,
    virtual_host: Name,
    path: PathMatch,
    action: RouteAction,
) -> Result<Arc<RouteConfiguration>, String> {
    let route = Route {
        name: "".into(),
        matches: RouteMatch::path(path),
        action: RouteDecision::Route(Box::new(action)),
        headers: HeaderMutations::default(),
    };
    table(name, virtual_host, vec![Arc::new(route)]).map(Arc::new)
}

/// A table of one virtual host for every host.
///
/// # Errors
/// None that is known; says why the table is none.
pub(super) fn table(
    name: Name,
    virtual_host: Name,
    routes: Vec<Arc<Route>>,
) -> Result<RouteConfiguration, String> {
    let host = VirtualHost {
        name: virtual_host,
        domains: vec![Domain::Any],
        headers: HeaderMutations::default(),
        routes,
        retry_policy: None,
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
    };
    RouteConfiguration::new(name, vec![Arc::new(host)]).map_err(|error| error.to_string())
}
