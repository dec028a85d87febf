//! One endpoint: dial and handshake, bounded and counted.

use std::io;
use std::rc::Rc;

use tokio::time::{Instant, timeout};

use super::cluster::{ClusterState, Transport};
use super::endpoint::EndpointState;
use super::error::AttemptError;
use crate::model::Target;
use crate::model::cluster::Keepalive;
use crate::model::listener::Address;
use crate::net::{PlainStream, socket};
use crate::telemetry::metrics::ClusterMetrics;
use crate::tls::{HandshakeError, TlsStream, VerifyFailure};

/// A stream to an endpoint.
pub enum UpstreamStream {
    /// Without TLS.
    Plain(PlainStream),
    /// Over TLS.
    Tls(Box<TlsStream>),
}

/// Connects to one endpoint within the cluster's connect timeout.
pub(super) async fn attempt(
    cluster: &Rc<ClusterState>,
    endpoint: &EndpointState,
) -> Result<UpstreamStream, AttemptError> {
    let config = cluster.config();
    let limit = config.connect_timeout;
    let began = Instant::now();
    cluster.metrics.dialled.increment(1);
    let dialling = dial_and_shake(cluster.transport(), endpoint, config.keepalive.as_ref());
    let attempted = timeout(limit, dialling).await;
    let attempted = attempted.unwrap_or(Err(AttemptError::Timeout(limit)));
    match &attempted {
        Ok(stream) => {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            cluster.metrics.connect_ms.record(took);
            established(&cluster.metrics, stream);
        }
        Err(error) => failed(&cluster.metrics, error),
    }
    attempted
}

/// Counts what was agreed on.
fn established(metrics: &ClusterMetrics, stream: &UpstreamStream) {
    if let UpstreamStream::Tls(stream) = stream
        && let Some(agreed) = stream.agreed()
    {
        metrics.tls_established(agreed.version, agreed.cipher, stream.group());
        metrics.tls().session_reused.increment(stream.is_resumed().into());
    }
}

/// Counts why there is no connection. As in Envoy a certificate that is not good is no `connection_error`.
fn failed(metrics: &ClusterMetrics, error: &AttemptError) {
    metrics.connect_fail.increment(1);
    match error {
        AttemptError::Timeout(_) => metrics.connect_timeout.increment(1),
        AttemptError::Handshake(error) => match (error.verify_failure(), &**error) {
            (Some(VerifyFailure::Names), _) => metrics.tls().fail_verify_san.increment(1),
            (Some(_), _) => metrics.tls().fail_verify_error.increment(1),
            (None, HandshakeError::Tls(_)) => metrics.tls().connection_error.increment(1),
            (None, _) => {}
        },
        AttemptError::Dial(_) | AttemptError::Left | AttemptError::Unusable(_) => {}
    }
}

async fn dial_and_shake(
    transport: Transport,
    endpoint: &EndpointState,
    keepalive: Option<&Keepalive>,
) -> Result<UpstreamStream, AttemptError> {
    if let Transport::Unusable(why) = transport {
        return Err(AttemptError::Unusable(why));
    }
    let plain = match &endpoint.address {
        Target::Address(address) => socket::dial(address, keepalive).await?,
        Target::Host { host, port } => {
            let resolved = tokio::net::lookup_host((&**host, *port)).await?.next();
            let resolved = resolved.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            socket::dial(&Address::Socket(resolved), keepalive).await?
        }
    };
    match (transport, plain) {
        (
            Transport::Tls {
                config,
                sni,
                resumption,
            },
            PlainStream::Tcp(tcp),
        ) => {
            let sessions = endpoint.sessions(&config, resumption);
            let stream = TlsStream::connect(tcp, &sessions, sni)
                .await
                .map_err(|e| AttemptError::Handshake(Box::new(e)))?;
            Ok(UpstreamStream::Tls(Box::new(stream)))
        }
        (Transport::Tls { .. }, PlainStream::Unix(_)) => Err(AttemptError::Unusable(
            "TLS over a unix socket is not supported".into(),
        )),
        (Transport::Plain | Transport::Unusable(_), plain) => Ok(UpstreamStream::Plain(plain)),
    }
}
