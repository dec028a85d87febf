//! What the tests of decoding share: files that are not there, certificates, small messages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attache_proto::TypeUrl;
use attache_proto::envoy::config::core::v3::{
    Address, DataSource, SocketAddress, address, data_source::Specifier, socket_address::PortSpecifier,
};
use attache_proto::envoy::config::endpoint::v3::{Endpoint, LbEndpoint, lb_endpoint::HostIdentifier};
use attache_proto::envoy::config::listener::v3::{Filter, filter};
use attache_proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use prost::Message;
use prost_types::Any;
use rcgen::{CertificateParams, KeyPair, SanType};
use zeroize::Zeroizing;

use super::context::{Context, Files, Shared};
use super::secret::Secret;
use crate::model::{Identity, Name};
use crate::tls::identity::certified_key;

/// Everything around a context, so that a test can look at it afterwards.
#[derive(Default)]
pub(super) struct Bench {
    pub(super) disk: Fake,
    pub(super) secrets: BTreeMap<Name, Secret>,
    pub(super) shared: Shared,
}

/// Files and variables that are not there.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) files: BTreeMap<PathBuf, String>,
    pub(super) variables: BTreeMap<String, String>,
}

impl Files for Fake {
    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
        let content = self.files.get(path).ok_or("cannot be read: no such file")?;
        Ok(Zeroizing::new(content.clone().into_bytes()))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}

impl Bench {
    pub(super) fn context(&mut self) -> Context<'_> {
        let check: fn(&Identity) -> Result<(), String> = |identity| {
            certified_key(identity)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        Context::new(&self.disk, &self.secrets, check, &mut self.shared)
    }
}

/// A leaf with its key, or an authority, as PEM.
pub(super) struct Pem {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A self-signed certificate with one URI.
pub(super) fn pem(uri: &str) -> Pem {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params
        .subject_alt_names
        .push(SanType::URI(uri.try_into().unwrap()));
    Pem {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

pub(super) fn any<T: Message + TypeUrl>(message: &T) -> Any {
    Any {
        type_url: T::TYPE_URL.to_owned(),
        value: message.encode_to_vec(),
    }
}

pub(super) fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    })
}

pub(super) fn file(path: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::Filename(path.to_owned())),
        ..DataSource::default()
    })
}

pub(super) fn socket(address: &str, port: u32) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    })
}

pub(super) fn endpoint(address: &str, port: u32) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: socket(address, port),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

/// A network filter of this configuration.
pub(super) fn network_filter<T: Message + TypeUrl>(name: &str, config: &T) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(config))),
    }
}

/// A `tcp_proxy` to a cluster.
pub(super) fn tcp_proxy(cluster: &str) -> Filter {
    let tcp = TcpProxy {
        stat_prefix: "tcp".to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &tcp)
}
