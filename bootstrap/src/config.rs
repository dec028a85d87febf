//! What one sidecar process runs with, after arguments, environment and files were put together.
//!
//! Owns no handles: paths are read and addresses dialled by others. Values that Consul's
//! registration decides (upstreams, the public listener) are only *hints* here; `control::consul`
//! prefers the registration and logs a difference by name.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::Secret;

/// Everything `attache run` needs before it has spoken to Consul.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which proxy this process is.
    pub proxy: ProxyRef,
    /// How Consul's HTTP API is reached.
    pub consul: ConsulAgent,
    /// Nomad's `NOMAD_UPSTREAM_*`, one entry an upstream; fills in only what no registration gives.
    pub upstream_hints: Vec<UpstreamHint>,
    /// `0.0.0.0` and `NOMAD_ALLOC_PORT_connect-proxy-<service>`; used where the registration has no
    /// `bind_port`.
    pub public_hint: Option<SocketAddr>,
    /// Where the admin API listens.
    pub admin: AdminBind,
    /// Worker threads, each with its own sockets. At least 1.
    pub concurrency: usize,
    /// How long a drain may last before what is left is cut. Nomad's kill timeout is 5 s.
    pub drain_time: Duration,
    /// How log lines look and which are written.
    pub log: LogConfig,
}

/// Which registration this sidecar serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyRef {
    /// `--proxy-id`: the ID of the `connect-proxy` registration itself.
    ProxyId(String),
    /// `--sidecar-for`: the ID of the service; its one sidecar registration is looked up.
    SidecarFor(String),
    /// A Nomad allocation: the one registration whose ID begins with `prefix`, ends in
    /// `-sidecar-proxy` and whose `DestinationServiceName` is `service`.
    Nomad {
        /// `_nomad-task-<alloc>-group-<group>-<service>-`.
        prefix: String,
        /// The part of `NOMAD_TASK_NAME` after `connect-proxy-`.
        service: String,
    },
    /// No registration at all: `--service`, `--listen`, `--local-service`, `--upstream`.
    Manual(ManualProxy),
}

/// A proxy described by arguments alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManualProxy {
    /// The service whose identity (leaf certificate) is used and whose intentions are checked.
    pub service: String,
    /// The public mTLS listener; none makes a proxy with upstreams only.
    pub listen: Option<SocketAddr>,
    /// Where the plain bytes of inbound connections go. Present whenever `listen` is.
    pub local_service: Option<SocketAddr>,
    /// The upstreams, in the order given.
    pub upstreams: Vec<ManualUpstream>,
}

/// `--upstream NAME:PORT[@DC]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManualUpstream {
    /// The destination service.
    pub destination: String,
    /// The loopback port.
    pub local_bind_port: u16,
    /// The destination's datacenter; the agent's own when absent.
    pub datacenter: Option<String>,
}

/// One upstream as Nomad's variables tell it, keyed by the destination's name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHint {
    /// The name as written in the job (with dashes, where a variable of that spelling exists).
    pub destination: String,
    /// Where the app dials.
    pub bind: SocketAddr,
    /// The variable it came from, for messages.
    pub variable: String,
}

/// How Consul's HTTP API is reached and as whom.
#[derive(Clone, Debug)]
pub struct ConsulAgent {
    /// Scheme and place.
    pub address: ConsulAddress,
    /// Used only with [`ConsulAddress::Https`].
    pub tls: ConsulTls,
    /// Where the ACL token comes from.
    pub token: TokenSource,
    /// `CONSUL_NAMESPACE` (Consul Enterprise).
    pub namespace: Option<String>,
    /// `CONSUL_PARTITION` (Consul Enterprise).
    pub partition: Option<String>,
}

/// `CONSUL_HTTP_ADDR` in its three forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsulAddress {
    /// Plain HTTP. `host` is a name or an address without brackets.
    Http {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// HTTP over TLS.
    Https {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A unix socket, such as Nomad's `alloc/tmp/consul_http.sock`.
    Unix(PathBuf),
}

impl ConsulAddress {
    /// What the `Host` header says: host and port, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self {
            Self::Http { host, port } | Self::Https { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Http { host, port } | Self::Https { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// As a URL, for a person.
impl fmt::Display for ConsulAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { .. } => write!(f, "http://{}", self.authority()),
            Self::Https { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// `CONSUL_CACERT`, `CONSUL_CAPATH`, `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`,
/// `CONSUL_TLS_SERVER_NAME` and `CONSUL_HTTP_SSL_VERIFY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsulTls {
    /// A PEM file with the authorities trusted for the agent. With neither this nor `ca_path`, the
    /// system's bundle.
    pub ca_file: Option<PathBuf>,
    /// A folder of PEM files.
    pub ca_path: Option<PathBuf>,
    /// The client certificate's PEM file; present whenever `client_key` is.
    pub client_cert: Option<PathBuf>,
    /// The client key's PEM file; present whenever `client_cert` is.
    pub client_key: Option<PathBuf>,
    /// The name to verify instead of the address's host.
    pub server_name: Option<String>,
    /// `CONSUL_HTTP_SSL_VERIFY=false` only; everything is verified by default.
    pub insecure_skip_verify: bool,
}

/// Where the ACL token comes from. A file is watched and read again when it changes.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// Anonymous.
    None,
    /// `--token` or `CONSUL_HTTP_TOKEN`.
    Literal(Secret),
    /// `--token-file`, `CONSUL_HTTP_TOKEN_FILE` or Nomad's `si_token` / `consul_token`; the first
    /// path of the list that exists and is not empty wins, asked again at each reading.
    Files(Vec<PathBuf>),
    /// `--auth-method`: the JWT in `jwt_file` is exchanged at `/v1/acl/login`.
    Login {
        /// Consul's auth method.
        auth_method: String,
        /// `nomad_*.jwt` of the secrets folder, or `--jwt-file`.
        jwt_file: PathBuf,
    },
}

/// Where the admin API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminBind {
    /// Loopback unless given by hand.
    pub address: IpAddr,
    /// The first port tried.
    pub port: u16,
    /// Given by hand: a taken port is an error. Otherwise the next free one is used and logged.
    pub explicit: bool,
}

/// How log lines look and which are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The lowest level written.
    pub level: LogLevel,
    /// One line of text or one JSON object an event.
    pub format: LogFormat,
}

/// Envoy's level names; `Critical` writes what `Error` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Envoy's and say what they are")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    /// As Envoy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` after a time and a level.
    Text,
    /// One JSON object a line.
    Json,
}
