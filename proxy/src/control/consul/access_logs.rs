//! `Proxy.AccessLogs` of a registration, which Consul fills in from `proxy-defaults`: the access logs of every
//! listener, as Consul's xDS server writes them.
//!
//! Decodes and compiles; writes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::compile::Parts;
use super::json::{DecodeError, Node};
use super::registration::Registration;
use crate::model::Terminal;
use crate::model::access_log::{
    AccessLog, AccessLogFilter, AccessLogFormat, AccessLogSink, JsonTemplate, Template,
};
use crate::model::flags::ResponseFlag;
use crate::model::listener::Listener;

/// What Consul writes where no format is configured.
const DEFAULT_FORMAT: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// `Proxy.AccessLogs`, where they are enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AccessLogs {
    /// Not `DisableListenerLogs`: connections that no chain takes have a line too.
    of_listeners: bool,
    /// `stdout`, `stderr`, `file` or empty.
    kind: String,
    /// Of a file.
    path: String,
    json: String,
    text: String,
}

impl AccessLogs {
    /// Of `Proxy`. `None` where there are none.
    pub(super) fn decode(proxy: &Node<'_>) -> Result<Option<Self>, DecodeError> {
        let Some(node) = proxy.object("AccessLogs")? else {
            return Ok(None);
        };
        if !node.flag("Enabled")? {
            return Ok(None);
        }
        Ok(Some(Self {
            of_listeners: !node.flag("DisableListenerLogs")?,
            kind: node.text("Type")?.to_lowercase(),
            path: node.text("Path")?.to_owned(),
            json: node.text("JSONFormat")?.to_owned(),
            text: node.text("TextFormat")?.to_owned(),
        }))
    }

    fn sink(&self) -> Result<AccessLogSink, String> {
        match self.kind.as_str() {
            "" | "stdout" => Ok(AccessLogSink::Stdout),
            "stderr" => Ok(AccessLogSink::Stderr),
            "file" if self.path.is_empty() => Err("a file has no Path".to_owned()),
            "file" => Ok(match self.path.as_str() {
                "/dev/stdout" => AccessLogSink::Stdout,
                "/dev/stderr" => AccessLogSink::Stderr,
                path => AccessLogSink::File(PathBuf::from(path)),
            }),
            other => Err(format!("the Type {other:?} is not known")),
        }
    }

    fn format(&self) -> Result<AccessLogFormat, String> {
        if !self.json.is_empty() {
            let parsed: Map<String, Value> =
                serde_json::from_str(&self.json).map_err(|error| format!("JSONFormat: {error}"))?;
            return json(&parsed);
        }
        if !self.text.is_empty() {
            let line = match self.text.ends_with('\n') {
                true => self.text.clone(),
                false => format!("{}\n", self.text),
            };
            let template = Template::parse(&line).map_err(|error| format!("TextFormat: {error}"))?;
            return Ok(AccessLogFormat::Text(template));
        }
        let default = DEFAULT_FORMAT.map(|(name, value)| (name.to_owned(), value.into()));
        json(&default.into_iter().collect())
    }
}

fn json(members: &Map<String, Value>) -> Result<AccessLogFormat, String> {
    let template = JsonTemplate::parse(members).map_err(|error| format!("JSONFormat: {error}"))?;
    Ok(AccessLogFormat::Json(template))
}

/// Gives every listener that there is its logs. To be run when all are there.
pub(super) fn compile(registration: &Registration, parts: &mut Parts) {
    let Some(wanted) = &registration.access_logs else {
        return;
    };
    let made = wanted.sink().and_then(|sink| Ok((sink, wanted.format()?)));
    let (sink, format) = match made {
        Ok(made) => made,
        Err(why) => {
            let what = format!("Proxy.AccessLogs are not written: {why}");
            parts.notices.insert(what);
            return;
        }
    };
    let of_requests = format.operators().iter().any(|one| one.is_of_requests_alone());
    let log = |filter| AccessLog {
        sink: sink.clone(),
        format: format.clone(),
        filter,
    };
    let ended = Arc::new(log(AccessLogFilter::All));
    let no_chain = Arc::new(log(AccessLogFilter::Flags(vec![ResponseFlag::NoRouteFound])));
    for listener in parts.listeners.values_mut() {
        let connections = if of_requests { None } else { Some(&ended) };
        if wanted.of_listeners && !of_requests {
            listener.access_log = vec![Arc::clone(&no_chain)];
        }
        add(listener, &ended, connections);
    }
    if of_requests {
        let what =
            "Proxy.AccessLogs: a format with operators of requests alone is not written for connections";
        parts.notices.insert(what.to_owned());
    }
}

fn add(listener: &mut Listener, requests: &Arc<AccessLog>, connections: Option<&Arc<AccessLog>>) {
    for chain in &mut listener.filter_chains {
        match &mut Arc::make_mut(chain).terminal {
            Terminal::HttpConnectionManager(manager) => {
                Arc::make_mut(manager).access_log = vec![Arc::clone(requests)];
            }
            Terminal::TcpProxy(proxy) => {
                proxy.access_log = connections.map(Arc::clone).into_iter().collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::consul::compile::listener;
    use crate::control::consul::registration;
    use crate::model::FilterChain;
    use crate::model::filter_chain_match::FilterChainMatch;
    use crate::model::http::{HttpConnectionManager, Routes};
    use crate::model::listener::{Address, Direction, TcpProxy};

    /// What the listener itself, its requests and its connections have; and what is told.
    struct Had {
        listener: Vec<Arc<AccessLog>>,
        requests: Vec<Arc<AccessLog>>,
        connections: Vec<Arc<AccessLog>>,
        notices: Vec<String>,
    }

    fn compiled(logs: &Value) -> Had {
        let body = json!({ "Kind": "connect-proxy", "ID": "x", "Proxy": { "AccessLogs": logs } });
        let registration = registration::decode(body.to_string().as_bytes()).unwrap();
        assert_eq!(registration.unsupported, Vec::<String>::new());
        let routes = Routes::Rds("routes".into());
        let manager = HttpConnectionManager::new("http".into(), routes);
        let mut parts = Parts::default();
        for (name, terminal) in [
            ("http", Terminal::HttpConnectionManager(Arc::new(manager))),
            (
                "tcp",
                Terminal::TcpProxy(TcpProxy::to("api".into(), "tcp".into())),
            ),
        ] {
            let chain = FilterChain {
                name: "".into(),
                matches: FilterChainMatch::default(),
                transport: None,
                filters: Vec::new(),
                terminal,
            };
            let at = Address::Socket("127.0.0.1:1".parse().unwrap());
            let listener = listener(name.into(), at, Direction::Outbound, chain);
            parts.listeners.insert(name.into(), listener);
        }
        compile(&registration, &mut parts);
        let of = |name: &str| match &parts.listeners[name].filter_chains[0].terminal {
            Terminal::HttpConnectionManager(manager) => manager.access_log.clone(),
            Terminal::TcpProxy(proxy) => proxy.access_log.clone(),
        };
        Had {
            listener: parts.listeners["tcp"].access_log.clone(),
            requests: of("http"),
            connections: of("tcp"),
            notices: parts.notices.into_iter().collect(),
        }
    }

    #[test]
    fn every_listener_has_the_logs_that_consul_would_send() {
        let had = compiled(&json!({ "Enabled": true, "Type": "file", "Path": "/var/log/a" }));
        assert_eq!(had.notices, Vec::<String>::new());
        let [log] = &had.requests[..] else { panic!() };
        assert_eq!(log.sink, AccessLogSink::File("/var/log/a".into()));
        assert_eq!(log.filter, AccessLogFilter::All);
        assert_eq!(log.format.operators().len(), DEFAULT_FORMAT.len());
        assert_eq!(had.connections, had.requests);
        let [none] = &had.listener[..] else { panic!() };
        assert_eq!(
            none.filter,
            AccessLogFilter::Flags(vec![ResponseFlag::NoRouteFound])
        );
    }

    #[test]
    fn formats_and_sinks_are_those_of_the_entry() {
        let had = compiled(
            &json!({ "Enabled": true, "DisableListenerLogs": true, "Type": "stderr",
            "TextFormat": "%REQ(:PATH)% %RESPONSE_CODE%" }),
        );
        assert_eq!((had.listener, had.notices), (Vec::new(), Vec::new()));
        let line = Template::parse("%REQ(:PATH)% %RESPONSE_CODE%\n").unwrap();
        assert_eq!(had.requests[0].format, AccessLogFormat::Text(line));
        assert_eq!(had.requests[0].sink, AccessLogSink::Stderr);
        let had = compiled(&json!({ "Enabled": true, "JSONFormat": "{\"a\":{\"b\":\"%DURATION%\"}}" }));
        assert_eq!(had.requests[0].sink, AccessLogSink::Stdout);
        assert_eq!(had.requests[0].format.operators().len(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_told_and_keeps_no_listener_away() {
        for (logs, told) in [
            (json!({ "Enabled": true, "Type": "syslog" }), "\"syslog\""),
            (json!({ "Enabled": true, "Type": "file" }), "no Path"),
            (
                json!({ "Enabled": true, "TextFormat": "%NO_SUCH%" }),
                "TextFormat",
            ),
            (json!({ "Enabled": true, "JSONFormat": "{" }), "JSONFormat"),
        ] {
            let had = compiled(&logs);
            assert!(had.notices.iter().any(|notice| notice.contains(told)), "{logs}");
            assert_eq!(had.requests, Vec::new());
        }
        let had = compiled(&json!({ "Enabled": false, "Type": "syslog" }));
        assert_eq!((had.requests, had.notices), (Vec::new(), Vec::new()));
    }
}
