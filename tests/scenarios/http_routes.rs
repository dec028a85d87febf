//! Which route takes a request: paths, headers, queries, methods, domains, shares of clusters. Envoy and Attaché
//! choose alike.

use attache_tests::http::{Case, Group, Manager, Path, case, get};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

/// A route to a cluster.
pub(crate) fn to(cluster: &str, matches: Value) -> Value {
    json!({ "match": matches, "route": { "cluster": cluster } })
}

fn regex(text: &str) -> Value {
    json!({ "regex": text })
}

#[tokio::test]
async fn http_paths() {
    let main = Manager::new("main").routes(json!([
        to("a", json!({ "path": "/exact" })),
        to("a", json!({ "path": "/Lower", "case_sensitive": false })),
        to("b", json!({ "prefix": "/pre" })),
        to("b", json!({ "prefix": "/Any/", "case_sensitive": false })),
        to("c", json!({ "path_separated_prefix": "/sep" })),
        to(
            "c",
            json!({ "path_separated_prefix": "/CASE", "case_sensitive": false })
        ),
        to("a", json!({ "safe_regex": regex("/re/[0-9]+") })),
        to("b", json!({ "safe_regex": regex("/either/(one|two)") })),
        to(
            "c",
            json!({ "safe_regex": regex("/Re-Case/x"), "case_sensitive": false })
        ),
        to("a", json!({ "path": "/query?a=b" })),
        to("b", json!({ "path": "/caf%C3%A9" })),
        to("b", json!({ "path": "/both" })),
        to("c", json!({ "prefix": "/both" })),
        to("c", json!({ "safe_regex": regex("/dot/.*\\.txt") })),
    ]));
    Group::new("paths").manager(main).cases(paths()).run(OURS).await;
}

fn paths() -> Vec<Case> {
    [
        ("exact", "/exact"),
        ("exact with a query", "/exact?a=b"),
        ("exact with an empty query", "/exact?"),
        ("longer than exact", "/exact/"),
        ("shorter than exact", "/exac"),
        ("exact in another case", "/EXACT"),
        ("exact of any case", "/lOWER"),
        ("exact of any case, longer", "/lower/"),
        ("prefix", "/prefix/x"),
        ("prefix alone", "/pre"),
        ("prefix with a query", "/pre?x=/y"),
        ("prefix in another case", "/Pre"),
        ("prefix of any case", "/aNY/x"),
        ("prefix of any case without its slash", "/any"),
        ("separated prefix", "/sep/x"),
        ("separated prefix alone", "/sep"),
        ("separated prefix with a query", "/sep?x"),
        ("separated prefix with a slash", "/sep/"),
        ("separated prefix without a slash", "/separated"),
        ("separated prefix of any case", "/case/x"),
        ("separated prefix of any case, without a slash", "/cases"),
        ("regex", "/re/42"),
        ("regex with a query", "/re/42?x=y"),
        ("regex, more after it", "/re/42x"),
        ("regex, more before it", "/x/re/42"),
        ("regex of alternatives", "/either/two"),
        (
            "regex of alternatives, the first only as a part",
            "/either/oneone",
        ),
        ("regex keeps its case", "/re-case/X"),
        ("regex with the case it has", "/Re-Case/x"),
        ("regex with dots", "/dot/a/b.txt"),
        ("regex with dots, not at the end", "/dot/a.txt.gz"),
        ("an exact path with a query never matches", "/query?a=b"),
        ("encoded bytes", "/caf%C3%A9"),
        ("encoded bytes with small digits", "/caf%c3%a9"),
        ("exact before prefix", "/both"),
        ("prefix after exact", "/both2"),
        ("double slash", "//exact"),
        ("dot segments", "/x/../exact"),
        ("encoded slash", "/pre%2Fx"),
        ("semicolon", "/exact;x=1"),
        ("root", "/"),
        (
            "long",
            "/pre/llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll",
        ),
    ]
    .into_iter()
    .map(|(name, path)| get(name, path))
    .collect()
}

/// A route to `b` on a path of its own, where the header holds; otherwise `a`.
fn by_header(path: &str, header: Value) -> Value {
    to("b", json!({ "path": path, "headers": [header] }))
}

fn header_matchers() -> Manager {
    let header = |path: &str, mut fields: Value| {
        fields["name"] = "x-key".into();
        by_header(path, fields)
    };
    let string = |path: &str, matcher: Value| header(path, json!({ "string_match": matcher }));
    let inverted = |path: &str, mut fields: Value| {
        fields["invert_match"] = true.into();
        header(path, fields)
    };
    Manager::new("main").routes(json!([
        string("/exact", json!({ "exact": "value" })),
        string(
            "/exact-any-case",
            json!({ "exact": "Value", "ignore_case": true })
        ),
        string("/prefix", json!({ "prefix": "val" })),
        string(
            "/prefix-any-case",
            json!({ "prefix": "VAL", "ignore_case": true })
        ),
        string("/suffix", json!({ "suffix": "lue" })),
        string("/contains", json!({ "contains": "alu" })),
        string(
            "/contains-any-case",
            json!({ "contains": "ALU", "ignore_case": true })
        ),
        string("/regex", json!({ "safe_regex": { "regex": "va[a-z]+e" } })),
        header("/present", json!({ "present_match": true })),
        header("/absent", json!({ "present_match": false })),
        header("/range", json!({ "range_match": { "start": -5, "end": 10 } })),
        inverted("/not-exact", json!({ "string_match": { "exact": "value" } })),
        inverted("/not-prefix", json!({ "string_match": { "prefix": "val" } })),
        inverted("/not-suffix", json!({ "string_match": { "suffix": "lue" } })),
        inverted("/not-contains", json!({ "string_match": { "contains": "alu" } })),
        inverted(
            "/not-regex",
            json!({ "string_match": { "safe_regex": { "regex": "va.*" } } })
        ),
        inverted("/not-present", json!({ "present_match": true })),
        inverted("/not-range", json!({ "range_match": { "start": -5, "end": 10 } })),
        header("/name-only", json!({})),
        header(
            "/missing-is-empty",
            json!({ "string_match": { "exact": "" },
            "treat_missing_header_as_empty": true })
        ),
        inverted(
            "/not-exact-missing-is-empty",
            json!({ "string_match": { "exact": "value" },
            "treat_missing_header_as_empty": true })
        ),
        header("/old-exact", json!({ "exact_match": "value" })),
        header("/old-prefix", json!({ "prefix_match": "val" })),
        header("/old-suffix", json!({ "suffix_match": "lue" })),
        header("/old-regex", json!({ "safe_regex_match": { "regex": "va.*" } })),
        by_header(
            "/host",
            json!({ "name": ":authority", "string_match": { "exact": "test.local" } })
        ),
        by_header(
            "/scheme",
            json!({ "name": ":scheme", "string_match": { "exact": "http" } })
        ),
        by_header(
            "/path-header",
            json!({ "name": ":path", "string_match": { "suffix": "?q" } })
        ),
        to(
            "b",
            json!({ "path": "/two", "headers": [
                { "name": "x-key", "string_match": { "exact": "value" } },
                { "name": "x-other", "present_match": true },
            ]})
        ),
        to("a", json!({ "prefix": "/" })),
    ]))
}

/// The kinds of string and presence matchers, each a path.
const KINDS: [&str; 23] = [
    "exact",
    "exact-any-case",
    "prefix",
    "prefix-any-case",
    "suffix",
    "contains",
    "contains-any-case",
    "regex",
    "present",
    "absent",
    "not-exact",
    "not-prefix",
    "not-suffix",
    "not-contains",
    "not-regex",
    "not-present",
    "name-only",
    "missing-is-empty",
    "not-exact-missing-is-empty",
    "old-exact",
    "old-prefix",
    "old-suffix",
    "old-regex",
];

/// Which route a request took is all that differs by a header: the same versions on both sides are enough.
fn header_cases(kind: &str) -> [Case; 8] {
    let with = |what: &str, values: &[&str]| {
        let none = get(&format!("{kind}, {what}"), &format!("/{kind}")).over(&Path::SAME);
        values
            .iter()
            .fold(none, |case, value| case.header("x-key", value))
    };
    [
        with("a value that matches", &["value"]),
        with("the value in capitals", &["VALUE"]),
        with("another value", &["other"]),
        with("a longer value", &["a value and more"]),
        with("no header", &[]),
        with("an empty one", &[""]),
        with("two of them", &["value", "other"]),
        with("two of them, the other way round", &["other", "value"]),
    ]
}

#[tokio::test]
async fn http_header_matchers() {
    let mut cases: Vec<Case> = KINDS.iter().flat_map(|kind| header_cases(kind)).collect();
    for kind in ["range", "not-range"] {
        let ask = |what: &str| get(&format!("{kind}, {what}"), &format!("/{kind}")).over(&Path::SAME);
        let values = [
            "-5",
            "-6",
            "0",
            "9",
            "10",
            "+1",
            "1.0",
            "x",
            "",
            "99999999999999999999",
            " 3",
            "0x1",
        ];
        cases.extend(values.map(|value| ask(&format!("{value:?}")).header("x-key", value)));
        cases.push(ask("no header"));
    }
    cases.extend([
        get("authority", "/host"),
        get("another authority", "/host").host("else.local"),
        get("scheme", "/scheme"),
        get("path header", "/path-header?q"),
        get("both of two", "/two")
            .header("x-key", "value")
            .header("x-other", ""),
        get("one of two", "/two").header("x-key", "value"),
        get("name in capitals", "/exact")
            .header("X-KEY", "value")
            .over(&Path::FROM_H1),
        get("two in one line", "/exact").header("x-key", "value,other"),
    ]);
    let group = Group::new("header matchers").manager(header_matchers());
    group.cases(cases).run(OURS).await;
}

#[tokio::test]
async fn http_queries_and_methods() {
    let query = |path: &str, mut matcher: Value| {
        matcher["name"] = "q".into();
        to("b", json!({ "path": path, "query_parameters": [matcher] }))
    };
    let string = |path: &str, matcher: Value| query(path, json!({ "string_match": matcher }));
    let method = |path: &str, matcher: Value| {
        to(
            "b",
            json!({ "path": path, "headers": [{ "name": ":method", "string_match": matcher }] }),
        )
    };
    let main = Manager::new("main").routes(json!([
        string("/exact", json!({ "exact": "v" })),
        string("/exact-any-case", json!({ "exact": "V", "ignore_case": true })),
        string("/prefix", json!({ "prefix": "v" })),
        string("/suffix", json!({ "suffix": "v" })),
        string("/contains", json!({ "contains": "v" })),
        string("/regex", json!({ "safe_regex": { "regex": "v[0-9]*" } })),
        query("/present", json!({ "present_match": true })),
        query("/absent", json!({ "present_match": false })),
        query("/name", json!({})),
        to(
            "b",
            json!({ "path": "/two", "query_parameters": [
                { "name": "q", "string_match": { "exact": "v" } }, { "name": "r", "present_match": true },
            ]})
        ),
        method("/put", json!({ "exact": "PUT" })),
        method(
            "/put-or-delete",
            json!({ "safe_regex": { "regex": "PUT|DELETE" } })
        ),
        to("a", json!({ "prefix": "/" })),
    ]));
    let mut cases = Vec::new();
    for kind in [
        "exact",
        "exact-any-case",
        "prefix",
        "suffix",
        "contains",
        "regex",
        "present",
        "absent",
        "name",
    ] {
        let queries = [
            "", "?", "?q", "?q=", "?q=v", "?q=V", "?q=v1", "?q=1v", "?q=%76", "?Q=v", "?x=q&q=v", "?q=v&q=w",
            "?q=w&q=v", "?q=v=v", "?a=q=v", "?q=v#f", "?&q=v", "?%71=v",
        ];
        let ask = |query: &str| get(&format!("{kind}{query}"), &format!("/{kind}{query}")).over(&Path::SAME);
        cases.extend(
            queries
                .iter()
                .filter(|query| !query.contains('#'))
                .map(|query| ask(query)),
        );
    }
    cases.extend([
        get("both of two", "/two?q=v&r"),
        get("both of two, the other way round", "/two?r=1&q=v"),
        get("one of two", "/two?q=v"),
    ]);
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "put", "FOO"] {
        let bare = |path: &str| case(&format!("{method} {path}"), method, path).over(&Path::SAME);
        cases.extend([bare("/put"), bare("/put-or-delete")]);
    }
    Group::new("queries and methods")
        .manager(main)
        .cases(cases)
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_domains() {
    let host = |name: &str, domains: Value| {
        json!({ "name": name, "domains": domains, "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": name } } },
        ]})
    };
    let hosts = json!([
        host("exact", json!(["exact.test"])),
        host("with port", json!(["port.test:8080"])),
        host("two", json!(["one.test", "two.test"])),
        host("capitals", json!(["Capital.Test"])),
        host("suffix", json!(["*.wild.test"])),
        host("longer suffix", json!(["*.long.wild.test"])),
        host("suffix with a dash", json!(["*-dash.test"])),
        host("prefix", json!(["begin.*"])),
        host("longer prefix", json!(["begin.more.*"])),
        host("any port", json!(["ports.test:*"])),
        host("exact within the wildcard", json!(["exact.wild.test"])),
        host("six", json!(["[::1]:80"])),
    ]);
    let mut with_default = hosts.clone();
    with_default
        .as_array_mut()
        .unwrap()
        .push(host("default", json!(["*"])));
    let ignoring = json!({ "ignore_port_in_host_matching": true });
    let managers = [
        Manager::new("main").hosts(with_default.clone()),
        Manager::new("no default").hosts(hosts),
        Manager::new("ignoring").hosts(with_default).table(ignoring),
    ];
    let names = [
        "exact.test",
        "EXACT.test",
        "exact.test:80",
        "exact.test:8080",
        "exact.test.",
        "port.test:8080",
        "port.test",
        "two.test",
        "capital.test",
        "x.wild.test",
        "x.y.wild.test",
        "wild.test",
        ".wild.test",
        "x.long.wild.test",
        "exact.wild.test",
        "x.wild.test:99",
        "a-dash.test",
        "-dash.test",
        "begin.x",
        "begin.more.x",
        "begin.",
        "begin.x:1",
        "ports.test:1",
        "ports.test",
        "[::1]:80",
        "[::1]",
        "none.test",
        "127.0.0.1",
        "x",
        "a_b.wild.test",
    ];
    let mut group = Group::new("domains");
    for manager in managers {
        let of = manager.name.clone();
        let ask = |name: &&str| {
            get(&format!("{name} ({of})"), "/")
                .host(name)
                .on(&of)
                .over(&[Path::H1_H1, Path::H2_H1])
        };
        group = group.cases(names.iter().map(ask)).manager(manager);
    }
    group.run(OURS).await;
}

#[tokio::test]
async fn http_weighted_clusters() {
    let weighted = |path: &str, clusters: Value| json!({ "match": { "path": path }, "route": { "weighted_clusters": { "clusters": clusters } } });
    let add = |name: &str, value: &str| json!({ "header": { "key": name, "value": value } });
    let set = |name: &str, value: &str| json!({ "header": { "key": name, "value": value }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" });
    let main = Manager::new("main").routes(json!([
        weighted("/all-to-a", json!([{ "name": "a", "weight": 100 }, { "name": "b", "weight": 0 }])),
        weighted("/all-to-b", json!([{ "name": "a", "weight": 0 }, { "name": "b", "weight": 100 }])),
        weighted("/consul", json!([{ "name": "a", "weight": 10000 }, { "name": "b", "weight": 0 }])),
        weighted("/one", json!([{ "name": "c", "weight": 1 }])),
        weighted("/adds", json!([{ "name": "a", "weight": 1,
            "request_headers_to_add": [add("x-split", "one")], "response_headers_to_add": [add("x-back", "one")] }])),
        weighted("/sets", json!([{ "name": "a", "weight": 1,
            "request_headers_to_add": [set("x-split", "one")], "response_headers_to_add": [set("x-back", "one")] }])),
        weighted("/removes", json!([{ "name": "a", "weight": 1,
            "request_headers_to_remove": ["x-split"], "response_headers_to_remove": ["x-back"] }])),
        weighted("/host", json!([{ "name": "a", "weight": 1, "host_rewrite_literal": "split.test" }])),
        weighted("/missing", json!([{ "name": "nowhere", "weight": 1 }, { "name": "a", "weight": 0 }])),
        weighted("/other-side", json!([
            { "name": "a", "weight": 0, "request_headers_to_add": [add("x-split", "zero")] },
            { "name": "b", "weight": 5, "request_headers_to_add": [add("x-split", "five")] },
        ])),
    ]));
    let paths = [
        "/all-to-a",
        "/all-to-b",
        "/consul",
        "/one",
        "/adds",
        "/sets",
        "/removes",
        "/host",
        "/missing",
        "/other-side",
    ];
    let plain = paths.iter().map(|path| get(&format!("{path} plain"), path));
    let dressed = paths.iter().map(|path| {
        get(&format!("{path} with the headers there already"), path)
            .header("x-split", "mine")
            .wish("header=x-back: theirs")
    });
    Group::new("weighted clusters")
        .manager(main)
        .cases(plain.chain(dressed))
        .run(OURS)
        .await;
}
