//! Envoy's bootstrap file, as JSON and as YAML: a refusal says where, no token is in anything that is said,
//! and the same text reads the same.
//!
//! What stands behind a line `--config-yaml` is the overlay. Wherever a token or a key stands the target puts
//! one of its own: at each @ of a text that is no document, else in the values that are secret.

#![no_main]

use attache::control::xds::bootstrap::{Bootstrap, BootstrapError};
use attache_bootstrap::config::{LogConfig, LogFormat, LogLevel};
use attache_bootstrap::document::{Document, Format};
use attache_bootstrap::envoy::{
    DRAIN_TIME, ENVOY_VERSION, EnvoyConfig, Mode, NodeOverrides, TaskFolders, UnknownDynamicFields,
    UnknownFields,
};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;

/// Long enough that no input holds it by chance.
const SECRET: &str = "s3cr3t-7f1d6c0b-never-printed";

fuzz_target!(|input: &str| -> Corpus {
    if input.contains(SECRET) {
        return Corpus::Reject;
    }
    let (text, overlay) = match input.split_once("\n--config-yaml\n") {
        Some((text, overlay)) => (text, Some(overlay)),
        None => (input, None),
    };
    let overlay = overlay.and_then(|text| document(text, Format::Yaml));
    for format in [Format::Json, Format::Yaml] {
        let Some(document) = document(text, format) else {
            continue;
        };
        let text = document.value().to_string();
        read(Some((&text, Format::Json)), None);
        if overlay.is_some() {
            read(Some((&text, Format::Yaml)), overlay.clone());
        }
    }
    if overlay.is_some() {
        read(None, overlay);
    }
    Corpus::Keep
});

/// A text's document with the target's token in it; none where it is no document.
fn document(text: &str, format: Format) -> Option<Document> {
    // As it is, for nothing of it may be quoted.
    let marked = text.replace('@', SECRET);
    if let Err(error) = Document::parse(&marked, format) {
        assert!(error.line > 0 && !error.why.is_empty(), "{error:?}");
        secret_is_not_in(&error.to_string());
    }
    let mut value = Document::parse(text, format).ok()?.into_value();
    plant(&mut value, false);
    // The way back from a value leads over its text, of which YAML makes the same value as JSON.
    let planted = Document::parse(&value.to_string(), Format::Json).expect("a value's text is JSON");
    assert_eq!(*planted.value(), value);
    Some(planted)
}

/// Puts the token into every text below a field that holds one.
fn plant(value: &mut Value, secret: bool) {
    match value {
        // In front: of a long text only the beginning is ever quoted.
        Value::String(text) if secret => text.insert_str(0, SECRET),
        Value::Array(items) => items.iter_mut().for_each(|item| plant(item, secret)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "initial_metadata" | "initialMetadata" => plant_in_metadata(value),
                    "private_key" | "privateKey" | "password" => plant(value, true),
                    // Where a key is to be found is no secret.
                    "filename"
                    | "environment_variable"
                    | "environmentVariable"
                    | "watched_directory"
                    | "watchedDirectory" => {}
                    _ => plant(value, secret),
                }
            }
        }
        _ => {}
    }
}

fn plant_in_metadata(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(plant_in_metadata),
        Value::Object(header) => {
            for (name, value) in header {
                plant(value, matches!(name.as_str(), "value" | "raw_value" | "rawValue"));
            }
        }
        // A list is missing, and the token stands alone.
        _ => plant(value, true),
    }
}

fn read(text: Option<(&str, Format)>, overlay: Option<Document>) {
    let config = config(overlay);
    let first = Bootstrap::read(text, &config);
    let second = Bootstrap::read(text, &config);
    assert!(first == second, "the same text reads the same");
    match &first {
        Ok(bootstrap) => {
            secret_is_not_in(&format!("{bootstrap:?}"));
            bootstrap.notes.iter().for_each(|note| secret_is_not_in(note));
            if let Some(token) = bootstrap.ads.as_ref().and_then(|ads| ads.token.as_ref()) {
                assert!(!token.expose().is_empty());
            }
            assert!(!bootstrap.statistics.flush_interval.is_zero());
        }
        Err(error) => {
            match error {
                BootstrapError::Syntax(why) => assert!(why.contains("line "), "no place: {why}"),
                BootstrapError::Field(error) => {
                    assert!(!error.path.is_empty() && !error.problem.is_empty(), "{error:?}");
                }
                BootstrapError::Refused { field, why } => {
                    assert!(!field.is_empty() && !why.is_empty(), "{error:?}");
                }
            }
            secret_is_not_in(&format!("{error} {error:?}"));
        }
    }
}

fn secret_is_not_in(text: &str) {
    assert!(!text.contains(SECRET), "the token is printed: {text}");
}

fn config(config_yaml: Option<Document>) -> EnvoyConfig {
    EnvoyConfig {
        file: None,
        config_yaml,
        mode: Mode::Serve,
        concurrency: 1,
        log: LogConfig {
            level: LogLevel::Info,
            format: LogFormat::Text,
        },
        drain_time: DRAIN_TIME,
        parent_shutdown_time: DRAIN_TIME,
        base_id: 0,
        disable_hot_restart: true,
        node: NodeOverrides {
            zone: Some("zone".to_owned()),
            ..NodeOverrides::default()
        },
        unknown_fields: UnknownFields {
            static_allowed: false,
            dynamic: UnknownDynamicFields::default(),
        },
        admin_address_path: None,
        stats_tags: Vec::new(),
        token_files: Vec::new(),
        ready: None,
        task_folders: TaskFolders::default(),
        envoy_version: ENVOY_VERSION,
        ignored: Vec::new(),
        warnings: Vec::new(),
        notes: Vec::new(),
    }
}
