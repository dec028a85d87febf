//! A proxy on a static configuration, in the shape that Consul gives a sidecar for TCP: a real Envoy, or an
//! Attaché on the very same file.

use std::net::SocketAddr;

use attache::demo::standin::Issued;
use serde_json::{Value, json};

use crate::mesh::get;
use crate::process::Process;
use crate::{free_port, tools};

/// The type URLs of extensions begin so.
const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// A TLS version that an Envoy is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2, which Envoy's clients offer by default.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Which proxy runs the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The one on PATH.
    Envoy,
    /// The program at this path.
    Attache(&'static str),
}

/// A running proxy with one listener; it ends with its handle.
#[derive(Debug)]
pub struct Envoy {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its admin API.
    pub admin: SocketAddr,
    /// Its process.
    pub process: Process,
}

/// Who an Envoy is, whom it trusts, what it speaks.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    /// Its certificate and key.
    pub issued: &'a Issued,
    /// The trusted roots.
    pub roots_pem: &'a str,
    /// The one version that it speaks.
    pub version: Version,
}

impl Envoy {
    /// The inbound side of an Envoy: ends mTLS and hands the bytes to `app`. `None` without an Envoy on PATH.
    pub async fn inbound(identity: &Identity<'_>, app: SocketAddr) -> Option<Self> {
        Self::inbound_by(Program::Envoy, identity, app, &[]).await
    }

    /// The inbound side of `program`, which denies the callers whose SPIFFE ID matches one of the
    /// expressions in `denied`.
    pub async fn inbound_by(
        program: Program,
        identity: &Identity<'_>,
        app: SocketAddr,
        denied: &[&str],
    ) -> Option<Self> {
        let mut tls = identity.context("DownstreamTlsContext");
        tls["typed_config"]["require_client_certificate"] = true.into();
        let principal = |regex: &&str| json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": regex } } } });
        let rules = json!({ "action": "DENY", "policies": { "consul-intentions-layer4": {
            "permissions": [{ "any": true }],
            "principals": denied.iter().map(principal).collect::<Vec<_>>(),
        }}});
        let rbac = json!({ "name": "envoy.filters.network.rbac", "typed_config": {
            "@type": format!("{TYPE}.filters.network.rbac.v3.RBAC"),
            "stat_prefix": "connect_authz",
            "rules": rules,
        }});
        let filters = if denied.is_empty() { vec![] } else { vec![rbac] };
        start(program, Some(tls), filters, cluster(app, None)).await
    }

    /// The outbound side of an Envoy: takes plain bytes and speaks mTLS to `public`, which must be `uri`.
    pub async fn outbound(identity: &Identity<'_>, public: SocketAddr, sni: &str, uri: &str) -> Option<Self> {
        Self::outbound_by(Program::Envoy, identity, public, sni, uri).await
    }

    /// The outbound side of `program`.
    pub async fn outbound_by(
        program: Program,
        identity: &Identity<'_>,
        public: SocketAddr,
        sni: &str,
        uri: &str,
    ) -> Option<Self> {
        let mut tls = identity.context("UpstreamTlsContext");
        tls["typed_config"]["sni"] = sni.into();
        tls["typed_config"]["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"] =
            json!([{ "san_type": "URI", "matcher": { "exact": uri } }]);
        start(program, None, vec![], cluster(public, Some(tls))).await
    }
}

impl Identity<'_> {
    fn context(&self, kind: &str) -> Value {
        let version = match self.version {
            Version::V1_2 => "TLSv1_2",
            Version::V1_3 => "TLSv1_3",
        };
        json!({ "name": "tls", "typed_config": {
            "@type": format!("{TYPE}.transport_sockets.tls.v3.{kind}"),
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": version,
                    "tls_maximum_protocol_version": version,
                },
                "tls_certificates": [{
                    "certificate_chain": { "inline_string": self.issued.chain_pem },
                    "private_key": { "inline_string": self.issued.key_pem },
                }],
                "validation_context": { "trusted_ca": { "inline_string": self.roots_pem } },
            },
        }})
    }
}

impl Program {
    /// Its name and path; `None` for an Envoy that is not on PATH.
    pub fn found(self) -> Option<(&'static str, String)> {
        match self {
            Self::Envoy => Some(("envoy", tools::on_path("envoy")?.to_string_lossy().into_owned())),
            Self::Attache(path) => Some(("attache", path.to_owned())),
        }
    }
}

/// A running proxy on static resources; it ends with its handle.
#[derive(Debug)]
pub struct Static {
    /// Its admin API.
    pub admin: SocketAddr,
    /// Its process.
    pub process: Process,
}

impl Static {
    /// Runs `program` on a file of these `static_resources` alone and waits until it is ready. `None`
    /// without an Envoy where one is wanted.
    pub async fn start(program: Program, resources: &Value) -> Option<Self> {
        Self::start_with(program, resources, &["--concurrency", "1"]).await
    }

    /// As [`Self::start`], with other arguments.
    pub async fn start_with(program: Program, resources: &Value, arguments: &[&str]) -> Option<Self> {
        let (_, path) = program.found()?;
        Some(Self::run((path, Vec::new()), resources, arguments).await)
    }

    /// As [`Self::start`], by another program that is given these arguments before the proxy's.
    pub async fn start_by(by: (String, Vec<String>), resources: &Value) -> Self {
        Self::run(by, resources, &["--concurrency", "1"]).await
    }

    /// What `program` says when it ends instead of running a file of these `static_resources`. `None` without an
    /// Envoy where one is wanted.
    pub async fn refusal(program: Program, resources: &Value) -> Option<String> {
        let (_, path) = program.found()?;
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let arguments = arguments(admin, resources, &["--concurrency", "1"]);
        let mut process = Process::start("the proxy", &path, &arguments, &[]);
        let ended = process.ended().await;
        assert!(!ended.success(), "it ran and ended:\n{}", process.log());
        Some(process.log())
    }

    async fn run((program, before): (String, Vec<String>), resources: &Value, arguments: &[&str]) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let arguments: Vec<String> = before
            .into_iter()
            .chain(self::arguments(admin, resources, arguments))
            .collect();
        let mut process = Process::start("the proxy", &program, &arguments, &[]);
        let ready = tokio::time::timeout(crate::PATIENCE, async {
            while get(admin, "/ready").await.is_none_or(|(status, _)| status != 200) {
                if !process.is_running() {
                    let _ = process.ended().await;
                    panic!("it ended before it was ready:\n{}", process.log());
                }
                tokio::time::sleep(crate::LOOK).await;
            }
        });
        assert!(ready.await.is_ok(), "it is not ready:\n{}", process.log());
        Self { admin, process }
    }

    /// The sum of a metric's series that have all of `labels` in their text; `None` without any.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, page) = get(self.admin, "/stats/prometheus").await?;
        let named = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let of = named.filter(|line| labels.iter().all(|label| line.contains(label)));
        let values = of.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.reduce(|sum, value| sum + value)
    }
}

/// What a proxy is given to run a file of these `static_resources` alone.
fn arguments(admin: SocketAddr, resources: &Value, more: &[&str]) -> Vec<String> {
    let config = json!({
        "node": { "id": "scenario", "cluster": "scenario" },
        "admin": { "address": place(admin) },
        "static_resources": resources,
    });
    let config = config.to_string();
    let common = ["--config-yaml", &config, "--disable-hot-restart", "-l", "info"];
    common.iter().chain(more).map(|&a| a.to_owned()).collect()
}

async fn start(
    program: Program,
    listener_tls: Option<Value>,
    mut filters: Vec<Value>,
    cluster: Value,
) -> Option<Envoy> {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    filters.push(
        json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": format!("{TYPE}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "carried",
            "cluster": "other_side",
        }}),
    );
    let mut chain = json!({ "filters": filters });
    if let Some(tls) = listener_tls {
        chain["transport_socket"] = tls;
    }
    let listener = json!({
        "name": "listener", "address": place(address), "filter_chains": [chain],
    });
    let resources = json!({ "listeners": [listener], "clusters": [cluster] });
    let Static { admin, process } = Static::start(program, &resources).await?;
    Some(Envoy {
        address,
        admin,
        process,
    })
}

fn cluster(endpoint: SocketAddr, tls: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": "other_side", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "other_side", "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": place(endpoint) } }] },
        ]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

/// An address as Envoy writes it.
pub fn place(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
