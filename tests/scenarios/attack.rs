//! Ways around a denial that were found by attack, each of which must stay closed.

use std::io::ErrorKind;

use attache::demo::standin::{Action, Registration, Sidecar};
use attache_tests::bytes::to_end;
use attache_tests::{Member, Mesh, free_port};
use tokio::time::timeout;

use crate::ATTACHE;

/// An api, a web that dials it, and the mesh they are of.
async fn pair() -> (Mesh, Member, Member) {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    (mesh, api, web)
}

#[tokio::test]
async fn a_denial_cuts_connections_of_a_public_address_that_is_no_more() {
    let (mesh, api, web) = pair().await;
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("hi").await.unwrap(), "api-1: hi");
    let moved = Registration::new("api", api.app.address.port())
        .id(&api.id)
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(free_port()));
    mesh.consul.register(&moved).unwrap();
    api.sidecar.says(&["listener removed"]).await;
    assert_eq!(line.ask("still here").await.unwrap(), "api-1: still here");

    mesh.consul.set_intention("web", "api", Action::Deny);
    let (_, ended) = timeout(attache_tests::PATIENCE, to_end(line.stream()))
        .await
        .expect("the denied connection goes on");
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let cut = api.sidecar.says(&["access", "cut: newer rules deny it"]).await;
    assert!(cut.contains("web -> api: deny"), "{cut}");
}
