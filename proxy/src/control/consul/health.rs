//! Instances of a service: decoding `/v1/health/connect/:service` and prepared queries' answers.
//!
//! Pure. Follows Consul in which address is dialled, which instance is healthy and what it weighs.

use std::net::{IpAddr, SocketAddr};

use super::json::{self, DecodeError, Node};
use crate::model::listener::Address;
use crate::model::{Endpoint, Target};

/// One instance, before it is known whose rules judge its health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    /// The service as its certificate names it.
    pub(super) service: String,
    pub(super) namespace: String,
    pub(super) partition: String,
    pub(super) datacenter: String,
    near: (String, u16),
    far: (String, u16),
    weight_passing: i64,
    weight_warning: i64,
    critical: bool,
    not_passing: bool,
    warning: bool,
}

/// A prepared query's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct QueryResult {
    pub(super) instances: Vec<Instance>,
    /// The cluster peer that answered; empty for this cluster.
    pub(super) peer: String,
}

/// Decodes a list of instances.
pub(super) fn decode(body: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    let value = json::parse(body)?;
    json::objects(&value, "")?.iter().map(instance).collect()
}

/// Decodes the answer of `/v1/query/:name/execute`.
pub(super) fn decode_query(body: &[u8]) -> Result<QueryResult, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    Ok(QueryResult {
        instances: root
            .objects("Nodes")?
            .iter()
            .map(instance)
            .collect::<Result<_, _>>()?,
        peer: root.text("PeerName")?.to_owned(),
    })
}

fn instance(entry: &Node<'_>) -> Result<Instance, DecodeError> {
    let part = |key| entry.object(key)?.ok_or_else(|| entry.error(key, "missing"));
    let (node, service) = (part("Node")?, part("Service")?);
    let near_address = match service.text("Address")? {
        "" => node.text("Address")?,
        address => address,
    };
    let near = (near_address.to_owned(), service.port("Port")?);
    let far = far(&node, &service, &near)?;
    let native = match service.object("Connect")? {
        None => false,
        Some(connect) => connect.flag("Native")?,
    };
    let name = match service.object("Proxy")? {
        Some(proxy) if !native => proxy.text("DestinationServiceName")?,
        _ => service.text("Service")?,
    };
    let mut found = Instance {
        service: name.to_owned(),
        namespace: or_default(service.text("Namespace")?),
        partition: or_default(service.text("Partition")?),
        datacenter: node.text("Datacenter")?.to_owned(),
        near,
        far,
        weight_passing: 1,
        weight_warning: 1,
        ..Instance::default()
    };
    if let Some(weights) = service.object("Weights")? {
        found.weight_passing = weights.number("Passing")?;
        found.weight_warning = weights.number("Warning")?;
    }
    for check in entry.objects("Checks")? {
        match check.text("Status")? {
            "passing" => continue,
            "critical" => found.critical = true,
            "warning" => found.warning = true,
            _ => {}
        }
        found.not_passing = true;
    }
    Ok(found)
}

/// What is dialled from another datacenter: the service's WAN address, the service's own, the node's
/// WAN address, the node's own.
fn far(node: &Node<'_>, service: &Node<'_>, near: &(String, u16)) -> Result<(String, u16), DecodeError> {
    if let Some(tagged) = service.object("TaggedAddresses")?
        && let Some(wan) = tagged.object("wan")?
    {
        let port = match wan.port("Port")? {
            0 => near.1,
            port => port,
        };
        if let Some(address) = wan.some_text("Address")? {
            return Ok((address, port));
        }
    }
    if service.text("Address")?.is_empty()
        && let Some(tagged) = node.object("TaggedAddresses")?
        && let Some(wan) = tagged.some_text("wan")?
    {
        return Ok((wan, near.1));
    }
    Ok(near.clone())
}

fn or_default(text: &str) -> String {
    if text.is_empty() { "default" } else { text }.to_owned()
}

impl Instance {
    /// As the data plane sees it from `datacenter` and `partition`; `None` without an address.
    pub(super) fn endpoint(&self, only_passing: bool, datacenter: &str, partition: &str) -> Option<Endpoint> {
        let near = self.datacenter == datacenter && self.partition == partition;
        let (host, port) = if near { &self.near } else { &self.far };
        if host.is_empty() || *port == 0 {
            return None;
        }
        let address = match host.parse::<IpAddr>() {
            Ok(ip) => Target::Address(Address::Socket(SocketAddr::new(ip, *port))),
            Err(_) => Target::Host {
                host: host.as_str().into(),
                port: *port,
            },
        };
        let weight = if self.warning {
            self.weight_warning
        } else {
            self.weight_passing
        };
        let failed = self.critical || (only_passing && self.not_passing);
        Some(Endpoint {
            address,
            weight: u32::try_from(weight.clamp(1, 128)).unwrap_or(1),
            // A weight of zero takes an instance out.
            healthy: !failed && weight >= 1,
            priority: 0,
            hostname: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(service: &str, checks: &str) -> Instance {
        let body = format!(
            r#"[{{"Node":{{"Node":"n","Address":"10.0.0.1","Datacenter":"dc1",
            "TaggedAddresses":{{"wan":"192.0.2.1"}}}},
            "Service":{{"Service":"x","Port":20000,{service}}},"Checks":[{checks}]}}]"#
        );
        decode(body.as_bytes()).unwrap().remove(0)
    }

    fn shown(instance: &Instance, only_passing: bool, datacenter: &str) -> (String, u32, bool) {
        let e = instance.endpoint(only_passing, datacenter, "default").unwrap();
        (e.address.to_string(), e.weight, e.healthy)
    }

    #[test]
    fn a_recorded_answer() {
        let list = decode(include_bytes!("recorded/health_api.json")).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].service, "api");
        assert_eq!(
            shown(&list[1], true, "dc1"),
            ("127.0.0.1:21002".to_owned(), 1, true)
        );
    }

    #[test]
    fn health_and_weight_as_in_consul() {
        let weights = r#""Weights":{"Passing":500,"Warning":0}"#;
        let (passing, warning) = (r#"{"Status":"passing"}"#, r#"{"Status":"warning"}"#);
        let place = "10.0.0.1:20000".to_owned();
        let shown_near = |i: &Instance, strict| shown(i, strict, "dc1");
        assert_eq!(
            shown_near(&one(weights, passing), true),
            (place.clone(), 128, true)
        );
        assert_eq!(
            shown_near(&one(weights, warning), false),
            (place.clone(), 1, false)
        );
        let plain = one(r#""Weights":null"#, warning);
        assert_eq!(shown_near(&plain, false), (place.clone(), 1, true));
        assert_eq!(shown_near(&plain, true), (place.clone(), 1, false));
        let critical = one(r#""Weights":null"#, r#"{"Status":"critical"}"#);
        assert_eq!(shown_near(&critical, false), (place, 1, false));
    }

    #[test]
    fn the_address_depends_on_where_one_dials_from() {
        let bare = one(r#""Address":"""#, "");
        assert_eq!(shown(&bare, false, "dc2").0, "192.0.2.1:20000");
        let own = one(r#""Address":"10.0.0.9""#, "");
        assert_eq!(shown(&own, false, "dc2").0, "10.0.0.9:20000");
        let tagged = r#""Address":"api.test","TaggedAddresses":{"wan":{"Address":"w","Port":9}}"#;
        let tagged = one(tagged, "");
        assert_eq!(shown(&tagged, false, "dc2").0, "w:9");
        let near = tagged.endpoint(false, "dc1", "default").unwrap().address;
        assert_eq!(
            near,
            Target::Host {
                host: "api.test".into(),
                port: 20000
            }
        );
    }

    #[test]
    fn errors_name_the_field() {
        let error = decode(br#"[{"Node":{}}]"#).unwrap_err();
        assert_eq!(error.to_string(), "[0].Service: missing");
        let error = decode_query(br#"{"Nodes":[{"Node":{},"Service":{"Port":"x"}}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "Nodes[0].Service.Port: not a whole number");
    }
}
