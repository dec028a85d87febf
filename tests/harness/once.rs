//! Programs that end by themselves: their exit code and what they wrote, each stream for itself.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// What a program that ended left behind.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `program` to its end with this environment and nothing else.
pub async fn once(program: &str, arguments: &[&str], environment: &[(String, String)]) -> Ended {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(crate::PATIENCE, command.output()).await;
    let output = ended
        .unwrap_or_else(|_| panic!("{program} {arguments:?} does not end"))
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}
