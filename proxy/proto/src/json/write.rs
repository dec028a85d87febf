//! Wire bytes to JSON.

use super::{Options, text};
use crate::{
    WireError,
    path::{MAX_DEPTH, Path},
    table::{self, Field, Kind, Label, Message, Special},
    unknown::any_parts,
    wire::{Malformed, Raw, Reader},
};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

/// What stands in place of a secret, as in Envoy's config dump.
const REDACTED: &str = "[redacted]";

pub(super) fn from_wire(type_name: &str, bytes: &[u8], options: Options) -> Result<Value, WireError> {
    let table = table::message(type_name).ok_or_else(|| WireError::unknown_type(type_name))?;
    let mut writer = Writer {
        path: Path::new(table.name()),
        options,
    };
    let at = At {
        hide: false,
        depth: MAX_DEPTH,
    };
    writer
        .message(table, bytes, at)
        .map_err(|problem| WireError::new(&writer.path, problem))
}

#[derive(Clone, Copy)]
struct At {
    /// Below a sensitive field, while redacting.
    hide: bool,
    /// How many more messages may nest.
    depth: usize,
}

struct Writer {
    path: Path,
    options: Options,
}

/// The values of a message's fields by position in its table, in the order of the bytes within each field. Of
/// a oneof only the last member stays.
fn collect<'a>(table: &'static Message, bytes: &'a [u8]) -> Result<Vec<(usize, Raw<'a>)>, Malformed> {
    let mut values: Vec<(usize, Raw<'a>)> = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        let (Some((at, field)), false) = (table.by_number(number), matches!(raw, Raw::Group)) else {
            continue;
        };
        if field.oneof() != 0 {
            let other = |at: usize| {
                table
                    .fields()
                    .get(at)
                    .is_some_and(|other| other.oneof() == field.oneof())
            };
            values.retain(|(earlier, _)| *earlier == at || !other(*earlier));
        }
        values.push((at, raw));
    }
    values.sort_by_key(|(at, _)| *at);
    Ok(values)
}

fn as_bytes(raw: Raw<'_>) -> Result<&[u8], Malformed> {
    match raw {
        Raw::Bytes(bytes) => Ok(bytes),
        _ => Err("the value has another wire type than the field"),
    }
}

/// One message of all its occurrences: protobuf merges them.
fn merged<'a>(values: &[(usize, Raw<'a>)]) -> Result<Cow<'a, [u8]>, Malformed> {
    if let [(_, raw)] = values {
        return Ok(Cow::Borrowed(as_bytes(*raw)?));
    }
    let mut all = Vec::new();
    for (_, raw) in values {
        all.extend_from_slice(as_bytes(*raw)?);
    }
    Ok(Cow::Owned(all))
}

impl Writer {
    fn message(&mut self, table: &'static Message, bytes: &[u8], at: At) -> Result<Value, Malformed> {
        let at = At {
            depth: at.depth.checked_sub(1).ok_or("messages are nested too deep")?,
            ..at
        };
        match table.special {
            Special::Plain | Special::Empty => {
                let mut object = Map::new();
                self.object(table, bytes, at, &mut object)?;
                Ok(Value::Object(object))
            }
            Special::Any => self.any(bytes, at),
            Special::Value => self.value(table, bytes, at),
            Special::Duration | Special::Timestamp => time(table, bytes, at),
            Special::FieldMask => {
                let mut paths = Vec::new();
                for (_, raw) in collect(table, bytes)? {
                    paths.push(text::camel_case(string(as_bytes(raw)?)?));
                }
                Ok(Value::from(paths.join(",")))
            }
            _ => self.only_field(table, bytes, at),
        }
    }

    /// A message whose JSON is that of its only field: wrappers, `Struct`, `ListValue`.
    fn only_field(&mut self, table: &'static Message, bytes: &[u8], at: At) -> Result<Value, Malformed> {
        let values = collect(table, bytes)?;
        let Some(field) = table.fields().first() else {
            return Ok(Value::Null);
        };
        if table.special.is_wrapper() {
            let raw = values.last().map_or_else(|| field.kind.zero(), |(_, raw)| *raw);
            let value = scalar(field, raw, at.hide)?;
            return value.map_or_else(
                || Ok(scalar(field, field.kind.zero(), false)?.unwrap_or(Value::Null)),
                Ok,
            );
        }
        self.many(field, &values, at)
    }

    fn object(
        &mut self,
        table: &'static Message,
        bytes: &[u8],
        at: At,
        object: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        let values = collect(table, bytes)?;
        let mut groups = values.chunk_by(|one, other| one.0 == other.0).peekable();
        for (index, field) in table.fields().iter().enumerate() {
            let is_of_field =
                |group: &&[(usize, Raw<'_>)]| group.first().is_some_and(|first| first.0 == index);
            let group = groups.next_if(is_of_field).unwrap_or_default();
            let hide = self.options.redact && (at.hide || field.is_sensitive()) && !field.is_public();
            let at = At { hide, ..at };
            self.path.enter(field.name());
            let value = match (field.label, field.message(), group.last()) {
                (Label::Repeated | Label::Map, ..) => Some(self.many(field, group, at)?)
                    .filter(|value| self.options.defaults || is_filled(value)),
                (_, Some(table), Some(_)) => Some(self.message(table, &merged(group)?, at)?),
                (Label::Implicit, None, last) => self.implicit(field, last.map(|(_, raw)| *raw), hide)?,
                (_, None, Some((_, raw))) => scalar(field, *raw, hide)?,
                (_, _, None) => None,
            };
            self.path.leave();
            if let Some(value) = value {
                object.insert(field.name().to_owned(), value);
            }
        }
        Ok(())
    }

    /// A scalar whose absence is its default.
    fn implicit(&self, field: &Field, raw: Option<Raw<'_>>, hide: bool) -> Result<Option<Value>, Malformed> {
        match raw.filter(|raw| !is_default(*raw)) {
            Some(raw) => scalar(field, raw, hide),
            None if self.options.defaults => scalar(field, field.kind.zero(), false),
            None => Ok(None),
        }
    }

    /// A list or a map.
    fn many(
        &mut self,
        field: &'static Field,
        values: &[(usize, Raw<'_>)],
        at: At,
    ) -> Result<Value, Malformed> {
        if field.label == Label::Map {
            let mut map = Map::new();
            for (_, raw) in values {
                let (key, value) = self.entry(field, as_bytes(*raw)?, at)?;
                map.insert(key, value);
            }
            return Ok(Value::Object(map));
        }
        let mut items = Vec::with_capacity(values.len());
        for (_, raw) in values {
            match (field.message(), raw) {
                (Some(table), raw) => {
                    self.path.enter_index(items.len());
                    items.push(self.message(table, as_bytes(*raw)?, at)?);
                    self.path.leave();
                }
                (None, Raw::Bytes(packed)) if field.kind.wire_type() != 2 => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        let raw = match field.kind.wire_type() {
                            0 => Raw::Varint(reader.varint()?),
                            1 => Raw::Fixed64(reader.fixed64()?),
                            _ => Raw::Fixed32(reader.fixed32()?),
                        };
                        items.extend(scalar(field, raw, at.hide)?);
                    }
                }
                (None, raw) => items.extend(scalar(field, *raw, at.hide)?),
            }
        }
        Ok(Value::Array(items))
    }

    fn entry(&mut self, field: &'static Field, bytes: &[u8], at: At) -> Result<(String, Value), Malformed> {
        let table = field.message().ok_or("a map has no entry")?;
        let [key_field, value_field] = table.fields() else {
            return Err("a map's entry has no key and value");
        };
        let values = collect(table, bytes)?;
        let last = |position| {
            values
                .iter()
                .rev()
                .find(|(at, _)| *at == position)
                .map(|(_, raw)| *raw)
        };
        let key = scalar(key_field, last(0).unwrap_or_else(|| key_field.kind.zero()), false)?;
        let key = match key {
            Some(Value::String(key)) => key,
            other => other.map(|key| key.to_string()).unwrap_or_default(),
        };
        self.path.enter_key(&key);
        let raw = last(1).unwrap_or_else(|| value_field.kind.zero());
        let value = match value_field.message() {
            Some(table) => self.message(table, as_bytes(raw)?, at)?,
            None => scalar(value_field, raw, at.hide)?.unwrap_or(Value::Null),
        };
        self.path.leave();
        Ok((key, value))
    }

    fn any(&mut self, bytes: &[u8], at: At) -> Result<Value, Malformed> {
        let (url, bytes) = any_parts(bytes)?;
        let mut object = Map::new();
        if url.is_empty() && bytes.is_empty() {
            return Ok(Value::Object(object));
        }
        object.insert("@type".to_owned(), Value::from(url));
        match table::message_of_url(url) {
            Some(table) if table.special.is_value_in_any() => {
                object.insert("value".to_owned(), self.message(table, bytes, at)?);
            }
            Some(table) => {
                let depth = at.depth.checked_sub(1).ok_or("messages are nested too deep")?;
                self.object(table, bytes, At { depth, ..at }, &mut object)?;
            }
            None if bytes.is_empty() => {}
            // What is in there cannot be told, nor then what of it is secret.
            None => {
                let shown = if self.options.redact {
                    REDACTED.as_bytes()
                } else {
                    bytes
                };
                object.insert("value".to_owned(), Value::from(text::format_base64(shown)));
            }
        }
        Ok(Value::Object(object))
    }

    /// `google.protobuf.Value`: any JSON.
    fn value(&mut self, table: &'static Message, bytes: &[u8], at: At) -> Result<Value, Malformed> {
        let values = collect(table, bytes)?;
        let Some((index, raw)) = values.last() else {
            return Ok(Value::Null);
        };
        let Some(field) = table.fields().get(*index) else {
            return Ok(Value::Null);
        };
        match (field.kind, field.message()) {
            (Kind::Enum, _) => Ok(Value::Null),
            (_, Some(table)) => self.message(table, &merged(&values)?, at),
            (_, None) => Ok(scalar(field, *raw, at.hide)?.unwrap_or(Value::Null)),
        }
    }
}

/// `Duration` and `Timestamp`: seconds and nanoseconds.
fn time(table: &'static Message, bytes: &[u8], at: At) -> Result<Value, Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    for (index, raw) in collect(table, bytes)? {
        match (index, raw) {
            _ if at.hide => {}
            (0, Raw::Varint(bits)) => seconds = bits.cast_signed(),
            #[allow(
                clippy::cast_possible_truncation,
                reason = "protobuf takes the low bits of an int32"
            )]
            (1, Raw::Varint(bits)) => nanos = bits as i32,
            _ => return Err("the value has another wire type than the field"),
        }
    }
    Ok(Value::from(match table.special {
        Special::Duration => text::format_duration(seconds, nanos),
        _ => text::format_timestamp(seconds, nanos),
    }))
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

fn is_default(raw: Raw<'_>) -> bool {
    match raw {
        Raw::Varint(bits) | Raw::Fixed64(bits) => bits == 0,
        Raw::Fixed32(bits) => bits == 0,
        Raw::Bytes(bytes) => bytes.is_empty(),
        Raw::Group => true,
    }
}

fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")
}

/// A float as JSON, whole ones without decimals as Envoy writes them.
fn float(number: f64) -> Value {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a whole number within the exact range"
    )]
    if number.fract() == 0.0 && number.abs() < 2_f64.powi(53) && !(number == 0.0 && number.is_sign_negative())
    {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or_else(
        || {
            Value::from(if number.is_nan() {
                "NaN"
            } else if number > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            })
        },
        Value::Number,
    )
}

/// The JSON of a scalar; nothing for a hidden one that is no text.
#[allow(
    clippy::cast_possible_truncation,
    reason = "protobuf takes the low bits where a field is narrower"
)]
fn scalar(field: &Field, raw: Raw<'_>, hide: bool) -> Result<Option<Value>, Malformed> {
    let value = match (field.kind, raw) {
        (Kind::String, Raw::Bytes(_)) if hide => Value::from(REDACTED),
        (Kind::Bytes, Raw::Bytes(_)) if hide => Value::from(text::format_base64(REDACTED.as_bytes())),
        _ if hide => return Ok(None),
        (Kind::String, Raw::Bytes(bytes)) => Value::from(string(bytes)?),
        (Kind::Bytes, Raw::Bytes(bytes)) => Value::from(text::format_base64(bytes)),
        (Kind::Bool, Raw::Varint(bits)) => Value::from(bits != 0),
        (Kind::Int32, Raw::Varint(bits)) => Value::from(bits as i32),
        (Kind::Uint32, Raw::Varint(bits)) => Value::from(bits as u32),
        (Kind::Sint32, Raw::Varint(bits)) => Value::from(unzigzag(bits) as i32),
        (Kind::Int64, Raw::Varint(bits)) => Value::from(bits.cast_signed().to_string()),
        (Kind::Uint64, Raw::Varint(bits)) | (Kind::Fixed64, Raw::Fixed64(bits)) => {
            Value::from(bits.to_string())
        }
        (Kind::Sint64, Raw::Varint(bits)) => Value::from(unzigzag(bits).to_string()),
        (Kind::Sfixed64, Raw::Fixed64(bits)) => Value::from(bits.cast_signed().to_string()),
        (Kind::Fixed32, Raw::Fixed32(bits)) => Value::from(bits),
        (Kind::Sfixed32, Raw::Fixed32(bits)) => Value::from(bits.cast_signed()),
        (Kind::Double, Raw::Fixed64(bits)) => float(f64::from_bits(bits)),
        // By way of its own shortest decimals: 0.1 stays 0.1.
        (Kind::Float, Raw::Fixed32(bits)) => {
            let number = f32::from_bits(bits);
            float(number.to_string().parse().unwrap_or_else(|_| number.into()))
        }
        (Kind::Enum, Raw::Varint(bits)) => {
            let number = bits as i32;
            field
                .of_enum()
                .and_then(|of| of.name(number))
                .map_or_else(|| Value::from(number), Value::from)
        }
        _ => return Err("the value has another wire type than the field"),
    };
    Ok(Some(value))
}

fn unzigzag(bits: u64) -> i64 {
    (bits >> 1).cast_signed() ^ -(bits & 1).cast_signed()
}
