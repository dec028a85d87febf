//! What `attache bootstrap` prints: each value with where it came from, what is missing and how to
//! give it.
//!
//! Owns the text of values, never a secret: a token's entry holds a placeholder and its source.
//! Nothing here asks Consul; the binary may, and hands the answer in as [`LiveFacts`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::config::UpstreamHint;
use crate::names::clean_name;
use crate::problem::{Problem, ProblemKind};

/// A value with the flag, variable, file or default it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Its source, as a user would name it.
    pub from: String,
}

impl<T> Sourced<T> {
    /// `value`, as told by `from`.
    pub fn new(value: T, from: impl Into<String>) -> Self {
        let from = from.into();
        Self { value, from }
    }
}

/// What stands in a report in a secret's place.
pub(crate) const REDACTED: &str = "[redacted]";

/// The proxy's ID as far as it is known without asking Consul.
#[derive(Clone, Debug)]
pub(crate) struct KnownId {
    /// The ID, or a pattern with `*`, or nothing.
    pub(crate) id: Sourced<Option<String>>,
    /// Whether `id` is the ID itself.
    pub(crate) resolved: bool,
    /// What it most likely is, where it is not resolved.
    pub(crate) candidate: Option<Sourced<String>>,
}

/// The configuration as a user reads it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(crate) proxy_id: Option<KnownId>,
    pub(crate) public_listener: Option<Sourced<SocketAddr>>,
    pub(crate) upstreams: Vec<UpstreamHint>,
    /// The upstreams of `--upstream`, already as they are printed.
    pub(crate) manual_upstreams: Vec<Value>,
    /// Everything else about the proxy and Consul, in the order it was learnt; `section.key` stands
    /// in an object of its own.
    pub(crate) values: Vec<(&'static str, Value)>,
    /// How the process runs, whichever proxy it is; printed after what matters more.
    pub(crate) process: Vec<(&'static str, Value)>,
    pub(crate) problems: Vec<Problem>,
    /// Not given, but without it Attaché runs: the registration or waiting may cure it.
    pub(crate) gaps: Vec<Problem>,
    pub(crate) notes: Vec<String>,
}

/// What the agent's registration says, where the agent could be asked.
#[derive(Clone, Debug)]
pub struct LiveFacts {
    /// The agent that answered, as a user would name it.
    pub agent: String,
    /// The registration's ID.
    pub proxy_id: String,
    /// Where the registration has the public listener, when it says so.
    pub public_listener: Option<SocketAddr>,
    /// The registration's upstreams.
    pub upstreams: Vec<LiveUpstream>,
}

/// One upstream of a registration.
#[derive(Clone, Debug)]
pub struct LiveUpstream {
    /// The service or the prepared query.
    pub destination: String,
    /// `service` or `prepared_query`.
    pub destination_type: String,
    /// Where the app dials.
    pub bind: LiveBind,
    /// Another datacenter.
    pub datacenter: Option<String>,
    /// Another namespace.
    pub namespace: Option<String>,
    /// Another partition.
    pub partition: Option<String>,
    /// A cluster peer.
    pub peer: Option<String>,
}

/// Where an upstream of a registration listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveBind {
    /// A TCP address.
    Address(SocketAddr),
    /// A unix socket.
    Socket(PathBuf),
}

impl fmt::Display for LiveBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Report {
    /// Puts `value` under `key`.
    pub(crate) fn put(&mut self, key: &'static str, value: impl Into<Value>, from: &str) {
        self.values.push((key, sourced(value.into(), from)));
    }

    /// Puts a setting of the process under `key`.
    pub(crate) fn put_process(&mut self, key: &'static str, value: impl Into<Value>, from: &str) {
        self.process.push((key, sourced(value.into(), from)));
    }

    /// Things that were decided for the user and that they may want to know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds that the agent does not have what is described by `what`; a run would wait for it.
    pub fn not_there_yet(&mut self, what: impl fmt::Display) {
        self.gaps.push(Problem {
            kind: ProblemKind::Missing,
            what: format!("not there yet: {what}"),
            fix: "register the service with a sidecar (connect { sidecar_service {} }) at this agent, \
                  compare the ID with `consul catalog services` and the agent's /v1/agent/services, \
                  and give a token that has service:read on it where ACLs are on; attache run waits \
                  for it"
                .to_owned(),
        });
    }

    /// What is not given and is not needed as long as the registration has it.
    pub fn gaps(&self) -> &[Problem] {
        &self.gaps
    }

    /// Everything that stops a run.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The whole report. With `live`, the registration's values stand where the environment only had
    /// hints, and each difference is a note.
    pub fn to_json(&self, live: Option<&LiveFacts>) -> Value {
        let mut all = Map::new();
        let mut notes = self.notes.clone();
        if let Some(live) = live {
            notes.extend(self.differences(live));
        }
        if let Some(id) = self.id_json(live) {
            all.insert("proxy_id".into(), id);
        }
        for (key, value) in self.values.iter().filter(|(key, _)| !key.contains('.')) {
            all.insert((*key).into(), value.clone());
        }
        if let Some(listener) = self.listener_json(live) {
            all.insert("public_listener".into(), listener);
        }
        all.insert("upstreams".into(), self.upstreams_json(live));
        for (key, value) in &self.values {
            if let Some((section, key)) = key.split_once('.') {
                let section = all.entry(section).or_insert_with(|| json!({}));
                if let Some(section) = section.as_object_mut() {
                    section.insert(key.into(), value.clone());
                }
            }
        }
        for (key, value) in &self.process {
            all.insert((*key).into(), value.clone());
        }
        let (missing, wrong): (Vec<&Problem>, Vec<&Problem>) = self
            .problems
            .iter()
            .partition(|problem| problem.kind == ProblemKind::Missing);
        let missing = missing.into_iter().map(|problem| entry(problem, true));
        let gaps = self.gaps.iter().map(|gap| entry(gap, false));
        all.insert("missing".into(), missing.chain(gaps).collect());
        all.insert(
            "problems".into(),
            wrong.into_iter().map(|wrong| entry(wrong, true)).collect(),
        );
        all.insert("notes".into(), notes.into());
        Value::Object(all)
    }

    fn id_json(&self, live: Option<&LiveFacts>) -> Option<Value> {
        if let Some(live) = live {
            return Some(json!({
                "value": live.proxy_id, "from": registration(live), "resolved": true,
            }));
        }
        let known = self.proxy_id.as_ref()?;
        let mut id = json!({
            "value": known.id.value, "from": known.id.from, "resolved": known.resolved,
        });
        if let Some(candidate) = &known.candidate {
            id["candidate"] = json!({ "value": candidate.value, "from": candidate.from });
        }
        Some(id)
    }

    fn listener_json(&self, live: Option<&LiveFacts>) -> Option<Value> {
        let (value, from) = match live.and_then(|live| Some((live.public_listener?, live))) {
            Some((listener, live)) => (listener, registration(live)),
            None => {
                let hint = self.public_listener.as_ref()?;
                (hint.value, hint.from.clone())
            }
        };
        Some(json!({ "value": value.to_string(), "from": from }))
    }

    fn upstreams_json(&self, live: Option<&LiveFacts>) -> Value {
        let Some(live) = live else {
            let hints = self.upstreams.iter().map(|hint| {
                json!({
                    "destination": hint.destination,
                    "bind": hint.bind.to_string(),
                    "from": hint.variable,
                })
            });
            return hints.chain(self.manual_upstreams.iter().cloned()).collect();
        };
        let from = registration(live);
        let upstreams = live.upstreams.iter().map(|upstream| {
            let mut one = json!({
                "destination": upstream.destination,
                "type": upstream.destination_type,
                "bind": upstream.bind.to_string(),
            });
            for (key, value) in [
                ("datacenter", &upstream.datacenter),
                ("namespace", &upstream.namespace),
                ("partition", &upstream.partition),
                ("peer", &upstream.peer),
            ] {
                if let Some(value) = value {
                    one[key] = value.clone().into();
                }
            }
            one["from"] = from.clone().into();
            one
        });
        upstreams.collect()
    }

    /// Where the registration and the environment disagree, a sentence each, by name.
    fn differences(&self, live: &LiveFacts) -> Vec<String> {
        let mut notes = Vec::new();
        let from = registration(live);
        if let (Some(hint), Some(listener)) = (&self.public_listener, live.public_listener)
            && hint.value.port() != listener.port()
        {
            notes.push(format!(
                "public listener: {from} says {listener}, {} says {}; the registration is used",
                hint.from, hint.value
            ));
        }
        for hint in &self.upstreams {
            // Nomad's names are keyed by destination alone: several upstreams may answer to one.
            let named: Vec<&LiveUpstream> = live
                .upstreams
                .iter()
                .filter(|upstream| clean_name(&upstream.destination) == clean_name(&hint.destination))
                .collect();
            if named.is_empty() {
                notes.push(format!(
                    "upstream {}: {} says {}, {from} has no such upstream",
                    hint.destination, hint.variable, hint.bind
                ));
            } else if !named
                .iter()
                .any(|upstream| upstream.bind == LiveBind::Address(hint.bind))
            {
                let binds: Vec<String> = named.iter().map(|one| one.bind.to_string()).collect();
                notes.push(format!(
                    "upstream {}: {from} says {}, {} says {}; the registration is used",
                    hint.destination,
                    binds.join(" and "),
                    hint.variable,
                    hint.bind
                ));
            }
        }
        notes
    }
}

fn sourced(value: Value, from: &str) -> Value {
    json!({ "value": value, "from": from })
}

fn registration(live: &LiveFacts) -> String {
    format!("registration {} at {}", live.proxy_id, live.agent)
}

fn entry(problem: &Problem, stops_run: bool) -> Value {
    json!({ "what": problem.what, "how": problem.fix, "stops_run": stops_run })
}
