//! All that a line can tell about one connection or request, as plain values.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::request::RequestFacts;
use crate::model::access_log::Ended;
use crate::model::matcher::Request;
use crate::model::{Peer, ResponseFlags};

/// The facts of one connection at its end, or of a request. What is unknown or does not apply is none.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Envoy's name of what the line is about.
    pub kind: RecordKind,
    /// When the connection was accepted, or the request began.
    pub start: SystemTime,
    /// When the line is made.
    pub emitted: SystemTime,
    /// From its start to its end.
    pub duration: Duration,
    /// Of the downstream, plaintext.
    pub bytes_received: u64,
    /// To the downstream, plaintext.
    pub bytes_sent: u64,
    /// Of the upstream, plaintext.
    pub upstream_bytes_received: u64,
    /// To the upstream, plaintext.
    pub upstream_bytes_sent: u64,
    /// Empty where there is nothing to remark.
    pub flags: ResponseFlags,
    /// Envoy's response code details.
    pub response_code_details: Option<&'a str>,
    /// Why a rule ended the connection.
    pub termination_details: Option<&'a str>,
    /// Why the proxy closed the downstream.
    pub local_close_reason: Option<&'a str>,
    /// Why TLS with the downstream failed.
    pub downstream_transport_failure: Option<&'a str>,
    /// Why the last endpoint tried could not be connected to.
    pub upstream_transport_failure: Option<&'a str>,
    /// The listener's name.
    pub listener: &'a str,
    /// The chain that took the connection.
    pub filter_chain: Option<&'a str>,
    /// The connection's number in this process; 0 where no chain took it.
    pub connection_id: u64,
    /// Of the connection, at random.
    pub stream_id: u128,
    /// This machine's name.
    pub hostname: &'a str,
    /// Who connected, by what is said of it.
    pub downstream_remote: Option<AddressText<'a>>,
    /// Who connected, by the socket.
    pub downstream_direct_remote: Option<AddressText<'a>>,
    /// Where to, before a redirection.
    pub downstream_local: Option<AddressText<'a>>,
    /// Where to, by the socket.
    pub downstream_direct_local: Option<AddressText<'a>>,
    /// The ClientHello's server name.
    pub server_name: Option<&'a str>,
    /// The names in the downstream's certificate.
    pub downstream_peer: Option<&'a Peer>,
    /// TLS with the downstream.
    pub downstream_tls: Option<TlsSession<'a>>,
    /// The cluster by which the upstream was looked for, by its name in access logs.
    pub cluster: Option<&'a str>,
    /// The same by its own name.
    pub cluster_raw: Option<&'a str>,
    /// The name by which the endpoint is known, where it has one beside its address.
    pub endpoint_name: Option<&'a str>,
    /// The endpoint connected to, or tried last.
    pub upstream_host: Option<AddressText<'a>>,
    /// The endpoint connected to.
    pub upstream_remote: Option<AddressText<'a>>,
    /// Our end towards it.
    pub upstream_local: Option<AddressText<'a>>,
    /// Endpoints tried.
    pub attempts: u32,
    /// The names in the endpoint's certificate.
    pub upstream_peer: Option<&'a Peer>,
    /// TLS with the endpoint.
    pub upstream_tls: Option<TlsSession<'a>>,
    /// What only a request has.
    pub request: Option<&'a RequestFacts<'a>>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressText<'a> {
    /// An IP with its port.
    Socket(SocketAddr),
    /// The same as a text, or a unix socket's path.
    Text(&'a str),
}

/// Envoy's `AccessLogType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A listener's line.
    NotSet,
    /// The TCP proxy's, at a connection's end.
    TcpConnectionEnd,
    /// The connection manager's, at a request's end.
    DownstreamEnd,
}

/// What was agreed in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsSession<'a> {
    /// Envoy's name of the version, such as `TLSv1.3`.
    pub version: &'a str,
    /// The cipher suite: for TLS 1.2 OpenSSL's name, as in Envoy.
    pub cipher: &'a str,
}

impl RecordKind {
    /// Envoy's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
            Self::DownstreamEnd => "DownstreamEnd",
        }
    }
}

impl Request for Record<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.request?.joined_request_header(name)
    }

    fn path(&self) -> &str {
        let path = self.request.and_then(|request| request.path).unwrap_or_default();
        path.split(['?', '#']).next().unwrap_or_default()
    }

    fn metadata(&self, filter: &str, path: &[Arc<str>]) -> Option<Cow<'_, str>> {
        Some(self.request?.metadata?.get(filter, path)?.as_str()?.into())
    }
}

impl Ended for Record<'_> {
    fn flags(&self) -> ResponseFlags {
        self.flags
    }

    fn status(&self) -> u16 {
        self.request.and_then(|request| request.status).unwrap_or(0)
    }

    fn duration(&self) -> Duration {
        self.duration
    }

    fn grpc_status(&self) -> Option<i64> {
        self.request?.grpc_status()
    }

    fn traced(&self) -> bool {
        self.request.is_some_and(|request| request.traced)
    }

    fn request_id(&self) -> Option<&str> {
        self.request?.request_id
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    fn log_type(&self) -> &str {
        self.kind.as_str()
    }
}
