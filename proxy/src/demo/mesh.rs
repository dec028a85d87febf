//! The demo's two services at Consul, real or stand-in, by HTTP alone: registering them, the one
//! intention between them, their certificates, and leaving Consul as it was found.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::client::{Answer, ClientError, Consul};
use super::standin::{Action, Registration, Sidecar};
use super::{DASHBOARD, DemoError};

/// The called service.
pub(super) const API: &str = "count-api";

/// Marks registrations as the demo's own, so that those a killed demo left may be taken over.
const MARK: &str = "attache-demo";

/// One of the two services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) service: &'static str,
    pub(super) id: &'static str,
}

/// The service that is called.
pub(super) const API_MEMBER: Member = Member {
    service: API,
    id: "count-api-1",
};

/// The service that calls.
pub(super) const DASHBOARD_MEMBER: Member = Member {
    service: DASHBOARD,
    id: "count-dashboard-1",
};

/// Where everything listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) dashboard: u16,
    pub(super) upstream: u16,
    pub(super) api_public: u16,
    pub(super) dashboard_public: u16,
}

/// The demo's part of a Consul.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    consul: Consul,
    /// The intentions of count-api before the demo came.
    before: Option<Value>,
}

impl Mesh {
    /// Asks Consul what is there already, and changes nothing.
    pub(super) async fn find(consul: Consul) -> Result<Self, DemoError> {
        let asked = consul.get("/v1/status/leader").await.and_then(Answer::success);
        asked.map_err(|error| failed(&consul, "asking for the leader", error))?;
        for member in [API_MEMBER, DASHBOARD_MEMBER] {
            let path = format!("/v1/agent/service/{}", member.id);
            let answer = consul.get(&path).await;
            let answer = answer.map_err(|error| failed(&consul, "looking for services", error))?;
            let known = answer.json().ok();
            if known.is_some_and(|service| service["Meta"].get(MARK).is_none()) {
                return Err(DemoError::Registered {
                    id: member.id.to_owned(),
                    consul: consul.host().to_owned(),
                });
            }
        }
        let mut mesh = Self { consul, before: None };
        mesh.before = mesh.intentions().await?;
        Ok(mesh)
    }

    /// Registers both services with their sidecars, on loopback only.
    pub(super) async fn register(&self, ports: &Ports) -> Result<(), DemoError> {
        let api = sidecar(ports.api_public, API_MEMBER);
        let dashboard = sidecar(ports.dashboard_public, DASHBOARD_MEMBER).upstream(API, ports.upstream);
        for (member, port, sidecar) in [
            (API_MEMBER, ports.api, api),
            (DASHBOARD_MEMBER, ports.dashboard, dashboard),
        ] {
            let registration = Registration::new(member.service, port)
                .id(member.id)
                .address(&Ipv4Addr::LOCALHOST.to_string())
                .meta(json!({ MARK: "true" }))
                .sidecar(sidecar);
            let path = "/v1/agent/service/register";
            self.change("PUT", path, &registration.to_json(), "registering the services")
                .await?;
        }
        Ok(())
    }

    /// Sets the intention count-dashboard → count-api, and leaves other callers' alone.
    pub(super) async fn set_intention(&self, action: Action) -> Result<(), DemoError> {
        let mut sources: Vec<Value> = self
            .intentions()
            .await?
            .and_then(|entry| entry["Sources"].as_array().cloned())
            .unwrap_or_default();
        sources.retain(|source| source["Name"] != DASHBOARD || source.get("Peer").is_some());
        sources.push(json!({ "Name": DASHBOARD, "Action": action.as_str() }));
        let entry = json!({ "Kind": "service-intentions", "Name": API, "Sources": sources });
        self.change("PUT", "/v1/config", &entry, "setting the intention")
            .await
    }

    async fn intentions(&self) -> Result<Option<Value>, DemoError> {
        let path = format!("/v1/config/service-intentions/{API}");
        let answer = match self.consul.get(&path).await {
            Ok(answer) if answer.status == 404 => return Ok(None),
            Ok(answer) => answer.json(),
            Err(error) => Err(error),
        };
        let entry = answer.map_err(|error| failed(&self.consul, "reading the intention", error))?;
        Ok(Some(entry))
    }

    /// What Consul itself says about a connection from count-dashboard to count-api:
    /// `{"Authorized": …, "Reason": …}`.
    pub(super) async fn verdict(&self, caller: &str) -> Result<Value, ClientError> {
        let body = json!({ "Target": API, "ClientCertURI": caller, "ClientCertSerial": "" });
        let path = "/v1/agent/connect/authorize";
        self.consul.send("POST", path, &body).await?.json()
    }

    /// A service's SPIFFE ID and the validity of its certificate. The key in the answer is dropped
    /// here.
    pub(super) async fn identity(&self, service: &str) -> Result<Value, ClientError> {
        let path = format!("/v1/agent/connect/ca/leaf/{service}");
        let leaf = self.consul.get(&path).await?.json()?;
        Ok(json!({
            "service": service,
            "uri": leaf["ServiceURI"],
            "serial": leaf["SerialNumber"],
            "valid_after": leaf["ValidAfter"],
            "valid_before": leaf["ValidBefore"],
        }))
    }

    /// Deregisters both services and puts the intention back; goes on where a step fails, and
    /// gives the first failure.
    pub(super) async fn restore(&self) -> Result<(), DemoError> {
        let mut outcome = Ok(());
        for member in [DASHBOARD_MEMBER, API_MEMBER] {
            let path = format!("/v1/agent/service/deregister/{}", member.id);
            let gone = self.consul.send("PUT", &path, &Value::Null).await;
            let gone = match gone {
                // Stopped before it was registered.
                Ok(answer) if answer.status == 404 => Ok(answer),
                other => other.and_then(Answer::success),
            };
            let gone = gone.map_err(|error| failed(&self.consul, "deregistering", error));
            outcome = outcome.and(gone.map(|_| ()));
        }
        let intention = match &self.before {
            Some(entry) => {
                self.change("PUT", "/v1/config", entry, "restoring the intention")
                    .await
            }
            None => {
                let path = format!("/v1/config/service-intentions/{API}");
                self.change("DELETE", &path, &Value::Null, "removing the intention")
                    .await
            }
        };
        outcome.and(intention)
    }

    async fn change(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        doing: &'static str,
    ) -> Result<(), DemoError> {
        let answer = self.consul.send(method, path, body).await;
        match answer.and_then(Answer::success) {
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&self.consul, doing, error)),
        }
    }
}

/// The alias check makes the sidecar healthy with its service: Consul's default check would leave
/// it critical for up to ten seconds.
fn sidecar(port: u16, member: Member) -> Sidecar {
    let check = json!({ "Name": "follows the service", "AliasService": member.id });
    Sidecar::new()
        .port(port)
        .field("Checks", json!([check]))
        .config(json!({ "bind_address": Ipv4Addr::LOCALHOST.to_string() }))
}

fn failed(consul: &Consul, doing: &'static str, error: ClientError) -> DemoError {
    DemoError::Consul {
        doing,
        consul: consul.host().to_owned(),
        error,
    }
}
