//! The pages as requests see them.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};

use super::*;
use crate::drain::{PhaseSender, phases};
use crate::dump::{ConfigDump, Resource, ResourceState, ServerInfo};
use crate::model::listener::{Address, Direction, ListenerFilters};
use crate::model::rbac::{Action, Rbac};
use crate::model::{Cluster, FilterChain, Listener, NetworkFilter, Snapshot, Terminal};
use crate::snapshot::{Publisher, channel};

struct Rig {
    admin: Admin,
    phase: PhaseSender,
    publisher: Publisher,
    told: RefCell<mpsc::UnboundedReceiver<Command>>,
}

/// A source in Envoy's words, or of a state only.
struct Source(Option<ConfigDump>);

impl ConfigSource for Source {
    fn status(&self) -> Json {
        json!({ "ready": true })
    }

    fn config_dump(&self) -> Option<ConfigDump> {
        self.0.clone()
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            envoy_version: "1.35.6".to_owned(),
            command_line_options: json!({ "mode": "Serve" }),
            node: json!({ "id": "web-1" }),
        }
    }
}

fn rig(dump: Option<ConfigDump>) -> Rig {
    let (phase, reader) = phases();
    let (publisher, snapshots) = channel();
    let (commands, told) = mpsc::unbounded_channel();
    Rig {
        admin: Admin::new(snapshots, reader, Rc::new(Source(dump)), commands, 2),
        phase,
        publisher,
        told: RefCell::new(told),
    }
}

impl Rig {
    fn send(&self, method: &str, target: &str, origin: bool) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(target);
        if origin {
            request = request.header("origin", "http://elsewhere");
        }
        routes::answer(&self.admin, &request.body(Empty::<Bytes>::new()).unwrap())
    }

    fn ask(&self, method: &str, target: &str) -> (u16, String) {
        let response = self.send(method, target, false);
        let status = response.status().as_u16();
        let body = futures_now(response.into_body().collect()).unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn json(&self, target: &str) -> Json {
        let (status, body) = self.ask("GET", target);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// The outcome of a future that never waits.
fn futures_now<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

fn snapshot() -> Snapshot {
    let rules = Rbac {
        rules: vec![],
        default_action: Action::Deny,
        default_name: "default policy: deny".into(),
        spiffe_only: true,
    };
    let chain = FilterChain {
        name: "".into(),
        matches: Default::default(),
        transport: None,
        filters: vec![NetworkFilter::Rbac {
            rules: Arc::new(rules),
            stat_prefix: "connect_authz".into(),
        }],
        terminal: Terminal::TcpProxy(crate::model::listener::TcpProxy::to(
            "local_app".into(),
            "public_listener".into(),
        )),
    };
    let listener = Listener {
        name: "public_listener:127.0.0.1:21003".into(),
        address: Address::Socket(([127, 0, 0, 1], 21003).into()),
        direction: Direction::Inbound,
        stat_prefix: None,
        filters: ListenerFilters::default(),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        exact_balance: false,
        access_log: vec![],
    };
    let cluster = Cluster {
        name: "local_app".into(),
        ..Cluster::default()
    };
    let mut snapshot = Snapshot::default();
    snapshot
        .listeners
        .insert(Arc::clone(&listener.name), Arc::new(listener));
    snapshot
        .clusters
        .insert(Arc::clone(&cluster.name), Arc::new(cluster));
    snapshot
}

#[test]
fn only_a_post_that_is_no_browsers_changes_something() {
    let rig = rig(None);
    let refused = rig.ask("GET", "/quitquitquit");
    assert_eq!(
        refused,
        (405, "Method GET not allowed, POST required.".to_owned())
    );
    assert_eq!(rig.send("POST", "/quitquitquit", true).status(), 403);
    assert_eq!(rig.ask("DELETE", "/ready").0, 405);
    assert!(rig.told.borrow_mut().try_recv().is_err());
    assert_eq!(rig.ask("POST", "/quitquitquit"), (200, "OK\n".to_owned()));
    assert_eq!(rig.ask("POST", "/drain_listeners?graceful&inboundonly").0, 200);
    let drain = Command::DrainListeners {
        inbound_only: true,
        graceful: true,
    };
    let mut told = rig.told.borrow_mut();
    assert_eq!(
        [told.try_recv().unwrap(), told.try_recv().unwrap()],
        [Command::Quit, drain]
    );
}

#[test]
fn every_page_of_the_help_answers() {
    let rig = rig(None);
    rig.phase.enter(Phase::Live);
    let (status, help) = rig.ask("GET", "/nowhere");
    assert_eq!(status, 404);
    let lines: Vec<&str> = help.lines().skip(1).collect();
    assert!(lines.len() >= 18, "{help}");
    for line in lines {
        let (path, what) = line.trim().split_once(": ").unwrap();
        let method = if what.ends_with("(POST)") { "POST" } else { "GET" };
        let response = rig.send(method, path, false);
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }
}

#[test]
fn readiness_follows_the_phase_and_the_operator() {
    let rig = rig(None);
    let ready = || rig.ask("GET", "/ready");
    assert_eq!(ready(), (503, "PRE_INITIALIZING\n".to_owned()));
    rig.phase.enter(Phase::Live);
    assert_eq!(ready(), (200, "LIVE\n".to_owned()));
    assert_eq!(rig.ask("POST", "/healthcheck/fail").0, 200);
    assert_eq!(ready(), (503, "DRAINING\n".to_owned()));
    assert_eq!(rig.json("/server_info")["state"], "DRAINING");
    assert_eq!(rig.ask("POST", "/healthcheck/ok").0, 200);
    assert_eq!(ready().0, 200);
    rig.phase.enter(Phase::Draining);
    assert_eq!(ready().0, 503);
}

#[test]
fn who_the_server_is() {
    let rig = rig(None);
    let info = rig.json("/server_info");
    assert!(info["version"].as_str().unwrap().contains("/1.35.6/"), "{info}");
    assert_eq!(info["command_line_options"]["mode"], "Serve");
    assert_eq!(info["node"]["id"], "web-1");
    assert_eq!(rig.json("/attache/source")["ready"], true);
    assert_ne!(rig.json("/memory")["total_physical_bytes"], "0");
}

#[test]
fn a_snapshot_in_envoys_words() {
    let rig = rig(None);
    rig.publisher.publish(Arc::new(snapshot()));
    let dump = rig.json("/config_dump");
    let listener = &dump["configs"][1]["dynamic_listeners"][0];
    assert_eq!(
        listener,
        &json!({ "name": "public_listener:127.0.0.1:21003", "active_state": { "listener": {
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "public_listener:127.0.0.1:21003",
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": 21003 } },
            "filter_chains": [{ "filters": [
                { "name": "envoy.filters.network.rbac", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
                    "rules": { "action": "ALLOW" }, "stat_prefix": "connect_authz" } },
                { "name": "envoy.filters.network.tcp_proxy", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "public_listener", "cluster": "local_app" } },
            ] }],
            "traffic_direction": "INBOUND",
        } } })
    );
    let cluster = &dump["configs"][0]["dynamic_active_clusters"][0]["cluster"];
    assert_eq!(
        (&cluster["name"], &cluster["type"]),
        (&json!("local_app"), &json!("EDS"))
    );
    assert_eq!(
        rig.ask("GET", "/listeners").1,
        "public_listener:127.0.0.1:21003::127.0.0.1:21003\n"
    );
    let statuses = rig.json("/listeners?format=json");
    assert_eq!(
        statuses["listener_statuses"][0]["local_address"]["socket_address"]["port_value"],
        21003
    );
    assert_eq!(
        rig.json("/clusters?format=json")["cluster_statuses"][0]["added_via_api"],
        true
    );
    assert_eq!(rig.ask("GET", "/config_dump?resource=nothing").0, 404);
    assert_eq!(rig.ask("GET", "/config_dump?name_regex=(").0, 400);
}

#[test]
fn a_sources_own_resources_come_first() {
    let resource = Resource {
        name: "local_app".to_owned(),
        state: ResourceState::Static,
        version_info: String::new(),
        last_updated: Some(SystemTime::UNIX_EPOCH),
        value: json!({ "name": "local_app" }),
        error: None,
    };
    let rig = rig(Some(ConfigDump {
        clusters: vec![resource],
        ..ConfigDump::default()
    }));
    rig.publisher.publish(Arc::new(snapshot()));
    let dump = rig.json("/config_dump");
    assert_eq!(
        dump["configs"][0]["static_clusters"][0]["cluster"]["name"],
        "local_app"
    );
    assert!(dump["configs"][1].get("dynamic_listeners").is_none(), "{dump}");
    // What the bootstrap has was not added via an API.
    let clusters = rig.json("/clusters?format=json");
    assert!(
        clusters["cluster_statuses"][0].get("added_via_api").is_none(),
        "{clusters}"
    );
}

#[test]
fn gauges_of_the_server_are_fresh_in_each_scrape() {
    let rig = rig(None);
    rig.phase.enter(Phase::Live);
    let page = rig
        .ask(
            "GET",
            "/stats?filter=^server\\.(live|concurrency|memory_physical_size)$",
        )
        .1;
    let lines: Vec<&str> = page.lines().collect();
    assert_eq!(lines.len(), 3, "{page}");
    assert!(!lines[2].ends_with(" 0"), "{page}");
    let prometheus = rig.ask("GET", "/stats/prometheus?filter=server.live&usedonly").1;
    assert!(
        prometheus.starts_with("# TYPE envoy_server_live gauge\n"),
        "{prometheus}"
    );
    assert_eq!(rig.ask("GET", "/stats?filter=(").0, 400);
}
