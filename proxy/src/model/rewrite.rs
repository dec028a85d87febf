//! Rewriting text by a regular expression (Envoy's `RegexMatchAndSubstitute`).
//!
//! Pure; expression and substitution are parsed once, when the configuration is decoded.

use std::borrow::Cow;
use std::sync::Arc;

use regex::{Captures, Regex, RegexBuilder};

/// As of the matchers: RE2's limit that Consul writes into the bootstrap is of this order.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Replaces every match of an expression; what does not match stays. Not anchored, unlike a matcher.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    source: Arc<str>,
    substitution: Arc<str>,
    pattern: Regex,
    parts: Vec<Part>,
}

/// A piece of the substitution.
#[derive(Clone, Debug)]
enum Part {
    Text(String),
    /// `\0` is the whole match, `\1` the first group.
    Group(usize),
}

/// Why a rewrite cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The expression does not compile or is too large.
    #[error("the regular expression {expression:?} cannot be used: {why}")]
    Expression {
        /// As it was written.
        expression: String,
        /// The parser's reason, one line.
        why: String,
    },
    /// A backslash that stands before neither a digit nor a backslash.
    #[error(
        "the substitution {0:?} has a backslash that stands before neither a digit nor a backslash; write \\\\ for one"
    )]
    Backslash(String),
    /// The expression has no such group.
    #[error("the substitution {substitution:?} uses group {group}, but the expression has {groups}")]
    Group {
        /// As it was written.
        substitution: String,
        /// The one asked for.
        group: usize,
        /// How many there are.
        groups: usize,
    },
}

impl RegexRewrite {
    /// Compiles `expression` and parses `substitution`, in which `\0` to `\9` stand for groups and `\\` for a
    /// backslash, as in RE2.
    ///
    /// # Errors
    /// Quotes what cannot be used and says why.
    pub fn new(expression: &str, substitution: &str) -> Result<Self, RewriteError> {
        let pattern = RegexBuilder::new(expression)
            .size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|error| RewriteError::Expression {
                expression: expression.to_owned(),
                why: error.to_string().lines().last().unwrap_or_default().to_owned(),
            })?;
        let parts = parts(substitution)?;
        let groups = pattern.captures_len() - 1;
        let beyond = parts.iter().find_map(|part| match part {
            Part::Group(group) if *group > groups => Some(*group),
            _ => None,
        });
        if let Some(group) = beyond {
            return Err(RewriteError::Group {
                substitution: substitution.to_owned(),
                group,
                groups,
            });
        }
        Ok(Self {
            source: expression.into(),
            substitution: substitution.into(),
            pattern,
            parts,
        })
    }

    /// Whether they are the same one, not only alike.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source) && Arc::ptr_eq(&self.substitution, &other.substitution)
    }

    /// The expression as it was written.
    pub fn expression(&self) -> &str {
        &self.source
    }

    /// The substitution as it was written.
    pub fn substitution(&self) -> &str {
        &self.substitution
    }

    /// `text` with every match replaced.
    pub fn rewrite<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.pattern.replace_all(text, |captures: &Captures<'_>| {
            let mut out = String::new();
            for part in &self.parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    Part::Group(group) => out.push_str(captures.get(*group).map_or("", |m| m.as_str())),
                }
            }
            out
        })
    }
}

fn parts(substitution: &str) -> Result<Vec<Part>, RewriteError> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = substitution.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('\\') => text.push('\\'),
            Some(digit) if digit.is_ascii_digit() => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Group(usize::from(digit as u8 - b'0')));
            }
            _ => return Err(RewriteError::Backslash(substitution.to_owned())),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

impl PartialEq for RegexRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.substitution == other.substitution
    }
}

impl Eq for RegexRewrite {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rewrite_that_consul_writes_for_every_route() {
        let rewrite = RegexRewrite::new("^/v1(/?)(.*)", r"/\2").unwrap();
        assert_eq!(rewrite.rewrite("/v1/users"), "/users");
        assert_eq!(rewrite.rewrite("/v1"), "/");
        assert_eq!(rewrite.rewrite("/other"), "/other");
    }

    #[test]
    fn every_match_is_replaced_and_a_group_that_is_absent_is_empty() {
        let rewrite = RegexRewrite::new("a(b)?", r"<\0|\1>\\").unwrap();
        assert_eq!(rewrite.rewrite("ab-a"), r"<ab|b>\-<a|>\");
    }

    #[test]
    fn what_cannot_be_used_is_quoted() {
        assert!(matches!(
            RegexRewrite::new("(", ""),
            Err(RewriteError::Expression { .. })
        ));
        assert!(matches!(
            RegexRewrite::new("a", r"\x"),
            Err(RewriteError::Backslash(_))
        ));
        assert!(matches!(
            RegexRewrite::new("a", "\\"),
            Err(RewriteError::Backslash(_))
        ));
        let error = RegexRewrite::new("(a)", r"\2").unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"the substitution "\\2" uses group 2, but the expression has 1"#
        );
    }
}
