//! Messages: bodies and how they are delimited, methods and statuses without one, interim answers, trailers,
//! the life of a connection, upgrades, what the versions make of each other.

use attache_tests::http::config::merge;
use attache_tests::http::{Case, Group, Manager, Path, case, cluster, get, post, raw};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

/// An answer with so many headers more.
fn many_headers(number: usize) -> String {
    let headers = (0..number).map(|at| format!("header=x-{at}: y"));
    headers.collect::<Vec<_>>().join(";")
}

#[tokio::test]
async fn http_bodies() {
    let mut cases: Vec<Case> = Vec::new();
    for (name, size) in [
        ("no body", 0),
        ("one byte", 1),
        ("1 KB", 1_000),
        ("100 KB", 100_000),
        ("1 MB", 1_000_000),
    ] {
        cases.extend([
            post(&format!("{name} up"), "/").body("u".repeat(size)),
            post(&format!("{name} up, in chunks"), "/")
                .body("u".repeat(size))
                .chunked(),
            get(&format!("{name} down"), "/").wish(&format!("size={size}")),
            get(&format!("{name} down, in chunks"), "/").wish(&format!("size={size};chunked")),
        ]);
    }
    let to_end = get("to the end of the upstream's connection", "/").wish("to-end;size=5000");
    cases.push(to_end.over(&[Path::H1_H1, Path::H2_H1]));
    for method in ["GET", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE"] {
        cases.push(case(&format!("{method} with a body"), method, "/").body("abc"));
        cases.push(case(&format!("{method} without one"), method, "/"));
    }
    for status in [
        200, 201, 202, 204, 205, 206, 301, 304, 400, 401, 404, 429, 500, 502, 503, 504, 599,
    ] {
        cases.push(get(&format!("status {status}"), "/").wish(&format!("status={status}")));
        cases.push(case(&format!("status {status} to HEAD"), "HEAD", "/").wish(&format!("status={status}")));
    }
    cases.extend([
        get("204 that tells a length", "/")
            .wish("status=204;header=content-length: 0")
            .over(&[Path::H1_H1, Path::H2_H1]),
        get("304 that tells a length", "/").wish("status=304;header=content-length: 10"),
        get("an answer without a length", "/").wish("no-length;header=content-length: 0"),
        get("an answer that says its length twice", "/")
            .wish("text=abc;header=content-length: 3")
            .over(&[Path::H1_H2, Path::H2_H2]),
        get("an answer with 120 headers", "/")
            .wish(&many_headers(120))
            .over(&[Path::H1_H2, Path::H2_H2]),
        get("an answer with 90 headers", "/").wish(&many_headers(90)),
        case("HEAD of a long body", "HEAD", "/").wish("size=12345"),
        case("HEAD in chunks", "HEAD", "/").wish("chunked"),
        get("the body comes in two parts", "/").wish("size=100;pause=50"),
        get("the body comes in two chunks", "/").wish("size=100;pause=50;chunked"),
        post("an answer before the body is read", "/")
            .wish("early;size=10")
            .body("u".repeat(1000)),
        post("an answer that closes", "/").wish("close"),
        get("twice on a connection", "/").times(2),
        post("three times on a connection", "/").times(3),
        get("an upstream that closes, then again", "/")
            .wish("close")
            .times(2),
    ]);
    Group::new("bodies")
        .manager(Manager::new("main"))
        .cases(cases)
        .run(OURS)
        .await;
}

fn interim() -> Vec<Case> {
    vec![
        get("trailers down", "/").wish("trailer=x-sum: 1;trailer=x-more: 2"),
        get("trailers down without a body", "/").wish("text=;trailer=x-sum: 1"),
        get("a trailer for HEAD", "/").wish("trailer=x-sum: 1"),
        post("trailers up", "/")
            .trailer("x-sum", "1")
            .trailer("x-more", "2"),
        post("trailers both ways", "/")
            .trailer("x-up", "1")
            .wish("trailer=x-down: 2"),
        post("trailers up, told of", "/")
            .header("trailer", "x-sum")
            .trailer("x-sum", "1"),
        post("te trailers", "/")
            .header("te", "trailers")
            .trailer("x-sum", "1")
            .wish("trailer=x-down: 2"),
        post("trailers that are headers", "/")
            .trailer("content-length", "3")
            .trailer("host", "x")
            .over(&Path::FROM_H1),
        get("hint 103", "/").wish("hint=103"),
        get("hint 102", "/").wish("hint=102"),
        get("hint 100", "/").wish("hint=100"),
        post("expect", "/").expecting(),
        post("expect and a large body", "/")
            .body("u".repeat(100_000))
            .expecting(),
        post("expect, in chunks", "/").chunked().expecting(),
        post("expect, refused by the app", "/")
            .wish("early;delay=100;status=417;close")
            .expecting(),
        post("expect something else", "/").header("expect", "something"),
        get("expect without a body", "/").header("expect", "100-continue"),
        post("expect from a direct answer", "/direct").expecting(),
        post("expect from nobody", "/none").host("nobody").expecting(),
    ]
}

/// The same cases through managers with these fields.
fn interim_group(name: &str, managers: &[(&str, Value)]) -> Group {
    let routes = json!([
        { "match": { "path": "/direct" }, "direct_response": { "status": 403 } },
        { "match": { "path": "/none" }, "route": { "cluster": "nowhere" } },
        action("/", json!({})),
    ]);
    let mut group = Group::new(name);
    for (name, fields) in managers {
        let of = interim().into_iter().map(|mut case| {
            case.name = format!("{name}, {}", case.name);
            case.on(name)
        });
        let manager = Manager::new(name).with(fields.clone()).routes(routes.clone());
        group = group.manager(manager).cases(of);
    }
    group
}

#[tokio::test]
async fn http_trailers_and_interim_answers() {
    let proxying = json!({ "proxy_100_continue": true });
    let managers = [("plain", json!({})), ("proxying 100", proxying)];
    let group = interim_group("trailers and interim answers", &managers);
    group.run(OURS).await;
}

#[tokio::test]
async fn http_trailers_of_http1() {
    let fields = json!({ "http_protocol_options": { "enable_trailers": true } });
    interim_group("trailers of HTTP/1", &[("with trailers", fields)])
        .refused(
            "Options that Consul does not set",
            "enable_trailers is not supported",
        )
        .run(OURS)
        .await;
}

const HOST: &str = "host: test.local\r\n";

/// An HTTP/1 message byte for byte.
fn exactly(name: &str, bytes: &str) -> Case {
    raw(name, bytes).over(&[Path::H1_H1])
}

fn request_lines() -> Vec<Case> {
    let lines = [
        ("HTTP/1.0", "GET / HTTP/1.0"),
        ("HTTP/1.2", "GET / HTTP/1.2"),
        ("HTTP/2.0", "GET / HTTP/2.0"),
        ("HTTP/0.9", "GET /"),
        ("absolute form", "GET http://else.test/x?y=z HTTP/1.1"),
        ("absolute form of https", "GET https://else.test/x HTTP/1.1"),
        ("absolute form without a path", "GET http://else.test HTTP/1.1"),
        (
            "absolute form of another scheme",
            "GET ftp://else.test/x HTTP/1.1",
        ),
        ("asterisk", "OPTIONS * HTTP/1.1"),
        ("asterisk of GET", "GET * HTTP/1.1"),
        ("no slash", "GET x HTTP/1.1"),
        ("a fragment", "GET /x#frag HTTP/1.1"),
        ("a fragment after the query", "GET /x?a=b#frag HTTP/1.1"),
        ("a space in the path", "GET /a b HTTP/1.1"),
        ("a backslash", "GET /a\\b HTTP/1.1"),
        ("bytes above 127", "GET /caf\u{e9} HTTP/1.1"),
        ("an unknown method", "BREW / HTTP/1.1"),
        ("a method in small letters", "get / HTTP/1.1"),
        ("an empty line first", "\r\nGET / HTTP/1.1"),
    ];
    let mut cases: Vec<Case> = lines
        .iter()
        .map(|(name, line)| exactly(name, &format!("{line}\r\n{HOST}\r\n")))
        .collect();
    cases.extend([
        exactly("HTTP/1.0 without a host", "GET / HTTP/1.0\r\n\r\n"),
        exactly(
            "HTTP/1.0 keep-alive",
            &format!("GET / HTTP/1.0\r\n{HOST}connection: keep-alive\r\n\r\n"),
        ),
        exactly("no host", "GET / HTTP/1.1\r\n\r\n"),
    ]);
    cases
}

fn fields() -> Vec<Case> {
    let fields = [
        ("keep-alive", "connection: keep-alive\r\n"),
        ("close", "connection: close\r\n"),
        ("Close", "Connection: Close\r\n"),
        ("close and more", "connection: x-a, close\r\nx-a: 1\r\n"),
        (
            "connection names a header",
            "connection: x-a\r\nx-a: 1\r\nx-b: 2\r\n",
        ),
        ("proxy-connection", "proxy-connection: keep-alive\r\n"),
        ("keep-alive header", "keep-alive: timeout=5\r\n"),
        ("space before the colon", "x-a : one\r\n"),
        ("no colon", "x-a\r\n"),
        ("an empty name", ": one\r\n"),
        ("a name with a space", "x a: one\r\n"),
        ("an empty value", "x-a:\r\n"),
        ("spaces around a value", "x-a:  \t one \t \r\n"),
        ("bytes above 127 in a value", "x-a: caf\u{e9}\r\n"),
        ("a control byte in a value", "x-a: a\u{1}b\r\n"),
        ("a name in capitals", "X-Capital: V\r\n"),
        ("many of one name", "x-a: 1\r\nx-a: 2\r\nX-A: 3\r\n"),
        ("a cookie twice", "cookie: a=1\r\ncookie: b=2\r\n"),
    ];
    let case = |(name, lines): (&str, &str)| exactly(name, &format!("GET / HTTP/1.1\r\n{HOST}{lines}\r\n"));
    fields.map(case).to_vec()
}

fn lengths() -> Vec<Case> {
    let chunked = "transfer-encoding: chunked\r\n";
    let posts = [
        (
            "both lengths",
            format!("content-length: 3\r\n{chunked}\r\n0\r\n\r\n"),
        ),
        (
            "two equal lengths",
            "content-length: 3\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        ),
        (
            "two lengths",
            "content-length: 3\r\ncontent-length: 4\r\n\r\nabc".to_owned(),
        ),
        ("length list", "content-length: 3, 3\r\n\r\nabc".to_owned()),
        ("negative length", "content-length: -3\r\n\r\nabc".to_owned()),
        ("length with a plus", "content-length: +3\r\n\r\nabc".to_owned()),
        ("length no number", "content-length: abc\r\n\r\nabc".to_owned()),
        (
            "chunk extensions",
            format!("{chunked}\r\n3;x=y\r\nabc\r\n0\r\n\r\n"),
        ),
        (
            "chunk size with capitals",
            format!("{chunked}\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        ),
        (
            "transfer-encoding gzip",
            "transfer-encoding: gzip\r\n\r\nabc".to_owned(),
        ),
        (
            "transfer-encoding gzip, chunked",
            "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "transfer-encoding Chunked",
            "Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "transfer-encoding identity",
            "transfer-encoding: identity\r\n\r\n".to_owned(),
        ),
    ];
    let case = |(name, rest): (&str, String)| exactly(name, &format!("POST / HTTP/1.1\r\n{HOST}{rest}"));
    posts.map(case).to_vec()
}

#[tokio::test]
async fn http_connections() {
    let limited = json!({ "common_http_protocol_options": { "max_requests_per_connection": 2 } });
    let one = "GET /1 HTTP/1.1\r\nhost: test.local\r\n\r\n";
    let two = "GET /2 HTTP/1.1\r\nhost: test.local\r\n\r\n";
    let posted = "POST /3 HTTP/1.1\r\nhost: test.local\r\ncontent-length: 3\r\n\r\nabc";
    let cases = [
        raw("two at once", &format!("{one}{two}")).answers(2),
        raw(
            "three at once, the middle with a body",
            &format!("{one}{posted}{two}"),
        )
        .answers(3),
        raw("a bad one after a good one", &format!("{one}BAD\r\n\r\n"))
            .answers(2)
            .over(&[Path::H1_H1]),
        raw(
            "a close between two",
            &format!("GET /1 HTTP/1.1\r\nhost: test.local\r\nconnection: close\r\n\r\n{two}"),
        )
        .answers(2),
        get("limited, once", "/").on("limited"),
        get("limited, twice", "/").on("limited").times(2),
        post("limited, twice with bodies", "/").on("limited").times(2),
        get("an upstream connection serves two", "/")
            .times(2)
            .on("upstream once"),
    ];
    let once =
        cluster("c").options(json!({ "common_http_protocol_options": { "max_requests_per_connection": 1 } }));
    Group::new("connections")
        .manager(Manager::new("main"))
        .manager(Manager::new("limited").with(limited))
        .manager(Manager::new("upstream once").routes(json!([action("/", json!({ "cluster": "c" }))])))
        .cluster(once)
        .cases(cases)
        .cases(request_lines())
        .cases(fields())
        .cases(lengths())
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_10_accepted() {
    let http10 = json!({ "http_protocol_options": { "accept_http_10": true,
        "default_host_for_http_10": "old.test" } });
    let old = request_lines()
        .into_iter()
        .filter(|case| case.name.contains("1.0"));
    Group::new("HTTP/1.0 accepted")
        .manager(Manager::new("main").with(http10))
        .cases(old)
        .refused(
            "Options that Consul does not set",
            "accept_http_10 is not supported",
        )
        .run(OURS)
        .await;
}

/// Requests for upgrades, of managers that allow some and of one that allows none.
fn upgrade_group(name: &str, allowing: Value) -> Group {
    let mut fields = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }, { "upgrade_type": "Echo" },
        { "upgrade_type": "off", "enabled": false }] });
    let extended = allowing.get("http2_protocol_options").is_some();
    merge(&mut fields, allowing);
    let routes: Value = json!([
        { "match": { "prefix": "/none" }, "route": { "cluster": "nowhere" } },
        { "match": { "prefix": "/short" }, "route": { "cluster": "a", "timeout": "0.2s" } },
        action("/", json!({})),
    ]);
    let asks = |path: &str, kind: &str, name: &str| get(name, path).upgrading(kind).body("hello");
    let mut group = Group::new(name);
    for (name, manager) in [
        ("allowed", Manager::new("allowed").with(fields)),
        ("denied", Manager::new("denied")),
    ] {
        let mut ordinary = asks("/", "websocket", "answered as an ordinary request")
            .wish("early;status=200")
            .over(&[Path::H1_H1]);
        if name == "allowed" {
            let lines = [
                "-content-length: 0",
                "+content-length: 1",
                "-body \"\"",
                "+body \"a\"",
            ];
            ordinary = ordinary.deviates("An upgrade that is answered with 200", &lines);
        }
        let cases = [
            asks("/", "websocket", "websocket").wish("upgrade"),
            asks("/", "WebSocket", "websocket in capitals").wish("upgrade"),
            asks("/", "echo", "echo").wish("upgrade"),
            asks("/", "off", "one that is off").wish("upgrade"),
            asks("/", "h2c", "h2c"),
            asks("/", "other", "one that is not named").wish("upgrade"),
            asks("/", "websocket", "refused by the app").wish("early;status=403"),
            ordinary,
            asks("/none", "websocket", "without a cluster").wish("upgrade"),
            asks("/short", "websocket", "not cut by the route's timeout").wish("upgrade"),
        ];
        let cases = cases.map(|mut case| {
            case.name = format!("{name}, {}", case.name);
            if case.ask.headers.iter().any(|(_, wish)| wish == "upgrade") && upgraded(&case.name) {
                let lines = ["->   given up by the proxy", "+>   upgraded, ended"];
                case = case.deviates_over(&[Path::H1_H2], "The end of one side of an upgrade", &lines);
            }
            if extended
                && DENIED
                    .iter()
                    .any(|denied| case.name == format!("allowed, {denied}"))
            {
                let lines = ["-connection ended: GOAWAY NO_ERROR", "+connection kept"];
                case = case.deviates_over(&Path::FROM_H2, "An extended CONNECT that is denied", &lines);
            }
            case.on(name)
        });
        group = group.manager(manager.routes(routes.clone())).cases(cases);
    }
    group
}

/// Upgrades that a manager with others does not allow.
const DENIED: [&str; 3] = ["one that is off", "h2c", "one that is not named"];

/// Whether a case's upgrade comes about.
fn upgraded(case: &str) -> bool {
    let granted = [
        "websocket",
        "websocket in capitals",
        "echo",
        "not cut by the route's timeout",
    ];
    case.strip_prefix("allowed, ")
        .is_some_and(|case| granted.contains(&case))
}

#[tokio::test]
async fn http_upgrades() {
    upgrade_group("upgrades", json!({})).run(OURS).await;
}

#[tokio::test]
async fn http_upgrades_by_extended_connect() {
    let fields = json!({ "http2_protocol_options": { "allow_connect": true } });
    upgrade_group("upgrades by extended CONNECT", fields)
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_between_versions() {
    let h2 = |name: &str| get(name, "/").over(&Path::FROM_H2);
    let cases = [
        h2("cookie crumbs")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("cookie", "c=3; d=4"),
        h2("set-cookie twice").wish("header=set-cookie: a=1;header=set-cookie: b=2"),
        h2("te trailers").header("te", "trailers"),
        h2("a host of its own").header("host", "else.test"),
        h2("the same host").header("host", "test.local"),
        h2("a scheme").scheme("https"),
        h2("connection of the app").wish("header=connection: x-a;header=x-a: 1;header=keep-alive: timeout=1"),
        h2("proxy-connection of the app").wish("header=proxy-connection: close"),
        h2("upgrade of the app").wish("header=upgrade: h2c"),
        get("transfer-encoding of the app", "/").wish("chunked;size=10"),
        post("many on a connection", "/").times(5),
        get("ten at once", "/").at_once(10),
        post("fifty at once with bodies", "/")
            .body("u".repeat(10_000))
            .at_once(50),
        get("ten large answers at once", "/")
            .wish("size=200000")
            .at_once(10),
        get("ten slow answers at once", "/")
            .wish("delay=100;size=10")
            .at_once(10),
        get("ten that are cut", "/")
            .wish("hangup")
            .at_once(10)
            .over(&[Path::H2_H2]),
        get("accept", "/")
            .header("accept", "a")
            .header("accept", "b")
            .header("accept", "c"),
        get("unknown names twice", "/")
            .header("x-a", "1")
            .header("x-a", "2")
            .wish("header=x-b: 1;header=x-b: 2"),
        get("empty values", "/").header("x-a", "").wish("header=x-b:"),
        get("values with commas", "/")
            .header("x-a", "1, 2,3")
            .wish("header=x-b: 1, 2,3"),
        get("upper case from the app", "/")
            .wish("header=X-Upper: V")
            .over(&[Path::H1_H1, Path::H2_H1]),
        get("content-encoding", "/")
            .header("accept-encoding", "gzip")
            .wish("header=content-encoding: gzip;header=vary: accept-encoding"),
        get("range", "/")
            .header("range", "bytes=0-3")
            .wish("status=206;header=content-range: bytes 0-3/10;text=0123"),
        get("authorization", "/")
            .header("authorization", "Bearer x")
            .wish("status=401;header=www-authenticate: Basic"),
        get("origin", "/")
            .header("origin", "http://x")
            .wish("header=access-control-allow-origin: *"),
        case("HEAD", "HEAD", "/").wish("size=7"),
        case("OPTIONS", "OPTIONS", "/"),
        get("cache headers", "/")
            .header("if-none-match", "\"x\"")
            .wish("status=304;header=etag: \"x\""),
    ];
    Group::new("between versions")
        .manager(Manager::new("main"))
        .cases(cases)
        .run(OURS)
        .await;
}
