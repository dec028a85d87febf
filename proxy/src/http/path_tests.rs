//! Every expectation was measured on Envoy 1.40.0.

use hyper::header::HeaderValue;

use super::*;

const NORMALIZE: Normalization = Normalization {
    normalize_path: true,
    merge_slashes: false,
    path_with_escaped_slashes: PathWithEscapedSlashes::KeepUnchanged,
    headers_with_underscores: HeadersWithUnderscores::Allow,
    strip_host_port: StripHostPort::No,
    strip_trailing_host_dot: false,
};
const MERGE: Normalization = Normalization {
    normalize_path: false,
    merge_slashes: true,
    ..NORMALIZE
};
const BOTH: Normalization = Normalization {
    merge_slashes: true,
    ..NORMALIZE
};
const FORWARD: Normalization = Normalization {
    path_with_escaped_slashes: PathWithEscapedSlashes::UnescapeAndForward,
    ..BOTH
};

/// Dot segments, percent-encoding, characters that are encoded.
const CANONICAL: &[(&str, &str)] = &[
    ("/./", "/"),
    ("/a/./b", "/a/b"),
    ("/a/../b", "/b"),
    ("/../a", "/a"),
    ("/a/..", "/"),
    ("/a/.", "/a/"),
    ("/a/b/../../..", "/"),
    ("/a//../b", "/a/b"),
    ("/a/b//../c", "/a/b/c"),
    ("/a/..//b", "//b"),
    ("/a/../..//b", "//b"),
    ("/.//b", "//b"),
    ("//a", "//a"),
    ("/%2e%2e/a", "/a"),
    ("/a/%2e/b", "/a/b"),
    ("/a/%2E%2E/b", "/b"),
    ("/a/.%2e/b", "/b"),
    ("/a/%2e.", "/"),
    ("/a/%2e%2e/%2e%2e/%2e%2e/b", "/b"),
    ("/a/...", "/a/..."),
    ("/a/..b", "/a/..b"),
    ("/a/.b/", "/a/.b/"),
    ("/a;b/../c", "/c"),
    ("/%41%42", "/AB"),
    ("/%7e%2d%5f%2e", "/~-_."),
    ("/a.%2eb", "/a..b"),
    ("/%2f%2F%5c%5C", "/%2f%2F%5c%5C"),
    ("/a\\b", "/a/b"),
    ("/a\\..\\b", "/b"),
    ("/%c3%a9%C3%A9", "/%c3%a9%C3%A9"),
    ("/%zz%", "/%zz%"),
    ("/a%2", "/a%2"),
    ("/%25%3f%23%20%22%3c%7b", "/%25%3f%23%20%22%3c%7b"),
    ("/%01%1f%7f%80%ff", "/%01%1f%7f%80%ff"),
    (
        "/%21%24%26%27%28%29%2a%2b%2c%3b%3d%3a%40",
        "/%21%24%26%27%28%29%2a%2b%2c%3b%3d%3a%40",
    ),
    ("/\"<>`{}|^'", "/%22%3C%3E%60%7B%7D%7C%5E'"),
    ("/!$&'()*+,-.:;=@[]_~", "/!$&'()*+,-.:;=@[]_~"),
    ("/a?b/../c//d%41%2f", "/a?b/../c//d%41%2f"),
    ("/a/../b?x", "/b?x"),
    ("/a/b/..?q", "/a/?q"),
    ("/.%2E?..", "/?.."),
    ("/a/..%2fb", "/a/..%2fb"),
    ("/a/%2e%2e%2fb", "/a/..%2fb"),
    ("/%e4%b8%ad/../x", "/x"),
    // Not an origin form.
    ("*", "*"),
    ("?q", "?q"),
];

/// Parameters of dot segments: how some servers spell `..` so that proxies do not see it.
const PARAMETERS: &[(&str, &str)] = &[
    ("/.;", "/"),
    ("/a/..;/b", "/b"),
    ("/a/..;x/b", "/b"),
    ("/a/.;x=1/b", "/a/b"),
    ("/a/..;x", "/"),
    ("/a/..;?q", "/?q"),
    ("/a/..;;/b", "/b"),
    ("/a/..;..", "/"),
    ("/a/..;x//b", "//b"),
    ("/a/.;.;/b", "/a/b"),
    ("/..;/..;/a", "/a"),
    ("/a/..;%2f/b", "/b"),
    ("/a/..;%00/b", "/b"),
    ("/a/..;{\\..\\b", "/"),
    ("/a/.;\\..\\b", "/a/"),
    ("/a//..;x/b", "/a/b"),
    ("/a;x/..;y/b", "/b"),
    // None of these is one.
    ("/a/b\\..;x/c", "/a/b/..;x/c"),
    ("/a/%2e%2e;/b", "/a/..;/b"),
    ("/a/.%2e;x/b", "/a/..;x/b"),
    ("/a/..%3b/b", "/a/..%3b/b"),
    ("/a/...;/b", "/a/...;/b"),
    ("/a/;../b", "/a/;../b"),
    ("/a/;/b;", "/a/;/b;"),
    ("/a/..,/b", "/a/..,/b"),
];

/// Percent signs that begin no sequence, and would after a decoding.
const STRAY: &[(&str, &str)] = &[
    ("/%%34%31", "/%2541"),
    ("/%%341", "/%2541"),
    ("/%4%31", "/%2541"),
    ("/%%41", "/%A"),
    ("/%%34g", "/%4g"),
    ("/%%34%67", "/%4g"),
    ("/%%2e", "/%."),
    ("/%%32%65", "/%252e"),
    ("/%%32e", "/%252e"),
    ("/%2%65", "/%252e"),
    ("/%%25", "/%%25"),
    ("/%%%34%31", "/%%2541"),
    ("/%%30%30", "/%2500"),
    ("/%%300", "/%2500"),
    ("/%0%30", "/%2500"),
    ("/%%2%65", "/%%252e"),
    ("/a/%%2e%2e/", "/a/%../"),
    ("/%/%2e%2e/%2e", "/"),
    ("/%a/../b%2e", "/b."),
    ("/%2%2e", "/%2."),
    ("/%2./x", "/%2./x"),
    ("/a/%%2E./", "/a/%../"),
    ("/%%37%65", "/%257e"),
];

/// Random pieces, with everything switched on.
const RANDOM: &[(&str, &str)] = &[
    ("/%00%2e%65;%2e%2e|%4", "400"),
    ("/%00%4%2E%zz%2E/%41%zz", "400"),
    ("/%00;.%34.%2f4%2E", "400"),
    ("/%25;%2E..\\%00%65%65", "400"),
    ("/%2E%25ba;?...", "/.%25ba;?..."),
    ("/%2E%7e%2f%414%41%34\\", "/.~/A4A4/"),
    ("/%2E4/%2f%00/", "400"),
    ("/%2E=/%65=..%2e/%2f", "/.=/e=.../"),
    ("/%2E|%2e%00./|", "400"),
    ("/%2f%34......", "/4......"),
    ("/%2f{?%zz?=%zz.", "/%7B?%zz?=%zz."),
    ("/%31a%5C..%34///", "/1a/..4/"),
    ("/%31b%31%2E/|=", "/1b1./%7C="),
    ("/%34%2E%=\\%7e%4", "/4.%=/~%4"),
    ("/%34%2e%41%4%2E=%.%00", "400"),
    ("/%34%2fa%41%41%2f.%2f", "/4/aAA/"),
    ("/%34;.%%25.%2f4", "/4;.%%25./4"),
    ("/%34\\%4%2f%5C;", "/4/%4/;"),
    ("/%4%7e%41%34%7e=", "/%4~A4~="),
    ("/%41;?/%25%2e", "/A;?/%25%2e"),
    ("/%41\\%2e%7ea{4", "/A/.~a%7B4"),
    ("/%41{%00/=?%4", "400"),
    ("/%41{%5C%25?.%2f", "/A%7B/%25?.%2f"),
    ("/%44%65?/%00;a", "/De?/%00;a"),
    ("/%5Cab%25=%%7e", "/ab%25=%~"),
    ("/%5C{={..%00{~", "400"),
    ("/%65%00;/{%%34{;", "400"),
    ("/%65%7e%00/{%41=%34", "400"),
    ("/%65b%2f%%25//=", "/eb/%%25/="),
    ("/%7e.%7e;%zz....", "/~.~;%zz...."),
    ("/%7e.a%4%zz/%34%31%2e", "/~.a%4%zz/41."),
    ("/%7e/%4%2f%31a", "/~/%4/1a"),
    ("/%7e|%25%2E%2E", "/~%7C%25.."),
    ("/%zz/%2e%.~..4\\", "/%zz/.%.~..4/"),
    ("/.%00=a%2E%254%00?", "400"),
    ("/./%2E%25/%31|/", "/.%25/1%7C/"),
    ("/./~|.{%00%5C", "400"),
    ("//%25{a4%zz%00%2e%31", "400"),
    ("//%7e%7e%7e%2E;", "/~~~.;"),
    ("//..%zza%31%65", "/..%zza1e"),
    ("//..\\%7e/%2e%00", "400"),
    ("///%25%%4%2e%2e", "/%25%%4.."),
    ("//b/%7ea\\b%2E|", "/b/~a/b.%7C"),
    ("/4\\%4%7e/%2E%00", "400"),
    ("/;%00?4/%2f%2E%00", "400"),
    ("/;%5C.?%zz;%zz", "/;/?%zz;%zz"),
    ("/;%65/?.~%00.", "/;e/?.~%00."),
    ("/;%7e.%25%31a/=/", "/;~.%251a/=/"),
    ("/=./%2f%34%2e..%zz", "/=./4...%zz"),
    ("/=a%2E%4/%zz\\", "/=a.%4/%zz/"),
    ("/\\;a~|%5C~%25", "/;a~%7C/~%25"),
    ("/\\?%7e%34%2f{", "//?%7e%34%2f{"),
    ("/a%00b%2e/{%5C", "400"),
    ("/a{%25%2E%2f%zzb%00", "400"),
    ("/b%2f.%2E..;%2e%34", "/b/....;.4"),
    ("/b4~%41%2eb%2f", "/b4~A.b/"),
    ("/{?|%5C%2e%4%zz%2e%41", "/%7B?|%5C%2e%4%zz%2e%41"),
    ("/{\\%31%31%00%2E\\", "400"),
    ("/|{{%00%31..4b", "400"),
    ("/~%2e%31%65%25=%25b", "/~.1e%25=%25b"),
];

fn result(target: &str, options: &Normalization) -> String {
    match normalize(target, options) {
        PathOutcome::Unchanged => target.to_owned(),
        PathOutcome::Changed(path) => {
            assert_ne!(path, target, "reported as changed");
            path
        }
        PathOutcome::Reject => "400".to_owned(),
        PathOutcome::Redirect(path) => format!("307 {path}"),
    }
}

#[test]
fn paths_are_normalized_as_by_envoy() {
    for (target, expected) in CANONICAL.iter().chain(PARAMETERS).chain(STRAY) {
        assert_eq!(result(target, &NORMALIZE), *expected, "{target}");
    }
    for (target, expected) in RANDOM {
        assert_eq!(result(target, &FORWARD), *expected, "{target}");
    }
    assert_eq!(result("/a/..;%2fq/b", &FORWARD), "/q/b");
    for target in ["/%00", "/a%00b", "/a/../%00"] {
        assert_eq!(result(target, &NORMALIZE), "400", "{target}");
        assert_eq!(result(target, &MERGE), target);
    }
}

#[test]
fn exactly_the_unreserved_characters_are_decoded() {
    for byte in 1..=u8::MAX {
        for encoded in [format!("/x%{byte:02x}y"), format!("/x%{byte:02X}y")] {
            let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let expected = if unreserved {
                format!("/x{}y", char::from(byte))
            } else {
                encoded.clone()
            };
            assert_eq!(result(&encoded, &NORMALIZE), expected);
        }
    }
}

#[test]
fn a_normal_path_is_found_to_be_one_without_a_copy() {
    for target in [
        "/",
        "/a/b.c?d=%41/..",
        "/.well-known/x",
        "/a%20b%2f",
        "/..a/...",
        "/%zz/%4",
        "//a//",
    ] {
        assert_eq!(normalize(target, &NORMALIZE), PathOutcome::Unchanged);
        assert!(is_canonical(target.split('?').next().unwrap()), "{target}");
    }
}

#[test]
fn fragments_are_refused_whatever_is_configured() {
    for options in [&Normalization::default(), &NORMALIZE] {
        for target in ["/a#b", "/a?b#c", "/#"] {
            assert_eq!(normalize(target, options), PathOutcome::Reject);
        }
        assert_eq!(normalize("/a%23b", options), PathOutcome::Unchanged);
    }
}

#[test]
fn slashes_are_merged_after_normalization() {
    let table = [
        ("/a", "/a", "/a"),
        ("//", "//", "//"),
        ("//a", "/a", "/a"),
        ("///a///b///", "/a/b/", "/a/b/"),
        ("/a//b?c//d", "/a/b?c//d", "/a/b?c//d"),
        ("/a%2f/b", "/a%2f/b", "/a%2f/b"),
        ("//?a", "//?a", "//?a"),
        ("/a/..//b", "/a/../b", "/b"),
        ("/a//../b", "/a/../b", "/a/b"),
        ("/a/%2e%2e//b", "/a/%2e%2e/b", "/b"),
        ("//../a", "/../a", "/a"),
        ("/a/\\b", "/a/\\b", "/a/b"),
        ("/.//", "/./", "//"),
        ("/a/.//b/", "/a/./b/", "/a/b/"),
    ];
    for (target, merged, both) in table {
        assert_eq!(result(target, &MERGE), merged, "{target}");
        assert_eq!(result(target, &BOTH), both, "{target}");
    }
}

#[test]
fn escaped_slashes_are_treated_as_configured() {
    // What is forwarded or redirected to, without and with normalization and merging.
    let table = [
        ("/a%2fb", "/a/b", "/a/b"),
        ("/a%2Fb", "/a/b", "/a/b"),
        ("/a%5cb", "/a\\b", "/a/b"),
        ("/a%5Cb", "/a\\b", "/a/b"),
        ("/a%2f%2fb", "/a//b", "/a/b"),
        ("/a/%2e%2e%2fb", "/a/%2e%2e/b", "/b"),
        ("/a%2f..%2fb", "/a/../b", "/b"),
        ("/a%2fb?c%2fd", "/a/b?c%2fd", "/a/b?c%2fd"),
        ("/%2f", "//", "//"),
        ("/a/..%5c..%2fb?x", "/a/..\\../b?x", "/b?x"),
        ("/a%2f%zz", "/a/%zz", "/a/%zz"),
        ("/%2f/evil.com", "///evil.com", "/evil.com"),
        ("/%5cevil.com", "/\\evil.com", "/evil.com"),
    ];
    use PathWithEscapedSlashes as Action;
    let only = |action| Normalization {
        path_with_escaped_slashes: action,
        ..Normalization::default()
    };
    let all = |action| Normalization {
        path_with_escaped_slashes: action,
        ..BOTH
    };
    for (target, plain, normal) in table {
        for options in [only(Action::RejectRequest), all(Action::RejectRequest)] {
            assert_eq!(result(target, &options), "400", "{target}");
        }
        assert_eq!(result(target, &only(Action::UnescapeAndForward)), plain);
        assert_eq!(result(target, &all(Action::UnescapeAndForward)), normal);
        assert_eq!(
            result(target, &only(Action::UnescapeAndRedirect)),
            format!("307 {plain}")
        );
        assert_eq!(
            result(target, &all(Action::UnescapeAndRedirect)),
            format!("307 {normal}")
        );
        assert_eq!(result(target, &only(Action::KeepUnchanged)), target);
    }
    for action in [
        Action::RejectRequest,
        Action::UnescapeAndRedirect,
        Action::UnescapeAndForward,
    ] {
        for target in ["/a", "/a?b%2fc", "/%252f", "/%2"] {
            assert_eq!(result(target, &all(action)), target);
        }
    }
    assert_eq!(result("/a%2f%00", &all(Action::UnescapeAndRedirect)), "400");
    assert_eq!(
        result("/a%2f%00", &only(Action::UnescapeAndRedirect)),
        "307 /a/%00"
    );
}

#[test]
fn hosts_lose_their_port_and_dot_as_configured() {
    let any = Normalization {
        strip_host_port: StripHostPort::Any,
        ..Normalization::default()
    };
    let matching = Normalization {
        strip_host_port: StripHostPort::Matching,
        ..Normalization::default()
    };
    let dot = Normalization {
        strip_trailing_host_dot: true,
        ..Normalization::default()
    };
    let both = Normalization {
        strip_trailing_host_dot: true,
        ..any
    };
    // The host, then with any port, the matching port (5050), the dot, dot and any port cut off.
    let table = [
        ("a", "a", "a", "a", "a"),
        ("a:80", "a", "a:80", "a:80", "a"),
        ("a:5050", "a", "a", "a:5050", "a"),
        ("a.", "a.", "a.", "a", "a"),
        ("a.:80", "a.", "a.:80", "a:80", "a"),
        ("a.:5050", "a.", "a.", "a:5050", "a"),
        ("[::1]:80", "[::1]", "[::1]:80", "[::1]:80", "[::1]"),
        ("[::1]", "[::1]", "[::1]", "[::1]", "[::1]"),
        ("::1", ":", "::1", "::1", ":"),
        ("a:", "a:", "a:", "a:", "a:"),
        (":80", "", ":80", ":80", ""),
        ("a:b", "a:b", "a:b", "a:b", "a:b"),
        ("a:080", "a", "a:080", "a:080", "a"),
        ("a:05050", "a", "a", "a:05050", "a"),
        ("a:99999", "a", "a:99999", "a:99999", "a"),
        (
            "a:4294967376",
            "a:4294967376",
            "a:4294967376",
            "a:4294967376",
            "a:4294967376",
        ),
        ("a..", "a..", "a..", "a.", "a."),
        (".", ".", ".", "", ""),
        ("a:1:2", "a:1", "a:1:2", "a:1:2", "a:1"),
        ("A.:1", "A.", "A.:1", "A:1", "A"),
    ];
    for (host, any_port, matching_port, no_dot, neither) in table {
        assert_eq!(normalize_host(host, &Normalization::default(), Some(5050)), host);
        assert_eq!(normalize_host(host, &any, Some(5050)), any_port, "{host}");
        assert_eq!(
            normalize_host(host, &matching, Some(5050)),
            matching_port,
            "{host}"
        );
        assert_eq!(normalize_host(host, &dot, Some(5050)), no_dot, "{host}");
        assert_eq!(normalize_host(host, &both, Some(5050)), neither, "{host}");
    }
    for (host, expected) in [("a.:", "a:"), ("a.:x", "a:x"), ("[::1].:80", "[::1]:80")] {
        assert_eq!(normalize_host(host, &dot, None), expected);
    }
}

#[test]
fn underscores_are_let_through_refused_or_dropped() {
    let headers = || {
        let mut headers = HeaderMap::new();
        for name in ["a_b", "a-b", "_", "ok"] {
            headers.append(name, HeaderValue::from_static("1"));
        }
        headers.append("a_b", HeaderValue::from_static("2"));
        headers
    };
    let mut allowed = headers();
    assert_eq!(underscores(&mut allowed, HeadersWithUnderscores::Allow), Ok(0));
    assert_eq!(allowed.len(), 5);
    assert_eq!(
        underscores(&mut headers(), HeadersWithUnderscores::RejectRequest),
        Err(UnderscoreRejected)
    );
    let mut dropped = headers();
    assert_eq!(
        underscores(&mut dropped, HeadersWithUnderscores::DropHeader),
        Ok(3)
    );
    assert!(dropped.len() == 2 && dropped.contains_key("a-b") && dropped.contains_key("ok"));
    assert_eq!(
        underscores(&mut dropped, HeadersWithUnderscores::RejectRequest),
        Ok(0)
    );
}
