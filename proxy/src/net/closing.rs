//! How a listening socket ends without resetting anybody.
//!
//! Closing one resets the connections that wait in its queue, and each handshake that is still under way:
//! measured on Linux 6.18 under a storm of connects, one to three a close, with one socket or several
//! of a `SO_REUSEPORT` group, after `accept` had emptied the queue; `shutdown` does the same. So the socket first
//! takes no *new* SYN, then gives out what it has, and is closed only then. A SYN dropped in between,
//! some hundred microseconds, is sent again by the client's kernel after a second, and then refused.

use std::io;
use std::net::Shutdown;

use socket2::{SockFilter, SockRef};

/// Classic BPF (linux/bpf_common.h) over the TCP header: lets pass all but a SYN that is no SYN-ACK, so
/// that the last packets of handshakes under way still come through.
const NO_SYN: [SockFilter; 5] = {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where the flags are, and two of them.
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

/// Has a listening TCP socket take no new connection; those begun can still be accepted.
///
/// # Errors
/// The kernel's, where it knows no socket filters: then some connections may be reset by the close.
pub fn refuse_tcp(socket: &SockRef<'_>) -> io::Result<()> {
    socket.attach_filter(&NO_SYN)
}

/// Has a listening unix socket refuse new connections; those begun can still be accepted.
///
/// # Errors
/// The kernel's.
pub fn refuse_unix(socket: &SockRef<'_>) -> io::Result<()> {
    socket.shutdown(Shutdown::Read)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_has_begun_is_served_and_the_rest_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        refuse_tcp(&SockRef::from(&listener)).unwrap();
        // Its SYN is sent again after a second, when nobody listens any more.
        let late = std::thread::spawn(move || TcpStream::connect(address).unwrap_err().kind());
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // On loopback a SYN that is not dropped makes a whole connection within the call.
        assert!(socket.connect(&address.into()).is_err());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(late.join().unwrap(), ErrorKind::ConnectionRefused);
        accepted.write_all(b"x").unwrap();
        early.read_exact(&mut [0]).unwrap();
    }
}
