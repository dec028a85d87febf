//! What an upstream's `Config` says of its circuit breaker and of outlier detection.
//!
//! Owns the reading of `limits` and `passive_health_check`; what cannot be carried out becomes a notice.

use std::time::Duration;

use serde_json::Value;

use super::compile::Parts;
use super::duration;
use super::json::Opaque;
use super::registration::Upstream;
use crate::model::cluster::OutlierDetection;

/// Of one upstream, for the clusters that it leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamLimits {
    /// The circuit breaker; none is Envoy's default.
    pub(super) max_connections: Option<u32>,
    /// Likewise, of HTTP.
    pub(super) max_pending_requests: Option<u32>,
    /// Likewise, of HTTP.
    pub(super) max_requests: Option<u32>,
    /// Consul's xDS has it for every upstream: Envoy's defaults where nothing is configured.
    pub(super) outlier_detection: OutlierDetection,
}

/// Reads those of `upstream`; TCP has no requests to limit.
pub(super) fn of(upstream: &Upstream, is_http: bool, parts: &mut Parts) -> UpstreamLimits {
    let limits = upstream.config.nested("limits").unwrap_or_default();
    let mut of_http = |key: &str| {
        if is_http {
            return limit(upstream, &limits, key, parts);
        }
        if limits.get(key).is_some() {
            tell(upstream, &format!("limits.{key}"), "it needs HTTP", parts);
        }
        None
    };
    let max_pending_requests = of_http("max_pending_requests");
    let max_requests = of_http("max_concurrent_requests");
    UpstreamLimits {
        max_connections: limit(upstream, &limits, "max_connections", parts),
        max_pending_requests,
        max_requests,
        outlier_detection: outlier_detection(upstream, parts),
    }
}

fn tell(upstream: &Upstream, key: &str, why: &str, parts: &mut Parts) {
    let name = upstream.name();
    let notice = format!("upstream {name}: Config.{key} is not honoured: {why}");
    parts.notices.insert(notice);
}

fn limit(upstream: &Upstream, limits: &Opaque, key: &str, parts: &mut Parts) -> Option<u32> {
    match limits.number(key) {
        Ok(limit) => limit.map(saturated),
        Err(written) => {
            let why = format!("{written} is no number");
            tell(upstream, &format!("limits.{key}"), &why, parts);
            None
        }
    }
}

/// Consul's `passive_health_check`: what is absent or zero is Envoy's default, but for
/// `enforcing_consecutive_5xx`, where zero means that nothing is ejected.
fn outlier_detection(upstream: &Upstream, parts: &mut Parts) -> OutlierDetection {
    let mut detection = OutlierDetection::default();
    let Some(check) = upstream.config.nested("passive_health_check") else {
        return detection;
    };
    let mut number = |key: &str, most: u32| {
        let found = check.number(key).map(|n| n.map(saturated)).and_then(|n| match n {
            Some(n) if n > most => Err(n.to_string()),
            n => Ok(n),
        });
        found.unwrap_or_else(|written| {
            let why = format!("{written} is no number up to {most}");
            tell(upstream, &format!("passive_health_check.{key}"), &why, parts);
            None
        })
    };
    let percent = |number: Option<u32>| number.and_then(|percent| u8::try_from(percent).ok());
    if let Some(failures) = number("max_failures", u32::MAX).filter(|failures| *failures > 0) {
        detection.consecutive_5xx = failures;
    }
    if let Some(share) = percent(number("enforcing_consecutive_5xx", 100)) {
        detection.enforcing_consecutive_5xx = share;
    }
    if let Some(share) = percent(number("max_ejection_percent", 100)) {
        detection.max_ejection_percent = share;
    }
    for (key, into) in [
        ("interval", &mut detection.interval),
        ("base_ejection_time", &mut detection.base_ejection_time),
    ] {
        match time(&check, key) {
            Ok(Some(time)) => *into = time,
            Ok(None) => {}
            Err(written) => {
                let why = format!("{written} is no duration");
                tell(upstream, &format!("passive_health_check.{key}"), &why, parts);
            }
        }
    }
    detection
}

/// A duration as Consul has it: in words, or in nanoseconds.
fn time(check: &Opaque, key: &str) -> Result<Option<Duration>, String> {
    let Some(value) = check.get(key) else {
        return Ok(None);
    };
    let parsed = match value {
        Value::String(text) => duration::parse(text),
        value => value.as_u64().map(Duration::from_nanos),
    };
    let parsed = parsed.ok_or_else(|| value.to_string())?;
    Ok((!parsed.is_zero()).then_some(parsed))
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
