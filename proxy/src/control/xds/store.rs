//! The resources that were accepted, static ones included, and what is made of them.
//!
//! Owns the newest good version of each resource, as it came and decoded. A response is taken whole or not
//! at all; each change is assembled into a snapshot and published. Keeps everything when a stream ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use attache_proto::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use attache_proto::envoy::config::trace::v3::Tracing;

use super::assemble::{Accepted, Assembled, Missing, assemble};
use super::decode::{self, Context, DecodeError, Disk, Secret, Shared, Why};
use super::held::{
    All, Held, HeldCluster, cluster_of, endpoints_of, fixed, is_static, listener_of, replace, routes_of,
    secret_of, values,
};
use super::metrics::{self, NamedMetrics};
use super::settling::Settling;
use super::{Refused, Resource, ResourceKind, Resources};
use crate::control::StatusPublisher;
use crate::model::http::TracingProvider;
use crate::model::route::RouteConfiguration;
use crate::model::{ClusterLoadAssignment, Identity, Listener, Name, Node, Snapshot};
use crate::snapshot::Publisher;

/// Envoy's default for `initial_fetch_timeout`: how long a listener waits for endpoints or routes.
const PATIENCE: Duration = Duration::from_secs(15);

/// A version that was not taken.
#[derive(Clone, Debug)]
pub(super) struct Rejected {
    /// As it came; none when not one resource but the response is at fault.
    pub(super) resource: Option<Resource>,
    /// When.
    pub(super) at: SystemTime,
    /// Why.
    pub(super) why: String,
}

/// Everything accepted.
pub(super) struct Store {
    pub(super) clusters: All<HeldCluster>,
    pub(super) endpoints: All<Arc<ClusterLoadAssignment>>,
    pub(super) listeners: All<Arc<Listener>>,
    pub(super) routes: All<Arc<RouteConfiguration>>,
    pub(super) secrets: All<Secret>,
    /// The last refusal by resource, until a response of its kind is good.
    pub(super) rejected: BTreeMap<(ResourceKind, String), Rejected>,
    known_secrets: BTreeMap<Name, Secret>,
    node: Arc<Node>,
    tracing: Option<Arc<TracingProvider>>,
    /// Of the bootstrap's tracing.
    tracing_notices: BTreeSet<String>,
    /// Kinds that the control plane has answered at least once; all of them where there is none.
    answered: BTreeSet<ResourceKind>,
    has_control_plane: bool,
    /// Since when something is missing.
    since: BTreeMap<Missing, Instant>,
    settling: Settling,
    published: Option<Arc<Snapshot>>,
    shared: Shared,
    pub(super) metrics: NamedMetrics,
    disk: Disk,
    check: fn(&Identity) -> Result<(), String>,
    publisher: Publisher,
    status: StatusPublisher,
}

/// What a store is made with.
pub(super) struct Given {
    pub(super) disk: Disk,
    pub(super) check: fn(&Identity) -> Result<(), String>,
    pub(super) publisher: Publisher,
    pub(super) status: StatusPublisher,
    pub(super) has_control_plane: bool,
    /// Who this proxy is.
    pub(super) node: Arc<Node>,
}

impl Store {
    /// With the bootstrap's own resources; publishes nothing yet.
    ///
    /// # Errors
    /// The first of them that cannot be carried out.
    pub(super) fn new(
        given: Given,
        statics: &StaticResources,
        tracing: Option<&Tracing>,
    ) -> Result<Self, DecodeError> {
        let mut store = Self {
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            secrets: BTreeMap::new(),
            rejected: BTreeMap::new(),
            known_secrets: BTreeMap::new(),
            node: given.node,
            tracing: None,
            tracing_notices: BTreeSet::new(),
            answered: BTreeSet::new(),
            has_control_plane: given.has_control_plane,
            since: BTreeMap::new(),
            settling: Settling::default(),
            published: None,
            shared: Shared::default(),
            metrics: NamedMetrics::default(),
            disk: given.disk,
            check: given.check,
            publisher: given.publisher,
            status: given.status,
        };
        store.trace_by(tracing)?;
        for secret in &statics.secrets {
            let held = store.hold(fixed(&secret.name, secret), true, secret_of)?;
            store.secrets.insert(secret.name.as_str().into(), held);
            store.learn_secrets();
        }
        for cluster in &statics.clusters {
            let held = store.hold(fixed(&cluster.name, cluster), true, cluster_of)?;
            if store
                .clusters
                .insert(cluster.name.as_str().into(), held)
                .is_some()
            {
                return Err(decode::At::resource("Cluster", &cluster.name).refuse("is there twice"));
            }
        }
        for listener in &statics.listeners {
            let held = store.hold(fixed(&listener.name, listener), true, listener_of)?;
            if store
                .listeners
                .insert(listener.name.as_str().into(), held)
                .is_some()
            {
                return Err(decode::At::resource("Listener", &listener.name).refuse("is there twice"));
            }
        }
        Ok(store)
    }

    /// Takes the bootstrap's provider of tracing.
    fn trace_by(&mut self, tracing: Option<&Tracing>) -> Result<(), DecodeError> {
        let mut context = Context::new(&self.disk, &self.known_secrets, self.check, &mut self.shared);
        self.tracing = decode::bootstrap_tracing(tracing, &mut context)?.map(Arc::new);
        self.tracing_notices = context.notices;
        Ok(())
    }

    /// What is published last.
    pub(super) fn published(&self) -> Option<&Arc<Snapshot>> {
        self.published.as_ref()
    }

    /// Files and folders that resources name.
    pub(super) fn watched(&self) -> BTreeSet<PathBuf> {
        let clusters = self.clusters.values().flat_map(|held| &held.watched);
        let listeners = self.listeners.values().flat_map(|held| &held.watched);
        let secrets = self.secrets.values().flat_map(|held| &held.watched);
        clusters.chain(listeners).chain(secrets).cloned().collect()
    }

    /// Decodes again what is made of files. Where one is not good any more, what was made of it stays.
    pub(super) fn files_changed(&mut self) {
        self.again(|watched, _| !watched.is_empty());
        self.publish();
    }

    /// To be called now and then: what is missing may have been waited for long enough.
    pub(super) fn tick(&mut self) {
        let due = self.settling.due(Instant::now());
        let is_due = !due.is_empty();
        for (kind, names) in due {
            tracing::info!(
                xds = kind.abbreviation(),
                ?names,
                "not named again by the control plane: removed"
            );
            // Nothing is decoded, so nothing can be refused.
            let _ = self.take(kind, Vec::new(), &names);
        }
        if is_due || !self.since.is_empty() {
            self.publish();
        }
    }

    /// Removes what waits for its removal on an address that another listener is to have.
    fn make_way(&mut self) {
        let kind = ResourceKind::Listener;
        let leaving: BTreeSet<&str> = self.settling.leaving(kind).map(String::as_str).collect();
        let address = |name: &str| Some(&self.listeners.get(name)?.value.as_ref()?.address);
        let staying = self.listeners.keys().filter(|name| !leaving.contains(&***name));
        let taken: Vec<_> = staying.filter_map(|name| address(name)).collect();
        let in_the_way = |name: &&&str| address(name).is_some_and(|address| taken.contains(&address));
        let names: Vec<String> = leaving
            .iter()
            .filter(in_the_way)
            .map(|&name| name.to_owned())
            .collect();
        self.settling.gone(kind, &names);
        for name in names {
            self.listeners.remove(name.as_str());
        }
    }

    /// Assembles and publishes, if there is news.
    pub(super) fn publish(&mut self) {
        self.status.set_notices(self.notices());
        let accepted = self.accepted();
        let now = Instant::now();
        let waited = |missing: &Missing| self.since.get(missing).map(|since| now.duration_since(*since));
        // A file that is all there is says nothing more.
        let given_up = |missing: &Missing| {
            !self.has_control_plane || waited(missing).is_some_and(|waited| waited >= self.patience(missing))
        };
        let Assembled {
            snapshot,
            missing,
            waits,
        } = assemble(&accepted, self.published.as_deref(), &given_up);
        for missing in missing.iter().filter(|missing| given_up(missing)) {
            if self.published.is_none() {
                if self.has_control_plane {
                    tracing::warn!("{missing} did not come in time; what needs it is served without");
                }
                self.count_timed_out(missing);
            }
        }
        let is_warming = |missing: &&Missing| matches!(missing, Missing::Endpoints(_)) && !given_up(missing);
        self.metrics.warming(missing.iter().filter(is_warming).count());
        self.since.retain(|known, _| missing.contains(known));
        for missing in missing {
            let has_control_plane = self.has_control_plane;
            self.since.entry(missing).or_insert_with_key(|missing| {
                if has_control_plane {
                    tracing::info!("a listener waits for {missing}");
                } else {
                    tracing::warn!("a listener needs {missing}, which the file does not have");
                }
                now
            });
        }
        let complete =
            self.answered.contains(&ResourceKind::Cluster) && self.answered.contains(&ResourceKind::Listener);
        if self.published.is_none() && self.has_control_plane && (waits || !complete) {
            return;
        }
        if self.published.as_deref().is_some_and(|old| *old == snapshot) {
            return;
        }
        let (listeners, clusters) = (snapshot.listeners.len(), snapshot.clusters.len());
        match self.published {
            None => tracing::info!(listeners, clusters, "the first configuration is complete"),
            Some(_) => tracing::debug!(listeners, clusters, "a new configuration"),
        }
        ::metrics::counter!("attache_snapshot_published_total").increment(1);
        let snapshot = Arc::new(snapshot);
        self.published = Some(Arc::clone(&snapshot));
        self.publisher.publish(snapshot);
        self.shared.sweep();
        self.status.set_ready();
    }

    fn patience(&self, missing: &Missing) -> Duration {
        let eds = match missing {
            Missing::Endpoints(name) => self
                .clusters
                .get(name)
                .and_then(|held| held.value.as_ref()?.eds.as_ref()),
            Missing::Cluster(_) | Missing::Routes(_) => None,
        };
        eds.map_or(PATIENCE, |eds| eds.initial_fetch_timeout.unwrap_or(Duration::MAX))
    }

    fn accepted(&self) -> Accepted {
        let mut accepted = Accepted::default();
        for (name, held) in &self.clusters {
            let Some(decoded) = &held.value else { continue };
            accepted
                .clusters
                .insert(Arc::clone(name), Arc::clone(&decoded.cluster));
            let assignment = match &decoded.eds {
                Some(eds) => self
                    .endpoints
                    .get(&eds.service_name)
                    .and_then(|held| held.value.as_ref()),
                None => decoded.endpoints.as_ref(),
            };
            if let Some(assignment) = assignment {
                accepted
                    .endpoints
                    .insert(Arc::clone(name), Arc::clone(assignment));
            }
        }
        accepted.listeners = values(&self.listeners);
        accepted.routes = values(&self.routes);
        accepted.node = Arc::clone(&self.node);
        accepted.tracing.clone_from(&self.tracing);
        accepted
    }

    fn notices(&self) -> Vec<String> {
        let all = [
            self.clusters
                .values()
                .map(|held| &held.notices)
                .collect::<Vec<_>>(),
            self.endpoints.values().map(|held| &held.notices).collect(),
            self.listeners.values().map(|held| &held.notices).collect(),
            self.routes.values().map(|held| &held.notices).collect(),
        ];
        let all: BTreeSet<&String> = all.into_iter().flatten().flatten().collect();
        all.into_iter().chain(&self.tracing_notices).cloned().collect()
    }

    /// Decodes a resource. One that waits for a secret is held without a value.
    fn hold<T>(
        &mut self,
        resource: Resource,
        is_static: bool,
        decode: impl Fn(&[u8], &mut Context<'_>) -> Result<T, DecodeError>,
    ) -> Result<Held<T>, DecodeError> {
        let mut context = Context::new(&self.disk, &self.known_secrets, self.check, &mut self.shared);
        let value = match decode(&resource.body, &mut context) {
            Ok(value) => Some(value),
            Err(DecodeError {
                why: Why::Waiting(_), ..
            }) if !is_static => None,
            Err(error) => return Err(error),
        };
        let Context {
            notices,
            watched,
            interest,
            ..
        } = context;
        Ok(Held {
            resource,
            is_static,
            updated: SystemTime::now(),
            value,
            notices,
            watched,
            secrets: interest,
        })
    }

    /// Decodes all changed resources of a response, or none.
    fn hold_all<T>(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        decode: impl Fn(&[u8], &mut Context<'_>) -> Result<T, DecodeError>,
    ) -> Result<Vec<(Name, Held<T>)>, Refused> {
        let mut all = Vec::new();
        for resource in changed {
            let name = Name::from(resource.name.as_str());
            let held = match self.is_static(kind, &name) {
                true => Err(format!(
                    "{kind}: {name} is static, in the bootstrap file: it cannot be changed"
                )),
                false => self
                    .hold(resource.clone(), false, &decode)
                    .map_err(|error| error.to_string()),
            };
            match held {
                Ok(held) => all.push((name, held)),
                Err(message) => {
                    let rejected = Rejected {
                        resource: Some(resource),
                        at: SystemTime::now(),
                        why: message.clone(),
                    };
                    self.rejected.insert((kind, name.to_string()), rejected);
                    return Err(Refused { message });
                }
            }
        }
        Ok(all)
    }

    /// Whether the bootstrap file has it, so that no response may.
    fn is_static(&self, kind: ResourceKind, name: &str) -> bool {
        match kind {
            ResourceKind::Cluster => is_static(&self.clusters, name),
            ResourceKind::Listener => is_static(&self.listeners, name),
            ResourceKind::Secret => is_static(&self.secrets, name),
            ResourceKind::Endpoint | ResourceKind::Route => false,
        }
    }

    fn learn_secrets(&mut self) {
        let known = |(name, held): (&Name, &Held<Secret>)| Some((Arc::clone(name), held.value.clone()?));
        self.known_secrets = self.secrets.iter().filter_map(known).collect();
    }

    /// Decodes again what `wanted` says of by its files and secrets.
    fn again(&mut self, wanted: impl Fn(&BTreeSet<PathBuf>, &BTreeSet<Name>) -> bool) {
        let mut secrets = std::mem::take(&mut self.secrets);
        self.retry(&mut secrets, &wanted, secret_of);
        self.secrets = secrets;
        self.learn_secrets();
        let mut clusters = std::mem::take(&mut self.clusters);
        self.retry(&mut clusters, &wanted, cluster_of);
        self.clusters = clusters;
        let mut listeners = std::mem::take(&mut self.listeners);
        self.retry(&mut listeners, &wanted, listener_of);
        self.listeners = listeners;
    }

    fn retry<T>(
        &mut self,
        all: &mut All<T>,
        wanted: &impl Fn(&BTreeSet<PathBuf>, &BTreeSet<Name>) -> bool,
        decode: impl Fn(&[u8], &mut Context<'_>) -> Result<T, DecodeError>,
    ) {
        let chosen = all
            .values_mut()
            .filter(|held| wanted(&held.watched, &held.secrets));
        for held in chosen {
            match self.hold(held.resource.clone(), held.is_static, &decode) {
                Ok(newer) if newer.value.is_some() => *held = newer,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "what changed cannot be used; the last good one goes on")
                }
            }
        }
    }

    fn take(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: &[String],
    ) -> Result<(), Refused> {
        match kind {
            ResourceKind::Cluster => {
                let newer = self.hold_all(kind, changed, cluster_of)?;
                replace(&mut self.clusters, newer, removed);
                let wanted = self.interest(ResourceKind::Endpoint);
                self.endpoints.retain(|name, _| wanted.contains(name));
            }
            ResourceKind::Endpoint => {
                let newer = self.hold_all(kind, changed, endpoints_of)?;
                replace(&mut self.endpoints, newer, removed);
            }
            ResourceKind::Listener => {
                let newer = self.hold_all(kind, changed, listener_of)?;
                replace(&mut self.listeners, newer, removed);
                let wanted = self.interest(ResourceKind::Route);
                self.routes.retain(|name, _| wanted.contains(name));
            }
            ResourceKind::Route => {
                let newer = self.hold_all(kind, changed, routes_of)?;
                replace(&mut self.routes, newer, removed);
            }
            ResourceKind::Secret => {
                let newer = self.hold_all(kind, changed, secret_of)?;
                replace(&mut self.secrets, newer, removed);
                self.learn_secrets();
                self.again(|_, secrets| !secrets.is_empty());
            }
        }
        Ok(())
    }
}

impl Resources for Store {
    fn stream_began(&mut self) {
        if self.published.is_some() {
            self.settling.begin(Instant::now());
        }
    }

    fn apply(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Refused> {
        let now = Instant::now();
        let names = metrics::versions(&changed);
        let named: Vec<String> = changed.iter().map(|resource| resource.name.clone()).collect();
        let believed = self.settling.believed(&removed, now);
        if believed.len() < removed.len() {
            let xds = kind.abbreviation();
            tracing::info!(
                xds,
                ?removed,
                "taken away by a control plane that may know it again in a moment"
            );
        }
        if let Err(refused) = self.take(kind, changed, believed) {
            self.metrics.rejected(kind, &names);
            return Err(refused);
        }
        self.count_subscribed();
        self.settling.taken(kind, &named, &removed, now);
        self.make_way();
        // As in Envoy: what was refused and is not sent again is not wanted any more.
        self.rejected.retain(|(of, _), _| *of != kind);
        self.answered.insert(kind);
        self.publish();
        self.metrics.accepted(kind, &names, now.elapsed());
        Ok(())
    }

    fn stream_failed(&mut self) {
        self.metrics.failed();
    }

    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>> {
        match kind {
            ResourceKind::Cluster | ResourceKind::Listener => BTreeSet::new(),
            ResourceKind::Endpoint => {
                let clusters = self.clusters.values().filter(|held| !held.is_static);
                let eds = clusters.filter_map(|held| held.value.as_ref()?.eds.as_ref());
                eds.map(|eds| Arc::clone(&eds.service_name)).collect()
            }
            ResourceKind::Route => {
                let listeners = self.listeners.values().filter_map(|held| held.value.as_ref());
                listeners
                    .flat_map(|listener| listener.route_names())
                    .cloned()
                    .collect()
            }
            ResourceKind::Secret => {
                let clusters = self.clusters.values().flat_map(|held| &held.secrets);
                let listeners = self.listeners.values().flat_map(|held| &held.secrets);
                clusters
                    .chain(listeners)
                    .filter(|name| !is_static(&self.secrets, name))
                    .cloned()
                    .collect()
            }
        }
    }
}
