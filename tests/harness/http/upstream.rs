//! An upstream for both versions of HTTP on one port (HTTP/2 by prior knowledge), which does what the request
//! header `x-do` asks of it and writes down what it saw. See [`Wish`] for the words.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::seen::{Book, Entry, Seen};
use super::wire::{Body, Framing, Head, Headers, Wire};
use super::{h2c, wire};

/// The request header with the wishes, which the record leaves out.
pub const WISHES: &str = "x-do";

/// What a request asks of the upstream, `;` between the words: `status=503;fail=2;header=x-a: b`.
#[derive(Clone, Debug)]
pub struct Wish {
    /// `status=`: of the answer; 200.
    pub status: u16,
    /// `text=` or `size=`: the body; the upstream's name.
    pub body: Vec<u8>,
    /// `header=name: value`, again and again.
    pub headers: Headers,
    /// `trailer=name: value`, again and again.
    pub trailers: Headers,
    /// `hint=`: an interim answer of this status first.
    pub hint: Option<u16>,
    /// `delay=`: milliseconds before the answer.
    pub delay: Duration,
    /// `pause=`: milliseconds before the body's second half.
    pub pause: Option<Duration>,
    /// `chunked`: the length is not told ahead. `to-end`: over HTTP/1 the end of the connection is the body's.
    pub framing: Option<Framing>,
    /// `early`: the request's body is not waited for.
    pub early: bool,
    /// `close`: the connection ends after the answer, and says so.
    pub close: bool,
    /// How the exchange is cut off.
    pub cut: Option<Cut>,
    /// `upgrade`: answers 101 (or 200 to an extended CONNECT) and sends back what comes.
    pub upgrade: bool,
    /// `bytes=`: these, for a whole answer over HTTP/1; `\r` and `\n` are escapes.
    pub bytes: Option<Vec<u8>>,
    /// `no-length`: an answer that tells no length and has no body.
    pub no_length: bool,
}

/// How an exchange is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// `hangup`: ends the connection, or resets the stream, without an answer.
    Before,
    /// `hangup=headers`: likewise after the headers.
    AfterHeaders,
    /// `hangup=body`: likewise after half of the body.
    InBody,
    /// `refuse`: resets the stream as refused (HTTP/2 only).
    Refuse,
    /// `never`: no answer at all.
    Never,
}

impl Wish {
    /// What the `number`th request of a case (from 1) asks of the upstream called `name`. `fail=2` makes all but
    /// `text`, `size` and `header` hold for the first two only; later ones are answered with 200.
    pub fn read(headers: &Headers, name: &str, number: usize) -> Self {
        let mut wish = Self::plain(name);
        let said = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(WISHES));
        let words: Vec<(&str, &str)> = said
            .flat_map(|(_, value)| value.split(';'))
            .map(|word| word.trim().split_once('=').unwrap_or((word.trim(), "")))
            .collect();
        let fails = words.iter().find(|(word, _)| *word == "fail");
        let good = fails.is_some_and(|(_, times)| number > times.parse().unwrap());
        for (word, value) in words {
            if !good || matches!(word, "text" | "size" | "header") {
                wish.take(word, value);
            }
        }
        wish
    }

    fn plain(name: &str) -> Self {
        Self {
            status: 200,
            body: name.as_bytes().to_vec(),
            headers: Headers::new(),
            trailers: Headers::new(),
            hint: None,
            delay: Duration::ZERO,
            pause: None,
            framing: None,
            early: false,
            close: false,
            cut: None,
            upgrade: false,
            bytes: None,
            no_length: false,
        }
    }

    fn take(&mut self, word: &str, value: &str) {
        let milliseconds = || Duration::from_millis(value.parse().unwrap());
        let pair = || {
            let (name, value) = value.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        };
        match word {
            "" | "fail" => {}
            "status" => self.status = value.parse().unwrap(),
            "text" => self.body = value.as_bytes().to_vec(),
            "size" => self.body = vec![b'z'; value.parse().unwrap()],
            "header" => self.headers.push(pair()),
            "trailer" => self.trailers.push(pair()),
            "hint" => self.hint = Some(value.parse().unwrap()),
            "delay" => self.delay = milliseconds(),
            "pause" => self.pause = Some(milliseconds()),
            "chunked" => self.framing = Some(Framing::Chunked),
            "to-end" => self.framing = Some(Framing::ToEnd),
            "no-length" => self.no_length = true,
            "early" => self.early = true,
            "close" => self.close = true,
            "upgrade" => self.upgrade = true,
            "refuse" => self.cut = Some(Cut::Refuse),
            "never" => self.cut = Some(Cut::Never),
            "hangup" => self.cut = Some(Cut::at(value)),
            "bytes" => self.bytes = Some(unescape(value)),
            other => panic!("an upstream does not know {other:?}"),
        }
    }

    /// Whether its answer has a body.
    pub fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status, 204 | 304) && !self.no_length
    }
}

impl Cut {
    fn at(place: &str) -> Self {
        match place {
            "headers" => Self::AfterHeaders,
            "body" => Self::InBody,
            _ => Self::Before,
        }
    }
}

/// Bytes from a text with `\r` and `\n` in it.
fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").into_bytes()
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Starts the one called `name`, which writes into `book`.
    pub async fn start(name: &str, book: &Book) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (name, book) = (Arc::from(name), book.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&name), book.clone()));
            }
        });
        Self { address, task }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, name: Arc<str>, book: Book) {
    let _ = stream.set_nodelay(true);
    let mut first = [0; 3];
    // No method of HTTP/1 begins as the preface of HTTP/2 does.
    let seen = stream.peek(&mut first).await;
    if seen.is_ok_and(|n| n == first.len()) && &first == b"PRI" {
        h2c::serve(stream, name, book).await;
    } else {
        let mut wire = Wire::new(stream);
        while let Ok(head) = wire.head().await {
            if !exchange(&mut wire, head, &name, &book).await {
                return;
            }
        }
    }
}

/// One request and its answer over HTTP/1; whether the connection goes on.
async fn exchange(wire: &mut Wire, head: Head, name: &Arc<str>, book: &Book) -> bool {
    let headers = head.headers.iter().filter(|(n, _)| n != WISHES);
    let entry = book.begin(Seen {
        upstream: Arc::clone(name),
        first: head.first.clone(),
        headers: headers.cloned().collect(),
        ..Seen::default()
    });
    let wish = Wish::read(&head.headers, name, entry.number);
    if wish.upgrade {
        return upgraded(wire, entry).await;
    }
    if !wish.early {
        if head.says("expect", "100-continue") {
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        let framing = head.framing(Framing::None).unwrap_or(Framing::None);
        let body = wire.body(framing).await;
        let cut = body.stop.clone();
        entry.with(|seen| written(seen, body));
        if let Some(stop) = cut {
            entry.end(&format!("the request was cut: {stop}"));
            return false;
        }
    }
    let method = head.first.split(' ').next().unwrap_or_default();
    match answer(wire, &wish, method).await {
        Answered::Kept => entry.end("answered"),
        Answered::Closed => {
            entry.end("answered");
            wire.finish().await;
            return false;
        }
        Answered::Cut(how) => {
            entry.end(how);
            return false;
        }
    }
    true
}

fn written(seen: &mut Seen, body: Body) {
    seen.body = body.bytes;
    seen.trailers = body.trailers;
}

enum Answered {
    Kept,
    Closed,
    Cut(&'static str),
}

async fn answer(wire: &mut Wire, wish: &Wish, method: &str) -> Answered {
    if wish.cut == Some(Cut::Never) {
        wire.gone().await;
        return Answered::Cut("given up by the proxy");
    }
    if !wish.delay.is_zero() && tokio::time::timeout(wish.delay, wire.gone()).await.is_ok() {
        return Answered::Cut("given up by the proxy");
    }
    if matches!(wish.cut, Some(Cut::Before | Cut::Refuse)) {
        return Answered::Cut("cut by the upstream");
    }
    if let Some(bytes) = &wish.bytes {
        wire.send(bytes).await;
        return Answered::Closed;
    }
    if let Some(status) = wish.hint {
        let hint = format!("HTTP/1.1 {status} Hint\r\nx-hint: yes\r\n\r\n");
        wire.send(hint.as_bytes()).await;
    }
    wire.send(first_lines(wish, method).as_bytes()).await;
    if wish.cut == Some(Cut::AfterHeaders) {
        return Answered::Cut("cut by the upstream");
    }
    if wish.has_body(method)
        && let Some(how) = send_body(wire, wish).await
    {
        return Answered::Cut(how);
    }
    if wish.close || wish.framing == Some(Framing::ToEnd) {
        return Answered::Closed;
    }
    Answered::Kept
}

fn first_lines(wish: &Wish, method: &str) -> String {
    let mut text = format!("HTTP/1.1 {} Said\r\n", wish.status);
    for (name, value) in &wish.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let chunked = wish.framing == Some(Framing::Chunked) || !wish.trailers.is_empty();
    if chunked && wish.has_body(method) {
        text.push_str("transfer-encoding: chunked\r\n");
    } else if (wish.has_body(method) || method == "HEAD") && wish.framing != Some(Framing::ToEnd) {
        text.push_str(&format!("content-length: {}\r\n", wish.body.len()));
    }
    if wish.close {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}

/// Sends the body in two halves; how it was cut off between them.
async fn send_body(wire: &mut Wire, wish: &Wish) -> Option<&'static str> {
    let chunked = wish.framing == Some(Framing::Chunked) || !wish.trailers.is_empty();
    let (one, two) = wish.body.split_at(wish.body.len() / 2);
    send_part(wire, one, chunked).await;
    if wish.cut == Some(Cut::InBody) {
        return Some("cut by the upstream");
    }
    if let Some(pause) = wish.pause
        && tokio::time::timeout(pause, wire.gone()).await.is_ok()
    {
        return Some("given up by the proxy");
    }
    send_part(wire, two, chunked).await;
    if chunked {
        let mut end = "0\r\n".to_owned();
        for (name, value) in &wish.trailers {
            end.push_str(&format!("{name}: {value}\r\n"));
        }
        wire.send(format!("{end}\r\n").as_bytes()).await;
    }
    None
}

async fn send_part(wire: &mut Wire, part: &[u8], chunked: bool) {
    if part.is_empty() {
        return;
    }
    if chunked {
        wire.send(format!("{:x}\r\n", part.len()).as_bytes()).await;
    }
    wire.send(part).await;
    if chunked {
        wire.send(b"\r\n").await;
    }
}

/// Says 101 and sends back what comes until the other side ends.
async fn upgraded(wire: &mut Wire, entry: Entry) -> bool {
    wire.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    let mut all = Vec::new();
    loop {
        let (byte, stop) = wire.exactly(1).await;
        all.extend(&byte);
        if !byte.is_empty() {
            wire.send(&byte).await;
        }
        if let Some(stop) = stop {
            entry.with(|seen| seen.body = all);
            let how = if stop == wire::Stop::Silent {
                "silent"
            } else {
                "ended"
            };
            entry.end(&format!("upgraded, {how}"));
            wire.finish().await;
            return false;
        }
    }
}
