//! The requests: the tables completed, each octet where it matters, messages of a size, and those with steps.

use super::request_tables::{
    CHUNKED, CHUNKS, ENDED, FIELDS, GET, IN_TWO, LINES, POST, POSTS, RESET, TARGETS, WHOLE,
};
use super::{Case, Deviation, Instead, Step, Then};

/// Section, name, bytes.
pub(super) type Row = (&'static str, &'static str, &'static [u8]);

/// Requests that Attaché treats otherwise than Envoy.
pub(super) const DEVIATIONS: &[Deviation] = &[
    Deviation {
        why: "a line ends with CRLF (2.2): readers disagree about where one ends that a bare LF or CR ends",
        ours: Instead::Refuses("400"),
        names: &[
            "bare LF ends every line",
            "bare LF ends the request line",
            "bare LF ends a field line",
            "bare LF ends the head",
            "two requests with bare LF",
            "CR CR LF ends the request line",
            "method with 0x0d",
            "path with 0x0a",
            "query with 0x0a",
            "host with 0x0d",
            "field value with 0x0d",
            "TE hidden after bare CR, with CL",
            "bare LF after data",
            "bare LF ends the body",
            "trailer: bare LF",
            "trailer: bare CR in the value",
            "extension: quoted CRLF start",
        ],
    },
    Deviation {
        why: "a request line has two single spaces (3)",
        ours: Instead::Refuses("400"),
        names: &[
            "two spaces after the method",
            "two spaces before the version",
            "trailing space after the version",
            "tab after the method",
            "tab before the version",
            "method with 0x09",
            "method with 0x20",
        ],
    },
    Deviation {
        why: "a server refuses a folded line or joins it (5.2): what another reader takes for a field is refused",
        ours: Instead::Refuses("400"),
        names: &["obs-fold*", "trailer: obs-fold"],
    },
    Deviation {
        why: "a request has one Host, which is a host (3.2): Envoy joins two with a comma",
        ours: Instead::Refuses("400"),
        names: &[
            "duplicate Host, *",
            "absolute form with two Hosts",
            "Host with user info",
            "Host with user and password",
            "Host with two colons",
            "Host with IPv6 without brackets",
            "Host with an open bracket",
            "Host with percent",
            "host with 0x25",
            "host with 0x40",
            "host with 0x5b",
            "host with 0x5d",
        ],
    },
    Deviation {
        why: "a chunk is as long as its size says, and its line holds nothing but what the grammar has (7.1)",
        ours: Instead::Refuses("400"),
        names: &[
            "size with 20 leading zeros",
            "size with inner space",
            "data longer than the size",
            "a chunk that is too long after a chunk",
            "chunk extension with 0x*",
        ],
    },
    Deviation {
        why: "chunk extensions are skipped, which costs: what is longer than 4 KB is no use to anybody (7.1.1)",
        ours: Instead::Refuses("400"),
        names: &[
            "a chunk extension of 16 KB",
            "a chunk extension of 70 KB",
            "a chunk extension of 1024 KB",
        ],
    },
    Deviation {
        why: "trailers over their limit break the body, which is a 400 for any reason; Envoy answers 431",
        ours: Instead::Refuses("400"),
        names: &["a trailer of 62 KB", "a trailer of 62 KB after a chunk"],
    },
    Deviation {
        why: "an upgrade that is answered with 200 has that answer's body; Envoy drops it",
        ours: Instead::AnswersWith("200", "/x"),
        names: &[
            "websocket, upstream answers 200",
            "WebSocket in capitals",
            "keep-alive, Upgrade",
            "Upgrade, close",
            "websocket with a body",
            "websocket with chunked",
            "websocket with POST",
            "early data after the handshake",
        ],
    },
    Deviation {
        why: "an upgrade that is answered with 200 has that answer's body; Envoy drops it",
        ours: Instead::AnswersWith("200 200", "/2"),
        names: &["second is an upgrade"],
    },
];

/// All of them.
pub(super) fn all() -> Vec<Case> {
    let mut all = tables();
    all.extend(octets());
    all.extend(large_heads());
    all.extend(large_bodies());
    all.extend(cut_off());
    all.extend(in_parts());
    all
}

fn tables() -> Vec<Case> {
    let mut all = Vec::new();
    let mut put =
        |section, name: &str, bytes: &[&[u8]]| all.push(Case::request(section, name, &bytes.concat()));
    for (section, name, line) in LINES {
        put(section, name, &[line, b"\r\nHost: a.test\r\n\r\n"]);
    }
    for (section, name, target) in TARGETS {
        put(
            section,
            name,
            &[b"GET ", target, b" HTTP/1.1\r\nHost: a.test\r\n\r\n"],
        );
    }
    for (section, name, fields) in FIELDS {
        put(section, name, &[GET, fields, b"\r\n\r\n"]);
    }
    for (section, name, fields, body) in POSTS {
        put(section, name, &[POST, fields, b"\r\n\r\n", body]);
    }
    for (section, name, body) in CHUNKS {
        put(section, name, &[CHUNKED, body]);
    }
    for (section, name, bytes) in WHOLE {
        put(section, name, &[bytes]);
    }
    all
}

/// Octets that are no letters or digits, and some beyond ASCII.
pub(super) fn odd_octets() -> impl Iterator<Item = u8> {
    let ascii = (0..0x80_u8).filter(|octet| !octet.is_ascii_alphanumeric());
    ascii.chain([0x80, 0xa0, 0xc3, 0xff])
}

/// Each octet in each place where a grammar says which may stand there.
fn octets() -> Vec<Case> {
    let places: [(&str, &str, &[u8], &[u8]); 8] = [
        ("3.1", "method", b"GET", b" /x HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("3.2.1", "path", b"GET /a", b"b HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        (
            "3.2.1",
            "query",
            b"GET /a?a",
            b"b HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        ("3.2", "host", b"GET /x HTTP/1.1\r\nHost: a", b"b\r\n\r\n"),
        (
            "5.1",
            "field name",
            b"GET /x HTTP/1.1\r\nHost: a.test\r\nX",
            b"A: b\r\n\r\n",
        ),
        (
            "5.5",
            "field value",
            b"GET /x HTTP/1.1\r\nHost: a.test\r\nX-A: a",
            b"b\r\n\r\n",
        ),
        ("7.1", "chunk size", b"3", b"\r\nabc\r\n0\r\n\r\n"),
        ("7.1.1", "chunk extension", b"3;a", b"b\r\nabc\r\n0\r\n\r\n"),
    ];
    let mut all = Vec::new();
    for (section, place, before, behind) in places {
        let head: &[u8] = if place.starts_with("chunk") { CHUNKED } else { b"" };
        for octet in odd_octets() {
            let bytes = [head, before, &[octet], behind].concat();
            all.push(Case::request(
                section,
                format!("{place} with {octet:#04x}"),
                &bytes,
            ));
        }
    }
    all
}

/// A field whose line is `length` bytes in all.
pub(super) fn filler(length: usize) -> Vec<u8> {
    let fixed = b"X-A: \r\n".len();
    [b"X-A: ", "v".repeat(length - fixed).as_bytes(), b"\r\n"].concat()
}

/// A request of the parts.
fn of(section: &'static str, name: impl Into<String>, parts: &[&[u8]]) -> Case {
    Case::request(section, name, &parts.concat())
}

fn large_heads() -> Vec<Case> {
    let old = b"GET /x HTTP/1.0\r\nHost: a.test\r\n";
    let second = b"GET /2 HTTP/1.1\r\nHost: a.test\r\n";
    let host = [
        b"GET /x HTTP/1.1\r\nHost: ",
        "a".repeat(1000).as_bytes(),
        b"\r\n\r\n",
    ]
    .concat();
    let named: Vec<_> = (0..100).map(|i| format!("x-{i}")).collect();
    let named = named.join(", ");
    let mut all = vec![
        of(
            "3",
            "61 KB of a request line without an end",
            &[b"GET /", &[b'p'; 61 * 1024]],
        ),
        of("3.2", "a Host of 1,000 characters", &[&host]),
        of(
            "5.4",
            "61 KB of a head without an end",
            &[GET, b"X-A: ", &[b'v'; 61 * 1024]],
        ),
        of(
            "5.4",
            "HTTP/1.0 with a head of 62 KB",
            &[old, &filler(62 * 1024), b"\r\n"],
        ),
        of("5.4", "10,000 fields", &[GET, &b"a:\r\n".repeat(10_000), b"\r\n"]),
        of(
            "9.3",
            "Connection names 100 fields",
            &[GET, b"Connection: ", named.as_bytes(), b"\r\n\r\n"],
        ),
        of(
            "9.3.2",
            "the second has a head of 62 KB",
            &[GET, b"\r\n", second, &filler(62 * 1024), b"\r\n"],
        ),
        of(
            "2.2",
            "a request, then 100 KB of rubbish",
            &[GET, b"\r\n", &[b'z'; 100_000]],
        ),
    ];
    for kilobytes in [8, 59, 61, 100] {
        let path = "p".repeat(kilobytes * 1024);
        let line = [b"GET /", path.as_bytes(), b" HTTP/1.1\r\nHost: a.test\r\n\r\n"];
        all.push(of("3", format!("a path of {kilobytes} KB"), &line));
    }
    for kilobytes in [1, 59, 61] {
        let name = "X".repeat(kilobytes * 1024);
        let parts = [GET, name.as_bytes(), b": b\r\n\r\n"];
        all.push(of("5.4", format!("a field name of {kilobytes} KB"), &parts));
    }
    for length in [16_000, 61_439, 61_440, 61_441, 100_000, 200_000] {
        let field = filler(length - GET.len() - 2);
        all.push(of(
            "5.4",
            format!("a head of {length} bytes"),
            &[GET, &field, b"\r\n"],
        ));
    }
    for fields in [98, 99, 100, 200] {
        let equal = b"X-A: b\r\n".repeat(fields);
        all.push(of(
            "5.4",
            format!("{fields} equal fields and Host"),
            &[GET, &equal, b"\r\n"],
        ));
        let different: String = (0..fields).map(|i| format!("X-{i}: b\r\n")).collect();
        let parts = [GET, different.as_bytes(), b"\r\n"];
        all.push(of("5.4", format!("{fields} different fields and Host"), &parts));
    }
    all
}

fn large_bodies() -> Vec<Case> {
    let zeros = [b"Content-Length: ", "0".repeat(1000).as_bytes(), b"3\r\n\r\nabc"].concat();
    let extended = [b"1;a=", "x".repeat(1024).as_bytes(), b"\r\na\r\n"]
        .concat()
        .repeat(1000);
    let last = b"3\r\nabc\r\n0\r\n";
    let mut all = vec![
        of("6.2", "Content-Length, 1,000 zeros and 3", &[POST, &zeros]),
        of(
            "6.3",
            "a body of 200 KB",
            &[POST, b"Content-Length: 200000\r\n\r\n", &[b'b'; 200_000]],
        ),
        of(
            "7.1.1",
            "1,000 chunks, each with 1 KB of extensions",
            &[CHUNKED, &extended, b"0\r\n\r\n"],
        ),
        of(
            "7.1.2",
            "200 trailers",
            &[CHUNKED, last, &b"X-T: v\r\n".repeat(200), b"\r\n"],
        ),
        of(
            "7.1.2",
            "a trailer of 62 KB",
            &[CHUNKED, last, &filler(62 * 1024), b"\r\n"],
        ),
    ];
    for kilobytes in [1, 16, 70, 1024] {
        let extension = "x".repeat(kilobytes * 1024);
        let parts = [CHUNKED, b"3;a=", extension.as_bytes(), b"\r\nabc\r\n0\r\n\r\n"];
        all.push(of(
            "7.1.1",
            format!("a chunk extension of {kilobytes} KB"),
            &parts,
        ));
    }
    all
}

fn steps(section: &'static str, name: impl Into<String>, steps: Vec<Step>, then: Then) -> Case {
    Case {
        steps,
        then,
        ..Case::request(section, name, b"")
    }
}

fn send(parts: &[&[u8]]) -> Step {
    Step::Send(parts.concat())
}

/// The downstream ends its side, or all of the connection, in the midst of a request.
fn cut_off() -> Vec<Case> {
    let cut = |section, name: String, parts: &[&[u8]], asked, end| {
        steps(
            section,
            name,
            vec![send(parts), Step::Asked(asked), end],
            Then::Close,
        )
    };
    let mut all = vec![
        steps("9.6", "an end at once", vec![Step::End], Then::Close),
        steps(
            "3",
            "an end in a request line",
            vec![send(&[b"GET /x HT"]), Step::End],
            Then::Close,
        ),
        steps(
            "5",
            "an end in a head",
            vec![send(&[GET, b"X-A: b"]), Step::End],
            Then::Close,
        ),
    ];
    for (section, name, parts, asked) in ENDED {
        all.push(cut(section, (*name).to_owned(), parts, asked, Step::End));
    }
    for (section, name, parts, asked) in RESET {
        all.push(cut(section, (*name).to_owned(), parts, asked, Step::Reset));
    }
    // Lengths that no body ever has, and that a count may overflow with.
    for length in [
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
    ] {
        let field = format!("Content-Length: {length}\r\n\r\nabc");
        let name = format!("Content-Length, {length}");
        all.push(cut("6.2", name, &[POST, field.as_bytes()], b"abc", Step::End));
    }
    for size in [
        "1000000000000000",
        "7fffffffffffffff",
        "8000000000000000",
        "ffffffffffffffff",
    ] {
        let body = format!("{size}\r\nabc");
        all.push(cut(
            "7.1",
            format!("a chunk of {size}"),
            &[CHUNKED, body.as_bytes()],
            b"abc",
            Step::End,
        ));
    }
    all
}

fn in_parts() -> Vec<Case> {
    let head = [GET, b"\r\n"].concat();
    let chunks = [CHUNKED, b"3\r\nabc\r\n1;a=b\r\nd\r\n0\r\nX-T: v\r\n\r\n"].concat();
    let partial = vec![send(&[GET, b"\r\nGET /2"]), Step::Heard(b"\r\n\r\n/x"), Step::End];
    let mut all = vec![
        steps(
            "2.2",
            "a head byte by byte",
            vec![Step::Trickle(head)],
            Then::Probe,
        ),
        steps(
            "7.1",
            "chunks byte by byte",
            vec![Step::Trickle(chunks)],
            Then::Probe,
        ),
        steps(
            "9.3.2",
            "the second ends in its request line",
            partial,
            Then::Close,
        ),
    ];
    for (section, name, first, wait, second, then) in IN_TWO {
        let parts = vec![send(first), wait.clone(), send(&[second])];
        all.push(steps(section, *name, parts, *then));
    }
    for (kilobytes, then) in [(57, Then::Probe), (62, Then::Close)] {
        let begin = send(&[CHUNKED, b"3\r\nabc\r\n"]);
        let trailer = send(&[b"0\r\n", &filler(kilobytes * 1024), b"\r\n"]);
        let name = format!("a trailer of {kilobytes} KB after a chunk");
        all.push(steps(
            "7.1.2",
            name,
            vec![begin, Step::Asked(b"abc"), trailer],
            then,
        ));
    }
    all
}
