//! Fields on the wire that the tables do not know: those that messages.txt cut out and those of newer
//! releases of Envoy.

use crate::{
    WireError,
    path::{MAX_DEPTH, Path},
    table::{self, Field, Label, Message, Special},
    wire::{Malformed, Raw, Reader},
};

/// Once so many are found the search ends: enough to be told, bounded for hostile bytes.
pub const MAX_UNKNOWN: usize = 256;

/// A field that stands in the bytes and that this crate does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// The message that has it, such as `filter_chains[0].filters[1].typed_config`; the type's name for the
    /// outermost one.
    pub path: String,
    /// Its number in that message.
    pub number: u32,
    /// It stands in, or below, a message that decides who gets in (RBAC, JWT, TLS): refuse the whole.
    pub strict: bool,
}

/// The unknown fields of an encoded message and of all messages in it, also inside `Any`s of known types; at
/// most [`MAX_UNKNOWN`]. An `Any` of an unknown type is not searched: who decodes it meets the type itself.
///
/// # Errors
/// [`WireError`] when the type is unknown, the bytes are malformed, or messages nest more than 64 deep.
pub fn unknown_fields(type_name: &str, bytes: &[u8]) -> Result<Vec<UnknownField>, WireError> {
    let table = table::message(type_name).ok_or_else(|| WireError::unknown_type(type_name))?;
    let mut search = Search {
        path: Path::new(table.name()),
        found: Vec::new(),
    };
    match search.message(table, bytes, false, MAX_DEPTH) {
        Ok(()) => Ok(search.found),
        Err(problem) => Err(WireError::new(&search.path, problem)),
    }
}

struct Search {
    path: Path,
    found: Vec<UnknownField>,
}

impl Search {
    fn message(
        &mut self,
        table: &'static Message,
        bytes: &[u8],
        strict: bool,
        depth: usize,
    ) -> Result<(), Malformed> {
        // As in the JSON, where a map's entry is no message of its own.
        let levels = usize::from(!table.is_map_entry());
        let depth = depth.checked_sub(levels).ok_or("messages are nested too deep")?;
        let strict = strict || table.is_strict();
        match table.special {
            Special::Any => return self.any(bytes, strict, depth),
            // What stands in these is data of others, not fields.
            Special::Struct | Special::Value | Special::ListValue => return Ok(()),
            _ => {}
        }
        let mut seen = vec![0; table.fields().len()];
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            if self.found.len() >= MAX_UNKNOWN {
                return Ok(());
            }
            match (table.by_number(number), raw) {
                (None, _) | (_, Raw::Group) => {
                    self.found.push(UnknownField {
                        path: self.path.to_string(),
                        number,
                        strict,
                    });
                }
                (Some((at, field)), Raw::Bytes(inner)) => {
                    let index = seen
                        .get_mut(at)
                        .map_or(0, |count| std::mem::replace(count, *count + 1));
                    self.field(field, index, inner, strict, depth)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &'static Field,
        index: usize,
        bytes: &[u8],
        strict: bool,
        depth: usize,
    ) -> Result<(), Malformed> {
        let Some(table) = field.message() else {
            return Ok(());
        };
        self.path.enter(field.name());
        let nested = match field.label {
            Label::Repeated => {
                self.path.enter_index(index);
                true
            }
            Label::Map => {
                self.path.enter_key(&key(bytes)?);
                true
            }
            Label::Implicit | Label::Optional => false,
        };
        self.message(table, bytes, strict, depth)?;
        if nested {
            self.path.leave();
        }
        self.path.leave();
        Ok(())
    }

    fn any(&mut self, bytes: &[u8], strict: bool, depth: usize) -> Result<(), Malformed> {
        let (url, value) = any_parts(bytes)?;
        match table::message_of_url(url) {
            Some(table) => self.message(table, value, strict, depth),
            None => Ok(()),
        }
    }
}

/// The type URL and the value of an encoded `google.protobuf.Any`.
pub(crate) fn any_parts(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut reader = Reader(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Bytes(bytes)) => url = bytes,
            (2, Raw::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((
        std::str::from_utf8(url).map_err(|_| "a type URL is not UTF-8")?,
        value,
    ))
}

/// The key of a map's entry, for the path.
fn key(entry: &[u8]) -> Result<String, Malformed> {
    let mut key = String::new();
    let mut reader = Reader(entry);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
            (1, Raw::Varint(number)) => key = number.to_string(),
            _ => {}
        }
    }
    Ok(key)
}
