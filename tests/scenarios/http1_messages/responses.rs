//! The responses: the tables completed, each octet where it matters, messages of a size, and those with steps.

use super::requests::{filler, odd_octets};
use super::response_tables::{ANSWERS, ENDED, TO_HEAD, TO_UPGRADE, TO_UPGRADE_ENDED};
use super::{Case, Deviation, Instead, Script, Step, Then};

/// Responses that Attaché treats otherwise than Envoy.
pub(super) const DEVIATIONS: &[Deviation] = &[
    Deviation {
        why: "a CR stands before an LF (2.2): some readers end a line at a bare one",
        ours: Instead::Answers("502"),
        names: &["status with 0x0d", "reason with 0x0d", "field value with 0x0d"],
    },
    Deviation {
        why: "a status line has single spaces, and a status three digits (4)",
        ours: Instead::Answers("502"),
        names: &[
            "status +200",
            "status 1000",
            "status 2000",
            "version HTTP/1.1 ",
            "two spaces after the version",
            "tab after the version",
            "tab after the status",
            "status with 0x09",
        ],
    },
    Deviation {
        why: "a length is a number (RFC 9110 8.6) also where there is no body: the downstream would be told it",
        ours: Instead::Answers("502"),
        names: &["304 with a length of 5x"],
    },
    Deviation {
        why: "a reset is no end: a response that was cut off must not look complete",
        ours: Instead::Answers("200"),
        names: &["to the end, then a reset"],
    },
    Deviation {
        why: "what came of a body before it broke is passed on; Envoy drops it where both came at once",
        ours: Instead::Answers("200"),
        names: &["bad size", "no CRLF after data"],
    },
    Deviation {
        why: "nobody asked for another protocol (RFC 9110 15.2.2): what follows would be read in two ways",
        ours: Instead::Answers("502"),
        names: &["101 unasked", "101 unasked, bare", "101 to h2c"],
    },
    Deviation {
        why: "a 101 to an upgrade switches whether or not it names the protocol; Envoy says close and ends",
        ours: Instead::Answers("101"),
        names: &["101 without Upgrade"],
    },
    Deviation {
        why: "an upgrade that is answered with 200 has that answer's body; Envoy drops it",
        ours: Instead::AnswersWith("200", "ok"),
        names: &[
            "200 to an upgrade with Connection: Upgrade",
            "200 to an upgrade with a request behind it",
        ],
    },
    Deviation {
        why: "an upgrade that is answered with 200 has that answer's body; Envoy drops it",
        ours: Instead::AnswersWith("200", "hello"),
        names: &["200 to an upgrade, close-delimited"],
    },
    Deviation {
        why: "a refused upgrade ends the connection, and the answer says so; Envoy passes on the app's Connection",
        ours: Instead::AnswersWith("426", "no"),
        names: &["426 to an upgrade"],
    },
];

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
const HEAD: &[u8] = b"HEAD /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
const UPGRADE: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// All of them.
pub(super) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    let open: [(&[u8], &[super::requests::Row]); 3] =
        [(GET, ANSWERS), (HEAD, TO_HEAD), (UPGRADE, TO_UPGRADE)];
    for (request, rows) in open {
        all.extend(
            rows.iter()
                .map(|(section, name, bytes)| answered(section, *name, request, vec![send(&[bytes])])),
        );
    }
    for (request, rows) in [(GET, ENDED), (UPGRADE, TO_UPGRADE_ENDED)] {
        let ended = |bytes: &[u8]| vec![send(&[bytes]), Step::End];
        all.extend(
            rows.iter()
                .map(|(section, name, bytes)| answered(section, *name, request, ended(bytes))),
        );
    }
    all.extend(octets());
    all.extend(large());
    all.extend(to_others());
    all.extend(in_steps());
    all.extend(early());
    all.extend(without_end());
    all
}

/// A request to which the upstream does `steps`; the probe shows whether the connection goes on.
fn answered(section: &'static str, name: impl Into<String>, request: &[u8], steps: Vec<Step>) -> Case {
    Case {
        then: Then::ProbeAfterwards,
        script: Some(Script { steps, early: false }),
        ..Case::request(section, name, request)
    }
}

fn send(parts: &[&[u8]]) -> Step {
    Step::Send(parts.concat())
}

fn octets() -> Vec<Case> {
    let places: [(&str, &str, &[u8], &[u8]); 4] = [
        (
            "4",
            "status",
            b"HTTP/1.1 200",
            b"1 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "4",
            "reason",
            b"HTTP/1.1 200 a",
            b"b\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "5.1",
            "field name",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX",
            b"A: b\r\n\r\nok",
        ),
        (
            "5.5",
            "field value",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: a",
            b"b\r\n\r\nok",
        ),
    ];
    let mut all = Vec::new();
    for (section, place, before, behind) in places {
        for octet in odd_octets() {
            let bytes = send(&[before, &[octet], behind]);
            all.push(answered(
                section,
                format!("{place} with {octet:#04x}"),
                GET,
                vec![bytes],
            ));
        }
    }
    all
}

fn large() -> Vec<Case> {
    let mut all = Vec::new();
    let mut put =
        |section, name: String, parts: &[&[u8]]| all.push(answered(section, name, GET, vec![send(parts)]));
    let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n";
    put(
        "4",
        "a reason of 5 KB".to_owned(),
        &[
            b"HTTP/1.1 200 ",
            &[b'r'; 5120],
            b"\r\nContent-Length: 2\r\n\r\nok",
        ],
    );
    for length in [61_441, 70_000, 81_919, 81_920, 81_921, 100_000] {
        let field = filler(length - begin.len() - 2);
        put(
            "5.4",
            format!("a head of {length} bytes"),
            &[begin, &field, b"\r\nok"],
        );
    }
    put(
        "5.4",
        "90 KB of a head without an end".to_owned(),
        &[begin, &filler(90 * 1024)],
    );
    for fields in [98, 99, 100, 200] {
        let name = format!("{} fields", fields + 1);
        put("5.4", name, &[begin, &b"X-A: b\r\n".repeat(fields), b"\r\nok"]);
    }
    let extension = [b"2;a=", "x".repeat(70 * 1024).as_bytes(), b"\r\nok\r\n0\r\n\r\n"].concat();
    put(
        "7.1.1",
        "a chunk extension of 70 KB".to_owned(),
        &[CHUNKED, &extension],
    );
    for kilobytes in [62, 79, 82, 100] {
        let trailer = filler(kilobytes * 1024);
        put(
            "7.1.2",
            format!("a trailer of {kilobytes} KB"),
            &[CHUNKED, b"2\r\nok\r\n0\r\n", &trailer, b"\r\n"],
        );
    }
    all
}

/// Answers to requests other than a plain GET.
fn to_others() -> Vec<Case> {
    let old = b"GET /x HTTP/1.0\r\nHost: a.test\r\n\r\n";
    let closing = b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let trailers = b"GET /x HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    let with_trailer = send(&[CHUNKED, b"2\r\nok\r\n0\r\nX-T: v\r\n\r\n"]);
    let upgrading =
        |rest: &str| format!("POST /x HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: {rest}");
    let with_length = upgrading("websocket\r\nContent-Length: 3\r\n\r\nabc");
    let with_chunks = upgrading("websocket\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let (unknown, h2c) = (upgrading("foo\r\n\r\n"), upgrading("h2c\r\n\r\n"));
    let behind = [UPGRADE, b"GET /behind HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat();
    let refused = b"HTTP/1.1 403 F\r\nContent-Length: 2\r\n\r\nno";
    let other =
        |protocol: &str| format!("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nhi");
    vec![
        answered("2.3", "200 to HTTP/1.0", old, vec![send(&[OK])]),
        answered("9.3", "200 to Connection: close", closing, vec![send(&[OK])]),
        answered(
            "6.3",
            "to the end, to Connection: close",
            closing,
            vec![send(&[b"HTTP/1.1 200 OK\r\n\r\nhello"]), Step::End],
        ),
        answered(
            "9110 7.8",
            "403 to an upgrade with a request behind it",
            &behind,
            vec![send(&[refused])],
        ),
        answered(
            "9110 7.8",
            "200 to an upgrade with a request behind it",
            &behind,
            vec![send(&[OK])],
        ),
        answered("7.1.2", "a trailer to TE: trailers", trailers, vec![with_trailer]),
        answered(
            "9110 7.8",
            "101 to an upgrade with a length",
            with_length.as_bytes(),
            vec![send(&[SWITCH, b"hi"])],
        ),
        answered(
            "9110 7.8",
            "101 to an upgrade with chunks",
            with_chunks.as_bytes(),
            vec![send(&[SWITCH, b"hi"])],
        ),
        answered(
            "9110 7.8",
            "101 to an upgrade that is not allowed",
            unknown.as_bytes(),
            vec![send(&[other("foo").as_bytes()])],
        ),
        answered(
            "9110 7.8",
            "101 to h2c",
            h2c.as_bytes(),
            vec![send(&[other("h2c").as_bytes()])],
        ),
    ]
}

fn in_steps() -> Vec<Case> {
    let expecting =
        b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc";
    let get = |section, name: &str, steps| answered(section, name, GET, steps);
    let to_the_end = b"HTTP/1.1 200 OK\r\n\r\nhello";
    let long = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok";
    let chunk = || send(&[CHUNKED, b"2\r\nok\r\n"]);
    let begun = || send(&[CHUNKED, b"5\r\nok"]);
    let ok = || Step::Heard(b"ok");
    let hello = || Step::Heard(b"hello");
    vec![
        answered(
            "9110 15.2",
            "100 to 100-continue",
            expecting,
            vec![
                send(&[b"HTTP/1.1 100 Continue\r\n\r\n"]),
                Step::Heard(b"100 Continue"),
                send(&[OK]),
            ],
        ),
        get(
            "6.2",
            "Content-Length, short, then an end",
            vec![send(&[long]), ok(), Step::End],
        ),
        get(
            "6.2",
            "Content-Length, short, then a reset",
            vec![send(&[long]), ok(), Step::Reset],
        ),
        get(
            "6.3",
            "to the end, in two parts",
            vec![send(&[to_the_end]), hello(), send(&[b" world"]), Step::End],
        ),
        get(
            "6.3",
            "to the end, then a reset",
            vec![send(&[to_the_end]), hello(), Step::Reset],
        ),
        get(
            "7.1",
            "a bad chunk size after a chunk",
            vec![chunk(), ok(), send(&[b"x\r\n"])],
        ),
        get("7.1", "an end in a chunk", vec![begun(), ok(), Step::End]),
        get("7.1", "a reset in a chunk", vec![begun(), ok(), Step::Reset]),
        get("7.1", "an end between chunks", vec![chunk(), ok(), Step::End]),
        get(
            "7.1",
            "an end behind the last chunk's line",
            vec![chunk(), ok(), send(&[b"0\r\n"]), Step::End],
        ),
        get(
            "7.1",
            "a chunk after a chunk",
            vec![chunk(), ok(), send(&[b"1\r\n!\r\n0\r\n\r\n"])],
        ),
        get(
            "7.1",
            "byte by byte",
            vec![Step::Trickle([CHUNKED, b"2\r\nok\r\n0\r\n\r\n"].concat())],
        ),
        get("2.2", "a response byte by byte", vec![Step::Trickle(OK.to_vec())]),
        get("9.6", "an end without an answer", vec![Step::End]),
        get("9.6", "a reset without an answer", vec![Step::Reset]),
        answered(
            "9110 7.8",
            "101, then a reset",
            UPGRADE,
            vec![send(&[SWITCH]), Step::Heard(b"101 "), Step::Reset],
        ),
    ]
}

/// The upstream answers before it has all of the request.
fn early() -> Vec<Case> {
    let length = b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nabc";
    let chunked = b"POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let expecting = b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let too_large = b"HTTP/1.1 413 T\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    let refused = b"HTTP/1.1 417 E\r\nContent-Length: 2\r\n\r\nno";
    let case = |name: &str, request: &[u8], steps| Case {
        then: Then::Close,
        script: Some(Script { steps, early: true }),
        ..Case::request("9.5", name, request)
    };
    vec![
        case("200 before all of a body", length, vec![send(&[OK])]),
        case("200 before all chunks", chunked, vec![send(&[OK])]),
        case(
            "413 before all of a body, then an end",
            length,
            vec![send(&[too_large]), Step::End],
        ),
        case("417 to 100-continue", expecting, vec![send(&[refused])]),
        case(
            "an end before all of a body",
            length,
            vec![Step::Asked(b"abc"), Step::End],
        ),
        case(
            "a reset before all of a body",
            length,
            vec![Step::Asked(b"abc"), Step::Reset],
        ),
    ]
}

/// The response has no end; the downstream ends its side when it has heard the beginning.
fn without_end() -> Vec<Case> {
    let case = |section, name: &str, request: &[u8], bytes: &[u8], heard| Case {
        steps: vec![send(&[request]), heard, Step::End],
        then: Then::Close,
        ..answered(section, name, request, vec![send(&[bytes])])
    };
    let chunks = b"HTTP/1.1 205 R\r\nTransfer-Encoding: chunked\r\n\r\n";
    let refused =
        b"HTTP/1.1 426 U\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno";
    let endless = [b"HTTP/1.1 200 OK\r\n", &filler(70 * 1024)[..]].concat();
    vec![
        case(
            "6.3",
            "205 without a length",
            GET,
            b"HTTP/1.1 205 R\r\n\r\n",
            Step::Heard(b"205"),
        ),
        case(
            "6.3",
            "205 without its body",
            GET,
            b"HTTP/1.1 205 R\r\nContent-Length: 5\r\n\r\n",
            Step::Heard(b"205"),
        ),
        case("6.3", "205 without its chunks", GET, chunks, Step::Heard(b"205")),
        case(
            "6.3",
            "to an end that does not come",
            GET,
            b"HTTP/1.1 200 OK\r\n\r\nhello",
            Step::Heard(b"hello"),
        ),
        case(
            "9110 7.8",
            "426 to an upgrade",
            UPGRADE,
            refused,
            Step::Heard(b"no"),
        ),
        case(
            "5.4",
            "70 KB of a head without an end",
            GET,
            &endless,
            Step::Asked(b"/x"),
        ),
    ]
}
