//! JSON as Envoy reads it into a `Struct`: numbers are doubles, no key comes twice, nesting is bounded.
//!
//! Stricter than Envoy in what no issuer writes: it also takes single quotes, trailing commas and raw control
//! characters.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Objects and lists within each other; Envoy refuses the next.
const MAX_DEPTH: u32 = 100;

/// What is left over in the last letter is not looked at, as by Envoy.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// One JSON object; `null` is an empty one, as it is to Envoy. `None` for anything else.
pub(super) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Nested(MAX_DEPTH).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value {
        Value::Object(map) => Some(map),
        Value::Null => Some(Map::new()),
        _ => None,
    }
}

/// The bytes of base64url: white space is skipped, padding is whole or not there.
pub(super) fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut letters: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let padded = letters.len();
    while letters.last() == Some(&b'=') {
        letters.pop();
    }
    let padding = padded - letters.len();
    if padding > 2 || (padding > 0 && !padded.is_multiple_of(4)) {
        return None;
    }
    BASE64URL.decode(letters).ok()
}

/// A number as a double has it, without a fraction where it has none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the bounds are checked"
)]
fn number(value: f64) -> Value {
    const ABOVE_U64: f64 = 18_446_744_073_709_551_616.0;
    const ABOVE_I64: f64 = 9_223_372_036_854_775_808.0;
    if value.fract() != 0.0 {
        value.into()
    } else if value.is_sign_positive() && value < ABOVE_U64 {
        (value as u64).into()
    } else if (-ABOVE_I64..0.0).contains(&value) {
        (value as i64).into()
    } else {
        value.into()
    }
}

/// A value within which so many levels may be.
struct Nested(u32);

impl Nested {
    fn inner<E: Error>(&self) -> Result<Self, E> {
        let left = self.0.checked_sub(1);
        left.map(Self).ok_or_else(|| E::custom("nests too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "it is a double to Envoy")]
    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(number(value as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "it is a double to Envoy")]
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.inner()?)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.inner()?)?;
            if values.insert(key, value).is_some() {
                return Err(A::Error::custom("a key comes twice"));
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_which_no_key_comes_twice() {
        assert!(object(b"{\"a\":{\"b\":[1,\"x\",null,true]}} ").is_some());
        assert_eq!(object(b"null"), Some(Map::new()));
        for text in [
            "[]",
            "1",
            "\"x\"",
            "",
            "{\"a\":1,\"\\u0061\":1}",
            "{\"a\":{\"b\":1,\"b\":1}}",
            "{} x",
        ] {
            assert_eq!(object(text.as_bytes()), None, "{text}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None);
    }

    #[test]
    fn a_hundred_levels() {
        let lists = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(lists(99).as_bytes()).is_some());
        assert_eq!(object(lists(100).as_bytes()), None);
        assert_eq!(object(lists(100_000).as_bytes()), None);
    }

    #[test]
    fn numbers_are_doubles() {
        let map = object(b"{\"a\":12345678901234567890,\"b\":-0.0,\"c\":1.50,\"d\":-7,\"e\":1e21,\"f\":2.0}")
            .unwrap();
        let shown = serde_json::to_string(&map).unwrap();
        assert_eq!(
            shown,
            "{\"a\":12345678901234567168,\"b\":-0.0,\"c\":1.5,\"d\":-7,\"e\":1e+21,\"f\":2}"
        );
        assert_eq!(object(b"{\"a\":1e400}"), None);
    }

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(base64url("YQ").unwrap(), b"a");
        assert_eq!(base64url("YQ==").unwrap(), b"a");
        assert_eq!(base64url(" Y\tQ = =").unwrap(), b"a");
        assert_eq!(base64url("YR").unwrap(), b"a", "left-over bits");
        assert_eq!(base64url("-_8").unwrap(), [0xfb, 0xff]);
        for text in ["Y", "YQ=", "YQ===", "YWI====", "+/8", "Y=Q", "YQ.", "\u{e9}"] {
            assert_eq!(base64url(text), None, "{text}");
        }
    }
}
