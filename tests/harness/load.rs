//! A load on one address: short request and response connections in a loop, and one long-lived
//! connection that talks all the time.
//!
//! Nothing is tried again: every request that fails is kept, with when and how. The tasks end with the
//! [`Load`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::app::Line;

/// An answer that takes longer than this is a failure: far above a handshake on a busy machine, and
/// below what a user takes for an outage.
const LATE: Duration = Duration::from_secs(5);

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    begun: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    short: AtomicU64,
    long: AtomicU64,
    slowest_us: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Requests answered, each over a connection of its own.
    pub short: u64,
    /// Requests answered over the one long-lived connection.
    pub long: u64,
    /// The slowest answer, with the connection's begin where it had one.
    pub slowest: Duration,
    /// How long it ran.
    pub lasted: Duration,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Load {
    /// Begins: `parallel` loops of short connections to a line app, a `pause` after each answer, and
    /// the long-lived one. Answers must begin with `wanted`.
    pub fn start(address: SocketAddr, wanted: &str, parallel: usize, pause: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        for number in 0..=parallel {
            let (shared, wanted) = (Arc::clone(&shared), wanted.to_owned());
            tasks.spawn(async move {
                if number == 0 {
                    shared.talk(address, &wanted, pause).await;
                } else {
                    shared.repeat(address, &wanted, pause, number).await;
                }
            });
        }
        Self {
            shared,
            tasks,
            begun: Instant::now(),
        }
    }

    /// Requests answered so far, short ones and those of the long-lived connection.
    pub fn answered(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.shared.short), count(&self.shared.long))
    }

    /// Waits until both kinds of connections are answered again after now.
    pub async fn goes_on(&self) {
        let before = self.answered();
        crate::eventually("the load is answered", || async {
            let now = self.answered();
            (now.0 > before.0 && now.1 > before.1).then_some(())
        })
        .await;
    }

    /// Ends it after the requests under way.
    pub async fn finish(mut self) -> Figures {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let (short, long) = self.answered();
        Figures {
            short,
            long,
            slowest: Duration::from_micros(self.shared.slowest_us.load(Ordering::Relaxed)),
            lasted: self.begun.elapsed(),
            failures: self.shared.failures.lock().unwrap().clone(),
        }
    }

    /// Goes on until `least` of each kind were answered, however slow the machine is, and ends it; fails the
    /// test unless every request was answered.
    pub async fn finish_without_failure(self, least: u64) -> Figures {
        loop {
            let (short, long) = self.answered();
            let failed = !self.shared.failures.lock().unwrap().is_empty();
            if failed || (short >= least && long >= least) {
                break;
            }
            self.goes_on().await;
        }
        let figures = self.finish().await;
        assert!(figures.failures.is_empty(), "{figures:#?}");
        figures
    }
}

impl Shared {
    async fn talk(&self, address: SocketAddr, wanted: &str, pause: Duration) {
        let mut line = match Line::connect(address).await {
            Ok(line) => line,
            Err(error) => return self.fail("the long-lived connection cannot connect", &error.to_string()),
        };
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let text = format!("long {number}");
            let answered = line.ask(&text);
            if !self
                .judge(
                    "the long-lived connection",
                    answered,
                    &format!("{wanted}: {text}"),
                )
                .await
            {
                return;
            }
            self.long.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
    }

    async fn repeat(&self, address: SocketAddr, wanted: &str, pause: Duration, number: usize) {
        let text = format!("short {number}");
        let expected = format!("{wanted}: {text}");
        while !self.stop.load(Ordering::Relaxed) {
            let asked = async { Line::connect(address).await?.ask(&text).await };
            if self.judge("a short connection", asked, &expected).await {
                self.short.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn judge(
        &self,
        what: &str,
        answer: impl Future<Output = std::io::Result<String>>,
        expected: &str,
    ) -> bool {
        let begun = Instant::now();
        let answer = tokio::time::timeout(LATE, answer).await;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(micros, Ordering::Relaxed);
        match answer {
            Ok(Ok(text)) if text == expected => return true,
            Ok(Ok(text)) => self.fail(what, &format!("answered {text:?} instead of {expected:?}")),
            Ok(Err(error)) => self.fail(what, &format!("{:?}: {error}", error.kind())),
            Err(_) => self.fail(what, &format!("no answer within {LATE:?}")),
        }
        false
    }

    fn fail(&self, what: &str, why: &str) {
        self.failures.lock().unwrap().push(format!("{what}: {why}"));
    }
}
