//! What comes of a request, as lines of text that two proxies are to have alike.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::wire::{Framing, Headers, Stop};

/// Bodies up to this many bytes are shown, longer ones told apart by their length and a hash.
const SHOWN: usize = 300;

/// What a downstream got for one request.
#[derive(Clone, Debug, Default)]
pub struct Got {
    /// Interim answers: the status line and the headers of each.
    pub interim: Vec<(String, Headers)>,
    /// The status line; of HTTP/2 made up alike. Empty where nothing came.
    pub first: String,
    /// Headers with their case, in their order.
    pub headers: Headers,
    /// How the body was delimited (HTTP/1 only).
    pub framing: Option<Framing>,
    /// The body as far as it came.
    pub body: Vec<u8>,
    /// What followed the body.
    pub trailers: Headers,
    /// Why it is not whole.
    pub stop: Option<String>,
}

impl Got {
    /// Nothing but the reason.
    pub fn nothing(stop: &Stop) -> Self {
        Self {
            stop: Some(stop.to_string()),
            ..Self::default()
        }
    }

    /// As lines of an outcome.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (first, fields) in &self.interim {
            lines.push(first.clone());
            lines.extend(headers(fields));
        }
        if !self.first.is_empty() {
            lines.push(self.first.clone());
            lines.extend(headers(&self.headers));
            match self.framing {
                Some(Framing::None | Framing::Length(_)) | None => {}
                Some(Framing::Chunked) => lines.push("in chunks".to_owned()),
                Some(Framing::ToEnd) => lines.push("to the end of the connection".to_owned()),
            }
            lines.push(body(&self.body));
            lines.extend(
                headers(&self.trailers)
                    .into_iter()
                    .map(|line| format!("trailer {line}")),
            );
        }
        if let Some(stop) = &self.stop {
            lines.push(format!("cut: {stop}"));
        }
        lines
    }

    /// The status; 0 where there is none.
    pub fn status(&self) -> u16 {
        let status = self.first.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Whether the answer says that the connection ends.
    pub fn announces_close(&self) -> bool {
        let close = |(name, value): &(String, String)| {
            name.eq_ignore_ascii_case("connection") && value.to_ascii_lowercase().contains("close")
        };
        self.stop.is_some()
            || self.framing == Some(Framing::ToEnd)
            || self.first.starts_with("HTTP/1.0")
            || self.headers.iter().any(close)
    }
}

/// Headers sorted by name (those of one name keep their order), with what differs from run to run replaced.
pub fn headers(headers: &Headers) -> Vec<String> {
    let mut sorted: Vec<(String, &str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), name.as_str(), value.as_str()))
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let line = |(lower, name, value): (String, &str, &str)| format!("{name}: {}", stable(&lower, value));
    sorted.into_iter().map(line).collect()
}

/// A header's value, or the name of its kind where it differs from run to run.
fn stable(name: &str, value: &str) -> String {
    let number = || value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty();
    match name {
        "date" => "<date>".to_owned(),
        "x-request-id" if is_uuid(value) => "<uuid>".to_owned(),
        "x-envoy-upstream-service-time" if number() => "<milliseconds>".to_owned(),
        "x-envoy-expected-rq-timeout-ms" | "grpc-timeout" => rounded(value),
        _ => value.to_owned(),
    }
}

/// A time limit of which some milliseconds have passed already, rounded up: to a second, or if it is shorter to
/// a tenth of one.
fn rounded(value: &str) -> String {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    match number.parse::<u64>() {
        Ok(number) if number > 100 && matches!(unit, "" | "m") => {
            let step = if number > 1000 { 1000 } else { 100 };
            format!("{}{unit}", number.div_ceil(step) * step)
        }
        _ => value.to_owned(),
    }
}

fn is_uuid(value: &str) -> bool {
    let shape: Vec<usize> = value.split('-').map(str::len).collect();
    shape == [8, 4, 4, 4, 12] && value.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// A body as one line.
pub fn body(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN {
        return format!("body {:?}", String::from_utf8_lossy(bytes));
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("body of {} bytes, {:016x}", bytes.len(), hasher.finish())
}

/// Replaces the ports in a line by their names.
pub fn name_ports(line: &str, names: &BTreeMap<u16, String>) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let digits = from.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = from.split_at(digits);
        text.push_str(before);
        match number.parse().ok().and_then(|port: u16| names.get(&port)) {
            Some(name) => text.push_str(&format!("<{name}>")),
            None if text.ends_with("127.0.0.1:") => text.push_str("<some port>"),
            None => text.push_str(number),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}
