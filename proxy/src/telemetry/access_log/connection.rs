//! One line and one set of counters for each connection, whatever way it ends, and the lines of its
//! access logs.
//!
//! [`ConnectionLog`] is a drop guard: a connection that is cancelled, panics or returns early still
//! writes its lines. Owns the facts of one connection; borrows nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::facts::{End, Facts, UpstreamFacts};
use super::record::TlsSession;
use crate::model::flags::ResponseFlag;
use crate::model::{Downstream, FilterChain, Listener, Name, SpiffeId};
use crate::net::relay::Counts;
use crate::telemetry::metrics::ListenerMetrics;

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
    /// For access logs; none where none is configured.
    facts: Option<Box<Facts>>,
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
            facts: None,
        }
    }

    /// The access logs to write at the end: the listener's, and those of the chain that takes the
    /// connection, if any does.
    pub fn access_logs(
        &mut self,
        listener: &Listener,
        chain: Option<&Arc<FilterChain>>,
        downstream: &Downstream,
    ) {
        self.facts = Facts::of(listener, chain, downstream);
    }

    /// What is known of the downstream, after the handshake too.
    pub fn downstream(&mut self, downstream: &Downstream) {
        if let Some(facts) = &mut self.facts {
            facts.downstream.clone_from(downstream);
        }
    }

    /// What was agreed with the downstream in the handshake; only asked where an access log may tell it.
    pub fn downstream_tls(&mut self, tls: impl FnOnce() -> Option<TlsSession<'static>>) {
        if let Some(facts) = &mut self.facts {
            facts.downstream_tls = tls();
        }
    }

    /// Why TLS with the downstream failed.
    pub fn downstream_failed(&mut self, why: &dyn std::fmt::Display) {
        if let Some(facts) = &mut self.facts {
            facts.downstream_failure = Some(why.to_string());
        }
    }

    /// What is known of the upstream end, connected or not; only asked where an access log may tell it.
    pub fn upstream(&mut self, upstream: impl FnOnce() -> UpstreamFacts) {
        if let Some(facts) = &mut self.facts {
            facts.upstream = upstream();
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
        self.metrics.closed(received, sent, duration, self.flag);
        if let Some(facts) = self.facts.take() {
            facts.write(&End {
                listener: &self.listener,
                duration,
                received,
                sent,
                flag: self.flag,
                policy: self.policy.as_deref(),
                cluster: self.cluster.as_deref(),
                endpoint: self.endpoint.as_deref(),
                silent: self.silent,
            });
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
