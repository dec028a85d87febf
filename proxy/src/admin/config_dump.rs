//! `/config_dump`: Envoy's `ConfigDump`, its messages in Envoy's order, and its parameters.
//!
//! Owns the messages around the resources; the resources are the source's. Whatever it gave, secrets are
//! blotted out once more before anything leaves.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::certs::rfc3339_millis;
use super::model::{REDACTED, type_url};
use super::query::Query;
use crate::dump::{ConfigDump, ErrorState, Resource, ResourceState};

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Parameters<'a> {
    /// `include_eds`: endpoints too.
    include_eds: bool,
    /// `resource`: the elements of this one repeated field instead of the messages.
    resource: Option<&'a str>,
    /// `mask`: only these fields, in paths by `.`, several by `,`.
    mask: Option<Vec<Vec<&'a str>>>,
    /// `name_regex`: only resources with a name that matches somewhere.
    name: Option<Regex>,
}

/// Why a dump cannot be made as it was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DumpError {
    /// No message has such a list.
    #[error(
        "{0} is not a list of resources in the config dump; use one such as dynamic_listeners or dynamic_active_clusters"
    )]
    NoSuchResource(String),
    /// Not RE2's syntax.
    #[error("name_regex cannot be used: {0}")]
    BadRegex(String),
}

/// Every list of resources that a dump can have.
const LISTS: [&str; 14] = [
    "static_clusters",
    "dynamic_active_clusters",
    "dynamic_warming_clusters",
    "static_endpoint_configs",
    "dynamic_endpoint_configs",
    "static_listeners",
    "dynamic_listeners",
    "static_route_configs",
    "dynamic_route_configs",
    "static_secrets",
    "dynamic_active_secrets",
    "dynamic_warming_secrets",
    "inline_scoped_route_configs",
    "dynamic_scoped_route_configs",
];

impl<'a> Parameters<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// When `name_regex` is no expression.
    pub(super) fn new(query: &'a Query) -> Result<Self, DumpError> {
        let mask = query.get("mask").filter(|mask| !mask.is_empty());
        let name = query.get("name_regex").filter(|regex| !regex.is_empty());
        Ok(Self {
            include_eds: query.has("include_eds"),
            resource: query.get("resource").filter(|resource| !resource.is_empty()),
            mask: mask.map(|mask| mask.split(',').map(|path| path.split('.').collect()).collect()),
            name: name
                .map(super::stats::expression)
                .transpose()
                .map_err(DumpError::BadRegex)?,
        })
    }
}

/// The whole answer.
///
/// # Errors
/// When a list is asked for that no dump has.
pub(super) fn render(mut dump: ConfigDump, parameters: &Parameters<'_>) -> Result<Value, DumpError> {
    if let Some(name) = &parameters.name {
        let resources = [
            &mut dump.clusters,
            &mut dump.endpoints,
            &mut dump.listeners,
            &mut dump.routes,
            &mut dump.secrets,
        ];
        for resources in resources {
            resources.retain(|resource| name.is_match(&resource.name));
        }
    }
    let mut configs = messages(dump, parameters.include_eds);
    if let Some(wanted) = parameters.resource {
        if !LISTS.contains(&wanted) {
            return Err(DumpError::NoSuchResource(wanted.to_owned()));
        }
        configs = configs
            .into_iter()
            .filter_map(|mut message| match message.get_mut(wanted).map(Value::take) {
                Some(Value::Array(elements)) => Some((element_type(&message, wanted), elements)),
                _ => None,
            })
            .flat_map(|(kind, elements)| elements.into_iter().map(move |element| typed(&kind, element)))
            .collect();
    }
    for config in &mut configs {
        if let Some(mask) = &parameters.mask {
            trim(config, mask, true);
        }
        redact(config);
    }
    Ok(json!({ "configs": configs }))
}

fn messages(dump: ConfigDump, include_eds: bool) -> Vec<Value> {
    let mut configs = Vec::new();
    if let Some((bootstrap, read)) = dump.bootstrap {
        let fields = json!({ "bootstrap": bootstrap, "last_updated": rfc3339_millis(read) });
        configs.push(typed("BootstrapConfigDump", fields));
    }
    configs.push(typed(
        "ClustersConfigDump",
        sections(
            dump.clusters,
            "cluster",
            [
                "static_clusters",
                "dynamic_active_clusters",
                "dynamic_warming_clusters",
            ],
        ),
    ));
    if include_eds {
        let lists = [
            "static_endpoint_configs",
            "dynamic_endpoint_configs",
            "dynamic_endpoint_configs",
        ];
        let endpoints = sections(dump.endpoints, "endpoint_config", lists);
        configs.push(typed("EndpointsConfigDump", endpoints));
    }
    configs.push(typed("ListenersConfigDump", listeners(dump.listeners)));
    if !dump.routes.is_empty() {
        let lists = [
            "static_route_configs",
            "dynamic_route_configs",
            "dynamic_route_configs",
        ];
        configs.push(typed(
            "RoutesConfigDump",
            sections(dump.routes, "route_config", lists),
        ));
    }
    let lists = [
        "static_secrets",
        "dynamic_active_secrets",
        "dynamic_warming_secrets",
    ];
    configs.push(typed(
        "SecretsConfigDump",
        sections(dump.secrets, "secret", lists),
    ));
    configs
}

/// A message of Envoy's admin package.
fn typed(kind: &str, fields: Value) -> Value {
    let mut message = Map::new();
    message.insert(
        "@type".to_owned(),
        type_url(&format!("envoy.admin.v3.{kind}")).into(),
    );
    if let Value::Object(fields) = fields {
        message.extend(fields);
    }
    message.into()
}

/// The message that an element of a list is, such as `ListenersConfigDump.DynamicListener`.
fn element_type(message: &Value, list: &str) -> String {
    let of = message["@type"].as_str().and_then(|name| name.rsplit('.').next());
    let element = match list {
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "DynamicCluster".to_owned(),
        "dynamic_active_secrets" | "dynamic_warming_secrets" => "DynamicSecret".to_owned(),
        // In camel case, without the plural.
        list => list
            .trim_end_matches('s')
            .split('_')
            .map(|word| {
                let (first, rest) = word.split_at(word.len().min(1));
                first.to_uppercase() + rest
            })
            .collect(),
    };
    format!("{}.{element}", of.unwrap_or_default())
}

/// The lists of a message: of static, active and warming (or draining) resources. Empty ones are left out.
fn sections(resources: Vec<Resource>, field: &str, lists: [&str; 3]) -> Value {
    let mut sections = Map::new();
    for resource in resources {
        let list = match resource.state {
            ResourceState::Static => lists[0],
            ResourceState::Active | ResourceState::Draining => lists[1],
            ResourceState::Warming => lists[2],
        };
        let mut fields = Map::new();
        if field == "secret" {
            fields.insert("name".to_owned(), resource.name.clone().into());
        }
        state(&mut fields, &resource, field);
        if let Some(error) = &resource.error {
            fields.insert("error_state".to_owned(), error_state(error));
        }
        push(&mut sections, list, fields);
    }
    in_order(sections, &lists)
}

/// Listeners have a message for each name, with the states that it is in.
fn listeners(resources: Vec<Resource>) -> Value {
    let mut sections = Map::new();
    for resource in resources {
        let mut fields = Map::new();
        let list = match resource.state {
            ResourceState::Static => {
                state(&mut fields, &resource, "listener");
                "static_listeners"
            }
            in_use => {
                fields.insert("name".to_owned(), resource.name.clone().into());
                let which = match in_use {
                    ResourceState::Warming => "warming_state",
                    ResourceState::Draining => "draining_state",
                    ResourceState::Active | ResourceState::Static => "active_state",
                };
                if !resource.value.is_null() {
                    let mut inner = Map::new();
                    state(&mut inner, &resource, "listener");
                    fields.insert(which.to_owned(), inner.into());
                }
                "dynamic_listeners"
            }
        };
        if let Some(error) = &resource.error {
            fields.insert("error_state".to_owned(), error_state(error));
        }
        push(&mut sections, list, fields);
    }
    in_order(sections, &["static_listeners", "dynamic_listeners"])
}

fn push(sections: &mut Map<String, Value>, list: &str, element: Map<String, Value>) {
    let list = sections.entry(list).or_insert_with(|| json!([]));
    if let Value::Array(list) = list {
        list.push(element.into());
    }
}

fn in_order(mut sections: Map<String, Value>, lists: &[&str]) -> Value {
    let lists = lists
        .iter()
        .filter_map(|list| Some(((*list).to_owned(), sections.remove(*list)?)));
    lists.collect::<Map<_, _>>().into()
}

fn state(fields: &mut Map<String, Value>, resource: &Resource, field: &str) {
    if !resource.version_info.is_empty() {
        fields.insert("version_info".to_owned(), resource.version_info.clone().into());
    }
    if !resource.value.is_null() {
        fields.insert(field.to_owned(), resource.value.clone());
    }
    if let Some(at) = resource.last_updated {
        fields.insert("last_updated".to_owned(), rfc3339_millis(at).into());
    }
}

fn error_state(error: &ErrorState) -> Value {
    json!({
        "last_update_attempt": rfc3339_millis(error.last_update_attempt),
        "details": error.details,
        "version_info": error.version_info,
    })
}

/// Keeps only what a path of `mask` leads to. Lists are gone into, as are messages in an `Any`; `@type` stays.
fn trim(value: &mut Value, mask: &[Vec<&str>], top: bool) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let below: Vec<Vec<&str>> = mask
                    .iter()
                    .filter(|path| path.first().is_some_and(|first| first == name))
                    .map(|path| path[1..].to_vec())
                    .collect();
                if below.is_empty() {
                    return name == "@type" && (top || !mask.is_empty());
                }
                if below.iter().all(|path| !path.is_empty()) {
                    trim(field, &below, false);
                }
                true
            });
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| trim(element, mask, false)),
        _ => {}
    }
}

/// Fields whose content is a secret in every one of Envoy's messages.
const SECRET_FIELDS: [&str; 5] = [
    "private_key",
    "password",
    "session_ticket_keys",
    "generic_secret",
    "token_secret",
];

/// Headers whose value is a secret, as in the bootstrap's `initial_metadata`.
const SECRET_HEADERS: [&str; 4] = ["x-consul-token", "authorization", "cookie", "proxy-authorization"];

/// Blots out what must not be seen.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let secret_header = fields.get("key").and_then(Value::as_str).is_some_and(|key| {
                SECRET_HEADERS
                    .iter()
                    .any(|header| key.eq_ignore_ascii_case(header))
            });
            for (name, field) in fields {
                if SECRET_FIELDS.contains(&&**name) {
                    blot(field);
                } else if secret_header && (name == "value" || name == "raw_value") {
                    *field = REDACTED.into();
                } else {
                    redact(field);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(redact),
        _ => {}
    }
}

/// Every text below is a secret, but the name of a file.
fn blot(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if !matches!(
                    &**name,
                    "filename" | "watched_directory" | "environment_variable" | "@type"
                ) {
                    blot(field);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(blot),
        Value::Null => {}
        secret => *secret = REDACTED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn resource(name: &str, state: ResourceState, value: Value) -> Resource {
        Resource {
            name: name.to_owned(),
            state,
            version_info: if state == ResourceState::Static { "" } else { "v1" }.to_owned(),
            last_updated: Some(at(0)),
            value,
            error: None,
        }
    }

    fn dump() -> ConfigDump {
        let mut refused = resource("bad:1", ResourceState::Active, Value::Null);
        refused.last_updated = None;
        refused.version_info.clear();
        refused.error = Some(ErrorState {
            details: "filters[0]: lua is not supported".to_owned(),
            version_info: "v2".to_owned(),
            last_update_attempt: at(1),
        });
        ConfigDump {
            bootstrap: Some((
                json!({ "initial_metadata": [{ "key": "x-consul-token", "value": "5ec2e7" }] }),
                at(0),
            )),
            clusters: vec![
                resource(
                    "local_agent",
                    ResourceState::Static,
                    json!({ "name": "local_agent" }),
                ),
                resource(
                    "api",
                    ResourceState::Active,
                    json!({ "name": "api", "type": "EDS" }),
                ),
                resource("web", ResourceState::Warming, json!({ "name": "web" })),
            ],
            endpoints: vec![resource(
                "api",
                ResourceState::Active,
                json!({ "cluster_name": "api" }),
            )],
            listeners: vec![
                resource(
                    "in:1",
                    ResourceState::Active,
                    json!({ "name": "in:1", "x": { "private_key": {
                    "inline_string": "KEY", "filename": "k.pem" } } }),
                ),
                refused,
            ],
            routes: vec![],
            secrets: vec![resource(
                "s",
                ResourceState::Static,
                json!({ "tls_certificate": {
                "private_key": { "inline_bytes": "S0VZ" }, "password": "hush" } }),
            )],
        }
    }

    fn ask(query: &str) -> Result<Value, DumpError> {
        let query = Query::parse(query);
        render(dump(), &Parameters::new(&query)?)
    }

    #[test]
    fn messages_in_envoys_order_without_secrets() {
        let shown = ask("").unwrap();
        let kinds: Vec<&str> = shown["configs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap())
            .collect();
        let wanted = [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "ListenersConfigDump",
            "SecretsConfigDump",
        ];
        assert_eq!(kinds, wanted);
        let [bootstrap, clusters, listeners, secrets] = [0, 1, 2, 3].map(|at| &shown["configs"][at]);
        assert_eq!(
            bootstrap["bootstrap"]["initial_metadata"][0]["value"],
            "[redacted]"
        );
        assert_eq!(
            clusters["dynamic_active_clusters"],
            json!([{ "version_info": "v1", "cluster": { "name": "api", "type": "EDS" },
                     "last_updated": "1970-01-01T00:00:00.000Z" }])
        );
        assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "local_agent");
        assert_eq!(clusters["dynamic_warming_clusters"][0]["cluster"]["name"], "web");
        let listener = &listeners["dynamic_listeners"][0]["active_state"]["listener"];
        assert_eq!(
            listener["x"]["private_key"],
            json!({ "inline_string": "[redacted]", "filename": "k.pem" })
        );
        assert_eq!(
            listeners["dynamic_listeners"][1],
            json!({ "name": "bad:1", "error_state": { "last_update_attempt": "1970-01-01T00:00:01.000Z",
                    "details": "filters[0]: lua is not supported", "version_info": "v2" } })
        );
        let text = secrets.to_string();
        assert!(!text.contains("S0VZ") && !text.contains("hush"), "{text}");
        assert_eq!(
            ask("include_eds").unwrap()["configs"][2]["dynamic_endpoint_configs"][0]["version_info"],
            "v1"
        );
    }

    #[test]
    fn parts_of_it() {
        let shown = ask("resource=dynamic_listeners&mask=name,active_state.listener.name").unwrap();
        let kind = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener";
        assert_eq!(
            shown,
            json!({ "configs": [
                { "@type": kind, "name": "in:1", "active_state": { "listener": { "name": "in:1" } } },
                { "@type": kind, "name": "bad:1" },
            ] })
        );
        let masked = ask("mask=dynamic_active_clusters.cluster.type").unwrap();
        assert_eq!(masked["configs"][0].as_object().unwrap().len(), 1, "{masked}");
        assert_eq!(
            masked["configs"][1]["dynamic_active_clusters"],
            json!([{ "cluster": { "type": "EDS" } }])
        );
        let named = ask("name_regex=^(api|in)&resource=dynamic_active_clusters").unwrap();
        assert_eq!(named["configs"].as_array().unwrap().len(), 1);
        assert_eq!(
            named["configs"][0]["@type"],
            "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster"
        );
        assert!(matches!(
            ask("resource=bootstrap"),
            Err(DumpError::NoSuchResource(_))
        ));
        assert!(matches!(ask("name_regex=("), Err(DumpError::BadRegex(_))));
    }
}
