//! The TCP proxy: connects to an endpoint of its cluster and relays until both sides have ended.
//!
//! Borrows the downstream stream, owns the upstream one. Only a relay that ended cleanly makes either an
//! ordinary close, so that nothing that was cut can look complete to either app.

use std::time::Duration;

use crate::model::Name;
use crate::model::listener::{TcpProxy, WeightedCluster};
use crate::net::Duplex;
use crate::net::relay::{Counts, Cut, Side, relay};
use crate::telemetry::{ConnectionLog, ResponseFlag};
use crate::upstream::{ClusterManager, UpstreamStream, connect};

/// Said where the endpoint's sidecar let us connect and then answered nothing: it alone knows why.
const REFUSED_HINT: &str = " before it sent a byte: an intention may deny this caller, or its app refuse; the log of the sidecar there says which";

/// Carries one connection. The reason it ended is in `log`.
pub async fn run<D: Duplex>(
    proxy: &TcpProxy,
    downstream: &mut D,
    clusters: &ClusterManager,
    log: &mut ConnectionLog,
) {
    log.reached_tcp_proxy(None);
    let Some(cluster) = choose(&proxy.clusters) else {
        log.ended(ResponseFlag::NoClusterFound, "the TCP proxy has no cluster");
        return;
    };
    log.cluster(cluster.clone());
    let connected = match connect(clusters, &cluster).await {
        Ok(connected) => connected,
        Err(error) => {
            log.ended(error.flag(), error.to_string());
            return;
        }
    };
    log.cluster(connected.cluster);
    log.endpoint(connected.endpoint);
    let counts = std::rc::Rc::clone(&log.counts);
    let _lease = connected.lease;
    let encrypted = matches!(connected.stream, UpstreamStream::Tls(_));
    let ended = match connected.stream {
        UpstreamStream::Plain(upstream) => carry(downstream, upstream, &counts, proxy.idle_timeout).await,
        UpstreamStream::Tls(upstream) => carry(downstream, *upstream, &counts, proxy.idle_timeout).await,
    };
    match ended {
        Ended::Clean => {
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

enum Ended {
    Clean,
    Cut(Cut),
    Idle(Duration),
}

async fn carry<D: Duplex, U: Duplex>(
    downstream: &mut D,
    mut upstream: U,
    counts: &Counts,
    idle_timeout: Option<Duration>,
) -> Ended {
    let relayed = relay(downstream, &mut upstream, counts);
    let ended = match idle_timeout {
        None => relayed.await,
        Some(limit) => tokio::select! {
            relayed = relayed => relayed,
            () = idle(counts, limit) => return Ended::Idle(limit),
        },
    };
    match ended {
        Ok(()) => {
            downstream.finished();
            upstream.finished();
            Ended::Clean
        }
        Err(cut) => Ended::Cut(cut),
    }
}

/// Ready once no byte was relayed for `limit`. One timer for the whole span, not one a byte.
async fn idle(counts: &Counts, limit: Duration) {
    loop {
        let before = (counts.received.get(), counts.sent.get());
        tokio::time::sleep(limit).await;
        if before == (counts.received.get(), counts.sent.get()) {
            return;
        }
    }
}
