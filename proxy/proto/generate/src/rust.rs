//! Rust structs: the descriptors cut down to the selection, through prost-build.

use crate::{Res, selection::Selection};
use prost_reflect::DescriptorPool;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::{collections::BTreeSet, fs, path::Path};

struct Cut<'a> {
    pool: &'a DescriptorPool,
    selection: &'a Selection,
    enums: BTreeSet<String>,
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

impl Cut<'_> {
    fn field(&self, message: &str, field: &mut FieldDescriptorProto) -> bool {
        field.options = None;
        let descriptor = self.pool.get_message_by_name(message);
        let descriptor = descriptor.and_then(|message| message.get_field(field.number().unsigned_abs()));
        descriptor.is_some_and(|field| self.selection.keeps(&field))
    }

    fn message(&self, scope: &str, message: &mut DescriptorProto) -> bool {
        let name = join(scope, message.name());
        let is_map = message
            .options
            .as_ref()
            .is_some_and(|options| options.map_entry());
        if !is_map {
            message.options = None;
        }
        message.field.retain_mut(|field| self.field(&name, field));
        // A map's entry stays if its field does, an emptied oneof goes.
        let used: Vec<String> = message
            .field
            .iter()
            .map(|field| field.type_name().to_owned())
            .collect();
        message.nested_type.retain_mut(|nested| {
            let is_entry = nested.options.as_ref().is_some_and(|options| options.map_entry());
            let kept = self.message(&name, nested);
            if is_entry {
                used.contains(&format!(".{name}.{}", nested.name()))
            } else {
                kept
            }
        });
        let mut oneofs = Vec::new();
        for (index, mut oneof) in std::mem::take(&mut message.oneof_decl).into_iter().enumerate() {
            oneof.options = None;
            let mut members = message
                .field
                .iter_mut()
                .filter(|field| field.oneof_index == i32::try_from(index).ok())
                .peekable();
            if members.peek().is_some() {
                let new = -1 - i32::try_from(oneofs.len()).unwrap_or(0);
                members.for_each(|field| field.oneof_index = Some(new));
                oneofs.push(oneof);
            }
        }
        for field in &mut message.field {
            field.oneof_index = field.oneof_index.map(|negative| -1 - negative);
        }
        message.oneof_decl = oneofs;
        message.enum_type.retain_mut(|of| {
            of.options = None;
            of.value.iter_mut().for_each(|value| value.options = None);
            self.enums.contains(&join(&name, of.name()))
        });
        message.extension.clear();
        message.reserved_range.clear();
        message.reserved_name.clear();
        is_map
            || self.selection.has_struct(&name)
            || !message.nested_type.is_empty()
            || !message.enum_type.is_empty()
    }

    fn file(&self, mut file: FileDescriptorProto) -> Option<FileDescriptorProto> {
        let package = file.package().to_owned();
        if package == "google.protobuf" {
            // prost-build maps these to prost-types, but asks them what they can derive.
            return (!file.name().ends_with("/descriptor.proto")).then_some(file);
        }
        file.options = None;
        file.source_code_info = None;
        file.service.clear();
        file.extension.clear();
        file.message_type
            .retain_mut(|message| self.message(&package, message));
        file.enum_type.retain_mut(|of| {
            of.options = None;
            of.value.iter_mut().for_each(|value| value.options = None);
            self.enums.contains(&join(&package, of.name()))
        });
        (!file.message_type.is_empty() || !file.enum_type.is_empty()).then_some(file)
    }
}

/// prost-build's `impl Name` blocks as calls of the macro `named!`, which adds the constant type URL and a
/// `Debug` that redacts.
fn names_by_macro(source: &str) -> Res<String> {
    let mut out = String::with_capacity(source.len());
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.trim_start().strip_prefix("impl ::prost::Name for ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ty = rest.trim_end_matches(" {");
        let end = format!("{indent}}}");
        let mut constants = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != end) {
            if line.trim_start().starts_with("const ") {
                let value = line
                    .split_once("= ")
                    .ok_or("prost-build writes `impl Name` in another way now")?
                    .1;
                constants.push(value.trim_end_matches(';').to_owned());
            }
        }
        let [name, package] = constants.as_slice() else {
            return Err("prost-build writes `impl Name` in another way now".into());
        };
        out.push_str(&format!("{indent}crate::named!({ty}, {package}, {name});\n"));
    }
    Ok(out)
}

pub fn write(
    fds: FileDescriptorSet,
    pool: &DescriptorPool,
    selection: &Selection,
    out: &Path,
    header: &str,
) -> Res<()> {
    let cut = Cut {
        pool,
        selection,
        enums: selection.enums(pool, |name| selection.has_struct(name)),
    };
    let mut file: Vec<_> = fds.file.into_iter().filter_map(|file| cut.file(file)).collect();
    let names: BTreeSet<_> = file.iter().map(|file| file.name().to_owned()).collect();
    for file in &mut file {
        file.dependency.retain(|dependency| names.contains(dependency));
        file.public_dependency.clear();
        file.weak_dependency.clear();
    }
    prost_build::Config::new()
        .out_dir(out)
        .include_file("mod.rs")
        .enable_type_names()
        .skip_debug(["."])
        .btree_map(["."])
        .compile_fds(FileDescriptorSet { file })?;
    let files: Vec<_> = fs::read_dir(out)?.collect();
    for entry in files {
        let path = entry?.path();
        let mut source = names_by_macro(&fs::read_to_string(&path)?)?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or("odd file name")?;
        if name == "mod.rs" {
            source = source.replace(".r#type", ".type") + "pub(crate) mod tables;\n";
        } else {
            fs::remove_file(&path)?;
        }
        // prost-build's own first line is replaced by the header.
        let source = source
            .strip_prefix("// This file is @generated by prost-build.\n")
            .unwrap_or(&source);
        fs::write(out.join(name.replace("r#", "")), format!("{header}{source}"))?;
    }
    Ok(())
}
