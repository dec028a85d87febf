//! Route tables (Envoy's `RouteConfiguration`, `VirtualHost`, `Route`): what is done with a request.
//!
//! Types, and the index of virtual hosts by domain; [`RouteConfiguration::find`] and the matching of one
//! route are in `route_match`.

use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::matcher::{HeaderMatcher, SafeRegex, StringMatcher};
use super::rewrite::RegexRewrite;
use super::route_match::DomainIndex;

pub use super::header_value::{HeaderAppendAction, HeaderFormat, HeaderValueError, HeaderValueOption};
pub use super::route_match::{Domain, DomainError};

/// Envoy's default for `RouteAction.timeout`.
pub const DEFAULT_ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// A route table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfiguration {
    /// Its RDS name; of an inline one, any.
    pub name: Name,
    /// Changes of headers of every request and response.
    pub headers: HeaderMutations,
    /// Whether changes of the most specific place (the route) are made last, so that they win. Envoy's
    /// default makes those of the table last.
    pub most_specific_header_mutations_wins: bool,
    /// Whether the table is refused while one of its clusters does not exist.
    pub validate_clusters: bool,
    /// Leaves the port out of the host before a virtual host is looked for.
    pub ignore_port_in_host_matching: bool,
    virtual_hosts: Vec<Arc<VirtualHost>>,
    index: DomainIndex,
}

/// Routes of some domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// For statistics and logs.
    pub name: Name,
    /// Hosts that it is for.
    pub domains: Vec<Domain>,
    /// Changes of headers of its requests and responses.
    pub headers: HeaderMutations,
    /// The first one that matches takes a request.
    pub routes: Vec<Arc<Route>>,
    /// For routes without one of their own.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Sends `x-envoy-attempt-count` to the upstream.
    pub include_request_attempt_count: bool,
    /// Sends `x-envoy-attempt-count` to the downstream.
    pub include_attempt_count_in_response: bool,
}

/// Which requests, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// May be empty.
    pub name: Name,
    /// Which requests.
    pub matches: RouteMatch,
    /// What is done.
    pub action: RouteDecision,
    /// Changes of headers of its requests and responses.
    pub headers: HeaderMutations,
}

/// Envoy's `RouteMatch`; everything asked must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Of the path, without query and fragment.
    pub path: PathMatch,
    /// Whether letters of the path are compared with their case; always true of a regular expression.
    pub case_sensitive: bool,
    /// Of the headers, `:method` included.
    pub headers: Vec<HeaderMatcher>,
    /// Of the query.
    pub query_parameters: Vec<QueryParameterMatcher>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// `prefix`: begins with this.
    Prefix(Arc<str>),
    /// `path`: is this.
    Path(Arc<str>),
    /// `safe_regex`: matches this as a whole.
    Regex(SafeRegex),
    /// `path_separated_prefix`: is this, or begins with it and a slash.
    PathSeparatedPrefix(Arc<str>),
}

/// Envoy's `QueryParameterMatcher`. Of a parameter that is given several times, the first counts. Nothing is
/// percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameterMatcher {
    /// The parameter's name, with its case.
    pub name: Arc<str>,
    /// What is asked of it.
    pub check: QueryParameterCheck,
}

/// What a [`QueryParameterMatcher`] asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryParameterCheck {
    /// Whether it is there.
    Present(bool),
    /// Its value.
    Value(StringMatcher),
}

/// What is done with a request (the oneof `Route.action`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteDecision {
    /// Sends it to a cluster.
    Route(Box<RouteAction>),
    /// Answers it here.
    DirectResponse(DirectResponse),
    /// Sends the downstream elsewhere.
    Redirect(Box<Redirect>),
}

/// Envoy's `RouteAction`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// The answer when the cluster does not exist; Envoy's default is 503.
    pub cluster_not_found_response_code: u16,
    /// What becomes of the path; its query stays.
    pub path_rewrite: Option<PathRewrite>,
    /// What becomes of the host.
    pub host_rewrite: Option<HostRewrite>,
    /// Whether the host before the rewrite is appended to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response; none has no limit
    /// ([`DEFAULT_ROUTE_TIMEOUT`] unless configured). Always none beside [`Self::max_stream_duration`].
    pub timeout: Option<Duration>,
    /// From the beginning of the request to the end of the response; none takes the connection manager's.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// How long a stream may be silent.
    pub idle_timeout: IdleTimeout,
    /// Which requests are sent again; none takes the virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// What a request's hash is made of, for clusters that balance by it.
    pub hash_policy: Vec<HashPolicy>,
}

/// Envoy's `RouteAction.MaxStreamDuration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// `max_stream_duration`: none takes the connection manager's, zero has no limit.
    pub limit: Option<Duration>,
    /// `grpc_timeout_header_max`: a request's `grpc-timeout` is its limit, at most this one; zero has no most.
    /// With none the header is not looked at.
    pub grpc_timeout_header_max: Option<Duration>,
    /// `grpc_timeout_header_offset`: how much earlier than the header says the time is over.
    pub grpc_timeout_header_offset: Duration,
}

/// A time limit that may be inherited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleTimeout {
    /// The connection manager's.
    #[default]
    Inherited,
    /// No limit (`0s`).
    Disabled,
    /// This long.
    After(Duration),
}

/// Where a request is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterSpecifier {
    /// `cluster`.
    Cluster(Name),
    /// `weighted_clusters`: one of them, as often as its weight relative to the sum of all. The sum is at
    /// least 1.
    Weighted(Vec<ClusterWeight>),
}

/// A cluster and its share of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterWeight {
    /// The cluster.
    pub name: Name,
    /// Relative to the sum of all; Consul's is a hundredth of a percent. May be 0.
    pub weight: u32,
    /// Changes of headers of what goes there and comes from there.
    pub headers: HeaderMutations,
    /// The host that is sent there.
    pub host_rewrite: Option<Arc<str>>,
}

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// `prefix_rewrite`: the part that matched (all of it for an exact path) becomes this.
    Prefix(Arc<str>),
    /// `regex_rewrite`.
    Regex(RegexRewrite),
}

/// What becomes of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite {
    /// `auto_host_rewrite`: the host name of the endpoint, where it has one.
    Auto,
    /// `host_rewrite_literal`.
    Literal(Arc<str>),
}

/// Envoy's `DirectResponseAction`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// From 200 to 599.
    pub status: u16,
    /// Empty is no body.
    pub body: Arc<[u8]>,
}

/// Envoy's `RedirectAction`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The new scheme.
    pub scheme: Option<Arc<str>>,
    /// The new host.
    pub host: Option<Arc<str>>,
    /// The new port.
    pub port: Option<u16>,
    /// The new path.
    pub path: Option<RedirectPath>,
    /// Leaves the query out.
    pub strip_query: bool,
}

/// What becomes of the path in a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// `path_redirect`: all of it becomes this.
    Path(Arc<str>),
    /// As for a request.
    Rewrite(PathRewrite),
}

/// Envoy's `RetryPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// After what.
    pub retry_on: Vec<RetryOn>,
    /// How often at most; Envoy's default is 1.
    pub num_retries: u32,
    /// Bounds one attempt; none is the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// How long one attempt may be silent.
    pub per_try_idle_timeout: Option<Duration>,
    /// For [`RetryOn::RetriableStatusCodes`].
    pub retriable_status_codes: Vec<u16>,
    /// For [`RetryOn::RetriableHeaders`]: any one of them.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests that match one of these; empty is all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// The first pause is drawn from zero to this; each one after it from twice as much.
    pub base_interval: Duration,
    /// No pause is longer.
    pub max_interval: Duration,
}

/// After what a request is sent again (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryOn {
    /// `5xx`: any 5xx, and no answer at all.
    FiveXx,
    /// `gateway-error`: 502, 503, 504.
    GatewayError,
    /// `reset`: no answer at all.
    Reset,
    /// `reset-before-request`: no answer, and the request had not been sent.
    ResetBeforeRequest,
    /// `connect-failure`.
    ConnectFailure,
    /// `envoy-ratelimited`: `x-envoy-ratelimited` in the answer.
    EnvoyRateLimited,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `refused-stream`: HTTP/2's `REFUSED_STREAM`.
    RefusedStream,
    /// `retriable-status-codes`.
    RetriableStatusCodes,
    /// `retriable-headers`.
    RetriableHeaders,
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 13.
    Internal,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 14.
    Unavailable,
}

impl RetryOn {
    /// The condition that Envoy calls `word`.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "5xx" => Self::FiveXx,
            "gateway-error" => Self::GatewayError,
            "reset" => Self::Reset,
            "reset-before-request" => Self::ResetBeforeRequest,
            "connect-failure" => Self::ConnectFailure,
            "envoy-ratelimited" => Self::EnvoyRateLimited,
            "retriable-4xx" => Self::Retriable4xx,
            "refused-stream" => Self::RefusedStream,
            "retriable-status-codes" => Self::RetriableStatusCodes,
            "retriable-headers" => Self::RetriableHeaders,
            "cancelled" => Self::Cancelled,
            "deadline-exceeded" => Self::DeadlineExceeded,
            "internal" => Self::Internal,
            "resource-exhausted" => Self::ResourceExhausted,
            "unavailable" => Self::Unavailable,
            _ => return None,
        })
    }
}

impl Default for RetryPolicy {
    /// Envoy's defaults: what an empty message stands for.
    fn default() -> Self {
        Self {
            retry_on: Vec::new(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
        }
    }
}

/// One part of a request's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Ends the making of the hash if there is one by now.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// A header's value.
    Header {
        /// Lower case.
        name: Arc<str>,
        /// Applied to the value first.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie's value.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Makes a cookie of this age where there is none; zero is a session's. None makes none.
        ttl: Option<Duration>,
        /// The path of one that is made; empty is not said.
        path: Arc<str>,
    },
    /// A query parameter's value.
    QueryParameter(Arc<str>),
    /// The address that connected.
    SourceIp,
}

/// Changes of headers at one place: removals first, then additions in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// Removed from requests; lower case.
    pub request_remove: Vec<Arc<str>>,
    /// Added to requests.
    pub request_add: Vec<HeaderValueOption>,
    /// Removed from responses; lower case.
    pub response_remove: Vec<Arc<str>>,
    /// Added to responses.
    pub response_add: Vec<HeaderValueOption>,
}

impl HeaderMutations {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            request_remove,
            request_add,
            response_remove,
            response_add,
        } = self;
        request_remove.is_empty()
            && request_add.is_empty()
            && response_remove.is_empty()
            && response_add.is_empty()
    }
}

impl RouteAction {
    /// To one cluster, with everything else left to Envoy's defaults.
    pub fn to(cluster: Name) -> Self {
        Self {
            cluster: ClusterSpecifier::Cluster(cluster),
            cluster_not_found_response_code: 503,
            path_rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            timeout: Some(DEFAULT_ROUTE_TIMEOUT),
            max_stream_duration: None,
            idle_timeout: IdleTimeout::Inherited,
            retry_policy: None,
            hash_policy: Vec::new(),
        }
    }
}

impl RouteMatch {
    /// By the path alone, with its case.
    pub fn path(path: PathMatch) -> Self {
        Self {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query_parameters: Vec::new(),
        }
    }
}

impl RouteConfiguration {
    /// A table of these virtual hosts, with everything else left to Envoy's defaults.
    ///
    /// # Errors
    /// [`DomainError`] where two of them have the same domain.
    pub fn new(name: Name, virtual_hosts: Vec<Arc<VirtualHost>>) -> Result<Self, DomainError> {
        Ok(Self {
            name,
            headers: HeaderMutations::default(),
            most_specific_header_mutations_wins: false,
            validate_clusters: false,
            ignore_port_in_host_matching: false,
            index: DomainIndex::new(&virtual_hosts)?,
            virtual_hosts,
        })
    }

    /// The virtual hosts, in the order they were given.
    pub fn virtual_hosts(&self) -> &[Arc<VirtualHost>] {
        &self.virtual_hosts
    }

    /// Every cluster that a route names.
    pub fn clusters(&self) -> impl Iterator<Item = &Name> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| match &route.action {
            RouteDecision::Route(action) => action.cluster.names(),
            RouteDecision::DirectResponse(_) | RouteDecision::Redirect(_) => Vec::new(),
        })
    }

    pub(super) fn index(&self) -> &DomainIndex {
        &self.index
    }
}

impl ClusterSpecifier {
    /// The clusters named.
    pub fn names(&self) -> Vec<&Name> {
        match self {
            Self::Cluster(name) => vec![name],
            Self::Weighted(clusters) => clusters.iter().map(|cluster| &cluster.name).collect(),
        }
    }
}
