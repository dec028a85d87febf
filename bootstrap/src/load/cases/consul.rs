//! Consul's variables and their arguments: address, TLS, token.

use super::{Case, SIDECAR, Vars, arguments, changes, files, one_problem, run, try_run, vars};
use crate::config::{ConsulAddress, TokenSource};
use crate::env::MapFiles;
use crate::load::{Command, load};
use std::path::PathBuf;

/// Changes to any environment.
const WRONG: &[Case] = &[
    ("CONSUL_HTTP_ADDR=ftp://host", &["CONSUL_HTTP_ADDR", "ftp://host"]),
    (
        "CONSUL_HTTP_ADDR=unix://",
        &["CONSUL_HTTP_ADDR", "path is missing"],
    ),
    ("CONSUL_HTTP_ADDR=host:0", &["CONSUL_HTTP_ADDR", "port"]),
    ("CONSUL_HTTP_ADDR=host:65536", &["CONSUL_HTTP_ADDR", "port"]),
    ("CONSUL_HTTP_ADDR=:8500", &["CONSUL_HTTP_ADDR", "host is missing"]),
    ("CONSUL_HTTP_ADDR=::1", &["CONSUL_HTTP_ADDR", "brackets"]),
    ("CONSUL_HTTP_ADDR=[::1", &["CONSUL_HTTP_ADDR", "bracket"]),
    ("CONSUL_HTTP_ADDR=[host]:1", &["CONSUL_HTTP_ADDR", "IPv6"]),
    ("CONSUL_HTTP_ADDR=[::1]1", &["CONSUL_HTTP_ADDR", "bracket"]),
    ("CONSUL_HTTP_ADDR=http://h/prefix", &["CONSUL_HTTP_ADDR", "path"]),
    ("CONSUL_HTTP_SSL=yes", &["CONSUL_HTTP_SSL", "yes"]),
    ("CONSUL_HTTP_SSL_VERIFY=no", &["CONSUL_HTTP_SSL_VERIFY", "no"]),
    (
        "CONSUL_HTTP_AUTH=user:pass",
        &["CONSUL_HTTP_AUTH", "not supported"],
    ),
    ("CONSUL_CACERT=/no/ca.pem", &["CONSUL_CACERT", "/no/ca.pem"]),
    ("CONSUL_CAPATH=/no/folder", &["CONSUL_CAPATH", "/no/folder"]),
    (
        "CONSUL_CLIENT_CERT=/no/c.pem CONSUL_CLIENT_KEY=/pem/key.pem",
        &["CONSUL_CLIENT_CERT", "/no/c.pem"],
    ),
    (
        "CONSUL_CLIENT_CERT=/pem/cert.pem CONSUL_CLIENT_KEY=/no/k.pem",
        &["CONSUL_CLIENT_KEY", "/no/k.pem"],
    ),
    (
        "CONSUL_CLIENT_CERT=/pem/cert.pem",
        &["CONSUL_CLIENT_CERT", "--client-key", "CONSUL_CLIENT_KEY"],
    ),
    (
        "CONSUL_CLIENT_KEY=/pem/key.pem",
        &["CONSUL_CLIENT_KEY", "--client-cert", "CONSUL_CLIENT_CERT"],
    ),
    (
        "CONSUL_HTTP_TOKEN_FILE=/no/token",
        &["CONSUL_HTTP_TOKEN_FILE", "/no/token"],
    ),
];

#[test]
fn each_wrong_piece_is_named() {
    for (text, words) in WRONG {
        one_problem("", &vars(SIDECAR, &changes(text)), words);
        one_problem("--proxy-id p", &vars(&[], &changes(text)), words);
    }
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
        let env = vars(&[], &[("CONSUL_HTTP_ADDR", address), ("CONSUL_HTTP_SSL", ssl)]);
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
fn jwts_of_the_secrets_folder_are_used_only_when_there_is_one() {
    let env = vars(SIDECAR, &[]);
    let with = |files: &MapFiles| {
        let line = arguments("run --auth-method nomad-workloads");
        load(line, &env, files)
    };
    one_problem("--auth-method m", &env, &["NOMAD_SECRETS_DIR", "no nomad_*.jwt"]);
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
fn tokens_have_an_order_and_are_never_shown() {
    let file = "CONSUL_HTTP_TOKEN_FILE=/token";
    let both = "CONSUL_HTTP_TOKEN=hush-variable CONSUL_HTTP_TOKEN_FILE=/token";
    let literal_wins = "a token wins over a file";
    for (line, text, from, note) in [
        (
            "--token hush-flag --token-file /token",
            both,
            "--token",
            literal_wins,
        ),
        ("--token-file /token", both, "--token-file", "arguments win"),
        ("", both, "CONSUL_HTTP_TOKEN", literal_wins),
        ("", file, "CONSUL_HTTP_TOKEN_FILE", ""),
        ("", "", "NOMAD_SECRETS_DIR", ""),
    ] {
        let loaded = run(line, &vars(SIDECAR, &changes(text)));
        let report = loaded.report.to_json(None);
        assert_eq!(report["consul"]["token"]["from"], from);
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
    assert_eq!(report["consul"]["client_cert"]["from"], "CONSUL_CLIENT_CERT");
    assert_eq!(report["consul"]["partition"]["from"], "--partition");
}
