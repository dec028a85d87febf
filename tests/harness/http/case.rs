//! A case: a request, the configuration it goes to, the protocols it goes over, and a known deviation.

use super::upstream::WISHES;
use super::wire::Headers;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 by prior knowledge.
    H2,
}

/// The versions on both sides of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// To the proxy.
    pub downstream: Version,
    /// From the proxy.
    pub upstream: Version,
}

impl Path {
    /// HTTP/1 all the way.
    pub const H1_H1: Self = Self::new(Version::H1, Version::H1);
    /// From HTTP/1 to HTTP/2.
    pub const H1_H2: Self = Self::new(Version::H1, Version::H2);
    /// From HTTP/2 to HTTP/1.
    pub const H2_H1: Self = Self::new(Version::H2, Version::H1);
    /// HTTP/2 all the way.
    pub const H2_H2: Self = Self::new(Version::H2, Version::H2);
    /// All four.
    pub const ALL: [Self; 4] = [Self::H1_H1, Self::H1_H2, Self::H2_H1, Self::H2_H2];
    /// Those with the same version on both sides.
    pub const SAME: [Self; 2] = [Self::H1_H1, Self::H2_H2];
    /// Those with an HTTP/1 downstream.
    pub const FROM_H1: [Self; 2] = [Self::H1_H1, Self::H1_H2];
    /// Those with an HTTP/2 downstream.
    pub const FROM_H2: [Self; 2] = [Self::H2_H1, Self::H2_H2];

    const fn new(downstream: Version, upstream: Version) -> Self {
        Self { downstream, upstream }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
        })
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}>{}", self.downstream, self.upstream)
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `Host` or `:authority`.
    pub host: String,
    /// `:scheme` (HTTP/2 only).
    pub scheme: String,
    /// Other headers; the length of the body is told by itself.
    pub headers: Headers,
    /// A body.
    pub body: Option<Vec<u8>>,
    /// Sends the body without telling its length ahead.
    pub chunked: bool,
    /// Sent after the body, which is then chunked.
    pub trailers: Headers,
    /// Sends `expect: 100-continue` and waits for an answer before the body.
    pub expects: bool,
    /// Asks for an upgrade to this protocol and, granted, says the body, hears as much and ends.
    pub upgrade: Option<String>,
    /// HTTP/1 bytes instead of all this, and how many answers are waited for.
    pub raw: Option<(Vec<u8>, usize)>,
}

impl Ask {
    /// A request for this, of the host `test.local`.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            host: "test.local".to_owned(),
            scheme: "http".to_owned(),
            headers: Headers::new(),
            body: None,
            chunked: false,
            trailers: Headers::new(),
            expects: false,
            upgrade: None,
            raw: None,
        }
    }
}

/// A known deviation: the lines that differ, `-` Envoy's and `+` ours.
#[derive(Clone, Debug)]
pub struct Deviation {
    /// Its heading in `DEVIATIONS.md`.
    pub id: &'static str,
    /// What [`super::diff::lines`] gives.
    pub lines: Vec<String>,
}

/// A request and where it goes.
#[derive(Clone, Debug)]
pub struct Case {
    /// Names it within its group.
    pub name: String,
    /// The connection manager; the group's first one if not said.
    pub manager: Option<String>,
    /// What is asked.
    pub ask: Ask,
    /// Over which versions.
    pub paths: Vec<Path>,
    /// How often on one connection: one after the other, or all at once.
    pub times: usize,
    /// All at once (HTTP/2 only).
    pub at_once: bool,
    /// It is asked for, and what comes is forgotten, until an answer has these words.
    pub until: Option<&'static str>,
    /// What is known to differ, over which versions.
    pub deviations: Vec<(Vec<Path>, Deviation)>,
}

/// A request with any method.
pub fn case(name: &str, method: &str, path: &str) -> Case {
    Case {
        name: name.to_owned(),
        manager: None,
        ask: Ask::new(method, path),
        paths: Path::ALL.to_vec(),
        times: 1,
        at_once: false,
        until: None,
        deviations: Vec::new(),
    }
}

/// A GET.
pub fn get(name: &str, path: &str) -> Case {
    case(name, "GET", path)
}

/// A POST of a short body.
pub fn post(name: &str, path: &str) -> Case {
    case(name, "POST", path).body("some body")
}

/// Bytes of HTTP/1, for one answer.
pub fn raw(name: &str, bytes: &str) -> Case {
    let method = bytes.split(' ').next().unwrap_or_default();
    let mut case = case(name, method, "").over(&Path::FROM_H1);
    case.ask.raw = Some((bytes.as_bytes().to_vec(), 1));
    case
}

impl Case {
    /// To another connection manager than the first.
    pub fn on(mut self, manager: &str) -> Self {
        self.manager = Some(manager.to_owned());
        self
    }

    /// Another `Host` or `:authority`.
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.ask.host);
        self
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.ask.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the upstream is to do, see [`super::upstream::Wish`].
    pub fn wish(self, words: &str) -> Self {
        self.header(WISHES, words)
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.ask.body = Some(body.into());
        self
    }

    /// Without telling the body's length ahead.
    pub fn chunked(mut self) -> Self {
        self.ask.chunked = true;
        self
    }

    /// With this trailer after the body.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.ask.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With `expect: 100-continue`: the body waits for an answer.
    pub fn expecting(mut self) -> Self {
        self.ask.expects = true;
        self.header("expect", "100-continue")
    }

    /// Asks for an upgrade to `protocol`.
    pub fn upgrading(mut self, protocol: &str) -> Self {
        self.ask.upgrade = Some(protocol.to_owned());
        self
    }

    /// With this `:scheme` (HTTP/2 only).
    pub fn scheme(mut self, scheme: &str) -> Self {
        scheme.clone_into(&mut self.ask.scheme);
        self.over(&Path::FROM_H2)
    }

    /// Waits for so many answers to raw bytes.
    pub fn answers(mut self, number: usize) -> Self {
        if let Some((_, answers)) = &mut self.ask.raw {
            *answers = number;
        }
        self
    }

    /// So often on one connection.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Over these versions only.
    pub fn over(mut self, paths: &[Path]) -> Self {
        self.paths = paths.to_vec();
        self
    }

    /// So many at once on one connection (HTTP/2 only).
    pub fn at_once(mut self, number: usize) -> Self {
        self.at_once = true;
        self.times(number).over(&Path::FROM_H2)
    }

    /// Once an answer to the same request has these words.
    pub fn until(mut self, words: &'static str) -> Self {
        self.until = Some(words);
        self
    }

    /// A gRPC call of one message over HTTP/2.
    pub fn grpc(self) -> Self {
        self.header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(b"\0\0\0\0\x04ping".to_vec())
            .chunked()
            .over(&[Path::H2_H2])
    }

    /// Differs by these lines, over all its versions, for the reason in `DEVIATIONS.md` under `id`.
    pub fn deviates(self, id: &'static str, lines: &[&str]) -> Self {
        let paths = self.paths.clone();
        self.deviates_over(&paths, id, lines)
    }

    /// As [`Self::deviates`], over these versions.
    pub fn deviates_over(mut self, paths: &[Path], id: &'static str, lines: &[&str]) -> Self {
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        self.deviations.push((paths.to_vec(), Deviation { id, lines }));
        self
    }

    /// What is known to differ over these versions.
    pub fn deviation(&self, path: Path) -> Option<&Deviation> {
        let known = self.deviations.iter().find(|(paths, _)| paths.contains(&path));
        known.map(|(_, deviation)| deviation)
    }
}
