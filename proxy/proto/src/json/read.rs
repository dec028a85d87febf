//! JSON to wire bytes.

use super::{Diagnostics, JsonError, text};
use crate::{
    path::{MAX_DEPTH, Path},
    table::{self, Field, Kind, Label, Message, Special},
    wire::{put_bytes, put_tag, put_varint},
};
use serde_json::{Map, Value};
use std::fmt::Write;

type Read<T = ()> = Result<T, JsonError>;

/// Longest piece of somebody's JSON that an error repeats, in characters.
const MAX_QUOTE: usize = 60;

pub(super) fn to_wire(type_name: &str, value: &Value, diagnostics: &mut Diagnostics) -> Read<Vec<u8>> {
    let Some(table) = table::message(type_name) else {
        return Err(JsonError {
            path: type_name.to_owned(),
            problem: "is no type that is known here".to_owned(),
        });
    };
    let mut reader = Reader {
        path: Path::new(table.name()),
        diagnostics,
    };
    let mut out = Vec::new();
    reader.message(
        table,
        value,
        At {
            strict: false,
            secret: false,
            depth: MAX_DEPTH,
        },
        &mut out,
    )?;
    Ok(out)
}

/// What holds at a place of the JSON.
#[derive(Clone, Copy)]
struct At {
    /// Unknown fields are errors.
    strict: bool,
    /// Errors do not repeat what stands here.
    secret: bool,
    /// How many more messages may nest.
    depth: usize,
}

struct Reader<'d> {
    path: Path,
    diagnostics: &'d mut Diagnostics,
}

impl Reader<'_> {
    fn error<T>(&self, problem: impl Into<String>) -> Read<T> {
        Err(JsonError::new(&self.path, problem))
    }

    fn expected<T>(&self, what: &str, value: &Value, at: At) -> Read<T> {
        self.error(format!("expected {what}, got {}", describe(value, at.secret)))
    }

    /// What holds within a message.
    fn below(&self, table: &Message, at: At) -> Read<At> {
        let Some(depth) = at.depth.checked_sub(1) else {
            return self.error(format!("messages are nested more than {MAX_DEPTH} deep"));
        };
        Ok(At {
            depth,
            strict: at.strict || table.is_strict(),
            ..at
        })
    }

    fn message(&mut self, table: &'static Message, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        let at = self.below(table, at)?;
        match table.special {
            Special::Plain | Special::Empty => {
                let Value::Object(map) = value else {
                    return self.expected("an object", value, at);
                };
                self.object(table, map, false, at, out)
            }
            Special::Any => self.any(value, at, out),
            Special::Struct => {
                let Value::Object(_) = value else {
                    return self.expected("an object", value, at);
                };
                self.fields_of(table, value, at, out)
            }
            Special::ListValue => {
                let Value::Array(_) = value else {
                    return self.expected("a list", value, at);
                };
                self.fields_of(table, value, at, out)
            }
            Special::Value => self.value(table, value, at, out),
            Special::Duration => {
                let Some((seconds, nanos)) = value.as_str().and_then(text::parse_duration) else {
                    return self.expected("a duration such as \"5s\" or \"0.25s\"", value, at);
                };
                put_time(seconds, nanos, out);
                Ok(())
            }
            Special::Timestamp => {
                let Some((seconds, nanos)) = value.as_str().and_then(text::parse_timestamp) else {
                    return self.expected("a time such as \"2026-01-31T12:00:00Z\"", value, at);
                };
                put_time(seconds, nanos, out);
                Ok(())
            }
            Special::FieldMask => {
                let Some(paths) = value.as_str() else {
                    return self.expected("a string of field paths", value, at);
                };
                for path in paths.split(',').filter(|path| !path.is_empty()) {
                    put_bytes(1, text::snake_case(path).as_bytes(), out);
                }
                Ok(())
            }
            _ => self.fields_of(table, value, at, out),
        }
    }

    /// A message whose JSON is that of its only field: wrappers, `Struct`, `ListValue`.
    fn fields_of(&mut self, table: &'static Message, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        match table.fields().first() {
            Some(field) if field.label == Label::Implicit => self.single(field, value, at, out),
            Some(field) => self.many(field, value, at, out),
            None => Ok(()),
        }
    }

    fn object(
        &mut self,
        table: &'static Message,
        map: &Map<String, Value>,
        in_any: bool,
        at: At,
        out: &mut Vec<u8>,
    ) -> Read {
        // At most 128 fields (the generator sees to it): a bit each.
        let mut seen = 0_u128;
        let mut oneofs: Vec<&'static Field> = Vec::new();
        for (key, value) in map {
            if in_any && key == "@type" {
                continue;
            }
            let Some((index, field)) = table.by_key(key) else {
                self.unknown(table, key, at)?;
                continue;
            };
            let is_null_value = || {
                field
                    .message()
                    .is_some_and(|table| table.special == Special::Value)
            };
            if value.is_null() && !(field.label == Label::Optional && is_null_value()) {
                continue;
            }
            self.path.enter(field.name());
            if seen & 1 << index != 0 {
                return self.error("stands there twice, in snake_case and in lowerCamelCase");
            }
            seen |= 1 << index;
            if field.oneof() != 0 {
                if let Some(other) = oneofs.iter().find(|other| other.oneof() == field.oneof()) {
                    return self.error(format!(
                        "cannot stand beside {}: choose one of them",
                        other.name()
                    ));
                }
                oneofs.push(field);
            }
            let below = At {
                secret: (at.secret || field.is_sensitive()) && !field.is_public(),
                ..at
            };
            match field.label {
                Label::Repeated | Label::Map => self.many(field, value, below, out)?,
                Label::Implicit | Label::Optional => self.single(field, value, below, out)?,
            }
            self.path.leave();
        }
        Ok(())
    }

    fn unknown(&mut self, table: &Message, key: &str, at: At) -> Read {
        let path = self.path.within(&shorten(key));
        if at.strict {
            let problem = format!(
                "is no field of {} that is known here: it cannot be ignored",
                table.name()
            );
            return Err(JsonError { path, problem });
        }
        self.diagnostics.warn(
            path,
            format!("is no field of {} that is known here: ignored", table.name()),
        );
        Ok(())
    }

    /// A field that stands once.
    fn single(&mut self, field: &'static Field, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        let mut body = Vec::new();
        if let Some(table) = field.message() {
            self.message(table, value, at, &mut body)?;
            put_bytes(field.number(), &body, out);
            return Ok(());
        }
        let is_default = self.scalar(field, value, at, &mut body)?;
        if !is_default || field.label == Label::Optional {
            put_scalar(field, &body, out);
        }
        Ok(())
    }

    /// A list or a map.
    fn many(&mut self, field: &'static Field, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        match (field.label, value) {
            (Label::Map, Value::Object(map)) => {
                for (key, value) in map {
                    self.path.enter_key(&shorten(key));
                    self.entry(field, key, value, at, out)?;
                    self.path.leave();
                }
                Ok(())
            }
            (Label::Map, _) => self.expected("an object", value, at),
            (_, Value::Array(items)) => self.items(field, items, at, out),
            // Consul's bootstrap writes the list `grpc_services` as its one object, and Envoy takes it.
            (_, Value::Object(_)) if field.kind == Kind::Message => {
                self.items(field, std::slice::from_ref(value), at, out)
            }
            _ => self.expected("a list", value, at),
        }
    }

    fn items(&mut self, field: &'static Field, items: &[Value], at: At, out: &mut Vec<u8>) -> Read {
        let mut packed = Vec::new();
        for (index, item) in items.iter().enumerate() {
            self.path.enter_index(index);
            match field.kind {
                Kind::Message => self.single(field, item, at, out)?,
                Kind::String | Kind::Bytes => {
                    let mut body = Vec::new();
                    self.scalar(field, item, at, &mut body)?;
                    put_scalar(field, &body, out);
                }
                _ => drop(self.scalar(field, item, at, &mut packed)?),
            }
            self.path.leave();
        }
        if !packed.is_empty() {
            put_bytes(field.number(), &packed, out);
        }
        Ok(())
    }

    fn entry(&mut self, field: &'static Field, key: &str, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        let Some([key_field, value_field]) = field.message().map(Message::fields) else {
            return Ok(());
        };
        let mut body = Vec::new();
        let key = match key_field.kind {
            Kind::Bool => key.parse().map_or_else(|_| Value::from(key), Value::Bool),
            _ => Value::from(key),
        };
        self.single(key_field, &key, At { secret: false, ..at }, &mut body)?;
        self.single(value_field, value, at, &mut body)?;
        put_bytes(field.number(), &body, out);
        Ok(())
    }

    fn any(&mut self, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        let Value::Object(map) = value else {
            return self.expected("an object with \"@type\"", value, at);
        };
        let url = match map.get("@type") {
            Some(Value::String(url)) if url.contains('/') => url,
            None if map.is_empty() => return Ok(()),
            None => {
                return self.error(
                    "\"@type\" is missing: add the type, such as \"type.googleapis.com/package.Message\"",
                );
            }
            Some(other) => {
                return self.expected(
                    "a type URL such as \"type.googleapis.com/package.Message\" in \"@type\"",
                    other,
                    at,
                );
            }
        };
        put_bytes(1, url.as_bytes(), out);
        let Some(table) = table::message_of_url(url) else {
            let problem = format!(
                "the type {} is not known here: its content is left out",
                shorten(url)
            );
            self.diagnostics.warn(self.path.to_string(), problem);
            return Ok(());
        };
        let mut body = Vec::new();
        if !table.special.is_value_in_any() {
            let at = self.below(table, at)?;
            self.object(table, map, true, at, &mut body)?;
        } else if let Some(value) = map.get("value") {
            self.message(table, value, at, &mut body)?;
        }
        if !body.is_empty() {
            put_bytes(2, &body, out);
        }
        Ok(())
    }

    /// `google.protobuf.Value`: any JSON.
    fn value(&mut self, table: &'static Message, value: &Value, at: At, out: &mut Vec<u8>) -> Read {
        let member = match value {
            Value::Null => 1,
            Value::Number(_) => 2,
            Value::String(_) => 3,
            Value::Bool(_) => 4,
            Value::Object(_) => 5,
            Value::Array(_) => 6,
        };
        match table.by_number(member) {
            Some((_, field)) if value.is_null() => self.single(field, &Value::from(0), at, out),
            Some((_, field)) => self.single(field, value, at, out),
            None => Ok(()),
        }
    }

    /// The bytes of a scalar without its tag (and without length), and whether it is the default.
    fn scalar(&self, field: &Field, value: &Value, at: At, out: &mut Vec<u8>) -> Read<bool> {
        match field.kind {
            Kind::String => {
                let Value::String(text) = value else {
                    return self.expected("a string", value, at);
                };
                out.extend_from_slice(text.as_bytes());
                Ok(text.is_empty())
            }
            Kind::Bytes => {
                let Some(bytes) = value.as_str().and_then(text::parse_base64) else {
                    return self.expected("bytes in base64", value, at);
                };
                out.extend_from_slice(&bytes);
                Ok(bytes.is_empty())
            }
            Kind::Bool => {
                let Value::Bool(flag) = value else {
                    return self.expected("true or false", value, at);
                };
                out.push(u8::from(*flag));
                Ok(!flag)
            }
            Kind::Enum => self.enumeration(field, value, at, out),
            Kind::Double => {
                let number = self.float(value, f64::MAX, at)?;
                out.extend_from_slice(&number.to_le_bytes());
                Ok(number.to_bits() == 0)
            }
            Kind::Float => {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "the bound was checked; the precision is the field's"
                )]
                let number = self.float(value, f32::MAX.into(), at)? as f32;
                out.extend_from_slice(&number.to_le_bytes());
                Ok(number.to_bits() == 0)
            }
            kind => self.integer(kind, value, at, out),
        }
    }

    fn enumeration(&self, field: &Field, value: &Value, at: At, out: &mut Vec<u8>) -> Read<bool> {
        let Some(of) = field.of_enum() else {
            return self.error("has an enum that is not known here");
        };
        let number = match value {
            Value::String(name) => of.number(name),
            _ => whole(value).and_then(|number| i32::try_from(number).ok()),
        };
        let Some(number) = number else {
            let mut names = String::from("one of");
            for (at, name) in of.names().enumerate() {
                // A String takes whatever is written to it.
                let _ = write!(names, "{} {name}", if at == 0 { "" } else { "," });
            }
            return self.expected(&names, value, at);
        };
        put_varint(i64::from(number).cast_unsigned(), out);
        Ok(number == 0)
    }

    fn float(&self, value: &Value, max: f64, at: At) -> Read<f64> {
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.as_str() {
                "NaN" => return Ok(f64::NAN),
                "Infinity" => return Ok(f64::INFINITY),
                "-Infinity" => return Ok(f64::NEG_INFINITY),
                _ => numeral(text),
            },
            _ => None,
        };
        match number.filter(|number| number.abs() <= max) {
            Some(number) => Ok(number),
            None => self.expected("a number", value, at),
        }
    }

    fn integer(&self, kind: Kind, value: &Value, at: At, out: &mut Vec<u8>) -> Read<bool> {
        let (min, max) = match kind {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i32::MIN.into(), i32::MAX.into()),
            Kind::Uint32 | Kind::Fixed32 => (0, u32::MAX.into()),
            Kind::Uint64 | Kind::Fixed64 => (0, u64::MAX.into()),
            _ => (i64::MIN.into(), i64::MAX.into()),
        };
        let Some(number) = whole(value).filter(|number| (min..=max).contains(number)) else {
            return self.expected(&format!("a number from {min} to {max}"), value, at);
        };
        // Two's complement of what fits, as the range was checked.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked against the kind's range"
        )]
        let bits = number as u64;
        match kind {
            Kind::Sint32 | Kind::Sint64 => {
                put_varint((bits << 1) ^ if number < 0 { u64::MAX } else { 0 }, out)
            }
            Kind::Fixed32 | Kind::Sfixed32 => {
                out.extend_from_slice(bits.to_le_bytes().first_chunk::<4>().unwrap_or(&[0; 4]))
            }
            Kind::Fixed64 | Kind::Sfixed64 => out.extend_from_slice(&bits.to_le_bytes()),
            _ => put_varint(bits, out),
        }
        Ok(number == 0)
    }
}

/// Digits, a point and an exponent only: what `f64` parses beyond that (`inf`) is no JSON.
fn numeral(text: &str) -> Option<f64> {
    let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
    text.bytes().all(plain).then(|| text.parse().ok())?
}

/// An integer, as a number or a string, also written as `1.0` or `1e3`.
fn whole(value: &Value) -> Option<i128> {
    let exact = |number: f64| {
        let fits = number.fract() == 0.0 && number.abs() <= 2_f64.powi(64);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a whole number far within the range"
        )]
        fits.then_some(number as i128)
    };
    match value {
        Value::Number(number) => {
            let int = number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from));
            int.or_else(|| number.as_f64().and_then(exact))
        }
        Value::String(text) => text.parse().ok().or_else(|| numeral(text).and_then(exact)),
        _ => None,
    }
}

/// Tag and body of a scalar.
fn put_scalar(field: &Field, body: &[u8], out: &mut Vec<u8>) {
    match field.kind.wire_type() {
        2 => put_bytes(field.number(), body, out),
        wire_type => {
            put_tag(field.number(), wire_type, out);
            out.extend_from_slice(body);
        }
    }
}

/// `Duration` and `Timestamp` have the same fields.
fn put_time(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    for (number, value) in [(1, seconds), (2, nanos.into())] {
        if value != 0 {
            put_tag(number, 0, out);
            put_varint(value.cast_unsigned(), out);
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

fn describe(value: &Value, secret: bool) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if !secret => format!("{:?}", shorten(text)),
        Value::String(_) => "another string".to_owned(),
        _ if secret => "another value".to_owned(),
        other => other.to_string(),
    }
}
