//! One look at the registration, for `attache bootstrap`: what a run would carry.
//!
//! Asks a few questions and ends; watches nothing and publishes nothing.

use std::net::SocketAddr;
use std::time::Duration;

use attache_bootstrap::Config;
use attache_bootstrap::config::ProxyRef;

use super::client::Client;
use super::registration::{self, Listed, Registration};
use super::state::{Given, State};
use super::{ConsulError, SourceError, compile, locate, questions, token};

/// Long enough for a login and three answers, short enough to wait for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the registration says, live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveFacts {
    /// The proxy's own ID; empty for a proxy without registration.
    pub proxy_id: String,
    /// The service whose sidecar it is.
    pub service: String,
    /// The datacenter; empty where the registration does not tell.
    pub datacenter: String,
    /// Where the public listener binds, or why nowhere.
    pub public_listener: Result<SocketAddr, String>,
    /// Where inbound connections go.
    pub local_service: String,
    /// In the order of the registration.
    pub upstreams: Vec<LiveUpstream>,
    /// What would not be carried out, and where the environment says something else.
    pub notices: Vec<String>,
}

/// One upstream, live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveUpstream {
    /// The service or the prepared query.
    pub destination: String,
    /// `service` or `prepared_query`.
    pub kind: String,
    /// The address or socket that the app dials.
    pub bind: String,
    /// The destination's datacenter; the agent's own when absent.
    pub datacenter: Option<String>,
    /// Consul Enterprise.
    pub namespace: Option<String>,
    /// Consul Enterprise.
    pub partition: Option<String>,
    /// The cluster peer it is in.
    pub peer: Option<String>,
    /// The gateway mode asked for; empty for none.
    pub mesh_gateway: String,
}

/// Why nothing could be learnt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// `attache run` would refuse as well.
    #[error(transparent)]
    Refused(#[from] SourceError),
    /// Consul gave no usable answer.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// `attache run` would wait.
    #[error("not there yet: {0}")]
    Waiting(String),
}

/// Asks Consul once what this proxy is. Runs on any runtime; the future is not `Send`.
///
/// # Errors
/// Says what is missing; takes at most five seconds.
pub async fn inspect(config: &Config) -> Result<LiveFacts, InspectError> {
    let local = tokio::task::LocalSet::new();
    let look = Box::pin(local.run_until(look(config)));
    match tokio::time::timeout(TIMEOUT, look).await {
        Ok(result) => result,
        Err(_) => Err(ConsulError::Timeout(TIMEOUT).into()),
    }
}

async fn look(config: &Config) -> Result<LiveFacts, InspectError> {
    if let ProxyRef::Manual(proxy) = &config.proxy {
        return Ok(facts(config, locate::manual(proxy, &config.consul)));
    }
    let (reader, keeper) = token::open(&config.consul.token);
    let client = Client::new(&config.consul, reader);
    let must_log_in = keeper.must_log_in();
    let keeper = keeper.run(client.clone());
    let ask = async {
        if must_log_in {
            client.token().newer_than(1).await;
        }
        let registration = ask(config, &client).await?;
        Ok(facts(config, locate::acceptable(registration)?))
    };
    tokio::select! {
        result = ask => result,
        never = keeper => match never {},
    }
}

async fn ask(config: &Config, client: &Client) -> Result<Registration, InspectError> {
    let id = match &config.proxy {
        ProxyRef::ProxyId(id) => id.clone(),
        proxy => {
            let (list, filtered) = locate::list(client).await?;
            match locate::pick(proxy, &list)? {
                Some(id) => id,
                None => return Err(waiting(proxy, client, &list, filtered)),
            }
        }
    };
    let answer = client.send(&questions::registration(&id).request).await?;
    match answer.refusal() {
        Some(_) if answer.status == 404 => {
            let (list, filtered) = locate::list(client).await?;
            Err(waiting(&config.proxy, client, &list, filtered))
        }
        Some(refusal) => Err(refusal.into()),
        None => Ok(registration::decode(&answer.body).map_err(ConsulError::from)?),
    }
}

fn waiting(proxy: &ProxyRef, client: &Client, list: &[Listed], filtered: bool) -> InspectError {
    let token = client.token().current();
    InspectError::Waiting(locate::missing(proxy, list, filtered, &token.described()).in_full())
}

fn facts(config: &Config, registration: Registration) -> LiveFacts {
    let given = Given::new(config);
    let (upstreams, _) = given.upstreams(&registration);
    let local_service = match (&registration.local_socket, registration.local_address.as_str()) {
        (Some(path), _) => path.clone(),
        (None, "") => format!("127.0.0.1:{}", registration.local_port),
        (None, host) => format!("{host}:{}", registration.local_port),
    };
    let live = |u: registration::Upstream| LiveUpstream {
        bind: u.place(),
        mesh_gateway: u.chain_key(&registration).mesh_gateway,
        destination: u.destination,
        kind: u.kind,
        datacenter: u.datacenter,
        namespace: u.namespace,
        partition: u.partition,
        peer: u.peer,
    };
    let upstreams = upstreams.into_iter().map(live).collect();
    let public_listener = compile::public_address(&given, &registration);
    let state = State {
        registration: Some(registration.clone()),
        ..State::default()
    };
    LiveFacts {
        proxy_id: registration.id,
        service: registration.service,
        datacenter: registration.datacenter,
        public_listener,
        local_service,
        upstreams,
        notices: compile::compile(&given, &state, None)
            .notices
            .into_iter()
            .collect(),
    }
}
