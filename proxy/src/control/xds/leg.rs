//! One stream to one target, opened again for as long as it is wanted.
//!
//! Owns the pauses between attempts, the choice of the address and the deadlines up to the first
//! response. What goes through the stream is the client's business.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::grpc::{Call, Grpc};
use super::status::Status;
use super::subscription::{Request, Response, Stream};
use super::target::{Connector, Target};
use super::wire;
use crate::control::backoff::Backoff;

/// For the connection, with TLS.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the first response. Consul gives it once it has the proxy's registration, leaf and roots, on
/// every stream, also where nothing has changed since the last one.
pub(super) const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// After the first failure, at most (Envoy's base interval).
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// After many (Envoy's maximum).
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A stream that went on for so long after its first response starts the pauses anew: one that ends at
/// once each time does not.
pub(super) const LIVED: Duration = Duration::from_secs(30);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No connection.
    #[error("{place} cannot be reached: {why}")]
    Unreachable { place: String, why: String },
    /// A connection, and then nothing.
    #[error("{place} takes the connection but has not answered for {} s", FIRST_RESPONSE_TIMEOUT.as_secs())]
    Silent { place: String },
    /// A response that is none.
    #[error("{place} sends what is no response: {why}")]
    Rubbish { place: String, why: prost::DecodeError },
    /// The call ended.
    #[error("{place}: {status}")]
    Ended { place: String, status: Status },
}

impl Failure {
    /// A short label for metrics and status.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Silent { .. } => "timeout",
            Self::Rubbish { .. } => "rubbish",
            Self::Ended { status, .. } => status.code.label(),
        }
    }
}

/// What happened.
pub(super) enum Event {
    /// There is a call: [`Leg::begin`] comes next.
    Opened,
    /// Something came through it.
    Received(Response),
    /// It is over, or was never there. The next attempt begins by itself.
    Failed(Failure),
}

/// A stream, or the wait for one.
pub(super) struct Leg<C> {
    pub(super) target: Rc<Target>,
    connector: Rc<C>,
    backoff: Backoff,
    /// Which address is next.
    turn: usize,
    phase: Phase,
}

type Opening = Pin<Box<dyn Future<Output = Result<Grpc, Failure>>>>;

enum Phase {
    Paused(Pin<Box<Sleep>>),
    Opening(Opening),
    Open(Box<Open>),
}

struct Open {
    grpc: Grpc,
    stream: Stream,
    since: Instant,
    /// When the first response came.
    answered: Option<Instant>,
    /// Whether that was told by [`Leg::begins`].
    has_begun: bool,
}

impl<C: Connector> Leg<C> {
    /// Begins at once.
    pub(super) fn new(connector: Rc<C>, target: Rc<Target>) -> Self {
        let mut leg = Self {
            target,
            connector,
            backoff: Backoff::new(FIRST_PAUSE),
            turn: 0,
            phase: Phase::Paused(Box::pin(tokio::time::sleep(Duration::ZERO))),
        };
        leg.reopen();
        leg
    }

    /// Gives the stream up and opens another at once.
    pub(super) fn reopen(&mut self) {
        let (connector, target) = (Rc::clone(&self.connector), Rc::clone(&self.target));
        self.phase = Phase::Opening(Box::pin(open(connector, target, self.turn)));
    }

    /// Whether there is a stream and it has had a response.
    pub(super) fn is_answered(&self) -> bool {
        matches!(&self.phase, Phase::Open(open) if open.answered.is_some())
    }

    /// Whether this is the first response of its stream; true once a stream.
    pub(super) fn begins(&mut self) -> bool {
        match &mut self.phase {
            Phase::Open(open) => !std::mem::replace(&mut open.has_begun, true),
            Phase::Paused(_) | Phase::Opening(_) => false,
        }
    }

    /// Where it is connected to or tries to be.
    pub(super) fn place(&self) -> String {
        place(&self.target, self.turn)
    }

    /// Waits for what happens next. May be dropped and called again without losing anything.
    pub(super) async fn event(&mut self) -> Event {
        loop {
            match &mut self.phase {
                Phase::Paused(pause) => {
                    pause.await;
                    self.reopen();
                }
                Phase::Opening(opening) => match opening.await {
                    Ok(grpc) => {
                        self.phase = Phase::Open(Box::new(Open {
                            grpc,
                            stream: Stream::default(),
                            since: Instant::now(),
                            answered: None,
                            has_begun: false,
                        }));
                        return Event::Opened;
                    }
                    Err(failure) => return self.failed(failure),
                },
                Phase::Open(open) => {
                    let received = open.next(&self.target, self.turn).await;
                    return match received {
                        Ok(response) => Event::Received(response),
                        Err(failure) => self.failed(failure),
                    };
                }
            }
        }
    }

    /// Takes the state of a stream that was opened, and its first requests.
    pub(super) fn begin(&mut self, stream: Stream, requests: Vec<Request>) {
        if let Phase::Open(open) = &mut self.phase {
            open.stream = stream;
        }
        self.send(requests);
    }

    /// The state of the stream, if there is one.
    pub(super) fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.phase {
            Phase::Open(open) => Some(&mut open.stream),
            Phase::Paused(_) | Phase::Opening(_) => None,
        }
    }

    /// Queues requests. That the stream takes no more of them is seen by [`Self::event`].
    pub(super) fn send(&mut self, requests: Vec<Request>) {
        if let Phase::Open(open) = &mut self.phase {
            for request in requests {
                open.grpc.send(&wire::encode(request, &self.target.node));
            }
        }
    }

    fn failed(&mut self, failure: Failure) -> Event {
        let answered = match &self.phase {
            Phase::Open(open) => open.answered,
            Phase::Paused(_) | Phase::Opening(_) => None,
        };
        if answered.is_some_and(|at| at.elapsed() >= LIVED) {
            self.backoff.reset();
        }
        self.turn = self.turn.wrapping_add(1);
        let pause = self.backoff.next(MAX_PAUSE);
        self.phase = Phase::Paused(Box::pin(tokio::time::sleep(pause)));
        Event::Failed(failure)
    }
}

impl Open {
    async fn next(&mut self, target: &Target, turn: usize) -> Result<Response, Failure> {
        let message = match self.answered {
            Some(_) => self.grpc.next().await,
            None => {
                let deadline = self.since + FIRST_RESPONSE_TIMEOUT;
                let first = tokio::time::timeout_at(deadline, self.grpc.next()).await;
                let place = || place(target, turn);
                first.map_err(|_| Failure::Silent { place: place() })?
            }
        };
        let place = || place(target, turn);
        let message = message.map_err(|status| Failure::Ended {
            place: place(),
            status,
        })?;
        self.answered.get_or_insert_with(Instant::now);
        wire::decode(&message).map_err(|why| Failure::Rubbish { place: place(), why })
    }
}

fn place(target: &Target, turn: usize) -> String {
    let address = target.addresses.get(turn % target.addresses.len().max(1));
    address.map_or_else(|| "no address".to_owned(), ToString::to_string)
}

async fn open<C: Connector>(connector: Rc<C>, target: Rc<Target>, turn: usize) -> Result<Grpc, Failure> {
    let unreachable = |why: String| Failure::Unreachable {
        place: place(&target, turn),
        why,
    };
    let address = target.addresses.get(turn % target.addresses.len().max(1));
    let address =
        address.ok_or_else(|| unreachable("the control plane's cluster has no endpoint".to_owned()))?;
    let connecting = async {
        let io = connector.connect(&target, address).await;
        let io = io.map_err(|error| unreachable(error.to_string()))?;
        let call = Call {
            method: wire::METHOD,
            authority: &target.authority,
            secure: target.tls.is_some(),
            token: target.token.as_ref(),
        };
        Grpc::open(io, &call).await.map_err(|status| Failure::Ended {
            place: place(&target, turn),
            status,
        })
    };
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    opened.unwrap_or_else(|_| {
        let seconds = CONNECT_TIMEOUT.as_secs();
        Err(unreachable(format!("no connection within {seconds} s")))
    })
}
