//! What a control plane takes away just after its first response on a stream, which is not believed at once.
//!
//! A Consul server that was restarted answers before it has looked up what a proxy's upstreams are: it
//! takes their listeners and clusters away and gives them back half a second later. Envoy drains them
//! meanwhile. Pure: no clock of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ResourceKind;

/// For how long after a stream's first response, which a server without a leader holds back: far above the half second seen, far below what an operator who
/// takes an upstream away waits for.
pub(super) const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// Removals that wait for the control plane to know what it says.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// None before a stream was answered while resources were held.
    until: Option<Instant>,
    leaving: BTreeMap<ResourceKind, BTreeSet<String>>,
}

impl Settling {
    /// A stream has its first response while resources are held.
    pub(super) fn begin(&mut self, now: Instant) {
        self.until = Some(now + SETTLES_WITHIN);
    }

    /// What of `removed` goes now: all of it, or nothing.
    pub(super) fn believed<'a>(&self, removed: &'a [String], now: Instant) -> &'a [String] {
        match self.settles(now) {
            true => &[],
            false => removed,
        }
    }

    /// A response of `kind` was taken: what is named again stays, and what was not believed waits.
    pub(super) fn taken(&mut self, kind: ResourceKind, named: &[String], removed: &[String], now: Instant) {
        let settles = self.settles(now);
        let leaving = self.leaving.entry(kind).or_default();
        for name in named {
            leaving.remove(name);
        }
        match settles {
            true => leaving.extend(removed.iter().cloned()),
            false => leaving.retain(|name| !removed.contains(name)),
        }
    }

    /// What waits, of one kind.
    pub(super) fn leaving(&self, kind: ResourceKind) -> impl Iterator<Item = &String> {
        self.leaving.get(&kind).into_iter().flatten()
    }

    /// These go after all.
    pub(super) fn gone(&mut self, kind: ResourceKind, names: &[String]) {
        if let Some(leaving) = self.leaving.get_mut(&kind) {
            leaving.retain(|name| !names.contains(name));
        }
    }

    /// What was not named again in time; it waits no more.
    pub(super) fn due(&mut self, now: Instant) -> BTreeMap<ResourceKind, Vec<String>> {
        if self.settles(now) {
            return BTreeMap::new();
        }
        let leaving = std::mem::take(&mut self.leaving).into_iter();
        let named = leaving.map(|(kind, names)| (kind, names.into_iter().collect::<Vec<_>>()));
        named.filter(|(_, names)| !names.is_empty()).collect()
    }

    fn settles(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: ResourceKind = ResourceKind::Listener;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn before_anything_is_held_and_after_the_time_removals_go_at_once() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        let removed = names(&["a"]);
        assert_eq!(settling.believed(&removed, now), removed);
        settling.begin(now);
        assert!(settling.believed(&removed, now).is_empty());
        assert_eq!(settling.believed(&removed, now + SETTLES_WITHIN), removed);
    }

    #[test]
    fn what_is_named_again_stays_and_the_rest_goes_in_the_end() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.begin(now);
        settling.taken(KIND, &[], &names(&["a", "b", "c"]), now);
        settling.taken(KIND, &names(&["a"]), &[], now);
        settling.gone(KIND, &names(&["c"]));
        assert_eq!(settling.leaving(KIND).collect::<Vec<_>>(), ["b"]);
        assert!(settling.due(now).is_empty());
        let due = settling.due(now + SETTLES_WITHIN);
        assert_eq!(due, BTreeMap::from([(KIND, names(&["b"]))]));
        assert!(settling.due(now + SETTLES_WITHIN).is_empty());
    }

    #[test]
    fn another_stream_begins_another_time() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.begin(now);
        settling.taken(KIND, &[], &names(&["a"]), now);
        settling.begin(now + SETTLES_WITHIN);
        assert!(settling.due(now + SETTLES_WITHIN).is_empty());
        assert_eq!(settling.due(now + SETTLES_WITHIN * 2).len(), 1);
    }
}
