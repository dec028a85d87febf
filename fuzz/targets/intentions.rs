//! `/v1/connect/intentions/match`: the order of precedence is Consul's, whatever order they come in.

#![no_main]

use std::collections::BTreeSet;

use attache::control::consul::intentions::{self, Intention};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let Ok(found) = attache_fuzz::decode(body, intentions::decode) else {
        return;
    };
    for intention in &found {
        assert!(!intention.source.is_empty() && !intention.destination.is_empty());
        assert!(!intention.source_namespace.is_empty() && !intention.destination_namespace.is_empty());
    }
    if found.iter().all(|intention| intention.precedence > 0) {
        let in_order = |pair: &[Intention]| pair[0].precedence >= pair[1].precedence;
        assert!(found.windows(2).all(in_order), "{found:#?}");
    }
    // Consul has one intention for a pair of names; where that holds, no two are equal in the order.
    let names: BTreeSet<_> = found.iter().map(names).collect();
    if names.len() == found.len() {
        let backwards = backwards(body).to_string();
        assert_eq!(intentions::decode(backwards.as_bytes()), Ok(found));
    }
});

fn names(intention: &Intention) -> [&str; 8] {
    [
        &intention.source_group,
        &intention.source_peer,
        &intention.source_partition,
        &intention.source_namespace,
        &intention.source,
        &intention.destination_partition,
        &intention.destination_namespace,
        &intention.destination,
    ]
}

/// The same document with its lists the other way round.
fn backwards(body: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        for list in map.values_mut().filter_map(Value::as_array_mut) {
            list.reverse();
        }
    }
    value
}
