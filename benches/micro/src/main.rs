//! Micro benches: instructions of what is hot, counted by callgrind and held to the numbers in `counts.json`.
//!
//! This file owns the arguments, the runs and the exit code. Each bench is a process of its own under valgrind,
//! so that no bench changes another's count. See README.md one folder above.

mod balancer;
mod bench;
mod callgrind;
mod counts;
mod frames;
mod pipe;
mod rbac;
mod records;
mod relay;
mod request;
mod route;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use clap::Parser;

use crate::bench::{Bench, Outcome};
use crate::counts::{Counts, TOLERANCE_PERCENT};

/// As in the binary that is shipped; what it decides by the clock is switched off in [`callgrind`].
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Counts the instructions of what is hot, and compares them with the numbers that are kept.
#[derive(Debug, Parser)]
#[command(name = "attache-micro")]
struct Arguments {
    /// Benches [default: all].
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(names()))]
    names: Vec<String>,
    /// Keeps what was counted as the numbers to compare with.
    #[arg(long)]
    write: bool,
    /// The file with the numbers.
    #[arg(long, value_name = "FILE", default_value_os_t = kept())]
    counts: PathBuf,
    /// Runs one bench here: what valgrind is started with.
    #[arg(long, hide = true, conflicts_with_all = ["names", "write"])]
    measure: Option<String>,
}

/// All benches, by name.
const BENCHES: &[&[Bench]] = &[
    balancer::BENCHES,
    rbac::BENCHES,
    records::BENCHES,
    relay::BENCHES,
    request::BENCHES,
    route::BENCHES,
];

fn benches() -> impl Iterator<Item = &'static Bench> {
    BENCHES.iter().copied().flatten()
}

fn names() -> Vec<&'static str> {
    benches().map(|bench| bench.name).collect()
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.json")
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.measure {
        Some(name) => measure(name).map(|()| true),
        None => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("attache-micro: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One bench, in this process.
fn measure(name: &str) -> Outcome {
    callgrind::check_processor()?;
    // Draws are the same in every run.
    fastrand::seed(1);
    let bench = benches()
        .find(|bench| bench.name == name)
        .ok_or("no such bench")?;
    (bench.run)(bench.times)
}

/// All of them, each in a process; false if a number is not what it was.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    if cfg!(debug_assertions) {
        return Err("this is a debug build: use benches/micro/run".into());
    }
    let all = arguments.names.is_empty();
    let chosen = |bench: &&Bench| all || arguments.names.iter().any(|name| name == bench.name);
    let counted = count(benches().filter(chosen).collect())?;
    let before = Counts::read(&arguments.counts)?;
    if arguments.write {
        let newer = if all { counted } else { before.with(counted) };
        newer.write(&arguments.counts)?;
        say(&format!("{} written", arguments.counts.display()));
        return Ok(true);
    }
    let before = if all { before } else { before.only(&counted) };
    let report = counts::compare(&before, &counted);
    for line in &report.lines {
        say(line);
    }
    if report.failed {
        say(&format!(
            "\nA count is over {TOLERANCE_PERCENT} % up, or has nothing to be compared with: find out why \
             (benches/README.md, Instruction counts). Where that is how it has to be, renew the numbers:\n  \
             benches/micro/run --write"
        ));
    }
    Ok(!report.failed)
}

/// As many at once as there are cores.
fn count(benches: Vec<&'static Bench>) -> Result<Counts, Box<dyn std::error::Error>> {
    let valgrind = callgrind::Valgrind::find()?;
    let left = Mutex::new(benches.into_iter());
    let take = || left.lock().ok().and_then(|mut left| left.next());
    let worker = || {
        let mut counted = Vec::new();
        while let Some(bench) = take() {
            counted.push((bench.name.to_owned(), valgrind.count(bench)?));
        }
        Ok::<_, String>(counted)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let mut counted = Counts::default();
        for worker in workers {
            counted.extend(worker.join().map_err(|_| "a thread ended badly")??);
        }
        Ok(counted)
    })
}

fn say(line: &str) {
    // A reader that went away is no failure.
    let _ = writeln!(io::stdout(), "{line}");
}
