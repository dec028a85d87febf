//! Transparent proxy with real redirections by iptables, in a network namespace of the test's own.
#![expect(clippy::print_stdout, reason = "says that it was skipped, and why")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::testing::{Proxy, app, chain, hears, listener, snapshot, tcp};
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{Listener, ListenerFilters};
use crate::model::matcher::Cidr;

/// The port of Consul's outbound listener.
const OUTBOUND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);

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
    // Where there is no other address the kernel takes 0.0.0.0, to which no answer finds its way.
    run("ip", &["address", "add", "198.51.100.1/32", "dev", "lo"])?;
    run("ip", &["route", "add", "default", "dev", "lo"])?;
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

async fn virtual_addresses_find_their_chains() {
    let (api, other) = (app("api").await, app("other").await);
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
        default_filter_chain: Some(chain("default", FilterChainMatch::default(), "other")),
        ..listener("outbound_listener", tcp(OUTBOUND))
    };
    let mut proxy = Proxy::new(2);
    let told = async {
        hears("240.0.0.1:80".parse().unwrap(), "api").await;
        hears("240.0.0.2:80".parse().unwrap(), "other").await;
        // Not redirected: the destination is its own address.
        hears(OUTBOUND, "other").await;
    };
    let snapshot = snapshot(vec![outbound], &[("api", api), ("other", other)]);
    proxy.serve(snapshot, told).await;
}

#[test]
fn redirected_connections_find_the_chain_of_their_virtual_address() {
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
            let whole = virtual_addresses_find_their_chains();
            tokio::time::timeout(PATIENCE, whole).await.unwrap();
        });
    });
    thread.join().unwrap();
}
