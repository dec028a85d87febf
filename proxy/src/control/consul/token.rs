//! Which ACL token requests carry, and noticing a new one.
//!
//! Owns the current token: given by hand, read from a file that is watched, or got by exchanging a
//! JWT. A new token raises the generation, at which running queries start again. A token never
//! reaches the log.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use attache_bootstrap::Secret;
use attache_bootstrap::config::TokenSource;
use serde_json::json;
use tokio::sync::watch;

use super::client::{Client, ConsulError, Request};
use super::json::{self, Node};
use super::watch::{REFUSED_CAP, backoff};
use crate::control::file::{self, POLL, SETTLE, Stamp, stamp, stamps};

/// A token is a UUID, a JWT seldom over 8 KiB.
const MAX_BYTES: u64 = 64 << 10;
/// A login is one short request.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A token and how many there were before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Token {
    pub(super) generation: u64,
    pub(super) secret: Option<Secret>,
    /// Where it is from, in words for a person.
    from: String,
}

impl Token {
    /// How requests are sent, to end a sentence with.
    pub(super) fn described(&self) -> String {
        match &self.secret {
            None => "without a token".to_owned(),
            Some(_) => format!("with the token {}", self.from),
        }
    }
}

/// Sees the newest token.
#[derive(Clone)]
pub(super) struct TokenReader {
    current: watch::Receiver<Token>,
    rejected: Rc<watch::Sender<u64>>,
}

/// The task that keeps the token new.
pub(super) struct TokenKeeper {
    source: TokenSource,
    current: watch::Sender<Token>,
    rejected: watch::Receiver<u64>,
}

/// Reads the first token where that needs no exchange.
pub(super) fn open(source: &TokenSource) -> (TokenReader, TokenKeeper) {
    let (from, secret) = match source {
        TokenSource::None | TokenSource::Login { .. } => (String::new(), None),
        TokenSource::Literal(secret) => ("that was given".to_owned(), Some(secret.clone())),
        TokenSource::Files(paths) => match first(paths) {
            Some((path, secret)) => (of_file(path), Some(secret)),
            None => (String::new(), None),
        },
    };
    if let TokenSource::Files(paths) = source
        && secret.is_none()
    {
        tell_unread(paths);
    }
    let (sender, current) = watch::channel(Token {
        generation: 1,
        secret,
        from,
    });
    let (reject, rejected) = watch::channel(0);
    let reader = TokenReader {
        current,
        rejected: Rc::new(reject),
    };
    let keeper = TokenKeeper {
        source: source.clone(),
        current: sender,
        rejected,
    };
    (reader, keeper)
}

impl TokenReader {
    pub(super) fn current(&self) -> Token {
        self.current.borrow().clone()
    }

    /// Waits for another token than `generation`; for ever once there can be none.
    pub(super) async fn newer_than(&mut self, generation: u64) {
        let newer = |token: &Token| token.generation > generation;
        if self.current.wait_for(newer).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Consul says that it does not know this token.
    pub(super) fn rejected(&self, generation: u64) {
        self.rejected.send_replace(generation);
    }
}

impl TokenKeeper {
    /// Whether a request before the first exchange would be without the token that it needs.
    pub(super) fn must_log_in(&self) -> bool {
        matches!(self.source, TokenSource::Login { .. })
    }

    /// Keeps the token new for as long as it is polled.
    pub(super) async fn run(mut self, client: Client) -> Infallible {
        match self.source.clone() {
            TokenSource::None | TokenSource::Literal(_) => std::future::pending().await,
            TokenSource::Files(paths) => self.watch_files(&paths).await,
            TokenSource::Login {
                auth_method,
                jwt_file,
            } => self.log_in(&client, &auth_method, &jwt_file).await,
        }
    }

    fn replace(&self, secret: Secret, from: String) -> bool {
        self.current.send_if_modified(|token| {
            let changed = token.secret.as_ref() != Some(&secret);
            if changed {
                token.generation += 1;
                token.secret = Some(secret);
                token.from = from;
            }
            changed
        })
    }

    async fn watch_files(&mut self, paths: &[PathBuf]) -> Infallible {
        let mut seen = stamps(paths);
        loop {
            tokio::time::sleep(POLL).await;
            let now = stamps(paths);
            if now == seen {
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            if stamps(paths) != now {
                continue;
            }
            seen = now;
            if let Some((path, secret)) = first(paths)
                && self.replace(secret, of_file(path))
            {
                tracing::info!(path = %path.display(), "a new Consul token is used from now on");
            }
        }
    }

    async fn log_in(&mut self, client: &Client, method: &str, jwt_file: &Path) -> Infallible {
        let mut backoff = backoff();
        let mut told = None;
        loop {
            let seen = stamp(jwt_file);
            match exchange(client, method, jwt_file).await {
                Ok(secret) => {
                    backoff.reset();
                    told = None;
                    self.rejected.mark_unchanged();
                    self.replace(secret, format!("of the auth method {method}"));
                    tracing::info!(auth_method = method, "logged in to Consul");
                    self.wait_for_reason(jwt_file, seen).await;
                }
                Err(why) => {
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(auth_method = method, why, "cannot log in to Consul");
                        told = Some(why);
                    }
                    tokio::time::sleep(backoff.next(REFUSED_CAP)).await;
                }
            }
        }
    }

    /// Until the JWT is another one or Consul has forgotten the token that was got for it.
    async fn wait_for_reason(&mut self, jwt_file: &Path, seen: Option<Stamp>) {
        let generation = self.current.borrow().generation;
        loop {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {
                    let now = stamp(jwt_file);
                    if now.is_some() && now != seen {
                        tokio::time::sleep(SETTLE).await;
                        if stamp(jwt_file) == now {
                            return;
                        }
                    }
                }
                changed = self.rejected.changed() => {
                    if changed.is_ok() && *self.rejected.borrow_and_update() >= generation {
                        return;
                    }
                }
            }
        }
    }
}

async fn exchange(client: &Client, method: &str, jwt_file: &Path) -> Result<Secret, String> {
    let jwt = read(jwt_file).map_err(|why| format!("no JWT: {}: {why}", jwt_file.display()))?;
    let body = json!({ "AuthMethod": method, "BearerToken": jwt.expose() }).to_string();
    let request = Request::post("/v1/acl/login", body, LOGIN_TIMEOUT);
    let answer = client.send(&request).await.map_err(|e| e.to_string())?;
    if let Some(refusal) = answer.refusal() {
        return Err(refusal.to_string());
    }
    let secret = json::parse(&answer.body)
        .and_then(|value| Node::root(&value)?.need_text("SecretID").map(Secret::new));
    secret.map_err(|e| ConsulError::from(e).to_string())
}

/// Says why there is no token. Nomad's two files are named whether there are ACLs or not: that they are
/// not there is no cause for alarm.
fn tell_unread(paths: &[PathBuf]) {
    let unread: Vec<_> = paths
        .iter()
        .filter_map(|path| Some((path, read(path).err()?)))
        .collect();
    let expected = paths.len() > 1 && unread.iter().all(|(_, why)| *why == Unread::Absent);
    let each = unread
        .iter()
        .map(|(path, why)| format!("{}: {why}", path.display()));
    let paths = each.collect::<Vec<_>>().join(", ");
    if expected {
        tracing::info!(
            paths,
            "no token file can be read yet: asking Consul without a token"
        );
    } else {
        tracing::warn!(
            paths,
            "no token file can be read yet: asking Consul without a token"
        );
    }
}

fn of_file(path: &Path) -> String {
    format!("in {}", path.display())
}

fn first(paths: &[PathBuf]) -> Option<(&Path, Secret)> {
    paths
        .iter()
        .find_map(|path| Some((path.as_path(), read(path).ok()?)))
}

/// Why a file gives no token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unread {
    #[error("absent")]
    Absent,
    #[error("permission denied")]
    Denied,
    #[error("not a file")]
    NoFile,
    #[error("empty")]
    Empty,
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("not a text")]
    NoText,
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// A text of a token's size. Never waits for a writer, whatever lies at the path.
fn read(path: &Path) -> Result<Secret, Unread> {
    let file = file::open(path)?;
    // A pipe may hold a token; without one it is told for what it is.
    let is_file = file.metadata()?.is_file();
    content(file).map_err(|why| if is_file { why } else { Unread::NoFile })
}

fn content(file: File) -> Result<Secret, Unread> {
    let bytes = file::content(file, MAX_BYTES)?.ok_or(Unread::TooLarge)?;
    let secret = Secret::new(std::str::from_utf8(&bytes).map_err(|_| Unread::NoText)?);
    if secret.is_empty() {
        return Err(Unread::Empty);
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_file_is_neither_waited_for_nor_swallowed() {
        let path = std::env::temp_dir().join(format!("attache-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path), Err(Unread::NoFile));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path), Err(Unread::Absent));
        std::fs::write(&path, vec![b'x'; 65 << 10]).unwrap();
        assert_eq!(read(&path), Err(Unread::TooLarge));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(read(&path), Err(Unread::Empty));
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read(&path), Err(Unread::NoText));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&std::env::temp_dir()), Err(Unread::NoFile));
        assert_eq!(read(Path::new("/dev/zero")), Err(Unread::NoFile));
        let denied = Unread::from(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.to_string(), "permission denied");
    }

    #[tokio::test]
    async fn a_rewritten_file_is_a_new_generation_and_an_empty_one_is_not() {
        let folder = std::env::temp_dir().join(format!("attache-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = vec![folder.join("absent"), folder.join("si_token")];
        std::fs::write(&paths[1], "one\n").unwrap();
        let (mut reader, mut keeper) = open(&TokenSource::Files(paths.clone()));
        assert_eq!(reader.current().secret, Some(Secret::new("one")));
        let work = async {
            std::fs::write(&paths[1], "").unwrap();
            tokio::time::sleep(POLL + SETTLE * 2).await;
            assert_eq!(reader.current().generation, 1);
            std::fs::write(&paths[1], "second").unwrap();
            reader.newer_than(1).await;
            assert_eq!(reader.current().secret, Some(Secret::new("second")));
        };
        tokio::select! {
            _ = keeper.watch_files(&paths) => {}
            () = work => {}
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
