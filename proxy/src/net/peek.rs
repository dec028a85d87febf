//! Looking at the first bytes of a connection without taking them.
//!
//! Borrows the stream; the bytes stay in the kernel. A peek wakes only once more has come than it saw:
//! the runtime's readiness is cleared until then, so nothing spins on bytes that wait.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;

use super::PlainStream;
use super::buffer::with_plain;

/// What can be looked at at most: one lent block.
pub const MAX_BYTES: usize = super::buffer::BLOCK_BYTES;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// At least as many bytes as were waited for are there.
    Enough,
    /// The peer sends no more; so many bytes are there.
    Ended(usize),
}

/// Waits until `needed` bytes (at least 1, at most [`MAX_BYTES`]) can be looked at. The caller bounds its
/// time.
///
/// # Errors
/// The connection failed.
pub async fn wait_for(stream: &PlainStream, needed: usize) -> io::Result<Waited> {
    loop {
        let ready = match stream {
            PlainStream::Tcp(stream) => stream.ready(Interest::READABLE).await?,
            PlainStream::Unix(stream) => stream.ready(Interest::READABLE).await?,
        };
        let mut there = 0;
        let look = || {
            // With MSG_TRUNC TCP counts without copying, however often a stranger's single bytes wake us.
            there = with_plain(|block| peek(descriptor(stream), block, MsgFlags::MSG_TRUNC))?;
            if there >= needed || there == 0 {
                return Ok(there);
            }
            // Clears the readiness: there will be another once more has come.
            Err(io::ErrorKind::WouldBlock.into())
        };
        let looked = match stream {
            PlainStream::Tcp(stream) => stream.try_io(Interest::READABLE, look),
            PlainStream::Unix(stream) => stream.try_io(Interest::READABLE, look),
        };
        match looked {
            Ok(0) => return Ok(Waited::Ended(0)),
            Ok(_) => return Ok(Waited::Enough),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_read_closed() {
                    return Ok(Waited::Ended(there));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Shows what is there now, at most [`MAX_BYTES`].
///
/// # Errors
/// The connection failed.
pub fn look<T>(stream: &PlainStream, at: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    with_plain(|block| {
        let n = match peek(descriptor(stream), block, MsgFlags::empty()) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        Ok(at(&block[..n]))
    })
}

/// Takes the first `n` bytes, which must be there, at most [`MAX_BYTES`].
///
/// # Errors
/// The connection failed, or they were not there.
pub fn take(stream: &PlainStream, n: usize) -> io::Result<()> {
    with_plain(|block| {
        let mut left = n;
        while left > 0 {
            let taken = recv(
                descriptor(stream),
                &mut block[..left.min(MAX_BYTES)],
                MsgFlags::empty(),
            )?;
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= taken;
        }
        Ok(())
    })
}

fn peek(socket: RawFd, block: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    let n = recv(socket, block, MsgFlags::MSG_PEEK | flags)?;
    Ok(n.min(block.len()))
}

fn descriptor(stream: &PlainStream) -> RawFd {
    match stream {
        PlainStream::Tcp(stream) => stream.as_raw_fd(),
        PlainStream::Unix(stream) => stream.as_raw_fd(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    async fn pair() -> (TcpStream, PlainStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, PlainStream::Tcp(listener.accept().await.unwrap().0))
    }

    #[tokio::test]
    async fn bytes_come_one_by_one_and_stay() {
        let (mut client, server) = pair().await;
        let sending = async {
            for byte in b"hello" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (waited, ()) = tokio::join!(wait_for(&server, 5), sending);
        assert_eq!(waited.unwrap(), Waited::Enough);
        take(&server, 2).unwrap();
        assert_eq!(look(&server, <[u8]>::to_vec).unwrap(), b"llo");
        drop(client);
        assert_eq!(wait_for(&server, 4).await.unwrap(), Waited::Ended(3));
    }

    #[tokio::test]
    async fn bytes_that_do_not_grow_do_not_spin() {
        let (mut client, server) = pair().await;
        client.write_all(b"he").await.unwrap();
        // A task of its own is polled only when it was woken.
        let waiting = tokio::spawn(async move {
            let mut polls = 0;
            let mut waiting = std::pin::pin!(wait_for(&server, 3));
            let waited = std::future::poll_fn(|cx| {
                polls += 1;
                waiting.as_mut().poll(cx)
            })
            .await;
            (waited.unwrap(), polls)
        });
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        client.write_all(b"y").await.unwrap();
        let (waited, polls) = waiting.await.unwrap();
        assert_eq!(waited, Waited::Enough);
        assert!(polls <= 4, "{polls}");
    }

    #[tokio::test]
    async fn unix_sockets_too() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let server = PlainStream::Unix(server);
        client.write_all(b"ab").await.unwrap();
        assert_eq!(wait_for(&server, 2).await.unwrap(), Waited::Enough);
        assert_eq!(look(&server, <[u8]>::to_vec).unwrap(), b"ab");
        drop(client);
        take(&server, 2).unwrap();
        assert_eq!(wait_for(&server, 1).await.unwrap(), Waited::Ended(0));
    }
}
