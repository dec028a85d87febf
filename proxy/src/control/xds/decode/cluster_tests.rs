//! Clusters of every kind, Envoy's defaults, what is refused and what is noted.

use std::collections::BTreeSet;

use attache_proto::envoy::config::cluster::v3::{
    CircuitBreakers as WireBreakers, OutlierDetection as WireOutliers, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{
        CommonLbConfig, EdsClusterConfig, LeastRequestLbConfig, MaglevLbConfig, OriginalDstLbConfig,
        RingHashLbConfig,
    },
};
use attache_proto::envoy::config::core::v3::{
    AggregatedConfigSource, Http2ProtocolOptions, PathConfigSource, TcpKeepalive,
};
use attache_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment as WireAssignment, LocalityLbEndpoints,
};
use attache_proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use attache_proto::envoy::r#type::v3::Percent;
use prost::Message;
use prost_types::Any;

use super::super::testing::{Bench, any, endpoint as host};
use super::*;
use crate::model::cluster::{CircuitBreakers, HttpProtocol, OutlierDetection};

fn wire(kind: DiscoveryType) -> Wire {
    Wire {
        name: "api".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        ..Wire::default()
    }
}

fn at(mut cluster: Wire, address: &str) -> Wire {
    cluster.load_assignment = Some(WireAssignment {
        cluster_name: "api".to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![host(address, 80)],
            ..LocalityLbEndpoints::default()
        }],
        ..WireAssignment::default()
    });
    cluster
}

fn over_eds(name: &str) -> Wire {
    let mut cluster = wire(DiscoveryType::Eds);
    cluster.eds_cluster_config = Some(EdsClusterConfig {
        eds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
            resource_api_version: ApiVersion::V3.into(),
            initial_fetch_timeout: None,
        }),
        service_name: name.to_owned(),
    });
    cluster
}

fn read(cluster: &Wire) -> Result<DecodedCluster, DecodeError> {
    noticed(cluster).0
}

fn noticed(cluster: &Wire) -> (Result<DecodedCluster, DecodeError>, BTreeSet<String>) {
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let decoded = decode_bytes(&cluster.encode_to_vec(), &mut ctx);
    (decoded, ctx.notices)
}

fn refused(cluster: &Wire) -> String {
    read(cluster).unwrap_err().path
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[test]
fn an_empty_cluster_has_envoys_defaults() {
    let decoded = read(&wire(DiscoveryType::Static)).unwrap();
    let defaults = Cluster {
        name: "api".into(),
        ..Cluster::default()
    };
    assert_eq!(decoded.cluster, defaults);
    assert_eq!(
        (decoded.endpoints, decoded.eds),
        (Some(ClusterLoadAssignment::default()), None)
    );
    assert_eq!(refused(&Wire::default()), "name");
}

#[test]
fn endpoints_from_eds() {
    let eds = |cluster: &Wire| read(cluster).map(|decoded| decoded.eds.unwrap());
    let plain = eds(&over_eds("")).unwrap();
    assert_eq!(&*plain.service_name, "api");
    assert_eq!(plain.initial_fetch_timeout, Some(Duration::from_secs(15)));
    assert_eq!(&*eds(&over_eds("other")).unwrap().service_name, "other");
    let source = |change: fn(&mut ConfigSource)| {
        let mut cluster = over_eds("");
        let config = cluster.eds_cluster_config.as_mut().unwrap();
        change(config.eds_config.as_mut().unwrap());
        eds(&cluster)
    };
    let forever = source(|source| source.initial_fetch_timeout = seconds(0)).unwrap();
    assert_eq!(forever.initial_fetch_timeout, None);
    let three = source(|source| source.initial_fetch_timeout = seconds(3)).unwrap();
    assert_eq!(three.initial_fetch_timeout, Some(Duration::from_secs(3)));
    let path = source(|source| {
        let path = ConfigSourceSpecifier::PathConfigSource(PathConfigSource::default());
        source.config_source_specifier = Some(path);
    });
    assert_eq!(path.unwrap_err().path, "eds_cluster_config.eds_config");
    let old = source(|source| source.resource_api_version = ApiVersion::V2.into());
    assert_eq!(
        old.unwrap_err().path,
        "eds_cluster_config.eds_config.resource_api_version"
    );
    assert_eq!(refused(&wire(DiscoveryType::Eds)), "eds_cluster_config");
    assert_eq!(refused(&at(over_eds(""), "10.0.0.1")), "load_assignment");
}

#[test]
fn names_are_resolved_in_dns_clusters() {
    let strict = read(&at(wire(DiscoveryType::StrictDns), "db.local")).unwrap();
    let dns = Dns {
        strict: true,
        refresh: Duration::from_secs(5),
        family: DnsFamily::Auto,
    };
    assert_eq!(strict.cluster.kind, ClusterKind::Dns(dns));
    assert_eq!(
        strict.endpoints.unwrap().endpoints[0].address.to_string(),
        "db.local:80"
    );
    let mut logical = at(wire(DiscoveryType::LogicalDns), "db.local");
    logical.dns_refresh_rate = seconds(60);
    logical.dns_lookup_family = DnsLookupFamily::V4Preferred.into();
    let dns = Dns {
        strict: false,
        refresh: Duration::from_secs(60),
        family: DnsFamily::V4Preferred,
    };
    assert_eq!(read(&logical).unwrap().cluster.kind, ClusterKind::Dns(dns));
    logical.load_assignment.as_mut().unwrap().endpoints[0]
        .lb_endpoints
        .push(host("x", 1));
    assert_eq!(refused(&logical), "load_assignment");
    let with = |change: fn(&mut Wire)| {
        let mut cluster = at(wire(DiscoveryType::StrictDns), "db.local");
        change(&mut cluster);
        refused(&cluster)
    };
    assert_eq!(with(|c| c.dns_refresh_rate = seconds(0)), "dns_refresh_rate");
    assert_eq!(
        with(|c| c.use_tcp_for_dns_lookups = true),
        "use_tcp_for_dns_lookups"
    );
    assert_eq!(
        with(|c| c.dns_resolvers.push(Default::default())),
        "dns_resolvers"
    );
    assert_eq!(with(|c| c.dns_lookup_family = 9), "dns_lookup_family");
}

#[test]
fn a_static_cluster_of_a_host_name_resolves_it() {
    let (decoded, notices) = noticed(&at(wire(DiscoveryType::Static), "db.local"));
    assert!(matches!(decoded.unwrap().cluster.kind, ClusterKind::Dns(dns) if dns.strict));
    assert_eq!(notices.len(), 1, "{notices:?}");
    let (decoded, notices) = noticed(&at(wire(DiscoveryType::Static), "10.0.0.1"));
    assert_eq!(
        (decoded.unwrap().cluster.kind, notices.len()),
        (ClusterKind::Endpoints, 0)
    );
}

#[test]
fn original_destinations() {
    let mut cluster = wire(DiscoveryType::OriginalDst);
    assert_eq!(refused(&cluster), "lb_policy");
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    let decoded = read(&cluster).unwrap();
    assert_eq!(
        (decoded.cluster.kind, decoded.endpoints),
        (ClusterKind::OriginalDestination, None)
    );
    cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
        use_http_header: true,
        ..OriginalDstLbConfig::default()
    }));
    assert_eq!(refused(&cluster), "original_dst_lb_config.use_http_header");
    let mut other = wire(DiscoveryType::Static);
    other.lb_policy = LbPolicy::ClusterProvided.into();
    assert_eq!(refused(&other), "lb_policy");
}

fn custom(config: Any) -> Wire {
    Wire {
        name: "api".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
            name: "envoy.clusters.custom".to_owned(),
            typed_config: Some(config),
        })),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..Wire::default()
    }
}

#[test]
fn aggregates() {
    let of = |clusters: &[&str]| {
        let clusters = clusters.iter().map(|name| (*name).to_owned()).collect();
        custom(any(&ClusterConfig { clusters }))
    };
    let members = ClusterKind::Aggregate(vec!["a".into(), "b".into()]);
    assert_eq!(read(&of(&["a", "b"])).unwrap().cluster.kind, members);
    assert_eq!(refused(&of(&[])), "cluster_type.typed_config.clusters");
    assert_eq!(
        refused(&of(&["a", "api"])),
        "cluster_type.typed_config.clusters[1]"
    );
    let other = read(&custom(Any::default())).unwrap_err();
    assert_eq!(
        other.to_string(),
        "Cluster \"api\": cluster_type \"envoy.clusters.custom\" is not supported"
    );
}

#[test]
fn load_balancers() {
    let of = |policy: LbPolicy, config| {
        let mut cluster = wire(DiscoveryType::Static);
        cluster.lb_policy = policy.into();
        cluster.lb_config = config;
        read(&cluster).map(|decoded| decoded.cluster.load_balancer)
    };
    assert_eq!(of(LbPolicy::Random, None), Ok(LoadBalancer::Random));
    assert_eq!(
        of(LbPolicy::LeastRequest, None),
        Ok(LoadBalancer::LeastRequest { choice_count: 2 })
    );
    let choices = |choice_count| {
        Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            choice_count: Some(choice_count),
            ..LeastRequestLbConfig::default()
        }))
    };
    let five = LoadBalancer::LeastRequest { choice_count: 5 };
    assert_eq!(of(LbPolicy::LeastRequest, choices(5)), Ok(five));
    let one = of(LbPolicy::LeastRequest, choices(1)).unwrap_err();
    assert_eq!(one.path, "least_request_lb_config.choice_count");
    let ring = |minimum, maximum, hash: HashFunction| {
        Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: minimum,
            maximum_ring_size: maximum,
            hash_function: hash.into(),
        }))
    };
    let sizes = |minimum_ring_size, maximum_ring_size| {
        Ok(LoadBalancer::RingHash {
            minimum_ring_size,
            maximum_ring_size,
        })
    };
    assert_eq!(of(LbPolicy::RingHash, None), sizes(1024, 8 << 20));
    let xx = HashFunction::XxHash;
    assert_eq!(of(LbPolicy::RingHash, ring(Some(7), Some(9), xx)), sizes(7, 9));
    let crossed = of(LbPolicy::RingHash, ring(Some(9), Some(7), xx)).unwrap_err();
    assert_eq!(crossed.path, "ring_hash_lb_config");
    let murmur = of(LbPolicy::RingHash, ring(None, None, HashFunction::MurmurHash2)).unwrap_err();
    assert_eq!(murmur.path, "ring_hash_lb_config.hash_function");
    let table = |size| {
        Some(LbConfig::MaglevLbConfig(MaglevLbConfig {
            table_size: Some(size),
        }))
    };
    assert_eq!(
        of(LbPolicy::Maglev, None),
        Ok(LoadBalancer::Maglev { table_size: 65_537 })
    );
    assert_eq!(
        of(LbPolicy::Maglev, table(251)),
        Ok(LoadBalancer::Maglev { table_size: 251 })
    );
    for bad in [0, 1, 250, 5_000_081, u64::MAX] {
        assert_eq!(
            of(LbPolicy::Maglev, table(bad)).unwrap_err().path,
            "maglev_lb_config.table_size"
        );
    }
    let policy = of(LbPolicy::LoadBalancingPolicyConfig, None).unwrap_err();
    assert_eq!(policy.path, "lb_policy");
}

#[test]
fn panic_thresholds() {
    let of = |value: Option<f64>| {
        let mut cluster = wire(DiscoveryType::Static);
        cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: value.map(|value| Percent { value }),
            ..CommonLbConfig::default()
        });
        read(&cluster).map(|decoded| decoded.cluster.panic_threshold)
    };
    for (value, threshold) in [(None, 50), (Some(0.0), 0), (Some(33.6), 34), (Some(100.0), 100)] {
        assert_eq!(of(value), Ok(threshold));
    }
    for bad in [-1.0, 100.1, f64::NAN, f64::INFINITY] {
        assert_eq!(
            of(Some(bad)).unwrap_err().path,
            "common_lb_config.healthy_panic_threshold"
        );
    }
}

#[test]
fn circuit_breakers_of_the_default_priority() {
    let mut cluster = wire(DiscoveryType::Static);
    let thresholds = |priority, max_connections| Thresholds {
        priority,
        max_connections: Some(max_connections),
        max_requests: Some(3),
        ..Thresholds::default()
    };
    cluster.circuit_breakers = Some(WireBreakers {
        thresholds: vec![thresholds(1, 9), thresholds(0, 0), thresholds(0, 5)],
        per_host_thresholds: vec![],
    });
    let (decoded, notices) = noticed(&cluster);
    let breakers = CircuitBreakers {
        max_connections: Some(0),
        max_requests: Some(3),
        ..CircuitBreakers::default()
    };
    assert_eq!(decoded.unwrap().cluster.circuit_breakers, breakers);
    assert_eq!(notices.len(), 1, "{notices:?}");
    let breakers = cluster.circuit_breakers.as_mut().unwrap();
    breakers.per_host_thresholds.push(Thresholds::default());
    assert_eq!(refused(&cluster), "circuit_breakers.per_host_thresholds");
}

#[test]
fn outliers() {
    let of = |outliers: WireOutliers| {
        let mut cluster = wire(DiscoveryType::Static);
        cluster.outlier_detection = Some(outliers);
        let (decoded, notices) = noticed(&cluster);
        (
            decoded.map(|decoded| decoded.cluster.outlier_detection.unwrap()),
            notices.len(),
        )
    };
    assert_eq!(of(WireOutliers::default()), (Ok(OutlierDetection::default()), 0));
    let (decoded, notices) = of(WireOutliers {
        consecutive_5xx: Some(0),
        interval: seconds(2),
        base_ejection_time: seconds(600),
        max_ejection_percent: Some(100),
        enforcing_success_rate: Some(0),
        success_rate_minimum_hosts: Some(9),
        ..WireOutliers::default()
    });
    let expected = OutlierDetection {
        consecutive_5xx: 0,
        interval: Duration::from_secs(2),
        base_ejection_time: Duration::from_secs(600),
        // No ejection is shorter than its base.
        max_ejection_time: Duration::from_secs(600),
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    };
    assert_eq!((decoded, notices), (Ok(expected), 1));
    let refused = |outliers| of(outliers).0.unwrap_err().path;
    let percent = WireOutliers {
        max_ejection_percent: Some(101),
        ..WireOutliers::default()
    };
    assert_eq!(refused(percent), "outlier_detection.max_ejection_percent");
    let never = WireOutliers {
        interval: seconds(0),
        ..WireOutliers::default()
    };
    assert_eq!(refused(never), "outlier_detection.interval");
}

#[test]
fn http_by_extension_or_by_the_old_fields() {
    let of = |change: &dyn Fn(&mut Wire)| {
        let mut cluster = wire(DiscoveryType::Static);
        change(&mut cluster);
        read(&cluster).map(|decoded| decoded.cluster.http)
    };
    let extension = |options: Option<UpstreamProtocolOptions>| {
        let options = any(&HttpProtocolOptions {
            upstream_protocol_options: options,
            ..HttpProtocolOptions::default()
        });
        of(&move |c| {
            c.typed_extension_protocol_options
                .insert("x".to_owned(), options.clone());
        })
    };
    let explicit = |config| {
        extension(Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: config,
            },
        )))
    };
    let h1 = Some(ProtocolConfig::HttpProtocolOptions(Default::default()));
    let h2 = Some(ProtocolConfig::Http2ProtocolOptions(Default::default()));
    let h3 = Some(ProtocolConfig::Http3ProtocolOptions(Default::default()));
    assert_eq!(explicit(h1), Ok(HttpProtocol::Http1));
    assert_eq!(explicit(h2), Ok(HttpProtocol::Http2));
    let at = "typed_extension_protocol_options[\"x\"]";
    assert_eq!(
        explicit(h3).unwrap_err().path,
        format!("{at}.explicit_http_config")
    );
    let downstream = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig::default());
    assert_eq!(extension(Some(downstream)), Ok(HttpProtocol::Downstream));
    let auto = UpstreamProtocolOptions::AutoConfig(AutoHttpConfig::default());
    assert_eq!(
        extension(Some(auto)).unwrap_err().path,
        format!("{at}.auto_config")
    );
    assert_eq!(extension(None).unwrap_err().path, at);
    assert_eq!(
        of(&|c| c.http2_protocol_options = Some(Http2ProtocolOptions::default())),
        Ok(HttpProtocol::Http2)
    );
    assert_eq!(of(&|c| c.protocol_selection = 1), Ok(HttpProtocol::Downstream));
    let foreign = of(&|c| {
        c.typed_extension_protocol_options
            .insert("x".to_owned(), Any::default());
    });
    assert_eq!(foreign.unwrap_err().path, at);
}

#[test]
fn timeouts_names_and_keepalive() {
    let mut cluster = wire(DiscoveryType::Static);
    cluster.alt_stat_name = "alt".to_owned();
    cluster.connect_timeout = seconds(33);
    cluster.upstream_connection_options = Some(UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_time: Some(60),
            keepalive_probes: Some(3),
            keepalive_interval: None,
        }),
        ..UpstreamConnectionOptions::default()
    });
    let decoded = read(&cluster).unwrap().cluster;
    assert_eq!(decoded.alt_stat_name.as_deref(), Some("alt"));
    assert_eq!(decoded.connect_timeout, Duration::from_secs(33));
    let keepalive = decoded.keepalive.unwrap();
    assert_eq!(
        (keepalive.time, keepalive.interval),
        (Some(Duration::from_secs(60)), None)
    );
    cluster.connect_timeout = seconds(0);
    assert_eq!(refused(&cluster), "connect_timeout");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused = |change: fn(&mut Wire)| {
        let mut cluster = wire(DiscoveryType::Static);
        change(&mut cluster);
        refused(&cluster)
    };
    assert_eq!(
        refused(|c| c.health_checks.push(Default::default())),
        "health_checks"
    );
    assert_eq!(
        refused(|c| c.lb_subset_config = Some(Default::default())),
        "lb_subset_config"
    );
    assert_eq!(
        refused(|c| c.load_balancing_policy = Some(Default::default())),
        "load_balancing_policy"
    );
    assert_eq!(
        refused(|c| c.transport_socket_matches.push(Default::default())),
        "transport_socket_matches"
    );
    assert_eq!(
        refused(|c| c.upstream_bind_config = Some(Default::default())),
        "upstream_bind_config"
    );
    assert_eq!(refused(|c| c.filters.push(Default::default())), "filters");
    assert_eq!(
        refused(|c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(77))),
        "type"
    );
}
