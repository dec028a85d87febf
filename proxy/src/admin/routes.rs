//! Which page answers which path.

use http_body_util::Full;
use hyper::body::{Body, Bytes};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::config_dump::{self, Parameters};
use super::query::Query;
use super::{Admin, Command, ServerState, certs, clusters, listeners, logging, model, stats};
use crate::dump::ResourceState;
use crate::telemetry::access_log;
use crate::telemetry::memory::Memory;
use crate::telemetry::metrics::registry;

/// One page.
struct Page {
    path: &'static str,
    /// Only by POST: it changes something.
    mutates: bool,
    what: &'static str,
    answer: fn(&Admin, &Query) -> Answer,
}

/// Status and body.
type Answer = (StatusCode, Content);

enum Content {
    Text(String),
    Json(Value),
}

const fn page(path: &'static str, what: &'static str, answer: fn(&Admin, &Query) -> Answer) -> Page {
    Page {
        path,
        mutates: false,
        what,
        answer,
    }
}

const fn action(path: &'static str, what: &'static str, answer: fn(&Admin, &Query) -> Answer) -> Page {
    Page {
        path,
        mutates: true,
        what,
        answer,
    }
}

/// The pages in order of their paths.
const PAGES: [Page; 21] = [
    page("/", "this list", help),
    page(
        "/attache/source",
        "the state of the control source (not in Envoy)",
        |admin, _| ok_json(admin.0.source.status()),
    ),
    page("/certs", "certificates in use, without keys", |admin, _| {
        ok_json(certs::render(admin.0.snapshot.latest().as_deref()))
    }),
    page(
        "/clusters",
        "clusters and their endpoints (format=json)",
        clusters_page,
    ),
    page(
        "/config_dump",
        "the configuration, without secrets (include_eds, resource=, mask=, name_regex=)",
        config_dump_page,
    ),
    action(
        "/drain_listeners",
        "accept no more (graceful, inboundonly)",
        |admin, query| {
            admin.command(Command::DrainListeners {
                inbound_only: query.has("inboundonly"),
                graceful: query.has("graceful"),
            })
        },
    ),
    action("/healthcheck/fail", "make /ready say DRAINING", |admin, _| {
        admin.fail_health(true)
    }),
    action("/healthcheck/ok", "undo /healthcheck/fail", |admin, _| {
        admin.fail_health(false)
    }),
    page("/help", "this list", help),
    page("/hot_restart_version", "there is no hot restart", |_, _| {
        ok("disabled".to_owned())
    }),
    page(
        "/listeners",
        "listeners and their addresses (format=json)",
        listeners_page,
    ),
    action(
        "/logging",
        "levels of the log (level=, paths=, <logger>=)",
        |_, query| match logging::answer(query) {
            Ok(text) => ok(text),
            Err(error) => bad(error),
        },
    ),
    page("/memory", "memory of the process", memory_page),
    action("/quitquitquit", "end, as on SIGTERM", |admin, _| {
        admin.command(Command::Quit)
    }),
    page("/ready", "LIVE with 200 when serving, else 503", ready_page),
    action("/reset_counters", "set counters to 0", |_, _| {
        registry().reset_counters();
        ok("OK\n".to_owned())
    }),
    action("/reopen_logs", "open access logs anew", |_, _| {
        access_log::sink::reopen();
        ok("OK\n".to_owned())
    }),
    page("/runtime", "runtime values: there are none", |_, _| {
        ok_json(json!({ "layers": [], "entries": {} }))
    }),
    page("/server_info", "version, state and options", server_info_page),
    page(
        "/stats",
        "statistics (usedonly, filter=, type=, format=text|json|prometheus)",
        |admin, query| {
            admin.refresh();
            match stats::page(registry(), query) {
                Ok(stats::Page::Text(text)) => ok(text),
                Ok(stats::Page::Json(json)) => ok_json(json),
                Err(error) => bad(error),
            }
        },
    ),
    page(
        "/stats/prometheus",
        "statistics for Prometheus (usedonly, filter=, text_readouts)",
        |admin, query| {
            admin.refresh();
            match stats::prometheus(registry(), query) {
                Ok(text) => ok(text),
                Err(error) => bad(error),
            }
        },
    ),
];

/// Answers a request, whose body is not looked at.
pub(super) fn answer<B: Body>(admin: &Admin, request: &Request<B>) -> Response<Full<Bytes>> {
    let (method, uri) = (request.method(), request.uri());
    let (status, content) = match PAGES.iter().find(|page| page.path == uri.path()) {
        None => (
            StatusCode::NOT_FOUND,
            Content::Text(format!("invalid path. {}", commands())),
        ),
        Some(page) if page.mutates && method != Method::POST => refused_method(method),
        Some(_) if ![Method::GET, Method::HEAD, Method::POST].contains(method) => refused_method(method),
        // A page in a browser, of whatever site, must not change anything here; tools send no Origin.
        Some(page) if page.mutates && request.headers().contains_key(ORIGIN) => (
            StatusCode::FORBIDDEN,
            Content::Text("Requests with an Origin, as browsers send, change nothing here.\n".to_owned()),
        ),
        Some(page) => (page.answer)(admin, &Query::parse(uri.query().unwrap_or_default())),
    };
    respond(status, content)
}

/// In Envoy's words, which scripts may look for.
fn refused_method(method: &Method) -> Answer {
    let text = format!("Method {method} not allowed, POST required.");
    (StatusCode::METHOD_NOT_ALLOWED, Content::Text(text))
}

fn respond(status: StatusCode, content: Content) -> Response<Full<Bytes>> {
    let (kind, body) = match content {
        Content::Text(text) => ("text/plain; charset=UTF-8", text),
        Content::Json(json) => ("application/json", format!("{json:#}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-cache, max-age=0"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn ok(text: String) -> Answer {
    (StatusCode::OK, Content::Text(text))
}

fn ok_json(json: Value) -> Answer {
    (StatusCode::OK, Content::Json(json))
}

fn bad(error: String) -> Answer {
    (StatusCode::BAD_REQUEST, Content::Text(error))
}

fn commands() -> String {
    let mut out = String::from("admin commands are:\n");
    for page in &PAGES {
        let how = if page.mutates { " (POST)" } else { "" };
        out.push_str(&format!("  {}: {}{how}\n", page.path, page.what));
    }
    out
}

fn help(_: &Admin, _: &Query) -> Answer {
    ok(commands())
}

fn wants_json(query: &Query) -> bool {
    query.get("format") == Some("json")
}

fn listeners_page(admin: &Admin, query: &Query) -> Answer {
    let snapshot = admin.0.snapshot.latest();
    if wants_json(query) {
        ok_json(listeners::json(snapshot.as_deref()))
    } else {
        ok(listeners::text(snapshot.as_deref()))
    }
}

fn clusters_page(admin: &Admin, query: &Query) -> Answer {
    let snapshot = admin.0.snapshot.latest();
    let dump = admin.0.source.config_dump().unwrap_or_default();
    let fixed = dump
        .clusters
        .into_iter()
        .filter(|c| c.state == ResourceState::Static);
    let fixed = fixed.map(|cluster| cluster.name).collect();
    let statuses = clusters::statuses(snapshot.as_deref(), &fixed);
    if wants_json(query) {
        ok_json(clusters::json(&statuses))
    } else {
        ok(clusters::text(&statuses))
    }
}

fn config_dump_page(admin: &Admin, query: &Query) -> Answer {
    let snapshot = admin.0.snapshot.latest();
    let own = || snapshot.as_deref().map(model::dump);
    let dump = admin.0.source.config_dump().or_else(own).unwrap_or_default();
    let rendered = Parameters::new(query).and_then(|parameters| config_dump::render(dump, &parameters));
    match rendered {
        Ok(json) => ok_json(json),
        Err(error @ config_dump::DumpError::NoSuchResource(_)) => {
            (StatusCode::NOT_FOUND, Content::Text(format!("{error}\n")))
        }
        Err(error) => bad(format!("{error}\n")),
    }
}

fn ready_page(admin: &Admin, _: &Query) -> Answer {
    let state = admin.state();
    let status = match state {
        ServerState::Live => StatusCode::OK,
        ServerState::Draining | ServerState::PreInitializing => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Content::Text(format!("{}\n", state.name())))
}

fn server_info_page(admin: &Admin, _: &Query) -> Answer {
    let info = admin.0.source.server_info();
    let uptime = format!("{}s", admin.0.started.elapsed().as_secs());
    // Envoy's is <revision>/<version>/<status>/<build type>/<TLS library>; tools look for the second part.
    let version = format!(
        "{}/{}/Clean/RELEASE/aws-lc",
        concat!("attache-", env!("CARGO_PKG_VERSION")),
        info.envoy_version
    );
    let mut shown = json!({
        "version": version,
        "state": admin.state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
    });
    for (name, value) in [
        ("command_line_options", info.command_line_options),
        ("node", info.node),
    ] {
        if !value.is_null() {
            shown[name] = value;
        }
    }
    shown["hot_restart_initializing"] = json!(false);
    ok_json(shown)
}

fn memory_page(_: &Admin, _: &Query) -> Answer {
    let memory = Memory::read();
    ok_json(json!({
        "allocated": memory.allocated.to_string(),
        "heap_size": memory.heap_size.to_string(),
        "pageheap_unmapped": memory.unmapped.to_string(),
        "pageheap_free": memory.free.to_string(),
        "total_physical_bytes": memory.physical_size.to_string(),
    }))
}

impl Admin {
    fn command(&self, command: Command) -> Answer {
        match self.0.commands.send(command) {
            Ok(()) => ok("OK\n".to_owned()),
            Err(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                Content::Text("The process is ending.\n".to_owned()),
            ),
        }
    }

    fn fail_health(&self, failed: bool) -> Answer {
        self.0.health_failed.set(failed);
        ok("OK\n".to_owned())
    }
}
