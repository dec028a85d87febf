//! The life of one accepted connection, as named phases: TLS, verdict, terminal filter, record.
//!
//! Owns the socket from `accept` to its close, and the record ([`ConnectionLog`]) that is written
//! however the connection ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::active::{ActiveChain, ActiveListener, MAX_HANDSHAKES};
use super::live::CutReason;
use crate::filter::rbac;
use crate::filter::tcp_proxy;
use crate::http;
use crate::limit::Permit;
use crate::model::listener::{NetworkFilter, Terminal};
use crate::model::{Action, Downstream};
use crate::net::{Duplex, PlainStream};
use crate::telemetry::{ConnectionLog, ResponseFlag};
use crate::tls::{Greeting, HandshakeError, TlsStream};
use crate::upstream::ClusterManager;

/// A peer that has not finished its handshake after this long holds a socket for nothing. Envoy has
/// no limit unless configured; a handshake across the world with retransmissions takes a few seconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves one accepted connection to its end. `downstream` has the addresses, of the socket.
pub async fn serve(
    socket: PlainStream,
    mut downstream: Downstream,
    listener: Rc<ActiveListener>,
    clusters: Rc<ClusterManager>,
) {
    let from = downstream
        .source
        .map_or_else(|| "unix".to_owned(), |source| source.to_string());
    let mut log = ConnectionLog::open(listener.name.clone(), from, Rc::clone(&listener.metrics));
    let Some(chain) = listener.config().find(&downstream) else {
        log.ended(ResponseFlag::NoRouteFound, "no filter chain takes it");
        return;
    };
    match (&chain.transport, socket) {
        (None, socket) => run_filters(socket, downstream, &listener, &clusters, &mut log).await,
        (Some(Ok(config)), PlainStream::Tcp(socket)) => {
            let Some(place) = listener.handshake() else {
                log.ended(
                    ResponseFlag::OverloadManager,
                    format!("{MAX_HANDSHAKES} handshakes are under way"),
                );
                return;
            };
            let handshake = timeout(HANDSHAKE_TIMEOUT, TlsStream::accept(socket, config)).await;
            drop(place);
            match handshake.unwrap_or(Err(HandshakeError::Timeout(HANDSHAKE_TIMEOUT))) {
                Ok((stream, Greeting { hello, peer })) => {
                    listener.metrics.handshakes.increment(1);
                    if let Some(id) = peer.as_ref().and_then(|peer| peer.spiffe_id.as_ref()) {
                        log.peer(id.clone());
                    }
                    downstream.server_name = hello.server_name.map(Arc::from);
                    downstream.peer = peer.map(Arc::new);
                    run_filters(stream, downstream, &listener, &clusters, &mut log).await;
                }
                Err(HandshakeError::Silent) => log.silent(),
                Err(error) => {
                    listener.metrics.handshake_errors.increment(1);
                    log.ended(ResponseFlag::DownstreamProtocolError, error.to_string());
                }
            }
        }
        (Some(Ok(_)), PlainStream::Unix(_)) => {
            log.ended(
                ResponseFlag::DownstreamProtocolError,
                "mutual TLS over a unix socket is not supported",
            );
        }
        (Some(Err(why)), _) => {
            log.ended(
                ResponseFlag::LocalReset,
                format!("the listener's TLS context cannot be used: {why}"),
            );
        }
    }
}

/// The network filters, then the terminal one, under the listener's *newest* rules: they may have
/// changed during the handshake.
async fn run_filters<D: Duplex + Unpin>(
    mut stream: D,
    downstream: Downstream,
    listener: &ActiveListener,
    clusters: &ClusterManager,
    log: &mut ConnectionLog,
) {
    let Some(chain) = listener.config().find(&downstream) else {
        log.ended(ResponseFlag::NoRouteFound, "no filter chain takes it any more");
        return;
    };
    let Some(_permits) = admit(&chain, &downstream, listener, log) else {
        return;
    };
    let downstream = Rc::new(downstream);
    let live = listener.live.enter(Rc::clone(&downstream));
    let carried = match &chain.config.terminal {
        Terminal::TcpProxy(proxy) => {
            live.until_cut(tcp_proxy::run(proxy, &mut stream, clusters, log))
                .await
        }
        Terminal::HttpConnectionManager(first) => {
            let newest = || {
                let chain = listener.config().find(&downstream);
                match chain.as_ref().map(|chain| &chain.config.terminal) {
                    Some(Terminal::HttpConnectionManager(manager)) => Arc::clone(manager),
                    Some(Terminal::TcpProxy(_)) | None => Arc::clone(first),
                }
            };
            let connection = http::Connection {
                limits: &first.limits,
                manager: &newest,
                encrypted: chain.transport.is_some(),
                clusters,
            };
            live.until_cut(http::serve(connection, stream, live.draining(), log))
                .await
        }
    };
    match carried {
        Ok(()) => {}
        Err(CutReason::Denied(policy)) => {
            listener.metrics.cut.increment(1);
            log.ended(
                ResponseFlag::UnauthorizedDetails,
                format!("cut: newer rules deny it ({policy})"),
            );
            log.policy(policy);
        }
        Err(CutReason::DrainDeadline) => {
            log.ended(
                ResponseFlag::LocalReset,
                "cut: still open at the end of the drain",
            );
        }
    }
}

/// Runs the filters that may refuse. `None`: refused, and the log says why.
fn admit(
    chain: &ActiveChain,
    downstream: &Downstream,
    listener: &ActiveListener,
    log: &mut ConnectionLog,
) -> Option<Vec<Permit>> {
    if let Some(verdict) = rbac::check(&chain.config, downstream) {
        log.policy(verdict.policy.clone());
        if verdict.action == Action::Deny {
            listener.metrics.denied.increment(1);
            log.ended(
                ResponseFlag::UnauthorizedDetails,
                format!("denied by {}", verdict.policy),
            );
            return None;
        }
        listener.metrics.allowed.increment(1);
    }
    let mut permits = Vec::new();
    for filter in &chain.config.filters {
        let NetworkFilter::ConnectionLimit { max_connections, .. } = filter else {
            continue;
        };
        let Some(permit) = listener.connections.acquire(*max_connections) else {
            log.ended(
                ResponseFlag::OverloadManager,
                format!("the listener has its limit of {max_connections} connections"),
            );
            return None;
        };
        permits.push(permit);
    }
    Some(permits)
}
