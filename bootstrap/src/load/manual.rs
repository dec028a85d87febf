//! A proxy described by arguments alone, as with Consul's own built-in proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;

use crate::args::ManualArgs;
use crate::config::{AdminBind, ManualProxy, ManualUpstream};
use crate::report::Sourced;

use super::draft::{self, Draft};

/// The flags of this group that are given.
pub(super) fn flags(args: &ManualArgs) -> Vec<&'static str> {
    [
        ("--service", args.service.is_some()),
        ("--listen", args.listen.is_some()),
        ("--local-service", args.local_service.is_some()),
        ("--upstream", !args.upstream.is_empty()),
    ]
    .into_iter()
    .filter_map(|(flag, given)| given.then_some(flag))
    .collect()
}

/// Judges the group as a whole.
pub(super) fn proxy(
    args: ManualArgs,
    admin: Option<AdminBind>,
    draft: &mut Draft<'_>,
) -> Option<ManualProxy> {
    let given = flags(&args);
    companions(&args, &given, draft);
    let service = service(args.service, draft);
    let listen = bind("--listen", args.listen, Ipv4Addr::UNSPECIFIED, draft);
    let local_service = bind("--local-service", args.local_service, Ipv4Addr::LOCALHOST, draft);
    let upstreams: Vec<ManualUpstream> = args
        .upstream
        .iter()
        .filter_map(|text| upstream(text, draft))
        .collect();
    collisions(listen, local_service, &upstreams, admin, draft);

    let service = service?;
    draft.report.put("service", service.clone(), "--service");
    if let Some(listen) = listen {
        draft.report.public_listener = Some(Sourced::new(listen, "--listen"));
    }
    if let Some(local) = local_service {
        let local = local.to_string();
        draft.report.put("local_service", local, "--local-service");
    }
    for upstream in &upstreams {
        draft.report.manual_upstreams.push(json!({
            "destination": upstream.destination,
            "bind": loopback(upstream.local_bind_port).to_string(),
            "datacenter": upstream.datacenter,
            "from": "--upstream",
        }));
    }
    Some(ManualProxy {
        service,
        listen,
        local_service,
        upstreams,
    })
}

/// What must be given together.
fn companions(args: &ManualArgs, given: &[&str], draft: &mut Draft<'_>) {
    if args.service.is_none() {
        draft.missing(
            format!(
                "--service is not given with {}: it says whose certificate is used",
                given.join(", ")
            ),
            "give --service NAME".into(),
        );
    }
    if args.listen.is_some() != args.local_service.is_some() {
        let (there, absent) = match args.listen {
            Some(_) => ("--listen", "--local-service"),
            None => ("--local-service", "--listen"),
        };
        draft.missing(
            format!("{absent} is not given, but {there} is"),
            "give both: mutual TLS comes in at --listen and goes on, in plain, to --local-service".into(),
        );
    }
    if given == ["--service"] {
        draft.missing(
            "--service is given with nothing to do: no --listen, no --upstream".into(),
            "give --listen and --local-service, or --upstream, or all of them".into(),
        );
    }
}

fn service(given: Option<String>, draft: &mut Draft<'_>) -> Option<String> {
    let service = given?;
    if is_name(&service) {
        return Some(service);
    }
    draft.invalid(
        format!("--service {service:?} is not a service's name"),
        "give the name as in Consul's catalog, without port, path or blanks".into(),
    );
    None
}

fn bind(flag: &str, given: Option<String>, default: Ipv4Addr, draft: &mut Draft<'_>) -> Option<SocketAddr> {
    let text = given?;
    let address = draft::address(&text, default).filter(|address| address.port() != 0);
    if address.is_none() {
        draft.invalid(
            format!("{flag} {text:?} is not an address and port"),
            format!("write it like {flag} 127.0.0.1:8000, {flag} [::1]:8000 or {flag} :8000"),
        );
    }
    address
}

/// `NAME:PORT[@DC]`.
fn upstream(text: &str, draft: &mut Draft<'_>) -> Option<ManualUpstream> {
    let (place, datacenter) = match text.split_once('@') {
        Some((place, datacenter)) => (place, Some(datacenter)),
        None => (text, None),
    };
    let parsed = place.split_once(':').and_then(|(name, port)| {
        let port = draft::port(port)?;
        (is_name(name) && datacenter.is_none_or(is_name)).then_some((name, port))
    });
    let Some((name, port)) = parsed else {
        draft.invalid(
            format!("--upstream {text:?} is not NAME:PORT[@DC]"),
            "write it like --upstream db:5432 or --upstream db:5432@dc2, port 1 to 65535".into(),
        );
        return None;
    };
    Some(ManualUpstream {
        destination: name.to_owned(),
        local_bind_port: port,
        datacenter: datacenter.map(str::to_owned),
    })
}

/// Names become parts of URLs and of variables' names: nothing that has a meaning there.
fn is_name(text: &str) -> bool {
    let has_meaning = |c: char| c.is_whitespace() || c.is_control() || "/:@?#%\"\\".contains(c);
    !text.is_empty() && !text.contains(has_meaning)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Two listeners of this process, or a listener and the service itself, at one address.
fn collisions(
    listen: Option<SocketAddr>,
    local_service: Option<SocketAddr>,
    upstreams: &[ManualUpstream],
    admin: Option<AdminBind>,
    draft: &mut Draft<'_>,
) {
    let mut places: Vec<(String, SocketAddr)> = Vec::new();
    places.extend(listen.map(|at| ("--listen".to_owned(), at)));
    places.extend(local_service.map(|at| ("--local-service".to_owned(), at)));
    let admin = admin.filter(|admin| admin.explicit && admin.port != 0);
    places.extend(admin.map(|at| {
        let address = SocketAddr::new(at.address, at.port);
        ("--admin-bind".to_owned(), address)
    }));
    for upstream in upstreams {
        let port = upstream.local_bind_port;
        let flag = format!("--upstream {}:{port}", upstream.destination);
        places.push((flag, loopback(port)));
    }
    for (index, (flag, at)) in places.iter().enumerate() {
        for (other, _) in places.iter().take(index).filter(|(_, one)| meet(*one, *at)) {
            draft.conflict(
                format!("{other} and {flag} meet at port {}", at.port()),
                "give each a port of its own".into(),
            );
        }
    }
}

fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || everywhere)
}
