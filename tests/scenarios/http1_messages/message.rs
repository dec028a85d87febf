//! Reads messages as a proxy sends them, and writes them down so that two proxies' can be compared.

use std::fmt::Write as _;

/// Stands where the rest of a message did not come.
pub(super) const NO_END: &str = "and no end\n";

/// A message as far as it came.
#[derive(Clone, Debug)]
pub(super) struct Message {
    head: String,
    body: Vec<u8>,
    trailers: String,
    /// Whether all of it came.
    pub(super) whole: bool,
    /// How many bytes it took.
    pub(super) length: usize,
}

/// Where a body ends.
enum Framing {
    Length(usize),
    Chunked,
    ToTheEnd,
}

impl Message {
    /// The request that `bytes` begin with; `None` before its head is whole.
    pub(super) fn request(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = split_head(bytes)?;
        // What comes behind a request for another protocol is carried, whatever its length fields say.
        let framing = framing(&head).filter(|_| field(&head, "upgrade").is_none());
        let framing = framing.unwrap_or(Framing::Length(0));
        Some(Self::with_body(head, bytes, rest, &framing, false))
    }

    /// The response that `bytes` begin with; `None` before its head is whole.
    pub(super) fn response(bytes: &[u8], to_head: bool, ended: bool) -> Option<Self> {
        let (head, rest) = split_head(bytes)?;
        let status = status(&head);
        let bodiless = to_head || is_interim(status) || status == "204" || status == "304";
        let framing = if bodiless {
            Framing::Length(0)
        } else {
            framing(&head).unwrap_or(Framing::ToTheEnd)
        };
        Some(Self::with_body(head, bytes, rest, &framing, ended))
    }

    fn with_body(head: String, bytes: &[u8], rest: &[u8], framing: &Framing, ended: bool) -> Self {
        let (body, trailers, left) = match framing {
            Framing::Length(length) => match rest.split_at_checked(*length) {
                Some((body, left)) => (body.to_vec(), String::new(), Some(left)),
                None => (rest.to_vec(), String::new(), None),
            },
            Framing::ToTheEnd => (rest.to_vec(), String::new(), ended.then_some(&[][..])),
            Framing::Chunked => chunks(rest),
        };
        Self {
            head,
            body,
            trailers,
            whole: left.is_some(),
            length: bytes.len() - left.map_or(0, <[u8]>::len),
        }
    }

    /// Of a response.
    pub(super) fn status(&self) -> &str {
        status(&self.head)
    }

    /// Of a request.
    pub(super) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Of a request.
    pub(super) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// Whether it is the request that is sent behind another.
    pub(super) fn is_probe(&self) -> bool {
        self.head.starts_with("GET /probe ")
    }

    /// What can be compared: fields that differ from one run to the next have a placeholder, chunks are joined. The
    /// order of fields with different names means nothing (RFC 9110 section 5.3) and is left out.
    pub(super) fn shown(&self) -> String {
        let mut lines = self.head.lines();
        let mut shown = format!("{}\n", lines.next().unwrap_or_default().escape_debug());
        let mut fields: Vec<_> = lines.collect();
        fields.sort_by_key(|line| line.split(':').next().map(str::to_ascii_lowercase));
        for line in fields {
            let line = match line.split_once(':') {
                Some(("x-request-id", _)) => "x-request-id: <an ID>",
                Some(("date", _)) => "date: <a date>",
                Some(("x-envoy-upstream-service-time", _)) => "x-envoy-upstream-service-time: <ms>",
                _ => line,
            };
            let _ = writeln!(shown, "{}", line.escape_debug());
        }
        let _ = writeln!(shown, "body: {}", self.body.escape_ascii());
        for line in self.trailers.lines() {
            let _ = writeln!(shown, "trailer: {}", line.escape_debug());
        }
        if !self.whole {
            shown.push_str(NO_END);
        }
        shown
    }
}

/// Bytes as text: those above 0x7f as the characters of these numbers.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

fn split_head(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = position(bytes, b"\r\n\r\n")?;
    Some((text(&bytes[..end]), &bytes[end + 4..]))
}

/// Where `part` is in `bytes`.
pub(super) fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Whether a status code is of those that come before the final one, or switches protocols.
pub(super) fn is_interim(status: &str) -> bool {
    status.len() == 3 && status.starts_with('1')
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    Some(value.trim())
}

fn framing(head: &str) -> Option<Framing> {
    if field(head, "transfer-encoding").is_some() {
        return Some(Framing::Chunked);
    }
    let length = field(head, "content-length")?.parse::<u64>().ok()?;
    Some(Framing::Length(usize::try_from(length).unwrap_or(usize::MAX)))
}

/// The joined chunks, the trailers, and what is left behind them if they end.
fn chunks(mut rest: &[u8]) -> (Vec<u8>, String, Option<&[u8]>) {
    let mut body = Vec::new();
    loop {
        let Some(end) = position(rest, b"\r\n") else {
            return (body, String::new(), None);
        };
        let size = usize::from_str_radix(&text(&rest[..end]), 16).unwrap_or(0);
        let data = &rest[end + 2..];
        if size == 0 {
            let trailers = if data.starts_with(b"\r\n") {
                Some(0)
            } else {
                position(data, b"\r\n\r\n")
            };
            let Some(length) = trailers else {
                return (body, String::new(), None);
            };
            let behind = if length == 0 { 2 } else { length + 4 };
            return (body, text(&data[..length]), Some(&data[behind..]));
        }
        body.extend_from_slice(&data[..size.min(data.len())]);
        let Some(left) = size.checked_add(2).and_then(|behind| data.get(behind..)) else {
            return (body, String::new(), None);
        };
        rest = left;
    }
}
