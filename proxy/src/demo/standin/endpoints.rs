//! Which path gives which answer. Pure but for the state: no waiting, no sockets.

use serde_json::{Map, Value, json};

use super::answer::{Answer, Ask, Family};
use super::catalog::Reach;
use super::clock::rfc3339;
use super::state::{State, Topic};
use super::{Fault, Registration, RegistrationError};

/// The answer as things stand, with the fault that a test asked for.
pub(super) fn answer(state: &mut State, ask: &Ask) -> Answer {
    let fault = state.fault_for(&ask.path);
    match fault {
        Some(Fault::Status(status)) => {
            return Answer::text(status, "the stand-in was told to fail");
        }
        Some(Fault::Rubbish) => {
            let mut rubbish = Answer::json(&Value::Null);
            rubbish.body = b"{\"Nodes\":[\x00\xff<html>not JSON".to_vec();
            return rubbish.indexed(Family::Query, 1);
        }
        None | Some(Fault::Slow(_) | Fault::Truncated) => {}
    }
    let mut answer = permitted(state, ask);
    match fault {
        Some(Fault::Slow(delay)) => answer.delay = Some(delay),
        Some(Fault::Truncated) => answer.cut = true,
        _ => {}
    }
    answer
}

fn permitted(state: &mut State, ask: &Ask) -> Answer {
    // Consul gives these two to anybody.
    let open = ["/v1/agent/connect/ca/roots", "/v1/status/leader"].contains(&ask.path.as_str());
    if let (Some(wanted), false) = (&state.token, open) {
        match &ask.token {
            None => return Answer::text(403, "Permission denied"),
            Some(given) if given != wanted => return Answer::text(403, "ACL not found"),
            Some(_) => {}
        }
    }
    if let Some((set, index)) = state.override_for(&ask.path, &ask.query) {
        let mut answer = match &set.body {
            Value::String(text) if set.status != 200 => Answer::text(set.status, text),
            body => Answer::json(body),
        };
        answer.status = set.status;
        return answer.indexed(Family::Consistent, index);
    }
    let segments = ask.segments();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["v1", "agent", rest @ ..] => agent(state, ask, rest),
        ["v1", "health", reach @ ("connect" | "service"), service] => health(state, ask, reach, service),
        ["v1", "connect", "intentions", "match"] => intentions(state, ask),
        ["v1", "discovery-chain", service] => discovery_chain(state, service),
        ["v1", "config"] => write_config(state, ask),
        ["v1", "config", kind, name] => config(state, ask, kind, name),
        ["v1", "query", name, "execute"] => prepared_query(state, name),
        ["v1", "status", "leader"] => Answer::json(&json!("127.0.0.1:8300")),
        _ => unknown(),
    }
}

fn unknown() -> Answer {
    Answer::text(404, "Invalid URL path: not a recognized HTTP API endpoint\n")
}

fn agent(state: &mut State, ask: &Ask, path: &[&str]) -> Answer {
    match (ask.method.as_str(), path) {
        ("GET", ["self"]) => Answer::json(&json!({
            "Config": {
                "Datacenter": state.datacenter,
                "PrimaryDatacenter": state.datacenter,
                "NodeName": "standin",
                "NodeID": state.node_id,
                "Revision": "",
                "Server": true,
                "Version": "1.23.0",
            },
            "Member": { "Name": "standin", "Addr": "127.0.0.1", "Status": 1 },
            "Meta": { "consul-network-segment": "", "consul-version": "1.23.0" },
        })),
        ("GET", ["services"]) => Answer::json(&state.catalog.agent_services()),
        ("PUT", ["service", "register"]) => register(state, ask),
        ("PUT", ["service", "deregister", id]) => {
            if state.deregister(id) {
                return Answer::empty();
            }
            let text = format!(
                "Unknown service ID \"{id}\". Ensure that the service ID is passed, not the service name."
            );
            Answer::text(404, &text)
        }
        ("GET", ["service", id]) => match state.catalog.agent_service(id) {
            Some((body, hash)) => {
                let mut answer = Answer::json(&body);
                answer.hash = Some(hash);
                answer
            }
            None => Answer::text(404, &format!("unknown service ID: {id}")),
        },
        ("GET", ["connect", "ca", "roots"]) => Answer::json(&state.authority.roots_json())
            .indexed(Family::CachedQuery, state.index_of(&[Topic::Roots])),
        ("GET", ["connect", "ca", "leaf", service]) => leaf(state, service),
        ("POST", ["connect", "authorize"]) => authorize(state, ask),
        ("GET" | "PUT" | "POST", ["connect", ..] | ["self" | "services"] | ["service", _]) => {
            Answer::text(405, &format!("method {} not allowed", ask.method))
        }
        _ => unknown(),
    }
}

fn register(state: &mut State, ask: &Ask) -> Answer {
    let registration = ask
        .json()
        .and_then(Registration::from_json)
        .ok_or(RegistrationError::NotAnObject);
    match registration.and_then(|registration| state.register(&registration)) {
        Ok(_) => Answer::empty(),
        Err(error) => Answer::text(400, &error.to_string()),
    }
}

fn leaf(state: &mut State, service: &str) -> Answer {
    let leaf = match state.leaf(service) {
        Ok(leaf) => leaf,
        Err(error) => return Answer::text(500, &format!("issuing the leaf failed: {error}")),
    };
    let body = json!({
        "SerialNumber": leaf.issued.serial,
        "CertPEM": leaf.issued.chain_pem,
        "PrivateKeyPEM": leaf.issued.key_pem,
        "Service": service,
        "ServiceURI": leaf.issued.uri,
        "ValidAfter": rfc3339(leaf.issued.not_before),
        "ValidBefore": rfc3339(leaf.issued.not_after),
        "CreateIndex": leaf.index,
        "ModifyIndex": leaf.index,
    });
    let mut answer = Answer::json(&body).indexed(Family::Cached, leaf.index);
    answer.changes_at = Some(leaf.renew_at);
    answer
}

fn authorize(state: &State, ask: &Ask) -> Answer {
    let Some(body) = ask.json() else {
        return Answer::text(400, "Request decode failed: not JSON");
    };
    let field = |name: &str| body[name].as_str().unwrap_or_default();
    let target = field("Target");
    if target.is_empty() {
        return Answer::text(400, "Target service must be specified");
    }
    let Ok(caller) = crate::model::SpiffeId::parse(field("ClientCertURI")) else {
        return Answer::text(400, "ClientCertURI not a valid Connect identifier");
    };
    let Some(source) = caller.service() else {
        return Answer::text(400, "ClientCertURI not a valid Service identifier");
    };
    let reason = if state.default_policy == state.acl_default_policy {
        "Default behavior configured by ACLs"
    } else {
        "Default intention policy"
    };
    let verdict = state
        .intentions
        .authorize(target, &source.service, state.default_policy, reason);
    Answer::json(&verdict).of(Family::Cached)
}

fn health(state: &State, ask: &Ask, reach: &str, service: &str) -> Answer {
    // Consul takes a bare `passing`, and everything but 0 and false, for yes.
    let passing = ask
        .param("passing")
        .is_some_and(|value| !matches!(value, "0" | "false"));
    let (reach, topic) = match reach {
        "connect" => (Reach::Connect, Topic::Connect(service.to_owned())),
        _ => (Reach::Service, Topic::Service(service.to_owned())),
    };
    Answer::json(&state.catalog.health(service, reach, passing))
        .indexed(Family::Consistent, state.index_of(&[topic]))
}

fn intentions(state: &State, ask: &Ask) -> Answer {
    let (Some("destination"), Some(name)) = (ask.param("by"), ask.param("name")) else {
        return Answer::text(400, "required query parameters: by=destination and name");
    };
    let name = name.strip_prefix("default/").unwrap_or(name);
    let found = state.intentions.matching(name);
    let found = if found.is_empty() {
        Value::Null
    } else {
        Value::Array(found)
    };
    let mut body = Map::new();
    body.insert(name.to_owned(), found);
    let topics = [name, "*"].map(|name| Topic::Intentions(name.to_owned()));
    Answer::json(&Value::Object(body)).indexed(Family::Consistent, state.index_of(&topics))
}

/// The chain of a service without routers, splitters and resolvers; tests override it for more.
fn discovery_chain(state: &State, service: &str) -> Answer {
    let datacenter = &state.datacenter;
    let protocol = |kind: &str, name: &str| {
        let entry = state.config.get(&(kind.to_owned(), name.to_owned()))?;
        let own = entry.get("Protocol");
        let shared = entry.get("Config").and_then(|config| config.get("protocol"));
        own.or(shared)?.as_str()
    };
    let protocol = protocol("service-defaults", service)
        .or_else(|| protocol("proxy-defaults", "global"))
        .unwrap_or("tcp");
    let target = format!("{service}.default.default.{datacenter}");
    let sni = format!(
        "{service}.default.{datacenter}.internal.{}",
        state.authority.trust_domain()
    );
    let virtual_ips: Vec<String> = state.catalog.virtual_ip(service).into_iter().collect();
    let resolver = format!("resolver:{target}");
    let body = json!({
        "Chain": {
            "ServiceName": service,
            "Namespace": "default",
            "Partition": "default",
            "Datacenter": datacenter,
            "Default": true,
            "Protocol": protocol,
            "StartNode": resolver,
            "Nodes": {
                resolver: {
                    "Type": "resolver",
                    "Name": target,
                    "Resolver": { "ConnectTimeout": "5s", "Default": true, "Target": target },
                },
            },
            "Targets": {
                &target: {
                    "ConnectTimeout": "5s",
                    "ID": target,
                    "Service": service,
                    "Namespace": "default",
                    "Partition": "default",
                    "Datacenter": datacenter,
                    "MeshGateway": {},
                    "Subset": {},
                    "TransparentProxy": {},
                    "SNI": sni,
                    "Name": sni,
                },
            },
            "AutoVirtualIPs": virtual_ips,
            "ManualVirtualIPs": [],
        },
    });
    let topics = [
        Topic::Chain(service.to_owned()),
        Topic::Chain("global".to_owned()),
        // A rotation that brings another trust domain changes the SNI.
        Topic::Roots,
    ];
    Answer::json(&body).indexed(Family::Consistent, state.index_of(&topics))
}

fn write_config(state: &mut State, ask: &Ask) -> Answer {
    let Some(entry) = ask.json().filter(|_| ask.method == "PUT") else {
        return Answer::text(400, "Request decoding failed: a JSON config entry is expected");
    };
    let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let (kind, name) = (field("Kind"), field("Name"));
    if kind.is_empty() || name.is_empty() && kind != "mesh" {
        return Answer::text(400, "Request decoding failed: Kind and Name must be given");
    }
    if kind == "service-intentions" {
        let given = entry["Sources"].as_array().cloned().unwrap_or_default();
        let sources = given.into_iter().filter_map(|source| match source {
            Value::Object(fields) => Some(fields),
            _ => None,
        });
        if ask
            .param("cas")
            .is_some_and(|cas| cas != state.intentions.modified(&name).to_string())
        {
            return Answer::json(&json!(false));
        }
        state.put_intentions(&name, sources.collect());
        state.intentions.set_meta(&name, entry["Meta"].clone());
    } else {
        let name = if kind == "mesh" { "mesh" } else { name.as_str() };
        state.put_config(&kind, name, Some(entry));
    }
    Answer::json(&json!(true))
}

fn config(state: &mut State, ask: &Ask, kind: &str, name: &str) -> Answer {
    let intentions = kind == "service-intentions";
    if ask.method == "DELETE" {
        if intentions {
            state.remove_intentions(name);
        } else {
            state.put_config(kind, name, None);
        }
        return Answer::json(&json!({}));
    }
    let (entry, topic) = if intentions {
        let topic = Topic::Intentions(name.to_owned());
        (state.intentions.config_entry(name), topic)
    } else {
        let key = (kind.to_owned(), name.to_owned());
        (
            state.config.get(&key).cloned(),
            Topic::Config(format!("{kind}/{name}")),
        )
    };
    let index = state.index_of(&[topic]);
    let answer = match entry {
        Some(entry) => Answer::json(&entry),
        None => Answer::text(
            404,
            &format!("Config entry not found for \"{kind}\" / \"{name}\""),
        ),
    };
    answer.indexed(Family::Query, index)
}

fn prepared_query(state: &State, name: &str) -> Answer {
    let Some(service) = state.prepared_queries.get(name) else {
        return Answer::text(404, "Query not found").indexed(Family::Query, 1);
    };
    Answer::json(&json!({
        "Service": service,
        "Nodes": state.catalog.health(service, Reach::Connect, true),
        "DNS": { "TTL": "" },
        "Datacenter": state.datacenter,
        "PeerName": "",
        "Failovers": 0,
        "Index": 1,
        "LastContact": 0,
        "KnownLeader": true,
        "ConsistencyLevel": "leader",
        "NotModified": false,
        "Backend": 0,
        "ResultsFilteredByACLs": false,
    }))
    .indexed(Family::Consistent, 1)
}
