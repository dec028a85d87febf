//! What workers count for a listener and its filters.

use std::rc::Rc;
use std::time::Duration;

use super::{Counter, Gauge, Histogram, Scope, registry, sanitized};
use crate::model::{Listener, ResponseFlag, Terminal};

/// Envoy's name of a listener among statistics: its address with `_` for `:`. Listeners are called
/// `<what>:<address>`.
pub fn listener_address(listener: &str) -> String {
    sanitized(listener.split_once(':').map_or(listener, |(_, address)| address))
}

/// The flags that a TCP connection can end with.
const FLAGGED: [ResponseFlag; 13] = [
    ResponseFlag::DownstreamConnectionTermination,
    ResponseFlag::DownstreamProtocolError,
    ResponseFlag::DurationTimeout,
    ResponseFlag::LocalReset,
    ResponseFlag::NoClusterFound,
    ResponseFlag::NoHealthyUpstream,
    ResponseFlag::NoRouteFound,
    ResponseFlag::OverloadManager,
    ResponseFlag::StreamIdleTimeout,
    ResponseFlag::UnauthorizedDetails,
    ResponseFlag::UpstreamConnectionFailure,
    ResponseFlag::UpstreamConnectionTermination,
    ResponseFlag::UpstreamOverflow,
];

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
    /// `ssl.handshake`.
    pub handshakes: Counter,
    /// `ssl.connection_error`.
    pub handshake_errors: Counter,
    /// `ssl.session_reused`.
    pub session_reused: Counter,
    /// `ssl.fail_verify_no_cert`: the client sent no certificate.
    pub fail_verify_no_cert: Counter,
    /// `ssl.fail_verify_error`: the client's certificate does not chain to the trusted ones.
    pub fail_verify_error: Counter,
    /// `ssl.fail_verify_san`: the client's certificate names nobody it may.
    pub fail_verify_san: Counter,
    /// `connect_authz.rbac.allowed`, under the prefix that Consul gives its network RBAC filter.
    pub allowed: Counter,
    /// `connect_authz.rbac.denied`.
    pub denied: Counter,
    /// `attache_rbac_cut`: live connections that newer rules denied.
    pub cut: Counter,
    /// Of the TCP proxy that carries its bytes unless a connection says otherwise.
    pub tcp_proxy: Rc<TcpProxyMetrics>,
    closed: Counter,
    length: Histogram,
    flagged: [(ResponseFlag, Counter); FLAGGED.len()],
    scope: Scope,
    _rbac: RbacMetrics,
}

impl ListenerMetrics {
    /// Resolves the handles for this thread. `listener` is its name, `<what>:<address>`.
    pub fn new(listener: &str) -> Self {
        let what = listener.split(':').next().unwrap_or(listener);
        Self::named(&listener_address(listener), what)
    }

    /// Resolves the handles for this thread: under the listener's `stat_prefix`, else its address. Bytes
    /// count for the first TCP proxy of its chains unless a connection says otherwise.
    pub fn of(listener: &Listener) -> Self {
        let name = match &listener.stat_prefix {
            Some(prefix) => sanitized(prefix),
            None => sanitized(&listener.address.to_string()),
        };
        let proxy = listener.chains().find_map(|chain| match &chain.terminal {
            Terminal::TcpProxy(proxy) => Some(&*proxy.stat_prefix),
            Terminal::HttpConnectionManager(_) => None,
        });
        Self::named(&name, proxy.unwrap_or(&listener.name))
    }

    fn named(address: &str, proxy: &str) -> Self {
        let scope = registry().scope(&format!("listener.{address}."));
        let labels = [("envoy_listener_address", address)];
        let rbac = RbacMetrics::new("connect_authz");
        Self {
            opened: scope.counter("downstream_cx_total"),
            active: scope.gauge("downstream_cx_active"),
            overflow: scope.counter("downstream_cx_overflow"),
            global_overflow: scope.counter("downstream_global_cx_overflow"),
            overload_reject: scope.counter("downstream_cx_overload_reject"),
            no_filter_chain_match: scope.counter("no_filter_chain_match"),
            handshake_timeout: scope.counter("downstream_cx_transport_socket_connect_timeout"),
            handshakes: scope.counter("ssl.handshake"),
            handshake_errors: scope.counter("ssl.connection_error"),
            session_reused: scope.counter("ssl.session_reused"),
            fail_verify_no_cert: scope.counter("ssl.fail_verify_no_cert"),
            fail_verify_error: scope.counter("ssl.fail_verify_error"),
            fail_verify_san: scope.counter("ssl.fail_verify_san"),
            allowed: rbac.allowed.clone(),
            denied: rbac.denied.clone(),
            cut: scope.own_counter("attache_rbac_cut", &labels),
            tcp_proxy: Rc::new(TcpProxyMetrics::new(proxy)),
            closed: scope.counter("downstream_cx_destroy"),
            length: scope.histogram("downstream_cx_length_ms"),
            flagged: FLAGGED.map(|flag| {
                let labels = [labels[0], ("flag", flag.as_str())];
                (flag, scope.own_counter("attache_downstream_cx_ended", &labels))
            }),
            _rbac: rbac,
            scope,
        }
    }

    /// Counts a handshake's outcome under Envoy's `ssl.versions.`, `ssl.ciphers.` and `ssl.curves.`:
    /// `suite` and `group` are in OpenSSL's words, as [`super::ClusterMetrics::tls_established`] says.
    pub fn tls_established(&self, version: &str, suite: &str, group: Option<&str>) {
        self.handshakes.increment(1);
        tls_established(&self.scope, version, suite, group);
    }

    /// Accounts for a connection that ended. Its bytes are the filter's that carried them.
    pub fn closed(&self, duration: Duration, flag: ResponseFlag) {
        self.closed.increment(1);
        self.active.sub(1);
        self.length.record(duration.as_secs_f64() * 1000.0);
        if let Some((_, counter)) = self.flagged.iter().find(|(f, _)| *f == flag) {
            counter.increment(1);
        }
    }
}

/// Once a handshake, not once a connection's byte: looked up by name.
pub(super) fn tls_established(scope: &Scope, version: &str, suite: &str, group: Option<&str>) {
    scope.counter(format!("ssl.versions.{version}")).increment(1);
    scope.counter(format!("ssl.ciphers.{suite}")).increment(1);
    if let Some(group) = group {
        scope.counter(format!("ssl.curves.{group}")).increment(1);
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
    /// `downstream_cx_rx_bytes_buffered`: received and not yet passed on.
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

    /// Accounts for a connection that ended.
    pub fn closed(&self, received: u64, sent: u64, flag: ResponseFlag) {
        self.received.increment(received);
        self.sent.increment(sent);
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
