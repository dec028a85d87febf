//! What a process runs with that stands in Envoy's place.
//!
//! Owns no handle and has read no bootstrap: where it is and how it is read is decided here, its
//! content is for `control::xds`, which reads the file again whenever it changes.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::config::LogConfig;
use crate::document::{Document, Format};

/// Envoy's arguments and what Nomad's environment adds to them. Of [`file`](Self::file) and
/// [`config_yaml`](Self::config_yaml) at least one is there.
#[derive(Clone, Debug)]
pub struct EnvoyConfig {
    /// `-c`, or the file that Nomad wrote.
    pub file: Option<EnvoyFile>,
    /// `--config-yaml`: merged over the file as protobuf merges (scalars replace, messages merge,
    /// lists are appended, an entry of a map or an `Any` replaces), or the whole bootstrap. It is
    /// merged again over a file that changed.
    pub config_yaml: Option<Document>,
    /// `--mode`.
    pub mode: Mode,
    /// `--concurrency`: worker threads, at least 1. Without it 1, not Envoy's one a core: a sidecar
    /// is given a part of a core, and Nomad says 1 itself.
    pub concurrency: usize,
    /// `--log-level`, always as text.
    pub log: LogConfig,
    /// `--drain-time-s`, else [`DRAIN_TIME`].
    pub drain_time: Duration,
    /// `--parent-shutdown-time-s`; told by the admin API, without an effect.
    pub parent_shutdown_time: Duration,
    /// `--base-id`; told by the admin API, without an effect.
    pub base_id: u32,
    /// `--disable-hot-restart`; told by the admin API. There is none to disable.
    pub disable_hot_restart: bool,
    /// What stands in the place of the bootstrap's `node`.
    pub node: NodeOverrides,
    /// What is done about fields that are not known.
    pub unknown_fields: UnknownFields,
    /// `--admin-address-path`: the admin API's `address:port` is written there once it listens.
    pub admin_address_path: Option<PathBuf>,
    /// `--stats-tag`: a tag and its value for every metric; each tag once.
    pub stats_tags: Vec<(String, String)>,
    /// Nomad's `si_token` and `consul_token`, there or not: the first that exists and is not empty is
    /// tried in the place of the bootstrap's token whenever its content changes. Empty outside of
    /// Nomad.
    pub token_files: Vec<PathBuf>,
    /// Nomad's `NOMAD_ENVOY_READY_ADDR_<service>`: where it says that readiness is told. Consul writes a
    /// listener for it only for gateways; a sidecar's bootstrap has none.
    pub ready: Option<SocketAddr>,
    /// Where a task's folders are, for relative paths in the bootstrap.
    pub task_folders: TaskFolders,
    /// The release that is told to Consul and by the admin API: [`ENVOY_VERSION`], unless
    /// `ATTACHE_ENVOY_VERSION` says otherwise.
    pub envoy_version: EnvoyVersion,
    /// The options that were given and do nothing here, for the admin API.
    pub ignored: Vec<IgnoredOption>,
    /// What was given and does nothing here, a sentence each, for the log.
    pub warnings: Vec<String>,
    /// What was decided without being asked for, a sentence each, for the log.
    pub notes: Vec<String>,
}

/// How long a drain may last unless `--drain-time-s` is given: half a second less than Nomad's kill
/// timeout. Envoy's own default of 600 s is the time of a listener's removal.
pub const DRAIN_TIME: Duration = Duration::from_millis(4500);

/// Envoy's default of `--parent-shutdown-time-s`.
pub(crate) const PARENT_SHUTDOWN_TIME: Duration = Duration::from_secs(900);

/// An option of Envoy's that does nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredOption {
    /// Without the two dashes.
    pub name: &'static str,
    /// As it was given; a flag has none.
    pub value: Option<String>,
    /// Why it does nothing.
    pub why: &'static str,
}

/// The bootstrap's file. It exists and is no folder; nobody has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvoyFile {
    /// Where.
    pub path: PathBuf,
    /// `-c`, or the variables by which it was found; for messages.
    pub from: String,
    /// How it is written, by its name.
    pub format: Format,
    /// Whether it is a regular file, which can be watched and read again. What is none (the pipe of
    /// `consul connect envoy`, `/dev/stdin`) is opened and read to its end exactly once.
    pub watched: bool,
}

/// `--mode`. Envoy's third, `init_only`, is not known to Envoy's own help and refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Run.
    #[default]
    Serve,
    /// Judge the bootstrap and exit: 0 when it can be run.
    Validate,
}

/// `--service-node`, `--service-cluster` and `--service-zone`: each stands in the place of what the
/// bootstrap's `node` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOverrides {
    /// `node.id`.
    pub id: Option<String>,
    /// `node.cluster`.
    pub cluster: Option<String>,
    /// `node.locality.zone`.
    pub zone: Option<String>,
}

/// What is done about fields that are not known, where ignoring them is harmless at all: those of
/// RBAC and TLS are always refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFields {
    /// In the bootstrap: `--allow-unknown-static-fields`, or its old name `--allow-unknown-fields`.
    pub static_allowed: bool,
    /// In what Consul sends.
    pub dynamic: UnknownDynamicFields,
}

/// Unknown fields in what Consul sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownDynamicFields {
    /// Logged, then ignored.
    #[default]
    Warned,
    /// `--ignore-unknown-dynamic-fields`.
    Ignored,
    /// `--reject-unknown-dynamic-fields`, which wins over the other as it does in Envoy.
    Rejected,
}

/// The folders of a Nomad task. In its bootstrap they stand as `alloc`, `local` and `secrets`, which
/// is where they are under drivers that give the task a root of its own (exec, docker).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFolders {
    /// `NOMAD_ALLOC_DIR`.
    pub alloc: Option<PathBuf>,
    /// `NOMAD_TASK_DIR`.
    pub local: Option<PathBuf>,
    /// `NOMAD_SECRETS_DIR`.
    pub secrets: Option<PathBuf>,
}

impl TaskFolders {
    /// Where `path` of a bootstrap may be, the likeliest first: as it is written, from the working
    /// folder; and where that leads nowhere, as under raw_exec, below the task's folder of that
    /// name: `alloc/tmp/consul_grpc.sock` is `$NOMAD_ALLOC_DIR/tmp/consul_grpc.sock`. Asks nobody
    /// what exists: a socket may come later, so both are tried again each time.
    pub fn candidates(&self, path: &Path) -> Vec<PathBuf> {
        let mut candidates = vec![path.to_owned()];
        let plain = path.strip_prefix(".").unwrap_or(path);
        let mut parts = plain.components();
        let folder = match parts.next() {
            Some(Component::Normal(name)) if name == "alloc" => &self.alloc,
            Some(Component::Normal(name)) if name == "local" => &self.local,
            Some(Component::Normal(name)) if name == "secrets" => &self.secrets,
            _ => &None,
        };
        if let Some(folder) = folder {
            let other = folder.join(parts.as_path());
            if other != path {
                candidates.push(other);
            }
        }
        candidates
    }
}

/// A release of Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say what they are")]
pub struct EnvoyVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

/// The release whose configuration and admin API Attaché stands for. Consul and Nomad read the first
/// version number that `--version` prints, and Consul refuses releases that it does not support:
/// 1.35.6 is the newest of its list.
pub const ENVOY_VERSION: EnvoyVersion = EnvoyVersion {
    major: 1,
    minor: 35,
    patch: 6,
};

impl fmt::Display for EnvoyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Three numbers with dots between them, and nothing else.
impl FromStr for EnvoyVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |part: &str| {
            // `parse` alone would take a sign.
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| digits).ok_or(())
        };
        let numbers: Vec<u32> = text.split('.').map(number).collect::<Result<_, ()>>()?;
        match numbers.as_slice() {
            &[major, minor, patch] => Ok(Self { major, minor, patch }),
            _ => Err(()),
        }
    }
}
