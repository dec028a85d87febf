//! A mesh in a few lines: the Consul stand-in, real sidecar processes and small apps.
//!
//! ```text
//! let mesh = Mesh::start(PROGRAM).await;
//! let api = mesh.service("api").echo().await;
//! let web = mesh.service("web").upstream("api").await;
//! assert_eq!(web.ask("api", "hi").await, "api: hi");
//! ```
//! Everything listens on loopback, on free ports; a process ends with its handle. Nothing sleeps for
//! a guess: waiting is always for a state, with a deadline. A harness may panic: it is part of tests.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a harness fails the test that uses it"
)]

pub mod app;
pub mod mesh;
pub mod process;
pub mod tools;

use std::future::Future;
use std::time::{Duration, Instant};

pub use app::App;
pub use mesh::{Member, Mesh};
pub use process::Process;

/// How long a state may take to come; far above what an idle machine needs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `state` gives something; the deadline fails the test with `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut state: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A TCP port of loopback that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
