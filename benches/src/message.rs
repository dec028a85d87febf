//! What load and backend say to each other, byte by byte, whatever carries it: responses of any
//! size with a number in them, so that each can be told to be the one to its request, and blocks
//! of bulk bytes. Neither side accepts anything but the exact bytes.

use std::sync::LazyLock;

use bytes::Bytes;

/// Bytes in a bulk block: what iperf3 hands to a socket at once.
pub(crate) const BLOCK_LENGTH: usize = 128 * 1024;

/// The digits of a number: no payload is shorter.
pub(crate) const LEAST: usize = 16;

/// The longest payload, in bytes.
pub(crate) const MOST: usize = 64 * 1024 * 1024;

/// How much of a payload goes out together with its head.
const FIRST: usize = 16 * 1024;

/// Bytes before a gRPC message: not compressed, and its length.
const GRPC_PREFIX: usize = 5;

/// Bytes that no truncation, repetition or reordering leaves as they are.
pub(crate) static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    bytes.take(BLOCK_LENGTH).collect()
});

/// A response as it passes over a connection or in a body: a head, a number, and filling.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Head and digits.
    start: Vec<u8>,
    /// Of the head alone.
    head: usize,
    /// Of head and payload.
    length: usize,
}

impl Message {
    /// With this before the payload, which has `size` bytes, [`LEAST`] at least.
    pub(crate) fn new(head: &[u8], number: u64, size: usize) -> Self {
        let mut start = Vec::with_capacity(head.len() + LEAST);
        start.extend_from_slice(head);
        start.extend_from_slice(&digits(number));
        Self {
            start,
            head: head.len(),
            length: head.len() + size.max(LEAST),
        }
    }

    /// A gRPC message.
    pub(crate) fn grpc(number: u64, size: usize) -> Self {
        Self::new(&grpc_prefix(size.max(LEAST)), number, size)
    }

    /// Its bytes in all.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The piece that begins there; `None` at the end. Only the first is copied.
    pub(crate) fn piece(&self, at: usize) -> Option<Bytes> {
        if at >= self.length {
            return None;
        }
        if at == 0 {
            let first = self.length.min(self.head + FIRST);
            let mut bytes = Vec::with_capacity(first);
            bytes.extend_from_slice(&self.start);
            bytes.extend_from_slice(&BLOCK[LEAST..first - self.head]);
            return Some(bytes.into());
        }
        let from = (at - self.head) % BLOCK_LENGTH;
        let to = BLOCK_LENGTH.min(from + self.length - at);
        Some(BLOCK.slice(from..to))
    }

    /// Whether these are its bytes from there on.
    pub(crate) fn matches(&self, at: usize, bytes: &[u8]) -> bool {
        if at + bytes.len() > self.length {
            return false;
        }
        let of_start = self.start.len().saturating_sub(at).min(bytes.len());
        let (start, filling) = bytes.split_at(of_start);
        (start.is_empty() || self.start[at..].starts_with(start))
            && is_filling(at + of_start - self.head.min(at + of_start), filling)
    }
}

/// Whether these are the bytes of repeated blocks from there on.
pub(crate) fn is_filling(at: usize, mut bytes: &[u8]) -> bool {
    let mut from = at % BLOCK_LENGTH;
    while !bytes.is_empty() {
        let length = bytes.len().min(BLOCK_LENGTH - from);
        if bytes[..length] != BLOCK[from..from + length] {
            return false;
        }
        bytes = &bytes[length..];
        from = 0;
    }
    true
}

/// A number as a payload begins with it.
pub(crate) fn digits(mut number: u64) -> [u8; LEAST] {
    let mut digits = [0; LEAST];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
    digits
}

/// What a gRPC message of that length begins with.
pub(crate) fn grpc_prefix(length: usize) -> [u8; GRPC_PREFIX] {
    let mut prefix = [0; GRPC_PREFIX];
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    prefix[1..].copy_from_slice(&length.to_be_bytes());
    prefix
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_LENGTH, LEAST, Message};

    fn joined(message: &Message) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = message.piece(all.len()) {
            all.extend_from_slice(&piece);
        }
        all
    }

    #[test]
    fn pieces_make_the_message_and_no_other() {
        for size in [0, LEAST, 64, 20_000, 3 * BLOCK_LENGTH + 7] {
            let message = Message::new(b"head", 0xbeef, size);
            let all = joined(&message);
            assert_eq!(all.len(), 4 + size.max(LEAST));
            assert_eq!(all.len(), message.length());
            assert!(all.starts_with(b"head000000000000beef"));
            for cut in [0, 3, 4, 11, 20, all.len() / 2, all.len()] {
                let (one, other) = all.split_at(cut);
                assert!(message.matches(0, one) && message.matches(cut, other), "{cut}");
            }
            assert!(!Message::new(b"head", 0xbeee, size).matches(0, &all));
            assert!(!message.matches(1, &all[..all.len() - 1]));
            let mut damaged = all.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert!(!message.matches(0, &damaged));
            damaged = [all, vec![0]].concat();
            assert!(!message.matches(0, &damaged));
        }
    }

    #[test]
    fn a_grpc_message_tells_its_length() {
        assert!(joined(&Message::grpc(1, 300)).starts_with(&[0, 0, 0, 1, 44, b'0']));
    }
}
