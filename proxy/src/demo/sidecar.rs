//! The two sidecar processes: started, watched, and ended whatever happens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::DemoError;
use super::mesh::Member;

/// Nomad gives a task as long.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What of a log is shown when its sidecar ends.
const TAIL_LINES: usize = 20;

/// How a sidecar is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) extra_arguments: &'a [String],
    /// `HOST:PORT` of Consul's HTTP API.
    pub(super) consul: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) folder: &'a Path,
}

/// A running sidecar. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Sidecar {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Sidecar {
    pub(super) fn start(member: Member, launch: &Launch<'_>) -> Result<Self, DemoError> {
        let log = launch.folder.join(format!("{}-sidecar.log", member.service));
        let spawned = (|| {
            let file = File::create(&log)?;
            let errors = file.try_clone()?;
            let mut command = Command::new(launch.program);
            command
                .args(["run", "--sidecar-for", member.id])
                .args(["--http-addr", launch.consul])
                .args(["--log-format", "text"])
                .args(launch.extra_arguments)
                // The user's CONSUL_* and NOMAD_* variables are not meant for these two.
                .env_clear()
                .stdin(Stdio::null())
                .stdout(file)
                .stderr(errors)
                // The terminal's Ctrl-C goes to the demo alone, which then ends them in order.
                .process_group(0)
                .kill_on_drop(true);
            if let Some(token) = launch.token {
                command.env("CONSUL_HTTP_TOKEN", token);
            }
            command.spawn()
        })();
        match spawned {
            Ok(child) => Ok(Self {
                name: member.service,
                child,
                log,
            }),
            Err(error) => Err(DemoError::Spawn {
                program: launch.program.to_owned(),
                error,
            }),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Where its admin API listens, as its log says.
    pub(super) fn admin(&self) -> Option<String> {
        let log = std::fs::read(&self.log).ok()?;
        admin_address(&String::from_utf8_lossy(&log))
    }

    /// Waits for the process to end, which it should not: gives what to tell then.
    pub(super) async fn death(&mut self) -> DemoError {
        let how = match self.child.wait().await {
            Ok(status) => describe(status),
            Err(error) => format!("cannot be waited for: {error}"),
        };
        DemoError::SidecarEnded {
            service: self.name,
            how,
            tail: tail(&self.log),
        }
    }

    /// Asks the process to end, and kills it when it does not in time.
    pub(super) async fn stop(&mut self) -> io::Result<()> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid else {
            return Ok(());
        };
        // It may end by itself in between.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        match tokio::time::timeout(STOP_WITHIN, self.child.wait()).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => self.child.kill().await,
        }
    }
}

fn admin_address(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(" admin API address="))?;
    let (_, address) = line.split_once("address=")?;
    address.split_whitespace().next().map(str::to_owned)
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].join("\n")
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::admin_address;

    #[test]
    fn the_admin_address_is_read_from_the_log() {
        let log = "2026-11-23T14:53:52Z  INFO attache::admin: the admin API moves to the next free port\n\
                   2026-11-23T14:53:52Z  INFO attache::app: admin API address=127.0.0.1:19001\n";
        assert_eq!(admin_address(log).as_deref(), Some("127.0.0.1:19001"));
        assert_eq!(admin_address("begin\n"), None);
    }
}
