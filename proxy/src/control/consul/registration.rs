//! The proxy's registration, as `/v1/agent/service/:id` tells it.
//!
//! Decodes and judges nothing but the form: which fields are carried out and which are only named in
//! the log is decided in [`super::compile`]. Of what Attaché never carries out only the names are kept.

use super::access_logs::AccessLogs;
use super::json::{self, DecodeError, Node, Opaque};

/// A `connect-proxy` registration, or what stands for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// `connect-proxy` for a sidecar; a gateway's kind otherwise.
    pub kind: String,
    /// The proxy's own ID; empty for a proxy without registration.
    pub id: String,
    /// The service whose sidecar it is.
    pub service: String,
    /// The ID of that service's instance.
    pub service_id: String,
    /// The address that others dial; empty for the node's.
    pub address: String,
    /// The port that others dial.
    pub port: u16,
    /// The agent's datacenter; empty in old versions.
    pub datacenter: String,
    /// Consul Enterprise.
    pub namespace: Option<String>,
    /// Consul Enterprise.
    pub partition: Option<String>,
    /// Where the service listens; empty for loopback.
    pub local_address: String,
    /// Where the service listens.
    pub local_port: u16,
    /// Where the service listens instead of an address and a port.
    pub local_socket: Option<String>,
    /// `transparent`, `direct` or empty.
    pub mode: String,
    /// In the order of the registration.
    pub upstreams: Vec<Upstream>,
    /// The gateway mode of every upstream that has none of its own; empty for none.
    pub mesh_gateway: String,
    /// Paths of the service that are reachable without mutual TLS.
    pub exposed: Vec<ExposedPath>,
    /// Where they are enabled.
    pub(super) access_logs: Option<AccessLogs>,
    pub(super) config: Opaque,
    /// `Proxy.EnvoyExtensions`, none of which is carried out: those that the service cannot do without.
    pub(super) needed_extensions: Vec<String>,
    /// Fields that are there and that no sidecar of this version carries out.
    pub(super) unsupported: Vec<String>,
}

/// One entry of `Proxy.Upstreams`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// The service or the prepared query.
    pub destination: String,
    /// `service`, `prepared_query`, or something newer.
    pub kind: String,
    /// The agent's own when absent.
    pub datacenter: Option<String>,
    /// Consul Enterprise.
    pub namespace: Option<String>,
    /// Consul Enterprise.
    pub partition: Option<String>,
    /// A service of a cluster peer.
    pub peer: Option<String>,
    /// Loopback when empty.
    pub bind_address: String,
    /// 0 with a socket path.
    pub bind_port: u16,
    /// A unix socket to listen on, used when there is no port.
    pub bind_socket: Option<String>,
    /// Its permission bits, as text.
    pub bind_socket_mode: String,
    /// `local`, `remote`, `none` or empty.
    pub mesh_gateway: String,
    /// Filled in by Consul for transparent proxies: nothing listens for it.
    pub centrally_configured: bool,
    pub(super) config: Opaque,
}

/// One entry of `Proxy.Expose.Paths`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExposedPath {
    /// Where the proxy listens for it.
    pub listener_port: u16,
    /// The one path, exactly.
    pub path: String,
    /// Where the service listens for it.
    pub local_port: u16,
    /// `http` or `http2`.
    pub protocol: String,
}

/// What of an agent's service list helps to find a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) service: String,
    pub(super) service_id: String,
}

/// Fields of the registration that are read, or say nothing that a proxy could carry out.
const KNOWN: [&str; 23] = [
    "Kind",
    "ID",
    "Service",
    "Tags",
    "Meta",
    "Port",
    "Ports",
    "Address",
    "TaggedAddresses",
    "Weights",
    "EnableTagOverride",
    "CreateIndex",
    "ModifyIndex",
    "ContentHash",
    "Proxy",
    "Connect",
    "PeerName",
    "Namespace",
    "Partition",
    "Datacenter",
    "Locality",
    "VirtualIPs",
    "AgentName",
];
/// The same inside `Proxy`.
const KNOWN_PROXY: [&str; 11] = [
    "DestinationServiceName",
    "DestinationServiceID",
    "LocalServiceAddress",
    "LocalServicePort",
    "LocalServiceSocketPath",
    "Mode",
    "Config",
    "Upstreams",
    "MeshGateway",
    "Expose",
    "AccessLogs",
];

/// Extensions without which everybody gets what they would with them. Others may keep somebody out.
const HARMLESS_EXTENSIONS: [&str; 2] = ["builtin/otel-access-logging", "builtin/property-override"];

/// Decodes the answer of `/v1/agent/service/:id`.
///
/// # Errors
/// Names the field that is not what Consul documents.
pub fn decode(body: &[u8]) -> Result<Registration, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    let mut found = Registration {
        kind: root.text("Kind")?.to_owned(),
        id: root.need_text("ID")?.to_owned(),
        address: root.text("Address")?.to_owned(),
        port: root.port("Port")?,
        datacenter: root.text("Datacenter")?.to_owned(),
        namespace: root.some_text("Namespace")?,
        partition: root.some_text("Partition")?,
        ..Registration::default()
    };
    found.unsupported = root.unknown(&KNOWN);
    let Some(proxy) = root.object("Proxy")? else {
        return Ok(found);
    };
    found.service = proxy.text("DestinationServiceName")?.to_owned();
    found.service_id = proxy.text("DestinationServiceID")?.to_owned();
    found.local_address = proxy.text("LocalServiceAddress")?.to_owned();
    found.local_port = proxy.port("LocalServicePort")?;
    found.local_socket = proxy.some_text("LocalServiceSocketPath")?;
    found.mode = proxy.text("Mode")?.to_owned();
    found.mesh_gateway = gateway_mode(&proxy)?;
    found.config = Opaque::read(&proxy, "Config")?;
    found.unsupported.extend(proxy.unknown(&KNOWN_PROXY));
    found.access_logs = AccessLogs::decode(&proxy)?;
    for extension in proxy.objects("EnvoyExtensions")? {
        let name = extension.need_text("Name")?;
        if extension.flag("Required")? || !HARMLESS_EXTENSIONS.contains(&name) {
            found.needed_extensions.push(name.to_owned());
        }
    }
    if let Some(expose) = proxy.object("Expose")? {
        decode_expose(&expose, &mut found)?;
    }
    for upstream in proxy.objects("Upstreams")? {
        found.upstreams.push(decode_upstream(&upstream)?);
    }
    Ok(found)
}

fn decode_expose(node: &Node<'_>, found: &mut Registration) -> Result<(), DecodeError> {
    found.unsupported.extend(node.unknown(&["Paths"]));
    for path in node.objects("Paths")? {
        let unknown = path.unknown(&["ListenerPort", "Path", "LocalPathPort", "Protocol"]);
        if !unknown.is_empty() {
            // Whatever more is asked may be about who may come in.
            found.unsupported.extend(unknown);
            continue;
        }
        found.exposed.push(ExposedPath {
            listener_port: path.port("ListenerPort")?,
            path: path.need_text("Path")?.to_owned(),
            local_port: path.port("LocalPathPort")?,
            protocol: match path.text("Protocol")? {
                "" => "http".to_owned(),
                protocol => protocol.to_lowercase(),
            },
        });
    }
    Ok(())
}

fn decode_upstream(node: &Node<'_>) -> Result<Upstream, DecodeError> {
    Ok(Upstream {
        destination: node.need_text("DestinationName")?.to_owned(),
        kind: match node.text("DestinationType")? {
            "" => "service".to_owned(),
            kind => kind.to_owned(),
        },
        datacenter: node.some_text("Datacenter")?,
        namespace: node.some_text("DestinationNamespace")?,
        partition: node.some_text("DestinationPartition")?,
        peer: node.some_text("DestinationPeer")?,
        bind_address: node.text("LocalBindAddress")?.to_owned(),
        bind_port: node.port("LocalBindPort")?,
        bind_socket: node.some_text("LocalBindSocketPath")?,
        bind_socket_mode: node.text("LocalBindSocketMode")?.to_owned(),
        mesh_gateway: gateway_mode(node)?,
        centrally_configured: node.flag("CentrallyConfigured")?,
        config: Opaque::read(node, "Config")?,
    })
}

fn gateway_mode(node: &Node<'_>) -> Result<String, DecodeError> {
    match node.object("MeshGateway")? {
        None => Ok(String::new()),
        Some(gateway) => Ok(gateway.text("Mode")?.to_owned()),
    }
}

/// Decodes the answer of `/v1/agent/services`.
pub(super) fn decode_list(body: &[u8]) -> Result<Vec<Listed>, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    let mut found = Vec::new();
    for key in root.keys() {
        let Some(entry) = root.object(key)? else {
            continue;
        };
        let proxy = entry.object("Proxy")?;
        let destination = |field| match &proxy {
            None => Ok(String::new()),
            Some(proxy) => proxy.text(field).map(str::to_owned),
        };
        found.push(Listed {
            id: entry.text("ID")?.to_owned(),
            kind: entry.text("Kind")?.to_owned(),
            service: destination("DestinationServiceName")?,
            service_id: destination("DestinationServiceID")?,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &[u8] = include_bytes!("recorded/agent_service_web.json");

    #[test]
    fn a_recorded_registration() {
        let web = decode(WEB).unwrap();
        assert_eq!(
            (web.kind.as_str(), web.service.as_str()),
            ("connect-proxy", "web")
        );
        assert_eq!((web.local_port, web.upstreams.len()), (9206, 6));
        assert_eq!(web.upstreams[0].destination, "api");
        assert_eq!(web.upstreams[0].config.text("Protocol"), Some("http"));
        assert_eq!(web.unsupported, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_known_is_named() {
        let body = br#"{"ID":"p","Proxy":{"Expose":{"Checks":true},"New":{"X":1},"Empty":{}},
            "SocketPath":"/run/s"}"#;
        assert_eq!(
            decode(body).unwrap().unsupported,
            ["SocketPath", "Proxy.New", "Proxy.Expose.Checks"]
        );
    }

    #[test]
    fn extensions_that_may_keep_somebody_out_are_needed() {
        let body = br#"{"ID":"p","Proxy":{"EnvoyExtensions":[
            {"Name":"builtin/ext-authz"}, {"Name":"builtin/property-override"},
            {"Name":"builtin/otel-access-logging","Required":true}, {"Name":"mine"}]}}"#;
        let found = decode(body).unwrap();
        let needed = ["builtin/ext-authz", "builtin/otel-access-logging", "mine"];
        assert_eq!(found.needed_extensions, needed);
        assert_eq!(found.unsupported, ["Proxy.EnvoyExtensions"]);
    }

    #[test]
    fn errors_name_the_field() {
        for (body, message) in [
            (&b"[]"[..], "body: not an object"),
            (b"{}", "ID: missing"),
            (br#"{"ID":7}"#, "ID: not a string"),
            (br#"{"ID":"p","Port":-1}"#, "Port: -1 is no port"),
            (
                br#"{"ID":"p","Proxy":{"Upstreams":{}}}"#,
                "Proxy.Upstreams: not a list",
            ),
            (
                br#"{"ID":"p","Proxy":{"Upstreams":[{"DestinationName":"a"},{}]}}"#,
                "Proxy.Upstreams[1].DestinationName: missing",
            ),
        ] {
            assert_eq!(decode(body).unwrap_err().to_string(), message);
        }
    }
}
