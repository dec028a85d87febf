//! A stand-in with members: services with their apps and sidecar processes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use attache::demo::standin::{Registration, Sidecar, StandIn, StandInOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{App, Line};
use crate::process::Process;
use crate::{eventually, free_port};

/// The admin address of a member whose sidecar has not said it yet.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A mesh on one stand-in.
#[derive(Debug)]
pub struct Mesh {
    /// Consul, as far as the sidecars can tell.
    pub consul: StandIn,
    program: String,
}

/// What a member will be; `start` makes it.
#[derive(Debug)]
pub struct MemberBuilder<'a> {
    mesh: &'a Mesh,
    name: String,
    id: String,
    app: Option<App>,
    upstreams: Vec<(String, u16)>,
    sidecar: Sidecar,
    admin: Option<SocketAddr>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    registered: bool,
}

/// A service: its app, its registration and its sidecar process.
#[derive(Debug)]
pub struct Member {
    /// The service's ID at Consul.
    pub id: String,
    /// What was registered, to do so again.
    pub registration: Registration,
    /// The app.
    pub app: App,
    /// The sidecar's public mTLS listener.
    pub public: SocketAddr,
    /// The sidecar process.
    pub sidecar: Process,
    /// Where each upstream listens, by name.
    pub upstreams: BTreeMap<String, SocketAddr>,
    /// The sidecar's admin API.
    pub admin: SocketAddr,
    command: SidecarCommand,
}

/// How a sidecar is started, to do so again.
#[derive(Debug)]
struct SidecarCommand {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl SidecarCommand {
    fn start(&self, name: &str) -> Process {
        Process::start(name, &self.program, &self.arguments, &self.environment)
    }
}

impl Mesh {
    /// A mesh whose sidecars are `program`.
    pub async fn start(program: &str) -> Self {
        Self::with(program, StandInOptions::default()).await
    }

    /// As [`Self::start`], with other options for the stand-in.
    pub async fn with(program: &str, options: StandInOptions) -> Self {
        let consul = StandIn::start(options).await.unwrap();
        Self {
            consul,
            program: program.to_owned(),
        }
    }

    /// Begins a member: a service with the ID `<name>-1`.
    pub fn service(&self, name: &str) -> MemberBuilder<'_> {
        MemberBuilder {
            mesh: self,
            name: name.to_owned(),
            id: format!("{name}-1"),
            app: None,
            upstreams: Vec::new(),
            sidecar: Sidecar::new(),
            admin: Some(SocketAddr::from(([127, 0, 0, 1], free_port()))),
            arguments: Vec::new(),
            environment: Vec::new(),
            registered: true,
        }
    }
}

impl MemberBuilder<'_> {
    /// Another ID, for a second instance.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// Another app than one that answers lines with the instance's ID.
    #[must_use]
    pub fn app(mut self, app: App) -> Self {
        self.app = Some(app);
        self
    }

    /// An app on a unix socket.
    #[must_use]
    pub fn app_socket(mut self, path: &Path) -> Self {
        self.app = Some(App::echo_on(path, &self.id));
        self.sidecar = self.sidecar.proxy_field("LocalServiceSocketPath", json!(path));
        self
    }

    /// An upstream on a unix socket.
    #[must_use]
    pub fn upstream_socket(mut self, name: &str, path: &Path) -> Self {
        let upstream = json!({ "DestinationName": name, "LocalBindSocketPath": path });
        self.sidecar = self.sidecar.upstream_with(upstream);
        self
    }

    /// The admin API where it goes by itself; [`Member::admin_moved`] learns where that is.
    #[must_use]
    pub fn default_admin(mut self) -> Self {
        self.admin = None;
        self
    }

    /// An upstream on a free loopback port.
    #[must_use]
    pub fn upstream(mut self, name: &str) -> Self {
        let port = free_port();
        self.upstreams.push((name.to_owned(), port));
        self.sidecar = self.sidecar.upstream(name, port);
        self
    }

    /// An upstream with more to say than a name; `LocalBindPort` is set here.
    #[must_use]
    pub fn upstream_with(mut self, name: &str, mut fields: Value) -> Self {
        let port = free_port();
        self.upstreams.push((name.to_owned(), port));
        fields["LocalBindPort"] = port.into();
        fields["DestinationName"] = name.into();
        self.sidecar = self.sidecar.upstream_with(fields);
        self
    }

    /// A field of `Proxy.Config`.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.sidecar = self.sidecar.config(config);
        self
    }

    /// More arguments for `attache run`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// A variable in the sidecar's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves the registration to the scenario ([`Member::registration`]).
    #[must_use]
    pub fn unregistered(mut self) -> Self {
        self.registered = false;
        self
    }

    /// Registers it, starts app and sidecar, and waits until the sidecar is ready.
    pub async fn start(self) -> Member {
        let member = self.launch().await;
        member.ready().await;
        member
    }

    /// As [`Self::start`], without waiting for the sidecar.
    pub async fn launch(self) -> Member {
        let app = match self.app {
            Some(app) => app,
            None => App::echo(&self.id).await,
        };
        let public = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let sidecar = self.sidecar.port(public.port());
        let registration = Registration::new(&self.name, app.address.port())
            .id(&self.id)
            .address("127.0.0.1")
            .sidecar(sidecar);
        if self.registered {
            self.mesh.consul.register(&registration).unwrap();
        }
        let mut arguments: Vec<String> = ["run", "--sidecar-for", &self.id, "--http-addr"]
            .map(str::to_owned)
            .to_vec();
        arguments.push(self.mesh.consul.address().to_string());
        if let Some(admin) = self.admin {
            arguments.extend(["--admin-bind".to_owned(), admin.to_string()]);
        }
        arguments.extend(self.arguments);
        let command = SidecarCommand {
            program: self.mesh.program.clone(),
            arguments,
            environment: self.environment,
        };
        let sidecar = command.start(&self.id);
        let at = |(name, port)| (name, SocketAddr::from(([127, 0, 0, 1], port)));
        Member {
            id: self.id,
            registration,
            app,
            public,
            sidecar,
            upstreams: self.upstreams.into_iter().map(at).collect(),
            admin: self.admin.unwrap_or(NOWHERE),
            command,
        }
    }
}

impl Member {
    /// Waits until the sidecar's `/ready` says LIVE.
    pub async fn ready(&self) {
        eventually(
            &format!("{} is ready; it said:\n{}", self.id, self.sidecar.log()),
            || async {
                let (status, _) = get(self.admin, "/ready").await?;
                (status == 200).then_some(())
            },
        )
        .await;
    }

    /// Kills the sidecar and starts it again on the same ports, without waiting for it to be ready.
    pub async fn restart(&mut self) {
        self.sidecar.signal("KILL").await;
        self.sidecar.ended().await;
        self.sidecar = self.command.start(&self.id);
    }

    /// Learns the admin address that the sidecar chose by itself.
    pub async fn admin_moved(&mut self) {
        let line = self.sidecar.says(&["admin API", "address="]).await;
        let address = line.rsplit_once("address=").unwrap().1;
        self.admin = address.parse().unwrap();
    }

    /// A connection to an upstream.
    pub async fn dial(&self, upstream: &str) -> Line {
        Line::connect(self.upstreams[upstream]).await.unwrap()
    }

    /// One line over a new connection; an error or an end is its kind's name.
    pub async fn ask(&self, upstream: &str, line: &str) -> String {
        let answered = async { Line::connect(self.upstreams[upstream]).await?.ask(line).await };
        answered
            .await
            .unwrap_or_else(|error| format!("{:?}", error.kind()))
    }

    /// Asks until the answer begins with `wanted`.
    pub async fn eventually_hears(&self, upstream: &str, wanted: &str) -> String {
        eventually(&format!("{} hears {wanted} from {upstream}", self.id), || async {
            let answer = self.ask(upstream, "hi").await;
            answer.starts_with(wanted).then_some(answer)
        })
        .await
    }

    /// A page of the admin API.
    pub async fn admin(&self, path: &str) -> String {
        get(self.admin, path)
            .await
            .map(|(_, body)| body)
            .unwrap_or_default()
    }

    /// The sum of a metric's series that have all of `labels` in their text.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.admin("/stats/prometheus").await;
        page.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
}

/// One GET over HTTP/1.0 semantics: status and body, `None` where nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, "GET", path).await
}

/// One POST without a body, as [`get`].
pub async fn post(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(address, "POST", path).await
}

async fn request(address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
