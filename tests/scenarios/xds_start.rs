//! How a sidecar in Envoy's place starts: what Nomad and Consul give it, what it makes of a broken
//! bootstrap, and what it refuses to be.

use attache_bootstrap::exit;
use attache_tests::agent::Agent;
use attache_tests::mesh::get;
use attache_tests::once::{Ended, once};
use attache_tests::sidecar::{Service, Xds, consul};
use attache_tests::tools::on_path;
use attache_tests::{Folder, Process, free_port};
use serde_json::{Value, json};

use crate::ATTACHE;
use crate::xds_mesh::grpc;

fn variable(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Nomad's socket in the allocation's folder, by its relative path, from another working directory: as
/// under `raw_exec`.
#[tokio::test]
async fn without_arguments_a_nomad_task_finds_its_bootstrap_and_the_socket_in_it() {
    let folder = Folder::new();
    let Some(program) = on_path("consul") else {
        return;
    };
    let program = program.to_str().unwrap().to_owned();
    for name in ["alloc/tmp", "secrets"] {
        std::fs::create_dir_all(folder.path(name)).unwrap();
    }
    let socket = format!("unix://{}", folder.file("alloc/tmp/consul_grpc.sock"));
    // A port must be given for the address to be used.
    let settings = json!({ "addresses": { "grpc": socket }, "ports": { "grpc": free_port() } });
    let agent = Agent::start_in(Folder::new(), program, &["-dev"], settings, None).await;
    let xds = Xds {
        address: "unix://alloc/tmp/consul_grpc.sock".to_owned(),
        token: None,
        binary: ATTACHE.to_owned(),
    };
    let web = Service::registered(&agent, "web", 1, &[]).await;
    let text = web.bootstrap(&agent, &xds).await;
    assert!(text.contains("\"alloc/tmp/consul_grpc.sock\""), "{text}");
    std::fs::write(folder.path("secrets/envoy_bootstrap.json"), text).unwrap();
    let environment = [
        variable("NOMAD_ALLOC_DIR", &folder.file("alloc")),
        variable("NOMAD_SECRETS_DIR", &folder.file("secrets")),
        variable("NOMAD_TASK_NAME", "connect-proxy-web"),
    ];
    let sidecar = Process::start("web", ATTACHE, &[], &environment);
    web.ready(&sidecar).await;
    sidecar
        .says(&["the bootstrap is", "secrets/envoy_bootstrap.json"])
        .await;
}

/// `consul connect envoy` hands the bootstrap over by a FIFO, after it has asked for the version.
#[tokio::test]
async fn consul_connect_envoy_runs_it_in_envoys_place() {
    let (settings, xds) = grpc(json!({}));
    let Some(agent) = Agent::dev(settings).await else {
        return;
    };
    let api = Service::registered(&agent, "api", 1, &[]).await;
    let web = Service::registered(&agent, "web", 1, &["api"]).await;
    let consul = on_path("consul").unwrap();
    let run = |service: &Service| {
        let mut arguments = service.arguments(&agent, &xds);
        arguments.extend(["--", "-l", "info"].map(str::to_owned));
        Process::start(&service.id, consul.to_str().unwrap(), &arguments, &[])
    };
    let (mut api_sidecar, web_sidecar) = (run(&api), run(&web));
    api.ready(&api_sidecar).await;
    web.ready(&web_sidecar).await;
    web.hears("api", "api-1").await;
    web_sidecar.says(&["no regular file", "read once"]).await;
    // It has taken the place of `consul` itself: signals reach it.
    api_sidecar.signal("TERM").await;
    assert_eq!(api_sidecar.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_gateways_bootstrap_is_refused_by_name() {
    let (settings, xds) = grpc(json!({}));
    let Some(agent) = Agent::dev(settings).await else {
        return;
    };
    let folder = Folder::new();
    for kind in ["mesh", "terminating", "ingress"] {
        let arguments = [
            "connect".to_owned(),
            "envoy".to_owned(),
            format!("-gateway={kind}"),
            "-register".to_owned(),
            format!("-address=127.0.0.1:{}", free_port()),
            format!("-http-addr={}", agent.http),
            format!("-grpc-addr={}", xds.address),
            format!("-envoy-binary={ATTACHE}"),
            "-bootstrap".to_owned(),
        ];
        let written = consul(&arguments).await;
        assert_eq!(written.code, Some(0), "{written:?}");
        let file = folder.write("gateway.json", &written.out);
        let ended = once(ATTACHE, &["-c", &file], &[]).await;
        assert_eq!(ended.code, Some(i32::from(exit::CONFIG)), "{ended:?}");
        let said = ended.out + &ended.err;
        assert!(
            said.contains(&format!("{kind}-gateway")) && said.contains("node.id"),
            "{said}"
        );
    }
}

/// What Consul writes, with one thing after the other broken.
fn whole() -> Value {
    let at = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    json!({
        "node": { "id": "web-1-sidecar-proxy", "cluster": "web" },
        "admin": { "address": at(free_port()) },
        "static_resources": {
            "clusters": [{
                "name": "local_agent", "type": "STATIC", "connect_timeout": "1s",
                "http2_protocol_options": {},
                "load_assignment": { "cluster_name": "local_agent", "endpoints": [
                    { "lb_endpoints": [{ "endpoint": { "address": at(free_port()) } }] },
                ]},
            }],
            "listeners": [{
                "name": "plain", "address": at(free_port()),
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "plain", "cluster": "local_agent",
                    },
                }]}],
            }],
        },
        "dynamic_resources": {
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": {
                    "initial_metadata": [{ "key": "x-consul-token", "value": "hush" }],
                    "envoy_grpc": { "cluster_name": "local_agent" },
                },
            },
        },
    })
}

async fn validate(text: &str) -> Ended {
    let folder = Folder::new();
    let file = folder.write("bootstrap.json", text);
    once(ATTACHE, &["--mode", "validate", "-c", &file], &[]).await
}

#[tokio::test]
async fn validation_says_ok_without_listening() {
    let ended = validate(&whole().to_string()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!((ended.out + &ended.err).contains("OK"));
}

/// Where a value is put (`null` takes it out), and what the message must say.
type Break = (&'static str, Value, &'static [&'static str]);

/// What the pointers of [`breaks`] begin with, in full.
const WHERE: [(&str, &str); 6] = [
    ("admin/", "/admin/address/socket_address/"),
    ("cluster/", "/static_resources/clusters/0/"),
    ("listener/", "/static_resources/listeners/0/"),
    (
        "config/",
        "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/",
    ),
    ("ads/", "/dynamic_resources/ads_config/"),
    ("grpc/", "/dynamic_resources/ads_config/grpc_services/envoy_grpc/"),
];

fn breaks() -> Vec<Break> {
    let lua = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
    let none = "type.googleapis.com/no.Such";
    vec![
        ("/node", json!(3), &["node"]),
        ("admin/address", json!("nowhere"), &["admin.address", "nowhere"]),
        ("admin/port_value", json!(70_000), &["admin.address", "70000"]),
        ("admin/port_value", json!("x"), &["port_value"]),
        (
            "/static_resources/clusters",
            json!({ "name": 3 }),
            &["static_resources.clusters"],
        ),
        ("cluster/name", json!("other"), &["cluster_name", "local_agent"]),
        ("cluster/type", json!("SOMETIMES"), &["type", "SOMETIMES"]),
        (
            "cluster/connect_timeout",
            json!("soon"),
            &["connect_timeout", "soon"],
        ),
        (
            "cluster/load_assignment/endpoints",
            json!([]),
            &["load_assignment", "no endpoint"],
        ),
        (
            "cluster/transport_socket",
            json!({ "name": "tls" }),
            &["transport_socket"],
        ),
        ("config/@type", json!(lua), &["listener", "plain", "Lua"]),
        ("config/@type", json!(none), &["no.Such"]),
        ("config/cluster", Value::Null, &["plain", "cluster"]),
        ("listener/address", Value::Null, &["plain", "address"]),
        (
            "/dynamic_resources/ads_config",
            Value::Null,
            &["dynamic_resources.ads_config"],
        ),
        ("ads/api_type", json!("REST"), &["ads_config.api_type"]),
        (
            "ads/grpc_services/envoy_grpc",
            Value::Null,
            &["grpc_services", "envoy_grpc"],
        ),
        ("grpc/cluster_name", json!("none"), &["cluster_name", "none"]),
    ]
}

#[tokio::test]
async fn each_broken_bootstrap_is_refused_with_the_field() {
    for (pointer, value, words) in breaks() {
        let short = WHERE.iter().find(|(short, _)| pointer.starts_with(short));
        let pointer = match short {
            Some((short, full)) => pointer.replacen(short, full, 1),
            None => pointer.to_owned(),
        };
        let mut broken = whole();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = broken.pointer_mut(parent).unwrap();
        match value {
            Value::Null => drop(parent.as_object_mut().unwrap().shift_remove(key)),
            value => parent[key] = value,
        }
        let ended = validate(&broken.to_string()).await;
        let said = format!("{}{}", ended.out, ended.err);
        assert_eq!(ended.code, Some(i32::from(exit::CONFIG)), "{pointer}: {said}");
        for word in words {
            assert!(said.contains(word), "{pointer}: {word:?} is not in: {said}");
        }
        assert!(!said.contains("hush"), "{pointer}: the token is told: {said}");
    }
}

#[tokio::test]
async fn what_is_no_bootstrap_at_all_is_told_with_the_place() {
    let mut half = whole().to_string();
    half.truncate(half.len() / 2);
    for (text, words) in [
        (half.as_str(), ["bootstrap.json", "line"]),
        ("[]", ["bootstrap.json", ""]),
        ("\"static\"", ["bootstrap.json", ""]),
    ] {
        let ended = validate(text).await;
        let said = format!("{}{}", ended.out, ended.err);
        assert_eq!(ended.code, Some(i32::from(exit::CONFIG)), "{text}: {said}");
        for word in words {
            assert!(said.contains(word), "{text}: {word:?} is not in: {said}");
        }
    }
}

/// Not only validation: the process ends, and listens nowhere.
#[tokio::test]
async fn a_broken_bootstrap_does_not_start() {
    let folder = Folder::new();
    let mut broken = whole();
    broken["static_resources"]["clusters"][0]["name"] = "other".into();
    let file = folder.write("bootstrap.json", &broken.to_string());
    let ended = once(ATTACHE, &["-c", &file], &[]).await;
    assert_eq!(ended.code, Some(i32::from(exit::CONFIG)), "{ended:?}");
}

/// It lives, and says what it waits for.
#[tokio::test]
async fn without_a_control_plane_that_answers_the_process_says_so() {
    let folder = Folder::new();
    let bootstrap = whole();
    let file = folder.write("bootstrap.json", &bootstrap.to_string());
    let port = bootstrap["admin"]["address"]["socket_address"]["port_value"].as_u64();
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], u16::try_from(port.unwrap()).unwrap()));
    let sidecar = Process::start("attache", ATTACHE, &["-c".to_owned(), file], &[]);
    sidecar
        .says(&["no ADS stream; waiting for the first configuration"])
        .await;
    let (status, _) = get(admin, "/ready").await.unwrap();
    assert_eq!(status, 503);
    let (_, source) = get(admin, "/attache/source").await.unwrap();
    assert!(source.contains("unreachable"), "{source}");
}
