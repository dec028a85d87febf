//! Listeners and their chains, as Envoy's.

use serde_json::{Value, json};

use super::{address, duration, extension, list, matcher, message, rbac, tls, type_url, unless_default};
use crate::model::access_log::{AccessLog, AccessLogFilter, AccessLogSink};
use crate::model::listener::{Direction, FilterChain, Listener, NetworkFilter, TcpProxy, Terminal};

pub(super) fn listener(listener: &Listener) -> Value {
    let direction = match listener.direction {
        Direction::Unspecified => Value::Null,
        Direction::Inbound => json!("INBOUND"),
        Direction::Outbound => json!("OUTBOUND"),
    };
    let default_chain = listener.default_filter_chain.as_ref();
    let balance = if listener.exact_balance {
        json!({ "exact_balance": {} })
    } else {
        Value::Null
    };
    message([
        ("@type", json!(type_url("envoy.config.listener.v3.Listener"))),
        ("name", json!(&*listener.name)),
        ("address", address(&listener.address)),
        (
            "filter_chains",
            list(
                listener
                    .filter_chains
                    .iter()
                    .map(|chain| filter_chain(chain))
                    .collect(),
            ),
        ),
        (
            "default_filter_chain",
            default_chain.map_or(Value::Null, |chain| filter_chain(chain)),
        ),
        ("listener_filters", listener_filters(listener)),
        ("traffic_direction", direction),
        ("connection_balance_config", balance),
        ("access_log", access_logs(&listener.access_log)),
        ("stat_prefix", json!(listener.stat_prefix.as_deref())),
    ])
}

fn listener_filters(listener: &Listener) -> Value {
    let filters = &listener.filters;
    let named = [
        (filters.original_dst, "original_dst", "OriginalDst"),
        (filters.tls_inspector, "tls_inspector", "TlsInspector"),
        (filters.http_inspector, "http_inspector", "HttpInspector"),
        (filters.proxy_protocol, "proxy_protocol", "ProxyProtocol"),
    ];
    let filters = named
        .into_iter()
        .filter(|(there, ..)| *there)
        .map(|(_, name, kind)| {
            extension(
                &format!("envoy.filters.listener.{name}"),
                &format!("envoy.extensions.filters.listener.{name}.v3.{kind}"),
                json!({}),
            )
        });
    list(filters.collect())
}

fn filter_chain(chain: &FilterChain) -> Value {
    let mut filters: Vec<Value> = chain.filters.iter().map(filter).collect();
    filters.push(match &chain.terminal {
        Terminal::TcpProxy(proxy) => tcp_proxy(proxy),
        // Only sources that hold Envoy's own resources make one, and they show those.
        Terminal::HttpConnectionManager(manager) => extension(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({ "stat_prefix": &*manager.stat_prefix }),
        ),
    });
    message([
        ("filter_chain_match", matcher::filter_chain(&chain.matches)),
        ("filters", list(filters)),
        (
            "transport_socket",
            chain.transport.as_deref().map_or(Value::Null, tls::downstream),
        ),
        ("name", unless_default(chain.name.to_string())),
    ])
}

fn filter(filter: &NetworkFilter) -> Value {
    match filter {
        NetworkFilter::Rbac { rules, stat_prefix } => extension(
            "envoy.filters.network.rbac",
            "envoy.extensions.filters.network.rbac.v3.RBAC",
            json!({ "rules": rbac::rules(rules), "stat_prefix": &**stat_prefix }),
        ),
        NetworkFilter::ConnectionLimit {
            max_connections,
            delay,
            stat_prefix,
        } => extension(
            "envoy.filters.network.connection_limit",
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
            message([
                ("stat_prefix", json!(&**stat_prefix)),
                ("max_connections", json!(max_connections.to_string())),
                ("delay", delay.map_or(Value::Null, duration)),
            ]),
        ),
        NetworkFilter::SniCluster => extension(
            "envoy.filters.network.sni_cluster",
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
            json!({}),
        ),
    }
}

fn tcp_proxy(proxy: &TcpProxy) -> Value {
    let (cluster, weighted) = match proxy.clusters.as_slice() {
        [one] => (json!(&*one.name), Value::Null),
        several => {
            let clusters = several
                .iter()
                .map(|c| json!({ "name": &*c.name, "weight": c.weight }));
            (Value::Null, json!({ "clusters": clusters.collect::<Vec<_>>() }))
        }
    };
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        message([
            ("stat_prefix", json!(&*proxy.stat_prefix)),
            ("cluster", cluster),
            ("weighted_clusters", weighted),
            ("idle_timeout", proxy.idle_timeout.map_or(Value::Null, duration)),
            (
                "max_downstream_connection_duration",
                proxy.max_duration.map_or(Value::Null, duration),
            ),
            ("max_connect_attempts", json!(proxy.max_connect_attempts)),
            ("access_log", access_logs(&proxy.access_log)),
        ]),
    )
}

fn access_logs(logs: &[std::sync::Arc<AccessLog>]) -> Value {
    list(logs.iter().map(|log| access_log(log)).collect())
}

/// Without its format: only sources that hold Envoy's own resources give one, and they show those.
fn access_log(log: &AccessLog) -> Value {
    const PACKAGE: &str = "envoy.extensions.access_loggers";
    let (name, kind, path) = match &log.sink {
        AccessLogSink::Stdout => ("stdout", "stream.v3.StdoutAccessLog", Value::Null),
        AccessLogSink::Stderr => ("stderr", "stream.v3.StderrAccessLog", Value::Null),
        AccessLogSink::File(path) => ("file", "file.v3.FileAccessLog", json!(path.display().to_string())),
    };
    let mut shown = extension(
        &format!("envoy.access_loggers.{name}"),
        &format!("{PACKAGE}.{kind}"),
        message([("path", path)]),
    );
    match &log.filter {
        // Only a source that shows Envoy's own resources gives the others.
        AccessLogFilter::All
        | AccessLogFilter::StatusCode(_)
        | AccessLogFilter::Duration(_)
        | AccessLogFilter::Traceable
        | AccessLogFilter::Runtime(_)
        | AccessLogFilter::And(_)
        | AccessLogFilter::Or(_)
        | AccessLogFilter::Header(_)
        | AccessLogFilter::GrpcStatus { .. }
        | AccessLogFilter::LogType { .. } => {}
        AccessLogFilter::AnyFlag => shown["filter"] = json!({ "response_flag_filter": {} }),
        AccessLogFilter::Flags(flags) => {
            let flags: Vec<&str> = flags.iter().map(|flag| flag.as_str()).collect();
            shown["filter"] = json!({ "response_flag_filter": { "flags": flags } });
        }
    }
    shown
}
