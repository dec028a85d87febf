//! Bytes from app to app through two sidecars: both ways, half-closed, reset, many at once.

use attache_tests::Mesh;

use crate::ATTACHE;

#[tokio::test]
async fn two_sidecars_carry_lines_both_ways() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.eventually_hears("api", "api-1").await, "api-1: hi");
    let mut line = web.dial("api").await;
    for i in 0..100 {
        assert_eq!(line.ask(&i.to_string()).await.unwrap(), format!("api-1: {i}"));
    }
}
