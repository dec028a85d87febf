//! What Envoy 1.40 made of the same headers with the same route table.

use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::model::Downstream;
use crate::model::Metadata;
use crate::model::route::{DirectResponse, PathMatch, RouteDecision, RouteMatch};
use crate::telemetry::access_log::request::ConnectionFacts;

use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};

fn option(name: &str, text: &str, append: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption::new(name, text, append).unwrap()
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// The fields in order, those of a name together.
fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
    let mut fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    // What order there is between names is nobody's business; that of one name stays.
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    fields.iter().map(owned).collect()
}

fn with_facts<T>(facts: impl FnOnce(RequestFacts<'_>) -> T) -> T {
    let downstream = Downstream {
        source: Some("127.0.0.1:5".parse().unwrap()),
        ..Downstream::default()
    };
    let connection = ConnectionFacts {
        listener: "l",
        filter_chain: None,
        connection_id: 29,
        downstream: &downstream,
        tls: None,
    };
    let mut metadata = Metadata::default();
    metadata.set("m", "o", serde_json::json!({"k": "v"}));
    metadata.set("m", "q", "a\nb".into());
    facts(RequestFacts {
        method: Some("GET"),
        scheme: Some("http"),
        path: Some("/empty"),
        authority: Some("a"),
        protocol: Some("HTTP/1.1"),
        metadata: Some(&metadata),
        ..RequestFacts::new(&connection, SystemTime::UNIX_EPOCH)
    })
}

fn applied(before: &[(&str, &str)], side: Side, options: &[HeaderValueOption]) -> Vec<(String, String)> {
    let mut headers = headers(before);
    with_facts(|facts| apply(&mut headers, side, options, &facts));
    fields(&headers)
}

/// Four changes of every kind, whose values are the name of the place.
fn changes(place: &str) -> HeaderMutations {
    let add = vec![
        option("x-app", place, AppendIfExistsOrAdd),
        option("x-over", place, OverwriteIfExistsOrAdd),
        option("x-abs", place, AddIfAbsent),
        option("x-ifex", place, OverwriteIfExists),
    ];
    HeaderMutations {
        request_remove: vec![format!("x-rm-{place}").into()],
        request_add: add.clone(),
        response_remove: vec!["x-gone".into()],
        response_add: add,
    }
}

fn table(most_specific_wins: bool) -> (RouteConfiguration, VirtualHost, Route, ClusterWeight) {
    let route = Route {
        name: "".into(),
        matches: RouteMatch::path(PathMatch::Prefix("/".into())),
        action: RouteDecision::DirectResponse(DirectResponse {
            status: 200,
            body: Arc::default(),
        }),
        headers: changes("route"),
    };
    let host = VirtualHost {
        name: "vh".into(),
        domains: Vec::new(),
        headers: changes("vh"),
        routes: Vec::new(),
        retry_policy: None,
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
    };
    let mut table = RouteConfiguration::new("t".into(), Vec::new()).unwrap();
    table.headers = changes("table");
    table.most_specific_header_mutations_wins = most_specific_wins;
    let cluster = ClusterWeight {
        name: "up".into(),
        weight: 1,
        headers: changes("wc"),
        host_rewrite: None,
    };
    (table, host, route, cluster)
}

#[test]
fn the_weighted_cluster_is_first_and_the_table_last_unless_the_route_is_to_win() {
    let given = [
        ("x-app", "c"),
        ("x-over", "c"),
        ("x-over", "c2"),
        ("x-abs", "c"),
        ("x-ifex", "c"),
        ("x-ifex", "c2"),
        ("x-rm-vh", "1"),
        ("x-rm-wc", "1"),
        ("x-gone", "1"),
    ];
    for (wins, before, after) in [
        (false, &[][..], ["wc", "route", "vh", "table"]),
        (true, &[], ["wc", "table", "vh", "route"]),
        (false, &given, ["wc", "route", "vh", "table"]),
        (true, &given, ["wc", "table", "vh", "route"]),
    ] {
        let (table, host, route, cluster) = table(wins);
        let places = Places {
            table: &table,
            virtual_host: &host,
            route: &route,
            cluster: Some(&cluster),
        };
        let last = after[3];
        let mut expected = vec![("x-abs", if before.is_empty() { "wc" } else { "c" })];
        expected.extend(before.first().map(|_| ("x-app", "c")));
        expected.extend(after.map(|place| ("x-app", place)));
        expected.extend(before.first().map(|_| ("x-ifex", last)));
        expected.push(("x-over", last));
        let mut request = headers(before);
        with_facts(|facts| mutate_request(&mut request, &places, &facts));
        // What is only removed from responses stays.
        assert_eq!(request.remove("x-gone").is_some(), !before.is_empty());
        assert_eq!(fields(&request), owned(&expected), "{wins} {before:?}");
        let mut response = headers(before);
        with_facts(|facts| mutate_response(&mut response, &places, &facts));
        assert!(response.remove("x-gone").is_none());
        for name in ["x-rm-vh", "x-rm-wc"] {
            assert_eq!(response.remove(name).is_some(), !before.is_empty());
        }
        assert_eq!(fields(&response), owned(&expected), "{wins} {before:?}");
    }
}

#[test]
fn removals_come_first_and_values_see_them() {
    let (mut table, mut host, mut route, _) = table(false);
    table.headers = HeaderMutations::default();
    host.headers = HeaderMutations::default();
    route.headers = HeaderMutations {
        request_remove: vec!["x-a".into()],
        request_add: vec![
            option("x-a", "new", AppendIfExistsOrAdd),
            option("x-b", "%REQ(x-a)%", AppendIfExistsOrAdd),
        ],
        response_remove: vec!["x-r".into()],
        response_add: vec![
            option("x-r", "new", AppendIfExistsOrAdd),
            option("x-c", "%RESP(x-r)%", AppendIfExistsOrAdd),
        ],
    };
    let places = Places {
        table: &table,
        virtual_host: &host,
        route: &route,
        cluster: None,
    };
    let mut request = headers(&[("x-a", "old")]);
    with_facts(|facts| mutate_request(&mut request, &places, &facts));
    assert_eq!(fields(&request), owned(&[("x-a", "new")]));
    let mut response = headers(&[("x-r", "up")]);
    with_facts(|facts| mutate_response(&mut response, &places, &facts));
    assert_eq!(fields(&response), owned(&[("x-r", "new")]));
}

#[test]
fn all_values_are_made_before_the_first_is_set_and_overwriting_is_first() {
    let options = [
        option("x-a", "1", AddIfAbsent),
        option("x-a", "2", AddIfAbsent),
        option("x-o", "1", OverwriteIfExistsOrAdd),
        option("x-o", "2", OverwriteIfExistsOrAdd),
        option("x-o", "app", AppendIfExistsOrAdd),
        option("x-p", "app", AppendIfExistsOrAdd),
        option("x-p", "ov", OverwriteIfExistsOrAdd),
        option("x-q", "%REQ(x-o)%", AppendIfExistsOrAdd),
        option("x-i", "1", AppendIfExistsOrAdd),
        option("x-i", "2", OverwriteIfExists),
    ];
    let mut expected = vec![
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-i", "1"),
        ("x-o", "2"),
        ("x-o", "app"),
        ("x-p", "ov"),
        ("x-p", "app"),
    ];
    assert_eq!(applied(&[], Side::Request, &options), owned(&expected));
    expected.push(("x-q", "c"));
    assert_eq!(
        applied(&[("x-o", "c")], Side::Request, &options),
        owned(&expected)
    );
}

#[test]
fn empty_values_are_left_out_unless_they_are_to_be_kept() {
    let kept = |name, text, append| HeaderValueOption {
        keep_empty_value: true,
        ..option(name, text, append)
    };
    let options = [
        option("x-e01", "", AppendIfExistsOrAdd),
        kept("x-e02", "", AppendIfExistsOrAdd),
        option("x-e03", "%REQ(none)%", AppendIfExistsOrAdd),
        kept("x-e04", "%REQ(none)%", AppendIfExistsOrAdd),
        option("x-e05", "a%REQ(none)%b", AppendIfExistsOrAdd),
        option("x-e06", "%DYNAMIC_METADATA(a:b)%", AppendIfExistsOrAdd),
        option("x-c", "", OverwriteIfExistsOrAdd),
        kept("x-d", "", OverwriteIfExistsOrAdd),
        option("x-f", "%REQ(none)%", OverwriteIfExistsOrAdd),
        option("x-e08", "%RESPONSE_FLAGS%", AppendIfExistsOrAdd),
        option("x-e09", "%REQ(none)%%REQ(none)%", AppendIfExistsOrAdd),
        option("x-e10", "%RESPONSE_CODE%", AppendIfExistsOrAdd),
        option("x-e11", " ", AppendIfExistsOrAdd),
        option("x-e12", "%REQ(x-sp)%", AppendIfExistsOrAdd),
    ];
    let before = [("x-c", "c"), ("x-d", "d"), ("x-f", "f"), ("x-sp", "a b")];
    let after = [
        ("x-c", "c"),
        ("x-d", ""),
        ("x-e02", ""),
        ("x-e04", ""),
        ("x-e05", "ab"),
        ("x-e08", "-"),
        ("x-e10", "0"),
        ("x-e11", " "),
        ("x-e12", "a b"),
        ("x-f", "f"),
        ("x-sp", "a b"),
    ];
    assert_eq!(applied(&before, Side::Request, &options), owned(&after));
}

#[test]
fn values_tell_what_is_known_by_then() {
    let options = [
        (
            "x-01",
            "%REQ(:path)% %REQ(:authority)% %REQ(:method)% %REQ(:scheme)%",
            "/empty a GET http",
        ),
        ("x-02", "%REQ(x-multi)% %REQ(x-u):1%", "1 x"),
        ("x-03", "%DYNAMIC_METADATA(m:o)%", r#"{"k":"v"}"#),
        ("x-04", r#"%DYNAMIC_METADATA(["m", "o", "k"])%"#, "v"),
        (
            "x-05",
            "%ACCESS_LOG_TYPE% %DURATION% %BYTES_RECEIVED%",
            "NotSet 0 0",
        ),
        ("x-06", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.1"),
        (
            "x-07",
            "%PROTOCOL% %CONNECTION_ID% %LISTENER_NAME%",
            "HTTP/1.1 29 l",
        ),
        ("x-08", "100%%", "100%"),
        ("x-09", " \u{e9}\t", " \u{e9}\t"),
    ];
    let parsed = options.map(|(name, text, _)| option(name, text, AppendIfExistsOrAdd));
    let before = [("x-multi", "1"), ("x-multi", "2"), ("x-u", "xyz")];
    let mut expected: Vec<_> = options.iter().map(|(name, _, value)| (*name, *value)).collect();
    expected.extend(before);
    assert_eq!(applied(&before, Side::Request, &parsed), owned(&expected));
}

#[test]
fn a_value_that_no_header_can_have_is_left_out() {
    let options = [
        option("x-q", "%DYNAMIC_METADATA(m:q)%", AppendIfExistsOrAdd),
        option("x-o", "1", AppendIfExistsOrAdd),
    ];
    assert_eq!(applied(&[], Side::Response, &options), owned(&[("x-o", "1")]));
}

#[test]
fn headers_of_which_there_is_one_are_joined_to() {
    for (name, side, joined) in [
        ("user-agent", Side::Request, true),
        ("user-agent", Side::Response, false),
        ("x-forwarded-for", Side::Request, true),
        ("via", Side::Request, true),
        ("via", Side::Response, true),
        ("cookie", Side::Request, false),
        ("traceparent", Side::Request, false),
        ("x-foo", Side::Request, false),
        ("vary", Side::Request, false),
        ("vary", Side::Response, true),
        ("set-cookie", Side::Response, false),
        ("www-authenticate", Side::Response, false),
        ("grpc-status", Side::Request, false),
        ("grpc-status", Side::Response, true),
        ("location", Side::Response, true),
        ("accept", Side::Request, true),
        ("accept-language", Side::Request, false),
    ] {
        let options = [
            option(name, "b", AppendIfExistsOrAdd),
            option(name, "c", AppendIfExistsOrAdd),
        ];
        let expected = match joined {
            true => vec![(name, "a,b,c")],
            false => vec![(name, "a"), (name, "b"), (name, "c")],
        };
        assert_eq!(
            applied(&[(name, "a")], side, &options),
            owned(&expected),
            "{name}"
        );
        let alone = [option(name, "b", AppendIfExistsOrAdd)];
        assert_eq!(applied(&[], side, &alone), owned(&[(name, "b")]), "{name}");
    }
    assert!(JOINED_IN_REQUESTS.is_sorted() && JOINED_IN_RESPONSES.is_sorted());
}
