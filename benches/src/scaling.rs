//! How a pair grows: two workers instead of one, and few busy connections among many open ones.

use std::net::SocketAddr;

use crate::figure::What;
use crate::load::Pool;
use crate::measure;
use crate::peer::{Pair, Peer};
use crate::scene::Scene;
use crate::setup::Setup;
use crate::turn::{Plan, Turn, open, warm_up};

/// Connections over which one worker and two are compared.
pub(crate) const CONNECTIONS: usize = 1_000;

/// Busy ones among all that are open.
const BUSY: usize = 100;

/// Bytes of responses.
const SIZE: usize = 64;

/// All figures of the group `scaling`.
pub(crate) async fn run(turn: &mut Turn, plan: &Plan, peer: &Peer, scene: &Scene) -> Result<(), String> {
    let one = Setup::plain(turn.kind());
    let two = Setup { workers: 2, ..one };
    let pair = peer.start(scene, one).await?;
    let measured = with_one(turn, plan, &pair, scene.outbound).await;
    let one = measured.map_err(|error| format!("one worker: {error}{}", pair.tails()))?;
    drop(pair);
    let pair = peer.start(scene, two).await?;
    let measured = with_two(turn, plan, &pair, scene.outbound).await;
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

async fn with_two(turn: &mut Turn, plan: &Plan, pair: &Pair, target: SocketAddr) -> Result<f64, String> {
    turn.warm(target).await?;
    let pool = open(target, turn.kind(), CONNECTIONS).await?;
    let sides = [
        (What::OutboundShare, pair.outbound.pid()),
        (What::InboundShare, pair.inbound.pid()),
    ];
    for (what, pid) in sides {
        if let Some(share) = busier_share(&measure::event_loops(&[pid])?) {
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
    let warm = warm_up(pool.size());
    let cpu = || measure::cpu_seconds(&pids);
    let (done, before) = pool.run(warm, plan.duration, SIZE, cpu).await;
    let used = cpu()? - before?;
    let done = turn.checked("scaling", done)?;
    Ok(used * 1e6 / done.count as f64)
}

/// Which part of what two workers wait for the busier one does. Loops that are no worker's have
/// fewer sockets than either.
fn busier_share(loops: &[usize]) -> Option<f64> {
    let [most, second, ..] = loops else {
        return None;
    };
    let sum = most + second;
    (sum > 0).then(|| *most as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::busier_share;

    #[test]
    fn the_busier_of_two_workers_has_half_at_least() {
        assert_eq!(busier_share(&[300, 100, 3]), Some(0.75));
        assert_eq!(busier_share(&[100, 100]), Some(0.5));
        assert_eq!(busier_share(&[300]), None);
        assert_eq!(busier_share(&[0, 0]), None);
    }
}
