//! What becomes of paths and header names before a route is looked for.

use attache_tests::http::{Case, Group, Manager, Path, get, post};
use serde_json::{Value, json};

use crate::http_rewrites::action;
use crate::xds_mesh::OURS;

const PATHS: &[&str] = &[
    "/a",
    "/a/",
    "//a",
    "/a//b",
    "/a///b//",
    "/./a",
    "/a/./b",
    "/a/.",
    "/a/..",
    "/a/../b",
    "/a/b/../../c",
    "/../a",
    "/a/../../b",
    "/%41",
    "/%61",
    "/%7Ea",
    "/a%2Eb",
    "/%2e/a",
    "/a/%2E%2e/b",
    "/a/%2e./b",
    "/a%2Fb",
    "/a%2fb",
    "/a%5Cb",
    "/a%5cb",
    "/a%2F%2Fb",
    "/a/%2F/b",
    "/a%2F..%2Fb",
    "/a%2f%2e%2e%2fb",
    "/a%00b",
    "/a%0Ab",
    "/a%7Fb",
    "/a%zz",
    "/a%",
    "/a%2",
    "/a%C3%A9",
    "/a%c3%a9",
    "/a?b=/../c",
    "/a?b=//c",
    "/a?b=%2F",
    "/a/../b?c=d",
    "//a?b//c",
    "/a;b/../c",
    "/a/..;/b",
    "/...",
    "/.../a",
    "/a/...",
    "/a..b",
    "/a%2E%2E/b",
    "/%252e%252e/a",
    "/a%20b",
    "/a+b",
    "/a'b",
    "/a\"b",
    "/a|b",
    "/a{b}",
    "/a^b",
    "/a`b",
    "/a<b>",
    "/a[b]",
    "/a:b@c!d$e&f",
];

/// What HTTP/2's library does not send.
const RAW_PATHS: &[&str] = &["/a\\b", "/a\\..\\b", "\\a", "/a#b", "/a?b#c", "/a/\u{e9}"];

fn tries(manager: &str) -> Vec<Case> {
    let of = |path: &&str| {
        let ask = get(&format!("{manager}, {path}"), path).on(manager);
        ask.over(if path.contains(['"', '|', '{', '^', '`', '<', '[']) {
            &[Path::H1_H1]
        } else {
            &Path::SAME
        })
    };
    let raw = |path: &&str| {
        get(&format!("{manager}, {path}"), path)
            .on(manager)
            .over(&[Path::H1_H1])
    };
    PATHS.iter().map(of).chain(RAW_PATHS.iter().map(raw)).collect()
}

#[tokio::test]
async fn http_normalized_paths() {
    let routes = json!([action("/b", json!({ "cluster": "b" })), action("/", json!({}))]);
    let escaped = |what: &str| json!({ "path_with_escaped_slashes_action": what });
    let both = |mut fields: Value| {
        fields["normalize_path"] = true.into();
        fields["merge_slashes"] = true.into();
        fields
    };
    let managers = [
        ("as it comes", json!({})),
        ("normal", json!({ "normalize_path": true })),
        ("merged", json!({ "merge_slashes": true })),
        ("both", both(json!({}))),
        ("escaped kept", escaped("KEEP_UNCHANGED")),
        ("escaped rejected", escaped("REJECT_REQUEST")),
        ("escaped redirected", escaped("UNESCAPE_AND_REDIRECT")),
        ("escaped unescaped", escaped("UNESCAPE_AND_FORWARD")),
        ("escaped by default", escaped("IMPLEMENTATION_SPECIFIC_DEFAULT")),
        ("both, rejected", both(escaped("REJECT_REQUEST"))),
        ("both, redirected", both(escaped("UNESCAPE_AND_REDIRECT"))),
        ("both, unescaped", both(escaped("UNESCAPE_AND_FORWARD"))),
    ];
    let mut group = Group::new("normalized paths");
    for (name, fields) in managers {
        let grpc = post(&format!("{name}, gRPC"), "/a%2Fb/Call").grpc().on(name);
        let posted = post(&format!("{name}, POST"), "/a%2Fb//../c")
            .on(name)
            .over(&Path::SAME);
        group = group
            .manager(Manager::new(name).with(fields).routes(routes.clone()))
            .cases(tries(name))
            .cases([grpc, posted]);
    }
    group.run(OURS).await;
}

#[tokio::test]
async fn http_headers_with_underscores() {
    let mut group = Group::new("headers with underscores");
    for action in ["ALLOW", "REJECT_REQUEST", "DROP_HEADER"] {
        let fields = json!({ "common_http_protocol_options": { "headers_with_underscores_action": action } });
        let ask = |what: &str| get(&format!("{action}, {what}"), "/").on(action);
        group = group.manager(Manager::new(action).with(fields)).cases([
            ask("none"),
            ask("one").header("x_key", "value"),
            ask("one among others")
                .header("x-a", "1")
                .header("x_key", "value")
                .header("x-b", "2"),
            ask("two").header("x_a", "1").header("x_b", "2"),
            ask("first letter").header("_key", "value"),
            ask("last letter").header("key_", "value"),
            ask("in the value only").header("x-key", "a_b"),
            ask("capitals").header("X_Key", "value").over(&Path::FROM_H1),
            ask("one that looks like another")
                .header("x_forwarded_for", "1.1.1.1")
                .header("content_length", "5"),
            ask("a path with one").header("x-key", "value"),
            post(&format!("{action}, of a POST"), "/")
                .header("x_key", "value")
                .on(action),
            ask("from the app").wish("header=x_back: value"),
            in_a_trailer(ask("in a trailer"), action),
            ask("gRPC").header("x_key", "value").grpc(),
        ]);
    }
    group.run(OURS).await;
}

/// Trailers with underscores stay, whatever the manager does with headers.
fn in_a_trailer(case: Case, action: &str) -> Case {
    let id = "Underscores in the names of trailers";
    let case = case.trailer("x_sum", "1").over(&Path::FROM_H2);
    let answered = [
        "-cut: RST_STREAM INTERNAL_ERROR",
        "+HTTP/2 200",
        "+content-length: 1",
        "+date: <date>",
        "+server: envoy",
        "+x-envoy-upstream-service-time: <milliseconds>",
        "+body \"a\"",
    ];
    let with = |more: &[&'static str]| [&answered[..], more].concat();
    let answered_h1 = with(&["->   the request was cut: closed", "+>   answered"]);
    let answered_h2 = with(&[
        "->   the request was cut",
        "+>   trailer x_sum: 1",
        "+>   answered",
    ]);
    match action {
        "REJECT_REQUEST" => case
            .deviates_over(&[Path::H2_H1], id, &answered_h1)
            .deviates_over(&[Path::H2_H2], id, &answered_h2),
        "DROP_HEADER" => case.deviates_over(&[Path::H2_H2], id, &["+>   trailer x_sum: 1"]),
        _ => case,
    }
}
