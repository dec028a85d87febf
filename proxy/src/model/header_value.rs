//! Values of headers to be added: text, or text with command operators (Envoy's `HeaderValueOption`).
//!
//! Parsed once, with the configuration, to what [`hyper`] takes without another look: a value without
//! operators costs one count of a reference. Adding is `http/header_mutation`'s.

use std::borrow::Cow;

use hyper::header::{HOST, HeaderName, HeaderValue};

use super::access_log::{FormatError, Piece, Template};

/// Envoy's bound on the text of a value, in bytes.
const MAX_VALUE_BYTES: usize = 16_384;

/// A header to be added (Envoy's `HeaderValueOption`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderValueOption {
    /// Neither `host` nor one that begins with a colon.
    pub name: HeaderName,
    /// What it says.
    pub value: HeaderFormat,
    /// What happens where it is there already.
    pub append: HeaderAppendAction,
    /// Adds it even if the value is empty.
    pub keep_empty_value: bool,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderFormat {
    /// The same always.
    Literal(HeaderValue),
    /// What the request says; an absent fact is empty.
    Operators(Template),
}

/// Envoy's `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderAppendAction {
    /// One more of it.
    #[default]
    AppendIfExistsOrAdd,
    /// Only where there is none.
    AddIfAbsent,
    /// Instead of those that are there.
    OverwriteIfExistsOrAdd,
    /// Instead of those that are there; nothing where there is none.
    OverwriteIfExists,
}

/// Why a header cannot be added or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderValueError {
    /// The name is empty, or has characters that no header's name has (Envoy would send some of them).
    #[error("{0:?} is not a header's name")]
    Name(String),
    /// The host, or what is no real header.
    #[error("{0:?} must not be changed")]
    Unchangeable(String),
    /// An operator that cannot be carried out.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The text has characters that no header's value has, or is too long.
    #[error("the value has a control character, or more than 16384 bytes")]
    Value,
}

impl HeaderValueOption {
    /// A header of this name with `text`, which may have command operators, left out where it is empty.
    ///
    /// # Errors
    /// [`HeaderValueError`]: what Envoy refuses, and names that are none.
    pub fn new(name: &str, text: &str, append: HeaderAppendAction) -> Result<Self, HeaderValueError> {
        Ok(Self {
            name: mutable(name)?,
            value: HeaderFormat::parse(text)?,
            append,
            keep_empty_value: false,
        })
    }
}

impl HeaderFormat {
    /// Parses a text with command operators, Envoy's older `%DYNAMIC_METADATA(["filter", "key"])%` included.
    ///
    /// # Errors
    /// [`HeaderValueError`]: an operator that cannot be carried out; what no header can say.
    pub fn parse(text: &str) -> Result<Self, HeaderValueError> {
        if text.len() > MAX_VALUE_BYTES || text.contains(['\0', '\n', '\r']) {
            return Err(HeaderValueError::Value);
        }
        let template = Template::parse(&with_colons(text))?;
        let literal = match template.pieces() {
            [] => "",
            [Piece::Literal(literal)] => literal,
            _ => return Ok(Self::Operators(template)),
        };
        let value = HeaderValue::from_bytes(literal.as_bytes());
        value.map(Self::Literal).map_err(|_| HeaderValueError::Value)
    }
}

/// The name of a header that may be added or removed.
///
/// # Errors
/// The host, what is no real header, and what is no name.
pub fn mutable(name: &str) -> Result<HeaderName, HeaderValueError> {
    if name.starts_with(':') {
        return Err(HeaderValueError::Unchangeable(name.to_owned()));
    }
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(HOST) => Err(HeaderValueError::Unchangeable(name.to_owned())),
        Ok(name) => Ok(name),
        Err(_) => Err(HeaderValueError::Name(name.to_owned())),
    }
}

/// `(["a", "b"])` of metadata as `(a:b)`: Envoy takes both in headers.
fn with_colons(text: &str) -> Cow<'_, str> {
    const START: &str = "%DYNAMIC_METADATA([";
    if !text.contains(START) {
        return text.into();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(START) {
        let read = after.split_once("])%").and_then(|(list, after)| {
            let path: Vec<String> = serde_json::from_str(&format!("[{list}]")).ok()?;
            Some((path.join(":"), after))
        });
        let Some((path, after)) = read else { break };
        out.push_str(before);
        out.push_str("%DYNAMIC_METADATA(");
        out.push_str(&path);
        out.push_str(")%");
        rest = after;
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, text: &str) -> Result<HeaderValueOption, HeaderValueError> {
        HeaderValueOption::new(name, text, HeaderAppendAction::default())
    }

    /// What real Envoy refuses, but for the names that are none.
    #[test]
    fn what_cannot_be_added_is_refused_by_name() {
        for name in [":path", ":foo", "host", "Host", "HOST"] {
            let refused = Err(HeaderValueError::Unchangeable(name.to_owned()));
            assert_eq!(new(name, "v"), refused);
        }
        for name in ["", "x a", "x:y", "x\n", "\u{e9}"] {
            assert_eq!(new(name, "v"), Err(HeaderValueError::Name(name.to_owned())));
        }
        for value in ["a\nb", "a\rb", "a\0b", "%REQ(a\nb)%", &"a".repeat(16_385)] {
            assert_eq!(new("x", value), Err(HeaderValueError::Value), "{value:?}");
        }
        for value in [
            "100%",
            "%",
            "a%b",
            "%REQ(x)",
            "%REQ(:path)%%",
            "%foo%",
            "%REQ(a b)%",
            "%CLIENT_IP%",
        ] {
            assert!(
                matches!(new("x", value), Err(HeaderValueError::Format(_))),
                "{value}"
            );
        }
    }

    #[test]
    fn a_text_without_operators_is_ready_to_be_sent() {
        for (text, literal) in [
            ("", ""),
            ("100%%", "100%"),
            (" v\t", " v\t"),
            ("\u{e9}", "\u{e9}"),
        ] {
            let value = HeaderValue::from_bytes(literal.as_bytes()).unwrap();
            assert_eq!(new("X-Up", text).unwrap().value, HeaderFormat::Literal(value));
        }
        assert_eq!(new("X-Up", "").unwrap().name, "x-up");
        assert!(matches!(
            new("x", "a%REQ(a)%").unwrap().value,
            HeaderFormat::Operators(_)
        ));
    }

    #[test]
    fn lists_of_metadata_are_the_same_with_colons() {
        let parsed = |text| HeaderFormat::parse(text).unwrap();
        assert_eq!(
            parsed(r#"x%DYNAMIC_METADATA(["a", "b"])%y%DYNAMIC_METADATA(["c"])%"#),
            parsed("x%DYNAMIC_METADATA(a:b)%y%DYNAMIC_METADATA(c)%")
        );
        assert!(HeaderFormat::parse("%DYNAMIC_METADATA([").is_err());
    }
}
