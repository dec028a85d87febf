//! Statistics pushed out every few seconds: Envoy's `stats_sinks`.
//!
//! Owns the sockets. Nothing here waits for a receiver: what a full socket does not take is dropped, and
//! that is counted.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::metrics::render::statsd::{self, Dialect};
use super::metrics::{Counter, Registry};

/// Envoy's default `stats_flush_interval`.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Envoy's default prefix of names.
pub const PREFIX: &str = "envoy";

/// What a datagram holds unless configured: fits into an Ethernet frame.
pub const DATAGRAM: usize = 1432;

/// One receiver: Envoy's `StatsdSink` or `DogStatsdSink` by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkConfig {
    /// What it understands.
    pub dialect: Dialect,
    /// Where it listens.
    pub address: SinkAddress,
    /// Comes before every name, with a dot; [`PREFIX`] unless configured.
    pub prefix: String,
    /// The most bytes in a datagram (`max_bytes_per_datagram`); [`DATAGRAM`] unless configured.
    pub datagram: usize,
}

/// Where a receiver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkAddress {
    /// UDP.
    Udp(SocketAddr),
    /// A unix datagram socket.
    Unix(PathBuf),
}

impl std::fmt::Display for SinkAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Flushes to every sink each `every`, until dropped. Before each flush, `refresh` brings up to date what is
/// only known when asked for.
pub async fn run(registry: &'static Registry, sinks: Vec<SinkConfig>, every: Duration, refresh: impl Fn()) {
    if sinks.is_empty() {
        return;
    }
    let scope = registry.scope("");
    let dropped = scope.own_counter("attache_stats_datagrams_dropped_total", &[]);
    let mut sinks: Vec<Sink> = sinks.into_iter().map(Sink::new).collect();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once; a flush is due after the first interval.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        refresh();
        let samples = registry.flush();
        for sink in &mut sinks {
            let config = &sink.config;
            let lines = statsd::lines(&samples, config.dialect, &config.prefix);
            let datagrams = statsd::datagrams(&lines, config.datagram);
            sink.send(&datagrams, &dropped);
        }
    }
}

#[derive(Debug)]
struct Sink {
    config: SinkConfig,
    socket: Option<Socket>,
    /// Whether the last flush failed: that is logged once.
    failing: bool,
}

#[derive(Debug)]
enum Socket {
    Udp(std::net::UdpSocket),
    Unix(UnixDatagram),
}

impl Sink {
    fn new(config: SinkConfig) -> Self {
        Self {
            config,
            socket: None,
            failing: false,
        }
    }

    fn send(&mut self, datagrams: &[String], dropped: &Counter) {
        let mut failure = None;
        for datagram in datagrams {
            if let Err(error) = self.send_one(datagram.as_bytes()) {
                dropped.increment(1);
                failure = Some(error);
            }
        }
        match &failure {
            Some(error) if !self.failing => {
                tracing::warn!(sink = %self.config.address, %error, "statistics cannot be sent to a sink");
            }
            None if self.failing => tracing::info!(sink = %self.config.address, "statistics are sent again"),
            _ => {}
        }
        self.failing = failure.is_some();
    }

    fn send_one(&mut self, datagram: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(Socket::open(&self.config.address)?),
        };
        let sent = match socket {
            Socket::Udp(socket) => socket.send(datagram),
            Socket::Unix(socket) => socket.send(datagram),
        };
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                // A unix socket is another one when its receiver comes back.
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.socket = None;
                }
                Err(error)
            }
        }
    }
}

impl Socket {
    fn open(address: &SinkAddress) -> io::Result<Self> {
        match address {
            SinkAddress::Udp(address) => {
                let from: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = std::net::UdpSocket::bind(from)?;
                socket.set_nonblocking(true)?;
                socket.connect(address)?;
                Ok(Self::Udp(socket))
            }
            SinkAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                Ok(Self::Unix(socket))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn sink(dialect: Dialect, address: SinkAddress) -> SinkConfig {
        SinkConfig {
            dialect,
            address,
            prefix: PREFIX.to_owned(),
            datagram: DATAGRAM,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deltas_reach_both_kinds_of_socket() {
        let registry: &'static Registry = Box::leak(Box::default());
        let scope = registry.scope("s.");
        let counter = scope.counter("c");
        let folder = std::env::temp_dir().join(format!("attache-sink-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("dog.sock");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sinks = vec![
            sink(Dialect::Statsd, SinkAddress::Udp(udp.local_addr().unwrap())),
            sink(Dialect::DogStatsd, SinkAddress::Unix(path.clone())),
        ];
        let receive = |receive: &dyn Fn(&mut [u8]) -> io::Result<usize>| {
            let mut buffer = [0; 2048];
            let length = receive(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let udp_says = || receive(&|buffer| udp.recv(buffer));
        let refreshed = std::cell::Cell::new(0);
        let checks = async {
            counter.increment(3);
            // Nobody listens at the unix socket yet. Longer than an interval, and shorter than two.
            sleep(FLUSH_INTERVAL.mul_f32(1.5)).await;
            assert_eq!(udp_says(), "envoy.s.c:3|c");
            let unix = UnixDatagram::bind(&path).unwrap();
            counter.increment(2);
            sleep(FLUSH_INTERVAL).await;
            let wanted = "envoy.attache_stats_datagrams_dropped_total:1|c\nenvoy.s.c:2|c";
            assert_eq!(udp_says(), wanted);
            assert_eq!(receive(&|buffer| unix.recv(buffer)), wanted);
            assert_eq!(refreshed.get(), 2);
        };
        tokio::select! {
            () = run(registry, sinks, FLUSH_INTERVAL, || refreshed.set(refreshed.get() + 1)) => panic!("it ends by itself"),
            () = checks => {}
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
