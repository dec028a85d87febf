//! Envoy's bootstrap file: what Nomad or Consul wrote, or a file of static resources only.
//!
//! Pure: text in, [`Bootstrap`] out. What stands under `static_resources` stays in protobuf form, for
//! the store to decode like what comes from Consul. The ACL token in it is never printed.

use std::net::SocketAddr;
use std::time::Duration;

use attache_bootstrap::Secret;
use attache_bootstrap::document::{Document, Format};
use attache_bootstrap::envoy::{EnvoyConfig, NodeOverrides};
use attache_proto::TypeUrl;
use attache_proto::envoy::config::bootstrap::v3::Bootstrap as Message;
use attache_proto::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use attache_proto::envoy::config::cluster::v3::Cluster;
use attache_proto::envoy::config::core::v3::{
    Address, ApiConfigSource, ConfigSource, Locality, Node, address, api_config_source, config_source,
    grpc_service, socket_address,
};
use attache_proto::envoy::config::trace::v3::Tracing;
use attache_proto::json::{self, Diagnostics, JsonError};
use hyper::body::Bytes;
use prost::Message as _;

use super::ready;
use super::stats::{self, Statistics};

/// The metadata key of Consul's ACL token.
const TOKEN_KEY: &str = "x-consul-token";

/// What a bootstrap file says.
#[derive(Clone, PartialEq)]
pub struct Bootstrap {
    /// Who asks.
    pub node: Node,
    /// Where the admin API listens; none has none.
    pub admin: Option<SocketAddr>,
    /// Listeners, clusters and secrets that never change.
    pub statics: StaticResources,
    /// Where everything else comes from; none where the file is all there is.
    pub ads: Option<Ads>,
    /// Where spans go, of connection managers that do not say.
    pub tracing: Option<Tracing>,
    /// Tags and sinks of the statistics.
    pub statistics: Statistics,
    /// The file in protobuf form, for `/config_dump`. It holds the token.
    pub wire: Bytes,
    /// What of it is not known or does nothing here, a sentence each, for the log.
    pub notes: Vec<String>,
}

/// The control plane.
#[derive(Clone, PartialEq)]
pub struct Ads {
    /// The static cluster that it is.
    pub cluster: Cluster,
    /// `:authority`, where one is given.
    pub authority: Option<String>,
    /// Of the initial metadata; an empty one is none.
    pub token: Option<Secret>,
}

/// Why a file is no bootstrap that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// No JSON or YAML.
    #[error("{0}")]
    Syntax(String),
    /// No bootstrap.
    #[error(transparent)]
    Field(#[from] JsonError),
    /// A bootstrap that asks for what is not carried out.
    #[error("{field}: {why}")]
    Refused {
        /// Its path.
        field: String,
        /// What to do about it.
        why: String,
    },
}

impl Bootstrap {
    /// Reads a file's text, with the command line's overlay and overrides.
    ///
    /// # Errors
    /// [`BootstrapError`] names the field.
    pub fn read(text: Option<(&str, Format)>, config: &EnvoyConfig) -> Result<Self, BootstrapError> {
        let mut message = match text {
            Some((text, format)) => {
                let document = Document::parse(text, format);
                document
                    .map_err(|error| BootstrapError::Syntax(error.to_string()))?
                    .into_value()
            }
            None => serde_json::json!({}),
        };
        let mut diagnostics = Diagnostics::default();
        discard_empty(&mut message);
        let mut wire = json::to_wire(Message::TYPE_NAME, &message, &mut diagnostics)?;
        if let Some(overlay) = &config.config_yaml {
            // Protobuf's own merging: what comes later replaces scalars and adds to lists.
            wire.extend(json::to_wire(
                Message::TYPE_NAME,
                overlay.value(),
                &mut diagnostics,
            )?);
        }
        let message =
            Message::decode(wire.as_slice()).map_err(|error| BootstrapError::Syntax(error.to_string()))?;
        let mut notes: Vec<String> = diagnostics.warnings.iter().map(ToString::to_string).collect();
        if !notes.is_empty() && !config.unknown_fields.static_allowed {
            notes.push("what is not known in the bootstrap file is left out; Envoy refuses what it does not know either".to_owned());
        }
        let node = overridden(message.node.clone().unwrap_or_default(), &config.node);
        let mut statics = message.static_resources.clone().unwrap_or_default();
        let (ads, admin) = (ads(&message, &statics)?, admin(&message)?);
        if ads.is_some() {
            refuse_gateway(&node)?;
            ready::listen(&mut statics, config.ready, admin)?;
        }
        Ok(Self {
            node,
            admin,
            ads,
            tracing: message.tracing.clone(),
            statistics: stats::decode(&message, &mut notes)?,
            statics,
            wire: wire.into(),
            notes,
        })
    }
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap")
            .field("node", &self.node.id)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

pub(super) fn refused(field: impl Into<String>, why: impl Into<String>) -> BootstrapError {
    BootstrapError::Refused {
        field: field.into(),
        why: why.into(),
    }
}

/// Templates leave empty texts where nothing is to be said (`"static_resources": ""`).
fn discard_empty(value: &mut serde_json::Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| value.as_str() != Some(""));
    }
}

fn overridden(mut node: Node, overrides: &NodeOverrides) -> Node {
    if let Some(id) = &overrides.id {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &overrides.cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = &overrides.zone {
        node.locality
            .get_or_insert_with(Locality::default)
            .zone
            .clone_from(zone);
    }
    node
}

/// Consul registers a gateway under its own service, so both names are one; a sidecar's ID is never its
/// service's.
fn refuse_gateway(node: &Node) -> Result<(), BootstrapError> {
    if node.id.is_empty() || node.id != node.cluster {
        return Ok(());
    }
    let kinds = [
        "mesh-gateway",
        "ingress-gateway",
        "terminating-gateway",
        "api-gateway",
    ];
    let kind = kinds
        .iter()
        .find(|kind| node.id.contains(**kind))
        .unwrap_or(&"gateway");
    let why = format!(
        "{:?} is also node.cluster, as of a {kind}: Attaché is a sidecar only; let Envoy run it",
        node.id
    );
    Err(refused("node.id", why))
}

fn admin(message: &Message) -> Result<Option<SocketAddr>, BootstrapError> {
    let Some(address) = message.admin.as_ref().and_then(|admin| admin.address.as_ref()) else {
        return Ok(None);
    };
    socket(address, "admin.address").map(Some)
}

/// An IP address and port.
pub(super) fn socket(address: &Address, field: &str) -> Result<SocketAddr, BootstrapError> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else {
        return Err(refused(field, "give it a socket_address"));
    };
    let Some(socket_address::PortSpecifier::PortValue(port)) = &socket.port_specifier else {
        return Err(refused(
            format!("{field}.socket_address.port_value"),
            "is missing",
        ));
    };
    let ip = socket.address.parse().map_err(|_| {
        let why = format!("{:?} is no IP address", socket.address);
        refused(format!("{field}.socket_address.address"), why)
    })?;
    let port = u16::try_from(*port).map_err(|_| {
        let why = format!("{port} is no port");
        refused(format!("{field}.socket_address.port_value"), why)
    })?;
    Ok(SocketAddr::new(ip, port))
}

fn ads(message: &Message, statics: &StaticResources) -> Result<Option<Ads>, BootstrapError> {
    let Some(dynamic) = &message.dynamic_resources else {
        return Ok(None);
    };
    for (source, field) in [
        (&dynamic.lds_config, "lds_config"),
        (&dynamic.cds_config, "cds_config"),
    ] {
        check_source(source.as_ref(), field)?;
    }
    let Some(config) = &dynamic.ads_config else {
        let asked = dynamic.lds_config.is_some() || dynamic.cds_config.is_some();
        return match asked {
            true => Err(refused(
                "dynamic_resources.ads_config",
                "is missing, and lds_config or cds_config need it",
            )),
            false => Ok(None),
        };
    };
    one_ads(config, statics).map(Some)
}

fn check_source(source: Option<&ConfigSource>, field: &str) -> Result<(), BootstrapError> {
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(config_source::ConfigSourceSpecifier::Ads(_)) => Ok(()),
        Some(_) => Err(refused(
            format!("dynamic_resources.{field}"),
            "only `ads` is carried out, which is what Consul writes",
        )),
    }
}

fn one_ads(config: &ApiConfigSource, statics: &StaticResources) -> Result<Ads, BootstrapError> {
    let path = "dynamic_resources.ads_config";
    let delta = [
        api_config_source::ApiType::DeltaGrpc as i32,
        api_config_source::ApiType::AggregatedDeltaGrpc as i32,
    ];
    if !delta.contains(&config.api_type) {
        return Err(refused(
            format!("{path}.api_type"),
            "must be DELTA_GRPC: Consul's server speaks nothing else",
        ));
    }
    let [service] = config.grpc_services.as_slice() else {
        let count = config.grpc_services.len();
        return Err(refused(
            format!("{path}.grpc_services"),
            format!("has {count} entries, must have one"),
        ));
    };
    let Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else {
        return Err(refused(format!("{path}.grpc_services.envoy_grpc"), "is missing"));
    };
    let named = |cluster: &&Cluster| cluster.name == target.cluster_name;
    let Some(cluster) = statics.clusters.iter().find(named) else {
        let why = format!("there is no static cluster {:?}", target.cluster_name);
        return Err(refused(
            format!("{path}.grpc_services.envoy_grpc.cluster_name"),
            why,
        ));
    };
    let metadata = &service.initial_metadata;
    let token = metadata
        .iter()
        .find(|header| header.key.eq_ignore_ascii_case(TOKEN_KEY));
    let token = token
        .map(|header| header.value.clone())
        .filter(|value| !value.is_empty());
    Ok(Ads {
        cluster: cluster.clone(),
        authority: Some(target.authority.clone()).filter(|authority| !authority.is_empty()),
        token: token.map(Secret::new),
    })
}

/// An interval of the file, within what a timer can do.
pub(super) fn interval(
    duration: Option<&prost_types::Duration>,
    field: &str,
) -> Result<Option<Duration>, BootstrapError> {
    let Some(duration) = duration else {
        return Ok(None);
    };
    let seconds = u64::try_from(duration.seconds).ok();
    let nanos = u32::try_from(duration.nanos).ok();
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(refused(field, "is no duration of zero or more")),
    }
}
