//! A request and a response, whatever version of HTTP brought them.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};

use crate::model::Metadata;
use crate::model::matcher;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A request's head. Its host and what is pseudo in HTTP/2 are fields, everything else headers.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    /// `http` or `https`, as the downstream says, or by its connection.
    pub(crate) scheme: &'static str,
    /// `:authority` or `host`.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    /// The protocol that it asks to go on with (`upgrade`, or `:protocol` of an extended CONNECT).
    pub(crate) upgrade: Option<String>,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// A request as rules and routes look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestView<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) metadata: &'a Metadata,
}

impl Version {
    /// As Envoy writes it (`%PROTOCOL%`).
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

impl RequestHead {
    /// A header, or pseudo header, as text; several of one name joined.
    pub(crate) fn header_text(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some(self.method.as_str().into()),
            ":path" => Some((&*self.target).into()),
            ":authority" | "host" => Some((&*self.authority).into()),
            ":scheme" => Some(self.scheme.into()),
            _ => joined(&self.headers, name),
        }
    }

    /// Whether any value of a header holds; none if there is no such header.
    pub(crate) fn any_header_value(&self, name: &str, holds: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        if name.starts_with(':') || name == "host" {
            return self.header_text(name).map(|value| holds(&value));
        }
        any_value(&self.headers, name, holds)
    }

    /// Stands for a request that never became one.
    pub(crate) fn nothing(method: Method) -> Self {
        Self {
            method,
            scheme: "http",
            authority: String::new(),
            target: "/".to_owned(),
            version: Version::Http2,
            headers: HeaderMap::new(),
            upgrade: None,
        }
    }

    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    /// Whether it is a call of gRPC: `application/grpc`, alone or with a suffix.
    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }
}

/// Whether the content type is gRPC's.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(hyper::header::CONTENT_TYPE)
        .map(|kind| kind.as_bytes());
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'+' || rest[0] == b';')
}

/// Whether any value of a header holds; none if there is no such header.
pub(crate) fn any_value(
    headers: &HeaderMap,
    name: &str,
    holds: &mut dyn FnMut(&str) -> bool,
) -> Option<bool> {
    let mut values = headers.get_all(name).iter().peekable();
    values.peek()?;
    Some(values.any(|value| holds(&String::from_utf8_lossy(value.as_bytes()))))
}

/// All values of a header, joined as RFC 9110 section 5.2 does.
pub(crate) fn joined<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = String::from_utf8_lossy(values.next()?.as_bytes());
    Some(values.fold(first, |joined, value| {
        format!("{joined},{}", String::from_utf8_lossy(value.as_bytes())).into()
    }))
}

impl matcher::Request for RequestView<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.head.header_text(name)
    }

    fn any_value(&self, name: &str, holds: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        self.head.any_header_value(name, holds)
    }

    fn path(&self) -> &str {
        self.head.path()
    }

    fn metadata(&self, filter: &str, path: &[Arc<str>]) -> Option<Cow<'_, str>> {
        Some(self.metadata.get(filter, path)?.as_str()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::matcher::Request as _;

    pub(crate) fn get(target: &str) -> RequestHead {
        RequestHead {
            method: Method::GET,
            scheme: "http",
            authority: "h".to_owned(),
            target: target.to_owned(),
            version: Version::Http11,
            headers: HeaderMap::new(),
            upgrade: None,
        }
    }

    #[test]
    fn headers_of_one_name_are_joined() {
        let mut head = get("/a/b?q=1");
        for value in ["1", "2"] {
            head.headers.append("x-a", value.parse().unwrap());
        }
        let metadata = Metadata::default();
        let request = RequestView {
            head: &head,
            metadata: &metadata,
        };
        assert_eq!(request.header("x-a").unwrap(), "1,2");
        assert_eq!(request.header(":path").unwrap(), "/a/b?q=1");
        assert_eq!(request.header(":method").unwrap(), "GET");
        assert_eq!(request.header("host").unwrap(), "h");
        assert_eq!(request.header("x-b"), None);
        assert_eq!(request.path(), "/a/b");
    }

    #[test]
    fn grpc_by_its_content_type() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", kind.parse().unwrap());
            assert_eq!(is_grpc(&headers), grpc, "{kind}");
        }
    }
}
