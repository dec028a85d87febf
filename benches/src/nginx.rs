//! nginx's two configuration files.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kind::Kind;
use crate::scene::Scene;
use crate::setup::{Handshakes, Setup};

/// Of the callee's certificate it could only check more than there is: a DNS name, which Consul's
/// certificates do not have.
pub(crate) const NOTE: &str =
    "only the caller's chain is checked; no SPIFFE ID, no intentions, no x-forwarded-client-cert";

/// The same, where its package brings no module for TCP.
pub(crate) const HTTP_ONLY_NOTE: &str = "no TCP, since it has no stream module (Debian: libnginx-mod-stream); only the caller's chain is \
     checked; no SPIFFE ID, no intentions, no x-forwarded-client-cert";

/// Bodies pass through as they come, connections are kept as long as the other peers keep them,
/// and nothing is written anywhere.
const HTTP: &str = "access_log off;
    client_max_body_size 0;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_set_header Connection '';
    proxy_set_header Host $host;";

/// Files that it would otherwise make in folders of the system.
const TEMPORARY: [&str; 5] = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];

/// Its module for TCP.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Is part of the program.
    BuiltIn,
    /// Has to be loaded from there.
    Module(PathBuf),
    /// Is not installed.
    Missing,
}

impl Stream {
    /// As the program itself tells.
    pub(crate) fn find(build_flags: &str) -> Self {
        let flags = || build_flags.split_whitespace();
        if flags().any(|flag| flag == "--with-stream") {
            return Self::BuiltIn;
        }
        flags()
            .find_map(|flag| flag.strip_prefix("--modules-path="))
            .map(|folder| Path::new(folder).join("ngx_stream_module.so"))
            .filter(|module| module.exists())
            .map_or(Self::Missing, Self::Module)
    }
}

/// The outbound sidecar's file.
pub(crate) fn outbound(scene: &Scene, setup: Setup, stream: &Stream) -> Result<String, String> {
    let certificate = scene.write("caller.pem", &scene.caller.chain_pem)?;
    let key = scene.write("caller.key", &scene.caller.key_pem)?;
    let tls = format!(
        "proxy_ssl_protocols {};
        proxy_ssl_session_reuse {};
        proxy_ssl_certificate {};
        proxy_ssl_certificate_key {};
        proxy_ssl_server_name on;
        proxy_ssl_name {};",
        protocols(setup),
        resumption(setup),
        certificate.display(),
        key.display(),
        scene.sni()
    );
    let listen = listen(setup);
    let server = |address: SocketAddr| match setup.kind {
        Kind::Tcp => format!(
            "server {{
        listen {address}{listen};
        proxy_pass {};
        proxy_half_close on;
        proxy_ssl on;
        {tls}
    }}
",
            scene.inbound
        ),
        _ => format!(
            "server {{
        listen {address}{listen};
        {tls}
        location / {{ proxy_pass https://next; }}
    }}
"
        ),
    };
    let mut servers = server(scene.outbound);
    if setup.further_upstreams {
        servers.extend(scene.further_upstreams.iter().map(|address| server(*address)));
    }
    Ok(file(scene, setup, "outbound", stream, scene.inbound, &servers))
}

/// The inbound sidecar's file.
pub(crate) fn inbound(scene: &Scene, setup: Setup, stream: &Stream) -> Result<String, String> {
    let certificate = scene.write("callee.pem", &scene.callee.chain_pem)?;
    let key = scene.write("callee.key", &scene.callee.key_pem)?;
    let roots = scene.write("roots.pem", &scene.roots)?;
    let backend = scene.backend.address(setup.kind);
    let pass = match setup.kind {
        Kind::Tcp => format!("proxy_half_close on;\n        proxy_pass {backend};"),
        _ => "location / { proxy_pass http://next; }".to_owned(),
    };
    let server = format!(
        "server {{
        listen {} ssl{};
        ssl_protocols {};
        ssl_session_tickets {};
        ssl_certificate {};
        ssl_certificate_key {};
        ssl_client_certificate {};
        ssl_verify_client on;
        {pass}
    }}
",
        scene.inbound,
        listen(setup),
        protocols(setup),
        resumption(setup),
        certificate.display(),
        key.display(),
        roots.display(),
    );
    Ok(file(scene, setup, "inbound", stream, backend, &server))
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

fn protocols(setup: Setup) -> &'static str {
    match setup.handshakes {
        Handshakes::Resumed => "TLSv1.2 TLSv1.3",
        Handshakes::Full => "TLSv1.3",
    }
}

fn resumption(setup: Setup) -> &'static str {
    match setup.handshakes {
        Handshakes::Resumed => "on",
        Handshakes::Full => "off",
    }
}

/// Several workers share connections evenly only with a socket each, as Attaché's and Envoy's do.
fn listen(setup: Setup) -> &'static str {
    if setup.workers > 1 { " reuseport" } else { "" }
}

fn file(scene: &Scene, setup: Setup, side: &str, stream: &Stream, next: SocketAddr, servers: &str) -> String {
    let folder = scene.folder().display();
    let load = match stream {
        Stream::Module(path) if setup.kind == Kind::Tcp => format!("load_module {};\n", path.display()),
        _ => String::new(),
    };
    let connections = scene.connections();
    let context = match setup.kind {
        Kind::Tcp => format!("stream {{\n    {servers}}}\n"),
        _ => {
            let temporary = TEMPORARY.map(|name| format!("{name}_temp_path {folder}/nginx-{name};\n    "));
            format!(
                "http {{
    {}{HTTP}
    upstream next {{
        server {next};
        keepalive {connections};
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    {servers}}}
",
                temporary.concat()
            )
        }
    };
    // It counts both ends of what it carries.
    let both_ends = 2 * connections + 100;
    format!(
        "{load}daemon off;
worker_processes {};
error_log stderr error;
pid {folder}/nginx-{side}.pid;
events {{
    worker_connections {both_ends};
}}
{context}",
        setup.workers
    )
}
