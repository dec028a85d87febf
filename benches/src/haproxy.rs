//! HAProxy's two configuration files.

use crate::scene::Scene;

/// With an SNI it would demand a DNS name that Consul's certificates do not have.
pub(crate) const NOTE: &str = "chain checked on both sides; no SNI, no SPIFFE ID, no intentions";

const DEFAULTS: &str = "global
    nbthread 1
    maxconn 8000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
";

/// The outbound sidecar's file.
pub(crate) fn outbound(scene: &Scene) -> Result<String, String> {
    let tls = tls(scene, "caller", &scene.caller.chain_pem, &scene.caller.key_pem)?;
    Ok(format!(
        "{DEFAULTS}listen upstream\n    bind {}\n    server callee {} {tls}\n",
        scene.outbound, scene.inbound
    ))
}

/// The inbound sidecar's file.
pub(crate) fn inbound(scene: &Scene) -> Result<String, String> {
    let tls = tls(scene, "callee", &scene.callee.chain_pem, &scene.callee.key_pem)?;
    Ok(format!(
        "{DEFAULTS}listen public\n    bind {} {tls}\n    server local {}\n",
        scene.inbound, scene.backend
    ))
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
