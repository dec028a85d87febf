//! The choice among ten endpoints, from the cluster's name on, as each connection or request makes it.
//!
//! Of many clusters one after the other: where one name is in a hash table differs from run to run.

use std::hint::black_box;
use std::sync::Arc;

use attache::limit::Limits;
use attache::model::cluster::LoadBalancer;
use attache::model::listener::Address;
use attache::model::{Cluster, ClusterLoadAssignment, Endpoint, Snapshot, Target};
use attache::tls::ConfigCache;
use attache::upstream::ClusterManager;

use crate::bench::{Bench, Outcome, repeat};

const CLUSTERS: u8 = 50;

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "balancer-round-robin-tcp",
        times: 5000,
        run: |times| choose(times, LoadBalancer::RoundRobin, false),
    },
    Bench {
        name: "balancer-round-robin-http",
        times: 5000,
        run: |times| choose(times, LoadBalancer::RoundRobin, true),
    },
    Bench {
        name: "balancer-least-request",
        times: 5000,
        run: |times| choose(times, LoadBalancer::LeastRequest { choice_count: 2 }, true),
    },
    Bench {
        name: "balancer-ring-hash",
        times: 5000,
        run: |times| {
            let ring = LoadBalancer::RingHash {
                minimum_ring_size: 1024,
                maximum_ring_size: 8 << 20,
            };
            choose(times, ring, true)
        },
    },
    Bench {
        name: "balancer-maglev",
        times: 5000,
        run: |times| choose(times, LoadBalancer::Maglev { table_size: 4_099 }, true),
    },
];

/// Puts a cluster with these endpoints into a snapshot.
pub(crate) fn add(snapshot: &mut Snapshot, cluster: Cluster, endpoints: impl Iterator<Item = Address>) {
    let endpoint = |address| Endpoint {
        address: Target::Address(address),
        weight: 1,
        healthy: true,
        priority: 0,
        hostname: None,
    };
    let assignment = ClusterLoadAssignment {
        endpoints: endpoints.map(endpoint).collect(),
        ..ClusterLoadAssignment::default()
    };
    let name = Arc::clone(&cluster.name);
    snapshot.endpoints.insert(Arc::clone(&name), Arc::new(assignment));
    snapshot.clusters.insert(name, Arc::new(cluster));
}

fn choose(times: u32, load_balancer: LoadBalancer, per_request: bool) -> Outcome {
    let mut snapshot = Snapshot::default();
    for index in 0..CLUSTERS {
        let cluster = Cluster {
            name: format!("service-{index:02}.default.dc1.internal").into(),
            load_balancer: load_balancer.clone(),
            ..Cluster::default()
        };
        let addresses = (1..=10).map(|host| Address::Socket(([10, 0, index, host], 20_000).into()));
        add(&mut snapshot, cluster, addresses);
    }
    let names: Vec<_> = snapshot.clusters.keys().cloned().collect();
    let mut names = names.iter().cycle();
    let clusters = ClusterManager::new(Limits::default(), true);
    clusters.apply(&snapshot, &mut ConfigCache::default());
    let mut hash = 0_u64;
    let mut missed = 0;
    repeat(times, || {
        // Far apart: the ring is searched everywhere.
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let resolved = names.next().and_then(|name| clusters.resolve(black_box(name)));
        let chosen = resolved
            .as_ref()
            .and_then(|resolved| resolved.choose(black_box(hash), per_request, |_| false));
        missed += u32::from(black_box(chosen).is_none());
    });
    if missed > 0 {
        return Err("no endpoint".into());
    }
    Ok(())
}
