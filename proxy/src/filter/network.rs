//! The network filters of a chain before the terminal one, run in their order.
//!
//! Owns their counts and statistics in one worker; the limits are shared by all workers.

use std::sync::Arc;
use std::time::Duration;

use crate::limit::{Limit, Limits, Permit};
use crate::model::listener::{FilterChain, NetworkFilter};
use crate::model::{Action, Downstream, Name, ResponseFlag};
use crate::telemetry::ConnectionLog;
use crate::telemetry::metrics::{ConnectionLimitMetrics, Gauge, RbacMetrics};

/// A chain's filters with what they hold between connections.
#[derive(Debug)]
pub struct NetworkFilters(Vec<Held>);

/// What one filter holds, in the order of [`FilterChain::filters`].
#[derive(Debug)]
enum Held {
    Rbac(RbacMetrics),
    ConnectionLimit {
        live: Limit,
        metrics: ConnectionLimitMetrics,
    },
    SniCluster,
}

/// A connection that every filter lets pass; counts against the limits until dropped.
#[derive(Debug, Default)]
pub struct Admitted {
    /// The cluster that a filter names in place of the terminal filter's.
    pub cluster: Option<Name>,
    places: Vec<Place>,
}

/// A connection that a filter refused; the reason is in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How long it is held open, unread, before it is closed.
    pub delay: Option<Duration>,
}

#[derive(Debug)]
struct Place {
    active: Gauge,
    _permit: Permit,
}

impl NetworkFilters {
    /// The filters of `chain`; `key` tells it from every other chain of the process, and is the same in
    /// all workers and in newer versions of the chain.
    pub fn new(chain: &FilterChain, key: &str, limits: &Limits) -> Self {
        let held = |(index, filter): (usize, &NetworkFilter)| match filter {
            NetworkFilter::Rbac { stat_prefix, .. } => Held::Rbac(RbacMetrics::new(stat_prefix)),
            NetworkFilter::ConnectionLimit { stat_prefix, .. } => Held::ConnectionLimit {
                live: limits.get(&format!("{key} connection_limit {index}")),
                metrics: ConnectionLimitMetrics::new(stat_prefix),
            },
            NetworkFilter::SniCluster => Held::SniCluster,
        };
        Self(chain.filters.iter().enumerate().map(held).collect())
    }

    /// Runs the filters of `chain`, of which they were made, on a connection.
    ///
    /// # Errors
    /// [`Refused`] by the first that lets it not pass.
    pub fn admit(
        &self,
        chain: &FilterChain,
        downstream: &Downstream,
        log: &mut ConnectionLog,
    ) -> Result<Admitted, Refused> {
        let mut admitted = Admitted::default();
        for (filter, held) in chain.filters.iter().zip(&self.0) {
            match (filter, held) {
                (NetworkFilter::Rbac { rules, .. }, Held::Rbac(metrics)) => {
                    let verdict = rules.evaluate(downstream, None);
                    if Arc::ptr_eq(&verdict.policy, &rules.default_name) {
                        log.default_policy(verdict.policy.clone());
                    } else {
                        log.policy(verdict.policy.clone());
                    }
                    if verdict.action == Action::Deny {
                        metrics.denied.increment(1);
                        let why = format!("denied by {}", verdict.policy);
                        log.ended(ResponseFlag::UnauthorizedDetails, why);
                        return Err(Refused { delay: None });
                    }
                    metrics.allowed.increment(1);
                }
                (
                    NetworkFilter::ConnectionLimit {
                        max_connections,
                        delay,
                        ..
                    },
                    Held::ConnectionLimit { live, metrics },
                ) => {
                    let Some(permit) = live.acquire(*max_connections) else {
                        metrics.limited.increment(1);
                        let why = format!("the filter chain has its limit of {max_connections} connections");
                        log.ended(ResponseFlag::OverloadManager, why);
                        return Err(Refused { delay: *delay });
                    };
                    metrics.active.add(1);
                    admitted.places.push(Place {
                        active: metrics.active.clone(),
                        _permit: permit,
                    });
                }
                // Without a server name the terminal filter's own cluster stands, as in Envoy.
                (NetworkFilter::SniCluster, _) => admitted.cluster.clone_from(&downstream.server_name),
                (NetworkFilter::Rbac { .. } | NetworkFilter::ConnectionLimit { .. }, _) => {
                    log.ended(
                        ResponseFlag::LocalReset,
                        "the filters are of another chain; this is a bug",
                    );
                    return Err(Refused { delay: None });
                }
            }
        }
        Ok(admitted)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.active.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rbac;
    use crate::model::filter_chain_match::FilterChainMatch;
    use crate::model::listener::{TcpProxy, Terminal};
    use crate::telemetry::metrics::ListenerMetrics;
    use std::rc::Rc;

    fn chain(filters: Vec<NetworkFilter>) -> FilterChain {
        FilterChain {
            name: "".into(),
            matches: FilterChainMatch::default(),
            transport: None,
            filters,
            terminal: Terminal::TcpProxy(TcpProxy::to("c".into(), "c".into())),
        }
    }

    fn limit(max_connections: u64) -> NetworkFilter {
        NetworkFilter::ConnectionLimit {
            max_connections,
            delay: Some(Duration::from_secs(1)),
            stat_prefix: "l".into(),
        }
    }

    fn log() -> ConnectionLog {
        let metrics = Rc::new(ListenerMetrics::new("filters:127.0.0.1:1"));
        ConnectionLog::open("l".into(), "d".to_owned(), metrics)
    }

    #[test]
    fn limits_are_of_one_chain_and_given_back() {
        let limits = Limits::default();
        let chain = chain(vec![limit(1)]);
        let one = NetworkFilters::new(&chain, "one", &limits);
        let other = NetworkFilters::new(&chain, "other", &limits);
        let nobody = Downstream::default();
        let admitted = one.admit(&chain, &nobody, &mut log()).unwrap();
        assert!(other.admit(&chain, &nobody, &mut log()).is_ok());
        // Another worker, or a newer version of the chain.
        let again = NetworkFilters::new(&chain, "one", &limits);
        let refused = again.admit(&chain, &nobody, &mut log()).unwrap_err();
        assert_eq!(refused.delay, Some(Duration::from_secs(1)));
        drop(admitted);
        assert!(again.admit(&chain, &nobody, &mut log()).is_ok());
    }

    #[test]
    fn filters_run_in_their_order() {
        let deny = NetworkFilter::Rbac {
            rules: Arc::new(Rbac {
                rules: vec![],
                default_action: Action::Deny,
                default_name: "nobody".into(),
                spiffe_only: false,
            }),
            stat_prefix: "p".into(),
        };
        for (filters, flag) in [
            (vec![limit(0), deny.clone()], "OverloadManager"),
            (vec![deny, limit(0)], "UnauthorizedDetails"),
        ] {
            let chain = chain(filters);
            let held = NetworkFilters::new(&chain, "order", &Limits::default());
            let mut log = log();
            assert!(held.admit(&chain, &Downstream::default(), &mut log).is_err());
            assert!(format!("{log:?}").contains(flag), "{log:?}");
        }
    }

    #[test]
    fn the_server_name_names_the_cluster() {
        let chain = chain(vec![NetworkFilter::SniCluster]);
        let held = NetworkFilters::new(&chain, "sni", &Limits::default());
        let mut downstream = Downstream::default();
        assert_eq!(held.admit(&chain, &downstream, &mut log()).unwrap().cluster, None);
        downstream.server_name = Some("api.default".into());
        let admitted = held.admit(&chain, &downstream, &mut log()).unwrap();
        assert_eq!(admitted.cluster.as_deref(), Some("api.default"));
    }
}
