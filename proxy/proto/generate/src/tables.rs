//! The tables behind attache-proto's JSON: plain arrays without pointers, so that they cost no relocation and no heap.

use crate::{
    Res,
    selection::{Selection, WELL_KNOWN},
};
use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

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
    name.chars().filter_map(|c| match c {
        '_' => { upper = true; None }
        _ => Some(if std::mem::take(&mut upper) { c.to_ascii_uppercase() } else { c }),
    }).collect()
}

fn entries(selection: &Selection, message: &MessageDescriptor) -> Vec<MessageDescriptor> {
    let maps = message.fields().filter(|field| field.is_map() && selection.keeps(field));
    maps.filter_map(|field| field.kind().as_message().cloned()).collect()
}

pub fn write(pool: &DescriptorPool, selection: &Selection, path: &Path, header: &str) -> Res<()> {
    let chosen = pool.all_messages().filter(|message| selection.has(message.full_name()));
    let mut messages: BTreeMap<String, MessageDescriptor> = BTreeMap::new();
    for message in chosen {
        for entry in entries(selection, &message) {
            messages.insert(entry.full_name().to_owned(), entry);
        }
        messages.insert(message.full_name().to_owned(), message);
    }
    let message_at = |name: &str| messages.keys().position(|key| key == name);
    let enums: BTreeSet<String> = selection.enums(pool, |name| selection.has(name));
    let enum_at = |name: &str| enums.iter().position(|key| key == name);

    let (mut names, mut rows, mut fields, mut values, mut count) = (Names::default(), String::new(), String::new(), String::new(), 0);
    for (name, message) in &messages {
        let mut kept: Vec<_> = message.fields().filter(|field| selection.keeps(field)).collect();
        kept.sort_by_key(FieldDescriptor::number);
        if kept.len() > 128 || kept.last().is_some_and(|field| field.number() > u32::from(u16::MAX)) {
            return Err(format!("{name} is too large for the tables").into());
        }
        let special = WELL_KNOWN.iter().find(|known| *known == name).map_or("Plain", |known| &known["google.protobuf.".len()..]);
        let flags = u8::from(selection.is_strict(name)) | u8::from(message.is_map_entry()) << 1;
        writeln!(rows, "    m({}, {count}, {}, Special::{special}, {flags}), // {name}", names.at(name), kept.len())?;
        writeln!(fields, "    // {name}")?;
        count += kept.len();
        for field in kept {
            if field.json_name() != camel(field.name()) {
                return Err(format!("{} has a JSON name of its own", field.full_name()).into());
            }
            let index = match field.kind() {
                Kind::Message(target) => message_at(target.full_name()),
                Kind::Enum(target) => enum_at(target.full_name()),
                _ => Some(0),
            };
            let index = index.ok_or_else(|| format!("{}: its type is missing", field.full_name()))?;
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
            let oneof = oneof.and_then(|oneof| message.oneofs().position(|other| other == oneof)).map_or(0, |at| at + 1);
            let flags = u8::from(selection.is_sensitive(&field, pool)) | u8::from(selection.is_public(&field)) << 1;
            let (kind, label) = (kind(&field), label(&field));
            let at = names.at(field.name());
            writeln!(fields, "    f({at}, {}, Kind::{kind}, Label::{label}, {index}, {oneof}, {flags}), // {}", field.number(), field.name())?;
        }
    }
    let (mut enum_rows, mut value_count) = (String::new(), 0);
    for name in &enums {
        let of = pool.get_enum_by_name(name).ok_or_else(|| format!("no enum {name}"))?;
        writeln!(enum_rows, "    e({value_count}, {}), // {name}", of.values().len())?;
        writeln!(values, "    // {name}")?;
        value_count += of.values().len();
        for value in of.values() {
            writeln!(values, "    v({}, {}), // {}", names.at(value.name()), value.number(), value.name())?;
        }
    }
    let mut text = String::from(header);
    text.push_str("use crate::table::{Enum, EnumValue, Field, Kind, Label, Message, Special, e, f, m, v};\n\n");
    writeln!(text, "/// Sorted by name.\npub(crate) static MESSAGES: [Message; {}] = [\n{rows}];\n", messages.len())?;
    writeln!(text, "/// Of each message in turn, sorted by number.\npub(crate) static FIELDS: [Field; {count}] = [\n{fields}];\n")?;
    writeln!(text, "pub(crate) static ENUMS: [Enum; {}] = [\n{enum_rows}];\n", enums.len())?;
    writeln!(text, "pub(crate) static VALUES: [EnumValue; {value_count}] = [\n{values}];\n")?;
    text.push_str("/// Every name once; the rows above say where it starts and how long it is.\npub(crate) static NAMES: &str = \"\\\n");
    for line in names.text.as_bytes().chunks(120) {
        writeln!(text, "{}\\", std::str::from_utf8(line)?)?;
    }
    text.push_str("\";\n");
    fs::write(path, text)?;
    println!("{} messages, {count} fields, {} enums, {value_count} values, {} bytes of names", messages.len(), enums.len(), names.text.len());
    Ok(())
}
