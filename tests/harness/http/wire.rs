//! HTTP/1 messages on a socket, read strictly: what a lenient reader would let pass is an error here. It
//! serves both ends, the client and the upstream.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the other side may be silent. Above every timeout that a case configures.
pub const SILENCE: Duration = Duration::from_secs(6);

/// Headers in the order in which they came.
pub type Headers = Vec<(String, String)>;

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// `content-length`.
    Length(usize),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// Up to the end of the connection.
    ToEnd,
}

/// Why there is no more of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The other side ended the connection.
    Closed,
    /// The other side reset the connection.
    Reset,
    /// Nothing came for [`SILENCE`].
    Silent,
    /// It is no HTTP/1.
    Malformed(String),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => write!(f, "closed"),
            Self::Reset => write!(f, "reset"),
            Self::Silent => write!(f, "silent"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
        }
    }
}

/// The first line and the headers of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The request or status line.
    pub first: String,
    /// The headers with their case.
    pub headers: Headers,
}

impl Head {
    /// The values of a header, whose name is given in lower case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self
            .headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }

    /// Whether a header has this word in its list.
    pub fn says(&self, name: &str, word: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(','))
            .any(|one| one.trim().eq_ignore_ascii_case(word))
    }

    /// What its headers say of the body, `otherwise` where they say nothing.
    pub fn framing(&self, otherwise: Framing) -> Result<Framing, Stop> {
        if self.says("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        match self.all("content-length").next() {
            None => Ok(otherwise),
            Some(length) => length
                .parse()
                .map(Framing::Length)
                .map_err(|_| Stop::Malformed(format!("content-length: {length}"))),
        }
    }
}

/// The body of a message as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Its bytes, without the chunks' framing.
    pub bytes: Vec<u8>,
    /// What followed the last chunk.
    pub trailers: Headers,
    /// Why it is not whole.
    pub stop: Option<Stop>,
}

/// A socket and what was read ahead of it.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    /// Over this socket.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    /// Sends bytes; whether all were taken.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Ends this side.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Makes the drop of the socket a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Reads up to the end of the other side, with what came after the last message.
    pub async fn rest(&mut self) -> (Vec<u8>, Stop) {
        loop {
            if let Err(stop) = self.more().await {
                return (std::mem::take(&mut self.ahead), stop);
            }
        }
    }

    /// Resolves when the other side is gone.
    pub async fn gone(&mut self) {
        while !matches!(self.more().await, Err(Stop::Closed | Stop::Reset)) {}
    }

    async fn more(&mut self) -> Result<(), Stop> {
        match tokio::time::timeout(SILENCE, self.stream.read_buf(&mut self.ahead)).await {
            Err(_) => Err(Stop::Silent),
            Ok(Ok(0)) => Err(Stop::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Err(Stop::Reset),
            Ok(Err(_)) => Err(Stop::Closed),
        }
    }

    /// The next line without its end, which must be CR LF.
    async fn line(&mut self) -> Result<String, Stop> {
        loop {
            if let Some(at) = self.ahead.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=at).collect();
                let text = String::from_utf8_lossy(&line).into_owned();
                let bare = || Stop::Malformed(format!("{text:?} does not end in CR LF"));
                return text.strip_suffix("\r\n").map(str::to_owned).ok_or_else(bare);
            }
            self.more().await?;
        }
    }

    async fn fields(&mut self) -> Result<Headers, Stop> {
        let mut headers = Headers::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(headers);
            }
            let pair = line
                .split_once(':')
                .filter(|(name, _)| !name.contains([' ', '\t']));
            let (name, value) = pair.ok_or_else(|| Stop::Malformed(format!("the header {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The next message up to its body.
    pub async fn head(&mut self) -> Result<Head, Stop> {
        let first = self.line().await?;
        let headers = self.fields().await?;
        Ok(Head { first, headers })
    }

    /// Exactly `length` bytes, or fewer and why.
    pub async fn exactly(&mut self, length: usize) -> (Vec<u8>, Option<Stop>) {
        while self.ahead.len() < length {
            if let Err(stop) = self.more().await {
                return (std::mem::take(&mut self.ahead), Some(stop));
            }
        }
        (self.ahead.drain(..length).collect(), None)
    }

    /// The body that follows a head.
    pub async fn body(&mut self, framing: Framing) -> Body {
        let mut body = Body::default();
        match framing {
            Framing::None => {}
            Framing::Length(length) => (body.bytes, body.stop) = self.exactly(length).await,
            Framing::ToEnd => {
                let (bytes, stop) = self.rest().await;
                body.bytes = bytes;
                body.stop = (stop != Stop::Closed).then_some(stop);
            }
            Framing::Chunked => {
                if let Err(stop) = self.chunks(&mut body).await {
                    body.stop = Some(stop);
                }
            }
        }
        body
    }

    async fn chunks(&mut self, body: &mut Body) -> Result<(), Stop> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default();
            let length = usize::from_str_radix(size, 16)
                .map_err(|_| Stop::Malformed(format!("the chunk size {line:?}")))?;
            if length == 0 {
                body.trailers = self.fields().await?;
                return Ok(());
            }
            let (bytes, stop) = self.exactly(length).await;
            body.bytes.extend(bytes);
            if let Some(stop) = stop {
                return Err(stop);
            }
            let end = self.line().await?;
            if !end.is_empty() {
                return Err(Stop::Malformed(format!("{end:?} after a chunk")));
            }
        }
    }
}
