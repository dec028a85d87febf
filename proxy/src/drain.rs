//! The phases of a process, published for readiness and awaited by tests.

use std::cell::Cell;
use std::rc::Rc;

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

/// Readiness as an operator says it (`POST /healthcheck/fail` and `/ok`), beside the phase: a process that
/// fails its health check serves all the same. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct HealthCheck(Rc<Cell<bool>>);

impl HealthCheck {
    /// `/ready` says that it is not.
    pub fn fail(&self) {
        self.0.set(true);
    }

    /// `/ready` says what the phase says.
    pub fn ok(&self) {
        self.0.set(false);
    }

    /// Whether it was told to fail.
    pub fn is_failing(&self) -> bool {
        self.0.get()
    }
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
