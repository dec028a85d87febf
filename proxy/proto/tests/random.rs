//! Random JSON and random bytes get an answer or an error, never a panic; the seeds are fixed.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use attache_proto::{envoy, json, unknown_fields};
use fastrand::Rng;
use prost::Message;
use serde_json::{Map, Value};

const DUMP: &str = "envoy.admin.v3.ConfigDump";
const TYPES: [&str; 6] = [
    DUMP,
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.listener.v3.Listener",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "google.protobuf.Any",
    "google.protobuf.Value",
];

fn recorded() -> Value {
    serde_json::from_str(include_str!("recorded/l7_web-1_config_dump.json")).unwrap()
}

/// All keys and strings of a document: words that mean something to the reader.
fn words(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            found.push(key.clone());
            words(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| words(item, found)),
        Value::String(text) => found.push(text.clone()),
        _ => {}
    }
}

fn any_json(rng: &mut Rng, words: &[String], depth: usize) -> Value {
    let word = |rng: &mut Rng| words.get(rng.usize(..words.len())).cloned().unwrap_or_default();
    match rng.u8(if depth == 0 { 0..6 } else { 0..10 }) {
        0 => Value::Null,
        1 => Value::from(rng.bool()),
        2 => Value::from(rng.i64(..) >> rng.u32(0..64)),
        3 => Value::from(f64::from_bits(rng.u64(..))),
        4 => Value::from(rng.u64(..).to_string()),
        5 => Value::from(word(rng)),
        6 => (0..rng.usize(..4))
            .map(|_| any_json(rng, words, depth - 1))
            .collect(),
        _ => {
            let mut map = Map::new();
            for _ in 0..rng.usize(..6) {
                map.insert(word(rng), any_json(rng, words, depth - 1));
            }
            Value::Object(map)
        }
    }
}

/// Replaces some values of a document that the reader takes.
fn disturb(rng: &mut Rng, value: &mut Value, words: &[String]) {
    if rng.u8(..) < 2 {
        *value = any_json(rng, words, 3);
        return;
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| disturb(rng, value, words)),
        Value::Array(items) => items.iter_mut().for_each(|item| disturb(rng, item, words)),
        _ => {}
    }
}

/// What was read comes back and is read to the same again.
fn check(type_name: &str, value: &Value) -> bool {
    let mut diagnostics = json::Diagnostics::default();
    let Ok(bytes) = json::to_wire(type_name, value, &mut diagnostics) else {
        return false;
    };
    let options = json::Options::default();
    let back = json::from_wire(type_name, &bytes, options).unwrap();
    let again = json::to_wire(type_name, &back, &mut json::Diagnostics::default()).unwrap();
    assert_eq!(json::from_wire(type_name, &again, options).unwrap(), back);
    assert_eq!(unknown_fields(type_name, &bytes).unwrap(), vec![]);
    true
}

#[test]
fn random_json() {
    let document = recorded();
    let mut found = Vec::new();
    words(&document, &mut found);
    let mut rng = Rng::with_seed(1);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..3000 {
        let mut value = any_json(&mut rng, &found, 5);
        if round % 30 == 0 {
            value = document.clone();
            disturb(&mut rng, &mut value, &found);
        }
        for type_name in TYPES {
            *(if check(type_name, &value) {
                &mut taken
            } else {
                &mut refused
            }) += 1;
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn random_bytes() {
    let document = recorded();
    let whole = json::to_wire(DUMP, &document, &mut json::Diagnostics::default()).unwrap();
    let mut rng = Rng::with_seed(2);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..2000 {
        let bytes: Vec<u8> = if round % 4 == 0 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..8) {
                let at = rng.usize(..bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.u8(..);
                }
            }
            bytes.truncate(rng.usize(bytes.len() / 2..=bytes.len()));
            bytes
        } else {
            (0..rng.usize(..64)).map(|_| rng.u8(..)).collect()
        };
        for type_name in TYPES {
            let _ = unknown_fields(type_name, &bytes);
            for redact in [false, true] {
                let options = json::Options {
                    redact,
                    defaults: rng.bool(),
                };
                match json::from_wire(type_name, &bytes, options) {
                    Ok(_) => taken += 1,
                    Err(_) => refused += 1,
                }
            }
        }
        // Debug goes the same way.
        if let Ok(listener) = envoy::config::listener::v3::Listener::decode(bytes.as_slice()) {
            assert!(!format!("{listener:?}").is_empty());
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}
