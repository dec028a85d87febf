//! What the connection manager says of itself and of the connection: `server`, `via`, `x-request-id`,
//! `x-forwarded-*`, `x-envoy-*`, XFCC, hosts, header limits.

use attache_tests::http::{Case, Group, Manager, Path, case, get, post};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

/// A manager with these fields.
fn with(name: &str, fields: Value) -> Manager {
    Manager::new(name).with(fields)
}

/// The cases of `make` for each manager, which names them.
fn for_each(managers: &[Manager], make: impl Fn() -> Vec<Case>) -> Vec<Case> {
    let of = |manager: &Manager| {
        let name = manager.name.clone();
        let cases = make().into_iter().map(move |mut case| {
            case.name = format!("{name}, {}", case.name);
            case.on(&name)
        });
        cases.collect::<Vec<_>>()
    };
    managers.iter().flat_map(of).collect()
}

async fn run(name: &str, managers: Vec<Manager>, make: impl Fn() -> Vec<Case>) {
    let cases = for_each(&managers, make);
    let group = managers.into_iter().fold(Group::new(name), Group::manager);
    group.cases(cases).run(OURS).await;
}

#[tokio::test]
async fn http_server_and_via() {
    let managers = vec![
        with("default", json!({})),
        with("name", json!({ "server_name": "attache" })),
        with(
            "overwrite",
            json!({ "server_header_transformation": "OVERWRITE", "server_name": "x" }),
        ),
        with(
            "append",
            json!({ "server_header_transformation": "APPEND_IF_ABSENT" }),
        ),
        with("pass", json!({ "server_header_transformation": "PASS_THROUGH" })),
        with("via", json!({ "via": "1.1 mesh" })),
        with("suppress", json!({})).router(json!({ "suppress_envoy_headers": true })),
        with("date", json!({})),
    ];
    run("server and via", managers, || {
        vec![
            get("plain", "/"),
            get("the app's server", "/").wish("header=server: app"),
            get("the app's date", "/").wish("header=date: Tue, 01 Jan 2019 00:00:00 GMT"),
            get("via there", "/").header("via", "1.0 other").wish("header=via: 1.1 app"),
            get("the app's own envoy headers", "/")
                .wish("header=x-envoy-upstream-service-time: 7;header=x-envoy-decorator-operation: x;header=x-envoy-other: y"),
            get("a local reply", "/").host("nobody").header("x-none", "1").wish("hangup"),
            get("an answer that asks for things", "/").wish("header=x-envoy-upstream-canary: true;header=x-envoy-immediate-health-check-fail: 1"),
        ]
    })
    .await;
}

#[tokio::test]
async fn http_request_ids() {
    let managers = vec![
        with("default", json!({})),
        with("no generation", json!({ "generate_request_id": false })),
        with("preserve", json!({ "preserve_external_request_id": true })),
        with(
            "preserve at the edge",
            json!({ "preserve_external_request_id": true, "use_remote_address": true }),
        ),
        with("edge", json!({ "use_remote_address": true })),
        with(
            "in responses",
            json!({ "always_set_request_id_in_response": true }),
        ),
        with(
            "in responses at the edge",
            json!({ "always_set_request_id_in_response": true,
            "use_remote_address": true }),
        ),
        with(
            "in responses without generation",
            json!({ "always_set_request_id_in_response": true,
            "generate_request_id": false }),
        ),
    ];
    run("request ids", managers, || {
        let uuid = "0f0f0f0f-1111-4222-8333-444444444444";
        vec![
            get("none", "/"),
            get("one that is no UUID", "/").header("x-request-id", "mine"),
            get("a UUID", "/")
                .header("x-request-id", uuid)
                .header("x-keep", "1"),
            get("an empty one", "/").header("x-request-id", ""),
            get("two", "/")
                .header("x-request-id", "one")
                .header("x-request-id", "two"),
            get("the app answers with one", "/")
                .header("x-request-id", "mine")
                .wish("header=x-request-id: theirs"),
            get("of an external client", "/")
                .header("x-request-id", "mine")
                .header("x-forwarded-for", "8.8.8.8"),
            get("a client's trace id", "/").header("x-client-trace-id", "trace"),
        ]
    })
    .await;
}

#[tokio::test]
async fn http_forwarded_for() {
    let managers = vec![
        with("default", json!({})),
        with("edge", json!({ "use_remote_address": true })),
        with(
            "edge with one hop",
            json!({ "use_remote_address": true, "xff_num_trusted_hops": 1 }),
        ),
        with("inside with one hop", json!({ "xff_num_trusted_hops": 1 })),
        with("inside with two hops", json!({ "xff_num_trusted_hops": 2 })),
        with(
            "edge that appends nothing",
            json!({ "use_remote_address": true, "skip_xff_append": true }),
        ),
        with(
            "edge with port",
            json!({ "use_remote_address": true, "append_x_forwarded_port": true }),
        ),
        with(
            "edge, mapped",
            json!({ "use_remote_address": true,
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6": true }),
        ),
        with(
            "edge with via",
            json!({ "use_remote_address": true, "via": "1.1 edge" }),
        ),
        with(
            "user agent",
            json!({ "use_remote_address": true, "add_user_agent": true }),
        ),
    ];
    run("forwarded for", managers, || {
        let xff = |name: &str, value: &str| get(name, "/").header("x-forwarded-for", value);
        vec![
            get("none", "/"),
            xff("one outside", "8.8.8.8"),
            xff("one inside", "10.1.2.3"),
            xff("two", "8.8.8.8, 10.0.0.1"),
            xff("three", "1.1.1.1,8.8.8.8,9.9.9.9"),
            xff("no address", "unknown"),
            xff("IPv6", "2001:db8::1"),
            xff("empty", ""),
            xff("two headers", "1.1.1.1").header("x-forwarded-for", "2.2.2.2"),
            get("proto https", "/").header("x-forwarded-proto", "https"),
            get("proto nonsense", "/").header("x-forwarded-proto", "gopher"),
            get("port there", "/").header("x-forwarded-port", "1234"),
            get("host there", "/").header("x-forwarded-host", "other.test"),
            get("forwarded", "/").header("forwarded", "for=1.2.3.4"),
            get("external address claimed", "/").header("x-envoy-external-address", "1.2.3.4"),
            xff("external address of a chain", "8.8.8.8").header("x-envoy-external-address", "1.2.3.4"),
            get("internal claimed", "/").header("x-envoy-internal", "true"),
            get("user agent", "/")
                .header("user-agent", "me")
                .header("x-envoy-downstream-service-cluster", "fake"),
            get("scheme https", "/").scheme("https"),
            get("scheme https against the proto", "/")
                .scheme("https")
                .header("x-forwarded-proto", "http"),
        ]
    })
    .await;
}

#[tokio::test]
async fn http_envoy_headers_of_requests() {
    let managers = vec![
        with("default", json!({})),
        with("edge", json!({ "use_remote_address": true })),
        with("suppress", json!({})).router(json!({ "suppress_envoy_headers": true })),
        with("edge and suppress", json!({ "use_remote_address": true }))
            .router(json!({ "suppress_envoy_headers": true })),
    ];
    let headers = [
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-retry-grpc-on", "cancelled"),
        ("x-envoy-max-retries", "2"),
        ("x-envoy-upstream-rq-timeout-ms", "5000"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "500"),
        ("x-envoy-upstream-rq-timeout-alt-response", "1"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
        ("x-envoy-attempt-count", "7"),
        ("x-envoy-original-path", "/x"),
        ("x-envoy-original-host", "x"),
        ("x-envoy-decorator-operation", "op"),
        ("x-envoy-force-trace", "1"),
        ("x-envoy-ip-tags", "tag"),
        ("x-envoy-hedge-on-per-try-timeout", "true"),
        ("x-envoy-downstream-service-node", "node"),
        ("x-envoy-downstream-service-cluster", "cluster"),
        ("x-envoy-upstream-stream-duration-ms", "9000"),
        ("x-envoy-retriable-status-codes", "503"),
        ("x-envoy-retriable-header-names", "x-a"),
        ("x-envoy-is-timeout-retry", "1"),
        ("x-envoy-upstream-alt-stat-name", "stat"),
        ("x-envoy-unknown", "kept"),
        ("x-envoy-livenessprobe", "1"),
        ("grpc-timeout", "1S"),
        ("x-ot-span-context", "span"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("x-b3-traceid", "0af7651916cd43dd"),
        ("x-b3-sampled", "1"),
        ("te", "trailers"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ];
    run("envoy headers of requests", managers, || {
        let one = |(name, value): (&str, &str)| {
            get(&format!("{name}: {value}"), "/")
                .header(name, value)
                .over(&Path::SAME)
        };
        let mut cases: Vec<Case> = headers
            .into_iter()
            .filter(|h| *h != ("te", "gzip"))
            .map(one)
            .collect();
        cases.push(
            get("te: gzip over HTTP/1", "/")
                .header("te", "gzip")
                .over(&Path::FROM_H1),
        );
        cases.push(
            get("one that is external", "/")
                .header("x-envoy-retry-on", "5xx")
                .header("x-forwarded-for", "8.8.8.8"),
        );
        cases
    })
    .await;
}

#[tokio::test]
async fn http_xfcc_without_tls() {
    let modes = [
        "SANITIZE",
        "FORWARD_ONLY",
        "APPEND_FORWARD",
        "SANITIZE_SET",
        "ALWAYS_FORWARD_ONLY",
    ];
    let details = json!({ "subject": true, "cert": true, "chain": true, "dns": true, "uri": true });
    let plain = modes.map(|mode| with(mode, json!({ "forward_client_cert_details": mode })));
    let detailed = modes.map(|mode| {
        let fields =
            json!({ "forward_client_cert_details": mode, "set_current_client_cert_details": details });
        with(&format!("{mode} with details"), fields)
    });
    run("xfcc", plain.into_iter().chain(detailed).collect(), || {
        let spoof = "By=spiffe://evil;Hash=00;URI=spiffe://evil";
        vec![
            get("none", "/"),
            get("spoofed", "/").header("x-forwarded-client-cert", spoof),
            get("spoofed twice", "/")
                .header("x-forwarded-client-cert", spoof)
                .header("x-forwarded-client-cert", "By=2"),
            get("spoofed in capitals", "/").header("X-Forwarded-Client-Cert", spoof),
        ]
    })
    .await;
}

#[tokio::test]
async fn http_hosts() {
    let hosts = json!([
        { "name": "named", "domains": ["test.local"], "routes": [action("/", json!({}))] },
        { "name": "other", "domains": ["*"], "routes": [action("/", json!({ "cluster": "b" }))] },
    ]);
    let managers: Vec<Manager> = vec![
        with("default", json!({})),
        with("strip any", json!({ "strip_any_host_port": true })),
        with("strip matching", json!({ "strip_matching_host_port": true })),
        with("strip dot", json!({ "strip_trailing_host_dot": true })),
        with(
            "strip any and dot",
            json!({ "strip_any_host_port": true, "strip_trailing_host_dot": true }),
        ),
    ];
    let managers = managers
        .into_iter()
        .map(|manager| manager.hosts(hosts.clone()))
        .collect();
    run("hosts", managers, || {
        let names = [
            "test.local",
            "test.local:80",
            "test.local:8080",
            "test.local.",
            "test.local.:80",
            "TEST.local",
            "test.local:",
            "[::1]:80",
            "[::1]",
            "other.test:443",
        ];
        let mut cases: Vec<Case> = names
            .iter()
            .map(|name| get(name, "/").host(name).over(&Path::SAME))
            .collect();
        cases.retain(|case| case.ask.host != "test.local:");
        cases.extend([
            case("CONNECT", "CONNECT", "test.local:80")
                .host("test.local:80")
                .over(&[Path::H1_H1]),
            get("host beside the authority", "/")
                .header("host", "else.test")
                .over(&Path::FROM_H2),
            get("host with a port in HTTP/1", "/")
                .host("test.local:")
                .over(&[Path::H1_H1]),
            get("an empty host", "/").host("").over(&[Path::H1_H1]),
        ]);
        cases
    })
    .await;
}

#[tokio::test]
async fn http_header_limits() {
    let managers = vec![
        with("default", json!({})),
        with(
            "few",
            json!({ "common_http_protocol_options": { "max_headers_count": 20 } }),
        ),
        with(
            "many",
            json!({ "common_http_protocol_options": { "max_headers_count": 300 } }),
        ),
        with("small", json!({ "max_request_headers_kb": 4 })),
        with("large", json!({ "max_request_headers_kb": 96 })),
    ];
    let big = |name: &str, bytes: usize| get(name, "/").header("x-big", &"b".repeat(bytes));
    let many = |name: &str, number: usize| {
        let none = get(name, "/");
        (0..number).fold(none, |case, at| case.header(&format!("x-{at}"), "v"))
    };
    let cases = for_each(&managers, || {
        vec![
            big("3 KB", 3_000).over(&Path::SAME),
            big("5 KB", 5_000).over(&Path::SAME),
            big("50 KB", 50_000).over(&Path::SAME),
            big("70 KB", 70_000).over(&Path::SAME),
            many("10 headers", 10).over(&Path::SAME),
            many("50 headers", 50).over(&Path::SAME),
            many("95 headers", 95).over(&Path::SAME),
            many("110 headers", 110).over(&Path::SAME),
            get("a long path", &format!("/{}", "p".repeat(5_000))).over(&Path::SAME),
            post("a long name", "/")
                .header(&"n".repeat(5_000), "v")
                .over(&[Path::H1_H1]),
            get("a large answer header", "/")
                .wish(&format!("header=x-big: {}", "b".repeat(3_000)))
                .over(&Path::SAME),
        ]
    });
    let group = managers
        .into_iter()
        .fold(Group::new("header limits"), Group::manager);
    group.cases(cases.into_iter().map(too_large)).run(OURS).await;
}

/// What is answered over HTTP/2 where Envoy resets the stream: by the library, and by the manager.
fn too_large(case: Case) -> Case {
    let id = "Headers over their limits, over HTTP/2";
    let by_library = ["-cut: RST_STREAM INTERNAL_ERROR", "+HTTP/2 431", "+body \"\""];
    let by_manager = [
        "-cut: RST_STREAM INTERNAL_ERROR",
        "+HTTP/2 431",
        "+content-length: 31",
        "+content-type: text/plain",
        "+date: <date>",
        "+server: envoy",
        "+body \"Request Header Fields Too Large\"",
    ];
    match case.name.as_str() {
        "default, 70 KB" | "few, 70 KB" | "many, 70 KB" | "small, 5 KB" | "small, 110 headers"
        | "small, a long path" => case.deviates_over(&[Path::H2_H2], id, &by_library),
        "default, 110 headers"
        | "few, 50 headers"
        | "few, 95 headers"
        | "few, 110 headers"
        | "large, 110 headers" => case.deviates_over(&[Path::H2_H2], id, &by_manager),
        _ => case,
    }
}
