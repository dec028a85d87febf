//! Requests and matchers of them as lines of text, and what Envoy's messages mean, as simply as it can be said.
//!
//! A matcher is written `KIND VALUE`, its kind behind any of `!` (inverted), `~` (without case) and `?` (a
//! missing header is empty). A request is a line `METHOD HOST TARGET`, then its headers, `name: value`.

use std::collections::BTreeMap;

use attache::control::xds::decode::{Context, Files, Shared};
use attache::http::fuzzing::Request;
use attache_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use attache_proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use attache_proto::envoy::r#type::v3::Int64Range;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;
use zeroize::Zeroizing;

/// Methods that begin a request's line.
const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::OPTIONS];

/// A request as it was written.
#[derive(Debug)]
pub struct Asked {
    /// Upper case.
    pub method: Method,
    /// Its host.
    pub host: String,
    /// Path and query; begins with a slash.
    pub target: String,
    /// Lower case, in their order.
    pub headers: Vec<(String, String)>,
}

impl Asked {
    /// The request that a line begins.
    pub fn begin(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let method = words.next()?;
        let method = METHODS.into_iter().find(|known| known.as_str() == method)?;
        let (host, target) = (words.next()?, words.next()?);
        // What a connection refuses is no request.
        let is_target = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
        is_target.then(|| Self {
            method,
            host: host.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
        })
    }

    /// Adds the header that a line is; false if it is none.
    pub fn add(&mut self, line: &str) -> bool {
        let Some((name, value)) = line.split_once(": ") else {
            return false;
        };
        let sound = HeaderName::try_from(name).is_ok() && HeaderValue::from_str(value).is_ok();
        let name = name.to_ascii_lowercase();
        // The host is said already.
        let sound = sound && name != "host";
        if sound {
            self.headers.push((name, value.to_owned()));
        }
        sound
    }

    /// As the connection manager has it.
    pub fn request(&self) -> Request {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        Request::new(self.method.clone(), &self.host, &self.target, headers)
    }

    /// The path alone.
    pub fn path(&self) -> &str {
        let end = self.target.find(['?', '#']).unwrap_or(self.target.len());
        &self.target[..end]
    }

    /// The values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        match name {
            ":method" => vec![self.method.as_str()],
            ":path" => vec![&self.target],
            ":authority" | "host" => vec![&self.host],
            ":scheme" => vec!["http"],
            _ => {
                let own = self.headers.iter().filter(|(own, _)| own == name);
                own.map(|(_, value)| value.as_str()).collect()
            }
        }
    }
}

/// The kind of a matcher, without what stands before it, and whether it is inverted, without case, and of
/// what may be missing.
fn kind(word: &str) -> (&str, bool, bool, bool) {
    let kind = word.trim_start_matches(['!', '~', '?']);
    let flags = &word[..word.len() - kind.len()];
    (
        kind,
        flags.contains('!'),
        flags.contains('~'),
        flags.contains('?'),
    )
}

/// The matcher of a text that these words are.
pub fn string(word: &str, value: &str) -> Option<StringMatcher> {
    let (kind, _, ignore_case, _) = kind(word);
    let value = value.to_owned();
    let pattern = match kind {
        "exact" => MatchPattern::Exact(value),
        "prefix" => MatchPattern::Prefix(value),
        "suffix" => MatchPattern::Suffix(value),
        "contains" => MatchPattern::Contains(value),
        "regex" => MatchPattern::SafeRegex(regex(value)),
        _ => return None,
    };
    Some(StringMatcher {
        ignore_case,
        match_pattern: Some(pattern),
    })
}

/// An expression.
pub fn regex(regex: String) -> RegexMatcher {
    RegexMatcher {
        regex,
        engine_type: None,
    }
}

/// The matcher of a header that these words are: its name, its kind and the value.
pub fn header(words: &str) -> Option<HeaderMatcher> {
    use HeaderMatchSpecifier::{
        ContainsMatch, ExactMatch, PrefixMatch, PresentMatch, RangeMatch, SafeRegexMatch, StringMatch,
        SuffixMatch,
    };
    let mut words = words.splitn(3, ' ');
    let (name, word, value) = (words.next()?, words.next()?, words.next().unwrap_or(""));
    let (kind, invert_match, _, missing) = kind(word);
    let text = value.to_owned();
    let specifier = match kind {
        "present" => PresentMatch(true),
        "absent" => PresentMatch(false),
        "range" => {
            let (start, end) = value.split_once(' ')?;
            RangeMatch(Int64Range {
                start: start.parse().ok()?,
                end: end.parse().ok()?,
            })
        }
        // As older control planes say it.
        "exact_match" => ExactMatch(text),
        "prefix_match" => PrefixMatch(text),
        "suffix_match" => SuffixMatch(text),
        "contains_match" => ContainsMatch(text),
        "regex_match" => SafeRegexMatch(regex(text)),
        _ => StringMatch(string(word, value)?),
    };
    Some(HeaderMatcher {
        name: name.to_owned(),
        invert_match,
        treat_missing_header_as_empty: missing,
        header_match_specifier: Some(specifier),
    })
}

/// Whether a text is what is asked for.
pub fn string_holds(matcher: &StringMatcher, text: &str) -> bool {
    let lower = |text: &str| match matcher.ignore_case {
        true => text.to_ascii_lowercase(),
        false => text.to_owned(),
    };
    let (have, want) = (lower(text), lower);
    match matcher.match_pattern.as_ref().expect("there is a pattern") {
        MatchPattern::Exact(text) => have == want(text),
        MatchPattern::Prefix(text) => have.starts_with(&want(text)),
        MatchPattern::Suffix(text) => have.ends_with(&want(text)),
        MatchPattern::Contains(text) => have.contains(&want(text)),
        MatchPattern::SafeRegex(regex) => regex_holds(regex, text),
        MatchPattern::Custom(_) => unreachable!("it is refused"),
    }
}

/// Whether the whole text is what is asked for.
pub fn regex_holds(matcher: &RegexMatcher, text: &str) -> bool {
    Regex::new(&format!("\\A(?:{})\\z", matcher.regex)).is_ok_and(|whole| whole.is_match(text))
}

/// Whether the header of a request is what is asked for. With several values one is enough.
pub fn header_holds(matcher: &HeaderMatcher, asked: &Asked) -> bool {
    use HeaderMatchSpecifier::{
        ContainsMatch, ExactMatch, PrefixMatch, PresentMatch, RangeMatch, SafeRegexMatch, StringMatch,
        SuffixMatch,
    };
    let mut values = asked.values(&matcher.name.to_ascii_lowercase());
    let specifier = matcher.header_match_specifier.as_ref();
    if let None | Some(PresentMatch(_)) = specifier {
        let wanted = !matches!(specifier, Some(PresentMatch(false)));
        return (values.is_empty() != wanted) != matcher.invert_match;
    }
    if values.is_empty() {
        if !matcher.treat_missing_header_as_empty {
            return false;
        }
        values.push("");
    }
    let holds = |value: &str| match specifier.expect("it is asked for its value") {
        ExactMatch(text) => value == text,
        PrefixMatch(text) => value.starts_with(text.as_str()),
        SuffixMatch(text) => value.ends_with(text.as_str()),
        ContainsMatch(text) => value.contains(text.as_str()),
        SafeRegexMatch(regex) => regex_holds(regex, value),
        StringMatch(matcher) => string_holds(matcher, value),
        RangeMatch(range) => {
            let number = value.trim().parse::<i64>();
            number.is_ok_and(|number| range.start <= number && number < range.end)
        }
        PresentMatch(_) => unreachable!("it was looked at before"),
    };
    values.into_iter().any(holds) != matcher.invert_match
}

/// Decodes a message without files or secrets.
pub fn decoded<T>(decode: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let (secrets, mut shared) = (BTreeMap::new(), Shared::default());
    decode(&mut Context::new(&Nothing, &secrets, |_| Ok(()), &mut shared))
}

/// A file system with nothing in it.
pub struct Nothing;

impl Files for Nothing {
    fn read(&self, _: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, String> {
        Err("cannot be read: there are no files".to_owned())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}
