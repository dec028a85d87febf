//! Clusters and their endpoints (Envoy's `Cluster`, `ClusterLoadAssignment`, `LbEndpoint`).

use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::listener::{Address, TlsParams};
use super::secret::{Identity, Validation};

/// A named group of endpoints that are dialled alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Unique in a snapshot; also the key of its statistics, unless `alt_stat_name` is given.
    pub name: Name,
    /// Its name in statistics.
    pub alt_stat_name: Option<Name>,
    /// Where its endpoints come from.
    pub kind: ClusterKind,
    /// Bounds one dial including its TLS handshake, and the wait for first endpoints.
    pub connect_timeout: Duration,
    /// TLS towards the endpoints; none is plaintext.
    pub transport: Option<Arc<UpstreamTls>>,
    /// How one endpoint is chosen among several.
    pub load_balancer: LoadBalancer,
    /// Below this percentage of healthy endpoints all are used, health notwithstanding. Envoy's default
    /// is 50; Consul sets 0 for the mesh's services.
    pub panic_threshold: u8,
    /// What may be under way at once, over all workers.
    pub circuit_breakers: CircuitBreakers,
    /// Takes endpoints out that fail; none leaves all in.
    pub outlier_detection: Option<OutlierDetection>,
    /// TCP keepalive of its connections; none is Attaché's own.
    pub keepalive: Option<Keepalive>,
    /// How HTTP is spoken to its endpoints.
    pub http: HttpProtocol,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// From [`super::Snapshot::endpoints`] as they are (Envoy's EDS and STATIC).
    Endpoints,
    /// From [`super::Snapshot::endpoints`], whose host names are resolved again and again.
    Dns(Dns),
    /// `ORIGINAL_DST`: where the downstream's connection went before it was redirected.
    OriginalDestination,
    /// `envoy.clusters.aggregate`: the priorities of these clusters, one after the other.
    Aggregate(Vec<Name>),
}

/// How host names are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns {
    /// `STRICT_DNS`: every address is an endpoint. Otherwise `LOGICAL_DNS`: the first one is.
    pub strict: bool,
    /// How long an answer is used.
    pub refresh: Duration,
    /// Which addresses are asked for.
    pub family: DnsFamily,
}

/// Envoy's `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 addresses; IPv4 ones only if there are none. Envoy's `AUTO`.
    #[default]
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4 addresses; IPv6 ones only if there are none.
    V4Preferred,
    /// Both.
    All,
}

/// How one endpoint is chosen (Envoy's `lb_policy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// In turn by weight. For TCP, Attaché takes the endpoint with the fewest connections for its weight,
    /// a stated deviation: long connections make turns unfair.
    #[default]
    RoundRobin,
    /// The least loaded of `choice_count` drawn at random.
    LeastRequest {
        /// At least 2.
        choice_count: u32,
    },
    /// Any, by weight.
    Random,
    /// A consistent hash on a ring.
    RingHash {
        /// Entries on the ring at least.
        minimum_ring_size: u64,
        /// Entries on the ring at most.
        maximum_ring_size: u64,
    },
    /// A consistent hash by a Maglev table.
    Maglev {
        /// Entries; a prime.
        table_size: u64,
    },
}

/// Envoy's `CircuitBreakers`, default priority; none is Envoy's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitBreakers {
    /// Connections at once; Envoy's default is 1024.
    pub max_connections: Option<u32>,
    /// Connections or requests that wait for one; Envoy's default is 1024.
    pub max_pending_requests: Option<u32>,
    /// Requests at once; Envoy's default is 1024.
    pub max_requests: Option<u32>,
    /// Retries at once; Envoy's default is 3.
    pub max_retries: Option<u32>,
}

/// Envoy's `OutlierDetection`, as far as Consul sets it. A TCP connection that cannot be made counts as a
/// 5xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row after which an endpoint is ejected; 0 never ejects.
    pub consecutive_5xx: u32,
    /// In how many cases of a hundred that is really done.
    pub enforcing_consecutive_5xx: u8,
    /// Gateway failures (502, 503, 504) in a row after which an endpoint is ejected; 0 never ejects.
    pub consecutive_gateway_failure: u32,
    /// In how many cases of a hundred that is really done; Envoy's default is 0.
    pub enforcing_consecutive_gateway_failure: u8,
    /// How often ejections are looked at and ended.
    pub interval: Duration,
    /// An ejection lasts this long times the number of ejections before it.
    pub base_ejection_time: Duration,
    /// No ejection is longer.
    pub max_ejection_time: Duration,
    /// Of a hundred endpoints no more are out at once: of fewer than ten none by Envoy's default of 10 (since
    /// 1.31; before, one always could be).
    pub max_ejection_percent: u8,
}

/// TCP keepalive of upstream connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe; none is the system's.
    pub time: Option<Duration>,
    /// Between probes; none is the system's.
    pub interval: Option<Duration>,
    /// Unanswered probes before the connection is dead; none is the system's.
    pub probes: Option<u32>,
}

/// How HTTP is spoken to a cluster (Envoy's `HttpProtocolOptions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without asking (`explicit_http_config.http2_protocol_options`).
    Http2,
    /// What the downstream speaks (`use_downstream_protocol_config`).
    Downstream,
}

/// Envoy's `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// What is presented; none presents nothing.
    pub identity: Option<Arc<Identity>>,
    /// Which endpoints are good.
    pub validation: Validation,
    /// Consul's is `<service>.default.<dc>.internal.<trust domain>`; none is not sent.
    pub sni: Option<Arc<str>>,
    /// Protocols offered (ALPN).
    pub alpn: Vec<Arc<str>>,
    /// Versions and cipher suites.
    pub params: TlsParams,
}

/// The endpoints of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterLoadAssignment {
    /// In no particular order.
    pub endpoints: Vec<Endpoint>,
    /// By how many percent the health of a priority is overrated before the next one gets a share:
    /// Envoy's default is 140.
    pub overprovisioning_factor: u32,
}

/// One instance that may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Target,
    /// Relative share of connections, at least 1; Consul's service weight.
    pub weight: u32,
    /// Unhealthy endpoints are dialled only in panic ([`Cluster::panic_threshold`]).
    pub healthy: bool,
    /// 0 is used first; the next one takes over as far as endpoints of this one are unhealthy.
    pub priority: u32,
    /// What it is called, for `auto_host_rewrite`; one that is dialled by name needs none.
    pub hostname: Option<Arc<str>>,
}

/// What an endpoint's address is before it is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Ready to dial.
    Address(Address),
    /// A host name, resolved before it is dialled.
    Host {
        /// The name.
        host: Arc<str>,
        /// TCP port.
        port: u16,
    },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Cluster {
    /// Its name in statistics and access logs: Envoy's `observability_name`.
    pub fn stat_name(&self) -> &Name {
        self.alt_stat_name.as_ref().unwrap_or(&self.name)
    }
}

impl Default for ClusterLoadAssignment {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            overprovisioning_factor: 140,
        }
    }
}

impl Default for Cluster {
    /// A cluster of Envoy's defaults, still without a name.
    fn default() -> Self {
        Self {
            name: "".into(),
            alt_stat_name: None,
            kind: ClusterKind::Endpoints,
            connect_timeout: Duration::from_secs(5),
            transport: None,
            load_balancer: LoadBalancer::default(),
            panic_threshold: 50,
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            keepalive: None,
            http: HttpProtocol::default(),
        }
    }
}

impl Default for OutlierDetection {
    /// Envoy's defaults: what an empty message stands for.
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 5,
            enforcing_consecutive_gateway_failure: 0,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
        }
    }
}
