//! `type.matcher.v3` and `route.v3.HeaderMatcher`.

use std::sync::Arc;

use attache_proto::envoy::config::route::v3::{
    self as route, header_matcher::HeaderMatchSpecifier as Header,
};
use attache_proto::envoy::r#type::matcher::v3::{
    self as wire, metadata_matcher::path_segment::Segment, path_matcher, string_matcher::MatchPattern,
    value_matcher,
};

use super::common::need;
use super::error::{At, DecodeError};
use crate::model::matcher::{
    HeaderCheck, HeaderMatcher, MetadataMatcher, SafeRegex, StringMatcher, StringPattern,
};
use crate::model::rewrite::RegexRewrite;

/// A matcher of text.
///
/// # Errors
/// None of the known kinds, an empty part (which would match everything), a bad expression.
pub fn string(matcher: &wire::StringMatcher, at: &At<'_>) -> Result<StringMatcher, DecodeError> {
    let part = |text: &str, field: &str| need(text, &at.field(field)).map(Arc::from);
    let pattern = match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(text.as_str().into()),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(part(text, "prefix")?),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(part(text, "suffix")?),
        Some(MatchPattern::Contains(text)) => StringPattern::Contains(part(text, "contains")?),
        Some(MatchPattern::SafeRegex(regex)) => {
            StringPattern::Regex(self::regex(regex, &at.field("safe_regex"))?)
        }
        Some(MatchPattern::Custom(_)) => return Err(at.field("custom").refuse("is not supported")),
        None => return Err(at.refuse("has no pattern")),
    };
    Ok(StringMatcher {
        // Envoy applies it to everything but expressions.
        ignore_case: matcher.ignore_case && !matches!(pattern, StringPattern::Regex(_)),
        pattern,
    })
}

/// Likewise, where it must be there.
///
/// # Errors
/// As [`string`]; it is missing.
pub fn need_string(matcher: Option<&wire::StringMatcher>, at: &At<'_>) -> Result<StringMatcher, DecodeError> {
    string(matcher.ok_or_else(|| at.refuse("is missing"))?, at)
}

/// A regular expression.
///
/// # Errors
/// It is empty, malformed or too large.
pub fn regex(matcher: &wire::RegexMatcher, at: &At<'_>) -> Result<SafeRegex, DecodeError> {
    let at = at.field("regex");
    let source = need(&matcher.regex, &at)?;
    // The engine and its limit are not the configuration's choice: Envoy itself has deprecated both.
    SafeRegex::new(source).map_err(|error| at.refuse(format!("is refused: {error}")))
}

/// A rewrite by a regular expression.
///
/// # Errors
/// As [`regex`]; a substitution that names a group which is not there.
pub fn rewrite(rewrite: &wire::RegexMatchAndSubstitute, at: &At<'_>) -> Result<RegexRewrite, DecodeError> {
    let pattern_at = at.field("pattern.regex");
    let pattern = rewrite.pattern.as_ref().map_or("", |pattern| &pattern.regex);
    RegexRewrite::new(need(pattern, &pattern_at)?, &rewrite.substitution)
        .map_err(|error| at.refuse(format!("is refused: {error}")))
}

/// A matcher of a request's path.
///
/// # Errors
/// As [`string`].
pub fn path(matcher: &wire::PathMatcher, at: &At<'_>) -> Result<StringMatcher, DecodeError> {
    match &matcher.rule {
        Some(path_matcher::Rule::Path(path)) => string(path, &at.field("path")),
        None => Err(at.refuse("has no path")),
    }
}

/// A matcher of a request's header; also the forms that Envoy has deprecated.
///
/// # Errors
/// As [`string`]; a missing name.
pub fn header(matcher: &route::HeaderMatcher, at: &At<'_>) -> Result<HeaderMatcher, DecodeError> {
    let name = need(&matcher.name, &at.field("name"))?.to_ascii_lowercase();
    // Envoy keeps both in one place.
    let name = if name == "host" { ":authority" } else { &name };
    let plain = |pattern| {
        HeaderCheck::Value(StringMatcher {
            pattern,
            ignore_case: false,
        })
    };
    let part = |text: &str, field: &str| need(text, &at.field(field)).map(Arc::from);
    let check = match &matcher.header_match_specifier {
        None => HeaderCheck::Present(true),
        Some(Header::PresentMatch(present)) => HeaderCheck::Present(*present),
        Some(Header::StringMatch(value)) => HeaderCheck::Value(string(value, &at.field("string_match"))?),
        Some(Header::ExactMatch(text)) => plain(StringPattern::Exact(part(text, "exact_match")?)),
        Some(Header::PrefixMatch(text)) => plain(StringPattern::Prefix(part(text, "prefix_match")?)),
        Some(Header::SuffixMatch(text)) => plain(StringPattern::Suffix(part(text, "suffix_match")?)),
        Some(Header::ContainsMatch(text)) => plain(StringPattern::Contains(part(text, "contains_match")?)),
        Some(Header::SafeRegexMatch(regex)) => plain(StringPattern::Regex(self::regex(
            regex,
            &at.field("safe_regex_match"),
        )?)),
        Some(Header::RangeMatch(range)) => HeaderCheck::Range(range.start, range.end),
    };
    Ok(HeaderMatcher {
        name: name.into(),
        check,
        invert: matcher.invert_match,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

/// A matcher of dynamic metadata, by text.
///
/// # Errors
/// A missing filter or path, or a value that is looked at as anything but text.
pub fn metadata(matcher: &wire::MetadataMatcher, at: &At<'_>) -> Result<MetadataMatcher, DecodeError> {
    let filter = need(&matcher.filter, &at.field("filter"))?.into();
    let keys = at.field("path");
    let key = |(index, segment): (usize, &wire::metadata_matcher::PathSegment)| match &segment.segment {
        Some(Segment::Key(key)) => Ok(Arc::from(need(key, &keys.index(index))?)),
        None => Err(keys.index(index).refuse("has no key")),
    };
    let path: Vec<_> = matcher
        .path
        .iter()
        .enumerate()
        .map(key)
        .collect::<Result<_, _>>()?;
    if path.is_empty() {
        return Err(keys.refuse("is empty"));
    }
    let at = at.field("value");
    let pattern = matcher
        .value
        .as_ref()
        .and_then(|value| value.match_pattern.as_ref());
    let value = match pattern {
        Some(value_matcher::MatchPattern::StringMatch(text)) => string(text, &at.field("string_match"))?,
        Some(_) => return Err(at.refuse("is matched by something else than string_match: not supported")),
        None => return Err(at.refuse("is missing")),
    };
    Ok(MetadataMatcher {
        filter,
        path,
        value,
        invert: matcher.invert,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At<'static> = At::resource("Listener", "l");

    fn text(pattern: MatchPattern) -> wire::StringMatcher {
        wire::StringMatcher {
            match_pattern: Some(pattern),
            ignore_case: true,
        }
    }

    fn re(source: &str) -> wire::RegexMatcher {
        wire::RegexMatcher {
            regex: source.to_owned(),
            engine_type: None,
        }
    }

    #[test]
    fn texts() {
        let matches = |pattern, value: &str| string(&text(pattern), &AT).unwrap().matches(value);
        assert!(matches(MatchPattern::Exact("GET".to_owned()), "get"));
        assert!(matches(MatchPattern::Prefix("/A".to_owned()), "/a/b"));
        assert!(matches(MatchPattern::Suffix("B".to_owned()), "/a/b"));
        assert!(matches(MatchPattern::Contains("/A".to_owned()), "x/a/b"));
        assert!(matches(MatchPattern::SafeRegex(re("GET|PUT")), "PUT"));
        assert!(!matches(MatchPattern::SafeRegex(re("GET|PUT")), "put"));
        for (bad, path) in [
            (text(MatchPattern::Prefix(String::new())), "prefix"),
            (text(MatchPattern::Suffix(String::new())), "suffix"),
            (text(MatchPattern::Contains(String::new())), "contains"),
            (text(MatchPattern::SafeRegex(re(""))), "safe_regex.regex"),
            (text(MatchPattern::SafeRegex(re("("))), "safe_regex.regex"),
            (text(MatchPattern::Custom(Default::default())), "custom"),
            (wire::StringMatcher::default(), ""),
        ] {
            assert_eq!(string(&bad, &AT).unwrap_err().path, path);
        }
        assert!(need_string(None, &AT).is_err());
    }

    #[test]
    fn headers_in_every_form() {
        let read = |name: &str, specifier| {
            let matcher = route::HeaderMatcher {
                name: name.to_owned(),
                header_match_specifier: specifier,
                invert_match: true,
                treat_missing_header_as_empty: true,
            };
            header(&matcher, &AT)
        };
        let plain = |pattern| {
            HeaderCheck::Value(StringMatcher {
                pattern,
                ignore_case: false,
            })
        };
        let some = |t: &str| t.to_owned();
        for (specifier, check) in [
            (None, HeaderCheck::Present(true)),
            (Some(Header::PresentMatch(false)), HeaderCheck::Present(false)),
            (
                Some(Header::ExactMatch(some("a"))),
                plain(StringPattern::Exact("a".into())),
            ),
            (
                Some(Header::PrefixMatch(some("a"))),
                plain(StringPattern::Prefix("a".into())),
            ),
            (
                Some(Header::SuffixMatch(some("a"))),
                plain(StringPattern::Suffix("a".into())),
            ),
            (
                Some(Header::ContainsMatch(some("a"))),
                plain(StringPattern::Contains("a".into())),
            ),
            (
                Some(Header::SafeRegexMatch(re("a"))),
                plain(StringPattern::Regex(SafeRegex::new("a").unwrap())),
            ),
            (
                Some(Header::StringMatch(text(MatchPattern::Exact(some("a"))))),
                HeaderCheck::Value(StringMatcher {
                    ignore_case: true,
                    ..StringMatcher::exact("a")
                }),
            ),
        ] {
            let header = read("X-A", specifier).unwrap();
            assert_eq!(header.check, check);
            assert!(header.invert && header.missing_as_empty);
            assert_eq!(&*header.name, "x-a");
        }
        assert_eq!(&*read("Host", None).unwrap().name, ":authority");
        assert_eq!(read("", None).unwrap_err().path, "name");
        let empty = read("a", Some(Header::PrefixMatch(String::new())));
        assert_eq!(empty.unwrap_err().path, "prefix_match");
    }

    #[test]
    fn metadata_is_text_at_a_place() {
        let key = |key: &str| wire::metadata_matcher::PathSegment {
            segment: Some(Segment::Key(key.to_owned())),
        };
        let value = |pattern| wire::ValueMatcher {
            match_pattern: Some(pattern),
        };
        let exact = value(value_matcher::MatchPattern::StringMatch(text(
            MatchPattern::Exact("i".to_owned()),
        )));
        let good = wire::MetadataMatcher {
            filter: "jwt".to_owned(),
            path: vec![key("payload"), key("iss")],
            value: Some(exact),
            invert: true,
        };
        let read = metadata(&good, &AT).unwrap();
        assert_eq!((&*read.filter, read.path.len(), read.invert), ("jwt", 2, true));
        let with = |change: fn(&mut wire::MetadataMatcher)| {
            let mut matcher = good.clone();
            change(&mut matcher);
            metadata(&matcher, &AT).unwrap_err().path
        };
        assert_eq!(with(|m| m.filter.clear()), "filter");
        assert_eq!(with(|m| m.path.clear()), "path");
        assert_eq!(with(|m| m.path[1].segment = None), "path[1]");
        assert_eq!(with(|m| m.value = None), "value");
        let number = Some(value(value_matcher::MatchPattern::PresentMatch(true)));
        let mut other = good.clone();
        other.value = number;
        assert_eq!(metadata(&other, &AT).unwrap_err().path, "value");
    }
}
