//! A peer's end that is noticed without reading: it may wait behind bytes that nobody takes yet.
//!
//! Owns a second descriptor of the socket, and with it the socket: it has to be dropped together with the stream.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// How a peer may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// By an end or by a reset.
    AnyHow,
    /// By a reset alone: its end says nothing of the other direction.
    ByReset,
}

/// A watch over one socket.
pub struct Departure(Pin<Box<dyn Future<Output = ()>>>);

impl std::fmt::Debug for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Departure").finish_non_exhaustive()
    }
}

impl Departure {
    /// Begins to watch; `None` where no descriptor is left for that.
    pub fn of(socket: &TcpStream, leaving: Leaving) -> Option<Self> {
        let second = socket.as_fd().try_clone_to_owned().ok()?;
        let second = TcpStream::from_std(second.into()).ok()?;
        // Fails only where the runtime ends, and the stream with it.
        Some(Self(Box::pin(
            async move { drop(second.ready(leaving.into()).await) },
        )))
    }

    /// As [`Self::of`], of a unix socket.
    pub fn of_unix(socket: &UnixStream, leaving: Leaving) -> Option<Self> {
        let second = socket.as_fd().try_clone_to_owned().ok()?;
        let second = UnixStream::from_std(second.into()).ok()?;
        Some(Self(Box::pin(
            async move { drop(second.ready(leaving.into()).await) },
        )))
    }

    /// Ready once the peer has left.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl From<Leaving> for Interest {
    fn from(leaving: Leaving) -> Self {
        match leaving {
            // Of all interests the one that bytes to read do not meet, but their end does.
            Leaving::AnyHow => Self::PRIORITY,
            Leaving::ByReset => Self::ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn an_end_and_a_reset_are_noticed_behind_unread_bytes() {
        for (leaving, resets) in [
            (Leaving::AnyHow, false),
            (Leaving::AnyHow, true),
            (Leaving::ByReset, true),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(b"unread").await.unwrap();
            server.readable().await.unwrap();
            let mut departure = Departure::of(&server, leaving).unwrap();
            let stays = departure.poll(&mut Context::from_waker(Waker::noop()));
            assert!(stays.is_pending(), "bytes alone are no departure");
            if resets {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            poll_fn(|cx| departure.poll(cx)).await;
        }
    }

    #[tokio::test]
    async fn an_end_is_no_reset() {
        let (client, server) = pair().await;
        let mut reset = Departure::of(&server, Leaving::ByReset).unwrap();
        let mut end = Departure::of(&server, Leaving::AnyHow).unwrap();
        drop(client);
        poll_fn(|cx| {
            assert!(reset.poll(cx).is_pending());
            end.poll(cx)
        })
        .await;
        assert!(reset.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}
