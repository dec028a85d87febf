//! What a route makes of a request's path and host, redirects, answers of a route's own, and requests that no
//! route or cluster takes.

use attache_tests::http::{Case, Group, Manager, Path, case, cluster, get, post};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

/// A route by prefix to the cluster `a` with these fields of `RouteAction`.
pub(crate) fn action(prefix: &str, fields: Value) -> Value {
    by(json!({ "prefix": prefix }), fields)
}

/// As [`action`], by any match.
pub(crate) fn by(matches: Value, mut fields: Value) -> Value {
    if fields.get("cluster").is_none() && fields.get("weighted_clusters").is_none() {
        fields["cluster"] = "a".into();
    }
    json!({ "match": matches, "route": fields })
}

fn regex(pattern: &str, substitution: &str) -> Value {
    json!({ "regex_rewrite": { "pattern": { "regex": pattern }, "substitution": substitution } })
}

fn paths(list: &[&str]) -> Vec<Case> {
    list.iter().map(|path| get(path, path)).collect()
}

#[tokio::test]
async fn http_path_rewrites() {
    let prefix = |to: &str| json!({ "prefix_rewrite": to });
    let main = Manager::new("main").routes(json!([
        by(json!({ "path": "/exact" }), prefix("/new")),
        action("/strip/", prefix("/")),
        action("/longer", prefix("/much/longer")),
        action("/same", prefix("/same")),
        action("/slash", prefix("/x/")),
        by(json!({ "path_separated_prefix": "/sep" }), prefix("/other")),
        by(
            json!({ "prefix": "/Case", "case_sensitive": false }),
            prefix("/lower")
        ),
        by(json!({ "safe_regex": { "regex": "/whole/.*" } }), prefix("/all")),
        action("/re/", regex("^/re/(\\d+)/(\\w+)", "/x/\\2/y/\\1")),
        action("/every/", regex("a", "b")),
        action("/group0/", regex("[0-9]+", "<\\0>")),
        action("/backslash/", regex("x", "\\\\")),
        action("/remove/", regex("/remove", "")),
        action("/empty-match/", regex("q*", "-")),
        action("/anchor/", regex("/tail$", "/end")),
        action("/any-case/", regex("(?i)ABC", "d")),
        action(
            "/twogroups/",
            regex("/twogroups/([a-z]*)-([a-z]*)", "/\\2-\\1?x=\\1")
        ),
    ]));
    let list = [
        "/exact",
        "/exact?x=1",
        "/strip/",
        "/strip/a/b?c=d",
        "/strip//a",
        "/longer",
        "/longer/a?b",
        "/longerx",
        "/same/x",
        "/slash/a",
        "/sep",
        "/sep/a",
        "/sep?x=y",
        "/case/x",
        "/CASE?y",
        "/whole/thing?q=1",
        "/re/12/ab/z?q=r",
        "/re/12",
        "/re/1/a?x=/re/2/b",
        "/every/banana?a=a",
        "/backslash/x",
        "/remove/a",
        "/remove/remove/x",
        "/empty-match/",
        "/anchor/tail",
        "/anchor/tail/x",
        "/anchor/tail?z",
        "/any-case/aBcABC",
        "/twogroups/one-two",
        "/twogroups/-",
        "/strip/%2e%2e/x",
        "/strip/../x",
    ];
    let more = [
        get("another original path is not believed", "/strip/x").header("x-envoy-original-path", "/evil"),
        post("of a POST", "/strip/x"),
        // What it leads to has characters that the upstream of this side takes over HTTP/1 alone.
        get("all that matched", "/group0/7/42").over(&[Path::H1_H1, Path::H2_H1]),
    ];
    Group::new("path rewrites")
        .manager(main)
        .cases(paths(&list))
        .cases(more)
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_host_rewrites() {
    let literal = json!({ "host_rewrite_literal": "new.test" });
    let with_append = json!({ "host_rewrite_literal": "new.test", "append_x_forwarded_host": true });
    let main = Manager::new("main").routes(json!([
        action("/literal", literal),
        action("/append", with_append),
        action(
            "/auto-append",
            json!({ "auto_host_rewrite": true, "append_x_forwarded_host": true })
        ),
        action("/auto", json!({ "auto_host_rewrite": true })),
        action("/port", json!({ "host_rewrite_literal": "new.test:8080" })),
        action(
            "/same",
            json!({ "host_rewrite_literal": "test.local", "append_x_forwarded_host": true })
        ),
        action(
            "/path-too",
            json!({ "host_rewrite_literal": "new.test", "prefix_rewrite": "/x" })
        ),
        action("/named", json!({ "cluster": "named", "auto_host_rewrite": true })),
        action(
            "/named-append",
            json!({ "cluster": "named", "auto_host_rewrite": true,
            "append_x_forwarded_host": true })
        ),
        action("/none", json!({})),
    ]));
    let list = [
        "/literal",
        "/append",
        "/auto",
        "/auto-append",
        "/port",
        "/same",
        "/path-too/y",
        "/none",
        "/named",
        "/named-append",
    ];
    let dressed = list.map(|path| {
        get(&format!("{path} with headers of that kind there"), path)
            .host("Mixed.Case:99")
            .header("x-forwarded-host", "first.test")
            .header("x-envoy-original-host", "fake.test")
    });
    Group::new("host rewrites")
        .manager(main)
        .cluster(cluster("named").endpoints(&["a"]).hostname("app.test"))
        .cases(paths(&list))
        .cases(dressed)
        .run(OURS)
        .await;
}

fn redirects() -> Value {
    let redirect = |path: &str, fields: Value| json!({ "match": { "prefix": path }, "redirect": fields });
    json!([
        redirect("/host", json!({ "host_redirect": "new.test" })),
        redirect("/path", json!({ "path_redirect": "/new" })),
        redirect("/query-path", json!({ "path_redirect": "/new?fixed=1" })),
        redirect("/strip", json!({ "path_redirect": "/new", "strip_query": true })),
        redirect("/https", json!({ "https_redirect": true })),
        redirect("/scheme", json!({ "scheme_redirect": "ftp" })),
        redirect("/port", json!({ "port_redirect": 8443 })),
        redirect("/all", json!({ "host_redirect": "new.test", "port_redirect": 99, "scheme_redirect": "https",
            "path_redirect": "/all-new", "strip_query": true })),
        redirect("/prefix", json!({ "prefix_rewrite": "/other" })),
        redirect("/regex", json!({ "regex_rewrite": { "pattern": { "regex": "/regex/(.*)" },
            "substitution": "/r/\\1/x" } })),
        redirect("/c301", json!({ "response_code": "MOVED_PERMANENTLY", "host_redirect": "x" })),
        redirect("/c302", json!({ "response_code": "FOUND", "host_redirect": "x" })),
        redirect("/c303", json!({ "response_code": "SEE_OTHER", "host_redirect": "x" })),
        redirect("/c307", json!({ "response_code": "TEMPORARY_REDIRECT", "host_redirect": "x" })),
        redirect("/c308", json!({ "response_code": "PERMANENT_REDIRECT", "host_redirect": "x" })),
        redirect("/strip-only", json!({ "strip_query": true, "host_redirect": "x" })),
        { "match": { "path": "/with-headers" }, "redirect": { "host_redirect": "x" },
          "response_headers_to_add": [{ "header": { "key": "x-added", "value": "yes" } }] },
    ])
}

#[tokio::test]
async fn http_redirects() {
    let list = [
        "/host",
        "/host/a?b=c",
        "/path",
        "/path?b=c",
        "/query-path?b=c",
        "/query-path",
        "/strip?b=c",
        "/https",
        "/https/a?b",
        "/scheme",
        "/port/x",
        "/all?b=c",
        "/prefix/a?b=c",
        "/prefix",
        "/regex/a/b?c=d",
        "/c301/x",
        "/c302",
        "/c303",
        "/c307",
        "/c308",
        "/strip-only?b=c",
        "/with-headers",
    ];
    let of_port = |path: &str| get(&format!("{path} from a host with a port"), path).host("test.local:8080");
    let ports = ["/host", "/path", "/https", "/scheme", "/port", "/all"].map(of_port);
    let of_port_80 =
        |path: &str| get(&format!("{path} from a host with port 80"), path).host("test.local:80");
    let ports_80 = ["/host", "/https", "/scheme", "/port"].map(of_port_80);
    let of_six = |path: &str| get(&format!("{path} from an IPv6 host"), path).host("[::1]:80");
    let six = ["/https", "/path", "/port"].map(of_six);
    let more = [
        post("of a POST", "/host"),
        case("of a HEAD", "HEAD", "/host"),
        get("forwarded as https", "/host").header("x-forwarded-proto", "https"),
        get("forwarded as https to https", "/https").header("x-forwarded-proto", "https"),
        get("forwarded as https, port", "/port").header("x-forwarded-proto", "https"),
    ];
    Group::new("redirects")
        .manager(Manager::new("main").routes(redirects()))
        .cases(paths(&list))
        .cases(ports.into_iter().chain(ports_80).chain(six).chain(more))
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_direct_responses() {
    let direct = |path: &str, status: u16, body: Option<&str>| {
        let mut fields = json!({ "status": status });
        if let Some(body) = body {
            fields["body"] = json!({ "inline_string": body });
        }
        json!({ "match": { "prefix": path }, "direct_response": fields })
    };
    let mut html = direct("/html", 200, Some("<p>"));
    html["response_headers_to_add"] = json!([{ "header": { "key": "content-type", "value": "text/html" },
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }]);
    let mut bytes = direct("/bytes", 200, None);
    bytes["direct_response"]["body"] = json!({ "inline_bytes": "AAH/" });
    let main = Manager::new("main").routes(json!([
        direct("/200", 200, Some("hello")),
        direct("/201", 201, None),
        direct("/204", 204, None),
        direct("/204-body", 204, Some("hello")),
        direct("/304", 304, None),
        direct("/400", 400, Some("bad")),
        direct("/404", 404, Some("gone")),
        direct("/418", 418, None),
        direct("/500", 500, None),
        direct("/503", 503, Some("not now")),
        direct("/599", 599, Some("odd")),
        html,
        bytes,
        direct("/large", 200, Some(&"x".repeat(4000))),
    ]));
    let list = [
        "/200", "/201", "/204", "/304", "/400", "/404", "/418", "/500", "/503", "/599", "/html", "/bytes",
        "/large", "/none",
    ];
    let heads = ["/200", "/204", "/404", "/503"].map(|path| case(&format!("HEAD {path}"), "HEAD", path));
    let posts = ["/200", "/503"].map(|path| post(&format!("POST {path}"), path));
    let chunked = post("POST in chunks", "/200").chunked();
    let grpc =
        ["/200", "/400", "/404", "/503", "/none"].map(|path| post(&format!("gRPC {path}"), path).grpc());
    let twice = get("twice on a connection", "/200").times(2);
    Group::new("direct responses")
        .manager(main)
        .cases(paths(&list))
        .cases(heads.into_iter().chain(posts).chain([chunked, twice]).chain(grpc))
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_nowhere_to_go() {
    let missing = |path: &str, code: Option<&str>| {
        let mut fields = json!({ "cluster": "nowhere" });
        if let Some(code) = code {
            fields["cluster_not_found_response_code"] = code.into();
        }
        action(path, fields)
    };
    let routes = json!([
        missing("/missing", None), missing("/404", Some("NOT_FOUND")), missing("/503", Some("SERVICE_UNAVAILABLE")),
        missing("/500", Some("INTERNAL_SERVER_ERROR")), { "match": { "path": "/set" }, "route": { "cluster": "nowhere" },
          "response_headers_to_add": [{ "header": { "key": "x-added", "value": "yes" } }] },
    ]);
    let no_host = json!([{ "name": "only", "domains": ["only.test"], "routes": routes }]);
    let list = ["/missing", "/404", "/503", "/500", "/set", "/no-route"];
    let posts = list.map(|path| post(&format!("POST {path}"), path));
    let heads = list.map(|path| case(&format!("HEAD {path}"), "HEAD", path));
    let grpc = list.map(|path| post(&format!("gRPC {path}"), path).grpc());
    let hosts = [
        get("a host that no virtual host has", "/missing").on("hosts"),
        post("a POST to a host that no virtual host has", "/missing").on("hosts"),
        post("gRPC to a host that no virtual host has", "/missing")
            .grpc()
            .on("hosts"),
        get("no route of a virtual host", "/none")
            .host("only.test")
            .on("hosts"),
    ];
    Group::new("nowhere to go")
        .manager(Manager::new("main").routes(routes))
        .manager(Manager::new("hosts").hosts(no_host))
        .cases(paths(&list))
        .cases(posts.into_iter().chain(heads).chain(grpc).chain(hosts))
        .cases([get("twice on a connection", "/missing")
            .times(2)
            .over(&Path::SAME)])
        .run(OURS)
        .await;
}
