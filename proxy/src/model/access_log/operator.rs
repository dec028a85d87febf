//! Envoy's command operators, from their names and arguments to types.

use std::sync::Arc;

use super::error::FormatError;
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
    /// `REQUESTED_SERVER_NAME`: of the downstream's ClientHello.
    RequestedServerName,
    /// `CONNECTION_ID`: the connection's number in this process; 0 where no filter chain took it.
    ConnectionId,
    /// `STREAM_ID`: a random UUID of the connection or request, the same in all of its lines.
    StreamId,
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
    /// The endpoint's.
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

/// Operators of Envoy that are not carried out: a configuration that has one is refused, because a `-`
/// would say that the fact is absent.
const UNSUPPORTED: &str = " \
    BYTES_RETRANSMITTED CEL CLUSTER_METADATA COALESCE COMMON_DURATION CUSTOM_FLAGS \
    DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT \
    DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_HEADER_BYTES_RECEIVED \
    DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_EMAIL_SAN \
    DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_SUBJECT \
    DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_CERT_V_END \
    DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 \
    DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_EMAIL_SAN \
    DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_IP_SAN \
    DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SERIAL \
    DOWNSTREAM_TLS_SESSION_ID DYNAMIC_METADATA EMIT_TIME_LOCAL ENVIRONMENT FILTER_STATE \
    LOCAL_REPLY_BODY METADATA PACKETS_RETRANSMITTED PATH QUERY_PARAM QUERY_PARAMS \
    ROUNDTRIP_DURATION SPAN_ID START_TIME_LOCAL TRACE_ID UNIQUE_ID UPSTREAM_CONNECTION_ID \
    UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_CONNECTION_POOL_READY_DURATION \
    UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT \
    UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_FILTER_STATE UPSTREAM_HEADER_BYTES_RECEIVED \
    UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT \
    UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT \
    UPSTREAM_LOCAL_CLOSE_REASON UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_URI_SAN \
    UPSTREAM_METADATA UPSTREAM_PEER_CERT UPSTREAM_PEER_CERT_V_END UPSTREAM_PEER_CERT_V_START \
    UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID \
    UPSTREAM_TLS_SESSION_ID ";

impl Operator {
    /// The operator called `name`, with what stands between its parentheses and its length, if any.
    pub(super) fn new(
        name: &str,
        arguments: Option<&str>,
        length: Option<usize>,
    ) -> Result<Self, FormatError> {
        // Empty parentheses are none, as in Envoy.
        let arguments = arguments.filter(|text| !text.is_empty());
        if let Some(operator) = plain(name) {
            return match (arguments, length) {
                (None, None) => Ok(operator),
                _ => Err(FormatError::NoArguments(name.to_owned())),
            };
        }
        let no_length = || match length {
            None => Ok(()),
            Some(_) => Err(FormatError::NoLength(name.to_owned())),
        };
        let argument_error = |why| FormatError::Argument {
            operator: name.to_owned(),
            argument: arguments.unwrap_or_default().to_owned(),
            why,
        };
        let header = |of| match arguments {
            None => Err(FormatError::MissingArguments(name.to_owned())),
            Some(text) => Header::new(of, text, length)
                .map(Self::Header)
                .map_err(argument_error),
        };
        match name {
            "START_TIME" | "EMIT_TIME" => {
                no_length()?;
                let format = match arguments {
                    None => TimeFormat::default(),
                    Some(text) => TimeFormat::parse(text).map_err(argument_error)?,
                };
                Ok(match name {
                    "START_TIME" => Self::StartTime(format),
                    _ => Self::EmitTime(format),
                })
            }
            "REQ" => header(HeaderMap::Request),
            "RESP" => header(HeaderMap::Response),
            "TRAILER" => header(HeaderMap::Trailer),
            "GRPC_STATUS" => {
                no_length()?;
                match arguments {
                    None | Some("CAMEL_STRING") => Ok(GrpcStatusFormat::CamelString),
                    Some("SNAKE_STRING") => Ok(GrpcStatusFormat::SnakeString),
                    Some("NUMBER") => Ok(GrpcStatusFormat::Number),
                    Some(_) => Err(argument_error("write CAMEL_STRING, SNAKE_STRING or NUMBER")),
                }
                .map(Self::GrpcStatus)
            }
            "REQUESTED_SERVER_NAME" => {
                no_length()?;
                match arguments {
                    None | Some("SNI_ONLY") => Ok(Self::RequestedServerName),
                    Some(_) => Err(argument_error("only SNI_ONLY is supported")),
                }
            }
            _ if UNSUPPORTED.split_whitespace().any(|known| known == name) => {
                Err(FormatError::Unsupported(name.to_owned()))
            }
            _ => Err(FormatError::Unknown(name.to_owned())),
        }
    }
}

/// An operator that takes no arguments.
fn plain(name: &str) -> Option<Operator> {
    use Operator as O;
    Some(match name {
        "DURATION" => O::Duration,
        "REQUEST_DURATION" => O::RequestDuration,
        "REQUEST_TX_DURATION" => O::RequestTxDuration,
        "RESPONSE_DURATION" => O::ResponseDuration,
        "RESPONSE_TX_DURATION" => O::ResponseTxDuration,
        "BYTES_RECEIVED" => O::BytesReceived,
        "BYTES_SENT" => O::BytesSent,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => O::DownstreamWireBytesReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => O::DownstreamWireBytesSent,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => O::UpstreamWireBytesReceived,
        "UPSTREAM_WIRE_BYTES_SENT" => O::UpstreamWireBytesSent,
        "REQUEST_HEADERS_BYTES" => O::RequestHeadersBytes,
        "RESPONSE_HEADERS_BYTES" => O::ResponseHeadersBytes,
        "RESPONSE_TRAILERS_BYTES" => O::ResponseTrailersBytes,
        "RESPONSE_FLAGS" => O::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => O::ResponseFlagsLong,
        "RESPONSE_CODE" => O::ResponseCode,
        "RESPONSE_CODE_DETAILS" => O::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => O::ConnectionTerminationDetails,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => O::DownstreamTransportFailureReason,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => O::UpstreamTransportFailureReason,
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => O::DownstreamLocalCloseReason,
        "PROTOCOL" => O::Protocol,
        "UPSTREAM_PROTOCOL" => O::UpstreamProtocol,
        "GRPC_STATUS_NUMBER" => O::GrpcStatus(GrpcStatusFormat::Number),
        "ROUTE_NAME" => O::RouteName,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => O::UpstreamRequestAttemptCount,
        "UPSTREAM_HOST" => O::Address(Place::UpstreamRemote, AddressPart::Whole),
        "UPSTREAM_HOST_NAME" => O::UpstreamHostName(AddressPart::Whole),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => O::UpstreamHostName(AddressPart::WithoutPort),
        "UPSTREAM_CLUSTER" => O::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => O::UpstreamClusterRaw,
        "DOWNSTREAM_TLS_VERSION" => O::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => O::DownstreamTlsCipher,
        "DOWNSTREAM_PEER_URI_SAN" => O::DownstreamPeerUriSan,
        "DOWNSTREAM_PEER_DNS_SAN" => O::DownstreamPeerDnsSan,
        "DOWNSTREAM_PEER_SUBJECT" => O::DownstreamPeerSubject,
        "UPSTREAM_TLS_VERSION" => O::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => O::UpstreamTlsCipher,
        "UPSTREAM_PEER_URI_SAN" => O::UpstreamPeerUriSan,
        "UPSTREAM_PEER_DNS_SAN" => O::UpstreamPeerDnsSan,
        "UPSTREAM_PEER_SUBJECT" => O::UpstreamPeerSubject,
        "CONNECTION_ID" => O::ConnectionId,
        "STREAM_ID" => O::StreamId,
        "FILTER_CHAIN_NAME" => O::FilterChainName,
        "LISTENER_NAME" => O::ListenerName,
        "HOSTNAME" => O::Hostname,
        "ACCESS_LOG_TYPE" => O::AccessLogType,
        // JA3 and JA4 are the TLS inspector's only when asked for, virtual clusters a route table's.
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" | "VIRTUAL_CLUSTER_NAME" => O::Never,
        _ => return address(name),
    })
}

/// The operators of the form `<place>_ADDRESS`, `<place>_ADDRESS_WITHOUT_PORT`, `<place>_PORT`.
fn address(name: &str) -> Option<Operator> {
    let (place, part) = if let Some(place) = name.strip_suffix("_ADDRESS") {
        (place, AddressPart::Whole)
    } else if let Some(place) = name.strip_suffix("_ADDRESS_WITHOUT_PORT") {
        (place, AddressPart::WithoutPort)
    } else {
        (name.strip_suffix("_PORT")?, AddressPart::Port)
    };
    let place = match place {
        "DOWNSTREAM_REMOTE" => Place::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE" => Place::DownstreamDirectRemote,
        "DOWNSTREAM_LOCAL" => Place::DownstreamLocal,
        "DOWNSTREAM_DIRECT_LOCAL" => Place::DownstreamDirectLocal,
        "UPSTREAM_REMOTE" => Place::UpstreamRemote,
        "UPSTREAM_LOCAL" => Place::UpstreamLocal,
        _ => return None,
    };
    Some(Operator::Address(place, part))
}

impl Header {
    /// From `NAME` or `NAME?ALTERNATIVE`.
    fn new(of: HeaderMap, text: &str, max_length: Option<usize>) -> Result<Self, &'static str> {
        let mut names = text.split('?');
        let name = names.next().unwrap_or_default();
        let alternative = names.next().filter(|name| !name.is_empty());
        if names.next().is_some() {
            return Err("at most one alternative header, after one question mark");
        }
        let is_token = |name: &str| {
            let name = name.strip_prefix(':').unwrap_or(name);
            let others = b"!#$%&'*+-.^_`|~";
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
        };
        if !is_token(name) || !alternative.is_none_or(is_token) {
            return Err("a header's name has characters that none can have");
        }
        Ok(Self {
            of,
            name: name.to_ascii_lowercase().into(),
            alternative: alternative.map(|name| name.to_ascii_lowercase().into()),
            max_length,
        })
    }
}
