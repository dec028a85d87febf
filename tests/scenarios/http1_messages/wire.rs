//! A lane: a downstream that plays a message, and the upstream behind the proxy, which records what it is sent.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use attache_tests::bytes::reset;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::message::{Message, NO_END, is_interim, position};
use super::{Case, Instead, Script, Step, Then};

/// What has not happened by then never will: far above what an idle machine needs.
const GUARD: Duration = Duration::from_secs(10);

const PROBE: &[u8] = b"GET /probe HTTP/1.1\r\nHost: probe.test\r\n\r\n";

/// How an answer to the probe ends.
const PROBED: &[u8] = b"\r\n\r\n/probe";

/// What became of the downstream's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The next request on it was answered, over the upstream connection of the first, or another.
    GoesOn { same_upstream: bool },
    /// The proxy closed it.
    Closed,
    /// We did.
    Ours,
    /// Neither, within the patience of a test.
    Stuck,
}

/// What came of a message.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The responses' status codes.
    statuses: Vec<String>,
    /// The responses that came, but that to the probe.
    answers: Vec<String>,
    /// The requests that the upstream got, but the probe.
    requests: Vec<String>,
    /// Of the connection.
    pub(crate) ending: Ending,
}

impl Outcome {
    /// Whether it is what a deviation is known for.
    pub(super) fn is(&self, known: Instead) -> bool {
        let statuses = self.statuses.join(" ");
        match known {
            Instead::Refuses(status) => {
                let begun = |request: &String| request.ends_with(NO_END);
                statuses == status && self.ending == Ending::Closed && self.requests.iter().all(begun)
            }
            Instead::Answers(known) => statuses == known && self.ending != Ending::Stuck,
            Instead::AnswersWith(known, body) => {
                let has_body = |answer: &String| answer.ends_with(&format!("\nbody: {body}\n"));
                statuses == known && self.ending != Ending::Stuck && self.answers.last().is_some_and(has_body)
            }
        }
    }

    /// What is different in ours from Envoy's.
    pub(super) fn difference(&self, envoys: &Self) -> Option<String> {
        let mut all = String::new();
        let mut compare = |what: &str, ours: &str, envoys: &str| {
            if ours != envoys {
                let _ = write!(all, "  {what}: {}\n    with Envoy: {}\n", cut(ours), cut(envoys));
            }
        };
        compare("status", &self.statuses.join(" "), &envoys.statuses.join(" "));
        compare(
            "connection",
            &format!("{:?}", self.ending),
            &format!("{:?}", envoys.ending),
        );
        if self.statuses == envoys.statuses {
            compare("answer", &self.answers.concat(), &envoys.answers.concat());
        }
        compare("sent on", &self.requests.concat(), &envoys.requests.concat());
        (!all.is_empty()).then_some(all)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  status: {}", self.statuses.join(" "))?;
        writeln!(f, "  connection: {:?}", self.ending)?;
        writeln!(f, "  answer: {}", cut(&self.answers.concat()))?;
        writeln!(f, "  sent on: {}", cut(&self.requests.concat()))
    }
}

/// A text with the middle of what is very long left out.
fn cut(text: &str) -> String {
    let lines = text.lines().map(|line| match line.char_indices().nth(200) {
        Some((at, _)) => format!("{}... ({} bytes)", &line[..at], line.len()),
        None => line.to_owned(),
    });
    let all: Vec<_> = lines.collect();
    if all.is_empty() {
        "nothing".to_owned()
    } else {
        all.join(" | ")
    }
}

/// What both sides of a proxy have received of one message.
#[derive(Clone, Debug, Default)]
struct Seen {
    heard: Vec<u8>,
    /// The downstream's connection was closed by the proxy.
    closed: bool,
    upstreams: Vec<Upstream>,
    /// The script is played once.
    scripted: bool,
    /// The message is over: what is left of the upstream's connections is ended.
    over: bool,
}

/// A connection that the upstream accepted.
#[derive(Clone, Debug, Default)]
struct Upstream {
    asked: Vec<u8>,
    /// Whole requests, and where the next begins.
    requests: Vec<Message>,
    taken: usize,
    /// Bytes are carried unread.
    tunnel: bool,
    closed: bool,
}

impl Upstream {
    /// Nothing is under way.
    fn idle(&self) -> bool {
        self.closed || (!self.tunnel && self.taken == self.asked.len())
    }
}

/// One listener of the proxy and the cluster behind it; plays one message at a time.
pub(super) struct Lane {
    /// Where the proxy is to listen.
    pub(super) downstream: SocketAddr,
    /// Where the cluster's endpoint is.
    pub(super) upstream: SocketAddr,
    listener: TcpListener,
}

impl Lane {
    pub(super) async fn start(downstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            downstream,
            upstream: listener.local_addr().unwrap(),
            listener,
        }
    }

    pub(super) async fn play(&mut self, case: &Case) -> Outcome {
        let seen = watch::Sender::new(Seen::default());
        let mut connections = JoinSet::new();
        let downstream = async {
            let ending = downstream(self.downstream, case, &seen).await;
            // What is under way at the upstream ends with the downstream's connection.
            let ends = seen.subscribe();
            until(ends, |seen| seen.upstreams.iter().all(Upstream::idle)).await;
            ending
        };
        let upstream = async {
            loop {
                let (stream, _) = self.listener.accept().await.unwrap();
                connections.spawn(upstream(stream, case.script.clone(), seen.clone()));
            }
        };
        let ending = tokio::select! {
            ending = downstream => ending,
            () = upstream => unreachable!("it accepts for ever"),
        };
        let outcome = outcome(case, ending, &seen.borrow());
        seen.send_modify(|seen| seen.over = true);
        // A connection that the proxy still held in its pool would otherwise carry the next message.
        let _ = tokio::time::timeout(GUARD, connections.join_all()).await;
        outcome
    }
}

/// Waits until `state` holds; whether it does in time.
async fn until(mut seen: watch::Receiver<Seen>, state: impl FnMut(&Seen) -> bool) -> bool {
    matches!(tokio::time::timeout(GUARD, seen.wait_for(state)).await, Ok(Ok(_)))
}

async fn downstream(at: SocketAddr, case: &Case, seen: &watch::Sender<Seen>) -> Option<Ending> {
    let stream = TcpStream::connect(at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (reader, writer) = stream.into_split();
    let reading = tokio::spawn(listen(reader, seen.clone()));
    let writer = speak(writer, case, seen).await;
    let ending = match writer {
        None => Some(Ending::Ours),
        Some(_) => until(seen.subscribe(), |seen| {
            seen.closed || seen.heard.ends_with(PROBED)
        })
        .await
        .then_some(Ending::Closed),
    };
    reading.abort();
    let _ = reading.await;
    ending
}

/// Does what the case says; gives the writing half unless it has reset the connection.
async fn speak(
    mut writer: OwnedWriteHalf,
    case: &Case,
    seen: &watch::Sender<Seen>,
) -> Option<OwnedWriteHalf> {
    let last = case.steps.len().saturating_sub(1);
    for (index, step) in case.steps.iter().enumerate() {
        // A proxy that has closed takes no more: what it has answered is read all the same.
        match step {
            Step::Send(bytes) if index == last && case.then == Then::Probe => {
                let _ = writer.write_all(&[bytes, PROBE].concat()).await;
            }
            Step::Send(bytes) => drop(writer.write_all(bytes).await),
            Step::Trickle(bytes) => {
                for byte in bytes {
                    let _ = writer.write_all(&[*byte]).await;
                    tokio::task::yield_now().await;
                }
            }
            Step::Heard(part) => {
                let _ = until(seen.subscribe(), |seen| seen.closed || has(&seen.heard, part)).await;
            }
            Step::Asked(part) => {
                let _ = until(seen.subscribe(), |seen| seen.closed || was_asked(seen, part)).await;
            }
            Step::End => drop(writer.shutdown().await),
            Step::Reset => {
                writer.as_ref().set_zero_linger().unwrap();
                // Dropped, it would end its side first.
                writer.forget();
                return None;
            }
        }
    }
    if matches!(case.steps.last(), Some(Step::Trickle(_))) && case.then == Then::Probe {
        let _ = writer.write_all(PROBE).await;
    }
    if case.then == Then::ProbeAfterwards {
        let to_head = is_head(case);
        let ends = case
            .script
            .as_ref()
            .is_some_and(|script| matches!(script.steps.last(), Some(Step::End | Step::Reset)));
        until(seen.subscribe(), |seen| {
            let ended = !ends || seen.upstreams.iter().all(|upstream| upstream.closed);
            seen.closed || (ended && is_answered(&seen.heard, to_head))
        })
        .await;
        let _ = writer.write_all(PROBE).await;
    }
    Some(writer)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    position(bytes, part).is_some()
}

fn was_asked(seen: &Seen, part: &[u8]) -> bool {
    seen.upstreams.iter().any(|upstream| has(&upstream.asked, part))
}

/// Whether the request of a case is a HEAD.
fn is_head(case: &Case) -> bool {
    matches!(case.steps.first(), Some(Step::Send(bytes)) if bytes.starts_with(b"HEAD "))
}

/// Whether a final response has come.
fn is_answered(heard: &[u8], to_head: bool) -> bool {
    let all = responses(heard, to_head, false);
    all.last()
        .is_some_and(|last| last.whole && (last.status() == "101" || !is_interim(last.status())))
}

async fn listen(mut reader: OwnedReadHalf, seen: watch::Sender<Seen>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return seen.send_modify(|seen| seen.closed = true),
            Ok(length) => seen.send_modify(|seen| seen.heard.extend_from_slice(&buffer[..length])),
        }
    }
}

/// Serves one connection of the proxy's until it ends or the message is over.
async fn upstream(mut stream: TcpStream, script: Option<Script>, seen: watch::Sender<Seen>) {
    stream.set_nodelay(true).unwrap();
    let mut index = 0;
    seen.send_modify(|seen| {
        index = seen.upstreams.len();
        seen.upstreams.push(Upstream::default());
    });
    let mut over_soon = seen.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            () = over(&mut over_soon) => {
                let _ = stream.shutdown().await;
                while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
                return;
            }
        };
        let Some(length) = read.ok().filter(|length| *length > 0) else {
            return seen.send_modify(|seen| seen.upstreams[index].closed = true);
        };
        seen.send_modify(|seen| seen.upstreams[index].asked.extend_from_slice(&buffer[..length]));
        match serve(&mut stream, index, script.as_ref(), &seen).await {
            Left::Open => continue,
            // It is over when the proxy has noticed.
            Left::Ended => while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {},
            Left::ToReset => reset(stream),
        }
        return seen.send_modify(|seen| seen.upstreams[index].closed = true);
    }
}

/// Waits until the message is over.
async fn over(seen: &mut watch::Receiver<Seen>) {
    let _ = seen.wait_for(|seen| seen.over).await;
}

/// How the upstream leaves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Open,
    Ended,
    ToReset,
}

/// Answers what has come.
async fn serve(
    stream: &mut TcpStream,
    index: usize,
    script: Option<&Script>,
    seen: &watch::Sender<Seen>,
) -> Left {
    loop {
        let (next, scripted) = {
            let seen = seen.borrow();
            let upstream = &seen.upstreams[index];
            (Message::request(&upstream.asked[upstream.taken..]), seen.scripted)
        };
        let Some(request) = next else {
            return Left::Open;
        };
        let script = script.filter(|_| !scripted && !request.is_probe());
        let early = script.is_some_and(|script| script.early);
        if !request.whole && !early {
            return Left::Open;
        }
        let (whole, answer) = (request.whole, answer(&request));
        seen.send_modify(|seen| {
            seen.scripted |= script.is_some();
            let upstream = &mut seen.upstreams[index];
            if whole {
                upstream.taken += request.length;
                upstream.requests.push(request);
            }
            upstream.tunnel |= script.is_some_and(switches);
        });
        let Some(script) = script else {
            let _ = stream.write_all(&answer).await;
            continue;
        };
        let left = act(stream, script, seen).await;
        if left != Left::Open || !whole {
            return left;
        }
    }
}

/// Whether a script switches protocols.
fn switches(script: &Script) -> bool {
    matches!(script.steps.first(), Some(Step::Send(bytes)) if bytes.starts_with(b"HTTP/1.1 101 "))
}

/// What a request without a script is answered: its path. `/never` is not answered at all.
fn answer(request: &Message) -> Vec<u8> {
    let path: String = request.target().chars().take(60).collect();
    if path == "/never" {
        return Vec::new();
    }
    let body = if request.method() == "HEAD" { "" } else { &path };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", path.len()).into_bytes()
}

/// Plays a script.
async fn act(stream: &mut TcpStream, script: &Script, seen: &watch::Sender<Seen>) -> Left {
    for step in &script.steps {
        match step {
            Step::Send(bytes) => drop(stream.write_all(bytes).await),
            Step::Trickle(bytes) => {
                for byte in bytes {
                    let _ = stream.write_all(&[*byte]).await;
                    tokio::task::yield_now().await;
                }
            }
            Step::Heard(part) => {
                let _ = until(seen.subscribe(), |seen| seen.closed || has(&seen.heard, part)).await;
            }
            Step::Asked(part) => {
                let _ = until(seen.subscribe(), |seen| was_asked(seen, part)).await;
            }
            Step::End => {
                let _ = stream.shutdown().await;
                return Left::Ended;
            }
            Step::Reset => return Left::ToReset,
        }
    }
    Left::Open
}

/// The responses that `heard` is made of; behind a switch of protocols, the rest as it is.
fn responses(heard: &[u8], to_head: bool, ended: bool) -> Vec<Message> {
    let (mut all, mut rest, mut to_head) = (Vec::new(), heard, to_head);
    while let Some(response) = Message::response(rest, to_head, ended) {
        rest = &rest[response.length..];
        to_head &= is_interim(response.status());
        let tunnel = response.status() == "101" && !rest.starts_with(b"HTTP/1.");
        let stop = !response.whole || tunnel;
        all.push(response);
        if stop {
            break;
        }
    }
    all
}

fn outcome(case: &Case, ending: Option<Ending>, seen: &Seen) -> Outcome {
    let probed = seen.heard.ends_with(PROBED);
    let mut all = responses(&seen.heard, is_head(case), seen.closed);
    let length: usize = all.iter().map(|response| response.length).sum();
    if probed && length == seen.heard.len() {
        all.pop();
    }
    let mut answers: Vec<_> = all.iter().map(Message::shown).collect();
    if length < seen.heard.len() {
        answers.push(format!("and then: {}\n", seen.heard[length..].escape_ascii()));
    }
    let asked = |upstream: &Upstream| has(&upstream.asked, b"GET /probe ");
    let first = seen
        .upstreams
        .iter()
        .position(|upstream| !upstream.asked.is_empty());
    let same_upstream = first.is_some_and(|first| asked(&seen.upstreams[first]));
    Outcome {
        statuses: all.iter().map(|response| response.status().to_owned()).collect(),
        answers,
        requests: requests(case, seen),
        ending: match ending {
            Some(Ending::Closed) if probed => Ending::GoesOn { same_upstream },
            Some(ending) => ending,
            None => Ending::Stuck,
        },
    }
}

/// The requests that the upstream got. Of one that was given up, only what the case has waited for is sure to have
/// come.
fn requests(case: &Case, seen: &Seen) -> Vec<String> {
    let waited = case.steps.iter().any(|step| matches!(step, Step::Asked(_)));
    let mut all = Vec::new();
    for upstream in &seen.upstreams {
        let sent = upstream.requests.iter().filter(|request| !request.is_probe());
        all.extend(sent.map(Message::shown));
        let rest = &upstream.asked[upstream.taken..];
        if upstream.tunnel && !rest.is_empty() {
            all.push(format!("carried: {}\n", rest.escape_ascii()));
        } else if waited && let Some(begun) = Message::request(rest) {
            all.push(begun.shown());
        }
    }
    all
}
