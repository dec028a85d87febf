//! The corners of the JSON: what is taken, what is refused and how that is said, what is hidden.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use attache_proto::{TypeUrl, UnknownField, envoy, json, unknown_fields};
use prost::Message;
use serde_json::{Value, json};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const ANY: &str = "google.protobuf.Any";

/// The wire bytes and the warnings as text.
fn read(type_name: &str, value: &Value) -> (Vec<u8>, Vec<String>) {
    let mut diagnostics = json::Diagnostics::default();
    let bytes = json::to_wire(type_name, value, &mut diagnostics).unwrap();
    let warnings = diagnostics.warnings.iter().map(ToString::to_string);
    (bytes, warnings.collect())
}

fn error(type_name: &str, value: &Value) -> String {
    let mut diagnostics = json::Diagnostics::default();
    json::to_wire(type_name, value, &mut diagnostics)
        .unwrap_err()
        .to_string()
}

fn write(type_name: &str, bytes: &[u8]) -> Value {
    json::from_wire(type_name, bytes, json::Options::default()).unwrap()
}

/// What comes back of what was given, without a warning.
fn back(type_name: &str, value: &Value) -> Value {
    let (bytes, warnings) = read(type_name, value);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(unknown_fields(type_name, &bytes).unwrap(), vec![]);
    write(type_name, &bytes)
}

#[test]
fn names_are_taken_in_both_cases_and_written_in_snake_case() {
    let snake = json!({"connect_timeout": "5s", "alt_stat_name": "x"});
    let camel = json!({"connectTimeout": "5s", "altStatName": "x"});
    assert_eq!(read(CLUSTER, &snake), read(CLUSTER, &camel));
    assert_eq!(back(CLUSTER, &camel)["connect_timeout"], "5s");
    let both = json!({"connect_timeout": "5s", "connectTimeout": "6s"});
    let problem = "connect_timeout: stands there twice, in snake_case and in lowerCamelCase";
    assert_eq!(error(CLUSTER, &both), problem);
}

#[test]
fn errors_name_the_path_and_what_stands_there() {
    let port = json!({"static_resources": {"listeners": [
        {"address": {"socket_address": {"port_value": "x"}}}
    ]}});
    assert_eq!(
        error(BOOTSTRAP, &port),
        "static_resources.listeners[0].address.socket_address.port_value: \
         expected a number from 0 to 4294967295, got \"x\""
    );
    let kind = json!({"lb_policy": "LEAST"});
    let problem = error(CLUSTER, &kind);
    assert!(
        problem.starts_with("lb_policy: expected one of ROUND_ROBIN, LEAST_REQUEST, "),
        "{problem}"
    );
    assert!(problem.ends_with(", got \"LEAST\""), "{problem}");
    assert_eq!(
        error(CLUSTER, &json!([])),
        format!("{CLUSTER}: expected an object, got a list")
    );
    assert_eq!(
        error(LISTENER, &json!({"filter_chains": "x"})),
        "filter_chains: expected a list, got \"x\""
    );
    let wanted = "connect_timeout: expected a duration such as \"5s\" or \"0.25s\", got 5";
    assert_eq!(error(CLUSTER, &json!({"connect_timeout": 5})), wanted);
    assert_eq!(error("x.Y", &json!({})), "x.Y: is no type that is known here");
    let policies = json!({"rules": {"policies": {"a b": {"permissions": [{"any": 1}]}}}});
    let problem = "rules.policies[\"a b\"].permissions[0].any: expected true or false, got 1";
    assert_eq!(error(RBAC, &policies), problem);
}

#[test]
fn an_error_does_not_repeat_a_secret() {
    let key = |source: Value| json!({"common_tls_context": {"tls_certificates": [{"private_key": source}]}});
    for source in [
        json!({"inline_bytes": "not base64!"}),
        json!({"filename": 5}),
        json!("not base64!"),
    ] {
        let problem = error(TLS, &key(source));
        assert!(
            !problem.contains("not base64!") && !problem.contains('5'),
            "{problem}"
        );
    }
    let token = json!({"initial_metadata": [{"key": 7, "value": 12345}]});
    let service = "envoy.config.core.v3.GrpcService";
    assert_eq!(
        error(service, &token),
        "initial_metadata[0].key: expected a string, got 7"
    );
    let token = json!({"initial_metadata": [{"key": "x-consul-token", "value": 12345}]});
    assert_eq!(
        error(service, &token),
        "initial_metadata[0].value: expected a string, got another value"
    );
}

#[test]
fn unknown_fields_are_warnings_except_where_they_decide_who_gets_in() {
    let (bytes, warnings) = read(
        BOOTSTRAP,
        &json!({"static_resources": {"clusters": [{"name": "a", "foo": 1}]}}),
    );
    let problem =
        format!("static_resources.clusters[0].foo: is no field of {CLUSTER} that is known here: ignored");
    assert_eq!(warnings, [problem]);
    assert_eq!(
        write(BOOTSTRAP, &bytes),
        json!({"static_resources": {"clusters": [{"name": "a"}]}})
    );

    let rule = json!({"rules": {"policies": {"a": {"principals": [{"foo": {}}]}}}});
    assert_eq!(
        error(RBAC, &rule),
        "rules.policies[\"a\"].principals[0].foo: \
         is no field of envoy.config.rbac.v3.Principal that is known here: it cannot be ignored"
    );
    // DataSource is not strict elsewhere, below a TLS context it is; so is what an Any brings in.
    let inherited = json!({"common_tls_context": {"tls_certificates": [{"certificate_chain": {"foo": 1}}]}});
    assert!(error(TLS, &inherited).contains("cannot be ignored"));
    let (_, warnings) = read("envoy.config.core.v3.DataSource", &json!({"foo": 1}));
    assert_eq!(warnings.len(), 1);
    let socket = json!({"transport_socket": {"name": "tls", "typed_config": {
        "@type": format!("type.googleapis.com/{TLS}"), "requireClientCert": true
    }}});
    assert!(error(CLUSTER, &socket).starts_with("transport_socket.typed_config.requireClientCert: "));
}

#[test]
fn warnings_are_bounded() {
    let fields = (0..1000)
        .map(|n| (format!("f{n}"), json!(1)))
        .collect::<serde_json::Map<_, _>>();
    let mut diagnostics = json::Diagnostics::default();
    json::to_wire(CLUSTER, &Value::Object(fields), &mut diagnostics).unwrap();
    assert_eq!(diagnostics.warnings.len(), json::MAX_WARNINGS);
    assert_eq!(diagnostics.suppressed, 1000 - json::MAX_WARNINGS);
}

#[test]
fn whole_messages_show_that_a_cut_out_message_is_set() {
    let (bytes, warnings) = read(LISTENER, &json!({"filter_chain_matcher": {"matcher_tree": {}}}));
    assert_eq!(warnings.len(), 1);
    let listener = envoy::config::listener::v3::Listener::decode(bytes.as_slice()).unwrap();
    assert!(listener.filter_chain_matcher.is_some());
}

#[test]
fn one_member_of_a_oneof() {
    let both = json!({"address": "a", "port_value": 1, "named_port": "x"});
    assert_eq!(
        error("envoy.config.core.v3.SocketAddress", &both),
        "named_port: cannot stand beside port_value: choose one of them"
    );
    let null = json!({"address": "a", "port_value": 1, "named_port": null});
    assert_eq!(
        back("envoy.config.core.v3.SocketAddress", &null),
        json!({"address": "a", "port_value": 1})
    );
    // A member of a oneof is there even with its default.
    assert_eq!(
        back("envoy.config.core.v3.SocketAddress", &json!({"port_value": 0})),
        json!({"port_value": 0})
    );
}

#[test]
fn a_single_object_stands_for_a_list() {
    let one = json!({"filter_chains": {"name": "a"}});
    assert_eq!(back(LISTENER, &one), json!({"filter_chains": [{"name": "a"}]}));
}

#[test]
fn numbers() {
    let timeout = |value: Value| json!({"max_requests_per_connection": value});
    for three in [json!(3), json!("3"), json!(3.0), json!("3.0"), json!("3e0")] {
        assert_eq!(back(CLUSTER, &timeout(three)), timeout(json!(3)));
    }
    for wrong in [
        json!(-1),
        json!(3.5),
        json!(4_294_967_296_u64),
        json!(true),
        json!("three"),
        json!("0x3"),
        json!(""),
    ] {
        assert!(error(CLUSTER, &timeout(wrong)).contains("expected a number from 0 to 4294967295"));
    }
    let ring = |size: Value| json!({"ring_hash_lb_config": {"maximum_ring_size": size}});
    assert_eq!(
        back(CLUSTER, &ring(json!(u64::MAX))),
        ring(json!(u64::MAX.to_string()))
    );
    assert_eq!(
        back(CLUSTER, &ring(json!(u64::MAX.to_string()))),
        ring(json!(u64::MAX.to_string()))
    );
    assert!(error(CLUSTER, &ring(json!("18446744073709551616"))).contains("18446744073709551615"));
    for value in [
        json!(0.25),
        json!(100),
        json!(-1.5),
        json!("NaN"),
        json!("-Infinity"),
    ] {
        assert_eq!(back("google.protobuf.DoubleValue", &value), value);
    }
    assert_eq!(back("google.protobuf.FloatValue", &json!(0.1)), json!(0.1));
    assert!(error("google.protobuf.FloatValue", &json!(1e39)).contains("expected a number"));
    assert_eq!(
        back("google.protobuf.Int64Value", &json!(i64::MIN)),
        json!(i64::MIN.to_string())
    );
    assert_eq!(back("google.protobuf.Int32Value", &json!(-7)), json!(-7));
}

#[test]
fn enums_by_name_and_number() {
    assert_eq!(
        back(CLUSTER, &json!({"lb_policy": 2})),
        json!({"lb_policy": "RING_HASH"})
    );
    assert_eq!(back(CLUSTER, &json!({"lb_policy": 77})), json!({"lb_policy": 77}));
    assert_eq!(back(CLUSTER, &json!({"lb_policy": "ROUND_ROBIN"})), json!({}));
}

#[test]
fn wrappers_keep_their_presence() {
    let present = json!({"require_client_certificate": false});
    assert_eq!(back(TLS, &present), present);
    assert_eq!(back(TLS, &json!({"require_client_certificate": null})), json!({}));
    // An empty message is there, too: RBAC without rules allows, with empty rules denies.
    assert_eq!(back(RBAC, &json!({"rules": {}})), json!({"rules": {}}));
    assert_eq!(back(RBAC, &json!({})), json!({}));
}

#[test]
fn data_of_any_shape() {
    let data = json!({"a": null, "b": [1, "x", true, {}, []], "c": {"d": -0.5}});
    let node = json!({"metadata": data});
    assert_eq!(back("envoy.config.core.v3.Node", &node), node);
}

#[test]
fn anys() {
    let string = json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"});
    assert_eq!(back(ANY, &string), string);
    let data = json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": 1}});
    assert_eq!(back(ANY, &data), data);
    let nested = json!({"@type": "type.googleapis.com/google.protobuf.Any", "value": string});
    assert_eq!(back(ANY, &nested), nested);
    let empty = json!({"@type": "type.googleapis.com/google.protobuf.Empty"});
    assert_eq!(back(ANY, &empty), empty);
    assert_eq!(back(ANY, &json!({})), json!({}));
    assert!(error(ANY, &json!({"value": 1})).contains("\"@type\" is missing"));
    assert!(error(ANY, &json!({"@type": 5})).contains("got 5"));
    assert!(error(ANY, &json!({"@type": "google.protobuf.Empty"})).contains("expected a type URL"));
}

#[test]
fn an_any_of_an_unknown_type_keeps_its_name() {
    let filter = json!({"name": "f", "typed_config": {"@type": "type.googleapis.com/x.Y", "a": 1}});
    let (bytes, warnings) = read("envoy.config.listener.v3.Filter", &filter);
    assert_eq!(
        warnings,
        ["typed_config: the type type.googleapis.com/x.Y is not known here: its content is left out"]
    );
    let url = json!({"@type": "type.googleapis.com/x.Y"});
    assert_eq!(
        write("envoy.config.listener.v3.Filter", &bytes)["typed_config"],
        url
    );
    let any = prost_types::Any {
        type_url: "type.googleapis.com/x.Y".into(),
        value: vec![1, 2, 255],
    };
    let bytes = any.encode_to_vec();
    let mut shown = url;
    shown["value"] = "AQL/".into();
    assert_eq!(write(ANY, &bytes), shown);
    shown["value"] = "W3JlZGFjdGVkXQ==".into();
    let redact = json::Options {
        redact: true,
        ..json::Options::default()
    };
    assert_eq!(json::from_wire(ANY, &bytes, redact).unwrap(), shown);
}

#[test]
fn secrets_are_hidden() {
    let context = json!({"common_tls_context": {"tls_certificates": [{
        "certificate_chain": {"inline_string": "chain"},
        "private_key": {"inline_string": "hush"},
        "password": {"inline_bytes": "aHVzaA=="},
        "ocsp_staple": {"filename": "staple"},
    }]}});
    let (bytes, _) = read(TLS, &context);
    let redact = json::Options {
        redact: true,
        ..json::Options::default()
    };
    let certificate =
        &json::from_wire(TLS, &bytes, redact).unwrap()["common_tls_context"]["tls_certificates"][0];
    assert_eq!(
        certificate,
        &json!({
            "certificate_chain": {"inline_string": "chain"},
            "private_key": {"inline_string": "[redacted]"},
            "ocsp_staple": {"filename": "staple"},
            "password": {"inline_bytes": "W3JlZGFjdGVkXQ=="},
        })
    );
    assert_eq!(write(TLS, &bytes), back(TLS, &context));

    let listener = json!({"filter_chains": [{"transport_socket": {"typed_config": {
        "@type": format!("type.googleapis.com/{TLS}"), "common_tls_context": context["common_tls_context"]
    }}}]});
    let (bytes, _) = read(LISTENER, &listener);
    let listener = envoy::config::listener::v3::Listener::decode(bytes.as_slice()).unwrap();
    let shown = format!("{listener:?}");
    assert!(shown.contains("chain") && shown.contains("[redacted]"), "{shown}");
    assert!(!shown.contains("hush") && !shown.contains("aHVzaA"), "{shown}");

    let service = json!({"initial_metadata": [{"key": "x-consul-token", "value": "hush"}]});
    let (bytes, _) = read("envoy.config.core.v3.GrpcService", &service);
    let service = envoy::config::core::v3::GrpcService::decode(bytes.as_slice()).unwrap();
    let shown = format!("{service:?}");
    assert!(
        shown.contains("x-consul-token") && !shown.contains("hush"),
        "{shown}"
    );
}

#[test]
fn nesting_is_bounded() {
    let rule = |levels: usize| (0..levels).fold(json!({"any": true}), |rule, _| json!({"not_rule": rule}));
    let permission = "envoy.config.rbac.v3.Permission";
    assert_eq!(back(permission, &rule(63)), rule(63));
    let problem = error(permission, &rule(64));
    assert!(
        problem.ends_with("messages are nested more than 64 deep"),
        "{problem}"
    );
    assert!(error(permission, &rule(200)).ends_with("deep"));
    // All three count alike, also the levels of an Any and of maps.
    let policy = |levels| json!({"rules": {"policies": {"a": {"permissions": [rule(levels)]}}}});
    let deep = |levels| {
        let mut filter = policy(levels);
        filter["@type"] = format!("type.googleapis.com/{RBAC}").into();
        json!({"typed_config": filter})
    };
    let filter = "envoy.config.listener.v3.Filter";
    assert_eq!(back(filter, &deep(58)), deep(58));
    assert!(error(filter, &deep(59)).ends_with("deep"));
    let mut bytes = Vec::new();
    for _ in 0..100_000 {
        // `not_rule`, field 8.
        let mut outer = vec![8 << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        if outer.len() + bytes.len() > 4096 {
            break;
        }
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    let error = json::from_wire(permission, &bytes, json::Options::default()).unwrap_err();
    assert!(
        error.to_string().ends_with("messages are nested too deep"),
        "{error}"
    );
    assert_eq!(
        unknown_fields(permission, &bytes).unwrap_err().problem,
        "messages are nested too deep"
    );
    let data = (0..200).fold(json!(1), |data, _| json!([data]));
    let mut diagnostics = json::Diagnostics::default();
    assert!(json::to_wire("google.protobuf.Value", &data, &mut diagnostics).is_err());
}

#[test]
fn malformed_bytes_are_errors() {
    let bad: [(&[u8], &str); 9] = [
        (&[0x0a], "the bytes end within a number"),
        (&[0x0a, 5, b'x'], "the bytes end within a value"),
        (&[0x0a, 1, 0xff], "a string is not UTF-8"),
        (&[0x08, 1], "the value has another wire type than the field"),
        (&[0x07], "a field has number 0"),
        (&[0x0f], "a tag has an invalid wire type"),
        (&[0x0c], "a group ends that never began"),
        (&[0xfb, 0x7c, 0x08, 1], "the bytes end within a number"),
        (&[0x80; 11], "a number has more than 64 bits"),
    ];
    for (bytes, problem) in bad {
        let error = json::from_wire(LISTENER, bytes, json::Options::default()).unwrap_err();
        assert_eq!(error.problem, problem, "{bytes:?}");
    }
}

#[test]
fn repeated_singular_messages_merge_and_the_last_of_a_oneof_counts() {
    let one = read(
        CLUSTER,
        &json!({"common_lb_config": {"close_connections_on_host_set_change": true}}),
    )
    .0;
    let two = read(
        CLUSTER,
        &json!({"common_lb_config": {"ignore_new_hosts_until_first_hc": true}}),
    )
    .0;
    let both = json!({"common_lb_config": {
        "ignore_new_hosts_until_first_hc": true, "close_connections_on_host_set_change": true
    }});
    assert_eq!(write(CLUSTER, &[one, two].concat()), both);
    let port = read("envoy.config.core.v3.SocketAddress", &json!({"port_value": 1})).0;
    let name = read("envoy.config.core.v3.SocketAddress", &json!({"named_port": "x"})).0;
    let shown = write("envoy.config.core.v3.SocketAddress", &[port, name].concat());
    assert_eq!(shown, json!({"named_port": "x"}));
}

#[test]
fn unknown_fields_on_the_wire_are_found_with_their_place() {
    // Field 1999 of varint type, put behind what stands at each place.
    let unknown = [0xf8, 0x7c, 1];
    let (mut rules, _) = read(RBAC, &json!({"stat_prefix": "x"}));
    rules.extend_from_slice(&unknown);
    let any = prost_types::Any {
        type_url: format!("type.googleapis.com/{RBAC}"),
        value: rules,
    };
    let mut filter = envoy::config::listener::v3::Filter::default();
    let config = envoy::config::listener::v3::filter::ConfigType::TypedConfig(any);
    filter.config_type = Some(config);
    let listener = envoy::config::listener::v3::Listener {
        filter_chains: vec![
            envoy::config::listener::v3::FilterChain::default(),
            envoy::config::listener::v3::FilterChain {
                filters: vec![filter],
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    let mut bytes = listener.encode_to_vec();
    bytes.extend_from_slice(&unknown);
    let found = unknown_fields(envoy::config::listener::v3::Listener::TYPE_NAME, &bytes).unwrap();
    let inner = "filter_chains[1].filters[0].typed_config".to_owned();
    assert_eq!(
        found,
        [
            UnknownField {
                path: inner,
                number: 1999,
                strict: true
            },
            UnknownField {
                path: LISTENER.to_owned(),
                number: 1999,
                strict: false
            },
        ]
    );
    assert_eq!(
        unknown_fields(LISTENER, &unknown.repeat(10_000)).unwrap().len(),
        attache_proto::MAX_UNKNOWN
    );
}

#[test]
fn names_of_the_structs() {
    type Listener = envoy::config::listener::v3::Listener;
    assert_eq!(Listener::TYPE_NAME, LISTENER);
    assert_eq!(
        Listener::TYPE_URL,
        "type.googleapis.com/envoy.config.listener.v3.Listener"
    );
    assert_eq!(<Listener as prost::Name>::type_url(), Listener::TYPE_URL);
    assert!(json::is_known(LISTENER) && !json::is_known("envoy.config.core.v3.Metadata.FilterMetadataEntry"));
}
