//! Heads of messages: parsing requests and responses, writing both.
//!
//! Stricter than RFC 9112 asks where two readers could disagree: such a message is refused, never repaired.

use bytes::{Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};
use memchr::{memchr, memchr_iter};

use crate::http::message::Version;

/// What a head may have.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct HeadLimits {
    /// Bytes, first line included.
    pub(in crate::http) bytes: usize,
    /// Header fields.
    pub(in crate::http) fields: usize,
}

/// Why a head is refused; the details are Envoy's response code details where it has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum HeadError {
    /// It is no HTTP/1, or one that could be read in two ways.
    #[error("{0}")]
    Malformed(&'static str),
    /// A byte that no value may have.
    #[error("a header's value has a control character")]
    Value,
    /// More bytes or fields than allowed.
    #[error("its headers are too large")]
    TooLarge,
    /// A version that is not spoken here.
    #[error("its version of HTTP is not 1.0 or 1.1")]
    Version,
}

/// A request's head as it came.
#[derive(Debug)]
pub(in crate::http) struct RawRequest {
    pub(in crate::http) method: Method,
    /// Any form of RFC 9112 section 3.2.
    pub(in crate::http) target: String,
    pub(in crate::http) version: Version,
    pub(in crate::http) headers: HeaderMap,
}

/// A response's head as it came.
#[derive(Debug)]
pub(in crate::http) struct RawResponse {
    pub(in crate::http) status: StatusCode,
    pub(in crate::http) version: Version,
    pub(in crate::http) headers: HeaderMap,
}

/// Methods that Envoy's HTTP/1 parser knows; others are refused, as by it.
const METHODS: [&str; 35] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "COPY",
    "LOCK",
    "UNLOCK",
    "MKCOL",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "SEARCH",
    "BIND",
    "REBIND",
    "UNBIND",
    "ACL",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "MERGE",
    "MSEARCH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PURGE",
    "MKCALENDAR",
    "LINK",
    "UNLINK",
    "SOURCE",
    "QUERY",
];

/// Where in `input` a head ends, from its first byte; none while it is incomplete. A line feed alone ends a
/// line too: a request that uses it must be found to be refused, a response may.
///
/// # Errors
/// [`HeadError::TooLarge`] once it cannot end within the limit.
fn end_of_head(input: &[u8], limits: HeadLimits) -> Result<Option<usize>, HeadError> {
    let end = memchr_iter(b'\n', input).find_map(|line| match input[line + 1..] {
        [b'\n', ..] => Some(line + 2),
        [b'\r', b'\n', ..] => Some(line + 3),
        _ => None,
    });
    match end {
        Some(end) if end > limits.bytes => Err(HeadError::TooLarge),
        Some(end) => Ok(Some(end)),
        None if input.len() > limits.bytes => Err(HeadError::TooLarge),
        None => Ok(None),
    }
}

/// Takes a request's head off the front of `input`; none while it is incomplete. Empty lines before it are
/// skipped (RFC 9112 section 2.2).
///
/// # Errors
/// [`HeadError`].
pub(in crate::http) fn take_request(
    input: &mut BytesMut,
    limits: HeadLimits,
) -> Result<Option<RawRequest>, HeadError> {
    skip_empty_lines(input);
    early(input)?;
    let Some(end) = end_of_head(input, limits)? else {
        return Ok(None);
    };
    let head = input.split_to(end).freeze();
    let (line, fields) = first_line(&head, Lines::Strict)?;
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), version, None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HeadError::Malformed("the request line is not three words"));
    };
    // Of a malformed request no version is looked at, as by Envoy.
    let method = parse_method(method)?;
    let target = parse_target(&method, target)?;
    // Without a version it is HTTP/0.9's.
    let version = version.filter(|version| !version.is_empty());
    let version = parse_version(version.ok_or(HeadError::Version)?)?;
    let headers = parse_fields(&head, fields, limits.fields, Lines::Strict)?;
    Ok(Some(RawRequest {
        method,
        target,
        version,
        headers,
    }))
}

/// Takes a response's head off the front of `input`; none while it is incomplete.
///
/// # Errors
/// [`HeadError`].
pub(in crate::http) fn take_response(
    input: &mut BytesMut,
    limits: HeadLimits,
) -> Result<Option<RawResponse>, HeadError> {
    if !b"HTTP/"[..].starts_with(&input[..input.len().min(5)]) {
        return Err(HeadError::Malformed("the response does not begin with HTTP/"));
    }
    let Some(end) = end_of_head(input, limits)? else {
        return Ok(None);
    };
    let head = input.split_to(end).freeze();
    let (line, fields) = first_line(&head, Lines::Lenient)?;
    let (version, rest) = line.split_at_checked(9).ok_or(STATUS_LINE)?;
    let version = match parse_version(version.strip_suffix(b" ").ok_or(STATUS_LINE)?) {
        // As Envoy reads what follows: it is framed alike, but what is not 1.1 keeps the connection only if it says so.
        Err(HeadError::Version) => Version::Http10,
        version => version?,
    };
    let (status, reason) = rest.split_at_checked(3).ok_or(STATUS_LINE)?;
    let words = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
    if !reason.is_empty() && !reason.starts_with(b" ") || !reason.iter().all(words) {
        return Err(STATUS_LINE);
    }
    let status = StatusCode::from_bytes(status).map_err(|_| STATUS_LINE)?;
    let headers = parse_fields(&head, fields, limits.fields, Lines::Lenient)?;
    Ok(Some(RawResponse {
        status,
        version,
        headers,
    }))
}

const STATUS_LINE: HeadError = HeadError::Malformed("the status line is not one");

fn skip_empty_lines(input: &mut BytesMut) {
    let empty = input
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    if empty > 0 {
        drop(input.split_to(empty));
    }
}

/// Refuses what cannot become a request before the whole head is there: a stranger that speaks another
/// protocol is not waited for.
fn early(input: &[u8]) -> Result<(), HeadError> {
    let method = &input[..memchr(b' ', input).unwrap_or(input.len())];
    if method.iter().all(|byte| is_token(*byte)) {
        Ok(())
    } else {
        Err(HeadError::Malformed("the method is no token"))
    }
}

/// How lines are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// They end with carriage return and line feed, and none is folded.
    Strict,
    /// As Envoy reads those of an app's response: a line feed will do, folded ones are unfolded.
    Lenient,
}

impl Lines {
    /// The text of a line that was cut before its line feed.
    fn text(self, line: &[u8]) -> Result<&[u8], HeadError> {
        match (line.strip_suffix(b"\r"), self) {
            (Some(text), _) => Ok(text),
            (None, Self::Lenient) => Ok(line),
            (None, Self::Strict) => Err(BARE_LINE_FEED),
        }
    }
}

/// The first line, and where the second one begins.
fn first_line(head: &Bytes, lines: Lines) -> Result<(&[u8], usize), HeadError> {
    let line = memchr(b'\n', head).unwrap_or(head.len());
    Ok((lines.text(&head[..line])?, line + 1))
}

const BARE_LINE_FEED: HeadError = HeadError::Malformed("a line ends without a carriage return");

fn parse_method(word: &[u8]) -> Result<Method, HeadError> {
    match Method::from_bytes(word) {
        Ok(method) if METHODS.contains(&method.as_str()) => Ok(method),
        Ok(_) => Err(HeadError::Malformed("the method is none of HTTP's")),
        Err(_) => Err(HeadError::Malformed("the method is no token")),
    }
}

fn parse_version(word: &[u8]) -> Result<Version, HeadError> {
    match word {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(HeadError::Version)
        }
        _ => Err(HeadError::Malformed("the version is not HTTP's")),
    }
}

/// Any form of a target; whether the method may have it is looked at later.
fn parse_target(method: &Method, word: &[u8]) -> Result<String, HeadError> {
    let text = std::str::from_utf8(word).map_err(|_| HeadError::Malformed("the target is not UTF-8"))?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(HeadError::Malformed(
            "the target has a character that is to be encoded",
        ));
    }
    let is_known = text.starts_with(['/', '*']) || text.contains("://");
    if !is_known && *method != Method::CONNECT {
        return Err(HeadError::Malformed("the target is neither a path nor a URI"));
    }
    Ok(text.to_owned())
}

/// The fields of `head` from `at`. Values are slices of it, not copies, but for folded ones.
fn parse_fields(head: &Bytes, mut at: usize, most: usize, lines: Lines) -> Result<HeaderMap, HeadError> {
    let mut headers = HeaderMap::with_capacity(16);
    let mut last: Option<HeaderName> = None;
    loop {
        let line_end = at + memchr(b'\n', &head[at..]).unwrap_or(head.len() - at);
        let line = lines.text(&head[at..line_end])?;
        if line.is_empty() {
            return Ok(headers);
        }
        at = line_end + 1;
        if lines == Lines::Lenient
            && (line.starts_with(b" ") || line.starts_with(b"\t"))
            && let Some(name) = &last
        {
            unfold(&mut headers, name, line.trim_ascii())?;
            continue;
        }
        if headers.len() >= most {
            return Err(HeadError::TooLarge);
        }
        let colon = memchr(b':', line).ok_or(HeadError::Malformed("a header has no colon"))?;
        // Neither a space before the colon nor a folded line is a token.
        let name = HeaderName::from_bytes(&line[..colon])
            .map_err(|_| HeadError::Malformed("a header's name is no token"))?;
        let value = line[colon + 1..].trim_ascii();
        let from = value.as_ptr() as usize - head.as_ptr() as usize;
        let value = HeaderValue::from_maybe_shared(head.slice(from..from + value.len()))
            .map_err(|_| HeadError::Value)?;
        last = Some(name.clone());
        headers.append(name, value);
    }
}

/// Puts a folded line behind the value that it belongs to, the last one of its name.
fn unfold(headers: &mut HeaderMap, name: &HeaderName, more: &[u8]) -> Result<(), HeadError> {
    let mut values: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
    if let Some(last) = values.pop() {
        let whole = [last.as_bytes(), more].join(&b" "[..]);
        values.push(HeaderValue::from_bytes(whole.trim_ascii()).map_err(|_| HeadError::Value)?);
    }
    headers.remove(name);
    for value in values {
        headers.append(name.clone(), value);
    }
    Ok(())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether `text` may stand as the host of a request.
pub(in crate::http) fn is_host(text: &str) -> bool {
    text.parse::<Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@'))
}

/// Writes `GET / HTTP/1.1` and the fields, up to the empty line.
pub(in crate::http) fn write_request(
    out: &mut BytesMut,
    method: &Method,
    target: &str,
    host: &str,
    headers: &HeaderMap,
) {
    out.reserve(target.len() + host.len() + FIRST_LINE_BYTES + length(headers));
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, "host", host.as_bytes());
    fields(out, headers);
}

/// Writes `HTTP/1.1 200 OK` and the fields, with the empty line.
pub(in crate::http) fn write_response(
    out: &mut BytesMut,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
) {
    let version: &[u8] = match version {
        Version::Http10 => b"HTTP/1.0 ",
        Version::Http11 | Version::Http2 => b"HTTP/1.1 ",
    };
    out.reserve(FIRST_LINE_BYTES + length(headers));
    out.extend_from_slice(version);
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    fields(out, headers);
    out.extend_from_slice(b"\r\n");
}

/// The words that Envoy has for a status.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        102 | 103 | 418 | 425 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

/// Writes one field.
pub(in crate::http) fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What else a head has, about: room for it is made at once.
const FIRST_LINE_BYTES: usize = 96;

/// Bytes of the fields.
fn length(headers: &HeaderMap) -> usize {
    let of = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    headers.iter().map(of).sum()
}

fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        field(out, name.as_str(), value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        bytes: 1024,
        fields: 4,
    };

    fn request(text: &[u8]) -> Result<Option<RawRequest>, HeadError> {
        take_request(&mut BytesMut::from(text), LIMITS)
    }

    #[test]
    fn a_request_is_taken_once_it_is_whole() {
        let text = b"\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-A:\t1 \r\nx-a: 2\r\n\r\nrest";
        for end in 0..text.len() - 4 {
            assert!(request(&text[..end]).unwrap().is_none(), "{end}");
        }
        let mut input = BytesMut::from(&text[..]);
        let head = take_request(&mut input, LIMITS).unwrap().unwrap();
        assert_eq!(
            (&head.method, &*head.target, head.version),
            (&Method::GET, "/a?b", Version::Http11)
        );
        assert_eq!(head.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(input, b"rest"[..]);
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        for text in [
            &b"GET / HTTP/1.1\nHost: h\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\n: h\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\rx\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\0\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET /\tx HTTP/1.1\r\n\r\n",
            b"G(T / HTTP/1.1\r\n\r\n",
            b"GET HTTP/1.1\r\n\r\n",
            b"GET x HTTP/2.0\r\n\r\n",
            b"PRI / HTTP/2.0\r\n\r\n",
            b"\x16\x03\x01\x02",
        ] {
            let refused = request(text).unwrap_err();
            assert!(
                matches!(refused, HeadError::Malformed(_) | HeadError::Value),
                "{text:?}: {refused}"
            );
        }
        for text in [
            &b"GET / HTTP/1.2\r\n\r\n"[..],
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / \r\n\r\n",
        ] {
            assert_eq!(request(text).unwrap_err(), HeadError::Version);
        }
    }

    #[test]
    fn limits_hold_before_the_head_is_whole() {
        let long = [&b"GET / HTTP/1.1\r\nx: "[..], &[b'a'; 1024]].concat();
        assert_eq!(request(&long).unwrap_err(), HeadError::TooLarge);
        let many = [&b"GET / HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(5), b"\r\n"].concat();
        assert_eq!(request(&many).unwrap_err(), HeadError::TooLarge);
    }

    #[test]
    fn a_response_has_a_status_and_maybe_a_reason() {
        let response = |text: &[u8]| take_response(&mut BytesMut::from(text), LIMITS);
        let head = response(b"HTTP/1.0 204 No Content\r\na: b\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((head.status.as_u16(), head.version), (204, Version::Http10));
        assert_eq!(
            response(b"HTTP/1.1 299\r\n\r\n")
                .unwrap()
                .unwrap()
                .status
                .as_u16(),
            299
        );
        assert!(response(b"HTT").unwrap().is_none());
        let lenient = response(b"HTTP/1.1 200 OK\na: b\r\n c\n\td\ne:\n f\n\n")
            .unwrap()
            .unwrap();
        assert_eq!(
            (&lenient.headers["a"], &lenient.headers["e"]),
            (&"b c d".parse().unwrap(), &"f".parse().unwrap())
        );
        for text in [
            &b"SSH-2.0"[..],
            b"HTTP/1.1 99 x\r\n\r\n",
            b"HTTP/1.1 2000 x\r\n\r\n",
            b"HTTP/1.1  200\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(response(text).is_err(), "{text:?}");
        }
    }
}
