//! Transparent proxy with real redirections by iptables, in a network namespace of the test's own.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::testing::{Proxy, app, chain, hears, listener, snapshot, tcp};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{Listener, ListenerFilters};
use crate::model::matcher::Cidr;
use crate::model::{Cluster, ClusterKind};

/// The port of Consul's outbound listener.
const OUTBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);

/// Whatever comes from here is redirected too.
const REDIRECTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 0);

/// How long it may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Virtual addresses that Consul gives services, all of which are redirected.
const VIRTUAL: &str = "240.0.0.0/4";

/// Gives this thread a network of its own in which [`VIRTUAL`] is redirected to [`OUTBOUND`].
fn own_network() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}"))?;
    let port = OUTBOUND.port().to_string();
    let redirect = [
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-d",
        VIRTUAL,
        "-j",
        "REDIRECT",
        "--to-ports",
        &port,
    ];
    run("ip", &["link", "set", "lo", "up"])?;
    // A source of its own: otherwise it would be 0.0.0.0, which no answer reaches.
    run("ip", &["address", "add", "10.0.0.1/32", "dev", "lo"])?;
    run("ip", &["route", "add", "default", "dev", "lo", "src", "10.0.0.1"])?;
    run("iptables", &redirect)?;
    // By the source, so that what the proxy dials itself is not: in Consul's rules its user tells it.
    run("ip", &["address", "add", "10.0.0.2/32", "dev", "lo"])?;
    let source = REDIRECTED.ip().to_string();
    let redirect = [
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-s",
        &source,
        "-j",
        "REDIRECT",
        "--to-ports",
        &port,
    ];
    run("iptables", &redirect)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ran = Command::new(program).args(arguments).output();
    let output = ran.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{program}: {said}"))
}

async fn redirected_connections_go_where_they_should() {
    let (api, elsewhere) = (app("api").await, app("elsewhere").await);
    let matches = FilterChainMatch {
        prefix_ranges: vec![Cidr::new(Ipv4Addr::new(240, 0, 0, 1).into(), 32).unwrap()],
        ..Default::default()
    };
    let outbound = Listener {
        filters: ListenerFilters {
            original_dst: true,
            ..Default::default()
        },
        filter_chains: vec![chain("api", matches, "api")],
        default_filter_chain: Some(chain(
            "default",
            FilterChainMatch::default(),
            "original-destination",
        )),
        ..listener("outbound_listener", tcp(OUTBOUND))
    };
    let mut snapshot = (*snapshot(vec![outbound], &[("api", api)])).clone();
    let passthrough = Cluster {
        name: "original-destination".into(),
        kind: ClusterKind::OriginalDestination,
        ..Cluster::default()
    };
    snapshot
        .clusters
        .insert(passthrough.name.clone(), Arc::new(passthrough));
    let told = async {
        hears("240.0.0.1:80".parse().unwrap(), "api").await;
        // No chain knows the app's own address: it is passed through.
        let mut heard = [0; 9];
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(REDIRECTED).unwrap();
        let mut stream = socket.connect(elsewhere).await.unwrap();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"elsewhere");
        // Not redirected: passing it through would be dialling ourselves, again and again.
        // The reset may come before the connect is told to have succeeded.
        let closed = match TcpStream::connect(OUTBOUND).await {
            Ok(mut stream) => stream.read(&mut [0]).await.unwrap_err(),
            Err(reset) => reset,
        };
        assert_eq!(closed.kind(), ErrorKind::ConnectionReset);
    };
    let mut proxy = Proxy::new(2);
    proxy.serve(Arc::new(snapshot), told).await;
}

#[test]
fn virtual_addresses_and_others_are_redirected() {
    // A namespace is of a thread and those that it starts.
    let thread = std::thread::spawn(|| {
        if let Err(why) = own_network() {
            println!("skipped: {why}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let whole = redirected_connections_go_where_they_should();
            tokio::time::timeout(PATIENCE, whole).await.unwrap();
        });
    });
    thread.join().unwrap();
}
