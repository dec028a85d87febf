//! A table of environments and arguments: each missing or contradictory piece is named.
//!
//! A case starts from a sidecar's whole environment and changes little, so that the one thing said
//! is about the one thing changed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::{Command, Loaded, load};
use crate::config::{Config, ConsulAddress, ProxyRef, TokenSource};
use crate::env::{MapFiles, env_from_os};
use crate::{Failure, exit};

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
    [OsString::from("attache")]
        .into_iter()
        .chain(words)
        .collect()
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
            texts
                .map(|one| format!("{} | {}", one.what, one.fix))
                .collect()
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
        assert!(
            found[0].contains(word),
            "run {line}: {word} is not in {found:#?}"
        );
    }
}

#[test]
fn each_wrong_piece_of_nomads_environment_is_named() {
    let cases: &[(&[(&str, &str)], &[&str])] = &[
        (&[("NOMAD_ALLOC_ID", "")], &["NOMAD_ALLOC_ID is not set"]),
        (
            &[("NOMAD_GROUP_NAME", "")],
            &["NOMAD_GROUP_NAME is not set"],
        ),
        (&[("NOMAD_TASK_NAME", "")], &["NOMAD_TASK_NAME is not set"]),
        (
            &[("NOMAD_TASK_NAME", "web")],
            &["NOMAD_TASK_NAME", "\"web\"", "connect-proxy-"],
        ),
        (
            &[("NOMAD_TASK_NAME", "connect-proxy-")],
            &["NOMAD_TASK_NAME", "no sidecar"],
        ),
        (
            &[("NOMAD_TASK_NAME", "connect-ingress-web")],
            &["NOMAD_TASK_NAME", "connect-ingress-web"],
        ),
        (
            &[("NOMAD_ALLOC_PORT_connect-proxy-web-app", "0")],
            &["NOMAD_ALLOC_PORT_connect-proxy-web-app", "no port"],
        ),
        (
            &[("NOMAD_ALLOC_PORT_connect-proxy-web-app", "65536")],
            &["NOMAD_ALLOC_PORT_connect-proxy-web-app", "65536"],
        ),
        (
            &[("NOMAD_ALLOC_PORT_connect_proxy_web_app", "20001")],
            &[
                "NOMAD_ALLOC_PORT_connect-proxy-web-app is 20000",
                "NOMAD_ALLOC_PORT_connect_proxy_web_app is 20001",
            ],
        ),
        (
            &[
                ("NOMAD_UPSTREAM_ADDR_count_api", "127.0.0.1:8081"),
                ("NOMAD_UPSTREAM_PORT_count_api", "8081"),
            ],
            &[
                "NOMAD_UPSTREAM_ADDR_count-api is 127.0.0.1:8080",
                "NOMAD_UPSTREAM_ADDR_count_api is 127.0.0.1:8081",
            ],
        ),
        (
            &[("NOMAD_UPSTREAM_PORT_count-api", "8081")],
            &[
                "NOMAD_UPSTREAM_ADDR_count-api",
                "NOMAD_UPSTREAM_PORT_count-api",
                "8081",
            ],
        ),
        (
            &[("NOMAD_UPSTREAM_IP_count-api", "127.0.0.2")],
            &[
                "NOMAD_UPSTREAM_ADDR_count-api",
                "NOMAD_UPSTREAM_IP_count-api",
                "127.0.0.2",
            ],
        ),
        (
            &[("NOMAD_UPSTREAM_ADDR_count-api", "localhost:1")],
            &["NOMAD_UPSTREAM_ADDR_count-api"],
        ),
        (
            &[("NOMAD_UPSTREAM_ADDR_count-api", "127.0.0.1:0")],
            &["NOMAD_UPSTREAM_ADDR_count-api"],
        ),
        (
            &[("NOMAD_UPSTREAM_IP_count-api", "here")],
            &["NOMAD_UPSTREAM_IP_count-api", "here"],
        ),
        (
            &[("NOMAD_UPSTREAM_PORT_count-api", "99999")],
            &["NOMAD_UPSTREAM_PORT_count-api"],
        ),
        (
            &[("NOMAD_UPSTREAM_PORT_count-api", "+8080")],
            &["NOMAD_UPSTREAM_PORT_count-api"],
        ),
        (
            &[("NOMAD_UPSTREAM_ADDR_", "127.0.0.1:1")],
            &["NOMAD_UPSTREAM_ADDR_"],
        ),
        (
            &[("NOMAD_UPSTREAM_PORT_db", "5432")],
            &["NOMAD_UPSTREAM_PORT_db is set", "NOMAD_UPSTREAM_IP_db"],
        ),
        (
            &[("NOMAD_UPSTREAM_IP_db", "127.0.0.1")],
            &["NOMAD_UPSTREAM_IP_db is set", "NOMAD_UPSTREAM_PORT_db"],
        ),
    ];
    for (changes, words) in cases {
        one_problem("", &vars(SIDECAR, changes), words);
    }
}

#[test]
fn each_wrong_piece_of_consuls_environment_is_named() {
    let cases: &[(&[(&str, &str)], &[&str])] = &[
        (
            &[("CONSUL_HTTP_ADDR", "ftp://host")],
            &["CONSUL_HTTP_ADDR", "ftp://host"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "unix://")],
            &["CONSUL_HTTP_ADDR", "path is missing"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "host:0")],
            &["CONSUL_HTTP_ADDR", "port"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "host:65536")],
            &["CONSUL_HTTP_ADDR", "port"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", ":8500")],
            &["CONSUL_HTTP_ADDR", "host is missing"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "::1")],
            &["CONSUL_HTTP_ADDR", "brackets"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "[::1")],
            &["CONSUL_HTTP_ADDR", "bracket"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "[host]:1")],
            &["CONSUL_HTTP_ADDR", "IPv6"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "[::1]1")],
            &["CONSUL_HTTP_ADDR", "bracket"],
        ),
        (
            &[("CONSUL_HTTP_ADDR", "http://h/prefix")],
            &["CONSUL_HTTP_ADDR", "path"],
        ),
        (&[("CONSUL_HTTP_SSL", "yes")], &["CONSUL_HTTP_SSL", "yes"]),
        (
            &[("CONSUL_HTTP_SSL_VERIFY", "no")],
            &["CONSUL_HTTP_SSL_VERIFY", "no"],
        ),
        (
            &[("CONSUL_HTTP_AUTH", "user:pass")],
            &["CONSUL_HTTP_AUTH", "not supported"],
        ),
        (
            &[("CONSUL_CACERT", "/no/ca.pem")],
            &["CONSUL_CACERT", "/no/ca.pem"],
        ),
        (
            &[("CONSUL_CAPATH", "/no/folder")],
            &["CONSUL_CAPATH", "/no/folder"],
        ),
        (
            &[
                ("CONSUL_CLIENT_CERT", "/no/c.pem"),
                ("CONSUL_CLIENT_KEY", "/pem/key.pem"),
            ],
            &["CONSUL_CLIENT_CERT", "/no/c.pem"],
        ),
        (
            &[
                ("CONSUL_CLIENT_CERT", "/pem/cert.pem"),
                ("CONSUL_CLIENT_KEY", "/no/k.pem"),
            ],
            &["CONSUL_CLIENT_KEY", "/no/k.pem"],
        ),
        (
            &[("CONSUL_CLIENT_CERT", "/pem/cert.pem")],
            &["CONSUL_CLIENT_CERT", "--client-key", "CONSUL_CLIENT_KEY"],
        ),
        (
            &[("CONSUL_CLIENT_KEY", "/pem/key.pem")],
            &["CONSUL_CLIENT_KEY", "--client-cert", "CONSUL_CLIENT_CERT"],
        ),
        (
            &[("CONSUL_HTTP_TOKEN_FILE", "/no/token")],
            &["CONSUL_HTTP_TOKEN_FILE", "/no/token"],
        ),
    ];
    for (changes, words) in cases {
        one_problem("", &vars(SIDECAR, changes), words);
        one_problem("--proxy-id p", &vars(&[], changes), words);
    }
}

#[test]
fn each_wrong_argument_is_named() {
    let nothing = Vars::new();
    let cases: &[(&str, &[&str])] = &[
        ("", &["which proxy", "--sidecar-for", "NOMAD_TASK_NAME"]),
        (
            "--proxy-id a --sidecar-for b",
            &["--proxy-id and --sidecar-for"],
        ),
        ("--proxy-id a --service b", &["--proxy-id and --service"]),
        (
            "--sidecar-for a --upstream b:1",
            &["--sidecar-for and --upstream"],
        ),
        ("--proxy-id= ", &["--proxy-id", "nothing in it"]),
        (
            "--listen :1 --local-service :2",
            &["--service is not given"],
        ),
        ("--service w --listen :1", &["--local-service is not given"]),
        ("--service w --local-service :1", &["--listen is not given"]),
        ("--service w", &["--service", "nothing to do"]),
        ("--service a/b --upstream d:1", &["--service", "a/b"]),
        (
            "--service w --listen here --local-service :2",
            &["--listen", "here"],
        ),
        (
            "--service w --listen :0 --local-service :2",
            &["--listen", ":0"],
        ),
        (
            "--service w --listen :1 --local-service 1.2.3.4",
            &["--local-service", "1.2.3.4"],
        ),
        (
            "--service w --listen :1 --local-service :1",
            &["--listen and --local-service", "port 1"],
        ),
        ("--service w --upstream d", &["--upstream", "NAME:PORT"]),
        ("--service w --upstream d:0", &["--upstream \"d:0\""]),
        ("--service w --upstream d:1@", &["--upstream \"d:1@\""]),
        ("--service w --upstream :1", &["--upstream \":1\""]),
        (
            "--service w --upstream a:1 --upstream b:1",
            &["--upstream a:1 and --upstream b:1"],
        ),
        (
            "--service w --upstream a:1 --admin-bind 127.0.0.1:1",
            &["--admin-bind", "port 1"],
        ),
        (
            "--proxy-id p --admin-bind 19000",
            &["--admin-bind", "19000"],
        ),
        (
            "--proxy-id p --http-addr ftp://x",
            &["--http-addr", "ftp://x"],
        ),
        ("--proxy-id p --ca-file /no", &["--ca-file", "/no"]),
        ("--proxy-id p --token-file /no", &["--token-file", "/no"]),
        (
            "--proxy-id p --client-cert /pem/cert.pem",
            &["--client-cert", "--client-key"],
        ),
        (
            "--proxy-id p --jwt-file /token",
            &["--jwt-file", "--auth-method"],
        ),
        (
            "--proxy-id p --auth-method m",
            &["--auth-method", "--jwt-file", "NOMAD_SECRETS_DIR"],
        ),
        (
            "--proxy-id p --auth-method m --jwt-file /no",
            &["--jwt-file", "/no"],
        ),
        (
            "--proxy-id p --auth-method m --jwt-file /token --token t",
            &["--auth-method and --token"],
        ),
    ];
    for (line, words) in cases {
        one_problem(line, &nothing, words);
    }
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
fn jwts_of_the_secrets_folder_are_used_only_when_there_is_one() {
    let env = vars(SIDECAR, &[]);
    let with = |files: &MapFiles| {
        let line = arguments("run --auth-method nomad-workloads");
        load(line, &env, files)
    };
    one_problem(
        "--auth-method m",
        &env,
        &["NOMAD_SECRETS_DIR", "no nomad_*.jwt"],
    );
    let one = files().with("/secrets/nomad_consul.jwt", "");
    let Ok(Command::Run(loaded)) = with(&one) else {
        panic!("one JWT is enough");
    };
    let TokenSource::Login { jwt_file, .. } = loaded.config.consul.token else {
        panic!("{:?}", loaded.config.consul.token);
    };
    assert_eq!(jwt_file, PathBuf::from("/secrets/nomad_consul.jwt"));
    let two = one.with("/secrets/nomad_other.jwt", "");
    let Err(failure) = with(&two) else {
        panic!("two JWTs are one too many");
    };
    let text = failure.to_string();
    assert!(text.contains("nomad_consul.jwt, nomad_other.jwt"), "{text}");
    assert!(text.contains("--jwt-file"), "{text}");
}

#[test]
fn nomads_environment_makes_a_configuration() {
    let Config {
        proxy,
        consul,
        upstream_hints,
        public_hint,
        admin,
        ..
    } = run("", &vars(SIDECAR, &[])).config;
    assert_eq!(
        proxy,
        ProxyRef::Nomad {
            prefix: "_nomad-task-a1-group-front-web-app-".into(),
            service: "web-app".into()
        }
    );
    assert_eq!(
        consul.address,
        ConsulAddress::Unix("/alloc/tmp/consul_http.sock".into())
    );
    let TokenSource::Files(files) = consul.token else {
        panic!("{:?}", consul.token);
    };
    assert_eq!(
        files,
        [
            PathBuf::from("/secrets/si_token"),
            "/secrets/consul_token".into()
        ]
    );
    assert_eq!(upstream_hints.len(), 1);
    assert_eq!(upstream_hints[0].destination, "count-api");
    assert_eq!(upstream_hints[0].bind, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(upstream_hints[0].variable, "NOMAD_UPSTREAM_ADDR_count-api");
    assert_eq!(public_hint, Some("0.0.0.0:20000".parse().unwrap()));
    assert!(!admin.explicit);
    assert_eq!(admin.port, 19000);
}

#[test]
fn spellings_of_upstreams_are_told_apart() {
    let hints = |changes: &[(&str, &str)]| -> Vec<String> {
        let hints = run("--proxy-id p", &vars(&[], changes))
            .config
            .upstream_hints;
        let text =
            |hint: &crate::config::UpstreamHint| format!("{}={}", hint.destination, hint.bind);
        hints.iter().map(text).collect()
    };
    let addr = |name: &str| format!("NOMAD_UPSTREAM_ADDR_{name}");
    let one = |name: &str, clean: &str| {
        let here = "127.0.0.1:1";
        assert_eq!(
            hints(&[(&addr(name), here), (&addr(clean), here)]),
            [format!("{name}={here}")]
        );
    };
    one("my-app_v2", "my_app_v2");
    one("a-b-c", "a_b_c");
    one("2048-game", "_048_game");
    one("db", "db");
    // Only the clean spelling got through: a shell in between drops names with dashes.
    assert_eq!(
        hints(&[(&addr("count_api"), "[::1]:1")]),
        ["count_api=[::1]:1"]
    );
    // Two upstreams, one clean spelling: Nomad's last one wins there, and neither is lost here.
    assert_eq!(
        hints(&[
            (&addr("a-b_c"), "127.0.0.1:1"),
            (&addr("a_b-c"), "127.0.0.1:2"),
            (&addr("a_b_c"), "127.0.0.1:2"),
        ]),
        ["a-b_c=127.0.0.1:1", "a_b-c=127.0.0.1:2"]
    );
    // IP and port without an address are an address.
    assert_eq!(
        hints(&[
            ("NOMAD_UPSTREAM_IP_db", "127.0.0.2"),
            ("NOMAD_UPSTREAM_PORT_db", "5")
        ]),
        ["db=127.0.0.2:5"]
    );
}

#[test]
fn an_upstream_on_a_socket_is_a_note_and_no_hint() {
    let socket = [
        ("NOMAD_UPSTREAM_ADDR_db", "127.0.0.1:0"),
        ("NOMAD_UPSTREAM_IP_db", "127.0.0.1"),
        ("NOMAD_UPSTREAM_PORT_db", "0"),
    ];
    let loaded = run("--proxy-id p", &vars(&[], &socket));
    assert!(loaded.config.upstream_hints.is_empty());
    let notes = loaded.report.notes().join("\n");
    assert!(notes.contains("NOMAD_UPSTREAM_ADDR_db"), "{notes}");
}

#[test]
fn the_hosts_addresses_are_never_the_public_listener() {
    let host = [
        ("NOMAD_ALLOC_PORT_connect-proxy-web-app", ""),
        ("NOMAD_IP_connect_proxy_web_app", "192.0.2.1"),
        ("NOMAD_ADDR_connect_proxy_web_app", "192.0.2.1:30000"),
        ("NOMAD_HOST_PORT_connect_proxy_web_app", "30000"),
        ("NOMAD_PORT_connect_proxy_web_app", "30000"),
    ];
    let loaded = run("", &vars(SIDECAR, &host));
    assert_eq!(loaded.config.public_hint, None);
    let report = loaded.report.to_json(None);
    let gap = report["missing"][0]["what"].to_string();
    assert!(
        gap.contains("NOMAD_ALLOC_PORT_connect-proxy-web-app"),
        "{gap}"
    );
    assert_eq!(report["missing"][0]["stops_run"], false);
    assert!(!report.to_string().contains("192.0.2.1"));
}

#[test]
fn consuls_address_has_many_spellings() {
    let http = |host: &str, port| ConsulAddress::Http {
        host: host.into(),
        port,
    };
    let https = |host: &str, port| ConsulAddress::Https {
        host: host.into(),
        port,
    };
    let cases = [
        ("", "", http("127.0.0.1", 8500)),
        ("", "true", https("127.0.0.1", 8500)),
        ("host:1", "", http("host", 1)),
        ("host:1", "F", http("host", 1)),
        ("host:1", "T", https("host", 1)),
        ("host", "", http("host", 80)),
        ("http://host:1/", "", http("host", 1)),
        ("http://host:1", "1", https("host", 1)),
        ("https://host", "", https("host", 443)),
        ("HTTPS://host:2", "0", https("host", 2)),
        ("[::1]:8500", "", http("::1", 8500)),
        ("https://[::1]", "", https("::1", 443)),
        (
            "unix:///run/consul.sock",
            "",
            ConsulAddress::Unix("/run/consul.sock".into()),
        ),
    ];
    for (address, ssl, wanted) in cases {
        let env = vars(
            &[],
            &[("CONSUL_HTTP_ADDR", address), ("CONSUL_HTTP_SSL", ssl)],
        );
        assert_eq!(
            run("--proxy-id p", &env).config.consul.address,
            wanted,
            "{address}"
        );
    }
    let env = vars(SIDECAR, &[("CONSUL_HTTP_ADDR", "elsewhere:1")]);
    assert_eq!(run("", &env).config.consul.address, http("elsewhere", 1));
    assert_eq!(
        run("--http-addr here:2", &env).config.consul.address,
        http("here", 2)
    );
    let env = vars(SIDECAR, &[("NOMAD_ALLOC_DIR", "/other")]);
    let loaded = run("", &env);
    assert_eq!(loaded.config.consul.address, http("127.0.0.1", 8500));
    assert!(
        loaded.report.gaps()[0]
            .what
            .contains("/other/tmp/consul_http.sock")
    );
}

#[test]
fn tokens_have_an_order_and_are_never_shown() {
    let all = [
        ("CONSUL_HTTP_TOKEN", "hush-variable"),
        ("CONSUL_HTTP_TOKEN_FILE", "/token"),
    ];
    let cases: &[(&str, &[(&str, &str)], &str, &str)] = &[
        (
            "--token hush-flag --token-file /token",
            &all,
            "--token",
            "a token wins over a file",
        ),
        ("--token-file /token", &all, "--token-file", "arguments win"),
        ("", &all, "CONSUL_HTTP_TOKEN", "a token wins over a file"),
        ("", &all[1..], "CONSUL_HTTP_TOKEN_FILE", ""),
        ("", &[], "NOMAD_SECRETS_DIR", ""),
    ];
    for (line, changes, from, note) in cases {
        let loaded = run(line, &vars(SIDECAR, changes));
        let report = loaded.report.to_json(None);
        assert_eq!(report["consul"]["token"]["from"], *from);
        assert_eq!(report["consul"]["token"]["value"], "[redacted]");
        assert!(loaded.report.notes().join("\n").contains(note), "{from}");
        let everything = format!("{report} {loaded:?}");
        assert!(!everything.contains("hush"), "{everything}");
    }
    let anonymous = run("--proxy-id p", &Vars::new());
    assert!(matches!(anonymous.config.consul.token, TokenSource::None));
    let password = vars(&[], &[("CONSUL_HTTP_ADDR", "http://user:hush@host:1")]);
    let failure = try_run("--proxy-id p --token hush", &password).unwrap_err();
    assert!(failure.to_string().contains("CONSUL_HTTP_ADDR"));
    assert!(!format!("{failure} {failure:?}").contains("hush"));
}

#[test]
fn tls_is_taken_from_arguments_before_variables() {
    let env = vars(
        &[],
        &[
            ("CONSUL_HTTP_ADDR", "https://host:8501"),
            ("CONSUL_CACERT", "/no/such.pem"),
            ("CONSUL_CAPATH", "/pem"),
            ("CONSUL_CLIENT_CERT", "/pem/cert.pem"),
            ("CONSUL_TLS_SERVER_NAME", "server.dc1.consul"),
            ("CONSUL_HTTP_SSL_VERIFY", "false"),
            ("CONSUL_NAMESPACE", "team"),
            ("CONSUL_PARTITION", "part"),
        ],
    );
    let line = "--proxy-id p --ca-file /pem/ca.pem --client-key /pem/key.pem --partition other";
    let loaded = run(line, &env);
    let consul = loaded.config.consul;
    assert_eq!(consul.tls.ca_file, Some("/pem/ca.pem".into()));
    assert_eq!(consul.tls.ca_path, Some("/pem".into()));
    assert_eq!(consul.tls.client_cert, Some("/pem/cert.pem".into()));
    assert_eq!(consul.tls.client_key, Some("/pem/key.pem".into()));
    assert_eq!(consul.tls.server_name.as_deref(), Some("server.dc1.consul"));
    assert!(consul.tls.insecure_skip_verify);
    assert_eq!(consul.namespace.as_deref(), Some("team"));
    assert_eq!(consul.partition.as_deref(), Some("other"));
    let report = loaded.report.to_json(None);
    assert_eq!(report["consul"]["ca_file"]["from"], "--ca-file");
    assert_eq!(
        report["consul"]["client_cert"]["from"],
        "CONSUL_CLIENT_CERT"
    );
    assert_eq!(report["consul"]["partition"]["from"], "--partition");
}

#[test]
fn a_proxy_by_hand_is_whole() {
    let line = "--service web --listen :20000 --local-service localhost:8000 \
                --upstream db:5432 --upstream cache:6379@dc2";
    let loaded = run(
        line,
        &vars(SIDECAR, &[("NOMAD_UPSTREAM_PORT_count-api", "x")]),
    );
    let ProxyRef::Manual(manual) = loaded.config.proxy else {
        panic!("{:?}", loaded.config.proxy);
    };
    assert_eq!(manual.service, "web");
    assert_eq!(manual.listen, Some("0.0.0.0:20000".parse().unwrap()));
    assert_eq!(
        manual.local_service,
        Some("127.0.0.1:8000".parse().unwrap())
    );
    assert_eq!(manual.upstreams[0].datacenter, None);
    assert_eq!(manual.upstreams[1].destination, "cache");
    assert_eq!(manual.upstreams[1].local_bind_port, 6379);
    assert_eq!(manual.upstreams[1].datacenter.as_deref(), Some("dc2"));
    assert!(loaded.config.upstream_hints.is_empty());
    assert!(loaded.report.notes()[0].contains("NOMAD_TASK_NAME"));
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
    ];
    // A fixed sequence (Knuth's multiplier), so that a failure is seen again.
    let mut state = 1u64;
    let mut pick = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    for _ in 0..5_000 {
        let mut env = Vars::new();
        for _ in 0..pick(12) {
            env.insert(
                names[pick(names.len())].into(),
                values[pick(values.len())].into(),
            );
        }
        match load(arguments(lines[pick(lines.len())]), &env, &files()) {
            Ok(Command::Run(loaded) | Command::Bootstrap(loaded)) => {
                assert!(loaded.report.to_json(None).is_object());
            }
            Ok(_) => {}
            Err(failure) => assert_eq!(failure.exit_code(), exit::CONFIG, "{failure}"),
        }
    }
}
