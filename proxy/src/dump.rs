//! What a control source tells the admin API about the configuration it holds, in plain types.
//!
//! A source implements [`ConfigSource`]; the admin API puts the answer into Envoy's messages. Resources are
//! Envoy's own in proto3 JSON with the names of the proto files (`@type` included), without secrets.

use std::time::SystemTime;

use serde_json::Value;

/// A control source as the admin API sees it. Called on the control thread, between two awaits: it must not
/// block.
pub trait ConfigSource {
    /// Its own state, for `/attache/source`: no Envoy has such a page.
    fn status(&self) -> Value;

    /// What it holds, if it holds resources in Envoy's words. Without it, the snapshot being served is shown
    /// in these words.
    fn config_dump(&self) -> Option<ConfigDump> {
        None
    }

    /// Tells which process this is, for `/server_info` and the statistics.
    fn server_info(&self) -> ServerInfo {
        ServerInfo::default()
    }
}

/// A source that tells its state and nothing more.
impl<F: Fn() -> Value> ConfigSource for F {
    fn status(&self) -> Value {
        self()
    }
}

/// Which process this is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerInfo {
    /// The Envoy release stood for, such as `1.35.6`; empty where none is.
    pub envoy_version: String,
    /// Envoy's `CommandLineOptions`; null where there are none.
    pub command_line_options: Value,
    /// Envoy's `Node`; null where there is none.
    pub node: Value,
}

/// Everything that `/config_dump` shows.
#[derive(Clone, Debug, Default)]
pub struct ConfigDump {
    /// Envoy's `Bootstrap`, and when it was read.
    pub bootstrap: Option<(Value, SystemTime)>,
    /// Clusters.
    pub clusters: Vec<Resource>,
    /// `ClusterLoadAssignment`s, static and dynamic.
    pub endpoints: Vec<Resource>,
    /// Listeners.
    pub listeners: Vec<Resource>,
    /// Route configurations, inline ones as static.
    pub routes: Vec<Resource>,
    /// Secrets.
    pub secrets: Vec<Resource>,
}

/// One resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Where it came from, and what becomes of it.
    pub state: ResourceState,
    /// The version given by the control plane; empty for static ones.
    pub version_info: String,
    /// When it was taken; none where that is not known.
    pub last_updated: Option<SystemTime>,
    /// The message, with its `@type`. Null where the only version known was refused.
    pub value: Value,
    /// Why the last update of it was refused, if it was.
    pub error: Option<ErrorState>,
}

/// Envoy's sections of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceState {
    /// From the bootstrap.
    Static,
    /// From the control plane, in use.
    Active,
    /// From the control plane, waiting for what it needs.
    Warming,
    /// Removed, with connections still.
    Draining,
}

/// Envoy's `UpdateFailureState`.
#[derive(Clone, Debug)]
pub struct ErrorState {
    /// What was wrong, naming the field.
    pub details: String,
    /// The version refused.
    pub version_info: String,
    /// When.
    pub last_update_attempt: SystemTime,
}
