//! Two sidecars in Envoy's place, fed by a real Consul over xDS with the bootstrap files that Consul
//! writes. Where there is no `consul` (or no Envoy) on PATH each scenario says that it is skipped.

use std::io::ErrorKind;
use std::time::Duration;

use attache_tests::agent::Agent;
use attache_tests::bytes::to_end;
use attache_tests::envoy::Program;
use attache_tests::mesh::get;
use attache_tests::sidecar::{Service, Xds};
use attache_tests::{Folder, Load, Process, eventually, free_port, within};
use serde_json::{Value, json};

use crate::ATTACHE;

pub(crate) const OURS: Program = Program::Attache(ATTACHE);

/// Short connections at the same time, and the pause after each answer.
const PARALLEL: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);
/// From one root to the next: time for some hundred requests.
const ROTATION: Duration = Duration::from_secs(2);
/// Consul spreads the renewal of leaves over half a minute after a root's change.
const RENEWAL: Duration = Duration::from_secs(60);
/// What a user is promised from an intention's change to the end of what it denies.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// A server that comes back elects itself in about ten seconds; by then the pauses between two attempts
/// have grown as long.
const RETURN: Duration = Duration::from_secs(60);

/// Settings that give an agent a gRPC port, and how sidecars reach it.
pub(crate) fn grpc(mut settings: Value) -> (Value, Xds) {
    let port = free_port();
    settings["ports"]["grpc"] = port.into();
    let xds = Xds {
        address: format!("127.0.0.1:{port}"),
        token: None,
        binary: ATTACHE.to_owned(),
    };
    (settings, xds)
}

/// web -> api.
struct Pair {
    agent: Agent,
    xds: Xds,
    web: Service,
    api: Service,
    web_sidecar: Process,
    api_sidecar: Process,
    folder: Folder,
}

impl Pair {
    /// `None` without a Consul, or without an Envoy where one is wanted.
    async fn start(lasting: bool, web_by: Program, api_by: Program) -> Option<Self> {
        web_by.found()?;
        api_by.found()?;
        let (settings, xds) = grpc(json!({}));
        let agent = match lasting {
            true => Agent::lasting(settings).await?,
            false => Agent::dev(settings).await?,
        };
        let folder = Folder::new();
        let api = Service::registered(&agent, "api", 1, &[]).await;
        let web = Service::registered(&agent, "web", 1, &["api"]).await;
        let api_sidecar = api.sidecar(api_by, &agent, &xds, &folder).await;
        let web_sidecar = web.sidecar(web_by, &agent, &xds, &folder).await;
        api.ready(&api_sidecar).await;
        web.ready(&web_sidecar).await;
        Some(Self {
            agent,
            xds,
            web,
            api,
            web_sidecar,
            api_sidecar,
            folder,
        })
    }
}

/// Denying somebody else cuts nothing, denying web cuts its live connection, and it recovers.
async fn obeys_intentions(pair: &Pair) {
    let mut line = pair.web.hears("api", "api-1").await;
    pair.agent.intentions("api", &[("nobody", "deny")]).await;
    eventually("the sidecar knows who is denied", || async {
        let (_, dump) = get(pair.api.admin, "/config_dump").await?;
        dump.contains("/svc/nobody").then_some(())
    })
    .await;
    assert_eq!(line.ask("2").await.unwrap(), "api-1: 2");
    pair.agent.intentions("api", &[("web", "deny")]).await;
    let heard = tokio::time::timeout(CUT_WITHIN, line.hear()).await;
    let error = heard.expect("cut within two seconds").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let said = pair.api_sidecar.says(&["cut: newer rules deny it"]).await;
    assert!(said.contains("/svc/web"), "{said}");
    pair.agent.no_intentions("api").await;
    pair.web.hears("api", "api-1").await;
}

#[tokio::test]
async fn an_intention_cuts_a_live_connection_and_lets_the_next_one_in_again() {
    let Some(pair) = Pair::start(false, OURS, OURS).await else {
        return;
    };
    obeys_intentions(&pair).await;
}

#[tokio::test]
async fn attache_and_envoy_are_neighbours_on_one_consul() {
    for (web_by, api_by) in [(OURS, Program::Envoy), (Program::Envoy, OURS)] {
        let Some(pair) = Pair::start(false, web_by, api_by).await else {
            return;
        };
        let mut line = pair.web.hears("api", "api-1").await;
        pair.agent.intentions("api", &[("web", "deny")]).await;
        eventually("the intention keeps new connections out", || async {
            pair.web.ask("api", "?").await.err()
        })
        .await;
        if api_by == OURS {
            let (_, ended) = to_end(line.stream()).await;
            assert!(ended.is_err(), "a denied live connection is cut");
        }
        pair.agent.no_intentions("api").await;
        pair.web.hears("api", "api-1").await;
    }
}

#[tokio::test]
async fn live_and_new_connections_survive_three_rotations_of_the_root() {
    let Some(pair) = Pair::start(false, OURS, OURS).await else {
        return;
    };
    let both = [&pair.web, &pair.api];
    let mut first = Vec::new();
    for service in both {
        first.extend(service.serials("cert_chain").await);
    }
    assert!(!first.is_empty(), "/certs shows the leaves");
    pair.web.hears("api", "api-1").await;
    let load = Load::start(pair.web.upstreams["api"], "api-1", PARALLEL, PAUSE);
    let mut pace = tokio::time::interval(ROTATION);
    for rotation in 0..3 {
        pace.tick().await;
        let before = [both[0].serials("ca_cert").await, both[1].serials("ca_cert").await];
        pair.agent
            .rotate_root(if rotation % 2 == 0 { 384 } else { 256 })
            .await;
        eventually("both sidecars know another root", || async {
            for (service, before) in both.iter().zip(&before) {
                let now = service.serials("ca_cert").await;
                now.iter().find(|one| !before.contains(one))?;
            }
            Some(())
        })
        .await;
        load.goes_on().await;
    }
    within(RENEWAL, "both sidecars use a renewed leaf", || async {
        for service in both {
            let leaf = service.serials("cert_chain").await;
            (!leaf.is_empty() && leaf.iter().all(|one| !first.contains(one))).then_some(())?;
        }
        Some(())
    })
    .await;
    load.goes_on().await;
    let figures = load.finish_without_failure(100).await;
    println!("3 root rotations by xDS: {figures:?}");
}

#[tokio::test]
async fn endpoints_come_and_go() {
    let Some(pair) = Pair::start(false, OURS, OURS).await else {
        return;
    };
    pair.web.hears("api", "api-1").await;
    let second = Service::registered(&pair.agent, "api", 2, &[]).await;
    let second_sidecar = second.sidecar(OURS, &pair.agent, &pair.xds, &pair.folder).await;
    second.ready(&second_sidecar).await;
    let mut kept = pair.web.hears("api", "api-2").await;
    pair.api.deregister(&pair.agent).await;
    eventually("only the second one is left", || async {
        let (_, clusters) = get(pair.web.admin, "/config_dump?include_eds").await?;
        (!clusters.contains(&format!("\"port_value\": {}", pair.api.public.port()))).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(pair.web.ask("api", "x").await.unwrap(), "api-2: x");
    }
    assert_eq!(kept.ask("y").await.unwrap(), "api-2: y");
    pair.api.register(&pair.agent, json!({})).await;
    pair.web.hears("api", "api-1").await;
    assert_eq!(kept.ask("z").await.unwrap(), "api-2: z");
}

#[tokio::test]
async fn a_killed_consul_takes_nothing_away_and_is_obeyed_again_when_it_is_back() {
    let Some(mut pair) = Pair::start(true, OURS, OURS).await else {
        return;
    };
    pair.web.hears("api", "api-1").await;
    let load = Load::start(pair.web.upstreams["api"], "api-1", PARALLEL, PAUSE);
    load.goes_on().await;
    let said = [pair.web_sidecar.lines(), pair.api_sidecar.lines()];
    pair.agent.kill().await;
    for (sidecar, said) in [&pair.web_sidecar, &pair.api_sidecar].into_iter().zip(said) {
        let words = ["no ADS stream; the last good configuration goes on"];
        sidecar.says_after(said, &words).await;
    }
    load.goes_on().await;
    pair.agent.run().await;
    for (sidecar, said) in [&pair.web_sidecar, &pair.api_sidecar].into_iter().zip(said) {
        within(RETURN, "the control plane answers again", || async {
            let log = sidecar.log();
            let newer = log.lines().skip(said);
            newer
                .into_iter()
                .find(|line| line.contains("the control plane answers again"))?;
            Some(())
        })
        .await;
    }
    load.goes_on().await;
    let figures = load.finish().await;
    let log = plain(&pair.web_sidecar.log());
    assert!(
        figures.failures.is_empty(),
        "{:?}\n{log}",
        figures.failures.first()
    );
    // A server that has not looked up the upstreams yet takes their listeners away for a moment.
    assert!(!log.contains("listener removed"), "{log}");
    obeys_intentions(&pair).await;
}

/// A log without the access log's ordinary lines.
pub(crate) fn plain(log: &str) -> String {
    let ordinary = |line: &&str| !(line.contains("access: ") && line.contains("flags=\"-\""));
    log.lines().filter(ordinary).collect::<Vec<_>>().join("\n")
}
