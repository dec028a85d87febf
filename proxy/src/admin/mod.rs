//! The admin API on loopback, in Envoy's paths and formats.
//!
//! Reads snapshots, metrics and phases; changes nothing. Runs on the control thread, so a scrape costs
//! no connection anything.

pub mod certs;
pub mod config_dump;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use attache_bootstrap::config::AdminBind;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::drain::{Phase, PhaseReader};
use crate::dump::ConfigSource;
use crate::net::holder;
use crate::snapshot::Reader;
use crate::telemetry::metrics::registry;
use crate::telemetry::metrics::render::prometheus;

/// How many ports after the default one are tried: a group of Nomad tasks shares one loopback.
const PORTS_TRIED: u16 = 100;

/// The paths, with what they answer; also the page at `/`.
const PATHS: [(&str, &str); 6] = [
    ("/certs", "certificates in use, without keys"),
    (
        "/config_dump",
        "the snapshot being served, without keys, and the state of its source",
    ),
    ("/help", "this list"),
    ("/ready", "LIVE with 200 when serving, otherwise 503"),
    ("/stats/prometheus", "metrics in the Prometheus text format"),
    ("/server_info", "version and state"),
];

/// What the admin API shows.
#[derive(Clone)]
pub struct Admin {
    /// The snapshot being served.
    pub snapshot: Reader,
    /// The phase of the process.
    pub phase: PhaseReader,
    /// The control source.
    pub source: Rc<dyn ConfigSource>,
}

/// Why the admin API cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the admin address {address} cannot be bound: {source}{}", holder.as_ref().map(|h| format!("; held by {h}")).unwrap_or_default())]
pub struct AdminBindError {
    /// The address.
    pub address: SocketAddr,
    /// Who listens there, where that can be told.
    pub holder: Option<String>,
    /// The kernel's reason.
    pub source: io::Error,
}

/// Binds the admin address: one given by hand, or the default port, or the next free one after it.
///
/// # Errors
/// When the given address, or every port tried, is taken.
pub async fn bind(bind: AdminBind) -> Result<TcpListener, AdminBindError> {
    let first = SocketAddr::new(bind.address, bind.port);
    let tries = if bind.explicit { 1 } else { PORTS_TRIED };
    let mut refused = None;
    for port in (bind.port..).take(usize::from(tries)) {
        match TcpListener::bind(SocketAddr::new(bind.address, port)).await {
            Ok(listener) => {
                if port != bind.port {
                    tracing::info!(taken = %first, port, "the admin API moves to the next free port");
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                refused.get_or_insert(error);
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let source = refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
    Err(AdminBindError {
        address: first,
        holder: holder::of(first),
        source,
    })
}

impl Admin {
    /// Answers until dropped.
    pub async fn serve(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = self.clone();
                    tokio::task::spawn_local(async move {
                        let service = service_fn(move |request| {
                            let response = admin.answer(&request);
                            async move { Ok::<_, Infallible>(response) }
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .serve_connection(TokioIo::new(stream), service);
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "an admin connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin API cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
            response
                .headers_mut()
                .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/" | "/help" => text(StatusCode::OK, &help()),
            "/ready" => self.ready(),
            "/certs" => json(&certs::render(self.snapshot.latest().as_deref())),
            "/config_dump" => json(&config_dump::render(
                self.snapshot.latest().as_deref(),
                self.source.status(),
            )),
            "/server_info" => json(&serde_json::json!({
                "version": concat!("attache ", env!("CARGO_PKG_VERSION")),
                "state": state(self.phase.now()),
            })),
            "/stats/prometheus" => {
                let samples = registry().collect(|_| true);
                text(StatusCode::OK, &prometheus::render(&samples, false))
            }
            path => text(StatusCode::NOT_FOUND, &format!("no {path} here\n\n{}", help())),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let phase = self.phase.now();
        let status = match phase {
            Phase::Live => StatusCode::OK,
            Phase::Starting | Phase::Draining => StatusCode::SERVICE_UNAVAILABLE,
        };
        text(status, &format!("{}\n", state(phase)))
    }
}

/// Envoy's names of the phases.
fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "PRE_INITIALIZING",
        Phase::Live => "LIVE",
        Phase::Draining => "DRAINING",
    }
}

fn help() -> String {
    PATHS
        .iter()
        .map(|(path, what)| format!("{path}: {what}\n"))
        .collect()
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=UTF-8", body.to_owned())
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(content_type),
    );
    headers.insert(
        CACHE_CONTROL,
        hyper::header::HeaderValue::from_static("no-cache, max-age=0"),
    );
    response
}
