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

/// KiB of memory: each page divided by how many processes share it.
pub(crate) fn pss_kib(pids: &[u32]) -> Result<f64, String> {
    let mut sum = 0.0;
    for pid in family(pids)? {
        let text = read(&format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        sum += kib.ok_or_else(|| format!("/proc/{pid}/smaps_rollup has no Pss"))?;
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

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, machine_and_own_cpu_seconds, pss_kib};

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pids = [std::process::id()];
        let before = cpu_seconds(&pids).unwrap();
        while cpu_seconds(&pids).unwrap() < before + 0.02 {}
        assert!(pss_kib(&pids).unwrap() > 100.0);
        let (machine, own) = machine_and_own_cpu_seconds().unwrap();
        assert!(machine > own && own > 0.0);
    }
}
