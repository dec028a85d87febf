//! An app that dies and a sidecar that stops cost no request over HTTP, whatever its method: what cannot have
//! reached the app goes to another one, and nothing goes to two.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use attache::demo::standin::{IssueOptions, StandIn, StandInOptions};
use attache_tests::envoy::{Program, Static};
use attache_tests::free_port;
use attache_tests::http::case::Ask;
use attache_tests::http::h1::Connection;
use attache_tests::http::outcome::Got;
use attache_tests::http::wire::{Framing, Wire};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::sidecars::{Spoken, inbound, outbound};
use crate::xds_mesh::OURS;

/// Clients of the load under which something stops.
const CLIENTS: usize = 8;

/// The requests that the apps have acted on, and how often.
type Book = Arc<Mutex<BTreeMap<String, usize>>>;

/// An app that notes the path of each request.
struct HttpApp {
    at: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl HttpApp {
    async fn start(name: &'static str, book: &Book) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let book = Arc::clone(book);
        let serving = tokio::spawn(async move {
            // Its connections end with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(Wire::new(stream), name, Arc::clone(&book)));
            }
        });
        Self { at, serving }
    }

    async fn stop(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

async fn answer(mut wire: Wire, name: &'static str, book: Book) -> Option<()> {
    loop {
        let head = wire.head().await.ok()?;
        wire.body(head.framing(Framing::None).ok()?).await;
        let path = head.first.split(' ').nth(1)?.to_owned();
        *book.lock().unwrap().entry(path).or_default() += 1;
        // Neither app may speak for the sidecars.
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-attache-not-sent: true\r\n\r\n{name}",
            name.len()
        );
        wire.send(answer.as_bytes()).await.then_some(())?;
    }
}

/// A caller's sidecar, and a callee's for each app.
struct Sidecars {
    caller: SocketAddr,
    callees: Vec<Static>,
    _caller: Static,
    _consul: StandIn,
}

impl Sidecars {
    async fn start(apps: &[SocketAddr], spoken: Spoken) -> Self {
        let consul = StandIn::start(StandInOptions::default()).await.unwrap();
        let roots = consul.roots_pem();
        let issued = |service: &str| consul.issue(service, &IssueOptions::default()).unwrap();
        let (web, api) = (issued("web"), issued("api"));
        let (mut callees, mut public) = (Vec::new(), Vec::new());
        for &app in apps {
            let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let resources = inbound(at, (app, Spoken::Http1), &api, &roots, spoken);
            callees.push(Static::start(OURS, &resources).await.unwrap());
            public.push(at);
        }
        let caller = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let resources = outbound(caller, &public, &web, &roots, spoken);
        Self {
            caller,
            callees,
            _caller: Static::start(OURS, &resources).await.unwrap(),
            _consul: consul,
        }
    }

    async fn client(&self) -> Connection {
        Connection::open(self.caller).await
    }
}

async fn post(client: &mut Connection, path: &str) -> Got {
    let mut ask = Ask::new("POST", path);
    ask.body = Some(path.as_bytes().to_vec());
    client.ask(&ask).await.remove(0)
}

#[track_caller]
fn assert_answered(got: &Got) -> String {
    assert_eq!(got.status(), 200, "{:#?}", got.lines());
    assert_unsigned(got);
    String::from_utf8(got.body.clone()).unwrap()
}

#[track_caller]
fn assert_unsigned(got: &Got) {
    let lines = got.lines();
    assert!(!lines.iter().any(|line| line.contains("attache")), "{lines:#?}");
}

#[track_caller]
fn assert_each_once(book: &Book, requests: usize) {
    let book = book.lock().unwrap();
    assert_eq!(book.len(), requests);
    assert!(book.values().all(|times| *times == 1), "{book:#?}");
}

async fn an_app_dies(spoken: Spoken) {
    let book = Book::default();
    let (one, two) = (
        HttpApp::start("one", &book).await,
        HttpApp::start("two", &book).await,
    );
    let sidecars = Sidecars::start(&[one.at, two.at], spoken).await;
    let mut client = sidecars.client().await;
    let mut seen = Vec::new();
    for number in 0..20 {
        seen.push(assert_answered(&post(&mut client, &format!("/{number}")).await));
    }
    assert!(seen.contains(&"one".to_owned()) && seen.contains(&"two".to_owned()));
    one.stop().await;
    for number in 20..60 {
        let got = post(&mut client, &format!("/{number}")).await;
        assert_eq!(assert_answered(&got), "two");
    }
    assert_each_once(&book, 60);
    two.stop().await;
    let got = post(&mut client, "/nobody").await;
    assert_eq!(got.status(), 503);
    assert_unsigned(&got);
    assert_each_once(&book, 60);
}

#[tokio::test]
async fn an_app_that_dies_costs_no_request_over_http1() {
    an_app_dies(Spoken::Http1).await;
}

#[tokio::test]
async fn an_app_that_dies_costs_no_request_over_http2() {
    an_app_dies(Spoken::Http2).await;
}

async fn a_sidecar_stops(spoken: Spoken) {
    let book = Book::default();
    let (one, two) = (
        HttpApp::start("one", &book).await,
        HttpApp::start("two", &book).await,
    );
    let mut sidecars = Sidecars::start(&[one.at, two.at], spoken).await;
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
        let mut client = sidecars.client().await;
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                assert_answered(&post(&mut client, &format!("/{number}")).await);
            }
        });
    }
    let more = async |than: usize| {
        while asked.load(Ordering::Relaxed) < than {
            tokio::task::yield_now().await;
        }
    };
    more(100).await;
    let mut first = sidecars.callees.remove(0);
    first.process.signal("TERM").await;
    assert!(first.process.ended().await.success(), "{}", first.process.log());
    more(asked.load(Ordering::Relaxed) + 100).await;
    over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_each_once(&book, asked.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_sidecar_that_stops_costs_no_request_over_http1() {
    a_sidecar_stops(Spoken::Http1).await;
}

#[tokio::test]
async fn a_sidecar_that_stops_costs_no_request_over_http2() {
    a_sidecar_stops(Spoken::Http2).await;
}

/// Envoy in the caller's place is refused in its handshake once the app is gone, and so can retry elsewhere.
#[tokio::test]
async fn an_envoy_is_refused_before_its_request_once_the_app_is_gone() {
    let book = Book::default();
    let one = HttpApp::start("one", &book).await;
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let roots = consul.roots_pem();
    let issued = |service: &str| consul.issue(service, &IssueOptions::default()).unwrap();
    let [upstream, public] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let resources = inbound(
        public,
        (one.at, Spoken::Http1),
        &issued("api"),
        &roots,
        Spoken::Http1,
    );
    let callee = Static::start(OURS, &resources).await.unwrap();
    let resources = outbound(upstream, &[public], &issued("web"), &roots, Spoken::Http1);
    let Some(caller) = Static::start(Program::Envoy, &resources).await else {
        return;
    };
    let mut client = Connection::open(upstream).await;
    assert_answered(&post(&mut client, "/0").await);
    one.stop().await;
    for number in 1..5 {
        let got = post(&mut client, &format!("/{number}")).await;
        assert_eq!(got.status(), 503, "{:#?}", got.lines());
    }
    let failed = caller
        .metric("envoy_cluster_upstream_cx_connect_fail", &["next"])
        .await;
    assert!(
        failed.is_some_and(|failed| failed >= 1.0),
        "{}",
        callee.process.log()
    );
    assert_each_once(&book, 1);
}
