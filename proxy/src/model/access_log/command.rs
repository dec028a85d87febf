//! Envoy's command operators, from their names and arguments to types.

use std::sync::Arc;

use super::error::FormatError;
use super::operator::{
    AddressPart, DurationUnit, GrpcStatusFormat, Header, HeaderMap, MetadataOperator, Operator, PathOperator,
    PathSource, Place, ServerName, Span, TimePoint,
};
use super::time_format::TimeFormat;

/// Operators of Envoy that are not carried out: a configuration that has one is refused, because a `-`
/// would say that the fact is absent.
const UNSUPPORTED: &str = " \
    BYTES_RETRANSMITTED CEL CLUSTER_METADATA COALESCE CUSTOM_FLAGS DOWNSTREAM_CX_RTT \
    DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT \
    DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID \
    DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_LOCAL_DNS_SAN \
    DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN \
    DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_CERT_V_END \
    DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 \
    DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_EMAIL_SAN \
    DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_IP_SAN \
    DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER_SERIAL \
    DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SERIAL DOWNSTREAM_TLS_GROUP DOWNSTREAM_TLS_SESSION_ID \
    EMIT_TIME_LOCAL ENVIRONMENT FILTER_STATE LOCAL_REPLY_BODY PACKETS_RETRANSMITTED ROUNDTRIP_DURATION \
    START_TIME_LOCAL UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED \
    UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_FILTER_STATE \
    UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED \
    UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_LOCAL_CLOSE_REASON UPSTREAM_LOCAL_DNS_SAN \
    UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_URI_SAN UPSTREAM_METADATA UPSTREAM_PEER_CERT \
    UPSTREAM_PEER_CERT_V_END UPSTREAM_PEER_CERT_V_START UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER \
    UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID UPSTREAM_TLS_SESSION_ID ";

impl Operator {
    /// The operator called `name`, with what stands between its parentheses and its length, if any.
    pub(super) fn new(
        name: &str,
        arguments: Option<&str>,
        length: Option<usize>,
    ) -> Result<Self, FormatError> {
        // Empty parentheses are none, as in Envoy.
        let arguments = arguments.filter(|text| !text.is_empty());
        match (plain(name), arguments, length) {
            (Some(operator), None, None) => Ok(operator),
            (Some(_), ..) => Err(FormatError::NoArguments(name.to_owned())),
            (None, ..) => Written {
                name,
                arguments,
                length,
            }
            .operator(),
        }
    }
}

/// An operator with arguments as it is written.
struct Written<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    length: Option<usize>,
}

impl Written<'_> {
    fn operator(&self) -> Result<Operator, FormatError> {
        use Operator as O;
        match self.name {
            "START_TIME" => self.time().map(O::StartTime),
            "EMIT_TIME" => self.time().map(O::EmitTime),
            "COMMON_DURATION" => {
                self.no_length()?;
                span(self.needed()?).map_err(|why| self.wrong(why))
            }
            "REQ" => self.header(HeaderMap::Request).map(O::Header),
            "RESP" => self.header(HeaderMap::Response).map(O::Header),
            "TRAILER" => self.header(HeaderMap::Trailer).map(O::Header),
            "REQ_WITHOUT_QUERY" => self.header(HeaderMap::Request).map(O::RequestHeaderWithoutQuery),
            "PATH" => match path(self.arguments, self.length) {
                Ok(path) => Ok(O::Path(path)),
                Err(why) => Err(self.wrong(why)),
            },
            "QUERY_PARAM" => Ok(O::QueryParameter {
                name: self.needed()?.into(),
                max_length: self.length,
            }),
            "QUERY_PARAMS" => match self.arguments {
                None | Some("ORIG") => Ok(O::Query(self.length)),
                Some(_) => Err(self.wrong("only ORIG is supported")),
            },
            "DYNAMIC_METADATA" => Ok(O::DynamicMetadata(self.metadata(self.needed()?))),
            "METADATA" => match self.needed()?.strip_prefix("DYNAMIC:") {
                Some(place) => Ok(O::DynamicMetadata(self.metadata(place))),
                None => Err(self.wrong("only DYNAMIC is supported")),
            },
            "GRPC_STATUS" => self.grpc_status().map(O::GrpcStatus),
            "REQUESTED_SERVER_NAME" => self.server_name().map(O::RequestedServerName),
            name if UNSUPPORTED.split_whitespace().any(|known| known == name) => {
                Err(FormatError::Unsupported(name.to_owned()))
            }
            name => Err(FormatError::Unknown(name.to_owned())),
        }
    }

    fn wrong(&self, why: &'static str) -> FormatError {
        FormatError::Argument {
            operator: self.name.to_owned(),
            argument: self.arguments.unwrap_or_default().to_owned(),
            why,
        }
    }

    fn needed(&self) -> Result<&str, FormatError> {
        self.arguments
            .ok_or_else(|| FormatError::MissingArguments(self.name.to_owned()))
    }

    fn no_length(&self) -> Result<(), FormatError> {
        match self.length {
            None => Ok(()),
            Some(_) => Err(FormatError::NoLength(self.name.to_owned())),
        }
    }

    fn time(&self) -> Result<TimeFormat, FormatError> {
        self.no_length()?;
        match self.arguments {
            None => Ok(TimeFormat::default()),
            Some(text) => TimeFormat::parse(text).map_err(|why| self.wrong(why)),
        }
    }

    fn header(&self, of: HeaderMap) -> Result<Header, FormatError> {
        Header::new(of, self.needed()?, self.length).map_err(|why| self.wrong(why))
    }

    fn metadata(&self, place: &str) -> MetadataOperator {
        let mut words = place.split(':').map(Arc::from);
        MetadataOperator {
            filter: words.next().unwrap_or_default(),
            path: words.collect(),
            max_length: self.length,
        }
    }

    fn grpc_status(&self) -> Result<GrpcStatusFormat, FormatError> {
        self.no_length()?;
        match self.arguments {
            None | Some("CAMEL_STRING") => Ok(GrpcStatusFormat::CamelString),
            Some("SNAKE_STRING") => Ok(GrpcStatusFormat::SnakeString),
            Some("NUMBER") => Ok(GrpcStatusFormat::Number),
            Some(_) => Err(self.wrong("write CAMEL_STRING, SNAKE_STRING or NUMBER")),
        }
    }

    fn server_name(&self) -> Result<ServerName, FormatError> {
        self.no_length()?;
        match self.arguments {
            None | Some("SNI_ONLY") => Ok(ServerName::Sni),
            Some("SNI_FIRST") => Ok(ServerName::SniFirst),
            Some("HOST_FIRST") => Ok(ServerName::HostFirst),
            Some(_) => Err(self.wrong("write SNI_ONLY, SNI_FIRST or HOST_FIRST")),
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
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => O::PoolReadyDuration,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" => O::DownstreamHeaderBytesReceived,
        "DOWNSTREAM_HEADER_BYTES_SENT" => O::DownstreamHeaderBytesSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" => O::UpstreamHeaderBytesReceived,
        "UPSTREAM_HEADER_BYTES_SENT" => O::UpstreamHeaderBytesSent,
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
        "UPSTREAM_HOST" => O::Address(Place::UpstreamHost, AddressPart::Whole),
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
        "UPSTREAM_CONNECTION_ID" => O::UpstreamConnectionId,
        "STREAM_ID" => O::StreamId,
        "UNIQUE_ID" => O::UniqueId,
        "TRACE_ID" => O::TraceId,
        "SPAN_ID" => O::SpanId,
        "FILTER_CHAIN_NAME" => O::FilterChainName,
        "LISTENER_NAME" => O::ListenerName,
        "HOSTNAME" => O::Hostname,
        "ACCESS_LOG_TYPE" => O::AccessLogType,
        // JA3 and JA4 are the TLS inspector's only when asked for, virtual clusters a route table's.
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" | "VIRTUAL_CLUSTER_NAME" => O::Never,
        _ => return address(name),
    })
}

/// What `PATH` is to tell: `WQ` or `NQ` (with or without the query), then which path.
fn path(arguments: Option<&str>, max_length: Option<usize>) -> Result<PathOperator, &'static str> {
    let mut words = arguments.unwrap_or("WQ").split(':');
    let query = match words.next() {
        None | Some("WQ" | "") => true,
        Some("NQ") => false,
        Some(_) => return Err("write WQ or NQ first"),
    };
    let source = match words.next() {
        Some("PATH") => PathSource::Path,
        Some("ORIG") => PathSource::Original,
        None | Some("ORIG_OR_PATH") => PathSource::OriginalOrPath,
        Some(_) => return Err("write ORIG, PATH or ORIG_OR_PATH second"),
    };
    match words.next() {
        None => Ok(PathOperator {
            query,
            source,
            max_length,
        }),
        Some(_) => Err("at most two arguments"),
    }
}

/// Between which moments, and in which unit: `DS_RX_BEG:US_RX_BEG:us`.
fn span(text: &str) -> Result<Operator, &'static str> {
    let mut words = text.split(':');
    let (Some(from), Some(to)) = (words.next(), words.next()) else {
        return Err("write two moments, such as DS_RX_BEG:DS_TX_END");
    };
    let unit = match words.next() {
        None | Some("ms") => DurationUnit::Millis,
        Some("us") => DurationUnit::Micros,
        Some("ns") => DurationUnit::Nanos,
        Some(_) => return Err("a duration is told in ms, us or ns"),
    };
    if words.next().is_some() {
        return Err("at most three arguments");
    }
    Ok(match (TimePoint::parse(from)?, TimePoint::parse(to)?) {
        (Some(from), Some(to)) => Operator::CommonDuration(Span { from, to, unit }),
        // A name that Envoy does not know is one that an extension may note: none does.
        _ => Operator::Never,
    })
}

impl TimePoint {
    /// The moment that Envoy calls `name`; none where it has no such moment of its own.
    fn parse(name: &str) -> Result<Option<Self>, &'static str> {
        Ok(Some(match name {
            "DS_RX_BEG" => Self::DownstreamReceiveBegin,
            "DS_RX_END" => Self::DownstreamReceiveEnd,
            "US_CX_BEG" => Self::UpstreamConnectBegin,
            "US_CX_END" => Self::UpstreamConnectEnd,
            "US_HS_END" => Self::UpstreamHandshakeEnd,
            "US_TX_BEG" => Self::UpstreamSendBegin,
            "US_TX_END" => Self::UpstreamSendEnd,
            "US_RX_BEG" => Self::UpstreamReceiveBegin,
            "US_RX_BODY_BEG" => Self::UpstreamBodyBegin,
            "US_RX_END" => Self::UpstreamReceiveEnd,
            "DS_TX_BEG" => Self::DownstreamSendBegin,
            "DS_TX_END" => Self::DownstreamSendEnd,
            "DS_CX_BEG" | "DS_CX_END" | "DS_HS_BEG" | "DS_HS_END" | "DS_RX_HDR_END" => {
                return Err("moments of the downstream connection are not supported");
            }
            _ => return Ok(None),
        }))
    }
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
