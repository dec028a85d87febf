//! The bytes of an HTTP/1 connection, from a downstream or an upstream: what is read does not depend on how
//! they were cut, and what is passed on is one message that everybody reads alike.
//!
//! The first line says who speaks, `requests` or the method of the request that is answered (`upgrade` for one
//! that asks for another protocol), and the sizes of the first reads.

#![no_main]

use std::sync::Arc;

use attache::http::fuzzing::{self, Answer, Framing, Limits, Request, Requests, Response};
use attache::model::http::{HttpConnectionManager, Routes};
use hyper::Method;
use hyper::header::HeaderMap;
use libfuzzer_sys::fuzz_target;

/// Small, so that inputs pass them.
const LIMITS: Limits = Limits {
    bytes: 2048,
    fields: 16,
};

/// What is passed on has more fields than what came.
const WIDE: Limits = Limits {
    bytes: 1 << 20,
    fields: 64,
};

/// Of informational responses not more are kept.
const MAX_INTERIM: usize = 16;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let (Some(line), Some(bytes)) = (parts.next(), parts.next()) else {
        return;
    };
    let Ok(line) = std::str::from_utf8(line) else {
        return;
    };
    let mut words = line.split(' ');
    let speaker = words.next().unwrap_or_default();
    let sizes: Vec<usize> = words.filter_map(|word| word.parse().ok()).collect();
    match speaker {
        "requests" => from_downstream(bytes, &sizes),
        "upgrade" => from_upstream(&upgrade(), bytes, &sizes),
        _ => {
            let known = [Method::GET, Method::HEAD, Method::POST];
            if let Some(method) = known.into_iter().find(|known| known.as_str() == speaker) {
                let request = Request::new(method, "h", "/", HeaderMap::new());
                from_upstream(&request, bytes, &sizes);
            }
        }
    }
});

fn upgrades() -> [Arc<str>; 1] {
    ["websocket".into()]
}

/// A request that asks for another protocol.
fn upgrade() -> Request {
    let text = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut requests = fuzzing::requests(&[text], LIMITS, &upgrades());
    requests.accepted.pop().expect("it is a request")
}

fn manager() -> HttpConnectionManager {
    let mut manager = HttpConnectionManager::new("p".into(), Routes::Rds("r".into()));
    // One at random would be another each time.
    manager.request_id.generate = false;
    manager
}

/// Pieces of these sizes, then the rest.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

fn from_downstream(bytes: &[u8], sizes: &[usize]) {
    let read = |pieces: &[&[u8]]| {
        let read = fuzzing::requests(pieces, LIMITS, &upgrades());
        assert!(
            read.kept <= LIMITS.bytes,
            "{} bytes of a head are kept",
            read.kept
        );
        read
    };
    let shown = |read: &Requests| format!("{:?} {}", read.accepted, read.end);
    let whole = read(&[bytes]);
    for pieces in [cut(bytes, sizes), bytes.chunks(1).collect()] {
        assert_eq!(shown(&read(&pieces)), shown(&whole));
    }
    for request in &whole.accepted {
        let headers = request.headers();
        assert!(headers.len() <= LIMITS.fields);
        let length = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        assert!(length.sum::<usize>() <= LIMITS.bytes);
        if request.complete
            && let Some(received) = request.received(&manager())
        {
            passed_on(&received);
        }
    }
}

/// A request that is sent to an upstream is one request, the same.
fn passed_on(request: &Request) {
    let sent = request.sent();
    let (line, fields, rest) = message(&sent);
    assert_eq!(
        line,
        format!("{} {} HTTP/1.1", request.method(), request.target())
    );
    assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
    assert_eq!(line.split(' ').count(), 3);
    let hosts: Vec<&str> = of(&fields, "host");
    assert_eq!(hosts, [request.authority()]);
    match request.framing() {
        Framing::Rest => assert_eq!(rest, request.body),
        _ => assert_eq!(body(&fields, rest).as_deref().unwrap_or_default(), request.body),
    }
    let again = fuzzing::requests(&[&sent], WIDE, &upgrades());
    let [same] = &again.accepted[..] else {
        panic!("it is {} requests: {}", again.accepted.len(), again.end);
    };
    let end = match request.framing() {
        Framing::Rest => "switched",
        _ => "Ended",
    };
    assert_eq!(again.end, end);
    assert_eq!(same.method(), request.method());
    assert_eq!(same.target(), request.target());
    assert_eq!(same.authority(), request.authority());
    assert_eq!(same.upgrade(), request.upgrade());
    assert_eq!(same.body, request.body);
    assert_eq!(sorted(same.headers()), sorted(request.headers()));
}

fn from_upstream(request: &Request, bytes: &[u8], sizes: &[usize]) {
    let read = |pieces: &[&[u8]]| fuzzing::answer(pieces, request);
    let shown = |read: &Answer| format!("{:?} {:?} {}", read.interim, read.response, read.end);
    let whole = read(&[bytes]);
    assert!(whole.interim.len() <= MAX_INTERIM);
    for pieces in [cut(bytes, sizes), bytes.chunks(1).collect()] {
        let other = read(&pieces);
        assert_eq!(shown(&other), shown(&whole));
        // What comes unasked is seen only once it is there.
        assert!(other.reusable || !whole.reusable);
    }
    if let Some(response) = &whole.response
        && whole.end.is_empty()
    {
        handed_down(request, &response.received(&manager()));
    }
}

/// A response that is sent to a downstream is one response, the same.
fn handed_down(request: &Request, response: &Response) {
    let method = Method::from_bytes(request.method().as_bytes()).expect("it is a method");
    let (sent, until_end) = response.sent(&method);
    assert!(!until_end, "a downstream of HTTP/1.1 is told where it ends");
    let (line, fields, rest) = message(&sent);
    assert!(
        line.starts_with(&format!("HTTP/1.1 {} ", response.status)),
        "{line}"
    );
    let lengths = of(&fields, "content-length");
    assert!(lengths.len() <= 1, "{lengths:?}");
    assert!(
        lengths
            .iter()
            .all(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
    );
    match response.status {
        101 => assert_eq!(rest, response.body),
        204 | 304 => assert!(rest.is_empty()),
        _ if method == Method::HEAD => assert!(rest.is_empty()),
        _ => assert_eq!(body(&fields, rest).expect("it has a length"), response.body),
    }
    let again = fuzzing::answer(&[&sent], request);
    let same = again.response.expect("it is a response");
    assert_eq!(again.end, "");
    assert!(again.interim.is_empty());
    assert_eq!((same.status, same.body), (response.status, response.body.clone()));
    assert_eq!(sorted(&same.headers), sorted(&response.headers));
}

/// The first line, the fields, and what comes after them. No line has a control character but tabs.
fn message(bytes: &[u8]) -> (String, Vec<(String, String)>, &[u8]) {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head ends");
    // As a reader has them who takes every byte for a character.
    let head: String = bytes[..end].iter().copied().map(char::from).collect();
    let mut lines = head.split("\r\n").map(|line| {
        let clean = |c: char| c == '\t' || c >= ' ' && c != '\u{7f}';
        assert!(line.chars().all(clean), "{line:?}");
        line
    });
    let first = lines.next().expect("there is a line").to_owned();
    let fields = lines.map(|line| {
        let (name, value) = line.split_once(':').expect("it is a field");
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
        let value = value.strip_prefix(' ').expect("a space follows");
        (name.to_owned(), value.to_owned())
    });
    (first, fields.collect(), &bytes[end + 4..])
}

/// The values of a field.
fn of<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let named = fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

/// The body that the fields say, which is all that comes; none if they say none.
fn body(fields: &[(String, String)], rest: &[u8]) -> Option<Vec<u8>> {
    match (
        &of(fields, "content-length")[..],
        &of(fields, "transfer-encoding")[..],
    ) {
        ([], []) => {
            assert!(rest.is_empty());
            None
        }
        ([length], []) => {
            assert_eq!(length.parse(), Ok(rest.len()));
            Some(rest.to_vec())
        }
        ([], ["chunked"]) => Some(unchunked(rest)),
        lengths => panic!("it has {lengths:?}"),
    }
}

/// The body in chunks as they are written here: no extensions, no trailers, nothing behind.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.iter().position(|byte| *byte == b'\r').expect("a line ends");
        let size = std::str::from_utf8(&rest[..line]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size is hexadecimal");
        let (chunk, after) = rest[line + 2..].split_at(size);
        body.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n").expect("a chunk ends");
        if size == 0 {
            assert!(rest.is_empty());
            return body;
        }
    }
}

/// What is said beside the length, each name's values in their order.
fn sorted(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
    let fields = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut fields: Vec<_> = fields
        .filter(|(name, _)| !["content-length", "transfer-encoding"].contains(name))
        .collect();
    fields.sort_by_key(|(name, _)| *name);
    fields
}
