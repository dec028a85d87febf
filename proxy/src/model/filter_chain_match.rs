//! Which filter chain takes a connection (Envoy's `FilterChainMatch`).
//!
//! Envoy narrows the chains down one criterion after the other, each time to the most specific that match,
//! and never goes back: a chain for the destination's port hides every chain without one, even if it
//! then fails on the server name.

use std::net::IpAddr;
use std::sync::Arc;

use super::downstream::Downstream;
use super::listener::{FilterChain, Listener};
use super::matcher::Cidr;

/// What a connection must be for a chain to take it; what is empty does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    /// The (original) destination's port.
    pub destination_port: Option<u16>,
    /// Ranges of the (original) destination's address.
    pub prefix_ranges: Vec<Cidr>,
    /// Server names, lower case: exact, or `*.` and a suffix.
    pub server_names: Vec<Arc<str>>,
    /// `tls` (true) or `raw_buffer` (false).
    pub transport_protocol: Option<bool>,
    /// Protocols of the ClientHello or of the HTTP inspector.
    pub application_protocols: Vec<Arc<str>>,
    /// Whether the downstream must be on this host (true) or elsewhere (false).
    pub source_is_local: Option<bool>,
    /// Ranges of the downstream's address.
    pub source_prefix_ranges: Vec<Cidr>,
    /// The downstream's ports.
    pub source_ports: Vec<u16>,
}

impl Listener {
    /// The chain that takes a connection. `None`: it is closed, flag NR.
    pub fn find_filter_chain(&self, downstream: &Downstream) -> Option<&Arc<FilterChain>> {
        // Narrowing down by one criterion after the other and never going back is the greatest of the
        // lists of scores; of equal ones the first. Nothing is allocated: this is on every connection's
        // path.
        let mut best: Option<(Scores, &Arc<FilterChain>)> = None;
        for chain in &self.filter_chains {
            let scores = CRITERIA.map(|criterion| criterion(&chain.matches, downstream));
            if best.as_ref().is_none_or(|(best, _)| scores > *best) {
                best = Some((scores, chain));
            }
        }
        best.filter(|(scores, _)| scores.iter().all(Option::is_some))
            .map(|(_, chain)| chain)
            .or(self.default_filter_chain.as_ref())
    }
}

/// One score a criterion, in their order.
type Scores = [Option<u32>; CRITERIA.len()];

/// How specifically a chain matches by one criterion; `None` is not at all, 0 is "does not matter".
type Criterion = fn(&FilterChainMatch, &Downstream) -> Option<u32>;

/// In Envoy's order.
const CRITERIA: [Criterion; 8] = [
    destination_port,
    destination_address,
    server_name,
    transport_protocol,
    application_protocol,
    source_type,
    source_address,
    source_port,
];

fn destination_port(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    match chain.destination_port {
        None => Some(0),
        Some(port) => (downstream.destination?.port() == port).then_some(1),
    }
}

fn destination_address(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    longest(&chain.prefix_ranges, downstream.destination.map(|d| d.ip()))
}

fn server_name(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    if chain.server_names.is_empty() {
        return Some(0);
    }
    let name = downstream.server_name.as_deref()?;
    let score = |wanted: &Arc<str>| match wanted.strip_prefix('*') {
        // `*.example.com` takes `a.b.example.com`, not `example.com`; the longer suffix is the better.
        Some(suffix) => name.ends_with(suffix).then(|| length(suffix)),
        None => (**wanted == *name).then_some(u32::MAX),
    };
    chain.server_names.iter().filter_map(score).max()
}

fn transport_protocol(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    match chain.transport_protocol {
        None => Some(0),
        Some(tls) => (downstream.tls == tls).then_some(1),
    }
}

fn application_protocol(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    if chain.application_protocols.is_empty() {
        return Some(0);
    }
    let offered = &downstream.application_protocols;
    // The downstream's first protocol that any chain has wins: the earlier, the higher the score.
    let wanted = |offer: &String| chain.application_protocols.iter().any(|p| **p == **offer);
    let at = offered.iter().position(wanted)?;
    Some(u32::MAX - u32::try_from(at).unwrap_or(u32::MAX - 1))
}

fn source_type(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    let Some(local) = chain.source_is_local else {
        return Some(0);
    };
    let is_local = match (downstream.source, downstream.destination) {
        (Some(source), Some(destination)) => {
            source.ip().to_canonical().is_loopback() || source.ip() == destination.ip()
        }
        // A unix socket's other end can only be on this host.
        _ => true,
    };
    (is_local == local).then_some(1)
}

fn source_address(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    longest(&chain.source_prefix_ranges, downstream.source.map(|s| s.ip()))
}

fn source_port(chain: &FilterChainMatch, downstream: &Downstream) -> Option<u32> {
    if chain.source_ports.is_empty() {
        return Some(0);
    }
    let port = downstream.source?.port();
    chain.source_ports.contains(&port).then_some(1)
}

/// One more than the length of the longest range with `address` in it.
fn longest(ranges: &[Cidr], address: Option<IpAddr>) -> Option<u32> {
    if ranges.is_empty() {
        return Some(0);
    }
    let address = address?;
    let matching = ranges.iter().filter(|range| range.contains(address));
    matching.map(|range| u32::from(range.length()) + 1).max()
}

fn length(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::listener::Direction;
    use crate::model::listener::{Address, ListenerFilters, TcpProxy, Terminal};

    fn listener(chains: &[(&str, FilterChainMatch)], default: bool) -> Listener {
        let chain = |name: &str, matches: &FilterChainMatch| {
            Arc::new(FilterChain {
                name: name.into(),
                matches: matches.clone(),
                transport: None,
                filters: vec![],
                terminal: Terminal::TcpProxy(TcpProxy::to(name.into(), name.into())),
            })
        };
        Listener {
            name: "l".into(),
            address: Address::Socket(([127, 0, 0, 1], 1).into()),
            direction: Direction::Outbound,
            stat_prefix: None,
            filters: ListenerFilters::default(),
            filter_chains: chains
                .iter()
                .map(|(name, matches)| chain(name, matches))
                .collect(),
            default_filter_chain: default.then(|| chain("default", &FilterChainMatch::default())),
            exact_balance: false,
            access_log: vec![],
        }
    }

    fn to(destination: &str) -> Downstream {
        Downstream {
            source: Some("10.0.0.9:999".parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
            ..Downstream::default()
        }
    }

    fn ranges(texts: &[&str]) -> Vec<Cidr> {
        let range = |text: &&str| {
            let (address, length) = text.split_once('/').unwrap();
            Cidr::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
        };
        texts.iter().map(range).collect()
    }

    #[track_caller]
    fn finds(listener: &Listener, downstream: &Downstream, name: Option<&str>) {
        let found = listener.find_filter_chain(downstream).map(|chain| &*chain.name);
        assert_eq!(found, name);
    }

    #[test]
    fn a_port_hides_chains_without_one() {
        let named = FilterChainMatch {
            destination_port: Some(80),
            server_names: vec!["a.example".into()],
            ..Default::default()
        };
        let chains = [("port", named), ("any", FilterChainMatch::default())];
        finds(&listener(&chains, false), &to("10.0.0.1:80"), None);
        finds(&listener(&chains, true), &to("10.0.0.1:80"), Some("default"));
        finds(&listener(&chains, true), &to("10.0.0.1:81"), Some("any"));
    }

    #[test]
    fn the_longest_range_wins() {
        let of = |texts| FilterChainMatch {
            prefix_ranges: ranges(texts),
            ..Default::default()
        };
        let chains = [
            ("wide", of(&["240.0.0.0/8"])),
            ("vip", of(&["240.0.0.1/32", "10.1.1.1/32"])),
        ];
        let listener = listener(&chains, true);
        finds(&listener, &to("240.0.0.1:443"), Some("vip"));
        finds(&listener, &to("240.0.0.2:443"), Some("wide"));
        finds(&listener, &to("[::ffff:10.1.1.1]:443"), Some("vip"));
        finds(&listener, &to("8.8.8.8:53"), Some("default"));
    }

    #[test]
    fn server_names_exact_before_the_longest_suffix() {
        let of = |name: &str| FilterChainMatch {
            server_names: vec![name.into()],
            ..Default::default()
        };
        let chains = [
            ("exact", of("a.b.example")),
            ("long", of("*.b.example")),
            ("short", of("*.example")),
        ];
        let listener = listener(&chains, false);
        let named = |name: &str| Downstream {
            server_name: Some(name.into()),
            ..to("10.0.0.1:1")
        };
        finds(&listener, &named("a.b.example"), Some("exact"));
        finds(&listener, &named("x.b.example"), Some("long"));
        finds(&listener, &named("b.example"), Some("short"));
        finds(&listener, &named("example"), None);
        finds(&listener, &to("10.0.0.1:1"), None);
    }

    #[test]
    fn sources_and_protocols() {
        let chains = [
            (
                "checks",
                FilterChainMatch {
                    source_prefix_ranges: ranges(&["127.0.0.1/8", "::1/128", "10.0.0.9/32"]),
                    source_ports: vec![999],
                    ..Default::default()
                },
            ),
            (
                "tls",
                FilterChainMatch {
                    transport_protocol: Some(true),
                    application_protocols: vec!["h2".into()],
                    source_is_local: Some(false),
                    ..Default::default()
                },
            ),
        ];
        let listener = listener(&chains, false);
        finds(&listener, &to("10.0.0.1:1"), Some("checks"));
        let mut tls = Downstream {
            tls: true,
            application_protocols: vec!["x".into(), "h2".into()],
            ..to("10.0.0.1:1")
        };
        finds(&listener, &tls, Some("tls"));
        tls.application_protocols.clear();
        finds(&listener, &tls, None);
    }
}
