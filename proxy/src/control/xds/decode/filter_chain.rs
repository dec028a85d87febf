//! `FilterChain` and `FilterChainMatch`.

use std::collections::BTreeMap;
use std::sync::Arc;

use attache_proto::envoy::config::core::v3::CidrRange;
use attache_proto::envoy::config::listener::v3::{
    FilterChain as Wire, FilterChainMatch as WireMatch, filter_chain_match::ConnectionSourceType,
};

use super::address::cidrs;
use super::common::{enumeration, port, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::{network_filters, tls};
use crate::model::FilterChain;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::matcher::Cidr;

/// One chain.
///
/// # Errors
/// Names the field that is invalid or not supported.
pub(super) fn decode(
    chain: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<FilterChain>, DecodeError> {
    if chain.use_proxy_proto == Some(true) {
        return Err(at
            .field("use_proxy_proto")
            .refuse("is not supported: the listener filter envoy.filters.listener.proxy_protocol is"));
    }
    let timeout = chain.transport_socket_connect_timeout.is_some();
    without_effect(at, ctx, &[(timeout, "transport_socket_connect_timeout")]);
    let matches = match &chain.filter_chain_match {
        Some(matches) => self::matches(matches, &at.field("filter_chain_match"))?,
        None => FilterChainMatch::default(),
    };
    let socket = chain.transport_socket.as_ref();
    let transport = tls::downstream_socket(socket, &at.field("transport_socket"), ctx)?;
    let (filters, terminal) = network_filters::decode(&chain.filters, &at.field("filters"), ctx)?;
    Ok(Arc::new(FilterChain {
        name: chain.name.as_str().into(),
        matches,
        transport,
        filters,
        terminal,
    }))
}

fn matches(matches: &WireMatch, at: &At<'_>) -> Result<FilterChainMatch, DecodeError> {
    unsupported(
        at,
        &[
            (!matches.address_suffix.is_empty(), "address_suffix"),
            (matches.suffix_len.is_some(), "suffix_len"),
            (
                !matches.direct_source_prefix_ranges.is_empty(),
                "direct_source_prefix_ranges",
            ),
        ],
    )?;
    let some_port = |number, at: &At<'_>| match port(number, at)? {
        0 => Err(at.refuse("0 is no port")),
        port => Ok(port),
    };
    let destination_port = at.field("destination_port");
    let ports = at.field("source_ports");
    let source_port = |(index, number): (usize, &u32)| some_port(*number, &ports.index(index));
    let ranges = |ranges: &[CidrRange], field: &str| cidrs(ranges, &at.field(field));
    let source_type = enumeration(matches.source_type, &at.field("source_type"))?;
    Ok(FilterChainMatch {
        destination_port: (matches.destination_port)
            .map(|number| some_port(number, &destination_port))
            .transpose()?,
        prefix_ranges: ranges(&matches.prefix_ranges, "prefix_ranges")?,
        server_names: server_names(&matches.server_names, &at.field("server_names"))?,
        transport_protocol: match matches.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(true),
            "raw_buffer" => Some(false),
            other => {
                let why = format!("{other:?} is not supported: only tls and raw_buffer are");
                return Err(at.field("transport_protocol").refuse(why));
            }
        },
        application_protocols: (matches.application_protocols.iter())
            .map(|name| name.as_str().into())
            .collect(),
        source_is_local: match source_type {
            ConnectionSourceType::Any => None,
            ConnectionSourceType::SameIpOrLoopback => Some(true),
            ConnectionSourceType::External => Some(false),
        },
        source_prefix_ranges: ranges(&matches.source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: (matches.source_ports.iter().enumerate())
            .map(source_port)
            .collect::<Result<_, _>>()?,
    })
}

fn server_names(names: &[String], at: &At<'_>) -> Result<Vec<Arc<str>>, DecodeError> {
    let one = |(index, name): (usize, &String)| {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') {
            let why = format!("{name:?} is neither a host name nor *. and one");
            return Err(at.index(index).refuse(why));
        }
        Ok(name.to_ascii_lowercase().into())
    };
    names.iter().enumerate().map(one).collect()
}

/// Refuses two chains of which neither is more specific for some connection, as Envoy does.
pub(super) fn distinct(chains: &[Arc<FilterChain>], at: &At<'_>) -> Result<(), DecodeError> {
    // A listener of a transparent proxy has thousands of chains: only those that share a destination are
    // compared.
    let mut groups: BTreeMap<(Option<u16>, Option<Cidr>), Vec<usize>> = BTreeMap::new();
    for (index, chain) in chains.iter().enumerate() {
        let port = chain.matches.destination_port;
        for range in elements(&chain.matches.prefix_ranges) {
            let group = groups.entry((port, range.copied())).or_default();
            let same = |other: &&usize| {
                **other != index
                    && chains
                        .get(**other)
                        .is_some_and(|other| overlap(&chain.matches, &other.matches))
            };
            if let Some(other) = group.iter().find(same) {
                return Err(at.index(index).field("filter_chain_match").refuse(format!(
                    "matches the same connections as that of filter_chains[{other}]"
                )));
            }
            group.push(index);
        }
    }
    Ok(())
}

/// Whether two matches, equal in one destination, have an equal element in all else too.
fn overlap(a: &FilterChainMatch, b: &FilterChainMatch) -> bool {
    a.transport_protocol == b.transport_protocol
        && a.source_is_local == b.source_is_local
        && common(&a.server_names, &b.server_names)
        && common(&a.application_protocols, &b.application_protocols)
        && common(&a.source_prefix_ranges, &b.source_prefix_ranges)
        && common(&a.source_ports, &b.source_ports)
}

fn common<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    a.is_empty() && b.is_empty() || a.iter().any(|element| b.contains(element))
}

/// Every element, of an empty list the absence of one.
fn elements<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    list.is_empty()
        .then_some(None)
        .into_iter()
        .chain(list.iter().map(Some))
}

#[cfg(test)]
#[path = "filter_chain_tests.rs"]
mod tests;
