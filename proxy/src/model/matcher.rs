//! Matchers over text, addresses and requests (Envoy's `StringMatcher`, `CidrRange`, `HeaderMatcher`,
//! `PathMatcher`, `MetadataMatcher`).
//!
//! Pure; a regular expression is compiled once, when the configuration is decoded.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

/// A compiled expression larger than this is refused. RE2's limit that Consul writes into the bootstrap
/// (`re2.max_program_size.error_level`) is a million instructions; `\w{200}` alone is over one MiB here.
const MAX_REGEX_BYTES: usize = 10 << 20;

/// Envoy's `StringMatcher`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringMatcher {
    /// What the text must be.
    pub pattern: StringPattern,
    /// Compares ASCII letters without their case; never set for a regular expression.
    pub ignore_case: bool,
}

/// The kinds of [`StringMatcher`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringPattern {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// Its end.
    Suffix(Arc<str>),
    /// Any part.
    Contains(Arc<str>),
    /// The whole text, by a regular expression.
    Regex(SafeRegex),
}

/// Envoy's `RegexMatcher`: linear time, matches the whole text.
#[derive(Clone, Debug)]
pub struct SafeRegex {
    source: Arc<str>,
    whole: Regex,
}

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the regular expression {expression:?} cannot be used: {why}")]
pub struct RegexError {
    /// As it was written.
    pub expression: String,
    /// The parser's reason, one line.
    pub why: String,
}

/// Envoy's `CidrRange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// Envoy's `HeaderMatcher`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatcher {
    /// Lower case; `:method` and `:path` are headers too.
    pub name: Arc<str>,
    /// What is asked of it.
    pub check: HeaderCheck,
    /// Turns the answer round.
    pub invert: bool,
    /// A header that is not there is taken as an empty one; else, asked for its value, it never matches:
    /// turned round neither.
    pub missing_as_empty: bool,
}

/// What a [`HeaderMatcher`] asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderCheck {
    /// Whether it is there.
    Present(bool),
    /// Its value, of several the comma-joined one.
    Value(StringMatcher),
    /// A decimal number from the first (included) to the second (excluded).
    Range(i64, i64),
}

/// Envoy's `MetadataMatcher` on one string, which is all that Consul asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataMatcher {
    /// The namespace: the name of the filter that wrote it.
    pub filter: Arc<str>,
    /// Keys from the outside in.
    pub path: Vec<Arc<str>>,
    /// What the value must be; a list or a number is no text and does not match.
    pub value: StringMatcher,
    /// Turns the answer round.
    pub invert: bool,
}

/// What matchers see of a request. On a TCP connection there is none, and nothing of it matches.
pub trait Request {
    /// A header's value by its lower-case name, several of them joined by commas.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
    /// The path without query and fragment.
    fn path(&self) -> &str;
    /// Whether any value of a header holds, each looked at alone; none if there is no such header.
    fn any_value(&self, name: &str, holds: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        self.header(name).map(|value| holds(&value))
    }
    /// The text at a place of the dynamic metadata; none where there is nothing or another kind of value.
    fn metadata(&self, filter: &str, path: &[Arc<str>]) -> Option<Cow<'_, str>>;
}

impl StringMatcher {
    /// The whole text, letter by letter.
    pub fn exact(text: impl Into<Arc<str>>) -> Self {
        Self {
            pattern: StringPattern::Exact(text.into()),
            ignore_case: false,
        }
    }

    /// Whether `text` is what is asked for.
    pub fn matches(&self, text: &str) -> bool {
        let fold = |text| fold(text, self.ignore_case);
        match &self.pattern {
            StringPattern::Exact(pattern) => fold(text) == fold(pattern),
            StringPattern::Prefix(pattern) => fold(text).starts_with(&*fold(pattern)),
            StringPattern::Suffix(pattern) => fold(text).ends_with(&*fold(pattern)),
            StringPattern::Contains(pattern) => fold(text).contains(&*fold(pattern)),
            StringPattern::Regex(regex) => regex.matches(text),
        }
    }
}

fn fold(text: &str, ignore_case: bool) -> Cow<'_, str> {
    if ignore_case {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}

impl SafeRegex {
    /// Compiles `source`.
    ///
    /// # Errors
    /// Quotes the expression and says what is wrong with it, its size included.
    pub fn new(source: &str) -> Result<Self, RegexError> {
        let compile = |text: &str| RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).build();
        // Alone first: `)|(` must not become valid by the parentheses around it.
        compile(source)
            .and_then(|_| compile(&format!("^(?:{source})$")))
            .map(|whole| Self {
                source: source.into(),
                whole,
            })
            .map_err(|error| RegexError {
                expression: source.to_owned(),
                why: error.to_string().lines().last().unwrap_or_default().to_owned(),
            })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether it matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }
}

impl PartialEq for SafeRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for SafeRegex {}

impl Cidr {
    /// The addresses that share the first `length` bits with `address`; `None` when it has fewer.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (length <= bits).then_some(Self { address, length })
    }

    /// Whether `address` is among them. An IPv4 address mapped into IPv6 is looked at as IPv4, since that is
    /// how a socket for both shows it; a range is of the family that it is written in, as Envoy's.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.length.min(32));
                (u32::from(a) ^ u32::from(b)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.length);
                (u128::from(a) ^ u128::from(b)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// How many bits are given: the more, the more specific.
    pub fn length(self) -> u8 {
        self.length
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl HeaderMatcher {
    /// Whether the request's header is what is asked for.
    pub fn matches(&self, request: &dyn Request) -> bool {
        // As in Envoy each value of a header is looked at alone: one that matches is enough.
        let value = request.any_value(&self.name, &mut |value| self.check.holds(value));
        let matched = match (&self.check, value) {
            (HeaderCheck::Present(wanted), value) => value.is_some() == *wanted,
            (_, Some(holds)) => holds,
            (check, None) if self.missing_as_empty => check.holds(""),
            // Envoy does not invert this: a rule for "not admin" does not let in who says nothing.
            (_, None) => return false,
        };
        matched != self.invert
    }
}

impl HeaderCheck {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Present(wanted) => *wanted,
            Self::Value(matcher) => matcher.matches(value),
            Self::Range(from, to) => value
                .trim()
                .parse::<i64>()
                .is_ok_and(|number| (*from..*to).contains(&number)),
        }
    }
}

impl MetadataMatcher {
    /// Whether the metadata is what is asked for. Without a request there is none, which is an answer that
    /// can be turned round.
    pub fn matches(&self, request: Option<&dyn Request>) -> bool {
        let value = request.and_then(|request| request.metadata(&self.filter, &self.path));
        value.is_some_and(|value| self.value.matches(&value)) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(pattern: StringPattern, ignore_case: bool) -> StringMatcher {
        StringMatcher { pattern, ignore_case }
    }

    #[test]
    fn texts() {
        assert!(pattern(StringPattern::Prefix("Sp".into()), true).matches("sPiffe"));
        assert!(!pattern(StringPattern::Prefix("Sp".into()), false).matches("sPiffe"));
        assert!(pattern(StringPattern::Suffix("fe".into()), false).matches("spiffe"));
        assert!(pattern(StringPattern::Contains("iff".into()), false).matches("spiffe"));
        assert!(!StringMatcher::exact("a").matches("ab"));
    }

    #[test]
    fn expressions_match_the_whole_text() {
        let regex = SafeRegex::new("GET|PUT").unwrap();
        assert!(regex.matches("PUT") && !regex.matches("PUTS") && !regex.matches("xGET"));
        assert!(SafeRegex::new(")|(").is_err());
        assert!(SafeRegex::new("(a{1000}){1000}").is_err());
        assert!(
            SafeRegex::new(r"^spiffe://[^/]+/ns/default/dc/[^/]+/svc/web$")
                .unwrap()
                .matches("spiffe://td.consul/ns/default/dc/dc1/svc/web")
        );
    }

    /// A request of which nothing is known but one header.
    struct Only(&'static str);

    impl Request for Only {
        fn header(&self, name: &str) -> Option<Cow<'_, str>> {
            (name == "x-role").then_some(self.0.into())
        }

        fn path(&self) -> &str {
            ""
        }

        fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
            None
        }
    }

    #[test]
    fn a_missing_header_has_no_value_to_match() {
        let matcher = |name: &str, check, invert, missing_as_empty| HeaderMatcher {
            name: name.into(),
            check,
            invert,
            missing_as_empty,
        };
        let admin = || HeaderCheck::Value(StringMatcher::exact("admin"));
        let user = Only("user");
        assert!(matcher("x-role", admin(), true, false).matches(&user));
        assert!(!matcher("x-role", admin(), true, false).matches(&Only("admin")));
        for invert in [false, true] {
            assert!(!matcher("x-other", admin(), invert, false).matches(&user));
            assert_eq!(matcher("x-other", admin(), invert, true).matches(&user), invert);
            let present = matcher("x-other", HeaderCheck::Present(true), invert, false);
            assert_eq!(present.matches(&user), invert);
            let absent = matcher("x-other", HeaderCheck::Present(false), invert, false);
            assert_eq!(absent.matches(&user), !invert);
        }
    }

    #[test]
    fn ranges() {
        let cidr = |text: &str, length| Cidr::new(text.parse().unwrap(), length).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(cidr("10.1.2.3", 8).contains(ip("10.9.9.9")));
        assert!(cidr("10.1.2.3", 8).contains(ip("::ffff:10.9.9.9")));
        assert!(!cidr("10.1.2.3", 32).contains(ip("10.1.2.4")));
        assert!(cidr("0.0.0.0", 0).contains(ip("1.2.3.4")));
        assert!(!cidr("0.0.0.0", 0).contains(ip("::1")));
        assert!(cidr("::1", 128).contains(ip("::1")) && !cidr("::1", 128).contains(ip("::2")));
        assert!(cidr("::", 0).contains(ip("2001:db8::1")));
        assert!(!cidr("::ffff:10.0.0.1", 128).contains(ip("10.0.0.1")));
        assert!(!cidr("::ffff:10.0.0.1", 24).contains(ip("10.0.0.9")));
        assert!(Cidr::new(ip("1.2.3.4"), 33).is_none());
    }
}
