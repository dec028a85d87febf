//! The count dashboard on real Consul agents. Where there is no `consul` on PATH each scenario says
//! that it is skipped.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use attache_tests::agent::{Agent, https};
use attache_tests::app::Line;
use attache_tests::real::{Access, CountMesh};
use attache_tests::tools::on_path;
use attache_tests::{Folder, Load, eventually, within};
use serde_json::json;

use crate::ATTACHE;

/// What a user is promised from an intention's change to the end of what it denies.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// Short connections at the same time, and the pause after each answer.
const PARALLEL: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);
/// From one root to the next: time for some hundred requests.
const ROTATION: Duration = Duration::from_secs(2);
/// Consul spreads the renewal of leaves over half a minute after a root's change.
const RENEWAL: Duration = Duration::from_secs(60);

async fn carried(mesh: &CountMesh) -> Line {
    eventually("the dashboard is carried", || async {
        let mut line = Line::connect(mesh.upstream).await.ok()?;
        (line.ask("1").await.ok()? == "count: 1").then_some(line)
    })
    .await
}

/// Waits for the reset; says how long it took.
async fn reset(line: &mut Line, began: Instant, what: &str) {
    let heard = tokio::time::timeout(CUT_WITHIN, line.hear()).await;
    let error = heard.expect("cut within two seconds").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    println!("{what}: cut after {:?}", began.elapsed());
}

/// An intention about somebody else cuts nothing, denying the dashboard cuts it, and it recovers.
async fn obeys_intentions(agent: &Agent, mesh: &CountMesh, what: &str, allowed: &[(&str, &str)]) {
    let mut line = carried(mesh).await;
    let mut somebody_else = allowed.to_vec();
    // What is denied anyway is in no rule.
    somebody_else.push(("nobody", if allowed.is_empty() { "deny" } else { "allow" }));
    agent.intentions("count-api", &somebody_else).await;
    let admin = mesh.admins[0];
    eventually("the sidecar knows somebody else's intention", || async {
        let (_, dump) = attache_tests::mesh::get(admin, "/config_dump").await?;
        dump.contains("/svc/nobody$").then_some(())
    })
    .await;
    assert_eq!(line.ask("2").await.unwrap(), "count: 2");
    // Rules are applied in their order: what the first change had cut would be cut by now.
    let began = Instant::now();
    agent
        .intentions("count-api", &[("count-dashboard", "deny")])
        .await;
    reset(&mut line, began, what).await;
    let why = "cut: newer rules deny it (count-dashboard -> count-api: deny)";
    let said = mesh.api.says(&["access", why]).await;
    assert!(said.contains("/svc/count-dashboard"), "{said}");
    let cut = mesh.api.log().matches("cut: newer rules").count();
    assert_eq!(cut, 1, "{}", mesh.api.log());
    if allowed.is_empty() {
        agent.no_intentions("count-api").await;
    } else {
        agent.intentions("count-api", allowed).await;
    }
    carried(mesh).await;
}

#[tokio::test]
async fn a_dev_agent_rotates_its_roots_under_load() {
    let Some(agent) = Agent::dev(json!({})).await else {
        return;
    };
    let access = Access::plain(&agent);
    let mesh = CountMesh::start(&agent, ATTACHE, &access, &access).await;
    obeys_intentions(&agent, &mesh, "dev agent", &[]).await;

    let first = mesh.leaves().await;
    let load = Load::start(mesh.upstream, "count", PARALLEL, PAUSE);
    let mut roots = mesh.roots().await;
    let mut pace = tokio::time::interval(ROTATION);
    for rotation in 0..5 {
        pace.tick().await;
        agent.rotate_root(if rotation % 2 == 0 { 384 } else { 256 }).await;
        roots = mesh.another_root(&roots).await;
        load.goes_on().await;
    }
    // The leaves follow when Consul has renewed them, and carry on.
    within(RENEWAL, "both sidecars use the renewed leaf", || async {
        let now = mesh.leaves().await;
        for (at, service) in ["count-api", "count-dashboard"].into_iter().enumerate() {
            let path = format!("/v1/agent/connect/ca/leaf/{service}");
            let leaf = agent.api("GET", &path, None).await;
            let newest = leaf["SerialNumber"].as_str()?.replace(':', "");
            let used = now[at].iter().all(|one| *one == newest) && !now[at].is_empty();
            if !used || first[at].contains(&newest) {
                return None;
            }
        }
        Some(())
    })
    .await;
    load.goes_on().await;
    let figures = load.finish_without_failure(100).await;
    println!("5 root rotations on a real agent: {figures:?}");
}

#[tokio::test]
async fn a_lasting_server_is_killed_and_comes_back_with_its_data() {
    let Some(mut agent) = Agent::lasting(json!({})).await else {
        return;
    };
    killed_and_restarted(&mut agent, Duration::from_secs(2)).await;
}

/// The same for a minute: `cargo test -p attache-tests --test scenarios -- --ignored minute`.
#[tokio::test]
#[ignore = "takes a minute and shows nothing that two seconds do not"]
async fn a_lasting_server_is_away_for_a_minute() {
    let Some(mut agent) = Agent::lasting(json!({})).await else {
        return;
    };
    killed_and_restarted(&mut agent, Duration::from_secs(60)).await;
}

async fn killed_and_restarted(agent: &mut Agent, away: Duration) {
    let access = Access::plain(agent);
    let mesh = CountMesh::start(agent, ATTACHE, &access, &access).await;
    carried(&mesh).await;
    let load = Load::start(mesh.upstream, "count", PARALLEL, PAUSE);
    load.goes_on().await;
    let said = mesh.api.lines();
    agent.kill().await;
    let words = [
        "Consul fails; the last good state goes on serving",
        "cannot be reached",
    ];
    mesh.api.says_after(said, &words).await;
    tokio::time::sleep(away).await;
    agent.run().await;
    mesh.api.says_after(said, &["Consul answers again"]).await;
    load.goes_on().await;
    let figures = load.finish().await;
    let log = mesh.dashboard.log() + &mesh.api.log();
    let ordinary = |line: &&str| line.contains("access: ") && line.contains("flags=\"-\"");
    let odd: Vec<&str> = log.lines().filter(|line| !ordinary(line)).collect();
    assert!(figures.failures.is_empty(), "{figures:#?} {odd:#?}");
    println!("a real server away for {away:?}: {figures:?}");
    obeys_intentions(agent, &mesh, "restarted server", &[]).await;
}

/// ACLs on, default deny, HTTPS for the sidecars, each with a token of its own service.
#[tokio::test]
async fn acls_with_default_deny_over_https() {
    let Some(consul) = on_path("consul") else {
        return;
    };
    let consul = consul.to_str().unwrap().to_owned();
    let folder = Folder::new();
    let (mut settings, port) = https(&consul, &folder).await;
    let management = "5f1f1c0e-6b0d-4a0e-9d51-0d6a6d1c7a01";
    settings["acl"] = json!({
        "enabled": true,
        "default_policy": "deny",
        "tokens": { "initial_management": management, "agent": management },
    });
    let token = Some(management.to_owned());
    let agent = Agent::start_in(folder, consul, &["-dev"], settings, token).await;
    eventually("the management token works", || async {
        let (status, _) = agent.ask("GET", "/v1/acl/token/self", None).await?;
        (status == 200).then_some(())
    })
    .await;
    let mut accesses = Vec::new();
    for service in ["count-api", "count-dashboard"] {
        let identity = json!({ "ServiceIdentities": [{ "ServiceName": service }] });
        let made = agent.api("PUT", "/v1/acl/token", Some(identity)).await;
        let token = made["SecretID"].as_str().unwrap();
        let file = agent.folder.write(&format!("{service}.token"), token);
        let ca = agent.folder.file("consul-agent-ca.pem");
        accesses.push(Access {
            arguments: vec!["--token-file".to_owned(), file],
            environment: vec![
                ("CONSUL_HTTP_ADDR".to_owned(), format!("https://127.0.0.1:{port}")),
                ("CONSUL_CACERT".to_owned(), ca),
            ],
        });
    }
    let mesh = CountMesh::start(&agent, ATTACHE, &accesses[0], &accesses[1]).await;
    denied_by_default(&mesh).await;
    let allowed = [("count-dashboard", "allow")];
    agent.intentions("count-api", &allowed).await;
    obeys_intentions(&agent, &mesh, "ACLs and HTTPS", &allowed).await;
    let log = mesh.api.log() + &mesh.dashboard.log();
    for wrong in ["Consul answered", management, "hides"] {
        let line = log.lines().find(|line| line.contains(wrong));
        assert_eq!(line, None);
    }
}

/// The header says allow, Consul itself says deny.
#[tokio::test]
async fn no_acls_and_a_default_intention_policy_of_deny() {
    let settings = json!({ "default_intention_policy": "deny" });
    let Some(agent) = Agent::dev(settings).await else {
        return;
    };
    let access = Access::plain(&agent);
    let mesh = CountMesh::start(&agent, ATTACHE, &access, &access).await;
    denied_by_default(&mesh).await;
    let allowed = [("count-dashboard", "allow")];
    agent.intentions("count-api", &allowed).await;
    obeys_intentions(&agent, &mesh, "default_intention_policy deny", &allowed).await;
    // Without the intention the default cuts as well.
    let mut line = carried(&mesh).await;
    let began = Instant::now();
    agent.no_intentions("count-api").await;
    reset(&mut line, began, "an allow removed").await;
}

async fn denied_by_default(mesh: &CountMesh) {
    eventually("the dashboard is denied by the known default", || async {
        let mut line = Line::connect(mesh.upstream).await.ok()?;
        assert!(line.ask("1").await.is_err());
        let log = mesh.api.log();
        log.contains("denied by default policy: deny\"").then_some(())
    })
    .await;
}
