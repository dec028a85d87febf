//! Who may connect to whom, and what happens to live connections when that changes.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use attache::demo::standin::{Action, Fault, StandInOptions};
use attache_tests::app::Line;
use attache_tests::{Member, Mesh};
use serde_json::json;

use crate::ATTACHE;

/// What a user is promised from an intention's change to the end of what it denies.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// Two services that are called, and two that call.
struct Village {
    mesh: Mesh,
    api: Member,
    other: Member,
    web: Member,
    shop: Member,
}

async fn village() -> Village {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api");
    let other = mesh.service("other");
    let web = mesh.service("web").upstream("api").upstream("other");
    let shop = mesh.service("shop").upstream("api");
    let (api, other, web, shop) = tokio::join!(api.start(), other.start(), web.start(), shop.start());
    web.eventually_hears("api", "api-1").await;
    web.eventually_hears("other", "other-1").await;
    shop.eventually_hears("api", "api-1").await;
    Village {
        mesh,
        api,
        other,
        web,
        shop,
    }
}

/// A connection that has carried something.
async fn live(from: &Member, to: &str) -> Line {
    let mut line = from.dial(to).await;
    let answer = line.ask("first").await;
    let answer = answer.unwrap_or_else(|error| panic!("{to}: {error}; {}", from.sidecar.log()));
    assert_eq!(answer, format!("{to}-1: first"));
    line
}

/// Waits for the reset, and gives how long it took since `began`.
async fn reset(line: &mut Line, began: Instant) -> Duration {
    let heard = tokio::time::timeout(CUT_WITHIN, line.hear()).await;
    let error = heard.expect("cut within two seconds").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    began.elapsed()
}

#[tokio::test]
async fn a_denied_caller_is_cut_within_two_seconds_and_nobody_else() {
    let Village {
        mesh,
        api,
        web,
        shop,
        other: _other,
    } = Box::pin(village()).await;
    let mut denied = live(&web, "api").await;
    let mut to_another_service = live(&web, "other").await;
    let mut another_caller = live(&shop, "api").await;

    let began = Instant::now();
    mesh.consul.set_intention("web", "api", Action::Deny);
    reset(&mut denied, began).await;
    let line = api
        .sidecar
        .says(&[
            "access: connection",
            "cut: newer rules deny it (web -> api: deny)",
        ])
        .await;
    assert!(line.contains("/svc/web\"") && line.contains("UAEX"), "{line}");
    let words = ["the rules in force", "rules=1", "added=\"web -> api: deny\""];
    api.sidecar.says(&words).await;
    assert_eq!(api.metric("attache_rbac_cut", &[]).await, 1.0);
    assert_eq!(to_another_service.ask("on").await.unwrap(), "other-1: on");
    assert_eq!(another_caller.ask("on").await.unwrap(), "api-1: on");
    assert_eq!(web.ask("api", "again").await, "ConnectionReset");
    api.sidecar.says(&["denied by web -> api: deny"]).await;

    // Allowed again, by an intention or by none, it recovers within the same time.
    let recovers = |web: &Member| {
        let address = web.upstreams["api"];
        attache_tests::within(CUT_WITHIN, "an allowed caller is let in", move || async move {
            Line::connect(address).await.ok()?.ask("back").await.ok()
        })
    };
    mesh.consul.set_intention("web", "api", Action::Allow);
    recovers(&web).await;
    mesh.consul.set_intention("web", "api", Action::Deny);
    api.sidecar.says(&["web -> api: deny"]).await;
    mesh.consul.remove_intention("web", "api");
    recovers(&web).await;
    assert_eq!(another_caller.ask("on").await.unwrap(), "api-1: on");
}

#[tokio::test]
async fn an_intention_that_denies_somebody_else_cuts_nothing() {
    let Village {
        mesh,
        api,
        web,
        shop,
        other: _other,
    } = Box::pin(village()).await;
    let mut from_web = live(&web, "api").await;
    let mut from_shop = live(&shop, "api").await;
    mesh.consul.set_intention("nobody", "api", Action::Deny);
    mesh.consul.set_intention("web", "other", Action::Deny);
    // The end of another connection shows that the rules before it were looked at too.
    let began = Instant::now();
    mesh.consul.set_intention("shop", "api", Action::Deny);
    reset(&mut from_shop, began).await;
    let rules = api.admin("/config_dump").await;
    assert!(rules.contains("/svc/nobody$"), "{rules}");
    assert_eq!(from_web.ask("on").await.unwrap(), "api-1: on");
    assert_eq!(api.metric("attache_rbac_cut", &[]).await, 1.0);
}

#[tokio::test]
async fn the_exact_intention_wins_over_the_wildcard() {
    let Village {
        mesh,
        api,
        web,
        shop,
        other: _other,
    } = Box::pin(village()).await;
    let consul = &mesh.consul;
    let mut from_web = live(&web, "api").await;
    let mut from_shop = live(&shop, "api").await;

    consul.set_intention("web", "api", Action::Allow);
    consul.set_intention("*", "api", Action::Deny);
    let began = Instant::now();
    reset(&mut from_shop, began).await;
    api.sidecar.says(&["/svc/shop", "* -> api: deny"]).await;
    assert_eq!(from_web.ask("exact").await.unwrap(), "api-1: exact");

    let began = Instant::now();
    consul.remove_intention("web", "api");
    reset(&mut from_web, began).await;
    api.sidecar.says(&["/svc/web", "cut", "* -> api: deny"]).await;

    // An exact destination counts more than an exact source.
    consul.set_intention("web", "*", Action::Deny);
    consul.set_intention("*", "api", Action::Allow);
    web.eventually_hears("api", "api-1").await;
    let mut from_web = live(&web, "api").await;
    let began = Instant::now();
    consul.remove_intention("*", "api");
    reset(&mut from_web, began).await;
    api.sidecar.says(&["/svc/web", "cut", "web -> *: deny"]).await;
    shop.eventually_hears("api", "api-1").await;
}

#[tokio::test]
async fn an_intention_with_permissions_denies() {
    let Village {
        mesh,
        api,
        web,
        shop: _shop,
        other: _other,
    } = Box::pin(village()).await;
    let mut line = live(&web, "api").await;
    let permissions = json!([{ "Action": "allow", "HTTP": { "PathPrefix": "/" } }]);
    let source = json!({ "Name": "web", "Permissions": permissions });
    let began = Instant::now();
    mesh.consul.set_intention_sources("api", &[source]);
    reset(&mut line, began).await;
    let why = "web -> api: deny (it has permissions, which need HTTP)";
    api.sidecar.says(&["cut", why]).await;
    assert_eq!(web.ask("api", "again").await, "ConnectionReset");
}

/// The header says allow, `authorize` says deny: an agent without ACLs and with
/// `default_intention_policy = "deny"`.
#[tokio::test]
async fn the_default_policy_is_what_authorize_says() {
    let options = StandInOptions {
        default_policy: Action::Deny,
        acl_default_policy: Action::Allow,
        ..StandInOptions::default()
    };
    let mesh = Mesh::with(ATTACHE, options).await;
    let api = mesh.service("api");
    let web = mesh.service("web").upstream("api");
    let (api, web) = tokio::join!(api.start(), web.start());
    let answer = web.ask("api", "hi").await;
    assert_ne!(answer, "api-1: hi");
    api.sidecar.says(&["denied by default policy: deny\""]).await;

    mesh.consul.set_intention("web", "api", Action::Allow);
    web.eventually_hears("api", "api-1").await;
    let mut line = live(&web, "api").await;
    let began = Instant::now();
    mesh.consul.remove_intention("web", "api");
    reset(&mut line, began).await;
    api.sidecar
        .says(&["cut: newer rules deny it (default policy: deny)"])
        .await;

    // It is asked for again on every change of intentions.
    mesh.consul.set_default_policy(Action::Allow);
    mesh.consul.set_intention("nobody", "api", Action::Deny);
    web.eventually_hears("api", "api-1").await;
}

#[tokio::test]
async fn until_the_first_intentions_are_known_everybody_is_denied() {
    let mesh = Mesh::start(ATTACHE).await;
    let unknown = "/v1/connect/intentions/match";
    mesh.consul.fail_path_with(unknown, Some(Fault::Status(500)));
    let api = mesh.service("api");
    let web = mesh.service("web").upstream("api");
    let (api, web) = tokio::join!(api.start(), web.start());
    attache_tests::eventually("a caller is denied", || async {
        assert_ne!(web.ask("api", "hi").await, "api-1: hi");
        let log = api.sidecar.log();
        log.contains("denied by the intentions are not known yet: deny")
            .then_some(())
    })
    .await;
    mesh.consul.fail_path_with(unknown, None);
    web.eventually_hears("api", "api-1").await;
}

#[tokio::test]
async fn until_the_default_policy_is_known_it_is_deny() {
    let mesh = Mesh::start(ATTACHE).await;
    let unknown = "/v1/agent/connect/authorize";
    mesh.consul.fail_path_with(unknown, Some(Fault::Status(403)));
    mesh.consul.set_intention("shop", "api", Action::Allow);
    let api = mesh.service("api");
    let web = mesh.service("web").upstream("api");
    let shop = mesh.service("shop").upstream("api");
    let (api, web, shop) = tokio::join!(api.start(), web.start(), shop.start());
    // Whom an intention names needs no default.
    shop.eventually_hears("api", "api-1").await;
    assert_ne!(web.ask("api", "hi").await, "api-1: hi");
    api.sidecar
        .says(&["denied by default policy: deny (not known: Consul answered 403"])
        .await;
    mesh.consul.fail_path_with(unknown, None);
    web.eventually_hears("api", "api-1").await;
}
