//! One listening socket in a worker: its accept loop, and its end.
//!
//! Owns the socket. Whose connections it accepts may change under it, so that a listener of another name
//! takes over without a gap. Connections it has spawned go on when it ends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, spawn_local};

use super::active::ActiveListener;
use super::dispatch::Dispatch;
use crate::model::Downstream;
use crate::net::sock_diag::SockDiag;
use crate::net::socket::ListenSocket;
use crate::net::{PlainStream, closing};

/// The pause after `accept` failed for want of descriptors or memory: long enough for some to be
/// given back, short against a client's connect timeout.
const BACKOFF: Duration = Duration::from_millis(100);

/// At its end a socket waits so long at most for handshakes under way: the time after which a peer sends
/// a lost packet again.
const HANDSHAKES_UNDER_WAY: Duration = Duration::from_secs(1);

/// Where the kernel does not say whether there are any: some round trips within a data centre.
const HANDSHAKES_UNKNOWN: Duration = Duration::from_millis(50);

/// Between two looks at whether a handshake is still under way.
const LOOK: Duration = Duration::from_millis(5);

/// A socket that accepts. Dropping it without [`Self::close`] resets what waits in its queue.
#[derive(Debug)]
pub struct Acceptor {
    socket: Rc<Socket>,
    owner: Owner,
    accepting: AbortHandle,
}

/// Whose connections a socket accepts now.
#[derive(Clone, Debug)]
struct Owner(Rc<RefCell<Rc<ActiveListener>>>);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    /// Starts to accept for `listener`.
    ///
    /// # Errors
    /// When the socket cannot be polled.
    pub fn start(
        socket: ListenSocket,
        listener: Rc<ActiveListener>,
        dispatch: Rc<Dispatch>,
    ) -> io::Result<Self> {
        let socket = Rc::new(match socket {
            ListenSocket::Tcp(socket) => Socket::Tcp(TcpListener::from_std(socket)?),
            ListenSocket::Unix(socket) => Socket::Unix(UnixListener::from_std(socket)?),
        });
        let owner = Owner(Rc::new(RefCell::new(listener)));
        let task = accept(Rc::clone(&socket), owner.clone(), dispatch);
        let accepting = spawn_local(task).abort_handle();
        Ok(Self {
            socket,
            owner,
            accepting,
        })
    }

    /// Accepts for `listener` from now on.
    pub fn hand_over(&self, listener: &Rc<ActiveListener>) {
        if !Rc::ptr_eq(&self.owner.listener(), listener) {
            *self.owner.0.borrow_mut() = Rc::clone(listener);
        }
    }

    /// Takes no new connection, serves those that have begun, closes. They, and the end itself, count as
    /// served, so that a drain waits for them.
    pub fn close(self, dispatch: Rc<Dispatch>) {
        self.accepting.abort();
        let serving = self.owner.listener().serving();
        spawn_local(async move {
            close(&self.socket, &self.owner, &dispatch).await;
            drop(serving);
        });
    }
}

impl Owner {
    fn listener(&self) -> Rc<ActiveListener> {
        Rc::clone(&self.0.borrow())
    }
}

/// Accepts until aborted.
async fn accept(socket: Rc<Socket>, owner: Owner, dispatch: Rc<Dispatch>) {
    let mut failing = false;
    loop {
        match poll_fn(|cx| socket.poll_accept(cx)).await {
            Ok((stream, downstream)) => {
                failing = false;
                dispatch.balanced(stream, downstream, owner.listener());
            }
            // The connection was gone before it was accepted; the next one is fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    failing = true;
                    let listener = owner.listener();
                    tracing::error!(listener = %listener.name, %error, "accepting fails; trying again");
                }
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

/// See [`closing`] for why this is more than a close.
async fn close(socket: &Socket, owner: &Owner, dispatch: &Rc<Dispatch>) {
    if let Err(error) = socket.refuse_new() {
        tracing::debug!(%error, "connects during the close of a listener may be reset");
    }
    let began = Instant::now();
    let diag = SockDiag::open();
    loop {
        // Before the look at the queue: a handshake that ends in between is found there.
        let limit = match socket.handshakes_under_way(diag.as_ref()) {
            Some(true) => HANDSHAKES_UNDER_WAY,
            Some(false) => Duration::ZERO,
            None => HANDSHAKES_UNKNOWN,
        };
        while let Some((stream, downstream)) = socket.accept_waiting() {
            // In this worker: another one may have ended already.
            dispatch.here(stream, downstream, owner.listener());
        }
        if began.elapsed() >= limit {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Socket {
    fn poll_accept(&self, cx: &mut std::task::Context<'_>) -> Poll<io::Result<(PlainStream, Downstream)>> {
        match self {
            Self::Tcp(socket) => socket.poll_accept(cx).map_ok(|(stream, source)| {
                let downstream = Downstream {
                    source: Some(source),
                    destination: stream.local_addr().ok(),
                    ..Downstream::default()
                };
                (PlainStream::Tcp(stream), downstream)
            }),
            Self::Unix(socket) => socket
                .poll_accept(cx)
                .map_ok(|(stream, _)| (PlainStream::Unix(stream), Downstream::default())),
        }
    }

    /// A connection from the queue as the kernel has it, whatever the runtime has heard of it; none
    /// where it is empty or the socket at its end.
    fn accept_waiting(&self) -> Option<(PlainStream, Downstream)> {
        loop {
            let accepted = match self {
                Self::Tcp(socket) => SockRef::from(socket).accept(),
                Self::Unix(socket) => SockRef::from(socket).accept(),
            };
            let (stream, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(_) => return None,
            };
            stream.set_nonblocking(true).ok()?;
            let downstream = Downstream {
                source: source.as_socket(),
                destination: stream.local_addr().ok().and_then(|address| address.as_socket()),
                ..Downstream::default()
            };
            let stream = match self {
                Self::Tcp(_) => PlainStream::Tcp(tokio::net::TcpStream::from_std(stream.into()).ok()?),
                Self::Unix(_) => PlainStream::Unix(tokio::net::UnixStream::from_std(stream.into()).ok()?),
            };
            return Some((stream, downstream));
        }
    }

    fn refuse_new(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => closing::refuse_tcp(&SockRef::from(socket)),
            Self::Unix(socket) => closing::refuse_unix(&SockRef::from(socket)),
        }
    }

    /// Whether connections are begun that `accept` does not give yet; none where that is not known.
    fn handshakes_under_way(&self, diag: Option<&SockDiag>) -> Option<bool> {
        match self {
            Self::Tcp(socket) => diag?.handshakes_under_way(socket.local_addr().ok()?),
            Self::Unix(_) => Some(false),
        }
    }
}
