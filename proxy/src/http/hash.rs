//! A request's hash, by which ring hash and Maglev choose an endpoint (Envoy's `HashPolicyImpl`), as Envoy
//! 1.40 makes it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::header::{COOKIE, HeaderMap, HeaderValue};
use twox_hash::XxHash64;

use crate::model::rewrite::RegexRewrite;
use crate::model::route::{HashPolicy, HashSource};

/// What of a request is hashed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hashed<'a> {
    /// `:method`.
    pub(super) method: &'a str,
    /// `:authority`, whatever the `host` header says.
    pub(super) authority: &'a str,
    /// `:path`, with its query.
    pub(super) target: &'a str,
    /// The others.
    pub(super) headers: &'a HeaderMap,
    /// The trusted downstream address.
    pub(super) source: Option<IpAddr>,
    /// Both ends of the connection, of which the cookies that are made here are made; none on a unix socket.
    pub(super) connection: Option<(SocketAddr, SocketAddr)>,
}

/// What a request is balanced by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestHash {
    /// None where nothing was there to be hashed: any endpoint will do.
    pub(super) hash: Option<u64>,
    /// To be appended to the response, as `set-cookie`.
    pub(super) set_cookies: Vec<HeaderValue>,
}

/// The hash of a request. An earlier part of it is rotated by a bit before a later one comes in.
pub(super) fn request_hash(policies: &[HashPolicy], request: &Hashed<'_>) -> RequestHash {
    let mut made = RequestHash::default();
    for policy in policies {
        let part = match &policy.source {
            HashSource::Header { name, rewrite } => header(request, name, rewrite.as_ref()),
            HashSource::Cookie { name, ttl, path } => {
                let value = cookie(request.headers, name);
                match (value.filter(|value| !value.is_empty()), ttl) {
                    (Some(value), _) => Some(xxhash64(value, 0)),
                    (None, Some(ttl)) => Some(new_cookie(&mut made, request, name, *ttl, path)),
                    (None, None) => None,
                }
            }
            HashSource::QueryParameter(name) => {
                query_parameter(request.target, name).map(|value| xxhash64(value.as_bytes(), 0))
            }
            HashSource::SourceIp => request
                .source
                .map(|source| xxhash64(source.to_string().as_bytes(), 0)),
        };
        if let Some(part) = part {
            made.hash = Some(made.hash.unwrap_or_default().rotate_left(1) ^ part);
        }
        if policy.terminal && made.hash.is_some() {
            break;
        }
    }
    made
}

/// Of all values, sorted: the hash of each is the seed of the next.
fn header(request: &Hashed<'_>, name: &str, rewrite: Option<&RegexRewrite>) -> Option<u64> {
    let mut values: Vec<Cow<'_, [u8]>> = match name {
        ":method" => vec![request.method.as_bytes().into()],
        ":authority" | "host" => vec![request.authority.as_bytes().into()],
        ":path" => vec![request.target.as_bytes().into()],
        name => {
            let values = request.headers.get_all(name).iter();
            values.map(|value| value.as_bytes().into()).collect()
        }
    };
    if let Some(rewrite) = rewrite {
        for value in &mut values {
            let text = String::from_utf8_lossy(value);
            *value = rewrite.rewrite(&text).into_owned().into_bytes().into();
        }
    }
    values.sort_unstable();
    let hash = |seed: Option<u64>, value: &Cow<'_, [u8]>| Some(xxhash64(value, seed.unwrap_or_default()));
    values.iter().fold(None, hash)
}

/// The first cookie of this name, as it stands there, but for quotes around it.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let cookies = headers.get_all(COOKIE).iter();
    cookies
        .flat_map(|header| header.as_bytes().split(|byte| *byte == b';'))
        .find_map(|cookie| {
            let start = cookie.iter().position(|byte| *byte != b' ')?;
            let value = cookie[start..]
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")?;
            let unquoted = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            Some(unquoted.unwrap_or(value))
        })
}

/// Makes a cookie out of the connection's ends, so that all requests of one get the same, and hashes it.
fn new_cookie(made: &mut RequestHash, request: &Hashed<'_>, name: &str, ttl: Duration, path: &str) -> u64 {
    let ends = match request.connection {
        Some((remote, local)) => format!("{remote}{local}"),
        None => String::new(),
    };
    let value = format!("{:016x}", xxhash64(ends.as_bytes(), 0));
    let age = match ttl.as_secs() {
        0 => String::new(),
        seconds => format!("; Max-Age={seconds}"),
    };
    let path = if path.is_empty() {
        String::new()
    } else {
        format!("; Path={path}")
    };
    let cookie = format!("{name}=\"{value}\"{age}{path}; HttpOnly");
    made.set_cookies.extend(HeaderValue::from_str(&cookie));
    xxhash64(value.as_bytes(), 0)
}

/// The first parameter of this name; neither is decoded. Without a value it is empty.
fn query_parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query
        .split('&')
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn xxhash64(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

#[cfg(test)]
mod tests {
    //! Which bytes are hashed was measured on Envoy 1.40.0, by its choices in a ring.

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn made(policies: &[HashPolicy], target: &str, lines: &[(&'static str, &str)]) -> RequestHash {
        let request = Hashed {
            method: "GET",
            authority: "h",
            target,
            headers: &headers(lines),
            source: Some(IpAddr::from([127, 0, 0, 1])),
            connection: Some((
                SocketAddr::from(([127, 0, 0, 1], 45_190)),
                SocketAddr::from(([127, 0, 0, 1], 55_103)),
            )),
        };
        request_hash(policies, &request)
    }

    fn policy(source: HashSource) -> HashPolicy {
        HashPolicy {
            source,
            terminal: false,
        }
    }

    fn by_header(name: &str) -> HashPolicy {
        policy(HashSource::Header {
            name: name.into(),
            rewrite: None,
        })
    }

    fn by_cookie(ttl: Option<u64>, path: &str) -> HashPolicy {
        policy(HashSource::Cookie {
            name: "sid".into(),
            ttl: ttl.map(Duration::from_secs),
            path: path.into(),
        })
    }

    fn of(text: &str) -> Option<u64> {
        Some(xxhash64(text.as_bytes(), 0))
    }

    #[test]
    fn a_header_is_hashed_whatever_the_order_of_its_values() {
        let hash = |lines: &[(&'static str, &str)]| made(&[by_header("k")], "/", lines).hash;
        assert_eq!(hash(&[]), None);
        assert_eq!(hash(&[("k", "")]), of(""));
        assert_eq!(hash(&[("k", "v")]), of("v"));
        let both = Some(xxhash64(b"z", xxhash64(b"b", 0)));
        assert_eq!(hash(&[("k", "z"), ("k", "b")]), both);
        assert_eq!(hash(&[("k", "b"), ("k", "z")]), both);
        for (name, expected) in [
            (":authority", "h"),
            ("host", "h"),
            (":path", "/x?q"),
            (":method", "GET"),
        ] {
            assert_eq!(made(&[by_header(name)], "/x?q", &[]).hash, of(expected), "{name}");
        }
        let rewritten = policy(HashSource::Header {
            name: "k".into(),
            rewrite: Some(RegexRewrite::new("^/([a-z]+)/.*", r"\1").unwrap()),
        });
        assert_eq!(
            made(std::slice::from_ref(&rewritten), "/", &[("k", "/abc/1")]).hash,
            of("abc")
        );
        assert_eq!(made(&[rewritten], "/", &[("k", "/ABC/1")]).hash, of("/ABC/1"));
    }

    #[test]
    fn a_cookie_is_hashed_without_its_quotes() {
        for (cookies, expected) in [
            (&["a=b; sid=v; c=d"][..], Some("v")),
            (&["sid=\"v\""], Some("v")),
            (&["sid=\"v"], Some("\"v")),
            (&["sid=\""], Some("\"")),
            (&["sid=\"\"v\"\""], Some("\"v\"")),
            (&["sid=\"v\" ;x=1"], Some("\"v\" ")),
            (&["sid=a; sid=b"], Some("a")),
            (&["sid=a", "sid=b"], Some("a")),
            (&["x=1;sid=v"], Some("v")),
            (&["sid=v ;x=1"], Some("v ")),
            (&["sid= v"], Some(" v")),
            (&["sid=v=1"], Some("v=1")),
            (&[";; sid=v"], Some("v")),
            (&["sid; sid=v"], Some("v")),
            (&["sid=; sid=v"], None),
            (&["sid =v"], None),
            (&["SID=v"], None),
            (&["x=1,sid=v"], None),
            (&["x=1;\tsid=v"], None),
        ] {
            let lines: Vec<_> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            let made = made(&[by_cookie(None, "")], "/", &lines);
            assert_eq!(made.hash, expected.and_then(of), "{cookies:?}");
            assert!(made.set_cookies.is_empty());
        }
    }

    #[test]
    fn a_cookie_is_made_where_it_has_an_age() {
        for (ttl, path, cookie) in [
            (10, "", "sid=\"ad58b24d87bdcf9c\"; Max-Age=10; HttpOnly"),
            (0, "/p", "sid=\"ad58b24d87bdcf9c\"; Path=/p; HttpOnly"),
        ] {
            for lines in [&[][..], &[("cookie", "sid=")], &[("cookie", "sid=\"\"")]] {
                let made = made(&[by_cookie(Some(ttl), path)], "/", lines);
                assert_eq!(made.hash, of("ad58b24d87bdcf9c"));
                assert_eq!(made.set_cookies, [cookie]);
            }
        }
        let there = made(&[by_cookie(Some(10), "")], "/", &[("cookie", "sid=x")]);
        assert_eq!((there.hash, there.set_cookies.len()), (of("x"), 0));
    }

    #[test]
    fn a_query_parameter_is_hashed_as_it_stands() {
        for (query, expected) in [
            ("?a=b&id=v&id=z", Some("v")),
            ("?id=%41", Some("%41")),
            ("?id=a+b", Some("a+b")),
            ("?id&x=1", Some("")),
            ("?id=", Some("")),
            ("?id=v;x", Some("v;x")),
            ("?id=v=3", Some("v=3")),
            ("?ID=v", None),
            ("?%69d=v", None),
            ("?x?id=v", None),
            ("", None),
        ] {
            let by_id = policy(HashSource::QueryParameter("id".into()));
            let hash = made(&[by_id], &format!("/{query}"), &[]).hash;
            assert_eq!(hash, expected.and_then(of), "{query}");
        }
    }

    #[test]
    fn the_parts_are_combined_in_their_order() {
        let (k, j) = (of("v").unwrap(), of("w").unwrap());
        let both = [by_header("k"), by_header("j")];
        let lines = [("k", "v"), ("j", "w")];
        assert_eq!(made(&both, "/", &lines).hash, Some(k.rotate_left(1) ^ j));
        assert_eq!(made(&both, "/", &lines[1..]).hash, Some(j));
        assert_ne!(made(&[by_header("k"), by_header("k")], "/", &lines).hash, Some(0));
        let mut terminal = both;
        terminal[0].terminal = true;
        assert_eq!(made(&terminal, "/", &lines).hash, Some(k));
        assert_eq!(made(&terminal, "/", &lines[1..]).hash, Some(j));
        let all = [
            by_header("k"),
            by_cookie(None, ""),
            policy(HashSource::QueryParameter("id".into())),
            policy(HashSource::SourceIp),
        ];
        let expected = ["v", "c", "q", "127.0.0.1"]
            .into_iter()
            .fold(0_u64, |hash, part| {
                hash.rotate_left(1) ^ xxhash64(part.as_bytes(), 0)
            });
        let found = made(&all, "/?id=q", &[("k", "v"), ("cookie", "sid=c")]).hash;
        assert_eq!(found, Some(expected));
    }
}
