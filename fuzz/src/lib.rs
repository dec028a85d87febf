//! What the targets share: properties that hold for every decoder of Consul's JSON, PEM, and matchers of
//! requests.

pub mod matching;

use std::fmt::Debug;

use attache::control::consul::DecodeError;
use data_encoding::BASE64;
use serde_json::Value;

/// Decodes `body`, and checks what every decoder promises: an error names the field and the reason,
/// and Go's three spellings of "absent" read alike.
pub fn decode<T: PartialEq + Debug>(
    body: &[u8],
    decode: fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let result = decode(body);
    if let Err(error) = &result {
        assert!(!error.field.is_empty() && !error.why.is_empty(), "{error:?}");
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            // Both are written anew, so that a number's last digit is the same in both.
            let with_nulls = decode(value.to_string().as_bytes());
            let without = decode(without_nulls(value).to_string().as_bytes());
            assert_eq!(with_nulls, without, "a null is not the same as nothing");
        }
        Err(_) => match &result {
            Err(error) => assert_eq!(error.field, "body"),
            Ok(decoded) => panic!("this is no JSON, but reads as {decoded:?}"),
        },
    }
    result
}

/// The document without its null members, but for the opaque `Config` maps, which are kept as they
/// are.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let members = map.into_iter().filter(|(_, value)| !value.is_null());
            let stripped = members.map(|(key, value)| match key.as_str() {
                "Config" => (key, value),
                _ => (key, without_nulls(value)),
            });
            Value::Object(stripped.collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        plain => plain,
    }
}

/// A PEM block around arbitrary bytes.
pub fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let base64 = BASE64.encode(der);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
