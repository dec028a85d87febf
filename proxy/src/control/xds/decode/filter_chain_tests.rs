//! Matches of chains, and chains that cannot stand together.

use super::super::testing::{Bench, tcp_proxy};
use super::*;

const AT: At<'static> = At::resource("Listener", "l");

fn chain(change: impl Fn(&mut WireMatch)) -> Wire {
    let mut matches = WireMatch::default();
    change(&mut matches);
    Wire {
        filter_chain_match: Some(matches),
        filters: vec![tcp_proxy("a")],
        ..Wire::default()
    }
}

fn read(chain: &Wire) -> Result<Arc<FilterChain>, DecodeError> {
    decode(chain, &AT, &mut Bench::default().context())
}

fn range(prefix: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: prefix.to_owned(),
        prefix_len: Some(length),
    }
}

#[test]
fn every_criterion() {
    let whole = chain(|m| {
        m.destination_port = Some(443);
        m.prefix_ranges = vec![range("240.0.0.1", 32)];
        m.server_names = vec!["API.local".to_owned(), "*.dc1.internal".to_owned()];
        m.transport_protocol = "tls".to_owned();
        m.application_protocols = vec!["h2".to_owned()];
        m.source_type = ConnectionSourceType::External.into();
        m.source_prefix_ranges = vec![range("10.0.0.0", 8)];
        m.source_ports = vec![1, 65535];
    });
    let matches = &read(&whole).unwrap().matches;
    assert_eq!(
        *matches,
        FilterChainMatch {
            destination_port: Some(443),
            prefix_ranges: vec![Cidr::new([240, 0, 0, 1].into(), 32).unwrap()],
            server_names: vec!["api.local".into(), "*.dc1.internal".into()],
            transport_protocol: Some(true),
            application_protocols: vec!["h2".into()],
            source_is_local: Some(false),
            source_prefix_ranges: vec![Cidr::new([10, 0, 0, 0].into(), 8).unwrap()],
            source_ports: vec![1, 65535],
        }
    );
    let none = Wire {
        filter_chain_match: None,
        ..whole
    };
    assert_eq!(read(&none).unwrap().matches, FilterChainMatch::default());
}

#[test]
fn what_no_connection_can_be_is_refused() {
    let refused = |change: fn(&mut WireMatch)| read(&chain(change)).unwrap_err().path;
    let at = |field: &str| format!("filter_chain_match.{field}");
    assert_eq!(refused(|m| m.destination_port = Some(0)), at("destination_port"));
    assert_eq!(
        refused(|m| m.destination_port = Some(65536)),
        at("destination_port")
    );
    assert_eq!(refused(|m| m.source_ports = vec![1, 0]), at("source_ports[1]"));
    assert_eq!(
        refused(|m| m.server_names = vec!["*".to_owned()]),
        at("server_names[0]")
    );
    assert_eq!(
        refused(|m| m.server_names = vec!["a*".to_owned()]),
        at("server_names[0]")
    );
    assert_eq!(
        refused(|m| m.server_names = vec!["*.".to_owned()]),
        at("server_names[0]")
    );
    assert_eq!(
        refused(|m| m.transport_protocol = "quic".to_owned()),
        at("transport_protocol")
    );
    assert_eq!(refused(|m| m.source_type = 9), at("source_type"));
    assert_eq!(
        refused(|m| m.address_suffix = "1".to_owned()),
        at("address_suffix")
    );
    assert_eq!(
        refused(|m| m.direct_source_prefix_ranges = vec![range("10.0.0.0", 8)]),
        at("direct_source_prefix_ranges")
    );
    assert_eq!(
        refused(|m| m.prefix_ranges = vec![range("10.0.0.0", 8), range("x", 8)]),
        at("prefix_ranges[1].address_prefix")
    );
    let mut proxied = chain(|_| {});
    proxied.use_proxy_proto = Some(true);
    assert_eq!(read(&proxied).unwrap_err().path, "use_proxy_proto");
}

#[test]
fn chains_differ_in_what_they_match() {
    let chains = |all: &[Wire]| {
        let all: Vec<_> = all.iter().map(|chain| read(chain).unwrap()).collect();
        distinct(&all, &AT)
    };
    let to = |ranges: &[&str], names: &[&str]| {
        chain(|m| {
            m.prefix_ranges = ranges.iter().map(|prefix| range(prefix, 32)).collect();
            m.server_names = names.iter().map(|name| (*name).to_owned()).collect();
        })
    };
    assert!(chains(&[to(&["10.0.0.1"], &[]), to(&["10.0.0.2"], &[]), to(&[], &[])]).is_ok());
    assert!(
        chains(&[
            to(&["10.0.0.1"], &["a"]),
            to(&["10.0.0.1"], &["b"]),
            to(&["10.0.0.1"], &[])
        ])
        .is_ok()
    );
    // One range within a chain may stand there twice: it stays one chain.
    assert!(chains(&[to(&["10.0.0.1", "10.0.0.1"], &[])]).is_ok());
    let same = chains(&[
        to(&["10.0.0.1", "10.0.0.2"], &["a"]),
        to(&["10.0.0.2"], &["b", "a"]),
    ]);
    let same = same.unwrap_err();
    assert_eq!(same.path, "[1].filter_chain_match");
    assert!(same.to_string().ends_with("that of filter_chains[0]"), "{same}");
    assert!(chains(&[to(&[], &[]), to(&[], &[])]).is_err());
    let port = |port| chain(move |m| m.destination_port = Some(port));
    assert!(chains(&[port(1), port(2)]).is_ok());
    assert!(chains(&[port(1), port(1)]).is_err());
}
