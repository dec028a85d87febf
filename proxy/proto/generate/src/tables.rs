//! The tables behind attache-proto's JSON: plain arrays without pointers, so that they cost no relocation and
//! no heap.

use crate::{
    Res,
    selection::{Selection, WELL_KNOWN},
};
use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

/// All names, each once, in one string.
#[derive(Default)]
struct Names {
    text: String,
    known: BTreeMap<String, usize>,
}

impl Names {
    /// `offset, length` of a name.
    fn at(&mut self, name: &str) -> String {
        let at = *self.known.entry(name.to_owned()).or_insert_with(|| {
            self.text.push_str(name);
            self.text.len() - name.len()
        });
        format!("{at}, {}", name.len())
    }
}

fn kind(field: &FieldDescriptor) -> &'static str {
    match field.kind() {
        Kind::Double => "Double",
        Kind::Float => "Float",
        Kind::Int32 => "Int32",
        Kind::Int64 => "Int64",
        Kind::Uint32 => "Uint32",
        Kind::Uint64 => "Uint64",
        Kind::Sint32 => "Sint32",
        Kind::Sint64 => "Sint64",
        Kind::Fixed32 => "Fixed32",
        Kind::Fixed64 => "Fixed64",
        Kind::Sfixed32 => "Sfixed32",
        Kind::Sfixed64 => "Sfixed64",
        Kind::Bool => "Bool",
        Kind::String => "String",
        Kind::Bytes => "Bytes",
        Kind::Message(_) => "Message",
        Kind::Enum(_) => "Enum",
    }
}

fn label(field: &FieldDescriptor) -> &'static str {
    if field.is_map() {
        "Map"
    } else if field.cardinality() == Cardinality::Repeated {
        "Repeated"
    } else if field.supports_presence() {
        "Optional"
    } else {
        "Implicit"
    }
}

/// protoc's rule for the JSON name of a field, which attache-proto applies at run time.
fn camel(name: &str) -> String {
    let mut upper = false;
    name.chars()
        .filter_map(|c| match c {
            '_' => {
                upper = true;
                None
            }
            _ => Some(if std::mem::take(&mut upper) {
                c.to_ascii_uppercase()
            } else {
                c
            }),
        })
        .collect()
}

fn entries(selection: &Selection, message: &MessageDescriptor) -> Vec<MessageDescriptor> {
    let maps = message
        .fields()
        .filter(|field| field.is_map() && selection.keeps(field));
    maps.filter_map(|field| field.kind().as_message().cloned())
        .collect()
}

/// The messages with the entries of their maps, by name.
fn all_messages(pool: &DescriptorPool, selection: &Selection) -> BTreeMap<String, MessageDescriptor> {
    let mut messages = BTreeMap::new();
    for message in pool
        .all_messages()
        .filter(|message| selection.has(message.full_name()))
    {
        for entry in entries(selection, &message) {
            messages.insert(entry.full_name().to_owned(), entry);
        }
        messages.insert(message.full_name().to_owned(), message);
    }
    messages
}

/// The arrays as they grow.
struct Tables<'a> {
    pool: &'a DescriptorPool,
    selection: &'a Selection,
    /// What the rows of fields point to, by position.
    targets: Vec<String>,
    enums: Vec<String>,
    names: Names,
    messages: String,
    fields: String,
    field_count: usize,
    enum_rows: String,
    values: String,
    value_count: usize,
}

impl Tables<'_> {
    fn message(&mut self, message: &MessageDescriptor) -> Res<()> {
        let name = message.full_name();
        let mut kept: Vec<_> = message
            .fields()
            .filter(|field| self.selection.keeps(field))
            .collect();
        kept.sort_by_key(FieldDescriptor::number);
        if kept.len() > 128
            || kept
                .last()
                .is_some_and(|field| field.number() > u32::from(u16::MAX))
        {
            return Err(format!("{name} is too large for the tables").into());
        }
        let special = WELL_KNOWN.iter().find(|known| **known == name);
        let special = special.map_or("Plain", |known| &known["google.protobuf.".len()..]);
        let flags = u8::from(self.selection.is_strict(name)) | u8::from(message.is_map_entry()) << 1;
        let (at, first, count) = (self.names.at(name), self.field_count, kept.len());
        writeln!(
            self.messages,
            "    m({at}, {first}, {count}, Special::{special}, {flags}), // {name}"
        )?;
        writeln!(self.fields, "    // {name}")?;
        self.field_count += count;
        kept.iter().try_for_each(|field| self.field(message, field))
    }

    fn field(&mut self, message: &MessageDescriptor, field: &FieldDescriptor) -> Res<()> {
        if field.json_name() != camel(field.name()) {
            return Err(format!("{} has a JSON name of its own", field.full_name()).into());
        }
        let index = match field.kind() {
            Kind::Message(target) => self.targets.iter().position(|name| name == target.full_name()),
            Kind::Enum(target) => self.enums.iter().position(|name| name == target.full_name()),
            _ => Some(0),
        };
        let index = index.ok_or_else(|| format!("{}: its type is missing", field.full_name()))?;
        let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
        let oneof = oneof.and_then(|oneof| message.oneofs().position(|other| other == oneof));
        let oneof = oneof.map_or(0, |at| at + 1);
        let sensitive = self.selection.is_sensitive(field, self.pool);
        let flags = u8::from(sensitive) | u8::from(self.selection.is_public(field)) << 1;
        let (kind, label, number, name) = (kind(field), label(field), field.number(), field.name());
        let at = self.names.at(name);
        let row = format!("f({at}, {number}, Kind::{kind}, Label::{label}, {index}, {oneof}, {flags})");
        Ok(writeln!(self.fields, "    {row}, // {name}")?)
    }

    fn enumeration(&mut self, name: &str) -> Res<()> {
        let of = self
            .pool
            .get_enum_by_name(name)
            .ok_or_else(|| format!("no enum {name}"))?;
        let (first, count) = (self.value_count, of.values().len());
        writeln!(self.enum_rows, "    e({first}, {count}), // {name}")?;
        writeln!(self.values, "    // {name}")?;
        self.value_count += count;
        for value in of.values() {
            let at = self.names.at(value.name());
            writeln!(
                self.values,
                "    v({at}, {}), // {}",
                value.number(),
                value.name()
            )?;
        }
        Ok(())
    }

    fn text(&self, header: &str) -> Res<String> {
        let mut text = String::from(header);
        text.push_str(
            "use crate::table::{Enum, EnumValue, Field, Kind, Label, Message, Special, e, f, m, v};\n",
        );
        for (doc, name, row, count, rows) in [
            (
                "Sorted by name.",
                "MESSAGES",
                "Message",
                self.targets.len(),
                &self.messages,
            ),
            (
                "Of each message in turn, sorted by number.",
                "FIELDS",
                "Field",
                self.field_count,
                &self.fields,
            ),
            (
                "Each one's part of the values.",
                "ENUMS",
                "Enum",
                self.enums.len(),
                &self.enum_rows,
            ),
            (
                "Of each enum in turn.",
                "VALUES",
                "EnumValue",
                self.value_count,
                &self.values,
            ),
        ] {
            write!(
                text,
                "\n/// {doc}\npub(crate) static {name}: [{row}; {count}] = [\n{rows}];\n"
            )?;
        }
        text.push_str("\n/// Every name once; the rows above say where it starts and how long it is.\n");
        text.push_str("pub(crate) static NAMES: &str = \"\\\n");
        for line in self.names.text.as_bytes().chunks(120) {
            writeln!(text, "{}\\", std::str::from_utf8(line)?)?;
        }
        text.push_str("\";\n");
        Ok(text)
    }
}

pub fn write(pool: &DescriptorPool, selection: &Selection, path: &Path, header: &str) -> Res<()> {
    let messages = all_messages(pool, selection);
    let mut tables = Tables {
        pool,
        selection,
        targets: messages.keys().cloned().collect(),
        enums: selection
            .enums(pool, |name| selection.has(name))
            .into_iter()
            .collect(),
        names: Names::default(),
        messages: String::new(),
        fields: String::new(),
        field_count: 0,
        enum_rows: String::new(),
        values: String::new(),
        value_count: 0,
    };
    messages
        .values()
        .try_for_each(|message| tables.message(message))?;
    tables
        .enums
        .clone()
        .iter()
        .try_for_each(|name| tables.enumeration(name))?;
    fs::write(path, tables.text(header)?)?;
    println!(
        "tables: {} messages, {} fields, {} enums, {} values, {} bytes of names",
        messages.len(),
        tables.field_count,
        tables.enums.len(),
        tables.value_count,
        tables.names.text.len()
    );
    Ok(())
}
