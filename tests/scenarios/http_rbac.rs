//! HTTP RBAC: who may ask for what, and every try to get around it by how a path or a header is written.

use attache_tests::http::config::merge;
use attache_tests::http::{Case, Group, Manager, Path, case, get, post};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

/// A manager behind rules with one policy.
fn guarded(name: &str, action: &str, permissions: Value, principals: Value) -> Manager {
    let rules = json!({ "action": action, "policies": {
        "consul-intentions-layer7-0": { "permissions": permissions, "principals": principals },
    }});
    Manager::new(name).filter("rbac", "rbac.v3.RBAC", json!({ "rules": rules }))
}

fn everybody() -> Value {
    json!([{ "any": true }])
}

/// Consul's rules for paths.
fn path(matcher: Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

fn header(matcher: Value) -> Value {
    json!({ "header": matcher })
}

/// Paths that are, or try not to be, one that a rule is about.
const PATHS: &[&str] = &[
    "/secret",
    "/secret/",
    "/secret/x",
    "/secret?x=y",
    "/secret?",
    "/secre",
    "/secrets",
    "/SECRET",
    "/Secret/x",
    "//secret",
    "///secret",
    "/secret//x",
    "/./secret",
    "/x/../secret",
    "/x/..//secret",
    "/secret/../x",
    "/secret/.",
    "/secret/..",
    "/../secret",
    "/%73ecret",
    "/secret%2Fx",
    "/secret%2fx",
    "/%2e/secret",
    "/x/%2e%2e/secret",
    "/x/.%2e/secret",
    "/x%2f..%2fsecret",
    "/x%5c..%5csecret",
    "/secret%5Cx",
    "/secret%00",
    "/secret%20",
    "/secret%3Fx",
    "/secret;x=1",
    "/secret;/x",
    "/x?/secret",
    "/x?p=/../secret",
    "/secret%23x",
    "/%2Fsecret",
    "/.secret",
    "/secret.",
    "/secret/%2e%2e/x",
    "/%%73ecret",
    "/secret%zz",
    "/secret+x",
    "/a/b/../../secret",
    "/a/b/../../../secret",
    "/",
];

/// Paths that only HTTP/1 takes as they are.
const RAW_PATHS: &[&str] = &[
    "/secret#x",
    "\\secret",
    "/x\\..\\secret",
    "/secret\\x",
    "http://test.local/secret",
    "*",
];

fn tries(manager: &str) -> Vec<Case> {
    let of = |path: &&str| {
        get(&format!("{manager}, {path}"), path)
            .on(manager)
            .over(&[Path::H1_H1, Path::H2_H2])
    };
    let raw = |path: &&str| {
        get(&format!("{manager}, {path:?}"), path)
            .on(manager)
            .over(&[Path::H1_H1])
    };
    PATHS.iter().map(of).chain(RAW_PATHS.iter().map(raw)).collect()
}

async fn paths(name: &str, matcher: Value) {
    let normal = json!({ "normalize_path": true });
    // What Consul configures for public listeners of a mesh that asks for all of it.
    let strict = json!({ "normalize_path": true, "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD" });
    let mut group = Group::new(name);
    for (kind, fields) in [("as it comes", json!({})), ("normal", normal), ("strict", strict)] {
        for action in ["DENY", "ALLOW"] {
            let name = format!("{action} {kind}");
            let permissions = json!([path(matcher.clone())]);
            let manager = guarded(&name, action, permissions, everybody()).with(fields.clone());
            group = group.manager(manager).cases(tries(&name));
        }
    }
    group.run(OURS).await;
}

#[tokio::test]
async fn http_rbac_exact_path() {
    paths("RBAC exact path", json!({ "exact": "/secret" })).await;
}

#[tokio::test]
async fn http_rbac_path_prefix() {
    paths("RBAC path prefix", json!({ "prefix": "/secret" })).await;
}

#[tokio::test]
async fn http_rbac_path_regex() {
    paths(
        "RBAC path regex",
        json!({ "safe_regex": { "regex": "/secret(/.*)?" } }),
    )
    .await;
}

/// Permissions by name, of which each is allowed and denied in turn.
fn permissions() -> Vec<(&'static str, Value)> {
    let exact = |name: &str, value: &str| header(json!({ "name": name, "string_match": { "exact": value } }));
    let not = |rule: Value| json!({ "not_rule": rule });
    let all = |rules: Value| json!({ "and_rules": { "rules": rules } });
    let any = |rules: Value| json!({ "or_rules": { "rules": rules } });
    vec![
        ("method", exact(":method", "GET")),
        (
            "methods",
            header(json!({ "name": ":method", "string_match": { "safe_regex": { "regex": "GET|HEAD" } } })),
        ),
        ("header exact", exact("x-key", "value")),
        (
            "header exact any case",
            header(json!({ "name": "x-key", "string_match": { "exact": "VALUE", "ignore_case": true } })),
        ),
        (
            "header prefix",
            header(json!({ "name": "x-key", "string_match": { "prefix": "val" } })),
        ),
        (
            "header suffix",
            header(json!({ "name": "x-key", "string_match": { "suffix": "lue" } })),
        ),
        (
            "header contains",
            header(json!({ "name": "x-key", "string_match": { "contains": "alu" } })),
        ),
        (
            "header regex",
            header(json!({ "name": "x-key", "string_match": { "safe_regex": { "regex": "v.*e" } } })),
        ),
        (
            "header present",
            header(json!({ "name": "x-key", "present_match": true })),
        ),
        (
            "header inverted",
            header(json!({ "name": "x-key", "string_match": { "exact": "value" }, "invert_match": true })),
        ),
        ("header not", not(exact("x-key", "value"))),
        (
            "both",
            all(json!([exact("x-key", "value"), path(json!({ "prefix": "/in" }))])),
        ),
        (
            "either",
            any(json!([exact("x-key", "value"), path(json!({ "prefix": "/in" }))])),
        ),
        (
            "path but not deeper",
            all(json!([
                path(json!({ "prefix": "/in" })),
                not(path(json!({ "prefix": "/in/deep" })))
            ])),
        ),
        ("host", exact(":authority", "test.local")),
        (
            "metadata",
            json!({ "metadata": { "filter": "envoy.filters.http.header_to_metadata",
            "path": [{ "key": "role" }], "value": { "string_match": { "exact": "admin" } } } }),
        ),
        (
            "metadata inverted",
            json!({ "metadata": { "filter": "envoy.filters.http.header_to_metadata",
            "path": [{ "key": "role" }], "value": { "string_match": { "exact": "admin" } }, "invert": true } }),
        ),
        (
            "port",
            json!({ "destination_port_range": { "start": 1, "end": 65535 } }),
        ),
        ("everything", json!({ "any": true })),
        ("nothing", json!({ "not_rule": { "any": true } })),
    ]
}

fn asks(manager: &str) -> Vec<Case> {
    let ask = |name: &str, path: &str| {
        get(&format!("{manager}, {name}"), path)
            .on(manager)
            .over(&Path::SAME)
    };
    vec![
        ask("plain", "/"),
        ask("with the header", "/").header("x-key", "value"),
        ask("with another value", "/").header("x-key", "Value"),
        ask("with the header twice", "/")
            .header("x-key", "value")
            .header("x-key", "other"),
        ask("with the header in a list", "/").header("x-key", "value,other"),
        ask("within the path", "/in/side"),
        ask("within the path, with the header", "/in").header("x-key", "value"),
        ask("deeper", "/in/deep/x"),
        ask("another host", "/").host("else.test"),
        ask("a role", "/").header("x-role", "admin"),
        ask("another role", "/").header("x-role", "guest"),
        post(&format!("{manager}, a POST"), "/in")
            .on(manager)
            .over(&Path::SAME),
        case(&format!("{manager}, a HEAD"), "HEAD", "/")
            .on(manager)
            .over(&Path::SAME),
    ]
}

#[tokio::test]
async fn http_rbac_permissions() {
    let roles = json!({ "request_rules": [{ "header": "x-role", "on_header_present": {
        "metadata_namespace": "envoy.filters.http.header_to_metadata", "key": "role", "type": "STRING" }, "remove": false }] });
    for action in ["ALLOW", "DENY"] {
        let mut group = Group::new(&format!("RBAC {action}"));
        for (name, permission) in permissions() {
            let rules = json!({ "action": action, "policies": { "consul-intentions-layer7-0": {
                "permissions": [permission], "principals": everybody() } } });
            let manager = Manager::new(name)
                .filter(
                    "header_to_metadata",
                    "header_to_metadata.v3.Config",
                    roles.clone(),
                )
                .filter("rbac", "rbac.v3.RBAC", json!({ "rules": rules }));
            group = group.manager(manager).cases(asks(name));
        }
        group.run(OURS).await;
    }
}

#[tokio::test]
async fn http_rbac_policies() {
    let get_in = json!({ "permissions": [path(json!({ "prefix": "/in" }))], "principals": everybody() });
    let with_key = json!({ "permissions": [header(json!({ "name": "x-key", "present_match": true }))],
        "principals": everybody() });
    let rbac = |rules: Value| json!({ "rules": rules });
    let nobody =
        json!([{ "authenticated": { "principal_name": { "safe_regex": { "regex": "^spiffe://.*$" } } } }]);
    let remote = json!([{ "direct_remote_ip": { "address_prefix": "127.0.0.0", "prefix_len": 8 } }]);
    let by_header = json!([{ "header": { "name": "x-key", "string_match": { "exact": "value" } } }]);
    let two = json!({ "action": "ALLOW", "policies": { "one": get_in, "two": with_key } });
    let denied = json!({ "action": "DENY", "policies": { "one": get_in } });
    let allowed = json!({ "action": "ALLOW", "policies": { "one": with_key } });
    let kind = "rbac.v3.RBAC";
    let managers = [
        Manager::new("two policies").filter("rbac", kind, rbac(two)),
        Manager::new("deny, then allow")
            .filter("rbac", kind, rbac(denied))
            .filter("rbac", kind, rbac(allowed)),
        Manager::new("allow without policies").filter(
            "rbac",
            kind,
            rbac(json!({ "action": "ALLOW", "policies": {} })),
        ),
        Manager::new("deny without policies").filter(
            "rbac",
            kind,
            rbac(json!({ "action": "DENY", "policies": {} })),
        ),
        Manager::new("no rules").filter("rbac", kind, json!({})),
        guarded(
            "authenticated only",
            "ALLOW",
            json!([{ "any": true }]),
            nobody.clone(),
        ),
        guarded(
            "authenticated denied",
            "DENY",
            json!([{ "any": true }]),
            nobody.clone(),
        ),
        guarded(
            "not authenticated",
            "ALLOW",
            json!([{ "any": true }]),
            json!([{ "not_id": nobody[0] }]),
        ),
        guarded("remote address", "ALLOW", json!([{ "any": true }]), remote),
        guarded("by header", "ALLOW", json!([{ "any": true }]), by_header),
    ];
    let mut group = Group::new("RBAC policies");
    for manager in managers {
        let cases = asks(&manager.name);
        let grpc = post(&format!("{}, gRPC", manager.name), "/pkg.Svc/Call")
            .grpc()
            .on(&manager.name);
        group = group.manager(manager).cases(cases).cases([grpc]);
    }
    group.run(OURS).await;
}

/// Rules that write metadata, each with the header that it is asked by.
fn metadata_rules() -> Vec<(&'static str, Value)> {
    let rule = |fields: Value| {
        let mut rule = json!({ "header": "x-role" });
        merge(&mut rule, fields);
        rule
    };
    let entry = |fields: Value| {
        let mut entry = json!({ "metadata_namespace": "ns", "key": "role" });
        merge(&mut entry, fields);
        entry
    };
    let rewrite =
        json!({ "regex_value_rewrite": { "pattern": { "regex": "^role=(.*)$" }, "substitution": "\\1" } });
    vec![
        ("present", rule(json!({ "on_header_present": entry(json!({})) }))),
        (
            "present, removed",
            rule(json!({ "on_header_present": entry(json!({})), "remove": true })),
        ),
        (
            "constant",
            rule(json!({ "on_header_present": entry(json!({ "value": "admin" })) })),
        ),
        (
            "missing",
            rule(json!({ "on_header_missing": entry(json!({ "value": "admin" })) })),
        ),
        (
            "either",
            rule(json!({ "on_header_present": entry(json!({})),
            "on_header_missing": entry(json!({ "value": "admin" })) })),
        ),
        ("rewritten", rule(json!({ "on_header_present": entry(rewrite) }))),
        (
            "base64",
            rule(json!({ "on_header_present": entry(json!({ "encode": "BASE64" })) })),
        ),
        (
            "number",
            rule(json!({ "on_header_present": entry(json!({ "type": "NUMBER" })) })),
        ),
        (
            "cookie",
            json!({ "cookie": "role", "on_header_present": entry(json!({})) }),
        ),
    ]
}

/// Lets those with the role `admin` pass.
fn admins() -> Value {
    let metadata = json!({ "metadata": { "filter": "ns", "path": [{ "key": "role" }],
        "value": { "string_match": { "exact": "admin" } } } });
    json!({ "rules": { "action": "ALLOW", "policies": { "admins": {
        "permissions": [metadata], "principals": everybody() } } } })
}

#[tokio::test]
async fn http_rbac_metadata() {
    let mut group = Group::new("RBAC metadata");
    for (name, rule) in metadata_rules() {
        let rules = json!({ "request_rules": [rule] });
        let manager = Manager::new(name)
            .filter("header_to_metadata", "header_to_metadata.v3.Config", rules)
            .filter("rbac", "rbac.v3.RBAC", admins());
        let ask = |what: &str| get(&format!("{name}, {what}"), "/").on(name).over(&Path::SAME);
        group = group.manager(manager).cases([
            ask("none"),
            ask("admin").header("x-role", "admin"),
            ask("guest").header("x-role", "guest"),
            ask("empty").header("x-role", ""),
            ask("role=admin").header("x-role", "role=admin"),
            ask("of base64").header("x-role", "YWRtaW4="),
            ask("of bad base64").header("x-role", "%%%"),
            ask("a number").header("x-role", "7"),
            ask("a number and words").header("x-role", "7x"),
            ask("two of them")
                .header("x-role", "admin")
                .header("x-role", "guest"),
            ask("in capitals").header("x-role", "ADMIN"),
            ask("a cookie").header("cookie", "a=b; role=admin"),
            ask("two cookies")
                .header("cookie", "role=guest")
                .header("cookie", "role=admin"),
            ask("a cookie in quotes").header("cookie", "role=\"admin\""),
        ]);
    }
    group.run(OURS).await;
}
