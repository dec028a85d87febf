//! What a good token adds to a request's headers and metadata.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::token::Token;
use crate::model::jwt::JwtProvider;

/// The payload as `forward_payload_header` has it.
pub(super) fn forwarded_payload(token: &Token, padded: bool) -> String {
    let mut payload = token.payload_base64url().to_owned();
    if padded {
        while !payload.len().is_multiple_of(4) {
            payload.push('=');
        }
    }
    payload
}

/// A claim as a header's value; `None` for one that is not there, null or empty.
pub(super) fn claim_header<K: AsRef<str>>(payload: &Map<String, Value>, path: &[K]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let claim = rest.iter().try_fold(payload.get(first.as_ref())?, |value, key| {
        value.as_object()?.get(key.as_ref())
    })?;
    let text = match claim {
        Value::Null => return None,
        Value::Bool(yes) => yes.to_string(),
        Value::String(text) => text.clone(),
        // Whole numbers that a `u64` has; all others with six digits after the point.
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(double)) => format!("{double:.6}"),
            (None, None) => return None,
        },
        Value::Array(_) | Value::Object(_) => STANDARD.encode(json(claim)),
    };
    (!text.is_empty()).then_some(text)
}

/// The payload as `payload_in_metadata` has it: the text of some claims becomes a list, cut at spaces.
pub(super) fn normalized_payload(token: &Token, provider: &JwtProvider) -> Value {
    let mut payload = token.payload.clone();
    for claim in &provider.space_delimited_claims {
        if let Some(Value::String(text)) = payload.get(&**claim) {
            let words: Vec<Value> = text
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(Value::from)
                .collect();
            // Without a word Envoy leaves the text.
            if !words.is_empty() {
                payload.insert(claim.to_string(), words.into());
            }
        }
    }
    Value::Object(payload)
}

/// As protobuf writes JSON. Its members have no order; here they are sorted.
fn json(value: &Value) -> String {
    let mut text = String::new();
    write_json(value, &mut text);
    text
}

fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&double(number.as_f64().unwrap_or_default())),
        Value::String(text) => write_text(text, out),
        Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_json(value, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_text(name, out);
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
    }
}

/// With what a browser or a script could take for its own escaped too.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '\u{2028}' | '\u{2029}' | '\u{7f}'..='\u{9f}' | ..' ' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// C's `%.15g`, or `%.17g` where fifteen digits are not enough.
fn double(value: f64) -> String {
    // The shortest digits that mean this number, and its exponent.
    let shortest = format!("{value:e}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let precision = if digits <= 15 { 15 } else { 17 };
    match exponent.parse::<i32>() {
        Ok(exponent) if exponent < -4 || exponent >= precision => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (1e15, "1e+15"),
            (1e14, "100000000000000"),
            (1e-7, "1e-07"),
            (0.0001, "0.0001"),
            (123_456_789.125, "123456789.125"),
            (1e300, "1e+300"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(double(value), text);
        }
    }

    #[test]
    fn text_that_a_script_could_take_for_its_own() {
        assert_eq!(
            json(&serde_json::json!({"b": "<\u{e9}\u{2028}>", "a": "\"\\/\u{1}\n"})),
            "{\"a\":\"\\\"\\\\/\\u0001\\n\",\"b\":\"\\u003c\u{e9}\\u2028\\u003e\"}"
        );
    }
}
