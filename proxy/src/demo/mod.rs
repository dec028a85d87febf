//! The count dashboard over two Attaché sidecars, on this machine with nothing installed:
//!
//! ```text
//! browser -> count-dashboard :9002 -> sidecar :8080 -> mTLS -> sidecar -> count-api :9001
//! ```
//! The two services run in this process, the sidecars are real `attache run` processes, and Consul
//! is the stand-in of [`standin`] unless a real one is named. [`run`] owns all of it and leaves
//! nothing behind: processes, folders and registrations go when it ends.

mod api;
pub mod client;
mod dashboard;
mod live;
mod mesh;
mod owner;
mod serve;
mod sidecar;
pub mod standin;
#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::client::{ClientError, Consul};
use self::dashboard::Dashboard;
use self::live::Live;
use self::mesh::{API, API_MEMBER, DASHBOARD_MEMBER, Mesh, Ports};
use self::owner::Owner;
use self::sidecar::{Launch, Sidecar, tail};
use self::standin::{StandIn, StandInError, StandInOptions};

/// The calling service.
const DASHBOARD: &str = "count-dashboard";

/// Where free ports for the sidecars' public listeners are looked for, as Consul does.
const PUBLIC_PORTS: std::ops::RangeInclusive<u16> = 21_000..=21_255;

/// Two sidecars of a debug build on a busy machine take a second or two; a real Consul's checks add
/// some more.
const READY_WITHIN: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// How the demo runs.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The page's port.
    pub dashboard_port: u16,
    /// count-api's port.
    pub api_port: u16,
    /// The port at which count-dashboard's sidecar offers count-api.
    pub upstream_port: u16,
    /// `HOST:PORT` of a real Consul agent; none starts the stand-in.
    pub consul: Option<String>,
    /// The token for a real Consul.
    pub token: Option<String>,
    /// How long the stand-in's leaves live: short, so that one sees them renewed.
    pub leaf_ttl: Duration,
    /// The program that runs as sidecar: this one.
    pub sidecar_program: PathBuf,
    /// Arguments for the sidecars besides the demo's own.
    pub sidecar_arguments: Vec<String>,
    /// Names the process that holds an address, where that can be told.
    pub who_holds: fn(SocketAddr) -> Option<String>,
    /// Takes each line of progress.
    pub say: fn(&str),
}

impl DemoOptions {
    /// The ports of the README, and the stand-in.
    pub fn new(sidecar_program: PathBuf) -> Self {
        Self {
            dashboard_port: 9002,
            api_port: 9001,
            upstream_port: 8080,
            consul: None,
            token: None,
            leaf_ttl: Duration::from_secs(60),
            sidecar_program,
            sidecar_arguments: Vec::new(),
            who_holds: |_| None,
            say: to_stderr,
        }
    }
}

/// Why the demo ended other than by Ctrl-C.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Somebody else listens there.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    PortsTaken(Vec<TakenPort>),
    /// None of 21000 to 21255 is free.
    #[error("no port from 21000 to 21255 is free for the sidecars' public listeners; end what holds them")]
    NoPublicPort,
    /// A socket, a signal handler or the folder for the logs.
    #[error("{doing}: {error}")]
    Io {
        /// What was tried.
        doing: String,
        /// What came of it.
        error: io::Error,
    },
    /// The stand-in did not start.
    #[error(transparent)]
    StandIn(#[from] StandInError),
    /// The address of Consul is not one.
    #[error("--consul: {0}")]
    ConsulAddress(ClientError),
    /// Consul refused or did not answer.
    #[error("{doing} at Consul {consul} failed: {error}{}", hint(.error))]
    Consul {
        /// What was tried.
        doing: &'static str,
        /// Which Consul.
        consul: String,
        /// What came of it.
        error: ClientError,
    },
    /// A service with the demo's ID is somebody else's.
    #[error(
        "Consul {consul} has a service {id} that is not this demo's; the demo would replace it. Use another agent, or remove it: consul services deregister -id={id}"
    )]
    Registered {
        /// The service's ID.
        id: String,
        /// Which Consul.
        consul: String,
    },
    /// Somebody else has a service of the demo's names.
    #[error(
        "Consul {consul} has a service {service} that is not this demo's (its sidecar is {id}); requests to either would reach both. Use another agent"
    )]
    Shared {
        /// The service's name.
        service: &'static str,
        /// The other sidecar's ID.
        id: String,
        /// Which Consul.
        consul: String,
    },
    /// Intentions for count-api are somebody else's.
    #[error(
        "Consul {consul} has intentions for count-api that are not this demo's ({names}); the demo would change them. Use another agent, or remove them: consul config delete -kind service-intentions -name count-api"
    )]
    Intentions {
        /// All of them.
        names: String,
        /// Which Consul.
        consul: String,
    },
    /// A second demo would take the services and ports of the first.
    #[error("another demo runs on this agent, Consul {consul} ({what}); {advice}, or use another agent")]
    AnotherDemo {
        /// Which Consul.
        consul: String,
        /// How that is known.
        what: String,
        /// What to do.
        advice: String,
    },
    /// The program does not start.
    #[error("cannot start the sidecar {}: {error}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What came of it.
        error: io::Error,
    },
    /// A sidecar ended by itself.
    #[error("the sidecar of {service} {how}; its last lines:\n{tail}")]
    SidecarEnded {
        /// Whose sidecar.
        service: &'static str,
        /// With which status.
        how: String,
        /// The end of its log.
        tail: String,
    },
    /// The sidecars run but carry nothing.
    #[error("{what} after {READY_WITHIN:?}: {why}\nthe last lines of the sidecars:\n{tails}")]
    NotReady {
        /// What was waited for.
        what: String,
        /// What the last attempt saw.
        why: String,
        /// The ends of both logs.
        tails: String,
    },
}

/// A port that the demo wants and somebody else has.
#[derive(Debug, thiserror::Error)]
#[error("port {} ({role}) is taken by {}; end that, or give another port with {option}",
    .address.port(), .holder.as_deref().unwrap_or("another process"))]
pub struct TakenPort {
    /// The address.
    pub address: SocketAddr,
    /// What the demo wants it for.
    pub role: &'static str,
    /// The argument that changes it.
    pub option: &'static str,
    /// The process that holds it.
    pub holder: Option<String>,
}

fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::Connect(_) => " (is an agent running there? `consul agent -dev` starts one)",
        ClientError::Status { status: 403, .. } => {
            " (the token needs service:write and intentions:write for count-api and count-dashboard)"
        }
        _ => "",
    }
}

/// Runs the demo until Ctrl-C, SIGTERM or SIGHUP.
///
/// # Errors
/// When something does not start, or a sidecar ends; the rest is cleared away all the same.
pub async fn run(options: DemoOptions) -> Result<(), DemoError> {
    let caught = |kind| signal(kind).map_err(|error| io_error("catching signals", error));
    let mut interrupt = caught(SignalKind::interrupt())?;
    let mut terminate = caught(SignalKind::terminate())?;
    let mut hangup = caught(SignalKind::hangup())?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    run_until(options, stop).await
}

/// Runs the demo until `stop` is ready.
///
/// # Errors
/// As [`run`].
pub async fn run_until(options: DemoOptions, stop: impl Future<Output = ()>) -> Result<(), DemoError> {
    let mut stage = Stage::default();
    let outcome = tokio::select! {
        failed = stage.play(&options) => failed,
        () = stop => {
            (options.say)("stopping");
            Ok(())
        }
    };
    let cleared = stage.clear().await;
    outcome.and(cleared)
}

/// Everything that must be undone, in the order it was done.
#[derive(Default)]
struct Stage {
    standin: Option<StandIn>,
    folder: Option<PathBuf>,
    mesh: Option<Mesh>,
    sidecars: Option<(Sidecar, Sidecar)>,
    services: JoinSet<()>,
}

impl Stage {
    /// Starts everything and watches it; returns only when something fails.
    async fn play(&mut self, options: &DemoOptions) -> Result<(), DemoError> {
        let (dashboard_listener, api_listener) = listen(options).await?;
        let consul = self.consul(options).await?;
        let ports = ports(options).await?;
        let mesh = Mesh::find(consul.clone(), Owner::this(), options.who_holds).await?;
        self.mesh = Some(mesh.clone());
        mesh.claim().await?;
        mesh.register(&ports).await?;
        (options.say)(&format!(
            "registered {API} and {DASHBOARD}, intention {DASHBOARD} -> {API}: allow"
        ));

        let (sender, live) = watch::channel(Live::default());
        let upstream = local(options.upstream_port);
        let dashboard = Dashboard {
            upstream,
            mesh,
            live,
            port: options.dashboard_port,
            say: options.say,
            last: watch::Sender::default(),
            consul: match &options.consul {
                Some(_) => format!("Consul at {}", consul.host()),
                None => format!("embedded Consul stand-in at {}", consul.host()),
            },
        };
        self.services.spawn(api::serve(api_listener));
        (options.say)(&format!("{API} on http://{}", local(options.api_port)));
        self.start_sidecars(options, &consul)?;
        let Some((api, caller)) = &mut self.sidecars else {
            return Ok(());
        };
        let logs = [api.log().to_owned(), caller.log().to_owned()];
        tokio::select! {
            // Whoever else answers at its ports, a sidecar that ended is not ready.
            biased;
            dead = death(api, caller) => return Err(dead),
            ready = ready(options, &ports, &logs) => ready?,
        }
        for (service, sidecar) in [(API, &*api), (DASHBOARD, &*caller)] {
            if let Some(admin) = sidecar.admin() {
                (options.say)(&format!("sidecar of {service}: admin API on http://{admin}"));
            }
        }
        self.services
            .spawn(dashboard::serve(dashboard_listener, dashboard));
        self.services
            .spawn(async move { match live::keep(upstream, sender).await {} });
        let page = local(options.dashboard_port);
        (options.say)(&format!(
            "\n  the page:  http://{page}\n\nCtrl-C ends it and leaves nothing behind."
        ));
        Err(death(api, caller).await)
    }

    async fn consul(&mut self, options: &DemoOptions) -> Result<Consul, DemoError> {
        let (address, token) = match &options.consul {
            Some(address) => {
                (options.say)(&format!("using Consul at {address}"));
                (address.clone(), options.token.clone())
            }
            None => {
                let standin = StandIn::start(StandInOptions {
                    leaf_ttl: options.leaf_ttl,
                    ..StandInOptions::default()
                });
                let standin = self.standin.insert(standin.await?);
                let (address, ttl) = (standin.address(), options.leaf_ttl);
                (options.say)(&format!(
                    "Consul stand-in on http://{address}; its certificates live {ttl:?} and are renewed before that ends"
                ));
                (address.to_string(), None)
            }
        };
        Consul::new(&address, token).map_err(DemoError::ConsulAddress)
    }

    fn start_sidecars(&mut self, options: &DemoOptions, consul: &Consul) -> Result<(), DemoError> {
        let folder = self.folder.insert(make_folder()?);
        let launch = Launch {
            program: &options.sidecar_program,
            extra_arguments: &options.sidecar_arguments,
            consul: consul.host(),
            token: consul.token(),
            folder,
        };
        let api = Sidecar::start(API_MEMBER, &launch)?;
        let dashboard = Sidecar::start(DASHBOARD_MEMBER, &launch)?;
        for (service, sidecar) in [(API, &api), (DASHBOARD, &dashboard)] {
            let (pid, log) = (sidecar.pid().unwrap_or_default(), sidecar.log().display());
            (options.say)(&format!("sidecar of {service}: pid {pid}, log {log}"));
        }
        self.sidecars = Some((api, dashboard));
        Ok(())
    }

    /// Undoes what was done; the first failure is told, the rest is tried all the same.
    async fn clear(&mut self) -> Result<(), DemoError> {
        self.services.shutdown().await;
        let mut outcome = Ok(());
        if let Some((mut api, mut dashboard)) = self.sidecars.take() {
            let (api, dashboard) = tokio::join!(api.stop(), dashboard.stop());
            let stopped = api.and(dashboard);
            outcome = stopped.map_err(|error| io_error("ending the sidecars", error));
        }
        // The stand-in's registrations go with it.
        if let (Some(mesh), None) = (self.mesh.take(), &self.standin) {
            outcome = outcome.and(mesh.restore().await);
        }
        if let Some(standin) = self.standin.take() {
            standin.stop().await;
        }
        if let Some(folder) = self.folder.take() {
            let doing = format!("removing {}", folder.display());
            let removed = std::fs::remove_dir_all(&folder);
            outcome = outcome.and(removed.map_err(|error| io_error(&doing, error)));
        }
        outcome
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The listeners of the page and of count-api. The sidecar's port is only tried; all that are taken
/// are told at once.
async fn listen(options: &DemoOptions) -> Result<(TcpListener, TcpListener), DemoError> {
    let mut bound = Vec::new();
    let mut taken = Vec::new();
    for (port, role, option) in [
        (options.dashboard_port, "the page", "--dashboard-port"),
        (options.api_port, "count-api", "--api-port"),
        (
            options.upstream_port,
            "count-dashboard's way to count-api",
            "--upstream-port",
        ),
    ] {
        let address = local(port);
        match TcpListener::bind(address).await {
            Ok(listener) => bound.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken.push(TakenPort {
                address,
                role,
                option,
                holder: (options.who_holds)(address),
            }),
            Err(error) => {
                let doing = format!("listening on {address} ({role}, {option})");
                return Err(io_error(&doing, error));
            }
        }
    }
    let mut bound = bound.into_iter();
    match (bound.next(), bound.next()) {
        (Some(dashboard), Some(api)) if taken.is_empty() => Ok((dashboard, api)),
        _ => Err(DemoError::PortsTaken(taken)),
    }
}

async fn ports(options: &DemoOptions) -> Result<Ports, DemoError> {
    let mut free = Vec::new();
    for port in PUBLIC_PORTS {
        if TcpListener::bind(local(port)).await.is_ok() {
            free.push(port);
        }
        if let [api_public, dashboard_public] = *free {
            return Ok(Ports {
                api: options.api_port,
                dashboard: options.dashboard_port,
                upstream: options.upstream_port,
                api_public,
                dashboard_public,
            });
        }
    }
    Err(DemoError::NoPublicPort)
}

/// Waits until both public listeners accept and a request goes all the way.
async fn ready(options: &DemoOptions, ports: &Ports, [api, caller]: &[PathBuf; 2]) -> Result<(), DemoError> {
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    let not_ready = |what: String, why: String| DemoError::NotReady {
        what,
        why,
        tails: format!("{API}:\n{}\n{DASHBOARD}:\n{}", tail(api), tail(caller)),
    };
    for (service, port) in [(API, ports.api_public), (DASHBOARD, ports.dashboard_public)] {
        while let Err(error) = TcpStream::connect(local(port)).await {
            if tokio::time::Instant::now() >= deadline {
                let what = format!("the sidecar of {service} does not listen on port {port}");
                return Err(not_ready(what, error.to_string()));
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        (options.say)(&format!(
            "sidecar of {service}: public listener on {}",
            local(port)
        ));
    }
    let upstream = local(ports.upstream);
    while let Err(error) = dashboard::probe(upstream).await {
        if tokio::time::Instant::now() >= deadline {
            let what = format!("no answer of {API} through {upstream}");
            return Err(not_ready(what, error.to_string()));
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
    (options.say)(&format!("{DASHBOARD} reaches {API} through {upstream}"));
    Ok(())
}

async fn death(api: &mut Sidecar, caller: &mut Sidecar) -> DemoError {
    tokio::select! {
        dead = api.death() => dead,
        dead = caller.death() => dead,
    }
}

/// A folder that only this user can read: the logs name what talks to what.
fn make_folder() -> Result<PathBuf, DemoError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let name = format!("attache-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let folder: PathBuf = Path::new(&std::env::temp_dir()).join(name);
    let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|error| io_error(&format!("making the folder {}", folder.display()), error))?;
    Ok(folder)
}

fn io_error(doing: &str, error: io::Error) -> DemoError {
    DemoError::Io {
        doing: doing.to_owned(),
        error,
    }
}

/// One line of progress for the person in front of the terminal.
fn to_stderr(text: &str) {
    // A terminal that is gone cannot be told so.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
