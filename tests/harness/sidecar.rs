//! Services on a real Consul agent with a sidecar in Envoy's place: registered, given the bootstrap file
//! that Consul itself writes, and run by an Attaché or a real Envoy.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::app::{App, Line};
use crate::envoy::Program;
use crate::mesh::get;
use crate::once::{Ended, once};
use crate::process::Process;
use crate::tools::on_path;
use crate::{Folder, eventually, free_port};

/// How a sidecar reaches the agent's xDS server.
#[derive(Clone, Debug)]
pub struct Xds {
    /// As `-grpc-addr` takes it.
    pub address: String,
    /// Put into the bootstrap.
    pub token: Option<String>,
    /// Whose `--version` Consul asks before it writes a bootstrap.
    pub binary: String,
}

/// A registered service with its app.
#[derive(Debug)]
pub struct Service {
    /// Its name at Consul.
    pub name: String,
    /// Its ID there; the proxy's is [`Self::proxy_id`].
    pub id: String,
    /// The app.
    pub app: App,
    /// The sidecar's public mTLS listener.
    pub public: SocketAddr,
    /// The sidecar's admin API.
    pub admin: SocketAddr,
    /// Where each upstream listens, by name.
    pub upstreams: BTreeMap<String, SocketAddr>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Service {
    /// A service `name` with the ID `<name>-<number>`, an app that answers lines with that ID, and
    /// upstreams on free ports; not registered yet.
    pub async fn new(name: &str, number: usize, upstreams: &[&str]) -> Self {
        let id = format!("{name}-{number}");
        Self {
            name: name.to_owned(),
            app: App::echo(&id).await,
            id,
            public: loopback(),
            admin: loopback(),
            upstreams: upstreams
                .iter()
                .map(|&name| (name.to_owned(), loopback()))
                .collect(),
        }
    }

    /// Makes and registers it.
    pub async fn registered(agent: &Agent, name: &str, number: usize, upstreams: &[&str]) -> Self {
        let service = Self::new(name, number, upstreams).await;
        service.register(agent, json!({})).await;
        service
    }

    /// The ID of its proxy.
    pub fn proxy_id(&self) -> String {
        format!("{}-sidecar-proxy", self.id)
    }

    /// Registers service and proxy (again), the proxy with this `Proxy.Config`. The proxy's health is its
    /// service's: after a restart of the agent a TCP check would stand at critical for a while.
    pub async fn register(&self, agent: &Agent, config: Value) {
        let upstreams = self.upstreams.iter();
        let upstreams: Vec<Value> = upstreams
            .map(|(name, at)| json!({ "DestinationName": name, "LocalBindPort": at.port() }))
            .collect();
        let service = json!({
            "Name": self.name, "ID": self.id, "Address": "127.0.0.1", "Port": self.app.address.port(),
        });
        let proxy = json!({
            "Kind": "connect-proxy",
            "Name": format!("{}-sidecar-proxy", self.name),
            "ID": self.proxy_id(),
            "Address": "127.0.0.1",
            "Port": self.public.port(),
            "Checks": [{ "Name": "service", "AliasService": self.id }],
            "Proxy": {
                "DestinationServiceName": self.name,
                "DestinationServiceID": self.id,
                "LocalServicePort": self.app.address.port(),
                "Upstreams": upstreams,
                "Config": config,
            },
        });
        for one in [service, proxy] {
            agent.api("PUT", "/v1/agent/service/register", Some(one)).await;
        }
    }

    /// Takes service and proxy out of Consul.
    pub async fn deregister(&self, agent: &Agent) {
        for id in [self.proxy_id(), self.id.clone()] {
            let path = format!("/v1/agent/service/deregister/{id}");
            agent.api("PUT", &path, None).await;
        }
    }

    /// The arguments of `consul connect envoy` for its proxy.
    pub fn arguments(&self, agent: &Agent, xds: &Xds) -> Vec<String> {
        let mut arguments = vec![
            "connect".to_owned(),
            "envoy".to_owned(),
            format!("-proxy-id={}", self.proxy_id()),
            format!("-http-addr={}", agent.http),
            format!("-grpc-addr={}", xds.address),
            format!("-admin-bind={}", self.admin),
            format!("-envoy-binary={}", xds.binary),
        ];
        arguments.extend(xds.token.iter().map(|token| format!("-token={token}")));
        arguments
    }

    /// The bootstrap that `consul connect envoy -bootstrap` writes for its proxy.
    pub async fn bootstrap(&self, agent: &Agent, xds: &Xds) -> String {
        let mut arguments = self.arguments(agent, xds);
        arguments.push("-bootstrap".to_owned());
        let ended = consul(&arguments).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.out
    }

    /// Starts a sidecar on the bootstrap that Consul writes, which is put into `folder`.
    ///
    /// # Panics
    /// Where `program` is an Envoy and none is on PATH.
    pub async fn sidecar(&self, program: Program, agent: &Agent, xds: &Xds, folder: &Folder) -> Process {
        let text = self.bootstrap(agent, xds).await;
        let file = folder.write(&format!("{}.json", self.id), &text);
        start(program, &file, &[])
    }

    /// Waits until its admin API says LIVE and each upstream's listener accepts.
    pub async fn ready(&self, sidecar: &Process) {
        let listening = self.upstreams.values().chain([&self.public]);
        let ready = || async {
            (get(self.admin, "/ready").await?.0 == 200).then_some(())?;
            for address in listening.clone() {
                tokio::net::TcpStream::connect(*address).await.ok()?;
            }
            Some(())
        };
        let waited = tokio::time::timeout(crate::PATIENCE, async {
            while ready().await.is_none() {
                tokio::time::sleep(crate::LOOK).await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{} is not ready:\n{}",
            self.id,
            sidecar.log()
        );
    }

    /// One line to an upstream over a new connection.
    pub async fn ask(&self, upstream: &str, line: &str) -> std::io::Result<String> {
        Line::connect(self.upstreams[upstream]).await?.ask(line).await
    }

    /// Asks until the answer begins with `wanted`; gives the connection that it came by.
    pub async fn hears(&self, upstream: &str, wanted: &str) -> Line {
        eventually(&format!("{} hears {wanted} from {upstream}", self.id), || async {
            let mut line = Line::connect(self.upstreams[upstream]).await.ok()?;
            let answer = line.ask("hi").await.ok()?;
            answer.starts_with(wanted).then_some(line)
        })
        .await
    }

    /// The serial numbers of one key of its sidecar's `/certs`: `ca_cert` or `cert_chain`.
    pub async fn serials(&self, key: &str) -> Vec<String> {
        let (_, body) = get(self.admin, "/certs").await.unwrap_or_default();
        let certs: Value = serde_json::from_str(&body).unwrap_or_default();
        let pairs = certs["certificates"].as_array().into_iter().flatten();
        let listed = pairs.flat_map(|pair| pair[key].as_array().into_iter().flatten());
        listed
            .filter_map(|one| Some(one["serial_number"].as_str()?.to_owned()))
            .collect()
    }
}

/// Starts `program` on a bootstrap file with Envoy's arguments, as Nomad does.
///
/// # Panics
/// Where `program` is an Envoy and none is on PATH.
pub fn start(program: Program, file: &str, environment: &[(String, String)]) -> Process {
    let arguments = [
        "-c",
        file,
        "-l",
        "info",
        "--concurrency",
        "1",
        "--disable-hot-restart",
    ];
    let (name, program) = program.found().unwrap();
    Process::start(name, &program, &arguments.map(str::to_owned), environment)
}

/// Runs `consul` to its end.
pub async fn consul(arguments: &[String]) -> Ended {
    let program = on_path("consul").unwrap();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    once(&program.to_string_lossy(), &arguments, &[]).await
}
