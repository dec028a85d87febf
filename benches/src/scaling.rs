//! How a pair grows: two workers instead of one, and few busy connections among many open ones.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::figure::What;
use crate::load::Pool;
use crate::measure;
use crate::peer::{Pair, Peer};
use crate::scene::Scene;
use crate::setup::Setup;
use crate::turn::{Plan, Turn, open};

/// Connections over which one worker and two are compared.
pub(crate) const CONNECTIONS: usize = 1_000;

/// Busy ones among all that are open.
const BUSY: usize = 100;

/// Bytes of responses.
const SIZE: usize = 64;

/// So few that they come in one chunk, and no line in two.
const STATISTICS: &str = "/stats?filter=worker_.*downstream_cx_active";

/// Of Envoy's statistics, one of each listener and worker.
const WORKER_STATISTIC: &str = ".downstream_cx_active";

/// All figures of the group `scaling`.
pub(crate) async fn run(turn: &mut Turn, plan: &Plan, peer: &Peer, scene: &Scene) -> Result<(), String> {
    let one = Setup::plain(turn.kind());
    let two = Setup { workers: 2, ..one };
    let pair = peer.start(scene, one).await?;
    let measured = with_one(turn, plan, &pair, scene.outbound).await;
    let one = measured.map_err(|error| format!("one worker: {error}{}", pair.tails()))?;
    drop(pair);
    let pair = peer.start(scene, two).await?;
    let measured = with_two(turn, plan, peer, &pair, scene).await;
    let two = measured.map_err(|error| format!("two workers: {error}{}", pair.tails()))?;
    turn.push_of(What::WorkersRatio, CONNECTIONS, two / one);
    Ok(())
}

/// Gives the CPU time of a request over [`CONNECTIONS`].
async fn with_one(turn: &mut Turn, plan: &Plan, pair: &Pair, target: SocketAddr) -> Result<f64, String> {
    turn.warm(target).await?;
    let kind = turn.kind();
    let alone_before = busy(turn, plan, pair, open(target, kind, BUSY).await?).await?;
    let crowd = open(target, kind, plan.crowd - BUSY).await?;
    let in_crowd = busy(turn, plan, pair, open(target, kind, BUSY).await?).await?;
    drop(crowd);
    // Once more, so that a drift of the machine does not look like the crowd's doing.
    let alone_after = busy(turn, plan, pair, open(target, kind, BUSY).await?).await?;
    let alone = f64::midpoint(alone_before, alone_after);
    turn.push_of(What::AloneCpu, BUSY, alone);
    turn.push_of(What::CrowdCpu, plan.crowd, in_crowd);
    turn.push_of(What::CrowdRatio, plan.crowd, in_crowd / alone);
    let cpu = busy(turn, plan, pair, open(target, kind, CONNECTIONS).await?).await?;
    turn.push_of(What::WorkerCpu, CONNECTIONS, cpu);
    Ok(cpu)
}

async fn with_two(
    turn: &mut Turn,
    plan: &Plan,
    peer: &Peer,
    pair: &Pair,
    scene: &Scene,
) -> Result<f64, String> {
    let target = scene.outbound;
    turn.warm(target).await?;
    let pool = open(target, turn.kind(), CONNECTIONS).await?;
    let sides = [
        (What::OutboundShare, pair.outbound.pid(), scene.outbound_admin),
        (What::InboundShare, pair.inbound.pid(), scene.inbound_admin),
    ];
    for (what, pid, admin) in sides {
        let connections = if peer.has_statistics() {
            of_workers(&statistics(admin).await?)
        } else if peer.forks_workers() {
            measure::sockets_of_children(pid)?
        } else {
            Vec::new()
        };
        if let Some(share) = busier_share(&connections) {
            turn.push_of(what, CONNECTIONS, share * 100.0);
        }
    }
    let cpu = busy(turn, plan, pair, pool).await?;
    turn.push_of(What::WorkersCpu, CONNECTIONS, cpu);
    Ok(cpu)
}

/// Microseconds of CPU time a request.
async fn busy(turn: &mut Turn, plan: &Plan, pair: &Pair, pool: Pool) -> Result<f64, String> {
    let pids = pair.pids();
    let before = measure::cpu_seconds(&pids)?;
    let done = pool.run(plan.duration, SIZE).await;
    let cpu = measure::cpu_seconds(&pids)? - before;
    let done = turn.checked("scaling", done)?;
    Ok(cpu * 1e6 / done.count as f64)
}

async fn statistics(admin: SocketAddr) -> Result<String, String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {STATISTICS} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    ask.await.map_err(|error| format!("{admin}{STATISTICS}: {error}"))
}

/// Connections that each worker has, over all listeners but the admin API's.
fn of_workers(statistics: &str) -> Vec<f64> {
    let mut workers = Vec::new();
    for line in statistics.lines() {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        let worker = name
            .strip_suffix(WORKER_STATISTIC)
            .filter(|rest| rest.starts_with("listener.") && !rest.starts_with("listener.admin."))
            .and_then(|rest| rest.rsplit_once(".worker_")?.1.parse::<usize>().ok());
        // A number that no proxy here has is not one of a worker.
        let (Some(worker @ 0..64), Ok(count)) = (worker, value.trim().parse::<f64>()) else {
            continue;
        };
        if workers.len() <= worker {
            workers.resize(worker + 1, 0.0);
        }
        workers[worker] += count;
    }
    workers
}

/// Which part of all the one with the most has; `None` for fewer than two workers.
fn busier_share(counts: &[f64]) -> Option<f64> {
    let sum: f64 = counts.iter().sum();
    let most = counts.iter().copied().reduce(f64::max)?;
    (counts.len() > 1 && sum > 0.0).then_some(most / sum)
}

#[cfg(test)]
mod tests {
    use super::{busier_share, of_workers};

    #[test]
    fn workers_are_told_apart_and_the_admin_api_is_none() {
        let text = "listener.127.0.0.1_80.downstream_cx_active: 30\r\n\
            listener.127.0.0.1_80.worker_1.downstream_cx_active: 10\r\n\
            listener.127.0.0.1_80.worker_0.downstream_cx_active: 20\n\
            listener.127.0.0.1_81.worker_0.downstream_cx_active: 10\n\
            listener.127.0.0.1_81.worker_0.downstream_cx_total: 70\n\
            listener.admin.worker_1.downstream_cx_active: 5\n";
        assert_eq!(of_workers(text), [30.0, 10.0]);
        assert_eq!(busier_share(&[30.0, 10.0]), Some(0.75));
        assert_eq!(busier_share(&[30.0]), None);
        assert_eq!(busier_share(&[]), None);
    }
}
