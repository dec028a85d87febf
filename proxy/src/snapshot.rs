//! How a control source hands the model to the data plane: one writer, many readers.
//!
//! Owns the current snapshot. Only a source holds the [`Publisher`]; readers see the newest
//! snapshot, never a queue of old ones. Dropping the publisher leaves the last snapshot readable.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Snapshot;

/// The one writing end.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Option<Arc<Snapshot>>>);

/// A reading end; clone one a worker.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Option<Arc<Snapshot>>>);

/// A fresh pair, with nothing published yet.
pub fn channel() -> (Publisher, Reader) {
    let (sender, receiver) = watch::channel(None);
    (Publisher(sender), Reader(receiver))
}

impl Publisher {
    /// Makes `snapshot` the newest.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.0.send_replace(Some(snapshot));
    }
}

impl Reader {
    /// The newest snapshot; none before the first.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        self.0.borrow().clone()
    }

    /// Waits for a snapshot that this reader has not seen. `None` once the publisher is gone.
    pub async fn next(&mut self) -> Option<Arc<Snapshot>> {
        loop {
            self.0.changed().await.ok()?;
            if let Some(snapshot) = self.0.borrow_and_update().clone() {
                return Some(snapshot);
            }
        }
    }
}
