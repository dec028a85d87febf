//! What becomes of open HTTP connections when rules, routes or endpoints change, by either source: the next request on
//! one obeys, an upgrade or a stream that newer rules deny is reset, everything else goes on.
//!
//! By xDS a real Consul is asked; where there is none on PATH each scenario says that it is skipped.

use std::net::SocketAddr;

use attache::demo::standin::Registration;
use attache_tests::agent::Agent;
use attache_tests::mesh::get;
use attache_tests::process::Process;
use attache_tests::sidecar::{Service, Xds};
use attache_tests::{App, Folder, Member, Mesh, PATIENCE, eventually};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::ATTACHE;
use crate::xds_mesh::{OURS, grpc};

/// Snapshots published under idle connections.
const SNAPSHOTS: usize = 1000;
const IDLE_CONNECTIONS: usize = 1000;
/// Services whose endpoints change in turn: one watch takes five changes a second.
const WATCHES: usize = 10;
/// What the memory of a sidecar may gain meanwhile: far below a kilobyte a snapshot and connection.
const GAIN_BYTES: u64 = 4 << 20;

/// web -> api over HTTP, where api answers each request with its ID, switches protocols and never ends a `/stream`.
struct Pair {
    source: Source,
    at: SocketAddr,
}

/// Where the sidecars of a pair have their configuration from.
enum Source {
    /// The Consul stand-in, over Consul's HTTP API.
    StandIn(Box<(Mesh, Member, Member)>),
    /// A real Consul, over xDS.
    Xds(Box<OverXds>),
}

struct OverXds {
    agent: Agent,
    xds: Xds,
    api: Service,
    api_sidecar: Process,
    _web: (Service, Process),
    folder: Folder,
}

/// Another instance of api, which lives as long.
#[expect(dead_code, reason = "held for its drop")]
enum Second {
    StandIn(Member),
    Xds(Service, Process),
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
        let app = served("api-1").await;
        let api = mesh.service("api").app(app).config(json!({ "protocol": "http" }));
        let web = mesh.service("web").upstream("api");
        let web = others.iter().fold(web, |web, other| web.upstream(other));
        let (api, web) = tokio::join!(api.start(), web.start());
        let at = web.upstreams["api"];
        let source = Source::StandIn(Box::new((mesh, api, web)));
        Self { source, at }.answers().await
    }

    /// By xDS. `None` without a Consul.
    async fn over_xds() -> Option<Self> {
        let (settings, xds) = grpc(json!({}));
        let agent = Agent::dev(settings).await?;
        for name in ["api", "web"] {
            let http = json!({ "Kind": "service-defaults", "Name": name, "Protocol": "http" });
            agent.api("PUT", "/v1/config", Some(http)).await;
        }
        let folder = Folder::new();
        let (api, api_sidecar) = instance(&agent, &xds, &folder, 1).await;
        let web = Service::registered(&agent, "web", 1, &["api"]).await;
        let web_sidecar = web.sidecar(OURS, &agent, &xds, &folder).await;
        web.ready(&web_sidecar).await;
        let at = web.upstreams["api"];
        let source = Source::Xds(Box::new(OverXds {
            agent,
            xds,
            api,
            api_sidecar,
            _web: (web, web_sidecar),
            folder,
        }));
        Some(Self { source, at }.answers().await)
    }

    async fn answers(self) -> Self {
        eventually("a request is answered", || async {
            let mut line = TcpStream::connect(self.at).await.ok()?;
            (ask(&mut line, "/").await?.status == 200).then_some(())
        })
        .await;
        self
    }

    fn api_sidecar(&self) -> &Process {
        match &self.source {
            Source::StandIn(all) => &all.1.sidecar,
            Source::Xds(all) => &all.api_sidecar,
        }
    }

    /// The intentions of api.
    async fn intend(&self, sources: &[Value]) {
        match &self.source {
            Source::StandIn(all) => all.0.consul.set_intention_sources("api", sources),
            Source::Xds(all) => {
                let entry = json!({ "Kind": "service-intentions", "Name": "api", "Sources": sources });
                all.agent.api("PUT", "/v1/config", Some(entry)).await;
            }
        }
    }

    /// Rules for web: `paths` are denied, the rest is allowed.
    async fn deny(&self, paths: &[&str]) {
        let denied = paths
            .iter()
            .map(|path| json!({ "Action": "deny", "HTTP": { "PathPrefix": path } }));
        let allowed = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/" } });
        let permissions: Vec<Value> = denied.chain([allowed]).collect();
        let source = json!({ "Name": "web", "Permissions": permissions });
        self.intend(&[source]).await;
    }

    /// Answers of api have this header from now on.
    async fn tell(&self, name: &str, value: &str) {
        let destination = json!({ "ResponseHeaders": { "Set": { name: value } } });
        let route = json!({ "Match": { "HTTP": { "PathPrefix": "/" } }, "Destination": destination });
        match &self.source {
            Source::StandIn(all) => {
                // The stand-in compiles no routers: the chain is given as Consul would compile it.
                let consul = &all.0.consul;
                let (_, chain) = get(consul.address(), "/v1/discovery-chain/api").await.unwrap();
                let mut body: Value = serde_json::from_str(&chain).unwrap();
                let chain = &mut body["Chain"];
                let first = chain["Nodes"].as_object().unwrap().keys();
                let next = first
                    .into_iter()
                    .find(|name| name.starts_with("resolver:"))
                    .cloned();
                chain["Default"] = false.into();
                chain["StartNode"] = "router:api".into();
                chain["Nodes"]["router:api"] = json!({
                    "Type": "router", "Name": "api", "Routes": [{ "Definition": route, "NextNode": next }],
                });
                consul.set_discovery_chain("api", body);
            }
            Source::Xds(all) => {
                let router = json!({ "Kind": "service-router", "Name": "api", "Routes": [route] });
                all.agent.api("PUT", "/v1/config", Some(router)).await;
            }
        }
    }

    /// `api-2` comes, then `api-1` is said to have left.
    async fn another_instance(&self) -> Second {
        match &self.source {
            Source::StandIn(all) => {
                let (mesh, first, _) = &**all;
                let app = served("api-2").await;
                let second = mesh.service("api").id("api-2").app(app);
                let second = second.config(json!({ "protocol": "http" })).start().await;
                mesh.consul.deregister(&first.id);
                Second::StandIn(second)
            }
            Source::Xds(all) => {
                let (second, sidecar) = instance(&all.agent, &all.xds, &all.folder, 2).await;
                all.api.deregister(&all.agent).await;
                Second::Xds(second, sidecar)
            }
        }
    }
}

/// An instance of api on a real Consul, and its sidecar.
async fn instance(agent: &Agent, xds: &Xds, folder: &Folder, number: usize) -> (Service, Process) {
    let mut api = Service::new("api", number, &[]).await;
    api.app = served(&api.id).await;
    api.register(agent, json!({})).await;
    let sidecar = api.sidecar(OURS, agent, xds, folder).await;
    api.ready(&sidecar).await;
    (api, sidecar)
}

/// An app with this ID.
async fn served(id: &str) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut app = App::by_hand().await;
    app.address = listener.local_addr().unwrap();
    let id = id.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let id = id.clone();
            tokio::spawn(async move { answer(stream, &id).await });
        }
    });
    app
}

/// Serves one connection of the app.
async fn answer(mut stream: TcpStream, id: &str) -> Option<()> {
    loop {
        let head = head(&mut stream).await?;
        let switches = head.to_ascii_lowercase().contains("\r\nupgrade:");
        let answer = match () {
            () if switches => {
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
                    .to_owned()
            }
            () if head.starts_with("GET /stream") => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n".to_owned()
            }
            () => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{id}", id.len()),
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
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

/// An answer.
#[derive(Debug)]
struct Heard {
    status: u16,
    /// In lower case.
    head: String,
    body: String,
}

/// A GET over an open connection, whose answer is read to its end.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<Heard> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: api\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let head = head(stream).await?.to_ascii_lowercase();
    let length = head.split_once("content-length: ")?.1.split_once("\r\n")?.0;
    let mut body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Heard { status, head, body })
}

/// As [`ask`], over a connection of HTTP/2.
async fn ask_http2(requests: &mut h2::client::SendRequest<Bytes>, path: &str) -> Option<Heard> {
    let request = http::Request::get(format!("http://api{path}")).body(()).ok()?;
    let (answer, _) = requests.send_request(request, true).ok()?;
    let (head, mut rest) = answer.await.ok()?.into_parts();
    let mut body = Vec::new();
    while let Some(bytes) = rest.data().await {
        body.extend_from_slice(&bytes.ok()?);
    }
    Some(Heard {
        status: head.status.as_u16(),
        head: format!("{:?}", head.headers).to_ascii_lowercase(),
        body: String::from_utf8(body).ok()?,
    })
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

/// The open connections of one downstream.
struct Open {
    line: tokio::sync::Mutex<TcpStream>,
    requests: tokio::sync::Mutex<h2::client::SendRequest<Bytes>>,
}

impl Open {
    async fn connect(at: SocketAddr) -> Self {
        let plain = TcpStream::connect(at).await.unwrap();
        let (requests, connection) = h2::client::handshake(plain).await.unwrap();
        tokio::spawn(connection);
        Self {
            line: TcpStream::connect(at).await.unwrap().into(),
            requests: requests.into(),
        }
    }

    /// Sooner or later a next request on each of them is answered so.
    async fn hear(&self, what: &str, path: &str, so: impl Fn(&Heard) -> bool + Copy) {
        eventually(&format!("HTTP/1: {what}"), || async {
            let heard = ask(&mut *self.line.lock().await, path).await;
            so(&heard.expect("the connection stays")).then_some(())
        })
        .await;
        eventually(&format!("HTTP/2: {what}"), || async {
            let heard = ask_http2(&mut *self.requests.lock().await, path).await;
            so(&heard.expect("the connection stays")).then_some(())
        })
        .await;
    }
}

async fn next_requests_obey_new_rules(pair: &Pair) {
    let open = Open::connect(pair.at).await;
    let is = |status: u16| move |heard: &Heard| heard.status == status;
    open.hear("at first", "/secret", is(200)).await;
    pair.deny(&["/secret"]).await;
    open.hear("denied", "/secret", is(403)).await;
    open.hear("the rest is allowed", "/open", is(200)).await;
    pair.deny(&[]).await;
    open.hear("allowed again", "/secret", is(200)).await;
    pair.intend(&[json!({ "Name": "web", "Action": "deny" })]).await;
    open.hear("all is denied", "/open", is(403)).await;
    pair.intend(&[json!({ "Name": "web", "Action": "allow" })]).await;
    open.hear("all is allowed", "/secret", is(200)).await;
}

async fn new_rules_reset_what_they_deny(pair: &Pair) {
    let before = pair.api_sidecar().lines();
    let mut denied = switched(pair.at, "/denied").await;
    let mut open = switched(pair.at, "/open").await;
    let connections = Open::connect(pair.at).await;
    let mut requests = connections.requests.lock().await;
    let mut denied_stream = begun(&mut requests, "/stream/denied").await;
    let open_stream = begun(&mut requests, "/stream/open").await;
    pair.deny(&["/denied", "/stream/denied"]).await;
    let ended = tokio::time::timeout(PATIENCE, denied.read_u8()).await;
    assert!(ended.unwrap().is_err(), "the upgrade is reset");
    let ended = tokio::time::timeout(PATIENCE, denied_stream.data()).await;
    assert!(ended.unwrap().unwrap().is_err(), "the stream is reset");
    for path in ["path=\"/denied\"", "path=\"/stream/denied\""] {
        let words = [path, "flags=\"UAEX\"", "newer rules deny it"];
        pair.api_sidecar().says_after(before, &words).await;
    }
    echoes(&mut open).await;
    let _another = begun(&mut requests, "/stream/open").await;
    assert!(!open_stream.is_end_stream());
    let log = pair.api_sidecar().log();
    assert!(
        !log.lines()
            .skip(before)
            .any(|line| line.contains("/open") && line.contains("UAEX")),
        "{log}"
    );
}

async fn next_requests_obey_new_routes_and_endpoints(pair: &Pair) {
    let open = Open::connect(pair.at).await;
    let from = |id: &'static str| move |heard: &Heard| heard.status == 200 && heard.body == id;
    open.hear("at first", "/", from("api-1")).await;
    let mut upgrade = switched(pair.at, "/open").await;
    let mut stream = begun(&mut *open.requests.lock().await, "/stream/open").await;
    for value in ["one", "two"] {
        pair.tell("x-route", value).await;
        let told = |heard: &Heard| heard.head.contains("x-route") && heard.head.contains(value);
        open.hear("a newer route", "/", told).await;
    }
    echoes(&mut upgrade).await;
    let _second = pair.another_instance().await;
    open.hear("a newer endpoint", "/", from("api-2")).await;
    // What is under way with the one that left goes on.
    echoes(&mut upgrade).await;
    let more = std::future::poll_fn(|cx| std::task::Poll::Ready(stream.poll_data(cx).is_pending())).await;
    assert!(more && !stream.is_end_stream(), "the stream goes on");
}

#[tokio::test]
async fn the_next_request_on_an_open_connection_obeys_new_rules() {
    next_requests_obey_new_rules(&Pair::start().await).await;
}

#[tokio::test]
async fn new_rules_reset_the_upgrades_and_streams_that_they_deny() {
    new_rules_reset_what_they_deny(&Pair::start().await).await;
}

#[tokio::test]
async fn the_next_request_on_an_open_connection_obeys_new_routes_and_endpoints() {
    next_requests_obey_new_routes_and_endpoints(&Pair::start().await).await;
}

#[tokio::test]
async fn open_connections_obey_what_changes_by_xds() {
    let Some(pair) = Pair::over_xds().await else {
        return;
    };
    next_requests_obey_new_rules(&pair).await;
    new_rules_reset_what_they_deny(&pair).await;
    next_requests_obey_new_routes_and_endpoints(&pair).await;
}

#[tokio::test]
async fn a_thousand_snapshots_under_a_thousand_idle_connections_take_no_memory() {
    let others: Vec<String> = (0..WATCHES).map(|number| format!("other-{number}")).collect();
    let pair = Pair::beside(&others).await;
    let Source::StandIn(all) = &pair.source else {
        return;
    };
    let (mesh, _, web) = &**all;
    let mut idle = Vec::new();
    for _ in 0..IDLE_CONNECTIONS {
        let mut line = TcpStream::connect(pair.at).await.unwrap();
        assert_eq!(ask(&mut line, "/").await.unwrap().status, 200);
        idle.push(line);
    }
    let publish = async |count: usize| {
        for (number, other) in others.iter().cycle().take(count).enumerate() {
            let questions = format!("/v1/health/connect/{other}");
            let asked = mesh.consul.requests(&questions);
            let port = u16::try_from(1024 + number).unwrap();
            let instance = Registration::new(other, port).address("127.0.0.1").native();
            mesh.consul.register(&instance).unwrap();
            eventually("its endpoints are asked for again", || async {
                (mesh.consul.requests(&questions) > asked).then_some(())
            })
            .await;
        }
    };
    publish(SNAPSHOTS / 5).await;
    let before = web.sidecar.resident_bytes();
    publish(SNAPSHOTS).await;
    let after = web.sidecar.resident_bytes();
    println!("{IDLE_CONNECTIONS} idle connections: {before} bytes, {after} after {SNAPSHOTS} snapshots");
    assert!(
        after < before + GAIN_BYTES,
        "{before} bytes before, {after} after"
    );
    for line in &mut idle {
        assert_eq!(ask(line, "/").await.unwrap().status, 200);
    }
}
