//! The query of a request's target.

use std::borrow::Cow;

/// The parameters, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c`; `%` escapes are undone, and one that is none stands as it is.
    pub(super) fn parse(query: &str) -> Self {
        let parameters = query.split('&').filter(|part| !part.is_empty());
        let parameters = parameters.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name).into_owned(), decode(value).into_owned())
        });
        Self(parameters.collect())
    }

    /// The first value of a parameter; of one without a value it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(have, _)| *have == name)
            .map(|(_, value)| value)
    }

    /// Whether a parameter is there at all.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = escape
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse("usedonly&filter=a%5C.b%2&x=1&x=2&=&%zz=+");
        let all: Vec<_> = query.iter().collect();
        let wanted = [
            ("usedonly", ""),
            ("filter", "a\\.b%2"),
            ("x", "1"),
            ("x", "2"),
            ("", ""),
            ("%zz", "+"),
        ];
        assert_eq!(all, wanted);
        assert_eq!(query.get("x"), Some("1"));
        assert!(query.has("usedonly") && !query.has("text_readouts"));
    }
}
