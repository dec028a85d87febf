//! In Envoy's place: its arguments, the file that is found, what Nomad's environment adds.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::{Case, SIDECAR, Vars, changes, vars};
use crate::config::{LogFormat, LogLevel};
use crate::document::{Document, Format};
use crate::env::{FileKind, Files, MapFiles};
use crate::envoy::{EnvoyConfig, Mode, UnknownDynamicFields};
use crate::load::{Command, load};
use crate::{Failure, exit};

const FILE: &str = "/secrets/envoy_bootstrap.json";

/// Words of a line; `~` stands for a blank within a word.
fn words(line: &str) -> Vec<OsString> {
    let words = line.split_whitespace().map(|word| word.replace('~', " ").into());
    [OsString::from("attache")].into_iter().chain(words).collect()
}

fn files() -> MapFiles {
    MapFiles::default()
        .with(FILE, "{}")
        .with("/etc/envoy.json", "{}")
        .with("/etc/envoy.YAML", "")
        .with("/etc/envoy.pb", "")
}

fn try_envoy(line: &str, vars: &Vars, files: &dyn Files) -> Result<EnvoyConfig, Failure> {
    match load(words(line), vars, files)? {
        Command::Envoy(config) => Ok(*config),
        other => panic!("{line}: {other:?}"),
    }
}

fn envoy(line: &str, vars: &Vars) -> EnvoyConfig {
    try_envoy(line, vars, &files()).unwrap_or_else(|failure| panic!("{line}: {failure}"))
}

/// Arguments on a host.
const WRONG: &[Case] = &[
    ("-c /no", &["-c", "/no", "does not exist"]),
    ("-c /etc", &["-c", "/etc", "folder"]),
    ("-c /etc/envoy.pb", &["-c", "/etc/envoy.pb", "protobuf"]),
    ("--config-yaml a:~[", &["--config-yaml", "line 2"]),
    ("--config-yaml [1]", &["--config-yaml", "object"]),
    ("-c /etc/envoy.json --service-node=", &["--service-node"]),
    ("-c /etc/envoy.json --service-cluster=", &["--service-cluster"]),
    ("-c /etc/envoy.json --service-zone=", &["--service-zone"]),
    ("-c /etc/envoy.json --stats-tag x", &["--stats-tag \"x\""]),
    ("-c /etc/envoy.json --stats-tag a-b:c", &["--stats-tag \"a-b:c\""]),
    ("-c /etc/envoy.json --stats-tag a:1.2", &["--stats-tag \"a:1.2\""]),
    (
        "-c /etc/envoy.json --stats-tag a:1 --stats-tag a:2",
        &["--stats-tag a", "twice"],
    ),
];

/// Changes to a sidecar's environment, without arguments.
const WRONG_TASK: &[Case] = &[
    (
        "NOMAD_SECRETS_DIR=/other",
        &["/other/envoy_bootstrap.json", "connect-proxy-web-app"],
    ),
    (
        "NOMAD_SECRETS_DIR=/other NOMAD_TASK_NAME=web",
        &["/other/envoy_bootstrap.json", "NOMAD_TASK_NAME"],
    ),
    ("NOMAD_SECRETS_DIR=", &["NOMAD_SECRETS_DIR is not set"]),
    (
        "NOMAD_TASK_NAME=connect-mesh-gw",
        &["connect-mesh-gw", "mesh-gateway"],
    ),
    (
        "NOMAD_TASK_NAME=connect-ingress-gw",
        &["connect-ingress-gw", "ingress-gateway"],
    ),
    (
        "NOMAD_TASK_NAME=connect-terminating-gw",
        &["connect-terminating-gw", "terminating-gateway"],
    ),
    (
        "NOMAD_TASK_NAME=connect-api-gw",
        &["connect-api-gw", "api-gateway"],
    ),
    (
        "ATTACHE_ENVOY_VERSION=1.35",
        &["ATTACHE_ENVOY_VERSION", "\"1.35\"", "1.35.6"],
    ),
];

fn one_problem(line: &str, vars: &Vars, words: &[&str]) {
    let Err(Failure::Config(rejected)) = try_envoy(line, vars, &files()) else {
        panic!("{line} is not refused");
    };
    assert_eq!(rejected.problems.len(), 1, "{line}: {:?}", rejected.problems);
    let text = format!("{} | {}", rejected.problems[0].what, rejected.problems[0].fix);
    for word in words {
        assert!(text.contains(word), "{line}: {word} is not in {text}");
    }
}

#[test]
fn each_wrong_argument_is_named() {
    for (line, words) in WRONG {
        one_problem(line, &Vars::new(), words);
    }
}

#[test]
fn each_wrong_task_is_named() {
    for (text, words) in WRONG_TASK {
        one_problem("", &vars(SIDECAR, &changes(text)), words);
    }
}

#[test]
fn a_gateway_is_refused_where_nomad_passes_its_own_file() {
    let env = vars(SIDECAR, &[("NOMAD_TASK_NAME", "connect-mesh-gw")]);
    one_problem(&format!("-c {FILE}"), &env, &["mesh-gateway"]);
    let own = envoy("-c /etc/envoy.json", &env);
    assert_eq!(own.file.map(|file| file.from).as_deref(), Some("-c"));
}

#[test]
fn a_sidecars_task_needs_no_arguments() {
    let env = vars(SIDECAR, &[("NOMAD_TASK_DIR", "/local")]);
    for line in ["", "-l debug"] {
        let config = envoy(line, &env);
        let file = config.file.expect("the file is found");
        assert_eq!(file.path, Path::new(FILE));
        assert_eq!(file.from, "NOMAD_SECRETS_DIR, NOMAD_TASK_NAME");
        assert_eq!(file.format, Format::Json);
        assert!(file.watched);
        assert!(config.notes[0].contains(FILE), "{:?}", config.notes);
        assert!(config.warnings.is_empty());
        assert_eq!(
            config.token_files,
            ["/secrets/si_token", "/secrets/consul_token"].map(PathBuf::from)
        );
        let found = |path: &str| config.task_folders.candidates(Path::new(path));
        assert_eq!(
            found("alloc/tmp/consul_grpc.sock"),
            ["alloc/tmp/consul_grpc.sock", "/alloc/tmp/consul_grpc.sock"].map(PathBuf::from)
        );
        assert_eq!(found("./local/x")[1], Path::new("/local/x"));
        assert_eq!(found("secrets/x")[1], Path::new("/secrets/x"));
        assert_eq!(found("/alloc/x"), [PathBuf::from("/alloc/x")]);
        assert_eq!(found("elsewhere/x"), [PathBuf::from("elsewhere/x")]);
    }
    // Of another name, but with the file.
    let named = vars(SIDECAR, &[("NOMAD_TASK_NAME", "proxy")]);
    let file = envoy("", &named).file.expect("the file is found");
    assert_eq!(file.from, "NOMAD_SECRETS_DIR");
    // The overlay alone is the whole bootstrap, as for Envoy.
    assert_eq!(envoy("--config-yaml {}", &env).file, None);
}

#[test]
fn without_anything_to_run_the_usage_is_shown() {
    for line in ["", "--concurrency 2", "--config-yaml="] {
        let failure = try_envoy(line, &Vars::new(), &files()).expect_err("nothing to run");
        assert_eq!(failure.exit_code(), exit::USAGE);
        let text = failure.to_string();
        for word in ["-c FILE", "attache demo", "attache run --help", "Usage:"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

#[test]
fn consuls_own_command_passes_a_pipe_that_is_not_opened() {
    /// As `consul connect envoy` makes it.
    struct Pipe;
    impl Files for Pipe {
        fn exists(&self, path: &Path) -> bool {
            self.kind(path).is_some()
        }
        fn kind(&self, path: &Path) -> Option<FileKind> {
            (path == Path::new("/tmp/envoy-1-bootstrap.json")).then_some(FileKind::Other)
        }
        fn read(&self, path: &Path) -> io::Result<String> {
            panic!("{} is read", path.display());
        }
        fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
            panic!("{} is listed", path.display());
        }
    }
    let line = "--config-path /tmp/envoy-1-bootstrap.json --disable-hot-restart -l trace --concurrency 3";
    let config = try_envoy(line, &Vars::new(), &Pipe).unwrap();
    assert!(config.disable_hot_restart);
    assert_eq!(config.log.level, LogLevel::Trace);
    assert_eq!(config.concurrency, 3);
    assert!(config.token_files.is_empty());
    assert!(!config.file.expect("given").watched);
    assert!(config.notes[0].contains("read once"), "{:?}", config.notes);
}

#[test]
fn what_is_not_given_has_a_default() {
    let config = envoy("-c /etc/envoy.YAML", &Vars::new());
    assert_eq!(config.file.map(|file| file.format), Some(Format::Yaml));
    assert_eq!(config.mode, Mode::Serve);
    assert_eq!(config.concurrency, 1);
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Info, LogFormat::Text)
    );
    assert_eq!(config.drain_time, Duration::from_millis(4500));
    assert_eq!(config.parent_shutdown_time, Duration::from_secs(900));
    assert_eq!(config.base_id, 0);
    assert_eq!(config.node, crate::envoy::NodeOverrides::default());
    assert_eq!(config.unknown_fields.dynamic, UnknownDynamicFields::Warned);
    assert!(!config.unknown_fields.static_allowed);
    assert_eq!(config.envoy_version.to_string(), "1.35.6");
    assert!(config.warnings.is_empty() && config.notes.is_empty());
}

#[test]
fn every_argument_arrives() {
    let env = vars(&[], &[("ATTACHE_ENVOY_VERSION", "1.34.7")]);
    let config = envoy(
        "-c /etc/envoy.json --config-yaml ~{admin:~{address:~null}} --mode validate --concurrency 0 \
         --drain-time-s 0 --parent-shutdown-time-s 7 --base-id 4294967295 --service-node n \
         --service-cluster c --service-zone z --allow-unknown-fields --reject-unknown-dynamic-fields \
         --ignore-unknown-dynamic-fields --admin-address-path /run/admin --stats-tag a:b --stats-tag c:d:e",
        &env,
    );
    let overlay = Document::parse("{admin: {address: null}}", Format::Yaml).unwrap();
    assert_eq!(config.config_yaml, Some(overlay));
    assert_eq!(config.mode, Mode::Validate);
    assert_eq!(config.concurrency, 1);
    assert_eq!(config.drain_time, Duration::ZERO);
    assert_eq!(config.parent_shutdown_time, Duration::from_secs(7));
    assert_eq!(config.base_id, u32::MAX);
    let node = [config.node.id, config.node.cluster, config.node.zone];
    assert_eq!(
        node.each_ref().map(Option::as_deref),
        [Some("n"), Some("c"), Some("z")]
    );
    assert!(config.unknown_fields.static_allowed);
    assert_eq!(config.unknown_fields.dynamic, UnknownDynamicFields::Rejected);
    assert_eq!(
        config.admin_address_path.as_deref(),
        Some(Path::new("/run/admin"))
    );
    let tags = [("a", "b"), ("c", "d:e")].map(|(tag, value)| (tag.to_owned(), value.to_owned()));
    assert_eq!(config.stats_tags, tags);
    assert_eq!(config.envoy_version.to_string(), "1.34.7");
    assert!(config.warnings.is_empty());
}

/// All of `envoy --help` 1.40 that nothing is done about, with a value where one is taken.
const IGNORED: &[&str] = &[
    "--enable-core-dump",
    "--socket-mode 600",
    "--socket-path /s",
    "--disable-extensions a,b",
    "--cpuset-threads",
    "--enable-mutex-tracing",
    "--drain-strategy immediate",
    "--file-flush-min-size-kb 64",
    "--file-flush-interval-msec 100",
    "--restart-epoch 1",
    "--log-path /dev/stdout",
    "--enable-fine-grain-logging",
    "--log-format-escaped",
    "--log-format -%v",
    "--component-log-level upstream:debug,config:trace",
    "--local-address-ip-version v6",
    "--log-stacktrace-single-entry",
    "--skip-deprecated-logs",
    "--base-id-path /id",
    "--skip-hot-restart-parent-stats",
    "--skip-hot-restart-on-no-parent",
    "--use-dynamic-base-id",
];

#[test]
fn what_does_nothing_is_accepted_and_said() {
    // Before -c, so that an option that took one word too many or too few would be noticed.
    for option in IGNORED {
        let config = envoy(&format!("{option} -c /etc/envoy.json"), &Vars::new());
        assert!(config.file.is_some(), "{option}");
        assert_eq!(config.warnings.len(), 1, "{option}");
        let name = option.split(' ').next().unwrap();
        assert!(config.warnings[0].starts_with(&format!("{name} does nothing here: ")));
    }
    let all = envoy(&format!("{} -c /etc/envoy.json", IGNORED.join(" ")), &Vars::new());
    assert_eq!(all.warnings.len(), IGNORED.len());
    let rest = envoy("-c /etc/envoy.json -- --anything at all", &Vars::new());
    assert!(rest.warnings[0].contains("--"), "{:?}", rest.warnings);
}

#[test]
fn the_admin_api_shows_what_envoys_would() {
    let options = |line: &str| envoy(line, &Vars::new()).command_line_options();
    // What a real Envoy 1.40 answered that was started so.
    let recorded = include_str!("../../../tests/recorded/envoy-command-line-options.json");
    let mut recorded: serde_json::Value = serde_json::from_str(recorded).unwrap();
    recorded["config_path"] = "/etc/envoy.json".into();
    let line = "-c /etc/envoy.json -l warning --concurrency 1 --base-id 2 --disable-hot-restart \
                --drain-time-s 600";
    assert_eq!(options(line), recorded);
    for (option, field, value) in [
        (
            "--file-flush-interval-msec 100",
            "file_flush_interval",
            json!("0.100s"),
        ),
        ("--file-flush-min-size-kb 64", "file_flush_min_size", json!(64)),
        ("--restart-epoch 3", "restart_epoch", json!(3)),
        ("--socket-mode 600", "socket_mode", json!(0o600)),
        (
            "--disable-extensions a,b",
            "disabled_extensions",
            json!(["a", "b"]),
        ),
        ("--drain-strategy immediate", "drain_strategy", json!("Immediate")),
        ("--log-format -%v", "log_format", json!("-%v")),
        ("--cpuset-threads", "cpuset_threads", json!(true)),
        ("--stats-tag a:b", "stats_tag", json!(["a:b"])),
        ("--config-yaml token:~hush", "config_yaml", json!("[redacted]")),
        ("--mode validate", "mode", json!("Validate")),
        ("", "drain_time", json!("4.500s")),
    ] {
        assert_eq!(
            options(&format!("-c /etc/envoy.json {option}"))[field],
            value,
            "{option}"
        );
    }
    let all = options(&format!("-c /etc/envoy.json {}", IGNORED.join(" ")));
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(names(&all), names(&recorded), "no field of another name");
}

#[test]
fn envoys_words_are_no_others() {
    for line in [
        "--fly",
        "-c a -c b",
        "-c",
        "-c=",
        "-c a --admin-address-path=",
        "--mode init_only",
        "--mode fly",
        "-l loud",
        "--concurrency x",
        "--concurrency 1025",
        "--drain-time-s -1",
        "--base-id 4294967296",
        "--restart-epoch x",
        "--drain-strategy slow",
        "--local-address-ip-version v5",
        "--cpuset-threads=1",
        "--bootstrap-version 3",
        "word",
    ] {
        let failure = try_envoy(line, &Vars::new(), &files()).expect_err(line);
        assert_eq!(failure.exit_code(), exit::USAGE, "{line}: {failure}");
    }
    let levels = [
        "trace", "debug", "info", "warning", "warn", "error", "critical", "off",
    ];
    for level in levels {
        envoy(&format!("-c /etc/envoy.json --log-level {level}"), &Vars::new());
    }
}

#[test]
fn no_part_of_an_overlay_is_shown() {
    let shown = |line: &str| match try_envoy(line, &Vars::new(), &files()) {
        Ok(config) => format!("{config:?}"),
        Err(failure) => format!("{failure} {failure:?}"),
    };
    for line in [
        "--config-yaml token:~hush",
        "--config-yaml token:~\"hush",
        "--config-yaml hush",
        "--config-yaml token:~hush --fly",
        "--config-yaml token:~hush --config-yaml token:~hush",
        "-- --config-yaml=hush",
    ] {
        let text = shown(line);
        assert!(!text.contains("hush"), "{line}: {text}");
    }
}
