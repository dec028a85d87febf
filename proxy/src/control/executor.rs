//! Where hyper's tasks of an HTTP/2 connection run: on the thread that opened it.

/// Spawns on the current thread's runtime; nothing that it runs need be `Send`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
