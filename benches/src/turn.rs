//! One peer's turn of a round: its pair is started afresh, measured, and killed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::figure::{Figure, Group};
use crate::load::{self, Exchanges, Pool, Transfer};
use crate::measure;
use crate::peer::{Pair, Peer};
use crate::scene::Scene;

/// Connections over which small requests go.
const BUSY_CONNECTIONS: usize = 64;

/// Connections and time that warm a pair up, so that no figure holds its first allocations.
const WARM_CONNECTIONS: usize = 16;
const WARM_TIME: Duration = Duration::from_secs(1);

/// Enough that the granularity of CPU time is a hundredth of the figure; few enough that their
/// ports, which rest a minute each, are never short.
const NEW_CONNECTIONS: u64 = 2_000;
const NEW_CONNECTIONS_AT_ONCE: u64 = 10;

/// Below the 1,024 connections that Envoy's circuit breaker lets through by default.
const IDLE_CONNECTIONS: usize = 900;

/// For what a proxy does right after its start, or after a burst.
const SETTLE: Duration = Duration::from_millis(500);

/// What a turn measures, and for how long.
#[derive(Debug)]
pub(crate) struct Plan {
    /// These groups.
    pub(crate) groups: Vec<Group>,
    /// Each for this long, where time bounds it.
    pub(crate) duration: Duration,
}

/// A turn's figures, and what went wrong.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// What was measured.
    pub(crate) figures: Vec<(Figure, f64)>,
    /// What went wrong; the groups of figures before that are there all the same.
    pub(crate) failure: Option<String>,
    errors: u64,
}

impl Plan {
    fn has(&self, group: Group) -> bool {
        self.groups.contains(&group)
    }
}

impl Turn {
    /// The backend without any proxy, as a reference for latency.
    pub(crate) async fn direct(plan: &Plan, backend: SocketAddr) -> Result<Self, String> {
        let mut turn = Self::default();
        if plan.has(Group::Latency) {
            turn.latency(backend, plan.duration).await?;
        }
        Ok(turn)
    }

    /// All groups of the plan with a pair of this peer.
    pub(crate) async fn of(plan: &Plan, peer: &Peer, scene: &Scene) -> Self {
        let mut turn = Self::default();
        let mut pair = match peer.start(scene).await {
            Ok(pair) => pair,
            Err(error) => {
                turn.failure = Some(error);
                return turn;
            }
        };
        let measured = turn.measure(plan, &mut pair, scene.outbound).await;
        turn.failure = match (measured, turn.errors) {
            (Ok(()), 0) => None,
            (Ok(()), errors) => Some(format!("{errors} wrong or missing responses")),
            (Err(error), _) => Some(format!("{error}{}", pair.tails())),
        };
        turn
    }

    async fn measure(&mut self, plan: &Plan, pair: &mut Pair, target: SocketAddr) -> Result<(), String> {
        let pids = pair.pids();
        let clock = NoiseClock::start(&pids)?;
        self.starting(pair, target).await?;
        let warm = open(target, WARM_CONNECTIONS).await?.run(WARM_TIME).await;
        self.errors += warm.errors;
        // The memory of connections comes first: after a burst the allocator has room for them.
        if plan.has(Group::Idle) {
            self.idle(&pids, target).await?;
        }
        if plan.has(Group::Rps) {
            self.small_requests(&pids, target, plan.duration).await?;
        }
        if plan.has(Group::Latency) {
            self.latency(target, plan.duration).await?;
        }
        if plan.has(Group::Connections) {
            self.new_connections(&pids, target).await?;
        }
        if plan.has(Group::Bulk) {
            self.bulk(&pids, target, plan.duration).await?;
        }
        self.push(Figure::Others, clock.others_percent(&pids)?);
        Ok(())
    }

    fn push(&mut self, figure: Figure, value: f64) {
        self.figures.push((figure, value));
    }

    async fn starting(&mut self, pair: &Pair, target: SocketAddr) -> Result<(), String> {
        self.push(Figure::InboundStart, pair.inbound_start_ms);
        self.push(Figure::OutboundStart, pair.outbound_start_ms);
        let answered = load::probe(target).await;
        answered.map_err(|error| format!("no response through the pair: {error}"))?;
        let since_start = pair.outbound.started().elapsed();
        self.push(Figure::FirstResponse, since_start.as_secs_f64() * 1e3);
        tokio::time::sleep(SETTLE).await;
        let kib = measure::pss_kib(&pair.pids())? / 2.0;
        self.push(Figure::IdleProxy, kib / 1024.0);
        Ok(())
    }

    async fn idle(&mut self, pids: &[u32], target: SocketAddr) -> Result<(), String> {
        tokio::time::sleep(SETTLE).await;
        let before = measure::pss_kib(pids)?;
        let pool = open(target, IDLE_CONNECTIONS).await?;
        tokio::time::sleep(SETTLE).await;
        let grown = measure::pss_kib(pids)? - before;
        drop(pool);
        tokio::time::sleep(SETTLE).await;
        self.push(Figure::IdleConnection, grown / IDLE_CONNECTIONS as f64 / 2.0);
        Ok(())
    }

    async fn small_requests(
        &mut self,
        pids: &[u32],
        target: SocketAddr,
        duration: Duration,
    ) -> Result<(), String> {
        let pool = open(target, BUSY_CONNECTIONS).await?;
        let before = measure::cpu_seconds(pids)?;
        let done = self.checked("small requests", pool.run(duration).await)?;
        let cpu = measure::cpu_seconds(pids)? - before;
        self.push(Figure::RequestCpu, cpu * 1e6 / done.count as f64);
        self.push(Figure::RequestRate, done.rate());
        self.push(Figure::RequestP50, done.latency_us(0.5));
        self.push(Figure::RequestP99, done.latency_us(0.99));
        Ok(())
    }

    async fn latency(&mut self, target: SocketAddr, duration: Duration) -> Result<(), String> {
        let done = open(target, 1).await?.run(duration).await;
        let done = self.checked("one connection", done)?;
        self.push(Figure::LatencyP50, done.latency_us(0.5));
        self.push(Figure::LatencyP99, done.latency_us(0.99));
        Ok(())
    }

    async fn new_connections(&mut self, pids: &[u32], target: SocketAddr) -> Result<(), String> {
        let before = measure::cpu_seconds(pids)?;
        let done = load::connections(target, NEW_CONNECTIONS, NEW_CONNECTIONS_AT_ONCE).await;
        let done = self.checked("new connections", done)?;
        let cpu = measure::cpu_seconds(pids)? - before;
        self.push(Figure::ConnectionCpu, cpu * 1e6 / done.count as f64);
        self.push(Figure::ConnectionRate, done.rate());
        Ok(())
    }

    async fn bulk(&mut self, pids: &[u32], target: SocketAddr, duration: Duration) -> Result<(), String> {
        let before = measure::cpu_seconds(pids)?;
        let up = load::upload(target, duration).await;
        let up = up.map_err(|error| format!("bulk up: {error}"))?;
        let between = measure::cpu_seconds(pids)?;
        let down = load::download(target, duration).await;
        let down = down.map_err(|error| format!("bulk down: {error}"))?;
        let after = measure::cpu_seconds(pids)?;
        self.transfer(up, between - before, Figure::UpCpu, Figure::UpRate);
        self.transfer(down, after - between, Figure::DownCpu, Figure::DownRate);
        Ok(())
    }

    fn transfer(&mut self, done: Transfer, cpu_seconds: f64, cpu: Figure, rate: Figure) {
        let gigabytes = done.bytes as f64 / 1e9;
        self.push(cpu, cpu_seconds / gigabytes);
        self.push(rate, gigabytes * 8.0 / done.elapsed.as_secs_f64());
    }

    fn checked(&mut self, what: &str, done: Exchanges) -> Result<Exchanges, String> {
        self.errors += done.errors;
        if done.count == 0 {
            return Err(format!("{what}: not one right response"));
        }
        Ok(done)
    }
}

async fn open(target: SocketAddr, size: usize) -> Result<Pool, String> {
    let pool = Pool::open(target, size).await;
    pool.map_err(|error| format!("opening {size} connections: {error}"))
}

/// Tells how much of the machine was used by neither the pair nor this process.
#[derive(Debug)]
struct NoiseClock {
    start: Instant,
    others_before: f64,
}

impl NoiseClock {
    fn start(pids: &[u32]) -> Result<Self, String> {
        Ok(Self {
            start: Instant::now(),
            others_before: others(pids)?,
        })
    }

    fn others_percent(&self, pids: &[u32]) -> Result<f64, String> {
        let used = others(pids)? - self.others_before;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let had = self.start.elapsed().as_secs_f64() * cores as f64;
        Ok((used / had * 100.0).max(0.0))
    }
}

fn others(pids: &[u32]) -> Result<f64, String> {
    let (machine, own) = measure::machine_and_own_cpu_seconds()?;
    Ok(machine - own - measure::cpu_seconds(pids)?)
}
