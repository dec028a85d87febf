//! An HTTP exchange with nothing of a socket in it: what was asked, and what is answered with
//! which of Consul's headers.

use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{HeaderMap, Method};
use serde_json::Value;

use super::Action;

/// A request, taken apart.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) token: Option<String>,
    pub(super) gzip: bool,
    pub(super) body: Bytes,
}

/// Which of Consul's header sets an answer carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Family {
    /// The agent's own knowledge.
    #[default]
    Agent,
    /// From the agent's cache.
    Cached,
    /// From the agent's cache, with what the servers said.
    CachedQuery,
    /// From the servers.
    Query,
    /// From the servers, with the consistency named.
    Consistent,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) index: Option<u64>,
    pub(super) hash: Option<String>,
    pub(super) family: Family,
    /// When the answer would change by itself.
    pub(super) changes_at: Option<Instant>,
    /// A fault: the answer is sent this much later.
    pub(super) delay: Option<Duration>,
    /// A fault: the connection ends in the middle of the body.
    pub(super) cut: bool,
}

impl Ask {
    pub(super) fn new(method: Method, uri: &hyper::Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let pairs = uri.query().unwrap_or_default().split('&');
        let query: Vec<(String, String)> = pairs
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let in_query = query.iter().find(|(name, _)| name == "token");
        let token = header("x-consul-token")
            .or(bearer)
            .or(in_query.map(|(_, value)| value.as_str()))
            .filter(|token| !token.is_empty())
            .map(str::to_owned);
        let encodings = header("accept-encoding").unwrap_or_default();
        Self {
            method,
            path: uri.path().to_owned(),
            token,
            gzip: encodings.contains("gzip"),
            query,
            body,
        }
    }

    /// The parts of the path, decoded.
    pub(super) fn segments(&self) -> Vec<String> {
        let parts = self.path.split('/').skip(1);
        parts.map(decode).collect()
    }

    pub(super) fn param(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Answer {
    pub(super) fn json(body: &Value) -> Self {
        Self::new(200, "application/json", body.to_string().into_bytes())
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
    }

    /// What a change that tells nothing gives.
    pub(super) fn empty() -> Self {
        Self::new(200, "application/json; charset=utf-8", Vec::new())
    }

    fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            content_type,
            body,
            index: None,
            hash: None,
            family: Family::Agent,
            changes_at: None,
            delay: None,
            cut: false,
        }
    }

    pub(super) fn indexed(mut self, family: Family, index: u64) -> Self {
        self.family = family;
        self.index = Some(index);
        self
    }

    pub(super) fn of(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Consul's headers for it, besides those of the body.
    pub(super) fn headers(&self, acl_default: Action) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("content-type", self.content_type.to_owned()),
            ("vary", "Accept-Encoding".to_owned()),
            ("x-consul-default-acl-policy", acl_default.as_str().to_owned()),
        ];
        if matches!(self.family, Family::Cached | Family::CachedQuery) {
            headers.push(("age", "0".to_owned()));
            headers.push(("x-cache", "HIT".to_owned()));
        }
        if let Some(hash) = &self.hash {
            headers.push(("x-consul-contenthash", hash.clone()));
        }
        if self.family == Family::Consistent {
            headers.push(("x-consul-effective-consistency", "leader".to_owned()));
        }
        if let Some(index) = self.index {
            headers.push(("x-consul-index", index.to_string()));
        }
        if !matches!(self.family, Family::Agent | Family::Cached) {
            headers.push(("x-consul-knownleader", "true".to_owned()));
            headers.push(("x-consul-lastcontact", "0".to_owned()));
            headers.push(("x-consul-query-backend", "blocking-query".to_owned()));
        }
        headers
    }
}

/// Percent-decodes; a broken escape stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => digit(high).zip(digit(low)),
            _ => None,
        };
        match escaped.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
