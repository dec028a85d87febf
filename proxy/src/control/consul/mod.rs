//! The `consul` control source: Consul's HTTP Connect endpoints in, snapshots out.
//!
//! ```text
//! questions -> watch (client, token) -> decode -> state -> compile -> Publisher
//! ```
//! Owns every request to Consul and every rule about what its answers mean: intentions and discovery
//! chains are words of this module only. While Consul is away, slow or wrong, the last good snapshot
//! goes on serving; what cannot be carried out is refused by name.

mod access_logs;
mod agent_version;
mod authority;
pub mod chain;
mod chain_routes;
mod client;
mod compile;
mod default_policy;
mod dial;
mod duration;
mod expose;
mod health;
mod http_manager;
mod inspect;
pub mod intentions;
mod json;
mod jwt_filter;
mod jwt_provider;
mod locate;
mod news;
mod permissions;
mod prepared_query;
mod questions;
pub mod registration;
mod request_match;
mod request_rules;
mod routes;
mod source;
mod state;
mod token;
mod upstream_limits;
mod upstreams;
mod watch;

#[cfg(test)]
mod equivalence_tests;

use std::convert::Infallible;

use attache_bootstrap::Config;

pub use client::ConsulError;
pub use inspect::{InspectError, LiveFacts, LiveUpstream, inspect};
pub use json::DecodeError;

use crate::control::StatusPublisher;
use crate::model::Identity;
use crate::snapshot::Publisher;

/// What the source needs.
#[derive(Debug)]
pub struct ConsulSource {
    /// What arguments, environment and files say.
    pub config: Config,
    /// Where snapshots go.
    pub publisher: Publisher,
    /// Where it tells how it is doing.
    pub status: StatusPublisher,
    /// Whether a leaf can be used at all, such as whether its key fits; says why not.
    pub check: fn(&Identity) -> Result<(), String>,
}

/// What waiting cannot cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A gateway's registration.
    #[error("the registration {id:?} is of the kind {kind:?}: attache serves connect-proxy only")]
    Kind {
        /// The registration's ID.
        id: String,
        /// Its kind.
        kind: String,
    },
    /// A service's registration instead of its proxy's.
    #[error(
        "the registration {id:?} is a service, not its proxy: use --sidecar-for {id}, or the \
         proxy's own ID"
    )]
    NotAProxy {
        /// The registration's ID.
        id: String,
    },
    /// It is not clear which proxy is meant.
    #[error("{sought}: there are {}: choose one with --proxy-id", ids.join(", "))]
    Several {
        /// What was looked for.
        sought: String,
        /// The IDs that fit.
        ids: Vec<String>,
    },
}

/// Keeps the mesh's state up to date and publishes it, for as long as it is polled. Must run where
/// `tokio::task::spawn_local` works; dropping the future ends all its tasks.
///
/// # Errors
/// Only what waiting cannot cure, and only before the first snapshot.
pub async fn run(options: ConsulSource) -> Result<Infallible, SourceError> {
    let (reader, keeper) = token::open(&options.config.consul.token);
    let client = client::Client::new(&options.config.consul, reader);
    let shared = watch::Shared {
        budget: watch::Budget::new(),
        status: options.status.clone(),
        client: client.clone(),
    };
    tracing::info!(
        consul = client.place(),
        proxy = locate::sought(&options.config.proxy),
        "begin"
    );
    let must_log_in = keeper.must_log_in();
    let mut token = client.token();
    let keeper = keeper.run(client);
    let work = async {
        if must_log_in {
            options.status.waiting("token", "the login at Consul");
            token.newer_than(1).await;
            options.status.current("token", None);
        }
        source::run(options, shared).await
    };
    tokio::select! {
        result = work => result,
        never = keeper => match never {},
    }
}
