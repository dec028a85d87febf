//! Listeners, filter chains and network filters (Envoy's `Listener`, `FilterChain`, `Filter`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::access_log::AccessLog;
use super::filter_chain_match::FilterChainMatch;
use super::http::{HttpConnectionManager, Routes};
use super::rbac::Rbac;
use super::secret::{Identity, Validation};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Not said, as of the listeners in a bootstrap file.
    #[default]
    Unspecified,
    /// From the mesh to the local service.
    Inbound,
    /// From the local service to an upstream.
    Outbound,
}

/// One bound address and what happens to connections accepted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique in a snapshot.
    pub name: Name,
    /// Where it binds. A changed address is a new socket; anything else is swapped under the old one.
    pub address: Address,
    /// Which way its connections go.
    pub direction: Direction,
    /// Begins the names of its statistics where it is given; else they begin with the address.
    pub stat_prefix: Option<Name>,
    /// What is found out about a connection before a chain is chosen.
    pub filters: ListenerFilters,
    /// The chains, of which the most specific that matches takes a connection
    /// ([`Self::find_filter_chain`]).
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Takes what no other does; without it such a connection is closed (NR).
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// `connection_balance_config.exact_balance`: workers have equally many connections.
    pub exact_balance: bool,
    /// Written for every connection, whichever chain took it; Consul's has a filter for those that none took (NR).
    pub access_log: Vec<Arc<AccessLog>>,
}

/// Envoy's listener filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerFilters {
    /// `envoy.filters.listener.original_dst`: asks the kernel where a redirected connection went.
    pub original_dst: bool,
    /// `envoy.filters.listener.tls_inspector`: reads the ClientHello without taking it.
    pub tls_inspector: bool,
    /// `envoy.filters.listener.http_inspector`: looks for an HTTP request line without taking it.
    pub http_inspector: bool,
    /// `envoy.filters.listener.proxy_protocol`: takes a PROXY header, which must be there.
    pub proxy_protocol: bool,
    /// `listener_filters_timeout`: how long they may wait for bytes; none waits for ever.
    pub timeout: Option<Duration>,
    /// `continue_on_listener_filters_timeout`: whether a connection goes on after that.
    pub continue_on_timeout: bool,
}

/// How an accepted connection is handled. A live connection keeps the chain that it began with; of a
/// newer one it takes the RBAC rules only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChain {
    /// May be empty.
    pub name: Name,
    /// Which connections it takes.
    pub matches: FilterChainMatch,
    /// TLS towards the downstream; none is plaintext.
    pub transport: Option<Arc<DownstreamTls>>,
    /// Run in order before the terminal filter; the first refusal ends the connection.
    pub filters: Vec<NetworkFilter>,
    /// What carries the bytes.
    pub terminal: Terminal,
}

/// Envoy's `DownstreamTlsContext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// What is presented.
    pub identity: Arc<Identity>,
    /// Who may speak.
    pub client: ClientCertificate,
    /// Protocols accepted (ALPN), in order of preference. A peer that offers none, or none of these, is
    /// served all the same, as by Envoy.
    pub alpn: Vec<Arc<str>>,
    /// Versions and cipher suites.
    pub params: TlsParams,
}

/// What is asked of a client in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// No certificate: plain TLS, as of a Prometheus listener.
    None,
    /// One that is presented must be good.
    Optional(Validation),
    /// A good one must be presented: mutual TLS.
    Required(Validation),
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
    /// Whether sessions are resumed: Envoy's `disable_stateless_session_resumption` of a listener,
    /// `max_session_keys: 0` of a cluster say no.
    pub resumption: bool,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self {
            min: TlsVersion::V1_2,
            max: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            resumption: true,
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

/// A filter before the terminal one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkFilter {
    /// `envoy.filters.network.rbac`. Checked at the start, and again for live connections whenever
    /// the rules change.
    Rbac {
        /// They.
        rules: Arc<Rbac>,
        /// Begins its statistics; Consul's is `connect_authz`.
        stat_prefix: Name,
    },
    /// `envoy.filters.network.connection_limit`: at most this many live connections of the chain.
    ConnectionLimit {
        /// The highest number of connections at once, over all workers.
        max_connections: u64,
        /// How long one over the limit is held open before it is closed.
        delay: Option<Duration>,
        /// Begins its statistics.
        stat_prefix: Name,
    },
    /// `envoy.filters.network.sni_cluster`: the server name is the cluster's name.
    SniCluster,
}

/// The filter that carries a connection's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// `envoy.filters.network.tcp_proxy`.
    TcpProxy(TcpProxy),
    /// `envoy.filters.network.http_connection_manager`.
    HttpConnectionManager(Arc<HttpConnectionManager>),
}

/// Envoy's `TcpProxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpProxy {
    /// Begins its statistics.
    pub stat_prefix: Name,
    /// The clusters to choose from by weight. One is Envoy's `cluster`; an empty name has none, for
    /// [`NetworkFilter::SniCluster`] to give.
    pub clusters: Vec<WeightedCluster>,
    /// Cuts a connection on which no byte moved either way for this long. None (a stated deviation
    /// from Envoy's hour) unless configured.
    pub idle_timeout: Option<Duration>,
    /// Cuts a connection that is this old, whatever it does.
    pub max_duration: Option<Duration>,
    /// Endpoints tried for one connection; none is Attaché's own number.
    pub max_connect_attempts: Option<u32>,
    /// Written when a connection ends.
    pub access_log: Vec<Arc<AccessLog>>,
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: Name,
    /// Relative to the sum of all; at least 1.
    pub weight: u32,
}

impl Default for ListenerFilters {
    /// None, with Envoy's timeout of 15 s.
    fn default() -> Self {
        Self {
            original_dst: false,
            tls_inspector: false,
            http_inspector: false,
            proxy_protocol: false,
            timeout: Some(Duration::from_secs(15)),
            continue_on_timeout: false,
        }
    }
}

impl ListenerFilters {
    /// Whether bytes must have arrived before a chain can be chosen.
    pub fn wait_for_bytes(&self) -> bool {
        self.tls_inspector || self.http_inspector || self.proxy_protocol
    }
}

impl Listener {
    /// Every chain, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }

    /// The route configurations that its chains ask for by name (RDS).
    pub fn route_names(&self) -> impl Iterator<Item = &Name> {
        self.chains().filter_map(|chain| match &chain.terminal {
            Terminal::HttpConnectionManager(manager) => match &manager.routes {
                Routes::Rds(name) => Some(name),
                Routes::Inline(_) => None,
            },
            Terminal::TcpProxy(_) => None,
        })
    }
}

impl TcpProxy {
    /// To one cluster, with everything else left to its default.
    pub fn to(cluster: Name, stat_prefix: Name) -> Self {
        Self {
            stat_prefix,
            clusters: vec![WeightedCluster {
                name: cluster,
                weight: 1,
            }],
            idle_timeout: None,
            max_duration: None,
            max_connect_attempts: None,
            access_log: Vec::new(),
        }
    }
}
