//! One peer's turn of a round: its pair is started afresh, measured, and killed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::figure::{Figure, Group, What};
use crate::kind::Kind;
use crate::load::{self, Exchanges, Pool, Transfer};
use crate::measure;
use crate::peer::{Pair, Peer};
use crate::scaling;
use crate::scene::Scene;
use crate::setup::{Handshakes, Setup};

/// Connections and time that warm a pair up, so that no figure holds its first allocations.
const WARM_CONNECTIONS: usize = 16;
const WARM_TIME: Duration = Duration::from_secs(1);
const WARM_SIZE: usize = 64;

/// Enough that the granularity of CPU time is a hundredth of the figure; few enough that their
/// ports, which rest a second each, are never short.
const NEW_CONNECTIONS: u64 = 2_000;
const AT_ONCE: u64 = 10;

/// Connections that churn at once: a burst of callers.
const CHURNED_AT_ONCE: u64 = 100;

/// Before the memory after churn is looked at; allocators give theirs back after a while.
const CHURN_REST: Duration = Duration::from_secs(3);

/// The first seconds after a start are not those of an idle proxy.
const START_REST: Duration = Duration::from_secs(5);

/// How long a proxy without anything to do is watched.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// For what a proxy does right after its start, or after a burst.
const SETTLE: Duration = Duration::from_millis(500);

/// The reference without proxies needs no more to be precise.
const DIRECT_MOST: Duration = Duration::from_secs(2);

/// What a turn measures, and for how long.
#[derive(Debug)]
pub(crate) struct Plan {
    /// These groups.
    pub(crate) groups: Vec<Group>,
    /// Each for this long, where time bounds it.
    pub(crate) duration: Duration,
    /// Bytes of responses.
    pub(crate) sizes: Vec<usize>,
    /// Requests at once.
    pub(crate) concurrency: Vec<usize>,
    /// Idle connections.
    pub(crate) idle: Vec<usize>,
    /// Connections that come and go.
    pub(crate) churn: usize,
    /// Open connections among which few are busy.
    pub(crate) crowd: usize,
    /// Whether HTTP sidecars make metadata of the caller's name.
    pub(crate) metadata: bool,
}

/// A turn's figures, and what went wrong.
#[derive(Debug)]
pub(crate) struct Turn {
    /// What was measured.
    pub(crate) figures: Vec<(Figure, f64)>,
    /// What went wrong; the groups of figures before that are there all the same.
    pub(crate) failure: Option<String>,
    kind: Kind,
    errors: u64,
    first_error: Option<String>,
}

impl Plan {
    fn has(&self, group: Group) -> bool {
        self.groups.contains(&group)
    }
}

impl Turn {
    fn new(kind: Kind) -> Self {
        Self {
            figures: Vec::new(),
            failure: None,
            kind,
            errors: 0,
            first_error: None,
        }
    }

    /// The backend without any proxy: a reference for latency, and for how much the load can ask.
    pub(crate) async fn direct(plan: &Plan, kind: Kind, scene: &Scene) -> Result<Self, String> {
        let mut turn = Self::new(kind);
        if plan.has(Group::Requests) {
            let target = scene.backend.address(kind);
            let duration = plan.duration.min(DIRECT_MOST);
            for (size, concurrency) in choices(plan) {
                turn.requests(target, None, duration, size, concurrency).await?;
            }
        }
        match turn.errors {
            0 => Ok(turn),
            _ => Err(format!("the backend itself: {}", turn.complaint())),
        }
    }

    /// All groups of the plan with pairs of this peer.
    pub(crate) async fn of(plan: &Plan, peer: &Peer, kind: Kind, scene: &Scene) -> Self {
        let mut turn = Self::new(kind);
        let done = turn.run(plan, peer, scene).await;
        turn.failure = match (done, turn.errors) {
            (Ok(()), 0) => None,
            (Ok(()), _) => Some(turn.complaint()),
            (Err(error), _) => Some(error),
        };
        turn
    }

    fn complaint(&self) -> String {
        let first = self.first_error.as_deref().unwrap_or("of no known reason");
        format!("{} wrong or missing responses, the first: {first}", self.errors)
    }

    async fn run(&mut self, plan: &Plan, peer: &Peer, scene: &Scene) -> Result<(), String> {
        let plain = Setup::plain(self.kind);
        let full = Setup {
            handshakes: Handshakes::Full,
            ..plain
        };
        let mut pair = peer.start(scene, plain).await?;
        let measured = self.measure(plan, peer, &mut pair, scene.outbound).await;
        measured.map_err(|error| format!("{error}{}", pair.tails()))?;
        drop(pair);
        if plan.has(Group::Connections) && self.kind == Kind::Tcp && !peer.never_resumes() {
            let pair = peer.start(scene, full).await?;
            let measured = self.full_handshakes(&pair, scene.outbound).await;
            measured.map_err(|error| format!("full handshakes: {error}{}", pair.tails()))?;
        }
        if plan.has(Group::Churn) {
            let pair = peer.start(scene, plain).await?;
            let measured = self.churn(&pair, scene.outbound, plan.churn).await;
            measured.map_err(|error| format!("{error}{}", pair.tails()))?;
        }
        if plan.has(Group::Upstreams) {
            self.idle_upstreams(peer, scene).await?;
        }
        if plan.has(Group::Scaling) {
            scaling::run(self, plan, peer, scene).await?;
        }
        Ok(())
    }

    async fn measure(
        &mut self,
        plan: &Plan,
        peer: &Peer,
        pair: &mut Pair,
        target: SocketAddr,
    ) -> Result<(), String> {
        let pids = pair.pids();
        let clock = NoiseClock::start(&pids)?;
        self.starting(pair, target).await?;
        if peer.names_caller(self.kind) {
            let named = load::is_caller_named(target, self.kind).await;
            if !named.map_err(|error| format!("who calls: {error}"))? {
                return Err("the backend is not told who calls".to_owned());
            }
        }
        self.warm(target).await?;
        // The memory of connections comes first: after a burst the allocator has room for them.
        if plan.has(Group::Idle) {
            for &count in &plan.idle {
                self.idle(&pids, target, count).await?;
            }
        }
        if plan.has(Group::Requests) {
            for (size, concurrency) in choices(plan) {
                let pids = Some(&pids[..]);
                self.requests(target, pids, plan.duration, size, concurrency)
                    .await?;
            }
        }
        if plan.has(Group::Connections) && self.kind == Kind::Tcp {
            let figures = if peer.never_resumes() {
                [What::FullCpu, What::FullRate]
            } else {
                [What::ResumedCpu, What::ResumedRate]
            };
            self.new_connections(&pids, target, figures).await?;
        }
        if plan.has(Group::Bulk) && self.kind != Kind::Grpc {
            self.bulk(&pids, target, plan.duration).await?;
        }
        self.push(What::Others, clock.others_percent(&pids)?);
        Ok(())
    }

    /// What the turn's sidecars carry.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds a figure without a choice.
    pub(crate) fn push(&mut self, what: What, value: f64) {
        self.figures.push((Figure::new(self.kind, what), value));
    }

    /// Adds a figure of so many connections.
    pub(crate) fn push_of(&mut self, what: What, count: usize, value: f64) {
        let figure = Figure::with_count(self.kind, what, count);
        self.figures.push((figure, value));
    }

    /// Lets a pair make its first allocations.
    pub(crate) async fn warm(&mut self, target: SocketAddr) -> Result<(), String> {
        let pool = open(target, self.kind, WARM_CONNECTIONS).await?;
        let (done, ()) = pool.run(Duration::ZERO, WARM_TIME, WARM_SIZE, || ()).await;
        self.checked("warming up", done).map(drop)
    }

    async fn starting(&mut self, pair: &Pair, target: SocketAddr) -> Result<(), String> {
        let answered = load::probe(target, self.kind).await;
        answered.map_err(|error| format!("no response through the pair: {error}"))?;
        let since_start = pair.outbound.started().elapsed();
        // The other kinds' sidecars are not told by Consul what to do, so their start is another.
        if self.kind == Kind::Tcp {
            self.push(What::InboundStart, pair.inbound_start_ms);
            self.push(What::OutboundStart, pair.outbound_start_ms);
            self.push(What::FirstResponse, since_start.as_secs_f64() * 1e3);
        }
        tokio::time::sleep(SETTLE).await;
        self.push(What::IdleProxy, mib_each(&pair.pids())?);
        Ok(())
    }

    async fn idle(&mut self, pids: &[u32; 2], target: SocketAddr, count: usize) -> Result<(), String> {
        tokio::time::sleep(SETTLE).await;
        let before = measure::anonymous_kib(pids)?;
        let pool = open(target, self.kind, count).await?;
        tokio::time::sleep(SETTLE).await;
        let grown = measure::anonymous_kib(pids)? - before;
        drop(pool);
        tokio::time::sleep(SETTLE).await;
        self.push_of(What::IdleConnection, count, grown / count as f64 / 2.0);
        Ok(())
    }

    async fn requests(
        &mut self,
        target: SocketAddr,
        pids: Option<&[u32]>,
        duration: Duration,
        size: usize,
        concurrency: usize,
    ) -> Result<(), String> {
        let (connections, streams) = self.kind.spread(concurrency);
        let pool = open(target, self.kind, connections).await?.shared(streams);
        let cpu = |pids: Option<&[u32]>| pids.map(measure::cpu_seconds).transpose();
        let warm = warm_up(concurrency);
        let (done, before) = pool.run(warm, duration, size, || cpu(pids)).await;
        let (before, after) = (before?, cpu(pids)?);
        let done = self.checked("requests", done)?;
        let mut push = |what, value| {
            let figure = Figure {
                kind: self.kind,
                what,
                size,
                count: concurrency,
            };
            self.figures.push((figure, value));
        };
        if let (Some(before), Some(after)) = (before, after) {
            push(What::RequestCpu, (after - before) * 1e6 / done.count as f64);
        }
        // With one connection it would say what the latency says.
        if concurrency > 1 {
            push(What::RequestRate, done.rate());
        }
        push(What::RequestP50, done.latency_us(0.5));
        push(What::RequestP99, done.latency_us(0.99));
        Ok(())
    }

    async fn new_connections(
        &mut self,
        pids: &[u32],
        target: SocketAddr,
        [cpu_figure, rate_figure]: [What; 2],
    ) -> Result<(), String> {
        let before = measure::cpu_seconds(pids)?;
        let done = load::connections(target, self.kind, NEW_CONNECTIONS, AT_ONCE).await;
        let done = self.checked("new connections", done)?;
        let cpu = measure::cpu_seconds(pids)? - before;
        self.push(cpu_figure, cpu * 1e6 / done.count as f64);
        self.push(rate_figure, done.rate());
        Ok(())
    }

    async fn full_handshakes(&mut self, pair: &Pair, target: SocketAddr) -> Result<(), String> {
        self.warm(target).await?;
        let figures = [What::FullCpu, What::FullRate];
        self.new_connections(&pair.pids(), target, figures).await
    }

    async fn bulk(&mut self, pids: &[u32], target: SocketAddr, duration: Duration) -> Result<(), String> {
        let before = measure::cpu_seconds(pids)?;
        let up = load::upload(target, self.kind, duration).await;
        let up = up.map_err(|error| format!("bulk up: {error}"))?;
        let between = measure::cpu_seconds(pids)?;
        let down = load::download(target, self.kind, duration).await;
        let down = down.map_err(|error| format!("bulk down: {error}"))?;
        let after = measure::cpu_seconds(pids)?;
        self.transfer(up, between - before, What::UpCpu, What::UpRate);
        self.transfer(down, after - between, What::DownCpu, What::DownRate);
        Ok(())
    }

    fn transfer(&mut self, done: Transfer, cpu_seconds: f64, cpu: What, rate: What) {
        let gigabytes = done.bytes as f64 / 1e9;
        self.push(cpu, cpu_seconds / gigabytes);
        self.push(rate, gigabytes * 8.0 / done.elapsed.as_secs_f64());
    }

    /// On a pair of its own: what other figures leave behind is not to be taken for churn's.
    async fn churn(&mut self, pair: &Pair, target: SocketAddr, count: usize) -> Result<(), String> {
        self.warm(target).await?;
        self.push_of(What::ChurnBefore, count, mib_each(&pair.pids())?);
        let done = load::connections(target, self.kind, count as u64, CHURNED_AT_ONCE).await;
        self.checked("churn", done)?;
        tokio::time::sleep(CHURN_REST).await;
        self.push_of(What::ChurnAfter, count, mib_each(&pair.pids())?);
        Ok(())
    }

    async fn idle_upstreams(&mut self, peer: &Peer, scene: &Scene) -> Result<(), String> {
        let setup = Setup {
            further_upstreams: true,
            ..Setup::plain(self.kind)
        };
        let pair = peer.start(scene, setup).await?;
        let pids = [pair.outbound.pid()];
        tokio::time::sleep(START_REST).await;
        let (cpu_before, sleeps_before) = measure::thread_totals(&pids)?;
        tokio::time::sleep(IDLE_TIME).await;
        let (cpu, sleeps) = measure::thread_totals(&pids)?;
        let count = 1 + scene.further_upstreams.len();
        self.push_of(What::UpstreamsCpu, count, (cpu - cpu_before) / 1e6);
        self.push_of(What::UpstreamsSleeps, count, sleeps - sleeps_before);
        self.push_of(What::UpstreamsMemory, count, measure::pss_kib(&pids)? / 1024.0);
        Ok(())
    }

    /// Counts the errors; not one right response is one that ends the turn.
    pub(crate) fn checked(&mut self, what: &str, done: Exchanges) -> Result<Exchanges, String> {
        self.errors += done.errors;
        if let Some(error) = &done.first_error {
            self.first_error.get_or_insert_with(|| format!("{what}: {error}"));
        }
        if done.count == 0 {
            let why = done.first_error.as_deref().unwrap_or_default();
            return Err(format!("{what}: not one right response {why}"));
        }
        Ok(done)
    }
}

fn choices(plan: &Plan) -> impl Iterator<Item = (usize, usize)> {
    let pair = |size: &usize| {
        let size = *size;
        plan.concurrency.iter().map(move |count| (size, *count))
    };
    plan.sizes.iter().flat_map(pair)
}

/// How long so many requests at once go before they count: as many connections as there are may
/// first have to be made between the sidecars, at 2 ms each.
pub(crate) fn warm_up(concurrency: usize) -> Duration {
    let connections = u32::try_from(concurrency).unwrap_or(u32::MAX);
    SETTLE + Duration::from_millis(2).saturating_mul(connections)
}

fn mib_each(pids: &[u32; 2]) -> Result<f64, String> {
    Ok(measure::pss_kib(pids)? / 1024.0 / 2.0)
}

/// Opens connections.
pub(crate) async fn open(target: SocketAddr, kind: Kind, size: usize) -> Result<Pool, String> {
    let pool = Pool::open(target, kind, size).await;
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
