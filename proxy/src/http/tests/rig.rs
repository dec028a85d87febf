//! A connection manager on a socket, its upstream, and a client that reads bytes as they come.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use super::super::{Accepted, Connection, HttpWorker, serve};
use crate::limit::Limits;
use crate::model::cluster::HttpProtocol;
use crate::model::http::{HttpConnectionManager, Routes};
use crate::model::listener::Address;
use crate::model::route::{
    DirectResponse, Domain, HeaderMutations, PathMatch, PathRewrite, Route, RouteAction, RouteConfiguration,
    RouteDecision, RouteMatch, VirtualHost,
};
use crate::model::{Cluster, ClusterLoadAssignment, Endpoint, Snapshot, Target};
use crate::net::PlainStream;
use crate::telemetry::ConnectionLog;
use crate::telemetry::metrics::ListenerMetrics;
use crate::telemetry::trace::Direction;
use crate::tls::ConfigCache;
use crate::upstream::ClusterManager;

/// Runs a test as a worker runs connections: one thread, tasks that stay there.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let all = async { tokio::time::timeout(Duration::from_secs(20), test).await };
    LocalSet::new()
        .block_on(&runtime, all)
        .expect("the test ends in time");
}

/// A connection manager that listens.
pub(super) struct Rig {
    pub(super) address: SocketAddr,
    pub(super) upstream: Upstream,
    /// Told, it drains.
    pub(super) drain: Rc<Notify>,
    pub(super) manager: Rc<RefCell<Arc<HttpConnectionManager>>>,
}

/// An upstream, and the heads of the requests that it got, each with the number of its connection.
#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) requests: Rc<RefCell<Vec<(usize, String)>>>,
}

pub(super) fn route(path: PathMatch, action: RouteDecision) -> Arc<Route> {
    Arc::new(Route {
        name: "".into(),
        matches: RouteMatch::path(path),
        action,
        headers: HeaderMutations::default(),
    })
}

pub(super) fn to(cluster: &str, rewrite: Option<&str>) -> RouteDecision {
    let mut action = RouteAction::to(cluster.into());
    action.path_rewrite = rewrite.map(|with| PathRewrite::Prefix(with.into()));
    RouteDecision::Route(Box::new(action))
}

pub(super) fn direct(status: u16, body: &str) -> RouteDecision {
    RouteDecision::DirectResponse(DirectResponse {
        status,
        body: body.as_bytes().into(),
    })
}

pub(super) fn manager(routes: Vec<Arc<Route>>) -> HttpConnectionManager {
    let host = VirtualHost {
        name: "v".into(),
        domains: vec![Domain::Any],
        headers: HeaderMutations::default(),
        routes,
        retry_policy: None,
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
    };
    let table = RouteConfiguration::new("r".into(), vec![Arc::new(host)]).unwrap();
    HttpConnectionManager::new("x".into(), Routes::Inline(Arc::new(table)))
}

/// As Consul's bootstrap has it for readiness, with more paths for what can go wrong.
pub(super) fn usual() -> HttpConnectionManager {
    let mut quick = RouteAction::to("up".into());
    quick.timeout = Some(Duration::from_millis(80));
    let prefix = |path: &str| PathMatch::Prefix(path.into());
    manager(vec![
        route(PathMatch::Path("/ready".into()), to("up", Some("/health"))),
        route(prefix("/pre/"), to("up", Some("/post/"))),
        route(prefix("/quick"), RouteDecision::Route(Box::new(quick))),
        route(prefix("/up"), to("up", None)),
        route(prefix("/dead"), to("dead", None)),
        route(prefix("/none"), to("none", None)),
        route(prefix("/missing"), to("missing", None)),
        route(prefix("/teapot"), direct(418, "short and stout")),
        route(PathMatch::Path("/expose".into()), to("up", None)),
    ])
}

fn snapshot(upstream: SocketAddr, dead: SocketAddr, http2: SocketAddr) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, endpoint) in [
        ("up", Some(upstream)),
        ("dead", Some(dead)),
        ("none", None),
        ("http2", Some(http2)),
    ] {
        let cluster = Cluster {
            name: name.into(),
            http: match name {
                "http2" => HttpProtocol::Http2,
                _ => HttpProtocol::Http1,
            },
            ..Cluster::default()
        };
        let endpoint = endpoint.map(|address| Endpoint {
            address: Target::Address(Address::Socket(address)),
            weight: 1,
            healthy: true,
            priority: 0,
            hostname: None,
        });
        let endpoints = ClusterLoadAssignment {
            endpoints: endpoint.into_iter().collect(),
            ..ClusterLoadAssignment::default()
        };
        snapshot.clusters.insert(name.into(), Arc::new(cluster));
        snapshot.endpoints.insert(name.into(), Arc::new(endpoints));
    }
    snapshot
}

impl Rig {
    pub(super) async fn start(manager: HttpConnectionManager) -> Self {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = gone.local_addr().unwrap();
        drop(gone);
        Self::start_before(manager, dead).await
    }

    /// Its cluster `http2` has this one endpoint.
    pub(super) async fn start_before(manager: HttpConnectionManager, http2: SocketAddr) -> Self {
        let upstream = Upstream::start().await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = gone.local_addr().unwrap();
        drop(gone);
        let clusters = Rc::new(ClusterManager::new(Limits::default(), true));
        clusters.apply(
            &snapshot(upstream.address, dead, http2),
            &mut ConfigCache::default(),
        );
        let worker = Rc::new(HttpWorker::new(clusters));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = Self {
            address: listener.local_addr().unwrap(),
            upstream,
            drain: Rc::default(),
            manager: Rc::new(RefCell::new(Arc::new(manager))),
        };
        let (drain, manager) = (Rc::clone(&rig.drain), Rc::clone(&rig.manager));
        spawn_local(async move {
            while let Ok((socket, from)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                // As of the sockets that listeners hand down: any end but a clean one is a reset.
                socket.set_zero_linger().unwrap();
                let (worker, drain, manager) = (Rc::clone(&worker), Rc::clone(&drain), Rc::clone(&manager));
                spawn_local(async move {
                    let metrics = Rc::new(ListenerMetrics::new("test"));
                    let mut log = ConnectionLog::open("test".into(), from.to_string(), metrics);
                    let newest = Box::new(move || Arc::clone(&manager.borrow()));
                    let connection = Rc::new(Connection::new(newest, accepted(), worker));
                    let stream = Box::new(PlainStream::Tcp(socket));
                    serve(connection, stream, drain.notified(), &mut log).await;
                });
            }
        });
        rig
    }

    pub(super) async fn client(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(self.address).await.unwrap()))
    }

    /// The head of the last request that the upstream got.
    pub(super) fn last(&self) -> String {
        let requests = self.upstream.requests.borrow();
        requests.last().map(|(_, head)| head.clone()).unwrap_or_default()
    }
}

fn accepted() -> Accepted<'static> {
    Accepted {
        downstream: Rc::default(),
        encrypted: false,
        tls: None,
        certificates: None,
        listener: "test".into(),
        listener_address: "test",
        filter_chain: None,
        app_refused: Box::new(|| {}),
        direction: Direction::Ingress,
    }
}

/// A connection to the rig.
pub(super) struct Client(pub(super) BufReader<TcpStream>);

/// A response as it came.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

impl Client {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).await.unwrap();
    }

    /// A GET, and its response.
    pub(super) async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")).await;
        self.answer("GET").await
    }

    /// The response to a request with this method.
    pub(super) async fn answer(&mut self, method: &str) -> Answer {
        let head = read_head(&mut self.0).await.expect("a response");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match method {
            "HEAD" => Vec::new(),
            _ => read_body(&mut self.0, &head).await,
        };
        Answer { status, head, body }
    }

    /// What comes until the end; an error where that is a reset.
    pub(super) async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.map(|_| rest)
    }
}

async fn read_head(from: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let began = head.len();
        if from.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
        if &head[began..] == "\r\n" {
            return Some(head);
        }
    }
}

async fn read_body(from: &mut BufReader<TcpStream>, head: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk).await.unwrap();
            if size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = header(head, "content-length").map_or(0, |length| length.parse().unwrap());
    body.resize(length, 0);
    from.read_exact(&mut body).await.unwrap();
    body
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            requests: Rc::default(),
        };
        let (served, connections) = (upstream.clone(), Cell::new(0));
        spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                spawn_local(served.clone().serve(BufReader::new(socket), connections.get()));
            }
        });
        upstream
    }

    async fn serve(self, mut socket: BufReader<TcpStream>, connection: usize) {
        while let Some(head) = read_head(&mut socket).await {
            let mut line = head.split(' ');
            let (method, path) = (line.next().unwrap(), line.next().unwrap().to_owned());
            let answers_body = method != "HEAD";
            self.requests.borrow_mut().push((connection, head.clone()));
            let body = read_body(&mut socket, &head).await;
            let whole = |body: &[u8], more: &str| {
                let mut answer = format!(
                    "HTTP/1.1 200 OK\r\nserver: theirs\r\n{more}content-length: {}\r\n\r\n",
                    body.len()
                )
                .into_bytes();
                if answers_body {
                    answer.extend_from_slice(body);
                }
                answer
            };
            let (answer, goes_on) = match path.rsplit('/').next().unwrap() {
                "echo" => (whole(&body, ""), true),
                "chunked" => (chunked(&body), true),
                "silent" => {
                    let _ = socket.read_u8().await;
                    self.requests.borrow_mut().push((connection, "gone".to_owned()));
                    return;
                }
                "hangs-up" => return,
                "garbage" => (b"no http at all\r\n\r\n".to_vec(), false),
                "half" => (
                    b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec(),
                    false,
                ),
                "once" => (whole(b"once", ""), false),
                "hops" => (whole(b"ok", "connection: x\r\nkeep-alive: timeout=4\r\n"), true),
                _ => (whole(path.as_bytes(), ""), true),
            };
            if socket.get_mut().write_all(&answer).await.is_err() || !goes_on {
                return;
            }
        }
    }
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(1000) {
        answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        answer.extend_from_slice(chunk);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"0\r\nx-trailer: 1\r\n\r\n");
    answer
}
