//! `envoy.filters.http.jwt_authn`. Whatever says who gets in and is not known here is refused.

use std::sync::Arc;
use std::time::Duration;

use attache_proto::envoy::config::core::v3::{RetryPolicy, http_uri::HttpUpstreamType};
use attache_proto::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtCacheConfig, JwtProvider as WireProvider, JwtRequirement as WireRequirement,
    RemoteJwks as WireRemote, RequirementRule, jwt_provider::JwksSourceSpecifier,
    jwt_requirement::RequiresType, requirement_rule::RequirementType,
};

use super::common::{duration, limit, need, positive, unsupported};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{matcher, route, secret};
use crate::model::Name;
use crate::model::jwt::{
    Jwks, JwksAsyncFetch, JwksRetry, JwtAuthn, JwtCache, JwtClaimToHeader, JwtHeader, JwtProvider,
    JwtRequirement, JwtRule, RemoteJwks,
};

/// Envoy's default of `clock_skew_seconds`.
const CLOCK_SKEW: u32 = 60;
/// Envoy's default of `remote_jwks.cache_duration`.
const CACHE_DURATION: Duration = Duration::from_secs(600);
/// Envoy's default of `async_fetch.failed_refetch_duration`.
const FAILED_REFETCH: Duration = Duration::from_secs(1);
/// Envoy's default of the back-off's `base_interval`.
const RETRY_BASE: Duration = Duration::from_secs(1);
/// Nobody keeps keys for thirty years: seconds beyond are the nanoseconds that Consul writes there.
const NANOSECONDS_FROM: u64 = 1_000_000_000;
/// Requirements nest no deeper.
const MAX_DEPTH: u32 = 16;

/// Who issues tokens, and what is asked of them.
///
/// # Errors
/// Names the field that is invalid or not supported, or the provider that does not exist.
pub(super) fn decode(
    wire: &JwtAuthentication,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<JwtAuthn, DecodeError> {
    unsupported(at, &[(wire.filter_state_rules.is_some(), "filter_state_rules")])?;
    let providers_at = at.field("providers");
    let mut jwt = JwtAuthn {
        providers: Default::default(),
        rules: Vec::with_capacity(wire.rules.len()),
        bypass_cors_preflight: wire.bypass_cors_preflight,
        strip_failure_response: wire.strip_failure_response,
        stat_prefix: wire.stat_prefix.as_str().into(),
    };
    for (name, provider) in &wire.providers {
        let provider = self::provider(provider, &providers_at.key(name), ctx)?;
        jwt.providers.insert(name.as_str().into(), Arc::new(provider));
    }
    let rules_at = at.field("rules");
    for (index, rule) in wire.rules.iter().enumerate() {
        jwt.rules.push(self::rule(rule, wire, &rules_at.index(index))?);
    }
    Ok(jwt)
}

fn rule(rule: &RequirementRule, jwt: &JwtAuthentication, at: &At<'_>) -> Result<JwtRule, DecodeError> {
    let match_at = at.field("match");
    let matches = rule
        .r#match
        .as_ref()
        .ok_or_else(|| match_at.refuse("is missing"))?;
    let requires = match &rule.requirement_type {
        Some(RequirementType::Requires(wire)) => requirement(wire, jwt, MAX_DEPTH, &at.field("requires"))?,
        Some(RequirementType::RequirementName(name)) => {
            let at = at.field("requirement_name");
            let wire = jwt.requirement_map.get(name);
            let wire = wire.ok_or_else(|| at.refuse(format!("{name:?} is not in requirement_map")))?;
            requirement(wire, jwt, MAX_DEPTH, &at)?
        }
        None => None,
    };
    Ok(JwtRule {
        matches: route::route_match(matches, &match_at)?,
        requires,
    })
}

/// `None` asks for nothing, as an empty message does.
fn requirement(
    wire: &WireRequirement,
    jwt: &JwtAuthentication,
    depth: u32,
    at: &At<'_>,
) -> Result<Option<JwtRequirement>, DecodeError> {
    let Some(kind) = &wire.requires_type else {
        return Ok(None);
    };
    let depth = depth.checked_sub(1).ok_or_else(|| at.refuse("nests too deep"))?;
    let several = |wires: &[WireRequirement], at: At<'_>| {
        if wires.len() < 2 {
            return Err(at.refuse("has less than two requirements"));
        }
        let mut several = Vec::with_capacity(wires.len());
        for (index, wire) in wires.iter().enumerate() {
            let at = at.index(index);
            let one = requirement(wire, jwt, depth, &at)?;
            several.push(one.ok_or_else(|| at.refuse("is empty"))?);
        }
        Ok(several)
    };
    Ok(Some(match kind {
        RequiresType::ProviderName(name) => JwtRequirement::Provider {
            name: known(name, jwt, &at.field("provider_name"))?,
            audiences: None,
        },
        RequiresType::ProviderAndAudiences(provider) => JwtRequirement::Provider {
            name: known(
                &provider.provider_name,
                jwt,
                &at.field("provider_and_audiences.provider_name"),
            )?,
            audiences: Some(texts(&provider.audiences)),
        },
        RequiresType::RequiresAny(any) => {
            JwtRequirement::Any(several(&any.requirements, at.field("requires_any.requirements"))?)
        }
        RequiresType::RequiresAll(all) => {
            JwtRequirement::All(several(&all.requirements, at.field("requires_all.requirements"))?)
        }
        RequiresType::AllowMissingOrFailed(()) => JwtRequirement::AllowMissingOrFailed,
        RequiresType::AllowMissing(()) => JwtRequirement::AllowMissing,
        RequiresType::ExtractOnlyWithoutValidation(_) => {
            return Err(at
                .field("extract_only_without_validation")
                .refuse("is not supported"));
        }
    }))
}

fn known(name: &str, jwt: &JwtAuthentication, at: &At<'_>) -> Result<Name, DecodeError> {
    if jwt.providers.contains_key(name) {
        Ok(name.into())
    } else {
        Err(at.refuse(format!("{name:?} is not among the providers")))
    }
}

fn texts(texts: &[String]) -> Vec<Arc<str>> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

fn optional(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn optional_header(text: &str) -> Option<Arc<str>> {
    optional(&text.to_ascii_lowercase())
}

fn provider(wire: &WireProvider, at: &At<'_>, ctx: &mut Context<'_>) -> Result<JwtProvider, DecodeError> {
    let jwks = match &wire.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            let at = at.field("local_jwks");
            let bytes = secret::data_source(Some(source), &at, ctx)?.bytes;
            let text = std::str::from_utf8(&bytes).map_err(|_| at.refuse("is no text"))?;
            Jwks::Local(text.into())
        }
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            Jwks::Remote(remote_jwks(remote, &at.field("remote_jwks"), ctx)?)
        }
        None => return Err(at.refuse("has neither remote_jwks nor local_jwks")),
    };
    let headers_at = at.field("from_headers");
    let headers = wire.from_headers.iter().enumerate();
    let header = |(index, header): (
        usize,
        &attache_proto::envoy::extensions::filters::http::jwt_authn::v3::JwtHeader,
    )| {
        let name = need(&header.name, &headers_at.index(index).field("name"))?.to_ascii_lowercase();
        Ok(JwtHeader {
            name: name.into(),
            value_prefix: header.value_prefix.as_str().into(),
        })
    };
    let normalize = wire.normalize_payload_in_metadata.as_ref();
    Ok(JwtProvider {
        issuer: optional(&wire.issuer),
        audiences: texts(&wire.audiences),
        subjects: match &wire.subjects {
            Some(subjects) => Some(matcher::string(subjects, &at.field("subjects"))?),
            None => None,
        },
        require_expiration: wire.require_expiration,
        max_lifetime: duration(wire.max_lifetime.as_ref(), &at.field("max_lifetime"))?,
        clock_skew: Duration::from_secs(u64::from(match wire.clock_skew_seconds {
            0 => CLOCK_SKEW,
            seconds => seconds,
        })),
        jwks,
        from_headers: headers.map(header).collect::<Result<_, DecodeError>>()?,
        from_params: texts(&wire.from_params),
        from_cookies: texts(&wire.from_cookies),
        forward: wire.forward,
        forward_payload_header: optional_header(&wire.forward_payload_header),
        pad_forward_payload_header: wire.pad_forward_payload_header,
        claim_to_headers: claims(wire, &at.field("claim_to_headers"))?,
        payload_in_metadata: optional(&wire.payload_in_metadata),
        space_delimited_claims: normalize.map_or_else(Vec::new, |n| texts(&n.space_delimited_claims)),
        header_in_metadata: optional(&wire.header_in_metadata),
        failed_status_in_metadata: optional(&wire.failed_status_in_metadata),
        clear_route_cache: wire.clear_route_cache,
        cache: wire.jwt_cache_config.as_ref().map(cache),
    })
}

fn claims(wire: &WireProvider, at: &At<'_>) -> Result<Vec<JwtClaimToHeader>, DecodeError> {
    let mut claims = Vec::with_capacity(wire.claim_to_headers.len());
    for (index, claim) in wire.claim_to_headers.iter().enumerate() {
        let at = at.index(index);
        let path: Vec<Arc<str>> = if claim.claim_path.is_empty() {
            need(&claim.claim_name, &at.field("claim_name"))?
                .split('.')
                .map(Arc::from)
                .collect()
        } else {
            claim
                .claim_path
                .iter()
                .map(|part| part.key.as_str().into())
                .collect()
        };
        let header = need(&claim.header_name, &at.field("header_name"))?.to_ascii_lowercase();
        claims.push(JwtClaimToHeader {
            header: header.into(),
            claim: path,
        });
    }
    Ok(claims)
}

fn cache(wire: &JwtCacheConfig) -> JwtCache {
    let or = |value: u32, default| if value == 0 { default } else { value };
    JwtCache {
        size: or(wire.jwt_cache_size, 100),
        max_token_size: or(wire.jwt_max_token_size, 4096),
    }
}

fn remote_jwks(wire: &WireRemote, at: &At<'_>, ctx: &mut Context<'_>) -> Result<RemoteJwks, DecodeError> {
    let uri_at = at.field("http_uri");
    let uri = wire
        .http_uri
        .as_ref()
        .ok_or_else(|| uri_at.refuse("is missing"))?;
    let cluster_at = uri_at.field("cluster");
    let cluster = match &uri.http_upstream_type {
        Some(HttpUpstreamType::Cluster(name)) => need(name, &cluster_at)?,
        None => return Err(cluster_at.refuse("is missing")),
    };
    let fetch_at = at.field("async_fetch.failed_refetch_duration");
    Ok(RemoteJwks {
        uri: need(&uri.uri, &uri_at.field("uri"))?.into(),
        cluster: cluster.into(),
        timeout: duration(uri.timeout.as_ref(), &uri_at.field("timeout"))?.unwrap_or_default(),
        cache_duration: cache_duration(wire, &at.field("cache_duration"), ctx)?,
        async_fetch: match &wire.async_fetch {
            Some(fetch) => Some(JwksAsyncFetch {
                fast_listener: fetch.fast_listener,
                failed_refetch: positive(fetch.failed_refetch_duration.as_ref(), FAILED_REFETCH, &fetch_at)?,
            }),
            None => None,
        },
        retry: match &wire.retry_policy {
            Some(policy) => Some(retry(policy, &at.field("retry_policy"))?),
            None => None,
        },
    })
}

/// Consul writes the number of nanoseconds where seconds belong (its `makeRemoteJWKS`), so that five minutes
/// arrive as nine thousand years, and longer times exceed what a duration may be.
fn cache_duration(wire: &WireRemote, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Duration, DecodeError> {
    let seconds = wire
        .cache_duration
        .as_ref()
        .map(|value| u64::try_from(value.seconds));
    if let Some(Ok(nanoseconds @ NANOSECONDS_FROM..)) = seconds {
        let meant = Duration::from_nanos(nanoseconds);
        ctx.notice(
            at,
            &format!("is taken as {meant:?}: its seconds are a number of nanoseconds"),
        );
        return Ok(meant);
    }
    Ok(limit(wire.cache_duration.as_ref(), at)?.unwrap_or(CACHE_DURATION))
}

fn retry(wire: &RetryPolicy, at: &At<'_>) -> Result<JwksRetry, DecodeError> {
    unsupported(at, &[(!wire.retry_on.is_empty(), "retry_on")])?;
    let back_off = wire.retry_back_off.as_ref();
    let base_at = at.field("retry_back_off.base_interval");
    let base = positive(
        back_off.and_then(|b| b.base_interval.as_ref()),
        RETRY_BASE,
        &base_at,
    )?;
    let max_at = at.field("retry_back_off.max_interval");
    let max = back_off.and_then(|b| b.max_interval.as_ref());
    Ok(JwksRetry {
        num_retries: wire.num_retries.unwrap_or(1),
        base_interval: base,
        max_interval: positive(max, base.saturating_mul(10), &max_at)?,
    })
}
