//! A Consul stand-in: the HTTP endpoints that a Connect proxy uses, over one agent's worth of
//! services, with an authority of its own. It serves the demo, the tests and the benches.
//!
//! It keeps everything in memory and checks little: no raft, no gossip, no health checks that run,
//! one datacenter, the default namespace and partition. A [`StandIn`] owns the listener and every
//! connection to it; when its last clone is dropped they are closed.

mod answer;
mod authority;
mod blocking;
mod catalog;
mod clock;
mod endpoints;
mod http;
mod intention;
mod registration;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub use self::authority::{Authority, IssueOptions, Issued, KeyType};
pub use self::catalog::{Health, RegistrationError};
pub use self::intention::Action;
pub use self::registration::{Registration, Sidecar};

use self::blocking::Shared;
use self::state::{Override, State};

/// How the stand-in starts.
#[derive(Clone, Debug)]
pub struct StandInOptions {
    /// Where it listens; port 0 takes a free one.
    pub bind: SocketAddr,
    /// How long leaves live; they are renewed between 60 and 90 % of it.
    pub leaf_ttl: Duration,
    /// The datacenter's name.
    pub datacenter: String,
    /// What `authorize` says where no intention matches.
    pub default_policy: Action,
    /// What the header `X-Consul-Default-Acl-Policy` says; it knows nothing of the policy above.
    pub acl_default_policy: Action,
    /// The kind of keys of the roots.
    pub authority_key: KeyType,
    /// A connection above this many is answered with 429, as Consul does above 200 an address.
    pub max_connections: Option<usize>,
    /// The one token that is accepted; every request is, without one.
    pub token: Option<String>,
}

impl Default for StandInOptions {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            leaf_ttl: Duration::from_secs(72 * 3_600),
            datacenter: "dc1".to_owned(),
            default_policy: Action::Allow,
            acl_default_policy: Action::Allow,
            authority_key: KeyType::P256,
            max_connections: None,
            token: None,
        }
    }
}

/// How answers go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with a line of text.
    Status(u16),
    /// Status 200 and a body that is no JSON.
    Rubbish,
    /// The right answer, this much later.
    Slow(Duration),
    /// The right answer, cut in the middle with the connection.
    Truncated,
}

/// Why the stand-in could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// The address is taken or not ours.
    #[error("the Consul stand-in cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// A key or a certificate could not be made.
    #[error("the Consul stand-in cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The registration was refused.
    #[error("the Consul stand-in refuses the registration: {0}")]
    Registration(#[from] RegistrationError),
}

/// A running stand-in. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct StandIn {
    shared: Shared,
    server: Arc<Server>,
}

/// The listening side; the data outlives it in [`Shared`].
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    max_connections: Option<usize>,
    /// Where the server runs, so that a handle may be used from any thread.
    runtime: Handle,
    /// `None` while stopped.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = take(&self.task) {
            task.abort();
        }
    }
}

fn take(task: &Mutex<Option<JoinHandle<()>>>) -> Option<JoinHandle<()>> {
    task.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl StandIn {
    /// Starts one on the current tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had, or no certificate be made.
    pub async fn start(options: StandInOptions) -> Result<Self, StandInError> {
        let failed = |error| StandInError::Bind(options.bind, error);
        let listener = http::bind(options.bind).await.map_err(failed)?;
        let standin = Self {
            shared: Shared::new(State::new(&options)?),
            server: Arc::new(Server {
                address: listener.local_addr().map_err(failed)?,
                open: Arc::default(),
                max_connections: options.max_connections,
                runtime: Handle::current(),
                task: Mutex::new(None),
            }),
        };
        standin.serve(listener);
        Ok(standin)
    }

    fn serve(&self, listener: tokio::net::TcpListener) {
        let server = &self.server;
        let serving = http::serve(
            listener,
            self.shared.clone(),
            Arc::clone(&server.open),
            server.max_connections,
        );
        let task = server.runtime.spawn(serving);
        let mut slot = server.task.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(task);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Closes the port and every connection, as if the agent was killed. The data stays.
    pub async fn stop(&self) {
        if let Some(task) = take(&self.server.task) {
            task.abort();
            // The listener is closed only once the task has been dropped.
            let _ = task.await;
        }
    }

    /// Comes back on the same port with the same data, at smaller indexes if asked to.
    ///
    /// # Errors
    /// When somebody else took the port meanwhile.
    pub async fn resume(&self, lower_indexes: bool) -> Result<(), StandInError> {
        self.stop().await;
        if lower_indexes {
            self.shared.with(State::lower_indexes);
        }
        let address = self.server.address;
        let listener = http::bind(address)
            .await
            .map_err(|error| StandInError::Bind(address, error))?;
        self.serve(listener);
        Ok(())
    }

    /// Registers a service, and its sidecar if it has one. Gives the ID of the sidecar, or of the
    /// service where there is none.
    ///
    /// # Errors
    /// As Consul would refuse it.
    pub fn register(&self, registration: &Registration) -> Result<String, StandInError> {
        let ids = self.shared.with(|state| state.register(registration))?;
        Ok(ids.into_iter().next_back().unwrap_or_default())
    }

    /// Registers a service alone, with its name for an ID.
    ///
    /// # Errors
    /// As Consul would refuse it.
    pub fn register_service(&self, name: &str, port: u16) -> Result<String, StandInError> {
        self.register(&Registration::new(name, port))
    }

    /// Registers a service with its sidecar; gives the sidecar's ID, `<name>-sidecar-proxy`.
    ///
    /// # Errors
    /// As Consul would refuse it.
    pub fn register_sidecar(&self, name: &str, port: u16, sidecar: Sidecar) -> Result<String, StandInError> {
        self.register(&Registration::new(name, port).sidecar(sidecar))
    }

    /// Removes a service and its sidecar.
    pub fn deregister(&self, id: &str) {
        self.shared.with(|state| state.deregister(id));
    }

    /// Sets the health of a service or a sidecar; a sidecar is never healthier than its service.
    pub fn set_health(&self, id: &str, health: Health) {
        self.shared.with(|state| state.set_health(id, health));
    }

    /// Sets one intention; either name may be `*`.
    pub fn set_intention(&self, source: &str, destination: &str, action: Action) {
        self.shared
            .with(|state| state.set_intention(source, destination, Some(action)));
    }

    /// Removes one intention.
    pub fn remove_intention(&self, source: &str, destination: &str) {
        self.shared
            .with(|state| state.set_intention(source, destination, None));
    }

    /// Replaces all intentions of a destination by the `Sources` of a config entry, which may have
    /// `Permissions`, `Peer`, `Namespace` and `Partition`.
    pub fn set_intention_sources(&self, destination: &str, sources: &[Value]) {
        let sources = sources.iter().filter_map(Value::as_object).cloned();
        self.shared
            .with(|state| state.put_intentions(destination, sources.collect()));
    }

    /// What `authorize` says from now on where no intention matches.
    pub fn set_default_policy(&self, policy: Action) {
        self.shared.with(|state| {
            state.default_policy = policy;
            state.touch();
        });
    }

    /// Writes a config entry of any kind but `service-intentions`, or removes it.
    pub fn set_config_entry(&self, kind: &str, name: &str, entry: Option<Value>) {
        self.shared.with(|state| state.put_config(kind, name, entry));
    }

    /// Defines a prepared query for a service.
    pub fn set_prepared_query(&self, name: &str, service: &str) {
        self.shared.with(|state| {
            state.prepared_queries.insert(name.to_owned(), service.to_owned());
        });
    }

    /// Issues a new leaf for a service.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn rotate_leaf(&self, service: &str) -> Result<(), StandInError> {
        Ok(self.shared.with(|state| state.renew_leaf(service))?)
    }

    /// Adds a root, makes it the active one and issues every leaf anew. The other roots stay
    /// trusted until [`StandIn::drop_old_roots`].
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn rotate_root(&self) -> Result<(), StandInError> {
        Ok(self.shared.with(State::rotate_root)?)
    }

    /// Ends the cross period of a rotation.
    pub fn drop_old_roots(&self) {
        self.shared.with(State::drop_old_roots);
    }

    /// Forgets everything and starts over with another trust domain and small indexes, as a
    /// restart without data does. Goes between [`StandIn::stop`] and [`StandIn::resume`].
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn replace_authority(&self, key_type: KeyType) -> Result<(), StandInError> {
        let authority = Authority::new(key_type)?;
        self.shared.with(|state| state.replace_authority(authority));
        Ok(())
    }

    /// A certificate for a service's SPIFFE ID, or with whatever is wrong that a test needs.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn issue(&self, service: &str, options: &IssueOptions) -> Result<Issued, StandInError> {
        Ok(self.shared.with(|state| state.issue(service, options))?)
    }

    /// Every trusted root.
    pub fn roots_pem(&self) -> String {
        self.shared.with(|state| state.authority.roots_pem())
    }

    /// `<uuid>.consul`.
    pub fn trust_domain(&self) -> String {
        self.shared
            .with(|state| state.authority.trust_domain().to_owned())
    }

    /// The SPIFFE ID of a service.
    pub fn service_uri(&self, service: &str) -> String {
        self.shared
            .with(|state| state.authority.service_uri(&state.datacenter, service))
    }

    /// Makes every answer go wrong, or none.
    pub fn fail_with(&self, fault: Option<Fault>) {
        self.fail_path_with("", fault);
    }

    /// Makes the answers under a path prefix go wrong; the longest prefix that fits counts.
    pub fn fail_path_with(&self, prefix: &str, fault: Option<Fault>) {
        self.shared.with(|state| state.set_fault(prefix, fault));
    }

    /// Puts an answer in the place of the stand-in's own. A path may carry a query, whose
    /// parameters must then be in the request. With a status other than 200 a string is sent as
    /// plain text. Blocking queries work on it, and are woken by the next change of it.
    pub fn override_path(&self, path: &str, status: u16, body: Value) {
        let answer = Override { status, body };
        self.shared.with(|state| state.set_override(path, Some(answer)));
    }

    /// Gives a path its own answer back.
    pub fn clear_override(&self, path: &str) {
        self.shared.with(|state| state.set_override(path, None));
    }

    /// Overrides a service's discovery chain (the whole body, `{"Chain": …}`).
    pub fn set_discovery_chain(&self, service: &str, body: Value) {
        self.override_path(&format!("/v1/discovery-chain/{service}"), 200, body);
    }

    /// Requires this token of every request, or none.
    pub fn set_token(&self, token: Option<String>) {
        self.shared.with(|state| {
            state.token = token;
            state.touch();
        });
    }

    /// How many requests came for paths that start so.
    pub fn requests(&self, prefix: &str) -> u64 {
        self.shared.with(|state| {
            let fits = state.requests.iter().filter(|it| it.0.starts_with(prefix));
            fits.map(|(_, count)| count).sum()
        })
    }

    /// How many blocking queries wait for paths that start so.
    pub fn waiting(&self, prefix: &str) -> usize {
        self.shared.with(|state| {
            let fits = state.waiting.iter().filter(|it| it.0.starts_with(prefix));
            fits.map(|(_, count)| count).sum()
        })
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.server.open.load(Ordering::Relaxed)
    }
}
