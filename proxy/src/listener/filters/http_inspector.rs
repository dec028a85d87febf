//! Which HTTP a connection begins with (Envoy's `envoy.filters.listener.http_inspector`).
//!
//! Pure: looks at the bytes received so far and keeps none.

/// The beginning of HTTP/2 without TLS (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A longer request line is taken for no HTTP; Envoy's limit is the same.
pub const MAX_BYTES: usize = 64 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// HTTP; the protocol as filter chains call it: `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
    /// The beginning of a request line; at least so many bytes are needed to see more.
    Need(usize),
    /// Something else.
    NotHttp,
}

/// Looks at the first `bytes` of a connection.
pub fn inspect(bytes: &[u8]) -> Inspected {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if bytes.len() < PREFACE.len() {
            // Not the whole of it: a request that begins alike may be shorter.
            Inspected::Need(bytes.len() + 1)
        } else {
            Inspected::Http("h2c")
        };
    }
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let Some(end) = line else {
        return if may_be_request_line(bytes) && bytes.len() < MAX_BYTES {
            Inspected::Need(bytes.len() + 1)
        } else {
            Inspected::NotHttp
        };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    // Whether it comes at once or in pieces, the same decides.
    if !may_be_request_line(line) {
        return Inspected::NotHttp;
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(_), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Inspected::NotHttp;
    };
    let version = match version {
        b"HTTP/1.1" => "http/1.1",
        b"HTTP/1.0" => "http/1.0",
        _ => return Inspected::NotHttp,
    };
    if target.is_empty() {
        return Inspected::NotHttp;
    }
    Inspected::Http(version)
}

/// Whether it can still become a request line: a method, then text without control characters.
fn may_be_request_line(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| **byte != b' ').count();
    let (method, rest) = bytes.split_at(method);
    method.iter().copied().all(is_token)
        && (rest.is_empty() || !method.is_empty())
        && rest.iter().all(|byte| *byte >= b' ' || *byte == b'\r')
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_http_is_known_at_every_cut() {
        for (bytes, protocol) in [
            (&b"GET /x HTTP/1.1\r\n"[..], "http/1.1"),
            (b"POST /x HTTP/1.0\n", "http/1.0"),
            (b"PRI / HTTP/1.1\n", "http/1.1"),
            (b"PRIVATE / HTTP/1.1\r\n", "http/1.1"),
            (PREFACE, "h2c"),
        ] {
            for n in 0..bytes.len() {
                assert!(
                    matches!(inspect(&bytes[..n]), Inspected::Need(more) if n < more && more <= bytes.len()),
                    "{:?}",
                    &bytes[..n]
                );
            }
            assert_eq!(inspect(bytes), Inspected::Http(protocol));
            assert_eq!(
                inspect(&[bytes, b"Host: x\r\n"].concat()),
                Inspected::Http(protocol)
            );
        }
    }

    #[test]
    fn other_bytes_are_not() {
        for bytes in [
            &b"\x16\x03\x01"[..],
            b" GET",
            b"GET \x01",
            b"GET \x01 HTTP/1.1\r\n",
            b" / HTTP/1.1\r\n",
            b"GET / HTTP/2.0\r\n",
            b"SSH-2.0-x\r\n",
            b"GET  HTTP/1.1\r\n",
            b"\r\n",
        ] {
            assert_eq!(inspect(bytes), Inspected::NotHttp, "{bytes:?}");
        }
        assert_eq!(inspect(&[b'A'; MAX_BYTES]), Inspected::NotHttp);
    }
}
