//! What the filter counts, under Envoy's names.

use crate::telemetry::metrics::{Counter, registry};

/// A worker's handles: `http.<connection manager>.jwt_authn.<stat_prefix>.…`.
#[derive(Clone, Debug)]
pub(super) struct JwtMetrics {
    /// Requests that passed.
    pub(super) allowed: Counter,
    /// Those of them that are CORS preflights.
    pub(super) cors_preflight_bypassed: Counter,
    /// Requests that were refused.
    pub(super) denied: Counter,
    /// Fetches of key sets that did not bring keys.
    pub(super) jwks_fetch_failed: Counter,
    /// Fetches that did.
    pub(super) jwks_fetch_success: Counter,
    /// Tokens that were known.
    pub(super) jwt_cache_hit: Counter,
    /// Tokens that were not.
    pub(super) jwt_cache_miss: Counter,
}

impl JwtMetrics {
    /// `manager` begins the statistics of the connection manager, `http.<name>.`.
    pub(super) fn new(manager: &str, stat_prefix: &str) -> Self {
        let dot = if stat_prefix.is_empty() { "" } else { "." };
        let scope = registry().scope(&format!("{manager}jwt_authn.{stat_prefix}{dot}"));
        Self {
            allowed: scope.counter("allowed"),
            cors_preflight_bypassed: scope.counter("cors_preflight_bypassed"),
            denied: scope.counter("denied"),
            jwks_fetch_failed: scope.counter("jwks_fetch_failed"),
            jwks_fetch_success: scope.counter("jwks_fetch_success"),
            jwt_cache_hit: scope.counter("jwt_cache_hit"),
            jwt_cache_miss: scope.counter("jwt_cache_miss"),
        }
    }
}
