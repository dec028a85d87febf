//! The parts of the names that Consul gives to clusters and upstreams, as tags.
//!
//! The same tags that Consul's own bootstrap file asks for by expressions, for a sidecar that has no
//! bootstrap file. A cluster is called `[<hash>~][<subset>.]<service>.<namespace>.[<partition>.]<datacenter>.
//! <routing type>.<trust domain>.consul`, one of a peer `<service>.<namespace>.<peer>.external.
//! <trust domain>.consul`, an upstream's filter `upstream.<service>.<namespace>.<partition>.<datacenter>`.

use std::ops::Range;

use super::well_known::{Found, Rule, any, of};

/// The rules, in the order of Consul's.
pub(super) const RULES: [Rule; 16] = [
    of("cluster", "consul.destination.custom_hash", |n| {
        cluster(n, |c| c.hash.clone())
    }),
    of("cluster", "consul.destination.service_subset", |n| {
        cluster(n, |c| c.subset.clone())
    }),
    of("cluster", "consul.destination.service", |n| {
        cluster(n, |c| c.service.clone())
    }),
    of("cluster", "consul.destination.namespace", |n| {
        cluster(n, |c| c.namespace.clone())
    }),
    of("cluster", "consul.destination.partition", |n| {
        local(n, |c| c.partition.clone())
    }),
    of("cluster", "consul.destination.datacenter", |n| {
        local(n, |c| c.datacenter.clone())
    }),
    of("cluster", "consul.destination.peer", peer),
    of("cluster", "consul.destination.routing_type", |n| {
        cluster(n, |c| c.routing_type.clone())
    }),
    of("cluster", "consul.destination.trust_domain", |n| {
        cluster(n, |c| c.trust_domain.clone())
    }),
    of("cluster", "consul.destination.target", |n| {
        cluster(n, |c| c.whole.start..c.datacenter.end)
    }),
    of("cluster", "consul.destination.full_target", |n| {
        cluster(n, |c| c.whole.start..c.trust_domain.end)
    }),
    any("consul.upstream.service", |n| {
        upstream(n, |u| Some(u.service.clone()))
    }),
    any("consul.upstream.datacenter", |n| {
        upstream(n, |u| (!u.peered).then(|| u.last.clone()))
    }),
    any("consul.upstream.peer", |n| {
        upstream(n, |u| u.peered.then(|| u.last.clone()))
    }),
    any("consul.upstream.namespace", |n| {
        upstream(n, |u| Some(u.namespace.clone()))
    }),
    any("consul.upstream.partition", |n| {
        upstream(n, |u| (!u.peered).then(|| u.partition.clone()))
    }),
];

/// Where the parts of a cluster's name are; absent ones are empty.
struct Cluster {
    /// With the dot that ends it.
    whole: Range<usize>,
    hash: Range<usize>,
    subset: Range<usize>,
    service: Range<usize>,
    namespace: Range<usize>,
    partition: Range<usize>,
    datacenter: Range<usize>,
    routing_type: Range<usize>,
    trust_domain: Range<usize>,
}

/// The words between dots from `start` to `end`, none of them empty.
fn words(name: &str, start: usize, end: usize) -> Option<Vec<Range<usize>>> {
    let mut at = start;
    let words: Vec<_> = name
        .get(start..end)?
        .split('.')
        .map(|word| {
            let range = at..at + word.len();
            at = range.end + 1;
            range
        })
        .collect();
    words.iter().all(|word| !word.is_empty()).then_some(words)
}

impl Cluster {
    fn parse(name: &str) -> Option<Self> {
        const END: &str = ".consul.";
        let mut start = "cluster.".len();
        if name.get(start..)?.starts_with("passthrough~") {
            start += "passthrough~".len();
        }
        let end = start + name.get(start..)?.find(END)?;
        let mut words = words(name, start, end)?;
        let none = start..start;
        let trust_domain = words.pop()?;
        let routing_type = words.pop()?;
        let datacenter = words.pop()?;
        let mut hash = none.clone();
        if let Some(at) = name[words.first()?.clone()].rfind('~').filter(|at| *at > 0) {
            hash = start..start + at;
            words[0].start += at + 1;
        }
        let (subset, service, namespace, partition) = match &*words {
            [service, namespace] => (none.clone(), service, namespace, none),
            [subset, service, namespace] => (subset.clone(), service, namespace, none),
            [subset, service, namespace, partition] => {
                (subset.clone(), service, namespace, partition.clone())
            }
            _ => return None,
        };
        Some(Self {
            whole: start..end + END.len(),
            hash,
            subset,
            service: service.clone(),
            namespace: namespace.clone(),
            partition,
            datacenter,
            routing_type,
            trust_domain,
        })
    }
}

fn cluster(name: &str, part: impl Fn(&Cluster) -> Range<usize>) -> Option<Found> {
    let cluster = Cluster::parse(name)?;
    Some(Found {
        value: part(&cluster),
        remove: cluster.whole,
    })
}

/// A part that only clusters of our own mesh have.
fn local(name: &str, part: impl Fn(&Cluster) -> Range<usize>) -> Option<Found> {
    let routing_type = Cluster::parse(name)?.routing_type;
    name[routing_type]
        .starts_with("internal")
        .then(|| cluster(name, part))
        .flatten()
}

fn peer(name: &str) -> Option<Found> {
    let routing_type = Cluster::parse(name)?.routing_type;
    (&name[routing_type] == "external")
        .then(|| cluster(name, |cluster| cluster.datacenter.clone()))
        .flatten()
}

/// Where the parts of an upstream's prefix are; absent ones are empty.
struct Upstream {
    /// With the dot that ends it.
    whole: Range<usize>,
    service: Range<usize>,
    namespace: Range<usize>,
    partition: Range<usize>,
    /// The datacenter, or the peer.
    last: Range<usize>,
    peered: bool,
}

impl Upstream {
    fn parse(name: &str) -> Option<Self> {
        let (first, rest) = name.split_once('.')?;
        if !matches!(first, "tcp" | "http") {
            return None;
        }
        let peered = rest.starts_with("upstream_peered.");
        let prefix = if peered { "upstream_peered." } else { "upstream." };
        rest.strip_prefix(prefix)?;
        let start = first.len() + 1 + prefix.len();
        let (head, _) = name.rsplit_once('.')?;
        let words = words(name, start, head.len())?;
        let most = if peered { 3 } else { 4 };
        let words = &words[..words.len().min(most)];
        let none = start..start;
        let (service, namespace, partition, last) = match words {
            [service, last] => (service, none.clone(), none, last),
            [service, namespace, last] => (service, namespace.clone(), none, last),
            [service, namespace, partition, last] => (service, namespace.clone(), partition.clone(), last),
            _ => return None,
        };
        Some(Self {
            whole: start..last.end + 1,
            service: service.clone(),
            namespace,
            partition,
            last: last.clone(),
            peered,
        })
    }
}

fn upstream(name: &str, part: impl Fn(&Upstream) -> Option<Range<usize>>) -> Option<Found> {
    let upstream = Upstream::parse(name)?;
    Some(Found {
        value: part(&upstream)?,
        remove: upstream.whole,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tags::{StatsConfig, TagRules};

    fn shown(name: &str) -> String {
        let rules = TagRules::new(&StatsConfig::consul()).unwrap();
        let extracted = rules.extract(name);
        let tags: Vec<String> = extracted
            .tags
            .iter()
            .map(|(tag, value)| format!("{}={value}", tag.rsplit('.').next().unwrap()))
            .collect();
        format!("{} {}", extracted.name, tags.join(" "))
    }

    #[test]
    fn the_parts_of_a_clusters_name() {
        assert_eq!(
            shown("cluster.api.default.dc1.internal.td.consul.upstream_cx_total"),
            "cluster.upstream_cx_total cluster_name=api custom_hash= service_subset= service=api \
             namespace=default partition= datacenter=dc1 routing_type=internal trust_domain=td \
             target=api.default.dc1 full_target=api.default.dc1.internal.td"
        );
        assert_eq!(
            shown("cluster.failover-target~0~v1.api.ns.part.dc2.internal-v1.td.consul.x.y"),
            "cluster.x.y cluster_name=failover-target~0~v1 custom_hash=failover-target~0 service_subset=v1 \
             service=api namespace=ns partition=part datacenter=dc2 routing_type=internal-v1 trust_domain=td \
             target=failover-target~0~v1.api.ns.part.dc2 \
             full_target=failover-target~0~v1.api.ns.part.dc2.internal-v1.td"
        );
        assert_eq!(
            shown("cluster.api.default.cloud.external.td.consul.x"),
            "cluster.x cluster_name=api custom_hash= service_subset= service=api namespace=default \
             peer=cloud routing_type=external trust_domain=td target=api.default.cloud \
             full_target=api.default.cloud.external.td"
        );
        assert_eq!(shown("cluster.local_app.x"), "cluster.x cluster_name=local_app");
        assert_eq!(shown("cluster.a.consul.x"), "cluster.consul.x cluster_name=a");
    }

    #[test]
    fn the_parts_of_an_upstreams_prefix() {
        assert_eq!(
            shown("tcp.upstream.api.ns.part.dc1.x"),
            "tcp.x service=api datacenter=dc1 namespace=ns partition=part tcp_prefix=upstream"
        );
        assert_eq!(
            shown("http.upstream_peered.api.ns.cloud.x"),
            "http.x service=api peer=cloud namespace=ns http_conn_manager_prefix=upstream_peered"
        );
        assert_eq!(shown("tcp.public_listener.x"), "tcp.x tcp_prefix=public_listener");
        assert_eq!(shown("tcp.upstream.api.x"), "tcp.api.x tcp_prefix=upstream");
    }
}
