//! `envoy.filters.http.header_to_metadata`: what headers and cookies say becomes dynamic metadata, as Envoy
//! 1.40 does it. Consul puts claims there for its rules.
//!
//! Never answers a request. A worker remembers the latest rewrites: Consul's five rules each run an expression over
//! an XFCC of 2 KB, which is the same for all requests of a connection, and of a caller.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::header::{HeaderMap, HeaderValue};
use serde_json::{Number, Value};

use crate::http::hash::cookie;
use crate::model::http::{HeaderToMetadataRule, MetadataEntry, MetadataKind, MetadataSource, MetadataValue};
use crate::model::metadata::Metadata;
use crate::model::rewrite::RegexRewrite;

/// Bytes of a value from which on it is left out.
const MAX_VALUE_BYTES: usize = 8192;

/// Values whose rewrites a worker remembers, the latest first, and rewrites of one value. Each keeps alive what it is a part of: a head of
/// 60 KiB at most, as Envoy limits them.
const MAX_REMEMBERED: usize = 16;

thread_local! {
    static REMEMBERED: RefCell<VecDeque<Remembered>> = const { RefCell::new(VecDeque::new()) };
}

/// What became of one value, by each expression.
struct Remembered {
    came: HeaderValue,
    /// At most [`MAX_REMEMBERED`].
    became: Vec<(RegexRewrite, String)>,
}

/// Above this a double does not tell every whole number from the next.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// As Envoy decodes: padding may be missing, bits that stand for nothing must be zero.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Applies rules in their order to the headers of a request or response; a later one writes over what an
/// earlier one wrote. `pseudo` knows the values of `:path` and its like.
pub(super) fn apply<'a>(
    rules: &[HeaderToMetadataRule],
    headers: &mut HeaderMap,
    pseudo: impl Fn(&str) -> Option<&'a str>,
    metadata: &mut Metadata,
) {
    for rule in rules {
        let found = match &rule.source {
            MetadataSource::Header(name) if name.starts_with(':') => {
                pseudo(name).map(|value| Came::Bytes(value.as_bytes().into()))
            }
            MetadataSource::Header(name) => named(headers, name),
            MetadataSource::Cookie(name) => {
                let value = cookie(headers, name).filter(|value| !value.is_empty());
                value.map(|value| Came::Bytes(value.into()))
            }
        };
        let entry = match &found {
            Some(_) => &rule.on_present,
            None => &rule.on_missing,
        };
        if let Some(entry) = entry
            && let Some(value) = value(entry, &found.unwrap_or(Came::Bytes([][..].into())))
        {
            metadata.set(&entry.namespace, &entry.key, value);
        }
        if rule.remove
            && let MetadataSource::Header(name) = &rule.source
        {
            headers.remove(&**name);
        }
    }
}

/// What a rule looks at.
enum Came<'h> {
    /// One header's value.
    Header(HeaderValue),
    Bytes(Cow<'h, [u8]>),
}

impl Came<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Header(value) => value.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

fn named(headers: &HeaderMap, name: &str) -> Option<Came<'static>> {
    // A name that is none of HTTP's is in no request.
    let values: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    match values[..] {
        [] => None,
        [one] => Some(Came::Header(one.clone())),
        _ => {
            let values: Vec<&[u8]> = values.into_iter().map(HeaderValue::as_bytes).collect();
            Some(Came::Bytes(values.join(&b","[..]).into()))
        }
    }
}

fn rewritten(regex: &RegexRewrite, came: &Came<'_>) -> String {
    let rewrite = || regex.rewrite(&text_of(came.bytes().into())).into_owned();
    match came {
        Came::Header(value) if value.len() < MAX_VALUE_BYTES => remembered(regex, value, rewrite),
        _ => rewrite(),
    }
}

/// What `rewrite` makes of `came` by `regex`, or made of the same before.
fn remembered(regex: &RegexRewrite, came: &HeaderValue, rewrite: impl FnOnce() -> String) -> String {
    REMEMBERED.with_borrow_mut(|all| {
        // A connection's own XFCC is one value in all of its requests: most need no comparison.
        let is_same = |one: &Remembered| one.came.as_bytes().as_ptr() == came.as_bytes().as_ptr();
        let at = (all.iter())
            .position(|one| is_same(one) && one.came.len() == came.len())
            .or_else(|| all.iter().position(|one| one.came == came));
        let mut one = match at.and_then(|at| all.remove(at)) {
            Some(one) => one,
            None => Remembered {
                came: came.clone(),
                became: Vec::new(),
            },
        };
        let known = one.became.iter().find(|(by, _)| by.is(regex));
        let became = match known {
            Some((_, became)) => became.clone(),
            None => {
                let became = rewrite();
                // Those of older configurations come first.
                if one.became.len() == MAX_REMEMBERED {
                    one.became.remove(0);
                }
                one.became.push((regex.clone(), became.clone()));
                became
            }
        };
        all.truncate(MAX_REMEMBERED - 1);
        all.push_front(one);
        became
    })
}

/// None for what is not written: an empty, too long or unreadable one.
fn value(entry: &MetadataEntry, came: &Came<'_>) -> Option<Value> {
    let text: Cow<'_, [u8]> = match &entry.value {
        MetadataValue::Same => came.bytes().into(),
        MetadataValue::Constant(text) => text.as_bytes().into(),
        MetadataValue::Rewritten(regex) => rewritten(regex, came).into_bytes().into(),
    };
    if text.is_empty() || text.len() >= MAX_VALUE_BYTES {
        return None;
    }
    let text = if entry.base64 {
        BASE64.decode(&text).ok().filter(|text| !text.is_empty())?.into()
    } else {
        text
    };
    let text = text_of(text);
    match entry.kind {
        MetadataKind::String => Some(Value::String(text.into_owned())),
        MetadataKind::Number => number(text.trim()),
    }
}

/// Bytes that are no UTF-8 are taken for Latin-1, as Envoy writes them into logs.
fn text_of(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => latin1(bytes).into(),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(error) => latin1(error.as_bytes()).into(),
        },
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Decimal or hexadecimal. One that is not finite is left out, where Envoy writes what no JSON can hold.
fn number(text: &str) -> Option<Value> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let number = match hexadecimal {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            f64::from(u32::from_str_radix(digits, 16).ok()?) * sign
        }
        _ => text.parse().ok()?,
    };
    let whole = number.fract() == 0.0 && number.abs() <= MAX_WHOLE;
    if whole {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within 2^53")]
        return Some(Value::Number((number as i64).into()));
    }
    Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    //! Every expectation was measured on Envoy 1.40.0.

    use serde_json::json;

    use super::*;
    use crate::model::rewrite::RegexRewrite;

    fn entry(value: MetadataValue) -> MetadataEntry {
        MetadataEntry {
            namespace: "ns".into(),
            key: "k".into(),
            value,
            kind: MetadataKind::String,
            base64: false,
        }
    }

    fn constant(text: &str) -> MetadataEntry {
        entry(MetadataValue::Constant(text.into()))
    }

    fn rule(on_present: Option<MetadataEntry>, on_missing: Option<MetadataEntry>) -> HeaderToMetadataRule {
        HeaderToMetadataRule {
            source: MetadataSource::Header("x".into()),
            on_present,
            on_missing,
            remove: false,
        }
    }

    /// What is written under `k`, and the headers after it.
    fn applied(rules: &[HeaderToMetadataRule], lines: &[(&'static str, &str)]) -> (Option<Value>, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let mut metadata = Metadata::default();
        let pseudo = |name: &str| (name == ":path").then_some("/pp?q");
        apply(rules, &mut headers, pseudo, &mut metadata);
        (metadata.get("ns", &["k"]).cloned(), headers)
    }

    fn present(entry: &MetadataEntry, came: &str) -> Option<Value> {
        applied(&[rule(Some(entry.clone()), None)], &[("x", came)]).0
    }

    #[test]
    fn what_is_there_or_missing_is_written() {
        let both = [rule(Some(constant("c")), Some(constant("m")))];
        assert_eq!(applied(&both, &[("x", "v")]).0, Some(json!("c")));
        assert_eq!(applied(&both, &[("x", "")]).0, Some(json!("c")));
        assert_eq!(applied(&both, &[]).0, Some(json!("m")));
        let missing = [rule(None, Some(constant("m")))];
        assert_eq!(applied(&missing, &[("x", "")]).0, None);
        let same = entry(MetadataValue::Same);
        assert_eq!(present(&same, "v"), Some(json!("v")));
        assert_eq!(present(&same, ""), None);
        assert_eq!(present(&same, &"z".repeat(9000)), None);
        let twice = applied(&[rule(Some(same.clone()), None)], &[("x", "a"), ("x", "b")]);
        assert_eq!(twice.0, Some(json!("a,b")));
        let other = HeaderToMetadataRule {
            source: MetadataSource::Header("y".into()),
            ..rule(Some(same.clone()), None)
        };
        let later = applied(
            &[rule(Some(same.clone()), None), other],
            &[("x", "a"), ("y", "b")],
        );
        assert_eq!(later.0, Some(json!("b")));
        let path = HeaderToMetadataRule {
            source: MetadataSource::Header(":path".into()),
            ..rule(Some(same), None)
        };
        assert_eq!(applied(&[path], &[]).0, Some(json!("/pp?q")));
    }

    #[test]
    fn a_header_is_taken_away_once_it_was_looked_at() {
        let removing = |entry: Option<MetadataEntry>| HeaderToMetadataRule {
            remove: true,
            ..rule(entry, None)
        };
        let gone = rule(Some(constant("still there")), None);
        let rules = [removing(Some(entry(MetadataValue::Same))), gone];
        let (written, headers) = applied(&rules, &[("x", "a"), ("x", "b")]);
        assert_eq!(written, Some(json!("a,b")));
        assert!(headers.is_empty());
    }

    #[test]
    fn a_cookie_that_is_empty_is_missing() {
        let rules = [HeaderToMetadataRule {
            source: MetadataSource::Cookie("c".into()),
            ..rule(Some(entry(MetadataValue::Same)), Some(constant("m")))
        }];
        for (cookies, expected) in [
            ("c=v", "v"),
            ("c=\"v\"", "v"),
            ("c=a; c=b", "a"),
            ("c=v=w", "v=w"),
            ("c=", "m"),
            ("d=v", "m"),
        ] {
            assert_eq!(
                applied(&rules, &[("cookie", cookies)]).0,
                Some(json!(expected)),
                "{cookies}"
            );
        }
        assert_eq!(applied(&rules, &[]).0, Some(json!("m")));
    }

    #[test]
    fn numbers_are_read_as_leniently_as_by_envoy() {
        let number = MetadataEntry {
            kind: MetadataKind::Number,
            ..entry(MetadataValue::Same)
        };
        for (came, expected) in [
            ("12", json!(12)),
            ("1.5", json!(1.5)),
            ("-3e2", json!(-300)),
            ("0x10", json!(16)),
            ("+5", json!(5)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
        ] {
            assert_eq!(present(&number, came), Some(expected), "{came}");
        }
        for came in ["v", "12abc", "1_0", "a,b", "", "0x", "0xg"] {
            assert_eq!(present(&number, came), None, "{came}");
        }
        let fixed = MetadataEntry {
            kind: MetadataKind::Number,
            ..constant("12")
        };
        assert_eq!(present(&fixed, "v"), Some(json!(12)));
    }

    #[test]
    fn base64_is_decoded_after_the_rewrite() {
        let base64 = MetadataEntry {
            base64: true,
            ..entry(MetadataValue::Same)
        };
        for (came, expected) in [
            ("YWI=", "ab"),
            ("YWI", "ab"),
            ("MTI=", "12"),
            ("0x10", "\u{d3}\u{1d}t"),
            ("/abc/def", "\u{fd}\u{a6}\u{dc}\u{fd}\u{d7}\u{9f}"),
        ] {
            assert_eq!(present(&base64, came), Some(json!(expected)), "{came}");
        }
        for came in ["v", "12", "nan", "inf", "Y W", "1_0", "-3e2", "12abc", ""] {
            assert_eq!(present(&base64, came), None, "{came}");
        }
        let rewritten = MetadataEntry {
            value: MetadataValue::Rewritten(RegexRewrite::new("a", "b").unwrap()),
            ..base64.clone()
        };
        assert_eq!(present(&rewritten, "YWI="), Some(json!("ab")));
        assert_eq!(
            present(&rewritten, "/abc/def"),
            Some(json!("\u{fd}\u{b6}\u{dc}\u{fd}\u{d7}\u{9f}"))
        );
        let number = MetadataEntry {
            kind: MetadataKind::Number,
            ..base64
        };
        assert_eq!(present(&number, "MTI="), Some(json!(12)));
        let fixed = MetadataEntry {
            base64: true,
            ..constant("YWI=")
        };
        assert_eq!(present(&fixed, "v"), Some(json!("ab")));
    }

    #[test]
    fn a_rewrite_is_remembered_by_value_and_expression() {
        let rewritten =
            |from: &str, to: &str| entry(MetadataValue::Rewritten(RegexRewrite::new(from, to).unwrap()));
        let (first, second) = (rewritten("^(.).*", r"\1"), rewritten(".*(.)$", r"\1"));
        // More values than are remembered, then all of them again.
        for _ in 0..2 {
            for number in 0..3 * MAX_REMEMBERED {
                let came = format!("{}-{}", number % 10, number / 10);
                let (begins, ends) = (&came[..1], &came[2..]);
                for _ in 0..2 {
                    assert_eq!(present(&first, &came), Some(json!(begins)), "{came}");
                    assert_eq!(present(&second, &came), Some(json!(ends)), "{came}");
                }
            }
        }
        let kept = REMEMBERED.with_borrow(VecDeque::len);
        assert_eq!(kept, MAX_REMEMBERED);
        // An expression of a newer configuration is another one, though it reads alike.
        for _ in 0..2 * MAX_REMEMBERED {
            assert_eq!(present(&rewritten("^(.).*", "x"), "0-0"), Some(json!("x")));
        }
        let became = REMEMBERED.with_borrow(|all| all[0].became.len());
        assert_eq!(became, MAX_REMEMBERED);
    }

    #[test]
    fn a_rewrite_that_leaves_nothing_writes_nothing() {
        let rewritten =
            |from: &str, to: &str| entry(MetadataValue::Rewritten(RegexRewrite::new(from, to).unwrap()));
        let first = rewritten("^/([a-z]+)/.*", r"\1");
        assert_eq!(present(&first, "/abc/def"), Some(json!("abc")));
        assert_eq!(present(&first, "v"), Some(json!("v")));
        assert_eq!(present(&rewritten(".*", ""), "v"), None);
    }
}
