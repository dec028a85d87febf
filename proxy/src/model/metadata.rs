//! Dynamic metadata of one request: what its filters found out, for later filters, rules and log lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Values by filter, then key (Envoy's `DynamicMetadata`). Empty, as of most requests, it owns no heap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<Arc<str>, Map<String, Value>>);

impl Metadata {
    /// Writes one key of a filter; an earlier value of it is replaced.
    pub fn set(&mut self, filter: &str, key: &str, value: Value) {
        match self.0.get_mut(filter) {
            Some(keys) => drop(keys.insert(key.to_owned(), value)),
            None => drop(
                self.0
                    .insert(filter.into(), Map::from_iter([(key.to_owned(), value)])),
            ),
        }
    }

    /// What stands at `path`, keys from the outside in; an empty path is no place.
    pub fn get<K: AsRef<str>>(&self, filter: &str, path: &[K]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let value = self.0.get(filter)?.get(first.as_ref())?;
        rest.iter()
            .try_fold(value, |value, key| value.as_object()?.get(key.as_ref()))
    }

    /// All that a filter wrote, by key.
    pub fn of(&self, filter: &str) -> Option<&Map<String, Value>> {
        self.0.get(filter)
    }

    /// Whether no filter wrote anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let mut metadata = Metadata::default();
        assert!(metadata.is_empty());
        metadata.set("f", "a", serde_json::json!({"b": {"c": 1}}));
        metadata.set("f", "d", "text".into());
        metadata.set("f", "d", "newer".into());
        assert_eq!(metadata.get("f", &["a", "b", "c"]), Some(&1.into()));
        assert_eq!(metadata.get("f", &["d"]), Some(&"newer".into()));
        for path in [&[][..], &["x"], &["a", "x"], &["d", "x"]] {
            assert_eq!(metadata.get("f", path), None, "{path:?}");
        }
        assert_eq!(metadata.get("g", &["a"]), None);
        assert_eq!(metadata.of("f").map(Map::len), Some(2));
        assert_eq!(metadata.of("g"), None);
    }
}
