//! The agent's version, and what of its xDS server depends on it.
//!
//! Pure. Asked only where a router is: nothing else that is compiled here differs between versions.

use super::json::{self, DecodeError, Node};

/// What becomes of a route's matched prefix, as Consul's own xDS server decides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PrefixRewrites {
    /// Replaced where the entry says so: up to 1.22.0.
    Plain,
    /// Cut off even where the entry says nothing: 1.22.1 to 1.22.6 and 1.23.0-dev, for an error in them
    /// (hashicorp/consul#23339).
    CutAlways,
    /// Replaced where the entry says so; by `/` without doubling a slash. 1.22.7 and everything newer.
    #[default]
    WithoutDoubleSlash,
}

/// Decodes the answer of `/v1/agent/version`.
///
/// # Errors
/// Names the field that is not what Consul documents.
pub(super) fn decode(body: &[u8]) -> Result<PrefixRewrites, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    Ok(of(root.need_text("HumanVersion")?))
}

fn of(version: &str) -> PrefixRewrites {
    let (numbers, rest) = match version.find(['-', '+']) {
        Some(end) => version.split_at(end),
        None => (version, ""),
    };
    let mut numbers = numbers
        .trim_start_matches('v')
        .split('.')
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (0, _, _) => PrefixRewrites::default(),
        (1, 22, 1..=6) => PrefixRewrites::CutAlways,
        (1, 23, 0) if rest.starts_with("-dev") => PrefixRewrites::CutAlways,
        (1, ..22, _) | (1, 22, 0) => PrefixRewrites::Plain,
        _ => PrefixRewrites::WithoutDoubleSlash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (version, expected) in [
            ("1.18.2", PrefixRewrites::Plain),
            ("1.21.13+ent", PrefixRewrites::Plain),
            ("1.22.0", PrefixRewrites::Plain),
            ("1.22.1", PrefixRewrites::CutAlways),
            ("1.22.6+ent", PrefixRewrites::CutAlways),
            ("1.23.0-dev", PrefixRewrites::CutAlways),
            ("1.22.7", PrefixRewrites::WithoutDoubleSlash),
            ("1.23.0", PrefixRewrites::WithoutDoubleSlash),
            ("2.0.1", PrefixRewrites::WithoutDoubleSlash),
            ("strange", PrefixRewrites::WithoutDoubleSlash),
        ] {
            assert_eq!(of(version), expected, "{version}");
        }
        let body = br#"{"SHA":"x","HumanVersion":"1.22.3.fips1402+ent","FIPS":""}"#;
        assert_eq!(decode(body), Ok(PrefixRewrites::CutAlways));
        assert_eq!(decode(b"{}").unwrap_err().field, "HumanVersion");
    }
}
