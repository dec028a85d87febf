//! How a pair of sidecars is set up for a turn, whoever it is.

use crate::kind::Kind;

/// Whether handshakes may be short ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshakes {
    /// As Consul configures Envoy, and as the others do by default: sessions are resumed.
    Resumed,
    /// No session is resumed, and both sides speak TLS 1.3.
    Full,
}

/// What a pair is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// What it carries.
    pub(crate) kind: Kind,
    /// Threads, or processes, that carry it.
    pub(crate) workers: usize,
    /// Between the two.
    pub(crate) handshakes: Handshakes,
    /// Whether the outbound sidecar has all the scene's further upstreams as well.
    pub(crate) further_upstreams: bool,
}

impl Setup {
    /// One worker, resumed sessions, one upstream.
    pub(crate) fn plain(kind: Kind) -> Self {
        Self {
            kind,
            workers: 1,
            handshakes: Handshakes::Resumed,
            further_upstreams: false,
        }
    }
}
