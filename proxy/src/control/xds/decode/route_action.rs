//! What is done with a request (`route.v3.RouteAction`, `DirectResponseAction`, `RedirectAction`), retries and
//! hashes.

use std::sync::Arc;
use std::time::Duration;

use attache_proto::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy as WireRetry, RouteAction as WireAction,
    WeightedCluster as WireWeighted,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    route::Action,
    route_action::{
        ClusterNotFoundResponseCode, ClusterSpecifier as WireCluster, HashPolicy as WireHash,
        HostRewriteSpecifier, MaxStreamDuration as WireDuration, hash_policy::PolicySpecifier,
    },
    weighted_cluster::{
        ClusterWeight as WireWeight, cluster_weight::HostRewriteSpecifier as WeightHostRewrite,
    },
};

use super::common::{duration, enumeration, limit, need, port, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::route::Mutations;
use super::{matcher, secret};
use crate::model::route::{
    ClusterSpecifier, ClusterWeight, DEFAULT_ROUTE_TIMEOUT, DirectResponse, HashPolicy, HashSource,
    HostRewrite, IdleTimeout, MaxStreamDuration, PathRewrite, Redirect, RedirectPath, RetryOn, RetryPolicy,
    RouteAction, RouteDecision,
};

/// What a route does.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub(super) fn decode(
    action: Option<&Action>,
    max_body: usize,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<RouteDecision, DecodeError> {
    match action {
        Some(Action::Route(action)) => {
            let action = forward(action, &at.field("route"), ctx)?;
            Ok(RouteDecision::Route(Box::new(action)))
        }
        Some(Action::DirectResponse(direct)) => {
            let direct = direct_response(direct, max_body, &at.field("direct_response"), ctx)?;
            Ok(RouteDecision::DirectResponse(direct))
        }
        Some(Action::Redirect(redirect)) => {
            let redirect = self::redirect(redirect, &at.field("redirect"))?;
            Ok(RouteDecision::Redirect(Box::new(redirect)))
        }
        Some(Action::FilterAction(_)) => Err(at.field("filter_action").refuse("is not supported")),
        Some(Action::NonForwardingAction(_)) => {
            Err(at.field("non_forwarding_action").refuse("is not supported"))
        }
        None => Err(at.refuse("has no route, direct_response or redirect")),
    }
}

fn forward(wire: &WireAction, at: &At<'_>, ctx: &mut Context<'_>) -> Result<RouteAction, DecodeError> {
    refuse_unsupported(wire, at)?;
    without_effect(
        at,
        ctx,
        &[
            (wire.flush_timeout.is_some(), "flush_timeout"),
            (wire.early_data_policy.is_some(), "early_data_policy"),
            (!wire.rate_limits.is_empty(), "rate_limits"),
            (wire.include_vh_rate_limits.is_some(), "include_vh_rate_limits"),
            (wire.max_internal_redirects.is_some(), "max_internal_redirects"),
        ],
    );
    let code_at = at.field("cluster_not_found_response_code");
    let hash_at = at.field("hash_policy");
    let hashes = wire.hash_policy.iter().enumerate();
    Ok(RouteAction {
        cluster: cluster(wire.cluster_specifier.as_ref(), at, ctx)?,
        cluster_not_found_response_code: match enumeration(wire.cluster_not_found_response_code, &code_at)? {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        path_rewrite: match (wire.prefix_rewrite.as_str(), &wire.regex_rewrite) {
            ("", None) => None,
            (prefix, None) => Some(PathRewrite::Prefix(prefix.into())),
            ("", Some(rewrite)) => Some(PathRewrite::Regex(matcher::rewrite(
                rewrite,
                &at.field("regex_rewrite"),
            )?)),
            (_, Some(_)) => return Err(at.refuse("has both prefix_rewrite and regex_rewrite")),
        },
        host_rewrite: match &wire.host_rewrite_specifier {
            None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
            Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Some(HostRewrite::Auto),
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                let host = need(host, &at.field("host_rewrite_literal"))?;
                Some(HostRewrite::Literal(host.into()))
            }
            Some(_) => return Err(at.refuse("rewrites the host by a header or path: not supported")),
        },
        append_x_forwarded_host: wire.append_x_forwarded_host,
        timeout: match &wire.timeout {
            // As in Envoy, whose whole limit is then the other one.
            _ if wire.max_stream_duration.is_some() => None,
            Some(_) => limit(wire.timeout.as_ref(), &at.field("timeout"))?,
            None => Some(DEFAULT_ROUTE_TIMEOUT),
        },
        max_stream_duration: match &wire.max_stream_duration {
            Some(wire) => Some(max_stream_duration(wire, &at.field("max_stream_duration"))?),
            None => None,
        },
        idle_timeout: match duration(wire.idle_timeout.as_ref(), &at.field("idle_timeout"))? {
            None => IdleTimeout::Inherited,
            Some(Duration::ZERO) => IdleTimeout::Disabled,
            Some(limit) => IdleTimeout::After(limit),
        },
        retry_policy: match &wire.retry_policy {
            Some(policy) => Some(retry_policy(policy, &at.field("retry_policy"), ctx)?),
            None => None,
        },
        hash_policy: hashes
            .map(|(index, policy)| hash_policy(policy, &hash_at.index(index)))
            .collect::<Result<_, _>>()?,
    })
}

fn max_stream_duration(wire: &WireDuration, at: &At<'_>) -> Result<MaxStreamDuration, DecodeError> {
    let max = wire.grpc_timeout_header_max.as_ref();
    let offset = wire.grpc_timeout_header_offset.as_ref();
    Ok(MaxStreamDuration {
        limit: duration(
            wire.max_stream_duration.as_ref(),
            &at.field("max_stream_duration"),
        )?,
        grpc_timeout_header_max: duration(max, &at.field("grpc_timeout_header_max"))?,
        grpc_timeout_header_offset: duration(offset, &at.field("grpc_timeout_header_offset"))?
            .unwrap_or_default(),
    })
}

fn refuse_unsupported(wire: &WireAction, at: &At<'_>) -> Result<(), DecodeError> {
    unsupported(
        at,
        &[
            (wire.metadata_match.is_some(), "metadata_match"),
            (wire.path_rewrite_policy.is_some(), "path_rewrite_policy"),
            (!wire.path_rewrite.is_empty(), "path_rewrite"),
            (
                wire.retry_policy_typed_config.is_some(),
                "retry_policy_typed_config",
            ),
            (wire.priority != 0, "priority"),
            (wire.max_grpc_timeout.is_some(), "max_grpc_timeout"),
            (wire.grpc_timeout_offset.is_some(), "grpc_timeout_offset"),
            (wire.internal_redirect_action != 0, "internal_redirect_action"),
        ],
    )
}

fn cluster(
    specifier: Option<&WireCluster>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<ClusterSpecifier, DecodeError> {
    match specifier {
        Some(WireCluster::Cluster(name)) => Ok(ClusterSpecifier::Cluster(
            need(name, &at.field("cluster"))?.into(),
        )),
        Some(WireCluster::WeightedClusters(weighted)) => {
            self::weighted(weighted, &at.field("weighted_clusters"), ctx).map(ClusterSpecifier::Weighted)
        }
        Some(WireCluster::ClusterHeader(_)) => Err(at.field("cluster_header").refuse("is not supported")),
        Some(WireCluster::ClusterSpecifierPlugin(_)) => {
            Err(at.field("cluster_specifier_plugin").refuse("is not supported"))
        }
        None => Err(at.refuse("has neither cluster nor weighted_clusters")),
    }
}

fn weighted(
    wire: &WireWeighted,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Vec<ClusterWeight>, DecodeError> {
    let random = wire.random_value_specifier.is_some();
    unsupported(at, &[(random, "header_name or use_hash_policy")])?;
    without_effect(
        at,
        ctx,
        &[(!wire.runtime_key_prefix.is_empty(), "runtime_key_prefix")],
    );
    let clusters_at = at.field("clusters");
    let (mut clusters, mut sum) = (Vec::with_capacity(wire.clusters.len()), 0_u32);
    for (index, cluster) in wire.clusters.iter().enumerate() {
        let at = clusters_at.index(index);
        let cluster = cluster_weight(cluster, &at)?;
        let total = sum.checked_add(cluster.weight);
        sum = total.ok_or_else(|| {
            at.field("weight")
                .refuse("makes the sum of all weights too large")
        })?;
        clusters.push(cluster);
    }
    if sum == 0 {
        return Err(clusters_at.refuse("have no weight above 0"));
    }
    match wire.total_weight {
        Some(total) if total != sum => Err(at
            .field("total_weight")
            .refuse(format!("is {total}, but the weights sum up to {sum}"))),
        _ => Ok(clusters),
    }
}

fn cluster_weight(wire: &WireWeight, at: &At<'_>) -> Result<ClusterWeight, DecodeError> {
    unsupported(
        at,
        &[
            (!wire.cluster_header.is_empty(), "cluster_header"),
            (wire.metadata_match.is_some(), "metadata_match"),
            (
                !wire.typed_per_filter_config.is_empty(),
                "typed_per_filter_config",
            ),
        ],
    )?;
    Ok(ClusterWeight {
        name: need(&wire.name, &at.field("name"))?.into(),
        weight: wire.weight.unwrap_or(0),
        headers: Mutations {
            request_add: &wire.request_headers_to_add,
            request_remove: &wire.request_headers_to_remove,
            response_add: &wire.response_headers_to_add,
            response_remove: &wire.response_headers_to_remove,
        }
        .decode(at)?,
        host_rewrite: wire
            .host_rewrite_specifier
            .as_ref()
            .map(|WeightHostRewrite::HostRewriteLiteral(host)| host.as_str().into()),
    })
}

fn direct_response(
    wire: &DirectResponseAction,
    max_body: usize,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<DirectResponse, DecodeError> {
    unsupported(at, &[(wire.body_format.is_some(), "body_format")])?;
    let status = u16::try_from(wire.status)
        .ok()
        .filter(|status| (200..600).contains(status));
    let status = status.ok_or_else(|| at.field("status").refuse("is not between 200 and 599"))?;
    let body_at = at.field("body");
    let body: Arc<[u8]> = match &wire.body {
        Some(body) => secret::data_source(Some(body), &body_at, ctx)?
            .bytes
            .as_slice()
            .into(),
        None => Arc::default(),
    };
    if body.len() > max_body {
        let why = format!(
            "has {} bytes, but {max_body} are allowed (max_direct_response_body_size_bytes)",
            body.len()
        );
        return Err(body_at.refuse(why));
    }
    Ok(DirectResponse { status, body })
}

fn redirect(wire: &RedirectAction, at: &At<'_>) -> Result<Redirect, DecodeError> {
    Ok(Redirect {
        status: match enumeration(wire.response_code, &at.field("response_code"))? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
        scheme: match &wire.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
                Some(need(scheme, &at.field("scheme_redirect"))?.into())
            }
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        },
        host: (!wire.host_redirect.is_empty()).then(|| wire.host_redirect.as_str().into()),
        port: match wire.port_redirect {
            0 => None,
            number => Some(port(number, &at.field("port_redirect"))?),
        },
        path: match &wire.path_rewrite_specifier {
            None => None,
            // Envoy does nothing for it.
            Some(PathRewriteSpecifier::PathRedirect(path) | PathRewriteSpecifier::PrefixRewrite(path))
                if path.is_empty() =>
            {
                None
            }
            Some(PathRewriteSpecifier::PathRedirect(path)) => Some(RedirectPath::Path(path.as_str().into())),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                Some(RedirectPath::Rewrite(PathRewrite::Prefix(prefix.as_str().into())))
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                let rewrite = matcher::rewrite(rewrite, &at.field("regex_rewrite"))?;
                Some(RedirectPath::Rewrite(PathRewrite::Regex(rewrite)))
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(at.field("path_rewrite").refuse("is not supported"));
            }
        },
        strip_query: wire.strip_query,
    })
}

/// Which requests are sent again.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub(super) fn retry_policy(
    wire: &WireRetry,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<RetryPolicy>, DecodeError> {
    let predicates = !wire.retry_options_predicates.is_empty();
    unsupported(at, &[(predicates, "retry_options_predicates")])?;
    let attempts = wire.host_selection_retry_max_attempts != 0;
    without_effect(
        at,
        ctx,
        &[
            (attempts, "host_selection_retry_max_attempts"),
            (wire.refresh_cluster_on_retry, "refresh_cluster_on_retry"),
        ],
    );
    let mut retry_on = Vec::new();
    for word in wire
        .retry_on
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        match RetryOn::parse(word) {
            Some(condition) => retry_on.push(condition),
            // Envoy takes no notice of it either.
            None => ctx.notice(
                &at.field("retry_on"),
                &format!("has {word:?}, which has no effect"),
            ),
        }
    }
    let codes_at = at.field("retriable_status_codes");
    let code = |(index, code): (usize, &u32)| {
        u16::try_from(*code).map_err(|_| codes_at.index(index).refuse(format!("{code} is no status")))
    };
    let headers = |headers: &[attache_proto::envoy::config::route::v3::HeaderMatcher], at: At<'_>| {
        let headers = headers.iter().enumerate();
        headers
            .map(|(index, header)| matcher::header(header, &at.index(index)))
            .collect::<Result<Vec<_>, _>>()
    };
    let (base_interval, max_interval) = back_off(wire, at)?;
    Ok(Arc::new(RetryPolicy {
        retry_on,
        num_retries: wire.num_retries.unwrap_or(1),
        per_try_timeout: limit(wire.per_try_timeout.as_ref(), &at.field("per_try_timeout"))?,
        per_try_idle_timeout: limit(
            wire.per_try_idle_timeout.as_ref(),
            &at.field("per_try_idle_timeout"),
        )?,
        retriable_status_codes: wire
            .retriable_status_codes
            .iter()
            .enumerate()
            .map(code)
            .collect::<Result<_, _>>()?,
        retriable_headers: headers(&wire.retriable_headers, at.field("retriable_headers"))?,
        retriable_request_headers: headers(
            &wire.retriable_request_headers,
            at.field("retriable_request_headers"),
        )?,
        base_interval,
        max_interval,
    }))
}

fn back_off(wire: &WireRetry, at: &At<'_>) -> Result<(Duration, Duration), DecodeError> {
    let default = RetryPolicy::default();
    let Some(back_off) = &wire.retry_back_off else {
        return Ok((default.base_interval, default.max_interval));
    };
    let at = at.field("retry_back_off");
    let base_at = at.field("base_interval");
    let base = limit(back_off.base_interval.as_ref(), &base_at)?;
    let base = base.ok_or_else(|| base_at.refuse("is missing or 0"))?;
    let max_at = at.field("max_interval");
    let max = limit(back_off.max_interval.as_ref(), &max_at)?.unwrap_or(base.saturating_mul(10));
    if max < base {
        return Err(max_at.refuse("is less than base_interval"));
    }
    Ok((base, max))
}

fn hash_policy(wire: &WireHash, at: &At<'_>) -> Result<HashPolicy, DecodeError> {
    let source = match &wire.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let at = at.field("header");
            HashSource::Header {
                name: need(&header.header_name, &at.field("header_name"))?
                    .to_ascii_lowercase()
                    .into(),
                rewrite: match &header.regex_rewrite {
                    Some(rewrite) => Some(matcher::rewrite(rewrite, &at.field("regex_rewrite"))?),
                    None => None,
                },
            }
        }
        Some(PolicySpecifier::Cookie(cookie)) => {
            let at = at.field("cookie");
            HashSource::Cookie {
                name: need(&cookie.name, &at.field("name"))?.into(),
                ttl: duration(cookie.ttl.as_ref(), &at.field("ttl"))?,
                path: cookie.path.as_str().into(),
            }
        }
        Some(PolicySpecifier::QueryParameter(parameter)) => {
            HashSource::QueryParameter(need(&parameter.name, &at.field("query_parameter.name"))?.into())
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            HashSource::SourceIp
        }
        Some(PolicySpecifier::ConnectionProperties(_)) => {
            return Err(at.field("connection_properties.source_ip").refuse("is not true"));
        }
        None => return Err(at.refuse("has no source that is supported")),
    };
    Ok(HashPolicy {
        source,
        terminal: wire.terminal,
    })
}
