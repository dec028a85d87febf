//! JSON as Envoy writes it into lines: members sorted by name, numbers as a `Struct` has them.

use serde_json::Value;

/// Appends a value; objects nest as deep as they do.
pub fn push_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => {
            out.extend_from_slice(value.to_string().as_bytes())
        }
        Value::Number(value) => out.extend_from_slice(number(value).as_bytes()),
        Value::Array(values) => {
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                push_value(value, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::from(name.as_str()).to_string().as_bytes());
                out.push(b':');
                push_value(value, out);
            }
            out.push(b'}');
        }
    }
}

/// A number as Envoy writes it: a `Struct` has doubles only, so that 1000.0 is 1000; exponents have at
/// least two digits, as C has them.
pub(super) fn number(number: &serde_json::Number) -> String {
    let whole = number
        .as_f64()
        .filter(|value| value.fract() == 0.0 && value.abs() < 1e15);
    if let Some(value) = whole {
        return format!("{value:.0}");
    }
    let shortest = number.to_string();
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let digits = exponent.trim_start_matches(['+', '-']);
    let sign = if exponent.starts_with('-') { '-' } else { '+' };
    format!("{mantissa}e{sign}{digits:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_envoy_does() {
        let value = serde_json::json!({
            "s": "text", "n": 1.5, "b": true, "l": [1, "x", null], "o": {"k": "v", "a": 2.0}, "nul": null,
            "q": "a\"b\nc", "big": 1e20
        });
        let mut out = Vec::new();
        push_value(&value, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"b":true,"big":1e+20,"l":[1,"x",null],"n":1.5,"nul":null,"o":{"a":2,"k":"v"},"q":"a\"b\nc","s":"text"}"#
        );
    }
}
