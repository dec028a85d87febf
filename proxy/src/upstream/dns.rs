//! Host names of a cluster, resolved again and again in the background (Envoy's `STRICT_DNS` and
//! `LOGICAL_DNS`).
//!
//! One task a cluster and worker, by the system's resolver (`getaddrinfo` on a thread of the runtime's
//! pool): `/etc/hosts`, search domains and all. It owns the answers; the cluster owns the endpoints made of
//! them. A failure changes nothing: the last good answer stays.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::ClusterState;
use crate::model::cluster::{Dns, DnsFamily};
use crate::model::listener::Address;
use crate::model::{ClusterLoadAssignment, Endpoint, Target};

/// A refresh of 0 would spin, and no resolver likes more.
const SHORTEST_REFRESH: Duration = Duration::from_millis(100);

/// A host name and a port.
type Host = (Arc<str>, u16);

/// Resolves the hosts of `assignment` until the cluster is gone; each answer is taken at once.
pub(super) async fn resolve<L, F>(
    cluster: Weak<ClusterState>,
    assignment: Arc<ClusterLoadAssignment>,
    dns: Dns,
    lookup: L,
) where
    L: Fn(Host) -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let hosts = hosts(&assignment);
    let mut answers = HashMap::new();
    let mut failing = HashSet::new();
    loop {
        for host in &hosts {
            let answer = lookup(host.clone()).await.and_then(|found| select(found, dns));
            let Some(cluster) = cluster.upgrade() else { return };
            let changed = answer
                .as_ref()
                .is_ok_and(|found| answers.get(host) != Some(found));
            count(&cluster, answer.as_ref().map(|_| changed));
            match answer {
                Ok(addresses) => {
                    failing.remove(host);
                    if changed {
                        tracing::debug!(cluster = %cluster.name, host = %host.0, ?addresses, "resolved");
                        answers.insert(host.clone(), addresses);
                        cluster.resolved(&expand(&assignment, &answers), &names(&answers));
                    }
                }
                Err(error) => {
                    // Said once, not every few seconds.
                    if failing.insert(host.clone()) {
                        tracing::warn!(cluster = %cluster.name, host = %host.0, %error, "a host name cannot be resolved; the last good answer stays");
                    }
                    cluster.unresolved(format!("{} cannot be resolved: {error}", host.0));
                }
            }
        }
        if hosts.is_empty() {
            let Some(cluster) = cluster.upgrade() else { return };
            cluster.resolved(&assignment, &HashMap::new());
            return;
        }
        // A tenth of jitter: the sidecars of a host, started together, do not ask together for ever.
        let refresh = dns.refresh.max(SHORTEST_REFRESH);
        tokio::time::sleep(refresh.mul_f64(1.0 + fastrand::f64() / 10.0)).await;
    }
}

/// Counts an answer, and whether it changed anything.
fn count(cluster: &ClusterState, answer: Result<bool, &io::Error>) {
    let Some(metrics) = cluster.dns_metrics() else {
        return;
    };
    metrics.attempt.increment(1);
    match answer {
        Ok(changed) => {
            metrics.success.increment(1);
            metrics.no_rebuild.increment(u64::from(!changed));
        }
        // Of what was found no address is wanted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => metrics.empty.increment(1),
        Err(_) => metrics.failure.increment(1),
    }
}

/// Asks the system's resolver.
pub(super) async fn system((host, port): Host) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((&*host, port)).await?.collect())
}

fn hosts(assignment: &ClusterLoadAssignment) -> Vec<Host> {
    let mut hosts = Vec::new();
    for endpoint in &assignment.endpoints {
        if let Target::Host { host, port } = &endpoint.address {
            let host = (Arc::clone(host), *port);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    hosts
}

/// The addresses of an answer that the cluster wants.
fn select(found: Vec<SocketAddr>, dns: Dns) -> io::Result<Vec<SocketAddr>> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.iter().copied().partition(SocketAddr::is_ipv4);
    let mut wanted = match dns.family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::Auto if v6.is_empty() => v4,
        DnsFamily::Auto => v6,
        DnsFamily::V4Preferred if v4.is_empty() => v6,
        DnsFamily::V4Preferred => v4,
        DnsFamily::All => found,
    };
    if dns.strict {
        // In one order, so that a resolver that rotates its answers makes no change.
        wanted.sort_unstable();
        wanted.dedup();
    } else {
        wanted.truncate(1);
    }
    if wanted.is_empty() {
        let family = dns.family;
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("it has no address of the family asked for ({family:?})"),
        ));
    }
    Ok(wanted)
}

/// The assignment with addresses for host names; those without an answer are left out.
fn expand(
    assignment: &ClusterLoadAssignment,
    answers: &HashMap<Host, Vec<SocketAddr>>,
) -> ClusterLoadAssignment {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for endpoint in &assignment.endpoints {
        let Target::Host { host, port } = &endpoint.address else {
            endpoints.push(endpoint.clone());
            continue;
        };
        let found = answers.get(&(Arc::clone(host), *port));
        endpoints.extend(found.into_iter().flatten().map(|address| Endpoint {
            address: Target::Address(Address::Socket(canonical(*address))),
            hostname: endpoint.hostname.clone().or_else(|| Some(Arc::clone(host))),
            ..endpoint.clone()
        }));
    }
    ClusterLoadAssignment {
        endpoints,
        ..assignment.clone()
    }
}

/// The host name of each address, for who shows it; of several the first.
fn names(answers: &HashMap<Host, Vec<SocketAddr>>) -> HashMap<Target, Arc<str>> {
    let mut hosts: Vec<_> = answers.iter().collect();
    hosts.sort_unstable_by(|a, b| b.cmp(a));
    let of = |(host, found): (&Host, &Vec<SocketAddr>)| {
        let name = Arc::clone(&host.0);
        let target = |address: &SocketAddr| Target::Address(Address::Socket(canonical(*address)));
        found
            .iter()
            .map(|address| (target(address), Arc::clone(&name)))
            .collect::<Vec<_>>()
    };
    hosts.into_iter().flat_map(of).collect()
}

/// An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) is the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => (v4, address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::model::{Cluster, ClusterKind};
    use crate::upstream::cluster::Availability;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn which_addresses_are_wanted() {
        let (a, b, six) = ("10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80");
        for (family, strict, found, wanted) in [
            (DnsFamily::Auto, true, vec![b, six, a], Some(vec![six])),
            (DnsFamily::Auto, true, vec![b, a, b], Some(vec![a, b])),
            (DnsFamily::V4Only, true, vec![b, six, a], Some(vec![a, b])),
            (DnsFamily::V4Only, true, vec![six], None),
            (DnsFamily::V6Only, true, vec![a], None),
            (DnsFamily::V4Preferred, true, vec![six, b], Some(vec![b])),
            (DnsFamily::V4Preferred, true, vec![six], Some(vec![six])),
            (DnsFamily::All, true, vec![six, b, a], Some(vec![a, b, six])),
            (DnsFamily::All, false, vec![b, six, a], Some(vec![b])),
            (DnsFamily::Auto, false, vec![b, six, a], Some(vec![six])),
            (DnsFamily::All, true, vec![], None),
        ] {
            let dns = Dns {
                strict,
                refresh: Duration::from_secs(5),
                family,
            };
            let selected = select(addresses(&found), dns).ok();
            assert_eq!(
                selected,
                wanted.map(|wanted| addresses(&wanted)),
                "{family:?} {found:?}"
            );
        }
    }

    fn assignment(host: &str) -> Arc<ClusterLoadAssignment> {
        let endpoint = Endpoint {
            address: Target::Host {
                host: host.into(),
                port: 80,
            },
            weight: 7,
            healthy: true,
            priority: 0,
            hostname: None,
        };
        Arc::new(ClusterLoadAssignment {
            endpoints: vec![endpoint],
            ..ClusterLoadAssignment::default()
        })
    }

    fn known(cluster: &Rc<ClusterState>) -> Vec<(String, u32)> {
        let endpoints = cluster.endpoints();
        endpoints
            .endpoints()
            .map(|e| (e.address.to_string(), e.weight.get()))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_become_endpoints_and_a_failure_changes_nothing() {
        let dns = Dns {
            strict: true,
            refresh: Duration::from_secs(5),
            family: DnsFamily::V4Only,
        };
        let cluster = ClusterState::for_tests(Cluster {
            kind: ClusterKind::Dns(dns),
            ..Cluster::default()
        });
        let failure = || Err(io::Error::other("SERVFAIL"));
        let script = RefCell::new(
            vec![
                failure(),
                Ok(addresses(&["10.0.0.1:80", "10.0.0.2:80"])),
                failure(),
                Ok(addresses(&["10.0.0.2:80"])),
            ]
            .into_iter(),
        );
        let lookup = |_| {
            let answer = script.borrow_mut().next();
            async { answer.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())) }
        };
        let mut resolving = std::pin::pin!(resolve(
            Rc::downgrade(&cluster),
            assignment("db.local"),
            dns,
            lookup
        ));
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, &mut resolving).await.is_err());
        let Availability::Unknown(why) = cluster.availability() else {
            panic!("a first failure is not an answer")
        };
        assert!(why.contains("db.local cannot be resolved: SERVFAIL"), "{why}");
        let both = [("10.0.0.1:80".to_owned(), 7), ("10.0.0.2:80".to_owned(), 7)];
        for expected in [&both[..], &both[..], &both[1..]] {
            // One refresh and its jitter.
            assert!(
                tokio::time::timeout(second * 11 / 2, &mut resolving)
                    .await
                    .is_err()
            );
            assert_eq!(known(&cluster), expected);
        }
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_this_host() {
        let found = system(("localhost".into(), 80)).await.unwrap();
        assert!(
            found
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 80)
        );
        assert!(!found.is_empty());
    }
}
