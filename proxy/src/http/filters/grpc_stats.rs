//! `grpc_stats`: counts the messages and outcomes of calls as they pass.
//!
//! Looks at the five bytes before each message (gRPC over HTTP/2, `Length-Prefixed-Message`), never at one.

use std::rc::Rc;

use bytes::Bytes;
use hyper::header::HeaderMap;

use crate::telemetry::metrics::http::GrpcTotals;

/// Compressed or not, and the length.
const PREFIX_BYTES: usize = 5;

/// A call that is counted.
#[derive(Debug)]
pub(in crate::http) struct Call {
    totals: Rc<GrpcTotals>,
    request: Messages,
    response: Messages,
    status: Option<u32>,
}

/// Messages of one direction so far.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that are there.
    have: usize,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    /// How many begin in these bytes.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut messages = 0;
        loop {
            let skipped = bytes.len().min(self.left as usize);
            bytes = &bytes[skipped..];
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            if bytes.is_empty() {
                return messages;
            }
            let taken = bytes.len().min(PREFIX_BYTES - self.have);
            self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < PREFIX_BYTES {
                return messages;
            }
            let [_, length @ ..] = self.prefix;
            self.left = u32::from_be_bytes(length);
            self.have = 0;
            messages += 1;
        }
    }
}

impl Call {
    pub(in crate::http) fn new(totals: Rc<GrpcTotals>) -> Self {
        Self {
            totals,
            request: Messages::default(),
            response: Messages::default(),
            status: None,
        }
    }

    /// Bytes went to the upstream.
    pub(in crate::http) fn requested(&mut self, bytes: &Bytes) {
        let messages = self.request.count(bytes);
        if messages > 0 {
            self.totals.request_messages(messages);
        }
    }

    /// Bytes came from it.
    pub(in crate::http) fn responded(&mut self, bytes: &Bytes) {
        let messages = self.response.count(bytes);
        if messages > 0 {
            self.totals.response_messages(messages);
        }
    }

    /// Headers or trailers that may tell how it ended.
    pub(in crate::http) fn ended(&mut self, headers: &HeaderMap) {
        let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
        if let Some(status) = status.and_then(|status| status.parse().ok()) {
            self.status.get_or_insert(status);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(status) = self.status {
            self.totals.finished(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let message = |length: u32| [&[0][..], &length.to_be_bytes(), &vec![b'x'; length as usize]].concat();
        let all = [message(0), message(3), message(70_000), message(1)].concat();
        for size in [1, 2, 5, 7, 4096, all.len()] {
            let mut messages = Messages::default();
            let counted: u64 = all.chunks(size).map(|chunk| messages.count(chunk)).sum();
            assert_eq!(counted, 4, "{size}");
        }
    }
}
