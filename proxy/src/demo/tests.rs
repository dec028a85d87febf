//! The demo's services at the stand-in, and the sidecar processes with programs that are none. The
//! dashboard's upstream port is count-api's own here: what lies between is tested elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::Consul;
use super::dashboard::{self, Dashboard};
use super::live::{self, Live};
use super::mesh::{API_MEMBER, Mesh, Ports};
use super::owner::Owner;
use super::standin::{Action, Registration, StandIn, StandInOptions};
use super::{DemoError, DemoOptions, api, run_until};

struct Scene {
    standin: StandIn,
    page: Consul,
    api: SocketAddr,
    _tasks: JoinSet<()>,
    api_task: tokio::task::AbortHandle,
    mesh: Mesh,
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn find(consul: &Consul, owner: Owner) -> Result<Mesh, DemoError> {
    Mesh::find(consul.clone(), owner, |_| None).await
}

async fn scene() -> Scene {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let mesh = find(&consul, Owner::this()).await.unwrap();
    mesh.claim().await.unwrap();
    mesh.register(&PORTS).await.unwrap();
    let (api_listener, page_listener) = (listener().await, listener().await);
    let api = api_listener.local_addr().unwrap();
    let page = page_listener.local_addr().unwrap();
    let (sender, live) = watch::channel(Live::default());
    let served = Dashboard {
        upstream: api,
        mesh: mesh.clone(),
        live,
        port: page.port(),
        consul: "stand-in".to_owned(),
        say: |_| {},
        last: watch::Sender::default(),
    };
    let mut tasks = JoinSet::new();
    let api_task = tasks.spawn(api::serve(api_listener));
    tasks.spawn(dashboard::serve(page_listener, served));
    tasks.spawn(async move { match live::keep(api, sender).await {} });
    Scene {
        standin,
        page: Consul::new(&page.to_string(), None).unwrap(),
        api,
        _tasks: tasks,
        api_task,
        mesh,
    }
}

const PORTS: Ports = Ports {
    api: 9001,
    dashboard: 9002,
    upstream: 8080,
    api_public: 21_000,
    dashboard_public: 21_001,
};

impl Scene {
    async fn json(&self, path: &str) -> (u16, Value) {
        let answer = self.page.get(path).await.unwrap();
        let body = serde_json::from_slice(&answer.body).unwrap();
        (answer.status, body)
    }

    async fn until_live(&self, state: &str) -> Value {
        loop {
            let live = self.json("/status").await.1["live"].take();
            if live["state"] == state {
                return live;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn the_dashboard_counts_and_names_both_identities() {
    let scene = scene().await;
    let first = scene.json("/count").await;
    let second = scene.json("/count").await;
    assert_eq!((first.0, first.1["count"].as_u64()), (200, Some(1)));
    assert_eq!(second.1["count"].as_u64(), Some(2));
    let status = scene.json("/status").await.1;
    for (place, service) in ["count-dashboard", "count-api"].into_iter().enumerate() {
        let identity = &status["identities"][place];
        assert_eq!(identity["uri"], json!(scene.standin.service_uri(service)));
        assert!(identity["valid_before"].is_string());
    }
    assert!(!status.to_string().contains("PRIVATE KEY"));
    assert_eq!(status["authorized"], json!(true));
    let page = scene.page.get("/").await.unwrap();
    assert!(
        page.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
}

#[tokio::test]
async fn the_switch_changes_one_source_and_keeps_the_others() {
    let scene = scene().await;
    scene.standin.set_intention("admin", "count-api", Action::Allow);
    let deny = json!({ "action": "deny" });
    let answer = scene.page.send("POST", "/intention", &deny).await.unwrap();
    // The client of these tests sends no content type, as another site's form would not.
    assert_eq!(answer.status, 415);
    assert!(String::from_utf8_lossy(&answer.body).contains("content-type: application/json"));
    scene.mesh.set_intention(Action::Deny).await.unwrap();
    let status = scene.json("/status").await.1;
    assert_eq!(status["authorized"], json!(false));
    assert!(status["reason"].as_str().unwrap().contains("Action: DENY"));
    let path = "/v1/config/service-intentions/count-api";
    let consul = Consul::new(&scene.standin.address().to_string(), None).unwrap();
    let entry = consul.get(path).await.unwrap().json().unwrap();
    let sources = entry["Sources"].as_array().unwrap();
    let names: Vec<_> = sources.iter().map(|it| it["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["admin", "count-dashboard"]);
}

#[tokio::test]
async fn a_failed_request_tells_what_it_saw_and_why() {
    let scene = scene().await;
    scene.json("/count").await;
    scene.mesh.set_intention(Action::Deny).await.unwrap();
    scene.until_live("open").await;
    scene.api_task.abort();
    let cut = scene.until_live("cut").await;
    assert!(
        cut["last_cut"]["why"].as_str().unwrap().contains("closed"),
        "{cut}"
    );
    let (status, body) = scene.json("/count").await;
    assert_eq!(status, 502);
    assert_eq!(body["last_count"], 1);
    assert!(body["saw"].as_str().unwrap().contains("refused"), "{body}");
    assert!(
        body["reason"].as_str().unwrap().contains("Precedence: 9"),
        "{body}"
    );
    assert!(TcpListener::bind(scene.api).await.is_ok());
}

/// A process that is none of a demo's, but may stand for one.
struct Other(std::process::Child);

impl Other {
    fn start() -> Self {
        Self(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn owner(&self) -> Owner {
        Owner::process(self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn consul_is_left_as_it_was_found() {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let mesh = find(&consul, Owner::this()).await.unwrap();
    mesh.claim().await.unwrap();
    mesh.register(&PORTS).await.unwrap();
    mesh.set_intention(Action::Deny).await.unwrap();
    let path = "/v1/agent/service/count-dashboard-1-sidecar-proxy";
    let proxy = consul.get(path).await.unwrap().json().unwrap();
    assert_eq!(proxy["Proxy"]["Upstreams"][0]["LocalBindPort"], 8080);
    mesh.restore().await.unwrap();
    let services = consul.get("/v1/agent/services").await.unwrap();
    assert_eq!(services.json().unwrap(), json!({}));
    assert_eq!(consul.get(INTENTIONS).await.unwrap().status, 404);
    let foreign = Registration::new("count-api", 1).id(API_MEMBER.id);
    standin.register(&foreign).unwrap();
    let refused = find(&consul, Owner::this()).await.unwrap_err();
    assert!(matches!(refused, DemoError::Registered { .. }), "{refused}");
}

#[tokio::test]
async fn somebody_elses_instance_of_a_service_is_left_alone() {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let theirs = Registration::new("count-dashboard", 1)
        .id("_nomad-task-1-count-dashboard")
        .sidecar(crate::demo::standin::Sidecar::new().port(2));
    standin.register(&theirs).unwrap();
    let refused = find(&consul, Owner::this()).await.unwrap_err().to_string();
    for part in [
        "a service count-dashboard",
        "_nomad-task-1-count-dashboard-sidecar-proxy",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
}

const INTENTIONS: &str = "/v1/config/service-intentions/count-api";

#[tokio::test]
async fn somebody_elses_intentions_are_left_alone() {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    standin.set_intention("count-dashboard", "count-api", Action::Deny);
    let refused = find(&consul, Owner::this()).await.unwrap_err().to_string();
    for part in ["count-dashboard -> count-api: deny", "consul config delete"] {
        assert!(refused.contains(part), "{refused}");
    }
    // And those that come in the place of the demo's while it runs.
    consul.send("DELETE", INTENTIONS, &Value::Null).await.unwrap();
    let mesh = find(&consul, Owner::this()).await.unwrap();
    mesh.claim().await.unwrap();
    consul.send("DELETE", INTENTIONS, &Value::Null).await.unwrap();
    standin.set_intention("count-dashboard", "count-api", Action::Deny);
    let refused = mesh.set_intention(Action::Allow).await.unwrap_err();
    assert!(matches!(refused, DemoError::Intentions { .. }), "{refused}");
    mesh.restore().await.unwrap();
    let left = consul.get(INTENTIONS).await.unwrap().json().unwrap();
    assert_eq!(left["Sources"][0]["Action"], "deny");
}

#[tokio::test]
async fn a_running_demo_is_left_alone_and_a_killed_one_taken_over() {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let other = Other::start();
    let first = find(&consul, other.owner()).await.unwrap();
    let late = find(&consul, Owner::this()).await.unwrap();
    first.claim().await.unwrap();
    // Both looked before either had begun.
    let refused = late.claim().await.unwrap_err();
    assert!(matches!(refused, DemoError::AnotherDemo { .. }), "{refused}");
    let sidecar = listener().await;
    let ports = Ports {
        api_public: sidecar.local_addr().unwrap().port(),
        dashboard_public: 1,
        ..PORTS
    };
    first.register(&ports).await.unwrap();
    late.restore().await.unwrap();
    let refused = find(&consul, Owner::this()).await.unwrap_err().to_string();
    let pid = format!(
        "another demo runs on this agent, Consul {} (pid {})",
        consul.host(),
        other.0.id()
    );
    assert!(refused.contains(&pid), "{refused}");

    drop(other);
    let refused = find(&consul, Owner::this()).await.unwrap_err().to_string();
    assert!(refused.contains("of its sidecar answers"), "{refused}");
    drop(sidecar);
    let second = find(&consul, Owner::this()).await.unwrap();
    second.claim().await.unwrap();
    second.register(&PORTS).await.unwrap();
    first.restore().await.unwrap();
    assert!(
        second
            .verdict(&standin.service_uri("count-dashboard"))
            .await
            .unwrap()["Authorized"]
            == true
    );
    second.restore().await.unwrap();
    assert_eq!(consul.get(INTENTIONS).await.unwrap().status, 404);
    let services = consul.get("/v1/agent/services").await.unwrap();
    assert_eq!(services.json().unwrap(), json!({}));
}

#[tokio::test]
async fn intentions_that_came_meanwhile_stay() {
    let standin = StandIn::start(StandInOptions::default()).await.unwrap();
    let consul = Consul::new(&standin.address().to_string(), None).unwrap();
    let mesh = find(&consul, Owner::this()).await.unwrap();
    mesh.claim().await.unwrap();
    standin.set_intention("admin", "count-api", Action::Allow);
    mesh.restore().await.unwrap();
    let left = consul.get(INTENTIONS).await.unwrap().json().unwrap();
    assert_eq!(left["Sources"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&left["Sources"][0]["Name"], &left["Meta"]),
        (&json!("admin"), &json!({}))
    );
}

fn options(program: &str) -> DemoOptions {
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    DemoOptions {
        dashboard_port: free(),
        api_port: free(),
        upstream_port: free(),
        say: |_| {},
        ..DemoOptions::new(PathBuf::from(program))
    }
}

#[tokio::test]
async fn a_sidecar_that_ends_is_told_with_the_end_of_its_log() {
    // `ls` does not know `--sidecar-for`, says so and fails.
    let ended = run_until(options("/bin/ls"), std::future::pending()).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, DemoError::SidecarEnded { .. }), "{error}");
    assert!(error.to_string().contains("sidecar-for"), "{error}");
}

#[tokio::test]
async fn all_ports_that_are_taken_are_named_with_their_holders() {
    let mut options = options("/bin/true");
    let taken = listener().await;
    options.api_port = taken.local_addr().unwrap().port();
    let taken = (taken, listener().await);
    options.upstream_port = taken.1.local_addr().unwrap().port();
    options.who_holds = |_| Some("somebody (pid 7)".to_owned());
    let error = run_until(options, std::future::pending()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("taken by somebody (pid 7)"), "{text}");
    for option in ["--api-port", "--upstream-port"] {
        assert!(text.contains(option), "{text}");
    }
    assert!(!text.contains("--dashboard-port"), "{text}");
}

#[tokio::test]
async fn stopping_leaves_no_folder_behind() {
    let own = format!("attache-demo-{}-", std::process::id());
    let folders = || {
        let all = std::fs::read_dir(std::env::temp_dir()).unwrap();
        all.filter(|it| {
            let name = it.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with(&own)
        })
        .count()
    };
    let missing = run_until(options("/nonexistent/attache"), std::future::pending()).await;
    assert!(matches!(missing.unwrap_err(), DemoError::Spawn { .. }));
    let mut tries = 0;
    // Other tests of this process have folders of their own for a moment.
    while folders() > 0 {
        tries += 1;
        assert!(tries < 500, "a folder was left behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
