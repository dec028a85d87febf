//! The pure model: what a sidecar listens on, whom it lets in and where bytes may go.
//!
//! Types and pure decisions only: no sockets, no runtime, no clock. Control sources build a
//! [`Snapshot`], the data plane reads it; nothing else is shared between the two. The words are
//! Envoy's, so the xDS source lowers to it one to one and the Consul source compiles to it.

pub mod access_log;
pub mod cluster;
pub mod downstream;
pub mod filter_chain_match;
pub mod flags;
pub mod header_value;
pub mod http;
pub mod jwt;
pub mod listener;
pub mod matcher;
pub mod metadata;
pub mod node;
pub mod rbac;
pub mod rewrite;
pub mod route;
pub mod route_match;
pub mod secret;
pub mod spiffe;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use cluster::{Cluster, ClusterKind, ClusterLoadAssignment, Endpoint, Target, UpstreamTls};
pub use downstream::{Downstream, Peer};
pub use flags::{ResponseFlag, ResponseFlags};
pub use http::HttpConnectionManager;
pub use listener::{DownstreamTls, FilterChain, Listener, NetworkFilter, Terminal};
pub use metadata::Metadata;
pub use node::Node;
pub use rbac::{Action, Rbac, Verdict};
pub use route::RouteConfiguration;
pub use secret::{Identity, Roots, Trust, TrustBundle, Validation};
pub use spiffe::SpiffeId;

/// A name of a listener or cluster, shared by everything that mentions it.
pub type Name = Arc<str>;

/// One complete, consistent configuration of the data plane. Immutable; parts that did not change
/// between two snapshots are the same `Arc`, so readers find changes by comparing (equal parts may
/// also be different `Arc`s: then they compare by value).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By listener name.
    pub listeners: BTreeMap<Name, Arc<Listener>>,
    /// By cluster name.
    pub clusters: BTreeMap<Name, Arc<Cluster>>,
    /// By cluster name. A cluster without an entry has endpoints that are *not known yet*; an entry
    /// without endpoints is known to be empty. Only clusters of [`ClusterKind::Endpoints`] and
    /// [`ClusterKind::Dns`] have one.
    pub endpoints: BTreeMap<Name, Arc<ClusterLoadAssignment>>,
    /// By RDS name ([`http::Routes::Rds`]). A name without an entry is *not known yet*.
    pub routes: BTreeMap<Name, Arc<RouteConfiguration>>,
    /// Who this proxy is.
    pub node: Arc<Node>,
    /// The bootstrap's `tracing`: of connection managers that name no provider ([`http::Tracing::provider`]).
    pub tracing: Option<Arc<http::TracingProvider>>,
}
