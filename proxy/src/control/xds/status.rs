//! How a gRPC call ends, in numbers and in words for a person.
//!
//! gRPC's `doc/statuscodes.md`, `doc/PROTOCOL-HTTP2.md` (Responses) and
//! `doc/http-grpc-status-mapping.md`.

use std::fmt;

use hyper::StatusCode;
use hyper::header::HeaderMap;

/// How much of a server's words is told.
const MAX_MESSAGE: usize = 500;

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(u8);

/// Why a call is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: Code,
    /// The server's words, without control characters.
    pub(super) message: String,
}

const NAMES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

impl Code {
    pub(super) const OK: Self = Self(0);
    pub(super) const UNKNOWN: Self = Self(2);
    pub(super) const INVALID_ARGUMENT: Self = Self(3);
    pub(super) const PERMISSION_DENIED: Self = Self(7);
    pub(super) const RESOURCE_EXHAUSTED: Self = Self(8);
    pub(super) const UNIMPLEMENTED: Self = Self(12);
    pub(super) const INTERNAL: Self = Self(13);
    pub(super) const UNAVAILABLE: Self = Self(14);
    pub(super) const UNAUTHENTICATED: Self = Self(16);

    /// The name in lower case, such as `permission_denied`: a label.
    pub(super) fn label(self) -> &'static str {
        NAMES.get(usize::from(self.0)).copied().unwrap_or("unknown")
    }

    /// What an end with it means for whoever runs the proxy.
    fn words(self) -> &'static str {
        match self {
            Self::OK | Self::UNAVAILABLE => "the control plane ended the stream",
            Self::UNAUTHENTICATED => "the control plane does not know the token",
            Self::PERMISSION_DENIED => "the token may not read this proxy's configuration",
            Self::RESOURCE_EXHAUSTED => "the control plane has too many streams and wants fewer",
            Self::INVALID_ARGUMENT => "the control plane does not accept this proxy",
            Self::UNIMPLEMENTED => "what answers is no control plane for delta xDS",
            _ => "the control plane failed",
        }
    }
}

impl Status {
    pub(super) fn new(code: Code, message: impl AsRef<str>) -> Self {
        let plain = message
            .as_ref()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_MESSAGE);
        Self {
            code,
            message: plain.collect::<String>().trim().to_owned(),
        }
    }

    /// The status in trailers, or in the headers of an answer that has nothing else.
    pub(super) fn of_trailers(trailers: &HeaderMap) -> Option<Self> {
        let code = trailers.get("grpc-status")?;
        let code = code.to_str().ok().and_then(|code| code.parse().ok());
        let code = code.filter(|code| usize::from(*code) < NAMES.len());
        let message = trailers.get("grpc-message").map(|m| unescape(m.as_bytes()));
        Some(Self::new(
            code.map_or(Code::UNKNOWN, Code),
            message.unwrap_or_default(),
        ))
    }

    /// What an answer means that gRPC did not write.
    pub(super) fn of_http(status: StatusCode) -> Self {
        let code = match status.as_u16() {
            400 => Code::INTERNAL,
            401 => Code::UNAUTHENTICATED,
            403 => Code::PERMISSION_DENIED,
            404 => Code::UNIMPLEMENTED,
            429 | 502..=504 => Code::UNAVAILABLE,
            _ => Code::UNKNOWN,
        };
        Self::new(code, format!("HTTP status {status} instead of a stream"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.code.label().to_ascii_uppercase();
        write!(f, "{} ({name})", self.code.words())?;
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.message)
    }
}

/// Percent-encoding of `grpc-message`; what is wrongly encoded stays as it is.
fn unescape(bytes: &[u8]) -> String {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        rest = after;
        let hex = (*byte == b'%').then(|| after.get(..2)).flatten();
        let decoded = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        plain.push(decoded.unwrap_or(*byte));
        if decoded.is_some() {
            rest = after.get(2..).unwrap_or_default();
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn trailers(code: &'static str, message: &'static str) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(code));
        trailers.insert("grpc-message", HeaderValue::from_static(message));
        trailers
    }

    #[test]
    fn a_status_is_told_in_words_with_the_servers_own() {
        let status = Status::of_trailers(&trailers("7", "rpc%3A ACL%0Adenied 100%")).unwrap();
        assert_eq!(status.code, Code::PERMISSION_DENIED);
        assert_eq!(
            status.to_string(),
            "the token may not read this proxy's configuration (PERMISSION_DENIED): rpc: ACL denied 100%"
        );
    }

    #[test]
    fn a_code_that_does_not_exist_is_an_unknown_one() {
        for code in ["17", "-1", "x", "999"] {
            let status = Status::of_trailers(&trailers(code, "%zz%4")).unwrap();
            assert_eq!((status.code, &*status.message), (Code::UNKNOWN, "%zz%4"));
        }
        assert_eq!(Status::of_trailers(&HeaderMap::new()), None);
    }

    #[test]
    fn a_server_that_is_none_of_grpc_is_named_as_such() {
        let status = Status::of_http(StatusCode::NOT_FOUND);
        assert_eq!(status.code, Code::UNIMPLEMENTED);
        assert!(status.to_string().contains("404 Not Found"));
    }
}
