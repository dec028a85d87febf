//! The chunked coding (RFC 9112 section 7.1): a decoder that yields bytes as they come, and its frame.
//!
//! Chunk extensions are skipped; trailers are read for their form and left out, as by Envoy unless configured.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use memchr::memchr;

use crate::http::body::BodyError;
use crate::http::wire::Wire;

/// A chunk below this size is handed out together with those behind it that are there already: what a piece
/// costs on its way is more than the copy.
const SMALL_BYTES: usize = 4096;

/// So many bytes of small chunks are handed out at once.
const GATHERED_BYTES: usize = 16 * 1024;

/// Bytes of lines.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// A chunk's first line, extensions included.
    line: usize,
    /// All trailers together; as many as Envoy takes of a head.
    trailers: usize,
}

/// Extensions of requests cost a stranger little, and nobody uses long ones.
const OF_REQUEST: Limits = Limits {
    line: 4096,
    trailers: 60 * 1024,
};

const OF_RESPONSE: Limits = Limits {
    line: 80 * 1024,
    trailers: 80 * 1024,
};

/// A decoder.
#[derive(Debug)]
pub(in crate::http) struct Decoder {
    state: State,
    limits: Limits,
    /// Came to light behind bytes that were good, and is told after them.
    failed: Option<BodyError>,
}

/// Whether more is received where what there is does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Receive,
    Nothing,
}

/// Where in the coding the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
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
    /// Before the first chunk of a request.
    pub(in crate::http) const fn of_request() -> Self {
        Self {
            state: State::Size,
            limits: OF_REQUEST,
            failed: None,
        }
    }

    /// Before the first chunk of a response.
    pub(in crate::http) const fn of_response() -> Self {
        Self {
            state: State::Size,
            limits: OF_RESPONSE,
            failed: None,
        }
    }

    /// The next bytes of the body; none at its end.
    pub(in crate::http) fn poll(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(error) = self.failed.take() {
            return fail(error);
        }
        match ready!(self.poll_piece(wire, cx, Fill::Receive)) {
            Some(Ok(first)) if first.len() < SMALL_BYTES => {
                Poll::Ready(Some(Ok(self.gather(first, wire, cx))))
            }
            read => Poll::Ready(read),
        }
    }

    /// `first`, and what was received of the chunks behind it.
    fn gather(&mut self, first: Bytes, wire: &mut Wire, cx: &mut Context<'_>) -> Bytes {
        let mut all = BytesMut::new();
        while all.len() < GATHERED_BYTES {
            match self.poll_piece(wire, cx, Fill::Nothing) {
                Poll::Ready(Some(Ok(next))) => {
                    if all.is_empty() {
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&next);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.failed = Some(error);
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if all.is_empty() { first } else { all.freeze() }
    }

    /// The next bytes of one chunk; none at the body's end.
    fn poll_piece(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
        fill: Fill,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match self.state {
                State::Data(_) if fill == Fill::Nothing && wire.input().is_empty() => return Poll::Pending,
                State::Data(left) => {
                    let bytes = match ready!(wire.poll_bytes(cx, left)) {
                        Ok(bytes) if bytes.is_empty() => return fail(BodyError::Incomplete),
                        Ok(bytes) => bytes,
                        Err(error) => return fail(error.into()),
                    };
                    self.state = match left - bytes.len() as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Poll::Ready(Some(Ok(bytes)));
                }
                State::Done => return Poll::Ready(None),
                State::Size | State::DataEnd | State::Trailers(_) => {
                    let most = match self.state {
                        State::Trailers(_) => self.limits.trailers,
                        _ => self.limits.line,
                    };
                    let line = match ready!(poll_line(wire, cx, most, fill)) {
                        Ok(line) => line,
                        Err(error) => return fail(error),
                    };
                    match self.state.after_line(&line, self.limits.trailers) {
                        Ok(next) => self.state = next,
                        Err(error) => return fail(error),
                    }
                }
            }
        }
    }

    /// Steps over framing that is there already: whether the body has ended is then known without asking for
    /// more.
    pub(in crate::http) fn is_done(&self) -> bool {
        self.state == State::Done
    }
}

impl State {
    /// What follows `line`; `most` is how many bytes the trailers may have.
    fn after_line(self, line: &[u8], most: usize) -> Result<Self, BodyError> {
        match self {
            Self::Size => match parse_size(line)? {
                0 => Ok(Self::Trailers(0)),
                size => Ok(Self::Data(size)),
            },
            Self::DataEnd if line.is_empty() => Ok(Self::Size),
            Self::Trailers(_) if line.is_empty() => Ok(Self::Done),
            Self::Trailers(read) if read + line.len() > most => {
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

const TOO_LONG: BodyError = BodyError::Malformed("a line of the chunked coding is too long");

/// The next line, of `most` bytes at most.
fn poll_line(
    wire: &mut Wire,
    cx: &mut Context<'_>,
    most: usize,
    fill: Fill,
) -> Poll<Result<Bytes, BodyError>> {
    loop {
        if let Some(end) = memchr(b'\n', wire.input()) {
            if end > most {
                return Poll::Ready(Err(TOO_LONG));
            }
            let line = wire.input().split_to(end + 1).freeze();
            return Poll::Ready(match line.strip_suffix(b"\r\n") {
                Some(text) => Ok(line.slice(..text.len())),
                None => Err(BodyError::Malformed(
                    "a line of the chunked coding ends without a carriage return",
                )),
            });
        }
        if wire.input().len() > most {
            return Poll::Ready(Err(TOO_LONG));
        }
        if fill == Fill::Nothing {
            return Poll::Pending;
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
        let after = |state: State, line: &[u8]| state.after_line(line, 99).ok();
        assert_eq!(after(State::Size, b"5"), Some(State::Data(5)));
        assert_eq!(after(State::Size, b"0"), Some(State::Trailers(0)));
        assert_eq!(after(State::DataEnd, b""), Some(State::Size));
        assert_eq!(after(State::DataEnd, b"x"), None);
        assert_eq!(after(State::Trailers(0), b"a: b"), Some(State::Trailers(4)));
        assert_eq!(after(State::Trailers(0), b"a b"), None);
        assert_eq!(after(State::Trailers(99), b"a: b"), None);
        assert_eq!(after(State::Trailers(9), b""), Some(State::Done));
    }
}
