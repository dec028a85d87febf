//! xDS resources: JSON with `@type` as in a bootstrap file or a dump, else a letter and a message's bytes.
//!
//! The network filters that hold the most, RBAC and the HTTP connection manager, also come alone; a listener
//! is put around them.

#![no_main]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use attache::control::xds::decode::{
    Context, DecodeError, Files, Shared, Why, cluster, endpoint, listener, route, secret,
};
use attache::model::Identity;
use attache::tls::identity::certified_key;
use attache_proto::TypeUrl;
use attache_proto::envoy::config::cluster::v3::Cluster;
use attache_proto::envoy::config::core::v3::{
    Address, SocketAddress, address, socket_address::PortSpecifier,
};
use attache_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use attache_proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter::ConfigType};
use attache_proto::envoy::config::route::v3::RouteConfiguration;
use attache_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use attache_proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use attache_proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use attache_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use attache_proto::json::{self, Diagnostics};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_types::Any;
use serde_json::Value;
use zeroize::Zeroizing;

/// The types, each with the letter that stands for it before a message's bytes.
const TYPES: [(u8, &str); 7] = [
    (b'l', Listener::TYPE_NAME),
    (b'c', Cluster::TYPE_NAME),
    (b'e', ClusterLoadAssignment::TYPE_NAME),
    (b's', Secret::TYPE_NAME),
    (b'r', RouteConfiguration::TYPE_NAME),
    (b'a', Rbac::TYPE_NAME),
    (b'h', HttpConnectionManager::TYPE_NAME),
];

fuzz_target!(|input: &[u8]| {
    let Some((letter, bytes)) = message(input) else {
        return;
    };
    match letter {
        b'l' => twice(&bytes, listener::decode_bytes),
        b'c' => twice(&bytes, cluster::decode_bytes),
        b'e' => twice(&bytes, endpoint::decode_bytes),
        b'r' => twice(&bytes, route::decode_bytes),
        b'a' => {
            let tcp = TcpProxy {
                cluster_specifier: Some(ClusterSpecifier::Cluster("local_app".to_owned())),
                ..TcpProxy::default()
            };
            let rbac = (Rbac::TYPE_URL, bytes);
            let filters = [rbac, (TcpProxy::TYPE_URL, tcp.encode_to_vec())];
            twice(&listener_of(filters), listener::decode_bytes);
        }
        b'h' => {
            let filters = [(HttpConnectionManager::TYPE_URL, bytes)];
            twice(&listener_of(filters), listener::decode_bytes);
        }
        _ => twice(&bytes, secret::decode_bytes),
    }
});

fn message(input: &[u8]) -> Option<(u8, Vec<u8>)> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(input) else {
        let (letter, bytes) = input.split_first()?;
        return TYPES
            .iter()
            .any(|(known, _)| known == letter)
            .then(|| (*letter, bytes.to_vec()));
    };
    let url = object.shift_remove("@type")?;
    let (letter, name) = TYPES
        .into_iter()
        .find(|(_, name)| url.as_str().is_some_and(|url| url.ends_with(name)))?;
    let bytes = json::to_wire(name, &Value::Object(object), &mut Diagnostics::default()).ok()?;
    Some((letter, bytes))
}

/// A listener with one chain of these filters, each a type's URL and a message's bytes.
fn listener_of<const N: usize>(filters: [(&str, Vec<u8>); N]) -> Vec<u8> {
    let filter = |(url, value): (&str, Vec<u8>)| Filter {
        name: url.to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any {
            type_url: url.to_owned(),
            value,
        })),
    };
    let address = SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(20_000)),
        ..SocketAddress::default()
    };
    let listener = Listener {
        name: "public_listener".to_owned(),
        address: Some(Address {
            address: Some(address::Address::SocketAddress(address)),
        }),
        filter_chains: vec![FilterChain {
            filters: filters.map(filter).into(),
            ..FilterChain::default()
        }],
        ..Listener::default()
    };
    listener.encode_to_vec()
}

/// The same bytes read the same, and what is refused says what and why, but no key.
fn twice<T: PartialEq + Debug>(bytes: &[u8], decode: fn(&[u8], &mut Context<'_>) -> Result<T, DecodeError>) {
    // No file is ever read: names of them are the input's.
    let (files, secrets, mut shared) = (Nothing, BTreeMap::new(), Shared::default());
    let check: fn(&Identity) -> Result<(), String> = |identity| match certified_key(identity) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let mut pass = || {
        let mut context = Context::new(&files, &secrets, check, &mut shared);
        let decoded = decode(bytes, &mut context);
        (decoded, context.notices)
    };
    let first = pass();
    assert_eq!(first, pass());
    if let Err(error) = &first.0 {
        assert!(!error.resource.is_empty());
        assert!(!matches!(&error.why, Why::Refused(why) if why.is_empty()));
        assert!(!error.to_string().contains("PRIVATE KEY-----\n"), "{error}");
    }
    let shown = format!("{first:?}");
    assert!(!shown.contains("PRIVATE KEY-----\\n"), "{shown}");
}

/// A file system with nothing in it.
struct Nothing;

impl Files for Nothing {
    fn read(&self, _: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
        Err("cannot be read: there are no files".to_owned())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}
