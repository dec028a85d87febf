//! Everything the stand-in knows, with the index at which each part last changed.
//!
//! One lock around it, held for no longer than one answer takes to build. It never waits; `blocking`
//! does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::authority::uuid;
use super::catalog::{Catalog, Instance};
use super::intention::Intentions;
use super::{
    Action, Authority, Fault, Health, IssueOptions, Issued, Registration, RegistrationError, StandInOptions,
};

/// Where the index of a fresh server stands once it has a leader, an authority and its config.
const FIRST_INDEX: u64 = 12;

/// What an answer depends on: each has an index of its own, so that a change elsewhere wakes
/// nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    Roots,
    Service(String),
    Connect(String),
    Intentions(String),
    Config(String),
    Override(String),
    Chain(String),
}

/// A leaf that somebody asked for; it is renewed as long as somebody asks.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) issued: Issued,
    pub(super) index: u64,
    pub(super) renew_at: Instant,
}

/// An answer that a test put in the place of the stand-in's own.
#[derive(Clone, Debug)]
pub(super) struct Override {
    pub(super) status: u16,
    pub(super) body: Value,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) datacenter: String,
    pub(super) node_id: String,
    pub(super) default_policy: Action,
    pub(super) acl_default_policy: Action,
    pub(super) token: Option<String>,
    pub(super) authority: Authority,
    pub(super) catalog: Catalog,
    pub(super) intentions: Intentions,
    pub(super) config: BTreeMap<(String, String), Value>,
    pub(super) prepared_queries: BTreeMap<String, String>,
    pub(super) requests: BTreeMap<String, u64>,
    pub(super) waiting: BTreeMap<String, usize>,
    /// Counts every change, also of what has no index: the clock of those who wait.
    pub(super) version: u64,
    leaf_ttl: Duration,
    leaves: BTreeMap<String, Leaf>,
    overrides: BTreeMap<String, Override>,
    faults: Vec<(String, Fault)>,
    index: u64,
    topics: HashMap<Topic, u64>,
    /// The index of whatever has not changed since the start.
    base: u64,
}

impl State {
    pub(super) fn new(options: &StandInOptions) -> Result<Self, rcgen::Error> {
        let mut authority = Authority::new(options.authority_key)?;
        authority.set_index(FIRST_INDEX);
        let node_id = uuid();
        let address = options.bind.ip().to_string();
        Ok(Self {
            datacenter: options.datacenter.clone(),
            node_id: node_id.clone(),
            default_policy: options.default_policy,
            acl_default_policy: options.acl_default_policy,
            token: options.token.clone(),
            authority,
            catalog: Catalog::new(&options.datacenter, node_id, address),
            intentions: Intentions::default(),
            config: BTreeMap::new(),
            prepared_queries: BTreeMap::new(),
            requests: BTreeMap::new(),
            waiting: BTreeMap::new(),
            version: 0,
            leaf_ttl: options.leaf_ttl,
            leaves: BTreeMap::new(),
            overrides: BTreeMap::new(),
            faults: Vec::new(),
            index: FIRST_INDEX,
            topics: HashMap::new(),
            base: FIRST_INDEX,
        })
    }

    /// The index of an answer that depends on these topics.
    pub(super) fn index_of(&self, topics: &[Topic]) -> u64 {
        let known = topics.iter().filter_map(|topic| self.topics.get(topic));
        known.copied().max().unwrap_or(self.base)
    }

    /// A change outside the data (a fault, a token): those who wait look again.
    pub(super) fn touch(&mut self) {
        self.version += 1;
    }

    fn next_index(&mut self) -> u64 {
        self.touch();
        self.index += 1;
        self.index
    }

    fn mark(&mut self, topic: Topic) {
        self.topics.insert(topic, self.index);
    }

    pub(super) fn register(&mut self, registration: &Registration) -> Result<Vec<String>, RegistrationError> {
        let index = self.next_index();
        let ids = self.catalog.register(registration, index)?;
        for id in &ids {
            if let Some(instance) = self.catalog.get(id).cloned() {
                self.mark_instance(&instance);
            }
        }
        Ok(ids)
    }

    pub(super) fn deregister(&mut self, id: &str) -> bool {
        self.next_index();
        let removed = self.catalog.deregister(id);
        for instance in &removed {
            self.mark_instance(instance);
        }
        !removed.is_empty()
    }

    pub(super) fn set_health(&mut self, id: &str, health: Health) {
        let index = self.next_index();
        for instance in self.catalog.set_health(id, health, index) {
            self.mark_instance(&instance);
        }
    }

    fn mark_instance(&mut self, instance: &Instance) {
        self.mark(Topic::Service(instance.service.clone()));
        if let Some(destination) = &instance.destination {
            self.mark(Topic::Connect(destination.clone()));
        }
    }

    pub(super) fn put_intentions(&mut self, destination: &str, sources: Vec<Map<String, Value>>) {
        let index = self.next_index();
        self.intentions.put(destination, sources, index);
        self.mark(Topic::Intentions(destination.to_owned()));
    }

    pub(super) fn set_intention(&mut self, source: &str, destination: &str, action: Option<Action>) {
        let index = self.next_index();
        match action {
            Some(action) => self.intentions.set(source, destination, action, index),
            None => self.intentions.unset(source, destination, index),
        }
        self.mark(Topic::Intentions(destination.to_owned()));
    }

    pub(super) fn remove_intentions(&mut self, destination: &str) {
        self.next_index();
        if self.intentions.remove(destination) {
            self.mark(Topic::Intentions(destination.to_owned()));
        }
    }

    pub(super) fn put_config(&mut self, kind: &str, name: &str, entry: Option<Value>) {
        let index = self.next_index();
        let key = (kind.to_owned(), name.to_owned());
        match entry {
            Some(Value::Object(mut fields)) => {
                fields.insert("CreateIndex".to_owned(), index.into());
                fields.insert("ModifyIndex".to_owned(), index.into());
                self.config.insert(key, Value::Object(fields));
            }
            _ => {
                self.config.remove(&key);
            }
        }
        self.mark(Topic::Config(format!("{kind}/{name}")));
        self.mark(Topic::Chain(name.to_owned()));
    }

    pub(super) fn set_override(&mut self, path: &str, answer: Option<Override>) {
        self.next_index();
        match answer {
            Some(answer) => {
                self.overrides.insert(path.to_owned(), answer);
            }
            None => {
                self.overrides.remove(path);
            }
        }
        self.mark(Topic::Override(path.to_owned()));
    }

    /// The override for a path; one with a query asks for those parameters too, and wins.
    pub(super) fn override_for(&self, path: &str, query: &[(String, String)]) -> Option<(Override, u64)> {
        let fits = |pattern: &&String| match pattern.split_once('?') {
            None => pattern.as_str() == path,
            Some((start, wanted)) => {
                start == path
                    && wanted.split('&').all(|pair| {
                        query
                            .iter()
                            .any(|(name, value)| pair == format!("{name}={value}"))
                    })
            }
        };
        let pattern = self.overrides.keys().filter(fits).max_by_key(|key| key.len())?;
        let index = self.index_of(&[Topic::Override(pattern.clone())]);
        Some((self.overrides.get(pattern)?.clone(), index))
    }

    /// Sets or clears the fault of a path prefix; the empty prefix is every path.
    pub(super) fn set_fault(&mut self, prefix: &str, fault: Option<Fault>) {
        self.touch();
        self.faults.retain(|(known, _)| known != prefix);
        self.faults.extend(fault.map(|fault| (prefix.to_owned(), fault)));
    }

    pub(super) fn fault_for(&self, path: &str) -> Option<Fault> {
        let fits = self.faults.iter().filter(|(prefix, _)| path.starts_with(prefix));
        fits.max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, fault)| *fault)
    }

    /// The current leaf of a service, issued or renewed if it is time.
    pub(super) fn leaf(&mut self, service: &str) -> Result<&Leaf, rcgen::Error> {
        let due = |leaf: &Leaf| leaf.renew_at <= Instant::now();
        if self.leaves.get(service).is_none_or(due) {
            self.renew_leaf(service)?;
        }
        self.leaves
            .get(service)
            .ok_or(rcgen::Error::CouldNotParseCertificate)
    }

    pub(super) fn renew_leaf(&mut self, service: &str) -> Result<(), rcgen::Error> {
        let options = IssueOptions::with_ttl(self.leaf_ttl);
        let issued = self.issue(service, &options)?;
        // Consul renews somewhere between 60 % and 90 % of the lifetime.
        let part = 0.6 + 0.3 * fastrand::f64();
        let leaf = Leaf {
            issued,
            index: self.next_index(),
            renew_at: Instant::now() + self.leaf_ttl.mul_f64(part),
        };
        self.leaves.insert(service.to_owned(), leaf);
        Ok(())
    }

    pub(super) fn issue(&mut self, service: &str, options: &IssueOptions) -> Result<Issued, rcgen::Error> {
        let uri = self.authority.service_uri(&self.datacenter, service);
        self.authority.issue(&uri, options)
    }

    /// A new signing root; the others stay trusted. Every leaf is issued anew.
    pub(super) fn rotate_root(&mut self) -> Result<(), rcgen::Error> {
        let index = self.next_index();
        self.authority.add_root(index)?;
        self.mark(Topic::Roots);
        let services: Vec<String> = self.leaves.keys().cloned().collect();
        services.iter().try_for_each(|it| self.renew_leaf(it))
    }

    pub(super) fn drop_old_roots(&mut self) {
        self.next_index();
        self.authority.drop_old_roots();
        self.mark(Topic::Roots);
    }

    /// A server that came back with nothing: no services, no intentions, another trust domain, and
    /// indexes that start over.
    pub(super) fn replace_authority(&mut self, authority: Authority) {
        self.touch();
        self.authority = authority;
        self.authority.set_index(FIRST_INDEX);
        self.catalog.clear();
        self.intentions.clear();
        self.config.clear();
        self.leaves.clear();
        self.topics.clear();
        self.index = FIRST_INDEX;
        self.base = FIRST_INDEX;
    }

    /// The same data at smaller indexes, in the same order: a server restored from a snapshot.
    pub(super) fn lower_indexes(&mut self) {
        self.touch();
        let mut known: BTreeSet<u64> = self.topics.values().copied().collect();
        known.insert(self.base);
        known.extend(self.leaves.values().map(|leaf| leaf.index));
        known.extend(self.authority.indexes());
        known.extend(self.catalog.instances_mut().flat_map(|it| [it.create, it.modify]));
        known.extend(
            self.intentions
                .entries_mut()
                .flat_map(|it| [it.create, it.modify]),
        );
        let ranks: HashMap<u64, u64> = known.into_iter().zip(2..).collect();
        let small = |index: u64| ranks.get(&index).copied().unwrap_or(index);
        self.topics.values_mut().for_each(|index| *index = small(*index));
        self.leaves
            .values_mut()
            .for_each(|leaf| leaf.index = small(leaf.index));
        self.authority.renumber(small);
        for instance in self.catalog.instances_mut() {
            instance.create = small(instance.create);
            instance.modify = small(instance.modify);
        }
        for entry in self.intentions.entries_mut() {
            entry.create = small(entry.create);
            entry.modify = small(entry.modify);
        }
        self.base = small(self.base);
        self.index = ranks.values().copied().max().unwrap_or(2);
    }
}
