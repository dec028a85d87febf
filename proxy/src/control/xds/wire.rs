//! Requests and responses as the protobuf messages that a stream carries.
//!
//! Owns the translation between [`subscription`](super::subscription)'s plain values and
//! `envoy.service.discovery.v3`; framing is gRPC's business.

use attache_proto::envoy::config::core::v3::node::UserAgentVersionType;
use attache_proto::envoy::config::core::v3::{BuildVersion, Node};
use attache_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use attache_proto::envoy::r#type::v3::SemanticVersion;
use attache_proto::google::rpc::Status;
use hyper::body::Bytes;
use prost::Message as _;

use super::Resource;
use super::subscription::{Request, Response};

/// The one method that Consul serves.
pub(super) const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// `INVALID_ARGUMENT`, with which Envoy refuses.
const INVALID_ARGUMENT: i32 = 3;

/// Says in a node that its resources are for this version of Envoy: Consul refuses one below 1.32, and
/// leaves out what an extension does not allow for it.
pub fn identify(node: &mut Node, [major_number, minor_number, patch]: [u32; 3]) {
    "envoy".clone_into(&mut node.user_agent_name);
    let version = SemanticVersion {
        major_number,
        minor_number,
        patch,
    };
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(version),
        metadata: None,
    }));
}

/// A request as it is sent; the node is encoded where the request says so.
pub(super) fn encode(request: Request, node: &Node) -> Vec<u8> {
    let strings = |names: Vec<std::sync::Arc<str>>| names.iter().map(|name| name.to_string()).collect();
    let versions = request.initial_versions.iter();
    let message = DeltaDiscoveryRequest {
        node: request.node.then(|| node.clone()),
        type_url: request.kind.type_url().to_owned(),
        resource_names_subscribe: strings(request.subscribe),
        resource_names_unsubscribe: strings(request.unsubscribe),
        initial_resource_versions: versions
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect(),
        response_nonce: request.nonce.unwrap_or_default(),
        error_detail: request.refusal.map(|message| Status {
            code: INVALID_ARGUMENT,
            message,
            details: Vec::new(),
        }),
    };
    message.encode_to_vec()
}

/// A response as it came. One resource without a body is one with an empty body of no type.
///
/// # Errors
/// When it is no such message.
pub(super) fn decode(message: &[u8]) -> Result<Response, prost::DecodeError> {
    let response = DeltaDiscoveryResponse::decode(message)?;
    let resources = response.resources.into_iter().map(|resource| {
        let any = resource.resource.unwrap_or_default();
        Resource {
            name: resource.name,
            version: resource.version,
            type_url: any.type_url,
            body: Bytes::from(any.value),
        }
    });
    Ok(Response {
        resources: resources.collect(),
        type_url: response.type_url,
        nonce: response.nonce,
        removed: response.removed_resources,
    })
}
