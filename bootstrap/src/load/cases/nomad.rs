//! Nomad's variables: the proxy's ID, upstreams, the public port.

use super::{Case, SIDECAR, changes, one_problem, run, vars};
use crate::config::{Config, ConsulAddress, ProxyRef, TokenSource, UpstreamHint};
use std::path::PathBuf;

/// Changes to a sidecar's environment.
const WRONG: &[Case] = &[
    ("NOMAD_ALLOC_ID=", &["NOMAD_ALLOC_ID is not set"]),
    ("NOMAD_GROUP_NAME=", &["NOMAD_GROUP_NAME is not set"]),
    ("NOMAD_TASK_NAME=", &["NOMAD_TASK_NAME is not set"]),
    (
        "NOMAD_TASK_NAME=web",
        &["NOMAD_TASK_NAME", "\"web\"", "connect-proxy-"],
    ),
    (
        "NOMAD_TASK_NAME=connect-proxy-",
        &["NOMAD_TASK_NAME", "no sidecar"],
    ),
    (
        "NOMAD_TASK_NAME=connect-ingress-web",
        &["NOMAD_TASK_NAME", "connect-ingress-web"],
    ),
    (
        "NOMAD_ALLOC_PORT_connect-proxy-web-app=0",
        &["NOMAD_ALLOC_PORT_connect-proxy-web-app", "no port"],
    ),
    (
        "NOMAD_ALLOC_PORT_connect-proxy-web-app=65536",
        &["NOMAD_ALLOC_PORT_connect-proxy-web-app", "65536"],
    ),
    (
        "NOMAD_ALLOC_PORT_connect_proxy_web_app=20001",
        &[
            "NOMAD_ALLOC_PORT_connect-proxy-web-app is 20000",
            "NOMAD_ALLOC_PORT_connect_proxy_web_app is 20001",
        ],
    ),
    (
        "NOMAD_UPSTREAM_ADDR_count_api=127.0.0.1:8081 NOMAD_UPSTREAM_PORT_count_api=8081",
        &[
            "NOMAD_UPSTREAM_ADDR_count-api is 127.0.0.1:8080",
            "NOMAD_UPSTREAM_ADDR_count_api is 127.0.0.1:8081",
        ],
    ),
    (
        "NOMAD_UPSTREAM_PORT_count-api=8081",
        &[
            "NOMAD_UPSTREAM_ADDR_count-api",
            "NOMAD_UPSTREAM_PORT_count-api",
            "8081",
        ],
    ),
    (
        "NOMAD_UPSTREAM_IP_count-api=127.0.0.2",
        &[
            "NOMAD_UPSTREAM_ADDR_count-api",
            "NOMAD_UPSTREAM_IP_count-api",
            "127.0.0.2",
        ],
    ),
    (
        "NOMAD_UPSTREAM_ADDR_count-api=localhost:1",
        &["NOMAD_UPSTREAM_ADDR_count-api"],
    ),
    (
        "NOMAD_UPSTREAM_ADDR_count-api=127.0.0.1:0",
        &["NOMAD_UPSTREAM_ADDR_count-api"],
    ),
    (
        "NOMAD_UPSTREAM_IP_count-api=here",
        &["NOMAD_UPSTREAM_IP_count-api", "here"],
    ),
    (
        "NOMAD_UPSTREAM_PORT_count-api=99999",
        &["NOMAD_UPSTREAM_PORT_count-api"],
    ),
    (
        "NOMAD_UPSTREAM_PORT_count-api=+8080",
        &["NOMAD_UPSTREAM_PORT_count-api"],
    ),
    ("NOMAD_UPSTREAM_ADDR_=127.0.0.1:1", &["NOMAD_UPSTREAM_ADDR_"]),
    (
        "NOMAD_UPSTREAM_PORT_db=5432",
        &["NOMAD_UPSTREAM_PORT_db is set", "NOMAD_UPSTREAM_IP_db"],
    ),
    (
        "NOMAD_UPSTREAM_IP_db=127.0.0.1",
        &["NOMAD_UPSTREAM_IP_db is set", "NOMAD_UPSTREAM_PORT_db"],
    ),
];

#[test]
fn each_wrong_piece_is_named() {
    for (text, words) in WRONG {
        one_problem("", &vars(SIDECAR, &changes(text)), words);
    }
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
        [PathBuf::from("/secrets/si_token"), "/secrets/consul_token".into()]
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
        let hints = run("--proxy-id p", &vars(&[], changes)).config.upstream_hints;
        let text = |hint: &UpstreamHint| format!("{}={}", hint.destination, hint.bind);
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
    assert_eq!(hints(&[(&addr("count_api"), "[::1]:1")]), ["count_api=[::1]:1"]);
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
    assert!(gap.contains("NOMAD_ALLOC_PORT_connect-proxy-web-app"), "{gap}");
    assert_eq!(report["missing"][0]["stops_run"], false);
    assert!(!report.to_string().contains("192.0.2.1"));
}
