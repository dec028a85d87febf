//! The snapshot being served as Envoy's resources, for a source that holds none of its own.
//!
//! proto3 JSON with the names of the proto files, as Envoy's `/config_dump` has it. Keys are never part of
//! it.

mod cluster;
mod listener;
mod matcher;
mod rbac;
mod tls;

pub(super) use self::tls::REDACTED;

use std::time::Duration;

use serde_json::{Value, json};

use crate::dump::{ConfigDump, Resource, ResourceState};
use crate::model::Snapshot;
use crate::model::listener::Address;

/// The snapshot in Envoy's words.
pub(super) fn dump(snapshot: &Snapshot) -> ConfigDump {
    let resource = |name: &str, value| Resource {
        name: name.to_owned(),
        state: ResourceState::Active,
        version_info: String::new(),
        last_updated: None,
        value,
        error: None,
    };
    ConfigDump {
        clusters: snapshot
            .clusters
            .values()
            .map(|c| resource(&c.name, cluster::cluster(c)))
            .collect(),
        endpoints: snapshot
            .endpoints
            .iter()
            .map(|(name, assignment)| resource(name, cluster::assignment(name, assignment)))
            .collect(),
        listeners: snapshot
            .listeners
            .values()
            .map(|l| resource(&l.name, listener::listener(l)))
            .collect(),
        ..ConfigDump::default()
    }
}

/// Envoy's `Address`.
pub(super) fn address(address: &Address) -> Value {
    match address {
        Address::Socket(address) => json!({
            "socket_address": { "address": address.ip().to_string(), "port_value": address.port() },
        }),
        Address::Pipe { path, mode } => {
            let mut pipe = json!({ "path": path.display().to_string() });
            if let Some(mode) = mode {
                pipe["mode"] = json!(mode);
            }
            json!({ "pipe": pipe })
        }
    }
}

/// As proto3 JSON writes a duration.
fn duration(duration: Duration) -> Value {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos % 1_000_000 == 0 => format!("{}.{:03}s", duration.as_secs(), nanos / 1_000_000),
        nanos => format!("{}.{nanos:09}s", duration.as_secs()),
    }
    .into()
}

/// An object of the fields that are set: null stands for one that is not.
fn message<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let set = fields.into_iter().filter(|(_, value)| !value.is_null());
    set.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Null for an empty list: proto3 leaves it out.
fn list(values: Vec<Value>) -> Value {
    if values.is_empty() {
        Value::Null
    } else {
        values.into()
    }
}

/// Null for false, an empty text or 0.
fn unless_default<T: Default + PartialEq + Into<Value>>(value: T) -> Value {
    if value == T::default() {
        Value::Null
    } else {
        value.into()
    }
}

/// Envoy's `TypedExtensionConfig` and its kin; `kind` is the message's full name.
fn extension(name: &str, kind: &str, mut config: Value) -> Value {
    let mut typed = json!({ "@type": type_url(kind) });
    if let (Some(typed), Some(config)) = (typed.as_object_mut(), config.as_object_mut()) {
        typed.append(config);
    }
    json!({ "name": name, "typed_config": typed })
}

/// The `@type` of a message.
pub(super) fn type_url(kind: &str) -> String {
    format!("type.googleapis.com/{kind}")
}
