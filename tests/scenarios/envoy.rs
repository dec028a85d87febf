//! Both directions against a real Envoy: the other implementation of the same mesh.

use std::io::ErrorKind;

use attache::demo::standin::{Action, IssueOptions, Registration, Sidecar};
use attache_tests::app::Line;
use attache_tests::bytes::{AppEnds, dial_to_end, exchange, pattern, reset, to_end};
use attache_tests::envoy::{Envoy, Identity, Version};
use attache_tests::{App, Member, Mesh, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ATTACHE;

/// Both, since Envoy's clients offer 1.2 by default and its servers take 1.3.
const VERSIONS: [Version; 2] = [Version::V1_2, Version::V1_3];

/// A mesh of one Attaché and one Envoy, whose api the scenario serves by hand.
struct Pair {
    mesh: Mesh,
    /// The Attaché of the two.
    attache: Member,
    envoy: Process,
    /// The app behind an Envoy; behind an Attaché it is the member's own.
    app: Option<App>,
    /// Where the client dials.
    dial: std::net::SocketAddr,
}

impl Pair {
    /// A connection through both: the client's end and the app's, proven by a byte each way.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let mut client = Line::connect(self.dial).await.unwrap().into_stream();
        client.write_all(b"?").await.unwrap();
        let mut app = self.app.as_ref().unwrap_or(&self.attache.app).accept().await;
        let mut byte = [0];
        app.read_exact(&mut byte).await.unwrap();
        app.write_all(b"!").await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        (client, app)
    }
}

/// client -> Attaché -> mTLS -> Envoy -> app. `None` without an Envoy.
async fn to_envoy(version: Version) -> Option<Pair> {
    let mesh = Mesh::start(ATTACHE).await;
    let app = App::by_hand().await;
    let issued = mesh.consul.issue("api", &IssueOptions::default()).unwrap();
    let identity = Identity {
        issued: &issued,
        roots_pem: &mesh.consul.roots_pem(),
        version,
    };
    let envoy = Envoy::inbound(&identity, app.address).await?;
    let api = Registration::new("api", app.address.port())
        .address("127.0.0.1")
        .sidecar(Sidecar::new().port(envoy.address.port()));
    mesh.consul.register(&api).unwrap();
    let web = mesh.service("web").upstream("api").start().await;
    Some(Pair {
        mesh,
        dial: web.upstreams["api"],
        attache: web,
        envoy: envoy.process,
        app: Some(app),
    })
}

/// client -> Envoy -> mTLS -> Attaché -> app. `None` without an Envoy.
async fn from_envoy(version: Version) -> Option<Pair> {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").app(App::by_hand().await).start().await;
    let issued = mesh.consul.issue("web", &IssueOptions::default()).unwrap();
    let identity = Identity {
        issued: &issued,
        roots_pem: &mesh.consul.roots_pem(),
        version,
    };
    let sni = format!("api.default.dc1.internal.{}", mesh.consul.trust_domain());
    let uri = mesh.consul.service_uri("api");
    let envoy = Envoy::outbound(&identity, api.public, &sni, &uri).await?;
    Some(Pair {
        mesh,
        dial: envoy.address,
        attache: api,
        envoy: envoy.process,
        app: None,
    })
}

/// Ten megabytes each way at once, then a clean end each way.
async fn carries(pair: &Pair) {
    let (client, app) = pair.connect().await;
    exchange(client, app, 10 << 20, AppEnds::AfterReading).await;
}

/// The client ends first and gets a long answer; the app ends first and gets a long one.
async fn half_closes(pair: &Pair) {
    let long = pattern(13, 4 << 20);
    let (mut client, mut app) = pair.connect().await;
    client.shutdown().await.unwrap();
    to_end(&mut app).await.1.unwrap();
    let answering = async {
        app.write_all(&long).await.unwrap();
        app.shutdown().await.unwrap();
    };
    let ((heard, ended), ()) = tokio::join!(to_end(&mut client), answering);
    ended.unwrap();
    assert!(heard == long, "the answer after the client's end is not intact");

    let (mut client, mut app) = pair.connect().await;
    app.shutdown().await.unwrap();
    to_end(&mut client).await.1.unwrap();
    let going_on = async {
        client.write_all(&long).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let ((heard, ended), ()) = tokio::join!(to_end(&mut app), going_on);
    ended.unwrap();
    assert!(heard == long, "what came after the app's end is not intact");
}

/// A reset of the client reaches the app as one, and a reset of the app the client.
async fn resets(pair: &Pair) {
    let (client, mut app) = pair.connect().await;
    reset(client);
    let (_, ended) = to_end(&mut app).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (mut client, app) = pair.connect().await;
    reset(app);
    let (_, ended) = to_end(&mut client).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_envoy_behind_attache_gets_what_is_sent() {
    for version in VERSIONS {
        let Some(pair) = to_envoy(version).await else {
            return;
        };
        carries(&pair).await;
        half_closes(&pair).await;
        pair.attache.sidecar.says(&["access", "both sides closed"]).await;
    }
}

#[tokio::test]
async fn attache_behind_an_envoy_gets_what_is_sent() {
    for version in VERSIONS {
        let Some(pair) = from_envoy(version).await else {
            return;
        };
        carries(&pair).await;
        half_closes(&pair).await;
        let line = pair.attache.sidecar.says(&["access", "both sides closed"]).await;
        let peer = pair.mesh.consul.service_uri("web");
        assert!(line.contains(&peer), "{peer}: {line}");
    }
}

#[tokio::test]
async fn a_reset_goes_through_attache_and_envoy() {
    for version in VERSIONS {
        let Some(pair) = to_envoy(version).await else {
            return;
        };
        resets(&pair).await;
    }
}

#[tokio::test]
async fn a_reset_goes_through_envoy_and_attache() {
    for version in VERSIONS {
        let Some(pair) = from_envoy(version).await else {
            return;
        };
        resets(&pair).await;
    }
}

#[tokio::test]
async fn a_killed_envoy_is_a_cut_and_no_end() {
    for version in VERSIONS {
        let Some(pair) = to_envoy(version).await else {
            return;
        };
        let (mut client, _app) = pair.connect().await;
        pair.envoy.signal("KILL").await;
        let (_, ended) = to_end(&mut client).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);

        let Some(pair) = from_envoy(version).await else {
            return;
        };
        let (_client, mut app) = pair.connect().await;
        pair.envoy.signal("KILL").await;
        let (_, ended) = to_end(&mut app).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn attache_keeps_an_envoy_out_that_an_intention_denies() {
    let Some(pair) = from_envoy(Version::V1_2).await else {
        return;
    };
    let (mut live, _app) = pair.connect().await;
    pair.mesh.consul.set_intention("web", "api", Action::Deny);
    let (_, ended) = to_end(&mut live).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let line = pair
        .attache
        .sidecar
        .says(&["access", "newer rules deny it"])
        .await;
    assert!(line.contains("flags=\"UAEX\""), "{line}");

    let (heard, ended) = dial_to_end(pair.dial, b"").await;
    assert!(heard.is_empty());
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    pair.attache.sidecar.says(&["access", "denied by"]).await;
}
