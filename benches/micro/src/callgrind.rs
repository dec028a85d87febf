//! Runs a bench under valgrind and reads what it counted.
//!
//! Owns everything that makes a count the same on another day and machine: the environment, the processor that
//! valgrind shows, the allocator's settings. Owns the file that callgrind writes, and removes it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, fs, process};

use crate::bench::Bench;

/// The function whose instructions count: [`crate::bench::counted`], however the compiler decorates it.
const COUNTED: &str = "attache_micro::bench::counted*";

/// No variable of the caller's gets in: their size moves the stack. The allocator has one arena and returns
/// nothing to the kernel, which it would do by the clock.
const ENVIRONMENT: [(&str, &str); 1] = [(
    "_RJEM_MALLOC_CONF",
    "narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1",
)];

/// Processes a bench, of which the least count stands: the seeds of hash tables and the moments at which the
/// kernel wakes a process are never the same, and are all that is left of chance.
const RUNS: u32 = 3;

/// Valgrind, which is there.
#[derive(Debug)]
pub(crate) struct Valgrind {
    program: PathBuf,
}

impl Valgrind {
    /// Asks for its version.
    ///
    /// # Errors
    /// It is not installed.
    pub(crate) fn find() -> Result<Self, String> {
        match Command::new("valgrind").arg("--version").output() {
            Ok(output) if output.status.success() => Ok(Self {
                program: env::current_exe().map_err(|error| format!("this program: {error}"))?,
            }),
            _ => Err("valgrind is needed (apt-get install valgrind)".to_owned()),
        }
    }

    /// Instructions of one time.
    ///
    /// # Errors
    /// The bench failed, or nothing was counted.
    pub(crate) fn count(&self, bench: &Bench) -> Result<u64, String> {
        let mut least = u64::MAX;
        for _ in 0..RUNS {
            least = least.min(self.run(bench)?);
        }
        Ok(least)
    }

    fn run(&self, bench: &Bench) -> Result<u64, String> {
        let file = env::temp_dir().join(format!("attache-micro-{}-{}", process::id(), bench.name));
        let output = Command::new("valgrind")
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(format!("--toggle-collect={COUNTED}"))
            .arg(&self.program)
            .args(["--measure", bench.name])
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(ENVIRONMENT)
            .output();
        let written = fs::read_to_string(&file);
        // Where it was never written there is nothing to remove.
        let _ = fs::remove_file(&file);
        let output = output.map_err(|error| format!("valgrind: {error}"))?;
        if !output.status.success() {
            return Err(failure(bench, &output));
        }
        let written = written.map_err(|error| format!("{}: {error}", file.display()))?;
        match total(&written) {
            Some(total) if total > 0 => Ok(total / u64::from(bench.times)),
            _ => Err(format!(
                "{}: nothing was counted; was it built without symbols? benches/micro/run keeps them",
                bench.name
            )),
        }
    }
}

fn failure(bench: &Bench, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout) + said;
    format!(
        "{} failed under valgrind ({}):\n{said}",
        bench.name, output.status
    )
}

/// The sum in a file of callgrind's: `totals: N`, or `summary: N` of an older one.
fn total(file: &str) -> Option<u64> {
    let line = |key: &str| file.lines().find_map(|line| line.strip_prefix(key));
    let words = line("totals: ").or_else(|| line("summary: "))?;
    words.split_whitespace().next()?.parse().ok()
}

/// Whether valgrind shows the processor that the numbers are for: to a program it is always the same one, with
/// AVX2 and without AVX-512, as long as the machine has AVX2. So `memchr`, aws-lc and libc choose the same code
/// everywhere.
///
/// # Errors
/// It shows another one.
#[cfg(target_arch = "x86_64")]
pub(crate) fn check_processor() -> Result<(), String> {
    let shown = [
        ("avx2", std::is_x86_feature_detected!("avx2"), true),
        ("bmi2", std::is_x86_feature_detected!("bmi2"), true),
        ("aes", std::is_x86_feature_detected!("aes"), true),
        ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq"), true),
        ("movbe", std::is_x86_feature_detected!("movbe"), true),
        ("adx", std::is_x86_feature_detected!("adx"), false),
        ("sha", std::is_x86_feature_detected!("sha"), false),
        ("avx512f", std::is_x86_feature_detected!("avx512f"), false),
        ("vaes", std::is_x86_feature_detected!("vaes"), false),
        ("vpclmulqdq", std::is_x86_feature_detected!("vpclmulqdq"), false),
    ];
    let other = shown.iter().find(|(_, has, wanted)| has != wanted);
    other.map_or(Ok(()), |(name, has, _)| {
        let has = if *has { "has" } else { "lacks" };
        Err(format!(
            "the processor that valgrind shows {has} {name}: the numbers are for another one"
        ))
    })
}

/// They are for x86-64 alone.
///
/// # Errors
/// Always.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn check_processor() -> Result<(), String> {
    Err("the numbers are for x86-64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::total;

    #[test]
    fn the_total_is_found_wherever_it_stands() {
        let file = "version: 1\nevents: Ir\nsummary: 7\n\nfn=(1) main\n3 12\n\ntotals: 123456\n";
        assert_eq!(total(file), Some(123_456));
        assert_eq!(total("events: Ir\nsummary: 7 8\n"), Some(7));
        for nothing in ["", "totals:\n", "totals: x\n", "fn=(1) totals: 3\n"] {
            assert_eq!(total(nothing), None, "{nothing:?}");
        }
    }
}
