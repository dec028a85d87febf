//! Buffers lent by a worker thread for the length of one poll, so that an idle connection holds none.
//!
//! Owns three page-aligned blocks a thread. Nobody may keep one over an `.await`: the borrow ends
//! with the closure. Page alignment halves the kernel's copying cost on processors with the slow
//! short `rep movsb`.

use std::cell::RefCell;

/// Bytes of one block: four full TLS records, so that a bulk transfer makes few system calls.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// Room for the headers and tags of the records that a block of plaintext becomes, and for a close
/// or a key update beside them.
pub const CIPHER_BLOCK_BYTES: usize = BLOCK_BYTES + 4096;

#[repr(C, align(4096))]
struct Plain([u8; BLOCK_BYTES]);

#[repr(C, align(4096))]
struct Cipher([u8; CIPHER_BLOCK_BYTES]);

thread_local! {
    static PLAIN: RefCell<Box<Plain>> = RefCell::new(Box::new(Plain([0; BLOCK_BYTES])));
    static RECEIVED: RefCell<Box<Cipher>> = RefCell::new(Box::new(Cipher([0; CIPHER_BLOCK_BYTES])));
    static SENDING: RefCell<Box<Cipher>> = RefCell::new(Box::new(Cipher([0; CIPHER_BLOCK_BYTES])));
}

/// Lends the block that plaintext is relayed through. Must not be nested in itself.
pub fn with_plain<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    PLAIN.with_borrow_mut(|block| f(&mut block.0))
}

/// Lends the block that TLS records are received into and opened in.
pub fn with_received<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    RECEIVED.with_borrow_mut(|block| f(&mut block.0))
}

/// Lends the block that TLS records are sealed into.
pub fn with_sending<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    SENDING.with_borrow_mut(|block| f(&mut block.0))
}

/// Bytes that a socket did not take yet. Allocates only under backpressure and gives everything back
/// once drained.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// Invariant: `sent <= bytes.len()`, and both are 0 when nothing waits.
    sent: usize,
}

impl Backlog {
    /// What still waits.
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes that were not taken.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Notes that the first `n` waiting bytes were taken.
    pub fn advance(&mut self, n: usize) {
        self.sent += n;
        debug_assert!(self.sent <= self.bytes.len());
        if self.sent >= self.bytes.len() {
            self.bytes = Vec::new();
            self.sent = 0;
        }
    }
}
