//! The delta xDS protocol of one client, without a socket or a clock.
//!
//! Owns what is held (versions by name), what is wanted, and for each stream what its server was told:
//! in come responses, out come requests as plain values. The rules are those of "The xDS protocol,
//! Incremental xDS", with the narrower ones of Consul's server:
//! - everything of a kind by an empty first request, names otherwise, and no request at all while
//!   there is no name: an empty one would ask for everything;
//! - the node in the first message of a stream, the versions held in the first of each kind;
//! - every response is answered, an empty one too; a refusal is of a whole response, and carries
//!   nothing else, as a server ignores what does;
//! - what changes in the wishes goes out before the acknowledgement that caused it: the server then
//!   holds listeners back until their clusters' endpoints have arrived.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Refused, Resource, ResourceKind, Resources};

/// How many answered nonces of a kind are remembered on a stream. A server has one response of a kind
/// under way, seldom more.
const REMEMBERED: usize = 32;

/// `DeltaDiscoveryRequest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: ResourceKind,
    /// The node goes with it.
    pub(super) node: bool,
    pub(super) subscribe: Vec<Arc<str>>,
    pub(super) unsubscribe: Vec<Arc<str>>,
    /// Versions by name.
    pub(super) initial_versions: BTreeMap<Arc<str>, Arc<str>>,
    /// Which response it answers, if any.
    pub(super) nonce: Option<String>,
    /// Why that response is refused.
    pub(super) refusal: Option<String>,
}

/// `DeltaDiscoveryResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) resources: Vec<Resource>,
    pub(super) removed: Vec<String>,
}

/// What became of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The store has it.
    Accepted {
        kind: ResourceKind,
        changed: usize,
        removed: usize,
    },
    /// Nothing of it was taken.
    Refused { kind: ResourceKind, refused: Refused },
    /// Its nonce was answered before; it is answered alike and not applied again.
    Replayed { kind: ResourceKind },
    /// Nobody asked for that type on this stream. It has no answer: there is no subscription that one
    /// could belong to.
    Unasked,
}

/// What is held and wanted, whatever stream it comes by.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    kinds: BTreeMap<ResourceKind, Subscription>,
    changes: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Unused of a wildcard.
    wanted: BTreeSet<Arc<str>>,
    /// Accepted versions by name.
    held: BTreeMap<Arc<str>, Arc<str>>,
}

/// What the server at the other end of one stream was told.
#[derive(Debug, Default)]
pub(super) struct Stream {
    kinds: BTreeMap<ResourceKind, Told>,
    /// [`Subscriptions::changes`] as of the first request and this stream's own responses.
    changes: u64,
}

/// Of one kind; it exists once a request went out.
#[derive(Debug, Default)]
struct Told {
    /// Unused of a wildcard.
    names: BTreeSet<Arc<str>>,
    /// Newest last, with the refusal if it was one.
    answered: VecDeque<(String, Option<String>)>,
}

impl Subscriptions {
    /// Begins a stream: what to send first.
    pub(super) fn open(&self) -> (Stream, Vec<Request>) {
        let mut stream = Stream {
            kinds: BTreeMap::new(),
            changes: self.changes,
        };
        let requests = self.changes(&mut stream);
        (stream, requests)
    }

    /// Whether another stream changed what is held since this one told its server. The server's
    /// differences then start from something else than what is here: the stream has to begin anew.
    pub(super) fn is_outdated(&self, stream: &Stream) -> bool {
        stream.changes != self.changes
    }

    /// Whether nothing is held yet.
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.values().all(|kind| kind.held.is_empty())
    }

    /// Takes a response: what became of it, and what to send, in this order.
    pub(super) fn receive(
        &mut self,
        stream: &mut Stream,
        response: Response,
        resources: &mut impl Resources,
    ) -> (Outcome, Vec<Request>) {
        let kind = ResourceKind::of_type_url(&response.type_url);
        let Some((kind, told)) = kind.and_then(|kind| Some((kind, stream.kinds.get(&kind)?))) else {
            return (Outcome::Unasked, Vec::new());
        };
        let nonce = response.nonce.clone();
        if let Some((_, refusal)) = told.answered.iter().find(|(answered, _)| *answered == nonce) {
            let answer = Request::answer(kind, nonce, refusal.clone());
            return (Outcome::Replayed { kind }, vec![answer]);
        }
        let applied = self.apply(kind, response, resources);
        let (outcome, refusal) = match applied {
            Ok((changed, removed)) => {
                self.changes += 1;
                stream.changes = self.changes;
                let accepted = Outcome::Accepted {
                    kind,
                    changed,
                    removed,
                };
                (accepted, None)
            }
            Err(refused) => {
                let message = refused.message.clone();
                (Outcome::Refused { kind, refused }, Some(message))
            }
        };
        self.ask_interest(resources);
        let mut requests = self.changes(stream);
        stream.remember(kind, &nonce, &refusal);
        requests.push(Request::answer(kind, nonce, refusal));
        (outcome, requests)
    }

    fn apply(
        &mut self,
        kind: ResourceKind,
        response: Response,
        resources: &mut impl Resources,
    ) -> Result<(usize, usize), Refused> {
        check(kind, &response)?;
        let subscription = self.kinds.entry(kind).or_default();
        let wanted = |name: &str| kind.is_wildcard() || subscription.wanted.contains(name);
        // What was on its way when its name was given up is no news for anybody.
        let Response {
            resources: mut changed,
            mut removed,
            ..
        } = response;
        changed.retain(|resource| wanted(&resource.name));
        removed.retain(|name| wanted(name));
        let versions: Vec<(Arc<str>, Arc<str>)> = changed
            .iter()
            .map(|resource| (Arc::from(&*resource.name), Arc::from(&*resource.version)))
            .collect();
        let gone = removed.clone();
        resources.apply(kind, changed, removed)?;
        let counts = (versions.len(), gone.len());
        for name in &gone {
            subscription.held.remove(name.as_str());
        }
        subscription.held.extend(versions);
        Ok(counts)
    }

    /// Takes over what the store wants now. What is held of other names is forgotten, so that it comes
    /// in full when it is wanted again.
    fn ask_interest(&mut self, resources: &impl Resources) {
        for kind in ResourceKind::ALL {
            if kind.is_wildcard() {
                continue;
            }
            let subscription = self.kinds.entry(kind).or_default();
            subscription.wanted = resources.interest(kind);
            let wanted = &subscription.wanted;
            subscription.held.retain(|name, _| wanted.contains(name));
        }
    }

    /// What the server is to be told about wishes that it does not know.
    fn changes(&self, stream: &mut Stream) -> Vec<Request> {
        let mut requests = Vec::new();
        for kind in ResourceKind::ALL {
            let none = Subscription::default();
            let subscription = self.kinds.get(&kind).unwrap_or(&none);
            if kind.is_wildcard() || !subscription.wanted.is_empty() || stream.kinds.contains_key(&kind) {
                let first = stream.kinds.is_empty();
                requests.extend(subscription.change(kind, first, &mut stream.kinds));
            }
        }
        requests
    }
}

impl Subscription {
    fn change(
        &self,
        kind: ResourceKind,
        node: bool,
        told: &mut BTreeMap<ResourceKind, Told>,
    ) -> Option<Request> {
        let is_first = !told.contains_key(&kind);
        let told = told.entry(kind).or_default();
        let subscribe: Vec<_> = self.wanted.difference(&told.names).cloned().collect();
        let unsubscribe: Vec<_> = told.names.difference(&self.wanted).cloned().collect();
        if !is_first && subscribe.is_empty() && unsubscribe.is_empty() {
            return None;
        }
        told.names.clone_from(&self.wanted);
        let initial_versions = if is_first {
            self.held.clone()
        } else {
            BTreeMap::new()
        };
        Some(Request {
            kind,
            node,
            subscribe,
            unsubscribe,
            initial_versions,
            nonce: None,
            refusal: None,
        })
    }
}

impl Stream {
    fn remember(&mut self, kind: ResourceKind, nonce: &str, refusal: &Option<String>) {
        let answered = &mut self.kinds.entry(kind).or_default().answered;
        if answered.len() == REMEMBERED {
            answered.pop_front();
        }
        answered.push_back((nonce.to_owned(), refusal.clone()));
    }
}

impl Request {
    fn answer(kind: ResourceKind, nonce: String, refusal: Option<String>) -> Self {
        Self {
            kind,
            node: false,
            subscribe: Vec::new(),
            unsubscribe: Vec::new(),
            initial_versions: BTreeMap::new(),
            nonce: Some(nonce),
            refusal,
        }
    }
}

/// What no store could make sense of.
fn check(kind: ResourceKind, response: &Response) -> Result<(), Refused> {
    let mut names = BTreeSet::new();
    let changed = response.resources.iter().map(|resource| &resource.name);
    for name in changed.chain(&response.removed) {
        if !names.insert(name) {
            let message = format!("{kind}: the resource {name} is in the response twice");
            return Err(Refused { message });
        }
    }
    let foreign = |resource: &&Resource| resource.type_url != kind.type_url();
    match response.resources.iter().find(foreign) {
        None => Ok(()),
        Some(Resource { name, type_url, .. }) => {
            let message = format!("{kind}: the resource {name} is of the type {type_url:?}");
            Err(Refused { message })
        }
    }
}
