//! The admin API on loopback, in Envoy's paths and formats.
//!
//! Shows snapshots, statistics and phases; what it can do is told to the process by [`Command`]s. Runs on
//! the control thread, so a scrape costs no connection anything.

pub mod certs;
mod clusters;
mod config_dump;
mod listeners;
mod logging;
mod model;
mod query;
mod routes;
mod stats;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use attache_bootstrap::config::AdminBind;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::drain::{Phase, PhaseReader};
use crate::dump::ConfigSource;
use crate::net::holder;
use crate::snapshot::Reader;
use crate::telemetry::memory::Memory;
use crate::telemetry::metrics::registry::Value;
use crate::telemetry::metrics::{ServerMetrics, registry};

/// How many ports after the default one are tried: a group of Nomad tasks shares one loopback.
const PORTS_TRIED: u16 = 100;

/// Connections at once; more are closed. Scrapers and operators are few.
const MAX_CONNECTIONS: u32 = 128;

/// What a request's head may be long.
const MAX_HEAD: usize = 16 << 10;

/// How long a request's head may take to arrive, and how long a connection may lie idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What the admin API asks the process to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End, as on SIGTERM.
    Quit,
    /// Accept no more, and let connections end by themselves.
    DrainListeners {
        /// Only at listeners with traffic direction INBOUND.
        inbound_only: bool,
        /// Only after the drain time, so that peers can be told before.
        graceful: bool,
    },
}

/// The admin API. Clones are the same.
#[derive(Clone)]
pub struct Admin(Rc<State>);

struct State {
    snapshot: Reader,
    phase: PhaseReader,
    source: Rc<dyn ConfigSource>,
    commands: mpsc::UnboundedSender<Command>,
    started: Instant,
    /// Set by `/healthcheck/fail`: the process then calls itself draining.
    health_failed: Cell<bool>,
    connections: Cell<u32>,
    metrics: ServerMetrics,
}

/// Why the admin API cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the admin address {address} cannot be bound: {source}{}", holder.as_ref().map(|h| format!("; held by {h}")).unwrap_or_default())]
pub struct AdminBindError {
    /// The address.
    pub address: SocketAddr,
    /// Who listens there, where that can be told.
    pub holder: Option<String>,
    /// The kernel's reason.
    pub source: io::Error,
}

/// Binds the admin address: one given by hand, or the default port, or the next free one after it.
///
/// # Errors
/// When the given address, or every port tried, is taken.
pub async fn bind(bind: AdminBind) -> Result<TcpListener, AdminBindError> {
    let first = SocketAddr::new(bind.address, bind.port);
    let tries = if bind.explicit { 1 } else { PORTS_TRIED };
    let mut refused = None;
    for port in (bind.port..).take(usize::from(tries)) {
        match TcpListener::bind(SocketAddr::new(bind.address, port)).await {
            Ok(listener) => {
                if port != bind.port {
                    tracing::info!(taken = %first, port, "the admin API moves to the next free port");
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                refused.get_or_insert(error);
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let source = refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
    Err(AdminBindError {
        address: first,
        holder: holder::of(first),
        source,
    })
}

impl Admin {
    /// Shows `snapshot`, `phase` and `source`, and sends `commands`. `concurrency` is the number of workers.
    pub fn new(
        snapshot: Reader,
        phase: PhaseReader,
        source: Rc<dyn ConfigSource>,
        commands: mpsc::UnboundedSender<Command>,
        concurrency: usize,
    ) -> Self {
        let metrics = ServerMetrics::new();
        metrics
            .concurrency
            .set(u64::try_from(concurrency).unwrap_or(u64::MAX));
        Self(Rc::new(State {
            snapshot,
            phase,
            source,
            commands,
            started: Instant::now(),
            health_failed: Cell::new(false),
            connections: Cell::new(0),
            metrics,
        }))
    }

    /// Answers until dropped.
    pub async fn serve(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if self.0.connections.get() < MAX_CONNECTIONS => {
                    let admin = self.clone();
                    admin.0.connections.set(admin.0.connections.get() + 1);
                    tokio::task::spawn_local(async move {
                        admin.connection(stream).await;
                        admin.0.connections.set(admin.0.connections.get() - 1);
                    });
                }
                Ok(_) => tracing::debug!("an admin connection too many"),
                Err(error) => {
                    tracing::warn!(%error, "the admin API cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream) {
        let service = service_fn(|request| {
            let response = routes::answer(self, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an admin connection ended early");
        }
    }

    /// Counts the time from the start to now as that of the initialization.
    pub fn initialized(&self) {
        let taken = self.0.started.elapsed().as_secs_f64() * 1000.0;
        self.0.metrics.initialization_time_ms.record(taken);
    }

    /// Brings the gauges of `server.…` up to date, as before each scrape and flush.
    pub fn refresh(&self) {
        let State {
            metrics,
            phase,
            snapshot,
            started,
            ..
        } = &*self.0;
        let state = self.state();
        metrics.live.set(u64::from(state == ServerState::Live));
        metrics.state.set(state as u64);
        metrics.uptime.set(started.elapsed().as_secs());
        let memory = Memory::read();
        metrics.memory_allocated.set(memory.allocated);
        metrics.memory_heap_size.set(memory.heap_size);
        metrics.memory_physical_size.set(memory.physical_size);
        let connections = registry()
            .collect(|name| name.starts_with("listener.") && name.ends_with(".downstream_cx_active"));
        let connections = connections.iter().map(|sample| match sample.value {
            Value::Gauge(level) => u64::try_from(level).unwrap_or(0),
            _ => 0,
        });
        metrics.total_connections.set(connections.sum());
        let latest = snapshot.latest().filter(|_| phase.now() != Phase::Starting);
        let days = latest.as_deref().and_then(certs::days_until_first_expiry);
        // As Envoy has it: a great number where no certificate is.
        metrics
            .days_until_first_cert_expiring
            .set(days.unwrap_or(u64::from(u32::MAX)));
    }

    fn state(&self) -> ServerState {
        match self.0.phase.now() {
            Phase::Starting => ServerState::PreInitializing,
            Phase::Live if self.0.health_failed.get() => ServerState::Draining,
            Phase::Live => ServerState::Live,
            Phase::Draining => ServerState::Draining,
        }
    }
}

/// Envoy's `ServerInfo.State`, by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerState {
    Live = 0,
    Draining = 1,
    PreInitializing = 2,
}

impl ServerState {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
        }
    }
}
