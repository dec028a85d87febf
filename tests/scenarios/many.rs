//! As many upstreams as Consul allows no connections for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use attache::demo::standin::{Registration, Sidecar, StandInOptions};
use attache_tests::{Mesh, eventually, within};

use crate::ATTACHE;

const UPSTREAMS: usize = 300;
/// Consul's own limit for an address.
const ALLOWED: usize = 200;
/// A poll comes every ten seconds at the latest; twice that is late.
const NOTICED: Duration = Duration::from_secs(20);

/// The CPU time that a process has used, user and system.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Fields 14 and 15; the second one, in parentheses, may have blanks.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
    // Linux counts in hundredths of a second wherever this runs.
    Duration::from_millis(ticks * 10)
}

#[tokio::test]
async fn three_hundred_upstreams_stay_below_consuls_limit() {
    let options = StandInOptions {
        max_connections: Some(ALLOWED),
        ..StandInOptions::default()
    };
    let mesh = Mesh::with(ATTACHE, options).await;
    let mut web = mesh.service("web");
    for number in 0..UPSTREAMS - 2 {
        let name = format!("many-{number:03}");
        // Nobody dials them: an endpoint each is enough.
        let registration = Registration::new(&name, 1).sidecar(Sidecar::new().port(1));
        mesh.consul.register(&registration).unwrap();
        web = web.upstream(&name);
    }
    // The names of the first and of the last: whatever the order, few get a blocking query.
    let first = mesh.service("aaa").start().await;
    let last = mesh.service("zzz").start().await;

    let (most, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let watching = tokio::spawn({
        let (consul, most, stop) = (mesh.consul.clone(), Arc::clone(&most), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(consul.open_connections(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });

    let web = web.upstream("aaa").upstream("zzz").start().await;
    let said = web.sidecar.says(&["further queries poll"]).await;
    assert!(said.contains("poll_seconds="), "{said}");
    web.eventually_hears("aaa", "aaa-1").await;
    web.eventually_hears("zzz", "zzz-1").await;
    // Every upstream's endpoints are known, not only those of the ones that are dialled.
    within(NOTICED, "all endpoints are known", || async {
        let dump = web.admin("/clusters?format=json").await;
        let dump: serde_json::Value = serde_json::from_str(&dump).ok()?;
        let clusters = dump["cluster_statuses"].as_array()?;
        let known = clusters.iter().filter(|cluster| {
            cluster["host_statuses"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        });
        (known.count() == UPSTREAMS + 1).then_some(())
    })
    .await;

    // Another instance in the place of the old one, behind a blocking query and behind a poll.
    for (name, old) in [("aaa", first), ("zzz", last)] {
        let id = format!("{name}-2");
        let _new = mesh.service(name).id(&id).start().await;
        mesh.consul.deregister(&old.id);
        within(NOTICED, "another instance is dialled", || async {
            (web.ask(name, "hi").await == format!("{id}: hi")).then_some(())
        })
        .await;
    }

    let pid = web.sidecar.pid().unwrap();
    let idle = Duration::from_secs(3);
    let before = cpu(pid);
    tokio::time::sleep(idle).await;
    let used = cpu(pid) - before;
    println!("idle with {UPSTREAMS} upstreams: {used:?} of CPU in {idle:?}");
    assert!(used < idle / 4, "{used:?} of CPU in {idle:?}");

    stop.store(true, Ordering::Relaxed);
    watching.await.unwrap();
    let most = most.load(Ordering::Relaxed);
    println!("most connections at once: {most}");
    assert!(most < ALLOWED, "{most} connections");
    let refused = web.metric("attache_consul_requests_total", &["status_429"]).await;
    assert_eq!(refused, 0.0);
    eventually("nothing fails", || async {
        let failing = web.metric("attache_consul_failing_since_seconds", &[]).await;
        (failing == 0.0).then_some(())
    })
    .await;
}
