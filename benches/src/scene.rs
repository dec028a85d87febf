//! What all peers are given alike: addresses, the backend, certificates of one authority, and a
//! folder for their files.
//!
//! ```text
//! load -> outbound sidecar (count-dashboard) -> mTLS -> inbound sidecar (count-api) -> backend
//! ```
//! The authority is the Consul stand-in's, which runs in a thread of this process until it ends.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use attache::demo::standin::{
    Action, IssueOptions, Issued, Registration, Sidecar, StandIn, StandInError, StandInOptions,
};
use serde_json::json;

use crate::backend::Backend;
use crate::kind::Kind;

/// The service behind the inbound sidecar.
pub(crate) const CALLEE: &str = "count-api";

/// The service before the outbound sidecar.
pub(crate) const CALLER: &str = "count-dashboard";

/// The one whom the intentions deny; everybody else is let in.
pub(crate) const INTRUDER: &str = "intruder";

/// Below the ports that Linux gives to outgoing connections, or one of those would sit on a
/// sidecar's port before the sidecar does.
const PORTS: std::ops::Range<u16> = 23_000..32_000;

/// Open connections that every peer has room for by default: Envoy's circuit breaker lets 1,024
/// through, and for fewer the files say nothing of limits.
const ROOM: usize = 1_000;

/// Connections beside those that a figure counts.
const SPARE: usize = 50;

/// What the turns of a run need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Connections open at once.
    pub(crate) connections: usize,
    /// Upstreams beside the one that is used.
    pub(crate) further_upstreams: usize,
    /// Whether parts of the caller's name become metadata of HTTP requests.
    pub(crate) metadata: bool,
}

/// Everything a peer's configuration is made of.
#[derive(Debug)]
pub(crate) struct Scene {
    /// Where the load connects to: the outbound sidecar's upstream listener.
    pub(crate) outbound: SocketAddr,
    /// The inbound sidecar's public listener.
    pub(crate) inbound: SocketAddr,
    /// The outbound sidecar's admin API.
    pub(crate) outbound_admin: SocketAddr,
    /// The inbound sidecar's admin API.
    pub(crate) inbound_admin: SocketAddr,
    /// Further upstream listeners of the outbound sidecar, for the turns that have them.
    pub(crate) further_upstreams: Vec<SocketAddr>,
    /// The service itself.
    pub(crate) backend: Backend,
    /// What a user would raise the limits of connections and requests to, where the default is
    /// too low.
    pub(crate) limit: Option<usize>,
    /// Whether Envoy's file lets parts of the caller's name become metadata of requests.
    pub(crate) metadata: bool,
    /// The HTTP API of the Consul stand-in.
    pub(crate) consul: SocketAddr,
    /// `<uuid>.consul`.
    pub(crate) trust_domain: String,
    /// The roots, PEM.
    pub(crate) roots: String,
    /// The outbound sidecar's certificate.
    pub(crate) caller: Issued,
    /// The inbound sidecar's certificate.
    pub(crate) callee: Issued,
    folder: Folder,
    /// Its last handle closes it.
    _standin: StandIn,
}

impl Scene {
    /// Starts the backend and the stand-in and registers both services.
    pub(crate) fn set(needs: Needs) -> Result<Self, String> {
        let backend = Backend::start().map_err(|error| format!("the backend does not start: {error}"))?;
        let mut addresses = free_addresses(5 + needs.further_upstreams)?;
        let further_upstreams = addresses.split_off(5);
        let [outbound, inbound, outbound_admin, inbound_admin, unused] = addresses[..] else {
            return Err("too few ports".to_owned());
        };
        let limit = (needs.connections > ROOM).then_some(needs.connections + SPARE);
        let standin = start_standin().map_err(|error| format!("the stand-in does not start: {error}"))?;
        let app = backend.address(Kind::Tcp);
        register(&standin, app, [outbound, inbound, unused], limit).map_err(|error| error.to_string())?;
        let issue = |service| {
            let issued = standin.issue(service, &IssueOptions::default());
            issued.map_err(|error| error.to_string())
        };
        Ok(Self {
            outbound,
            inbound,
            outbound_admin,
            inbound_admin,
            further_upstreams,
            backend,
            limit,
            metadata: needs.metadata,
            consul: standin.address(),
            trust_domain: standin.trust_domain(),
            roots: standin.roots_pem(),
            caller: issue(CALLER)?,
            callee: issue(CALLEE)?,
            folder: Folder::create().map_err(|error| format!("a folder for the run: {error}"))?,
            _standin: standin,
        })
    }

    /// The name that the callee's sidecar is asked for, as Consul forms it.
    pub(crate) fn sni(&self) -> String {
        format!("{CALLEE}.default.dc1.internal.{}", self.trust_domain)
    }

    /// How many connections a peer must take that reserves room for them.
    pub(crate) fn connections(&self) -> usize {
        self.limit.unwrap_or(ROOM + SPARE)
    }

    /// Where files go.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Writes a file and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.folder.0.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }
}

/// A folder that only we can read, for there are keys in it. Dropping it removes it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("attache-bench-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the folder for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, String> {
    // Two benches at once start looking at different places.
    let span = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(7) % span;
    let ports = (0..span).filter_map(|step| {
        let offset = u16::try_from((first + step) % span).ok()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + offset));
        TcpListener::bind(address).is_ok().then_some(address)
    });
    let found: Vec<SocketAddr> = ports.take(count).collect();
    if found.len() < count {
        return Err(format!(
            "no {count} free ports from {} to {}",
            PORTS.start, PORTS.end
        ));
    }
    Ok(found)
}

fn start_standin() -> Result<StandIn, String> {
    let (sender, receiver) = mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(sender.send(Err(error.to_string()))),
        };
        runtime.block_on(async {
            let started = StandIn::start(StandInOptions::default()).await;
            let started = started.map_err(|error| error.to_string());
            if sender.send(started).is_ok() {
                std::future::pending::<()>().await;
            }
        });
    };
    thread::Builder::new()
        .name("stand-in".to_owned())
        .spawn(run)
        .map_err(|error| error.to_string())?;
    receiver.recv().map_err(|error| error.to_string())?
}

fn register(
    standin: &StandIn,
    app: SocketAddr,
    [outbound, inbound, unused]: [SocketAddr; 3],
    limit: Option<usize>,
) -> Result<(), StandInError> {
    let mut callee = json!({ "bind_address": "127.0.0.1" });
    let mut upstream = json!({ "DestinationName": CALLEE, "LocalBindPort": outbound.port() });
    if let Some(most) = limit {
        callee["max_inbound_connections"] = json!(most);
        upstream["Config"] = json!({ "limits": { "max_connections": most } });
    }
    let callee = Sidecar::new().config(callee).port(inbound.port());
    let service = Registration::new(CALLEE, app.port()).address("127.0.0.1");
    standin.register(&service.sidecar(callee))?;
    // Nobody calls the caller: its public listener is never used.
    let caller = Sidecar::new().config(json!({ "bind_address": "127.0.0.1" }));
    let caller = caller.port(unused.port()).upstream_with(upstream);
    let service = Registration::new(CALLER, app.port()).address("127.0.0.1");
    standin.register(&service.sidecar(caller))?;
    standin.set_intention(INTRUDER, CALLEE, Action::Deny);
    Ok(())
}
