//! JWT authentication as it is configured (Envoy's `jwt_authn`): who issues tokens, where they are, what is
//! asked of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::matcher::StringMatcher;
use super::route::RouteMatch;

/// Envoy's `JwtAuthentication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthn {
    /// Issuers by the name that requirements use.
    pub providers: BTreeMap<Name, Arc<JwtProvider>>,
    /// The first that matches a request says what is asked of it; without one nothing is.
    pub rules: Vec<JwtRule>,
    /// Lets CORS preflight requests pass.
    pub bypass_cors_preflight: bool,
    /// Leaves `www-authenticate` and the reason out of a refusal.
    pub strip_failure_response: bool,
    /// Begins its statistics; may be empty.
    pub stat_prefix: Name,
}

/// What is asked of which requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// Of which.
    pub matches: RouteMatch,
    /// What; none asks for nothing.
    pub requires: Option<JwtRequirement>,
}

/// Envoy's `JwtRequirement`. Providers named exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtRequirement {
    /// A good token of this provider.
    Provider {
        /// Its name.
        name: Name,
        /// Instead of the provider's own; none are those.
        audiences: Option<Vec<Arc<str>>>,
    },
    /// One of these, at least two.
    Any(Vec<JwtRequirement>),
    /// All of these, at least two.
    All(Vec<JwtRequirement>),
    /// A token that is missing or bad is as good as none. Consul's always: its RBAC decides.
    AllowMissingOrFailed,
    /// A missing token passes, a bad one does not.
    AllowMissing,
}

/// Envoy's `JwtProvider`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtProvider {
    /// What `iss` must be; none is any.
    pub issuer: Option<Arc<str>>,
    /// One of which `aud` must have; empty asks for none.
    pub audiences: Vec<Arc<str>>,
    /// What `sub` must be.
    pub subjects: Option<StringMatcher>,
    /// Refuses a token without `exp`.
    pub require_expiration: bool,
    /// Refuses a token that is valid for longer.
    pub max_lifetime: Option<Duration>,
    /// By how much clocks may differ; Envoy's default is 60 s.
    pub clock_skew: Duration,
    /// Where the keys are.
    pub jwks: Jwks,
    /// Where the token is. Where all three are empty: `authorization: Bearer` and `?access_token=`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters.
    pub from_params: Vec<Arc<str>>,
    /// Cookies.
    pub from_cookies: Vec<Arc<str>>,
    /// Leaves a good token in the request.
    pub forward: bool,
    /// Sends the payload, base64url, as this header.
    pub forward_payload_header: Option<Arc<str>>,
    /// With padding.
    pub pad_forward_payload_header: bool,
    /// Claims that are sent as headers.
    pub claim_to_headers: Vec<JwtClaimToHeader>,
    /// The key under which the payload is put into the filter's metadata; Consul's RBAC looks at it.
    pub payload_in_metadata: Option<Arc<str>>,
    /// Claims of the metadata whose text becomes a list, cut at spaces.
    pub space_delimited_claims: Vec<Arc<str>>,
    /// The key under which the token's header is put there.
    pub header_in_metadata: Option<Arc<str>>,
    /// The key under which the reason of a refusal is put there.
    pub failed_status_in_metadata: Option<Arc<str>>,
    /// Chooses the route anew after headers were changed.
    pub clear_route_cache: bool,
    /// How many good tokens are remembered, and how long one may be.
    pub cache: Option<JwtCache>,
}

/// Envoy's `JwtCacheConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwtCache {
    /// Tokens; Envoy's default is 100.
    pub size: u32,
    /// Bytes of a token that is remembered; Envoy's default is 4096.
    pub max_token_size: u32,
}

/// A header that has a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtHeader {
    /// Lower case.
    pub name: Arc<str>,
    /// What stands before the token, such as `Bearer `.
    pub value_prefix: Arc<str>,
}

/// A claim that is sent as a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtClaimToHeader {
    /// Lower case.
    pub header: Arc<str>,
    /// Keys from the outside in.
    pub claim: Vec<Arc<str>>,
}

/// Where a provider's keys are (a JSON Web Key Set, RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Jwks {
    /// `local_jwks`, as it was read.
    Local(Arc<str>),
    /// At a URL.
    Remote(RemoteJwks),
}

/// Envoy's `RemoteJwks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteJwks {
    /// What is asked for; its host is sent, the cluster is dialled.
    pub uri: Arc<str>,
    /// Where.
    pub cluster: Name,
    /// Bounds one fetch. Consul's is whole seconds and may be zero, which never ends.
    pub timeout: Duration,
    /// How long keys are used; Envoy's default is 10 min. Consul's is far too large, see its decoding.
    pub cache_duration: Duration,
    /// Keys are fetched before the first request asks for them.
    pub async_fetch: Option<JwksAsyncFetch>,
    /// None tries once.
    pub retry: Option<JwksRetry>,
}

/// Envoy's `JwksAsyncFetch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwksAsyncFetch {
    /// The listener does not wait for the first fetch.
    pub fast_listener: bool,
    /// After a failed one; Envoy's default is 1 s.
    pub failed_refetch: Duration,
}

/// How often keys are asked for, and with which pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwksRetry {
    /// After the first; Envoy's default is 1.
    pub num_retries: u32,
    /// The first pause is drawn from zero to this; Envoy's default is 1 s.
    pub base_interval: Duration,
    /// No pause is longer; Envoy's default is ten times the first.
    pub max_interval: Duration,
}
