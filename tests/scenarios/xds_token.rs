//! The Consul token of a sidecar in Envoy's place, with ACLs on and default deny: replaced in the
//! bootstrap file or beside it while the old one is deleted, and wrong.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use attache_tests::agent::Agent;
use attache_tests::mesh::get;
use attache_tests::sidecar::{Service, Xds, start};
use attache_tests::{Folder, Load, Process, eventually, free_port};
use serde_json::json;
use tokio::net::TcpStream;

use crate::xds_mesh::{OURS, grpc, plain};

const MANAGEMENT: &str = "5f1f1c0e-6b0d-4a0e-9d51-0d6a6d1c7a04";
const WRONG: &str = "11111111-1111-1111-1111-111111111111";
const TAKEN: &str = "the new token or target is used from now on";

/// A Consul that denies by default, and an api with its sidecar, which web may call.
struct Strict {
    agent: Agent,
    xds: Xds,
    _api: Service,
    web: Service,
    _api_sidecar: Process,
    folder: Folder,
}

impl Strict {
    async fn start() -> Option<Self> {
        let (settings, xds) = grpc(json!({ "acl": {
            "enabled": true,
            "default_policy": "deny",
            "tokens": { "initial_management": MANAGEMENT, "agent": MANAGEMENT },
        }}));
        let agent = Agent::start(&["-dev"], settings, Some(MANAGEMENT.to_owned())).await?;
        eventually("the management token works", || async {
            let (status, _) = agent.ask("GET", "/v1/acl/token/self", None).await?;
            (status == 200).then_some(())
        })
        .await;
        agent.intentions("api", &[("web", "allow")]).await;
        let folder = Folder::new();
        let api = Service::registered(&agent, "api", 1, &[]).await;
        let web = Service::registered(&agent, "web", 1, &["api"]).await;
        let with_token = Xds {
            token: Some(token(&agent, "api").await.0),
            ..xds.clone()
        };
        let api_sidecar = api.sidecar(OURS, &agent, &with_token, &folder).await;
        api.ready(&api_sidecar).await;
        Some(Self {
            agent,
            xds,
            _api: api,
            web,
            _api_sidecar: api_sidecar,
            folder,
        })
    }

    /// The text of web's bootstrap with this token.
    async fn bootstrap(&self, token: &str) -> String {
        let xds = Xds {
            token: Some(MANAGEMENT.to_owned()),
            ..self.xds.clone()
        };
        let text = self.web.bootstrap(&self.agent, &xds).await;
        assert!(text.contains(MANAGEMENT), "{text}");
        text.replace(MANAGEMENT, token)
    }

    /// Consul takes a deleted token's stream away, and its absence is seen by what a change does then.
    async fn delete(&self, accessor: &str) {
        let path = format!("/v1/acl/token/{accessor}");
        self.agent.api("DELETE", &path, None).await;
    }

    /// An upstream that is added listens: the stream works.
    async fn changes_arrive(&mut self, name: &str) {
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        self.web.upstreams.insert(name.to_owned(), at);
        self.web.register(&self.agent, json!({})).await;
        eventually("the added upstream listens", || async {
            TcpStream::connect(at).await.ok()
        })
        .await;
    }
}

/// A token that may be what the service's sidecar is, and its accessor's ID.
async fn token(agent: &Agent, service: &str) -> (String, String) {
    let identity = json!({ "ServiceIdentities": [{ "ServiceName": service }] });
    let made = agent.api("PUT", "/v1/acl/token", Some(identity)).await;
    let of = |key: &str| made[key].as_str().unwrap().to_owned();
    (of("SecretID"), of("AccessorID"))
}

#[tokio::test]
async fn a_rewritten_bootstrap_gives_a_new_token_without_a_gap() {
    let Some(mut strict) = Strict::start().await else {
        return;
    };
    let (first, first_id) = token(&strict.agent, "web").await;
    let file = strict.folder.write("web.json", &strict.bootstrap(&first).await);
    let sidecar = start(OURS, &file, &[]);
    strict.web.ready(&sidecar).await;
    strict.web.hears("api", "api-1").await;
    let load = Load::start(strict.web.upstreams["api"], "api-1", 2, Duration::from_millis(10));

    // As Nomad does it, in place; half of it is no change.
    let (second, _) = token(&strict.agent, "web").await;
    let text = strict.bootstrap(&second).await;
    let (half, rest) = text.split_at(text.len() / 2);
    let mut open = std::fs::File::create(&file).unwrap();
    open.write_all(half.as_bytes()).unwrap();
    let cannot = "a changed file cannot be used; what it said before goes on";
    sidecar.says(&[cannot]).await;
    assert!(!sidecar.log().contains("trying it beside the old stream"));
    open.write_all(rest.as_bytes()).unwrap();
    drop(open);
    sidecar.says(&[TAKEN]).await;
    strict.delete(&first_id).await;
    strict.changes_arrive("second").await;
    let connected = metric(&strict.web, "envoy_control_plane_connected_state", "").await;
    assert_eq!(connected, Some(1.0));
    let figures = load.finish().await;
    let log = plain(&sidecar.log());
    assert!(
        figures.failures.is_empty(),
        "{:?}\n{log}",
        figures.failures.first()
    );
    assert!(!log.contains("no ADS stream"), "there was a gap:\n{log}");
    says_no_secret(&log, &[&first, &second]);
}

#[tokio::test]
async fn a_wrong_token_is_said_and_the_last_configuration_stays() {
    let Some(mut strict) = Strict::start().await else {
        return;
    };
    let (first, first_id) = token(&strict.agent, "web").await;
    let file = strict.folder.write("web.json", &strict.bootstrap(&first).await);
    let sidecar = start(OURS, &file, &[]);
    strict.web.ready(&sidecar).await;
    strict.web.hears("api", "api-1").await;

    std::fs::write(&file, strict.bootstrap(WRONG).await).unwrap();
    let said = sidecar
        .says(&["the new token or target does not work; the old stream goes on"])
        .await;
    assert!(said.contains("unauthenticated"), "{said}");
    let reason = "reason=\"unauthenticated\"";
    eventually("the failure is counted", || async {
        metric(&strict.web, "attache_xds_stream_failed_total", reason).await
    })
    .await;
    // The admin API says it, and the old stream goes on with the old token.
    let (_, source) = get(strict.web.admin, "/attache/source").await.unwrap();
    assert!(
        source.contains("ads with the new token") && source.contains("unauthenticated"),
        "{source}"
    );
    strict.changes_arrive("second").await;

    // Without the old token there is no stream, and what was known stays.
    strict.delete(&first_id).await;
    strict.web.hears("api", "api-1").await;
    let (second, _) = token(&strict.agent, "web").await;
    let before = sidecar.lines();
    std::fs::write(&file, strict.bootstrap(&second).await).unwrap();
    sidecar.says_after(before, &[TAKEN]).await;
    strict.changes_arrive("third").await;
    says_no_secret(&sidecar.log(), &[&first, &second, WRONG]);
}

#[tokio::test]
async fn a_wrong_token_at_the_start_waits_for_the_right_one() {
    let Some(strict) = Strict::start().await else {
        return;
    };
    let file = strict.folder.write("web.json", &strict.bootstrap(WRONG).await);
    let sidecar = start(OURS, &file, &[]);
    let words = ["no ADS stream; waiting for the first configuration"];
    let said = sidecar.says(&words).await;
    assert!(said.contains("unauthenticated") && said.contains("does not know the token"));
    let connected = metric(&strict.web, "envoy_control_plane_connected_state", "").await;
    assert_eq!(connected, Some(0.0));
    let (right, _) = token(&strict.agent, "web").await;
    std::fs::write(&file, strict.bootstrap(&right).await).unwrap();
    strict.web.ready(&sidecar).await;
    strict.web.hears("api", "api-1").await;
}

#[tokio::test]
async fn nomads_token_file_is_taken_when_it_changes() {
    for name in ["si_token", "consul_token"] {
        let Some(mut strict) = Strict::start().await else {
            return;
        };
        let (first, first_id) = token(&strict.agent, "web").await;
        std::fs::create_dir(strict.folder.path("secrets")).unwrap();
        let file = strict.folder.path("secrets/envoy_bootstrap.json");
        std::fs::write(file, strict.bootstrap(&first).await).unwrap();
        let token_file = strict.folder.path(&format!("secrets/{name}"));
        std::fs::write(&token_file, &first).unwrap();
        let environment = [
            ("NOMAD_SECRETS_DIR".to_owned(), strict.folder.file("secrets")),
            ("NOMAD_TASK_NAME".to_owned(), "connect-proxy-web".to_owned()),
        ];
        let sidecar = Process::start("web", crate::ATTACHE, &[], &environment);
        strict.web.ready(&sidecar).await;
        strict.web.hears("api", "api-1").await;
        let (second, _) = token(&strict.agent, "web").await;
        std::fs::write(&token_file, &second).unwrap();
        sidecar.says(&[TAKEN]).await;
        strict.delete(&first_id).await;
        strict.changes_arrive("second").await;
        let log = sidecar.log();
        assert!(!log.contains("no ADS stream"), "there was a gap:\n{log}");
        says_no_secret(&log, &[&first, &second]);
    }
}

fn says_no_secret(log: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(!log.contains(secret), "a token is in the log");
    }
}

/// The first series of a metric with this label.
async fn metric(service: &Service, name: &str, label: &str) -> Option<f64> {
    let (_, page) = get(service.admin, "/stats/prometheus").await?;
    let line = page
        .lines()
        .find(|line| line.starts_with(name) && line.contains(label))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
