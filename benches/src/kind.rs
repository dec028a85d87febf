//! What the sidecars carry: the name of each kind, and how its load is laid over connections.

use clap::ValueEnum;

/// Streams that one HTTP/2 connection of the load carries at once: what few callers with a
/// connection each look like to a sidecar.
const STREAMS: usize = 8;

/// What the sidecars carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Bytes, without a look at them.
    Tcp,
    /// HTTP/1.1 with kept connections.
    Http1,
    /// HTTP/2, in plain text with prior knowledge.
    Http2,
    /// Unary calls.
    Grpc,
}

impl Kind {
    /// Its name in tables.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
        }
    }

    /// Its name in JSON, files and arguments.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }

    /// Whether several requests share a connection.
    pub(crate) fn has_streams(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    /// Connections, and requests at once on each, that make a concurrency.
    pub(crate) fn spread(self, concurrency: usize) -> (usize, usize) {
        if self.has_streams() && concurrency > STREAMS {
            (concurrency.div_ceil(STREAMS), STREAMS)
        } else if self.has_streams() {
            (1, concurrency)
        } else {
            (concurrency, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn streams_share_connections_and_nothing_else_does() {
        assert_eq!(Kind::Http1.spread(64), (64, 1));
        assert_eq!(Kind::Http2.spread(1), (1, 1));
        assert_eq!(Kind::Grpc.spread(64), (8, 8));
        assert_eq!(Kind::Http2.spread(1000), (125, 8));
    }
}
