//! The load: many small requests, new connections, bulk transfers and idle connections, each
//! response compared byte by byte.
//!
//! It runs on the caller's single-threaded runtime. A connection that fails counts one error and
//! is not used again; nothing is tried twice.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::wire::{self, BLOCK, BLOCK_LENGTH, RESPONSE_LENGTH, Verb};

/// How much longer than planned anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(15);

/// What many small exchanges came to.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    /// Right responses.
    pub(crate) count: u64,
    /// Connections that broke, gave a wrong response or hung.
    pub(crate) errors: u64,
    /// From the first to the last of them.
    pub(crate) elapsed: Duration,
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
pub(crate) struct Pool(Vec<TcpStream>);

impl Pool {
    /// Opens them one after the other.
    pub(crate) async fn open(target: SocketAddr, size: usize) -> io::Result<Self> {
        let mut streams = Vec::with_capacity(size);
        for number in 0..size {
            let opened = async {
                let mut stream = connect(target).await?;
                exchange(&mut stream, Verb::Count, number as u64).await?;
                io::Result::Ok(stream)
            };
            streams.push(within(PATIENCE, opened).await?);
        }
        Ok(Self(streams))
    }

    /// One request after the other on each connection.
    pub(crate) async fn run(self, duration: Duration) -> Exchanges {
        let start = Instant::now();
        let tasks = self.0.into_iter().zip(0_u64..);
        gather(
            tasks.map(|(mut stream, index)| async move {
                let mut done = Exchanges::default();
                let mut number = index << 40;
                loop {
                    let begun = Instant::now();
                    if begun.duration_since(start) >= duration {
                        return done;
                    }
                    number += 1;
                    let response = exchange(&mut stream, Verb::Count, number);
                    // A timer for each request would be a good part of the load: hanging ends with
                    // the patience for all of them, in `gather`.
                    if response.await.is_err() {
                        done.errors += 1;
                        return done;
                    }
                    let nanos = begun.elapsed().as_nanos();
                    done.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
                    done.count += 1;
                }
            }),
            duration,
        )
        .await
    }
}

/// `total` connections, each for one request, `at_once` of them at a time.
pub(crate) async fn connections(target: SocketAddr, total: u64, at_once: u64) -> Exchanges {
    let one = async move |number| {
        let mut stream = connect(target).await?;
        exchange(&mut stream, Verb::Close, number).await?;
        expect_end(&mut stream).await
    };
    let tasks = (0..at_once).map(|index| async move {
        let mut done = Exchanges::default();
        for number in (index..total).step_by(at_once as usize) {
            match within(PATIENCE, one(number)).await {
                Ok(()) => done.count += 1,
                Err(_) => done.errors += 1,
            }
        }
        done
    });
    gather(tasks, Duration::from_secs(60)).await
}

/// Sends blocks for a while, and sees that all of them arrived.
pub(crate) async fn upload(target: SocketAddr, duration: Duration) -> io::Result<Transfer> {
    let work = async {
        let mut stream = connect(target).await?;
        let start = Instant::now();
        stream.write_all(&wire::request(Verb::Store, 0)).await?;
        let mut bytes = 0;
        while start.elapsed() < duration {
            stream.write_all(&BLOCK).await?;
            bytes += BLOCK_LENGTH as u64;
        }
        stream.shutdown().await?;
        expect_response(&mut stream, bytes).await?;
        let elapsed = start.elapsed();
        expect_end(&mut stream).await?;
        Ok(Transfer { bytes, elapsed })
    };
    within(duration + PATIENCE, work).await
}

/// Takes the blocks that the backend sends for a while.
pub(crate) async fn download(target: SocketAddr, duration: Duration) -> io::Result<Transfer> {
    let work = async {
        let mut stream = connect(target).await?;
        let mut buffer = vec![0; BLOCK_LENGTH];
        let mut bytes = 0;
        let start = Instant::now();
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        stream
            .write_all(&wire::request(Verb::Fetch, milliseconds))
            .await?;
        loop {
            let filled = wire::fill(&mut stream, &mut buffer).await?;
            if filled == BLOCK_LENGTH && *buffer == **BLOCK {
                bytes += BLOCK_LENGTH as u64;
            } else if buffer[..filled] == wire::response(bytes) {
                let elapsed = start.elapsed();
                return Ok(Transfer { bytes, elapsed });
            } else {
                return Err(wrong("a block that is none of the backend's"));
            }
        }
    };
    within(duration + PATIENCE, work).await
}

/// One exchange on a new connection.
pub(crate) async fn probe(target: SocketAddr) -> io::Result<()> {
    Pool::open(target, 1).await.map(drop)
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, verb: Verb, number: u64) -> io::Result<()> {
    stream.write_all(&wire::request(verb, number)).await?;
    expect_response(stream, number).await
}

async fn expect_response(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let mut response = [0; RESPONSE_LENGTH];
    stream.read_exact(&mut response).await?;
    if response == wire::response(number) {
        Ok(())
    } else {
        Err(wrong("a response that is not the one to the request"))
    }
}

async fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(wrong("bytes after the end")),
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
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
    }
    all.latencies.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pool, connections, download, upload};
    use crate::backend;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn all_kinds_of_load_reach_the_backend_without_an_error() {
        let target = backend::start().unwrap();
        let done = Pool::open(target, 4).await.unwrap().run(SHORT).await;
        assert!(done.count > 4 && done.errors == 0, "{done:?}");
        assert!(done.latency_us(0.5) <= done.latency_us(0.99));
        let done = connections(target, 25, 10).await;
        assert_eq!((done.count, done.errors), (25, 0));
        assert!(upload(target, SHORT).await.unwrap().bytes > 0);
        assert!(download(target, SHORT).await.unwrap().bytes > 0);
    }

    #[tokio::test]
    async fn whoever_is_no_backend_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert!(Pool::open(target, 1).await.is_err());
        assert_eq!(connections(target, 5, 2).await.errors, 5);
        assert!(upload(target, SHORT).await.is_err());
        assert!(download(target, SHORT).await.is_err());
    }
}
