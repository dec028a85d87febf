//! The two ends that a request is between: bytes that are sent and answered, with next to no work of their own.
//!
//! Of HTTP/2 they know what these benches need: one peer, no padding, headers that come again by their index
//! (RFC 7541), as those of a connection in use do.

/// RFC 9113 section 3.4.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The first index behind the static table.
const FIRST_DYNAMIC: usize = 62;

/// Bytes in a frame's header.
const FRAME_HEADER: usize = 9;

/// The bytes of one kind of message: its headers are told once and named by index from then on.
#[derive(Debug)]
pub(crate) struct Messages {
    headers: Vec<(&'static str, &'static str)>,
    body: &'static [u8],
    told: bool,
}

impl Messages {
    /// With these headers, pseudo headers first, of at most 126 bytes each.
    pub(crate) fn new(headers: &[(&'static str, &'static str)], body: &'static [u8]) -> Self {
        Self {
            headers: headers.to_vec(),
            body,
            told: false,
        }
    }

    /// The next one.
    pub(crate) fn on(&mut self, stream: u32) -> Vec<u8> {
        let mut block = Vec::new();
        for (index, (name, value)) in self.headers.iter().enumerate() {
            if self.told {
                block.push(0x80 | byte(FIRST_DYNAMIC + self.headers.len() - 1 - index));
                continue;
            }
            // Literal, kept in the table.
            block.push(0x40);
            for text in [name, value] {
                block.push(byte(text.len()));
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.told = true;
        let end = if self.body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | end, stream, &block);
        if !self.body.is_empty() {
            bytes.extend(frame(DATA, END_STREAM, stream, self.body));
        }
        bytes
    }
}

fn byte(number: usize) -> u8 {
    // Greater ones would need more bytes, which nothing here asks for.
    u8::try_from(number.min(0x7e)).unwrap_or(0x7e)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What either end says first: settings, and a window that never fills.
pub(crate) fn settings() -> Vec<u8> {
    let mut bytes = frame(SETTINGS, 0, 0, &[]);
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
    bytes
}

/// That the peer's settings were taken.
pub(crate) fn settings_taken() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

/// Takes the whole frames at the beginning of `input`, and says the stream of each message that ended.
pub(crate) fn take_ended(input: &mut Vec<u8>) -> Vec<u32> {
    let mut ended = Vec::new();
    let mut taken = 0;
    while let Some(header) = input.get(taken..taken + FRAME_HEADER) {
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
        let end = taken + FRAME_HEADER + number(&header[..3]) as usize;
        if end > input.len() {
            break;
        }
        let (kind, flags) = (header[3], header[4]);
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            ended.push(number(&header[5..]));
        }
        taken = end;
    }
    input.drain(..taken);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_once() {
        let mut messages = Messages::new(&[(":method", "GET"), ("x", "y")], b"");
        let first = messages.on(1);
        assert_eq!(first[..9], [0, 0, 18, HEADERS, 5, 0, 0, 0, 1]);
        assert_eq!(first[9..], *b"\x40\x07:method\x03GET\x40\x01x\x01y");
        assert_eq!(
            messages.on(3),
            [0, 0, 2, HEADERS, 5, 0, 0, 0, 3, 0x80 | 63, 0x80 | 62]
        );
    }

    #[test]
    fn messages_are_found_among_frames() {
        let mut input = settings();
        input.extend(Messages::new(&[("a", "b")], b"").on(1));
        input.extend(Messages::new(&[("a", "b")], b"body").on(3));
        let half = input.split_off(input.len() - 1);
        assert_eq!(take_ended(&mut input), [1]);
        input.extend(half);
        assert_eq!(take_ended(&mut input), [3]);
        assert!(input.is_empty());
    }
}
