//! One cluster as a worker holds it: configuration, endpoints with their live connections, TLS.
//!
//! Owned by the cluster manager; connections hold it by `Rc` and see it change under them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::limit::Limit;
use crate::model::{Cluster, ClusterLoadAssignment, Endpoint, Name, Target, UpstreamTls};
use crate::telemetry::metrics::ClusterMetrics;
use crate::tls::ConfigCache;
use crate::tls::config::ConfigError;

/// A cluster in use.
#[derive(Debug)]
pub struct ClusterState {
    /// The cluster's name.
    pub name: Name,
    /// This worker's counters.
    pub metrics: ClusterMetrics,
    /// Live connections over all workers.
    pub connections: Limit,
    /// Connections that wait for an endpoint, in this worker.
    pub waiting: Cell<u32>,
    config: RefCell<Arc<Cluster>>,
    transport: RefCell<Transport>,
    endpoints: RefCell<Endpoints>,
}

/// How the cluster's endpoints are spoken to.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Without TLS.
    Plain,
    /// Mutual TLS.
    Tls {
        /// Verifies the endpoint and presents us.
        config: Arc<ClientConfig>,
        /// Consul's SNI.
        sni: ServerName<'static>,
    },
    /// TLS was asked for but cannot be had: nothing is dialled, least of all without it.
    Unusable(Arc<str>),
}

/// One endpoint with its live connections; kept over updates that do not change its address.
#[derive(Debug)]
pub struct EndpointState {
    /// Where it is dialled.
    pub address: Target,
    /// Relative share.
    pub weight: Cell<u32>,
    /// Whether it may be dialled.
    pub healthy: Cell<bool>,
    /// Connections of this worker that are being made or live.
    pub active: Cell<u32>,
}

/// What is known of a cluster's endpoints.
#[derive(Debug)]
enum Endpoints {
    /// No answer yet.
    Unknown,
    /// At least one healthy endpoint.
    Some(Vec<Rc<EndpointState>>),
    /// No healthy endpoint. `lost` is when the last one went; `None` if there never was one.
    None {
        all: Vec<Rc<EndpointState>>,
        lost: Option<Instant>,
    },
}

/// What can be dialled now.
#[derive(Debug)]
pub enum Availability {
    /// These.
    Endpoints(Vec<Rc<EndpointState>>),
    /// Not known yet.
    Unknown,
    /// The last healthy endpoint went at this time.
    Lost(Instant),
    /// There never was one.
    Never,
}

impl EndpointState {
    /// A fresh endpoint without connections.
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address.clone(),
            weight: Cell::new(endpoint.weight),
            healthy: Cell::new(endpoint.healthy),
            active: Cell::new(0),
        }
    }
}

impl ClusterState {
    /// A cluster whose endpoints are not known yet.
    pub fn new(config: &Arc<Cluster>, connections: Limit, tls: &mut ConfigCache) -> Self {
        Self {
            name: Arc::clone(&config.name),
            metrics: ClusterMetrics::new(&config.name),
            connections,
            waiting: Cell::new(0),
            transport: RefCell::new(transport(config, tls, None)),
            config: RefCell::new(Arc::clone(config)),
            endpoints: RefCell::new(Endpoints::Unknown),
        }
    }

    /// The newest configuration.
    pub fn config(&self) -> Arc<Cluster> {
        Arc::clone(&self.config.borrow())
    }

    /// How endpoints are spoken to now: a new leaf or root is used by the next handshake.
    pub fn transport(&self) -> Transport {
        self.transport.borrow().clone()
    }

    /// Takes a newer configuration; live connections keep what they have.
    pub fn update(&self, config: &Arc<Cluster>, tls: &mut ConfigCache) {
        if Arc::ptr_eq(&self.config.borrow(), config) {
            return;
        }
        let newer = transport(config, tls, Some(&self.transport.borrow()));
        *self.transport.borrow_mut() = newer;
        *self.config.borrow_mut() = Arc::clone(config);
    }

    /// Takes newer endpoints; those that stay keep their counts, live connections stay on theirs.
    pub fn update_endpoints(&self, assignment: Option<&ClusterLoadAssignment>) {
        // An assignment that goes away (a source that lost its memory) changes nothing.
        let Some(assignment) = assignment else { return };
        let mut endpoints = self.endpoints.borrow_mut();
        let (old, lost) = match &*endpoints {
            Endpoints::Unknown => (&[][..], None),
            Endpoints::Some(all) => (all.as_slice(), Some(Instant::now())),
            Endpoints::None { all, lost } => (all.as_slice(), *lost),
        };
        let all: Vec<_> = assignment
            .endpoints
            .iter()
            .map(|endpoint| keep(old, endpoint))
            .collect();
        *endpoints = if all.iter().any(|endpoint| endpoint.healthy.get()) {
            Endpoints::Some(all)
        } else {
            Endpoints::None { all, lost }
        };
    }

    /// What can be dialled now.
    pub fn availability(&self) -> Availability {
        match &*self.endpoints.borrow() {
            Endpoints::Some(all) => Availability::Endpoints(all.clone()),
            Endpoints::Unknown => Availability::Unknown,
            Endpoints::None { lost: Some(at), .. } => Availability::Lost(*at),
            Endpoints::None { lost: None, .. } => Availability::Never,
        }
    }
}

fn keep(old: &[Rc<EndpointState>], endpoint: &Endpoint) -> Rc<EndpointState> {
    match old.iter().find(|have| have.address == endpoint.address) {
        Some(have) => {
            have.weight.set(endpoint.weight);
            have.healthy.set(endpoint.healthy);
            Rc::clone(have)
        }
        None => Rc::new(EndpointState::new(endpoint)),
    }
}

/// The transport for `config`. Where the newer TLS context cannot be used, the last good one stays.
fn transport(config: &Cluster, tls: &mut ConfigCache, last: Option<&Transport>) -> Transport {
    let Some(context) = &config.transport else {
        return Transport::Plain;
    };
    match client(context, tls) {
        Ok(transport) => transport,
        Err(error) => {
            tracing::error!(cluster = %config.name, %error, "the TLS context of a cluster cannot be used");
            match last {
                Some(good @ Transport::Tls { .. }) => good.clone(),
                _ => Transport::Unusable(error.to_string().into()),
            }
        }
    }
}

fn client(context: &Arc<UpstreamTls>, tls: &mut ConfigCache) -> Result<Transport, ConfigError> {
    let sni = match &context.sni {
        Some(name) => {
            ServerName::try_from(name.to_string()).map_err(|_| ConfigError::Sni(name.to_string()))?
        }
        // Never sent: rustls only wants to know of whom it speaks.
        None => ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()),
    };
    Ok(Transport::Tls {
        config: tls.client(context)?,
        sni,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limits;
    use crate::model::listener::Address;

    fn cluster() -> ClusterState {
        let config = Arc::new(Cluster {
            name: "c".into(),
            ..Cluster::default()
        });
        ClusterState::new(&config, Limits::default().get("c"), &mut ConfigCache::default())
    }

    fn assignment(endpoints: &[(u16, bool)]) -> ClusterLoadAssignment {
        let endpoint = |&(port, healthy): &(u16, bool)| Endpoint {
            address: Target::Address(Address::Socket(([127, 0, 0, 1], port).into())),
            weight: 1,
            healthy,
            priority: 0,
        };
        ClusterLoadAssignment {
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..ClusterLoadAssignment::default()
        }
    }

    #[test]
    fn unknown_then_never_then_some_then_lost() {
        let cluster = cluster();
        assert!(matches!(cluster.availability(), Availability::Unknown));
        cluster.update_endpoints(Some(&assignment(&[])));
        assert!(matches!(cluster.availability(), Availability::Never));
        cluster.update_endpoints(Some(&assignment(&[(1, true)])));
        assert!(matches!(cluster.availability(), Availability::Endpoints(_)));
        cluster.update_endpoints(Some(&assignment(&[(1, false)])));
        assert!(matches!(cluster.availability(), Availability::Lost(_)));
        cluster.update_endpoints(None);
        assert!(matches!(cluster.availability(), Availability::Lost(_)));
    }

    #[test]
    fn endpoints_keep_their_counts() {
        let cluster = cluster();
        cluster.update_endpoints(Some(&assignment(&[(1, true)])));
        let Availability::Endpoints(before) = cluster.availability() else {
            panic!("endpoints")
        };
        before[0].active.set(7);
        cluster.update_endpoints(Some(&assignment(&[(2, true), (1, true)])));
        let Availability::Endpoints(after) = cluster.availability() else {
            panic!("endpoints")
        };
        assert_eq!(after.iter().map(|e| e.active.get()).collect::<Vec<_>>(), [0, 7]);
    }
}
