//! The filter against what real Envoy 1.40 answered, against keys made here, and its store on paused time.

mod envoy;
mod keys;
mod store;

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::JwtRequest;
use crate::model::matcher::Request;

/// A request to `example.com`.
#[derive(Debug)]
struct Asked {
    method: String,
    target: String,
    headers: HeaderMap,
}

impl Asked {
    fn get(target: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            target: target.to_owned(),
            headers: HeaderMap::new(),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
        self
    }

    fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }
}

impl Request for Asked {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some(self.method.as_str().into()),
            ":path" => Some(self.target.as_str().into()),
            ":authority" => Some("example.com".into()),
            name if name.starts_with(':') => None,
            name => {
                let value = self.headers.get(name)?;
                Some(String::from_utf8_lossy(value.as_bytes()))
            }
        }
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
        None
    }
}

impl JwtRequest for Asked {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn set_target(&mut self, target: String) {
        self.target = target;
    }
}
