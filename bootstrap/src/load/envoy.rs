//! In Envoy's place: its arguments, and what Nomad's environment adds to them.
//!
//! Finds the bootstrap and opens it not: it may be a pipe, which can be read but once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::Secret;
use crate::args::{Cli, EnvoyArgs, LogArgs};
use crate::document::{Document, Format};
use crate::env::FileKind;
use crate::envoy::{
    DRAIN_TIME, ENVOY_VERSION, EnvoyConfig, EnvoyFile, EnvoyVersion, NodeOverrides, PARENT_SHUTDOWN_TIME,
    TaskFolders, UnknownDynamicFields, UnknownFields,
};
use crate::names::clean_name;
use crate::problem::Failure;
use crate::report::Sourced;

use super::draft::{Draft, shown};
use super::{nomad, token};

const VERSION: &str = "ATTACHE_ENVOY_VERSION";

/// What `--version` prints. Consul takes the first version number that it finds; Envoy too prints
/// two blanks there.
pub(super) fn version_text(mut draft: Draft<'_>) -> Result<String, Failure> {
    let envoy = version(&mut draft);
    match draft.report.problems.is_empty() {
        true => Ok(format!(
            "attache  version: {envoy} (the Envoy API it stands for), attache {}\n",
            env!("CARGO_PKG_VERSION")
        )),
        false => Err(super::rejected(draft.report, false)),
    }
}

fn version(draft: &mut Draft<'_>) -> EnvoyVersion {
    let Some(text) = draft.var(VERSION) else {
        return ENVOY_VERSION;
    };
    text.value.parse().unwrap_or_else(|()| {
        draft.invalid(
            format!("{VERSION} is {:?}, which is no version of Envoy", text.value),
            format!("set {VERSION} to three numbers like {ENVOY_VERSION}, or unset it"),
        );
        ENVOY_VERSION
    })
}

/// Judges `args`; every problem is collected.
pub(super) fn config(mut args: EnvoyArgs, mut draft: Draft<'_>) -> Result<EnvoyConfig, Failure> {
    // An empty text is none, as it is for Envoy.
    let yaml = args.config_yaml.take().filter(|text| !text.is_empty());
    if args.config_path.is_none() && yaml.is_none() && !in_nomad(&draft) {
        return Err(Failure::Usage(nothing_to_run()));
    }
    let file = match args.config_path.take() {
        Some(path) => given_file(path, &mut draft),
        None if yaml.is_some() => None,
        None => found_file(&mut draft),
    };
    let config_yaml = yaml.and_then(|text| overlay(&text, &mut draft));
    if let Some(file) = &file {
        draft
            .report
            .put_process("config_path", shown(&file.path), &file.from);
    }
    let config = EnvoyConfig {
        file,
        config_yaml,
        mode: args.mode.unwrap_or_default(),
        // As Envoy, which takes 0 for 1.
        concurrency: args
            .concurrency
            .map_or(1, |n| usize::try_from(n).unwrap_or(1).max(1)),
        log: super::log(LogArgs {
            log_level: args.log_level,
            log_format: None,
        }),
        drain_time: seconds(args.drain_time_s, DRAIN_TIME),
        parent_shutdown_time: seconds(args.parent_shutdown_time_s, PARENT_SHUTDOWN_TIME),
        base_id: args.base_id.unwrap_or(0),
        disable_hot_restart: args.disable_hot_restart,
        unknown_fields: unknown_fields(&args),
        admin_address_path: value("--admin-address-path", args.admin_address_path.take(), &mut draft),
        stats_tags: stats_tags(&args.stats_tag, &mut draft),
        token_files: token::nomad_paths(&mut draft).map_or_else(Vec::new, |files| files.value),
        ready: ready(&mut draft),
        task_folders: task_folders(&mut draft),
        envoy_version: version(&mut draft),
        warnings: warnings(&args),
        ignored: args.ignored.0,
        node: NodeOverrides {
            id: value("--service-node", args.service_node, &mut draft),
            cluster: value("--service-cluster", args.service_cluster, &mut draft),
            zone: value("--service-zone", args.service_zone, &mut draft),
        },
        notes: Vec::new(),
    };
    if !draft.report.problems.is_empty() {
        return Err(super::rejected(draft.report, false));
    }
    let notes = draft.report.notes;
    Ok(EnvoyConfig { notes, ..config })
}

fn value<T: AsRef<std::ffi::OsStr>>(flag: &str, given: Option<T>, draft: &mut Draft<'_>) -> Option<T> {
    draft.flag(flag, given).map(|given| given.value)
}

fn seconds(given: Option<u32>, default: Duration) -> Duration {
    given.map_or(default, |seconds| Duration::from_secs(seconds.into()))
}

/// What a person sees who starts the program to find out what it does.
fn nothing_to_run() -> clap::Error {
    Cli::command().error(
        ErrorKind::MissingRequiredArgument,
        "there is nothing to run: no -c FILE, no --config-yaml, and this is no Nomad task\n\n  \
         Start with `attache demo` for a look, or `attache run --help` for a sidecar on Consul's HTTP API.",
    )
}

fn in_nomad(draft: &Draft<'_>) -> bool {
    [nomad::ALLOC_ID, nomad::TASK_NAME, nomad::SECRETS_DIR]
        .iter()
        .any(|name| draft.is_set(name))
}

/// Where Nomad writes the bootstrap of a Connect task.
const NOMAD_FILE: &str = "envoy_bootstrap.json";

/// The tasks that Nomad makes of gateways, and Consul's names for what they run.
const GATEWAY_TASKS: [(&str, &str); 4] = [
    ("connect-mesh-", "mesh-gateway"),
    ("connect-ingress-", "ingress-gateway"),
    ("connect-terminating-", "terminating-gateway"),
    ("connect-api-", "api-gateway"),
];

fn given_file(path: PathBuf, draft: &mut Draft<'_>) -> Option<EnvoyFile> {
    let path = draft.flag("-c", Some(path))?;
    // Nomad passes its own file by name, to gateways too. What a task runs on a file of its own is
    // told by the file.
    let secrets = draft.peek(nomad::SECRETS_DIR);
    let is_nomads = secrets.is_some_and(|folder| Path::new(&folder).join(NOMAD_FILE) == path.value);
    if is_nomads && is_gateway(draft) {
        return None;
    }
    file(path, draft)
}

/// The file that Nomad wrote for this task.
fn found_file(draft: &mut Draft<'_>) -> Option<EnvoyFile> {
    if is_gateway(draft) {
        return None;
    }
    let task = draft.var(nomad::TASK_NAME);
    let sidecar = task.filter(|task| task.value.starts_with(nomad::SIDECAR_TASK));
    let how = "start attache as the sidecar_task of a service's connect block, or give -c FILE; \
               `attache run` needs no file";
    let Some(folder) = draft.var(nomad::SECRETS_DIR) else {
        if !draft.is_set(nomad::SECRETS_DIR) {
            draft.missing(
                format!(
                    "which bootstrap: no -c FILE, and {} is not set",
                    nomad::SECRETS_DIR
                ),
                how.into(),
            );
        }
        return None;
    };
    let path = Path::new(&folder.value).join(NOMAD_FILE);
    if !draft.files.exists(&path) {
        let why = match sidecar {
            Some(task) => format!("Nomad did not write it for {}", task.value),
            None => format!("{} names no sidecar's task", nomad::TASK_NAME),
        };
        draft.missing(
            format!(
                "which bootstrap: no -c FILE, and {} is not there: {why}",
                shown(&path)
            ),
            how.into(),
        );
        return None;
    }
    let from = match sidecar {
        Some(_) => format!("{}, {}", nomad::SECRETS_DIR, nomad::TASK_NAME),
        None => folder.from,
    };
    draft.note(format!("the bootstrap is {}, by {from}", shown(&path)));
    file(Sourced::new(path, from), draft)
}

fn is_gateway(draft: &mut Draft<'_>) -> bool {
    let Some(task) = draft.var(nomad::TASK_NAME) else {
        return false;
    };
    let kind = GATEWAY_TASKS
        .iter()
        .find(|(prefix, _)| task.value.starts_with(prefix));
    if let Some((_, kind)) = kind {
        draft.invalid(
            format!(
                "{} is {:?}: a {kind} is not what Attaché can be",
                task.from, task.value
            ),
            "leave Envoy in this task, or make it a service's sidecar".into(),
        );
    }
    kind.is_some()
}

fn file(path: Sourced<PathBuf>, draft: &mut Draft<'_>) -> Option<EnvoyFile> {
    let Sourced { value: path, from } = path;
    let kind = draft.files.kind(&path);
    let mut refuse = |why: &str| {
        draft.invalid(
            format!("{from} names {path:?}, which cannot be used: {why}"),
            "give the path of a bootstrap in JSON or YAML".into(),
        );
        None
    };
    let end = path.extension().map(|end| end.to_ascii_lowercase());
    if end.is_some_and(|end| ["pb", "pb_text", "textproto"].iter().any(|known| end == *known)) {
        return refuse("Envoy's protobuf forms are not read");
    }
    let watched = match kind {
        Some(FileKind::Regular) => true,
        Some(FileKind::Other) => false,
        Some(FileKind::Folder) => return refuse("it is a folder"),
        None => return refuse("it does not exist"),
    };
    if !watched {
        draft.note(format!(
            "{} is no regular file: it is read once, and a change of it is not seen",
            shown(&path)
        ));
    }
    Some(EnvoyFile {
        format: Format::of(&path),
        path,
        from,
        watched,
    })
}

fn overlay(text: &Secret, draft: &mut Draft<'_>) -> Option<Document> {
    match Document::parse(text.expose(), Format::Yaml) {
        Ok(document) => Some(document),
        Err(error) => {
            draft.invalid(
                format!("--config-yaml cannot be read: {error}"),
                "give it a bootstrap, or the part of one that is to be changed, in YAML or JSON".into(),
            );
            None
        }
    }
}

fn unknown_fields(args: &EnvoyArgs) -> UnknownFields {
    UnknownFields {
        static_allowed: args.allow_unknown_fields || args.allow_unknown_static_fields,
        dynamic: match (
            args.reject_unknown_dynamic_fields,
            args.ignore_unknown_dynamic_fields,
        ) {
            (true, _) => UnknownDynamicFields::Rejected,
            (false, true) => UnknownDynamicFields::Ignored,
            (false, false) => UnknownDynamicFields::Warned,
        },
    }
}

/// Letters and digits before the colon, no dot after it: a name in a metric is cut at dots.
fn stats_tags(given: &[String], draft: &mut Draft<'_>) -> Vec<(String, String)> {
    let mut tags: Vec<(String, String)> = Vec::new();
    for text in given {
        let parts = text.split_once(':').filter(|(tag, value)| {
            let plain = !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_alphanumeric());
            plain && !value.is_empty() && !value.contains('.')
        });
        let Some((tag, value)) = parts else {
            draft.invalid(
                format!("--stats-tag {text:?} is no tag and value"),
                "write it like zone:west1, with letters and digits before the colon and no dot after it"
                    .into(),
            );
            continue;
        };
        if tags.iter().any(|(other, _)| other == tag) {
            draft.conflict(
                format!("--stats-tag {tag} is given twice"),
                "give each tag one value".into(),
            );
            continue;
        }
        tags.push((tag.to_owned(), value.to_owned()));
    }
    tags
}

/// Where Nomad tells people that the sidecar of its task says whether it is ready. What is no address is
/// left alone: nothing depends on it.
fn ready(draft: &mut Draft<'_>) -> Option<SocketAddr> {
    let task = draft.peek(nomad::TASK_NAME)?;
    let service = task.strip_prefix(nomad::SIDECAR_TASK)?;
    draft
        .peek(&format!("NOMAD_ENVOY_READY_ADDR_{}", clean_name(service)))?
        .parse()
        .ok()
}

fn task_folders(draft: &mut Draft<'_>) -> TaskFolders {
    let mut folder = |name: &str| draft.var(name).map(|folder| PathBuf::from(folder.value));
    TaskFolders {
        alloc: folder(nomad::ALLOC_DIR),
        local: folder(nomad::TASK_DIR),
        secrets: folder(nomad::SECRETS_DIR),
    }
}

fn warnings(args: &EnvoyArgs) -> Vec<String> {
    let ignored = args.ignored.0.iter();
    let mut warnings: Vec<String> = ignored
        .map(|ignored| format!("--{} does nothing here: {}", ignored.name, ignored.why))
        .collect();
    if !args.rest.is_empty() {
        warnings.push("what follows -- is ignored, as Envoy does".to_owned());
    }
    warnings
}
