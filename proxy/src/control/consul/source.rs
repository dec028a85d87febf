//! The one writer: takes what the watches learn, compiles it and publishes.
//!
//! Owns the state and the tasks of all watches; dropping it ends them. The last good state of every
//! watch stays until there is a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attache_bootstrap::Config;
use attache_bootstrap::config::ProxyRef;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::agent_version::{self, PrefixRewrites};
use super::authority::{self, Mesh};
use super::chain::{self, Chain};
use super::client::Answer;
use super::compile::{Compiled, compile};
use super::health::{self, Instance, QueryResult};
use super::intentions::{self, DefaultPolicy, Intention};
use super::json::DecodeError;
use super::jwt_provider::{self, Provider};
use super::registration::Registration;
use super::state::{Authority, ChainKey, Given, HealthKey, QueryKey, State, Want};
use super::watch::{Question, Shared, Watch};
use super::{ConsulSource, SourceError, default_policy, locate, news, questions};
use crate::model::{Identity, Snapshot, SpiffeId, TrustBundle};
use crate::snapshot::Publisher;
use crate::telemetry::metrics::{StatsConfig, install};

/// Changes that come together are compiled together; short enough to go unnoticed.
const GATHER: Duration = Duration::from_millis(10);
/// How often the leaf's remaining time is looked at.
const LEAF_LOOK: Duration = Duration::from_secs(60);
/// How long the first snapshot may wait for what is not essential, so that it is whole in the ordinary
/// case.
const PATIENCE: Duration = Duration::from_millis(500);

/// Keys and authorities are a few KiB; a file that is far larger is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What a watch has learnt.
enum Update {
    Registration(Result<Registration, SourceError>),
    Roots(TrustBundle),
    Leaf(Identity),
    Intentions(Vec<Intention>),
    Default(DefaultPolicy),
    Mesh(Mesh),
    Chain(ChainKey, Chain),
    Health(HealthKey, Vec<Instance>),
    Query(QueryKey, QueryResult),
    Provider(String, Option<Provider>),
    Version(PrefixRewrites),
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    Registration,
    Roots,
    Mesh,
    Leaf,
    Intentions,
    DefaultPolicy,
    Want(Want),
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Another trust domain that is not yet in force: live connections keep the old one until everything
/// that decides about them is known under the new.
struct Succession {
    trust: Arc<TrustBundle>,
    identity: Option<Arc<Identity>>,
    intentions: Option<Vec<Intention>>,
    default_policy: Option<DefaultPolicy>,
}

/// The writer.
pub(super) struct Source {
    shared: Shared,
    given: Given,
    publisher: Publisher,
    check: fn(&Identity) -> Result<(), String>,
    state: State,
    /// Roots and leaf before they make an authority together.
    trust: Option<Arc<TrustBundle>>,
    identity: Option<Arc<Identity>>,
    succession: Option<Succession>,
    service: Option<String>,
    published: Option<Arc<Snapshot>>,
    notices: BTreeSet<String>,
    tasks: BTreeMap<Job, Task>,
    updates: mpsc::UnboundedSender<Update>,
    intentions_changed: Rc<Notify>,
    warned_leaf: Option<String>,
    /// Until when the first snapshot waits for what is not essential.
    patience: Option<Instant>,
}

/// Runs until something that waiting cannot cure.
pub(super) async fn run(options: ConsulSource, shared: Shared) -> Result<Infallible, SourceError> {
    let (updates, mut learnt) = mpsc::unbounded_channel();
    let mut source = Source {
        given: Given::new(&options.config),
        shared,
        publisher: options.publisher,
        check: options.check,
        state: State::default(),
        trust: None,
        identity: None,
        succession: None,
        service: None,
        published: None,
        notices: BTreeSet::new(),
        tasks: BTreeMap::new(),
        updates,
        intentions_changed: Rc::new(Notify::new()),
        warned_leaf: None,
        patience: None,
    };
    source.begin(options.config);
    let mut look = tokio::time::interval(LEAF_LOOK);
    loop {
        tokio::select! {
            update = learnt.recv() => {
                if let Some(update) = update {
                    source.learn(update)?;
                }
                // At the start each answer leads to the next question: nothing to gather, no time to lose.
                if source.published.is_some() {
                    tokio::time::sleep(GATHER).await;
                }
                while let Ok(update) = learnt.try_recv() {
                    source.learn(update)?;
                }
                source.publish();
            }
            () = until(source.patience) => source.publish(),
            _ = look.tick() => source.look_at_leaf(),
        }
    }
}

impl Source {
    fn begin(&mut self, config: Config) {
        self.watch(
            Job::Roots,
            questions::roots(),
            body(authority::decode_roots),
            Update::Roots,
        );
        let mesh = |answer: &Answer| match answer.status {
            404 => Ok(Mesh::default()),
            _ => authority::decode_mesh(&answer.body),
        };
        self.watch(Job::Mesh, questions::mesh(), mesh, Update::Mesh);
        if let ProxyRef::Manual(manual) = &config.proxy {
            // The channel is ours: it cannot be closed.
            let _ = self
                .updates
                .send(Update::Registration(Ok(locate::manual(manual, &config.consul))));
            return;
        }
        let updates = self.updates.clone();
        let tell = move |found| drop(updates.send(Update::Registration(found)));
        let task = locate::keep(self.shared.clone(), config.proxy, tell);
        self.start(Job::Registration, task);
    }

    fn start(&mut self, job: Job, task: impl Future<Output = ()> + 'static) {
        // The old task must be gone before its successor shows itself under the same name.
        self.tasks.remove(&job);
        self.tasks.insert(job, Task(tokio::task::spawn_local(task)));
    }

    fn watch<T: 'static>(
        &mut self,
        job: Job,
        question: Question,
        decode: impl Fn(&Answer) -> Result<T, DecodeError> + 'static,
        update: impl Fn(T) -> Update + 'static,
    ) {
        let (shared, updates) = (self.shared.clone(), self.updates.clone());
        self.start(job, async move {
            let mut watch = Watch::new(shared, question);
            loop {
                let answer = watch.next().await;
                match decode(&answer) {
                    Ok(value) => {
                        watch.accepted();
                        drop(updates.send(update(value)));
                    }
                    Err(error) => watch.rejected(error).await,
                }
            }
        });
    }

    fn learn(&mut self, update: Update) -> Result<(), SourceError> {
        match update {
            Update::Registration(Ok(registration)) => self.learn_registration(registration),
            Update::Registration(Err(refused)) if self.published.is_none() => return Err(refused),
            Update::Registration(Err(refused)) => {
                let why = refused.to_string();
                tracing::error!(why, "the registration cannot be used; the last good one goes on");
            }
            Update::Roots(trust) => self.learn_roots(Arc::new(trust)),
            Update::Leaf(identity) => self.learn_leaf(Arc::new(identity)),
            Update::Intentions(list) => {
                self.intentions_changed.notify_one();
                match &mut self.succession {
                    Some(next) => next.intentions = Some(list),
                    None => self.state.intentions = Some(list),
                }
            }
            Update::Default(policy) => self.learn_default(policy),
            Update::Mesh(mesh) => self.state.mesh = mesh,
            Update::Chain(key, chain) => drop(self.state.chains.insert(key, chain)),
            Update::Health(key, list) => drop(self.state.instances.insert(key, list)),
            Update::Query(key, result) => drop(self.state.queries.insert(key, result)),
            Update::Provider(name, found) => drop(self.state.providers.insert(name, found)),
            Update::Version(rewrites) => self.state.prefix_rewrites = Some(rewrites),
        }
        self.succeed();
        self.assemble();
        Ok(())
    }

    fn learn_registration(&mut self, registration: Registration) {
        if self.service.as_deref() != Some(&registration.service) {
            if let Some(old) = self.service.replace(registration.service.clone()) {
                let service = &registration.service;
                tracing::warn!(old, service, "the registration is for another service now");
                self.state.intentions = None;
                self.succession = None;
            }
            self.ask_for_service();
        }
        self.state.registration = Some(registration);
        if self.trust.is_some() {
            self.ask_for_default();
        }
    }

    fn ask_for_service(&mut self) {
        let Some(service) = self.service.clone() else {
            return;
        };
        let (name, check) = (service.clone(), self.check);
        let leaf = move |answer: &Answer| authority::decode_leaf(&answer.body, &name, check);
        self.watch(Job::Leaf, questions::leaf(&service), leaf, Update::Leaf);
        let question = questions::intentions(&service);
        let decode = move |answer: &Answer| intentions::decode_for(&answer.body, &service);
        self.watch(Job::Intentions, question, decode, Update::Intentions);
    }

    fn learn_roots(&mut self, trust: Arc<TrustBundle>) {
        let in_force = self.trust.as_ref().map(|t| Arc::clone(&t.trust_domain));
        news::roots(self.trust.as_deref(), &trust);
        match (in_force, &mut self.succession) {
            (Some(old), _) if old == trust.trust_domain => {
                self.succession = None;
                self.trust = Some(trust);
            }
            (Some(_), Some(next)) if next.trust.trust_domain == trust.trust_domain => {
                next.trust = trust;
            }
            (Some(_), _) if self.state.authority.is_some() => {
                self.succession = Some(Succession {
                    trust,
                    identity: None,
                    intentions: None,
                    default_policy: None,
                });
                self.ask_for_service();
                self.ask_for_default();
            }
            _ => {
                self.trust = Some(trust);
                self.ask_for_default();
            }
        }
    }

    fn learn_leaf(&mut self, identity: Arc<Identity>) {
        let uri = identity.spiffe_id.as_ref().map_or("-", SpiffeId::as_str);
        let serial = &identity.leaf.serial;
        let left = identity.leaf.not_after.duration_since(SystemTime::now());
        let hours = (left.unwrap_or_default().as_secs_f64() / 360.0).round() / 10.0;
        tracing::info!(uri, serial, hours, "a new leaf certificate");
        match &mut self.succession {
            Some(next) if Some(&*next.trust.trust_domain) == identity.trust_domain() => {
                next.identity = Some(identity);
            }
            Some(_) => {}
            None => self.identity = Some(identity),
        }
    }

    fn learn_default(&mut self, policy: DefaultPolicy) {
        if let Some(next) = &mut self.succession {
            next.default_policy = Some(policy);
            return;
        }
        // Consul that cannot be asked has not changed its mind.
        let unknown = matches!(policy, DefaultPolicy::Unknown(_));
        if !unknown || !matches!(self.state.default_policy, DefaultPolicy::Known(_)) {
            self.state.default_policy = policy;
        }
    }

    /// Puts the next trust domain in force once all of it is known.
    fn succeed(&mut self) {
        let Some(next) = self.succession.take() else {
            return;
        };
        match next {
            Succession {
                trust,
                identity: Some(identity),
                intentions: Some(intentions),
                default_policy: Some(default_policy),
            } => {
                let trust_domain = &*trust.trust_domain;
                tracing::warn!(trust_domain, "the new authority is in force");
                self.trust = Some(trust);
                self.identity = Some(identity);
                self.state.intentions = Some(intentions);
                self.state.default_policy = default_policy;
            }
            unfinished => self.succession = Some(unfinished),
        }
    }

    /// Roots and leaf count only together.
    fn assemble(&mut self) {
        if let (Some(trust), Some(identity)) = (&self.trust, &self.identity)
            && Some(&*trust.trust_domain) == identity.trust_domain()
        {
            let first = self.state.authority.is_none();
            self.state.authority = Some(Authority {
                trust: Arc::clone(trust),
                identity: Arc::clone(identity),
            });
            if first {
                self.ask_for_default();
            }
        }
    }

    fn ask_for_default(&mut self) {
        let next = self.succession.as_ref().map(|next| &next.trust);
        let (Some(service), Some(trust)) = (&self.service, next.or(self.trust.as_ref())) else {
            return;
        };
        let registration = self.state.registration.as_ref();
        let partition = registration.and_then(|r| r.partition.clone());
        let asked = default_policy::Asked {
            service: service.clone(),
            trust_domain: trust.trust_domain.to_string(),
            partition: partition.unwrap_or_else(|| "default".to_owned()),
            datacenter: self.state.datacenter().unwrap_or("dc1").to_owned(),
        };
        let (shared, updates) = (self.shared.clone(), self.updates.clone());
        let changed = Rc::clone(&self.intentions_changed);
        let tell = move |policy| drop(updates.send(Update::Default(policy)));
        self.start(
            Job::DefaultPolicy,
            default_policy::keep(shared, asked, changed, tell),
        );
    }

    fn publish(&mut self) {
        let Compiled {
            snapshot,
            notices,
            wants,
        } = compile(&self.given, &self.state, self.published.as_deref());
        self.tell(notices);
        let whole = self.is_whole(&wants);
        self.want(wants);
        let Some(snapshot) = snapshot else {
            return;
        };
        if self.published.is_none() && !whole {
            let deadline = *self.patience.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() < deadline {
                return;
            }
        }
        self.patience = None;
        if self.published.as_deref().is_some_and(|old| same(old, &snapshot)) {
            return;
        }
        let snapshot = Arc::new(snapshot);
        let (listeners, clusters) = (snapshot.listeners.len(), snapshot.clusters.len());
        let old = self.published.replace(Arc::clone(&snapshot));
        news::rules(old.as_deref(), &snapshot);
        if old.is_none() {
            self.name_statistics();
            tracing::info!(listeners, clusters, "the first configuration is complete");
        } else {
            tracing::debug!(listeners, clusters, "a new configuration");
        }
        metrics::counter!("attache_snapshot_published_total").increment(1);
        self.publisher.publish(snapshot);
        self.shared.status.set_ready();
    }

    /// Statistics say whose sidecar they are of, as they do under Consul's bootstrap file.
    fn name_statistics(&self) {
        let Some(registration) = &self.state.registration else {
            return;
        };
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "default".to_owned());
        let (namespace, partition) = (part(&registration.namespace), part(&registration.partition));
        let datacenter = self.state.datacenter().unwrap_or_default();
        let tags =
            StatsConfig::consul().with_source(&registration.service, &namespace, &partition, datacenter);
        if let Err(error) = install(&tags) {
            tracing::error!(%error, "statistics go without some of their tags");
        }
    }

    /// Whether intentions, default policy and chains are known.
    fn is_whole(&self, wants: &BTreeSet<Want>) -> bool {
        let known = |want: &Want| match want {
            Want::Chain(key) => self.state.chains.contains_key(key),
            Want::Provider(name) => self.state.providers.contains_key(name),
            Want::Version => self.state.prefix_rewrites.is_some(),
            Want::Health(_) | Want::Query(_) => true,
        };
        self.state.intentions.is_some()
            && matches!(self.state.default_policy, DefaultPolicy::Known(_))
            && wants.iter().all(known)
    }

    fn tell(&mut self, notices: BTreeSet<String>) {
        for notice in notices.difference(&self.notices) {
            tracing::warn!("{notice}");
        }
        for notice in self.notices.difference(&notices) {
            tracing::info!("no longer so: {notice}");
        }
        self.shared.status.set_notices(notices.iter().cloned().collect());
        self.notices = notices;
    }

    /// Watches what the upstreams need, and nothing else.
    fn want(&mut self, wants: BTreeSet<Want>) {
        let superfluous = |job: &Job| matches!(job, Job::Want(want) if !wants.contains(want));
        self.tasks.retain(|job, _| !superfluous(job));
        self.state
            .chains
            .retain(|key, _| wants.contains(&Want::Chain(key.clone())));
        self.state
            .instances
            .retain(|key, _| wants.contains(&Want::Health(key.clone())));
        self.state
            .queries
            .retain(|key, _| wants.contains(&Want::Query(key.clone())));
        self.state
            .providers
            .retain(|name, _| wants.contains(&Want::Provider(name.clone())));
        for want in wants {
            let job = Job::Want(want.clone());
            if self.tasks.contains_key(&job) {
                continue;
            }
            match want {
                Want::Chain(key) => {
                    let question = questions::chain(&key);
                    let update = move |chain| Update::Chain(key.clone(), chain);
                    self.watch(job, question, body(chain::decode), update);
                }
                Want::Health(key) => {
                    let question = questions::health(&key);
                    let update = move |list| Update::Health(key.clone(), list);
                    self.watch(job, question, body(health::decode), update);
                }
                Want::Query(key) => {
                    let question = questions::query(&key);
                    let update = move |result| Update::Query(key.clone(), result);
                    self.watch(job, question, body(health::decode_query), update);
                }
                Want::Provider(name) => self.watch_provider(job, name),
                Want::Version => {
                    let decode = |answer: &Answer| match answer.status {
                        404 => Ok(PrefixRewrites::Plain),
                        _ => agent_version::decode(&answer.body),
                    };
                    self.watch(job, questions::version(), decode, Update::Version);
                }
            }
        }
    }

    fn watch_provider(&mut self, job: Job, name: String) {
        let question = questions::provider(&name);
        let sought = name.clone();
        let decode = move |answer: &Answer| match answer.status {
            404 => Ok(None),
            _ => jwt_provider::decode(&answer.body, &sought, &small_file).map(Some),
        };
        let update = move |found| Update::Provider(name.clone(), found);
        self.watch(job, question, decode, update);
    }

    /// Renewal is Consul's task; that it does not happen is worth a warning while there is time.
    fn look_at_leaf(&mut self) {
        let Some(authority) = &self.state.authority else {
            return;
        };
        let leaf = &authority.identity.leaf;
        let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
        let left = leaf
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if left * 10 < life && self.warned_leaf.as_ref() != Some(&leaf.serial) {
            let (serial, seconds) = (&leaf.serial, left.as_secs());
            tracing::warn!(
                serial,
                seconds,
                "the leaf certificate expires soon and is not renewed"
            );
            self.warned_leaf = Some(leaf.serial.clone());
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A file that a configuration entry names; it lies on every proxy's host.
fn small_file(path: &str) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("{path} cannot be read: {error}");
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{path} has {length} bytes, more than {MAX_FILE_BYTES}"));
    }
    std::fs::read_to_string(path).map_err(cannot)
}

fn body<T>(decode: impl Fn(&[u8]) -> Result<T, DecodeError>) -> impl Fn(&Answer) -> Result<T, DecodeError> {
    move |answer| decode(&answer.body)
}

fn same(old: &Snapshot, new: &Snapshot) -> bool {
    old == new
}
