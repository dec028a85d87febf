//! `/listeners`: what is listened on, as text and as Envoy's `Listeners`.

use std::fmt::Write;

use serde_json::{Value, json};

use super::model::address;
use crate::model::Snapshot;

/// `name::address`, a line each.
pub(super) fn text(snapshot: Option<&Snapshot>) -> String {
    let mut out = String::new();
    for listener in snapshot.iter().flat_map(|snapshot| snapshot.listeners.values()) {
        let _ = writeln!(out, "{}::{}", listener.name, listener.address);
    }
    out
}

/// The same in JSON.
pub(super) fn json(snapshot: Option<&Snapshot>) -> Value {
    let listeners = snapshot.iter().flat_map(|snapshot| snapshot.listeners.values());
    let statuses: Vec<Value> = listeners
        .map(|listener| json!({ "name": &*listener.name, "local_address": address(&listener.address) }))
        .collect();
    if statuses.is_empty() {
        return json!({});
    }
    json!({ "listener_statuses": statuses })
}
