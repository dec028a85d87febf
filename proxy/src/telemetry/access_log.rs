//! One line and one set of counters for each connection, whatever way it ends.
//!
//! [`ConnectionLog`] is a drop guard: a connection that is cancelled, panics or returns early still
//! writes its line. Owns the facts of one connection; borrows nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::metrics::{ListenerMetrics, TcpProxyMetrics};
use crate::model::flags::ResponseFlag;
use crate::model::{Name, SpiffeId};
use crate::net::relay::Counts;

/// The record of one accepted connection.
#[derive(Debug)]
pub struct ConnectionLog {
    /// Bytes so far; the relay writes them.
    pub counts: Rc<Counts>,
    listener: Name,
    downstream: String,
    opened: Instant,
    peer: Option<SpiffeId>,
    cluster: Option<Name>,
    endpoint: Option<String>,
    policy: Option<Arc<str>>,
    flag: ResponseFlag,
    reason: Option<String>,
    silent: bool,
    metrics: Rc<ListenerMetrics>,
    /// Once it has reached the filter.
    tcp_proxy: Option<Rc<TcpProxyMetrics>>,
}

impl ConnectionLog {
    /// Opens the record of a connection just accepted.
    pub fn open(listener: Name, downstream: String, metrics: Rc<ListenerMetrics>) -> Self {
        metrics.opened.increment(1);
        metrics.active.add(1);
        Self {
            counts: Rc::default(),
            listener,
            downstream,
            opened: Instant::now(),
            peer: None,
            cluster: None,
            endpoint: None,
            policy: None,
            flag: ResponseFlag::None,
            reason: None,
            silent: false,
            metrics,
            tcp_proxy: None,
        }
    }

    /// The verified peer.
    pub fn peer(&mut self, peer: SpiffeId) {
        self.peer = Some(peer);
    }

    /// The rule that let the connection in or kept it out.
    pub fn policy(&mut self, policy: Arc<str>) {
        self.policy = Some(policy);
    }

    /// The connection has reached its TCP proxy, whose counts are `metrics`, or else those of the listener.
    pub fn reached_tcp_proxy(&mut self, metrics: Option<Rc<TcpProxyMetrics>>) {
        let metrics = metrics.unwrap_or_else(|| Rc::clone(&self.metrics.tcp_proxy));
        metrics.opened.increment(1);
        self.tcp_proxy = Some(metrics);
    }

    /// The cluster chosen.
    pub fn cluster(&mut self, cluster: Name) {
        self.cluster = Some(cluster);
    }

    /// The endpoint connected to, or the last one tried.
    pub fn endpoint(&mut self, endpoint: String) {
        self.endpoint = Some(endpoint);
    }

    /// Why it ended. The first reason given stands: what follows it is a consequence.
    pub fn ended(&mut self, flag: ResponseFlag, reason: impl Into<String>) {
        if self.reason.is_none() {
            self.flag = flag;
            self.reason = Some(reason.into());
        }
    }

    /// The peer left without a byte, as Consul's health checks do every few seconds: the line is
    /// written at the level debug.
    pub fn silent(&mut self) {
        self.silent = true;
        self.ended(
            ResponseFlag::None,
            "closed before a byte was sent, as health checks do",
        );
    }
}

impl Drop for ConnectionLog {
    fn drop(&mut self) {
        let (received, sent) = (self.counts.received.get(), self.counts.sent.get());
        let duration = self.opened.elapsed();
        self.metrics.closed(duration, self.flag);
        if let Some(tcp_proxy) = &self.tcp_proxy {
            tcp_proxy.closed(received, sent, self.flag);
        }
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // A connection nobody ended was cancelled with its worker.
        let reason = self.reason.as_deref().unwrap_or("closed with the process");
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    listener = %self.listener,
                    downstream = %self.downstream,
                    peer = self.peer.as_ref().map_or("-", SpiffeId::as_str),
                    policy = self.policy.as_deref().unwrap_or("-"),
                    cluster = self.cluster.as_deref().unwrap_or("-"),
                    endpoint = self.endpoint.as_deref().unwrap_or("-"),
                    bytes_received = received,
                    bytes_sent = sent,
                    duration_ms = millis,
                    flags = self.flag.as_str(),
                    reason,
                    "connection"
                )
            };
        }
        if self.silent {
            line!(debug);
        } else {
            line!(info);
        }
    }
}
