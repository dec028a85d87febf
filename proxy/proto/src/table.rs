//! What the JSON code knows of each message: rows without pointers over one string of names, so that they
//! need neither relocation nor heap. The rows stand in `generated/tables.rs`; nothing here decodes anything.

use crate::{
    generated::tables::{ENUMS, FIELDS, MESSAGES, NAMES, VALUES},
    wire::Raw,
};

/// A protobuf message, or the entry of a map.
pub(crate) struct Message {
    name_at: u32,
    name_len: u8,
    first: u16,
    count: u8,
    flags: u8,
    /// How its JSON differs from an object of its fields.
    pub(crate) special: Special,
}

/// A field of a message.
pub(crate) struct Field {
    name_at: u32,
    number: u16,
    index: u16,
    name_len: u8,
    oneof: u8,
    flags: u8,
    pub(crate) kind: Kind,
    pub(crate) label: Label,
}

/// An enum: its rows in the table of values.
pub(crate) struct Enum {
    first: u16,
    count: u16,
}

/// A named value of an enum.
pub(crate) struct EnumValue {
    name_at: u32,
    name_len: u8,
    number: i32,
}

/// protobuf's scalar types, enums and messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(
    dead_code,
    reason = "Envoy's messages do not use every one of protobuf's types"
)]
pub(crate) enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum,
    Message,
}

/// How often a field stands and whether its absence can be told from its default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Label {
    /// proto3 without `optional`: the default is absence.
    Implicit,
    /// With presence: messages, members of a oneof, `optional`.
    Optional,
    Repeated,
    /// A repeated message of key and value.
    Map,
}

/// The well-known types whose JSON is not an object of their fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    Plain,
    Any,
    BoolValue,
    BytesValue,
    DoubleValue,
    Duration,
    Empty,
    FieldMask,
    FloatValue,
    Int32Value,
    Int64Value,
    ListValue,
    StringValue,
    Struct,
    Timestamp,
    UInt32Value,
    UInt64Value,
    Value,
}

impl Kind {
    /// 0 for varints, 1 and 5 for eight and four bytes, 2 for what has a length.
    pub(crate) fn wire_type(self) -> u8 {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => 1,
            Self::String | Self::Bytes | Self::Message => 2,
            Self::Float | Self::Fixed32 | Self::Sfixed32 => 5,
            _ => 0,
        }
    }

    /// The default, as it would stand in the bytes.
    pub(crate) fn zero(self) -> Raw<'static> {
        match self.wire_type() {
            1 => Raw::Fixed64(0),
            2 => Raw::Bytes(&[]),
            5 => Raw::Fixed32(0),
            _ => Raw::Varint(0),
        }
    }
}

impl Special {
    /// Whether the JSON is the one field `value` by itself.
    pub(crate) fn is_wrapper(self) -> bool {
        use Special::{BoolValue, BytesValue, DoubleValue, FloatValue, Int32Value, Int64Value};
        use Special::{StringValue, UInt32Value, UInt64Value};
        let int = matches!(self, Int32Value | Int64Value | UInt32Value | UInt64Value);
        int || matches!(
            self,
            BoolValue | BytesValue | DoubleValue | FloatValue | StringValue
        )
    }

    /// Whether an `Any` holds the JSON under the key `value` instead of beside `@type`.
    pub(crate) fn is_value_in_any(self) -> bool {
        !matches!(self, Self::Plain | Self::Empty)
    }
}

const STRICT: u8 = 1;
const MAP_ENTRY: u8 = 2;
const SENSITIVE: u8 = 1;
const PUBLIC: u8 = 2;

fn text(at: u32, len: u8) -> &'static str {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    NAMES
        .get(start..start.saturating_add(len.into()))
        .unwrap_or_default()
}

/// The message of this full name, such as `envoy.config.listener.v3.Listener`.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    let at = MESSAGES
        .binary_search_by(|message| message.name().cmp(name))
        .ok()?;
    MESSAGES.get(at).filter(|message| !message.is_map_entry())
}

/// The message that an `Any` of this type URL holds.
pub(crate) fn message_of_url(url: &str) -> Option<&'static Message> {
    message(url.rsplit_once('/')?.1)
}

impl Message {
    pub(crate) fn name(&self) -> &'static str {
        text(self.name_at, self.name_len)
    }

    /// Whether a field unknown to us, here or anywhere below, is an error: what it says may decide who gets
    /// in.
    pub(crate) fn is_strict(&self) -> bool {
        self.flags & STRICT != 0
    }

    /// Whether it is but the key and value of a map field, which JSON does not show as a message.
    pub(crate) fn is_map_entry(&self) -> bool {
        self.flags & MAP_ENTRY != 0
    }

    /// All fields, by ascending number.
    pub(crate) fn fields(&self) -> &'static [Field] {
        let first = usize::from(self.first);
        FIELDS
            .get(first..first + usize::from(self.count))
            .unwrap_or_default()
    }

    pub(crate) fn by_number(&self, number: u32) -> Option<(usize, &'static Field)> {
        let fields = self.fields();
        let at = fields.binary_search_by_key(&number, Field::number).ok()?;
        fields.get(at).map(|field| (at, field))
    }

    /// The field that a JSON key names: its name in the .proto file or the same in lowerCamelCase.
    pub(crate) fn by_key(&self, key: &str) -> Option<(usize, &'static Field)> {
        self.fields()
            .iter()
            .enumerate()
            .find(|(_, field)| field.is_named(key))
    }
}

impl Field {
    pub(crate) fn name(&self) -> &'static str {
        text(self.name_at, self.name_len)
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.into()
    }

    /// 0, or the same number for all members of a oneof.
    pub(crate) fn oneof(&self) -> u8 {
        self.oneof
    }

    /// Marked `udpa.annotations.sensitive` in Envoy's API, or by messages.txt.
    pub(crate) fn is_sensitive(&self) -> bool {
        self.flags & SENSITIVE != 0
    }

    /// Shown although it stands below a sensitive field.
    pub(crate) fn is_public(&self) -> bool {
        self.flags & PUBLIC != 0
    }

    /// The message of a field of [`Kind::Message`]; a map's is its entry.
    pub(crate) fn message(&self) -> Option<&'static Message> {
        MESSAGES
            .get(usize::from(self.index))
            .filter(|_| self.kind == Kind::Message)
    }

    /// The enum of a field of [`Kind::Enum`].
    pub(crate) fn of_enum(&self) -> Option<&'static Enum> {
        ENUMS
            .get(usize::from(self.index))
            .filter(|_| self.kind == Kind::Enum)
    }

    fn is_named(&self, key: &str) -> bool {
        let mut upper = false;
        let camel = self
            .name()
            .bytes()
            .filter_map(|byte| match (byte, std::mem::take(&mut upper)) {
                (b'_', _) => {
                    upper = true;
                    None
                }
                (byte, true) => Some(byte.to_ascii_uppercase()),
                (byte, false) => Some(byte),
            });
        self.name() == key || camel.eq(key.bytes())
    }
}

impl Enum {
    fn values(&self) -> &'static [EnumValue] {
        let first = usize::from(self.first);
        VALUES
            .get(first..first + usize::from(self.count))
            .unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &str) -> Option<i32> {
        self.values()
            .iter()
            .find(|value| value.name() == name)
            .map(|value| value.number)
    }

    pub(crate) fn name(&self, number: i32) -> Option<&'static str> {
        self.values()
            .iter()
            .find(|value| value.number == number)
            .map(EnumValue::name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values().iter().map(EnumValue::name)
    }
}

impl EnumValue {
    fn name(&self) -> &'static str {
        text(self.name_at, self.name_len)
    }
}

/// A row of the table of messages; the names are short because there are hundreds of rows.
pub(crate) const fn m(
    name_at: u32,
    name_len: u8,
    first: u16,
    count: u8,
    special: Special,
    flags: u8,
) -> Message {
    Message {
        name_at,
        name_len,
        first,
        count,
        flags,
        special,
    }
}

/// A row of the table of fields.
#[allow(clippy::too_many_arguments, reason = "one column each")]
pub(crate) const fn f(
    name_at: u32,
    name_len: u8,
    number: u16,
    kind: Kind,
    label: Label,
    index: u16,
    oneof: u8,
    flags: u8,
) -> Field {
    Field {
        name_at,
        number,
        index,
        name_len,
        oneof,
        flags,
        kind,
        label,
    }
}

/// A row of the table of enums.
pub(crate) const fn e(first: u16, count: u16) -> Enum {
    Enum { first, count }
}

/// A row of the table of enum values.
pub(crate) const fn v(name_at: u32, name_len: u8, number: i32) -> EnumValue {
    EnumValue {
        name_at,
        name_len,
        number,
    }
}
