//! Envoy's response flags: why a connection ended as it did, in two letters.

use std::fmt;

/// The flags that a connection or request can end with (Envoy's `%RESPONSE_FLAGS%`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseFlag {
    /// `-`: nothing to remark.
    #[default]
    None,
    /// `UF`: no endpoint could be connected to.
    UpstreamConnectionFailure,
    /// `UH`: the cluster has no healthy endpoint.
    NoHealthyUpstream,
    /// `UO`: a circuit breaker is open.
    UpstreamOverflow,
    /// `NC`: the cluster does not exist.
    NoClusterFound,
    /// `NR`: no filter chain (or route) takes it.
    NoRouteFound,
    /// `DC`: the downstream cut the connection.
    DownstreamConnectionTermination,
    /// `UC`: the upstream cut the connection.
    UpstreamConnectionTermination,
    /// `UT`: no response within the route's timeout.
    UpstreamRequestTimeout,
    /// `UPE`: the upstream broke the protocol.
    UpstreamProtocolError,
    /// `UAEX`: refused by a rule (Envoy has it for external authorization; here RBAC too).
    UnauthorizedDetails,
    /// `OM`: shed, such as by the connection limit.
    OverloadManager,
    /// `SI`: idle for longer than configured.
    StreamIdleTimeout,
    /// `LR`: cut by the proxy itself, such as at the end of a drain.
    LocalReset,
    /// `DPE`: the downstream broke the protocol: no TLS, no acceptable certificate.
    DownstreamProtocolError,
}

impl ResponseFlag {
    /// Envoy's short name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamConnectionFailure => "UF",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamOverflow => "UO",
            Self::NoClusterFound => "NC",
            Self::NoRouteFound => "NR",
            Self::DownstreamConnectionTermination => "DC",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::UnauthorizedDetails => "UAEX",
            Self::OverloadManager => "OM",
            Self::StreamIdleTimeout => "SI",
            Self::LocalReset => "LR",
            Self::DownstreamProtocolError => "DPE",
        }
    }
}

impl fmt::Display for ResponseFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
