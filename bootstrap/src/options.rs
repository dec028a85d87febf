//! Envoy's `CommandLineOptions`, as `/server_info` shows them.
//!
//! Every field of Envoy 1.40 is there: with what was given, else with Envoy's default. What an option
//! does is said elsewhere; that one does nothing is in [`EnvoyConfig::warnings`].

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::envoy::{EnvoyConfig, IgnoredOption, Mode, UnknownDynamicFields};
use crate::report::REDACTED;

impl EnvoyConfig {
    /// `command_line_options` of `/server_info`, in proto3 JSON with the names of the proto file. The
    /// text of `--config-yaml` may hold a token and is not shown.
    pub fn command_line_options(&self) -> Value {
        let path = |path: Option<&std::path::Path>| path.map(|path| path.display().to_string());
        let tags = self.stats_tags.iter();
        let tags: Vec<String> = tags.map(|(tag, value)| format!("{tag}:{value}")).collect();
        let mut options = json!({
            // A 64-bit number, which proto3 JSON writes as a string.
            "base_id": self.base_id.to_string(),
            "concurrency": self.concurrency,
            "config_path": path(self.file.as_ref().map(|file| file.path.as_path())).unwrap_or_default(),
            "config_yaml": self.config_yaml.as_ref().map_or("", |_| REDACTED),
            "allow_unknown_static_fields": self.unknown_fields.static_allowed,
            "admin_address_path": path(self.admin_address_path.as_deref()).unwrap_or_default(),
            "local_address_ip_version": "v4",
            "log_level": self.log.level.name(),
            "component_log_level": "",
            "log_format": "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v",
            "log_path": "",
            "service_cluster": self.node.cluster.as_deref().unwrap_or_default(),
            "service_node": self.node.id.as_deref().unwrap_or_default(),
            "service_zone": self.node.zone.as_deref().unwrap_or_default(),
            "file_flush_interval": "10s",
            "drain_time": duration(self.drain_time),
            "parent_shutdown_time": duration(self.parent_shutdown_time),
            "mode": match self.mode {
                Mode::Serve => "Serve",
                Mode::Validate => "Validate",
            },
            "disable_hot_restart": self.disable_hot_restart,
            "enable_mutex_tracing": false,
            "restart_epoch": 0,
            "cpuset_threads": false,
            "reject_unknown_dynamic_fields": self.unknown_fields.dynamic == UnknownDynamicFields::Rejected,
            "log_format_escaped": false,
            "disabled_extensions": [],
            "ignore_unknown_dynamic_fields": self.unknown_fields.dynamic == UnknownDynamicFields::Ignored,
            "use_dynamic_base_id": false,
            "base_id_path": "",
            "drain_strategy": "Gradual",
            "enable_fine_grain_logging": false,
            "socket_path": "@envoy_domain_socket",
            "socket_mode": 0,
            "enable_core_dump": false,
            "stats_tag": tags,
            "skip_hot_restart_on_no_parent": false,
            "skip_hot_restart_parent_stats": false,
            "skip_deprecated_logs": false,
            "file_flush_min_size": 0,
            "log_stacktrace_single_entry": false,
        });
        if let Some(options) = options.as_object_mut() {
            for ignored in &self.ignored {
                put(ignored, options);
            }
        }
        options
    }
}

/// Writes what was given in the place of the default, in the default's type.
fn put(ignored: &IgnoredOption, options: &mut Map<String, Value>) {
    let text = ignored.value.as_deref().unwrap_or_default();
    let (field, value) = match ignored.name {
        "file-flush-interval-msec" => {
            let interval = Duration::from_millis(text.parse().unwrap_or(0));
            ("file_flush_interval".to_owned(), duration(interval).into())
        }
        "file-flush-min-size-kb" => ("file_flush_min_size".to_owned(), number(text, 10)),
        "restart-epoch" => ("restart_epoch".to_owned(), number(text, 10)),
        // As of chmod.
        "socket-mode" => ("socket_mode".to_owned(), number(text, 8)),
        "disable-extensions" => (
            "disabled_extensions".to_owned(),
            text.split(',').map(str::trim).collect(),
        ),
        "drain-strategy" => {
            let strategy = if text == "immediate" {
                "Immediate"
            } else {
                "Gradual"
            };
            ("drain_strategy".to_owned(), strategy.into())
        }
        name => {
            let value = ignored.value.clone().map_or(Value::Bool(true), Value::String);
            (name.replace('-', "_"), value)
        }
    };
    options.insert(field, value);
}

fn number(text: &str, radix: u32) -> Value {
    u32::from_str_radix(text, radix).unwrap_or(0).into()
}

/// As proto3 JSON writes a duration: whole seconds, or three digits after the point.
fn duration(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        milliseconds => format!("{}.{milliseconds:03}s", time.as_secs()),
    }
}
