//! How Consul's HTTP API is reached: address, TLS, namespace, partition.
//!
//! Follows the variables that Consul's own command line reads, and refuses by name what it reads and
//! Attaché does not. Dials nothing.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args::ConsulArgs;
use crate::config::{ConsulAddress, ConsulAgent, ConsulTls};
use crate::report::{REDACTED, Sourced};

use super::draft::{Draft, shown};
use super::{nomad, token};

const HTTP_ADDR: &str = "CONSUL_HTTP_ADDR";
const HTTP_SSL: &str = "CONSUL_HTTP_SSL";
const HTTP_SSL_VERIFY: &str = "CONSUL_HTTP_SSL_VERIFY";
const HTTP_AUTH: &str = "CONSUL_HTTP_AUTH";

const HOW_TO_WRITE: &str =
    "write it like 127.0.0.1:8500, http://host:8500, https://host:8501 or unix:///path/to.sock";

/// The agent as arguments and environment describe it; `address_flag` is what the address's argument
/// is called.
pub(super) fn consul(mut args: ConsulArgs, address_flag: &str, draft: &mut Draft<'_>) -> Option<ConsulAgent> {
    if draft.is_set(HTTP_AUTH) {
        draft.invalid(
            format!("{HTTP_AUTH} is set, but HTTP basic authentication is not supported"),
            format!("unset {HTTP_AUTH}, and give an ACL token where the agent asks for one"),
        );
    }
    let ssl = boolean(HTTP_SSL, draft);
    let address = address(args.http_addr.take(), address_flag, ssl, draft);
    let tls = tls(&mut args, address.as_ref(), draft);
    let namespace = name("--namespace", args.namespace.take(), "CONSUL_NAMESPACE", draft);
    let partition = name("--partition", args.partition.take(), "CONSUL_PARTITION", draft);
    let token = token::source(args, draft);
    Some(ConsulAgent {
        address: address?,
        tls,
        token: token?,
        namespace,
        partition,
    })
}

fn name(flag: &'static str, given: Option<String>, variable: &str, draft: &mut Draft<'_>) -> Option<String> {
    let name = draft.pick(flag, given, variable)?;
    let key = match flag {
        "--namespace" => "consul.namespace",
        _ => "consul.partition",
    };
    draft.report.put(key, name.value.clone(), &name.from);
    Some(name.value)
}

/// A variable in one of the spellings that Go's `strconv.ParseBool` takes, as Consul does.
fn boolean(variable: &str, draft: &mut Draft<'_>) -> Option<bool> {
    let text = draft.var(variable)?;
    match text.value.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => {
            draft.invalid(
                format!("{variable} is {:?}, which is neither true nor false", text.value),
                format!("set {variable} to true or false"),
            );
            None
        }
    }
}

fn address(
    given: Option<String>,
    flag: &str,
    ssl: Option<bool>,
    draft: &mut Draft<'_>,
) -> Option<ConsulAddress> {
    // A flag or a variable that is there but broken is a problem already, and no default replaces it.
    let said = given.is_some() || draft.is_set(HTTP_ADDR);
    let address = match draft.pick(flag, given, HTTP_ADDR) {
        Some(text) => parse(&text, ssl, draft).map(|parsed| Sourced::new(parsed, text.from)),
        None if said => None,
        None => Some(default_address(ssl, draft)),
    }?;
    draft
        .report
        .put("consul.address", address.value.to_string(), &address.from);
    if ssl == Some(true) && matches!(address.value, ConsulAddress::Unix(_)) {
        draft.note(format!(
            "{HTTP_SSL} is true, but {} is a unix socket and spoken to in plain HTTP",
            address.value
        ));
    }
    Some(address.value)
}

/// The socket that Nomad puts into the allocation, or Consul's customary port.
fn default_address(ssl: Option<bool>, draft: &mut Draft<'_>) -> Sourced<ConsulAddress> {
    if let Some(folder) = draft.var(nomad::ALLOC_DIR) {
        let socket = Path::new(&folder.value).join("tmp/consul_http.sock");
        if draft.files.exists(&socket) {
            let from = format!("{}, where the socket is", folder.from);
            return Sourced::new(ConsulAddress::Unix(socket), from);
        }
        if nomad::is_here(draft) {
            draft.gap(
                format!(
                    "{HTTP_ADDR} is not set and {} is not there: 127.0.0.1 is tried, which in a \
                     bridge network is the allocation itself, not the host",
                    shown(&socket)
                ),
                format!("set {HTTP_ADDR} in the sidecar_task's env to the host's Consul agent"),
            );
        }
    }
    let (host, port) = ("127.0.0.1".to_owned(), 8500);
    if ssl == Some(true) {
        let address = ConsulAddress::Https { host, port };
        return Sourced::new(address, format!("default, with {HTTP_SSL}"));
    }
    Sourced::new(ConsulAddress::Http { host, port }, "default")
}

/// Whether the scheme was written, and which.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Bare,
    Http,
    Https,
}

fn parse(text: &Sourced<String>, ssl: Option<bool>, draft: &mut Draft<'_>) -> Option<ConsulAddress> {
    // What stands before an @ may be a password.
    let quoted = match text.value.contains('@') {
        true => REDACTED.to_owned(),
        false => format!("{:?}", text.value),
    };
    let mut refuse = |why: &str| {
        let what = format!("{} is {quoted}: {why}", text.from);
        draft.invalid(what, HOW_TO_WRITE.into());
    };
    let (scheme, rest) = match text.value.split_once("://") {
        None => (Scheme::Bare, text.value.as_str()),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        Some((scheme, "")) if scheme.eq_ignore_ascii_case("unix") => {
            refuse("the socket's path is missing");
            return None;
        }
        Some((scheme, path)) if scheme.eq_ignore_ascii_case("unix") => {
            return Some(ConsulAddress::Unix(PathBuf::from(path)));
        }
        Some(_) => {
            refuse("only http, https and unix are known");
            return None;
        }
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match host_port(rest) {
        Ok(place) => place,
        Err(why) => {
            refuse(why);
            return None;
        }
    };
    if scheme == Scheme::Http && ssl == Some(true) {
        draft.note(format!(
            "{} says http, but {HTTP_SSL} is true: HTTPS is used, as Consul does",
            text.from
        ));
    }
    let https = scheme == Scheme::Https || ssl == Some(true);
    let customary = if https { 443 } else { 80 };
    if port.is_none() {
        draft.note(format!(
            "{} has no port: {customary} is used, as Consul does",
            text.from
        ));
    }
    let port = port.unwrap_or(customary);
    Some(match https {
        true => ConsulAddress::Https { host, port },
        false => ConsulAddress::Http { host, port },
    })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/?#\\%".contains(c);
    if text.contains('@') {
        return Err("user and password are not supported");
    }
    if text.contains(strange) {
        return Err("a path, a query or blanks are not supported");
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err("what is in brackets is no IPv6 address");
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err("only a port may follow the bracket"),
            }
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address stands in brackets");
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    let port = match port {
        Some(port) => Some(super::draft::port(port).ok_or("the port is not 1 to 65535")?),
        None => None,
    };
    Ok((host.to_owned(), port))
}

fn tls(args: &mut ConsulArgs, address: Option<&ConsulAddress>, draft: &mut Draft<'_>) -> ConsulTls {
    let ca_file = draft.pick("--ca-file", args.ca_file.take(), "CONSUL_CACERT");
    let ca_path = draft.pick("--ca-path", args.ca_path.take(), "CONSUL_CAPATH");
    let cert = draft.pick("--client-cert", args.client_cert.take(), "CONSUL_CLIENT_CERT");
    let key = draft.pick("--client-key", args.client_key.take(), "CONSUL_CLIENT_KEY");
    let server_name = draft.pick(
        "--tls-server-name",
        args.tls_server_name.take(),
        "CONSUL_TLS_SERVER_NAME",
    );
    let verify = boolean(HTTP_SSL_VERIFY, draft);
    if let Some(file) = &ca_file {
        draft.must_read(file);
    }
    if let Some(folder) = &ca_path {
        draft.must_list(folder);
    }
    // The key is not read here, so that no copy of it is left behind.
    for file in [&cert, &key].into_iter().flatten() {
        draft.must_exist(file);
    }
    both_or_neither(&cert, &key, draft);

    let files = [
        ("consul.ca_file", &ca_file),
        ("consul.ca_path", &ca_path),
        ("consul.client_cert", &cert),
        ("consul.client_key", &key),
    ];
    let mut unused = Vec::new();
    for (report_key, file) in files {
        if let Some(file) = file {
            draft.report.put(report_key, shown(&file.value), &file.from);
            unused.push(file.from.clone());
        }
    }
    if let Some(name) = &server_name {
        let value: Value = name.value.clone().into();
        draft.report.put("consul.tls_server_name", value, &name.from);
        unused.push(name.from.clone());
    }
    let insecure_skip_verify = verify == Some(false);
    if verify.is_some() {
        let verify = !insecure_skip_verify;
        draft.report.put("consul.tls_verify", verify, HTTP_SSL_VERIFY);
    }
    let is_https = matches!(address, Some(ConsulAddress::Https { .. }));
    if is_https && insecure_skip_verify {
        draft.note(format!(
            "{HTTP_SSL_VERIFY} is false: whoever answers at the agent's address is believed"
        ));
    }
    if !unused.is_empty() && address.is_some() && !is_https {
        draft.note(format!(
            "{} not used: the agent's address is not https://",
            unused.join(", ")
        ));
    }
    ConsulTls {
        ca_file: ca_file.map(|file| file.value),
        ca_path: ca_path.map(|folder| folder.value),
        client_cert: cert.map(|file| file.value),
        client_key: key.map(|file| file.value),
        server_name: server_name.map(|name| name.value),
        insecure_skip_verify,
    }
}

type File = Option<Sourced<PathBuf>>;

fn both_or_neither(cert: &File, key: &File, draft: &mut Draft<'_>) {
    let (there, absent) = match (cert, key) {
        (Some(cert), None) => (cert, "--client-key (CONSUL_CLIENT_KEY)"),
        (None, Some(key)) => (key, "--client-cert (CONSUL_CLIENT_CERT)"),
        _ => return,
    };
    draft.missing(
        format!("{} is given without {absent}", there.from),
        format!("give {absent} too: a certificate and its key belong together"),
    );
}
