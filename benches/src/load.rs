//! The load: many requests, new connections, bulk transfers and idle connections.
//!
//! It runs on the caller's single-threaded runtime. A connection that fails counts one error and
//! is not used again; nothing is tried twice.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::Client;
use crate::kind::Kind;
use crate::message::LEAST;

/// How much longer than planned anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections that are opened at once: enough to keep both sidecars busy.
const OPENED_AT_ONCE: usize = 10;

/// For as many new connections as there are; a proxy makes a few hundred a second at least.
const NEW_WITHIN: Duration = Duration::from_secs(300);

/// What many exchanges came to.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    /// Right responses.
    pub(crate) count: u64,
    /// Connections that broke, gave a wrong response or hung.
    pub(crate) errors: u64,
    /// From the first to the last of them.
    pub(crate) elapsed: Duration,
    /// What went wrong first.
    pub(crate) first_error: Option<String>,
    /// Nanoseconds of each, sorted.
    latencies: Vec<u32>,
}

impl Exchanges {
    /// How many a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency in microseconds that `part` of them did not exceed.
    pub(crate) fn latency_us(&self, part: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.latencies
            .get(at)
            .map_or(f64::NAN, |&nanos| f64::from(nanos) / 1e3)
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.latencies.extend(other.latencies);
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn fail(&mut self, error: &io::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

/// What a bulk transfer came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// Bytes that arrived, all of them right.
    pub(crate) bytes: u64,
    /// Until the last one was acknowledged.
    pub(crate) elapsed: Duration,
}

/// Open connections that have each had one response.
#[derive(Debug)]
pub(crate) struct Pool(Vec<Client>);

impl Pool {
    /// Opens them, a few at a time.
    pub(crate) async fn open(target: SocketAddr, kind: Kind, size: usize) -> io::Result<Self> {
        let mut opening: JoinSet<io::Result<Vec<Client>>> = (0..OPENED_AT_ONCE.min(size))
            .map(|first| async move {
                let mut clients = Vec::with_capacity(size / OPENED_AT_ONCE + 1);
                for number in (first..size).step_by(OPENED_AT_ONCE) {
                    let opened = async {
                        let mut client = Client::open(target, kind).await?;
                        client.exchange(number as u64, LEAST).await?;
                        Ok(client)
                    };
                    clients.push(within(PATIENCE, opened).await?);
                }
                Ok(clients)
            })
            .collect();
        let mut clients = Vec::with_capacity(size);
        while let Some(opened) = opening.join_next().await {
            clients.extend(opened.map_err(io::Error::other)??);
        }
        Ok(Self(clients))
    }

    /// How many requests at once it makes.
    pub(crate) fn size(&self) -> usize {
        self.0.len()
    }

    /// Lets so many requests at once share each connection, where the kind can.
    pub(crate) fn shared(mut self, by: usize) -> Self {
        let further = |client: &Client| (1..by).filter_map(|_| client.share()).collect::<Vec<_>>();
        let further: Vec<Client> = self.0.iter().flat_map(further).collect();
        self.0.extend(further);
        self
    }

    /// One request after the other on each connection, or share of one, with responses of that
    /// many bytes: for a while that counts for nothing, and then, after `mark`, for the duration.
    pub(crate) async fn run<T>(
        self,
        warm: Duration,
        duration: Duration,
        size: usize,
        mark: impl FnOnce() -> T,
    ) -> (Exchanges, T) {
        let start = Instant::now();
        let tasks = self.0.into_iter().zip(0_u64..);
        let exchanges = gather(
            tasks.map(|(mut client, index)| async move {
                let mut done = Exchanges::default();
                let mut number = index << 40;
                loop {
                    let begun = Instant::now();
                    let since_start = begun.duration_since(start);
                    if since_start >= warm + duration {
                        return done;
                    }
                    number += 1;
                    // A timer for each request would be a good part of the load: hanging ends with
                    // the patience for all of them, in `gather`.
                    if let Err(error) = client.exchange(number, size).await {
                        done.fail(&error);
                        return done;
                    }
                    if since_start < warm {
                        continue;
                    }
                    let nanos = begun.elapsed().as_nanos();
                    done.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
                    done.count += 1;
                }
            }),
            warm + duration,
        );
        let marked = async {
            tokio::time::sleep(warm).await;
            mark()
        };
        let (mut done, marked) = tokio::join!(exchanges, marked);
        done.elapsed = done.elapsed.saturating_sub(warm);
        (done, marked)
    }
}

/// `total` connections, each for one request, `at_once` of them at a time.
pub(crate) async fn connections(target: SocketAddr, kind: Kind, total: u64, at_once: u64) -> Exchanges {
    let one = async move |number| {
        let client = Client::open(target, kind).await?;
        client.exchange_and_end(number, LEAST).await
    };
    let tasks = (0..at_once).map(|index| async move {
        let mut done = Exchanges::default();
        for number in (index..total).step_by(at_once as usize) {
            match within(PATIENCE, one(number)).await {
                Ok(()) => done.count += 1,
                Err(error) => done.fail(&error),
            }
        }
        done
    });
    gather(tasks, NEW_WITHIN).await
}

/// Sends blocks for a while, and sees that all of them arrived.
pub(crate) async fn upload(target: SocketAddr, kind: Kind, duration: Duration) -> io::Result<Transfer> {
    let client = Client::open(target, kind).await?;
    transfer(client.upload(duration), duration).await
}

/// Takes the blocks that the backend sends for a while.
pub(crate) async fn download(target: SocketAddr, kind: Kind, duration: Duration) -> io::Result<Transfer> {
    let client = Client::open(target, kind).await?;
    transfer(client.download(duration), duration).await
}

/// One exchange on a new connection.
pub(crate) async fn probe(target: SocketAddr, kind: Kind) -> io::Result<()> {
    Pool::open(target, kind, 1).await.map(drop)
}

/// Whether the backend is told who calls.
pub(crate) async fn is_caller_named(target: SocketAddr, kind: Kind) -> io::Result<bool> {
    let ask = async { Client::open(target, kind).await?.is_caller_named().await };
    within(PATIENCE, ask).await
}

async fn transfer(work: impl Future<Output = io::Result<u64>>, duration: Duration) -> io::Result<Transfer> {
    let start = Instant::now();
    let bytes = within(duration + PATIENCE, work).await?;
    let elapsed = start.elapsed();
    Ok(Transfer { bytes, elapsed })
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Runs the tasks side by side; those that hang count one error each.
async fn gather<F>(tasks: impl Iterator<Item = F>, planned: Duration) -> Exchanges
where
    F: Future<Output = Exchanges> + Send + 'static,
{
    let start = Instant::now();
    let mut running: JoinSet<Exchanges> = tasks.collect();
    let mut all = Exchanges::default();
    let finished = timeout(planned + PATIENCE, async {
        while let Some(done) = running.join_next().await {
            match done {
                Ok(done) => all.add(done),
                Err(_) => all.errors += 1,
            }
        }
    });
    let hung = finished.await.is_err();
    all.elapsed = start.elapsed();
    if hung {
        all.errors += running.len() as u64;
        all.first_error.get_or_insert_with(|| "no response".to_owned());
    }
    all.latencies.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use clap::ValueEnum as _;

    use super::{Pool, connections, download, is_caller_named, upload};
    use crate::backend::Backend;
    use crate::kind::Kind;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn all_kinds_of_load_reach_the_backend_without_an_error() {
        let backend = Backend::start().unwrap();
        for &kind in Kind::value_variants() {
            let target = backend.address(kind);
            for size in [16, 64, 200_000] {
                let (open, streams) = kind.spread(16);
                let pool = Pool::open(target, kind, open).await.unwrap().shared(streams);
                assert_eq!(pool.size(), 16);
                let (done, marked) = pool.run(SHORT, SHORT, size, Instant::now).await;
                // What counts begins at the mark, give or take what a busy machine takes to get there.
                assert!(marked.elapsed() >= SHORT / 2 && done.elapsed >= SHORT / 2);
                assert!(done.count > 4 && done.errors == 0, "{kind:?}: {done:?}");
                assert!(done.latency_us(0.5) <= done.latency_us(0.99));
            }
            let done = connections(target, kind, 25, 10).await;
            assert_eq!((done.count, done.errors), (25, 0), "{kind:?}");
            assert!(!is_caller_named(target, kind).await.unwrap());
        }
        for kind in [Kind::Tcp, Kind::Http1, Kind::Http2] {
            let target = backend.address(kind);
            assert!(upload(target, kind, SHORT).await.unwrap().bytes > 0, "{kind:?}");
            assert!(download(target, kind, SHORT).await.unwrap().bytes > 0, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn whoever_is_no_backend_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        for &kind in Kind::value_variants() {
            assert!(Pool::open(target, kind, 1).await.is_err());
            assert_eq!(connections(target, kind, 5, 2).await.errors, 5);
            assert!(upload(target, kind, SHORT).await.is_err());
            assert!(download(target, kind, SHORT).await.is_err());
        }
    }
}
