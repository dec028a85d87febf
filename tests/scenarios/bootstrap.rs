//! What a sidecar makes of its environment: Nomad's as recorded, Consul's, and flags by hand; as the
//! process that prints it and as the process that runs on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use attache::demo::standin::{Registration, Sidecar, StandIn, StandInOptions};
use attache_tests::app::{App, Line};
use attache_tests::mesh::get;
use attache_tests::once::{Ended, once};
use attache_tests::{Mesh, Process, eventually, free_port};
use serde_json::{Value, json};

use crate::ATTACHE;

const API: &str = include_str!("../../bootstrap/tests/recorded/sidecar-api.env");
const DASHBOARD: &str = include_str!("../../bootstrap/tests/recorded/sidecar-dash.env");
const API_ID: &str = "_nomad-task-c8d30b09-2cb2-3a00-c941-40c6c4c5f9b1-group-api-count-api-9001";
const DASHBOARD_ID: &str =
    "_nomad-task-656d0f44-9c3c-adb5-6c1f-0560b162b777-group-dashboard-count-dashboard-http";
/// `attache_bootstrap::exit::CONFIG`, as a supervisor sees it.
const CONFIG: Option<i32> = Some(78);

type Environment = BTreeMap<String, String>;

fn recorded(text: &str) -> Environment {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn at(mut environment: Environment, consul: SocketAddr) -> Environment {
    environment.insert("CONSUL_HTTP_ADDR".to_owned(), consul.to_string());
    environment
}

async fn attache(arguments: &[&str], environment: &Environment) -> Ended {
    let environment: Vec<_> = environment.clone().into_iter().collect();
    once(ATTACHE, arguments, &environment).await
}

/// What Nomad registers for a group's service with a sidecar.
fn nomad(id: &str, name: &str, app: u16, bind_port: u16, upstreams: &[(&str, u16)]) -> Registration {
    let config = json!({ "bind_address": "0.0.0.0", "bind_port": bind_port });
    let mut sidecar = Sidecar::new().port(bind_port).config(config);
    for (upstream, port) in upstreams {
        sidecar = sidecar.upstream(upstream, *port);
    }
    Registration::new(name, app)
        .id(id)
        .address("127.0.0.1")
        .sidecar(sidecar)
}

#[tokio::test]
async fn nomads_environment_and_registration_say_everything() {
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    consul
        .register(&nomad(API_ID, "count-api", 9001, 30563, &[]))
        .unwrap();
    let upstreams = [("count-api", 8080)];
    let dashboard = nomad(DASHBOARD_ID, "count-dashboard", 9002, 31678, &upstreams);
    consul.register(&dashboard).unwrap();

    let of_dashboard = attache(&["bootstrap"], &at(recorded(DASHBOARD), consul.address())).await;
    assert_eq!(of_dashboard.code, Some(0), "{of_dashboard:?}");
    let report = of_dashboard.json();
    let from = format!(
        "registration {DASHBOARD_ID}-sidecar-proxy at http://{}",
        consul.address()
    );
    let id = format!("{DASHBOARD_ID}-sidecar-proxy");
    assert_eq!(
        report["proxy_id"],
        json!({ "value": id, "from": from, "resolved": true })
    );
    assert_eq!(
        report["public_listener"],
        json!({ "value": "0.0.0.0:31678", "from": from })
    );
    let upstream = json!({
        "destination": "count-api",
        "type": "service",
        "bind": "127.0.0.1:8080",
        "from": from,
    });
    assert_eq!(report["upstreams"], json!([upstream]));
    assert_eq!(report["missing"], json!([]));
    assert_eq!(report["problems"], json!([]));

    // The port label is in no variable of this sidecar: the registration tells it.
    let of_api = attache(&["bootstrap"], &at(recorded(API), consul.address()))
        .await
        .json();
    assert_eq!(of_api["proxy_id"]["value"], format!("{API_ID}-sidecar-proxy"));
    assert_eq!(of_api["public_listener"]["value"], "0.0.0.0:30563");
    assert_eq!(of_api["upstreams"], json!([]));
}

#[tokio::test]
async fn without_consul_it_is_a_pattern_and_a_note() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let ended = attache(&["bootstrap"], &at(recorded(API), nobody)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = ended.json();
    let pattern = format!("{}*-sidecar-proxy", API_ID.trim_end_matches("9001"));
    assert_eq!(report["proxy_id"]["value"], pattern);
    assert_eq!(report["proxy_id"]["resolved"], false);
    assert_eq!(report["public_listener"]["value"], "0.0.0.0:30563");
    let notes = report["notes"].to_string();
    assert!(notes.contains("not completed by the agent"), "{notes}");
    assert!(notes.contains(&nobody.to_string()), "{notes}");
}

/// What a run would wait for is missing, with what to do about it.
#[tokio::test]
async fn an_unknown_service_is_missing_with_a_cure() {
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let sidecar = Registration::new("web", 9000).id("web-1").sidecar(Sidecar::new());
    consul.register(&sidecar).unwrap();
    let address = consul.address().to_string();
    let arguments = ["bootstrap", "--sidecar-for", "web", "--http-addr", &address];
    let report = attache(&arguments, &Environment::new()).await.json();
    let missing = report["missing"].as_array().unwrap();
    let of = |field: &str| -> String { missing.iter().map(|gap| gap[field].to_string()).collect() };
    assert!(
        of("what").contains("not there yet: a sidecar registered"),
        "{report}"
    );
    assert!(of("what").contains("the agent has: web-1"), "{report}");
    assert!(of("how").contains("sidecar_service"), "{report}");
    assert!(missing.iter().all(|gap| gap["stops_run"] == false), "{report}");
}

#[tokio::test]
async fn the_registration_wins_and_the_difference_is_named() {
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let upstreams = [("count-api", 8090)];
    let dashboard = nomad(DASHBOARD_ID, "count-dashboard", 9002, 31000, &upstreams);
    consul.register(&dashboard).unwrap();
    let environment = at(recorded(DASHBOARD), consul.address());
    let report = attache(&["bootstrap"], &environment).await.json();
    assert_eq!(report["upstreams"][0]["bind"], "127.0.0.1:8090");
    assert_eq!(report["public_listener"]["value"], "0.0.0.0:31000");
    let notes = report["notes"].to_string();
    for part in [
        "NOMAD_UPSTREAM_ADDR_count-api says 127.0.0.1:8080",
        "127.0.0.1:8090",
        "31678",
    ] {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
}

/// A row: what is done to the dashboard's environment (a value, or nothing to remove the variable),
/// and what the error names.
#[tokio::test]
async fn what_is_missing_or_contradicts_itself_is_named() {
    type Change = (&'static str, Option<&'static str>);
    let rows: [(&[Change], &[&str]); 9] = [
        (&[("NOMAD_ALLOC_ID", None)], &["NOMAD_ALLOC_ID is not set"]),
        (&[("NOMAD_GROUP_NAME", None)], &["NOMAD_GROUP_NAME is not set"]),
        (&[("NOMAD_TASK_NAME", None)], &["NOMAD_TASK_NAME is not set"]),
        (
            &[("NOMAD_TASK_NAME", Some("web"))],
            &["NOMAD_TASK_NAME is \"web\"", "no sidecar's task"],
        ),
        (
            &[("NOMAD_UPSTREAM_ADDR_count_api", Some("127.0.0.1:8081"))],
            &[
                "NOMAD_UPSTREAM_ADDR_count-api is 127.0.0.1:8080",
                "127.0.0.1:8081",
            ],
        ),
        (
            &[("NOMAD_UPSTREAM_PORT_count-api", Some("8081"))],
            &[
                "NOMAD_UPSTREAM_ADDR_count-api is 127.0.0.1:8080",
                "NOMAD_UPSTREAM_PORT_count-api",
            ],
        ),
        (
            &[("NOMAD_UPSTREAM_ADDR_count-api", Some("loopback"))],
            &["NOMAD_UPSTREAM_ADDR_count-api is \"loopback\""],
        ),
        (
            &[("NOMAD_ALLOC_PORT_connect-proxy-count-dashboard", Some("http"))],
            &["NOMAD_ALLOC_PORT_connect-proxy-count-dashboard is \"http\""],
        ),
        (
            &[("CONSUL_HTTP_ADDR", Some("ftp://consul"))],
            &["CONSUL_HTTP_ADDR"],
        ),
    ];
    for (changes, words) in rows {
        let mut environment = at(recorded(DASHBOARD), SocketAddr::from(([127, 0, 0, 1], 1)));
        for (name, value) in changes {
            match value {
                Some(value) => environment.insert((*name).to_owned(), (*value).to_owned()),
                None => environment.remove(*name),
            };
        }
        let printed = attache(&["bootstrap"], &environment).await;
        assert_eq!(printed.code, CONFIG, "{changes:?}: {printed:?}");
        let report = printed.json();
        let told = [&report["missing"], &report["problems"]]
            .into_iter()
            .filter_map(Value::as_array)
            .flatten()
            .filter(|one| one["stops_run"] == true)
            .map(|one| {
                assert_ne!(one["how"].as_str().unwrap_or_default(), "", "{one}");
                one["what"].as_str().unwrap_or_default()
            })
            .collect::<Vec<_>>()
            .join("\n");
        let run = attache(&["run"], &environment).await;
        assert_eq!(run.code, CONFIG, "{changes:?}: {run:?}");
        for word in words {
            assert!(told.contains(word), "{changes:?}: {word} is not in {told}");
            assert!(
                run.err.contains(word),
                "{changes:?}: {word} is not in {}",
                run.err
            );
        }
    }
}

/// Two sidecars in one allocation's network that both fit: guessing would serve the wrong one.
#[tokio::test]
async fn two_registrations_that_fit_are_named() {
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let other = API_ID.replace("9001", "9003");
    for (id, port) in [(API_ID, 30563), (&other, 30564)] {
        consul.register(&nomad(id, "count-api", 9001, port, &[])).unwrap();
    }
    let environment = at(recorded(API), consul.address());
    let admin = format!("127.0.0.1:{}", free_port());
    let run = attache(&["run", "--admin-bind", &admin], &environment).await;
    assert_eq!(run.code, CONFIG, "{run:?}");
    for word in [API_ID, &other, "--proxy-id"] {
        assert!(run.err.contains(word), "{word} is not in {}", run.err);
    }
    let notes = attache(&["bootstrap"], &environment).await.json()["notes"].to_string();
    assert!(notes.contains(API_ID) && notes.contains(&other), "{notes}");
}

/// The recorded environments with free ports in the place of Nomad's.
#[tokio::test]
async fn run_serves_on_nomads_environment() {
    let consul = StandIn::start(StandInOptions::default()).await.unwrap();
    let app = App::echo("count-api").await;
    let [public, other_public, upstream] = [free_port(), free_port(), free_port()];
    let api = nomad(API_ID, "count-api", app.address.port(), public, &[]);
    consul.register(&api).unwrap();
    let upstreams = [("count-api", upstream)];
    let dashboard = nomad(DASHBOARD_ID, "count-dashboard", 9002, other_public, &upstreams);
    consul.register(&dashboard).unwrap();

    let ports = |text: &str, old: &str, new: u16| text.replace(old, &new.to_string());
    let run = |name: &str, environment: &str| {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let environment = at(recorded(environment), consul.address());
        let environment: Vec<_> = environment.into_iter().collect();
        let arguments = ["run", "--admin-bind", &admin.to_string()].map(str::to_owned);
        (Process::start(name, ATTACHE, &arguments, &environment), admin)
    };
    let (api, api_admin) = run("api", &ports(API, "30563", public));
    let environment = ports(&ports(DASHBOARD, "31678", other_public), "8080", upstream);
    let (dashboard, dashboard_admin) = run("dashboard", &environment);
    for (process, admin) in [(&api, api_admin), (&dashboard, dashboard_admin)] {
        eventually(&format!("ready: {}", process.log()), || async {
            (get(admin, "/ready").await?.0 == 200).then_some(())
        })
        .await;
    }
    let address = SocketAddr::from(([127, 0, 0, 1], upstream));
    let answer = eventually("the dashboard reaches the API", || async {
        Line::connect(address).await.ok()?.ask("hi").await.ok()
    })
    .await;
    assert_eq!(answer, "count-api: hi");
    api.says(&["access", "/svc/count-dashboard"]).await;
    // The environment says the same as the registration: nothing to complain about.
    let log = dashboard.log();
    assert!(!log.contains("the registration wins"), "{log}");
}

#[tokio::test]
async fn by_hand_with_no_registration() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let app = App::echo("hand").await;
    let [listen, upstream] = [free_port(), free_port()];
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let arguments = [
        "run".to_owned(),
        "--service=web".to_owned(),
        format!("--listen=127.0.0.1:{listen}"),
        format!("--local-service={}", app.address),
        format!("--upstream=api:{upstream}"),
        format!("--http-addr={}", mesh.consul.address()),
        format!("--admin-bind={admin}"),
    ];
    let hand = Process::start("by hand", ATTACHE, &arguments, &[]);
    let address = SocketAddr::from(([127, 0, 0, 1], upstream));
    let answer = eventually("its upstream answers", || async {
        Line::connect(address).await.ok()?.ask("hi").await.ok()
    })
    .await;
    assert_eq!(answer, "api-1: hi");
    api.sidecar.says(&["access", "/svc/web"]).await;

    // What others find of it in the catalog is their business: here, a registration without a sidecar.
    let sidecar = Sidecar::new().port(listen);
    let found = Registration::new("web", app.address.port()).address("127.0.0.1");
    mesh.consul.register(&found.sidecar(sidecar)).unwrap();
    let shop = mesh.service("shop").upstream("web").start().await;
    shop.eventually_hears("web", "hand").await;
    hand.says(&["access", "public_listener", "/svc/shop"]).await;
}
