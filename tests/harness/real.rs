//! The count dashboard's two services on a real Consul agent, each with a sidecar process.

use std::net::SocketAddr;

use attache::demo::standin::Registration;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::app::App;
use crate::mesh::get;
use crate::process::Process;
use crate::{eventually, free_port};

/// `count-dashboard` reaches `count-api` through two sidecars.
#[derive(Debug)]
pub struct CountMesh {
    /// Where the dashboard dials the API.
    pub upstream: SocketAddr,
    /// The API's sidecar.
    pub api: Process,
    /// The dashboard's sidecar.
    pub dashboard: Process,
    /// The admin APIs of both, the API's first.
    pub admins: [SocketAddr; 2],
    _app: App,
}

/// How a sidecar of a service gets at Consul.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// More arguments for `attache run`.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
}

impl Access {
    /// Over the agent's plain HTTP address.
    pub fn plain(agent: &Agent) -> Self {
        Self {
            arguments: vec!["--http-addr".to_owned(), agent.http.to_string()],
            environment: Vec::new(),
        }
    }
}

/// A sidecar whose health is its service's, registered for itself. To one that is a part of its
/// service Consul adds a TCP check after each restart of the agent, which stands at critical until it
/// first ran, up to ten seconds later: no proxy may use an instance meanwhile.
fn sidecar(service: &str, port: u16, upstreams: &Value) -> Registration {
    Registration::new(&format!("{service}-sidecar-proxy"), free_port())
        .address("127.0.0.1")
        .field("Kind", json!("connect-proxy"))
        .field("Checks", json!([{ "Name": "service", "AliasService": service }]))
        .field(
            "Proxy",
            json!({
                "DestinationServiceName": service,
                "DestinationServiceID": service,
                "LocalServicePort": port,
                "Upstreams": upstreams,
            }),
        )
}

impl CountMesh {
    /// Registers both services, starts both sidecars and waits until they are ready.
    pub async fn start(agent: &Agent, program: &str, api: &Access, dashboard: &Access) -> Self {
        let app = App::echo("count").await;
        let upstream = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let upstreams = json!([{
            "DestinationName": "count-api",
            "LocalBindPort": upstream.port(),
        }]);
        for (service, port, upstreams) in [
            ("count-api", app.address.port(), json!([])),
            ("count-dashboard", free_port(), upstreams),
        ] {
            let registration = Registration::new(service, port).address("127.0.0.1");
            for one in [registration, sidecar(service, port, &upstreams)] {
                let body = Some(one.to_json());
                agent.api("PUT", "/v1/agent/service/register", body).await;
            }
        }
        let run = |service: &str, access: &Access| {
            let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let mut arguments = ["run", "--sidecar-for", service, "--admin-bind"]
                .map(str::to_owned)
                .to_vec();
            arguments.push(admin.to_string());
            arguments.extend(access.arguments.iter().cloned());
            let process = Process::start(service, program, &arguments, &access.environment);
            (process, admin)
        };
        let (api, api_admin) = run("count-api", api);
        let (dashboard, dashboard_admin) = run("count-dashboard", dashboard);
        let mesh = Self {
            upstream,
            api,
            dashboard,
            admins: [api_admin, dashboard_admin],
            _app: app,
        };
        for (admin, sidecar) in mesh.admins.iter().zip([&mesh.api, &mesh.dashboard]) {
            let ready = || async { (get(*admin, "/ready").await?.0 == 200).then_some(()) };
            let told = tokio::time::timeout(crate::PATIENCE, async {
                while ready().await.is_none() {
                    tokio::time::sleep(crate::LOOK).await;
                }
            });
            assert!(told.await.is_ok(), "not ready:\n{}", sidecar.log());
        }
        mesh
    }

    /// Waits until the roots in both sidecars' `/certs` include a certificate that appeared in them
    /// since `before`; gives the serial numbers now.
    pub async fn another_root(&self, before: &[Vec<String>; 2]) -> [Vec<String>; 2] {
        eventually("both sidecars know another root", || async {
            let now = self.roots().await;
            let grown = |at: usize| now[at].iter().any(|one| !before[at].contains(one));
            (grown(0) && grown(1)).then_some(now)
        })
        .await
    }

    /// The serial numbers of the roots that each sidecar trusts.
    pub async fn roots(&self) -> [Vec<String>; 2] {
        self.serials("ca_cert").await
    }

    /// The serial numbers of the leaves that each sidecar presents.
    pub async fn leaves(&self) -> [Vec<String>; 2] {
        self.serials("cert_chain").await
    }

    async fn serials(&self, key: &str) -> [Vec<String>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        for (serials, admin) in all.iter_mut().zip(self.admins) {
            let (_, body) = get(admin, "/certs").await.unwrap_or_default();
            let certs: Value = serde_json::from_str(&body).unwrap_or_default();
            let pairs = certs["certificates"].as_array().into_iter().flatten();
            let listed = pairs.flat_map(|pair| pair[key].as_array().into_iter().flatten());
            serials.extend(listed.filter_map(|one| Some(one["serial_number"].as_str()?.to_owned())));
        }
        all
    }
}
