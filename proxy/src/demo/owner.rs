//! Who runs a demo, as the metadata at Consul tells it: a second demo leaves a running one alone,
//! and takes over what a killed one left.

use serde_json::{Map, Value};

/// Marks what is a demo's; what does not bear it belongs to somebody else.
const MARK: &str = "attache-demo";
const PID: &str = "attache-demo-pid";
const STARTED: &str = "attache-demo-started";
const MACHINE: &str = "attache-demo-machine";

/// The process that runs a demo. A process ID alone comes back in time, so there is the start with
/// it, and the machine on which it means something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pid: u32,
    started: String,
    machine: String,
}

/// Whether a demo's process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    Alive,
    Dead,
    /// It is, or was, on another machine or in another container.
    Unknown,
}

impl Owner {
    /// This process.
    pub(super) fn this() -> Self {
        Self::process(std::process::id())
    }

    pub(super) fn process(pid: u32) -> Self {
        Self {
            pid,
            started: started(pid).unwrap_or_default(),
            machine: machine().unwrap_or_default(),
        }
    }

    /// Whose this is by its metadata; none if it is no demo's.
    pub(super) fn of(meta: &Value) -> Option<Self> {
        meta.get(MARK)?;
        let text = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
        Some(Self {
            pid: text(PID).parse().unwrap_or_default(),
            started: text(STARTED),
            machine: text(MACHINE),
        })
    }

    /// What to write beside a registration or an intention.
    pub(super) fn meta(&self) -> Value {
        let fields = [
            (MARK, "true".to_owned()),
            (PID, self.pid.to_string()),
            (STARTED, self.started.clone()),
            (MACHINE, self.machine.clone()),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), Value::String(value)));
        Value::Object(fields.into_iter().collect())
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn pulse(&self) -> Pulse {
        if self.started.is_empty() || machine().is_none_or(|here| here != self.machine) {
            return Pulse::Unknown;
        }
        match started(self.pid) {
            Some(started) if started == self.started => Pulse::Alive,
            _ => Pulse::Dead,
        }
    }
}

/// Metadata without what a demo wrote into it.
pub(super) fn unmarked(meta: &Value) -> Map<String, Value> {
    let mut rest = meta.as_object().cloned().unwrap_or_default();
    rest.retain(|name, _| ![MARK, PID, STARTED, MACHINE].contains(&name.as_str()));
    rest
}

/// When a process started, in the kernel's ticks; none if there is no such process, or it only
/// waits to be reaped.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses and spaces too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (state != "Z" && state != "X").then(|| started.to_owned())
}

/// This boot of this machine, and the container in which process IDs count.
fn machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), space.display()))
}

#[cfg(test)]
mod tests {
    use super::{Owner, Pulse, unmarked};
    use serde_json::json;

    #[test]
    fn a_process_is_known_by_its_start() {
        let this = Owner::this();
        assert_eq!(Owner::of(&this.meta()), Some(this.clone()));
        assert_eq!(this.pulse(), Pulse::Alive);
        let reused = Owner {
            started: "1".to_owned(),
            ..this.clone()
        };
        assert_eq!(reused.pulse(), Pulse::Dead);
        let elsewhere = Owner {
            machine: "other".to_owned(),
            ..this.clone()
        };
        assert_eq!(elsewhere.pulse(), Pulse::Unknown);
        assert_eq!(Owner::of(&json!({ "owner": "me" })), None);
        let mut meta = this.meta();
        meta["owner"] = json!("me");
        assert_eq!(json!(unmarked(&meta)), json!({ "owner": "me" }));
    }

    #[test]
    fn a_mark_without_a_process_tells_nothing() {
        let old = Owner::of(&json!({ "attache-demo": "true" })).unwrap();
        assert_eq!(old.pulse(), Pulse::Unknown);
    }
}
