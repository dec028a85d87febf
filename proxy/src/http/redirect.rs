//! Where a redirect leads, and what a route makes of a request's path and host, as Envoy 1.40 does it.
//!
//! Pure. Nothing is encoded: a configuration says what is sent.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::forwarding::{append, joined};
use crate::model::route::{PathRewrite, Redirect, RedirectPath, RouteMatch};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// A request that is redirected or rewritten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requested<'a> {
    /// `:scheme`.
    pub(super) scheme: &'a str,
    /// `:authority`.
    pub(super) authority: &'a str,
    /// `:path`, with its query.
    pub(super) target: &'a str,
}

/// The `location` of a redirect.
pub(super) fn location(redirect: &Redirect, matches: &RouteMatch, requested: &Requested<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(requested.scheme);
    let host = redirect
        .host
        .as_deref()
        .unwrap_or_else(|| kept_host(redirect, requested, scheme));
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let target = redirected_target(redirect, matches, requested.target);
    // What a path without its slash would become of the host is nobody's intention.
    let slash = if target.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}{port}{slash}{target}")
}

/// The request's own host. Its port goes where there is a new one, or a new scheme whose default it is not.
fn kept_host<'a>(redirect: &Redirect, requested: &Requested<'a>, scheme: &str) -> &'a str {
    let authority = requested.authority;
    let name = authority.rfind(']').unwrap_or_default();
    let Some(colon) = authority[name..].find(':').map(|colon| name + colon) else {
        return authority;
    };
    let default = match requested.scheme {
        "http" => "80",
        "https" => "443",
        _ => "",
    };
    let stale = scheme != requested.scheme && &authority[colon + 1..] == default;
    if redirect.port.is_some() || stale {
        &authority[..colon]
    } else {
        authority
    }
}

fn redirected_target(redirect: &Redirect, matches: &RouteMatch, target: &str) -> String {
    let (_, query) = split_query(target);
    let query = if redirect.strip_query { "" } else { query };
    match &redirect.path {
        // It brings its own query, which stays whatever becomes of the request's.
        Some(RedirectPath::Path(path)) if path.contains('?') => path.to_string(),
        Some(RedirectPath::Path(path)) => format!("{path}{query}"),
        Some(RedirectPath::Rewrite(rewrite)) => {
            let rewritten = rewritten_target(rewrite, matches, target);
            stripped(redirect, rewritten.unwrap_or_else(|| target.to_owned()))
        }
        None => stripped(redirect, target.to_owned()),
    }
}

fn stripped(redirect: &Redirect, mut target: String) -> String {
    if redirect.strip_query {
        target.truncate(split_query(&target).0.len());
    }
    target
}

/// A target after a route's rewrite, which sees the path alone. What it was is said in
/// `x-envoy-original-path`, even if it is the same. None where nothing would be left of the path: Envoy leaves
/// it as it is then, and says nothing.
pub(super) fn rewritten_target(rewrite: &PathRewrite, matches: &RouteMatch, target: &str) -> Option<String> {
    let (path, query) = split_query(target);
    let rewritten = match rewrite {
        PathRewrite::Prefix(with) => {
            let rest = path.get(matches.path.matched_length(path)..).unwrap_or_default();
            format!("{with}{rest}")
        }
        PathRewrite::Regex(regex) => regex.rewrite(path).into_owned(),
    };
    (!rewritten.is_empty()).then(|| rewritten + query)
}

/// The query keeps its question mark.
fn split_query(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

/// Says in a request that a route gave it another host than `host`, the one it came with: in
/// `x-envoy-original-host`, and where the route `appends` in `x-forwarded-host` too, unless that ends with it.
///
/// Not for the rewrite of a weighted cluster: that comes first, and Envoy does not tell of it. The route's
/// own wins over it, and so `host` is the cluster's then.
pub(super) fn tell_original_host(headers: &mut HeaderMap, host: &str, appends: bool) {
    if appends {
        let said = joined(headers, &X_FORWARDED_HOST).unwrap_or_default();
        let last = said.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        if last.trim_ascii() != host.as_bytes() {
            append(headers, X_FORWARDED_HOST, ",", host);
        }
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(ORIGINAL_HOST, host);
    }
}

#[cfg(test)]
mod tests {
    //! Every expectation was measured on Envoy 1.40.0.

    use super::*;
    use crate::model::rewrite::RegexRewrite;
    use crate::model::route::PathMatch;

    const NONE: Redirect = Redirect {
        status: 301,
        scheme: None,
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };

    /// The redirect of `scheme://authority target`.
    fn led(redirect: &Redirect, matches: &PathMatch, requested: &str) -> String {
        let (scheme, rest) = requested.split_once("://").unwrap();
        let (authority, target) = rest.split_at(rest.find('/').unwrap());
        let requested = Requested {
            scheme,
            authority,
            target,
        };
        location(redirect, &RouteMatch::path(matches.clone()), &requested)
    }

    fn any() -> PathMatch {
        PathMatch::Prefix("/".into())
    }

    #[test]
    fn the_port_stays_unless_the_scheme_says_otherwise() {
        let scheme = |scheme: &str| Redirect {
            scheme: Some(scheme.into()),
            ..NONE
        };
        for (to, requested, expected) in [
            ("https", "http://h/a/b?q=1", "https://h/a/b?q=1"),
            ("https", "http://h:80/a/b", "https://h/a/b"),
            ("https", "http://h:443/a", "https://h:443/a"),
            ("https", "http://h:8080/a?x", "https://h:8080/a?x"),
            ("https", "http://[::1]:80/a/b", "https://[::1]/a/b"),
            ("https", "https://[::1]/a", "https://[::1]/a"),
            ("https", "https://h:443/a/b?", "https://h:443/a/b?"),
            ("https", "https://h:80/A%20\"<b", "https://h:80/A%20\"<b"),
            ("ftp", "https://h:443/a/b?", "ftp://h/a/b?"),
            ("ftp", "https://h:80/a", "ftp://h:80/a"),
        ] {
            assert_eq!(led(&scheme(to), &any(), requested), expected, "{requested}");
        }
        for requested in [
            "http://h:80/a?x",
            "https://h:443/a",
            "http://h:443/",
            "https://[::1]:80/",
        ] {
            assert_eq!(led(&NONE, &any(), requested), requested);
        }
    }

    #[test]
    fn a_host_brings_its_port_or_none() {
        let redirect = |host: Option<&str>, port, scheme: Option<&str>| Redirect {
            host: host.map(Into::into),
            port,
            scheme: scheme.map(Into::into),
            ..NONE
        };
        for (redirect, requested, expected) in [
            (
                redirect(Some("new.host"), None, None),
                "http://h:8080/a?x",
                "http://new.host/a?x",
            ),
            (
                redirect(Some("new.host:99"), None, None),
                "https://h:80/a",
                "https://new.host:99/a",
            ),
            (
                redirect(Some("[::1]"), None, None),
                "http://[::1]:80/a/b",
                "http://[::1]/a/b",
            ),
            (
                redirect(None, Some(8443), None),
                "http://h/a/b?q=1",
                "http://h:8443/a/b?q=1",
            ),
            (
                redirect(None, Some(8443), None),
                "http://[::1]:80/a/b",
                "http://[::1]:8443/a/b",
            ),
            (redirect(None, Some(80), None), "http://h:443/a", "http://h:80/a"),
            (
                redirect(None, Some(443), Some("https")),
                "http://h:80/a",
                "https://h:443/a",
            ),
            (
                redirect(Some("n"), None, Some("https")),
                "http://h:443/a",
                "https://n/a",
            ),
            (
                redirect(Some("n"), Some(1), Some("https")),
                "http://h:443/a",
                "https://n:1/a",
            ),
        ] {
            assert_eq!(led(&redirect, &any(), requested), expected, "{requested}");
        }
    }

    #[test]
    fn a_path_is_replaced_or_rewritten_and_the_query_follows() {
        let to = |path: &str| RedirectPath::Path(path.into());
        let prefix = |with: &str| RedirectPath::Rewrite(PathRewrite::Prefix(with.into()));
        let regex = |from: &str, with: &str| {
            RedirectPath::Rewrite(PathRewrite::Regex(RegexRewrite::new(from, with).unwrap()))
        };
        let (a, slash, exact) = (
            PathMatch::Prefix("/a".into()),
            PathMatch::Prefix("/a/".into()),
            PathMatch::Path("/a".into()),
        );
        for (path, strip_query, matches, target, expected) in [
            (Some(to("/new")), false, &a, "/a/b?q=1", "/new?q=1"),
            (Some(to("/new")), false, &a, "/a/b?", "/new?"),
            (Some(to("new")), false, &a, "/a?q", "/new?q"),
            (Some(to("@new/")), false, &a, "/a?q", "/@new/?q"),
            (Some(to("?new")), false, &a, "/a?q", "/?new"),
            (Some(to("/new?x=y")), false, &a, "/a/b?q=1", "/new?x=y"),
            (Some(to("/new?x=y")), true, &a, "/a/b?q=1", "/new?x=y"),
            (Some(to("/new#frag")), false, &a, "/a?x", "/new#frag?x"),
            (Some(to("/new path")), false, &a, "/a", "/new path"),
            (Some(prefix("/b")), false, &a, "/a/b?q=1", "/b/b?q=1"),
            (Some(prefix("/b")), false, &a, "/a/b?", "/b/b?"),
            (Some(prefix("/b?z=1")), false, &a, "/a/b?q=1", "/b?z=1/b?q=1"),
            (Some(prefix("/")), false, &slash, "/a/b?q=1", "/b?q=1"),
            (Some(prefix("/b")), false, &exact, "/a?x", "/b?x"),
            (Some(prefix("/b")), true, &a, "/a/b?q=1", "/b/b"),
            (
                Some(regex("^/a/(.*)$", r"/b/\1/c")),
                false,
                &a,
                "/a/b?q=1",
                "/b/b/c?q=1",
            ),
            (Some(regex("^/a/(.*)$", r"/b/\1/c")), false, &a, "/a?x", "/a?x"),
            (Some(regex("a", "x")), false, &a, "/a/b?q=a", "/x/b?q=a"),
            (Some(regex("^/a$", "")), false, &a, "/a?x", "/a?x"),
            (Some(regex("^/a", "b")), false, &a, "/a/c?x", "/b/c?x"),
            (Some(prefix("b")), true, &a, "/a/c?x", "/b/c"),
            (Some(regex("^/a$", "")), true, &a, "/a?x", "/a"),
            (None, true, &a, "/a/b?q=1", "/a/b"),
            (None, true, &a, "/a/b?", "/a/b"),
        ] {
            let redirect = Redirect {
                path,
                strip_query,
                ..NONE
            };
            let found = led(&redirect, matches, &format!("http://h{target}"));
            assert_eq!(found, format!("http://h{expected}"), "{redirect:?}");
        }
    }

    #[test]
    fn a_path_is_rewritten_as_far_as_it_matched() {
        let rewritten = |matches: PathMatch, with: &str, target: &str| {
            let rewrite = PathRewrite::Prefix(with.into());
            rewritten_target(&rewrite, &RouteMatch::path(matches), target).unwrap()
        };
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        assert_eq!(rewritten(prefix("/a"), "/b", "/a/b?q=a"), "/b/b?q=a");
        assert_eq!(rewritten(prefix("/a"), "/b?z", "/a/b?q=a"), "/b?z/b?q=a");
        assert_eq!(rewritten(prefix("/a/"), "/", "/a/"), "/");
        assert_eq!(rewritten(prefix("/a"), "b", "/a/b"), "b/b");
    }

    #[test]
    fn a_rewrite_that_leaves_nothing_is_none() {
        let any = RouteMatch::path(any());
        for pattern in ["^/a$", ".*"] {
            let nothing = PathRewrite::Regex(RegexRewrite::new(pattern, "").unwrap());
            assert_eq!(rewritten_target(&nothing, &any, "/a?x"), None);
        }
    }

    #[test]
    fn the_host_before_a_rewrite_is_told() {
        for (came, appends, expected) in [
            (&[][..], true, Some("h")),
            (&["p"], true, Some("p,h")),
            (&["p", "h"], true, Some("p,h")),
            (&["x,h"], true, Some("x,h")),
            (&["p"], false, Some("p")),
            (&[], false, None),
        ] {
            let mut headers = HeaderMap::new();
            for value in came {
                headers.append(X_FORWARDED_HOST, HeaderValue::from_static(value));
            }
            tell_original_host(&mut headers, "h", appends);
            let found = joined(&headers, &X_FORWARDED_HOST).map(|host| String::from_utf8(host).unwrap());
            assert_eq!(found.as_deref(), expected, "{came:?} {appends}");
            assert_eq!(headers[ORIGINAL_HOST], "h");
        }
    }
}
