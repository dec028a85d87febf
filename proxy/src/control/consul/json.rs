//! Reading Consul's JSON with errors that name the field.
//!
//! Go writes an absent list or map as `null`, as `{}` or not at all: all three read as empty here.
//! Owns nothing; a [`Node`] borrows the parsed document.

use std::time::Duration;

use serde_json::{Map, Value};

use super::duration;

/// Why an answer is not what Consul documents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct DecodeError {
    /// The field's path, such as `Proxy.Upstreams[1].LocalBindPort`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl DecodeError {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            why: why.into(),
        }
    }
}

/// A time limit as Consul's entries have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeLimit {
    /// Absent or zero: the default holds.
    #[default]
    Unset,
    /// Negative: there is none.
    Never,
    /// This long.
    After(Duration),
}

/// Parses a document.
pub(super) fn parse(body: &[u8]) -> Result<Value, DecodeError> {
    // The parser's own message quotes no content, so a leaf's key cannot leak through it.
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        DecodeError::new("body", format!("not JSON (line {line}, column {column})"))
    })
}

/// One JSON object and where in the document it stands.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Node<'a> {
    /// The document itself, which must be an object.
    pub(super) fn root(value: &'a Value) -> Result<Self, DecodeError> {
        Self::new(value, String::new())
    }

    /// An object that stands at `at`.
    pub(super) fn new(value: &'a Value, at: String) -> Result<Self, DecodeError> {
        match value.as_object() {
            Some(map) => Ok(Self { map, at }),
            None if at.is_empty() => Err(DecodeError::new("body", "not an object")),
            None => Err(DecodeError::new(at, "not an object")),
        }
    }

    /// The full path of a field of it.
    pub(super) fn path(&self, key: &str) -> String {
        if self.at.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.at)
        }
    }

    pub(super) fn error(&self, key: &str, why: impl Into<String>) -> DecodeError {
        DecodeError::new(self.path(key), why)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The raw value; `null` counts as absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A text; empty when absent.
    pub(super) fn text(&self, key: &str) -> Result<&'a str, DecodeError> {
        match self.value(key) {
            None => Ok(""),
            Some(value) => value.as_str().ok_or_else(|| self.error(key, "not a string")),
        }
    }

    /// A text; `None` when absent or empty.
    pub(super) fn some_text(&self, key: &str) -> Result<Option<String>, DecodeError> {
        let text = self.text(key)?;
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// A text that must be there.
    pub(super) fn need_text(&self, key: &str) -> Result<&'a str, DecodeError> {
        match self.text(key)? {
            "" => Err(self.error(key, "missing")),
            text => Ok(text),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, DecodeError> {
        match self.value(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(key, "not true or false")),
        }
    }

    /// A whole number; 0 when absent.
    pub(super) fn number(&self, key: &str) -> Result<i64, DecodeError> {
        match self.value(key) {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .ok_or_else(|| self.error(key, "not a whole number")),
        }
    }

    /// A TCP port; 0 when absent.
    pub(super) fn port(&self, key: &str) -> Result<u16, DecodeError> {
        let number = self.number(key)?;
        u16::try_from(number).map_err(|_| self.error(key, format!("{number} is no port")))
    }

    /// A Go duration as text (`5s`) or as nanoseconds; `None` when absent or zero.
    pub(super) fn duration(&self, key: &str) -> Result<Option<Duration>, DecodeError> {
        let parsed = match self.value(key) {
            None => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => duration::parse(text),
            Some(value) => value.as_u64().map(Duration::from_nanos),
        };
        let parsed = parsed.ok_or_else(|| self.error(key, "not a duration"))?;
        Ok((!parsed.is_zero()).then_some(parsed))
    }

    /// A Go duration whose sign counts, as text or as nanoseconds.
    pub(super) fn time_limit(&self, key: &str) -> Result<TimeLimit, DecodeError> {
        let negative = match self.value(key) {
            Some(Value::String(text)) => match text.strip_prefix('-') {
                Some(rest) => duration::parse(rest).is_some(),
                None => false,
            },
            Some(value) => value.as_i64().is_some_and(|nanoseconds| nanoseconds < 0),
            None => false,
        };
        if negative {
            return Ok(TimeLimit::Never);
        }
        Ok(self.duration(key)?.map_or(TimeLimit::Unset, TimeLimit::After))
    }

    /// A whole number from 0 up; 0 when absent.
    pub(super) fn count(&self, key: &str) -> Result<u32, DecodeError> {
        let number = self.number(key)?;
        u32::try_from(number).map_err(|_| self.error(key, format!("{number} is out of range")))
    }

    /// The paths of fields that hold something and are not in `known`.
    pub(super) fn unknown(&self, known: &[&str]) -> Vec<String> {
        let strange = self.keys().filter(|key| !known.contains(key));
        let said = strange.filter(|key| self.value(key).is_some_and(says_something));
        said.map(|key| self.path(key)).collect()
    }

    /// A nested object; `None` when absent.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, DecodeError> {
        self.value(key)
            .map(|value| Self::new(value, self.path(key)))
            .transpose()
    }

    /// A list of objects; empty when absent.
    pub(super) fn objects(&self, key: &str) -> Result<Vec<Self>, DecodeError> {
        let Some(value) = self.value(key) else {
            return Ok(Vec::new());
        };
        objects(value, &self.path(key))
    }

    /// A list of texts; empty when absent.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, DecodeError> {
        let Some(value) = self.value(key) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().ok_or_else(|| self.error(key, "not a list"))?;
        let text = |(i, v): (usize, &Value)| {
            let wrong = || self.error(&format!("{key}[{i}]"), "not a string");
            v.as_str().map(str::to_owned).ok_or_else(wrong)
        };
        list.iter().enumerate().map(text).collect()
    }

    /// A list of whole numbers; empty when absent.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<i64>, DecodeError> {
        let Some(value) = self.value(key) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().ok_or_else(|| self.error(key, "not a list"))?;
        let number = |(i, v): (usize, &Value)| {
            let wrong = || self.error(&format!("{key}[{i}]"), "not a whole number");
            v.as_i64().ok_or_else(wrong)
        };
        list.iter().enumerate().map(number).collect()
    }

    /// A map of texts in the order of its keys; empty when absent.
    pub(super) fn text_map(&self, key: &str) -> Result<Vec<(&'a str, &'a str)>, DecodeError> {
        let Some(map) = self.object(key)? else {
            return Ok(Vec::new());
        };
        let mut pairs = Vec::new();
        for name in map.keys().filter(|name| map.value(name).is_some()) {
            pairs.push((name, map.text(name)?));
        }
        pairs.sort_unstable();
        Ok(pairs)
    }

    /// A map of objects; empty when absent.
    pub(super) fn map(&self, key: &str) -> Result<Vec<(&'a str, Self)>, DecodeError> {
        let Some(map) = self.object(key)? else {
            return Ok(Vec::new());
        };
        let entries = map.map.iter().filter(|(_, value)| !value.is_null());
        entries
            .map(|(name, value)| Ok((name.as_str(), Self::new(value, map.path(name))?)))
            .collect()
    }
}

/// Consul also writes empty objects and falses, which ask for nothing.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => map.values().any(says_something),
    }
}

/// The objects of a list that stands at `at`.
pub(super) fn objects<'a>(value: &'a Value, at: &str) -> Result<Vec<Node<'a>>, DecodeError> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    let field = if at.is_empty() { "body" } else { at };
    let list = value
        .as_array()
        .ok_or_else(|| DecodeError::new(field, "not a list"))?;
    let node = |(i, v)| Node::new(v, format!("{at}[{i}]"));
    list.iter().enumerate().map(node).collect()
}

/// An opaque `Config` map: Consul compares its keys without case and underscores, and takes a number
/// written as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opaque(Vec<(String, Value)>);

impl Opaque {
    pub(super) fn read(node: &Node<'_>, key: &str) -> Result<Self, DecodeError> {
        let Some(map) = node.object(key)? else {
            return Ok(Self::default());
        };
        let pairs = map.map.iter().filter(|(_, value)| !value.is_null());
        Ok(Self(pairs.map(|(k, v)| (k.clone(), v.clone())).collect()))
    }

    /// The keys as they were written.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let wanted = plain(key);
        self.0.iter().find(|(k, _)| plain(k) == wanted).map(|(_, v)| v)
    }

    /// A text; `None` when absent, empty or of another type.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// A whole number.
    ///
    /// # Errors
    /// The value as it was written, when it is no whole number from 0 up.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => weak_number(value).map(Some).ok_or_else(|| value.to_string()),
        }
    }

    /// A nested map.
    pub(super) fn nested(&self, key: &str) -> Option<Self> {
        let value = match self.get(key)? {
            // HCL writes a block as a list of one map.
            Value::Array(list) => list.first()?,
            value => value,
        };
        let pairs = value.as_object()?.iter().filter(|(_, v)| !v.is_null());
        Some(Self(pairs.map(|(k, v)| (k.clone(), v.clone())).collect()))
    }
}

/// A key in the form in which Consul compares it.
pub(super) fn plain(key: &str) -> String {
    let letters = key.chars().filter(|c| *c != '_');
    letters.flat_map(char::to_lowercase).collect()
}

fn weak_number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            let whole = float.fract() == 0.0 && (0.0..9e15).contains(&float);
            whole.then(|| format!("{float}").parse().ok()).flatten()
        }),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(set) => Some(u64::from(*set)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_path() {
        let value = parse(br#"{"A":{"B":[{"Port":70000},7]}, "N": null}"#).unwrap();
        let root = Node::root(&value).unwrap();
        assert!(root.object("N").unwrap().is_none());
        let a = root.object("A").unwrap().unwrap();
        assert_eq!(a.objects("B").unwrap_err().to_string(), "A.B[1]: not an object");
        let value = parse(br#"{"A":{"B":[{"Port":70000}]}}"#).unwrap();
        let root = Node::root(&value).unwrap();
        let list = root.object("A").unwrap().unwrap().objects("B").unwrap();
        assert_eq!(
            list[0].port("Port").unwrap_err().to_string(),
            "A.B[0].Port: 70000 is no port"
        );
    }

    #[test]
    fn opaque_maps_are_read_as_consul_reads_them() {
        let value =
            parse(br#"{"Config":{"BindPort":"8443","Limits":[{"MaxConnections":5.0}],"x":-1}}"#).unwrap();
        let config = Opaque::read(&Node::root(&value).unwrap(), "Config").unwrap();
        assert_eq!(config.number("bind_port"), Ok(Some(8443)));
        let limits = config.nested("limits").unwrap();
        assert_eq!(limits.number("max_connections"), Ok(Some(5)));
        assert_eq!(config.number("x"), Err("-1".to_owned()));
        assert_eq!(config.number("absent"), Ok(None));
    }

    #[test]
    fn the_sign_of_a_time_limit_counts() {
        let body = br#"{"A":"1s","B":-1000000000,"C":"-1m","D":"0s","E":"soon","F":250000000}"#;
        let value = parse(body).unwrap();
        let root = Node::root(&value).unwrap();
        assert_eq!(root.time_limit("A"), Ok(TimeLimit::After(Duration::from_secs(1))));
        assert_eq!(root.time_limit("B"), Ok(TimeLimit::Never));
        assert_eq!(root.time_limit("C"), Ok(TimeLimit::Never));
        assert_eq!(root.time_limit("D"), Ok(TimeLimit::Unset));
        assert_eq!(root.time_limit("E").unwrap_err().field, "E");
        assert_eq!(
            root.time_limit("F"),
            Ok(TimeLimit::After(Duration::from_millis(250)))
        );
        assert_eq!(root.time_limit("G"), Ok(TimeLimit::Unset));
    }

    #[test]
    fn a_broken_body_is_not_quoted() {
        let error = parse(b"{\"PrivateKeyPEM\": \"secret").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
