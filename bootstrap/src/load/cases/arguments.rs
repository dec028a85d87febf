//! Arguments alone: which proxy, and a proxy by hand.

use super::{Case, SIDECAR, Vars, one_problem, run, vars};
use crate::config::ProxyRef;

/// Arguments of `run` in an empty environment.
const WRONG: &[Case] = &[
    ("", &["which proxy", "--sidecar-for", "NOMAD_TASK_NAME"]),
    ("--proxy-id a --sidecar-for b", &["--proxy-id and --sidecar-for"]),
    ("--proxy-id a --service b", &["--proxy-id and --service"]),
    (
        "--sidecar-for a --upstream b:1",
        &["--sidecar-for and --upstream"],
    ),
    ("--proxy-id= ", &["--proxy-id", "nothing in it"]),
    ("--listen :1 --local-service :2", &["--service is not given"]),
    ("--service w --listen :1", &["--local-service is not given"]),
    ("--service w --local-service :1", &["--listen is not given"]),
    ("--service w", &["--service", "nothing to do"]),
    ("--service a/b --upstream d:1", &["--service", "a/b"]),
    (
        "--service w --listen here --local-service :2",
        &["--listen", "here"],
    ),
    ("--service w --listen :0 --local-service :2", &["--listen", ":0"]),
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
    ("--proxy-id p --admin-bind 19000", &["--admin-bind", "19000"]),
    ("--proxy-id p --http-addr ftp://x", &["--http-addr", "ftp://x"]),
    ("--proxy-id p --ca-file /no", &["--ca-file", "/no"]),
    ("--proxy-id p --token-file /no", &["--token-file", "/no"]),
    (
        "--proxy-id p --client-cert /pem/cert.pem",
        &["--client-cert", "--client-key"],
    ),
    ("--proxy-id p --jwt-file /token", &["--jwt-file", "--auth-method"]),
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

#[test]
fn each_wrong_argument_is_named() {
    for (line, words) in WRONG {
        one_problem(line, &Vars::new(), words);
    }
}

#[test]
fn a_proxy_by_hand_is_whole() {
    let line = "--service web --listen :20000 --local-service localhost:8000 \
                --upstream db:5432 --upstream cache:6379@dc2";
    let loaded = run(line, &vars(SIDECAR, &[("NOMAD_UPSTREAM_PORT_count-api", "x")]));
    let ProxyRef::Manual(manual) = loaded.config.proxy else {
        panic!("{:?}", loaded.config.proxy);
    };
    assert_eq!(manual.service, "web");
    assert_eq!(manual.listen, Some("0.0.0.0:20000".parse().unwrap()));
    assert_eq!(manual.local_service, Some("127.0.0.1:8000".parse().unwrap()));
    assert_eq!(manual.upstreams[0].datacenter, None);
    assert_eq!(manual.upstreams[1].destination, "cache");
    assert_eq!(manual.upstreams[1].local_bind_port, 6379);
    assert_eq!(manual.upstreams[1].datacenter.as_deref(), Some("dc2"));
    assert!(loaded.config.upstream_hints.is_empty());
    assert!(loaded.report.notes()[0].contains("NOMAD_TASK_NAME"));
}

#[test]
fn a_faulty_proxy_by_hand_is_not_blamed_on_nomad() {
    let env = vars(SIDECAR, &[("NOMAD_UPSTREAM_PORT_count-api", "x")]);
    one_problem("--upstream db:5432", &env, &["--service is not given"]);
}
