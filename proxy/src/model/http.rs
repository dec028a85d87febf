//! The HTTP connection manager and its filters as they are configured (Envoy's `HttpConnectionManager`).
//!
//! Types only; routes are in `route`, JWT providers in `jwt`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::access_log::{AccessLog, OpenTelemetryAccessLog};
use super::jwt::JwtAuthn;
use super::rbac::Rbac;
use super::rewrite::RegexRewrite;
use super::route::{HeaderValueOption, RouteConfiguration};

/// `envoy.filters.network.http_connection_manager`: the terminal filter that speaks HTTP. The router is its
/// last filter always and is not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConnectionManager {
    /// Begins its statistics.
    pub stat_prefix: Name,
    /// Which versions of HTTP are spoken.
    pub codec: Codec,
    /// `http2_protocol_options`. Consul gives them (empty) where the service's protocol is `http2` or `grpc`.
    pub http2: Option<Http2Options>,
    /// Where its routes are.
    pub routes: Routes,
    /// Run in order before the router.
    pub http_filters: Vec<HttpFilter>,
    /// What is done with `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// What is done with paths and header names before anything looks at them.
    pub normalization: Normalization,
    /// What is told and believed of addresses, schemes and hops.
    pub forwarding: Forwarding,
    /// How large and how old things may become.
    pub limits: HttpLimits,
    /// Which `upgrade` requests pass; lower case, such as `websocket`.
    pub upgrade_types: Vec<Arc<str>>,
    /// What `server` says in responses.
    pub server_header: ServerHeader,
    /// `x-request-id`.
    pub request_id: RequestId,
    /// None makes no spans.
    pub tracing: Option<Arc<Tracing>>,
    /// Written when a request ends.
    pub access_log: Vec<Arc<AccessLog>>,
    /// Likewise, sent to a collector.
    pub otel_access_log: Vec<Arc<OpenTelemetryAccessLog>>,
    /// `proxy_100_continue`: the upstream answers `expect: 100-continue`; otherwise it is answered here.
    pub proxy_100_continue: bool,
    /// `suppress_envoy_headers` of the router: adds no `x-envoy-…` headers.
    pub suppress_envoy_headers: bool,
}

/// Which versions of HTTP a downstream may speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// What ALPN or the first bytes say.
    #[default]
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge or by ALPN.
    Http2,
}

/// Envoy's `Http2ProtocolOptions`, as far as Attaché heeds them; none is its own number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// `max_concurrent_streams` of a connection.
    pub max_concurrent_streams: Option<u32>,
    /// `initial_stream_window_size`: bytes.
    pub initial_stream_window_size: Option<u32>,
    /// `initial_connection_window_size`: bytes.
    pub initial_connection_window_size: Option<u32>,
    /// `allow_connect`: extended CONNECT is offered (RFC 8441), for [`HttpConnectionManager::upgrade_types`].
    pub allow_connect: bool,
}

/// Where a connection manager's routes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routes {
    /// `route_config`.
    Inline(Arc<RouteConfiguration>),
    /// `rds`: in [`super::Snapshot::routes`] under this name.
    Rds(Name),
}

/// What is done with `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardClientCert {
    /// What becomes of the one that comes.
    pub mode: ForwardClientCertMode,
    /// What is said of the peer where the mode sets or appends.
    pub set_current: SetCurrentClientCert,
}

/// Envoy's `ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCertMode {
    /// Takes it away.
    #[default]
    Sanitize,
    /// Leaves it, if the connection is mutual TLS.
    ForwardOnly,
    /// Appends the peer's, if the connection is mutual TLS.
    AppendForward,
    /// Sets the peer's instead, if the connection is mutual TLS.
    SanitizeSet,
    /// Leaves it always.
    AlwaysForwardOnly,
}

/// Envoy's `SetCurrentClientCertDetails`. `By` and `Hash` are always said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetCurrentClientCert {
    /// `Subject`.
    pub subject: bool,
    /// `Cert`: URL-encoded PEM.
    pub cert: bool,
    /// `Chain`: URL-encoded PEM.
    pub chain: bool,
    /// `DNS`, each one.
    pub dns: bool,
    /// `URI`, each one.
    pub uri: bool,
}

/// What is done with paths and header names before anything looks at them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normalization {
    /// `normalize_path`: by RFC 3986, `..` and unneeded percent-encoding resolved. Consul sets it on public
    /// listeners.
    pub normalize_path: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `%2F` and `%5C` in paths.
    pub path_with_escaped_slashes: PathWithEscapedSlashes,
    /// `_` in header names.
    pub headers_with_underscores: HeadersWithUnderscores,
    /// What is cut off the host.
    pub strip_host_port: StripHostPort,
    /// `strip_trailing_host_dot`.
    pub strip_trailing_host_dot: bool,
}

/// Envoy's `PathWithEscapedSlashesAction`. Its implementation-specific default keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathWithEscapedSlashes {
    /// Leaves them.
    #[default]
    KeepUnchanged,
    /// Answers 400.
    RejectRequest,
    /// Redirects to the path with them unescaped; gRPC is refused.
    UnescapeAndRedirect,
    /// Goes on with the path with them unescaped.
    UnescapeAndForward,
}

/// Envoy's `HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadersWithUnderscores {
    /// Leaves them.
    #[default]
    Allow,
    /// Answers 400.
    RejectRequest,
    /// Leaves the header out.
    DropHeader,
}

/// What is cut off the host of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripHostPort {
    /// Nothing.
    #[default]
    No,
    /// `strip_matching_host_port`: the port, if it is the listener's.
    Matching,
    /// `strip_any_host_port`: any port.
    Any,
}

/// What is told and believed of addresses, schemes and hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// `use_remote_address`: the connection's address is the client's: this is the edge.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`: which address of `x-forwarded-for` is the client's, from its end.
    pub xff_num_trusted_hops: u32,
    /// `skip_xff_append`.
    pub skip_xff_append: bool,
    /// `append_x_forwarded_port`.
    pub append_x_forwarded_port: bool,
    /// `represent_ipv4_remote_address_as_ipv4_mapped_ipv6`.
    pub ipv4_as_mapped_ipv6: bool,
    /// `via`, appended to that header both ways; empty is none.
    pub via: Arc<str>,
    /// `add_user_agent`: the local service's cluster name as `user-agent` and
    /// `x-envoy-downstream-service-cluster`.
    pub add_user_agent: bool,
}

/// How large and how old things may become. None is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// `max_request_headers_kb`: kibibytes of all headers of a request.
    pub max_request_headers_kb: u32,
    /// `max_headers_count`: headers of a request.
    pub max_headers_count: u32,
    /// `max_requests_per_connection`; the last response closes the connection.
    pub max_requests_per_connection: Option<u32>,
    /// `stream_idle_timeout`: a stream on which nothing moves.
    pub stream_idle_timeout: Option<Duration>,
    /// `request_timeout`: until the whole request is there.
    pub request_timeout: Option<Duration>,
    /// `request_headers_timeout`: until a request's headers are there.
    pub request_headers_timeout: Option<Duration>,
    /// `idle_timeout`: a connection without a request.
    pub idle_timeout: Option<Duration>,
    /// `max_connection_duration`: drains the connection after that.
    pub max_connection_duration: Option<Duration>,
    /// `max_stream_duration`: of one request and response.
    pub max_stream_duration: Option<Duration>,
    /// `drain_timeout`: between the announcement of the end and the end of an HTTP/2 connection.
    pub drain_timeout: Duration,
    /// `delayed_close_timeout`: how long a peer may take to read the last bytes; none resets at once.
    pub delayed_close_timeout: Option<Duration>,
}

/// What `server` says in responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHeader {
    /// `server_name`.
    pub name: Arc<str>,
    /// What happens to the upstream's.
    pub transformation: ServerHeaderTransformation,
}

/// Envoy's `ServerHeaderTransformation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeaderTransformation {
    /// Ours always.
    #[default]
    Overwrite,
    /// Ours where there is none.
    AppendIfAbsent,
    /// Theirs or none.
    PassThrough,
}

/// What is done with `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// `generate_request_id`: one is made where there is none.
    pub generate: bool,
    /// `preserve_external_request_id`: at the edge, the client's stays.
    pub preserve_external: bool,
    /// `always_set_request_id_in_response`.
    pub always_in_response: bool,
}

/// Envoy's `Tracing` of a connection manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Of requests that ask for it by `x-client-trace-id`.
    pub client_sampling: Sampling,
    /// Of all requests.
    pub random_sampling: Sampling,
    /// Bounds both.
    pub overall_sampling: Sampling,
    /// Puts the events of a stream into its span.
    pub verbose: bool,
    /// Bytes of the path in the span's tag; Envoy's default is 256.
    pub max_path_tag_length: u32,
    /// Tags of every span.
    pub custom_tags: Vec<CustomTag>,
    /// Where spans go; none is the bootstrap's.
    pub provider: Option<TracingProvider>,
    /// A span of its own for each upstream request.
    pub spawn_upstream_span: bool,
    /// Changes no header of the trace context.
    pub no_context_propagation: bool,
}

/// A share of ten thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sampling(u16);

/// A tag of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomTag {
    /// Its name.
    pub tag: Arc<str>,
    /// Its value.
    pub value: CustomTagValue,
}

/// The value of a tag. One that is empty is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomTagValue {
    /// This.
    Literal(Arc<str>),
    /// Of an environment variable, read once.
    Environment {
        /// The variable.
        name: Arc<str>,
        /// Where it is not set.
        default: Arc<str>,
    },
    /// Of a request's header.
    RequestHeader {
        /// Lower case.
        name: Arc<str>,
        /// Where it is not there.
        default: Arc<str>,
    },
    /// Text with command operators.
    Format(Arc<str>),
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TracingProvider {
    /// `envoy.tracers.zipkin`.
    Zipkin(Zipkin),
    /// `envoy.tracers.opentelemetry`.
    OpenTelemetry(OpenTelemetryTracer),
}

/// Envoy's `OpenTelemetryConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTelemetryTracer {
    /// Where spans are sent; none sends them nowhere.
    pub target: Option<TracerTarget>,
    /// Added to each request to the collector.
    pub headers: CollectorHeaders,
    /// `service_name`, an attribute of the resource; empty is `unknown_service:envoy`.
    pub service_name: Arc<str>,
    /// `max_cache_size`: spans that a worker keeps while the collector takes none; Envoy's default is 1,024.
    pub max_cache_size: u32,
    /// `set_telemetry_sdk_resource_attributes`.
    pub sdk_attributes: bool,
    /// `set_service_name_resource_attribute`.
    pub service_name_attribute: bool,
    /// `set_instrumentation_scope`.
    pub instrumentation_scope: bool,
}

/// Headers for a collector, by their lower-case names. Their values may be credentials: they are not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CollectorHeaders(pub Vec<(Arc<str>, Arc<str>)>);

impl fmt::Debug for CollectorHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// A collector of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TracerTarget {
    /// `grpc_service`: `TraceService.Export` of this cluster.
    Grpc {
        /// The cluster.
        cluster: Name,
    },
    /// `http_service`: spans are posted.
    Http {
        /// The cluster.
        cluster: Name,
        /// The host that is asked.
        host: Arc<str>,
        /// With its query.
        path: Arc<str>,
        /// How long an answer may take.
        timeout: Duration,
    },
}

/// Envoy's `ZipkinConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zipkin {
    /// The cluster that spans are sent to.
    pub collector_cluster: Name,
    /// The path they are posted to.
    pub collector_endpoint: Arc<str>,
    /// The host that is asked; empty is the cluster's name.
    pub collector_hostname: Arc<str>,
    /// How they are written.
    pub format: ZipkinFormat,
    /// Trace IDs of 128 bits instead of 64.
    pub trace_id_128bit: bool,
    /// Client and server share a span.
    pub shared_span_context: bool,
    /// Spans of client and server are told apart by their kind.
    pub split_spans_for_request: bool,
    /// Understands and sends W3C's `traceparent` beside B3.
    pub w3c_propagation: bool,
}

/// How spans are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZipkinFormat {
    /// Zipkin's JSON, version 2.
    #[default]
    Json,
    /// Zipkin's protobuf.
    Proto,
}

/// A filter before the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpFilter {
    /// `envoy.filters.http.rbac`.
    Rbac {
        /// Who may ask for what; none lets everything pass.
        rules: Option<Arc<Rbac>>,
        /// Begins its statistics; may be empty.
        stat_prefix: Name,
    },
    /// `envoy.filters.http.jwt_authn`.
    JwtAuthn(Arc<JwtAuthn>),
    /// `envoy.filters.http.header_to_metadata`.
    HeaderToMetadata(Arc<HeaderToMetadata>),
    /// `envoy.filters.http.grpc_stats`.
    GrpcStats(GrpcStats),
    /// `envoy.filters.http.grpc_http1_bridge`.
    GrpcHttp1Bridge,
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Arc<LocalRateLimit>),
}

/// Envoy's `LocalRateLimit`: how many requests are let through in a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRateLimit {
    /// Begins its statistics.
    pub stat_prefix: Name,
    /// Of who is refused, from 400 to 599; Envoy's default is 429.
    pub status: u16,
    /// None limits nothing.
    pub bucket: Option<TokenBucketOptions>,
    /// `filter_enabled`: which requests take a token; Envoy's default is none.
    pub enabled: Sampling,
    /// `filter_enforced`: which requests are refused without one; Envoy's default is none.
    pub enforced: Sampling,
    /// `request_headers_to_add_when_not_enforced`: to requests that were let through without a token.
    pub request_headers_to_add: Vec<HeaderValueOption>,
    /// `response_headers_to_add`: to refusals.
    pub response_headers_to_add: Vec<HeaderValueOption>,
    /// `local_rate_limit_per_downstream_connection`: each connection has a bucket of its own.
    pub per_connection: bool,
    /// `rate_limited_as_resource_exhausted`: to gRPC, instead of UNAVAILABLE.
    pub grpc_resource_exhausted: bool,
}

/// Envoy's `TokenBucket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucketOptions {
    /// How many there are at most, and at first; at least 1.
    pub max_tokens: u32,
    /// How many come back in an interval; at least 1.
    pub tokens_per_fill: u32,
    /// The interval; at least 50 ms.
    pub fill_interval: Duration,
}

/// Envoy's `grpc_stats.FilterConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcStats {
    /// Counts by service and method; otherwise of all together.
    pub stats_for_all_methods: bool,
    /// Counts what the upstream takes too.
    pub enable_upstream_stats: bool,
    /// Writes `_` for the dots of a service's name.
    pub replace_dots_in_grpc_service_name: bool,
}

/// Envoy's `header_to_metadata.Config`: what headers say becomes metadata, for RBAC to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderToMetadata {
    /// On requests, in order.
    pub request_rules: Vec<HeaderToMetadataRule>,
    /// On responses, in order.
    pub response_rules: Vec<HeaderToMetadataRule>,
}

/// One header, or cookie, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderToMetadataRule {
    /// What is looked at.
    pub source: MetadataSource,
    /// Written if it is there.
    pub on_present: Option<MetadataEntry>,
    /// Written if it is not.
    pub on_missing: Option<MetadataEntry>,
    /// Takes the header away once it was looked at.
    pub remove: bool,
}

/// What a [`HeaderToMetadataRule`] looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataSource {
    /// A header, lower case.
    Header(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataEntry {
    /// Under which namespace.
    pub namespace: Arc<str>,
    /// Under which key.
    pub key: Arc<str>,
    /// Its text.
    pub value: MetadataValue,
    /// How the text is read.
    pub kind: MetadataKind,
    /// Whether the text is base64 first.
    pub base64: bool,
}

/// The text that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataValue {
    /// As it came.
    Same,
    /// As it came, rewritten.
    Rewritten(RegexRewrite),
    /// This.
    Constant(Arc<str>),
}

/// How a text becomes a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetadataKind {
    /// As it is.
    #[default]
    String,
    /// As a decimal number.
    Number,
}

impl Sampling {
    /// Every one.
    pub const ALL: Self = Self(10_000);

    /// Of `percent`, from 0 to 100, rounded; `None` for anything else.
    pub fn from_percent(percent: f64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 10000 by the range before it"
        )]
        let share = (percent * 100.0).round() as u16;
        (0.0..=100.0).contains(&percent).then_some(Self(share))
    }

    /// Of ten thousand.
    pub fn of_ten_thousand(self) -> u16 {
        self.0
    }
}

impl Default for HttpLimits {
    /// Envoy's defaults.
    fn default() -> Self {
        Self {
            max_request_headers_kb: 60,
            max_headers_count: 100,
            max_requests_per_connection: None,
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Some(Duration::from_secs(1)),
        }
    }
}

impl Default for ServerHeader {
    /// `server: envoy`, always.
    fn default() -> Self {
        Self {
            name: "envoy".into(),
            transformation: ServerHeaderTransformation::Overwrite,
        }
    }
}

impl Default for RequestId {
    /// Made where there is none.
    fn default() -> Self {
        Self {
            generate: true,
            preserve_external: false,
            always_in_response: false,
        }
    }
}

impl HttpConnectionManager {
    /// With these routes, and everything else left to Envoy's defaults.
    pub fn new(stat_prefix: Name, routes: Routes) -> Self {
        Self {
            stat_prefix,
            codec: Codec::default(),
            http2: None,
            routes,
            http_filters: Vec::new(),
            forward_client_cert: ForwardClientCert::default(),
            normalization: Normalization::default(),
            forwarding: Forwarding::default(),
            limits: HttpLimits::default(),
            upgrade_types: Vec::new(),
            server_header: ServerHeader::default(),
            request_id: RequestId::default(),
            tracing: None,
            access_log: Vec::new(),
            otel_access_log: Vec::new(),
            proxy_100_continue: false,
            suppress_envoy_headers: false,
        }
    }
}
