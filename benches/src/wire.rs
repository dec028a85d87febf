//! The bytes of the kind `tcp`: requests and responses that look like HTTP/1.1.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::message::{LEAST, Message, digits};

const REQUEST: &[u8] = b"GET /verb_?0000000000000000&0000000000000000 HTTP/1.1\r\nHost: count-api\r\n\r\n";
const VERB: usize = 5;
const NUMBER: usize = 11;
const SIZE: usize = NUMBER + LEAST + 1;

/// The length of every request.
pub(crate) const REQUEST_LENGTH: usize = REQUEST.len();

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// The response with the same number, of the size asked for.
    Count,
    /// The same, and then the end of the connection.
    Close,
    /// Blocks for as many milliseconds as the number says, then the response with the count of
    /// their bytes, then the end.
    Fetch,
    /// Blocks follow until the end of the stream; the response has the count of their bytes.
    Store,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Count, Self::Close, Self::Fetch, Self::Store];

    fn word(self) -> &'static [u8; 5] {
        match self {
            Self::Count => b"count",
            Self::Close => b"close",
            Self::Fetch => b"fetch",
            Self::Store => b"store",
        }
    }
}

/// A request's bytes.
pub(crate) fn request(verb: Verb, number: u64, size: usize) -> [u8; REQUEST_LENGTH] {
    let mut bytes = [0; REQUEST_LENGTH];
    bytes.copy_from_slice(REQUEST);
    bytes[VERB..VERB + 5].copy_from_slice(verb.word());
    bytes[NUMBER..NUMBER + LEAST].copy_from_slice(&digits(number));
    bytes[SIZE..SIZE + LEAST].copy_from_slice(&digits(size as u64));
    bytes
}

/// The response of that number, whose body has that many bytes.
pub(crate) fn response(number: u64, size: usize) -> Message {
    let length = size.max(LEAST);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: keep-alive\r\n\r\n"
    );
    Message::new(head.as_bytes(), number, size)
}

/// Reads a request; `None` for anything that [`request`] would not have written.
pub(crate) fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Option<(Verb, u64, usize)> {
    let word = &bytes[VERB..VERB + 5];
    let verb = Verb::ALL.into_iter().find(|verb| verb.word() == word)?;
    let number = parse_digits(&bytes[NUMBER..NUMBER + LEAST])?;
    let size = usize::try_from(parse_digits(&bytes[SIZE..SIZE + LEAST])?).ok()?;
    (request(verb, number, size) == *bytes).then_some((verb, number, size))
}

fn parse_digits(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Fills the buffer, or as much of it as comes before the end of the stream.
pub(crate) async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]).await? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::{Verb, parse, request, response};

    #[test]
    fn a_request_is_read_back_and_a_damaged_one_is_not() {
        for verb in Verb::ALL {
            let mut bytes = request(verb, 0xfeed_0000_0000_beef, 64);
            assert_eq!(parse(&bytes), Some((verb, 0xfeed_0000_0000_beef, 64)));
            bytes[50] ^= 1;
            assert_eq!(parse(&bytes), None);
        }
    }

    #[test]
    fn a_response_is_http_of_the_length_it_says() {
        let bytes = response(7, 64).piece(0).unwrap();
        let head = bytes.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        assert!(bytes[..head].windows(18).any(|it| it == b"Content-Length: 64"));
        assert!(bytes[head..].starts_with(b"0000000000000007"));
        assert_eq!(bytes.len() - head, 64);
    }
}
