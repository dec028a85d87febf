//! What workers count for a listener and its filters.

use std::cell::{OnceCell, RefCell};
use std::time::Duration;

use super::{Counter, Gauge, Histogram, Scope, registry, sanitized};
use crate::model::{Listener, ResponseFlag};

/// Envoy's name of a listener among statistics: its address with `_` for `:`. Listeners are called
/// `<what>:<address>`.
pub fn listener_address(listener: &str) -> String {
    sanitized(listener.split_once(':').map_or(listener, |(_, address)| address))
}

/// The listener's name among statistics: its `stat_prefix`, else its address.
pub fn listener_stat_name(listener: &Listener) -> String {
    match &listener.stat_prefix {
        Some(prefix) => sanitized(prefix),
        None => sanitized(&listener.address.to_string()),
    }
}

/// A worker's handles for one listener: `listener.<address>.…`.
#[derive(Debug)]
pub struct ListenerMetrics {
    /// `downstream_cx_total`.
    pub opened: Counter,
    /// `downstream_cx_active`.
    pub active: Gauge,
    /// `downstream_cx_overflow`: refused because the listener's own limit was reached.
    pub overflow: Counter,
    /// `downstream_global_cx_overflow`: refused because the process's limit was reached.
    pub global_overflow: Counter,
    /// `downstream_cx_overload_reject`: refused because too much was under way.
    pub overload_reject: Counter,
    /// `no_filter_chain_match`: closed because no chain is for such a connection.
    pub no_filter_chain_match: Counter,
    /// `downstream_cx_transport_socket_connect_timeout`: TLS took too long.
    pub handshake_timeout: Counter,
    tls: OnceCell<DownstreamTlsMetrics>,
    /// `attache_rbac_cut`: live connections that newer rules denied.
    pub cut: Counter,
    closed: Counter,
    length: Histogram,
    /// `attache_downstream_cx_ended` by flag; each exists once a connection ended so.
    flagged: RefCell<Vec<(ResponseFlag, Counter)>>,
    agreements: Agreements,
    address: String,
    scope: Scope,
}

impl ListenerMetrics {
    /// Resolves the handles for this thread. `listener` is its name, `<what>:<address>`.
    pub fn new(listener: &str) -> Self {
        Self::named(&listener_address(listener))
    }

    /// Resolves the handles for this thread: under the listener's `stat_prefix`, else its address.
    pub fn of(listener: &Listener) -> Self {
        let metrics = Self::named(&listener_stat_name(listener));
        if listener.chains().any(|chain| chain.transport.is_some()) {
            metrics.tls();
        }
        metrics
    }

    fn named(address: &str) -> Self {
        let scope = registry().scope(&format!("listener.{address}."));
        let labels = [("envoy_listener_address", address)];
        Self {
            opened: scope.counter("downstream_cx_total"),
            active: scope.gauge("downstream_cx_active"),
            overflow: scope.counter("downstream_cx_overflow"),
            global_overflow: scope.counter("downstream_global_cx_overflow"),
            overload_reject: scope.counter("downstream_cx_overload_reject"),
            no_filter_chain_match: scope.counter("no_filter_chain_match"),
            handshake_timeout: scope.counter("downstream_cx_transport_socket_connect_timeout"),
            tls: OnceCell::new(),
            cut: scope.own_counter("attache_rbac_cut", &labels),
            closed: scope.counter("downstream_cx_destroy"),
            length: scope.histogram("downstream_cx_length_ms"),
            flagged: RefCell::default(),
            agreements: Agreements::default(),
            address: address.to_owned(),
            scope,
        }
    }

    /// The listener's name among statistics: its `stat_prefix`, else its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The handles for TLS; they exist from the first call on.
    pub fn tls(&self) -> &DownstreamTlsMetrics {
        self.tls.get_or_init(|| DownstreamTlsMetrics::new(&self.scope))
    }

    /// Counts a handshake's outcome under Envoy's `ssl.versions.`, `ssl.ciphers.` and `ssl.curves.`:
    /// `suite` and `group` are in OpenSSL's words, as [`super::ClusterMetrics::tls_established`] says.
    pub fn tls_established(&self, version: &'static str, suite: &'static str, group: Option<&'static str>) {
        self.tls().handshakes.increment(1);
        self.agreements.count(&self.scope, version, suite, group);
    }

    /// Accounts for a connection that ended. Its bytes are the filter's that carried them.
    pub fn closed(&self, duration: Duration, flag: ResponseFlag) {
        self.closed.increment(1);
        self.active.sub(1);
        self.length.record(duration.as_secs_f64() * 1000.0);
        if flag != ResponseFlag::None {
            self.flagged(flag);
        }
    }

    fn flagged(&self, flag: ResponseFlag) {
        let mut flagged = self.flagged.borrow_mut();
        if let Some((_, counter)) = flagged.iter().find(|(known, _)| *known == flag) {
            counter.increment(1);
            return;
        }
        let labels = [
            ("envoy_listener_address", &*self.address),
            ("flag", flag.as_str()),
        ];
        let counter = self.scope.own_counter("attache_downstream_cx_ended", &labels);
        counter.increment(1);
        flagged.push((flag, counter));
    }
}

/// A worker's handles for TLS with the peers of a listener: `listener.<address>.ssl.…`.
#[derive(Debug)]
pub struct DownstreamTlsMetrics {
    /// `handshake`.
    pub handshakes: Counter,
    /// `connection_error`: TLS failed, and not over the peer's certificate.
    pub connection_error: Counter,
    /// `session_reused`: handshakes that resumed an earlier session.
    pub session_reused: Counter,
    /// `fail_verify_no_cert`: the client sent no certificate.
    pub fail_verify_no_cert: Counter,
    /// `fail_verify_error`: the client's certificate does not chain to the trusted ones.
    pub fail_verify_error: Counter,
    /// `fail_verify_san`: the client's certificate names nobody it may.
    pub fail_verify_san: Counter,
}

impl DownstreamTlsMetrics {
    fn new(scope: &Scope) -> Self {
        Self {
            handshakes: scope.counter("ssl.handshake"),
            connection_error: scope.counter("ssl.connection_error"),
            session_reused: scope.counter("ssl.session_reused"),
            fail_verify_no_cert: scope.counter("ssl.fail_verify_no_cert"),
            fail_verify_error: scope.counter("ssl.fail_verify_error"),
            fail_verify_san: scope.counter("ssl.fail_verify_san"),
        }
    }
}

/// What handshakes agreed on: few different things, each resolved when it is first seen.
#[derive(Debug, Default)]
pub(super) struct Agreements(RefCell<Vec<(Agreed, [Option<Counter>; 3])>>);

/// Version, suite and group.
type Agreed = (&'static str, &'static str, Option<&'static str>);

impl Agreements {
    pub(super) fn count(
        &self,
        scope: &Scope,
        version: &'static str,
        suite: &'static str,
        group: Option<&'static str>,
    ) {
        let agreed = (version, suite, group);
        let mut all = self.0.borrow_mut();
        let at = all.iter().position(|(known, _)| *known == agreed);
        let at = at.unwrap_or_else(|| {
            let counters = [
                Some(scope.counter(format!("ssl.versions.{version}"))),
                Some(scope.counter(format!("ssl.ciphers.{suite}"))),
                group.map(|group| scope.counter(format!("ssl.curves.{group}"))),
            ];
            all.push((agreed, counters));
            all.len() - 1
        });
        for counter in all.get(at).iter().flat_map(|(_, counters)| counters).flatten() {
            counter.increment(1);
        }
    }
}

/// A worker's handles for the TCP proxies of one `stat_prefix`: `tcp.<prefix>.…`.
#[derive(Debug)]
pub struct TcpProxyMetrics {
    /// `downstream_cx_total`: connections that reached the filter.
    pub opened: Counter,
    /// `downstream_cx_no_route`: no cluster for the connection.
    pub no_route: Counter,
    /// `downstream_cx_rx_bytes_total`.
    pub received: Counter,
    /// `downstream_cx_tx_bytes_total`.
    pub sent: Counter,
    /// `downstream_cx_rx_bytes_buffered`: received and not yet passed on: what the upstream has not taken.
    pub received_buffered: Gauge,
    /// `downstream_cx_tx_bytes_buffered`: to be sent.
    pub sent_buffered: Gauge,
    /// `idle_timeout`: connections closed by it.
    pub idle_timeout: Counter,
    _scope: Scope,
}

impl TcpProxyMetrics {
    /// Resolves the handles for this thread.
    pub fn new(stat_prefix: &str) -> Self {
        let scope = registry().scope(&format!("tcp.{}.", sanitized(stat_prefix)));
        Self {
            opened: scope.counter("downstream_cx_total"),
            no_route: scope.counter("downstream_cx_no_route"),
            received: scope.counter("downstream_cx_rx_bytes_total"),
            sent: scope.counter("downstream_cx_tx_bytes_total"),
            received_buffered: scope.gauge("downstream_cx_rx_bytes_buffered"),
            sent_buffered: scope.gauge("downstream_cx_tx_bytes_buffered"),
            idle_timeout: scope.counter("idle_timeout"),
            _scope: scope,
        }
    }

    /// Accounts for a connection that ended; its bytes were counted as they went.
    pub fn closed(&self, flag: ResponseFlag) {
        match flag {
            ResponseFlag::NoClusterFound => self.no_route.increment(1),
            ResponseFlag::StreamIdleTimeout => self.idle_timeout.increment(1),
            _ => {}
        }
    }
}

/// A worker's handles for the network RBAC filters of one `stat_prefix`: `<prefix>.rbac.…`.
#[derive(Debug)]
pub struct RbacMetrics {
    /// `allowed`.
    pub allowed: Counter,
    /// `denied`.
    pub denied: Counter,
    _scope: Scope,
}

impl RbacMetrics {
    /// Resolves the handles for this thread.
    pub fn new(stat_prefix: &str) -> Self {
        let scope = registry().scope(&format!("{}.rbac.", sanitized(stat_prefix)));
        Self {
            allowed: scope.counter("allowed"),
            denied: scope.counter("denied"),
            _scope: scope,
        }
    }
}

/// A worker's handles for the connection limits of one `stat_prefix`: `connection_limit.<prefix>.…`.
#[derive(Debug)]
pub struct ConnectionLimitMetrics {
    /// `limited_connections`: refused.
    pub limited: Counter,
    /// `active_connections`: admitted and not ended.
    pub active: Gauge,
    _scope: Scope,
}

impl ConnectionLimitMetrics {
    /// Resolves the handles for this thread.
    pub fn new(stat_prefix: &str) -> Self {
        let scope = registry().scope(&format!("connection_limit.{}.", sanitized(stat_prefix)));
        Self {
            limited: scope.counter("limited_connections"),
            active: scope.gauge("active_connections"),
            _scope: scope,
        }
    }
}
