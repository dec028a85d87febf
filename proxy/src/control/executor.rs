//! Where hyper's tasks of an HTTP/2 connection run: on the thread that opened it.

use std::cell::RefCell;
use std::rc::Rc;

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// Spawns on the current thread's runtime; nothing that it runs need be `Send`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// As [`LocalExecutor`], for a connection that can be given up: hyper itself waits for the peer to take
/// its farewell, which one that is gone never does.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(Rc<RefCell<JoinSet<()>>>);

impl<F: Future<Output: 'static> + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(async move { drop(task.await) });
    }
}

impl Tasks {
    /// Ends all of them, and with them the connection.
    pub(super) fn abort(&self) {
        self.0.borrow_mut().abort_all();
    }
}
