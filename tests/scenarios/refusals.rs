//! Who is kept out: each is refused, logged with a reason that names it, and counted.

use attache::demo::standin::{Action, IssueOptions, Issued, Registration, Sidecar, StandIn, StandInOptions};
use attache_tests::bytes::{pattern, to_end};
use attache_tests::{Member, Mesh, eventually, peer};
use rustls::version::{TLS12, TLS13};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ATTACHE;

/// A mesh with one service that nobody but the scenario itself dials.
async fn api() -> (Mesh, Member) {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    (mesh, api)
}

/// Dials with `issued` over both TLS versions; each time the sidecar must refuse, say why with all of
/// `words`, and count it as a failure of `kind`. The app must hear nothing.
async fn refused(api: &Member, issued: Option<&Issued>, kind: &str, words: &[&str]) {
    for (count, version) in [&TLS12, &TLS13].into_iter().enumerate() {
        let lines = api.sidecar.lines();
        let answer = peer::ask(api.public, issued, &[version]).await;
        assert!(answer.is_err(), "{:?} was let in: {answer:?}", version.version);
        let line = api.sidecar.says_after(lines, &["access", "flags=\"DPE\""]).await;
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line}");
        }
        let counted = (count + 1) as f64;
        let name = format!("envoy_listener_ssl_fail_verify_{kind}");
        assert_eq!(api.metric(&name, &[]).await, counted);
        assert_eq!(api.metric("attache_downstream_cx_ended", &["DPE"]).await, counted);
    }
    assert_eq!(api.app.accepted(), 0);
}

#[tokio::test]
async fn the_scenarios_own_peer_is_let_in_with_a_right_certificate() {
    let (mesh, api) = api().await;
    for intermediates in [0, 1] {
        let options = IssueOptions {
            intermediates,
            ..IssueOptions::default()
        };
        let web = mesh.consul.issue("web", &options).unwrap();
        for version in [&TLS12, &TLS13] {
            let answer = peer::ask(api.public, Some(&web), &[version]).await;
            assert_eq!(answer.unwrap(), "api-1: hi");
        }
    }
    assert_eq!(api.metric("envoy_rbac_allowed", &[]).await, 4.0);
}

#[tokio::test]
async fn plaintext_is_refused() {
    let (_mesh, api) = api().await;
    let mut stream = TcpStream::connect(api.public).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        .await
        .unwrap();
    let (heard, _) = to_end(&mut stream).await;
    assert!(heard.is_empty(), "who speaks no TLS gets none: {heard:?}");
    let line = api.sidecar.says(&["access", "flags=\"DPE\""]).await;
    assert!(line.contains("not TLS: plaintext"), "{line}");
    let errors = api.metric("envoy_listener_ssl_connection_error", &[]);
    assert_eq!(errors.await, 1.0);
    assert_eq!(api.app.accepted(), 0);
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let (_mesh, api) = api().await;
    refused(&api, None, "no_cert", &["no client certificate was presented"]).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (_mesh, api) = api().await;
    let stranger = StandIn::start(StandInOptions::default()).await.unwrap();
    let web = stranger.issue("web", &IssueOptions::default()).unwrap();
    refused(
        &api,
        Some(&web),
        "error",
        &["the certificate is of another authority"],
    )
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let (mesh, api) = api().await;
    let web = mesh.consul.issue("web", &IssueOptions::expired()).unwrap();
    refused(&api, Some(&web), "error", &["the certificate has expired"]).await;
}

#[tokio::test]
async fn a_certificate_of_tomorrow_is_refused() {
    let (mesh, api) = api().await;
    let options = IssueOptions {
        not_before: 3_600,
        ..IssueOptions::default()
    };
    let web = mesh.consul.issue("web", &options).unwrap();
    refused(&api, Some(&web), "error", &["the certificate is not valid yet"]).await;
}

#[tokio::test]
async fn a_right_chain_with_a_uri_of_another_trust_domain_is_refused() {
    let (mesh, api) = api().await;
    let uri = "spiffe://elsewhere.consul/ns/default/dc/dc1/svc/web";
    let options = IssueOptions {
        uri: Some(uri.to_owned()),
        ..IssueOptions::default()
    };
    let web = mesh.consul.issue("web", &options).unwrap();
    refused(&api, Some(&web), "error", &[uri, "is not of the trust domain"]).await;
}

#[tokio::test]
async fn a_right_chain_with_a_uri_that_is_no_spiffe_id_is_refused() {
    let (mesh, api) = api().await;
    let options = IssueOptions {
        uri: Some("https://web.example".to_owned()),
        ..IssueOptions::default()
    };
    let web = mesh.consul.issue("web", &options).unwrap();
    refused(
        &api,
        Some(&web),
        "error",
        &["the certificate's URI is no SPIFFE ID"],
    )
    .await;
}

#[tokio::test]
async fn a_tls_version_below_the_meshs_minimum_is_refused() {
    let mesh = Mesh::start(ATTACHE).await;
    let entry = json!({
        "Kind": "mesh",
        "TLS": { "Incoming": { "TLSMinVersion": "TLSv1_3" } },
    });
    mesh.consul.set_config_entry("mesh", "mesh", Some(entry));
    let api = mesh.service("api").start().await;
    let web = mesh.consul.issue("web", &IssueOptions::default()).unwrap();
    eventually("the minimum is in use", || async {
        api.admin("/config_dump")
            .await
            .contains("\"tls_minimum_protocol_version\": \"TLSv1_3\"")
            .then_some(())
    })
    .await;
    let answer = peer::ask(api.public, Some(&web), &[&TLS12]).await;
    assert!(answer.is_err(), "{answer:?}");
    api.sidecar
        .says(&["access", "flags=\"DPE\"", "no common TLS version"])
        .await;
    let answer = peer::ask(api.public, Some(&web), &[&TLS13]).await;
    assert_eq!(answer.unwrap(), "api-1: hi");
}

#[tokio::test]
async fn a_denied_spiffe_id_is_refused() {
    let mesh = Mesh::start(ATTACHE).await;
    mesh.consul.set_intention("web", "api", Action::Deny);
    let api = mesh.service("api").start().await;
    let web = mesh.consul.issue("web", &IssueOptions::default()).unwrap();
    let answer = peer::ask(api.public, Some(&web), &[&TLS13]).await;
    assert!(answer.is_err(), "{answer:?}");
    let line = api.sidecar.says(&["access", "flags=\"UAEX\""]).await;
    assert!(line.contains("denied by") && line.contains(&web.uri), "{line}");
    assert_eq!(api.metric("envoy_rbac_denied", &[]).await, 1.0);
    assert_eq!(api.app.accepted(), 0);
    let other = mesh.consul.issue("other", &IssueOptions::default()).unwrap();
    let answer = peer::ask(api.public, Some(&other), &[&TLS13]).await;
    assert_eq!(answer.unwrap(), "api-1: hi");
}

/// An instance of api that presents what it likes. web's sidecar must refuse it, say why with all of
/// `words`, and count it.
async fn impostor_refused(mesh: &Mesh, presented: &Issued, words: &[&str]) {
    let (listener, acceptor) = peer::listen(presented).await;
    let port = listener.local_addr().unwrap().port();
    let registration = Registration::new("api", 1)
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(port));
    mesh.consul.register(&registration).unwrap();
    let web = mesh.service("web").upstream("api").start().await;
    let mut client = web.dial("api").await.into_stream();
    client.write_all(b"a secret").await.unwrap();
    // rustls tells a server only after its own part whether the client took the certificate.
    match peer::accept(&listener, &acceptor).await {
        Ok(mut stream) => assert!(stream.read(&mut [0; 8]).await.is_err(), "the impostor hears"),
        Err(_refused) => {}
    }
    let (heard, ended) = to_end(&mut client).await;
    assert!(heard.is_empty() && ended.is_err());
    let line = web.sidecar.says(&["access", "flags=\"UF\""]).await;
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line}");
    }
    let failed = web
        .metric("envoy_cluster_upstream_cx_connect_fail", &["api."])
        .await;
    assert_eq!(failed, 1.0);
}

#[tokio::test]
async fn an_endpoint_with_another_services_certificate_is_refused() {
    let mesh = Mesh::start(ATTACHE).await;
    let db = mesh.consul.issue("db", &IssueOptions::default()).unwrap();
    let expected = format!("expected {}", mesh.consul.service_uri("api"));
    impostor_refused(&mesh, &db, &[&format!("the endpoint is {}", db.uri), &expected]).await;
}

#[tokio::test]
async fn an_endpoint_of_another_authority_is_refused() {
    let mesh = Mesh::start(ATTACHE).await;
    let stranger = StandIn::start(StandInOptions::default()).await.unwrap();
    let options = IssueOptions {
        uri: Some(mesh.consul.service_uri("api")),
        ..IssueOptions::default()
    };
    let api = stranger.issue("api", &options).unwrap();
    impostor_refused(&mesh, &api, &["the certificate is of another authority"]).await;
}

#[tokio::test]
async fn an_endpoint_with_an_expired_certificate_is_refused() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.consul.issue("api", &IssueOptions::expired()).unwrap();
    impostor_refused(&mesh, &api, &["the certificate has expired"]).await;
}

#[tokio::test]
async fn a_megabyte_of_random_bytes_to_every_port_leaves_it_serving() {
    let mesh = Mesh::start(ATTACHE).await;
    let _api = mesh.service("api").start().await;
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    for (seed, port) in [web.public, web.upstreams["api"], web.admin]
        .into_iter()
        .enumerate()
    {
        // Whole, and in the guise of a TLS record, so that more than the first check is reached.
        for disguise in [&b""[..], &[22, 3, 1, 64, 0, 1, 0, 63, 252, 3, 3]] {
            let bytes = [disguise, &pattern(seed as u64 + 8, 1 << 20)].concat();
            let (mut read, mut write) = TcpStream::connect(port).await.unwrap().into_split();
            // Whether all of it is taken, and what is answered, is up to the port.
            let writing = async {
                let _ = write.write_all(&bytes).await;
                let _ = write.shutdown().await;
            };
            tokio::join!(writing, async { drop(to_end(&mut read).await) });
        }
    }
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    assert!(web.admin("/ready").await.starts_with("LIVE"));
    let errors = web.metric("envoy_listener_ssl_connection_error", &[]);
    assert_eq!(errors.await, 2.0);
    let web_uri = mesh.consul.issue("other", &IssueOptions::default()).unwrap();
    let answer = peer::ask(web.public, Some(&web_uri), &[&TLS13]).await;
    assert_eq!(answer.unwrap(), "web-1: hi");
}
