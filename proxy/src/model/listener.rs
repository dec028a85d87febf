//! Listeners, filter chains and network filters (Envoy's `Listener`, `FilterChain`, `Filter`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::rbac::Rbac;
use super::secret::{Identity, TrustBundle};

/// Where a listener binds or an endpoint is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A TCP address.
    Socket(SocketAddr),
    /// A unix socket; `mode` (a listener's only) is set on the file once bound.
    Pipe {
        /// The socket file.
        path: PathBuf,
        /// Permission bits, such as `0o660`; the umask decides when absent.
        mode: Option<u32>,
    },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe { path, .. } => path.display().fmt(f),
        }
    }
}

/// Envoy's `traffic_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the mesh to the local service.
    Inbound,
    /// From the local service to an upstream.
    Outbound,
}

/// One bound address and what happens to connections accepted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique in a snapshot; also the key of its statistics.
    pub name: Name,
    /// Where it binds. A changed address is a new socket; anything else is swapped under the old one.
    pub address: Address,
    /// Which way its connections go.
    pub direction: Direction,
    /// What a new connection runs through.
    pub filter_chain: Arc<FilterChain>,
}

/// How one accepted connection is handled. A live connection keeps the chain that it began with; of
/// a newer one it takes the RBAC rules only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChain {
    /// TLS towards the downstream; none is plaintext.
    pub transport: Option<Arc<DownstreamTls>>,
    /// Run in order before the terminal filter; the first refusal ends the connection.
    pub filters: Vec<NetworkFilter>,
    /// What carries the bytes.
    pub terminal: Terminal,
}

/// Envoy's `DownstreamTlsContext`: always with a client certificate demanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// What is presented.
    pub identity: Arc<Identity>,
    /// Whom client certificates must chain to, and the trust domain that their URI must name.
    pub trust: Arc<TrustBundle>,
    /// Versions and cipher suites.
    pub params: TlsParams,
}

/// Envoy's `TlsParameters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParams {
    /// The lowest version offered.
    pub min: TlsVersion,
    /// The highest version offered.
    pub max: TlsVersion,
    /// IANA names of TLS 1.2 suites to allow, such as `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256`;
    /// empty allows all safe ones. TLS 1.3 suites are not configurable, as in Envoy.
    pub cipher_suites: Vec<String>,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self {
            min: TlsVersion::V1_2,
            max: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
        }
    }
}

/// A TLS version that Attaché speaks; older ones cannot be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// A filter that may refuse a connection before the terminal filter sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkFilter {
    /// `envoy.filters.network.rbac`. Checked at the start, and again for live connections whenever
    /// the rules change.
    Rbac(Arc<Rbac>),
    /// `envoy.filters.network.connection_limit`: at most this many live connections of the listener.
    ConnectionLimit {
        /// The highest number of connections at once, over all workers.
        max_connections: u64,
    },
}

/// The filter that carries a connection's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// `envoy.filters.network.tcp_proxy`.
    TcpProxy(TcpProxy),
}

/// Envoy's `TcpProxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpProxy {
    /// The cluster dialled for each connection.
    pub cluster: Name,
    /// Cuts a connection on which no byte moved either way for this long. None (a stated deviation
    /// from Envoy's hour) unless configured.
    pub idle_timeout: Option<Duration>,
}
