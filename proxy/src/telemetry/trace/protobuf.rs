//! Just enough of protobuf's wire format to write spans.

/// A message being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// The message.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn key(&mut self, field: u32, wire: u32) {
        self.number(u64::from(field << 3 | wire));
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or(0));
    }

    /// A number of variable length: integers, enums and booleans. 0 is left out, as everywhere here.
    pub(super) fn varint(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.number(value);
        }
    }

    /// `fixed64`.
    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// `fixed32`.
    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        if value != 0 {
            self.key(field, 5);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// `bytes` and `string`.
    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            self.whole(field, value);
        }
    }

    /// A `string` of a `oneof`: there even where it is empty.
    pub(super) fn text(&mut self, field: u32, value: &str) {
        self.whole(field, value.as_bytes());
    }

    /// A message within, there even where it is empty.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.whole(field, &inner.0);
    }

    fn whole(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.number(u64::try_from(value.len()).unwrap_or(0));
        self.0.extend_from_slice(value);
    }
}
