//! What happens to a caller that no intention names, as Consul itself answers it.
//!
//! Owns the task that asks `/v1/agent/connect/authorize` for a caller that cannot exist. The header
//! that other answers carry is never believed: it knows nothing of `default_intention_policy`.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::authority::{self, Authorized};
use super::client::ConsulError;
use super::intentions::DefaultPolicy;
use super::questions;
use super::watch::{REFUSED_CAP, Shared, UNREACHABLE_CAP, backoff, gauge, recovered};

/// How often it is asked for when nothing changes.
const AGE: Duration = Duration::from_secs(50);
/// Its name in status and log.
const NAME: &str = "default policy";

/// What the default policy is asked for.
pub(super) struct Asked {
    pub(super) service: String,
    pub(super) trust_domain: String,
    pub(super) partition: String,
    pub(super) datacenter: String,
}

/// Asks again on every change of the intentions and at least once a minute.
pub(super) async fn keep(shared: Shared, asked: Asked, changed: Rc<Notify>, tell: impl Fn(DefaultPolicy)) {
    let mut backoff = backoff();
    // There from the start, as any watch's; one that takes over from another keeps its beginning.
    gauge(NAME, shared.status.failing_since(NAME));
    loop {
        let mut token = shared.client.token();
        let generation = token.current().generation;
        let pause = match ask_default(&shared, &asked).await {
            Ok(Authorized::Default(action)) => {
                backoff.reset();
                let news = shared.status.current(NAME, None);
                recovered(&shared.status, NAME, news.was_failing);
                tell(DefaultPolicy::Known(action));
                AGE.mul_f64(0.8 + fastrand::f64() / 5.0)
            }
            Ok(Authorized::Intention) => {
                // An agent's own cache may be behind, or a wildcard covers even namespaces that do
                // not exist.
                let news = shared.status.current(NAME, None);
                recovered(&shared.status, NAME, news.was_failing);
                let why = "an intention covers every caller".to_owned();
                tell(DefaultPolicy::Unknown(why));
                backoff.next(REFUSED_CAP)
            }
            Err(error) => {
                let why = error.to_string();
                let news = shared.status.failing(NAME, &error.kind(), &why);
                let since = news.was_failing.unwrap_or_else(std::time::Instant::now);
                gauge(NAME, Some(since));
                if news.changed {
                    tracing::warn!(watch = NAME, why, "cannot ask Consul");
                }
                tell(DefaultPolicy::Unknown(why));
                backoff.next(UNREACHABLE_CAP)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed.notified() => {}
            () = token.newer_than(generation) => {}
        }
    }
}

async fn ask_default(shared: &Shared, asked: &Asked) -> Result<Authorized, ConsulError> {
    let (service, trust_domain) = (&asked.service, &asked.trust_domain);
    let request = questions::authorize(service, trust_domain, &asked.partition, &asked.datacenter);
    let answer = shared.client.send(&request).await?;
    match answer.refusal() {
        Some(refusal) => Err(refusal),
        None => Ok(authority::decode_authorize(&answer.body)?),
    }
}
