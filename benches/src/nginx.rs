//! nginx's two configuration files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scene::Scene;

/// Of the callee's certificate it could only check more than there is: a DNS name, which Consul's
/// certificates do not have.
pub(crate) const NOTE: &str = "only the caller's chain is checked; no SPIFFE ID, no intentions";

/// Where its stream module has to be loaded from, if it is not built in; an error without any.
pub(crate) fn stream_module(build_flags: &str) -> Result<Option<PathBuf>, String> {
    let flags = || build_flags.split_whitespace();
    if flags().any(|flag| flag == "--with-stream") {
        return Ok(None);
    }
    flags()
        .find_map(|flag| flag.strip_prefix("--modules-path="))
        .map(|folder| Path::new(folder).join("ngx_stream_module.so"))
        .filter(|module| module.exists())
        .map(Some)
        .ok_or_else(|| "nginx has no stream module (Debian: libnginx-mod-stream)".to_owned())
}

/// The outbound sidecar's file.
pub(crate) fn outbound(scene: &Scene, module: Option<&Path>) -> Result<String, String> {
    let certificate = scene.write("caller.pem", &scene.caller.chain_pem)?;
    let key = scene.write("caller.key", &scene.caller.key_pem)?;
    let server = format!(
        "listen {};
        proxy_pass {};
        proxy_half_close on;
        proxy_ssl on;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        proxy_ssl_certificate {};
        proxy_ssl_certificate_key {};
        proxy_ssl_server_name on;
        proxy_ssl_name {};",
        scene.outbound,
        scene.inbound,
        certificate.display(),
        key.display(),
        scene.sni()
    );
    Ok(file(scene, "outbound", module, &server))
}

/// The inbound sidecar's file.
pub(crate) fn inbound(scene: &Scene, module: Option<&Path>) -> Result<String, String> {
    let certificate = scene.write("callee.pem", &scene.callee.chain_pem)?;
    let key = scene.write("callee.key", &scene.callee.key_pem)?;
    let roots = scene.write("roots.pem", &scene.roots)?;
    let server = format!(
        "listen {} ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {};
        ssl_certificate_key {};
        ssl_client_certificate {};
        ssl_verify_client on;
        proxy_half_close on;
        proxy_pass {};",
        scene.inbound,
        certificate.display(),
        key.display(),
        roots.display(),
        scene.backend
    );
    Ok(file(scene, "inbound", module, &server))
}

/// Its command line, which names no file outside our folder.
pub(crate) fn command(scene: &Scene, file: &Path) -> Command {
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(scene.folder())
        .arg("-c")
        .arg(file)
        .args(["-e", "stderr"]);
    command
}

fn file(scene: &Scene, side: &str, module: Option<&Path>, server: &str) -> String {
    let load = module.map_or(String::new(), |path| format!("load_module {};\n", path.display()));
    format!(
        "{load}daemon off;
worker_processes 1;
error_log stderr error;
pid {}/nginx-{side}.pid;
events {{
    worker_connections 9000;
}}
stream {{
    server {{
        {server}
    }}
}}
",
        scene.folder().display()
    )
}
