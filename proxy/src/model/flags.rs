//! Envoy's response flags: why a connection or request ended as it did, in a few letters.

use std::fmt;

/// Envoy's `%RESPONSE_FLAGS%`, in the order in which Envoy lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseFlag {
    /// `-`: nothing to remark.
    #[default]
    None,
    /// `LH`: the local service failed its health check.
    FailedLocalHealthCheck,
    /// `UH`: the cluster has no healthy endpoint.
    NoHealthyUpstream,
    /// `UT`: the upstream did not answer in time.
    UpstreamRequestTimeout,
    /// `LR`: cut by the proxy itself, such as at the end of a drain.
    LocalReset,
    /// `UR`: the upstream reset the connection or stream.
    UpstreamRemoteReset,
    /// `UF`: no endpoint could be connected to.
    UpstreamConnectionFailure,
    /// `UC`: the upstream cut the connection.
    UpstreamConnectionTermination,
    /// `UO`: a circuit breaker is open.
    UpstreamOverflow,
    /// `NR`: no filter chain (or route) takes it.
    NoRouteFound,
    /// `DI`: delayed by a fault filter.
    DelayInjected,
    /// `FI`: aborted by a fault filter.
    FaultInjected,
    /// `RL`: over a local rate limit.
    RateLimited,
    /// `UAEX`: refused by a rule (Envoy has it for external authorization; here RBAC too).
    UnauthorizedDetails,
    /// `RLSE`: the rate limit service failed.
    RateLimitServiceError,
    /// `DC`: the downstream cut the connection.
    DownstreamConnectionTermination,
    /// `URX`: every attempt at an upstream was used up.
    UpstreamRetryLimitExceeded,
    /// `SI`: idle for longer than configured.
    StreamIdleTimeout,
    /// `IH`: a header that only Envoy's own requests have was wrong.
    InvalidEnvoyRequestHeaders,
    /// `DPE`: the downstream broke the protocol: no TLS, no acceptable certificate.
    DownstreamProtocolError,
    /// `UMSDR`: the upstream request took longer than any may.
    UpstreamMaxStreamDurationReached,
    /// `RFCF`: answered by a cache filter.
    ResponseFromCacheFilter,
    /// `NFCF`: a filter's configuration did not come.
    NoFilterConfigFound,
    /// `DT`: older than configured.
    DurationTimeout,
    /// `UPE`: the upstream broke the protocol.
    UpstreamProtocolError,
    /// `NC`: the cluster does not exist.
    NoClusterFound,
    /// `OM`: shed, such as by the connection limit.
    OverloadManager,
    /// `DF`: a name could not be resolved.
    DnsResolutionFailed,
    /// `DO`: shed by the cluster's drop policy.
    DropOverload,
    /// `DR`: the downstream reset the stream.
    DownstreamRemoteReset,
    /// `UDO`: shed by the cluster's drop policy for all of its requests.
    UnconditionalDropOverload,
}

/// Every flag with its two names in Envoy.
const NAMES: [(ResponseFlag, &str, &str); 31] = {
    use ResponseFlag as F;
    [
        (F::None, "-", "-"),
        (F::FailedLocalHealthCheck, "LH", "FailedLocalHealthCheck"),
        (F::NoHealthyUpstream, "UH", "NoHealthyUpstream"),
        (F::UpstreamRequestTimeout, "UT", "UpstreamRequestTimeout"),
        (F::LocalReset, "LR", "LocalReset"),
        (F::UpstreamRemoteReset, "UR", "UpstreamRemoteReset"),
        (F::UpstreamConnectionFailure, "UF", "UpstreamConnectionFailure"),
        (
            F::UpstreamConnectionTermination,
            "UC",
            "UpstreamConnectionTermination",
        ),
        (F::UpstreamOverflow, "UO", "UpstreamOverflow"),
        (F::NoRouteFound, "NR", "NoRouteFound"),
        (F::DelayInjected, "DI", "DelayInjected"),
        (F::FaultInjected, "FI", "FaultInjected"),
        (F::RateLimited, "RL", "RateLimited"),
        (F::UnauthorizedDetails, "UAEX", "UnauthorizedExternalService"),
        (F::RateLimitServiceError, "RLSE", "RateLimitServiceError"),
        (
            F::DownstreamConnectionTermination,
            "DC",
            "DownstreamConnectionTermination",
        ),
        (F::UpstreamRetryLimitExceeded, "URX", "UpstreamRetryLimitExceeded"),
        (F::StreamIdleTimeout, "SI", "StreamIdleTimeout"),
        (F::InvalidEnvoyRequestHeaders, "IH", "InvalidEnvoyRequestHeaders"),
        (F::DownstreamProtocolError, "DPE", "DownstreamProtocolError"),
        (
            F::UpstreamMaxStreamDurationReached,
            "UMSDR",
            "UpstreamMaxStreamDurationReached",
        ),
        (F::ResponseFromCacheFilter, "RFCF", "ResponseFromCacheFilter"),
        (F::NoFilterConfigFound, "NFCF", "NoFilterConfigFound"),
        (F::DurationTimeout, "DT", "DurationTimeout"),
        (F::UpstreamProtocolError, "UPE", "UpstreamProtocolError"),
        (F::NoClusterFound, "NC", "NoClusterFound"),
        (F::OverloadManager, "OM", "OverloadManagerTerminated"),
        (F::DnsResolutionFailed, "DF", "DnsResolutionFailed"),
        (F::DropOverload, "DO", "DropOverload"),
        (F::DownstreamRemoteReset, "DR", "DownstreamRemoteReset"),
        (F::UnconditionalDropOverload, "UDO", "UnconditionalDropOverload"),
    ]
};

impl ResponseFlag {
    fn names(self) -> (&'static str, &'static str) {
        let found = NAMES.iter().find(|(flag, ..)| *flag == self);
        found.map_or(("-", "-"), |(_, short, long)| (*short, *long))
    }

    /// Envoy's short name.
    pub fn as_str(self) -> &'static str {
        self.names().0
    }

    /// Envoy's long name (`%RESPONSE_FLAGS_LONG%`).
    pub fn as_long_str(self) -> &'static str {
        self.names().1
    }

    /// The flag of a short name, as a `response_flag_filter` has it.
    pub fn parse(short: &str) -> Option<Self> {
        let mut flags = NAMES.iter().skip(1);
        flags.find(|(_, name, _)| *name == short).map(|(flag, ..)| *flag)
    }
}

impl fmt::Display for ResponseFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of flags, without [`ResponseFlag::None`]: it has no flag to remark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= Self::bit(flag);
    }

    /// Whether `flag` is among them.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & Self::bit(flag) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The flags, in Envoy's order.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        NAMES
            .iter()
            .map(|(flag, ..)| *flag)
            .filter(move |flag| self.contains(*flag))
    }

    const fn bit(flag: ResponseFlag) -> u32 {
        match flag {
            ResponseFlag::None => 0,
            flag => 1 << flag as u32,
        }
    }
}

impl FromIterator<ResponseFlag> for ResponseFlags {
    fn from_iter<I: IntoIterator<Item = ResponseFlag>>(flags: I) -> Self {
        let mut set = Self::NONE;
        flags.into_iter().for_each(|flag| set.insert(flag));
        set
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        Self(Self::bit(flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_names_of_its_own_in_envoys_order() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        for (flag, short, long) in NAMES.iter().skip(1) {
            assert_eq!(flag.to_string(), *short);
            assert_eq!(flag.as_long_str(), *long);
            assert_eq!(ResponseFlag::parse(short), Some(*flag));
        }
        assert_eq!(ResponseFlag::parse("-"), None);
        assert_eq!(ResponseFlag::parse("nr"), None);
    }

    #[test]
    fn a_set_has_each_flag_once_in_envoys_order() {
        use ResponseFlag as F;
        let set: ResponseFlags = [
            F::UpstreamRetryLimitExceeded,
            F::None,
            F::UpstreamConnectionFailure,
        ]
        .into_iter()
        .collect();
        let names: Vec<_> = set.iter().map(ResponseFlag::as_str).collect();
        assert_eq!(names, ["UF", "URX"]);
        assert!(set.contains(F::UpstreamConnectionFailure) && !set.contains(F::None));
        assert!(ResponseFlags::from(F::None).is_empty());
        let all: ResponseFlags = NAMES.iter().map(|(flag, ..)| *flag).collect();
        assert_eq!(all.iter().count(), NAMES.len() - 1);
    }
}
