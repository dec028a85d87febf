//! A child process with its output in memory; killed with its handle.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// They end with the pipes, a moment after the process.
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `program`. Its environment is what `environment` says and nothing else but `PATH`.
    pub fn start(name: &str, program: &str, arguments: &[String], environment: &[(String, String)]) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", env_path())
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let lines = Arc::default();
        let readers = vec![
            tokio::spawn(keep(child.stdout.take().unwrap(), Arc::clone(&lines))),
            tokio::spawn(keep(child.stderr.take().unwrap(), Arc::clone(&lines))),
        ];
        Self {
            name: name.to_owned(),
            child,
            lines,
            readers,
        }
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Waits until a line that it writes has all of `words`, and gives the line.
    pub async fn says(&self, words: &[&str]) -> String {
        self.says_after(0, words).await
    }

    /// As [`Self::says`], past the first `skip` lines ([`Self::lines`]).
    pub async fn says_after(&self, skip: usize, words: &[&str]) -> String {
        let began = std::time::Instant::now();
        loop {
            let found = {
                let lines = self.lines.lock().unwrap();
                lines
                    .iter()
                    .skip(skip)
                    .find(|line| words.iter().all(|word| line.contains(word)))
                    .cloned()
            };
            if let Some(line) = found {
                return line;
            }
            let (name, log) = (&self.name, self.log());
            assert!(
                began.elapsed() < crate::PATIENCE,
                "{name} never said {words:?}; it said:\n{log}"
            );
            tokio::time::sleep(crate::LOOK).await;
        }
    }

    /// How many lines it has written so far.
    pub fn lines(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// Sends a signal by name, such as `TERM`.
    pub async fn signal(&self, signal: &str) {
        if let Some(pid) = self.child.id() {
            let sent = Command::new("kill")
                .arg(format!("-{signal}"))
                .arg(pid.to_string())
                .status()
                .await;
            assert!(sent.unwrap().success(), "{} cannot be signalled", self.name);
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let waited = tokio::time::timeout(crate::PATIENCE, self.child.wait()).await;
        let status =
            waited.unwrap_or_else(|_| panic!("{} does not end; it said:\n{}", self.name, self.log()));
        for reader in self.readers.drain(..) {
            let _ = reader.await;
        }
        status.unwrap()
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Bytes of memory that it holds now.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Bytes of memory that it has held at most.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes * 1024
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id().unwrap());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// The names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let folder = format!("/proc/{}/task", self.child.id().unwrap());
        std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }

    /// Its process ID while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "children need a PATH to find what they run"
)]
fn env_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

async fn keep(output: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<String>>>) {
    let mut reader = BufReader::new(output).lines();
    while let Ok(Some(line)) = reader.next_line().await {
        lines.lock().unwrap().push(line);
    }
}
