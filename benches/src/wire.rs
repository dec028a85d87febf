//! What load and backend say to each other: requests and responses of a fixed length that look
//! like HTTP/1.1, and blocks of bulk bytes.
//!
//! Both carry a number, so that a response can be told to be the one to its request, and a bulk
//! transfer to be complete. Neither side accepts anything but the exact bytes.

use std::io;
use std::sync::LazyLock;

use tokio::io::{AsyncRead, AsyncReadExt as _};

const REQUEST: &[u8] = b"GET /verb_?0000000000000000 HTTP/1.1\r\nHost: count-api\r\n\r\n";
const REQUEST_VERB: usize = 5;
const REQUEST_NUMBER: usize = 11;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Content-Length: 28\r\nConnection: keep-alive\r\n\r\n{\"count\":\"0000000000000000\"}";
const RESPONSE_NUMBER: usize = RESPONSE.len() - 18;

/// The length of every request.
pub(crate) const REQUEST_LENGTH: usize = REQUEST.len();

/// The length of every response.
pub(crate) const RESPONSE_LENGTH: usize = RESPONSE.len();

/// Bytes in a bulk block: what iperf3 hands to a socket at once.
pub(crate) const BLOCK_LENGTH: usize = 128 * 1024;

/// Bulk bytes that no truncation, repetition or reordering leaves as they are.
pub(crate) static BLOCK: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    bytes.take(BLOCK_LENGTH).collect()
});

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// The response with the same number.
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
pub(crate) fn request(verb: Verb, number: u64) -> [u8; REQUEST_LENGTH] {
    let mut bytes = [0; REQUEST_LENGTH];
    bytes.copy_from_slice(REQUEST);
    bytes[REQUEST_VERB..REQUEST_VERB + 5].copy_from_slice(verb.word());
    write_number(&mut bytes[REQUEST_NUMBER..REQUEST_NUMBER + 16], number);
    bytes
}

/// A response's bytes.
pub(crate) fn response(number: u64) -> [u8; RESPONSE_LENGTH] {
    let mut bytes = [0; RESPONSE_LENGTH];
    bytes.copy_from_slice(RESPONSE);
    write_number(&mut bytes[RESPONSE_NUMBER..RESPONSE_NUMBER + 16], number);
    bytes
}

/// Reads a request; `None` for anything that [`request`] would not have written.
pub(crate) fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Option<(Verb, u64)> {
    let word = &bytes[REQUEST_VERB..REQUEST_VERB + 5];
    let verb = Verb::ALL.into_iter().find(|verb| verb.word() == word)?;
    let digits = std::str::from_utf8(&bytes[REQUEST_NUMBER..REQUEST_NUMBER + 16]).ok()?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (request(verb, number) == *bytes).then_some((verb, number))
}

fn write_number(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
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
    use super::{RESPONSE, Verb, parse, request, response};

    #[test]
    fn a_request_is_read_back_and_a_damaged_one_is_not() {
        for verb in Verb::ALL {
            let mut bytes = request(verb, 0xfeed_0000_0000_beef);
            assert_eq!(parse(&bytes), Some((verb, 0xfeed_0000_0000_beef)));
            bytes[40] ^= 1;
            assert_eq!(parse(&bytes), None);
        }
    }

    #[test]
    fn a_response_is_http_of_the_length_it_says() {
        let body = response(7);
        assert!(body.ends_with(b"\r\n\r\n{\"count\":\"0000000000000007\"}"));
        let head = RESPONSE.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(RESPONSE.len() - head, 28);
    }
}
