//! A proxy's process: started with its log in a file, watched while it comes up, and killed with
//! all its children when dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::TcpStream;

/// A machine that compiles beside the bench starts a proxy slowly.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// Well below the shortest start there is to measure.
const PROBE_EVERY: Duration = Duration::from_micros(500);

/// Nothing of a proxy without connections is worth a longer wait.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// How much of a log is shown when its process fails.
const TAIL_LINES: usize = 10;

/// A running process and the leader of its own process group.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Process {
    /// Starts it with no environment: neither `CONSUL_*` nor `NOMAD_*` variables are meant for it.
    /// The path stays, for scripts.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Result<Self, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let spawn = || {
            let file = File::create(&log)?;
            command
                .env_clear()
                .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file)
                .process_group(0)
                .spawn()
        };
        let started = Instant::now();
        let child = { spawn }().map_err(|error| format!("{program} does not start: {error}"))?;
        Ok(Self { child, log, started })
    }

    /// Its ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Waits until it listens there; gives the milliseconds since its start.
    pub(crate) async fn listening(&mut self, address: SocketAddr) -> Result<f64, String> {
        while TcpStream::connect(address).await.is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended ({status}) before it listened{}", self.tail()));
            }
            if self.started.elapsed() > STARTS_WITHIN {
                let tail = self.tail();
                return Err(format!(
                    "it does not listen on {address} within {STARTS_WITHIN:?}{tail}"
                ));
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(self.started.elapsed().as_secs_f64() * 1e3)
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        lines[from..].iter().map(|line| format!("\n    {line}")).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Ok(leader) = i32::try_from(self.child.id()).map(Pid::from_raw) else {
            return;
        };
        // It may be gone already; there is nobody to tell. A leader that is asked first reaps its
        // own children.
        let _ = kill(leader, Signal::SIGTERM);
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < ENDS_WITHIN {
            std::thread::sleep(PROBE_EVERY);
        }
        let _ = killpg(leader, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
