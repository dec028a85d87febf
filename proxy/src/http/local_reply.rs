//! Responses that are made here, in Envoy's words.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::message::ResponseHead;
use crate::telemetry::ResponseFlag;
use crate::upstream::{AttemptError, ConnectError};

/// What every failure of an upstream before its headers begins with.
const BEFORE_HEADERS: &str = "upstream connect error or disconnect/reset before headers. ";

/// A response to be made.
#[derive(Debug)]
pub(super) struct LocalReply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// The connection ends after it.
    pub(super) close: bool,
    /// Beside what every response has.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Envoy's flag for it, and what the log says.
    pub(super) why: Option<(ResponseFlag, String)>,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub(super) details: Cow<'static, str>,
    /// What gRPC is told instead of what the status stands for.
    pub(super) grpc_status: Option<u8>,
}

impl LocalReply {
    /// A response without a body.
    pub(super) fn empty(status: StatusCode, details: &'static str) -> Self {
        Self {
            status,
            body: Bytes::new(),
            close: false,
            headers: Vec::new(),
            why: None,
            details: Cow::Borrowed(details),
            grpc_status: None,
        }
    }

    /// A response with a text.
    pub(super) fn text(status: StatusCode, body: impl Into<Bytes>, details: &'static str) -> Self {
        Self {
            body: body.into(),
            ..Self::empty(status, details)
        }
    }

    /// No route takes the request.
    pub(super) fn no_route() -> Self {
        Self::empty(StatusCode::NOT_FOUND, "route_not_found")
            .because(ResponseFlag::NoRouteFound, "no route takes the request")
    }

    /// A request that is not to be understood or not allowed.
    pub(super) fn bad_request(why: &str, details: &'static str) -> Self {
        Self::text(StatusCode::BAD_REQUEST, "Bad Request", details)
            .closing()
            .because(ResponseFlag::DownstreamProtocolError, why)
    }

    /// HTTP/1.0, which Envoy does not accept unless configured.
    pub(super) fn upgrade_required() -> Self {
        Self::text(StatusCode::UPGRADE_REQUIRED, "Upgrade Required", "low_version")
            .closing()
            .because(ResponseFlag::DownstreamProtocolError, "HTTP/1.0 is not accepted")
    }

    /// No response of the upstream within the route's timeout.
    pub(super) fn timeout() -> Self {
        Self::text(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream request timeout",
            "response_timeout",
        )
        .because(
            ResponseFlag::UpstreamRequestTimeout,
            "no response within the route's timeout",
        )
    }

    /// Something of the downstream's own took too long, in Envoy's words.
    pub(super) fn overdue(
        has_request: bool,
        words: &'static str,
        flag: ResponseFlag,
        details: &'static str,
    ) -> Self {
        let status = if has_request {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::REQUEST_TIMEOUT
        };
        Self::text(status, words, details).because(flag, words)
    }

    /// Tells gRPC another status than the HTTP status has there.
    pub(super) fn with_grpc_status(mut self, status: u8) -> Self {
        self.grpc_status = Some(status);
        self
    }

    /// No endpoint could be connected to. `not_found` answers for a cluster that does not exist, `retried`
    /// is said of a request that was tried before.
    pub(super) fn connect(error: &ConnectError, not_found: StatusCode, retried: bool) -> Self {
        let flag = error.flag();
        let timed_out = matches!(
            error,
            ConnectError::Failed {
                source: AttemptError::Timeout(_),
                ..
            }
        );
        let reply = match flag {
            ResponseFlag::NoClusterFound => Self::empty(not_found, "cluster_not_found"),
            ResponseFlag::NoHealthyUpstream => Self::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "no healthy upstream",
                "no_healthy_upstream",
            ),
            ResponseFlag::UpstreamOverflow => {
                let mut reply = Self::before_headers(
                    "overflow",
                    retried,
                    "upstream_reset_before_response_started{overflow}",
                );
                reply.headers.push((
                    HeaderName::from_static("x-envoy-overloaded"),
                    HeaderValue::from_static("true"),
                ));
                reply
            }
            _ if timed_out => Self::before_headers(
                "connection timeout",
                retried,
                "upstream_reset_before_response_started{connection_timeout}",
            ),
            _ => Self::before_headers(
                "remote connection failure",
                retried,
                "upstream_reset_before_response_started{remote_connection_failure}",
            ),
        };
        reply.because(flag, &error.to_string())
    }

    /// An upstream that gave no response for a `reason` of Envoy's.
    pub(super) fn before_headers(reason: &str, retried: bool, details: &'static str) -> Self {
        let retried = if retried { "retried and the latest " } else { "" };
        Self::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{BEFORE_HEADERS}{retried}reset reason: {reason}"),
            details,
        )
    }

    /// The connection ends after it.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn because(mut self, flag: ResponseFlag, why: &str) -> Self {
        self.why = Some((flag, why.to_owned()));
        self
    }

    /// The response itself; for gRPC its status and message are headers (`grpc-status`), which is all there is.
    pub(super) fn into_response(self, grpc: bool) -> (ResponseHead, Bytes) {
        let mut headers = HeaderMap::with_capacity(8);
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(
                "grpc-status",
                u16::from(self.grpc_status.unwrap_or_else(|| grpc_status(self.status))).into(),
            );
            if !self.body.is_empty()
                && let Ok(message) =
                    HeaderValue::from_str(&grpc_message(&String::from_utf8_lossy(&self.body)))
            {
                headers.insert("grpc-message", message);
            }
        } else if !self.body.is_empty() {
            headers.insert(CONTENT_LENGTH, self.body.len().into());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        headers.extend(self.headers);
        let (status, body) = if grpc {
            (StatusCode::OK, Bytes::new())
        } else {
            (self.status, self.body)
        };
        (ResponseHead { status, headers }, body)
    }
}

/// The status of gRPC for one of HTTP (gRPC's http-grpc-status-mapping, as Envoy has it).
fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Percent-encodes what a header cannot say (gRPC over HTTP/2, `Status-Message`).
fn grpc_message(text: &str) -> String {
    let mut message = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => message.push(char::from(byte)),
            _ => message.push_str(&format!("%{byte:02X}")),
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_has_its_status_in_headers() {
        let reply = LocalReply::text(StatusCode::SERVICE_UNAVAILABLE, "no\n 100%", "x");
        let (head, body) = reply.into_response(true);
        assert_eq!((head.status, body.len()), (StatusCode::OK, 0));
        assert_eq!(head.headers["grpc-status"], "14");
        assert_eq!(head.headers["grpc-message"], "no%0A 100%25");
        let (head, body) = LocalReply::timeout().into_response(false);
        assert_eq!(head.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(body, "upstream request timeout");
    }
}
