//! Why a connection to an endpoint could not be had, in words, with Envoy's flag for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Name, ResponseFlag, Target};
use crate::tls::HandshakeError;

/// Why no endpoint could be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The snapshot has no such cluster.
    #[error("there is no cluster {0}")]
    NoCluster(Name),
    /// No healthy endpoint, and none came in time.
    #[error("{cluster} has no healthy endpoint ({why})")]
    NoHealthy {
        /// The cluster.
        cluster: Name,
        /// Since when, and whether it was waited for.
        why: String,
    },
    /// The connection's original destination cannot be dialled.
    #[error("{cluster} dials the original destination, {why}")]
    OriginalDestination {
        /// The cluster.
        cluster: Name,
        /// What is wrong with it.
        why: DestinationError,
    },
    /// The circuit breaker is open.
    #[error("{cluster} has its limit of {max} {breaker}{}", if *.by_default { format!(" (Envoy's default; set limits.{} for more)", .breaker.setting()) } else { String::new() })]
    Overflow {
        /// The cluster.
        cluster: Name,
        /// What there is too much of.
        breaker: Breaker,
        /// The limit.
        max: u32,
        /// Whether nobody configured it.
        by_default: bool,
    },
    /// An endpoint was connected to, but does not speak HTTP/2.
    #[error("{endpoint} of {cluster} does not speak HTTP/2: {why}")]
    Http {
        /// The cluster.
        cluster: Name,
        /// The endpoint.
        endpoint: Target,
        /// What went wrong.
        why: String,
    },
    /// Every endpoint tried failed; the last one's reason.
    #[error("{attempts} endpoint(s) of {cluster} tried, the last {endpoint}: {source}")]
    Failed {
        /// The cluster.
        cluster: Name,
        /// The last endpoint tried.
        endpoint: Target,
        /// How many were tried.
        attempts: usize,
        /// Why the last failed.
        source: AttemptError,
    },
}

/// Why one endpoint could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The dial.
    #[error("{0}")]
    Dial(#[from] io::Error),
    /// The handshake.
    #[error("{0}")]
    Handshake(Box<HandshakeError>),
    /// Dial and handshake together took too long.
    #[error("not connected within {0:?}")]
    Timeout(Duration),
    /// It left the cluster while it was dialled, and another is there.
    #[error("it left the cluster while it was dialled")]
    Left,
    /// The cluster's TLS context is broken, so nothing is dialled.
    #[error("the TLS context cannot be used: {0}")]
    Unusable(Arc<str>),
}

/// Why an original destination cannot be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The downstream came over a unix socket.
    #[error("which is not known of a unix socket")]
    Unknown,
    /// It is an address of a listener of ours. Envoy dials it, and itself again, until it runs out of
    /// descriptors.
    #[error("but {0} is a listener's own address: the connection was not redirected")]
    Ourselves(SocketAddr),
}

/// What a circuit breaker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Live ones and those being made.
    Connections,
    /// Those being made or waiting for an endpoint.
    Pending,
    /// Requests under way.
    Requests,
}

impl Breaker {
    /// Consul's name of the setting.
    fn setting(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_concurrent_requests",
        }
    }
}

impl std::fmt::Display for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Pending => "connections that are not made yet",
            Self::Requests => "requests",
        })
    }
}

impl ConnectError {
    /// Envoy's flag for it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoCluster(_) => ResponseFlag::NoClusterFound,
            Self::NoHealthy { .. } | Self::OriginalDestination { .. } => ResponseFlag::NoHealthyUpstream,
            Self::Overflow { .. } => ResponseFlag::UpstreamOverflow,
            Self::Failed { .. } | Self::Http { .. } => ResponseFlag::UpstreamConnectionFailure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_words_and_a_flag() {
        let cluster: Name = "api".into();
        let endpoint = Target::Host {
            host: "db".into(),
            port: 5432,
        };
        for (error, flag, words) in [
            (
                ConnectError::NoCluster(Arc::clone(&cluster)),
                "NC",
                "no cluster api",
            ),
            (
                ConnectError::NoHealthy {
                    cluster: Arc::clone(&cluster),
                    why: "gone".to_owned(),
                },
                "UH",
                "api has no healthy endpoint (gone)",
            ),
            (
                ConnectError::OriginalDestination {
                    cluster: Arc::clone(&cluster),
                    why: DestinationError::Ourselves(([127, 0, 0, 1], 15001).into()),
                },
                "UH",
                "127.0.0.1:15001 is a listener's own address",
            ),
            (
                ConnectError::Overflow {
                    cluster: Arc::clone(&cluster),
                    breaker: Breaker::Connections,
                    max: 1024,
                    by_default: true,
                },
                "UO",
                "limit of 1024 connections (Envoy's default; set limits.max_connections for more)",
            ),
            (
                ConnectError::Overflow {
                    cluster: Arc::clone(&cluster),
                    breaker: Breaker::Pending,
                    max: 0,
                    by_default: false,
                },
                "UO",
                "limit of 0 connections that are not made yet",
            ),
            (
                ConnectError::Failed {
                    cluster,
                    endpoint,
                    attempts: 2,
                    source: AttemptError::Timeout(Duration::from_secs(5)),
                },
                "UF",
                "2 endpoint(s) of api tried, the last db:5432: not connected within 5s",
            ),
        ] {
            assert_eq!(error.flag().as_str(), flag);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
