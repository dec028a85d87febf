//! The command line as a user, Nomad and Consul see it.

#![cfg(test)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use attache_bootstrap::config::{ConsulAddress, LogFormat, LogLevel};
use attache_bootstrap::env::MapFiles;
use attache_bootstrap::{Command, Failure, Shell, exit, load};

fn parse(line: &str) -> Result<Command, Failure> {
    let words = line.split_whitespace().map(OsString::from);
    load(words, &BTreeMap::new(), &MapFiles::default())
}

fn refusal(line: &str) -> (u8, String) {
    match parse(line) {
        Err(failure) => (failure.exit_code(), failure.to_string()),
        Ok(command) => panic!("{line}: {command:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    attache_bootstrap::command().debug_assert();
}

/// What Consul does with the output: the first match of `\d+\.\d+\.\d+`.
fn first_version(text: &str) -> &str {
    let candidates = text.split(|c: char| c != '.' && !c.is_ascii_digit());
    let mut versions = candidates.filter(|word| word.split('.').filter(|part| !part.is_empty()).count() == 3);
    versions.next().expect("a version")
}

#[test]
fn the_version_begins_with_envoys() {
    let version = |vars: &[(&str, &str)]| {
        let pairs = vars.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let env: BTreeMap<String, String> = pairs.collect();
        let line = ["attache", "--version"].map(OsString::from);
        load(line, &env, &MapFiles::default())
    };
    let own = env!("CARGO_PKG_VERSION");
    let Ok(Command::Print(text)) = version(&[]) else {
        panic!("--version");
    };
    let wanted = format!("attache  version: 1.35.6 (the Envoy API it stands for), attache {own}\n");
    assert_eq!(text, wanted);
    assert_eq!(first_version(&text), "1.35.6");
    let Ok(Command::Print(text)) = version(&[("ATTACHE_ENVOY_VERSION", "1.40.0")]) else {
        panic!("--version");
    };
    assert_eq!(first_version(&text), "1.40.0");
    assert!(text.ends_with(&format!("attache {own}\n")), "{text}");
    for wrong in [
        "1.35",
        "v1.35.6",
        "1.35.6.1",
        "1.+3.6",
        "1..6",
        "latest",
        "1.35.6 ",
        "1.35.99999999999",
    ] {
        let failure = version(&[("ATTACHE_ENVOY_VERSION", wrong)]).expect_err(wrong);
        assert_eq!(failure.exit_code(), exit::CONFIG);
        assert!(failure.to_string().contains("ATTACHE_ENVOY_VERSION"), "{failure}");
    }
    // What tools ask that would restart Envoy.
    let Ok(Command::Print(text)) = parse("attache --hot-restart-version") else {
        panic!("--hot-restart-version");
    };
    assert_eq!(text, "disabled\n");
}

#[test]
fn help_is_no_failure_and_unknown_words_are() {
    for line in ["attache --help", "attache run --help", "attache demo -h"] {
        assert_eq!(refusal(line).0, exit::OK);
    }
    for line in [
        "attache fly",
        "attache run --fly",
        "attache run --concurrency 0",
        "attache run -l loud",
        "attache completions dos",
        "attache -c file run",
    ] {
        assert_eq!(refusal(line).0, exit::USAGE, "{line}");
    }
    let help = refusal("attache run --help").1;
    for part in [
        "Which proxy",
        "By hand",
        "Consul:",
        "Process:",
        "Examples:",
        "CONSUL_HTTP_ADDR",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    for line in help.lines() {
        assert!(line.chars().count() <= 120, "too long for a terminal: {line}");
    }
}

#[test]
fn the_help_shows_what_is_carried_out_and_hides_the_rest() {
    let help = refusal("attache --help").1;
    for shown in [
        "--config-path",
        "--config-yaml",
        "--mode",
        "--log-level",
        "--concurrency",
        "--drain-time-s",
        "--service-node",
        "In Envoy's place",
        "Exit codes:",
    ] {
        assert!(help.contains(shown), "{shown} is not in {help}");
    }
    for hidden in [
        "--restart-epoch",
        "--socket-path",
        "--log-format",
        "--enable-mutex-tracing",
    ] {
        assert!(!help.contains(hidden), "{hidden} is in {help}");
    }
    for line in help.lines().chain(refusal("attache -h").1.lines()) {
        assert!(line.chars().count() <= 120, "too long for a terminal: {line}");
    }
}

#[test]
fn the_processs_own_settings() {
    let Ok(Command::Run(run)) = parse(
        "attache run --proxy-id p --concurrency 3 --drain-time-s 0 -l warning --log-format json \
         --admin-bind [::1]:0",
    ) else {
        panic!("run");
    };
    assert_eq!(run.config.concurrency, 3);
    assert_eq!(run.config.drain_time, Duration::ZERO);
    assert_eq!(run.config.log.level, LogLevel::Warn);
    assert_eq!(run.config.log.format, LogFormat::Json);
    assert!(run.config.admin.explicit);
    assert_eq!(run.config.admin.port, 0);
    let report = run.report.to_json(None);
    assert_eq!(report["admin"]["value"], "[::1]:0");
    assert_eq!(report["concurrency"]["from"], "--concurrency");

    let Ok(Command::Run(run)) = parse("attache run --sidecar-for web-1") else {
        panic!("run");
    };
    assert_eq!(run.config.concurrency, 1);
    assert_eq!(run.config.drain_time, Duration::from_secs(4));
    assert_eq!(run.config.log.level, LogLevel::Info);
    assert_eq!(run.config.admin.address, Ipv4Addr::LOCALHOST);
    let report = run.report.to_json(None);
    assert_eq!(report["log_level"]["from"], "default");
    assert_eq!(report["proxy_id"]["candidate"]["value"], "web-1-sidecar-proxy");
}

#[test]
fn the_demo_has_ports_of_its_own() {
    let Ok(Command::Demo(demo)) = parse("attache demo") else {
        panic!("demo");
    };
    assert!(demo.consul.is_none());
    let ports = [demo.dashboard_port, demo.api_port, demo.upstream_port];
    assert_eq!(ports, [9002, 9001, 8080]);
    let Ok(Command::Demo(demo)) = parse("attache demo --consul host:1 --dashboard-port 1") else {
        panic!("demo");
    };
    let address = demo.consul.map(|consul| consul.address);
    let (host, port) = ("host".to_owned(), 1);
    assert_eq!(address, Some(ConsulAddress::Http { host, port }));
    let (code, text) = refusal("attache demo --api-port 8080");
    assert_eq!(code, exit::CONFIG);
    assert!(text.contains("--api-port and --upstream-port"), "{text}");
    assert!(refusal("attache demo --consul ftp://h").1.contains("--consul"));
}

#[test]
fn completions_name_their_shell() {
    assert!(matches!(
        parse("attache completions zsh"),
        Ok(Command::Completions(Shell::Zsh))
    ));
}
