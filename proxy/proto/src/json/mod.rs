//! proto3 JSON, both ways, by the tables: bootstrap files and escape hatches in, config dumps out.
//!
//! Reading takes what Envoy's own reader takes of Consul: the canonical mapping with field names in
//! snake_case and lowerCamelCase, and a single object where a list is meant (Consul's `grpc_services`). What
//! it does not know it says and leaves out; within RBAC, JWT and TLS messages that is an error, as a rule
//! left out may let somebody in.
//!
//! Neither direction decodes into the Rust structs: they come from the wire bytes by
//! `prost::Message::decode`.

mod read;
mod text;
mod write;

use crate::{WireError, path::Path};
use serde_json::Value;
use std::fmt;

/// Once so many warnings are kept, further ones are only counted.
pub const MAX_WARNINGS: usize = 256;

/// Why JSON is no message of the type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct JsonError {
    /// The field, such as `static_resources.listeners[0].address.socket_address.port_value`.
    pub path: String,
    /// What was expected and what stands there; never the text of a sensitive field.
    pub problem: String,
}

impl JsonError {
    fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_string(),
            problem: problem.into(),
        }
    }
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The field, such as `static_resources.clusters[0].foo`.
    pub path: String,
    /// What about it.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// What [`to_wire`] left out.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// The first [`MAX_WARNINGS`], in the order of the JSON.
    pub warnings: Vec<Warning>,
    /// How many more there were.
    pub suppressed: usize,
}

impl Diagnostics {
    fn warn(&mut self, path: String, problem: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(Warning { path, problem });
        } else {
            self.suppressed += 1;
        }
    }
}

/// How [`from_wire`] renders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Replaces what Envoy marks sensitive, as Envoy does: strings and bytes read `[redacted]`, numbers are
    /// left out, keys of maps stay. Also the values of `initial_metadata` (Consul's ACL token) and of `Any`s
    /// of unknown types.
    pub redact: bool,
    /// Renders scalars that have their default, and empty lists and maps, as Envoy does in `/server_info`.
    pub defaults: bool,
}

/// The wire bytes of a message of this type, given as JSON.
///
/// Unknown fields and unknown types of `Any`s become warnings (an `Any` keeps its type URL and loses its
/// content, so that whoever decodes it can refuse it by name); `null` is absence.
///
/// # Errors
/// [`JsonError`] with the path: a value that its field cannot hold, two members of a oneof, the same field in
/// two spellings, an unknown field within a strict message, messages nested more than 64 deep.
pub fn to_wire(type_name: &str, value: &Value, diagnostics: &mut Diagnostics) -> Result<Vec<u8>, JsonError> {
    read::to_wire(type_name, value, diagnostics)
}

/// The message of this type as JSON: field names in snake_case and by ascending number, enums by name,
/// defaults left out, 64-bit integers as strings, `Any`s inline with `@type`. An `Any` of an unknown type is
/// `{"@type", "value": base64}`. Fields unknown to the tables do not appear; see [`crate::unknown_fields`].
///
/// # Errors
/// [`WireError`] when the type is unknown, the bytes are malformed, or messages nest more than 64 deep.
pub fn from_wire(type_name: &str, bytes: &[u8], options: Options) -> Result<Value, WireError> {
    write::from_wire(type_name, bytes, options)
}

/// Whether this crate knows a message of this full name, such as `envoy.config.listener.v3.Listener`.
pub fn is_known(type_name: &str) -> bool {
    crate::table::message(type_name).is_some()
}
