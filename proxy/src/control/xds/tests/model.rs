//! The subscription state against a model of the server, under random interleavings.
//!
//! The model is written from the protocol's text and Consul's behaviour, and shares no code with the
//! client: a map of resources, and for each stream what its client is believed to hold. Two liberties
//! that servers take are drawn anew in each run: whether names that went are told, and whether the
//! children of a changed resource are sent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::store::{BAD, Store, resource};
use crate::control::xds::subscription::{Outcome, Request, Response, Stream, Subscriptions};
use crate::control::xds::{ResourceKind, Resources as _};

use ResourceKind::{Cluster, Endpoint, Listener, Route, Secret};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const RUNS: u64 = 3000;
const STEPS: usize = 150;

#[derive(Default)]
pub(super) struct Server {
    /// Version and needs by name.
    truth: BTreeMap<ResourceKind, BTreeMap<String, (u64, String)>>,
    version: u64,
    tells_gone_names: bool,
    sends_children_again: bool,
}

/// The server's end of one stream.
#[derive(Default)]
pub(super) struct End {
    node: bool,
    nonce: u64,
    kinds: BTreeMap<ResourceKind, Believed>,
}

#[derive(Default)]
struct Believed {
    wildcard: bool,
    names: BTreeSet<String>,
    versions: BTreeMap<String, String>,
    /// Under way; `None` is a removal.
    pending: Option<(String, BTreeMap<String, Option<String>>)>,
    answered_once: bool,
    /// It was refused: nothing is sent again before something changes or is asked.
    refused: bool,
}

struct Connection {
    stream: Stream,
    end: End,
    up: VecDeque<Request>,
    down: VecDeque<Response>,
    last: Option<Response>,
}

impl Server {
    fn change(&mut self, rng: &mut fastrand::Rng, may_be_bad: bool) {
        let kind = *rng.choice(&ResourceKind::ALL).unwrap();
        let name = (*rng.choice(&NAMES).unwrap()).to_owned();
        if rng.u8(..4) == 0 {
            self.remove(kind, &name);
            return;
        }
        let needs = match kind {
            _ if may_be_bad && rng.u8(..8) == 0 => BAD.to_owned(),
            Cluster if rng.bool() => format!("eds/{name} sds/{}", rng.choice(&NAMES).unwrap()),
            Cluster if rng.bool() => format!("eds/{name}"),
            Listener if rng.bool() => format!(
                "rds/{} sds/{}",
                rng.choice(&NAMES).unwrap(),
                rng.choice(&NAMES).unwrap()
            ),
            _ => String::new(),
        };
        self.put(kind, &name, &needs);
    }

    pub(super) fn put(&mut self, kind: ResourceKind, name: &str, needs: &str) {
        self.version += 1;
        let named = self.truth.entry(kind).or_default();
        named.insert(name.to_owned(), (self.version, needs.to_owned()));
    }

    pub(super) fn remove(&mut self, kind: ResourceKind, name: &str) {
        self.truth.entry(kind).or_default().remove(name);
    }

    /// Versions by name.
    pub(super) fn versions(&self, kind: ResourceKind) -> BTreeMap<String, String> {
        let named = self.truth.get(&kind).into_iter().flatten();
        named
            .map(|(name, (version, _))| (name.clone(), version.to_string()))
            .collect()
    }

    fn heal(&mut self) {
        for (version, needs) in self.truth.values_mut().flat_map(BTreeMap::values_mut) {
            if needs == BAD {
                self.version += 1;
                (*version, *needs) = (self.version, String::new());
            }
        }
    }

    /// The next response of a kind, if there is one to send.
    pub(super) fn send(&self, end: &mut End, kind: ResourceKind) -> Option<Response> {
        let empty = BTreeMap::new();
        let truth = self.truth.get(&kind).unwrap_or(&empty);
        let believed = end.kinds.get_mut(&kind)?;
        if believed.pending.is_some() || believed.refused {
            return None;
        }
        let mut news = BTreeMap::new();
        for (name, (version, _)) in truth {
            let asked = believed.wildcard || believed.names.contains(name);
            if asked && believed.versions.get(name) != Some(&version.to_string()) {
                news.insert(name.clone(), Some(version.to_string()));
            }
        }
        for name in believed.versions.keys() {
            let told = believed.wildcard || (self.tells_gone_names && believed.names.contains(name));
            if told && !truth.contains_key(name) {
                news.insert(name.clone(), None);
            }
        }
        if news.is_empty() && believed.answered_once {
            return None;
        }
        end.nonce += 1;
        let nonce = format!("{:08x}", end.nonce);
        believed.pending = Some((nonce.clone(), news.clone()));
        let sent = |name: &String| {
            let (version, needs) = &truth[name];
            resource(kind, name, *version, needs)
        };
        let changed = news.iter().filter(|(_, version)| version.is_some());
        let response = Response {
            type_url: kind.type_url().to_owned(),
            nonce,
            resources: changed.map(|(name, _)| sent(name)).collect(),
            removed: news
                .iter()
                .filter(|(_, version)| version.is_none())
                .map(|(name, _)| name.clone())
                .collect(),
        };
        if self.sends_children_again && kind == Cluster {
            self.forget_children(end, &response);
        }
        Some(response)
    }

    fn forget_children(&self, end: &mut End, response: &Response) {
        if let Some(endpoints) = end.kinds.get_mut(&Endpoint) {
            for cluster in &response.resources {
                endpoints.versions.remove(&cluster.name);
                if let Some((_, news)) = &mut endpoints.pending {
                    news.remove(&cluster.name);
                }
            }
        }
    }
}

impl End {
    /// Takes a request and holds it against every rule for clients.
    pub(super) fn take(&mut self, request: &Request) {
        assert_eq!(request.node, !self.node, "the node is in the first message only");
        self.node = true;
        let kind = request.kind;
        let first = !self.kinds.contains_key(&kind);
        let believed = self.kinds.entry(kind).or_default();
        if first {
            believed.wildcard = request.subscribe.is_empty();
            let all = matches!(kind, Cluster | Listener);
            assert_eq!(believed.wildcard, all, "{kind}: the first request decides");
            assert!(request.unsubscribe.is_empty() && request.nonce.is_none());
        } else {
            assert!(request.initial_versions.is_empty(), "versions come first");
        }
        let changes = !request.subscribe.is_empty() || !request.unsubscribe.is_empty();
        assert!(first || changes || request.nonce.is_some(), "it says something");
        assert!(
            request.refusal.is_none() || !changes,
            "a refusal carries nothing else"
        );
        for (name, version) in &request.initial_versions {
            let asked = believed.wildcard || request.subscribe.contains(name);
            assert!(asked, "a version is of something asked for");
            believed.versions.insert(name.to_string(), version.to_string());
        }
        for name in &request.unsubscribe {
            assert!(believed.names.remove(&**name), "{name} was not subscribed");
            believed.versions.remove(&**name);
        }
        for name in &request.subscribe {
            assert!(
                believed.names.insert(name.to_string()),
                "{name} is subscribed twice"
            );
            if !first {
                believed.versions.remove(&**name);
            }
        }
        if changes {
            // Whatever is asked anew is answered, even if there is nothing of that name.
            believed.refused = false;
        }
        if let Some(nonce) = &request.nonce {
            assert!(u64::from_str_radix(nonce, 16).unwrap() <= self.nonce);
            believed.answer(nonce, request.refusal.is_some());
        }
    }
}

impl Believed {
    fn answer(&mut self, nonce: &str, refused: bool) {
        match self.pending.take() {
            Some((pending, news)) if pending == *nonce => {
                self.refused = refused;
                if refused {
                    return;
                }
                self.answered_once = true;
                for (name, version) in news {
                    match version {
                        Some(version) if self.wildcard || self.names.contains(&name) => {
                            self.versions.insert(name, version);
                        }
                        _ => drop(self.versions.remove(&name)),
                    }
                }
            }
            // The answer to a replay.
            other => self.pending = other,
        }
    }
}

struct World {
    server: Server,
    subscriptions: Subscriptions,
    store: Store,
    main: Connection,
    beside: Option<Connection>,
}

fn connect(subscriptions: &Subscriptions) -> Connection {
    let (stream, requests) = subscriptions.open();
    Connection {
        stream,
        end: End::default(),
        up: requests.into(),
        down: VecDeque::new(),
        last: None,
    }
}

impl Connection {
    fn receive(
        &mut self,
        response: Response,
        subscriptions: &mut Subscriptions,
        store: &mut Store,
    ) -> Outcome {
        let (outcome, requests) = subscriptions.receive(&mut self.stream, response.clone(), store);
        self.last = Some(response);
        self.up.extend(requests);
        outcome
    }

    fn deliver_up(&mut self) -> bool {
        let request = self.up.pop_front();
        if let Some(request) = &request {
            self.end.take(request);
        }
        request.is_some()
    }
}

impl World {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let subscriptions = Subscriptions::default();
        let main = connect(&subscriptions);
        let server = Server {
            tells_gone_names: rng.bool(),
            sends_children_again: rng.bool(),
            ..Server::default()
        };
        Self {
            server,
            subscriptions,
            store: Store::default(),
            main,
            beside: None,
        }
    }

    fn pick(&mut self, rng: &mut fastrand::Rng) -> &mut Connection {
        match &mut self.beside {
            Some(beside) if rng.bool() => beside,
            _ => &mut self.main,
        }
    }

    fn step(&mut self, rng: &mut fastrand::Rng) {
        match rng.u8(..100) {
            0..15 => {
                self.server.change(rng, true);
                self.thaw();
            }
            15..35 => drop(self.pick(rng).deliver_up()),
            35..55 => self.serve(rng.bool(), *rng.choice(&ResourceKind::ALL).unwrap()),
            55..90 => drop(self.deliver_down(rng.bool())),
            90..93 => {
                if let Some(last) = self.main.last.clone() {
                    let outcome = self.main.receive(last, &mut self.subscriptions, &mut self.store);
                    assert!(matches!(outcome, Outcome::Replayed { .. }));
                }
            }
            93..96 => self.beside = Some(connect(&self.subscriptions)),
            96..98 => self.beside = None,
            _ => self.cut(),
        }
    }

    /// The main stream ends; one beside it goes on in its place.
    fn cut(&mut self) {
        let next = self.beside.take();
        let usable = next.filter(|next| !self.subscriptions.is_outdated(&next.stream));
        self.main = usable.unwrap_or_else(|| connect(&self.subscriptions));
    }

    fn thaw(&mut self) {
        let ends = [Some(&mut self.main), self.beside.as_mut()];
        for end in ends.into_iter().flatten() {
            for believed in end.end.kinds.values_mut() {
                believed.refused = false;
            }
        }
    }

    fn serve(&mut self, on_main: bool, kind: ResourceKind) {
        let connection = match &mut self.beside {
            Some(beside) if !on_main => beside,
            _ => &mut self.main,
        };
        let response = self.server.send(&mut connection.end, kind);
        connection.down.extend(response);
    }

    fn deliver_down(&mut self, on_main: bool) -> bool {
        let Some(mut beside) = self.beside.take_if(|_| !on_main) else {
            let Some(response) = self.main.down.pop_front() else {
                return false;
            };
            self.main
                .receive(response, &mut self.subscriptions, &mut self.store);
            return true;
        };
        let Some(response) = beside.down.pop_front() else {
            self.beside = Some(beside);
            return false;
        };
        if self.subscriptions.is_outdated(&beside.stream) {
            self.beside = Some(connect(&self.subscriptions));
            return true;
        }
        match beside.receive(response, &mut self.subscriptions, &mut self.store) {
            Outcome::Accepted { .. } => self.main = beside,
            _ => self.beside = Some(beside),
        }
        true
    }

    /// Nothing more happens outside: everything under way arrives.
    fn settle(&mut self) {
        self.server.heal();
        self.beside = None;
        for _ in 0..1000 {
            let mut busy = false;
            // A refusal that arrives after the cure is no last word: Consul looks again every five minutes.
            self.thaw();
            while self.main.deliver_up() {
                busy = true;
            }
            for kind in ResourceKind::ALL {
                self.serve(true, kind);
            }
            while self.deliver_down(true) {
                busy = true;
            }
            if !busy && self.main.up.is_empty() {
                return;
            }
        }
        panic!("client and server never come to rest");
    }

    fn check(&self) {
        let truth = |kind| self.server.versions(kind);
        for kind in [Cluster, Listener] {
            assert_eq!(self.store.versions(kind), truth(kind), "{kind}");
        }
        for kind in [Endpoint, Route, Secret] {
            let wanted = self.store.interest(kind);
            let (held, truth) = (self.store.versions(kind), truth(kind));
            for name in &wanted {
                match truth.get(&**name) {
                    Some(version) => assert_eq!(held.get(&**name), Some(version), "{kind} {name}"),
                    None if self.server.tells_gone_names => assert!(!held.contains_key(&**name)),
                    None => {}
                }
            }
            assert!(held.keys().all(|name| wanted.contains(name.as_str())));
            let believed = self.main.end.kinds.get(&kind);
            let names = believed.map(|b| b.names.clone()).unwrap_or_default();
            assert!(names.iter().map(String::as_str).eq(wanted.iter().map(|n| &**n)));
        }
        let kinds = self.main.end.kinds.values();
        assert!(kinds.clone().all(|b| b.pending.is_none()), "all is answered");
        let (again, requests) = self.subscriptions.open();
        assert!(!self.subscriptions.is_outdated(&again));
        for request in requests {
            for (name, version) in &request.initial_versions {
                assert_eq!(self.store.versions(request.kind)[&**name], **version);
            }
        }
    }
}

#[test]
fn whatever_happens_on_the_way_client_and_server_agree_in_the_end() {
    for seed in 0..RUNS {
        let run = std::panic::catch_unwind(|| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new(&mut rng);
            for _ in 0..STEPS {
                world.step(&mut rng);
            }
            world.settle();
            world.check();
        });
        assert!(run.is_ok(), "with the seed {seed}");
    }
}
