//! HAProxy's two configuration files.

use crate::kind::Kind;
use crate::scene::Scene;
use crate::setup::{Handshakes, Setup};

/// With an SNI it would demand a DNS name that Consul's certificates do not have.
pub(crate) const NOTE: &str =
    "chain checked on both sides; no SNI, no SPIFFE ID, no intentions, no x-forwarded-client-cert";

/// Kept connections to the next hop are lent to any request, as Envoy lends its own.
const HTTP: &str = "    http-reuse always\n";

/// It keeps none by default once a quarter of its descriptors is in use: with many open connections
/// each request would have a handshake.
const KEEP: &str = "    tune.pool-low-fd-ratio 90\n    tune.pool-high-fd-ratio 95\n";

/// The outbound sidecar's file.
pub(crate) fn outbound(scene: &Scene, setup: Setup) -> Result<String, String> {
    let tls = tls(scene, "caller", &scene.caller.chain_pem, &scene.caller.key_pem)?;
    let full = match setup.handshakes {
        Handshakes::Resumed => "",
        Handshakes::Full => " no-ssl-reuse ssl-min-ver TLSv1.3",
    };
    let mut text = defaults(scene, setup);
    let mut add = |name: &str, address| {
        text += &format!(
            "listen {name}\n    bind {address}\n    server callee {} {tls}{full}\n",
            scene.inbound
        );
    };
    add("upstream", scene.outbound);
    if setup.further_upstreams {
        for (index, address) in scene.further_upstreams.iter().enumerate() {
            add(&format!("upstream-{index}"), *address);
        }
    }
    Ok(text)
}

/// The inbound sidecar's file.
pub(crate) fn inbound(scene: &Scene, setup: Setup) -> Result<String, String> {
    let tls = tls(scene, "callee", &scene.callee.chain_pem, &scene.callee.key_pem)?;
    let full = match setup.handshakes {
        Handshakes::Resumed => "",
        Handshakes::Full => " no-tls-tickets ssl-min-ver TLSv1.3",
    };
    Ok(format!(
        "{}listen public\n    bind {} {tls}{full}\n    server local {}\n",
        defaults(scene, setup),
        scene.inbound,
        scene.backend.address(setup.kind)
    ))
}

fn defaults(scene: &Scene, setup: Setup) -> String {
    let cache = match setup.handshakes {
        Handshakes::Resumed => "",
        Handshakes::Full => "    tune.ssl.cachesize 0\n",
    };
    let (mode, http, keep) = match setup.kind {
        Kind::Tcp => ("tcp", "", ""),
        _ => ("http", HTTP, KEEP),
    };
    format!(
        "global
    nbthread {}
    maxconn {}
{cache}{keep}defaults
    mode {mode}
{http}    timeout connect 5s
    timeout client 1h
    timeout server 1h
",
        setup.workers,
        scene.connections()
    )
}

fn tls(scene: &Scene, name: &str, chain: &str, key: &str) -> Result<String, String> {
    let certificate = scene.write(&format!("{name}-both.pem"), &format!("{chain}{key}"))?;
    let roots = scene.write("roots.pem", &scene.roots)?;
    Ok(format!(
        "ssl crt {} ca-file {} verify required",
        certificate.display(),
        roots.display()
    ))
}
