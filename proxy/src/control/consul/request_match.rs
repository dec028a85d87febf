//! Conditions on requests as Consul's routes and permissions both write them.
//!
//! Pure decoding to the model's matchers. A condition that asks for nothing known is an error: without it
//! more requests would match.

use super::json::{DecodeError, Node};
use crate::model::matcher::{HeaderCheck, HeaderMatcher, SafeRegex, StringMatcher, StringPattern};

/// The fields of a header's condition.
const HEADER: [&str; 9] = [
    "Name",
    "Present",
    "Exact",
    "Prefix",
    "Suffix",
    "Contains",
    "Regex",
    "Invert",
    "IgnoreCase",
];

/// A regular expression; `None` when absent.
pub(super) fn regex(node: &Node<'_>, key: &str) -> Result<Option<SafeRegex>, DecodeError> {
    match node.text(key)? {
        "" => Ok(None),
        text => SafeRegex::new(text)
            .map(Some)
            .map_err(|error| node.error(key, error.to_string())),
    }
}

/// The conditions of `Header`.
pub(super) fn headers(node: &Node<'_>) -> Result<Vec<HeaderMatcher>, DecodeError> {
    node.objects("Header")?.iter().map(header).collect()
}

fn header(node: &Node<'_>) -> Result<HeaderMatcher, DecodeError> {
    refuse_unknown(node, &HEADER)?;
    let name = node.need_text("Name")?.to_ascii_lowercase();
    // Envoy keeps both in one place.
    let name = if name == "host" { ":authority" } else { &name };
    let ignore_case = node.flag("IgnoreCase")?;
    let value = match value(node)? {
        Some(StringPattern::Regex(regex)) => Some((StringPattern::Regex(regex), false)),
        Some(pattern) => Some((pattern, ignore_case)),
        None => None,
    };
    let check = match value {
        Some((pattern, ignore_case)) => HeaderCheck::Value(StringMatcher { pattern, ignore_case }),
        None if node.flag("Present")? => HeaderCheck::Present(true),
        None => return Err(node.error("Name", format!("nothing is asked of the header {name:?}"))),
    };
    Ok(HeaderMatcher {
        name: name.into(),
        check,
        invert: node.flag("Invert")?,
        missing_as_empty: false,
    })
}

/// In Consul's order; of several the first counts.
fn value(node: &Node<'_>) -> Result<Option<StringPattern>, DecodeError> {
    let exact = node.text("Exact")?;
    if !exact.is_empty() {
        return Ok(Some(StringPattern::Exact(exact.into())));
    }
    if let Some(regex) = regex(node, "Regex")? {
        return Ok(Some(StringPattern::Regex(regex)));
    }
    let (prefix, suffix) = (node.text("Prefix")?, node.text("Suffix")?);
    Ok(match (prefix, suffix, node.text("Contains")?) {
        ("", "", "") => None,
        ("", "", part) => Some(StringPattern::Contains(part.into())),
        ("", suffix, _) => Some(StringPattern::Suffix(suffix.into())),
        (prefix, _, _) => Some(StringPattern::Prefix(prefix.into())),
    })
}

/// The condition that `Methods` makes; `None` without any.
pub(super) fn methods(node: &Node<'_>) -> Result<Option<HeaderMatcher>, DecodeError> {
    let methods = node.texts("Methods")?;
    if methods.is_empty() {
        return Ok(None);
    }
    // Consul hands them to Envoy as one expression.
    let regex = SafeRegex::new(&methods.join("|")).map_err(|e| node.error("Methods", e.to_string()))?;
    Ok(Some(HeaderMatcher {
        name: ":method".into(),
        check: HeaderCheck::Value(StringMatcher {
            pattern: StringPattern::Regex(regex),
            ignore_case: false,
        }),
        invert: false,
        missing_as_empty: false,
    }))
}

/// Refuses what is asked by a field that is not known.
pub(super) fn refuse_unknown(node: &Node<'_>, known: &[&str]) -> Result<(), DecodeError> {
    match node.unknown(known).into_iter().next() {
        None => Ok(()),
        Some(field) => Err(DecodeError::new(field, "is not known")),
    }
}
