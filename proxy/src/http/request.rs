//! A request's head as routes and rules look at it, and what is wrong with one.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode, Version};

use super::local_reply::LocalReply;
use crate::model::matcher::Request;

/// Methods that Envoy's HTTP/1 parser knows; others are refused, as by it.
const METHODS: [&str; 34] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "COPY",
    "LOCK",
    "UNLOCK",
    "MKCOL",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "SEARCH",
    "BIND",
    "REBIND",
    "UNBIND",
    "ACL",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "MERGE",
    "M-SEARCH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PURGE",
    "MKCALENDAR",
    "LINK",
    "UNLINK",
    "SOURCE",
];

/// What is looked at of a request's head.
#[derive(Debug)]
pub(super) struct RequestHead<'a> {
    parts: &'a Parts,
    host: &'a str,
    target: &'a str,
}

/// What is asked for: the host of an absolute request target, or of the `host` header.
///
/// # Errors
/// The answer to a request that cannot be understood, or that nothing here can do.
pub(super) fn check(parts: &Parts) -> Result<String, LocalReply> {
    if parts.version < Version::HTTP_11 {
        return Err(LocalReply::upgrade_required());
    }
    if !METHODS.contains(&parts.method.as_str()) {
        return Err(LocalReply::bad_request("the method is none of HTTP's"));
    }
    if parts.method == Method::CONNECT {
        return Err(LocalReply::no_route().closing());
    }
    // Nothing here can undo another coding, and the header that names it goes no further.
    if !only_chunked(&parts.headers) {
        return Err(LocalReply::empty(StatusCode::NOT_IMPLEMENTED).closing());
    }
    let host = host(parts)?;
    if upgrade(&parts.headers).is_some() {
        return Err(LocalReply::empty(StatusCode::FORBIDDEN).closing());
    }
    Ok(host)
}

fn host(parts: &Parts) -> Result<String, LocalReply> {
    let mut headers = parts.headers.get_all(HOST).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(LocalReply::bad_request("there are several host headers"));
    }
    if let Some(authority) = parts.uri.authority() {
        // Without the user information, which is no part of a host (RFC 9110, section 4.2.4).
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        return Ok(host.to_owned());
    }
    match header.map(HeaderValue::to_str) {
        Some(Ok(host)) if !host.is_empty() => match host.parse::<Authority>() {
            Ok(_) => Ok(host.to_owned()),
            Err(_) => Err(LocalReply::bad_request("the host header is no host")),
        },
        Some(Err(_)) => Err(LocalReply::bad_request("the host header is no text")),
        Some(Ok(_)) | None => Err(LocalReply::empty(StatusCode::BAD_REQUEST).closing()),
    }
}

/// Whether a body is whole or in chunks, and nothing else (RFC 9112, section 6.1).
fn only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(chunked) && codings.next().is_none()
}

/// The protocol that a request would go on with. HTTP/2 over plain text is left out, as by Envoy: such a
/// request is an ordinary one.
fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE)?;
    (asked && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then_some(protocol)
}

/// The words of a header that is a list.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

impl<'a> RequestHead<'a> {
    pub(super) fn new(parts: &'a Parts, host: &'a str) -> Self {
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        Self { parts, host, target }
    }

    /// Path and query.
    pub(super) fn target(&self) -> &'a str {
        self.target
    }
}

impl Request for RequestHead<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => return Some(self.parts.method.as_str().into()),
            ":path" => return Some(self.target.into()),
            ":authority" | "host" => return Some(self.host.into()),
            _ => {}
        }
        let mut values = self.parts.headers.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        Some(values.fold(first, |joined, value| {
            let value = String::from_utf8_lossy(value.as_bytes());
            format!("{joined},{value}").into()
        }))
    }

    fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// No filter writes any yet.
    fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: hyper::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn headers_of_one_name_are_joined() {
        let parts = head(
            hyper::Request::get("/a/b?q=1")
                .header("x-a", "1")
                .header("x-a", "2"),
        );
        let request = RequestHead::new(&parts, "h");
        assert_eq!(request.header("x-a").unwrap(), "1,2");
        assert_eq!(request.header(":path").unwrap(), "/a/b?q=1");
        assert_eq!(request.header(":method").unwrap(), "GET");
        assert_eq!(request.header(":authority").unwrap(), "h");
        assert_eq!(request.header("x-b"), None);
        assert_eq!(request.path(), "/a/b");
    }

    #[test]
    fn the_host_is_of_the_target_or_the_one_header() {
        let status = |request| {
            let reply: LocalReply = check(&head(request)).unwrap_err();
            reply.into_response().status().as_u16()
        };
        let get = || hyper::Request::get("/");
        assert_eq!(check(&head(get().header("host", "a:1"))).unwrap(), "a:1");
        let absolute = hyper::Request::get("http://b/").header("host", "a");
        assert_eq!(check(&head(absolute)).unwrap(), "b");
        let with_user = hyper::Request::get("http://u:p@b:1/").header("host", "a");
        assert_eq!(check(&head(with_user)).unwrap(), "b:1");
        for host in ["a_b:80", "[::1]:80", "A.b"] {
            assert_eq!(check(&head(get().header("host", host))).unwrap(), host);
        }
        for host in ["a b", "a/../b", "a?b", "a#b"] {
            assert_eq!(status(get().header("host", host)), 400, "{host}");
        }
        assert_eq!(status(get()), 400);
        assert_eq!(status(get().header("host", "")), 400);
        assert_eq!(status(get().header("host", "a").header("host", "a")), 400);
        assert_eq!(status(get().header("host", "a").method("FOO")), 400);
        assert_eq!(status(get().header("host", "a").version(Version::HTTP_10)), 426);
    }

    #[test]
    fn a_coding_that_nothing_here_undoes_is_refused() {
        let coded = |codings: &[&str]| {
            let get = hyper::Request::get("/").header("host", "a");
            let add = |request: hyper::http::request::Builder, coding: &&str| {
                request.header("transfer-encoding", *coding)
            };
            check(&head(codings.iter().fold(get, add)))
        };
        assert!(coded(&["Chunked"]).is_ok());
        for codings in [
            &["gzip, chunked"][..],
            &["identity, chunked"],
            &["chunked", "chunked"],
        ] {
            let refused = coded(codings).unwrap_err().into_response();
            assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED, "{codings:?}");
        }
    }

    #[test]
    fn an_upgrade_is_refused_but_h2c_is_none() {
        let asks = |protocol: &str| {
            hyper::Request::get("/")
                .header("host", "a")
                .header("connection", "keep-alive, Upgrade")
                .header("upgrade", protocol)
        };
        let refused = check(&head(asks("websocket"))).unwrap_err();
        assert_eq!(refused.into_response().status(), StatusCode::FORBIDDEN);
        assert!(check(&head(asks("h2c"))).is_ok());
        let without = hyper::Request::get("/")
            .header("host", "a")
            .header("upgrade", "websocket");
        assert!(check(&head(without)).is_ok());
    }
}
