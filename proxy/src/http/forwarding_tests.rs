//! Every expectation was measured on Envoy 1.40.0, whose machine had the address 192.0.2.2.

use super::*;
use crate::model::http::Routes;

fn manager(forwarding: Forwarding) -> HttpConnectionManager {
    HttpConnectionManager {
        forwarding,
        ..HttpConnectionManager::new("m".into(), Routes::Rds("r".into()))
    }
}

fn forwarding(use_remote_address: bool, hops: u32) -> Forwarding {
    Forwarding {
        use_remote_address,
        xff_num_trusted_hops: hops,
        ..Forwarding::default()
    }
}

fn hop(remote: &str) -> Hop<'static> {
    Hop {
        remote: Some(SocketAddr::new(remote.parse().unwrap(), 4711)),
        local: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
        encrypted: false,
        machine: IpAddr::from([192, 0, 2, 2]),
        node: Node {
            cluster: "the-cluster",
            id: "the-node",
        },
    }
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// What is there of `name`, one value; empty if it is not.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    assert!(headers.get_all(name).iter().count() < 2, "{name}");
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn received(options: Forwarding, lines: &[(&str, &str)]) -> (HeaderMap, String) {
    let mut headers = headers(lines);
    let trusted = received_request(&mut headers, &manager(options), &hop("127.0.0.1"), false);
    (headers, trusted.unwrap().to_string())
}

#[test]
fn the_connection_header_takes_away_what_it_names() {
    let rest = |connection: &[&str]| {
        let mut all = headers(&[
            ("a", "1"),
            ("b", "1"),
            ("cookie", "k=v"),
            ("te", "trailers"),
            ("keep-alive", "1"),
            ("x_y", "1"),
            ("http2-settings", "s"),
            ("content-length", "2"),
        ]);
        for value in connection {
            all.append(CONNECTION, value.parse().unwrap());
        }
        let before: Vec<String> = all.keys().map(ToString::to_string).collect();
        remove_nominated(&mut all).map(|()| {
            let gone = before.into_iter().filter(|name| !all.contains_key(name));
            gone.collect::<Vec<_>>().join(" ")
        })
    };
    for (connection, gone) in [
        (&["a"][..], "a"),
        (&["A , b"], "a b"),
        (&["a", "b"], "a b"),
        (&["a,,,,,,,,,,,,b"], "a b"),
        (&["cookie, x_y"], "cookie x_y"),
        (&["keep-alive, close, upgrade, http2-settings, te"], ""),
        (&["content-length"], "content-length"),
        (&["1, 2, 3, 4, 5, 6, 7, 8, a"], "a"),
        (&["", "not there"], ""),
    ] {
        assert_eq!(rest(connection).as_deref(), Ok(gone), "{connection:?}");
    }
    for refused in [
        "x-forwarded-for",
        "X-Forwarded-Host",
        "close, x-forwarded-proto",
        ":authority",
        ":",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    ] {
        assert_eq!(rest(&[refused]), Err(ConnectionHeaderRejected), "{refused}");
    }
}

#[test]
fn an_upgrade_to_http_2_is_forgotten() {
    let mut h2c = headers(&[
        ("connection", "Upgrade"),
        ("upgrade", "H2C"),
        ("http2-settings", "x"),
    ]);
    remove_nominated(&mut h2c).unwrap();
    assert_eq!(h2c.len(), 1);
    let mut websocket = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    remove_nominated(&mut websocket).unwrap();
    let manager = manager(Forwarding::default());
    received_request(&mut websocket, &manager, &hop("127.0.0.1"), true);
    assert_eq!(text(&websocket, "upgrade"), "websocket");
    assert_eq!(text(&websocket, "connection"), "upgrade");
}

#[test]
fn hop_by_hop_headers_end_here() {
    let (all, _) = received(
        Forwarding::default(),
        &[
            ("connection", "close"),
            ("keep-alive", "3"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "foo"),
            ("proxy-authorization", "x"),
            ("trailer", "x"),
        ],
    );
    let mut left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    let expected = [
        "proxy-authorization",
        "trailer",
        "x-forwarded-proto",
        "x-request-id",
    ];
    assert_eq!(left, expected);
}

#[test]
fn te_says_trailers_or_nothing() {
    for (values, expected) in [
        (&["trailers"][..], "trailers"),
        (&["gzip, trailers"], "trailers"),
        (&["trailers", "gzip"], "trailers"),
        (&["gzip"], ""),
        (&["trailers;q=0.5"], ""),
        (&["Trailers"], ""),
        (&["gzip;q=1, trailers;q=1"], ""),
    ] {
        let lines: Vec<_> = values.iter().map(|value| ("te", *value)).collect();
        assert_eq!(
            text(&received(Forwarding::default(), &lines).0, "te"),
            expected,
            "{values:?}"
        );
    }
}

const REFERERS: &[&str] = &[
    "",
    "foo",
    "-",
    "/x",
    "?x",
    "//a/b",
    "//a:99999/b",
    "//a_b/",
    "//",
    "///x",
    "a@b",
    "/a:b",
    "a/b:c",
    "foo/bar?x=1",
    "http://a/b",
    "HTTP://a",
    "ftp://a/",
    "http://a?x",
    "http://a/%zz",
    "http://a/<>",
    "http://a/|",
    "http://a/\"",
    "http://[::1]/",
    "http://[::1]:80/",
    "http://[1.2.3.4]/",
    "android-app://com.x/",
    "http://a.b:80/c",
    "http://a..b/",
    "http://a:0/",
    "http://a:00080/",
    "ht+tp://a",
    "ht.tp://a/",
    "http://-a/",
    "http://.a/",
    "http://a.:80/",
    "http://a/b:c",
    "http//a",
    "http://a:80?x",
];

const NO_REFERERS: &[&str] = &[
    "http://a:b@c/",
    "http://a@b/",
    "http://a:99999/",
    "http://a:65536/",
    "http://a:x/",
    "http://a:/",
    "http://:80/",
    "http://a_b/",
    "http://a,b/",
    "http://a!/",
    "http://%41/",
    "http://a\\b/",
    "http:/a",
    "http:",
    "http://",
    "http://?",
    "http:///a",
    "file:///x",
    "x:",
    "x:y",
    "mailto:x@y",
    "about:blank",
    "a:80",
    "a:80/x",
    "1:2",
    ":",
    "?a:b",
    "a?b:c",
    "1http://a/",
    "-x://a",
    "ht_tp://a/",
    "a b",
    "/a b",
    "http://a/b c",
    "a<b",
    "/\"",
    "|",
    "a\\b",
    "#",
    "a#",
    "a/b#c",
    "https://a.b/c?d#e",
    "/aé",
    "http://é/",
    "http://[::1",
    "http://[zz]/",
    "http://[]/",
    "http://[fe80::1%25eth0]/",
];

#[test]
fn only_a_referer_that_is_a_url_is_passed_on() {
    for referer in REFERERS {
        let (headers, _) = received(Forwarding::default(), &[("referer", referer)]);
        assert!(headers.contains_key("referer"), "{referer}");
    }
    for referer in NO_REFERERS {
        let (headers, _) = received(Forwarding::default(), &[("referer", referer)]);
        assert!(!headers.contains_key("referer"), "{referer}");
    }
}

#[test]
fn orders_to_a_proxy_count_for_nobody() {
    let named = |orders: &[&str]| -> Vec<String> {
        let name = |order: &&str| format!("{ENVOY}{order}");
        orders.iter().map(name).collect()
    };
    let (internal, edge) = (named(&INTERNAL), named(&EDGE));
    let lines: Vec<_> = internal.iter().chain(&edge).map(|name| (&**name, "1")).collect();
    let (inside, _) = received(Forwarding::default(), &lines);
    for name in &internal {
        assert_eq!(text(&inside, name), "", "{name}");
    }
    for name in &edge {
        assert_eq!(text(&inside, name), "1", "{name}");
    }
    let (outside, _) = received(forwarding(true, 0), &lines);
    for name in internal.iter().chain(&edge) {
        assert_eq!(text(&outside, name), "", "{name}");
    }
    let claims = [
        ("x-envoy-external-address", "1"),
        ("x-envoy-attempt-count", "1"),
        ("x-envoy-foo", "1"),
    ];
    let (inside, _) = received(Forwarding::default(), &claims);
    for (name, _) in claims {
        assert_eq!(text(&inside, name), "1", "{name}");
    }
}

/// What came, then what is trusted without the edge at 0, 1 and 2 hops and at the edge at 1 and 2 hops;
/// empty is the connection.
const TRUSTED: [(&str, [&str; 5]); 13] = [
    ("1.2.3.4", ["1.2.3.4:0", "", "", "1.2.3.4:0", ""]),
    (
        "1.2.3.4, 10.0.0.1",
        ["10.0.0.1:0", "1.2.3.4:0", "", "10.0.0.1:0", "1.2.3.4:0"],
    ),
    (
        "1.2.3.4,10.0.0.1,10.0.0.2",
        [
            "10.0.0.2:0",
            "10.0.0.1:0",
            "1.2.3.4:0",
            "10.0.0.2:0",
            "10.0.0.1:0",
        ],
    ),
    ("bad", [""; 5]),
    ("1.2.3.4, bad", ["", "1.2.3.4:0", "", "", "1.2.3.4:0"]),
    ("10.0.0.9", ["10.0.0.9:0", "", "", "10.0.0.9:0", ""]),
    ("::1", ["[::1]:0", "", "", "[::1]:0", ""]),
    ("1.2.3.4:80", [""; 5]),
    ("[::1]:80", [""; 5]),
    ("", [""; 5]),
    ("1.2.3.4,", ["", "1.2.3.4:0", "", "", "1.2.3.4:0"]),
    ("127.0.0.1", ["127.0.0.1:0", "", "", "127.0.0.1:0", ""]),
    ("2001:DB8::1", ["[2001:db8::1]:0", "", "", "[2001:db8::1]:0", ""]),
];

#[test]
fn the_trusted_address_is_so_many_hops_from_the_end() {
    for (came, trusted) in TRUSTED {
        let all = [(false, 0), (false, 1), (false, 2), (true, 1), (true, 2)];
        for ((edge, hops), trusted) in all.into_iter().zip(trusted) {
            let expected = if trusted.is_empty() {
                "127.0.0.1:4711"
            } else {
                trusted
            };
            let (after, found) = received(forwarding(edge, hops), &[("x-forwarded-for", came)]);
            assert_eq!(found, expected, "{came} {edge} {hops}");
            let separator = if came.is_empty() { "" } else { "," };
            let (xff, external) = if edge {
                let ip = found.parse::<SocketAddr>().unwrap().ip().to_string();
                (format!("{came}{separator}192.0.2.2"), ip)
            } else {
                (came.to_owned(), String::new())
            };
            assert_eq!(text(&after, "x-forwarded-for"), xff);
            assert_eq!(text(&after, "x-envoy-external-address"), external);
        }
        assert_eq!(
            received(forwarding(true, 0), &[("x-forwarded-for", came)]).1,
            "127.0.0.1:4711"
        );
    }
    let two = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")];
    assert_eq!(received(Forwarding::default(), &two).1, "2.2.2.2:0");
    let (edge, _) = received(forwarding(true, 0), &two);
    assert_eq!(text(&edge, "x-forwarded-for"), "1.1.1.1,2.2.2.2,192.0.2.2");
}

#[test]
fn the_edge_tells_who_connected() {
    let told = |remote: &str, options: &Forwarding| {
        let mut headers = HeaderMap::new();
        received_request(&mut headers, &manager(options.clone()), &hop(remote), false);
        text(&headers, "x-forwarded-for").to_owned()
    };
    let edge = forwarding(true, 0);
    assert_eq!(told("127.0.0.1", &edge), "192.0.2.2");
    assert_eq!(told("::1", &edge), "192.0.2.2");
    assert_eq!(told("127.0.0.2", &edge), "127.0.0.2");
    assert_eq!(told("::ffff:127.0.0.2", &edge), "127.0.0.2");
    let skips = Forwarding {
        skip_xff_append: true,
        ..edge.clone()
    };
    assert_eq!(told("127.0.0.2", &skips), "");
    // Has no effect that could be seen on Envoy 1.40.
    let mapped = Forwarding {
        ipv4_as_mapped_ipv6: true,
        ..edge
    };
    assert_eq!(told("127.0.0.2", &mapped), "127.0.0.2");
    assert_eq!(told("127.0.0.2", &Forwarding::default()), "");
    let mut unix = HeaderMap::new();
    let hop = Hop {
        remote: None,
        local: None,
        ..hop("127.0.0.1")
    };
    assert_eq!(
        received_request(&mut unix, &manager(forwarding(true, 0)), &hop, false),
        None
    );
    assert!(!unix.contains_key("x-forwarded-for") && !unix.contains_key("x-envoy-external-address"));
}

#[test]
fn x_forwarded_proto_is_kept_of_whom_is_trusted() {
    for (came, scheme_of_it) in [
        ("https", "https"),
        ("http", "http"),
        ("gopher", "http"),
        ("HTTPS", "https"),
        ("", "http"),
        ("https,http", "http"),
    ] {
        for (edge, hops, kept) in [(false, 0, true), (true, 0, false), (true, 1, true)] {
            let (after, _) = received(forwarding(edge, hops), &[("x-forwarded-proto", came)]);
            let expected = if kept {
                (came, scheme_of_it)
            } else {
                ("http", "http")
            };
            let found = (text(&after, "x-forwarded-proto"), scheme(&after, false));
            assert_eq!(found, expected, "{came} {edge} {hops}");
        }
    }
    let mut absent = HeaderMap::new();
    let encrypted = Hop {
        encrypted: true,
        ..hop("127.0.0.1")
    };
    received_request(&mut absent, &manager(Forwarding::default()), &encrypted, false);
    assert_eq!(text(&absent, "x-forwarded-proto"), "https");
    assert_eq!(scheme(&headers(&[("x-forwarded-proto", "ws")]), true), "https");
}

#[test]
fn x_forwarded_port_is_the_listeners() {
    for (edge, hops, expected) in [(false, 0, "1"), (true, 0, "8080"), (true, 1, "1")] {
        let options = Forwarding {
            append_x_forwarded_port: true,
            ..forwarding(edge, hops)
        };
        let (after, _) = received(options.clone(), &[("x-forwarded-port", "1")]);
        assert_eq!(text(&after, "x-forwarded-port"), expected);
        assert_eq!(text(&received(options, &[]).0, "x-forwarded-port"), "8080");
    }
}

#[test]
fn via_and_user_agent_are_said_as_configured() {
    let via = |lines: &[(&str, &str)]| {
        let options = Forwarding {
            via: "me".into(),
            ..Forwarding::default()
        };
        text(&received(options, lines).0, "via").to_owned()
    };
    assert_eq!(via(&[]), "me");
    assert_eq!(via(&[("via", "x")]), "x, me");
    assert_eq!(via(&[("via", "x"), ("via", "y")]), "x,y, me");
    let agent = |lines: &[(&str, &str)]| {
        let options = Forwarding {
            add_user_agent: true,
            ..Forwarding::default()
        };
        let (after, _) = received(options, lines);
        assert_eq!(text(&after, "x-envoy-downstream-service-cluster"), "the-cluster");
        assert_eq!(text(&after, "x-envoy-downstream-service-node"), "the-node");
        text(&after, "user-agent").to_owned()
    };
    assert_eq!(agent(&[]), "the-cluster");
    assert_eq!(agent(&[("user-agent", "")]), "the-cluster");
    assert_eq!(agent(&[("user-agent", "mine")]), "mine");
    assert_eq!(agent(&[("x-envoy-downstream-service-node", "q")]), "the-cluster");
}

const ID: &str = "12345678-1234-9234-8234-123456789abc";

#[test]
fn a_request_id_is_made_where_there_is_none_or_no_trust() {
    let id = |edge: bool, options: RequestId, came: &str| {
        let mut headers = headers(&[("x-request-id", came)]);
        let manager = HttpConnectionManager {
            request_id: options,
            ..manager(forwarding(edge, 0))
        };
        received_request(&mut headers, &manager, &hop("127.0.0.1"), false);
        text(&headers, "x-request-id").to_owned()
    };
    let made = RequestId::default();
    let preserved = RequestId {
        preserve_external: true,
        ..made
    };
    let none = RequestId {
        generate: false,
        ..made
    };
    for (edge, options, came, kept) in [
        (false, made, "mine", Some("mine")),
        (false, made, ID, Some(ID)),
        (false, made, "", None),
        (true, made, "mine", None),
        (true, made, ID, None),
        (true, preserved, "mine", Some("mine")),
        (true, preserved, ID, Some("12345678-1234-4234-8234-123456789abc")),
        (true, preserved, "", None),
        (false, none, "", Some("")),
        (true, none, ID, Some(ID)),
    ] {
        let found = id(edge, options, came);
        match kept {
            Some(kept) => assert_eq!(found, kept, "{edge} {options:?}"),
            None => {
                assert_ne!(found, came);
                assert_eq!((found.len(), &found[14..15]), (36, "4"), "{found}");
                assert!("89ab".contains(&found[19..20]), "{found}");
            }
        }
    }
}

#[test]
fn all_and_none_are_no_chance() {
    let none = Sampling::from_percent(0.0).unwrap();
    assert!(by_chance(Sampling::ALL) && !by_chance(none));
}

#[test]
fn a_response_loses_its_hop_by_hop_headers_only() {
    let mut response = headers(&[
        ("connection", "x-a"),
        ("x-a", "1"),
        ("keep-alive", "1"),
        ("proxy-connection", "1"),
        ("upgrade", "x"),
        ("te", "1"),
        ("trailer", "x"),
        ("proxy-authenticate", "1"),
        ("x-request-id", "up"),
        ("x-envoy-internal", "1"),
        ("server", "s"),
        ("via", "up"),
    ]);
    let mut manager = manager(Forwarding {
        via: "me".into(),
        ..Forwarding::default()
    });
    sent_response(
        &mut response,
        &manager,
        Some(&HeaderValue::from_static("id")),
        false,
    );
    let mut left: Vec<_> = response
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    left.sort_unstable();
    let expected = [
        ("proxy-authenticate", "1"),
        ("server", "envoy"),
        ("te", "1"),
        ("trailer", "x"),
        ("via", "up, me"),
        ("x-a", "1"),
        ("x-envoy-internal", "1"),
        ("x-request-id", "up"),
    ];
    assert_eq!(left, expected);

    manager.request_id.always_in_response = true;
    sent_response(
        &mut response,
        &manager,
        Some(&HeaderValue::from_static("id")),
        false,
    );
    assert_eq!(text(&response, "x-request-id"), "id");
    sent_response(&mut response, &manager, None, false);
    assert_eq!(text(&response, "x-request-id"), "id");
    let mut upgraded = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    manager.server_header.transformation = ServerHeaderTransformation::PassThrough;
    sent_response(&mut upgraded, &manager, None, true);
    assert_eq!(text(&upgraded, "upgrade"), "websocket");
    assert_eq!(text(&upgraded, "server"), "");
    manager.server_header.transformation = ServerHeaderTransformation::AppendIfAbsent;
    upgraded.insert(SERVER, HeaderValue::from_static("theirs"));
    sent_response(&mut upgraded, &manager, None, true);
    assert_eq!(text(&upgraded, "server"), "theirs");
}
