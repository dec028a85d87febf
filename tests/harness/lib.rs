//! A mesh in a few lines: the Consul stand-in, real sidecar processes and small apps.
//!
//! ```text
//! let mesh = Mesh::start(PROGRAM).await;
//! let api = mesh.service("api").start().await;
//! let web = mesh.service("web").upstream("api").start().await;
//! assert_eq!(web.eventually_hears("api", "api-1").await, "api-1: hi");
//! ```
//! Everything listens on loopback, on free ports; a process ends with its handle. Nothing sleeps for
//! a guess: waiting is always for a state, with a deadline. A harness may panic: it is part of tests.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a harness fails the test that uses it"
)]

pub mod agent;
pub mod app;
pub mod bytes;
pub mod envoy;
pub mod http;
pub mod load;
pub mod mesh;
pub mod once;
pub mod peer;
pub mod process;
pub mod real;
pub mod sidecar;
pub mod tools;

use std::future::Future;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use app::App;
pub use load::Load;
pub use mesh::{Member, Mesh};
pub use process::Process;

/// How long a state may take to come; far above what an idle machine needs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `state` gives something; the deadline fails the test with `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, state: impl FnMut() -> F) -> T {
    within(PATIENCE, what, state).await
}

/// As [`eventually`], with a deadline of its own where that is part of what is claimed.
pub async fn within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut state: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(began.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Ports below the kernel's own range, so that no outgoing connection of another scenario takes one
/// between the choice and the bind; above the ports of Consul, of Envoy's admin API and of the demo.
const PORTS: std::ops::Range<u16> = 24_000..32_000;

/// A TCP port of loopback that is ours alone: no other call, in this process or in another test
/// process on this machine, gives the same one.
pub fn free_port() -> u16 {
    /// The abstract unix sockets that mark our ports; they vanish with the process.
    static MARKS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut marks = MARKS.lock().unwrap();
    for port in PORTS {
        let name = std::os::unix::net::SocketAddr::from_abstract_name(format!("attache-tests-{port}"));
        let Ok(mark) = UnixListener::bind_addr(&name.unwrap()) else {
            continue;
        };
        marks.push(mark);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// A folder of its own for a scenario's sockets, with its content gone when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("attache-tests-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A path in it, for an argument or a variable.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file in one step, as a template renderer does; gives its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let (path, next) = (self.file(name), self.file(&format!(".{name}.next")));
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &path).unwrap();
        path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
