//! Bytes from socket to socket through a pipe (splice(2)): they never enter this process.
//!
//! Owns the pipes. A direction is lent one while plain bytes flow in bulk, so that an idle connection holds none;
//! a worker keeps a few. Where there is none to be had, or the kernel will not, the relay copies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Room of a pipe. It holds references to the kernel's own pages, one a slot of 4 KiB, and a received segment takes
/// a slot or more: the default of 16 slots would be full before a fair share of it is.
const PIPE_BYTES: i32 = 256 * 1024;

/// Idle pipes that a worker keeps: two file descriptors each.
const MAX_IDLE: usize = 8;

/// A worker's pipes are at most one for so many descriptors that the process may have: connections need them more.
const DESCRIPTORS_A_PIPE: u64 = 64;

thread_local! {
    /// Pipes that there are, idle ones included.
    static PIPES: Cell<u64> = const { Cell::new(0) };
    static MOST: Cell<u64> = Cell::new(most());
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// The kernel said that it cannot: nobody asks it again.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A pipe, and how much waits in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

fn most() -> u64 {
    // Without an answer there is no limit, and pipes are few all the same.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(64, |(soft, _)| soft / DESCRIPTORS_A_PIPE)
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // A thread that ends drops its idle pipes maybe after its count.
        let _ = PIPES.try_with(|pipes| pipes.set(pipes.get() - 1));
    }
}

impl Pipe {
    /// An empty one; none if the worker has as many as it may, or splice(2) was refused.
    pub(super) fn lend() -> Option<Self> {
        if REFUSED.get() {
            return None;
        }
        IDLE.with_borrow_mut(Vec::pop).or_else(|| {
            if PIPES.get() >= MOST.get() {
                return None;
            }
            let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
            PIPES.set(PIPES.get() + 1);
            let pipe = Self { read, write, held: 0 };
            // A smaller one, as a user has who has as many pages in pipes as allowed, is slower than copying.
            fcntl(&pipe.write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).ok()?;
            Some(pipe)
        })
    }

    /// Keeps it for others, unless something is left in it.
    pub(super) fn give_back(self) {
        IDLE.with_borrow_mut(|idle| {
            if self.held == 0 && idle.len() < MAX_IDLE {
                idle.push(self);
            }
        });
    }

    /// Bytes that wait.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes what `from` has received. To be called while the pipe is empty: the kernel says alike that it is full
    /// and that the socket has nothing. `Ok(0)` is the clean end.
    ///
    /// # Errors
    /// The socket's, or [`io::ErrorKind::Unsupported`] where the kernel will not: nothing was taken then.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0);
        loop {
            ready!(from.poll_read_ready(cx))?;
            let room = usize::try_from(PIPE_BYTES).unwrap_or(usize::MAX);
            let moved = from.try_io(Interest::READABLE, || transfer(from, &self.write, room));
            match moved {
                Ok(moved) => {
                    self.held = moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives `to` what waits, or a part of it; ready while something was given.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || transfer(&self.read, to, self.held));
            match moved {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(moved) => {
                    self.held -= moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn transfer(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(from, None, to, None, most, flags).map_err(|error| match error {
        // A kernel or a sandbox without it.
        Errno::EINVAL | Errno::ENOSYS | Errno::EPERM => {
            REFUSED.set(true);
            io::ErrorKind::Unsupported.into()
        }
        error => error.into(),
    })
}

/// As if the kernel refused, or no more, for this thread.
#[cfg(test)]
pub(super) fn refuse(refused: bool) {
    REFUSED.set(refused);
}

/// A worker may have so many.
#[cfg(test)]
pub(super) fn allow(pipes: u64) {
    MOST.set(pipes);
}

/// How many pipes wait to be lent on this thread: none unless one was in use.
#[cfg(test)]
pub(super) fn idle() -> usize {
    IDLE.with_borrow(Vec::len)
}

/// Ends those.
#[cfg(test)]
pub(super) fn forget_idle() {
    IDLE.with_borrow_mut(Vec::clear);
}
