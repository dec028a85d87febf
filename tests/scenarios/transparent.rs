//! A transparent proxy in a network namespace of its own: iptables hands over what an app sends to any
//! address, and the original destination chooses. Needs root and iptables; says so where it is skipped.

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::sync::Mutex;

use attache_tests::app::{App, Line};
use attache_tests::envoy::{Program, Static, place};
use attache_tests::once::once;
use attache_tests::tools::on_path;
use serde_json::{Value, json};

use crate::static_tcp::{cluster, tcp_proxy};
use crate::xds_mesh::OURS;

/// Where Consul has a transparent proxy listen.
const OUTBOUND: &str = "127.0.0.1:15001";
/// Whose connections are not handed over: the proxy's own, by the group that it runs with.
const GROUP: &str = "1337";
/// The network that is handed over: a virtual IP that nobody has, an app's own address, and nobody's.
const NETWORK: &str = "10.9.0.0/24";
const VIRTUAL: &str = "10.9.0.3:80";
const DIRECT: &str = "10.9.0.2:8081";
const NOBODY: &str = "10.9.0.9:81";

/// Runs `scenario` on a thread that has a network namespace of its own, as have its children.
fn in_own_network(scenario: impl Future<Output = ()> + Send + 'static) {
    let skipped = |why: &str| {
        let _ = writeln!(std::io::stderr(), "skipped: {why}");
    };
    if ["ip", "iptables", "setpriv"]
        .iter()
        .any(|name| on_path(name).is_none())
    {
        return;
    }
    let thread = std::thread::spawn(move || {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            return skipped("not root: no network namespace can be made");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(scenario);
    });
    thread.join().unwrap();
}

async fn shell(command: &str) {
    let path = [("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
    let ended = once("/bin/sh", &["-ec", command], &path).await;
    assert_eq!(ended.code, Some(0), "{command}: {ended:?}");
}

fn resources(api: SocketAddr) -> Value {
    json!({
        "listeners": [{
            "name": "outbound_listener", "address": place(OUTBOUND.parse().unwrap()),
            "listener_filters": [{ "name": "envoy.filters.listener.original_dst", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst" } }],
            "filter_chains": [{
                "filter_chain_match": { "prefix_ranges": [{ "address_prefix": "10.9.0.3", "prefix_len": 32 }] },
                "filters": [tcp_proxy(json!({ "cluster": "api" }))],
            }],
            "default_filter_chain": { "filters": [tcp_proxy(json!({ "cluster": "original-destination" }))] },
        }],
        "clusters": [
            cluster("api", &[api]),
            { "name": "original-destination", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
              "connect_timeout": "2s" },
        ],
    })
}

async fn outcome(at: &str) -> String {
    let asked = async { Line::connect(at.parse().unwrap()).await?.ask("hi").await };
    asked
        .await
        .unwrap_or_else(|error: std::io::Error| match error.kind() {
            // Envoy's close is a reset only if it has not read what was asked by then; ours always is.
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => "ended".to_owned(),
            other => format!("{other:?}"),
        })
}

/// The proxy by its own group, through `setpriv`.
async fn outcomes(program: Program) -> Option<Vec<String>> {
    let (_, path) = program.found()?;
    let api = App::echo("virtual").await;
    let _direct = App::echo_at(DIRECT.parse().unwrap(), "direct").await;
    let setpriv = on_path("setpriv")?;
    let arguments = [format!("--regid={GROUP}"), "--clear-groups".to_owned(), path];
    let by_group = (setpriv.to_string_lossy().into_owned(), arguments.to_vec());
    let _proxy = Static::start_by(by_group, &resources(api.address)).await;
    let mut all = Vec::new();
    for at in [VIRTUAL, DIRECT, NOBODY] {
        all.push(outcome(at).await);
    }
    Some(all)
}

#[test]
fn the_original_destination_chooses_as_in_envoy() {
    /// One after the other: both listen at the same address of namespaces that die with their thread.
    static SEEN: Mutex<Vec<Vec<String>>> = Mutex::new(Vec::new());
    for program in [OURS, Program::Envoy] {
        in_own_network(async move {
            shell(&format!(
                "ip link set lo up; ip route add local {NETWORK} dev lo; \
                 iptables -t nat -A OUTPUT -p tcp -d {NETWORK} -m owner ! --gid-owner {GROUP} -j REDIRECT --to-ports 15001"
            ))
            .await;
            if let Some(all) = outcomes(program).await {
                assert_eq!(all[..2], ["virtual: hi", "direct: hi"], "{program:?}");
                SEEN.lock().unwrap().push(all);
            }
        });
    }
    let seen = SEEN.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}
