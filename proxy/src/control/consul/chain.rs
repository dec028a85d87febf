//! The discovery chain of an upstream: decoding it, and what of it can be dialled.
//!
//! Pure. Over TCP a chain is carried whole or refused by name; only a failover target that cannot be dialled
//! is left out, and named. What it says of requests is in [`super::chain_routes`].

use std::collections::BTreeMap;
use std::time::Duration;

pub use super::chain_routes::{Balancing, ChainRoute, Destination, Split};
use super::chain_routes::{balancing, routes, splits};
pub use super::json::TimeLimit;
use super::json::{self, DecodeError, Node};

/// A compiled discovery chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The service that was asked for.
    pub service: String,
    /// Where it was compiled.
    pub namespace: String,
    /// Where it was compiled.
    pub partition: String,
    /// Where it was compiled.
    pub datacenter: String,
    /// No router, splitter or resolver has a part in it.
    pub default: bool,
    /// `tcp`, `http`, `http2` or `grpc`.
    pub protocol: String,
    /// Set when the upstream itself overrides something: its clusters are then its own.
    pub customization: String,
    /// The key of the first node.
    pub start: String,
    /// By key.
    pub nodes: BTreeMap<String, ChainNode>,
    /// By ID.
    pub targets: BTreeMap<String, Target>,
    /// What of its routes has no effect.
    pub notices: Vec<String>,
}

/// One node of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainNode {
    /// Chooses the next node by the request; the last route takes all.
    Router {
        /// The first that matches takes a request.
        routes: Vec<ChainRoute>,
    },
    /// Chooses the next node by chance.
    Splitter {
        /// Its legs.
        splits: Vec<Split>,
        /// Of what it leads to.
        balancing: Balancing,
    },
    /// Sends to a target.
    Resolver {
        /// The target's ID.
        target: String,
        /// Bounds a dial.
        connect_timeout: Option<Duration>,
        /// The IDs of the targets after the first; none is no failover.
        failover: Option<Vec<String>>,
        /// Anything but Consul's plain order of failover.
        failover_policy: String,
        /// Bounds a request, where no router or splitter stands before it.
        request_timeout: TimeLimit,
        /// Of its targets.
        balancing: Balancing,
    },
    /// Something newer.
    Other {
        /// Its type.
        kind: String,
    },
}

/// Where a resolver sends to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: String,
    /// A subset of its instances; empty for all.
    pub subset: String,
    /// Its namespace.
    pub namespace: String,
    /// Its partition.
    pub partition: String,
    /// Its datacenter; empty for a peer's.
    pub datacenter: String,
    /// The cluster peer it is in; empty for this cluster.
    pub peer: String,
    /// The subset's filter over instances.
    pub filter: String,
    /// Instances with a warning count as failed.
    pub only_passing: bool,
    /// `local`, `remote`, `none` or empty.
    pub mesh_gateway: String,
    /// Outside Consul's mesh.
    pub external: bool,
    /// What the TLS handshake names.
    pub sni: String,
    /// What the cluster is named by.
    pub name: String,
}

/// What a resolver dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan<'a> {
    pub(super) connect_timeout: Duration,
    pub(super) first: &'a Target,
    /// The targets after the first that can be dialled; `None` without failover.
    pub(super) failover: Option<Vec<&'a Target>>,
    /// What is not carried out.
    pub(super) notices: Vec<String>,
}

/// Where this proxy is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) datacenter: &'a str,
    pub(super) partition: &'a str,
}

/// Consul's own default.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Decodes the answer of `/v1/discovery-chain/:service`.
///
/// # Errors
/// Names the field that is not what Consul documents.
pub fn decode(body: &[u8]) -> Result<Chain, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    let node = root
        .object("Chain")?
        .ok_or_else(|| root.error("Chain", "missing"))?;
    let mut chain = Chain {
        service: node.text("ServiceName")?.to_owned(),
        namespace: node.text("Namespace")?.to_owned(),
        partition: node.text("Partition")?.to_owned(),
        datacenter: node.text("Datacenter")?.to_owned(),
        default: node.flag("Default")?,
        protocol: node.text("Protocol")?.to_owned(),
        customization: node.text("CustomizationHash")?.to_owned(),
        start: node.need_text("StartNode")?.to_owned(),
        ..Chain::default()
    };
    if !node.objects("EnvoyExtensions")?.is_empty() {
        let what = "its EnvoyExtensions are not honoured: they patch Envoy's resources";
        chain.notices.push(what.to_owned());
    }
    for (key, node) in node.map("Nodes")? {
        let decoded = decode_node(&node, &mut chain.notices)?;
        chain.nodes.insert(key.to_owned(), decoded);
    }
    for (key, node) in node.map("Targets")? {
        chain.targets.insert(key.to_owned(), decode_target(&node)?);
    }
    Ok(chain)
}

fn decode_node(node: &Node<'_>, notices: &mut Vec<String>) -> Result<ChainNode, DecodeError> {
    match node.need_text("Type")? {
        "router" => Ok(ChainNode::Router {
            routes: routes(node, notices)?,
        }),
        "splitter" => Ok(ChainNode::Splitter {
            splits: splits(node)?,
            balancing: balancing(node)?,
        }),
        "resolver" => decode_resolver(node),
        kind => Ok(ChainNode::Other {
            kind: kind.to_owned(),
        }),
    }
}

fn decode_resolver(node: &Node<'_>) -> Result<ChainNode, DecodeError> {
    let resolver = node
        .object("Resolver")?
        .ok_or_else(|| node.error("Resolver", "missing"))?;
    let failover = resolver.object("Failover")?;
    let mut failover_policy = String::new();
    let mut targets = None;
    if let Some(failover) = &failover {
        targets = Some(failover.texts("Targets")?);
        if let Some(policy) = failover.object("Policy")? {
            policy.text("Mode")?.clone_into(&mut failover_policy);
        }
    }
    Ok(ChainNode::Resolver {
        target: resolver.need_text("Target")?.to_owned(),
        connect_timeout: resolver.duration("ConnectTimeout")?,
        failover: targets,
        failover_policy,
        request_timeout: resolver.time_limit("RequestTimeout")?,
        balancing: balancing(node)?,
    })
}

fn decode_target(node: &Node<'_>) -> Result<Target, DecodeError> {
    let mut target = Target {
        service: node.need_text("Service")?.to_owned(),
        subset: node.text("ServiceSubset")?.to_owned(),
        namespace: node.text("Namespace")?.to_owned(),
        partition: node.text("Partition")?.to_owned(),
        datacenter: node.text("Datacenter")?.to_owned(),
        peer: node.text("Peer")?.to_owned(),
        external: node.flag("External")?,
        sni: node.text("SNI")?.to_owned(),
        name: node.text("Name")?.to_owned(),
        ..Target::default()
    };
    if let Some(gateway) = node.object("MeshGateway")? {
        gateway.text("Mode")?.clone_into(&mut target.mesh_gateway);
    }
    if let Some(subset) = node.object("Subset")? {
        subset.text("Filter")?.clone_into(&mut target.filter);
        target.only_passing = subset.flag("OnlyPassing")?;
    }
    Ok(target)
}

impl Chain {
    /// The name of a cluster that dials `target` first.
    pub(super) fn cluster_name(&self, target: &Target) -> String {
        match self.customization.as_str() {
            "" => target.name.clone(),
            hash => format!("{hash}~{}", target.name),
        }
    }

    /// What a TCP upstream dials.
    ///
    /// # Errors
    /// Says why it cannot be carried, in words for a person.
    pub(super) fn plan(&self, here: Here<'_>) -> Result<Plan<'_>, String> {
        let what = match self.nodes.get(&self.start) {
            None => return Err(format!("its chain lacks the node {:?}", self.start)),
            Some(node @ ChainNode::Resolver { .. }) => {
                let mut plan = self.resolve(node, here)?;
                if !matches!(self.protocol.as_str(), "" | "tcp") {
                    let notice = format!("its protocol is {}: it is carried as TCP", self.protocol);
                    plan.notices.insert(0, notice);
                }
                return Ok(plan);
            }
            Some(ChainNode::Router { .. }) => "has routes (router)".to_owned(),
            Some(ChainNode::Splitter { .. }) => "has splits (splitter)".to_owned(),
            Some(ChainNode::Other { kind }) => format!("begins with a node that is not known ({kind})"),
        };
        Err(format!("it {what}, which needs HTTP"))
    }

    /// What the resolver `node` dials.
    ///
    /// # Errors
    /// Says why its first target cannot be dialled, or that it is no resolver.
    pub(super) fn resolve(&self, node: &ChainNode, here: Here<'_>) -> Result<Plan<'_>, String> {
        let ChainNode::Resolver {
            target,
            connect_timeout,
            failover,
            failover_policy,
            ..
        } = node
        else {
            return Err("its chain has no resolver where there must be one".to_owned());
        };
        let mut notices = Vec::new();
        let first = self.dialable(target, here)?;
        let mut others = None;
        if let Some(ids) = failover {
            if !matches!(failover_policy.as_str(), "" | "sequential") {
                notices.push(format!(
                    "failover policy {failover_policy:?} is carried out as \"sequential\""
                ));
            }
            let mut found = Vec::new();
            for id in ids {
                match self.dialable(id, here) {
                    Ok(target) => found.push(target),
                    Err(why) => notices.push(format!("failover target {id} is left out: {why}")),
                }
            }
            others = Some(found);
        }
        Ok(Plan {
            connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            first,
            failover: others,
            notices,
        })
    }

    fn dialable(&self, id: &str, here: Here<'_>) -> Result<&Target, String> {
        let target = self
            .targets
            .get(id)
            .ok_or_else(|| format!("its chain lacks the target {id:?}"))?;
        if !target.peer.is_empty() {
            let peer = &target.peer;
            return Err(format!(
                "it is in the cluster peer {peer:?}: that needs the xds source"
            ));
        }
        if target.external {
            return Err(format!("its target {id} is outside the mesh"));
        }
        if target.sni.is_empty() || target.name.is_empty() || target.datacenter.is_empty() {
            return Err(format!("its target {id} has no SNI, name or datacenter"));
        }
        let partition = match target.partition.as_str() {
            "" => "default",
            partition => partition,
        };
        let elsewhere = target.datacenter != here.datacenter || partition != here.partition;
        // As in Consul: within a datacenter and partition nobody goes through a gateway.
        match target.mesh_gateway.as_str() {
            "" | "none" => Ok(target),
            _ if !elsewhere => Ok(target),
            mode => Err(format!(
                "it is reached through a mesh gateway (mode {mode:?}), which is not carried out yet"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Here<'_> = Here {
        datacenter: "dc1",
        partition: "default",
    };

    fn chain(resolver: &str, targets: &[(&str, &str)]) -> Chain {
        let targets: Vec<_> = targets
            .iter()
            .map(|(id, rest)| {
                format!(
                    r#""{id}":{{"Service":"{id}","Namespace":"default","Partition":"default",
                    "SNI":"{id}.sni","Name":"{id}.name",{rest}}}"#
                )
            })
            .collect();
        let body = format!(
            r#"{{"Chain":{{"ServiceName":"api","StartNode":"r","Protocol":"tcp",
            "Nodes":{{"r":{{"Type":"resolver","Resolver":{{{resolver}}}}}}},
            "Targets":{{{}}}}}}}"#,
            targets.join(",")
        );
        decode(body.as_bytes()).unwrap()
    }

    const DC1: &str = r#""Datacenter":"dc1""#;

    #[test]
    fn recorded_chains() {
        let api = decode(include_bytes!("recorded/chain_api.json")).unwrap();
        let plan = api.plan(HERE).unwrap();
        assert_eq!(plan.connect_timeout, Duration::from_secs(5));
        assert!(plan.first.sni.starts_with("api.default.dc1.internal."));
        assert!(plan.notices.is_empty() && plan.failover.is_none());
        let web = decode(include_bytes!("recorded/chain_web_http.json")).unwrap();
        let plan = web.plan(HERE).unwrap();
        assert_eq!(plan.notices, ["its protocol is http: it is carried as TCP"]);
        let routed = decode(include_bytes!("recorded/chain_api_routes.json")).unwrap();
        let why = routed.plan(HERE).unwrap_err();
        assert_eq!(why, "it has routes (router), which needs HTTP");
    }

    #[test]
    fn redirects_subsets_and_failover() {
        let c = chain(
            r#""Target":"v1.b","ConnectTimeout":"1m30s","Failover":{"Targets":["c","p"]}"#,
            &[
                (
                    "v1.b",
                    r#""Datacenter":"dc1","ServiceSubset":"v1",
                    "Subset":{"Filter":"x == 1","OnlyPassing":true}"#,
                ),
                ("c", r#""Datacenter":"dc2""#),
                ("p", r#""Peer":"west""#),
            ],
        );
        let plan = c.plan(HERE).unwrap();
        assert_eq!(plan.connect_timeout, Duration::from_secs(90));
        assert_eq!(
            (plan.first.filter.as_str(), plan.first.only_passing),
            ("x == 1", true)
        );
        assert_eq!(plan.failover.unwrap()[0].datacenter, "dc2");
        assert_eq!(
            plan.notices,
            [
                "failover target p is left out: it is in the cluster peer \"west\": \
              that needs the xds source"
            ]
        );
    }

    #[test]
    fn what_tcp_cannot_carry_is_refused_by_name() {
        let target = r#""Target":"b""#;
        for (extra, part) in [
            (r#""Peer":"west""#, "xds source"),
            (r#""Datacenter":"dc1","External":true"#, "outside the mesh"),
            (
                r#""Datacenter":"dc2","MeshGateway":{"Mode":"local"}"#,
                "mode \"local\"",
            ),
            (
                r#""Datacenter":"dc2","MeshGateway":{"Mode":"remote"}"#,
                "mode \"remote\"",
            ),
            (
                r#""Datacenter":"dc2","MeshGateway":{"Mode":"new"}"#,
                "mode \"new\"",
            ),
        ] {
            let why = chain(target, &[("b", extra)]).plan(HERE).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
        let near = r#""Datacenter":"dc1","MeshGateway":{"Mode":"local"}"#;
        assert!(chain(target, &[("b", near)]).plan(HERE).is_ok());
        let why = chain(target, &[("c", DC1)]).plan(HERE).unwrap_err();
        assert_eq!(why, "its chain lacks the target \"b\"");
        let splitter = br#"{"Chain":{"StartNode":"s","Nodes":{"s":{"Type":"splitter"}}}}"#;
        let why = decode(splitter).unwrap().plan(HERE).unwrap_err();
        assert_eq!(why, "it has splits (splitter), which needs HTTP");
    }

    #[test]
    fn errors_name_the_field() {
        for (body, message) in [
            (&br#"{"Chain":null}"#[..], "Chain: missing"),
            (br#"{"Chain":{}}"#, "Chain.StartNode: missing"),
            (
                br#"{"Chain":{"StartNode":"r","Nodes":{"r":{"Type":"resolver"}}}}"#,
                "Chain.Nodes.r.Resolver: missing",
            ),
            (
                br#"{"Chain":{"StartNode":"r","Nodes":{"r":{"Type":"resolver",
                "Resolver":{"Target":"x","ConnectTimeout":"soon"}}}}}"#,
                "Chain.Nodes.r.Resolver.ConnectTimeout: not a duration",
            ),
            (
                br#"{"Chain":{"StartNode":"r","Targets":{"x":{}}}}"#,
                "Chain.Targets.x.Service: missing",
            ),
        ] {
            assert_eq!(decode(body).unwrap_err().to_string(), message);
        }
    }
}
