//! What Nomad's environment says: which proxy this is, and hints at its upstreams and public port.
//!
//! Nomad keys the variables of an upstream by the destination's name alone, so they cannot tell
//! datacenters, peers or two upstreams of one name apart: they are hints that a registration
//! overrides. `NOMAD_IP_*`, `NOMAD_ADDR_*` and `NOMAD_HOST_*` are the host's addresses and never
//! read: what is bound here is bound inside the allocation.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::{ProxyRef, UpstreamHint};
use crate::names::clean_name;
use crate::report::{KnownId, Sourced};

use super::draft::{self, Draft};

pub(super) const ALLOC_ID: &str = "NOMAD_ALLOC_ID";
const GROUP_NAME: &str = "NOMAD_GROUP_NAME";
pub(super) const TASK_NAME: &str = "NOMAD_TASK_NAME";
pub(super) const ALLOC_DIR: &str = "NOMAD_ALLOC_DIR";
pub(super) const TASK_DIR: &str = "NOMAD_TASK_DIR";
pub(super) const SECRETS_DIR: &str = "NOMAD_SECRETS_DIR";

const ALLOC_PORT: &str = "NOMAD_ALLOC_PORT_";
const UPSTREAM_ADDR: &str = "NOMAD_UPSTREAM_ADDR_";
const UPSTREAM_IP: &str = "NOMAD_UPSTREAM_IP_";
const UPSTREAM_PORT: &str = "NOMAD_UPSTREAM_PORT_";

/// How Nomad names the task, and the port label, of a service's sidecar.
pub(super) const SIDECAR_TASK: &str = "connect-proxy-";
const ID_SUFFIX: &str = "-sidecar-proxy";

/// Whether the process was started by Nomad.
pub(super) fn is_here(draft: &Draft<'_>) -> bool {
    draft.is_set(ALLOC_ID)
}

/// The proxy of the allocation that this process runs in.
pub(super) fn proxy(draft: &mut Draft<'_>) -> Option<ProxyRef> {
    let names = [ALLOC_ID, GROUP_NAME, TASK_NAME];
    if !names.iter().any(|name| draft.is_set(name)) {
        draft.missing(
            format!(
                "which proxy this is: no --proxy-id, --sidecar-for or --service, and Nomad's \
                 {ALLOC_ID}, {GROUP_NAME} and {TASK_NAME} are not set"
            ),
            "give --sidecar-for with the ID of a registered service, or see `attache run --help`".into(),
        );
        return None;
    }
    for name in names {
        if !draft.is_set(name) {
            draft.missing(
                format!("{name} is not set, though others of Nomad's variables are"),
                format!("pass {name} on as Nomad sets it, or give --sidecar-for or --proxy-id"),
            );
        }
    }
    let alloc = draft.var(ALLOC_ID);
    let group = draft.var(GROUP_NAME);
    let task = draft.var(TASK_NAME);
    let service = task.and_then(|task| sidecar_of(&task.value, draft))?;
    draft.report.put("service", service.clone(), TASK_NAME);
    let (alloc, group) = (alloc?.value, group?.value);
    let prefix = format!("_nomad-task-{alloc}-group-{group}-{service}-");
    draft.report.proxy_id = Some(known_id(&prefix, draft));
    Some(ProxyRef::Nomad { prefix, service })
}

fn sidecar_of(task: &str, draft: &mut Draft<'_>) -> Option<String> {
    match task.strip_prefix(SIDECAR_TASK) {
        Some(service) if !service.is_empty() => Some(service.to_owned()),
        _ => {
            draft.invalid(
                format!(
                    "{TASK_NAME} is {task:?}, which is no sidecar's task: Nomad names those \
                     {SIDECAR_TASK}<service>"
                ),
                "start attache as the sidecar_task of a service's connect block, or give \
                 --sidecar-for or --proxy-id"
                    .into(),
            );
            None
        }
    }
}

/// The ID has the service's port label, which no variable of the sidecar tells.
fn known_id(prefix: &str, draft: &mut Draft<'_>) -> KnownId {
    let from = format!("{ALLOC_ID}, {GROUP_NAME}, {TASK_NAME}");
    if let Some(id) = id_of_envoy_file(prefix, draft) {
        return KnownId {
            id: Sourced::new(Some(id.value), format!("{from}, {}", id.from)),
            resolved: true,
            candidate: None,
        };
    }
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for label in draft.names_after(ALLOC_PORT) {
        let sidecar = clean_name(SIDECAR_TASK);
        if !label.is_empty() && !clean_name(&label).starts_with(&sidecar) {
            // Sorted, so the spelling with dashes comes first and stays.
            labels.entry(clean_name(&label)).or_insert(label);
        }
    }
    let mut labels = labels.into_values();
    let candidate = match (labels.next(), labels.next()) {
        (Some(label), None) => Some(Sourced::new(
            format!("{prefix}{label}{ID_SUFFIX}"),
            format!("{ALLOC_PORT}{label}, the allocation's only other port"),
        )),
        _ => None,
    };
    KnownId {
        id: Sourced::new(Some(format!("{prefix}*{ID_SUFFIX}")), from),
        resolved: false,
        candidate,
    }
}

/// Of the file that Nomad writes for Envoy, the one field that tells the ID.
#[derive(Deserialize)]
struct EnvoyFile {
    node: EnvoyNode,
}

#[derive(Deserialize)]
struct EnvoyNode {
    id: String,
}

/// The proxy's ID as Nomad told Envoy. The file may be absent or half written: then it says nothing.
fn id_of_envoy_file(prefix: &str, draft: &mut Draft<'_>) -> Option<Sourced<String>> {
    let folder = draft.peek(SECRETS_DIR)?;
    let path = Path::new(&folder).join("envoy_bootstrap.json");
    // It holds the ACL token too.
    let text = Zeroizing::new(draft.files.read(&path).ok()?);
    let file: EnvoyFile = serde_json::from_str(&text).ok()?;
    let from = format!("node.id of {}", draft::shown(&path));
    if file.node.id.starts_with(prefix) && file.node.id.ends_with(ID_SUFFIX) {
        return Some(Sourced::new(file.node.id, from));
    }
    draft.note(format!(
        "{from} is {:?}, which does not begin with {prefix} and is not used",
        file.node.id
    ));
    None
}

/// `0.0.0.0` and the port that Nomad reserved for this sidecar.
pub(super) fn public_listener(draft: &mut Draft<'_>) -> Option<SocketAddr> {
    let task = draft.peek(TASK_NAME)?;
    task.strip_prefix(SIDECAR_TASK)?;
    let dashed = format!("{ALLOC_PORT}{task}");
    let cleaned = format!("{ALLOC_PORT}{}", clean_name(&task));
    let mut found: Option<Sourced<u16>> = None;
    let mut given = false;
    for name in [&dashed, &cleaned] {
        given |= draft.is_set(name);
        let Some(text) = draft.var(name) else {
            continue;
        };
        let Some(port) = draft::port(&text.value) else {
            draft.invalid(
                format!("{name} is {:?}, which is no port", text.value),
                format!("set {name} to a number from 1 to 65535, or unset it"),
            );
            continue;
        };
        match &found {
            Some(first) if first.value != port => draft.conflict(
                format!("{} is {}, but {name} is {port}", first.from, first.value),
                "unset the wrong one of the two".into(),
            ),
            Some(_) => {}
            None => found = Some(Sourced::new(port, name)),
        }
    }
    if !given {
        draft.gap(
            format!("{dashed} is not set: the public port is known from the registration alone"),
            format!("pass {dashed} on as Nomad sets it, or have bind_port in the registration"),
        );
    }
    let port = found?;
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port.value);
    draft.report.public_listener = Some(Sourced::new(address, port.from));
    Some(address)
}

/// `NOMAD_UPSTREAM_{ADDR,IP,PORT}_<name>`, an entry for each upstream, sorted by name.
pub(super) fn upstreams(draft: &mut Draft<'_>) -> Vec<UpstreamHint> {
    let mut names: Vec<String> = Vec::new();
    for prefix in [UPSTREAM_ADDR, UPSTREAM_IP, UPSTREAM_PORT] {
        names.extend(draft.names_after(prefix));
    }
    names.sort();
    names.dedup();

    // Each name as written, then the clean spelling that several of them may share.
    let mut families: BTreeMap<String, Vec<UpstreamHint>> = BTreeMap::new();
    for name in names {
        if let Some(hint) = upstream(&name, draft) {
            families.entry(clean_name(&name)).or_default().push(hint);
        }
    }
    let mut hints = Vec::new();
    for (clean, mut family) in families {
        let shared = family.iter().position(|hint| hint.destination == clean);
        if family.len() > 1
            && let Some(shared) = shared
        {
            let shared = family.remove(shared);
            if !family.iter().any(|hint| hint.bind == shared.bind) {
                contradiction(&family, &shared, draft);
            }
        }
        hints.extend(family);
    }
    hints.sort_by(|a, b| a.destination.cmp(&b.destination));
    draft.report.upstreams.clone_from(&hints);
    hints
}

/// Nomad writes the clean spelling with the same value, unless two upstreams share it and one
/// overwrote the other: which of them is meant cannot be told.
fn contradiction(family: &[UpstreamHint], shared: &UpstreamHint, draft: &mut Draft<'_>) {
    let written: Vec<String> = family
        .iter()
        .map(|hint| format!("{} is {}", hint.variable, hint.bind))
        .collect();
    draft.conflict(
        format!(
            "{}, but {} is {}: both spellings stand for one upstream",
            written.join(" and "),
            shared.variable,
            shared.bind
        ),
        "unset the wrong one, or rename one of two upstreams whose names differ in - and _ alone".into(),
    );
}

/// One spelling of one upstream.
fn upstream(name: &str, draft: &mut Draft<'_>) -> Option<UpstreamHint> {
    let [addr_name, ip_name, port_name] =
        [UPSTREAM_ADDR, UPSTREAM_IP, UPSTREAM_PORT].map(|prefix| format!("{prefix}{name}"));
    if name.is_empty() {
        draft.invalid(
            format!("{addr_name}, {ip_name} or {port_name} names no upstream"),
            "unset it".into(),
        );
        return None;
    }
    let addr_text = draft.var(&addr_name);
    let ip_text = draft.var(&ip_name);
    let port_text = draft.var(&port_name);
    if is_socket(&addr_text, &ip_text, &port_text) {
        draft.note(format!(
            "upstream {name}: {addr_name} has port 0, as Nomad writes it for an upstream on a unix \
             socket; only the registration says where"
        ));
        return None;
    }
    let addr = addr_text.as_ref().map(|text| (text, upstream_addr(text, draft)));
    let ip = ip_text.as_ref().map(|text| (text, upstream_ip(text, draft)));
    let port = port_text.as_ref().map(|text| (text, upstream_port(text, draft)));

    if let Some((_, addr)) = addr {
        let addr = addr?;
        let ip_differs = ip.filter(|(_, ip)| ip.is_some_and(|ip| ip != addr.ip()));
        let port_differs = port.filter(|(_, port)| port.is_some_and(|port| port != addr.port()));
        for text in [ip_differs.map(|ip| ip.0), port_differs.map(|port| port.0)] {
            let Some(text) = text else { continue };
            draft.conflict(
                format!("{addr_name} is {addr}, but {} is {:?}", text.from, text.value),
                format!("correct or unset one of {addr_name} and {}", text.from),
            );
        }
        return Some(UpstreamHint {
            destination: name.to_owned(),
            bind: addr,
            variable: addr_name,
        });
    }
    match (ip, port) {
        (Some((_, ip)), Some((_, port))) => Some(UpstreamHint {
            destination: name.to_owned(),
            bind: SocketAddr::new(ip?, port?),
            variable: format!("{ip_name}, {port_name}"),
        }),
        (None, None) => {
            // An empty or unreadable variable: the latter is reported where it was read.
            if !draft.is_set(&addr_name) && !draft.is_set(&ip_name) && !draft.is_set(&port_name) {
                draft.missing(
                    format!("{addr_name}, {ip_name} and {port_name} are empty or not set"),
                    format!("set {addr_name} to the address and port that the app dials"),
                );
            }
            None
        }
        (present, _) => {
            let (there, absent) = match present {
                Some(_) => (&ip_name, &port_name),
                None => (&port_name, &ip_name),
            };
            if !draft.is_set(absent) {
                draft.missing(
                    format!("{there} is set, but neither {absent} nor {addr_name} is"),
                    format!("set {absent} or {addr_name} too, or unset {there}"),
                );
            }
            None
        }
    }
}

type Text = Option<Sourced<String>>;

/// Exactly what Nomad writes for an upstream with `local_bind_socket_path`, which has no port.
fn is_socket(addr: &Text, ip: &Text, port: &Text) -> bool {
    let is = |text: &Text, wanted: &str| text.as_ref().is_some_and(|text| text.value == wanted);
    is(addr, "127.0.0.1:0") && is(ip, "127.0.0.1") && is(port, "0")
}

fn upstream_addr(text: &Sourced<String>, draft: &mut Draft<'_>) -> Option<SocketAddr> {
    let parsed = text.value.parse().ok();
    let address = parsed.filter(|address: &SocketAddr| address.port() != 0);
    if address.is_none() {
        draft.invalid(
            format!(
                "{} is {:?}, which is no IP address and port",
                text.from, text.value
            ),
            format!("set {} like 127.0.0.1:8080", text.from),
        );
    }
    address
}

fn upstream_ip(text: &Sourced<String>, draft: &mut Draft<'_>) -> Option<IpAddr> {
    let ip = text.value.parse().ok();
    if ip.is_none() {
        draft.invalid(
            format!("{} is {:?}, which is no IP address", text.from, text.value),
            format!("set {} like 127.0.0.1, or unset it", text.from),
        );
    }
    ip
}

fn upstream_port(text: &Sourced<String>, draft: &mut Draft<'_>) -> Option<u16> {
    let port = draft::port(&text.value);
    if port.is_none() {
        draft.invalid(
            format!("{} is {:?}, which is no port", text.from, text.value),
            format!("set {} to a number from 1 to 65535, or unset it", text.from),
        );
    }
    port
}
