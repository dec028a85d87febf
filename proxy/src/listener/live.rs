//! The live connections of one listener in one worker, so that newer rules can end those they deny.
//!
//! A connection is in the set from its first verdict to its end. Checking again costs one pure
//! evaluation a connection, only when the rules changed; a relay pays one load of a cell a poll.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tokio::sync::Notify;

use crate::model::Downstream;

/// Why a connection is ended from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// Newer rules deny the peer; the rule's name.
    Denied(Arc<str>),
    /// The drain's deadline came.
    DrainDeadline,
}

/// The set.
#[derive(Debug, Default)]
pub struct LiveConnections {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    next: Cell<u64>,
    draining: Cell<bool>,
    drain: Notify,
}

#[derive(Debug)]
struct Entry {
    downstream: Rc<Downstream>,
    cut: RefCell<Option<CutReason>>,
    waker: RefCell<Option<Waker>>,
}

/// A connection's place in the set; leaves it when dropped.
#[derive(Debug)]
pub struct Live<'a> {
    set: &'a LiveConnections,
    id: u64,
    entry: Rc<Entry>,
}

impl LiveConnections {
    /// Enters a connection.
    pub fn enter(&self, downstream: Rc<Downstream>) -> Live<'_> {
        let id = self.next.get();
        self.next.set(id + 1);
        let entry = Rc::new(Entry {
            downstream,
            cut: RefCell::default(),
            waker: RefCell::default(),
        });
        self.entries.borrow_mut().insert(id, Rc::clone(&entry));
        Live { set: self, id, entry }
    }

    /// Asks every connection, and those to come, to end where their protocol allows it.
    pub fn drain(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
    }

    /// Cuts every connection for which `verdict` gives a reason.
    pub fn cut(&self, verdict: impl Fn(&Downstream) -> Option<CutReason>) {
        for entry in self.entries.borrow().values() {
            if let Some(reason) = verdict(&entry.downstream) {
                entry.cut.borrow_mut().get_or_insert(reason);
                if let Some(waker) = entry.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Live<'_> {
    /// Ready once the set drains.
    pub async fn draining(&self) {
        let told = self.set.drain.notified();
        if !self.set.draining.get() {
            told.await;
        }
    }

    /// Runs `connection` to its end or until it is cut; a cut drops it where it stands.
    ///
    /// # Errors
    /// The reason of the cut.
    pub async fn until_cut<T>(
        &self,
        mut connection: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, CutReason> {
        std::future::poll_fn(|cx| {
            if let Some(reason) = self.entry.cut.borrow().clone() {
                return Poll::Ready(Err(reason));
            }
            let mut waker = self.entry.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            drop(waker);
            connection.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.set.entries.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::model::{Peer, SpiffeId};

    #[tokio::test]
    async fn only_those_with_a_reason_are_cut() {
        let set = LiveConnections::default();
        let web = SpiffeId::parse("spiffe://td/ns/default/dc/dc1/svc/web").unwrap();
        let of_web = Downstream {
            peer: Some(Arc::new(Peer::of(web.clone()))),
            ..Downstream::default()
        };
        let (denied, other) = (set.enter(Rc::new(of_web)), set.enter(Rc::default()));
        let cutting = async {
            set.cut(|peer| (peer.spiffe_id() == Some(&web)).then(|| CutReason::Denied("web: deny".into())));
        };
        let never = pin!(std::future::pending::<()>());
        let soon = pin!(async { tokio::task::yield_now().await });
        let (first, second, ()) = tokio::join!(denied.until_cut(never), other.until_cut(soon), cutting,);
        assert_eq!(first, Err(CutReason::Denied("web: deny".into())));
        assert_eq!(second, Ok(()));
        drop((denied, other));
        assert!(set.entries.borrow().is_empty());
    }
}
