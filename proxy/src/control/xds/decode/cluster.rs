//! `cluster.v3.Cluster`: where its endpoints come from, how one is chosen and dialled.
//!
//! What a cluster says of limits and protocols is read in `cluster_fields`.

use std::time::Duration;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::cluster::v3::{
    Cluster as Wire,
    cluster::{
        ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy,
        ring_hash_lb_config::HashFunction,
    },
};
use attache_proto::envoy::config::core::v3::{
    ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
};
use attache_proto::envoy::extensions::clusters::aggregate::v3::ClusterConfig;

use super::address::HostNames;
use super::common::{
    duration, enumeration, known_fields, need, parse, positive, type_name, unpack, unsupported,
};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{cluster_fields, endpoint, tls};
use crate::model::cluster::{Dns, DnsFamily, LoadBalancer};
use crate::model::listener::Address;
use crate::model::{Cluster, ClusterKind, ClusterLoadAssignment, Name, Target};

/// Envoy's defaults.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DNS_REFRESH: Duration = Duration::from_secs(5);
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
const RING_SIZE: (u64, u64) = (1024, 8 << 20);
const MAGLEV_TABLE: u64 = 65_537;
const MAX_MAGLEV_TABLE: u64 = 5_000_011;

/// A cluster and how its endpoints get known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedCluster {
    /// The cluster itself.
    pub cluster: Cluster,
    /// `load_assignment` of STATIC and DNS clusters, host names still to be resolved.
    pub endpoints: Option<ClusterLoadAssignment>,
    /// How they are asked for, of EDS clusters.
    pub eds: Option<Eds>,
}

/// `eds_cluster_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eds {
    /// The name of the `ClusterLoadAssignment`; Consul's is the cluster's own.
    pub service_name: Name,
    /// How long the cluster waits for it before it is taken for empty; none is for ever.
    pub initial_fetch_timeout: Option<Duration>,
}

/// A cluster as it came over the wire.
///
/// # Errors
/// As [`decode`]; a field within TLS that is unknown here.
pub fn decode_bytes(bytes: &[u8], ctx: &mut Context<'_>) -> Result<DecodedCluster, DecodeError> {
    let cluster: Wire = parse(bytes, &At::resource("Cluster", ""))?;
    known_fields::<Wire>(bytes, &At::resource("Cluster", &cluster.name), ctx)?;
    decode(&cluster, ctx)
}

/// A cluster.
///
/// # Errors
/// Names the field that is invalid or not supported; [`super::Why::Waiting`] for a secret.
pub fn decode(cluster: &Wire, ctx: &mut Context<'_>) -> Result<DecodedCluster, DecodeError> {
    let at = At::resource("Cluster", &cluster.name);
    let name: Name = need(&cluster.name, &at.field("name"))?.into();
    cluster_fields::refuse_unsupported(cluster, &at)?;
    cluster_fields::note_without_effect(cluster, &at, ctx);
    let (mut kind, eds) = kind(cluster, &name, &at)?;
    let endpoints = endpoints(cluster, &kind, eds.is_some(), &at, ctx)?;
    // Consul makes a STATIC cluster of a JWT provider's host name, if it is told so.
    if kind == ClusterKind::Endpoints && endpoints.as_ref().is_some_and(has_host_names) {
        let what = "has host names, which are resolved as of a STRICT_DNS cluster; Envoy refuses them";
        ctx.notice(&at.field("load_assignment"), what);
        kind = ClusterKind::Dns(dns(cluster, true, &at)?);
    }
    let socket = cluster.transport_socket.as_ref();
    let timeout_at = at.field("connect_timeout");
    let decoded = Cluster {
        name,
        alt_stat_name: (!cluster.alt_stat_name.is_empty()).then(|| cluster.alt_stat_name.as_str().into()),
        connect_timeout: positive(cluster.connect_timeout.as_ref(), CONNECT_TIMEOUT, &timeout_at)?,
        transport: tls::upstream_socket(
            socket,
            host(endpoints.as_ref()).as_deref(),
            &at.field("transport_socket"),
            ctx,
        )?,
        load_balancer: load_balancer(cluster, &kind, &at)?,
        panic_threshold: cluster_fields::panic_threshold(cluster, &at, ctx)?,
        circuit_breakers: cluster_fields::circuit_breakers(cluster, &at, ctx)?,
        outlier_detection: cluster_fields::outlier_detection(cluster, &at, ctx)?,
        keepalive: cluster_fields::keepalive(cluster, &at, ctx),
        http: cluster_fields::http(cluster, &at, ctx)?,
        kind,
    };
    Ok(DecodedCluster {
        cluster: decoded,
        endpoints,
        eds,
    })
}

fn kind(cluster: &Wire, name: &Name, at: &At<'_>) -> Result<(ClusterKind, Option<Eds>), DecodeError> {
    let discovery = match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Ok((aggregate(custom, name, &at.field("cluster_type"))?, None));
        }
        Some(ClusterDiscoveryType::Type(value)) => enumeration(*value, &at.field("type"))?,
        None => DiscoveryType::Static,
    };
    let kind = match discovery {
        DiscoveryType::Static => ClusterKind::Endpoints,
        DiscoveryType::StrictDns => ClusterKind::Dns(dns(cluster, true, at)?),
        DiscoveryType::LogicalDns => ClusterKind::Dns(dns(cluster, false, at)?),
        DiscoveryType::OriginalDst => ClusterKind::OriginalDestination,
        DiscoveryType::Eds => return Ok((ClusterKind::Endpoints, Some(eds(cluster, name, at)?))),
    };
    Ok((kind, None))
}

fn aggregate(custom: &CustomClusterType, name: &Name, at: &At<'_>) -> Result<ClusterKind, DecodeError> {
    let typed = at.field("typed_config");
    let config: ClusterConfig = match &custom.typed_config {
        Some(any) if type_name(any) == ClusterConfig::TYPE_NAME => unpack(any, &typed)?,
        _ => return Err(at.refuse(format!("{:?} is not supported", custom.name))),
    };
    let clusters = typed.field("clusters");
    let member = |(index, member): (usize, &String)| match member.as_str() {
        "" => Err(clusters.index(index).refuse("is empty")),
        // It would look for an endpoint in itself, for ever.
        member if *member == **name => Err(clusters.index(index).refuse("is the cluster itself")),
        member => Ok(member.into()),
    };
    let members: Vec<Name> = (config.clusters.iter().enumerate())
        .map(member)
        .collect::<Result<_, _>>()?;
    if members.is_empty() {
        return Err(clusters.refuse("is empty"));
    }
    Ok(ClusterKind::Aggregate(members))
}

fn dns(cluster: &Wire, strict: bool, at: &At<'_>) -> Result<Dns, DecodeError> {
    unsupported(
        at,
        &[
            (!cluster.dns_resolvers.is_empty(), "dns_resolvers"),
            (cluster.use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups"),
            (cluster.dns_resolution_config.is_some(), "dns_resolution_config"),
            (
                cluster.typed_dns_resolver_config.is_some(),
                "typed_dns_resolver_config",
            ),
        ],
    )?;
    let refresh_at = at.field("dns_refresh_rate");
    let refresh = positive(cluster.dns_refresh_rate.as_ref(), DNS_REFRESH, &refresh_at)?;
    if refresh < Duration::from_millis(1) {
        return Err(refresh_at.refuse("is below 1 ms"));
    }
    let family = match enumeration(cluster.dns_lookup_family, &at.field("dns_lookup_family"))? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    Ok(Dns {
        strict,
        refresh,
        family,
    })
}

fn eds(cluster: &Wire, name: &Name, at: &At<'_>) -> Result<Eds, DecodeError> {
    let at = at.field("eds_cluster_config");
    let Some(config) = &cluster.eds_cluster_config else {
        return Err(at.refuse("is missing"));
    };
    let source_at = at.field("eds_config");
    let source = config.eds_config.as_ref();
    let source = source.ok_or_else(|| source_at.refuse("is missing"))?;
    Ok(Eds {
        service_name: match config.service_name.as_str() {
            "" => name.clone(),
            service => service.into(),
        },
        initial_fetch_timeout: over_ads(source, &source_at)?,
    })
}

/// Whether a resource comes over ADS, and how long its first answer is waited for; none is for ever.
///
/// # Errors
/// Another source, another version of the API.
pub(super) fn over_ads(source: &ConfigSource, at: &At<'_>) -> Result<Option<Duration>, DecodeError> {
    let version_at = at.field("resource_api_version");
    if enumeration::<ApiVersion>(source.resource_api_version, &version_at)? == ApiVersion::V2 {
        return Err(version_at.refuse("V2 is not supported"));
    }
    match source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {}
        _ => return Err(at.refuse("is not ads, which alone is supported")),
    }
    let timeout = duration(
        source.initial_fetch_timeout.as_ref(),
        &at.field("initial_fetch_timeout"),
    )?;
    let timeout = timeout.unwrap_or(INITIAL_FETCH_TIMEOUT);
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn endpoints(
    cluster: &Wire,
    kind: &ClusterKind,
    is_eds: bool,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<ClusterLoadAssignment>, DecodeError> {
    let at = at.field("load_assignment");
    match kind {
        ClusterKind::Dns(_) => {}
        ClusterKind::Endpoints if !is_eds => {}
        _ if cluster.load_assignment.is_none() => return Ok(None),
        _ => return Err(at.refuse("stands in a cluster whose endpoints come from elsewhere")),
    }
    let Some(assignment) = &cluster.load_assignment else {
        return Ok(Some(ClusterLoadAssignment::default()));
    };
    let decoded = endpoint::decode(assignment, HostNames::Resolved, &at, ctx)?;
    if matches!(kind, ClusterKind::Dns(dns) if !dns.strict) && decoded.endpoints.len() != 1 {
        return Err(at.refuse("of a LOGICAL_DNS cluster has not exactly one endpoint"));
    }
    Ok(Some(decoded))
}

/// Whom the cluster leads to, where that is one.
fn host(assignment: Option<&ClusterLoadAssignment>) -> Option<String> {
    match assignment?.endpoints.as_slice() {
        [one] => match &one.address {
            Target::Host { host, .. } => Some(host.to_string()),
            Target::Address(Address::Socket(address)) => Some(address.ip().to_string()),
            Target::Address(_) => None,
        },
        _ => None,
    }
}

fn has_host_names(assignment: &ClusterLoadAssignment) -> bool {
    let mut addresses = assignment.endpoints.iter().map(|endpoint| &endpoint.address);
    addresses.any(|address| matches!(address, Target::Host { .. }))
}

fn load_balancer(cluster: &Wire, kind: &ClusterKind, at: &At<'_>) -> Result<LoadBalancer, DecodeError> {
    if let Some(LbConfig::OriginalDstLbConfig(config)) = &cluster.lb_config {
        unsupported(
            &at.field("original_dst_lb_config"),
            &[
                (config.use_http_header, "use_http_header"),
                (!config.http_header_name.is_empty(), "http_header_name"),
                (config.upstream_port_override.is_some(), "upstream_port_override"),
                (config.metadata_key.is_some(), "metadata_key"),
            ],
        )?;
    }
    let policy_at = at.field("lb_policy");
    let policy = enumeration(cluster.lb_policy, &policy_at)?;
    let of_its_own = matches!(kind, ClusterKind::OriginalDestination | ClusterKind::Aggregate(_));
    if of_its_own != (policy == LbPolicy::ClusterProvided) {
        return Err(
            policy_at.refuse("is CLUSTER_PROVIDED in ORIGINAL_DST and aggregate clusters, and in no others")
        );
    }
    let number = |value: Option<u64>, default: u64| value.unwrap_or(default);
    match policy {
        LbPolicy::RoundRobin | LbPolicy::ClusterProvided => Ok(LoadBalancer::RoundRobin),
        LbPolicy::Random => Ok(LoadBalancer::Random),
        LbPolicy::LeastRequest => {
            let config = match &cluster.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count,
                _ => None,
            };
            match config.unwrap_or(2) {
                0 | 1 => Err(at
                    .field("least_request_lb_config.choice_count")
                    .refuse("is below 2")),
                choice_count => Ok(LoadBalancer::LeastRequest { choice_count }),
            }
        }
        LbPolicy::RingHash => {
            let at = at.field("ring_hash_lb_config");
            let (mut minimum, mut maximum) = RING_SIZE;
            if let Some(LbConfig::RingHashLbConfig(config)) = &cluster.lb_config {
                minimum = number(config.minimum_ring_size, minimum);
                maximum = number(config.maximum_ring_size, maximum);
                let hash: HashFunction = enumeration(config.hash_function, &at.field("hash_function"))?;
                if hash != HashFunction::XxHash {
                    return Err(at
                        .field("hash_function")
                        .refuse("is not XX_HASH, which alone is supported"));
                }
            }
            if minimum > maximum || maximum > RING_SIZE.1 {
                let why = format!(
                    "has a minimum above its maximum, or a maximum above {}",
                    RING_SIZE.1
                );
                return Err(at.refuse(why));
            }
            Ok(LoadBalancer::RingHash {
                minimum_ring_size: minimum,
                maximum_ring_size: maximum,
            })
        }
        LbPolicy::Maglev => {
            let table_size = match &cluster.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => number(config.table_size, MAGLEV_TABLE),
                _ => MAGLEV_TABLE,
            };
            if table_size > MAX_MAGLEV_TABLE || !is_prime(table_size) {
                let why = format!("{table_size} is no prime up to {MAX_MAGLEV_TABLE}");
                return Err(at.field("maglev_lb_config.table_size").refuse(why));
            }
            Ok(LoadBalancer::Maglev { table_size })
        }
        LbPolicy::LoadBalancingPolicyConfig => {
            Err(policy_at.refuse("LOAD_BALANCING_POLICY_CONFIG is not supported"))
        }
    }
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..)
            .take_while(|d| d * d <= number)
            .all(|d| !number.is_multiple_of(d))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
