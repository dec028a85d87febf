//! The xDS source as a whole: the bootstrap file, the store, the client, and what is watched on disk.
//!
//! Owns what outlives a stream. Without a control plane in the bootstrap the file is all there is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Read as _;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use attache_bootstrap::Secret;
use attache_bootstrap::envoy::{EnvoyConfig, TaskFolders};
use attache_proto::TypeUrl;
use attache_proto::envoy::config::cluster::v3::Cluster;
use attache_proto::envoy::config::core::v3::{DataSource, address, data_source, socket_address};
use attache_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use attache_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use attache_proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use prost::Message as _;

use super::bootstrap::{Ads, Bootstrap, BootstrapError, refused};
use super::credentials::{self, Content};
use super::decode::{DecodeError, Disk, Files as _};
use super::store::{Given, Store};
use super::{
    Address, Handle, Refused, Resource, ResourceKind, Resources, Target, Tls, client, config_dump, identify,
};
use crate::control::StatusPublisher;
use crate::control::file::{POLL, stamps};
use crate::dump::{ConfigDump, ConfigSource, ServerInfo};
use crate::model::{Identity, Node};
use crate::snapshot::Publisher;

/// What a source runs with.
pub struct XdsSource {
    /// The command line.
    pub config: EnvoyConfig,
    /// What the file said at the start.
    pub bootstrap: Bootstrap,
    /// The environment, for data sources that name a variable.
    pub variables: BTreeMap<String, String>,
    /// Whether a leaf can be presented.
    pub check: fn(&Identity) -> Result<(), String>,
    /// To the data plane.
    pub publisher: Publisher,
    /// To the log, the admin API and metrics.
    pub status: StatusPublisher,
}

/// Why a bootstrap cannot be run at all.
#[derive(Debug, thiserror::Error)]
pub enum XdsError {
    /// The file.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A static resource.
    #[error("static_resources: {0}")]
    Static(#[from] DecodeError),
}

/// A source that is ready to run.
pub struct Prepared {
    shared: Shared,
    target: Option<(Target, TargetSource)>,
    status: StatusPublisher,
}

/// Makes targets of a bootstrap and its token files, now and whenever they change.
#[derive(Clone)]
struct TargetSource {
    config: EnvoyConfig,
    disk: Disk,
}

/// The store, as client, watcher and admin API share it on their one thread.
#[derive(Clone)]
struct Shared(Rc<State>);

struct State {
    store: RefCell<Store>,
    config: EnvoyConfig,
    bootstrap: Bootstrap,
    read_at: SystemTime,
    status: Box<dyn Fn() -> serde_json::Value>,
}

/// A bootstrap file has some KiB; of more, such as an endless device, no more is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads the bootstrap that the command line names, to its end: a pipe can be read once only.
///
/// # Errors
/// [`BootstrapError`] names the file or the field.
pub fn read(config: &EnvoyConfig) -> Result<Bootstrap, BootstrapError> {
    let Some(file) = &config.file else {
        return Bootstrap::read(None, config);
    };
    let path = file.path.display();
    let text = std::fs::File::open(&file.path).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map(|_| text)
    });
    let text = text
        .map_err(|error| BootstrapError::Syntax(format!("{path} ({}) cannot be read: {error}", file.from)))?;
    Bootstrap::read(Some((&text, file.format)), config).map_err(|error| match error {
        BootstrapError::Syntax(why) => BootstrapError::Syntax(format!("{path}: {why}")),
        error => error,
    })
}

/// Checks everything that can be checked without a control plane.
///
/// # Errors
/// [`XdsError`] for the first thing that cannot be carried out.
pub fn prepare(
    source: XdsSource,
    describe: impl Fn() -> serde_json::Value + 'static,
) -> Result<Prepared, XdsError> {
    let disk = Disk {
        variables: source.variables,
    };
    let targets = TargetSource {
        config: source.config.clone(),
        disk: disk.clone(),
    };
    let target = match &source.bootstrap.ads {
        Some(ads) => Some((targets.target(&source.bootstrap, ads)?, targets)),
        None => None,
    };
    let given = Given {
        disk,
        check: source.check,
        publisher: source.publisher,
        status: source.status.clone(),
        has_control_plane: target.is_some(),
        node: Arc::new(node(&source.bootstrap.node)),
    };
    let store = Store::new(
        given,
        &source.bootstrap.statics,
        source.bootstrap.tracing.as_ref(),
    )?;
    let state = State {
        store: RefCell::new(store),
        config: source.config,
        bootstrap: source.bootstrap,
        read_at: SystemTime::now(),
        status: Box::new(describe),
    };
    Ok(Prepared {
        shared: Shared(Rc::new(state)),
        target,
        status: source.status,
    })
}

/// Who the bootstrap says that this proxy is.
fn node(wire: &attache_proto::envoy::config::core::v3::Node) -> Node {
    let zone = wire.locality.as_ref().map_or("", |locality| &locality.zone);
    Node {
        id: wire.id.as_str().into(),
        cluster: wire.cluster.as_str().into(),
        zone: zone.into(),
    }
}

impl Prepared {
    /// For the admin API.
    pub fn config_source(&self) -> Rc<dyn ConfigSource> {
        Rc::new(self.shared.clone())
    }

    /// Whether a control plane is asked, whose listeners may be wrong without the process being at fault.
    pub fn has_control_plane(&self) -> bool {
        self.target.is_some()
    }

    /// Runs until dropped.
    pub async fn run(self) -> Infallible {
        let Self {
            shared,
            target,
            status,
        } = self;
        shared.0.store.borrow_mut().publish();
        let mut files = pin!(watch_files(shared.clone()));
        let Some((target, targets)) = target else {
            return files.await;
        };
        tracing::info!(addresses = ?target.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), node = target.node.id, "asking the control plane");
        let (handle, client) = client(target.clone(), status);
        let mut running = pin!(client.run(shared.clone()));
        let mut credentials = pin!(watch_credentials(&targets, &shared.0.bootstrap, target, &handle));
        tokio::select! {
            never = &mut running => never,
            never = &mut credentials => never,
            never = &mut files => never,
        }
    }
}

/// Looks at the bootstrap file and the token files.
async fn watch_credentials(
    targets: &TargetSource,
    bootstrap: &Bootstrap,
    current: Target,
    handle: &Handle,
) -> Infallible {
    let file = targets.config.file.as_ref().filter(|file| file.watched);
    let mut paths: Vec<PathBuf> = file.iter().map(|file| file.path.clone()).collect();
    let from_file = paths.len();
    paths.extend(targets.config.token_files.iter().cloned());
    let at_start = targets
        .config
        .token_files
        .iter()
        .map(|path| token_of(std::fs::read(path).ok().as_deref()));
    let at_start: Vec<Option<String>> = at_start.collect();
    let parse = |contents: &[Content]| {
        let (file, tokens) = contents.split_at(from_file.min(contents.len()));
        let newer = match file.first() {
            Some(content) => {
                let content = content.as_ref().ok_or("the bootstrap file cannot be read")?;
                Some(targets.read(content)?)
            }
            None => None,
        };
        let bootstrap = newer.as_ref().unwrap_or(bootstrap);
        let ads = bootstrap
            .ads
            .as_ref()
            .ok_or("the bootstrap file names no control plane any more")?;
        let mut target = targets
            .target(bootstrap, ads)
            .map_err(|error| error.to_string())?;
        // A token file that is as it was at the start says nothing that the bootstrap did not.
        let tokens = tokens
            .iter()
            .map(|content| token_of(content.as_ref().map(|content| content.as_slice())));
        let mut changed = tokens.zip(&at_start).filter(|(now, then)| now != *then);
        if let Some((Some(token), _)) = changed.find(|(now, _)| now.is_some()) {
            target.token = Some(Secret::new(token));
        }
        Ok(target)
    };
    credentials::watch(&paths, current, parse, |target| {
        tracing::info!("the bootstrap file or a token file has changed: the control plane is asked anew");
        handle.replace(target.clone());
    })
    .await
}

fn token_of(content: Option<&[u8]>) -> Option<String> {
    let text = std::str::from_utf8(content?).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Looks at the files that resources name, and at the clock for what does not come.
async fn watch_files(shared: Shared) -> Infallible {
    let mut watched: BTreeSet<PathBuf> = BTreeSet::new();
    let mut seen = Vec::new();
    loop {
        tokio::time::sleep(POLL).await;
        let mut store = shared.0.store.borrow_mut();
        store.tick();
        let now_watched = store.watched();
        let paths: Vec<PathBuf> = now_watched.iter().cloned().collect();
        let now = stamps(&paths);
        if now_watched != watched {
            (watched, seen) = (now_watched, now);
        } else if now != seen {
            tracing::info!("a certificate file has changed");
            seen = now;
            store.files_changed();
        }
    }
}

impl TargetSource {
    fn read(&self, content: &[u8]) -> Result<Bootstrap, String> {
        let text = std::str::from_utf8(content).map_err(|_| "the bootstrap file is no UTF-8")?;
        let given = self.config.file.as_ref().map(|file| (text, file.format));
        Bootstrap::read(given, &self.config).map_err(|error| error.to_string())
    }

    fn target(&self, bootstrap: &Bootstrap, ads: &Ads) -> Result<Target, BootstrapError> {
        let cluster = &ads.cluster;
        let field = format!("static_resources.clusters[{}]", cluster.name);
        let mut node = bootstrap.node.clone();
        let version = self.config.envoy_version;
        identify(&mut node, [version.major, version.minor, version.patch]);
        Ok(Target {
            addresses: addresses(cluster, &self.config.task_folders, &field)?,
            tls: self.tls(cluster, &field)?,
            authority: ads.authority.clone().unwrap_or_else(|| cluster.name.clone()),
            token: ads.token.clone(),
            node,
        })
    }

    /// The authorities of the cluster's TLS context; none without one.
    fn tls(&self, cluster: &Cluster, field: &str) -> Result<Option<Tls>, BootstrapError> {
        let Some(socket) = &cluster.transport_socket else {
            return Ok(None);
        };
        let field = format!("{field}.transport_socket");
        let context = match &socket.config_type {
            Some(attache_proto::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(any))
                if any.type_url == UpstreamTlsContext::TYPE_URL =>
            {
                UpstreamTlsContext::decode(any.value.as_slice())
            }
            _ => return Err(refused(field, "must be an UpstreamTlsContext")),
        };
        let context = context.map_err(|error| refused(&field, error.to_string()))?;
        let common = context.common_tls_context.unwrap_or_default();
        let Some(ValidationContextType::ValidationContext(validation)) = common.validation_context_type
        else {
            return Err(refused(
                format!("{field}.common_tls_context.validation_context"),
                NO_AUTHORITY,
            ));
        };
        let field = format!("{field}.common_tls_context.validation_context.trusted_ca");
        let Some(trusted) = validation.trusted_ca else {
            return Err(refused(field, NO_AUTHORITY));
        };
        let pem = self.data(&trusted).map_err(|why| refused(&field, why))?;
        Tls::new(&pem).map(Some).map_err(|why| refused(field, why))
    }

    fn data(&self, source: &DataSource) -> Result<Vec<u8>, String> {
        match &source.specifier {
            Some(data_source::Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
            Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
            Some(data_source::Specifier::Filename(path)) => {
                let candidates = self.config.task_folders.candidates(path.as_ref());
                let mut read = candidates
                    .iter()
                    .map(|path| self.disk.read(path).map(|content| content.to_vec()));
                read.find(Result::is_ok)
                    .unwrap_or_else(|| Err(format!("{path}: cannot be read")))
            }
            Some(data_source::Specifier::EnvironmentVariable(name)) => {
                let value = self.disk.variable(name).map(String::into_bytes);
                value.ok_or_else(|| format!("the environment has no {name}"))
            }
            None => Err("is empty".to_owned()),
        }
    }
}

const NO_AUTHORITY: &str = "is missing: the control plane could be anybody";

fn addresses(cluster: &Cluster, folders: &TaskFolders, field: &str) -> Result<Vec<Address>, BootstrapError> {
    let assignment = cluster
        .load_assignment
        .iter()
        .flat_map(|assignment| &assignment.endpoints);
    let mut addresses = Vec::new();
    for endpoint in assignment.flat_map(|locality| &locality.lb_endpoints) {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
            continue;
        };
        match endpoint
            .address
            .as_ref()
            .and_then(|address| address.address.as_ref())
        {
            Some(address::Address::Pipe(pipe)) => {
                addresses.push(Address::Unix(folders.candidates(pipe.path.as_ref())));
            }
            Some(address::Address::SocketAddress(socket)) => {
                let Some(socket_address::PortSpecifier::PortValue(port)) = &socket.port_specifier else {
                    return Err(refused(
                        format!("{field}.load_assignment"),
                        "an endpoint has no port_value",
                    ));
                };
                let port = u16::try_from(*port)
                    .map_err(|_| refused(format!("{field}.load_assignment"), format!("{port} is no port")))?;
                addresses.push(Address::Tcp {
                    host: socket.address.clone(),
                    port,
                });
            }
            _ => {}
        }
    }
    if addresses.is_empty() {
        return Err(refused(
            format!("{field}.load_assignment"),
            "has no endpoint to ask",
        ));
    }
    Ok(addresses)
}

impl Resources for Shared {
    fn stream_began(&mut self) {
        self.0.store.borrow_mut().stream_began();
    }

    fn apply(
        &mut self,
        kind: ResourceKind,
        changed: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Refused> {
        self.0.store.borrow_mut().apply(kind, changed, removed)
    }

    fn interest(&self, kind: ResourceKind) -> BTreeSet<Arc<str>> {
        self.0.store.borrow().interest(kind)
    }

    fn stream_failed(&mut self) {
        self.0.store.borrow_mut().stream_failed();
    }
}

impl ConfigSource for Shared {
    fn status(&self) -> serde_json::Value {
        (self.0.status)()
    }

    fn config_dump(&self) -> Option<ConfigDump> {
        let state = &self.0;
        Some(config_dump::render(
            &state.store.borrow(),
            &state.bootstrap,
            state.read_at,
        ))
    }

    fn server_info(&self) -> ServerInfo {
        config_dump::server_info(&self.0.config, &self.0.bootstrap.node)
    }
}
