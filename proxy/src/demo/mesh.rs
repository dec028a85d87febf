//! The demo's two services at Consul, real or stand-in, by HTTP alone: registering them, the one
//! intention between them, their certificates, and leaving Consul as it was found.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::client::{Answer, ClientError, Consul};
use super::owner::{Owner, Pulse, unmarked};
use super::standin::{Action, Registration, Sidecar};
use super::{DASHBOARD, DemoError, local};

/// The called service.
pub(super) const API: &str = "count-api";

/// A sidecar on this machine accepts at once.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// How often a change of the intention that lost against another's is tried anew.
const TRIES: usize = 4;

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
    owner: Owner,
    /// The intentions of count-api that a killed demo left.
    found: Option<Value>,
}

impl Mesh {
    /// Asks Consul what is there already, and changes nothing. What is somebody else's is a reason
    /// not to start, and so is another demo.
    pub(super) async fn find(
        consul: Consul,
        owner: Owner,
        who_holds: fn(SocketAddr) -> Option<String>,
    ) -> Result<Self, DemoError> {
        let asked = consul.get("/v1/status/leader").await.and_then(Answer::success);
        asked.map_err(|error| failed(&consul, "asking for the leader", error))?;
        let mut mesh = Self {
            consul,
            owner,
            found: None,
        };
        let mut owners = Vec::new();
        let mut ports = Vec::new();
        for member in [API_MEMBER, DASHBOARD_MEMBER] {
            let Some(service) = mesh.registered(member.id).await? else {
                continue;
            };
            owners.push(Owner::of(&service["Meta"]).ok_or_else(|| DemoError::Registered {
                id: member.id.to_owned(),
                consul: mesh.consul.host().to_owned(),
            })?);
            let sidecar = mesh.registered(&format!("{}-sidecar-proxy", member.id)).await?;
            let port = sidecar.and_then(|it| it["Port"].as_u64());
            let port = port.and_then(|port| u16::try_from(port).ok());
            ports.extend(port.map(|port| (member, port)));
        }
        for member in [API_MEMBER, DASHBOARD_MEMBER] {
            mesh.has_no_other_instance(member).await?;
        }
        mesh.found = mesh.intentions().await?;
        if let Some(entry) = &mesh.found {
            let owner = Owner::of(&entry["Meta"]);
            owners.push(owner.ok_or_else(|| mesh.not_ours(entry))?);
        }
        mesh.alone(&owners, &ports, who_holds).await?;
        Ok(mesh)
    }

    /// Whether no other demo is at work: none whose process or whose sidecars are there.
    async fn alone(
        &self,
        owners: &[Owner],
        ports: &[(Member, u16)],
        who_holds: fn(SocketAddr) -> Option<String>,
    ) -> Result<(), DemoError> {
        if let Some(alive) = owners.iter().find(|it| it.pulse() == Pulse::Alive) {
            let pid = alive.pid();
            return Err(self.another(format!("pid {pid}"), format!("end it first (kill {pid})")));
        }
        for &(member, port) in ports {
            let address = local(port);
            let answer = tokio::time::timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await;
            if matches!(answer, Ok(Ok(_))) {
                let holder = who_holds(address);
                let holder = holder
                    .as_deref()
                    .unwrap_or("a process of another user or container");
                return Err(self.another(
                    format!("at the port {port} of its sidecar answers {holder}"),
                    format!(
                        "end it first (if it is something else: consul services deregister -id={})",
                        member.id
                    ),
                ));
            }
        }
        Ok(())
    }

    fn another(&self, what: String, advice: String) -> DemoError {
        DemoError::AnotherDemo {
            consul: self.consul.host().to_owned(),
            what,
            advice,
        }
    }

    fn not_ours(&self, entry: &Value) -> DemoError {
        let sources = sources(entry);
        let names = sources.iter().map(|source| {
            let name = source["Name"].as_str().unwrap_or("?");
            let action = source["Action"].as_str().unwrap_or("by permissions");
            format!("{name} -> {API}: {action}")
        });
        DemoError::Intentions {
            names: names.collect::<Vec<_>>().join(", "),
            consul: self.consul.host().to_owned(),
        }
    }

    async fn registered(&self, id: &str) -> Result<Option<Value>, DemoError> {
        let answer = self.consul.get(&format!("/v1/agent/service/{id}")).await;
        let answer = match answer {
            Ok(answer) if answer.status == 404 => return Ok(None),
            Ok(answer) => answer.json(),
            Err(error) => Err(error),
        };
        let service = answer.map_err(|error| failed(&self.consul, "looking for services", error))?;
        Ok(Some(service))
    }

    /// A service of that name which somebody else has, on whatever agent, would share its requests with the demo's.
    async fn has_no_other_instance(&self, member: Member) -> Result<(), DemoError> {
        let path = format!("/v1/health/connect/{}", member.service);
        let answer = self.consul.get(&path).await.and_then(|answer| answer.json());
        let sidecars = answer.map_err(|error| failed(&self.consul, "looking for services", error))?;
        let ours = format!("{}-sidecar-proxy", member.id);
        let ids = sidecars
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| &it["Service"]["ID"]);
        match ids.filter_map(Value::as_str).find(|id| *id != ours) {
            None => Ok(()),
            Some(other) => Err(DemoError::Shared {
                service: member.service,
                id: other.to_owned(),
                consul: self.consul.host().to_owned(),
            }),
        }
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
                .meta(self.owner.meta())
                .sidecar(sidecar);
            let path = "/v1/agent/service/register";
            self.change("PUT", path, &registration.to_json(), "registering the services")
                .await?;
        }
        Ok(())
    }

    /// Makes the intention, allowing, as the demo's own; before anything else is changed, for of
    /// two demos that start at once only one can.
    pub(super) async fn claim(&self) -> Result<(), DemoError> {
        if self.put_intention(self.found.as_ref(), Action::Allow).await? {
            return Ok(());
        }
        let what = "it started at the same moment".to_owned();
        Err(self.another(what, "end it first".to_owned()))
    }

    /// Sets the intention count-dashboard → count-api, and leaves other callers' alone.
    pub(super) async fn set_intention(&self, action: Action) -> Result<(), DemoError> {
        for _ in 0..TRIES {
            let entry = self.intentions().await?;
            if let Some(entry) = entry.as_ref().filter(|entry| !self.owns(entry)) {
                return Err(self.not_ours(entry));
            }
            if self.put_intention(entry.as_ref(), action).await? {
                return Ok(());
            }
        }
        Err(self.contended("setting the intention"))
    }

    /// Writes the entry with one source changed, if nobody wrote it in between: says whether.
    async fn put_intention(&self, entry: Option<&Value>, action: Action) -> Result<bool, DemoError> {
        let mut sources = entry.map(others).unwrap_or_default();
        sources.push(json!({ "Name": DASHBOARD, "Action": action.as_str() }));
        let mut meta = entry.map(|entry| unmarked(&entry["Meta"])).unwrap_or_default();
        if let Value::Object(mark) = self.owner.meta() {
            meta.extend(mark);
        }
        let body = json!({ "Kind": "service-intentions", "Name": API, "Sources": sources, "Meta": meta });
        let path = format!("/v1/config?cas={}", index(entry));
        self.change("PUT", &path, &body, "setting the intention").await
    }

    /// Removes what the demo made of the intentions; others' that came meanwhile stay.
    async fn remove_intention(&self) -> Result<(), DemoError> {
        let doing = "removing the intention";
        for _ in 0..TRIES {
            let entry = self.intentions().await?;
            let Some(entry) = entry.filter(|entry| self.owns(entry)) else {
                return Ok(());
            };
            let cas = index(Some(&entry));
            let others = others(&entry);
            let removed = if others.is_empty() {
                let path = format!("/v1/config/service-intentions/{API}?cas={cas}");
                self.change("DELETE", &path, &Value::Null, doing).await?
            } else {
                let body = json!({
                    "Kind": "service-intentions",
                    "Name": API,
                    "Sources": others,
                    "Meta": unmarked(&entry["Meta"]),
                });
                let path = format!("/v1/config?cas={cas}");
                self.change("PUT", &path, &body, doing).await?
            };
            if removed {
                return Ok(());
            }
        }
        Err(self.contended(doing))
    }

    fn owns(&self, marked: &Value) -> bool {
        Owner::of(&marked["Meta"]).as_ref() == Some(&self.owner)
    }

    fn contended(&self, doing: &'static str) -> DemoError {
        let text = "somebody else changes it all the time".to_owned();
        failed(&self.consul, doing, ClientError::Status { status: 409, text })
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

    /// Deregisters both services and removes the intention, as far as they are this demo's; goes on
    /// where a step fails, and gives the first failure.
    pub(super) async fn restore(&self) -> Result<(), DemoError> {
        let mut outcome = Ok(());
        for member in [DASHBOARD_MEMBER, API_MEMBER] {
            outcome = outcome.and(self.deregister(member).await);
        }
        outcome.and(self.remove_intention().await)
    }

    async fn deregister(&self, member: Member) -> Result<(), DemoError> {
        let registered = self.registered(member.id).await?;
        // Stopped before it was registered, or somebody else's by now.
        if !registered.is_some_and(|service| self.owns(&service)) {
            return Ok(());
        }
        let path = format!("/v1/agent/service/deregister/{}", member.id);
        let gone = self.change("PUT", &path, &Value::Null, "deregistering");
        gone.await.map(|_| ())
    }

    /// Says whether it was done: not if `cas` was given and somebody else was faster.
    async fn change(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        doing: &'static str,
    ) -> Result<bool, DemoError> {
        let answer = self.consul.send(method, path, body).await;
        match answer.and_then(Answer::success) {
            Ok(answer) => Ok(answer.body.trim_ascii() != b"false"),
            Err(error) => Err(failed(&self.consul, doing, error)),
        }
    }
}

fn sources(entry: &Value) -> Vec<Value> {
    entry["Sources"].as_array().cloned().unwrap_or_default()
}

/// The sources that are not the demo's.
fn others(entry: &Value) -> Vec<Value> {
    let mut sources = sources(entry);
    sources.retain(|source| source["Name"] != DASHBOARD || source.get("Peer").is_some());
    sources
}

/// For Consul's check-and-set: 0 stands for what is not there.
fn index(entry: Option<&Value>) -> u64 {
    let index = entry.and_then(|entry| entry["ModifyIndex"].as_u64());
    index.unwrap_or_default()
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
