//! A resource store whose resources say in their body which others they need.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Bytes;

use crate::control::xds::{Refused, Resource, ResourceKind, Resources};

/// The body that the store refuses.
pub(crate) const BAD: &str = "bad";

/// A resource whose body is the list of those that it needs, such as `eds/api rds/web`, or [`BAD`].
pub(crate) fn resource(kind: ResourceKind, name: &str, version: u64, needs: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_string(),
        type_url: kind.type_url().to_owned(),
        body: Bytes::copy_from_slice(needs.as_bytes()),
    }
}

#[derive(Clone, Default)]
pub(crate) struct Store(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    held: BTreeMap<ResourceKind, BTreeMap<String, Resource>>,
    applied: BTreeMap<ResourceKind, usize>,
}

impl Store {
    /// Versions by name.
    pub(crate) fn versions(&self, kind: ResourceKind) -> BTreeMap<String, String> {
        let inner = self.0.borrow();
        let held = inner.held.get(&kind).into_iter().flatten();
        held.map(|(name, resource)| (name.clone(), resource.version.clone()))
            .collect()
    }

    /// How many responses of a kind were taken.
    pub(crate) fn applied(&self, kind: ResourceKind) -> usize {
        self.0.borrow().applied.get(&kind).copied().unwrap_or_default()
    }
}

impl Inner {
    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        for resource in self.held.values().flat_map(BTreeMap::values) {
            for need in std::str::from_utf8(&resource.body).unwrap().split_whitespace() {
                let (abbreviation, name) = need.split_once('/').unwrap();
                if abbreviation == kind.abbreviation() {
                    names.insert(Arc::from(name));
                }
            }
        }
        names
    }
}

impl Resources for Store {
    fn apply(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Refused> {
        if let Some(bad) = changed.iter().find(|resource| resource.body == BAD) {
            let message = format!("{} has a field that is not supported", bad.name);
            return Err(Refused { message });
        }
        let mut inner = self.0.borrow_mut();
        *inner.applied.entry(kind).or_default() += 1;
        let held = inner.held.entry(kind).or_default();
        held.retain(|name, _| !removed.contains(name));
        held.extend(changed.into_iter().map(|r| (r.name.clone(), r)));
        for kind in ResourceKind::ALL {
            if !kind.is_wildcard() {
                let wanted = inner.interest(kind);
                let held = inner.held.entry(kind).or_default();
                held.retain(|name, _| wanted.contains(name.as_str()));
            }
        }
        Ok(())
    }

    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>> {
        self.0.borrow().interest(kind)
    }
}
