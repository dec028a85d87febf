//! The wiring: builds every part in order, serves until told to stop, drains.
//!
//! Owns the phases. The control thread (this one) runs the source, the listener manager, the admin API
//! and the signals; each worker is a thread of its own.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use attache_bootstrap::config::AdminBind;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::admin::{self, Admin, AdminBindError, Command};
use crate::drain::{Phase, phases};
use crate::dump::ConfigSource;
use crate::limit::Limits;
use crate::listener::manager::{BindError, ListenerControl, ListenerManager, StopListeners};
use crate::listener::worker::WorkerHandle;
use crate::net::socket::raise_descriptor_limit;
use crate::snapshot::{Publisher, channel};
use crate::telemetry::access_log;
use crate::telemetry::metrics::{self, StatsConfig};
use crate::telemetry::sink::{self, SinkConfig};

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

/// What a process serves with, whatever its source is.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Where the admin API listens; none has none.
    pub admin: Option<AdminBind>,
    /// Where the admin API's `address:port` is written once it listens.
    pub admin_address_path: Option<PathBuf>,
    /// Workers; at least 1.
    pub concurrency: usize,
    /// How long a drain may last.
    pub drain_time: Duration,
    /// Tags of the statistics.
    pub stats: StatsConfig,
    /// To whom statistics are pushed.
    pub sinks: Vec<SinkConfig>,
    /// How often.
    pub flush_interval: Duration,
    /// Whether a listener of the first snapshot that cannot be bound ends the process. Where a control
    /// plane says what listens, it does not: the others serve, and it is tried again.
    pub strict: bool,
}

/// Serves what a source publishes, until SIGTERM or SIGINT and the drain after it. `source` is given the
/// writing end and starts it. Must run inside a `LocalRuntime`.
///
/// # Errors
/// [`AppError`] when it cannot begin, or the source says that waiting cannot cure what is wrong.
pub async fn run<S, E>(
    serve: &Serve,
    source: impl FnOnce(Publisher) -> Result<(Rc<dyn ConfigSource>, S), E>,
) -> Result<(), AppError>
where
    S: Future<Output = Result<Infallible, E>>,
    E: std::fmt::Display,
{
    metrics::install(&serve.stats)?;
    raise_descriptor_limit();
    let mut signals = Signals::new()?;
    let _written_at_the_end = access_log::sink::FlushAtEnd;
    let (phase, phase_reader) = phases();
    let (publisher, reader) = channel();

    let source = source(publisher).map_err(|error| AppError::Source(error.to_string()));
    let (config_source, source) = source?;
    let (commands, mut told) = mpsc::unbounded_channel();
    let admin = Admin::new(
        reader.clone(),
        phase_reader,
        config_source,
        commands,
        serve.concurrency,
    );
    let _aside = start_aside(&admin, serve).await?;

    let limits = Limits::default();
    let workers: Rc<[WorkerHandle]> = WorkerHandle::start(serve.concurrency, &limits)?.into();
    let mut listeners = ListenerManager::new(reader, Rc::clone(&workers));
    let listener_control = listeners.control();

    let source = async {
        let Err(error) = source.await;
        Err(AppError::Source(error.to_string()))
    };
    let serving = async {
        listeners.start(serve.strict).await?;
        phase.enter(Phase::Live);
        admin.initialized();
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
            tracing::info!(signal = name, drain_s = serve.drain_time.as_secs_f64(), "draining");
        }
        () = until_quit(&mut told, &listener_control, serve.drain_time) => {
            tracing::info!(drain_s = serve.drain_time.as_secs_f64(), "told to quit by the admin API: draining");
        }
    }
    phase.enter(Phase::Draining);
    tokio::select! {
        () = drain_or_quit(&workers, serve.drain_time, &mut signals) => {}
        // Whatever ends early now ends with the process anyway.
        () = async { drop(running.await); std::future::pending().await } => {}
    }
    Ok(())
}

/// Lets connections end until the deadline, or until a second signal.
async fn drain_or_quit(workers: &[WorkerHandle], drain_time: Duration, signals: &mut Signals) {
    tokio::select! {
        cut = drain(workers, drain_time) => match cut {
            0 => tracing::info!("drained"),
            cut => tracing::warn!(
                connections = cut,
                drain_s = drain_time.as_secs_f64(),
                "drained: the deadline cut what was still open; each has its record in the access log"
            ),
        },
        name = signals.next() => {
            tracing::warn!(signal = name, "a second signal: ending at once");
            // Not left to the kernel: connections that did not end are reset and recorded.
            drain(workers, Duration::ZERO).await;
        }
    }
}

/// Tasks beside the serving ones; they end when dropped.
struct Aside(Vec<AbortHandle>);

impl Drop for Aside {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Starts the admin API, the statistics' sinks and what SIGUSR1 asks for.
async fn start_aside(admin: &Admin, serve: &Serve) -> Result<Aside, AppError> {
    let mut aside = Aside(Vec::new());
    aside.0.extend(serve_admin(admin.clone(), serve).await?);
    let refreshed = admin.clone();
    let sinks = sink::run(
        metrics::registry(),
        serve.sinks.clone(),
        serve.flush_interval,
        move || refreshed.refresh(),
    );
    aside.0.push(tokio::task::spawn_local(sinks).abort_handle());
    let reopen = reopen_logs(signal(SignalKind::user_defined1())?);
    aside.0.push(tokio::task::spawn_local(reopen).abort_handle());
    Ok(aside)
}

/// SIGUSR1 opens the access logs' files anew, as Envoy's does.
async fn reopen_logs(mut asked: Signal) {
    while asked.recv().await.is_some() {
        tracing::info!("opening access logs anew");
        access_log::sink::reopen();
    }
}

/// Starts the admin API, if there is to be one.
async fn serve_admin(admin: Admin, serve: &Serve) -> Result<Option<AbortHandle>, AppError> {
    let Some(bind) = serve.admin else {
        return Ok(None);
    };
    let socket = admin::bind(bind).await?;
    let address = socket.local_addr()?;
    tracing::info!(%address, "admin API");
    if let Some(path) = &serve.admin_address_path
        && let Err(error) = std::fs::write(path, address.to_string())
    {
        tracing::error!(path = %path.display(), %error, "the admin API's address cannot be written");
    }
    let serving = tokio::task::spawn_local(admin.serve(socket));
    Ok(Some(serving.abort_handle()))
}

/// Does what the admin API asks, until it asks for the end.
async fn until_quit(
    told: &mut mpsc::UnboundedReceiver<Command>,
    listeners: &ListenerControl,
    drain_time: Duration,
) {
    while let Some(command) = told.recv().await {
        match command {
            Command::Quit => return,
            Command::DrainListeners {
                inbound_only,
                graceful,
            } => {
                let which = if inbound_only {
                    StopListeners::Inbound
                } else {
                    StopListeners::All
                };
                let listeners = listeners.clone();
                tokio::task::spawn_local(async move {
                    if graceful {
                        tokio::time::sleep(drain_time).await;
                    }
                    listeners.stop(which);
                });
            }
        }
    }
    std::future::pending().await
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
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // As Envoy: schedulers send it for "read your files again", which is done without being asked.
                _ = self.hangup.recv() => tracing::info!("SIGHUP is ignored"),
            }
        }
    }
}
