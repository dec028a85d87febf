//! Which messages, fields and enums are generated: messages.txt applied to the descriptors.

use crate::Res;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use std::collections::{BTreeMap, BTreeSet};

/// Messages of google.protobuf that the JSON mapping treats specially, or that stand inside an `Any`.
pub const WELL_KNOWN: [&str; 17] = [
    "google.protobuf.Any",
    "google.protobuf.BoolValue",
    "google.protobuf.BytesValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.Duration",
    "google.protobuf.Empty",
    "google.protobuf.FieldMask",
    "google.protobuf.FloatValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.ListValue",
    "google.protobuf.StringValue",
    "google.protobuf.Struct",
    "google.protobuf.Timestamp",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
    "google.protobuf.Value",
];

/// What messages.txt says.
#[derive(Default)]
pub struct Selection {
    /// Chosen messages, each with its fields if not all.
    messages: BTreeMap<String, Option<BTreeSet<String>>>,
    /// Reached from strict and whole messages only: known by name, without fields.
    opaque: BTreeSet<String>,
    strict: Vec<String>,
    whole: Vec<String>,
    tables_only: Vec<String>,
    sensitive: BTreeSet<String>,
    public: BTreeSet<String>,
    dropped: BTreeSet<String>,
}

fn in_packages(packages: &[String], name: &str) -> bool {
    let starts = |package: &String| name.strip_prefix(package.as_str());
    packages
        .iter()
        .any(|package| starts(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

impl Selection {
    pub fn read(text: &str, pool: &DescriptorPool) -> Res<Self> {
        let mut this = Self::default();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match line.split_once(' ') {
                Some(("strict", package)) => this.strict.push(package.to_owned()),
                Some(("whole", name)) => this.whole.push(name.to_owned()),
                Some(("tables", package)) => this.tables_only.push(package.to_owned()),
                Some(("sensitive", field)) => drop(this.sensitive.insert(field.to_owned())),
                Some(("public", field)) => drop(this.public.insert(field.to_owned())),
                Some((name, fields)) => {
                    let name = name
                        .strip_suffix(':')
                        .ok_or_else(|| format!("messages.txt: {line}"))?;
                    let message = pool
                        .get_message_by_name(name)
                        .ok_or_else(|| format!("no message {name}"))?;
                    let fields: BTreeSet<_> = fields.split(' ').map(str::to_owned).collect();
                    for field in &fields {
                        message
                            .get_field_by_name(field)
                            .ok_or_else(|| format!("no field {name}.{field}"))?;
                    }
                    this.messages.insert(name.to_owned(), Some(fields));
                }
                None => match line.strip_suffix(".*") {
                    Some(package) => {
                        for message in pool
                            .all_messages()
                            .filter(|m| m.package_name() == package && !m.is_map_entry())
                        {
                            this.messages.insert(message.full_name().to_owned(), None);
                        }
                    }
                    None => {
                        pool.get_message_by_name(line)
                            .ok_or_else(|| format!("no message {line}"))?;
                        this.messages.insert(line.to_owned(), None);
                    }
                },
            }
        }
        for name in WELL_KNOWN {
            this.messages.insert(name.to_owned(), None);
        }
        this.find_opaque(pool);
        Ok(this)
    }

    fn find_opaque(&mut self, pool: &DescriptorPool) {
        for message in pool
            .all_messages()
            .filter(|m| self.messages.contains_key(m.full_name()))
        {
            for field in message.fields() {
                let Some(target) = target(&field) else { continue };
                if self.messages.contains_key(target.full_name()) {
                    continue;
                }
                if self.is_strict(message.full_name())
                    || self.whole.iter().any(|name| name == message.full_name())
                {
                    self.opaque.insert(target.full_name().to_owned());
                } else if self.messages[message.full_name()].is_none() {
                    self.dropped.insert(field.full_name().to_owned());
                }
            }
        }
    }

    pub fn is_strict(&self, message: &str) -> bool {
        in_packages(&self.strict, message)
    }

    /// Whether the message stands in the tables.
    pub fn has(&self, message: &str) -> bool {
        self.messages.contains_key(message) || self.opaque.contains(message)
    }

    /// Whether the message also gets a Rust struct.
    pub fn has_struct(&self, message: &str) -> bool {
        self.has(message)
            && !in_packages(&self.tables_only, message)
            && !message.starts_with("google.protobuf.")
    }

    pub fn keeps(&self, field: &FieldDescriptor) -> bool {
        let parent = field.parent_message();
        if parent.is_map_entry() {
            return true;
        }
        let Some(fields) = self.messages.get(parent.full_name()) else {
            return false;
        };
        fields.as_ref().is_none_or(|fields| fields.contains(field.name()))
            && target(field).is_none_or(|target| self.has(target.full_name()))
    }

    pub fn is_sensitive(&self, field: &FieldDescriptor, pool: &DescriptorPool) -> bool {
        let annotated = pool
            .get_extension_by_name("udpa.annotations.sensitive")
            .and_then(|extension| field.options().get_extension(&extension).as_bool())
            .unwrap_or(false);
        annotated || self.sensitive.contains(field.full_name())
    }

    pub fn is_public(&self, field: &FieldDescriptor) -> bool {
        self.public.contains(field.full_name())
    }

    /// Names of the enums that kept fields of the messages in `include` have.
    pub fn enums(&self, pool: &DescriptorPool, include: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for message in pool
            .all_messages()
            .filter(|m| !m.is_map_entry() && include(m.full_name()))
        {
            for field in message.fields().filter(|field| self.keeps(field)) {
                let kind = if field.is_map() {
                    field_message(&field).map_entry_value_field().kind()
                } else {
                    field.kind()
                };
                if let Kind::Enum(of) = kind {
                    found.insert(of.full_name().to_owned());
                }
            }
        }
        found
    }

    pub fn report(&self) {
        println!(
            "{} messages, {} of them empty:",
            self.messages.len() + self.opaque.len(),
            self.opaque.len()
        );
        self.opaque.iter().for_each(|name| println!("  {name}"));
        println!("{} fields dropped for their type:", self.dropped.len());
        self.dropped.iter().for_each(|name| println!("  {name}"));
    }
}

fn field_message(field: &FieldDescriptor) -> MessageDescriptor {
    match field.kind() {
        Kind::Message(message) => message,
        other => unreachable!("{} is {other:?}", field.full_name()),
    }
}

/// The message a field leads to, the value's for a map.
fn target(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    let Kind::Message(message) = field.kind() else {
        return None;
    };
    if !message.is_map_entry() {
        return Some(message);
    }
    match message.map_entry_value_field().kind() {
        Kind::Message(value) => Some(value),
        _ => None,
    }
}
