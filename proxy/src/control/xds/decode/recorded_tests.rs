//! Every resource that a real Envoy was recorded with under Consul, whole and with bytes changed.

use std::path::Path;

use attache_proto::json::{self, Diagnostics};
use attache_proto::{TypeUrl, envoy};
use serde_json::{Value, json};

use super::testing::{Bench, Pem, pem};
use super::{Context, DecodeError, cluster, endpoint, listener};
use crate::model::cluster::{ClusterKind, HttpProtocol};
use crate::model::listener::{ClientCertificate, Direction, TcpProxy};
use crate::model::{Action, Downstream, Listener, NetworkFilter, Terminal, Trust};

type Listeners = envoy::config::listener::v3::Listener;
type Clusters = envoy::config::cluster::v3::Cluster;
type Assignments = envoy::config::endpoint::v3::ClusterLoadAssignment;

/// A resource as it would come over the wire.
struct Recorded {
    /// The file that it stands in.
    file: String,
    kind: &'static str,
    json: Value,
    bytes: Vec<u8>,
}

/// Every listener, cluster and load assignment of the dumps.
fn recorded() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/tests/recorded");
    let leaf = pem("spiffe://td.consul/ns/default/dc/dc1/svc/web");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !file.ends_with("_config_dump.json") {
            continue;
        }
        let mut dump: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        unredact(&mut dump, &leaf);
        resources(&file, &dump, &mut found);
    }
    found
}

/// Envoy's dump has no keys: in its place stands one of ours, with its certificate.
fn unredact(value: &mut Value, leaf: &Pem) {
    match value {
        Value::Object(object) => {
            if object.contains_key("private_key") {
                object.insert("private_key".to_owned(), json!({ "inline_string": leaf.key }));
                object.insert(
                    "certificate_chain".to_owned(),
                    json!({ "inline_string": leaf.certificate }),
                );
            }
            object.values_mut().for_each(|value| unredact(value, leaf));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| unredact(value, leaf)),
        _ => {}
    }
}

fn resources(file: &str, value: &Value, found: &mut Vec<Recorded>) {
    if let Some(kind) = value.get("@type").and_then(Value::as_str) {
        let name = kind.trim_start_matches("type.googleapis.com/");
        let kinds = [Listeners::TYPE_NAME, Clusters::TYPE_NAME, Assignments::TYPE_NAME];
        if let Some(kind) = kinds.into_iter().find(|kind| *kind == name) {
            let mut json = value.clone();
            json.as_object_mut().unwrap().shift_remove("@type");
            let bytes = json::to_wire(kind, &json, &mut Diagnostics::default()).unwrap();
            let file = file.to_owned();
            found.push(Recorded {
                file,
                kind,
                json,
                bytes,
            });
            return;
        }
    }
    match value {
        Value::Object(object) => object.values().for_each(|value| resources(file, value, found)),
        Value::Array(list) => list.iter().for_each(|value| resources(file, value, found)),
        _ => {}
    }
}

fn decode(kind: &str, bytes: &[u8], ctx: &mut Context<'_>) -> Result<(), DecodeError> {
    if kind == Listeners::TYPE_NAME {
        listener::decode_bytes(bytes, ctx).map(drop)
    } else if kind == Clusters::TYPE_NAME {
        cluster::decode_bytes(bytes, ctx).map(drop)
    } else {
        endpoint::decode_bytes(bytes, ctx).map(drop)
    }
}

#[test]
fn all_of_it_decodes() {
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let all = recorded();
    assert!(all.len() > 60, "{} resources", all.len());
    for resource in &all {
        let http = resource.json.to_string().contains("HttpConnectionManager\"");
        match decode(resource.kind, &resource.bytes, &mut ctx) {
            Ok(()) => {}
            Err(error) if http => assert!(error.to_string().contains("HttpConnectionManager"), "{error}"),
            Err(error) => panic!("{}: {error}", resource.file),
        }
    }
    // Consul allows upgrades everywhere; the small connection manager says that it does not.
    let others: Vec<_> = ctx
        .notices
        .iter()
        .filter(|notice| !notice.contains("upgrade_configs"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    // The same leaf in all of them is one.
    assert_eq!(ctx.identities.len(), 1);
}

fn listener_of(file: &str, direction: Direction) -> Listener {
    let all = recorded();
    let mut listeners = all.iter().filter_map(|resource| {
        let is_wanted = resource.kind == Listeners::TYPE_NAME && resource.file.starts_with(file);
        let listener = listener::decode_bytes(&resource.bytes, &mut Bench::default().context());
        listener
            .ok()
            .filter(|listener| is_wanted && listener.direction == direction)
    });
    listeners.next().unwrap()
}

#[test]
fn the_public_listener_is_what_consul_meant() {
    let public = listener_of("tcp_api-1", Direction::Inbound);
    let chain = &public.filter_chains[0];
    let tls = chain.transport.as_ref().unwrap();
    let ClientCertificate::Required(validation) = &tls.client else {
        panic!("no mutual TLS")
    };
    assert!(matches!(validation.trust, Trust::Roots(_)) && validation.names.is_empty());
    let [NetworkFilter::Rbac { rules, stat_prefix }] = chain.filters.as_slice() else {
        panic!("no rules")
    };
    assert_eq!(&**stat_prefix, "connect_authz");
    // Recorded with a default that allows and no intention.
    let verdict = rules.evaluate(&Downstream::default(), None);
    assert_eq!(
        (verdict.action, &*verdict.policy),
        (Action::Allow, "no policy matches: allow")
    );
    let tcp = TcpProxy::to("local_app".into(), "public_listener".into());
    assert_eq!(chain.terminal, Terminal::TcpProxy(tcp));
}

#[test]
fn clusters_are_what_consul_meant() {
    let all = recorded();
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let mut clusters = Vec::new();
    for resource in all.iter().filter(|resource| resource.kind == Clusters::TYPE_NAME) {
        clusters.push(cluster::decode_bytes(&resource.bytes, &mut ctx).unwrap());
    }
    let of_the_mesh = clusters.iter().filter(|decoded| decoded.eds.is_some());
    let mut seen = 0;
    for decoded in of_the_mesh {
        seen += 1;
        let cluster = &decoded.cluster;
        let tls = cluster.transport.as_ref().unwrap();
        assert_eq!(tls.sni.as_deref(), Some(&*cluster.name));
        assert!(
            tls.validation
                .names
                .iter()
                .all(|name| name.matcher.matches(&uri(name)))
        );
        assert_eq!((cluster.panic_threshold, decoded.endpoints.is_none()), (0, true));
        assert!(cluster.outlier_detection.is_some());
    }
    assert!(seen >= 8, "{seen}");
    let local_agents = clusters
        .iter()
        .filter(|decoded| &*decoded.cluster.name == "local_agent");
    for decoded in local_agents {
        assert_eq!(decoded.cluster.kind, ClusterKind::Endpoints);
        assert_eq!(decoded.cluster.http, HttpProtocol::Http2);
        assert_eq!(decoded.endpoints.as_ref().unwrap().endpoints.len(), 1);
    }
}

/// The text of an exact matcher.
fn uri(name: &crate::model::secret::SanMatcher) -> String {
    match &name.matcher.pattern {
        crate::model::matcher::StringPattern::Exact(text) => text.to_string(),
        other => panic!("{other:?} is not exact"),
    }
}

#[test]
fn changed_bytes_are_an_error_or_a_resource() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut refused = 0;
    for resource in recorded() {
        let mut bench = Bench::default();
        let mut ctx = bench.context();
        for _ in 0..60 {
            let mut bytes = resource.bytes.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes[at] ^= 1 << random.u8(..8),
                    2 => bytes.truncate(at + 1),
                    _ => {
                        let piece = resource.bytes[random.usize(..resource.bytes.len())..]
                            .iter()
                            .take(9);
                        bytes.splice(at..at, piece.copied());
                    }
                }
            }
            if let Err(error) = decode(resource.kind, &bytes, &mut ctx) {
                refused += 1;
                assert!(!error.to_string().contains("PRIVATE KEY"), "{error}");
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
