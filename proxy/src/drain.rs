//! The phases of a process, published for readiness and awaited by tests.

use tokio::sync::watch;

/// Where a process is in its life. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No configuration yet. Envoy's `PRE_INITIALIZING`.
    Starting,
    /// Listening. Envoy's `LIVE`.
    Live,
    /// Told to stop: accepts nothing, lets connections end. Envoy's `DRAINING`.
    Draining,
}

/// The one writing end.
#[derive(Debug)]
pub struct PhaseSender(watch::Sender<Phase>);

/// A reading end.
#[derive(Clone, Debug)]
pub struct PhaseReader(watch::Receiver<Phase>);

/// A fresh pair, starting.
pub fn phases() -> (PhaseSender, PhaseReader) {
    let (sender, receiver) = watch::channel(Phase::Starting);
    (PhaseSender(sender), PhaseReader(receiver))
}

impl PhaseSender {
    /// Goes forward to `phase`; going back is ignored.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }
}

impl PhaseReader {
    /// The phase now.
    pub fn now(&self) -> Phase {
        *self.0.borrow()
    }
}
