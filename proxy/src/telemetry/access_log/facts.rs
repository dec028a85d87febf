//! What is kept of a connection for its access logs alone: nothing of it exists where none is configured.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use super::record::{AddressText, Record, RecordKind, TlsSession};
use super::{render, sink};
use crate::model::access_log::AccessLog;
use crate::model::listener::{Listener, Terminal};
use crate::model::{Downstream, FilterChain, Name, Peer, ResponseFlag, ResponseFlags};

#[cfg(test)]
pub(super) mod recorded_tests;

/// What is known of the upstream end of a connection.
#[derive(Clone, Debug, Default)]
pub struct UpstreamFacts {
    /// Its cluster's name in access logs, where it has another there.
    pub cluster: Option<Name>,
    /// Our end; none on a unix socket.
    pub local: Option<SocketAddr>,
    /// The name by which the endpoint is known, where it has one beside its address.
    pub name: Option<String>,
    /// What was agreed in the handshake.
    pub tls: Option<TlsSession<'static>>,
    /// The names in the endpoint's certificate.
    pub peer: Option<Arc<Peer>>,
    /// Why the last endpoint tried could not be connected to, or TLS with it failed.
    pub failure: Option<String>,
    /// Endpoints tried.
    pub attempts: u32,
}

/// The facts of a connection that has at least one access log.
#[derive(Debug)]
pub(super) struct Facts {
    pub downstream: Downstream,
    pub downstream_tls: Option<TlsSession<'static>>,
    pub downstream_failure: Option<String>,
    pub upstream: UpstreamFacts,
    of_listener: Vec<Arc<AccessLog>>,
    chain: Option<Arc<FilterChain>>,
    connection_id: u64,
    stream_id: u128,
}

/// What the rest of [`super::ConnectionLog`] knows at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    pub listener: &'a str,
    pub duration: Duration,
    pub received: u64,
    pub sent: u64,
    pub flag: ResponseFlag,
    pub policy: Option<&'a str>,
    pub cluster: Option<&'a str>,
    pub endpoint: Option<&'a str>,
    /// It left without a byte: its chain was chosen too early, as far as Envoy's lines go.
    pub silent: bool,
}

/// How a connection's end looks in Envoy's lines.
struct Outcome {
    flags: ResponseFlags,
    response_code_details: Option<&'static str>,
    local_close_reason: Option<&'static str>,
}

impl Facts {
    /// None where nobody would read them.
    pub(super) fn of(
        listener: &Listener,
        chain: Option<&Arc<FilterChain>>,
        downstream: &Downstream,
    ) -> Option<Box<Self>> {
        if listener.access_log.is_empty() && chain.is_none_or(|chain| of_chain(chain).is_empty()) {
            return None;
        }
        Some(Box::new(Self {
            downstream: downstream.clone(),
            downstream_tls: None,
            downstream_failure: None,
            upstream: UpstreamFacts::default(),
            of_listener: listener.access_log.clone(),
            chain: chain.cloned(),
            connection_id: chain.map_or(0, |_| connection_id()),
            stream_id: fastrand::u128(..),
        }))
    }

    /// Writes the lines: the listener's, then the chain's, as Envoy does.
    pub(super) fn write(&self, end: &End<'_>) {
        let outcome = outcome(end.flag);
        let details = termination_details(end);
        let mut record = self.record(end, &outcome, details.as_deref());
        for log in &self.of_listener {
            write(log, &record);
        }
        record.kind = RecordKind::TcpConnectionEnd;
        let chain = self.chain.as_ref().filter(|_| !end.silent);
        for log in chain.map(|chain| of_chain(chain)).unwrap_or_default() {
            write(log, &record);
        }
    }

    fn record<'a>(&'a self, end: &End<'a>, outcome: &Outcome, details: Option<&'a str>) -> Record<'a> {
        let now = SystemTime::now();
        let connected = end.endpoint.is_some() && self.upstream.failure.is_none();
        let name = self.chain.as_ref().map(|chain| &*chain.name);
        // A name that no cluster has is none.
        let found = end.flag != ResponseFlag::NoClusterFound;
        Record {
            kind: RecordKind::NotSet,
            start: now.checked_sub(end.duration).unwrap_or(now),
            emitted: now,
            duration: end.duration,
            bytes_received: end.received,
            bytes_sent: end.sent,
            upstream_bytes_received: if connected { end.sent } else { 0 },
            upstream_bytes_sent: if connected { end.received } else { 0 },
            flags: outcome.flags,
            response_code_details: outcome.response_code_details,
            termination_details: details,
            local_close_reason: outcome.local_close_reason,
            downstream_transport_failure: self.downstream_failure.as_deref(),
            upstream_transport_failure: self.upstream.failure.as_deref(),
            listener: end.listener,
            filter_chain: name,
            connection_id: self.connection_id,
            stream_id: self.stream_id,
            hostname: hostname(),
            downstream_remote: self.downstream.source.map(AddressText::Socket),
            downstream_direct_remote: self.downstream.source.map(AddressText::Socket),
            downstream_local: self.downstream.destination.map(AddressText::Socket),
            downstream_direct_local: self.downstream.destination.map(AddressText::Socket),
            server_name: self.downstream.server_name.as_deref(),
            downstream_peer: self.downstream.peer.as_deref(),
            downstream_tls: self.downstream_tls,
            cluster: self.upstream.cluster.as_deref().or(end.cluster).filter(|_| found),
            cluster_raw: end.cluster.filter(|_| found),
            endpoint_name: self.upstream.name.as_deref(),
            upstream_host: end.endpoint.map(AddressText::Text),
            upstream_remote: end.endpoint.filter(|_| connected).map(AddressText::Text),
            upstream_local: self.upstream.local.map(AddressText::Socket),
            attempts: self.upstream.attempts,
            upstream_peer: self.upstream.peer.as_deref(),
            upstream_tls: self.upstream.tls,
            request: None,
        }
    }
}

/// Why a rule ended the connection.
fn termination_details(end: &End<'_>) -> Option<String> {
    let denied = end
        .policy
        .filter(|_| end.flag == ResponseFlag::UnauthorizedDetails);
    denied.map(|policy| format!("rbac_access_denied_matched_policy[{policy}]"))
}

fn of_chain(chain: &FilterChain) -> &[Arc<AccessLog>] {
    match &chain.terminal {
        Terminal::TcpProxy(proxy) => &proxy.access_log,
        // Its lines are of requests, not of connections.
        Terminal::HttpConnectionManager(_) => &[],
    }
}

/// Writes the line of a record to a log, if its filter takes it.
pub(super) fn write(log: &AccessLog, record: &Record<'_>) {
    if log.filter.takes(record) {
        sink::of(&log.sink).write(render::line(&log.format, record));
    }
}

/// A number for a connection, in the order in which they are asked for, from 1; of the process.
pub fn connection_id() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
    CONNECTIONS.fetch_add(1, Relaxed)
}

/// Envoy's words for how a connection ended. It has fewer flags for connections than our own log line:
/// where it has none, its close reason tells.
fn outcome(flag: ResponseFlag) -> Outcome {
    use ResponseFlag as F;
    let (flags, local_close_reason): (&[F], _) = match flag {
        // Envoy's spelling.
        F::UpstreamConnectionFailure => (
            &[F::UpstreamConnectionFailure, F::UpstreamRetryLimitExceeded],
            Some("tcp_initializion_failure:0"),
        ),
        F::NoHealthyUpstream => (&[F::NoHealthyUpstream], Some("tcp_initializion_failure:1")),
        F::UpstreamOverflow => (&[F::UpstreamOverflow], Some("tcp_initializion_failure:2")),
        F::NoClusterFound => (&[F::NoClusterFound], Some("tcp_initializion_failure:3")),
        F::NoRouteFound => (&[F::NoRouteFound], None),
        F::UpstreamConnectionTermination => (&[F::UpstreamRemoteReset], None),
        F::DurationTimeout => (&[F::DurationTimeout], Some("max_connection_duration_reached")),
        F::StreamIdleTimeout => (&[], Some("tcp_session_idle_timeout")),
        F::UnauthorizedDetails => (&[], Some("rbac_deny_close")),
        F::OverloadManager => (&[], Some("over_connection_limit")),
        // Envoy's TCP lines do not tell who cut a connection; a failed handshake has its own operator.
        _ => (&[], None),
    };
    Outcome {
        flags: flags.iter().copied().collect(),
        response_code_details: (flag == F::NoRouteFound).then_some("filter_chain_not_found"),
        local_close_reason,
    }
}

/// This machine's name, asked for once.
pub(super) fn hostname() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim_end().to_owned()
    });
    &NAME
}
