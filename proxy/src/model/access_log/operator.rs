//! Envoy's command operators as types; `command` makes them of their names and arguments.

use std::sync::Arc;

use super::time_format::TimeFormat;

/// One fact that a line can tell. What a TCP connection does not have is `-` there, or null in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `START_TIME`: when the connection was accepted or the request began.
    StartTime(TimeFormat),
    /// `EMIT_TIME`: when the line is made.
    EmitTime(TimeFormat),
    /// `DURATION`: milliseconds from the start to the end.
    Duration,
    /// `REQUEST_DURATION`: milliseconds until the last byte of the request was there.
    RequestDuration,
    /// `REQUEST_TX_DURATION`: milliseconds until the last byte of the request was sent on.
    RequestTxDuration,
    /// `RESPONSE_DURATION`: milliseconds until the first byte of the response was there.
    ResponseDuration,
    /// `RESPONSE_TX_DURATION`: milliseconds from the first byte of the response to the last one sent on.
    ResponseTxDuration,
    /// `COMMON_DURATION(…)`: from one moment of a request to another.
    CommonDuration(Span),
    /// `UPSTREAM_CONNECTION_POOL_READY_DURATION`: milliseconds until the pool gave a connection or none.
    PoolReadyDuration,
    /// `BYTES_RECEIVED`: of the downstream; bodies only, in HTTP.
    BytesReceived,
    /// `BYTES_SENT`: to the downstream; bodies only, in HTTP.
    BytesSent,
    /// `DOWNSTREAM_WIRE_BYTES_RECEIVED` without TLS' own.
    DownstreamWireBytesReceived,
    /// `DOWNSTREAM_WIRE_BYTES_SENT` without TLS' own.
    DownstreamWireBytesSent,
    /// `UPSTREAM_WIRE_BYTES_RECEIVED` without TLS' own.
    UpstreamWireBytesReceived,
    /// `UPSTREAM_WIRE_BYTES_SENT` without TLS' own.
    UpstreamWireBytesSent,
    /// `DOWNSTREAM_HEADER_BYTES_RECEIVED`, as they came over the wire.
    DownstreamHeaderBytesReceived,
    /// `DOWNSTREAM_HEADER_BYTES_SENT`, as they went over the wire.
    DownstreamHeaderBytesSent,
    /// `UPSTREAM_HEADER_BYTES_RECEIVED`, as they came over the wire.
    UpstreamHeaderBytesReceived,
    /// `UPSTREAM_HEADER_BYTES_SENT`, as they went over the wire.
    UpstreamHeaderBytesSent,
    /// `REQUEST_HEADERS_BYTES`.
    RequestHeadersBytes,
    /// `RESPONSE_HEADERS_BYTES`.
    ResponseHeadersBytes,
    /// `RESPONSE_TRAILERS_BYTES`.
    ResponseTrailersBytes,
    /// `RESPONSE_FLAGS`.
    ResponseFlags,
    /// `RESPONSE_FLAGS_LONG`.
    ResponseFlagsLong,
    /// `RESPONSE_CODE`: 0 without HTTP.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`.
    ResponseCodeDetails,
    /// `CONNECTION_TERMINATION_DETAILS`: why a rule of the proxy ended the connection.
    ConnectionTerminationDetails,
    /// `DOWNSTREAM_TRANSPORT_FAILURE_REASON`: why TLS with the downstream failed.
    DownstreamTransportFailureReason,
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`: why no endpoint was connected to, or TLS with it failed.
    UpstreamTransportFailureReason,
    /// `DOWNSTREAM_LOCAL_CLOSE_REASON`: why the proxy closed the downstream.
    DownstreamLocalCloseReason,
    /// `PROTOCOL`: `HTTP/1.1` and its like.
    Protocol,
    /// `UPSTREAM_PROTOCOL`.
    UpstreamProtocol,
    /// `GRPC_STATUS(…)`.
    GrpcStatus(GrpcStatusFormat),
    /// `REQ(…)`, `RESP(…)`, `TRAILER(…)`.
    Header(Header),
    /// `REQ_WITHOUT_QUERY(…)`: of the extension `envoy.formatter.req_without_query`.
    RequestHeaderWithoutQuery(Header),
    /// `PATH(…)`.
    Path(PathOperator),
    /// `QUERY_PARAM(…)`: the first of that name, percent-decoded.
    QueryParameter {
        /// Its name, with its case.
        name: Arc<str>,
        /// At most this many bytes of it.
        max_length: Option<usize>,
    },
    /// `QUERY_PARAMS`: the query as it came, without the question mark, at most this many bytes of it.
    Query(Option<usize>),
    /// `DYNAMIC_METADATA(…)`, `METADATA(DYNAMIC:…)`.
    DynamicMetadata(MetadataOperator),
    /// `ROUTE_NAME`.
    RouteName,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`: endpoints tried.
    UpstreamRequestAttemptCount,
    /// `UPSTREAM_HOST_NAME` with or without the port: the name by which the endpoint is known.
    UpstreamHostName(AddressPart),
    /// `UPSTREAM_CLUSTER` and `UPSTREAM_CLUSTER_RAW`: the cluster's `alt_stat_name`, else its name.
    UpstreamCluster,
    /// `UPSTREAM_CLUSTER_RAW`: the cluster's name.
    UpstreamClusterRaw,
    /// An address or a part of it: `DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT` and its like.
    Address(Place, AddressPart),
    /// `DOWNSTREAM_TLS_VERSION`, such as `TLSv1.3`.
    DownstreamTlsVersion,
    /// `DOWNSTREAM_TLS_CIPHER`.
    DownstreamTlsCipher,
    /// `DOWNSTREAM_PEER_URI_SAN`: with commas between.
    DownstreamPeerUriSan,
    /// `DOWNSTREAM_PEER_DNS_SAN`: with commas between.
    DownstreamPeerDnsSan,
    /// `DOWNSTREAM_PEER_SUBJECT`.
    DownstreamPeerSubject,
    /// `UPSTREAM_TLS_VERSION`.
    UpstreamTlsVersion,
    /// `UPSTREAM_TLS_CIPHER`.
    UpstreamTlsCipher,
    /// `UPSTREAM_PEER_URI_SAN`: with commas between.
    UpstreamPeerUriSan,
    /// `UPSTREAM_PEER_DNS_SAN`: with commas between.
    UpstreamPeerDnsSan,
    /// `UPSTREAM_PEER_SUBJECT`.
    UpstreamPeerSubject,
    /// `REQUESTED_SERVER_NAME`: of the downstream's ClientHello, or the request's host.
    RequestedServerName(ServerName),
    /// `CONNECTION_ID`: the connection's number in this process; 0 where no filter chain took it.
    ConnectionId,
    /// `UPSTREAM_CONNECTION_ID`: likewise of the upstream connection; 0 where there is none.
    UpstreamConnectionId,
    /// `STREAM_ID`: of a connection a random UUID, the same in all of its lines; of a request its
    /// `x-request-id`.
    StreamId,
    /// `UNIQUE_ID`: a random UUID, another in each line.
    UniqueId,
    /// `TRACE_ID`: of the request's trace.
    TraceId,
    /// `SPAN_ID`: of the request's span.
    SpanId,
    /// `FILTER_CHAIN_NAME`.
    FilterChainName,
    /// `LISTENER_NAME`.
    ListenerName,
    /// `HOSTNAME`: of this machine.
    Hostname,
    /// `ACCESS_LOG_TYPE`: what the line is about, such as `TcpConnectionEnd`.
    AccessLogType,
    /// What nothing that can be configured here brings about: it is absent in Envoy too.
    Never,
}

/// Whose address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The downstream's, or what a PROXY header or `X-Forwarded-For` says it is.
    DownstreamRemote,
    /// The downstream's socket's, whatever is said of it.
    DownstreamDirectRemote,
    /// Where the downstream connected to, before a redirection.
    DownstreamLocal,
    /// Where the downstream's socket is.
    DownstreamDirectLocal,
    /// The endpoint's that was chosen, connected to or not.
    UpstreamHost,
    /// The endpoint's that was connected to.
    UpstreamRemote,
    /// Ours towards the endpoint.
    UpstreamLocal,
}

/// How much of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPart {
    /// All: `127.0.0.1:80`, `[::1]:80`, or a unix socket's path.
    Whole,
    /// The IP alone, or a unix socket's path.
    WithoutPort,
    /// The port alone, a number; absent for a unix socket.
    Port,
}

/// A header to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of what.
    pub of: HeaderMap,
    /// Its name in lower case.
    pub name: Arc<str>,
    /// The one to tell where the first is absent.
    pub alternative: Option<Arc<str>>,
    /// At most this many bytes of it.
    pub max_length: Option<usize>,
}

/// Which headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMap {
    /// `REQ`.
    Request,
    /// `RESP`.
    Response,
    /// `TRAILER`: of the response.
    Trailer,
}

/// How a gRPC status is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatusFormat {
    /// `PermissionDenied`.
    CamelString,
    /// `PERMISSION_DENIED`.
    SnakeString,
    /// `7`.
    Number,
}

/// What `PATH(…)` tells: a request's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOperator {
    /// Whether with its query.
    pub query: bool,
    /// Before or after a rewrite.
    pub source: PathSource,
    /// At most this many bytes of it.
    pub max_length: Option<usize>,
}

/// Which path of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathSource {
    /// `PATH`: as it is now.
    Path,
    /// `ORIG`: `x-envoy-original-path`.
    Original,
    /// `ORIG_OR_PATH`: the original one where there is one.
    OriginalOrPath,
}

/// Where the name in `REQUESTED_SERVER_NAME` is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// `SNI_ONLY`: the ClientHello.
    Sni,
    /// `SNI_FIRST`: the ClientHello, else the request's host.
    SniFirst,
    /// `HOST_FIRST`: the request's host, else the ClientHello.
    HostFirst,
}

/// A place in the dynamic metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataOperator {
    /// The filter that wrote it.
    pub filter: Arc<str>,
    /// Keys from the outside in; empty is all that the filter wrote.
    pub path: Vec<Arc<str>>,
    /// At most this many bytes of a text.
    pub max_length: Option<usize>,
}

/// From one moment of a request to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: TimePoint,
    /// The second.
    pub to: TimePoint,
    /// How it is told.
    pub unit: DurationUnit,
}

/// A moment of a request, with Envoy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePoint {
    /// `DS_RX_BEG`: the request began.
    DownstreamReceiveBegin,
    /// `DS_RX_END`: its last byte was there.
    DownstreamReceiveEnd,
    /// `US_CX_BEG`: the upstream connection was begun.
    UpstreamConnectBegin,
    /// `US_CX_END`: it was made.
    UpstreamConnectEnd,
    /// `US_HS_END`: its TLS handshake was done.
    UpstreamHandshakeEnd,
    /// `US_TX_BEG`: the first byte of the request was sent on.
    UpstreamSendBegin,
    /// `US_TX_END`: the last byte of the request was sent on.
    UpstreamSendEnd,
    /// `US_RX_BEG`: the first byte of the response was there.
    UpstreamReceiveBegin,
    /// `US_RX_BODY_BEG`: the first byte of its body was there.
    UpstreamBodyBegin,
    /// `US_RX_END`: its last byte was there.
    UpstreamReceiveEnd,
    /// `DS_TX_BEG`: its first byte was sent on.
    DownstreamSendBegin,
    /// `DS_TX_END`: its last byte was sent on.
    DownstreamSendEnd,
}

/// How a duration is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationUnit {
    /// `ms`, the default.
    Millis,
    /// `us`.
    Micros,
    /// `ns`.
    Nanos,
}

impl Operator {
    /// Whether it tells what only a request has in Attaché although Envoy knows it of a TCP connection too:
    /// an access log of connections that has it is refused.
    pub fn is_of_requests_alone(&self) -> bool {
        matches!(
            self,
            Self::CommonDuration(_)
                | Self::PoolReadyDuration
                | Self::UpstreamConnectionId
                | Self::DynamicMetadata(_)
        )
    }
}
