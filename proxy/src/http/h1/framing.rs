//! How long a message's body is (RFC 9112 section 6), and the reader of one.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};

use super::chunked::Decoder;
use crate::http::body::BodyError;
use crate::http::wire::Wire;

/// The rest of a body.
#[derive(Debug)]
pub(in crate::http) enum Reader {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Decoder),
    /// All bytes until the peer ends: a response without a length, or a protocol switched to.
    Rest,
    /// None any more.
    Ended,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Writer {
    /// Not at all.
    None,
    /// As it is: its length was said, or is until the end.
    Raw,
    /// In chunks.
    Chunked,
}

/// Why a message's length is not to be known. The words are for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum LengthError {
    /// Two readers could disagree about it.
    Malformed(&'static str),
    /// A length and a transfer coding.
    Both,
    /// A coding that nothing here undoes.
    Coding,
}

impl Reader {
    /// Of a request of HTTP/1.1; what is older, and has no transfer codings, is refused whatever this says.
    ///
    /// # Errors
    /// [`LengthError`].
    pub(in crate::http) fn of_request(headers: &HeaderMap) -> Result<Self, LengthError> {
        if headers.contains_key(TRANSFER_ENCODING) {
            if headers.contains_key(CONTENT_LENGTH) {
                return Err(LengthError::Both);
            }
            return match is_chunked(headers) {
                true => Ok(Self::Chunked(Decoder::of_request())),
                false => Err(LengthError::Coding),
            };
        }
        Ok(match content_length(headers)? {
            None | Some(0) => Self::Ended,
            Some(length) => Self::Length(length),
        })
    }

    /// Of a response that may have a body.
    ///
    /// # Errors
    /// [`LengthError`].
    pub(in crate::http) fn of_response(headers: &HeaderMap) -> Result<Self, LengthError> {
        if headers.contains_key(TRANSFER_ENCODING) {
            if headers.contains_key(CONTENT_LENGTH) {
                return Err(LengthError::Both);
            }
            return match is_chunked(headers) {
                true => Ok(Self::Chunked(Decoder::of_response())),
                false => Err(LengthError::Coding),
            };
        }
        Ok(match content_length(headers)? {
            None => Self::Rest,
            Some(0) => Self::Ended,
            Some(length) => Self::Length(length),
        })
    }

    /// Whether nothing more comes.
    pub(in crate::http) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// The next bytes; none at the end.
    pub(in crate::http) fn poll(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        let read = match self {
            Self::Ended => return Poll::Ready(None),
            Self::Chunked(decoder) => {
                let read = ready!(decoder.poll(wire, cx));
                if decoder.is_done() {
                    *self = Self::Ended;
                }
                return Poll::Ready(read);
            }
            Self::Length(left) => ready!(wire.poll_bytes(cx, *left)),
            Self::Rest => ready!(wire.poll_bytes(cx, u64::MAX)),
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        match self {
            Self::Rest if bytes.is_empty() => {
                *self = Self::Ended;
                return Poll::Ready(None);
            }
            Self::Length(_) if bytes.is_empty() => return Poll::Ready(Some(Err(BodyError::Incomplete))),
            Self::Length(left) => match *left - bytes.len() as u64 {
                0 => *self = Self::Ended,
                rest => *left = rest,
            },
            Self::Rest | Self::Chunked(_) | Self::Ended => {}
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

impl Writer {
    /// Queues a piece.
    pub(in crate::http) fn data(self, wire: &mut Wire, bytes: Bytes) {
        match self {
            Self::None => {}
            Self::Raw => wire.push(bytes),
            // An empty chunk would be the last one.
            Self::Chunked if bytes.is_empty() => {}
            Self::Chunked => {
                let mut size = [0; 18];
                wire.write(hex_line(bytes.len(), &mut size));
                wire.push(bytes);
                wire.write(b"\r\n");
            }
        }
    }

    /// Queues what ends the body.
    pub(in crate::http) fn end(self, wire: &mut Wire) {
        if self == Self::Chunked {
            wire.write(b"0\r\n\r\n");
        }
    }
}

/// The first line of a chunk.
fn hex_line(mut size: usize, line: &mut [u8; 18]) -> &[u8] {
    let mut at = line.len() - 2;
    line[at..].copy_from_slice(b"\r\n");
    loop {
        at -= 1;
        line[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 {
            return &line[at..];
        }
    }
}

/// Whether a body is in chunks, and nothing else.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    chunked && codings.next().is_none()
}

/// The one length that is said; several are refused even where they agree.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, LengthError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    if lengths.next().is_some() {
        return Err(LengthError::Malformed("it has two lengths"));
    }
    let bad = LengthError::Malformed("its length is no number");
    let digits = length.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let number = length.to_str().ok().and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, hyper::header::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_first_line_of_a_chunk() {
        let line = |size| hex_line(size, &mut [0; 18]).to_vec();
        assert_eq!(line(0), b"0\r\n");
        assert_eq!(line(255), b"ff\r\n");
        assert_eq!(line(usize::MAX), b"ffffffffffffffff\r\n");
    }

    #[test]
    fn a_request_has_one_length_or_chunks_or_no_body() {
        let of = |lines: &[_]| Reader::of_request(&headers(lines));
        assert!(matches!(of(&[]), Ok(Reader::Ended)));
        assert!(matches!(of(&[("content-length", "0")]), Ok(Reader::Ended)));
        assert!(matches!(of(&[("content-length", "007")]), Ok(Reader::Length(7))));
        assert!(matches!(
            of(&[("transfer-encoding", "Chunked")]),
            Ok(Reader::Chunked(_))
        ));
        for bad in [
            &[("content-length", "+1")][..],
            &[("content-length", "1, 1")],
            &[("content-length", "")],
            &[("content-length", "0x1")],
            &[("content-length", "18446744073709551616")],
            &[("content-length", "1"), ("content-length", "1")],
        ] {
            assert!(matches!(of(bad), Err(LengthError::Malformed(_))), "{bad:?}");
        }
        let both = [("content-length", "1"), ("transfer-encoding", "chunked")];
        assert!(matches!(of(&both), Err(LengthError::Both)));
        for coding in [
            "gzip",
            "chunked, chunked",
            "identity",
            "gzip, chunked",
            "xchunked",
        ] {
            let refused = of(&[("transfer-encoding", coding)]);
            assert!(matches!(refused, Err(LengthError::Coding)), "{coding}");
        }
        let twice = of(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]);
        assert!(matches!(twice, Err(LengthError::Coding)));
    }
}
