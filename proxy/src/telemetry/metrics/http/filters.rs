//! What HTTP filters count.

use super::{handles, scope};
use crate::telemetry::metrics::{Counter, Scope, registry, sanitized};

/// A worker's handles for the HTTP RBAC filters of a connection manager that have the same prefixes:
/// `http.<stat_prefix>.rbac.[<prefix>.]…`.
#[derive(Debug)]
pub struct HttpRbacMetrics {
    /// `allowed`.
    pub allowed: Counter,
    /// `denied`.
    pub denied: Counter,
    /// `shadow_allowed`: by rules that are only looked at.
    pub shadow_allowed: Counter,
    /// `shadow_denied`.
    pub shadow_denied: Counter,
    _scope: Scope,
}

impl HttpRbacMetrics {
    /// Resolves the handles for this thread: of the connection managers of `http_prefix`, filters with
    /// `rules_stat_prefix` and `shadow_rules_stat_prefix`, which may be empty.
    pub fn new(http_prefix: &str, rules: &str, shadow_rules: &str) -> Self {
        let scope = scope(http_prefix);
        let counter = |prefix: &str, what: &str| {
            let dot = if prefix.is_empty() || prefix.ends_with('.') {
                ""
            } else {
                "."
            };
            scope.counter(format!("rbac.{prefix}{dot}{what}"))
        };
        Self {
            allowed: counter(rules, "allowed"),
            denied: counter(rules, "denied"),
            shadow_allowed: counter(shadow_rules, "shadow_allowed"),
            shadow_denied: counter(shadow_rules, "shadow_denied"),
            _scope: scope,
        }
    }
}

handles! {
    /// A worker's handles for JWT authentication: `http.<stat_prefix>.jwt_authn.…`.
    JwtAuthnMetrics {
        /// `allowed`: requests, those that no rule is for among them.
        allowed: Counter = counter "jwt_authn.allowed",
        /// `cors_preflight_bypassed`: let pass as preflights are.
        cors_preflight_bypassed: Counter = counter "jwt_authn.cors_preflight_bypassed",
        /// `denied`: 401 and 403.
        denied: Counter = counter "jwt_authn.denied",
        /// `jwks_fetch_success`: remote key sets got.
        jwks_fetch_success: Counter = counter "jwt_authn.jwks_fetch_success",
        /// `jwks_fetch_failed`.
        jwks_fetch_failed: Counter = counter "jwt_authn.jwks_fetch_failed",
        /// `jwt_cache_hit`: tokens that were verified before.
        jwt_cache_hit: Counter = counter "jwt_authn.jwt_cache_hit",
        /// `jwt_cache_miss`: every other token, verified or not.
        jwt_cache_miss: Counter = counter "jwt_authn.jwt_cache_miss",
    }
}

impl JwtAuthnMetrics {
    /// Resolves the handles for this thread, of the connection managers of `http_prefix`.
    pub fn new(http_prefix: &str) -> Self {
        Self::resolve(scope(http_prefix))
    }
}

handles! {
    /// A worker's handles for local rate limits: `<stat_prefix>.http_local_rate_limit.…`.
    LocalRateLimitMetrics {
        /// `enabled`: requests that were looked at.
        enabled: Counter = counter "enabled",
        /// `ok`: under the limit.
        ok: Counter = counter "ok",
        /// `rate_limited`: above it.
        rate_limited: Counter = counter "rate_limited",
        /// `enforced`: refused for it.
        enforced: Counter = counter "enforced",
        /// `shadow_mode`: above the limit of a descriptor that is only looked at.
        shadow_mode: Counter = counter "shadow_mode",
    }
}

impl LocalRateLimitMetrics {
    /// Resolves the handles for this thread, of the filters with this `stat_prefix`.
    pub fn new(stat_prefix: &str) -> Self {
        let prefix = format!("{}.http_local_rate_limit.", sanitized(stat_prefix));
        Self::resolve(registry().scope(&prefix))
    }
}
