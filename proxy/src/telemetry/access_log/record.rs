//! All that a line can tell about one connection, as plain values.

use std::time::{Duration, SystemTime};

use crate::model::{Peer, ResponseFlag};

/// The facts of one connection at its end. Addresses are texts: an address with its port, or a unix
/// socket's path. What is unknown or does not apply is none.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Envoy's name of what the line is about.
    pub kind: RecordKind,
    /// When the connection was accepted.
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
    /// In Envoy's order; empty where there is nothing to remark.
    pub flags: &'a [ResponseFlag],
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
    pub downstream_remote: Option<&'a str>,
    /// Who connected, by the socket.
    pub downstream_direct_remote: Option<&'a str>,
    /// Where to, before a redirection.
    pub downstream_local: Option<&'a str>,
    /// Where to, by the socket.
    pub downstream_direct_local: Option<&'a str>,
    /// The ClientHello's server name.
    pub server_name: Option<&'a str>,
    /// The names in the downstream's certificate.
    pub downstream_peer: Option<&'a Peer>,
    /// TLS with the downstream.
    pub downstream_tls: Option<TlsSession<'a>>,
    /// The cluster by which the upstream was looked for.
    pub cluster: Option<&'a str>,
    /// The name by which the endpoint is known, where it has one beside its address.
    pub endpoint_name: Option<&'a str>,
    /// The endpoint connected to, or tried last.
    pub upstream_remote: Option<&'a str>,
    /// Our end towards it.
    pub upstream_local: Option<&'a str>,
    /// Endpoints tried.
    pub attempts: u32,
    /// The names in the endpoint's certificate.
    pub upstream_peer: Option<&'a Peer>,
    /// TLS with the endpoint.
    pub upstream_tls: Option<TlsSession<'a>>,
}

/// Envoy's `AccessLogType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A listener's line.
    NotSet,
    /// The TCP proxy's, at a connection's end.
    TcpConnectionEnd,
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
        }
    }
}
