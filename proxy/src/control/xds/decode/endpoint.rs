//! `endpoint.v3.ClusterLoadAssignment`.

use attache_proto::envoy::config::core::v3::HealthStatus;
use attache_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment as Wire, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::address::{self, HostNames};
use super::common::{enumeration, known_fields, parse, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::{ClusterLoadAssignment, Endpoint, Name};

/// Envoy's bound of `priority`.
const MAX_PRIORITY: u32 = 128;

/// An assignment as it came over EDS, with the name that it answers to.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(
    bytes: &[u8],
    ctx: &mut Context<'_>,
) -> Result<(Name, ClusterLoadAssignment), DecodeError> {
    let wire: Wire = parse(bytes, &At::resource("ClusterLoadAssignment", ""))?;
    let at = At::resource("ClusterLoadAssignment", &wire.cluster_name);
    known_fields::<Wire>(bytes, &at, ctx)?;
    let assignment = decode(&wire, HostNames::Refused, &at, ctx)?;
    Ok((wire.cluster_name.as_str().into(), assignment))
}

/// An assignment. It may be empty: then the cluster is known to have no endpoints.
///
/// # Errors
/// Names the endpoint and what is wrong with it: no address, a host name where none is resolved, a weight
/// of 0.
pub fn decode(
    assignment: &Wire,
    names: HostNames,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<ClusterLoadAssignment, DecodeError> {
    unsupported(at, &[(!assignment.named_endpoints.is_empty(), "named_endpoints")])?;
    let mut decoded = ClusterLoadAssignment::default();
    if let Some(policy) = &assignment.policy {
        let at = at.field("policy");
        unsupported(&at, &[(!policy.drop_overloads.is_empty(), "drop_overloads")])?;
        without_effect(
            &at,
            ctx,
            &[
                (policy.endpoint_stale_after.is_some(), "endpoint_stale_after"),
                (policy.weighted_priority_health, "weighted_priority_health"),
            ],
        );
        match policy.overprovisioning_factor {
            None => {}
            Some(0) => return Err(at.field("overprovisioning_factor").refuse("is 0")),
            Some(factor) => decoded.overprovisioning_factor = factor,
        }
    }
    let localities = at.field("endpoints");
    for (index, locality) in assignment.endpoints.iter().enumerate() {
        self::locality(
            locality,
            names,
            &mut decoded.endpoints,
            &localities.index(index),
            ctx,
        )?;
    }
    Ok(decoded)
}

fn locality(
    locality: &LocalityLbEndpoints,
    names: HostNames,
    endpoints: &mut Vec<Endpoint>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(), DecodeError> {
    unsupported(at, &[(locality.lb_config.is_some(), "lb_config")])?;
    // The locality's own weight and proximity are for clusters that balance by locality, which are refused.
    if locality.priority > MAX_PRIORITY {
        return Err(at.field("priority").refuse(format!("is above {MAX_PRIORITY}")));
    }
    let all = at.field("lb_endpoints");
    endpoints.reserve(locality.lb_endpoints.len());
    let mut sum = 0_u32;
    for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
        let at = all.index(index);
        let endpoint = one(endpoint, locality.priority, names, &at, ctx)?;
        sum = sum.checked_add(endpoint.weight).ok_or_else(|| {
            at.field("load_balancing_weight")
                .refuse("makes the sum of all weights too large")
        })?;
        endpoints.push(endpoint);
    }
    Ok(())
}

fn one(
    endpoint: &LbEndpoint,
    priority: u32,
    names: HostNames,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Endpoint, DecodeError> {
    let host = match &endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(host)) => host,
        Some(HostIdentifier::EndpointName(_)) => {
            return Err(at.field("endpoint_name").refuse("is not supported"));
        }
        None => return Err(at.field("endpoint").refuse("is missing")),
    };
    let weight = match endpoint.load_balancing_weight {
        None => 1,
        Some(0) => return Err(at.field("load_balancing_weight").refuse("is 0")),
        Some(weight) => weight,
    };
    let health_at = at.field("health_status");
    let healthy = match enumeration(endpoint.health_status, &health_at)? {
        HealthStatus::Unknown | HealthStatus::Healthy => true,
        HealthStatus::Degraded => {
            ctx.notice(&health_at, "DEGRADED is carried out as HEALTHY");
            true
        }
        HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => false,
    };
    let at = at.field("endpoint");
    unsupported(
        &at,
        &[(!host.additional_addresses.is_empty(), "additional_addresses")],
    )?;
    // `health_check_config` is for clusters that probe, which are refused.
    without_effect(
        &at,
        ctx,
        &[(!host.observability_name.is_empty(), "observability_name")],
    );
    Ok(Endpoint {
        address: address::target(host.address.as_ref(), names, &at.field("address"))?,
        weight,
        healthy,
        priority,
        hostname: (!host.hostname.is_empty()).then(|| host.hostname.as_str().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, endpoint as host};
    use super::*;
    use attache_proto::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
    use prost::Message;

    fn assignment(endpoints: Vec<LbEndpoint>) -> Wire {
        Wire {
            cluster_name: "api".to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: endpoints,
                ..LocalityLbEndpoints::default()
            }],
            ..Wire::default()
        }
    }

    fn read(wire: &Wire) -> Result<(Name, ClusterLoadAssignment), DecodeError> {
        decode_bytes(&wire.encode_to_vec(), &mut Bench::default().context())
    }

    #[test]
    fn weights_health_and_priorities() {
        let with = |health: HealthStatus, weight| LbEndpoint {
            health_status: health.into(),
            load_balancing_weight: weight,
            ..host("10.0.0.1", 80)
        };
        let mut wire = assignment(vec![
            with(HealthStatus::Unknown, None),
            with(HealthStatus::Healthy, Some(3)),
            with(HealthStatus::Degraded, None),
            with(HealthStatus::Unhealthy, None),
            with(HealthStatus::Draining, None),
            with(HealthStatus::Timeout, None),
        ]);
        wire.endpoints[0].priority = 2;
        wire.policy = Some(Policy {
            overprovisioning_factor: Some(100_000),
            ..Policy::default()
        });
        let (name, read) = read(&wire).unwrap();
        assert_eq!((&*name, read.overprovisioning_factor), ("api", 100_000));
        let health: Vec<bool> = read.endpoints.iter().map(|e| e.healthy).collect();
        assert_eq!(health, [true, true, true, false, false, false]);
        assert_eq!((read.endpoints[1].weight, read.endpoints[1].priority), (3, 2));
    }

    #[test]
    fn an_empty_assignment_is_known_to_be_empty() {
        for wire in [Wire::default(), assignment(vec![])] {
            assert_eq!(read(&wire).unwrap().1, ClusterLoadAssignment::default());
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |change: fn(&mut Wire)| {
            let mut wire = assignment(vec![host("10.0.0.1", 80), host("10.0.0.2", 80)]);
            change(&mut wire);
            read(&wire).unwrap_err().path
        };
        assert_eq!(
            refused(|w| w.endpoints[0].priority = 129),
            "endpoints[0].priority"
        );
        assert_eq!(
            refused(|w| w.endpoints[0].lb_endpoints[1].load_balancing_weight = Some(0)),
            "endpoints[0].lb_endpoints[1].load_balancing_weight"
        );
        assert_eq!(
            refused(|w| {
                for endpoint in &mut w.endpoints[0].lb_endpoints {
                    endpoint.load_balancing_weight = Some(u32::MAX);
                }
            }),
            "endpoints[0].lb_endpoints[1].load_balancing_weight"
        );
        assert_eq!(
            refused(|w| w.endpoints[0].lb_endpoints[1] = host("api.local", 80)),
            "endpoints[0].lb_endpoints[1].endpoint.address.socket_address.address"
        );
        assert_eq!(
            refused(|w| w.endpoints[0].lb_endpoints[1] = LbEndpoint::default()),
            "endpoints[0].lb_endpoints[1].endpoint"
        );
        assert_eq!(
            refused(|w| {
                let policy = Policy {
                    drop_overloads: vec![Default::default()],
                    ..Policy::default()
                };
                w.policy = Some(policy);
            }),
            "policy.drop_overloads"
        );
    }
}
