//! The xDS source: what a control plane that speaks Envoy's protocol says, over one delta ADS stream.
//!
//! Owns the words that the client and the resource store share: the kinds of resources, one resource
//! as it came, and the [`Resources`] that take it. What a resource means is decided by the store; how
//! it is asked for and acknowledged by `subscription`; how the stream is
//! kept alive by [`Client`].

mod assemble;
pub mod bootstrap;
mod client;
mod config_dump;
pub mod credentials;
pub mod decode;
mod grpc;
mod held;
mod leg;
mod metrics;
mod ready;
mod report;
mod settling;
mod source;
mod stats;
mod status;
mod store;
mod subscription;
mod target;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use hyper::body::Bytes;

pub use client::{Client, Handle, client};
pub use source::{Prepared, XdsError, XdsSource, prepare, read};
pub use stats::Statistics;
pub use target::{Address, Target, Tls};
pub use wire::identify;

/// What kinds of resources are asked for, in the order of asking: a listener must find its clusters,
/// a cluster its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoint,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`.
    Secret,
    /// `envoy.config.listener.v3.Listener`.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Route,
}

impl ResourceKind {
    /// All of them, in the order of asking.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Listener,
        Self::Route,
    ];

    /// The type URL in requests, responses and `Any`.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind of a type URL, if it is one of ours.
    pub fn of_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Whether everything of this kind is asked for, not single names.
    pub fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// Envoy's abbreviation of its discovery service, such as `cds`.
    pub fn abbreviation(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Secret => "sds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.abbreviation())
    }
}

/// One resource as the control plane sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its kind.
    pub name: String,
    /// Opaque; another one means another content.
    pub version: String,
    /// Of the `Any`.
    pub type_url: String,
    /// The encoded message of that type. It may hold a private key.
    pub body: Bytes,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, version, body, ..
        } = self;
        write!(f, "{name}@{version} ({} bytes)", body.len())
    }
}

/// Why a response is not taken, for the control plane and the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Names the resource and the field.
    pub message: String,
}

/// The store of what was accepted, and what it wants next.
///
/// It keeps its resources when a stream ends: on the next one only differences come.
pub trait Resources {
    /// The first response of a stream comes next, from a server that may have been started a moment ago.
    fn stream_began(&mut self) {}

    /// Takes all of one response or nothing of it. Both lists may be empty: the control plane then
    /// says that it has answered. Names that were not asked for are left out already, and no name
    /// comes twice.
    ///
    /// # Errors
    /// What is wrong with the first resource that cannot be used; nothing of the response is kept.
    fn apply(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Refused>;

    /// Which names of a kind that is no wildcard are wanted now. Whatever is held of others is to be
    /// dropped: of those a control plane does not say when they go.
    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>>;

    /// The stream that they come by failed; another one is tried.
    fn stream_failed(&mut self) {}
}
