//! `attache bootstrap` on the environments and the file that a real Nomad gave two sidecars.

#![cfg(test)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attache_bootstrap::env::MapFiles;
use attache_bootstrap::{Command, Failure, LiveBind, LiveFacts, LiveUpstream, Loaded, load};
use serde_json::{Value, json};

const API: &str = include_str!("recorded/sidecar-api.env");
const DASH: &str = include_str!("recorded/sidecar-dash.env");
const DASH_ENVOY: &str = include_str!("recorded/nomad-dash-bootstrap.json");

const DASH_ID: &str = "_nomad-task-656d0f44-9c3c-adb5-6c1f-0560b162b777-group-dashboard-\
                       count-dashboard-http-sidecar-proxy";
const API_PATTERN: &str = "_nomad-task-c8d30b09-2cb2-3a00-c941-40c6c4c5f9b1-group-api-\
                           count-api-*-sidecar-proxy";

fn environment(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

fn secrets(env: &BTreeMap<String, String>, file: &str) -> String {
    format!("{}/{file}", env["NOMAD_SECRETS_DIR"])
}

fn bootstrap(env: &BTreeMap<String, String>, files: &MapFiles) -> Loaded {
    match load(["attache", "bootstrap"].map(OsString::from), env, files) {
        Ok(Command::Bootstrap(loaded)) => *loaded,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_dashboards_sidecar() {
    let env = environment(DASH);
    let socket = format!("{}/tmp/consul_http.sock", env["NOMAD_ALLOC_DIR"]);
    let files = MapFiles::default().with(socket.as_str(), "");
    let report = bootstrap(&env, &files).report.to_json(None);
    assert_eq!(
        report["upstreams"],
        json!([{
            "destination": "count-api",
            "bind": "127.0.0.1:8080",
            "from": "NOMAD_UPSTREAM_ADDR_count-api",
        }])
    );
    assert_eq!(
        report["public_listener"],
        json!({
            "value": "0.0.0.0:31678",
            "from": "NOMAD_ALLOC_PORT_connect-proxy-count-dashboard",
        })
    );
    assert_eq!(report["proxy_id"]["resolved"], false);
    assert_eq!(report["proxy_id"]["value"], DASH_ID.replace("-http-", "-*-"));
    assert_eq!(
        report["proxy_id"]["candidate"],
        json!({
            "value": DASH_ID,
            "from": "NOMAD_ALLOC_PORT_http, the allocation's only other port",
        })
    );
    assert_eq!(
        report["proxy_id"]["from"],
        "NOMAD_ALLOC_ID, NOMAD_GROUP_NAME, NOMAD_TASK_NAME"
    );
    assert_eq!(report["service"]["value"], "count-dashboard");
    assert_eq!(report["consul"]["address"]["value"], format!("unix://{socket}"));
    assert_eq!(
        report["consul"]["token"]["files"],
        json!([secrets(&env, "si_token"), secrets(&env, "consul_token")])
    );
    assert_eq!(report["missing"], json!([]));
    assert_eq!(report["problems"], json!([]));
}

#[test]
fn the_apis_sidecar() {
    let env = environment(API);
    let report = bootstrap(&env, &MapFiles::default()).report.to_json(None);
    assert_eq!(report["upstreams"], json!([]));
    assert_eq!(report["public_listener"]["value"], "0.0.0.0:30563");
    assert_eq!(report["proxy_id"]["value"], API_PATTERN);
    assert_eq!(report["proxy_id"]["candidate"], Value::Null);
    // No agent's socket in this allocation: what to set is said.
    let missing = report["missing"].to_string();
    assert!(missing.contains("CONSUL_HTTP_ADDR"), "{missing}");
}

#[test]
fn nomads_own_file_tells_the_whole_id_and_no_secret() {
    let env = environment(DASH);
    let path = secrets(&env, "envoy_bootstrap.json");
    let file = DASH_ENVOY.replace("\"x-consul-token\"", "\"x-consul-token\", \"note\": \"hush\"");
    let whole = MapFiles::default().with(path.as_str(), file);
    let report = bootstrap(&env, &whole).report.to_json(None);
    assert_eq!(report["proxy_id"]["value"], DASH_ID);
    assert_eq!(report["proxy_id"]["resolved"], true);
    let from = report["proxy_id"]["from"].to_string();
    assert!(from.contains(&path), "{from}");
    assert!(!report.to_string().contains("hush"));

    // Nomad truncates and rewrites the file in place: half of it says nothing.
    let half = &DASH_ENVOY[..DASH_ENVOY.len() / 2];
    let half = MapFiles::default().with(path.as_str(), half);
    let report = bootstrap(&env, &half).report.to_json(None);
    assert_eq!(report["proxy_id"]["resolved"], false);

    // Another allocation's file is not believed, and named.
    let other = environment(API);
    let path = secrets(&other, "envoy_bootstrap.json");
    let files = MapFiles::default().with(path, DASH_ENVOY);
    let report = bootstrap(&other, &files).report.to_json(None);
    assert_eq!(report["proxy_id"]["value"], API_PATTERN);
    assert!(report["notes"].to_string().contains("node.id"));
}

fn live(bind: &str, port: u16) -> LiveFacts {
    LiveFacts {
        agent: "http://127.0.0.1:8500".into(),
        proxy_id: DASH_ID.into(),
        public_listener: Some(([0, 0, 0, 0], port).into()),
        upstreams: vec![LiveUpstream {
            destination: "count-api".into(),
            destination_type: "service".into(),
            bind: LiveBind::Address(bind.parse().unwrap()),
            datacenter: Some("dc2".into()),
            namespace: None,
            partition: None,
            peer: None,
        }],
    }
}

#[test]
fn the_registration_wins_and_differences_are_named() {
    let loaded = bootstrap(&environment(DASH), &MapFiles::default());
    let from = format!("registration {DASH_ID} at http://127.0.0.1:8500");

    let same = loaded.report.to_json(Some(&live("127.0.0.1:8080", 31678)));
    assert_eq!(
        same["proxy_id"],
        json!({ "value": DASH_ID, "from": from, "resolved": true })
    );
    assert_eq!(same["upstreams"][0]["datacenter"], "dc2");
    assert_eq!(same["upstreams"][0]["from"], from);
    assert_eq!(same["notes"], json!([]));

    let other = loaded.report.to_json(Some(&live("127.0.0.2:8080", 20000)));
    assert_eq!(other["upstreams"][0]["bind"], "127.0.0.2:8080");
    assert_eq!(
        other["public_listener"],
        json!({ "value": "0.0.0.0:20000", "from": from })
    );
    let notes = other["notes"].to_string();
    for name in [
        "upstream count-api",
        "NOMAD_UPSTREAM_ADDR_count-api",
        "127.0.0.2:8080",
        "NOMAD_ALLOC_PORT_connect-proxy-count-dashboard",
        "0.0.0.0:20000",
    ] {
        assert!(notes.contains(name), "{name} is not in {notes}");
    }

    let mut none = live("127.0.0.1:8080", 31678);
    none.upstreams.clear();
    let none = loaded.report.to_json(Some(&none));
    assert!(none["notes"].to_string().contains("no such upstream"));
}

#[test]
fn run_says_what_bootstrap_says_when_something_is_missing() {
    for name in ["NOMAD_ALLOC_ID", "NOMAD_GROUP_NAME", "NOMAD_TASK_NAME"] {
        let mut env = environment(DASH);
        env.remove(name);
        for verb in ["run", "bootstrap"] {
            let args = ["attache", verb].map(OsString::from);
            let Err(failure) = load(args, &env, &MapFiles::default()) else {
                panic!("{verb} goes on without {name}");
            };
            assert_eq!(failure.exit_code(), attache_bootstrap::exit::CONFIG);
            let text = failure.to_string();
            assert!(text.contains(&format!("{name} is not set")), "{text}");
            let Failure::Config(rejected) = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(rejected.by_bootstrap, verb == "bootstrap");
            let report = rejected.report.to_json(None);
            assert_eq!(report["missing"][0]["stops_run"], true);
            assert_eq!(report["upstreams"][0]["bind"], "127.0.0.1:8080");
        }
    }
}

#[test]
fn without_arguments_the_dashboards_file_is_found() {
    let env = environment(DASH);
    let path = secrets(&env, "envoy_bootstrap.json");
    let files = MapFiles::default().with(path.as_str(), DASH_ENVOY);
    let nomads = "-l info --concurrency 1 --disable-hot-restart";
    for line in ["attache".to_owned(), format!("attache -c {path} {nomads}")] {
        let words = line.split_whitespace().map(OsString::from);
        let Ok(Command::Envoy(envoy)) = load(words, &env, &files) else {
            panic!("{line}");
        };
        assert_eq!(envoy.file.map(|file| file.path), Some(PathBuf::from(&path)));
        assert_eq!(
            envoy.token_files,
            ["si_token", "consul_token"].map(|file| PathBuf::from(secrets(&env, file)))
        );
        // What the recorded file names, which only the chroot of a task has there.
        let socket = envoy
            .task_folders
            .candidates(Path::new("alloc/tmp/consul_grpc.sock"));
        let below = Path::new(&env["NOMAD_ALLOC_DIR"]).join("tmp/consul_grpc.sock");
        assert_eq!(socket.last(), Some(&below));
        assert!(DASH_ENVOY.contains("\"alloc/tmp/consul_grpc.sock\""));
        assert!(envoy.warnings.is_empty(), "{:?}", envoy.warnings);
    }
}
