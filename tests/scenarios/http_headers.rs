//! Headers that the configuration sets, adds and removes, at every level, in Envoy's order, with its operators.

use attache_tests::http::config::merge;
use attache_tests::http::{Case, Group, Manager, Path, get, post};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

/// A `HeaderValueOption` with an action.
fn option(name: &str, value: &str, action: &str) -> Value {
    json!({ "header": { "key": name, "value": value }, "append_action": action })
}

fn append(name: &str, value: &str) -> Value {
    option(name, value, "APPEND_IF_EXISTS_OR_ADD")
}

fn set(name: &str, value: &str) -> Value {
    option(name, value, "OVERWRITE_IF_EXISTS_OR_ADD")
}

const ACTIONS: [&str; 4] = [
    "APPEND_IF_EXISTS_OR_ADD",
    "ADD_IF_ABSENT",
    "OVERWRITE_IF_EXISTS_OR_ADD",
    "OVERWRITE_IF_EXISTS",
];

/// Both ways.
fn both(options: Value) -> Value {
    json!({ "request_headers_to_add": options, "response_headers_to_add": options })
}

/// Both ways.
fn remove(names: Value) -> Value {
    json!({ "request_headers_to_remove": names, "response_headers_to_remove": names })
}

/// Routes by their path, each with its changes of headers.
fn action_routes() -> Vec<(String, Value)> {
    let keep = json!({ "header": { "key": "x-key", "value": "" }, "keep_empty_value": true });
    let mut remove_then_add = both(json!([append("x-key", "ours")]));
    merge(&mut remove_then_add, remove(json!(["x-key"])));
    let known = json!({
        "request_headers_to_add": [set("user-agent", "ours"), set("content-type", "text/ours"),
            append("accept", "ours"), append("cookie", "a=ours"), append("x-forwarded-for", "9.9.9.9")],
        "response_headers_to_add": [set("server", "ours"), set("content-type", "text/ours"),
            append("set-cookie", "a=ours"), append("vary", "ours"), set("date", "ours")],
    });
    let remove_known = json!({
        "request_headers_to_remove": ["user-agent", "x-forwarded-proto", "x-request-id"],
        "response_headers_to_remove": ["server", "date", "x-envoy-upstream-service-time"],
    });
    let of_action = ACTIONS.map(|action| {
        let one = option("x-key", "ours", action);
        (format!("/{action}"), both(json!([one])))
    });
    let more = [
        (
            "/default",
            both(json!([{ "header": { "key": "x-key", "value": "ours" } }])),
        ),
        ("/remove", remove(json!(["x-key"]))),
        ("/remove-capitals", remove(json!(["X-Key"]))),
        ("/remove-then-add", remove_then_add),
        (
            "/two",
            both(json!([append("x-key", "one"), append("x-key", "two")])),
        ),
        (
            "/set-then-append",
            both(json!([set("x-key", "one"), append("x-key", "two")])),
        ),
        (
            "/append-then-set",
            both(json!([append("x-key", "one"), set("x-key", "two")])),
        ),
        ("/empty", both(json!([set("x-key", "")]))),
        ("/keep-empty", both(json!([keep]))),
        ("/capitals", both(json!([append("X-KeY", "ours")]))),
        ("/known", known),
        ("/remove-known", remove_known),
    ];
    let more = more.map(|(path, fields)| (path.to_owned(), fields));
    of_action.into_iter().chain(more).collect()
}

#[tokio::test]
async fn http_header_actions() {
    let (mut routes, mut cases): (Vec<Value>, Vec<Case>) = (Vec::new(), Vec::new());
    for (path, fields) in action_routes() {
        let mut route = json!({ "match": { "path": path }, "route": { "cluster": "a" } });
        merge(&mut route, fields);
        routes.push(route);
        let ask = |what: &str| get(&format!("{path}, {what}"), &path);
        let twice = ask("there twice")
            .header("x-key", "one of theirs")
            .header("x-key", "two of theirs");
        cases.extend([
            ask("absent"),
            ask("there").header("x-key", "theirs").wish("header=x-key: back"),
            twice
                .wish("header=x-key: back;header=x-key: again")
                .over(&Path::SAME),
        ]);
    }
    let known = get("known ones there", "/known")
        .header("user-agent", "me")
        .header("accept", "me");
    cases.extend([
        known
            .header("cookie", "b=me")
            .header("x-forwarded-for", "1.1.1.1")
            .wish("header=set-cookie: b=c;header=vary: x;header=server: app"),
        get("known ones removed", "/remove-known").header("user-agent", "me"),
    ]);
    let manager = Manager::new("main").routes(json!(routes));
    Group::new("header actions")
        .manager(manager)
        .cases(cases)
        .run(OURS)
        .await;
}

/// Changes of headers as every level makes them, told apart by the level's name.
fn level(name: &str) -> Value {
    json!({
        "request_headers_to_add": [append("x-append", name), set("x-set", name),
            option("x-absent", name, "ADD_IF_ABSENT"), append(&format!("x-of-{name}"), "yes"),
            option("x-there", name, "OVERWRITE_IF_EXISTS")],
        "request_headers_to_remove": [format!("x-drop-{name}")],
        "response_headers_to_add": [append("x-append", name), set("x-set", name),
            option("x-absent", name, "ADD_IF_ABSENT"), append(&format!("x-of-{name}"), "yes")],
        "response_headers_to_remove": [format!("x-drop-{name}")],
    })
}

/// Removes what another level adds.
fn against(name: &str) -> Value {
    json!({ "request_headers_to_remove": [format!("x-of-{name}"), "x-set"],
        "response_headers_to_remove": [format!("x-of-{name}"), "x-set"] })
}

fn leveled(name: &str, specific_wins: bool) -> Manager {
    let mut weighted = json!({ "name": "a", "weight": 1 });
    merge(&mut weighted, level("cluster"));
    let route = |path: &str, extra: Value| {
        let mut route = json!({ "match": { "path": path },
            "route": { "weighted_clusters": { "clusters": [weighted] } } });
        merge(&mut route, extra);
        route
    };
    let direct = |path: &str| {
        let mut route = json!({ "match": { "path": path }, "direct_response": { "status": 200 } });
        merge(&mut route, level("route"));
        route
    };
    let host = |name: &str, fields: Value| {
        let routes = json!([
            route("/all", level("route")),
            route("/fewer", json!({})),
            route("/against-host", against("host")),
            route("/against-table", against("table")),
            route("/against-cluster", against("cluster")),
            direct("/direct")
        ]);
        let mut host = json!({ "name": name, "domains": [format!("{name}.test")], "routes": routes });
        merge(&mut host, fields);
        host
    };
    Manager::new(name)
        .hosts(json!([
            host("with", level("host")),
            host("without", json!({})),
            host("against", against("table"))
        ]))
        .table(level("table"))
        .table(json!({ "most_specific_header_mutations_wins": specific_wins }))
}

#[tokio::test]
async fn http_header_levels() {
    let mut cases = Vec::new();
    for manager in ["table wins", "route wins"] {
        for host in ["with.test", "without.test", "against.test"] {
            for path in [
                "/all",
                "/fewer",
                "/against-host",
                "/against-table",
                "/against-cluster",
                "/direct",
                "/none",
            ] {
                let name = format!("{manager}, {host}{path}");
                let plain = get(&name, path).on(manager).host(host).over(&Path::SAME);
                let mut dressed = get(&format!("{name}, there already"), path)
                    .on(manager)
                    .host(host)
                    .over(&Path::SAME);
                for header in [
                    "x-append",
                    "x-set",
                    "x-absent",
                    "x-there",
                    "x-drop-table",
                    "x-drop-host",
                    "x-drop-route",
                ] {
                    dressed = dressed.header(header, "mine");
                }
                let back = "header=x-append: back;header=x-set: back;header=x-absent: back;header=x-drop-table: back;header=x-drop-route: back";
                cases.extend([plain, dressed.wish(back)]);
            }
        }
    }
    Group::new("header levels")
        .manager(leveled("table wins", false))
        .manager(leveled("route wins", true))
        .cases(cases)
        .run(OURS)
        .await;
}

/// Operators whose value is the same in each run, or has a name in outcomes.
const OPERATORS: &[&str] = &[
    "plain",
    "100%%",
    "%DOWNSTREAM_REMOTE_ADDRESS%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_LOCAL_ADDRESS%",
    "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_LOCAL_PORT%",
    "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
    "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%PROTOCOL%",
    "%REQ(:path)%",
    "%REQ(:METHOD)%",
    "%REQ(:AUTHORITY)%",
    "%REQ(x-key)%",
    "%REQ(X-KEY?:path)%",
    "%REQ(x-none?x-key)%",
    "%REQ(x-key):3%",
    "%REQ(x-none)%",
    "a %REQ(x-key)% b %REQ(x-none)% c",
    "%HOSTNAME_OF_NOBODY",
    "%UPSTREAM_CLUSTER%",
    "%ROUTE_NAME%",
    "%VIRTUAL_CLUSTER_NAME%",
    "%UPSTREAM_REMOTE_ADDRESS%",
    "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%UPSTREAM_HOST%",
    "%RESPONSE_CODE%",
    "%RESP(x-back)%",
    "%RESP(:status)%",
    "%RESPONSE_FLAGS%",
    "%RESPONSE_CODE_DETAILS%",
    "%BYTES_RECEIVED%",
    "%REQUESTED_SERVER_NAME%",
    "%DOWNSTREAM_PEER_URI_SAN%",
    "%DOWNSTREAM_PEER_SUBJECT%",
    "%DOWNSTREAM_TLS_VERSION%",
    "%FILTER_CHAIN_NAME%",
    "%DYNAMIC_METADATA(envoy.lb:key)%",
    "%REQUEST_HEADERS_BYTES%",
    "%UPSTREAM_PROTOCOL%",
    "%CONNECTION_TERMINATION_DETAILS%",
    "%START_TIME(no)%",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "%PATH(NQ)%",
    "%PATH(WQ)%",
    "%QUERY_PARAM(q)%",
    "%UPSTREAM_CLUSTER_RAW%",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
];

#[tokio::test]
async fn http_header_operators() {
    let good: Vec<&&str> = OPERATORS
        .iter()
        .filter(|text| !text.starts_with("%HOSTNAME_"))
        .collect();
    let routes: Vec<Value> = good
        .iter()
        .enumerate()
        .map(|(at, text)| {
            json!({ "name": "the-route", "match": { "path": format!("/{at}") }, "route": { "cluster": "a" },
                "request_headers_to_add": [set("x-value", text)], "response_headers_to_add": [set("x-value", text)] })
        })
        .collect();
    let cases = good.iter().enumerate().map(|(at, text)| {
        get(text, &format!("/{at}?q=1"))
            .header("x-key", "a value")
            .wish("header=x-back: back")
            .over(&Path::SAME)
    });
    let bodies = post("bytes received of a body", "/32").over(&Path::SAME);
    Group::new("header operators")
        .manager(Manager::new("main").routes(json!(routes)))
        .cases(cases)
        .cases([bodies])
        .run(OURS)
        .await;
}

#[tokio::test]
async fn http_header_operators_that_are_refused() {
    for text in [
        "%REQUEST_HEADER(x-key)%",
        "%RESPONSE_HEADER(x-back)%",
        "%FILTER_STATE(name)%",
        "%DOWNSTREAM_PEER_FINGERPRINT_256%",
    ] {
        let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" },
            "request_headers_to_add": [set("x-value", text)] });
        let ask = get(text, "/").header("x-key", "a value");
        Group::new("refused operators")
            .manager(Manager::new("main").routes(json!([route])))
            .cases([ask])
            .refused(
                "Command operators that are not there",
                "request_headers_to_add[0].header.value",
            )
            .run(OURS)
            .await;
    }
}
