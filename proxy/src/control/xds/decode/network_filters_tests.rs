//! Chains of filters, and each of them.

use attache_proto::envoy::config::core::v3::RuntimeFeatureFlag;
use attache_proto::envoy::config::rbac::v3::Rbac as Rules;
use attache_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    WeightedCluster as WireWeighted, weighted_cluster::ClusterWeight,
};
use std::time::Duration;

use super::super::testing::{Bench, network_filter, tcp_proxy as to_cluster};
use super::*;

const AT: At<'static> = At::resource("Listener", "l");

fn read(filters: &[Filter]) -> Result<(Vec<NetworkFilter>, Terminal), DecodeError> {
    decode(filters, &AT, &mut Bench::default().context())
}

fn tcp(change: impl Fn(&mut TcpProxy)) -> Result<listener::TcpProxy, DecodeError> {
    let mut filter = TcpProxy {
        stat_prefix: "upstream.api".to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster("api".to_owned())),
        ..TcpProxy::default()
    };
    change(&mut filter);
    tcp_proxy(&filter, &AT, &mut Bench::default().context())
}

#[test]
fn the_last_filter_carries_the_bytes() {
    let rbac = network_filter(
        "rbac",
        &Rbac {
            rules: Some(Rules::default()),
            stat_prefix: "connect_authz".to_owned(),
            ..Rbac::default()
        },
    );
    let limit = network_filter(
        "limit",
        &ConnectionLimit {
            max_connections: Some(7),
            stat_prefix: "inbound".to_owned(),
            ..ConnectionLimit::default()
        },
    );
    let (before, terminal) = read(&[rbac.clone(), limit, to_cluster("local_app")]).unwrap();
    assert!(
        matches!(&before[0], NetworkFilter::Rbac { stat_prefix, .. } if &**stat_prefix == "connect_authz")
    );
    let NetworkFilter::ConnectionLimit { max_connections, .. } = &before[1] else {
        panic!("no limit")
    };
    assert_eq!(*max_connections, 7);
    let tcp = listener::TcpProxy::to("local_app".into(), "tcp".into());
    assert_eq!(terminal, Terminal::TcpProxy(tcp));

    assert_eq!(read(&[]).unwrap_err().path, "");
    assert!(read(std::slice::from_ref(&rbac)).is_err());
    assert_eq!(read(&[to_cluster("a"), rbac]).unwrap_err().path, "[1]");
    assert_eq!(read(&[to_cluster("a"), to_cluster("b")]).unwrap_err().path, "[1]");
}

#[test]
fn the_server_name_gives_the_cluster() {
    let typed = network_filter("sni", &SniCluster {});
    let bare = Filter {
        name: SNI_CLUSTER.to_owned(),
        config_type: None,
    };
    for sni in [typed, bare] {
        let (before, _) = read(&[sni, to_cluster("")]).unwrap();
        assert_eq!(before, [NetworkFilter::SniCluster]);
    }
    assert!(read(&[to_cluster("")]).is_err());
}

#[test]
fn unsupported_filters_are_named() {
    let refused = |filter: Filter| read(&[filter, to_cluster("a")]).unwrap_err().to_string();
    assert!(refused(network_filter("x", &ExtAuthz::default())).contains("ext_authz"));
    assert!(refused(network_filter("x", &Wasm::default())).contains("wasm"));
    let other = Filter {
        name: "mine".to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy"
                .to_owned(),
            value: Vec::new(),
        })),
    };
    let error = refused(other);
    assert!(
        error.starts_with("Listener \"l\": [0] \"mine\" is a \"envoy.extensions.filters.network.redis"),
        "{error}"
    );
    let bare = Filter {
        name: "mine".to_owned(),
        config_type: None,
    };
    assert!(refused(bare).contains("no typed_config"));
    let discovered = Filter {
        name: "x".to_owned(),
        config_type: Some(ConfigType::ConfigDiscovery(Default::default())),
    };
    assert!(refused(discovered).contains("config_discovery is not supported"));
    let garbage = Filter {
        name: "tcp".to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any {
            type_url: TcpProxy::TYPE_URL.to_owned(),
            value: vec![0xff],
        })),
    };
    assert!(refused(garbage).contains("is no valid envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"));
}

#[test]
fn rules_that_are_not_there_are_said() {
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let filters = [network_filter("rbac", &Rbac::default()), to_cluster("a")];
    let (before, _) = decode(&filters, &AT, &mut ctx).unwrap();
    assert!(before.is_empty());
    assert_eq!(
        ctx.notices.first().unwrap(),
        "Listener \"l\": [0].typed_config has no rules and lets everybody in"
    );
    let shadow = Rbac {
        rules: Some(Rules::default()),
        shadow_rules: Some(Rules::default()),
        ..Rbac::default()
    };
    decode(&[network_filter("rbac", &shadow), to_cluster("a")], &AT, &mut ctx).unwrap();
    assert_eq!(ctx.notices.len(), 2);
    let matcher = Rbac {
        matcher: Some(Default::default()),
        ..Rbac::default()
    };
    let refused = read(&[network_filter("rbac", &matcher), to_cluster("a")]).unwrap_err();
    assert_eq!(refused.path, "[0].typed_config.matcher");
    let strange = Rbac {
        rules: Some(Rules::default()),
        enforcement_type: 9,
        ..Rbac::default()
    };
    let refused = read(&[network_filter("rbac", &strange), to_cluster("a")]).unwrap_err();
    assert_eq!(refused.path, "[0].typed_config.enforcement_type");
}

#[test]
fn limits_limit() {
    let refused = |limit: &ConnectionLimit| {
        read(&[network_filter("limit", limit), to_cluster("a")])
            .unwrap_err()
            .path
    };
    let mut limit = ConnectionLimit::default();
    assert_eq!(refused(&limit), "[0].typed_config.max_connections");
    limit.max_connections = Some(0);
    assert_eq!(refused(&limit), "[0].typed_config.max_connections");
    limit.runtime_enabled = Some(RuntimeFeatureFlag {
        default_value: Some(false),
        ..RuntimeFeatureFlag::default()
    });
    assert_eq!(refused(&limit), "[0].typed_config.runtime_enabled");
}

#[test]
fn tcp_proxies() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let whole = tcp(|filter| {
        filter.idle_timeout = seconds(60);
        filter.max_downstream_connection_duration = seconds(3600);
        filter.max_connect_attempts = Some(3);
    });
    let whole = whole.unwrap();
    assert_eq!(whole.idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(whole.max_duration, Some(Duration::from_secs(3600)));
    assert_eq!(whole.max_connect_attempts, Some(3));
    assert_eq!(&*whole.stat_prefix, "upstream.api");
    // Without a limit, said or unsaid.
    assert_eq!(
        tcp(|filter| filter.idle_timeout = seconds(0))
            .unwrap()
            .idle_timeout,
        None
    );
    assert_eq!(tcp(|_| {}).unwrap().idle_timeout, None);

    let weighted = |clusters: &[(&str, u32)]| {
        let one = |(name, weight): &(&str, u32)| ClusterWeight {
            name: (*name).to_owned(),
            weight: *weight,
            metadata_match: None,
        };
        let clusters = clusters.iter().map(one).collect();
        tcp(|filter| {
            let clusters = WireWeighted {
                clusters: Vec::clone(&clusters),
            };
            filter.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(clusters));
        })
    };
    let two = weighted(&[("a", 90), ("b", 10)]).unwrap().clusters;
    assert_eq!((two.len(), &*two[1].name, two[1].weight), (2, "b", 10));
    let at = |field: &str| format!("weighted_clusters.clusters{field}");
    assert_eq!(weighted(&[]).unwrap_err().path, at(""));
    assert_eq!(weighted(&[("a", 0)]).unwrap_err().path, at("[0].weight"));
    assert_eq!(weighted(&[("", 1)]).unwrap_err().path, at("[0].name"));
    assert_eq!(
        weighted(&[("a", u32::MAX), ("b", 1)]).unwrap_err().path,
        at("[1].weight")
    );
    assert!(tcp(|filter| filter.cluster_specifier = None).is_err());
}

#[test]
fn what_a_tcp_proxy_cannot_do_is_refused() {
    let refused = |change: fn(&mut TcpProxy)| tcp(change).unwrap_err().path;
    assert_eq!(
        refused(|f| f.tunneling_config = Some(Default::default())),
        "tunneling_config"
    );
    assert_eq!(refused(|f| f.on_demand = Some(Default::default())), "on_demand");
    assert_eq!(refused(|f| f.hash_policy.push(Default::default())), "hash_policy");
    assert_eq!(refused(|f| f.upstream_connect_mode = 1), "upstream_connect_mode");
    assert_eq!(refused(|f| f.upstream_connect_mode = 7), "upstream_connect_mode");
    assert_eq!(
        refused(|f| f.max_connect_attempts = Some(0)),
        "max_connect_attempts"
    );
    let negative = |f: &mut TcpProxy| {
        f.idle_timeout = Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        });
    };
    assert_eq!(refused(negative), "idle_timeout");
}
