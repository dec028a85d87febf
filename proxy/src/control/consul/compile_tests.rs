//! Compiling recorded answers, and every refusal that must be named.

use attache_bootstrap::config::UpstreamHint;

use super::*;
use crate::control::consul::intentions::DefaultPolicy;
use crate::control::consul::registration::{self, Upstream};
use crate::control::consul::state::{ChainKey, HealthKey, QueryKey};
use crate::control::consul::{authority, chain, health};
use crate::model::ClusterKind;
use crate::model::cluster::OutlierDetection;
use crate::model::matcher::StringMatcher;
use crate::model::rbac::Action;
use crate::model::secret::{CertificateFacts, PrivateKey};
use crate::model::{Identity, SpiffeId};

const TD: &str = "17b1d5da-eec0-1b75-21ab-f4bbdf0e280a.consul";

fn given() -> Given {
    Given {
        hints: Vec::new(),
        public: None,
        nomad: false,
        manual: false,
    }
}

fn identity(serial: &str) -> Arc<Identity> {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(vec![1, 2, 3]);
    Arc::new(Identity {
        chain: vec![serial.as_bytes().to_vec().into()],
        key: Arc::new(PrivateKey::from(&rustls_pki_types::PrivateKeyDer::Pkcs8(der))),
        leaf: CertificateFacts {
            serial: serial.to_owned(),
            not_before: std::time::SystemTime::UNIX_EPOCH,
            not_after: std::time::SystemTime::UNIX_EPOCH,
            uris: Vec::new(),
            dns_names: Vec::new(),
        },
        spiffe_id: SpiffeId::parse(&format!("spiffe://{TD}/ns/default/dc/dc1/svc/web")).ok(),
        path: None,
    })
}

fn state(registration: &[u8]) -> State {
    let trust = authority::decode_roots(include_bytes!("recorded/roots.json")).unwrap();
    State {
        registration: Some(registration::decode(registration).unwrap()),
        authority: Some(Authority {
            trust: Arc::new(trust),
            identity: identity("1"),
        }),
        ..State::default()
    }
}

fn web() -> State {
    state(include_bytes!("recorded/agent_service_web_tcp.json"))
}

fn snapshot(state: &State) -> Snapshot {
    compile(&given(), state, None).snapshot.unwrap()
}

fn rbac(snapshot: &Snapshot) -> Arc<Rbac> {
    let public = snapshot
        .listeners
        .values()
        .find(|l| l.direction == Direction::Inbound);
    match &public.unwrap().filter_chains[0].filters[0] {
        NetworkFilter::Rbac { rules, .. } => Arc::clone(rules),
        NetworkFilter::ConnectionLimit { .. } | NetworkFilter::SniCluster => panic!("the rules come first"),
    }
}

fn upstream(json: &str) -> State {
    let body = format!(
        r#"{{"Kind":"connect-proxy","ID":"p","Port":20000,"Datacenter":"dc1","Proxy":{{
        "DestinationServiceName":"web","LocalServicePort":80,"Upstreams":[{json}]}}}}"#
    );
    state(body.as_bytes())
}

fn refusal(json: &str) -> String {
    let compiled = compile(&given(), &upstream(json), None);
    let outbound = |l: &&Arc<Listener>| l.direction == Direction::Outbound;
    assert_eq!(
        compiled
            .snapshot
            .unwrap()
            .listeners
            .values()
            .filter(outbound)
            .count(),
        0
    );
    compiled.notices.into_iter().collect::<Vec<_>>().join("; ")
}

#[test]
fn a_recorded_registration_has_the_names_that_envoy_got() {
    let mut state = web();
    let key = |service: &str| ChainKey {
        service: service.to_owned(),
        ..ChainKey::default()
    };
    let chain = chain::decode(include_bytes!("recorded/chain_api.json")).unwrap();
    state.chains.insert(key("api"), chain);
    let health_key = HealthKey {
        service: "api".to_owned(),
        datacenter: "dc1".to_owned(),
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        filter: String::new(),
    };
    let list = health::decode(include_bytes!("recorded/health_api.json")).unwrap();
    state.instances.insert(health_key.clone(), list);
    let compiled = compile(&given(), &state, None);
    assert!(compiled.notices.is_empty(), "{:?}", compiled.notices);
    assert!(compiled.wants.contains(&Want::Health(health_key)));
    assert!(compiled.wants.contains(&Want::Chain(key("absent"))));
    let snapshot = compiled.snapshot.unwrap();
    let names: Vec<_> = snapshot.listeners.keys().map(|n| &**n).collect();
    assert_eq!(
        names,
        [
            "absent:127.0.0.1:9192",
            "api:127.0.0.1:9191",
            "public_listener:127.0.0.1:21003"
        ]
    );
    let api = format!("api.default.dc1.internal.{TD}");
    let tls = snapshot.clusters[&*api].transport.clone().unwrap();
    assert_eq!(tls.sni.as_deref(), Some(api.as_str()));
    assert_eq!(
        tls.validation.names[0].matcher,
        StringMatcher::exact(format!("spiffe://{TD}/ns/default/dc/dc1/svc/api"))
    );
    assert_eq!(snapshot.endpoints[&*api].endpoints.len(), 2);
    // Its chain is not known yet: the listener waits, nothing is dialled.
    let absent = format!("absent.default.dc1.internal.{TD}");
    assert!(snapshot.clusters.contains_key(&*absent));
    assert!(!snapshot.endpoints.contains_key(&*absent));
    assert_eq!(
        snapshot.endpoints[LOCAL_APP].endpoints[0].address.to_string(),
        "127.0.0.1:9103"
    );
}

#[test]
fn nothing_is_published_without_an_authority_and_nobody_enters_without_intentions() {
    let mut state = web();
    let rules = rbac(&snapshot(&state));
    assert_eq!(&*rules.default_name, "the intentions are not known yet: deny");
    assert_eq!(rules.default_action, Action::Deny);
    state.intentions = Some(Vec::new());
    assert_eq!(rbac(&snapshot(&state)).default_action, Action::Deny);
    state.default_policy = DefaultPolicy::Known(Action::Allow);
    assert_eq!(rbac(&snapshot(&state)).default_action, Action::Allow);
    state.authority = None;
    let compiled = compile(&given(), &state, None);
    assert!(compiled.snapshot.is_none() && !compiled.wants.is_empty());
}

#[test]
fn what_did_not_change_is_the_same_arc() {
    let mut state = web();
    let first = snapshot(&state);
    let same = compile(&given(), &state, Some(&first)).snapshot.unwrap();
    for (name, listener) in &same.listeners {
        assert!(Arc::ptr_eq(listener, &first.listeners[name]), "{name}");
    }
    state.authority.as_mut().unwrap().identity = identity("2");
    let renewed = compile(&given(), &state, Some(&first)).snapshot.unwrap();
    let api = "api:127.0.0.1:9191";
    assert!(Arc::ptr_eq(&renewed.listeners[api], &first.listeners[api]));
    assert!(Arc::ptr_eq(&rbac(&renewed), &rbac(&first)));
    let public = "public_listener:127.0.0.1:21003";
    assert!(!Arc::ptr_eq(&renewed.listeners[public], &first.listeners[public]));
    assert!(Arc::ptr_eq(
        &renewed.clusters[LOCAL_APP],
        &first.clusters[LOCAL_APP]
    ));
}

#[test]
fn where_the_public_listener_binds() {
    let place = |given: &Given, address: &str, config: &str| {
        let body =
            format!(r#"{{"ID":"p","Address":"{address}","Port":21000,"Proxy":{{"Config":{{{config}}}}}}}"#);
        let registration = registration::decode(body.as_bytes()).unwrap();
        public_address(given, &registration).map(|a| a.to_string())
    };
    let ok = |text: &str| Ok(text.to_owned());
    let hint = Given {
        public: Some("0.0.0.0:30563".parse().unwrap()),
        nomad: true,
        ..given()
    };
    let nomad = Given {
        public: None,
        ..hint.clone()
    };
    let both = r#""bind_address":"127.0.0.1","bind_port":"9000""#;
    let port = r#""bind_port":9000"#;
    assert_eq!(place(&given(), "10.0.0.1", ""), ok("10.0.0.1:21000"));
    assert_eq!(place(&given(), "", ""), ok("0.0.0.0:21000"));
    assert_eq!(place(&given(), "host.test", ""), ok("0.0.0.0:21000"));
    assert_eq!(place(&given(), "10.0.0.1", both), ok("127.0.0.1:9000"));
    assert_eq!(place(&hint, "192.0.2.2", port), ok("0.0.0.0:9000"));
    assert_eq!(place(&hint, "192.0.2.2", ""), ok("0.0.0.0:30563"));
    assert_eq!(place(&nomad, "192.0.2.2", port), ok("0.0.0.0:9000"));
    assert!(place(&nomad, "192.0.2.2", "").unwrap_err().contains("bind_port"));
    let odd = place(&given(), "", r#""bind_port":"http""#).unwrap_err();
    assert_eq!(odd, "Proxy.Config.bind_port \"http\" is no port");
    let odd = place(&given(), "", r#""bind_address":"eth0""#).unwrap_err();
    assert_eq!(odd, "Proxy.Config.bind_address \"eth0\" is no IP address");
}

#[test]
fn upstreams_that_cannot_be_carried_are_named() {
    let start = r#""DestinationName":"api","LocalBindPort":9000"#;
    for (rest, part) in [
        (
            r#""DestinationPeer":"west""#,
            "upstream api?peer=west on 127.0.0.1:9000 is refused",
        ),
        (r#""DestinationPeer":"west""#, "xds source"),
        (r#""DestinationType":"lambda""#, "\"lambda\" is not known"),
        (
            r#""Datacenter":"dc2","MeshGateway":{"Mode":"local"}"#,
            "mesh gateway (mode \"local\")",
        ),
        (r#""LocalBindAddress":"eth0""#, "\"eth0\" is no IP address"),
        (
            r#""LocalBindPort":0"#,
            "neither LocalBindPort nor LocalBindSocketPath",
        ),
    ] {
        let said = refusal(&format!("{{{start},{rest}}}"));
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn sockets_limits_and_names() {
    let state = upstream(
        r#"{"DestinationName":"api","LocalBindSocketPath":"/run/api.sock",
        "LocalBindSocketMode":"0660","Datacenter":"dc2",
        "Config":{"limits":{"max_connections":9,"max_pending_requests":1},
        "passive_health_check":{"interval":"3s","max_failures":2,"enforcing_consecutive_5xx":0,
        "max_ejection_percent":101,"base_ejection_time":7000000000},"envoy_cluster_json":"{}"}}"#,
    );
    let compiled = compile(&given(), &state, None);
    let snapshot = compiled.snapshot.unwrap();
    let listener = &snapshot.listeners["api?dc=dc2:/run/api.sock"];
    let Address::Pipe { mode, .. } = &listener.address else {
        panic!("a socket")
    };
    assert_eq!(*mode, Some(0o660));
    let cluster = &snapshot.clusters[&*format!("api.default.dc2.internal.{TD}")];
    assert_eq!(cluster.circuit_breakers.max_connections, Some(9));
    let expected = OutlierDetection {
        interval: Duration::from_secs(3),
        consecutive_5xx: 2,
        enforcing_consecutive_5xx: 0,
        base_ejection_time: Duration::from_secs(7),
        ..OutlierDetection::default()
    };
    assert_eq!(cluster.outlier_detection, Some(expected));
    let notices: Vec<_> = compiled.notices.iter().map(String::as_str).collect();
    assert_eq!(
        notices,
        [
            "upstream api?dc=dc2: Config.envoy_cluster_json is not honoured",
            "upstream api?dc=dc2: Config.limits.max_pending_requests is not honoured: it needs HTTP",
            "upstream api?dc=dc2: Config.passive_health_check.max_ejection_percent is not honoured: \
             101 is no number up to 100",
        ]
    );
}

#[test]
fn a_prepared_query_expects_nobody_before_it_is_answered() {
    let mut state =
        upstream(r#"{"DestinationType":"prepared_query","DestinationName":"q","LocalBindPort":9000}"#);
    let name = format!("q.default.dc1.query.{TD}");
    let before = snapshot(&state);
    assert!(before.listeners.contains_key("prepared_query:q:127.0.0.1:9000"));
    let expected = |s: &Snapshot| s.clusters[&*name].transport.as_ref().unwrap().validation.clone();
    let id = |service: &str| SpiffeId::parse(&format!("spiffe://{TD}/{service}")).unwrap();
    let trust = &state.authority.as_ref().unwrap().trust.clone();
    let of = |service: &str| Validation::mesh(trust, &[id(service)]);
    assert_eq!(expected(&before), of("attache/not-known-yet"));
    let answer = format!(
        r#"{{"Nodes":{}}}"#,
        std::str::from_utf8(include_bytes!("recorded/health_api.json")).unwrap()
    );
    let key = QueryKey {
        name: "q".to_owned(),
        datacenter: None,
    };
    state
        .queries
        .insert(key, health::decode_query(answer.as_bytes()).unwrap());
    let after = snapshot(&state);
    assert_eq!(expected(&after), of("ns/default/dc/dc1/svc/api"));
    assert_eq!(after.endpoints[&*name].endpoints.len(), 2);
}

#[test]
fn failover_is_an_aggregate_in_order() {
    let mut state = upstream(r#"{"DestinationName":"api","LocalBindPort":9000}"#);
    let body = br#"{"Chain":{"ServiceName":"api","StartNode":"r","Nodes":{"r":{"Type":"resolver",
        "Resolver":{"Target":"a","ConnectTimeout":"7s","Failover":{"Targets":["b"]}}}},
        "Targets":{"a":{"Service":"a","Datacenter":"dc1","Partition":"default",
        "Namespace":"default","SNI":"a.sni","Name":"a.name"},"b":{"Service":"b",
        "Datacenter":"dc2","Partition":"default","Namespace":"default","SNI":"b.sni",
        "Name":"b.name"}}}}"#;
    let key = ChainKey {
        service: "api".to_owned(),
        ..ChainKey::default()
    };
    state.chains.insert(key.clone(), chain::decode(body).unwrap());
    let compiled = compile(&given(), &state, None);
    let s = compiled.snapshot.unwrap();
    let names: Vec<Name> = ["failover-target~0~a.name", "failover-target~1~a.name"]
        .map(Into::into)
        .to_vec();
    assert_eq!(s.clusters["a.name"].kind, ClusterKind::Aggregate(names));
    let second = &s.clusters["failover-target~1~a.name"];
    assert_eq!(second.connect_timeout, Duration::from_secs(7));
    assert_eq!(second.transport.as_ref().unwrap().sni.as_deref(), Some("b.sni"));
    assert_eq!(compiled.wants.len(), 3);
    // Another override is another chain: the old one serves until it is known.
    let registration = state.registration.as_mut().unwrap();
    registration.upstreams[0].mesh_gateway = "none".to_owned();
    let compiled = compile(&given(), &state, None);
    assert!(compiled.snapshot.unwrap().clusters.contains_key("a.name"));
    assert!(compiled.wants.contains(&Want::Chain(key)));
    assert_eq!(compiled.wants.len(), 4);
}

#[test]
fn the_registration_wins_over_the_environment_and_says_so() {
    let hint = |name: &str, bind: &str| UpstreamHint {
        destination: name.to_owned(),
        bind: bind.parse().unwrap(),
        variable: format!("NOMAD_UPSTREAM_ADDR_{name}"),
    };
    let given = Given {
        hints: vec![
            hint("count-api", "127.0.0.1:8080"),
            hint("gone", "127.0.0.1:8081"),
            hint("other_name", "127.0.0.1:8082"),
        ],
        ..given()
    };
    let of = |name: &str, port| Upstream {
        destination: name.to_owned(),
        kind: "service".to_owned(),
        bind_port: port,
        ..Upstream::default()
    };
    let mut registration = Registration {
        upstreams: vec![of("count-api", 8088), of("other-name", 8082)],
        ..Registration::default()
    };
    let (kept, notices) = given.upstreams(&registration);
    assert_eq!((kept.len(), notices.len()), (2, 2));
    assert!(notices[0].contains("says 127.0.0.1:8080") && notices[0].contains("127.0.0.1:8088"));
    assert!(notices[1].contains("\"gone\""), "{}", notices[1]);
    registration.upstreams.clear();
    assert!(given.upstreams(&registration).0.is_empty());
    let manual = Given {
        manual: true,
        ..given
    };
    assert_eq!(manual.upstreams(&registration).0.len(), 3);
}

/// A proxy of a service that speaks HTTP.
fn http(config: &str, rest: &str) -> State {
    let body = format!(
        r#"{{"Kind":"connect-proxy","ID":"p","Address":"127.0.0.1","Port":20000,"Datacenter":"dc1","Proxy":{{
        "DestinationServiceName":"web","LocalServicePort":80,"Config":{{{config}}}{rest}}}}}"#
    );
    state(body.as_bytes())
}

fn manager(snapshot: &Snapshot, name: &str) -> Arc<HttpConnectionManager> {
    match &snapshot.listeners[name].filter_chains[0].terminal {
        Terminal::HttpConnectionManager(manager) => Arc::clone(manager),
        Terminal::TcpProxy(_) => panic!("{name} is TCP"),
    }
}

const PUBLIC: &str = "public_listener:127.0.0.1:20000";

#[test]
fn new_rules_of_requests_leave_everything_else_what_it_is() {
    let mut state = http(r#""protocol":"HTTP2""#, "");
    let before = snapshot(&state);
    let rules = |manager: &HttpConnectionManager| {
        manager.http_filters.iter().find_map(|filter| match filter {
            HttpFilter::Rbac { rules, .. } => rules.clone(),
            _ => None,
        })
    };
    let closed = rules(&manager(&before, PUBLIC)).unwrap();
    assert_eq!(&*closed.default_name, "the intentions are not known yet: deny");
    let chain = &before.listeners[PUBLIC].filter_chains[0];
    assert!(
        chain.filters.is_empty(),
        "the rules are of requests, not of connections"
    );
    assert_eq!(
        chain.transport.as_ref().unwrap().alpn,
        ["h2".into(), "http/1.1".into()]
    );
    assert_eq!(before.clusters[LOCAL_APP].http, HttpProtocol::Downstream);
    state.intentions = Some(Vec::new());
    let after = compile(&given(), &state, Some(&before)).snapshot.unwrap();
    let (old, new) = (manager(&before, PUBLIC), manager(&after, PUBLIC));
    assert!(!Arc::ptr_eq(&old, &new));
    assert_ne!(rules(&old), rules(&new));
    let (Routes::Inline(old), Routes::Inline(new)) = (&old.routes, &new.routes) else {
        panic!("by RDS")
    };
    assert!(Arc::ptr_eq(old, new));
    let same = compile(&given(), &state, Some(&after)).snapshot.unwrap();
    assert!(Arc::ptr_eq(&same.listeners[PUBLIC], &after.listeners[PUBLIC]));
    assert_ne!(before, after, "so that it is published");
}

#[test]
fn a_mesh_entry_may_take_the_callers_certificate_away() {
    let mut state = http(r#""protocol":"http""#, "");
    let told = |state: &State| {
        let manager = manager(&snapshot(state), PUBLIC);
        let to_metadata = |filter: &HttpFilter| matches!(filter, HttpFilter::HeaderToMetadata(_));
        let has_filter = manager.http_filters.iter().any(to_metadata);
        assert!(manager.normalization.normalize_path);
        (manager.forward_client_cert.mode, has_filter)
    };
    assert_eq!(told(&state), (ForwardClientCertMode::AppendForward, true));
    state.mesh.sanitize_client_cert = true;
    assert_eq!(told(&state), (ForwardClientCertMode::Sanitize, false));
}

#[test]
fn what_http_listeners_do_not_take_is_named() {
    let state = http(
        r#""protocol":"http","max_request_headers_kb":9000,"local_request_timeout_ms":"soon",
        "balance_inbound_connections":"fair","envoy_public_listener_json":"{}""#,
        r#","Expose":{"Checks":true,"Paths":[{"Path":"/a","ListenerPort":20000,"LocalPathPort":80},
        {"Path":"/b","ListenerPort":20001,"LocalPathPort":80,"Protocol":"tcp"},
        {"Path":"/c","ListenerPort":20002,"LocalPathPort":80,"ParsedFromCheck":true}]}"#,
    );
    let compiled = compile(&given(), &state, None);
    assert_eq!(compiled.snapshot.unwrap().listeners.len(), 1);
    assert_eq!(
        compiled.notices.into_iter().collect::<Vec<_>>(),
        [
            "Proxy.Config.balance_inbound_connections is not honoured: \"fair\" is not known",
            "Proxy.Config.envoy_public_listener_json is not honoured",
            "Proxy.Config.local_request_timeout_ms is not honoured: \"soon\" is no number",
            "Proxy.Config.max_request_headers_kb is not honoured: 9000 is no number up to 8192",
            "Proxy.Expose.Checks is not honoured",
            "Proxy.Expose.Paths[2].ParsedFromCheck is not honoured",
            "Proxy.Expose: the path /a on port 20000 is refused: the listener \
             public_listener:127.0.0.1:20000 has its address already",
            "Proxy.Expose: the path /b on port 20001 is refused: its protocol \"tcp\" is not known",
        ]
    );
}

#[test]
fn a_service_whose_extension_may_keep_somebody_out_takes_nobody() {
    let state = http(
        r#""protocol":"http""#,
        r#","EnvoyExtensions":[{"Name":"builtin/ext-authz","Required":true}]"#,
    );
    let compiled = compile(&given(), &state, None);
    assert!(compiled.snapshot.unwrap().listeners.is_empty());
    let what =
        "there is no public listener: Proxy.EnvoyExtensions asks for builtin/ext-authz, not carried out";
    assert!(compiled.notices.contains(what), "{:?}", compiled.notices);
}

#[test]
fn a_route_that_leads_nowhere_keeps_its_share_of_requests() {
    let mut state = upstream(r#"{"DestinationName":"api","LocalBindPort":9000}"#);
    let chain = |first: &str| {
        let body = format!(
            r#"{{"Chain":{{"ServiceName":"api","Protocol":"http","StartNode":"s","Nodes":{{
            "s":{{"Type":"splitter","Splits":[{{"Weight":50,"NextNode":"a"}},{{"Weight":50,"NextNode":"b"}}]}},
            "a":{{"Type":"resolver","Resolver":{{"Target":"a"}}}},
            "b":{{"Type":"resolver","Resolver":{{"Target":"b"}}}}}},"Targets":{{
            "a":{{"Service":"a","Name":"a.name","SNI":"a.sni","Partition":"default","Namespace":"default",
            {first}}},"b":{{"Service":"b","Name":"b.name","Peer":"west"}}}}}}}}"#
        );
        chain::decode(body.as_bytes()).unwrap()
    };
    let key = ChainKey {
        service: "api".to_owned(),
        ..ChainKey::default()
    };
    state.chains.insert(key.clone(), chain(r#""Datacenter":"dc1""#));
    let compiled = compile(&given(), &state, None);
    let s = compiled.snapshot.unwrap();
    assert!(s.clusters.contains_key("a.name") && !s.clusters.contains_key("b.name"));
    assert_eq!(s.routes["api"].clusters().count(), 2);
    assert_eq!(
        compiled.notices.into_iter().collect::<Vec<_>>(),
        [
            "upstream api: requests that its routes send to b are answered with 503: it is in the cluster \
          peer \"west\": that needs the xds source"
        ]
    );
    state.chains.insert(key, chain(r#""Peer":"east""#));
    let compiled = compile(&given(), &state, None);
    let s = compiled.snapshot.unwrap();
    assert!(s.routes.is_empty() && !s.listeners.contains_key("api:127.0.0.1:9000"));
    let notices: Vec<_> = compiled.notices.into_iter().collect();
    assert!(
        notices[0].starts_with("upstream api on 127.0.0.1:9000 is refused"),
        "{notices:?}"
    );
}

#[test]
fn an_http_upstream_is_of_http_before_its_chain_is_known() {
    let state = upstream(
        r#"{"DestinationName":"api","LocalBindPort":9000,"Config":{"protocol":"grpc","limits":
        {"max_connections":3,"max_pending_requests":4,"max_concurrent_requests":5}}}"#,
    );
    let compiled = compile(&given(), &state, None);
    assert!(compiled.notices.is_empty(), "{:?}", compiled.notices);
    let s = compiled.snapshot.unwrap();
    let manager = manager(&s, "api:127.0.0.1:9000");
    assert_eq!(&*manager.stat_prefix, "upstream.api.default.default.dc1");
    assert_eq!(manager.http_filters.len(), 2);
    let api = format!("api.default.dc1.internal.{TD}");
    let cluster = &s.clusters[&*api];
    assert_eq!(cluster.http, HttpProtocol::Http2);
    let breakers = CircuitBreakers {
        max_connections: Some(3),
        max_pending_requests: Some(4),
        max_requests: Some(5),
        ..CircuitBreakers::default()
    };
    assert_eq!(cluster.circuit_breakers, breakers);
    assert!(!s.endpoints.contains_key(&*api), "nothing is dialled before");
}
