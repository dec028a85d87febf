//! Clusters and their endpoints (Envoy's `Cluster`, `ClusterLoadAssignment`, `LbEndpoint`).

use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::listener::{Address, TlsParams};
use super::secret::{Identity, TrustBundle};
use super::spiffe::SpiffeId;

/// A named group of endpoints that are dialled alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Unique in a snapshot; also the key of its statistics.
    pub name: Name,
    /// Where its endpoints come from.
    pub kind: ClusterKind,
    /// Bounds one dial including its TLS handshake, and the wait for a first or returning endpoint.
    pub connect_timeout: Duration,
    /// TLS towards the endpoints; none is plaintext.
    pub transport: Option<Arc<UpstreamTls>>,
    /// Envoy's `circuit_breakers.max_connections` over all workers; none is Envoy's default, 1024.
    pub max_connections: Option<u32>,
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// From [`super::Snapshot::endpoints`] (Envoy's EDS and STATIC).
    Endpoints,
    /// `envoy.clusters.aggregate`: the first cluster in the list with a healthy endpoint.
    Aggregate(Vec<Name>),
}

/// Envoy's `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// What is presented.
    pub identity: Arc<Identity>,
    /// Whom the endpoint's certificate must chain to.
    pub trust: Arc<TrustBundle>,
    /// Consul's SNI, `<service>.default.<dc>.internal.<trust domain>`.
    pub sni: String,
    /// The endpoint's one URI must be one of these, exactly. Never empty.
    pub spiffe_ids: Vec<SpiffeId>,
    /// Versions and cipher suites.
    pub params: TlsParams,
}

/// The endpoints of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterLoadAssignment {
    /// In no particular order.
    pub endpoints: Vec<Endpoint>,
}

/// One instance that may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Target,
    /// Relative share of connections, 1 to 128; Consul's service weight.
    pub weight: u32,
    /// Unhealthy endpoints are never dialled (Consul sets the panic threshold to 0).
    pub healthy: bool,
}

/// What an endpoint's address is before it is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Ready to dial.
    Address(Address),
    /// A host name, resolved at each dial.
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
