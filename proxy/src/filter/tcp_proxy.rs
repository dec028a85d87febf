//! The TCP proxy: connects to an endpoint of its cluster and relays until both sides have ended.
//!
//! Borrows the downstream stream, owns the upstream one. Only a relay that ended cleanly makes either an
//! ordinary close, so that nothing that was cut can look complete to either app.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::model::listener::{TcpProxy, WeightedCluster};
use crate::model::{Downstream, Name};
use crate::net::Duplex;
use crate::net::relay::{Counts, Cut, Side, Tally, relay};
use crate::telemetry::access_log::UpstreamFacts;
use crate::telemetry::metrics::{ClusterMetrics, TcpProxyMetrics};
use crate::telemetry::{ConnectionLog, ResponseFlag};
use crate::upstream::{
    AttemptError, ClusterManager, ConnectError, Connected, LoadBalancerContext, UpstreamStream, connect,
};

/// Said where the endpoint's sidecar let us connect and then answered nothing: it alone knows why.
const REFUSED_HINT: &str = " before it sent a byte: an intention may deny this caller, or its app refuse; the log of the sidecar there says which";

/// What it is called with for one connection.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Its configuration.
    pub proxy: &'a TcpProxy,
    /// The counts of its `stat_prefix`.
    pub metrics: &'a Rc<TcpProxyMetrics>,
    /// The connection.
    pub downstream: &'a Downstream,
    /// The worker's.
    pub clusters: &'a ClusterManager,
}

/// Carries one connection, over `early` if an endpoint is connected already. Whether one was connected to; the
/// reason it ended is in `log`.
pub async fn run<D: Duplex>(
    context: &Context<'_>,
    early: Option<Connected>,
    stream: &mut D,
    log: &mut ConnectionLog,
) -> bool {
    let proxy = context.proxy;
    let reached = Cell::new(early.is_some());
    let overdue = {
        // In one place from here on: a task has room for each place that a future is moved to.
        let mut carried = pin!(async {
            let connected = match early {
                Some(connected) => Some(connected),
                // Its room is given back once it is connected; a relay lasts.
                None => Box::pin(dial(context, log)).await,
            };
            if let Some(connected) = connected {
                reached.set(true);
                run_connected(context, connected, stream, log).await;
            }
        });
        match proxy.max_duration {
            None => {
                carried.await;
                None
            }
            Some(limit) => timeout(limit, carried.as_mut()).await.err().map(|_| limit),
        }
    };
    if let Some(limit) = overdue {
        log.ended(ResponseFlag::DurationTimeout, format!("cut: open for {limit:?}"));
    }
    reached.get()
}

/// Connects to an endpoint, before or without a downstream to carry. None where that fails: the reason is
/// in `log`.
pub async fn dial(context: &Context<'_>, log: &mut ConnectionLog) -> Option<Connected> {
    let Context {
        proxy,
        metrics,
        downstream,
        clusters,
    } = *context;
    log.reached_tcp_proxy(Rc::clone(metrics));
    let Some(cluster) = choose(&proxy.clusters) else {
        log.ended(ResponseFlag::NoClusterFound, "the TCP proxy has no cluster");
        return None;
    };
    log.cluster(cluster.clone());
    let context = LoadBalancerContext {
        destination: downstream.original_destination(),
        hash: None,
        max_attempts: proxy.max_connect_attempts,
        per_request: false,
    };
    match connect(clusters, &cluster, context).await {
        Ok(connected) => Some(connected),
        Err(error) => {
            failed(&error, clusters, log);
            None
        }
    }
}

async fn run_connected<D: Duplex>(
    context: &Context<'_>,
    connected: Connected,
    stream: &mut D,
    log: &mut ConnectionLog,
) {
    log.cluster(connected.cluster);
    log.endpoint(connected.endpoint);
    log.upstream(|| UpstreamFacts {
        cluster: Some(connected.lease.stat_name()),
        attempts: u32::try_from(connected.attempts).unwrap_or(u32::MAX),
        ..upstream_facts(&connected.stream)
    });
    let idle_timeout = context.proxy.idle_timeout;
    let lease = connected.lease;
    lease.carry();
    let counts = Rc::clone(&log.counts);
    let tally = Carried {
        connection: &counts,
        proxy: context.metrics,
        cluster: lease.metrics(),
    };
    let encrypted = matches!(connected.stream, UpstreamStream::Tls(_));
    let ended = match connected.stream {
        UpstreamStream::Plain(upstream) => carry(stream, upstream, &tally, idle_timeout).await,
        UpstreamStream::Tls(upstream) => carry(stream, *upstream, &tally, idle_timeout).await,
    };
    if matches!(
        ended,
        Ended::Clean(Side::Upstream)
            | Ended::Cut(Cut {
                side: Side::Upstream,
                ..
            })
    ) {
        lease.ended_by_endpoint();
    }
    match ended {
        Ended::Clean(_) => {
            log.ended(ResponseFlag::None, "both sides closed");
        }
        Ended::Cut(cut) => {
            let flag = match cut.side {
                Side::Downstream => ResponseFlag::DownstreamConnectionTermination,
                Side::Upstream => ResponseFlag::UpstreamConnectionTermination,
            };
            let refused = encrypted && cut.side == Side::Upstream && counts.sent.get() == 0;
            log.ended(
                flag,
                if refused {
                    format!("{cut}{REFUSED_HINT}")
                } else {
                    cut.to_string()
                },
            );
        }
        Ended::Idle(limit) => {
            log.ended(
                ResponseFlag::StreamIdleTimeout,
                format!("no byte either way for {limit:?}"),
            );
        }
    }
}

/// Records why no endpoint could be connected to.
fn failed(error: &ConnectError, clusters: &ClusterManager, log: &mut ConnectionLog) {
    log.ended(error.flag(), error.to_string());
    if let ConnectError::Failed {
        cluster,
        endpoint,
        attempts,
        source,
        ..
    } = error
    {
        log.endpoint(endpoint.to_string());
        log.upstream(|| UpstreamFacts {
            cluster: clusters.get(cluster).map(|c| Arc::clone(c.config().stat_name())),
            attempts: u32::try_from(*attempts).unwrap_or(u32::MAX),
            failure: Some(match source {
                AttemptError::Dial(error) => refusal(error),
                other => other.to_string(),
            }),
            ..UpstreamFacts::default()
        });
    }
}

/// A failed dial in Envoy's words, which have no number of the error.
fn refusal(error: &io::Error) -> String {
    let text = error.to_string();
    let what = text.split_once(" (os error").map_or(&*text, |(what, _)| what);
    format!("delayed connect error: {what}")
}

/// What an access log can tell of a connected stream.
fn upstream_facts(stream: &UpstreamStream) -> UpstreamFacts {
    let tls = match stream {
        UpstreamStream::Plain(stream) => {
            return UpstreamFacts {
                local: stream.local_addr(),
                ..UpstreamFacts::default()
            };
        }
        UpstreamStream::Tls(stream) => stream,
    };
    UpstreamFacts {
        local: tls.local_addr(),
        tls: tls.agreed(),
        peer: tls.peer_names().map(Arc::new),
        ..UpstreamFacts::default()
    }
}

/// One of the clusters, each as often as its weight says.
fn choose(clusters: &[WeightedCluster]) -> Option<Name> {
    if let [one] = clusters {
        return Some(one.name.clone());
    }
    let sum: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
    let mut left = fastrand::u64(0..sum.max(1));
    let chosen = clusters.iter().find(|cluster| {
        let weight = u64::from(cluster.weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    });
    chosen.map(|cluster| cluster.name.clone())
}

/// Where the bytes of a connection are counted, as they go.
struct Carried<'a> {
    connection: &'a Counts,
    proxy: &'a TcpProxyMetrics,
    cluster: &'a ClusterMetrics,
}

impl Tally for Carried<'_> {
    fn moved(&self, from: Side, bytes: u64) {
        self.connection.moved(from, bytes);
        let (received, sent) = match from {
            Side::Downstream => (&self.proxy.received, &self.cluster.sent),
            Side::Upstream => (&self.cluster.received, &self.proxy.sent),
        };
        received.increment(bytes);
        sent.increment(bytes);
    }

    fn buffered(&self, to: Side, change: i64) {
        self.connection.buffered(to, change);
        let (received, to_send) = match to {
            Side::Upstream => (&self.proxy.received_buffered, &self.cluster.sent_buffered),
            Side::Downstream => (&self.cluster.received_buffered, &self.proxy.sent_buffered),
        };
        received.add(change);
        to_send.add(change);
    }
}

enum Ended {
    /// The side ended last.
    Clean(Side),
    Cut(Cut),
    Idle(Duration),
}

async fn carry<D: Duplex, U: Duplex>(
    downstream: &mut D,
    mut upstream: U,
    tally: &Carried<'_>,
    idle_timeout: Option<Duration>,
) -> Ended {
    let relayed = relay(downstream, &mut upstream, tally);
    let ended = match idle_timeout {
        None => relayed.await,
        Some(limit) => tokio::select! {
            relayed = relayed => relayed,
            () = idle(tally.connection, limit) => return Ended::Idle(limit),
        },
    };
    match ended {
        Ok(last) => {
            downstream.finished();
            upstream.finished();
            Ended::Clean(last)
        }
        Err(cut) => Ended::Cut(cut),
    }
}

/// Ready once no byte came or was taken for `limit`. One timer for the whole span, not one a byte.
async fn idle(counts: &Counts, limit: Duration) {
    loop {
        let now = || [&counts.received, &counts.sent, &counts.drained].map(Cell::get);
        let before = now();
        tokio::time::sleep(limit).await;
        if before == now() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cluster;
    use crate::net::PlainStream;
    use crate::telemetry::metrics::ListenerMetrics;

    #[test]
    fn weights_decide_among_clusters() {
        let weighted = |name: &str, weight| WeightedCluster {
            name: name.into(),
            weight,
        };
        let clusters = [weighted("a", 1), weighted("b", 3), weighted("none", 0)];
        let drawn: Vec<_> = (0..4000).filter_map(|_| choose(&clusters)).collect();
        let b = drawn.iter().filter(|name| &***name == "b").count();
        // 3,000 expected; ten standard deviations (27 each) either way.
        assert!((2700..3300).contains(&b), "{b}");
        assert!(drawn.len() == 4000 && !drawn.iter().any(|name| &**name == "none"));
        assert!(choose(&[]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_at_its_longest_duration() {
        let clusters = ClusterManager::for_tests(vec![Cluster {
            name: "c".into(),
            ..Cluster::default()
        }]);
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = PlainStream::Unix(ours);
        let metrics = Rc::new(ListenerMetrics::new("test:127.0.0.1:1"));
        let began = tokio::time::Instant::now();
        // It waits for first endpoints, up to the connect timeout of 5 s; that counts too.
        for (seconds, flag) in [(3, "DurationTimeout"), (7, "NoHealthyUpstream")] {
            let proxy = TcpProxy {
                max_duration: Some(Duration::from_secs(seconds)),
                ..TcpProxy::to("c".into(), "c".into())
            };
            let mut log = ConnectionLog::open("l".into(), "d".to_owned(), Rc::clone(&metrics));
            let context = Context {
                proxy: &proxy,
                metrics: &Rc::new(TcpProxyMetrics::new("c")),
                downstream: &Downstream::default(),
                clusters: &clusters,
            };
            run(&context, None, &mut stream, &mut log).await;
            assert!(format!("{log:?}").contains(flag), "{log:?}");
        }
        assert_eq!(began.elapsed().as_secs(), 3 + 5);
    }

    #[test]
    fn a_failed_dial_is_told_in_envoys_words() {
        let refused = io::Error::from_raw_os_error(nix::errno::Errno::ECONNREFUSED as i32);
        assert_eq!(refusal(&refused), "delayed connect error: Connection refused");
        let other = io::Error::other("no address");
        assert_eq!(refusal(&other), "delayed connect error: no address");
    }
}
