//! The life of one accepted connection, as named phases: listener filters, TLS, network filters, terminal
//! filter, record.
//!
//! Owns the socket from `accept` to its close, and the record ([`ConnectionLog`]) that is written
//! however the connection ends.

use std::borrow::Cow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::active::{ActiveChain, ActiveConfig, ActiveListener, Handshake, MAX_HANDSHAKES};
use super::filters::{self, FilterError};
use super::live::CutReason;
use super::local_app::{LocalApp, LocalApps};
use crate::filter::tcp_proxy;
use crate::http::{self, HttpWorker};
use crate::model::Downstream;
use crate::model::http::HttpConnectionManager;
use crate::model::listener::{Direction, TcpProxy, Terminal};
use crate::net::{Duplex, PlainStream};
use crate::telemetry::access_log::TlsSession;
use crate::telemetry::metrics::ListenerMetrics;
use crate::telemetry::{ConnectionLog, ResponseFlag, trace};
use crate::tls::{Greeting, HandshakeError, ServerTls, TlsStream, VerifyFailure};
use crate::upstream::{ClusterManager, Connected};

/// A peer that has not finished its handshake after this long holds a socket for nothing. Envoy has
/// no limit unless configured; a handshake across the world with retransmissions takes a few seconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves one accepted connection to its end. `downstream` has the addresses, of the socket.
pub async fn serve(
    socket: PlainStream,
    downstream: Downstream,
    listener: Rc<ActiveListener>,
    clusters: Rc<ClusterManager>,
    http: Rc<HttpWorker>,
) {
    let from = source_of(&downstream);
    let log = ConnectionLog::open(listener.name.clone(), from, Rc::clone(&listener.metrics));
    let mut connection = Connection {
        downstream,
        listener,
        clusters,
        http,
        log,
        certificates: None,
        tls: None,
    };
    let config = connection.listener.config();
    // Nearly no listener has any: they must not make every connection's task larger.
    if (config.filters.original_dst || config.filters.wait_for_bytes())
        && !Box::pin(connection.inspect(&config, &socket)).await
    {
        return;
    }
    let found = config.find(&connection.downstream);
    connection.log.access_logs(
        &config.listener,
        found.as_ref().map(|chain| &chain.config),
        &connection.downstream,
    );
    let Some(chain) = found else {
        connection.listener.metrics.no_filter_chain_match.increment(1);
        connection
            .log
            .ended(ResponseFlag::NoRouteFound, "no filter chain takes it");
        return;
    };
    match (&chain.transport, socket) {
        (None, socket) => connection.run_filters(socket, None).await,
        (Some(Ok(tls)), PlainStream::Tcp(socket)) => {
            connection.shake_hands(&config, &chain, tls, socket).await;
        }
        (Some(Ok(_)), PlainStream::Unix(_)) => {
            connection.log.ended(
                ResponseFlag::DownstreamProtocolError,
                "mutual TLS over a unix socket is not supported",
            );
        }
        (Some(Err(why)), _) => {
            connection.log.ended(
                ResponseFlag::LocalReset,
                format!("the listener's TLS context cannot be used: {why}"),
            );
        }
    }
}

/// What every phase knows.
struct Connection {
    downstream: Downstream,
    listener: Rc<ActiveListener>,
    clusters: Rc<ClusterManager>,
    http: Rc<HttpWorker>,
    log: ConnectionLog,
    /// Of the handshake, where HTTP is to tell the upstream of them.
    certificates: Option<http::Certificates>,
    tls: Option<TlsSession<'static>>,
}

/// What is found before a handshake.
enum Before {
    /// It may begin.
    Begin,
    /// It may begin; the app was dialled already.
    Dialled(Connected),
    /// It must not: the app refuses.
    Refused,
}

impl Connection {
    /// The listener filters. Whether the connection goes on.
    async fn inspect(&mut self, config: &ActiveConfig, socket: &PlainStream) -> bool {
        let listener = Rc::clone(&self.listener);
        let place = match config.filters.wait_for_bytes() {
            true => Some(listener.handshake()),
            false => None,
        };
        if matches!(place, Some(None)) {
            self.refuse_handshake();
            return false;
        }
        let found = filters::run(&config.filters, socket, &mut self.downstream).await;
        drop(place);
        let goes_on = found.is_ok();
        match found {
            Ok(()) if self.downstream.source.is_some() => self.log.downstream(source_of(&self.downstream)),
            Ok(()) => {}
            Err(FilterError::Silent) => self.log.silent(),
            Err(error @ (FilterError::Ended | FilterError::Socket(_))) => self
                .log
                .ended(ResponseFlag::DownstreamConnectionTermination, error.to_string()),
            Err(error) => self
                .log
                .ended(ResponseFlag::DownstreamProtocolError, error.to_string()),
        }
        goes_on
    }

    /// TLS, and what follows it.
    async fn shake_hands(
        &mut self,
        config: &ActiveConfig,
        chain: &ActiveChain,
        tls: &ServerTls,
        socket: TcpStream,
    ) {
        let listener = Rc::clone(&self.listener);
        let Some(place) = listener.handshake() else {
            self.refuse_handshake();
            return;
        };
        let early = match self.before_handshake(config, chain).await {
            Before::Begin => None,
            Before::Dialled(connected) => Some(connected),
            // The socket's linger time makes this a reset.
            Before::Refused => return,
        };
        match Box::pin(self.accept(socket, tls, place)).await {
            Ok((stream, Greeting { hello, peer })) => {
                if let Some(id) = peer.as_ref().and_then(|peer| peer.spiffe_id.as_ref()) {
                    self.log.peer(id.clone());
                }
                self.downstream.server_name = hello.server_name.map(Arc::from);
                self.downstream.peer = peer.map(Arc::new);
                self.log.shaken(&self.downstream, || stream.agreed());
                if matches!(chain.config.terminal, Terminal::HttpConnectionManager(_)) {
                    self.certificates = Some(certificates(&stream, chain));
                    self.tls = stream.agreed();
                }
                self.run_filters(stream, early).await;
            }
            Err(HandshakeError::Silent) => self.log.silent(),
            Err(error) => {
                count_failed(&listener.metrics, &error);
                self.log.downstream_failed(&error);
                self.log
                    .ended(ResponseFlag::DownstreamProtocolError, error.to_string());
            }
        }
    }

    async fn accept(
        &self,
        socket: TcpStream,
        tls: &ServerTls,
        place: Handshake<'_>,
    ) -> Result<(TlsStream, Greeting), HandshakeError> {
        let handshake = timeout(HANDSHAKE_TIMEOUT, TlsStream::accept(socket, tls)).await;
        drop(place);
        let metrics = &self.listener.metrics;
        let Ok(shaken) = handshake else {
            metrics.handshake_timeout.increment(1);
            return Err(HandshakeError::Timeout(HANDSHAKE_TIMEOUT));
        };
        let shaken = shaken?;
        if let Some(agreed) = shaken.0.agreed() {
            metrics.tls_established(agreed.version, agreed.cipher, shaken.0.group());
            metrics
                .tls()
                .session_reused
                .increment(shaken.0.is_resumed().into());
        }
        Ok(shaken)
    }

    fn refuse_handshake(&mut self) {
        self.listener.metrics.overload_reject.increment(1);
        self.log.ended(
            ResponseFlag::OverloadManager,
            format!("{MAX_HANDSHAKES} handshakes are under way"),
        );
    }

    /// While it is in doubt whether the app takes connections, it is dialled before the peer gets a byte: a
    /// peer that is refused now goes elsewhere.
    async fn before_handshake(&mut self, config: &ActiveConfig, chain: &ActiveChain) -> Before {
        let apps = Rc::clone(&self.listener.apps);
        let Some(app) = apps.of(&config.listener, &chain.config) else {
            return Before::Begin;
        };
        if !apps.is_doubtful(&app) {
            return Before::Begin;
        }
        let (Terminal::TcpProxy(proxy), Some(metrics)) = (&chain.config.terminal, &chain.tcp_proxy) else {
            return self.before_http(&apps, &app).await;
        };
        let clusters = Rc::clone(&self.clusters);
        let context = tcp_proxy::Context {
            proxy,
            metrics,
            downstream: &self.downstream,
            clusters: &clusters,
        };
        let dialled = Box::pin(tcp_proxy::dial(&context, &mut self.log)).await;
        apps.dialled(&app, dialled.is_some());
        dialled.map_or(Before::Refused, Before::Dialled)
    }

    /// As for TCP, but the connection to the app goes to the pool that the requests will find it in.
    async fn before_http(&mut self, apps: &LocalApps, app: &LocalApp) -> Before {
        let http = Rc::clone(&self.http);
        let connected = Box::pin(http.connect(&app.cluster)).await;
        apps.dialled(app, connected.is_ok());
        match connected {
            Ok(()) => Before::Begin,
            Err(error) => {
                self.log.ended(error.flag(), error.to_string());
                Before::Refused
            }
        }
    }

    /// The network filters, then the terminal one, under the listener's *newest* rules: they may have
    /// changed during the handshake. `early` is the upstream where it is connected already.
    async fn run_filters<D: Duplex + Unpin + 'static>(&mut self, mut stream: D, early: Option<Connected>) {
        let listener = Rc::clone(&self.listener);
        let config = listener.config();
        let Some(chain) = config.find(&self.downstream) else {
            listener.metrics.no_filter_chain_match.increment(1);
            self.log
                .ended(ResponseFlag::NoRouteFound, "no filter chain takes it any more");
            return;
        };
        let admitted = chain
            .filters
            .admit(&chain.config, &self.downstream, &mut self.log);
        let downstream = Rc::new(std::mem::take(&mut self.downstream));
        let live = listener.live.enter(Rc::clone(&downstream));
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => {
                if let Some(delay) = refused.delay {
                    // Cut or not: it is closed now, and why is in the record.
                    let _ = live.until_cut(pin!(sleep(delay))).await;
                }
                return;
            }
        };
        let carried = match &chain.config.terminal {
            Terminal::TcpProxy(proxy) => {
                let proxy = match admitted.cluster.clone() {
                    None => Cow::Borrowed(proxy),
                    Some(cluster) => Cow::Owned(TcpProxy {
                        clusters: TcpProxy::to(cluster, Arc::clone(&proxy.stat_prefix)).clusters,
                        ..proxy.clone()
                    }),
                };
                let carried = self.carry(&config, &chain, &proxy, &downstream, &mut stream, early);
                live.until_cut(pin!(carried)).await
            }
            Terminal::HttpConnectionManager(first) => {
                let newest = {
                    let (listener, downstream, first) =
                        (Rc::clone(&listener), Rc::clone(&downstream), Arc::clone(first));
                    move || newest(&listener, &downstream, &first)
                };
                let accepted = http::Accepted {
                    downstream: Rc::clone(&downstream),
                    encrypted: chain.transport.is_some(),
                    tls: self.tls.take(),
                    certificates: self.certificates.take(),
                    listener: Arc::clone(&listener.name),
                    listener_address: listener.metrics.address(),
                    filter_chain: Some(Arc::clone(&chain.config.name)).filter(|name| !name.is_empty()),
                    direction: match config.listener.direction {
                        Direction::Outbound => trace::Direction::Egress,
                        Direction::Inbound | Direction::Unspecified => trace::Direction::Ingress,
                    },
                    app_refused: {
                        let app = listener.apps.of(&config.listener, &chain.config);
                        let apps = Rc::clone(&listener.apps);
                        Box::new(move || {
                            if let Some(app) = &app {
                                apps.dialled(app, false);
                            }
                        })
                    },
                };
                let http = Rc::clone(&self.http);
                let connection = Rc::new(http::Connection::new(Box::new(newest), accepted, http));
                // On the heap, or every TCP connection would have the room for it too.
                let mut serving = Box::pin(http::serve(
                    connection,
                    Box::new(stream),
                    live.draining(),
                    &mut self.log,
                ));
                live.until_cut(serving.as_mut()).await
            }
        };
        if let Err(reason) = carried {
            self.cut(reason);
        }
    }

    async fn carry<D: Duplex>(
        &mut self,
        config: &ActiveConfig,
        chain: &ActiveChain,
        proxy: &TcpProxy,
        downstream: &Downstream,
        stream: &mut D,
        early: Option<Connected>,
    ) {
        // A chain with a TCP proxy has its counts.
        let Some(metrics) = &chain.tcp_proxy else { return };
        let context = tcp_proxy::Context {
            proxy,
            metrics,
            downstream,
            clusters: &self.clusters,
        };
        let reached = tcp_proxy::run(&context, early, stream, &mut self.log).await;
        if !reached && let Some(app) = self.listener.apps.of(&config.listener, &chain.config) {
            self.listener.apps.dialled(&app, false);
        }
    }

    fn cut(&mut self, reason: CutReason) {
        match reason {
            CutReason::Denied(policy) => {
                self.listener.metrics.cut.increment(1);
                self.log.ended(
                    ResponseFlag::UnauthorizedDetails,
                    format!("cut: newer rules deny it ({policy})"),
                );
                self.log.policy(policy);
            }
            CutReason::DrainDeadline => {
                self.log.ended(
                    ResponseFlag::LocalReset,
                    "cut: still open at the end of the drain",
                );
            }
        }
    }
}

/// Counts why there is no handshake. As in Envoy a certificate that is not good is no `connection_error`.
fn count_failed(metrics: &ListenerMetrics, error: &HandshakeError) {
    match (error.verify_failure(), error) {
        (Some(VerifyFailure::NoCertificate), _) => metrics.tls().fail_verify_no_cert.increment(1),
        (Some(VerifyFailure::Chain), _) => metrics.tls().fail_verify_error.increment(1),
        (Some(VerifyFailure::Names), _) => metrics.tls().fail_verify_san.increment(1),
        (None, HandshakeError::Tls(_)) => metrics.tls().connection_error.increment(1),
        (None, _) => {}
    }
}

/// The connection manager that would take a connection now: each request asks. `first` where none would.
fn newest(
    listener: &ActiveListener,
    downstream: &Downstream,
    first: &Arc<HttpConnectionManager>,
) -> Arc<HttpConnectionManager> {
    let chain = listener.config().find(downstream);
    match chain.as_ref().map(|chain| &chain.config.terminal) {
        Some(Terminal::HttpConnectionManager(manager)) => Arc::clone(manager),
        Some(Terminal::TcpProxy(_)) | None => Arc::clone(first),
    }
}

fn certificates(stream: &TlsStream, chain: &ActiveChain) -> http::Certificates {
    let own = chain.config.transport.as_ref();
    let own = own.and_then(|tls| tls.identity.spiffe_id.as_ref());
    http::Certificates {
        peer: stream.peer_certificates().to_vec(),
        own_uris: own.map(ToString::to_string).into_iter().collect(),
    }
}

fn source_of(downstream: &Downstream) -> String {
    downstream
        .source
        .map_or_else(|| "unix".to_owned(), |source| source.to_string())
}
