//! `envoy.filters.http.local_ratelimit`: one bucket for all requests. Buckets by descriptors are refused, since
//! without them requests would pass that are to be limited.

use attache_proto::envoy::config::core::v3::{HeaderValueOption as WireHeader, RuntimeFractionalPercent};
use attache_proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as Wire;
use attache_proto::envoy::r#type::v3::{TokenBucket, fractional_percent::DenominatorType};

use super::common::{duration, enumeration, need, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::route::header_value;
use crate::model::http::{LocalRateLimit, Sampling, TokenBucketOptions};
use crate::model::route::HeaderValueOption;

/// What a refusal is answered by, unless another error is configured (Envoy's default).
const TOO_MANY_REQUESTS: u16 = 429;

/// Envoy fills buckets no more often.
const MIN_FILL_INTERVAL_MS: u128 = 50;

/// The filter.
///
/// # Errors
/// What is not supported, and what Envoy refuses.
pub(super) fn decode(wire: &Wire, at: &At<'_>, ctx: &mut Context<'_>) -> Result<LocalRateLimit, DecodeError> {
    unsupported(
        at,
        &[
            (!wire.descriptors.is_empty(), "descriptors"),
            (!wire.rate_limits.is_empty(), "rate_limits"),
            (
                wire.local_cluster_rate_limit.is_some(),
                "local_cluster_rate_limit",
            ),
            (wire.enable_x_ratelimit_headers != 0, "enable_x_ratelimit_headers"),
            (wire.enable_retry_after_header, "enable_retry_after_header"),
        ],
    )?;
    without_effect(
        at,
        ctx,
        &[
            // These are about descriptors, or about what routes add to them.
            (wire.stage != 0, "stage"),
            (wire.vh_rate_limits != 0, "vh_rate_limits"),
            (
                wire.always_consume_default_token_bucket.is_some(),
                "always_consume_default_token_bucket",
            ),
            (wire.max_dynamic_descriptors.is_some(), "max_dynamic_descriptors"),
        ],
    );
    let bucket = match &wire.token_bucket {
        Some(bucket) => Some(token_bucket(bucket, &at.field("token_bucket"))?),
        None => {
            ctx.notice(at, "has no token_bucket and lets everything pass");
            None
        }
    };
    let status = wire
        .status
        .as_ref()
        .and_then(|status| u16::try_from(status.code).ok());
    Ok(LocalRateLimit {
        stat_prefix: need(&wire.stat_prefix, &at.field("stat_prefix"))?.into(),
        status: status
            .filter(|code| (400..600).contains(code))
            .unwrap_or(TOO_MANY_REQUESTS),
        bucket,
        enabled: share(wire.filter_enabled.as_ref(), &at.field("filter_enabled"), ctx)?,
        enforced: share(wire.filter_enforced.as_ref(), &at.field("filter_enforced"), ctx)?,
        request_headers_to_add: headers(
            &wire.request_headers_to_add_when_not_enforced,
            &at.field("request_headers_to_add_when_not_enforced"),
        )?,
        response_headers_to_add: headers(
            &wire.response_headers_to_add,
            &at.field("response_headers_to_add"),
        )?,
        per_connection: wire.local_rate_limit_per_downstream_connection,
        grpc_resource_exhausted: wire.rate_limited_as_resource_exhausted,
    })
}

fn token_bucket(wire: &TokenBucket, at: &At<'_>) -> Result<TokenBucketOptions, DecodeError> {
    let interval_at = at.field("fill_interval");
    let fill_interval = duration(wire.fill_interval.as_ref(), &interval_at)?
        .ok_or_else(|| interval_at.refuse("is missing"))?;
    if fill_interval.as_millis() < MIN_FILL_INTERVAL_MS {
        return Err(interval_at.refuse(format!("is below {MIN_FILL_INTERVAL_MS} ms")));
    }
    let positive = |value: u32, field: &str| match value {
        0 => Err(at.field(field).refuse("is 0")),
        value => Ok(value),
    };
    Ok(TokenBucketOptions {
        max_tokens: positive(wire.max_tokens, "max_tokens")?,
        tokens_per_fill: positive(wire.tokens_per_fill.unwrap_or(1), "tokens_per_fill")?,
        fill_interval,
    })
}

/// Envoy's default is nothing.
fn share(
    wire: Option<&RuntimeFractionalPercent>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Sampling, DecodeError> {
    let key = wire.is_some_and(|wire| !wire.runtime_key.is_empty());
    without_effect(at, ctx, &[(key, "runtime_key")]);
    let value = wire.and_then(|wire| wire.default_value.as_ref());
    let (numerator, denominator) = match value {
        Some(value) => (value.numerator, value.denominator),
        None => (0, 0),
    };
    let percents = match enumeration(denominator, &at.field("default_value"))? {
        DenominatorType::Hundred => 1.0,
        DenominatorType::TenThousand => 100.0,
        DenominatorType::Million => 10_000.0,
    };
    let percent = f64::from(numerator) / percents;
    // More than all of them are all of them.
    Sampling::from_percent(percent.min(100.0)).ok_or_else(|| at.refuse("is no share"))
}

fn headers(wire: &[WireHeader], at: &At<'_>) -> Result<Vec<HeaderValueOption>, DecodeError> {
    let headers = wire.iter().enumerate();
    headers
        .map(|(index, header)| header_value(header, &at.index(index)))
        .collect()
}
