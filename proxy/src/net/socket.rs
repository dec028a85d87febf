//! Listening and dialling, with every socket option in one place.
//!
//! Hands out sockets and keeps none.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::plain::PlainStream;
use crate::model::cluster::Keepalive;
use crate::model::listener::Address;

nix::ioctl_read_bad!(
    /// `SIOCOUTQ` of tcp(7), by its other name.
    outq,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// Connections that may wait for `accept`. The kernel caps it at `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;

/// Silence before the first probe. Below the 350 s after which cloud load balancers and NATs forget
/// a connection.
const KEEPALIVE_TIME: Duration = Duration::from_secs(120);

/// Between probes; with [`KEEPALIVE_PROBES`] a dead peer is noticed within 165 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Unanswered probes before the connection counts as reset.
const KEEPALIVE_PROBES: u32 = 3;

/// A bound, listening, non-blocking socket, not yet part of any runtime.
#[derive(Debug)]
pub enum ListenSocket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
}

/// Binds `address` once for each of `workers`. The kernel spreads TCP connections over the sockets;
/// unix sockets share one queue.
///
/// The first TCP socket is bound *without* `SO_REUSEPORT` and gets the option afterwards, so that
/// our own further sockets may join while another process, a second Attaché included, is refused.
///
/// With `join` the first one may join sockets of this user too, for an address that covers one that this
/// process has already, or is covered by it.
///
/// # Errors
/// The kernel's: `AddrInUse` when anybody else holds the address.
pub fn listen(address: &Address, workers: usize, join: bool) -> io::Result<Vec<ListenSocket>> {
    match address {
        Address::Socket(address) => (0..workers)
            .map(|worker| listen_tcp(*address, worker == 0 && !join).map(ListenSocket::Tcp))
            .collect(),
        Address::Pipe { path, mode } => {
            let first = listen_unix(path, *mode)?;
            let mut sockets = Vec::with_capacity(workers);
            for _ in 1..workers {
                sockets.push(ListenSocket::Unix(first.try_clone()?));
            }
            sockets.push(ListenSocket::Unix(first));
            Ok(sockets)
        }
    }
}

fn listen_tcp(address: SocketAddr, exclusive: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if exclusive {
        socket.bind(&address.into())?;
        socket.set_reuse_port(true)?;
    } else {
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
    }
    // Accepted sockets inherit these, which saves three system calls a connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&own_keepalive())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn listen_unix(path: &Path, mode: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err();
    if stale {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

/// The file of a listening unix socket; removed when dropped, unless somebody has put another there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// The file that was just bound at `address`; none of a TCP address.
    pub fn of(address: &Address) -> Option<Self> {
        let Address::Pipe { path, .. } = address else {
            return None;
        };
        let inode = std::fs::symlink_metadata(path).ok()?.ino();
        let path = path.clone();
        Some(Self { path, inode })
    }

    /// Sets the permission bits of the file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // Where it stays, the next start finds it stale and replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn own_keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// What is configured; the rest is the system's.
fn configured(keepalive: &Keepalive) -> TcpKeepalive {
    let mut options = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    options
}

/// Dials; bounded by the caller. Without a `keepalive` it is Attaché's own.
///
/// # Errors
/// The kernel's, also for a keepalive that it does not take (more than 32,767 s, 127 probes).
pub async fn dial(address: &Address, keepalive: Option<&Keepalive>) -> io::Result<PlainStream> {
    match address {
        Address::Socket(address) => {
            let stream = connect(*address).await?;
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_keepalive(&keepalive.map_or_else(own_keepalive, configured))?;
            stream.set_zero_linger()?;
            Ok(PlainStream::Tcp(stream))
        }
        Address::Pipe { path, .. } => loop {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(ASK_AGAIN).await,
                connected => return Ok(PlainStream::Unix(connected?)),
            }
        },
    }
}

/// How long a connect on this very host may stay unanswered before another takes its place. It is answered
/// at once, unless the app's accept queue is full (5 in many a small server): then the kernel drops it, and
/// would ask again after 1, 3, 7 s only, by when callers that came back all at once have given up.
const ASK_AGAIN: Duration = Duration::from_millis(50);

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    if !address.ip().to_canonical().is_loopback() {
        return TcpStream::connect(address).await;
    }
    loop {
        if let Ok(connected) = timeout(ASK_AGAIN, TcpStream::connect(address)).await {
            return connected;
        }
    }
}

/// Whether `ip` is an address of this host (of this network namespace): only then may a socket have it.
pub fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Where a connection that netfilter redirected went (`SO_ORIGINAL_DST`). None of one that was not, or
/// where the kernel does not say.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    // A dual-stack socket's IPv4 connections are known to IPv4's table only.
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = original.ok()?.as_socket()?;
    let same = original.ip() == local.ip().to_canonical() && original.port() == local.port();
    (!same).then_some(original)
}

/// Makes closing `stream` an ordinary end again: listeners hand down, and [`dial`] sets, a linger time
/// of zero, with which any other end of the process or the connection is a reset. A socket that is
/// already dead needs nothing, so a failure is fine.
pub fn close_cleanly(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// Bytes sent on a TCP socket that its peer's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)); what a reset
/// left unacknowledged stays so. None where the kernel does not say.
pub fn unacknowledged(stream: &TcpStream) -> Option<u64> {
    let mut bytes = 0;
    #[expect(
        unsafe_code,
        reason = "no crate has this request as a safe function; it writes one int, which `bytes` is"
    )]
    // SAFETY: the descriptor is open while `stream` is borrowed, and the kernel writes an int behind the pointer.
    let asked = unsafe { outq(stream.as_raw_fd(), &raw mut bytes) };
    asked.ok().and_then(|_| u64::try_from(bytes).ok())
}

/// Raises the soft limit of open files to the hard one and returns it: two descriptors a connection
/// pass the usual 1024 soon.
pub fn raise_descriptor_limit() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_share_a_port_and_a_stranger_is_refused() {
        let any = Address::Socket("127.0.0.1:0".parse().unwrap());
        let [ListenSocket::Tcp(first)] = &listen(&any, 1, false).unwrap()[..] else {
            panic!("one socket")
        };
        let taken = Address::Socket(first.local_addr().unwrap());
        assert_eq!(
            listen(&taken, 2, false).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );

        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let ours = listen(&Address::Socket(free), 3, false).unwrap();
        assert_eq!(ours.len(), 3);
        assert_eq!(
            listen(&Address::Socket(free), 1, false).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn a_local_address_is_told_from_others() {
        // 192.0.2.0/24 is for documentation (RFC 5737): nobody has it.
        for (ip, local) in [("127.0.0.1", true), ("127.9.9.9", true), ("192.0.2.1", false)] {
            assert_eq!(is_local(ip.parse().unwrap()), local, "{ip}");
        }
    }

    #[tokio::test]
    async fn a_dialled_socket_has_the_keepalive_that_is_configured() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Socket(listening.local_addr().unwrap());
        let options = async |keepalive: Option<&Keepalive>| {
            let PlainStream::Tcp(stream) = dial(&address, keepalive).await.unwrap() else {
                panic!("TCP")
            };
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            (
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
                socket.tcp_keepalive_retries().unwrap(),
            )
        };
        assert_eq!(
            options(None).await,
            (KEEPALIVE_TIME, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES)
        );
        let keepalive = Keepalive {
            time: Some(Duration::from_secs(33)),
            interval: Some(Duration::from_secs(7)),
            probes: Some(4),
        };
        let configured = (Duration::from_secs(33), Duration::from_secs(7), 4);
        assert_eq!(options(Some(&keepalive)).await, configured);
    }

    #[tokio::test]
    async fn a_full_accept_queue_is_asked_again_before_the_kernel_would() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let _fills_the_queue = TcpStream::connect(address).await.unwrap();
        let to = Address::Socket(address);
        let mut dialling = std::pin::pin!(dial(&to, None));
        // The kernel's own second attempt is in vain as well; its third is two seconds later.
        let waited = timeout(Duration::from_millis(1200), &mut dialling).await;
        assert!(waited.is_err(), "the queue is full");
        listener.accept().unwrap();
        let connected = timeout(Duration::from_millis(1500), dialling).await;
        connected.expect("well before the third").unwrap();
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("attache-listen-{}", std::process::id()));
        let address = Address::Pipe {
            path: path.clone(),
            mode: Some(0o600),
        };
        drop(listen(&address, 1, false).unwrap());
        let live = listen(&address, 2, false).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(listen(&address, 1, false).is_err());
        let file = SocketFile::of(&address).unwrap();
        drop(live);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_wildcard_joins_an_address_of_our_own() {
        let one = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = one.local_addr().unwrap().port();
        drop(one);
        let ours = listen(&Address::Socket(([127, 0, 0, 1], port).into()), 2, false).unwrap();
        let wide = Address::Socket(([0, 0, 0, 0], port).into());
        assert!(listen(&wide, 2, false).is_err());
        assert_eq!(listen(&wide, 2, true).unwrap().len(), 2);
        drop(ours);
    }
}
