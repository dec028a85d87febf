//! The client: one stream that serves, and at times a second one that is to take its place.
//!
//! Owns the state of the subscriptions across streams. Whatever ends a stream, what was accepted stays
//! with the store, and another stream begins. A new token or target is tried beside the old stream,
//! which ends only once the new one has had a response accepted.

use std::convert::Infallible;
use std::rc::Rc;

use attache_bootstrap::Secret;
use tokio::sync::watch;

use super::Resources;
use super::leg::{Event, Leg};
use super::report::Reporter;
use super::subscription::{Outcome, Response, Subscriptions};
use super::target::{Connector, Dialer, Target};
use crate::control::StatusPublisher;

/// Tells a running client where to go from now on.
#[derive(Debug)]
pub struct Handle(watch::Sender<Target>);

impl Handle {
    /// Another token for the same target.
    pub fn replace_token(&self, token: Option<Secret>) {
        self.0.send_if_modified(|target| {
            let changed = target.token != token;
            target.token = token;
            changed
        });
    }

    /// Another target.
    pub fn replace(&self, new: Target) {
        self.0.send_if_modified(|target| {
            let changed = *target != new;
            *target = new;
            changed
        });
    }
}

/// Keeps the resources of one proxy up to date.
#[derive(Debug)]
pub struct Client {
    targets: watch::Receiver<Target>,
    status: StatusPublisher,
}

/// A client for a target; what it does is told to `status` as the watch `ads`.
pub fn client(target: Target, status: StatusPublisher) -> (Handle, Client) {
    let (sender, targets) = watch::channel(target);
    (Handle(sender), Client { targets, status })
}

impl Client {
    /// Feeds `resources` for as long as it is polled, on a single-threaded runtime.
    pub async fn run(self, resources: impl Resources) -> Infallible {
        self.run_with(Rc::new(Dialer), resources).await
    }

    pub(super) async fn run_with<C: Connector>(
        mut self,
        connector: Rc<C>,
        resources: impl Resources,
    ) -> Infallible {
        let target = Rc::new(self.targets.borrow_and_update().clone());
        let running = Running {
            reporter: Reporter::new(self.status),
            subscriptions: Subscriptions::default(),
            resources,
            main: Leg::new(Rc::clone(&connector), target),
            next: None,
            connector,
        };
        running.run(self.targets).await
    }
}

struct Running<C, R> {
    reporter: Reporter,
    subscriptions: Subscriptions,
    resources: R,
    /// The stream that serves.
    main: Leg<C>,
    /// The stream that takes its place once it works.
    next: Option<Leg<C>>,
    connector: Rc<C>,
}

impl<C: Connector, R: Resources> Running<C, R> {
    async fn run(mut self, mut targets: watch::Receiver<Target>) -> Infallible {
        loop {
            tokio::select! {
                event = self.main.event() => self.of_main(event),
                event = event_of(self.next.as_mut()) => self.of_next(event),
                target = changed(&mut targets) => self.retarget(target),
            }
        }
    }

    fn of_main(&mut self, event: Event) {
        match event {
            Event::Opened => {
                self.reporter.opened(&self.main.place());
                begin(&self.subscriptions, &mut self.main);
            }
            Event::Received(response) => {
                let outcome = receive(
                    &mut self.subscriptions,
                    &mut self.main,
                    response,
                    &mut self.resources,
                );
                if let Some(outcome) = outcome {
                    self.reporter.received(&self.main.place(), &outcome);
                }
            }
            Event::Failed(failure) => {
                self.reporter.failed(&failure, !self.subscriptions.is_empty());
                self.resources.stream_failed();
                if let Some(next) = self.next.take() {
                    self.main = next;
                    self.reporter.next_is_gone();
                    let place = self.main.place();
                    match self.main.stream() {
                        // Its server was told of another beginning than what is held by now.
                        Some(stream) if self.subscriptions.is_outdated(stream) => self.main.reopen(),
                        Some(_) => self.reporter.opened(&place),
                        None => {}
                    }
                }
            }
        }
    }

    fn of_next(&mut self, event: Event) {
        let Some(mut next) = self.next.take() else {
            return;
        };
        match event {
            Event::Opened => begin(&self.subscriptions, &mut next),
            Event::Failed(failure) => self.reporter.next_failed(&failure),
            Event::Received(response) => {
                let stream = next.stream();
                if stream.is_some_and(|stream| self.subscriptions.is_outdated(stream)) {
                    next.reopen();
                } else {
                    let outcome = receive(&mut self.subscriptions, &mut next, response, &mut self.resources);
                    if let Some(outcome @ Outcome::Accepted { .. }) = outcome {
                        self.main = next;
                        let place = self.main.place();
                        self.reporter.next_took_over(&place);
                        self.reporter.received(&place, &outcome);
                        return;
                    }
                    if let Some(outcome) = outcome {
                        self.reporter.outcome(&outcome);
                    }
                }
            }
        }
        self.next = Some(next);
    }

    fn retarget(&mut self, target: Target) {
        let leg = Leg::new(Rc::clone(&self.connector), Rc::new(target));
        if self.main.is_answered() {
            self.reporter.next_is_awaited();
            self.next = Some(leg);
        } else {
            self.main = leg;
            self.next = None;
            self.reporter.next_is_gone();
        }
    }
}

fn begin<C: Connector>(subscriptions: &Subscriptions, leg: &mut Leg<C>) {
    let (stream, requests) = subscriptions.open();
    leg.begin(stream, requests);
}

fn receive<C: Connector>(
    subscriptions: &mut Subscriptions,
    leg: &mut Leg<C>,
    response: Response,
    resources: &mut impl Resources,
) -> Option<Outcome> {
    if leg.begins() {
        resources.stream_began();
    }
    let (outcome, requests) = subscriptions.receive(leg.stream()?, response, resources);
    leg.send(requests);
    Some(outcome)
}

async fn event_of<C: Connector>(leg: Option<&mut Leg<C>>) -> Event {
    match leg {
        Some(leg) => leg.event().await,
        None => std::future::pending().await,
    }
}

/// The next target; none once nobody can give one.
async fn changed(targets: &mut watch::Receiver<Target>) -> Target {
    if targets.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    targets.borrow_and_update().clone()
}
