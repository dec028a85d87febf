//! Where lines go: standard output, standard error, files. Workers append to a bounded buffer; a thread a
//! sink writes it out, so that neither a full disk nor a reader that stopped holds up a connection or
//! another sink.
//!
//! Owns the sinks of the process, which live as long as it does, as Envoy's do. A line that does not fit
//! is dropped and counted (`attache_access_log_dropped`), never cut.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::access_log::AccessLogSink;

/// A line waits for others at most this long: Envoy's `--file-flush-interval-msec` is 10 s, ours suits a
/// process that Nomad may kill 5 s after it says so.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// This much is written out without waiting (Envoy's `--file-flush-min-size-kb`).
const FLUSH_AT: usize = 64 * 1024;

/// Lines beyond this are dropped: seconds of lines at full speed, and little of the 128 MB of a sidecar.
const LIMIT: usize = 1024 * 1024;

/// How long the last lines may take to be written when the process ends: within the 5 s that Nomad gives
/// it, after the drain.
const FLUSH_LIMIT: Duration = Duration::from_millis(250);

/// The kernel does not mix writes to a pipe up to this size with others' (`PIPE_BUF`, pipe(7)): logs of
/// the process and of its access log may share one.
const ATOMIC: usize = 4096;

/// One sink, shared by every access log that names it.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    dropped: metrics::Counter,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the thread.
    wake: Condvar,
    /// A flush is done.
    flushed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    reopen: bool,
    /// Flushes asked for, and done.
    asked: u64,
    done: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.is_urgent()
    }

    fn is_urgent(&self) -> bool {
        self.waiting.len() >= FLUSH_AT || self.reopen || self.asked > self.done
    }
}

static SINKS: LazyLock<Mutex<BTreeMap<AccessLogSink, Arc<Sink>>>> = LazyLock::new(Mutex::default);

fn sinks() -> MutexGuard<'static, BTreeMap<AccessLogSink, Arc<Sink>>> {
    SINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's sink of that name; the first call opens it.
pub fn of(name: &AccessLogSink) -> Arc<Sink> {
    let mut sinks = sinks();
    if let Some(sink) = sinks.get(name) {
        return Arc::clone(sink);
    }
    let sink = Arc::new(Sink::start(Output::new(name.clone())));
    sinks.insert(name.clone(), Arc::clone(&sink));
    sink
}

/// Closes files and opens them anew by their names, after what waits was written: for log rotation, by
/// SIGUSR1 or Envoy's `/reopen_logs`.
pub fn reopen() {
    for sink in sinks().values() {
        sink.shared.state().reopen = true;
        sink.shared.wake.notify_one();
    }
}

/// Writes out what waits, for at most `limit` in all. Whether everything was.
pub fn flush(limit: Duration) -> bool {
    let until = Instant::now() + limit;
    let all: Vec<_> = sinks().values().cloned().collect();
    // All of them asked, then waited for.
    let asked: Vec<_> = all.iter().map(|sink| sink.ask_to_flush()).collect();
    let flushed = all.iter().zip(asked);
    flushed.fold(true, |others, (sink, asked)| {
        sink.is_flushed(asked, until) && others
    })
}

/// Writes out what waits when it is dropped, so that no way out of a process loses lines.
#[derive(Debug)]
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        if !flush(FLUSH_LIMIT) {
            tracing::warn!("the end of an access log could not be written in time");
        }
    }
}

impl Sink {
    fn start(mut output: Output) -> Self {
        let shared = Arc::<Shared>::default();
        let label = output.label();
        let dropped = metrics::counter!("attache_access_log_dropped", "sink" => label.clone());
        let (of_thread, dropped_by_thread) = (Arc::clone(&shared), dropped.clone());
        let started = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || run(&of_thread, &mut output, &dropped_by_thread));
        if let Err(error) = started {
            tracing::error!(sink = label, %error, "the access log has no thread; its lines are dropped");
        }
        Self { shared, dropped }
    }

    /// Takes whole lines; they are dropped where they do not fit. Never waits for a write.
    pub fn write(&self, lines: impl AsRef<[u8]>) {
        let lines = lines.as_ref();
        let mut state = self.shared.state();
        let before = state.waiting.len();
        if before + lines.len() > LIMIT {
            drop(state);
            self.dropped.increment(1);
            return;
        }
        state.waiting.extend_from_slice(lines);
        let after = state.waiting.len();
        drop(state);
        // The first line starts the clock, the one that fills the buffer ends it.
        if before == 0 || (before < FLUSH_AT && after >= FLUSH_AT) {
            self.shared.wake.notify_one();
        }
    }

    fn ask_to_flush(&self) -> u64 {
        let mut state = self.shared.state();
        state.asked += 1;
        let asked = state.asked;
        drop(state);
        self.shared.wake.notify_one();
        asked
    }

    fn is_flushed(&self, asked: u64, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self
            .shared
            .flushed
            .wait_timeout_while(self.shared.state(), left, |state| state.done < asked);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.done >= asked
    }
}

/// The sink's thread, to the end of the process.
fn run(shared: &Shared, output: &mut Output, dropped: &metrics::Counter) {
    let mut batch = Vec::new();
    loop {
        let waited = shared
            .wake
            .wait_while(shared.state(), |state| !state.has_work())
            .unwrap_or_else(PoisonError::into_inner);
        let waited = shared
            .wake
            .wait_timeout_while(waited, FLUSH_EVERY, |state| !state.is_urgent());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        batch.clear();
        std::mem::swap(&mut state.waiting, &mut batch);
        let reopen = std::mem::take(&mut state.reopen);
        let asked = state.asked;
        drop(state);
        if let Err(lost) = output.write(&batch) {
            dropped.increment(lost);
        }
        if reopen {
            output.reopen();
        }
        if batch.capacity() > 2 * FLUSH_AT {
            batch = Vec::new();
        }
        shared.state().done = asked;
        shared.flushed.notify_all();
    }
}

/// The open end of a sink.
#[derive(Debug)]
struct Output {
    name: AccessLogSink,
    file: Option<File>,
    /// The last write or opening failed, and the log says so.
    failing: bool,
}

impl Output {
    fn new(name: AccessLogSink) -> Self {
        Self {
            name,
            file: None,
            failing: false,
        }
    }

    fn label(&self) -> String {
        match &self.name {
            AccessLogSink::Stdout => "stdout".to_owned(),
            AccessLogSink::Stderr => "stderr".to_owned(),
            AccessLogSink::File(path) => path.display().to_string(),
        }
    }

    fn open(&self) -> io::Result<File> {
        match &self.name {
            // Past the standard library's buffers and locks, which others in the process use.
            AccessLogSink::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            AccessLogSink::Stderr => Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?)),
            AccessLogSink::File(path) => OpenOptions::new().append(true).create(true).open(path),
        }
    }

    fn reopen(&mut self) {
        self.file = None;
        // Now, not with the next line: whoever rotates logs looks for the new file.
        let opened = self.opened().map(|_| ());
        self.report(opened.err());
    }

    fn opened(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        Ok(self.file.insert(file))
    }

    /// Writes whole lines.
    ///
    /// # Errors
    /// How many lines were lost. The next ones are tried again.
    fn write(&mut self, lines: &[u8]) -> Result<(), u64> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut rest = lines;
        let error = loop {
            if rest.is_empty() {
                self.report(None);
                return Ok(());
            }
            let (chunk, after) = rest.split_at(whole_lines(rest));
            match self.opened().and_then(|file| file.write_all(chunk)) {
                Ok(()) => rest = after,
                Err(error) => break error,
            }
        };
        // A file that was removed, a disk that was full: opened anew for the next lines.
        self.file = None;
        self.report(Some(error));
        let lost = rest.split_inclusive(|byte| *byte == b'\n').count();
        Err(u64::try_from(lost).unwrap_or(u64::MAX))
    }

    /// Says that the sink fails, once, and that it no longer does.
    fn report(&mut self, error: Option<io::Error>) {
        let sink = self.label();
        match error {
            Some(error) if !self.failing => {
                tracing::error!(
                    sink,
                    %error,
                    "the access log cannot be written; its lines are dropped until it can"
                );
            }
            None if self.failing => tracing::info!(sink, "the access log is written again"),
            _ => return,
        }
        self.failing = !self.failing;
    }
}

/// How long the part of `lines` is that is written at once: as many whole lines as no pipe mixes with
/// others' writes, or one longer line.
fn whole_lines(lines: &[u8]) -> usize {
    let head = lines.get(..ATOMIC).unwrap_or(lines);
    if head.len() == lines.len() {
        return head.len();
    }
    let end = |part: &[u8], last: bool| {
        let mut bytes = part.iter();
        let found = match last {
            true => bytes.rposition(|byte| *byte == b'\n'),
            false => bytes.position(|byte| *byte == b'\n'),
        };
        found.map(|at| at + 1)
    };
    end(head, true)
        .or_else(|| end(lines, false))
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::PathBuf;

    use super::*;
    use crate::telemetry::metrics;

    const LONG: Duration = Duration::from_secs(30);

    fn flushed(sink: &Sink) -> bool {
        sink.is_flushed(sink.ask_to_flush(), Instant::now() + LONG)
    }

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("attache-sink-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_is_appended_to_and_found_anew_by_its_name() {
        let folder = folder("reopen");
        let path = folder.join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let sink = Sink::start(Output::new(AccessLogSink::File(path.clone())));
        sink.write("one\n");
        assert!(flushed(&sink));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\none\n");

        std::fs::rename(&path, folder.join("old")).unwrap();
        sink.write("two\n");
        sink.shared.state().reopen = true;
        assert!(flushed(&sink));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "there at once");
        sink.write("three\n");
        assert!(flushed(&sink));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        let old = std::fs::read_to_string(folder.join("old")).unwrap();
        assert_eq!(old, "before\none\ntwo\n", "what waited belongs to the old file");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_loses_its_lines_and_is_tried_again() {
        let folder = folder("absent");
        let path = folder.join("later/access.log");
        let mut output = Output::new(AccessLogSink::File(path.clone()));
        assert_eq!(output.write(b"one\ntwo\n"), Err(2));
        assert_eq!(output.write(b"three\n"), Err(1));
        assert!(output.failing);
        std::fs::create_dir(folder.join("later")).unwrap();
        assert_eq!(output.write(b"four\n"), Ok(()));
        assert!(!output.failing);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        metrics::install(&metrics::StatsConfig::consul()).unwrap();
        let folder = folder("stopped");
        let path = folder.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sink = Sink::start(Output::new(AccessLogSink::File(path.clone())));
        // More than the thread's batch and the buffer hold together.
        let written = 4 * LIMIT / 64;
        for number in 0..written {
            sink.write(format!("{number:063}\n"));
        }
        assert!(sink.shared.state().waiting.len() <= LIMIT);
        assert!(
            !sink.is_flushed(sink.ask_to_flush(), Instant::now()),
            "nobody reads"
        );

        let mut reader = File::open(&path).unwrap();
        let read = std::thread::spawn(move || {
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        });
        assert!(flushed(&sink));
        // The reader's end comes when the sink has another file.
        std::fs::remove_file(&path).unwrap();
        sink.shared.state().reopen = true;
        assert!(flushed(&sink));
        let all = read.join().unwrap();
        let numbers: Vec<usize> = all.lines().map(|line| line.parse().unwrap()).collect();
        assert!(all.lines().all(|line| line.len() == 63), "whole lines only");
        assert!(numbers.is_sorted_by(|a, b| a < b), "in order");
        let kept = numbers.len();
        assert!(kept < written && kept * 64 >= LIMIT, "as many as fit: {kept}");
        let samples = metrics::registry().collect(|_| true);
        let counts = metrics::render::prometheus::render(&samples, false);
        let sink = format!("sink=\"{}\"", path.display());
        let dropped = counts
            .lines()
            .find(|line| line.contains("attache_access_log_dropped") && line.contains(&sink));
        let dropped = dropped.and_then(|line| line.rsplit(' ').next()).unwrap();
        assert_eq!(dropped.parse(), Ok(written - kept));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn writes_are_of_whole_lines_that_a_pipe_does_not_mix() {
        let short = "x".repeat(99) + "\n";
        let long = "y".repeat(2 * ATOMIC) + "\n";
        let lines = short.repeat(100) + &long + &short;
        let mut rest = lines.as_bytes();
        let mut written = Vec::new();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(whole_lines(rest));
            assert_eq!(chunk.last(), Some(&b'\n'));
            assert!(chunk.len() <= ATOMIC || chunk == long.as_bytes());
            written.extend_from_slice(chunk);
            rest = after;
        }
        assert_eq!(written, lines.as_bytes());
        assert_eq!(whole_lines(b"no end"), 6);
    }

    /// The other process of the test below.
    #[test]
    #[ignore = "started by another test"]
    fn writes_to_standard_output() {
        // Ends the line that the test harness may have begun.
        println!();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                std::thread::spawn(move || {
                    for number in 0..500 {
                        // As every connection does it: by the name of the sink.
                        of(&AccessLogSink::Stdout).write(format!("access {thread} {number:0300}\n"));
                    }
                })
            })
            .collect();
        // Other output of the process goes the same way.
        for number in 0..500 {
            println!("other {number}");
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(flush(LONG));
    }

    #[test]
    fn lines_on_standard_output_are_whole_beside_other_output() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("telemetry::access_log::sink::tests::writes_to_standard_output")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut next = [0; 4];
        for line in text.lines().filter(|line| line.contains("access ")) {
            let words: Vec<&str> = line.split(' ').collect();
            let ["access", thread, number] = words[..] else {
                panic!("a mixed line: {line}");
            };
            let (thread, number): (usize, u32) = (thread.parse().unwrap(), number.parse().unwrap());
            assert_eq!(number, next[thread], "in order");
            next[thread] += 1;
        }
        assert_eq!(next, [500; 4]);
        assert_eq!(
            text.lines().filter(|line| line.starts_with("other ")).count(),
            500
        );
    }
}
