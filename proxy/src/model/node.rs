//! Who this proxy is.

use std::sync::Arc;

/// Envoy's `node`, as far as requests and spans tell of it. All of it may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `node.id`: the proxy's.
    pub id: Arc<str>,
    /// `node.cluster`: the service's name.
    pub cluster: Arc<str>,
    /// `node.locality.zone`.
    pub zone: Arc<str>,
}
