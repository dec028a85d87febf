//! Consul gone, restarted, slow, refusing or talking rubbish: the last good state serves, what is
//! wrong is said with since when, and everything goes on by itself.

use std::time::Duration;

use attache::demo::standin::{Action, Fault, KeyType, StandInOptions};
use attache_tests::app::Line;
use attache_tests::{Folder, Load, Member, Mesh, Process, eventually};
use serde_json::Value;

use crate::ATTACHE;

/// How long Consul is away in the committed scenarios. Longer only means more of the same pauses.
const AWAY: Duration = Duration::from_secs(3);
/// Short connections at the same time, and the pause after each answer.
const PARALLEL: usize = 2;
const PAUSE: Duration = Duration::from_millis(10);
const FAILING: &str = "attache_consul_failing_since_seconds";

async fn pair(options: StandInOptions, arguments: &[&str]) -> (Mesh, Member, Member) {
    let mesh = Mesh::with(ATTACHE, options).await;
    let api = mesh.service("api").arguments(arguments);
    let web = mesh.service("web").upstream("api").arguments(arguments);
    let (api, web) = tokio::join!(api.start(), web.start());
    web.eventually_hears("api", "api-1").await;
    (mesh, api, web)
}

/// The state of a watch as the admin API tells it.
async fn watch(member: &Member, name: &str) -> Value {
    let source: Value = serde_json::from_str(&member.admin("/attache/source").await).unwrap_or_default();
    source["watches"][name].clone()
}

/// Waits until the metric and the admin API say that `name` fails, and why.
async fn fails(member: &Member, name: &str, kind: &str) {
    eventually(&format!("{}: {name} fails with {kind}", member.id), || async {
        let state = watch(member, name).await;
        let seconds = member.metric(FAILING, &[&format!("\"{name}\"")]).await;
        (state["state"] == "failing" && state["kind"] == kind && seconds > 0.0).then_some(())
    })
    .await;
}

/// Waits until nothing fails any more, by the log, the metric and the admin API.
async fn recovers(member: &Member, said: usize) {
    member.sidecar.says_after(said, &["Consul answers again"]).await;
    eventually(&format!("{} has recovered", member.id), || async {
        let source = member.admin("/attache/source").await;
        let quiet = !source.contains("\"failing\"") && !source.contains("\"waiting\"");
        (quiet && member.metric(FAILING, &[]).await == 0.0).then_some(())
    })
    .await;
}

/// A change at Consul is noticed: a denied connection ends, an allowed one begins.
async fn listens(mesh: &Mesh, web: &Member) {
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("live").await.unwrap(), "api-1: live");
    mesh.consul.set_intention("web", "api", Action::Deny);
    let heard = tokio::time::timeout(attache_tests::PATIENCE, line.hear()).await;
    let cut = heard.expect("a denied connection is cut").unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    mesh.consul.remove_intention("web", "api");
    web.eventually_hears("api", "api-1").await;
}

#[tokio::test]
async fn stopped_and_resumed_with_its_data() {
    stopped_and_resumed(false, AWAY).await;
}

#[tokio::test]
async fn resumed_with_lower_indexes() {
    stopped_and_resumed(true, AWAY).await;
}

/// The same for a minute: `cargo test -p attache-tests --test scenarios -- --ignored minute`.
#[tokio::test]
#[ignore = "takes two minutes and shows nothing that three seconds do not"]
async fn stopped_for_a_minute() {
    tokio::join!(
        stopped_and_resumed(false, Duration::from_secs(60)),
        stopped_and_resumed(true, Duration::from_secs(60)),
    );
}

async fn stopped_and_resumed(lower_indexes: bool, away: Duration) {
    let (mesh, api, web) = pair(StandInOptions::default(), &[]).await;
    // Indexes that a restored server is behind of.
    for _ in 0..20 {
        mesh.consul.set_intention("nobody", "api", Action::Deny);
    }
    let load = Load::start(web.upstreams["api"], "api-1", PARALLEL, PAUSE);
    load.goes_on().await;
    let said = [api.sidecar.lines(), web.sidecar.lines()];

    mesh.consul.stop().await;
    for (member, said) in [(&api, said[0]), (&web, said[1])] {
        let words = [
            "Consul fails; the last good state goes on serving",
            "cannot be reached",
        ];
        member.sidecar.says_after(said, &words).await;
        fails(member, "intentions", "unreachable").await;
    }
    tokio::time::sleep(away).await;
    assert!(web.metric(FAILING, &["\"leaf\""]).await > away.as_secs_f64() / 2.0);
    assert_eq!(web.admin("/ready").await, "LIVE\n");
    mesh.consul.resume(lower_indexes).await.unwrap();

    recovers(&api, said[0]).await;
    recovers(&web, said[1]).await;
    // Nobody asks over and over at once because of an index that went backwards.
    let before = mesh.consul.requests("");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = mesh.consul.requests("") - before;
    assert!(asked < 10, "{asked} questions in a quiet second");
    load.goes_on().await;
    let figures = load.finish_without_failure(50).await;
    println!("away for {away:?}, lower indexes: {lower_indexes}: {figures:?}");
    listens(&mesh, &web).await;
}

/// A row for each way in which answers go wrong: what the watch says, what the log says.
#[tokio::test]
async fn whatever_consul_answers_the_last_good_state_serves() {
    tokio::join!(
        goes_on_serving(Fault::Status(429), "status_429", "Consul answered 429"),
        goes_on_serving(Fault::Status(403), "status_403", "Consul answered 403"),
        goes_on_serving(Fault::Status(500), "status_500", "Consul answered 500"),
        goes_on_serving(Fault::Rubbish, "rubbish", "Consul's answer is not understood"),
        goes_on_serving(Fault::Truncated, "unreachable", "cannot be reached"),
        goes_on_serving(
            Fault::Slow(Duration::from_secs(60)),
            "timeout",
            "Consul did not answer within 15s",
        ),
    );
}

async fn goes_on_serving(fault: Fault, kind: &str, said: &str) {
    let (mesh, api, web) = pair(StandInOptions::default(), &[]).await;
    let load = Load::start(web.upstreams["api"], "api-1", 1, PAUSE);
    let lines = [api.sidecar.lines(), web.sidecar.lines()];
    // Questions that wait would go on waiting: all are asked anew.
    mesh.consul.stop().await;
    mesh.consul.fail_with(Some(fault));
    mesh.consul.resume(false).await.unwrap();
    fails(&api, "intentions", kind).await;
    fails(&web, "endpoints api dc=dc1", kind).await;
    api.sidecar.says_after(lines[0], &[said]).await;
    assert_eq!(web.admin("/ready").await, "LIVE\n");
    load.goes_on().await;
    mesh.consul.fail_with(None);
    recovers(&api, lines[0]).await;
    recovers(&web, lines[1]).await;
    load.goes_on().await;
    load.finish_without_failure(3).await;
    listens(&mesh, &web).await;
}

/// Whatever comes back last says that it is over.
#[tokio::test]
async fn the_end_of_an_outage_is_said_once_all_is_back() {
    let (mesh, api, _web) = pair(StandInOptions::default(), &[]).await;
    let last = "/v1/agent/connect/authorize";
    let said = api.sidecar.lines();
    mesh.consul.fail_path_with(last, Some(Fault::Truncated));
    // A change of intentions has the default policy asked for again.
    mesh.consul.set_intention("nobody", "api", Action::Deny);
    fails(&api, "default policy", "unreachable").await;
    mesh.consul.stop().await;
    fails(&api, "intentions", "unreachable").await;
    mesh.consul.resume(false).await.unwrap();
    // Each watch comes back at its own time: the default policy is the last one only once all the
    // others are there.
    eventually("everything else is back", || async {
        let source: Value = serde_json::from_str(&api.admin("/attache/source").await).unwrap_or_default();
        let watches = source["watches"].as_object()?;
        let back = watches
            .iter()
            .all(|(name, watch)| name == "default policy" || watch["state"] == "current");
        (back && watches.contains_key("registration")).then_some(())
    })
    .await;
    fails(&api, "default policy", "unreachable").await;
    assert!(
        !api.sidecar.log().contains("answers again"),
        "{}",
        api.sidecar.log()
    );
    mesh.consul.fail_path_with(last, None);
    let over = api.sidecar.says_after(said, &["Consul answers again"]).await;
    assert!(over.contains("default policy"), "{over}");
    recovers(&api, said).await;
    let log = api.sidecar.log();
    assert_eq!(log.matches("Consul answers again").count(), 1, "{log}");
}

#[tokio::test]
async fn a_slow_consul_is_only_slow() {
    let mesh = Mesh::start(ATTACHE).await;
    mesh.consul
        .fail_with(Some(Fault::Slow(Duration::from_millis(700))));
    let api = mesh.service("api");
    let web = mesh.service("web").upstream("api");
    let (_api, web) = tokio::join!(api.start(), web.start());
    web.eventually_hears("api", "api-1").await;
    listens(&mesh, &web).await;
    assert!(
        !web.sidecar.log().contains("Consul fails"),
        "{}",
        web.sidecar.log()
    );
}

/// Restarted empty with another authority: nothing ends before the new one decides.
#[tokio::test]
async fn another_authority_takes_over_only_when_all_of_it_is_known() {
    let (mesh, api, web) = pair(StandInOptions::default(), &[]).await;
    let old_domain = mesh.consul.trust_domain();
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("old").await.unwrap(), "api-1: old");

    mesh.consul.stop().await;
    mesh.consul.replace_authority(KeyType::P256).unwrap();
    let unknown = "/v1/connect/intentions/match";
    mesh.consul.fail_path_with(unknown, Some(Fault::Status(500)));
    let said = api.sidecar.lines();
    mesh.consul.resume(false).await.unwrap();
    let new_domain = mesh.consul.trust_domain();
    for member in [&api, &web] {
        let change = member.sidecar.says(&["Consul has another authority"]).await;
        assert!(
            change.contains(&old_domain) && change.contains(&new_domain),
            "{change}"
        );
        // The registrations went with the data.
        member
            .sidecar
            .says(&["waiting", "a sidecar registered for the service ID"])
            .await;
    }
    // Without the new intentions everything stays as it was: the old certificates, the old rules.
    fails(&api, "intentions", "status_500").await;
    assert_eq!(line.ask("still").await.unwrap(), "api-1: still");
    assert!(api.admin("/certs").await.contains(&old_domain));

    mesh.consul.register(&api.registration).unwrap();
    mesh.consul.register(&web.registration).unwrap();
    mesh.consul.set_intention("nobody", "api", Action::Deny);
    mesh.consul.fail_path_with(unknown, None);
    for member in [&api, &web] {
        let force = member.sidecar.says(&["the new authority is in force"]).await;
        assert!(force.contains(&new_domain), "{force}");
    }
    eventually("the new certificates are used", || async {
        let certs = api.admin("/certs").await;
        (certs.contains(&new_domain) && !certs.contains(&old_domain)).then_some(())
    })
    .await;
    recovers(&api, said).await;
    // New connections are made under the new authority.
    web.eventually_hears("api", "api-1").await;
    let mut new = web.dial("api").await;
    assert_eq!(new.ask("new").await.unwrap(), "api-1: new");
    api.sidecar.says(&["access", &new_domain]).await;
    listens(&mesh, &web).await;
}

#[tokio::test]
async fn a_new_token_in_its_file_is_used_without_a_restart() {
    let folder = Folder::new();
    let file = folder.write("token", "one\n");
    let options = StandInOptions {
        token: Some("one".to_owned()),
        ..StandInOptions::default()
    };
    let (mesh, api, web) = pair(options, &["--token-file", &file]).await;
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("one").await.unwrap(), "api-1: one");
    let said = [api.sidecar.lines(), web.sidecar.lines()];
    mesh.consul.set_token(Some("two".to_owned()));
    fails(&api, "registration", "status_403").await;
    assert_eq!(line.ask("between").await.unwrap(), "api-1: between");
    folder.write("token", "two\n");
    for (member, said) in [(&api, said[0]), (&web, said[1])] {
        let told = member
            .sidecar
            .says(&["a new Consul token is used from now on"])
            .await;
        assert!(!told.contains("two"), "{told}");
        recovers(member, said).await;
    }
    listens(&mesh, &web).await;
    assert_ne!(line.ask("cut").await.unwrap_or_default(), "api-1: cut");
}

/// Nomad writes `si_token` some time after the task's folder.
#[tokio::test]
async fn the_first_token_may_come_later() {
    let folder = Folder::new();
    let options = StandInOptions {
        token: Some("one".to_owned()),
        ..StandInOptions::default()
    };
    let mesh = Mesh::with(ATTACHE, options).await;
    let secrets = folder.file("");
    let api = mesh.service("api").environment("NOMAD_SECRETS_DIR", &secrets);
    let api = api.launch().await;
    api.sidecar
        .says(&["no token file can be read yet", "si_token"])
        .await;
    api.sidecar
        .says(&["cannot look for the registration", "Consul answered 403"])
        .await;
    assert_eq!(api.admin("/ready").await, "PRE_INITIALIZING\n");
    folder.write("si_token", "one");
    api.ready().await;
}

#[tokio::test]
async fn a_service_that_is_not_registered_yet_is_waited_for() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").unregistered().launch().await;
    let said = api
        .sidecar
        .says(&["waiting", "registered for the service ID"])
        .await;
    assert!(said.contains("api-1"), "{said}");
    let state = watch(&api, "registration").await;
    assert_eq!(state["state"], "waiting", "{state}");
    assert_eq!(api.admin("/ready").await, "PRE_INITIALIZING\n");
    mesh.consul.register(&api.registration).unwrap();
    api.ready().await;

    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    // Gone again, it goes on serving and is waited for again.
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("on").await.unwrap(), "api-1: on");
    let lines = api.sidecar.lines();
    mesh.consul.deregister("api-1");
    api.sidecar
        .says_after(lines, &["waiting", "a registration with the ID"])
        .await;
    assert_eq!(line.ask("on").await.unwrap(), "api-1: on");
    mesh.consul.register(&api.registration).unwrap();
    web.eventually_hears("api", "api-1").await;
}

/// An ID that nobody has registered yet costs neither Consul nor the log anything.
#[tokio::test]
async fn a_proxy_id_that_is_not_registered_yet_is_waited_for_quietly() {
    let mesh = Mesh::start(ATTACHE).await;
    let consul = mesh.consul.address().to_string();
    let id = "api-1-sidecar-proxy";
    let arguments = [
        "run",
        "--proxy-id",
        id,
        "--http-addr",
        &consul,
        "--admin-bind",
        "127.0.0.1:0",
    ];
    let arguments = arguments.map(str::to_owned);
    mesh.consul.stop().await;
    let sidecar = Process::start("api", ATTACHE, &arguments, &[]);
    // There is no good state yet that could go on.
    sidecar.says(&["Consul fails; waiting for it"]).await;
    mesh.consul.resume(false).await.unwrap();
    sidecar
        .says(&["waiting", "a registration with the ID", "api-1-sidecar-proxy"])
        .await;
    // All that is said at a start and at the end of an outage is said.
    sidecar.says(&["Consul answers again"]).await;
    sidecar.says(&["trust_domain", "roots"]).await;
    let asked = || mesh.consul.requests("/v1/agent/service");
    let (asked_before, said) = (asked(), sidecar.lines());
    tokio::time::sleep(Duration::from_secs(6)).await;
    let asked = asked() - asked_before;
    // Without growing pauses it would be some forty.
    assert!((2..=24).contains(&asked), "{asked} questions in six seconds");
    assert_eq!(sidecar.lines(), said, "{}", sidecar.log());
    let member = mesh.service("api").start().await;
    let found = sidecar.says_after(said, &["registration found"]).await;
    assert!(found.contains("api-1-sidecar-proxy"), "{found}");
    drop(member);
}

#[tokio::test]
async fn a_sidecar_may_start_before_consul() {
    let mesh = Mesh::start(ATTACHE).await;
    mesh.consul.stop().await;
    let api = mesh.service("api").launch().await;
    let web = mesh.service("web").upstream("api").launch().await;
    for member in [&api, &web] {
        let words = ["cannot look for the registration", "cannot be reached"];
        member.sidecar.says(&words).await;
        assert_eq!(member.admin("/ready").await, "PRE_INITIALIZING\n");
        assert!(!member.sidecar.log().contains("the last good state"));
    }
    // Nobody listens before there is something to serve.
    assert!(Line::connect(web.upstreams["api"]).await.is_err());
    mesh.consul.resume(false).await.unwrap();
    tokio::join!(api.ready(), web.ready());
    web.eventually_hears("api", "api-1").await;
    let metrics = api.admin("/stats/prometheus").await;
    let policy = format!("{FAILING}{{watch=\"default policy\"}} 0");
    assert!(metrics.contains(&policy), "{metrics}");
}
