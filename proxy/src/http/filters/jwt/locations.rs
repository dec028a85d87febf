//! Where tokens are in a request, and how they are taken out of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName};

use super::filter::JwtRequest;
use crate::model::jwt::JwtProvider;

/// Before the token where a provider names no place.
const BEARER: &str = "Bearer ";
/// The query parameter where a provider names no place.
const ACCESS_TOKEN: &str = "access_token";

/// Where the tokens of one provider, or of several, are; and which headers are only for the filter to write.
#[derive(Debug, Default)]
pub(super) struct Locations {
    /// By name and prefix as one text, which is Envoy's order.
    headers: BTreeMap<String, HeaderLocation>,
    params: BTreeMap<Arc<str>, Issuers>,
    cookies: BTreeMap<Arc<str>, Issuers>,
    written: Vec<HeaderName>,
}

#[derive(Debug)]
struct HeaderLocation {
    name: HeaderName,
    prefix: Arc<str>,
    issuers: Issuers,
}

/// Whose tokens may be at a place.
#[derive(Debug, Default)]
pub(super) struct Issuers {
    any: bool,
    named: BTreeSet<Arc<str>>,
}

/// A token, and where it was.
pub(super) struct Found<'a> {
    pub(super) token: String,
    pub(super) issuers: &'a Issuers,
    place: Place<'a>,
}

enum Place<'a> {
    Header(&'a HeaderName),
    Param(&'a str),
    Cookie,
}

impl Issuers {
    /// Whether a token of `issuer`, empty if it says none, may be there.
    pub(super) fn allow(&self, issuer: &str) -> bool {
        self.any || self.named.contains(issuer)
    }

    fn add(&mut self, issuer: Option<&Arc<str>>) {
        match issuer {
            Some(issuer) => drop(self.named.insert(Arc::clone(issuer))),
            None => self.any = true,
        }
    }
}

impl Locations {
    /// Those of all `providers`.
    pub(super) fn new<'a>(providers: impl IntoIterator<Item = &'a JwtProvider>) -> Self {
        let mut locations = Self::default();
        for provider in providers {
            locations.add(provider);
        }
        locations
    }

    fn add(&mut self, provider: &JwtProvider) {
        let issuer = provider.issuer.as_ref();
        for header in &provider.from_headers {
            // What is no name is on no request.
            if let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) {
                self.add_header(name, &header.value_prefix, issuer);
            }
        }
        for param in &provider.from_params {
            self.params.entry(Arc::clone(param)).or_default().add(issuer);
        }
        for cookie in &provider.from_cookies {
            self.cookies.entry(Arc::clone(cookie)).or_default().add(issuer);
        }
        let nowhere = provider.from_headers.is_empty()
            && provider.from_params.is_empty()
            && provider.from_cookies.is_empty();
        if nowhere {
            self.add_header(AUTHORIZATION, &BEARER.into(), issuer);
            self.params.entry(ACCESS_TOKEN.into()).or_default().add(issuer);
        }
        let claims = provider.claim_to_headers.iter().map(|claim| &claim.header);
        let written = provider.forward_payload_header.iter().chain(claims);
        self.written
            .extend(written.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()));
    }

    fn add_header(&mut self, name: HeaderName, prefix: &Arc<str>, issuer: Option<&Arc<str>>) {
        let location = self
            .headers
            .entry(format!("{name}{prefix}"))
            .or_insert_with(|| HeaderLocation {
                name,
                prefix: Arc::clone(prefix),
                issuers: Issuers::default(),
            });
        location.issuers.add(issuer);
    }

    /// Takes the headers away that only the filter writes.
    pub(super) fn sanitize(&self, headers: &mut HeaderMap) {
        for name in &self.written {
            headers.remove(name);
        }
    }

    /// All tokens: of headers, then the query, then cookies. They are looked at from the last to the first.
    pub(super) fn find(&self, request: &dyn JwtRequest) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for location in self.headers.values() {
            for value in values(request.headers(), &location.name) {
                if let Some(token) = after_prefix(&value, &location.prefix) {
                    found.push(Found {
                        token: token.to_owned(),
                        issuers: &location.issuers,
                        place: Place::Header(&location.name),
                    });
                }
            }
        }
        self.find_params(request, &mut found);
        self.find_cookies(request.headers(), &mut found);
        found
    }

    fn find_params<'a>(&'a self, request: &dyn JwtRequest, found: &mut Vec<Found<'a>>) {
        if self.params.is_empty() {
            return;
        }
        let target = request.header(":path").unwrap_or_default();
        let Some((_, query)) = target.split_once('?') else {
            return;
        };
        for (name, issuers) in &self.params {
            let value = pairs(query).find(|(key, _)| percent_decoded(key) == **name);
            if let Some((_, value)) = value {
                found.push(Found {
                    token: percent_decoded(value).into_owned(),
                    issuers,
                    place: Place::Param(name),
                });
            }
        }
    }

    fn find_cookies<'a>(&'a self, headers: &HeaderMap, found: &mut Vec<Found<'a>>) {
        if self.cookies.is_empty() {
            return;
        }
        let mut tokens = BTreeMap::new();
        for header in headers.get_all(COOKIE) {
            for pair in String::from_utf8_lossy(header.as_bytes()).split(';') {
                let Some((name, value)) = pair.trim_ascii().split_once('=') else {
                    continue;
                };
                if let Some((name, issuers)) = self.cookies.get_key_value(name) {
                    // Of several the first counts.
                    tokens
                        .entry(name)
                        .or_insert_with(|| (unquoted(value).to_owned(), issuers));
                }
            }
        }
        found.extend(tokens.into_values().map(|(token, issuers)| Found {
            token,
            issuers,
            place: Place::Cookie,
        }));
    }
}

impl Found<'_> {
    /// Takes the token out of the request, and others of the same header or parameter. Envoy leaves cookies
    /// as they are. It also sorts the parameters that stay and leaves them decoded; they stay as they are
    /// here, since a decoded one may be two.
    pub(super) fn remove(&self, request: &mut dyn JwtRequest) {
        match self.place {
            Place::Header(name) => drop(request.headers_mut().remove(name)),
            Place::Param(name) => {
                let target = request.header(":path").unwrap_or_default();
                let target = without_param(&target, name);
                request.set_target(target);
            }
            Place::Cookie => {}
        }
    }
}

/// A header's values. Envoy joins those of `authorization` as it reads them.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<Cow<'a, str>> {
    let all = headers.get_all(name).iter();
    let values: Vec<_> = all
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    if *name == AUTHORIZATION && values.len() > 1 {
        vec![values.join(",").into()]
    } else {
        values
    }
}

/// What stands after the first `prefix`, from the first letter on that a token can have. Without such a letter
/// all of the value, and without the prefix nothing.
fn after_prefix<'a>(value: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(value);
    }
    let (_, rest) = value.split_once(prefix)?;
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    Some(rest.find(letter).and_then(|at| rest.get(at..)).unwrap_or(value))
}

/// Parameters of a query; one without `=` is empty.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn without_param(target: &str, name: &str) -> String {
    let Some((path, query)) = target.split_once('?') else {
        return target.to_owned();
    };
    let key = |pair: &&str| percent_decoded(pair.split_once('=').map_or(*pair, |(key, _)| key)) != name;
    let kept: Vec<&str> = query.split('&').filter(key).collect();
    if kept.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", kept.join("&"))
    }
}

/// `%XX` as bytes; a percent sign before anything else stays. A plus sign is one.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| hex(bytes.get(at + 1)).zip(hex(bytes.get(at + 2))))
            .flatten()
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        decoded.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned().into()
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_after_a_prefix() {
        for (value, token) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("x Bearer : \"a.b", Some("a.b")),
            ("Bearer a.b.c d", Some("a.b.c d")),
            ("Bearer \"\u{e9}", Some("Bearer \"\u{e9}")),
            ("Bearer ", Some("Bearer ")),
            ("bearer a", None),
            ("Bearer", None),
        ] {
            assert_eq!(after_prefix(value, BEARER), token, "{value}");
        }
        assert_eq!(after_prefix(" a", ""), Some(" a"));
    }

    #[test]
    fn a_parameter_goes_and_the_others_stay_as_they_are() {
        for (target, left) in [
            ("/a?t=1", "/a"),
            ("/a?b=%26&t=1&c&t=2&a+b", "/a?b=%26&c&a+b"),
            ("/a?%74=1&tt=2", "/a?tt=2"),
            ("/a?t", "/a"),
            ("/a", "/a"),
            ("/a?&&t=1&", "/a?&&"),
        ] {
            assert_eq!(without_param(target, "t"), left, "{target}");
        }
    }

    #[test]
    fn percent_signs() {
        for (text, decoded) in [
            ("a%2Eb", "a.b"),
            ("%2", "%2"),
            ("%", "%"),
            ("%zz%41", "%zzA"),
            ("a+b", "a+b"),
            ("%ff", "\u{fffd}"),
            ("%%41", "%A"),
        ] {
            assert_eq!(percent_decoded(text), decoded, "{text}");
        }
    }
}
