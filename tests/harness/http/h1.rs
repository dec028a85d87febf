//! A downstream that speaks HTTP/1.1: it sends what a case says, byte for byte, and reads strictly.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::case::Ask;
use super::outcome::Got;
use super::wire::{Framing, Head, Stop, Wire};

/// A connection to a proxy.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    /// The port of this side.
    pub port: u16,
}

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.set_nodelay(true);
        let port = stream.local_addr().unwrap().port();
        Self {
            wire: Wire::new(stream),
            port,
        }
    }

    /// Sends a request and reads the answers.
    pub async fn ask(&mut self, ask: &Ask) -> Vec<Got> {
        if let Some((bytes, answers)) = &ask.raw {
            self.wire.send(bytes).await;
            let mut all = Vec::new();
            while all.len() < *answers {
                let got = self.answer(&ask.method).await;
                let ended = got.announces_close();
                all.push(got);
                if ended {
                    break;
                }
            }
            return all;
        }
        let mut bytes = head(ask).into_bytes();
        let body = ask.body.as_deref().unwrap_or_default();
        if ask.upgrade.is_none() && !ask.expects {
            // In one piece: whether an early answer meets the body is not left to chance.
            bytes.extend(framed(ask, body));
        }
        self.wire.send(&bytes).await;
        let got = if ask.upgrade.is_some() {
            self.upgraded(ask, body).await
        } else if ask.expects {
            self.expecting(ask, body).await
        } else {
            self.answer(&ask.method).await
        };
        vec![got]
    }

    async fn expecting(&mut self, ask: &Ask, body: &[u8]) -> Got {
        let mut interim = Vec::new();
        match self.wire.head().await {
            Err(stop) => return Got::nothing(&stop),
            Ok(head) if head.first.starts_with("HTTP/1.1 1") => interim.push((head.first, head.headers)),
            Ok(head) => return self.rest_of(head, &ask.method, interim).await,
        }
        self.wire.send(&framed(ask, body)).await;
        let mut got = self.answer(&ask.method).await;
        interim.append(&mut got.interim);
        got.interim = interim;
        got
    }

    async fn upgraded(&mut self, ask: &Ask, payload: &[u8]) -> Got {
        let head = match self.wire.head().await {
            Err(stop) => return Got::nothing(&stop),
            Ok(head) => head,
        };
        if !head.first.starts_with("HTTP/1.1 101") {
            return self.rest_of(head, &ask.method, Vec::new()).await;
        }
        self.wire.send(payload).await;
        let (mut heard, stop) = self.wire.exactly(payload.len()).await;
        self.wire.finish().await;
        let (rest, end) = self.wire.rest().await;
        heard.extend(rest);
        Got {
            first: head.first,
            headers: head.headers,
            body: heard,
            stop: Some(format!("upgraded, {}", stop.unwrap_or(end))),
            ..Got::default()
        }
    }

    /// The next answer, with the interim ones before it.
    pub async fn answer(&mut self, method: &str) -> Got {
        let mut interim = Vec::new();
        loop {
            match self.wire.head().await {
                Err(stop) => {
                    let mut got = Got::nothing(&stop);
                    got.interim = interim;
                    return got;
                }
                Ok(head) if head.first.starts_with("HTTP/1.1 1") => interim.push((head.first, head.headers)),
                Ok(head) => return self.rest_of(head, method, interim).await,
            }
        }
    }

    async fn rest_of(
        &mut self,
        head: Head,
        method: &str,
        interim: Vec<(String, super::wire::Headers)>,
    ) -> Got {
        let status = head.first.split(' ').nth(1).unwrap_or_default();
        let framing = if method == "HEAD" || matches!(status, "204" | "304") {
            Ok(Framing::None)
        } else {
            head.framing(Framing::ToEnd)
        };
        let mut got = Got {
            interim,
            first: head.first,
            headers: head.headers,
            ..Got::default()
        };
        match framing {
            Err(stop) => got.stop = Some(stop.to_string()),
            Ok(framing) => {
                let body = self.wire.body(framing).await;
                (got.body, got.trailers) = (body.bytes, body.trailers);
                got.framing = Some(framing);
                got.stop = body.stop.map(|stop| stop.to_string());
            }
        }
        got
    }

    /// How the connection goes on after the last answer; `probe` is asked where no end was announced.
    pub async fn afterwards(&mut self, last: Option<&Got>, probe: &Ask) -> String {
        if last.is_none_or(Got::announces_close) {
            let (bytes, stop) = self.wire.rest().await;
            let more = if bytes.is_empty() {
                String::new()
            } else {
                format!(" after {:?}", String::from_utf8_lossy(&bytes))
            };
            let whole = last.is_some_and(|last| last.stop.is_none());
            return match stop {
                Stop::Silent => "connection open in spite of it".to_owned(),
                // After a whole answer that announces the end nobody is harmed by a reset.
                Stop::Reset if whole => format!("connection closed{more}"),
                stop => format!("connection {stop}{more}"),
            };
        }
        self.wire.send(head(probe).as_bytes()).await;
        match self.wire.head().await {
            Ok(_) => "connection kept".to_owned(),
            Err(Stop::Closed | Stop::Reset) => "connection ended without a word".to_owned(),
            Err(stop) => format!("connection {stop}"),
        }
    }
}

/// The request up to its body.
fn head(ask: &Ask) -> String {
    let mut text = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", ask.method, ask.path, ask.host);
    for (name, value) in &ask.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(protocol) = &ask.upgrade {
        text.push_str(&format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n"));
    } else if ask.chunked || !ask.trailers.is_empty() {
        text.push_str("Transfer-Encoding: chunked\r\n");
    } else if let Some(body) = &ask.body {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text
}

/// The body as it is sent: in two chunks, or as it is.
fn framed(ask: &Ask, body: &[u8]) -> Vec<u8> {
    if !ask.chunked && ask.trailers.is_empty() {
        return body.to_vec();
    }
    let (one, two) = body.split_at(body.len() / 2);
    let mut bytes = Vec::new();
    for part in [one, two] {
        if !part.is_empty() {
            bytes.extend(format!("{:x}\r\n", part.len()).bytes());
            bytes.extend(part);
            bytes.extend(b"\r\n");
        }
    }
    bytes.extend(b"0\r\n");
    for (name, value) in &ask.trailers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes
}
