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
use crate::telemetry::metrics::{ListenerMetrics, TcpProxyMetrics};

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
    /// No rule named the peer: the policy is the default one.
    by_default: bool,
    flag: ResponseFlag,
    reason: Option<String>,
    silent: bool,
    metrics: Rc<ListenerMetrics>,
    /// Once it has reached the filter.
    tcp_proxy: Option<Rc<TcpProxyMetrics>>,
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
            by_default: false,
            flag: ResponseFlag::None,
            reason: None,
            silent: false,
            metrics,
            tcp_proxy: None,
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

    /// What the handshake told of the downstream, and what was agreed in it; only asked where an access
    /// log may tell it.
    pub fn shaken(&mut self, downstream: &Downstream, tls: impl FnOnce() -> Option<TlsSession<'static>>) {
        if let Some(facts) = &mut self.facts {
            facts.downstream.clone_from(downstream);
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

    /// Who connected, where a PROXY header says more than the socket.
    pub fn downstream(&mut self, downstream: String) {
        self.downstream = downstream;
    }

    /// The verified peer.
    pub fn peer(&mut self, peer: SpiffeId) {
        self.peer = Some(peer);
    }

    /// The rule that let the connection in or kept it out.
    pub fn policy(&mut self, policy: Arc<str>) {
        self.policy = Some(policy);
        self.by_default = false;
    }

    /// What let the connection in or kept it out where no rule names its peer.
    pub fn default_policy(&mut self, policy: Arc<str>) {
        self.policy = Some(policy);
        self.by_default = true;
    }

    /// The connection has reached its TCP proxy, whose counts are `metrics`.
    pub fn reached_tcp_proxy(&mut self, metrics: Rc<TcpProxyMetrics>) {
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
            tcp_proxy.closed(self.flag);
        }
        if let Some(facts) = self.facts.take() {
            facts.write(&End {
                listener: &self.listener,
                duration,
                received,
                sent,
                flag: self.flag,
                // As Envoy calls it.
                policy: match self.by_default {
                    true => Some("none"),
                    false => self.policy.as_deref(),
                },
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::super::facts::recorded_tests::{chain, listener};
    use super::super::sink;
    use super::*;
    use crate::model::access_log::{AccessLog, AccessLogFilter, AccessLogFormat, AccessLogSink, Template};

    fn log(path: &Path, format: &str, filter: AccessLogFilter) -> Vec<Arc<AccessLog>> {
        vec![Arc::new(AccessLog {
            sink: AccessLogSink::File(path.to_owned()),
            format: AccessLogFormat::Text(Template::parse(format).unwrap()),
            filter,
        })]
    }

    fn open() -> ConnectionLog {
        let metrics = Rc::new(ListenerMetrics::new("public:127.0.0.1:1"));
        ConnectionLog::open("public:127.0.0.1:1".into(), "10.0.0.1:5".to_owned(), metrics)
    }

    #[test]
    fn a_listeners_log_is_of_what_its_filter_takes_and_a_chains_of_what_it_took() {
        let path: PathBuf = std::env::temp_dir().join(format!("attache-access-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let only_nr = AccessLogFilter::Flags(vec![ResponseFlag::NoRouteFound]);
        let listener = listener(log(
            &path,
            "listener %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n",
            only_nr,
        ));
        let format = "chain %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% %UPSTREAM_HOST% \
                      %REQUESTED_SERVER_NAME% %DOWNSTREAM_TLS_VERSION% %CONNECTION_TERMINATION_DETAILS%\n";
        let chain = Arc::new(chain(log(&path, format, AccessLogFilter::All)));
        let mut downstream = Downstream::default();

        let mut nobody_takes_it = open();
        nobody_takes_it.access_logs(&listener, None, &downstream);
        nobody_takes_it.ended(ResponseFlag::NoRouteFound, "no filter chain takes it");
        drop(nobody_takes_it);

        let mut carried = open();
        carried.access_logs(&listener, Some(&chain), &downstream);
        downstream.server_name = Some("web.example".into());
        carried.shaken(&downstream, || {
            Some(TlsSession {
                version: "TLSv1.3",
                cipher: "TLS_AES_128_GCM_SHA256",
            })
        });
        carried.endpoint("10.0.0.2:80".to_owned());
        carried.counts.received.set(3);
        carried.counts.sent.set(5);
        carried.ended(ResponseFlag::None, "both sides closed");
        drop(carried);

        let mut denied = open();
        denied.access_logs(&listener, Some(&chain), &Downstream::default());
        denied.policy("web to api".into());
        denied.ended(ResponseFlag::UnauthorizedDetails, "denied");
        drop(denied);

        let mut unnamed = open();
        unnamed.access_logs(&listener, Some(&chain), &Downstream::default());
        unnamed.default_policy("no policy matches: deny".into());
        unnamed.ended(ResponseFlag::UnauthorizedDetails, "denied");
        drop(unnamed);

        let mut health_check = open();
        health_check.access_logs(&listener, Some(&chain), &downstream);
        health_check.silent();
        drop(health_check);

        assert!(sink::flush(Duration::from_secs(30)));
        let lines = std::fs::read_to_string(&path).unwrap();
        let expected = "listener NR filter_chain_not_found\n\
                        chain 3 5 - 10.0.0.2:80 web.example TLSv1.3 -\n\
                        chain 0 0 - - - - rbac_access_denied_matched_policy[web_to_api]\n\
                        chain 0 0 - - - - rbac_access_denied_matched_policy[none]\n";
        assert_eq!(lines, expected);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_is_asked_for_that_nobody_logs() {
        let mut log = open();
        log.access_logs(
            &listener(Vec::new()),
            Some(&Arc::new(chain(Vec::new()))),
            &Downstream::default(),
        );
        log.upstream(|| unreachable!("no access log"));
        log.shaken(&Downstream::default(), || unreachable!("no access log"));
        assert!(log.facts.is_none());
    }
}
