//! Instances that come, go, die and return, and what connections see of it.

use std::time::{Duration, Instant};

use attache::demo::standin::{Fault, Health, Registration, Sidecar};
use attache_tests::app::Line;
use attache_tests::{Member, Mesh, eventually, free_port};

use crate::ATTACHE;

/// Waits until web's sidecar counts no connection to api any more.
async fn idle(web: &Member) {
    eventually("web has no connection to api", || async {
        let active = web.metric("envoy_cluster_upstream_cx_active", &["api."]).await;
        (active == 0.0).then_some(())
    })
    .await;
}

/// Waits until a connection of web has waited for an endpoint, `count` in all.
async fn waited(web: &Member, count: usize) {
    eventually("connections wait for an endpoint", || async {
        let waited = web.metric("attache_cluster_waited", &["api."]).await;
        (waited >= count as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn instances_come_and_go_while_a_connection_lives_on() {
    let mesh = Mesh::start(ATTACHE).await;
    let first = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    let mut lasting = web.dial("api").await;
    assert_eq!(lasting.ask("one").await.unwrap(), "api-1: one");

    let second = mesh.service("api").id("api-2").start().await;
    web.eventually_hears("api", "api-2").await;
    assert_eq!(lasting.ask("two").await.unwrap(), "api-1: two");

    // The instance that the connection is on leaves the catalog; its process still runs.
    mesh.consul.deregister(&first.id);
    eventually("nothing new goes to api-1", || async {
        let endpoints = web.admin("/clusters").await;
        (!endpoints.contains(&first.public.to_string())).then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(web.ask("api", "hi").await, "api-2: hi");
    }
    assert_eq!(lasting.ask("three").await.unwrap(), "api-1: three");

    let third = mesh.service("api").id("api-3").start().await;
    web.eventually_hears("api", "api-3").await;
    mesh.consul.set_health(&second.id, Health::Critical);
    mesh.consul.set_health(&third.id, Health::Critical);
    eventually("api has no healthy instance", || async {
        (web.admin("/clusters").await.matches("/failed_eds_health").count() == 2).then_some(())
    })
    .await;
    assert_eq!(lasting.ask("four").await.unwrap(), "api-1: four");
}

#[tokio::test]
async fn connections_go_to_the_instance_with_the_fewest() {
    let mesh = Mesh::start(ATTACHE).await;
    let members = [
        mesh.service("api").start().await,
        mesh.service("api").id("api-2").start().await,
    ];
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    web.eventually_hears("api", "api-2").await;
    idle(&web).await;
    let before = members.each_ref().map(|member| member.app.accepted());
    let mut lines = Vec::new();
    for _ in 0..10 {
        let mut line = web.dial("api").await;
        line.ask("hi").await.unwrap();
        lines.push(line);
    }
    for (member, before) in members.iter().zip(before) {
        assert_eq!(member.app.accepted() - before, 5, "{}", member.id);
    }
}

#[tokio::test]
async fn a_connection_before_the_first_endpoints_waits_for_them() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let health = "/v1/health/connect/api";
    mesh.consul.fail_path_with(health, Some(Fault::Status(500)));
    let web = mesh.service("web").upstream("api").start().await;
    let mut line = web.dial("api").await;
    let asked = tokio::spawn(async move { line.ask("hi").await });
    waited(&web, 1).await;
    assert!(!asked.is_finished());
    mesh.consul.fail_path_with(health, None);
    assert_eq!(asked.await.unwrap().unwrap(), "api-1: hi");
}

#[tokio::test]
async fn a_redeploy_of_the_only_instance_fails_no_connection() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;

    mesh.consul.deregister(&api.id);
    eventually("web knows no instance", || async {
        let endpoints = web.admin("/clusters").await;
        (!endpoints.contains(&api.public.to_string())).then_some(())
    })
    .await;
    let address = web.upstreams["api"];
    let asking: Vec<_> = (0..5)
        .map(|_| tokio::spawn(async move { Line::connect(address).await?.ask("hi").await }))
        .collect();
    waited(&web, 5).await;
    mesh.consul.register(&api.registration).unwrap();
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), "api-1: hi");
    }
}

#[tokio::test]
async fn an_instance_that_does_not_return_fails_connections_after_the_window_of_a_redeploy() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    mesh.consul.set_health(&api.id, Health::Critical);
    eventually("api has no healthy instance", || async {
        (web.admin("/clusters").await.contains("/failed_eds_health")).then_some(())
    })
    .await;
    assert_eq!(web.ask("api", "hi").await, "ConnectionReset");
    let line = web.sidecar.says(&["access", "flags=\"UH\""]).await;
    assert!(
        line.contains("the last one went 15.") && line.contains("; waited 1"),
        "{line}"
    );
}

#[tokio::test]
async fn an_upstream_that_never_had_an_instance_fails_at_once() {
    let mesh = Mesh::start(ATTACHE).await;
    let web = mesh.service("web").upstream("ghost").start().await;
    // Until Consul has answered that there is none, a connection waits; from then on none does.
    assert_eq!(web.ask("ghost", "hi").await, "ConnectionReset");
    let began = Instant::now();
    assert_eq!(web.ask("ghost", "hi").await, "ConnectionReset");
    // Well below the connect timeout of 5 s, for which a connection with a hope would wait.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let line = web.sidecar.says(&["access", "ghost", "since the start"]).await;
    assert!(line.contains("flags=\"UH\""), "{line}");
    let refused = web
        .metric("envoy_cluster_upstream_cx_none_healthy", &["ghost"])
        .await;
    assert_eq!(refused, 2.0);
}

#[tokio::test]
async fn a_registered_but_dead_instance_is_stepped_over() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let dead = Registration::new("api", free_port())
        .id("api-dead")
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(free_port()));
    mesh.consul.register(&dead).unwrap();
    let web = mesh.service("web").upstream("api").start().await;
    // Each draws one of two: sooner or later the dead one is drawn, and nobody notices.
    eventually("the dead instance is tried", || async {
        assert_eq!(web.ask("api", "hi").await, "api-1: hi");
        let failed = web
            .metric("envoy_cluster_upstream_cx_connect_fail", &["api."])
            .await;
        (failed > 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_instance_alone_is_named_in_the_log() {
    let mesh = Mesh::start(ATTACHE).await;
    let port = free_port();
    let dead = Registration::new("api", free_port())
        .id("api-dead")
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(port));
    mesh.consul.register(&dead).unwrap();
    let web = mesh.service("web").upstream("api").start().await;
    assert_eq!(web.ask("api", "hi").await, "ConnectionReset");
    let line = web.sidecar.says(&["access", "flags=\"UF\""]).await;
    assert!(
        line.contains(&format!("127.0.0.1:{port}")) && line.contains("refused"),
        "{line}"
    );
}
