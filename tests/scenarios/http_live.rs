//! What becomes of open HTTP connections when the rules change: the next request on one obeys the new rules,
//! an upgrade or a stream that they deny is reset, everything else goes on.

use std::net::SocketAddr;

use attache::demo::standin::{Action, Registration};
use attache_tests::{App, Member, Mesh, eventually};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::ATTACHE;

/// Snapshots published under idle connections.
const SNAPSHOTS: usize = 1000;
const IDLE_CONNECTIONS: usize = 1000;
/// Services whose endpoints change in turn: one watch takes five changes a second.
const WATCHES: usize = 10;
/// What the memory of a sidecar may gain meanwhile: far below a kilobyte a snapshot and connection.
const GAIN_BYTES: u64 = 4 << 20;

/// web -> api over HTTP, where api answers each request, switches protocols and never ends a `/stream`.
struct Pair {
    mesh: Mesh,
    api: Member,
    web: Member,
}

impl Pair {
    async fn start() -> Self {
        Self::beside(&[]).await
    }

    /// With these other upstreams of web's.
    async fn beside(others: &[String]) -> Self {
        let mesh = Mesh::start(ATTACHE).await;
        let http = json!({ "Protocol": "http" });
        for service in ["api", "web"] {
            mesh.consul
                .set_config_entry("service-defaults", service, Some(http.clone()));
        }
        let mut app = App::by_hand().await;
        app.address = serve().await;
        let api = mesh.service("api").app(app).config(json!({ "protocol": "http" }));
        let web = mesh.service("web").upstream("api");
        let web = others.iter().fold(web, |web, other| web.upstream(other));
        let (api, web) = tokio::join!(api.start(), web.start());
        let pair = Self { mesh, api, web };
        eventually("a request is answered", || async {
            let mut line = TcpStream::connect(pair.at()).await.ok()?;
            (ask(&mut line, "/").await == Some(200)).then_some(())
        })
        .await;
        pair
    }

    fn at(&self) -> SocketAddr {
        self.web.upstreams["api"]
    }

    /// Rules for web: `paths` are denied, the rest is allowed.
    fn deny(&self, paths: &[&str]) {
        let denied = paths
            .iter()
            .map(|path| json!({ "Action": "deny", "HTTP": { "PathPrefix": path } }));
        let allowed = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/" } });
        let permissions: Vec<Value> = denied.chain([allowed]).collect();
        let source = json!({ "Name": "web", "Permissions": permissions });
        self.mesh.consul.set_intention_sources("api", &[source]);
    }
}

/// The app: where it listens.
async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    at
}

/// Serves one connection of the app.
async fn answer(mut stream: TcpStream) -> Option<()> {
    loop {
        let head = head(&mut stream).await?;
        let switches = head.to_ascii_lowercase().contains("\r\nupgrade:");
        let answer: &[u8] = match () {
            () if switches => {
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
            }
            () if head.starts_with("GET /stream") => {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n"
            }
            () => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        stream.write_all(answer).await.ok()?;
        if switches {
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.ok()?;
            return None;
        }
    }
}

/// One head, as text.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// The status of a GET over an open connection, whose answer is read to its end.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: api\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let head = head(stream).await?.to_ascii_lowercase();
    let length = head.split_once("content-length: ")?.1.split_once("\r\n")?.0;
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    head.split(' ').nth(1)?.parse().ok()
}

/// A connection that has switched protocols, proven by an echo.
async fn switched(at: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: api\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    echoes(&mut stream).await;
    stream
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"?").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'?');
}

/// A stream of HTTP/2 whose answer has begun.
async fn begun(requests: &mut h2::client::SendRequest<Bytes>, path: &str) -> h2::RecvStream {
    let request = http::Request::get(format!("http://api{path}")).body(()).unwrap();
    let (answer, _) = requests.send_request(request, true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "begun");
    body
}

#[tokio::test]
async fn the_next_request_on_an_open_connection_obeys_new_rules() {
    let pair = Pair::start().await;
    let mut line = TcpStream::connect(pair.at()).await.unwrap();
    assert_eq!(ask(&mut line, "/secret").await, Some(200));
    pair.deny(&["/secret"]);
    let line = tokio::sync::Mutex::new(line);
    let hears = |path: &'static str, status: u16| {
        let line = &line;
        eventually("the connection obeys the newest rules", move || async move {
            let heard = ask(&mut *line.lock().await, path).await;
            assert!(heard.is_some(), "the connection stays");
            (heard == Some(status)).then_some(())
        })
    };
    hears("/secret", 403).await;
    hears("/open", 200).await;
    pair.deny(&[]);
    hears("/secret", 200).await;
    pair.mesh.consul.set_intention("web", "api", Action::Allow);
    hears("/secret", 200).await;
}

#[tokio::test]
async fn new_rules_reset_the_upgrades_and_streams_that_they_deny() {
    let pair = Pair::start().await;
    let mut denied = switched(pair.at(), "/denied").await;
    let mut open = switched(pair.at(), "/open").await;
    let plain = TcpStream::connect(pair.at()).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(plain).await.unwrap();
    tokio::spawn(connection);
    let mut denied_stream = begun(&mut requests, "/stream/denied").await;
    let open_stream = begun(&mut requests, "/stream/open").await;
    pair.deny(&["/denied", "/stream/denied"]);
    let ended = tokio::time::timeout(attache_tests::PATIENCE, denied.read_u8()).await;
    assert!(ended.unwrap().is_err(), "the upgrade is reset");
    let ended = tokio::time::timeout(attache_tests::PATIENCE, denied_stream.data()).await;
    assert!(ended.unwrap().unwrap().is_err(), "the stream is reset");
    for path in ["path=\"/denied\"", "path=\"/stream/denied\""] {
        pair.api
            .sidecar
            .says(&[path, "flags=\"UAEX\"", "newer rules deny it"])
            .await;
    }
    echoes(&mut open).await;
    let _another = begun(&mut requests, "/stream/open").await;
    assert!(!open_stream.is_end_stream());
    let log = pair.api.sidecar.log();
    assert!(
        !log.lines()
            .any(|line| line.contains("/open") && line.contains("UAEX")),
        "{log}"
    );
}

#[tokio::test]
async fn a_thousand_snapshots_under_a_thousand_idle_connections_take_no_memory() {
    let others: Vec<String> = (0..WATCHES).map(|number| format!("other-{number}")).collect();
    let pair = Pair::beside(&others).await;
    let mut idle = Vec::new();
    for _ in 0..IDLE_CONNECTIONS {
        let mut line = TcpStream::connect(pair.at()).await.unwrap();
        assert_eq!(ask(&mut line, "/").await, Some(200));
        idle.push(line);
    }
    let publish = async |count: usize| {
        for (number, other) in others.iter().cycle().take(count).enumerate() {
            let questions = format!("/v1/health/connect/{other}");
            let asked = pair.mesh.consul.requests(&questions);
            let port = u16::try_from(1024 + number).unwrap();
            let instance = Registration::new(other, port).address("127.0.0.1").native();
            pair.mesh.consul.register(&instance).unwrap();
            eventually("its endpoints are asked for again", || async {
                (pair.mesh.consul.requests(&questions) > asked).then_some(())
            })
            .await;
        }
    };
    publish(SNAPSHOTS / 5).await;
    let before = pair.web.sidecar.resident_bytes();
    publish(SNAPSHOTS).await;
    let after = pair.web.sidecar.resident_bytes();
    println!("{IDLE_CONNECTIONS} idle connections: {before} bytes, {after} after {SNAPSHOTS} snapshots");
    assert!(
        after < before + GAIN_BYTES,
        "{before} bytes before, {after} after"
    );
    for line in &mut idle {
        assert_eq!(ask(line, "/").await, Some(200));
    }
}
