//! Responses that are made here, in Envoy's words.

use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::ResponseBody;
use crate::telemetry::ResponseFlag;
use crate::upstream::{AttemptError, ConnectError};

/// What every failure of an upstream before its headers begins with.
const BEFORE_HEADERS: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

/// A response to be made.
#[derive(Debug)]
pub(super) struct LocalReply {
    status: StatusCode,
    body: String,
    /// The connection ends after it.
    close: bool,
    overloaded: bool,
    /// Envoy's flag for it, and what the log says.
    pub(super) why: Option<(ResponseFlag, String)>,
}

impl LocalReply {
    /// An empty response.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            body: String::new(),
            close: false,
            overloaded: false,
            why: None,
        }
    }

    /// No route takes the request.
    pub(super) fn no_route() -> Self {
        Self::empty(StatusCode::NOT_FOUND).because(ResponseFlag::NoRouteFound, "no route takes the request")
    }

    /// A request that is not to be understood or not allowed.
    pub(super) fn bad_request(why: &str) -> Self {
        Self {
            body: "Bad Request".to_owned(),
            ..Self::empty(StatusCode::BAD_REQUEST)
        }
        .closing()
        .because(ResponseFlag::DownstreamProtocolError, why)
    }

    /// HTTP/1.0, which Envoy does not accept unless configured.
    pub(super) fn upgrade_required() -> Self {
        Self {
            body: "Upgrade Required".to_owned(),
            ..Self::empty(StatusCode::UPGRADE_REQUIRED)
        }
        .closing()
        .because(ResponseFlag::DownstreamProtocolError, "HTTP/1.0 is not accepted")
    }

    /// No response of the upstream within the route's timeout.
    pub(super) fn timeout() -> Self {
        Self {
            body: "upstream request timeout".to_owned(),
            ..Self::empty(StatusCode::GATEWAY_TIMEOUT)
        }
        .because(
            ResponseFlag::UpstreamRequestTimeout,
            "no response within the route's timeout",
        )
    }

    /// No endpoint could be connected to. `not_found` answers for a cluster that does not exist.
    pub(super) fn connect(error: &ConnectError, not_found: StatusCode) -> Self {
        let flag = error.flag();
        let timed_out = matches!(
            error,
            ConnectError::Failed {
                source: AttemptError::Timeout(_),
                ..
            }
        );
        let reply = match flag {
            ResponseFlag::NoClusterFound => Self::empty(not_found),
            ResponseFlag::NoHealthyUpstream => Self::unavailable("no healthy upstream".to_owned()),
            ResponseFlag::UpstreamOverflow => Self {
                overloaded: true,
                ..Self::unavailable(format!("{BEFORE_HEADERS}overflow"))
            },
            _ if timed_out => Self::unavailable(format!("{BEFORE_HEADERS}connection timeout")),
            _ => Self::unavailable(format!("{BEFORE_HEADERS}remote connection failure")),
        };
        reply.because(flag, &error.to_string())
    }

    /// The upstream ended the connection before its response.
    pub(super) fn upstream_ended(why: &str) -> Self {
        Self::unavailable(format!("{BEFORE_HEADERS}connection termination"))
            .because(ResponseFlag::UpstreamConnectionTermination, why)
    }

    /// The upstream answered with something that is no HTTP.
    pub(super) fn upstream_protocol_error(why: &str) -> Self {
        Self {
            body: format!("{BEFORE_HEADERS}protocol error"),
            ..Self::empty(StatusCode::BAD_GATEWAY)
        }
        .because(ResponseFlag::UpstreamProtocolError, why)
    }

    /// A configuration that this connection manager does not carry out; decoding refuses it before.
    pub(super) fn not_carried(what: &str) -> Self {
        Self::empty(StatusCode::NOT_IMPLEMENTED).because(ResponseFlag::LocalReset, what)
    }

    fn unavailable(body: String) -> Self {
        Self {
            body,
            ..Self::empty(StatusCode::SERVICE_UNAVAILABLE)
        }
    }

    /// The connection ends after it.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn because(mut self, flag: ResponseFlag, why: &str) -> Self {
        self.why = Some((flag, why.to_owned()));
        self
    }

    /// The response itself.
    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let text = !self.body.is_empty();
        let mut response = Response::new(ResponseBody::full(self.body.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if text {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.overloaded {
            headers.insert(
                HeaderName::from_static("x-envoy-overloaded"),
                HeaderValue::from_static("true"),
            );
        }
        response
    }
}
