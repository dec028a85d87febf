//! Listeners: defaults, listener filters, what is refused and what is noted.

use attache_proto::envoy::config::core::v3::Address as WireAddress;
use attache_proto::envoy::config::listener::v3::{
    FilterChain,
    listener::{ConnectionBalanceConfig, connection_balance_config::ExactBalance},
};
use prost::Message;

use super::super::testing::{Bench, any, socket, tcp_proxy};
use super::*;
use crate::model::Terminal;
use crate::model::listener::{Address, TcpProxy};

fn wire() -> Wire {
    Wire {
        name: "api:127.0.0.1:9191".to_owned(),
        address: socket("127.0.0.1", 9191),
        filter_chains: vec![FilterChain {
            filters: vec![tcp_proxy("api")],
            ..FilterChain::default()
        }],
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Wire::default()
    }
}

fn read(listener: &Wire) -> Result<Listener, DecodeError> {
    decode_bytes(&listener.encode_to_vec(), &mut Bench::default().context())
}

fn filter(name: &str, config: Option<Any>) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: config.map(ConfigType::TypedConfig),
        ..ListenerFilter::default()
    }
}

#[test]
fn a_plain_listener() {
    let listener = read(&wire()).unwrap();
    assert_eq!(&*listener.name, "api:127.0.0.1:9191");
    assert_eq!(listener.address, Address::Socket(([127, 0, 0, 1], 9191).into()));
    assert_eq!(listener.direction, Direction::Outbound);
    assert_eq!(listener.filters, ListenerFilters::default());
    let tcp = TcpProxy::to("api".into(), "tcp".into());
    assert_eq!(listener.filter_chains[0].terminal, Terminal::TcpProxy(tcp));
    assert!(!listener.exact_balance && listener.stat_prefix.is_none());
    let mut unnamed = wire();
    unnamed.name.clear();
    unnamed.stat_prefix = "p".to_owned();
    let unnamed = read(&unnamed).unwrap();
    assert_eq!(
        (&*unnamed.name, unnamed.stat_prefix.as_deref()),
        ("127.0.0.1:9191", Some("p"))
    );
}

#[test]
fn a_default_chain_may_stand_alone() {
    let mut listener = wire();
    listener.default_filter_chain = listener.filter_chains.pop();
    let read_one = read(&listener).unwrap();
    assert!(read_one.filter_chains.is_empty() && read_one.default_filter_chain.is_some());
    listener.default_filter_chain = None;
    assert_eq!(read(&listener).unwrap_err().path, "filter_chains");
}

#[test]
fn listener_filters_by_type_and_by_name() {
    let found = |filters: Vec<ListenerFilter>| {
        let mut listener = wire();
        listener.listener_filters = filters;
        let filters = read(&listener).unwrap().filters;
        (
            filters.original_dst,
            filters.tls_inspector,
            filters.http_inspector,
            filters.proxy_protocol,
        )
    };
    assert_eq!(
        found(vec![
            filter("a", Some(any(&OriginalDst {}))),
            filter("b", Some(any(&TlsInspector::default())))
        ]),
        (true, true, false, false)
    );
    let bare = |name: &str| filter(&format!("envoy.filters.listener.{name}"), None);
    assert_eq!(
        found(vec![bare("http_inspector"), bare("proxy_protocol")]),
        (false, false, true, true)
    );
    assert_eq!(
        found(vec![bare("original_dst"), bare("tls_inspector")]),
        (true, true, false, false)
    );

    let refused = |filter: ListenerFilter| {
        let mut listener = wire();
        listener.listener_filters = vec![filter];
        read(&listener).unwrap_err().path
    };
    assert_eq!(refused(bare("local_ratelimit")), "listener_filters[0]");
    let optional = ProxyProtocol {
        allow_requests_without_proxy_protocol: true,
        ..ProxyProtocol::default()
    };
    assert_eq!(
        refused(filter("p", Some(any(&optional)))),
        "listener_filters[0].typed_config.allow_requests_without_proxy_protocol"
    );
    let mut disabled = bare("tls_inspector");
    disabled.filter_disabled = Some(Default::default());
    assert_eq!(refused(disabled), "listener_filters[0].filter_disabled");
}

#[test]
fn timeouts_of_listener_filters() {
    let with = |seconds| {
        let mut listener = wire();
        listener.listener_filters_timeout = Some(prost_types::Duration { seconds, nanos: 0 });
        listener.continue_on_listener_filters_timeout = true;
        read(&listener).map(|listener| listener.filters)
    };
    assert_eq!(with(3).unwrap().timeout, Some(Duration::from_secs(3)));
    assert!(with(3).unwrap().continue_on_timeout);
    assert_eq!(with(0).unwrap().timeout, None);
    assert_eq!(with(-1).unwrap_err().path, "listener_filters_timeout");
}

#[test]
fn balance_is_exact_or_not_asked_for() {
    let with = |balance_type| {
        let mut listener = wire();
        listener.connection_balance_config = Some(ConnectionBalanceConfig { balance_type });
        read(&listener)
    };
    assert!(
        with(Some(BalanceType::ExactBalance(ExactBalance {})))
            .unwrap()
            .exact_balance
    );
    let extension = Some(BalanceType::ExtendBalance(Default::default()));
    assert_eq!(with(extension).unwrap_err().path, "connection_balance_config");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused = |change: fn(&mut Wire)| {
        let mut listener = wire();
        change(&mut listener);
        read(&listener).unwrap_err().path
    };
    assert_eq!(refused(|l| l.address = None), "address");
    assert_eq!(refused(|l| l.address = Some(WireAddress::default())), "address");
    assert_eq!(refused(|l| l.bind_to_port = Some(false)), "bind_to_port");
    assert_eq!(refused(|l| l.transparent = Some(true)), "transparent");
    assert_eq!(refused(|l| l.freebind = Some(true)), "freebind");
    assert_eq!(
        refused(|l| l.socket_options.push(Default::default())),
        "socket_options"
    );
    assert_eq!(
        refused(|l| l.api_listener = Some(Default::default())),
        "api_listener"
    );
    assert_eq!(
        refused(|l| l.udp_listener_config = Some(Default::default())),
        "udp_listener_config"
    );
    assert_eq!(
        refused(|l| l.additional_addresses.push(Default::default())),
        "additional_addresses"
    );
    assert_eq!(refused(|l| l.traffic_direction = 9), "traffic_direction");
    assert_eq!(
        refused(|l| l.filter_chains[0].filters.clear()),
        "filter_chains[0].filters"
    );
    assert_eq!(
        refused(|l| l.filter_chains.push(l.filter_chains[0].clone())),
        "filter_chains[1].filter_chain_match"
    );
}

#[test]
fn what_makes_no_difference_is_noted() {
    let mut listener = wire();
    listener.per_connection_buffer_limit_bytes = Some(32768);
    listener.use_original_dst = Some(true);
    // As if of a newer release.
    let mut bytes = listener.encode_to_vec();
    bytes.extend([0xF8, 0x3F, 1]);
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let decoded = decode_bytes(&bytes, &mut ctx).unwrap();
    assert!(decoded.filters.original_dst);
    let notices: Vec<&str> = ctx.notices.iter().map(String::as_str).collect();
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert!(
        notices.contains(&"Listener \"api:127.0.0.1:9191\": per_connection_buffer_limit_bytes has no effect")
    );
    assert!(
        notices.iter().any(|notice| notice.contains("number 1023")),
        "{notices:?}"
    );
}

#[test]
fn bytes_that_are_no_listener() {
    let refused = decode_bytes(&[0xff], &mut Bench::default().context())
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("Listener \"\" is no valid envoy.config.listener.v3.Listener"),
        "{refused}"
    );
}
