//! Questions to the kernel about TCP sockets of this network namespace (`NETLINK_SOCK_DIAG`, see
//! sock_diag(7)): who listens, whose handshakes are under way.
//!
//! Owns one netlink socket. The kernel answers within the system call, in some microseconds, and the
//! sockets asked about notice nothing. Where it does not answer (an old kernel, seccomp) nothing is
//! known, and callers go on without.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// linux/socket.h, linux/netlink.h, linux/sock_diag.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IPPROTO_TCP: u8 = 6;

/// The kernel's state of a connection whose SYN was answered and not yet confirmed.
const TCP_SYN_RECV: u32 = 3;

/// A netlink header and an `inet_diag_req_v2`.
const REQUEST_BYTES: usize = 16 + 56;

/// The kernel's "no such socket".
const ENOENT: i32 = 2;

/// Room for what the kernel sends at once.
const ANSWER_BYTES: usize = 32 * 1024;

/// A netlink socket to ask.
#[derive(Debug)]
pub struct SockDiag(Socket);

impl SockDiag {
    /// None where the kernel gives no such socket.
    pub fn open() -> Option<Self> {
        let (domain, protocol) = (Domain::from(AF_NETLINK), Protocol::from(NETLINK_SOCK_DIAG));
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self(socket))
    }

    /// Whether a connection to `address` would find a listening socket in this namespace. None where the
    /// kernel does not say. Redirections by netfilter are not seen.
    pub fn listens(&self, address: SocketAddr) -> Option<bool> {
        self.0.send(&request(address, NLM_F_REQUEST, u32::MAX)).ok()?;
        let mut answer = [0; 1024];
        let n = (&self.0).read(&mut answer).ok()?;
        let (kind, body, _) = message(answer.get(..n)?)?;
        match kind {
            SOCK_DIAG_BY_FAMILY => Some(true),
            NLMSG_ERROR => {
                let error = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
                (error == -ENOENT).then_some(false)
            }
            _ => None,
        }
    }

    /// Whether handshakes with a listening socket of the port of `address` are under way: SYNs that were
    /// answered and not yet confirmed. None where the kernel does not say. Looks through every
    /// connection of the namespace.
    pub fn handshakes_under_way(&self, address: SocketAddr) -> Option<bool> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        self.0.send(&request(address, flags, 1 << TCP_SYN_RECV)).ok()?;
        let mut found = false;
        let mut answer = vec![0; ANSWER_BYTES];
        loop {
            let n = (&self.0).read(&mut answer).ok()?;
            let mut rest = answer.get(..n)?;
            while !rest.is_empty() {
                let (kind, _, next) = message(rest)?;
                match kind {
                    SOCK_DIAG_BY_FAMILY => found = true,
                    NLMSG_DONE => return Some(found),
                    _ => return None,
                }
                rest = next;
            }
        }
    }
}

/// Asks for sockets of the local `address` in one of `states` (bits).
fn request(address: SocketAddr, flags: u16, states: u32) -> [u8; REQUEST_BYTES] {
    let mut source = [0; 16];
    let family = match address.ip() {
        IpAddr::V4(ip) => {
            source[..4].copy_from_slice(&ip.octets());
            AF_INET
        }
        IpAddr::V6(ip) => {
            source.copy_from_slice(&ip.octets());
            AF_INET6
        }
    };
    let mut request = [0; REQUEST_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        request[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    // struct nlmsghdr: length, type, flags, sequence and port numbers.
    put(&(REQUEST_BYTES as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&flags.to_ne_bytes());
    put(&[0; 8]);
    // struct inet_diag_req_v2.
    put(&[family, IPPROTO_TCP, 0, 0]);
    put(&states.to_ne_bytes());
    put(&address.port().to_be_bytes());
    put(&[0; 2]);
    put(&source);
    put(&[0; 16]);
    put(&[0; 4]);
    // INET_DIAG_NOCOOKIE: any socket of that address.
    put(&[0xff; 8]);
    request
}

/// The first message's type and body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let aligned = length.next_multiple_of(4).min(bytes.len());
    Some((kind, body, &bytes[aligned..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listening_sockets_are_found_by_every_address_that_reaches_them() {
        let diag = SockDiag::open().unwrap();
        for (bind, ask) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::]:0", "::1"),
        ] {
            let listener = TcpListener::bind(bind).unwrap();
            let port = listener.local_addr().unwrap().port();
            let address = SocketAddr::new(ask.parse().unwrap(), port);
            assert_eq!(diag.listens(address), Some(true), "{bind} {ask}");
            // A connection to it is no listener.
            let connection = std::net::TcpStream::connect(address).unwrap();
            drop(listener);
            assert_eq!(diag.listens(address), Some(false), "{bind} {ask}");
            drop(connection);
        }
    }

    #[test]
    fn no_handshake_is_under_way_on_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _connection = std::net::TcpStream::connect(address).unwrap();
        let diag = SockDiag::open().unwrap();
        assert_eq!(diag.handshakes_under_way(address), Some(false));
    }
}
