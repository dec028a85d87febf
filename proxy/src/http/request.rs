//! What becomes of a request before anything looks at it: its form, its host and path, what it may not say.

use h2::ext::Protocol;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::forwarding;
use super::h1::framing::{LengthError, Reader};
use super::h1::head::{RawRequest, is_host};
use super::local_reply::LocalReply;
use super::message::{RequestHead, Version};

/// A request of HTTP/1, as far as its form goes, and how long its body is. `encrypted` is the connection, and
/// `upgrades` are the protocols that may be switched to.
///
/// # Errors
/// The answer to a request that cannot be understood, or that nothing here can do.
pub(super) fn from_http1(
    raw: RawRequest,
    encrypted: bool,
    upgrades: &[std::sync::Arc<str>],
) -> Result<(RequestHead, Reader), LocalReply> {
    let RawRequest {
        method,
        target,
        version,
        mut headers,
    } = raw;
    if method.as_str() == "QUERY" && headers.get(CONTENT_TYPE).is_none_or(HeaderValue::is_empty) {
        return Err(LocalReply::empty(StatusCode::BAD_REQUEST, "query_without_content_type").closing());
    }
    let reader = match Reader::of_request(&headers) {
        Ok(Reader::Length(_)) if method == Method::CONNECT => Err(codec_error("CONNECT has no length")),
        Ok(Reader::Chunked(_)) if method == Method::CONNECT => {
            Err(coding_refused("CONNECT has no transfer coding"))
        }
        Ok(reader) => Ok(reader),
        Err(LengthError::Malformed(why)) => Err(codec_error(why)),
        Err(LengthError::Both) => Err(LocalReply::bad_request(
            "it has both a length and a transfer coding",
            "http1.content_length_and_chunked_not_allowed",
        )),
        Err(LengthError::Coding) => Err(coding_refused("a transfer coding that is not chunked")),
    }?;
    if version == Version::Http10 {
        return Err(LocalReply::upgrade_required());
    }
    forwarding::remove_nominated(&mut headers)
        .map_err(|error| LocalReply::bad_request(&error.to_string(), "http1.connection_header_rejected"))?;
    let (scheme, authority, target) = split_target(&method, target, &headers, encrypted)?;
    headers.remove(HOST);
    let upgrade = asked_upgrade(&headers, upgrades)?;
    let reader = if upgrade.is_some() { Reader::Rest } else { reader };
    let head = RequestHead {
        method,
        scheme,
        authority,
        target,
        version,
        headers,
        upgrade,
    };
    Ok((head, reader))
}

/// A request of HTTP/2, as far as its form goes.
///
/// # Errors
/// As [`from_http1`].
pub(super) fn from_http2(
    parts: Parts,
    encrypted: bool,
    upgrades: &[std::sync::Arc<str>],
) -> Result<RequestHead, LocalReply> {
    let Parts {
        method,
        uri,
        mut headers,
        mut extensions,
        ..
    } = parts;
    let scheme = match uri.scheme_str() {
        Some("https") => "https",
        Some("http") => "http",
        _ if encrypted => "https",
        _ => "http",
    };
    // The h2 crate takes a length twice where both are the same; joined they would be none.
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        let details = "http2.violation.of.messaging.rule";
        return Err(LocalReply::bad_request("it has two lengths", details));
    }
    let authority = http2_authority(uri.authority().map(Authority::as_str), &mut headers)?;
    let upgrade = extensions
        .remove::<Protocol>()
        .map(|protocol| protocol.as_str().to_owned());
    if let Some(protocol) = &upgrade
        && !allows(upgrades, protocol)
    {
        return Err(upgrade_refused());
    }
    if upgrade.is_none() && method == Method::CONNECT {
        return Err(LocalReply::no_route());
    }
    let method = if upgrade.is_some() { Method::GET } else { method };
    join_cookies(&mut headers);
    Ok(RequestHead {
        method,
        scheme,
        authority,
        target: uri
            .path_and_query()
            .map_or_else(String::new, |target| target.as_str().to_owned()),
        version: Version::Http2,
        headers,
        upgrade,
    })
}

/// The host of a request of HTTP/2: `:authority`, or else the one `host`. It is taken out of `headers`.
fn http2_authority(authority: Option<&str>, headers: &mut HeaderMap) -> Result<String, LocalReply> {
    let missing = || LocalReply::empty(StatusCode::BAD_REQUEST, "missing_host_header");
    let refused = |why| LocalReply::bad_request(why, "http2.invalid_authority");
    let several = headers.get_all(HOST).iter().nth(1).is_some();
    let host = headers.remove(HOST);
    match authority {
        // User info is no part of a host: rules and routes that name the host would not know it.
        Some(authority) if !is_host(authority) => Err(refused("the authority is no host")),
        Some(authority) => Ok(authority.to_owned()),
        None if several => Err(refused("there are two hosts")),
        None => match host.ok_or_else(missing)?.to_str() {
            Ok(host) if is_host(host) => Ok(host.to_owned()),
            _ => Err(refused("the host is none")),
        },
    }
}

/// Cookies may come in crumbs over HTTP/2 (RFC 9113 section 8.2.3); others expect one header.
fn join_cookies(headers: &mut HeaderMap) {
    use hyper::header::COOKIE;
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

fn codec_error(why: &str) -> LocalReply {
    LocalReply::bad_request(why, "http1.codec_error")
}

fn coding_refused(why: &str) -> LocalReply {
    let (status, details) = (StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding");
    LocalReply::text(status, "Not Implemented", details)
        .closing()
        .because(crate::telemetry::ResponseFlag::DownstreamProtocolError, why)
}

/// Whether the port of `authority`, if it has one, is the number of a port.
fn has_good_port(authority: &str) -> bool {
    // The colons of an IPv6 address are in brackets.
    let behind = authority.rsplit(']').next().unwrap_or_default();
    behind.split_once(':').is_none_or(|(_, port)| {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        digits && (port.is_empty() || port.parse::<u16>().is_ok())
    })
}

/// Scheme, host and path of any form of a target (RFC 9112 section 3.2).
fn split_target(
    method: &Method,
    target: String,
    headers: &HeaderMap,
    encrypted: bool,
) -> Result<(&'static str, String, String), LocalReply> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(LocalReply::bad_request(
            "there are two hosts",
            "http1.multiple_host",
        ));
    }
    let own = if encrypted { "https" } else { "http" };
    if *method == Method::CONNECT {
        let whole = target
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok());
        return Err(match whole {
            true => LocalReply::no_route().closing(),
            false => codec_error("CONNECT wants a host and a port"),
        });
    }
    let absolute = |scheme: &'static str| {
        let length = scheme.len() + 3;
        let begins = target
            .get(..scheme.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        (begins && target[scheme.len()..].starts_with("://")).then(|| (scheme, &target[length..]))
    };
    if let Some((scheme, rest)) = absolute("http").or_else(|| absolute("https")) {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let authority = rest[..end].rsplit('@').next().unwrap_or_default().to_owned();
        if !is_host(&authority) || !has_good_port(&authority) {
            return Err(codec_error("the target's host is none"));
        }
        let path = match &rest[end..] {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        return Ok((scheme, authority, path));
    }
    let options = target.starts_with('*') && *method == Method::OPTIONS;
    if !target.starts_with('/') && !options {
        return Err(codec_error("the target is neither a path nor a URI of HTTP's"));
    }
    match host.map(HeaderValue::to_str) {
        Some(Ok("")) => Ok((own, String::new(), target)),
        Some(Ok(host)) => match is_host(host) {
            true => Ok((own, host.to_owned(), target)),
            false => Err(LocalReply::bad_request(
                "the host header is no host",
                "http.invalid_authority",
            )),
        },
        Some(Err(_)) => Err(LocalReply::bad_request(
            "the host header is no text",
            "http.invalid_authority",
        )),
        None => Err(LocalReply::empty(StatusCode::BAD_REQUEST, "missing_host_header").closing()),
    }
}

/// The protocol that a request would go on with: several are one list, which is no protocol's name. HTTP/2 over
/// plain text is left out, as by Envoy: such a request is an ordinary one.
fn asked_upgrade(headers: &HeaderMap, allowed: &[std::sync::Arc<str>]) -> Result<Option<String>, LocalReply> {
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if !asked {
        return Ok(None);
    }
    let Some(protocol) = forwarding::joined(headers, &UPGRADE) else {
        return Ok(None);
    };
    if protocol.eq_ignore_ascii_case(b"h2c") {
        return Ok(None);
    }
    let protocol = String::from_utf8(protocol).unwrap_or_default();
    match allows(allowed, &protocol) {
        true => Ok(Some(protocol)),
        false => Err(upgrade_refused()),
    }
}

fn allows(allowed: &[std::sync::Arc<str>], protocol: &str) -> bool {
    allowed
        .iter()
        .any(|allowed| protocol.eq_ignore_ascii_case(allowed))
}

fn upgrade_refused() -> LocalReply {
    LocalReply::empty(StatusCode::FORBIDDEN, "upgrade_failed")
        .closing()
        .because(
            crate::telemetry::ResponseFlag::None,
            "the protocol it wants to switch to is not allowed",
        )
}

/// Whether the downstream waits for `100 Continue` before it sends the body.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    let mut expected = headers.get_all(EXPECT).iter();
    let first = expected.next().map(HeaderValue::as_bytes);
    first.is_some_and(|first| first.eq_ignore_ascii_case(b"100-continue")) && expected.next().is_none()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of_http2(authority: &str, fields: &[(&'static str, &str)]) -> Result<RequestHead, StatusCode> {
        let mut request = hyper::Request::new(());
        *request.uri_mut() = match authority {
            "" => "/a".parse().unwrap(),
            authority => format!("http://{authority}/a").parse().unwrap(),
        };
        for (name, value) in fields {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        from_http2(request.into_parts().0, false, &[]).map_err(|reply| reply.status)
    }

    #[test]
    fn the_host_of_http2_is_one() {
        let host = |authority: &str, fields: &[(&'static str, &str)]| {
            of_http2(authority, fields).map(|head| {
                assert!(!head.headers.contains_key(HOST), "it is said once");
                head.authority
            })
        };
        let bad = Err(StatusCode::BAD_REQUEST);
        assert_eq!(host("a", &[]), Ok("a".to_owned()));
        assert_eq!(host("a:80", &[("host", "b")]), Ok("a:80".to_owned()));
        assert_eq!(host("", &[("host", "b")]), Ok("b".to_owned()));
        assert_eq!(host("", &[]), bad);
        assert_eq!(host("user@a", &[]), bad);
        assert_eq!(host("", &[("host", "user@b")]), bad);
        assert_eq!(host("", &[("host", "b"), ("host", "c")]), bad);
    }

    #[test]
    fn several_upgrades_are_one_list_which_is_no_protocol() {
        let asked = |protocols: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            for protocol in protocols {
                headers.append(UPGRADE, HeaderValue::from_static(protocol));
            }
            asked_upgrade(&headers, &["websocket".into()]).map_err(|reply| reply.status)
        };
        assert_eq!(asked(&["WebSocket"]), Ok(Some("WebSocket".to_owned())));
        assert_eq!(asked(&["h2c"]), Ok(None));
        assert_eq!(asked(&["", "websocket", ""]), Ok(Some("websocket".to_owned())));
        assert_eq!(asked(&["h2c", ""]), Ok(None));
        assert_eq!(asked(&["websocket", "h2c"]), Err(StatusCode::FORBIDDEN));
        assert_eq!(asked(&["h2c", "websocket"]), Err(StatusCode::FORBIDDEN));
    }

    #[test]
    fn a_length_said_twice_is_refused_over_http2() {
        let length = ("content-length", "3");
        assert!(of_http2("a", &[length]).is_ok());
        assert_eq!(
            of_http2("a", &[length, length]).err(),
            Some(StatusCode::BAD_REQUEST)
        );
    }
}
