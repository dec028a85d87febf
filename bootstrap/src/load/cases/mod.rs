//! What [`load`] makes of arguments and environments, and above all what it says when a piece is
//! missing or contradicts another.
//!
//! Owns the words that cases are written in. A case starts from a sidecar's whole environment and
//! changes little, so that the one thing said is about the one thing changed.

mod arguments;
mod consul;
mod envoy;
mod nomad;

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::{Command, Loaded, load};
use crate::Failure;
use crate::env::{MapFiles, env_from_os};

type Vars = BTreeMap<String, String>;

/// The environment of a sidecar for `web-app`, with one upstream `count-api`.
const SIDECAR: &[(&str, &str)] = &[
    ("NOMAD_ALLOC_ID", "a1"),
    ("NOMAD_GROUP_NAME", "front"),
    ("NOMAD_TASK_NAME", "connect-proxy-web-app"),
    ("NOMAD_ALLOC_DIR", "/alloc"),
    ("NOMAD_SECRETS_DIR", "/secrets"),
    ("NOMAD_ALLOC_PORT_connect-proxy-web-app", "20000"),
    ("NOMAD_UPSTREAM_ADDR_count-api", "127.0.0.1:8080"),
    ("NOMAD_UPSTREAM_IP_count-api", "127.0.0.1"),
    ("NOMAD_UPSTREAM_PORT_count-api", "8080"),
    ("NOMAD_UPSTREAM_ADDR_count_api", "127.0.0.1:8080"),
    ("NOMAD_UPSTREAM_IP_count_api", "127.0.0.1"),
    ("NOMAD_UPSTREAM_PORT_count_api", "8080"),
];

fn files() -> MapFiles {
    MapFiles::default()
        .with("/alloc/tmp/consul_http.sock", "")
        .with("/secrets/si_token", "s3cret")
        .with("/pem/ca.pem", "ca")
        .with("/pem/cert.pem", "cert")
        .with("/pem/key.pem", "key")
        .with("/token", "t0ken")
}

/// `base`, then `changes`: an empty value takes the variable away.
fn vars(base: &[(&str, &str)], changes: &[(&str, &str)]) -> Vars {
    let mut vars = Vars::new();
    for (name, value) in base.iter().chain(changes) {
        match value.is_empty() {
            true => vars.remove(*name),
            false => vars.insert((*name).into(), (*value).into()),
        };
    }
    vars
}

fn arguments(line: &str) -> Vec<OsString> {
    let words = line.split_whitespace().map(OsString::from);
    [OsString::from("attache")].into_iter().chain(words).collect()
}

fn try_run(line: &str, vars: &Vars) -> Result<Loaded, Failure> {
    match load(arguments(&format!("run {line}")), vars, &files())? {
        Command::Run(loaded) => Ok(*loaded),
        other => panic!("{other:?}"),
    }
}

fn run(line: &str, vars: &Vars) -> Loaded {
    match try_run(line, vars) {
        Ok(loaded) => loaded,
        Err(failure) => panic!("run {line}: {failure}"),
    }
}

fn problems(line: &str, vars: &Vars) -> Vec<String> {
    match try_run(line, vars) {
        Err(Failure::Config(rejected)) => {
            let texts = rejected.problems.iter();
            texts.map(|one| format!("{} | {}", one.what, one.fix)).collect()
        }
        Err(other) => panic!("run {line}: {other}"),
        Ok(loaded) => panic!("run {line}: no problem: {:#}", loaded.report.to_json(None)),
    }
}

/// Exactly one problem, with every one of `words` in it.
fn one_problem(line: &str, vars: &Vars, words: &[&str]) {
    let found = problems(line, vars);
    assert_eq!(found.len(), 1, "run {line}: {found:#?}");
    for word in words {
        assert!(found[0].contains(word), "run {line}: {word} is not in {found:#?}");
    }
}

/// Arguments, or changes to the environment as `NAME=VALUE NAME=VALUE`; then the words that the one
/// problem must have.
type Case = (&'static str, &'static [&'static str]);

/// The changes that a [`Case`] writes as text.
fn changes(text: &str) -> Vec<(&str, &str)> {
    let pairs = text.split_whitespace();
    pairs.filter_map(|pair| pair.split_once('=')).collect()
}

#[test]
fn all_problems_are_collected() {
    let vars = vars(
        SIDECAR,
        &[
            ("NOMAD_GROUP_NAME", ""),
            ("NOMAD_UPSTREAM_PORT_count-api", "x"),
            ("CONSUL_HTTP_ADDR", "ftp://h"),
            ("CONSUL_HTTP_SSL", "maybe"),
        ],
    );
    let found = problems("--admin-bind nowhere", &vars).join("\n");
    for word in [
        "NOMAD_GROUP_NAME",
        "NOMAD_UPSTREAM_PORT_count-api",
        "CONSUL_HTTP_ADDR",
        "CONSUL_HTTP_SSL",
        "--admin-bind",
    ] {
        assert!(found.contains(word), "{word} is not in {found}");
    }
}

#[test]
fn variables_that_are_no_text_are_named_when_needed() {
    use std::os::unix::ffi::OsStringExt;
    let not_text = || OsString::from_vec(vec![0xff]);
    for name in [
        "NOMAD_GROUP_NAME",
        "NOMAD_UPSTREAM_ADDR_db",
        "CONSUL_HTTP_TOKEN",
        "CONSUL_HTTP_ADDR",
        "NOMAD_ALLOC_DIR",
        "NOMAD_ALLOC_PORT_connect-proxy-web-app",
    ] {
        let text = SIDECAR.iter().filter(|(other, _)| *other != name);
        let pairs = text.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let env = env_from_os(pairs.chain([
            (OsString::from(name), not_text()),
            (OsString::from("UNRELATED"), not_text()),
        ]));
        let Err(Failure::Config(rejected)) = load(arguments("run"), &env, &files()) else {
            panic!("{name} is not refused");
        };
        assert_eq!(rejected.problems.len(), 1, "{:?}", rejected.problems);
        assert!(rejected.problems[0].what.contains(name));
        assert!(rejected.problems[0].what.contains("UTF-8"));
    }
}

#[test]
fn arbitrary_environments_never_panic() {
    let names = [
        "NOMAD_ALLOC_ID",
        "NOMAD_GROUP_NAME",
        "NOMAD_TASK_NAME",
        "NOMAD_SECRETS_DIR",
        "NOMAD_ALLOC_DIR",
        "NOMAD_TASK_DIR",
        "ATTACHE_ENVOY_VERSION",
        "NOMAD_ALLOC_PORT_",
        "NOMAD_ALLOC_PORT_é",
        "NOMAD_UPSTREAM_ADDR_",
        "NOMAD_UPSTREAM_ADDR_é-1",
        "NOMAD_UPSTREAM_IP_a-b",
        "NOMAD_UPSTREAM_PORT_a_b",
        "CONSUL_HTTP_ADDR",
        "CONSUL_HTTP_SSL",
        "CONSUL_CACERT",
        "CONSUL_CAPATH",
        "CONSUL_CLIENT_KEY",
        "CONSUL_HTTP_TOKEN",
        "CONSUL_HTTP_TOKEN_FILE",
        "CONSUL_NAMESPACE",
    ];
    let values = [
        "",
        " ",
        "connect-proxy-",
        "connect-proxy-é",
        "0",
        "1",
        "99999999999999999999",
        "[",
        "[]",
        "[::1]",
        "[::1]:",
        ":",
        "::",
        "@",
        "http://",
        "https://:1",
        "unix://",
        "://",
        "é://é",
        "\0",
        "127.0.0.1:0",
        "127.0.0.1",
        "true",
        "/secrets",
        "/",
    ];
    let lines = [
        "run",
        "bootstrap --proxy-id p",
        "run --auth-method m",
        "demo --consul é:1",
        "-c /token",
        "-l off --config-yaml {}",
    ];
    // A fixed sequence (Knuth's multiplier), so that a failure is seen again.
    let mut state = 1u64;
    let mut pick = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    for _ in 0..5_000 {
        let mut env = Vars::new();
        for _ in 0..pick(12) {
            env.insert(names[pick(names.len())].into(), values[pick(values.len())].into());
        }
        match load(arguments(lines[pick(lines.len())]), &env, &files()) {
            Ok(Command::Run(loaded) | Command::Bootstrap(loaded)) => {
                assert!(loaded.report.to_json(None).is_object());
            }
            Ok(Command::Envoy(config)) => {
                assert!(config.command_line_options().is_object());
            }
            Ok(_) => {}
            Err(Failure::Config(rejected)) => assert!(!rejected.problems.is_empty()),
            Err(failure) => panic!("the arguments are sound: {failure}"),
        }
    }
}
