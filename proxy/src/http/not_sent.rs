//! How one sidecar tells another that a request never reached its app.
//!
//! A 503 for an app that cannot be connected to looks like one of the app's own: who gets it cannot know whether
//! the request was acted on. So between two Attachés a response header says that it was not, and the caller's
//! sidecar sends the request elsewhere, whatever its method, before its app hears of it. Neither app ever sees
//! the header, nor can one make it: each side takes it out of what its app answers.

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::connection::Connection;
use super::failed::{Failed, FailedBy};
use super::local_reply::LocalReply;
use super::retry::Retries;
use crate::telemetry::trace::Direction;
use crate::upstream::ConnectError;
use crate::upstream::cluster::{ClusterState, Transport};

const NOT_SENT: HeaderName = HeaderName::from_static("x-attache-not-sent");

/// Sidecars that may say so of one try, before the last one's answer stands.
pub(super) const MAX_REPEATS: u32 = 10;

/// Whether the downstream is another service's sidecar, known by its certificate.
pub(super) fn is_heard_by(connection: &Connection) -> bool {
    connection.encrypted && connection.direction == Direction::Ingress && connection.downstream.peer.is_some()
}

/// Says so of the reply to a request whose only try `failed`, if that is so. The connection ends after it: the
/// next one is refused before anything is sent on it.
pub(super) fn say(reply: &mut LocalReply, failed: &Failed, retries: &Retries, connection: &Connection) {
    let refused = matches!(&failed.why, FailedBy::Connect(ConnectError::Failed { .. }));
    if !refused || retries.attempts > 1 || !is_heard_by(connection) {
        return;
    }
    reply.headers.push(sign());
    reply.close = true;
    (connection.app_refused)();
}

/// What is said instead of an answer on a connection that ends between two requests: one that is on its way by
/// then was not read.
pub(super) fn goodbye() -> LocalReply {
    let mut reply = LocalReply::empty(StatusCode::SERVICE_UNAVAILABLE, "drained");
    reply.headers.push(sign());
    reply.closing()
}

/// Takes the sign out of a response. Whether it was there, and from a sidecar.
pub(super) fn take(headers: &mut HeaderMap, cluster: &ClusterState) -> bool {
    headers.remove(&NOT_SENT).is_some() && !matches!(cluster.transport(), Transport::Plain)
}

fn sign() -> (HeaderName, HeaderValue) {
    (NOT_SENT, HeaderValue::from_static("true"))
}
