//! What becomes of a request's target, host and header names before anything looks at them, as Envoy 1.40
//! does it: routes and rules see only what leaves here, so that no spelling evades them.
//!
//! Pure. Does not parse requests and answers none: what to say to a refused one is the caller's.

use std::borrow::Cow;

use hyper::header::{HeaderMap, HeaderName};

use crate::model::http::{HeadersWithUnderscores, Normalization, PathWithEscapedSlashes, StripHostPort};

/// What becomes of a request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathOutcome {
    /// It stays as it came.
    Unchanged,
    /// The request goes on with this one.
    Changed(String),
    /// 400 without a body; to gRPC, status 13.
    Reject,
    /// 307 to this one, in `location` as it is; gRPC is refused as by [`Self::Reject`].
    Redirect(String),
}

/// A header name has an underscore where that is not allowed: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header name contains an underscore")]
pub(super) struct UnderscoreRejected;

/// Brings a request target (path and query) into the form that `options` ask for. In Envoy's order: a
/// fragment is refused, escaped slashes, dot segments and percent-encoding, slashes merged. The query stays.
///
/// Anything but an origin form (`*`) is left alone. A target that has that form already costs no allocation.
pub(super) fn normalize(target: &str, options: &Normalization) -> PathOutcome {
    if target.contains('#') {
        return PathOutcome::Reject;
    }
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    if !path.starts_with('/') {
        return PathOutcome::Unchanged;
    }
    let mut redirect = false;
    let mut changed = None;
    if options.path_with_escaped_slashes != PathWithEscapedSlashes::KeepUnchanged {
        changed = unescape_slashes(path);
        match (&changed, options.path_with_escaped_slashes) {
            (Some(_), PathWithEscapedSlashes::RejectRequest) => return PathOutcome::Reject,
            (Some(_), PathWithEscapedSlashes::UnescapeAndRedirect) => redirect = true,
            _ => {}
        }
    }
    let now = changed.as_deref().unwrap_or(path);
    if options.normalize_path && !is_canonical(now) {
        match canonicalize(now) {
            Some(canonical) => changed = Some(canonical),
            None => return PathOutcome::Reject,
        }
    }
    let now = changed.as_deref().unwrap_or(path);
    if options.merge_slashes && now.contains("//") {
        changed = Some(merge_slashes(now));
    }
    match changed {
        Some(path) if redirect => PathOutcome::Redirect(path + query),
        Some(changed) if changed != path => PathOutcome::Changed(changed + query),
        _ => PathOutcome::Unchanged,
    }
}

/// `%2F` and `%5C` as the characters they stand for; none where there is neither.
fn unescape_slashes(path: &str) -> Option<String> {
    let mut out: Option<String> = None;
    let mut copied = 0;
    for (at, _) in path.match_indices('%') {
        let slash = match path.as_bytes().get(at + 1..at + 3) {
            Some(b"2f" | b"2F") => '/',
            Some(b"5c" | b"5C") => '\\',
            _ => continue,
        };
        let out = out.get_or_insert_default();
        out.push_str(&path[copied..at]);
        out.push(slash);
        copied = at + 3;
    }
    let mut out = out?;
    out.push_str(&path[copied..]);
    Some(out)
}

/// Whether [`canonicalize`] would leave the path as it is.
fn is_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().enumerate().all(|(at, &byte)| match byte {
        // An invalid sequence stays, and does no harm unless something after it is decoded.
        b'%' => decoded(bytes, at).is_none_or(|value| value != 0 && !is_unreserved(value)),
        b'/' => dots(bytes, at + 1).is_none(),
        byte => byte != b'\\' && !is_escaped(byte),
    })
}

/// RFC 3986's remove_dot_segments, with what is percent-encoded for no reason decoded, and what should have
/// been encoded encoded; backslashes are slashes. As the URL library of Chromium does it, which Envoy uses.
/// None where a NUL is encoded.
fn canonicalize(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    // Where in `out` the last percent sign is that begins no valid sequence.
    let mut stray = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if out.ends_with('/')
            && let Some((dots, length)) = dots(bytes, at)
        {
            if dots == 2 {
                remove_last_segment(&mut out);
                stray = stray.filter(|stray| *stray < out.len());
            }
            at += length;
            continue;
        }
        at += 1;
        match byte {
            b'\\' => out.push('/'),
            b'%' => match decoded(bytes, at - 1) {
                None => {
                    stray = Some(out.len());
                    out.push('%');
                }
                Some(0) => return None,
                Some(value) if is_unreserved(value) => {
                    at += 2;
                    out.push(char::from(value));
                    keep_stray(&mut out, stray, bytes.get(at));
                }
                // Kept as it came, even the case of its digits.
                Some(_) => {
                    out.push('%');
                    out.extend(bytes[at..at + 2].iter().copied().map(char::from));
                    at += 2;
                }
            },
            byte if is_escaped(byte) => {
                out.push('%');
                out.extend([byte >> 4, byte & 0xf].map(hex_digit));
            }
            byte => out.push(char::from(byte)),
        }
    }
    Some(out)
}

/// The dots, one or two of them, that are all of the segment at `at`, with the bytes they take up, a slash
/// after them included. Unencoded ones may have parameters (`..;x`), which end at a slash but no backslash.
fn dots(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut end = at;
    for dots in 1..=2 {
        end += match bytes.get(end)? {
            b'.' => 1,
            b'%' if decoded(bytes, end) == Some(b'.') => 3,
            _ => return None,
        };
        match bytes.get(end) {
            None => return Some((dots, end - at)),
            Some(b'/' | b'\\') => return Some((dots, end + 1 - at)),
            Some(b';') if end - at == dots && bytes[..at].ends_with(b"/") => {
                let rest = &bytes[end..];
                let parameters = rest.iter().position(|byte| *byte == b'/');
                let length = parameters.map_or(rest.len(), |slash| slash + 1);
                return Some((dots, end + length - at));
            }
            Some(_) => {}
        }
    }
    None
}

/// `/a/b/` becomes `/a/`; `/` stays.
fn remove_last_segment(out: &mut String) {
    let parent = out.strip_suffix('/').and_then(|rest| rest.rfind('/'));
    if let Some(slash) = parent {
        out.truncate(slash + 1);
    }
}

/// A stray percent sign with two hexadecimal digits after it, one of them just decoded, would be a sequence
/// that was not there: it is encoded itself then. `next` is what comes after what was decoded.
fn keep_stray(out: &mut String, stray: Option<usize>, next: Option<&u8>) {
    let Some(stray) = stray else { return };
    let digits = match out.as_bytes().get(stray + 1..) {
        Some([first]) => next.map(|next| [*first, *next]),
        Some([first, second]) => Some([*first, *second]),
        _ => None,
    };
    if digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
        out.insert_str(stray + 1, "25");
    }
}

/// What the sequence that begins at `at` stands for; none if it is not valid.
fn decoded(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

/// RFC 3986's unreserved characters: these need no encoding anywhere.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What may not stand in a path unencoded.
fn is_escaped(byte: u8) -> bool {
    !byte.is_ascii_graphic() || matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn hex_digit(value: u8) -> char {
    let digit = if value < 10 { b'0' } else { b'A' - 10 };
    char::from(digit + value)
}

/// Several slashes in a row as one. A path of nothing but slashes becomes two of them, as in Envoy.
fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    if path.starts_with('/') {
        out.push('/');
    }
    for (index, segment) in path.split('/').filter(|segment| !segment.is_empty()).enumerate() {
        if index > 0 {
            out.push('/');
        }
        out.push_str(segment);
    }
    if path.ends_with('/') {
        out.push('/');
    }
    out
}

/// What is left of a request's host. `listener_port` is the one that [`StripHostPort::Matching`] cuts off.
/// Not for CONNECT, whose host needs its port.
pub(super) fn normalize_host<'a>(
    host: &'a str,
    options: &Normalization,
    listener_port: Option<u16>,
) -> Cow<'a, str> {
    let mut host = Cow::Borrowed(host);
    if options.strip_trailing_host_dot {
        host = strip_trailing_dot(host);
    }
    let strip = |port: u32| match options.strip_host_port {
        StripHostPort::No => false,
        StripHostPort::Matching => listener_port.is_some_and(|listener| u32::from(listener) == port),
        StripHostPort::Any => true,
    };
    let colon = host.rfind(':').filter(|colon| {
        let port = host[colon + 1..].parse::<u32>();
        port.is_ok_and(strip)
    });
    match (colon, host) {
        (None, host) => host,
        (Some(colon), Cow::Borrowed(host)) => host[..colon].into(),
        (Some(colon), Cow::Owned(mut host)) => {
            host.truncate(colon);
            host.into()
        }
    }
}

fn strip_trailing_dot(host: Cow<'_, str>) -> Cow<'_, str> {
    if let Cow::Borrowed(host) = host
        && let Some(host) = host.strip_suffix('.')
    {
        return host.into();
    }
    match host.rfind(':').map(|colon| host.split_at(colon)) {
        Some((name, port)) => match name.strip_suffix('.') {
            Some(name) => format!("{name}{port}").into(),
            None => host,
        },
        None => host,
    }
}

/// Treats header names with underscores. How many were dropped.
///
/// # Errors
/// One has an underscore and none may.
pub(super) fn underscores(
    headers: &mut HeaderMap,
    action: HeadersWithUnderscores,
) -> Result<usize, UnderscoreRejected> {
    if action == HeadersWithUnderscores::Allow {
        return Ok(0);
    }
    let has = |name: &&HeaderName| name.as_str().contains('_');
    let found: Vec<HeaderName> = headers.keys().filter(has).cloned().collect();
    if found.is_empty() {
        return Ok(0);
    }
    if action == HeadersWithUnderscores::RejectRequest {
        return Err(UnderscoreRejected);
    }
    let before = headers.len();
    for name in found {
        headers.remove(name);
    }
    Ok(before - headers.len())
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
