//! count-dashboard: the page, and the few endpoints behind it. It reaches count-api only through
//! its sidecar's port, on a fresh connection each time, as an application does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::DASHBOARD;
use super::client::{Answer, ClientError, fetch};
use super::live::Live;
use super::mesh::{API, Mesh};
use super::serve::{self, json_response, response};
use super::standin::Action;

const PAGE: &str = include_str!("page.html");

/// A denied connection fails within milliseconds; this is for a sidecar that hangs, and below the
/// second in which the page shall show it.
const COUNT_LIMIT: Duration = Duration::from_millis(700);
const MAX_BODY_BYTES: usize = 1_024;

/// What the dashboard works with.
#[derive(Debug)]
pub(super) struct Dashboard {
    /// The sidecar's port for count-api.
    pub(super) upstream: SocketAddr,
    pub(super) mesh: Mesh,
    pub(super) live: watch::Receiver<Live>,
    /// The port of this server, which a request must name as its host.
    pub(super) port: u16,
    /// Consul's address, for the page to show.
    pub(super) consul: String,
    /// Takes a line for the terminal.
    pub(super) say: fn(&str),
    /// The last count that was seen, for a page that is loaded while none comes.
    pub(super) last: watch::Sender<Option<u64>>,
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, dashboard: Dashboard) {
    let dashboard = Arc::new(dashboard);
    let service = service_fn(move |request| {
        let dashboard = Arc::clone(&dashboard);
        async move { Ok::<_, Infallible>(dashboard.answer(request).await) }
    });
    serve::connections(listener, service).await;
}

impl Dashboard {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if let Err((status, error)) = self.is_meant(&request) {
            return json_response(status, &json!({ "error": error }));
        }
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/") => response(200, "text/html; charset=utf-8", PAGE),
            ("GET", "/count") => self.count().await,
            ("GET", "/status") => json_response(200, &self.status().await),
            ("POST", "/intention") => self.set_intention(request).await,
            _ => json_response(404, &json!({ "error": "not found" })),
        }
    }

    /// Other sites' pages must not move the switch: neither by a name that they point here, nor by
    /// a form, which cannot be of type JSON.
    fn is_meant(&self, request: &Request<Incoming>) -> Result<(), (u16, &'static str)> {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.and_then(|value| value.to_str().ok())
        };
        let here = ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|host| header("host") == Some(&format!("{host}:{}", self.port)));
        let json = header("content-type").is_some_and(|it| it.starts_with("application/json"));
        if !here {
            return Err((403, "this page is for this machine only"));
        }
        if request.method() == "POST" && !json {
            return Err((415, "a POST needs the header content-type: application/json"));
        }
        Ok(())
    }

    async fn count(&self) -> Response<Full<Bytes>> {
        let got = fetch(self.upstream, "/", COUNT_LIMIT).await;
        match got
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|answer| answer.json().map_err(|error| error.to_string()))
        {
            Ok(body) => {
                self.last.send_replace(body["count"].as_u64());
                let body = json!({ "ok": true, "count": body["count"], "hostname": body["hostname"] });
                json_response(200, &body)
            }
            Err(saw) => {
                let (authorized, reason) = self.verdict().await;
                let body = json!({
                    "ok": false, "saw": saw, "authorized": authorized, "reason": reason,
                    "last_count": *self.last.borrow(),
                });
                json_response(502, &body)
            }
        }
    }

    /// Whether Consul lets count-dashboard in, with its reason.
    async fn verdict(&self) -> (Option<bool>, String) {
        let asked = async {
            let identity = self.mesh.identity(DASHBOARD).await?;
            let caller = identity["uri"].as_str().unwrap_or_default();
            self.mesh.verdict(caller).await
        };
        match asked.await {
            Ok(verdict) => {
                let reason = verdict["Reason"].as_str().unwrap_or_default();
                (verdict["Authorized"].as_bool(), reason.to_owned())
            }
            Err(error) => (None, format!("Consul does not say: {error}")),
        }
    }

    async fn status(&self) -> Value {
        let mut identities = Vec::new();
        for service in [DASHBOARD, API] {
            let identity = self.mesh.identity(service).await;
            identities.push(
                identity.unwrap_or_else(|error| json!({ "service": service, "error": error.to_string() })),
            );
        }
        let (authorized, reason) = self.verdict().await;
        json!({
            "consul": self.consul,
            "upstream": self.upstream.to_string(),
            "authorized": authorized,
            "reason": reason,
            "identities": identities,
            "live": self.live.borrow().to_json(),
        })
    }

    async fn set_intention(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await;
        let body: Value = body
            .ok()
            .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok())
            .unwrap_or_default();
        let action = match body["action"].as_str() {
            Some("allow") => Action::Allow,
            Some("deny") => Action::Deny,
            _ => return json_response(400, &json!({ "error": "action must be allow or deny" })),
        };
        match self.mesh.set_intention(action).await {
            Ok(()) => {
                let action = action.as_str();
                (self.say)(&format!("switched: intention {DASHBOARD} -> {API}: {action}"));
                json_response(200, &json!({ "action": action }))
            }
            Err(error) => json_response(502, &json!({ "error": error.to_string() })),
        }
    }
}

/// Whether the way to count-api works; for the demo's start.
pub(super) async fn probe(upstream: SocketAddr) -> Result<(), ClientError> {
    let answer = fetch(upstream, super::api::UNCOUNTED_PATH, COUNT_LIMIT).await;
    answer.and_then(Answer::success).map(|_| ())
}
