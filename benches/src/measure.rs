//! What processes have used, from `/proc`: CPU time and memory, of a process with all its
//! children (nginx works in one, a wrapper script may run the proxy in one).

use std::fs;

/// Linux counts CPU time in `/proc` in hundredths of a second, whatever the kernel's own tick.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU seconds, user and system, used so far by these processes and their children.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64, String> {
    let mut ticks = 0.0;
    for pid in family(pids)? {
        ticks += sum_of(&stat_fields(pid)?, 11..13);
    }
    Ok(ticks / TICKS_A_SECOND)
}

/// Nanoseconds on a processor, and how often they went to sleep of their own accord, of all threads
/// of these processes and their children. Of threads that have ended it knows nothing.
pub(crate) fn thread_totals(pids: &[u32]) -> Result<(f64, f64), String> {
    let (mut nanoseconds, mut sleeps) = (0.0, 0.0);
    for pid in family(pids)? {
        for thread in folder(&format!("/proc/{pid}/task"))? {
            let text = read(&format!("/proc/{pid}/task/{thread}/schedstat"))?;
            let first = text.split_whitespace().next();
            nanoseconds += first.and_then(|it| it.parse::<f64>().ok()).unwrap_or_default();
            let text = read(&format!("/proc/{pid}/task/{thread}/status"))?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sleeps += line
                .and_then(|it| it.trim().parse::<f64>().ok())
                .unwrap_or_default();
        }
    }
    Ok((nanoseconds, sleeps))
}

/// How many files each event loop of these processes waits for, most first: each worker has one,
/// so that tells how connections are shared among them.
pub(crate) fn event_loops(pids: &[u32]) -> Result<Vec<usize>, String> {
    let mut loops = Vec::new();
    for pid in family(pids)? {
        let mut of_process: Vec<Vec<String>> = Vec::new();
        for file in folder(&format!("/proc/{pid}/fd"))? {
            let target = fs::read_link(format!("/proc/{pid}/fd/{file}"));
            if !target.is_ok_and(|it| it.to_string_lossy() == "anon_inode:[eventpoll]") {
                continue;
            }
            let text = read(&format!("/proc/{pid}/fdinfo/{file}"))?;
            let waited_for = text.lines().filter(|line| line.starts_with("tfd:"));
            of_process.push(waited_for.map(str::to_owned).collect());
        }
        // A second descriptor of one loop shows the same.
        of_process.sort_unstable();
        of_process.dedup();
        loops.extend(of_process.iter().map(Vec::len));
    }
    loops.sort_unstable_by(|one, other| other.cmp(one));
    Ok(loops)
}

/// KiB of memory: each page divided by how many processes share it.
pub(crate) fn pss_kib(pids: &[u32]) -> Result<f64, String> {
    rollup(pids, "Pss:")
}

/// The same of pages that belong to no file: what grows with connections. Another process of the
/// same program that comes or goes does not change it.
pub(crate) fn anonymous_kib(pids: &[u32]) -> Result<f64, String> {
    rollup(pids, "Pss_Anon:")
}

fn rollup(pids: &[u32], field: &str) -> Result<f64, String> {
    let mut sum = 0.0;
    for pid in family(pids)? {
        let text = read(&format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        sum += kib.ok_or_else(|| format!("/proc/{pid}/smaps_rollup has no {field}"))?;
    }
    Ok(sum)
}

/// CPU seconds used by the whole machine, and by this process (without its children).
pub(crate) fn machine_and_own_cpu_seconds() -> Result<(f64, f64), String> {
    let text = read("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    // user nice system idle iowait irq softirq steal; a stolen second is one that we did not get.
    let busy = sum_of(&fields, 0..3) + sum_of(&fields, 5..8);
    let own = sum_of(&stat_fields(std::process::id())?, 11..13);
    Ok((busy / TICKS_A_SECOND, own / TICKS_A_SECOND))
}

fn sum_of(fields: &[f64], range: std::ops::Range<usize>) -> f64 {
    fields.get(range).unwrap_or_default().iter().sum()
}

/// The fields of a `stat` file after the name, which may have spaces; 11 and 12 are utime, stime.
fn stat_fields(pid: u32) -> Result<Vec<f64>, String> {
    let text = read(&format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').unwrap_or_default();
    let numbers = rest.split_whitespace();
    Ok(numbers.map(|field| field.parse().unwrap_or_default()).collect())
}

fn family(pids: &[u32]) -> Result<Vec<u32>, String> {
    let mut all = pids.to_vec();
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        let children = read(&format!("/proc/{pid}/task/{pid}/children"))?;
        all.extend(
            children
                .split_whitespace()
                .filter_map(|it| it.parse::<u32>().ok()),
        );
        next += 1;
    }
    Ok(all)
}

fn folder(path: &str) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(path).map_err(|error| format!("{path}: {error}"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{
        anonymous_kib, cpu_seconds, event_loops, machine_and_own_cpu_seconds, pss_kib, thread_totals,
    };

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pids = [std::process::id()];
        let before = cpu_seconds(&pids).unwrap();
        while cpu_seconds(&pids).unwrap() < before + 0.02 {}
        let (nanoseconds, sleeps) = thread_totals(&pids).unwrap();
        assert!(nanoseconds > 1e7 && sleeps >= 0.0);
        let pss = pss_kib(&pids).unwrap();
        assert!(pss > 100.0 && anonymous_kib(&pids).unwrap() < pss);
        let (machine, own) = machine_and_own_cpu_seconds().unwrap();
        assert!(machine > own && own > 0.0);
    }

    #[tokio::test]
    async fn an_event_loop_waits_for_the_sockets_of_its_connections() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connections = Vec::new();
        for _ in 0..100 {
            let address = listener.local_addr().unwrap();
            connections.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let loops = event_loops(&[std::process::id()]).unwrap();
        assert!(loops[0] > 100, "{loops:?}");
        drop(connections);
    }
}
