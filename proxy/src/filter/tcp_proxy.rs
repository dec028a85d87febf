//! The TCP proxy: connects to an endpoint of its cluster and relays until both sides have ended.
//!
//! Borrows the downstream stream; owns the upstream one and resets it unless the relay ended cleanly,
//! so that nothing that was cut can look complete to either app.

use std::time::Duration;

use crate::model::listener::TcpProxy;
use crate::net::Duplex;
use crate::net::relay::{Counts, Cut, Side, relay};
use crate::telemetry::{ConnectionLog, ResponseFlag};
use crate::upstream::{ClusterManager, UpstreamStream, connect};

/// How a proxied connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides ended cleanly: the downstream may be dropped.
    Clean,
    /// The downstream must be reset.
    Reset,
}

/// Resets the stream when dropped, unless [`ResetGuard::finished`]. A connection that is cancelled
/// at any point thus ends as a reset.
pub struct ResetGuard<S: Duplex> {
    /// The guarded stream.
    pub stream: S,
    clean: bool,
}

impl<S: Duplex> ResetGuard<S> {
    /// Guards `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, clean: false }
    }

    /// The stream ended cleanly: dropping it is an ordinary close.
    pub fn finished(&mut self) {
        self.clean = true;
    }
}

impl<S: Duplex> Drop for ResetGuard<S> {
    fn drop(&mut self) {
        if !self.clean {
            self.stream.reset();
        }
    }
}

/// Carries one connection. The reason it ended is in `log`.
pub async fn run<D: Duplex>(
    proxy: &TcpProxy,
    downstream: &mut D,
    clusters: &ClusterManager,
    log: &mut ConnectionLog,
) -> Ending {
    log.cluster(proxy.cluster.clone());
    let connected = match connect(clusters, &proxy.cluster).await {
        Ok(connected) => connected,
        Err(error) => {
            log.ended(error.flag(), error.to_string());
            return Ending::Reset;
        }
    };
    log.cluster(connected.cluster);
    log.endpoint(connected.endpoint);
    let counts = std::rc::Rc::clone(&log.counts);
    let _lease = connected.lease;
    let ended = match connected.stream {
        UpstreamStream::Plain(upstream) => carry(downstream, upstream, &counts, proxy.idle_timeout).await,
        UpstreamStream::Tls(upstream) => carry(downstream, *upstream, &counts, proxy.idle_timeout).await,
    };
    match ended {
        Ended::Clean => {
            log.ended(ResponseFlag::None, "both sides closed");
            Ending::Clean
        }
        Ended::Cut(cut) => {
            let flag = match cut.side {
                Side::Downstream => ResponseFlag::DownstreamConnectionTermination,
                Side::Upstream => ResponseFlag::UpstreamConnectionTermination,
            };
            log.ended(flag, cut.to_string());
            Ending::Reset
        }
        Ended::Idle(limit) => {
            log.ended(
                ResponseFlag::StreamIdleTimeout,
                format!("no byte either way for {limit:?}"),
            );
            Ending::Reset
        }
    }
}

enum Ended {
    Clean,
    Cut(Cut),
    Idle(Duration),
}

async fn carry<D: Duplex, U: Duplex>(
    downstream: &mut D,
    upstream: U,
    counts: &Counts,
    idle_timeout: Option<Duration>,
) -> Ended {
    let mut upstream = ResetGuard::new(upstream);
    let relayed = relay(downstream, &mut upstream.stream, counts);
    let ended = match idle_timeout {
        None => relayed.await,
        Some(limit) => tokio::select! {
            relayed = relayed => relayed,
            () = idle(counts, limit) => return Ended::Idle(limit),
        },
    };
    match ended {
        Ok(()) => {
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
