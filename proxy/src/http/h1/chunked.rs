//! The chunked coding (RFC 9112 section 7.1): a decoder that yields bytes as they come, and its frame.
//!
//! Chunk extensions are skipped; trailers are read for their form and left out, as by Envoy unless configured.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use memchr::memchr;

use crate::http::body::BodyError;
use crate::http::wire::Wire;

/// A chunk's first line, extensions included; Envoy's parser has a like bound.
const LINE_BYTES: usize = 4096;

/// All trailers together.
const TRAILER_BYTES: usize = 60 * 1024;

/// Where in the coding the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Decoder {
    /// In a chunk's first line.
    Size,
    /// In its data, of which so many bytes are left.
    Data(u64),
    /// Before the line end after the data.
    DataEnd,
    /// In the trailers, of which so many bytes were read.
    Trailers(usize),
    /// After the last line.
    Done,
}

impl Decoder {
    /// The next bytes of the body; none at its end.
    pub(in crate::http) fn poll(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match *self {
                Self::Data(left) => {
                    let bytes = match ready!(wire.poll_bytes(cx, left)) {
                        Ok(bytes) if bytes.is_empty() => return fail(BodyError::Incomplete),
                        Ok(bytes) => bytes,
                        Err(error) => return fail(error.into()),
                    };
                    *self = match left - bytes.len() as u64 {
                        0 => Self::DataEnd,
                        left => Self::Data(left),
                    };
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Self::Done => return Poll::Ready(None),
                Self::Size | Self::DataEnd | Self::Trailers(_) => {
                    let line = match ready!(poll_line(wire, cx)) {
                        Ok(line) => line,
                        Err(error) => return fail(error),
                    };
                    match self.after_line(&line) {
                        Ok(next) => *self = next,
                        Err(error) => return fail(error),
                    }
                }
            }
        }
    }

    /// Steps over framing that is there already: whether the body has ended is then known without asking for
    /// more.
    pub(in crate::http) fn is_done(self) -> bool {
        self == Self::Done
    }

    fn after_line(self, line: &[u8]) -> Result<Self, BodyError> {
        match self {
            Self::Size => match parse_size(line)? {
                0 => Ok(Self::Trailers(0)),
                size => Ok(Self::Data(size)),
            },
            Self::DataEnd if line.is_empty() => Ok(Self::Size),
            Self::Trailers(_) if line.is_empty() => Ok(Self::Done),
            Self::Trailers(read) if read + line.len() > TRAILER_BYTES => {
                Err(BodyError::Malformed("the trailers are too large"))
            }
            Self::Trailers(read) if is_field(line) => Ok(Self::Trailers(read + line.len())),
            Self::Trailers(_) => Err(BodyError::Malformed("a trailer is no header")),
            Self::DataEnd | Self::Data(_) | Self::Done => {
                Err(BodyError::Malformed("a chunk is longer than it says"))
            }
        }
    }
}

fn fail<T>(error: BodyError) -> Poll<Option<Result<T, BodyError>>> {
    Poll::Ready(Some(Err(error)))
}

fn poll_line(wire: &mut Wire, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
    loop {
        if let Some(end) = memchr(b'\n', wire.input()) {
            let line = wire.input().split_to(end + 1).freeze();
            return Poll::Ready(match line.strip_suffix(b"\r\n") {
                Some(text) => Ok(line.slice(..text.len())),
                None => Err(BodyError::Malformed(
                    "a line of the chunked coding ends without a carriage return",
                )),
            });
        }
        if wire.input().len() > LINE_BYTES {
            return Poll::Ready(Err(BodyError::Malformed(
                "a line of the chunked coding is too long",
            )));
        }
        if ready!(wire.poll_fill(cx))? == 0 {
            return Poll::Ready(Err(BodyError::Incomplete));
        }
    }
}

/// The size of a chunk, whose line may go on with extensions.
fn parse_size(line: &[u8]) -> Result<u64, BodyError> {
    let bad = BodyError::Malformed("a chunk's size is no hexadecimal number");
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let blank = line[digits..]
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    let extension = &line[digits + blank..];
    let extended = extension.is_empty() || extension.starts_with(b";");
    let clean = extension
        .iter()
        .all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if !(1..=16).contains(&digits) || !extended || !clean {
        return Err(bad);
    }
    let digits = std::str::from_utf8(&line[..digits]).map_err(|_| BodyError::Malformed("not text"))?;
    u64::from_str_radix(digits, 16).map_err(|_| bad)
}

fn is_field(line: &[u8]) -> bool {
    memchr(b':', line).is_some_and(|colon| {
        hyper::header::HeaderName::from_bytes(&line[..colon]).is_ok()
            && hyper::header::HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (line, size) in [
            (&b"0"[..], 0),
            (b"a", 10),
            (b"00Ff", 255),
            (b"5;a=b", 5),
            (b"5 ; a=\"b\"", 5),
            (b"ffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse_size(line).unwrap(), size, "{line:?}");
        }
        for line in [
            &b""[..],
            b"+5",
            b"-5",
            b"0x5",
            b" 5",
            b"5 5",
            b"g",
            b";a",
            b"10000000000000000",
            b"5;\0",
        ] {
            assert!(parse_size(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn lines_in_their_order() {
        let after = |decoder: Decoder, line: &[u8]| decoder.after_line(line).ok();
        assert_eq!(after(Decoder::Size, b"5"), Some(Decoder::Data(5)));
        assert_eq!(after(Decoder::Size, b"0"), Some(Decoder::Trailers(0)));
        assert_eq!(after(Decoder::DataEnd, b""), Some(Decoder::Size));
        assert_eq!(after(Decoder::DataEnd, b"x"), None);
        assert_eq!(after(Decoder::Trailers(0), b"a: b"), Some(Decoder::Trailers(4)));
        assert_eq!(after(Decoder::Trailers(0), b"a b"), None);
        assert_eq!(after(Decoder::Trailers(TRAILER_BYTES), b"a: b"), None);
        assert_eq!(after(Decoder::Trailers(9), b""), Some(Decoder::Done));
    }
}
