//! HTTP/1 messages, well-formed, malformed and at the edges, by section of RFC 9112: what Attaché answers, what it
//! sends on and whether the connection goes on, held to what a real Envoy does with the same bytes.
//!
//! Each message is written as it stands in a table, mostly with a second, plain request behind it that shows whether
//! the connection goes on (the probe). Nothing is timed: a step waits for what has been received. The tables are in
//! the modules below, the sending and receiving in `wire`.

mod message;
mod request_tables;
mod requests;
mod response_tables;
mod responses;
mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use attache_tests::envoy::{Program, Static, place};
use serde_json::{Value, json};

use crate::static_tcp::{cluster, loopback};
use crate::xds_mesh::OURS;
use wire::{Ending, Lane, Outcome};

/// Listeners of a proxy, each with a cluster of its own, so that as many messages can be under way at once.
const LANES: usize = 12;

/// What one side does at a time.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Writes these bytes one by one.
    Trickle(Vec<u8>),
    /// Waits until the downstream has received these bytes.
    Heard(&'static [u8]),
    /// Waits until the upstream has received these bytes.
    Asked(&'static [u8]),
    /// Ends its side; an upstream ends both.
    End,
    /// Closes with a reset.
    Reset,
}

/// How it is found out what becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The probe is sent with the last bytes.
    Probe,
    /// The probe is sent when the answer is there, and what the upstream ended is seen to have ended.
    ProbeAfterwards,
    /// The proxy must close by itself.
    Close,
}

/// What the upstream does instead of answering each request with its path.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Step by step.
    pub(crate) steps: Vec<Step>,
    /// It begins when the head of the request is there; otherwise when all of it is.
    pub(crate) early: bool,
}

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The section of RFC 9112, or the RFC and the section.
    pub(crate) section: &'static str,
    /// Unique among all.
    pub(crate) name: String,
    /// What the downstream does.
    pub(crate) steps: Vec<Step>,
    /// And then.
    pub(crate) then: Then,
    /// What the upstream does with the first request.
    pub(crate) script: Option<Script>,
}

impl Case {
    /// A request as it is sent.
    pub(crate) fn request(section: &'static str, name: impl Into<String>, bytes: &[u8]) -> Self {
        Self {
            section,
            name: name.into(),
            steps: vec![Step::Send(bytes.to_vec())],
            then: Then::Probe,
            script: None,
        }
    }
}

/// Messages that Attaché treats otherwise than Envoy, on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deviation {
    /// The reason.
    pub(crate) why: &'static str,
    /// What Attaché does instead.
    pub(crate) ours: Instead,
    /// Their names. A `*` at the end stands for any ending, of which some deviate.
    pub(crate) names: &'static [&'static str],
}

/// What Attaché does where it deviates.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instead {
    /// It answers a request with this status and closes; the upstream gets no whole request.
    Refuses(&'static str),
    /// It answers with these statuses; what becomes of the connection follows from them.
    Answers(&'static str),
    /// It answers with these statuses, and the last answer has this body, all of which came.
    AnswersWith(&'static str, &'static str),
}

impl Deviation {
    fn is_of(&self, case: &Case) -> bool {
        self.names.iter().any(|name| match name.strip_suffix('*') {
            Some(begin) => case.name.starts_with(begin),
            None => case.name == *name,
        })
    }
}

/// A proxy with its lanes.
struct Running {
    lanes: Vec<Lane>,
    _proxy: Static,
}

impl Running {
    async fn start(program: Program) -> Option<Self> {
        let mut lanes = Vec::new();
        for _ in 0..LANES {
            lanes.push(Lane::start(loopback()).await);
        }
        let numbered = || lanes.iter().enumerate();
        let resources = json!({
            "listeners": numbered().map(|(i, lane)| listener(i, lane.downstream)).collect::<Vec<_>>(),
            "clusters": numbered().map(|(i, lane)| cluster(&format!("lane-{i}"), &[lane.upstream])).collect::<Vec<_>>(),
        });
        let proxy = Static::start(program, &resources).await?;
        Some(Self { lanes, _proxy: proxy })
    }

    /// The outcomes of all `cases`, in their order.
    async fn play(self, cases: &Arc<Vec<Case>>) -> Vec<Outcome> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut lanes = tokio::task::JoinSet::new();
        for mut lane in self.lanes {
            let (cases, next) = (Arc::clone(cases), Arc::clone(&next));
            lanes.spawn(async move {
                let mut outcomes = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else {
                        return outcomes;
                    };
                    outcomes.push((index, lane.play(case).await));
                }
            });
        }
        let mut all: Vec<_> = lanes.join_all().await.into_iter().flatten().collect();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// As Consul configures a public listener, without TLS. What is answered last is given a tenth of a second to be
/// read instead of Envoy's second: hundreds of messages end so.
fn listener(lane: usize, at: SocketAddr) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters";
    let routes = json!({ "name": "routes", "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": format!("lane-{lane}") } },
    ]}]});
    let manager = json!({
        "@type": format!("{kind}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "public_listener",
        "delayed_close_timeout": "0.1s",
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{kind}.http.router.v3.Router") } }],
        "normalize_path": true,
        "route_config": routes,
        "tracing": { "random_sampling": {} },
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
    });
    json!({ "name": format!("lane-{lane}"), "address": place(at), "filter_chains": [{ "filters": [
        { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager },
    ]}]})
}

#[tokio::test]
async fn requests_are_treated_as_by_envoy() {
    agree(requests::all(), requests::DEVIATIONS).await;
}

#[tokio::test]
async fn responses_are_treated_as_by_envoy() {
    agree(responses::all(), responses::DEVIATIONS).await;
}

/// Plays `cases` with both and fails with every difference at once. Without an Envoy, with each that Attaché neither
/// answers nor closes.
async fn agree(cases: Vec<Case>, deviations: &[Deviation]) {
    let names: BTreeSet<_> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    let cases = Arc::new(cases);
    let ours = Running::start(OURS).await.unwrap().play(&cases).await;
    let envoys = match Running::start(Program::Envoy).await {
        Some(envoy) => Some(envoy.play(&cases).await),
        None => None,
    };
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, (case, ours)) in cases.iter().zip(&ours).enumerate() {
        let title = format!("[{}] {}", case.section, case.name);
        if ours.ending == Ending::Stuck {
            wrong.push(format!("{title}: neither answered nor closed\n{ours}"));
        }
        let Some(envoys) = &envoys else { continue };
        let Some(difference) = ours.difference(&envoys[index]) else {
            continue;
        };
        seen.insert(case.name.as_str());
        match deviations.iter().find(|known| known.is_of(case)) {
            Some(known) if ours.is(known.ours) => {}
            Some(Deviation { why, ours, .. }) => {
                wrong.push(format!("{title}: not {ours:?}, as known ({why})\n{difference}"));
            }
            None => wrong.push(format!("{title}\n{difference}")),
        }
    }
    if envoys.is_some() {
        wrong.extend(stale(deviations, &seen));
    }
    let (count, all) = (wrong.len(), cases.len());
    assert!(
        wrong.is_empty(),
        "{count} of {all} are wrong:\n{}",
        wrong.join("\n")
    );
}

/// The known deviations that are none any more; `seen` are the names of those that were seen.
fn stale<'a>(deviations: &'a [Deviation], seen: &'a BTreeSet<&str>) -> impl Iterator<Item = String> + 'a {
    let names = deviations.iter().flat_map(|known| known.names);
    let gone = names.filter(|name| match name.strip_suffix('*') {
        Some(begin) => !seen.iter().any(|seen| seen.starts_with(begin)),
        None => !seen.contains(*name),
    });
    gone.map(|name| format!("a known deviation, but there is none: {name}"))
}
