//! One proxy, its upstreams and its listeners, on which cases run one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::case::{Ask, Case, Path, Version};
use super::config::{self, Cluster, Manager, PROBE};
use super::outcome::{Got, name_ports};
use super::seen::{Book, Seen};
use super::upstream::Upstream;
use super::{h1, h2c};
use crate::envoy::{Program, Static};
use crate::free_port;

/// How many requests an outcome shows; above what any case makes unless something goes round in circles.
const SHOWN: usize = 60;

/// Running upstreams, each with a name.
#[derive(Debug)]
pub struct Upstreams {
    /// What they saw.
    pub book: Book,
    running: Vec<(String, Upstream)>,
}

impl Upstreams {
    /// Starts one of each name.
    pub async fn start(names: &[String]) -> Self {
        let book = Book::default();
        let mut running = Vec::new();
        for name in names {
            running.push((name.clone(), Upstream::start(name, &book).await));
        }
        Self { book, running }
    }
}

/// A proxy that runs a group's configuration.
#[derive(Debug)]
pub struct Bed {
    /// The proxy.
    pub proxy: Static,
    upstreams: Arc<Upstreams>,
    ports: BTreeMap<String, u16>,
}

impl Bed {
    /// Starts the program before these upstreams, which another may have as well. `None` without an Envoy where
    /// one is wanted.
    pub async fn start(
        program: Program,
        upstreams: Arc<Upstreams>,
        managers: &[Manager],
        clusters: &[Cluster],
    ) -> Option<Self> {
        program.found()?;
        let (resources, ports) = resources(&upstreams, managers, clusters);
        let proxy = Static::start(program, &resources).await?;
        Some(Self {
            proxy,
            upstreams,
            ports,
        })
    }

    /// What the program says when it ends instead of running that. `None` without an Envoy where one is wanted.
    pub async fn refusal(
        program: Program,
        upstreams: &Upstreams,
        managers: &[Manager],
        clusters: &[Cluster],
    ) -> Option<String> {
        Static::refusal(program, &resources(upstreams, managers, clusters).0).await
    }

    /// Where a manager listens.
    pub fn address(&self, manager: &str, upstream: Version) -> SocketAddr {
        let port = self.ports[&config::listener_name(manager, upstream)];
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// What comes of a case over these versions.
    pub async fn run(&self, case: &Case, manager: &str, path: Path) -> Vec<String> {
        let to = self.address(manager, path.upstream);
        if let Some(words) = case.until {
            crate::eventually(words, async || says(case, to, words).await.then_some(())).await;
            let _ = self.upstreams.book.take().await;
        }
        let (port, answers, after) = match path.downstream {
            Version::H1 => over_h1(case, to).await,
            Version::H2 => over_h2(case, to).await,
        };
        let mut lines: Vec<String> = answers.iter().flat_map(Got::lines).collect();
        lines.push(after);
        let seen = self.upstreams.book.take().await;
        lines.extend(seen.iter().take(SHOWN).flat_map(Seen::lines));
        if seen.len() > SHOWN {
            lines.push(format!("> and {} requests more", seen.len() - SHOWN));
        }
        let mut names: BTreeMap<u16, String> = self
            .ports
            .iter()
            .map(|(name, port)| (*port, name.clone()))
            .collect();
        names.insert(port, "downstream".to_owned());
        let own = own_address();
        let named = |line: &String| name_ports(line, &names).replace(&own, "<own address>");
        lines.iter().map(named).collect()
    }
}

/// Static resources and the ports in them.
fn resources(
    upstreams: &Upstreams,
    managers: &[Manager],
    clusters: &[Cluster],
) -> (Value, BTreeMap<String, u16>) {
    let mut ports = BTreeMap::from([("closed".to_owned(), free_port())]);
    let running = upstreams.running.iter();
    ports.extend(running.map(|(name, upstream)| (name.clone(), upstream.address.port())));
    let mut listeners: Vec<Value> = Vec::new();
    let mut resources: Vec<Value> = Vec::new();
    for upstream in [Version::H1, Version::H2] {
        for manager in managers {
            ports.insert(config::listener_name(&manager.name, upstream), free_port());
            listeners.push(manager.listener(upstream, clusters));
        }
        resources.extend(clusters.iter().map(|cluster| cluster.resource(upstream)));
    }
    let all = json!({ "listeners": listeners, "clusters": resources });
    let all = config::with_ports(&all, &|name| ports[name]);
    (all, ports)
}

/// The first address of this machine that is not loopback, which Envoy says of connections from loopback.
fn own_address() -> String {
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let mut addresses =
        interfaces.filter_map(|interface| interface.address?.as_sockaddr_in().map(|a| a.ip()));
    let own = addresses.find(|address| !address.is_loopback());
    own.map_or("no address".to_owned(), |address| address.to_string())
}

/// Asks whether a connection goes on.
fn probe() -> Ask {
    let mut ask = Ask::new("GET", "/");
    PROBE.clone_into(&mut ask.host);
    ask
}

/// Whether an answer to a case has these words.
async fn says(case: &Case, to: SocketAddr, words: &str) -> bool {
    let got = h1::Connection::open(to).await.ask(&case.ask).await;
    got.iter()
        .any(|got| String::from_utf8_lossy(&got.body).contains(words))
}

async fn over_h1(case: &Case, to: SocketAddr) -> (u16, Vec<Got>, String) {
    let mut connection = h1::Connection::open(to).await;
    let mut answers = Vec::new();
    for _ in 0..case.times {
        answers.extend(connection.ask(&case.ask).await);
    }
    let after = connection.afterwards(answers.last(), &probe()).await;
    (connection.port, answers, after)
}

async fn over_h2(case: &Case, to: SocketAddr) -> (u16, Vec<Got>, String) {
    let Some(connection) = h2c::Connection::open(to).await else {
        return (0, Vec::new(), "no HTTP/2".to_owned());
    };
    let mut answers = Vec::new();
    if case.ask.upgrade.is_some() {
        // The settings, which say whether an extended CONNECT is allowed, are there with the first answer.
        let _ = connection.ask(&probe()).await;
    }
    if case.at_once {
        answers = connection.ask_at_once(&case.ask, case.times).await;
    }
    while answers.len() < case.times {
        answers.push(connection.ask(&case.ask).await);
    }
    let after = connection.afterwards(&probe()).await;
    (connection.port, answers, after)
}
