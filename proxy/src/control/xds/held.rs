//! Accepted resources, each as it came and decoded.
//!
//! How bytes become a value, and how a newer version takes the place of an older one. Knows nothing of
//! streams and of what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use attache_proto::TypeUrl;
use hyper::body::Bytes;
use prost::Message;

use super::Resource;
use super::decode::{self, Context, DecodeError, Eds, Secret};
use crate::model::route::RouteConfiguration;
use crate::model::{Cluster, ClusterLoadAssignment, Listener, Name};

/// One resource.
pub(super) struct Held<T> {
    /// As it came.
    pub(super) resource: Resource,
    /// From the bootstrap file: nobody can change it.
    pub(super) is_static: bool,
    /// When it was accepted.
    pub(super) updated: SystemTime,
    /// Decoded; none while it waits for a secret.
    pub(super) value: Option<T>,
    /// What in it has no effect here, in words.
    pub(super) notices: BTreeSet<String>,
    /// Files and folders it is made of.
    pub(super) watched: BTreeSet<PathBuf>,
    /// Secrets it names.
    pub(super) secrets: BTreeSet<Name>,
}

/// A cluster, with endpoints of its own or those of EDS.
pub(super) struct HeldCluster {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoints: Option<Arc<ClusterLoadAssignment>>,
    pub(super) eds: Option<Eds>,
}

/// By name.
pub(super) type All<T> = BTreeMap<Name, Held<T>>;

pub(super) fn secret_of(body: &[u8], context: &mut Context<'_>) -> Result<Secret, DecodeError> {
    decode::secret::decode_bytes(body, context).map(|(_, secret)| secret)
}

pub(super) fn cluster_of(body: &[u8], context: &mut Context<'_>) -> Result<HeldCluster, DecodeError> {
    let decoded = decode::cluster::decode_bytes(body, context)?;
    Ok(HeldCluster {
        cluster: Arc::new(decoded.cluster),
        endpoints: decoded.endpoints.map(Arc::new),
        eds: decoded.eds,
    })
}

pub(super) fn endpoints_of(
    body: &[u8],
    context: &mut Context<'_>,
) -> Result<Arc<ClusterLoadAssignment>, DecodeError> {
    decode::endpoint::decode_bytes(body, context).map(|(_, endpoints)| Arc::new(endpoints))
}

pub(super) fn routes_of(
    body: &[u8],
    context: &mut Context<'_>,
) -> Result<Arc<RouteConfiguration>, DecodeError> {
    decode::route::decode_bytes(body, context).map(Arc::new)
}

pub(super) fn listener_of(body: &[u8], context: &mut Context<'_>) -> Result<Arc<Listener>, DecodeError> {
    decode::listener::decode_bytes(body, context).map(Arc::new)
}

pub(super) fn fixed<M: Message + TypeUrl>(name: &str, message: &M) -> Resource {
    Resource {
        name: name.to_owned(),
        version: String::new(),
        type_url: M::TYPE_URL.to_owned(),
        body: Bytes::from(message.encode_to_vec()),
    }
}

/// Whether `name` is there from the bootstrap file.
pub(super) fn is_static<T>(all: &All<T>, name: &str) -> bool {
    all.get(name).is_some_and(|held| held.is_static)
}

/// Puts the newer ones in. What is equal to what was there stays the same `Arc`, so readers see no change.
pub(super) fn replace<T: Lent>(all: &mut All<T>, newer: Vec<(Name, Held<T>)>, removed: &[String]) {
    for name in removed {
        if !is_static(all, name) {
            all.remove(name.as_str());
        }
    }
    for (name, mut held) in newer {
        if let (Some(new), Some(Some(old))) = (&mut held.value, all.get(&name).map(|old| &old.value)) {
            new.lend(old);
        }
        if held.value.is_none() {
            // It waits for a secret; what it was goes on until then.
            held.value = all.remove(&name).and_then(|old| old.value);
        }
        all.insert(name, held);
    }
}

/// Parts of an older version that are equal.
pub(super) trait Lent {
    fn lend(&mut self, old: &Self);
}

impl<T: PartialEq> Lent for Arc<T> {
    fn lend(&mut self, old: &Self) {
        if **self == **old {
            *self = Arc::clone(old);
        }
    }
}

impl Lent for HeldCluster {
    fn lend(&mut self, old: &Self) {
        self.cluster.lend(&old.cluster);
        if let (Some(new), Some(old)) = (&mut self.endpoints, &old.endpoints) {
            new.lend(old);
        }
    }
}

impl Lent for Secret {
    fn lend(&mut self, _: &Self) {}
}

pub(super) fn values<T>(all: &All<Arc<T>>) -> BTreeMap<Name, Arc<T>> {
    let value =
        |(name, held): (&Name, &Held<Arc<T>>)| Some((Arc::clone(name), Arc::clone(held.value.as_ref()?)));
    all.iter().filter_map(value).collect()
}
