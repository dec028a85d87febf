//! The wiring: builds every part in order, serves until told to stop, drains.
//!
//! Owns the phases. The control thread (this one) runs the source, the listener manager, the admin API
//! and the signals; each worker is a thread of its own.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use attache_bootstrap::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::{self, Admin, AdminBindError};
use crate::drain::{Phase, phases};
use crate::limit::Limits;
use crate::listener::manager::{BindError, ListenerManager};
use crate::listener::worker::WorkerHandle;
use crate::net::socket::raise_descriptor_limit;
use crate::snapshot::{Publisher, channel};
use crate::telemetry::access_log;
use crate::telemetry::metrics::{self, StatsConfig};

/// What a drain may overrun its deadline by, for a worker's last records.
const DRAIN_SLACK: Duration = Duration::from_millis(500);

/// Why a process ends other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listener of the first snapshot.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The admin API.
    #[error(transparent)]
    Admin(#[from] AdminBindError),
    /// The tags of statistics.
    #[error(transparent)]
    Stats(#[from] metrics::tags::TagError),
    /// Something that waiting cannot cure.
    #[error("{0}")]
    Source(String),
    /// The system gave no thread, signal handler or the like.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// A worker ended by itself.
    #[error("a worker thread ended; this is a bug")]
    Worker,
}

/// Serves with `config` what `source` publishes, until SIGTERM or SIGINT and the drain after it. Must
/// run inside a `LocalRuntime`.
///
/// # Errors
/// [`AppError`] when it cannot begin, or the source says that waiting cannot cure what is wrong.
pub async fn run<S, E>(
    config: &Config,
    describe_source: Rc<dyn Fn() -> serde_json::Value>,
    source: impl FnOnce(Publisher) -> S,
) -> Result<(), AppError>
where
    S: Future<Output = Result<Infallible, E>>,
    E: std::fmt::Display,
{
    metrics::install(&StatsConfig::consul())?;
    raise_descriptor_limit();
    let mut signals = Signals::new()?;
    let _written_at_the_end = access_log::sink::FlushAtEnd;
    let reopening = tokio::task::spawn_local(reopen_logs(signal(SignalKind::user_defined1())?));
    let (phase, phase_reader) = phases();
    let (publisher, reader) = channel();

    let admin_socket = admin::bind(config.admin).await?;
    tracing::info!(address = %admin_socket.local_addr()?, "admin API");
    let admin = Admin {
        snapshot: reader.clone(),
        phase: phase_reader,
        source: describe_source,
    };
    let admin = tokio::task::spawn_local(admin.serve(admin_socket));

    let limits = Limits::default();
    let workers: Rc<[WorkerHandle]> = WorkerHandle::start(config.concurrency, &limits)?.into();
    let mut listeners = ListenerManager::new(reader, Rc::clone(&workers));

    let source = async {
        let Err(error) = source(publisher).await;
        Err(AppError::Source(error.to_string()))
    };
    let serving = async {
        listeners.start().await?;
        phase.enter(Phase::Live);
        listeners.run().await;
        Err(AppError::Worker)
    };
    // Until the process ends: while it drains, newer rules still reach live connections.
    let mut running = pin!(async {
        tokio::select! {
            ended = source => ended,
            ended = serving => ended,
        }
    });
    tokio::select! {
        ended = &mut running => return ended,
        name = signals.next() => {
            tracing::info!(signal = name, drain_s = config.drain_time.as_secs_f64(), "draining");
        }
    }
    phase.enter(Phase::Draining);
    let draining = async {
        tokio::select! {
            cut = drain(&workers, config.drain_time) => match cut {
                0 => tracing::info!("drained"),
                cut => tracing::warn!(
                    connections = cut,
                    drain_s = config.drain_time.as_secs_f64(),
                    "drained: the deadline cut what was still open; each has its record in the access log"
                ),
            },
            name = signals.next() => {
                tracing::warn!(signal = name, "a second signal: ending at once");
                // Not left to the kernel: connections that did not end are reset and recorded.
                drain(&workers, Duration::ZERO).await;
            }
        }
    };
    tokio::select! {
        () = draining => {}
        // Whatever ends early now ends with the process anyway.
        () = async { drop(running.await); std::future::pending().await } => {}
    }
    admin.abort();
    reopening.abort();
    Ok(())
}

/// SIGUSR1 opens the access logs' files anew, as Envoy's does.
async fn reopen_logs(mut asked: Signal) {
    while asked.recv().await.is_some() {
        tracing::info!("opening access logs anew");
        access_log::sink::reopen();
    }
}

/// How many connections were cut.
async fn drain(workers: &[WorkerHandle], deadline: Duration) -> usize {
    let drained: Vec<_> = workers.iter().map(|worker| worker.drain(deadline)).collect();
    let mut cut = 0;
    for worker in drained {
        let ended = tokio::time::timeout(deadline + DRAIN_SLACK, worker).await;
        cut += ended.ok().and_then(Result::ok).unwrap_or_default().cut;
    }
    cut
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
