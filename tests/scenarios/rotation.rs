//! New leaves and new roots under load: the next handshake uses them, and no connection notices.

use std::time::Duration;

use attache::demo::standin::IssueOptions;
use attache_tests::mesh::get;
use attache_tests::{Load, Member, Mesh, eventually, peer};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use crate::ATTACHE;

/// Leaves that are renewed in the committed test.
const LEAVES: usize = 100;
const ROOTS: usize = 5;
/// Short connections at the same time.
const PARALLEL: usize = 4;
/// After each answer: the machine is shared with other scenarios.
const PAUSE: Duration = Duration::from_millis(10);

/// The leaf that Consul has for a service.
async fn leaf(mesh: &Mesh, service: &str) -> Value {
    let path = format!("/v1/agent/connect/ca/leaf/{service}");
    let (_, body) = get(mesh.consul.address(), &path).await.unwrap();
    serde_json::from_str(&body).unwrap()
}

/// The serial numbers that a sidecar's `/certs` has under `key`, of every pair of leaf and roots.
async fn serials(member: &Member, key: &str) -> Vec<String> {
    let Ok(certs) = serde_json::from_str::<Value>(&member.admin("/certs").await) else {
        return Vec::new();
    };
    let pairs = certs["certificates"].as_array().into_iter().flatten();
    let listed = pairs.flat_map(|pair| pair[key].as_array().into_iter().flatten());
    let plain = |one: &Value| one["serial_number"].as_str().unwrap_or_default().to_owned();
    listed.map(plain).collect()
}

/// Waits until the sidecar uses the leaf that Consul has, and no other.
async fn uses_the_newest_leaf(mesh: &Mesh, member: &Member, service: &str) -> String {
    let leaf = leaf(mesh, service).await;
    let newest = leaf["SerialNumber"].as_str().unwrap().replace(':', "");
    eventually(&format!("{service} uses the leaf {newest}"), || async {
        let used = serials(member, "cert_chain").await;
        (!used.is_empty() && used.iter().all(|one| *one == newest)).then_some(())
    })
    .await;
    newest
}

async fn pair() -> (Mesh, Member, Member) {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api");
    let web = mesh.service("web").upstream("api");
    let (api, web) = tokio::join!(api.start(), web.start());
    web.eventually_hears("api", "api-1").await;
    (mesh, api, web)
}

#[tokio::test]
async fn a_hundred_leaf_rotations_under_load_fail_no_request() {
    let (mesh, api, web) = pair().await;
    let load = Load::start(web.upstreams["api"], "api-1", PARALLEL, PAUSE);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..LEAVES {
        mesh.consul.rotate_leaf("api").unwrap();
        mesh.consul.rotate_leaf("web").unwrap();
        let (of_api, of_web) = tokio::join!(
            uses_the_newest_leaf(&mesh, &api, "api"),
            uses_the_newest_leaf(&mesh, &web, "web"),
        );
        seen.extend([of_api, of_web]);
    }
    load.goes_on().await;
    let figures = load.finish_without_failure(1000).await;
    assert_eq!(seen.len(), 2 * LEAVES);
    println!("{LEAVES} leaf rotations of two services: {figures:?}");
}

#[tokio::test]
async fn five_root_rotations_under_load_fail_no_request() {
    let (mesh, api, web) = pair().await;
    let load = Load::start(web.upstreams["api"], "api-1", PARALLEL, PAUSE);
    for _ in 0..ROOTS {
        let old = serials(&api, "ca_cert").await;
        mesh.consul.rotate_root().unwrap();
        // Both are trusted for a while, and the leaves are of the new one.
        for (member, service) in [(&api, "api"), (&web, "web")] {
            uses_the_newest_leaf(&mesh, member, service).await;
            eventually(&format!("{service} knows two roots"), || async {
                let roots = serials(member, "ca_cert").await;
                (roots.len() >= 2 && old.iter().all(|one| roots.contains(one))).then_some(())
            })
            .await;
        }
        load.goes_on().await;
        mesh.consul.drop_old_roots();
        for member in [&api, &web] {
            eventually(&format!("{} forgets the old root", member.id), || async {
                let roots = serials(member, "ca_cert").await;
                (!roots.is_empty() && old.iter().all(|one| !roots.contains(one))).then_some(())
            })
            .await;
        }
        load.goes_on().await;
    }
    let figures = load.finish_without_failure(20).await;
    println!("{ROOTS} root rotations: {figures:?}");
}

/// What the admin API says is one thing, what a handshake presents is another.
#[tokio::test]
async fn the_next_handshake_presents_the_new_leaf() {
    let (mesh, api, web) = pair().await;
    let caller = mesh.consul.issue("web", &IssueOptions::default()).unwrap();
    let presented = || async {
        let stream = peer::connect(api.public, Some(&caller), rustls::DEFAULT_VERSIONS).await;
        let stream = stream.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    for _ in 0..3 {
        let before = presented().await;
        let mut line = web.dial("api").await;
        assert_eq!(line.ask("before").await.unwrap(), "api-1: before");
        mesh.consul.rotate_leaf("api").unwrap();
        uses_the_newest_leaf(&mesh, &api, "api").await;
        let leaf = leaf(&mesh, "api").await;
        let newest = CertificateDer::from_pem_slice(leaf["CertPEM"].as_str().unwrap().as_bytes()).unwrap();
        assert_ne!(newest, before);
        eventually("a handshake presents the new leaf", || async {
            (presented().await == newest).then_some(())
        })
        .await;
        assert_eq!(line.ask("after").await.unwrap(), "api-1: after");
    }
}
