//! The HTTP filters before the router, in their order.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::header::{HeaderMap, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};

use super::header_to_metadata;
use super::jwt::{JwtRequest, Refusal};
use super::local_rate_limit::{self, Verdict};
use crate::http::forwarding::by_chance;
use crate::http::header_mutation::{Side, apply};
use crate::http::local_reply::LocalReply;
use crate::http::message::{RequestHead, RequestView};
use crate::http::record;
use crate::http::stream::{Stop, Stream};
use crate::model::http::{HttpFilter, LocalRateLimit};
use crate::model::jwt::JwtAuthn;
use crate::model::matcher::Request;
use crate::model::{Action, Metadata, Name, Rbac};
use crate::telemetry::ResponseFlag;

/// Runs them on a request.
///
/// # Errors
/// The answer of a filter that lets the request go no further.
pub(in crate::http) async fn run(stream: &Stream) -> Result<(), Stop> {
    for filter in &stream.manager.http_filters {
        match filter {
            HttpFilter::Rbac {
                rules: Some(rules),
                stat_prefix,
            } => rbac(stream, rules, stat_prefix)?,
            HttpFilter::JwtAuthn(config) => jwt(stream, config).await?,
            HttpFilter::HeaderToMetadata(config) => {
                let head = &mut *stream.head.borrow_mut();
                let (method, target, authority, scheme) =
                    (head.method.clone(), &head.target, &head.authority, head.scheme);
                let pseudo = |name: &str| match name {
                    ":method" => Some(method.as_str()),
                    ":path" => Some(target.as_str()),
                    ":authority" => Some(authority.as_str()),
                    ":scheme" => Some(scheme),
                    _ => None,
                };
                let metadata = &mut stream.metadata.borrow_mut();
                header_to_metadata::apply(&config.request_rules, &mut head.headers, pseudo, metadata);
            }
            HttpFilter::LocalRateLimit(options) => rate_limit(stream, options)?,
            HttpFilter::Rbac { rules: None, .. } | HttpFilter::GrpcStats(_) | HttpFilter::GrpcHttp1Bridge => {
            }
        }
    }
    Ok(())
}

fn rbac(stream: &Stream, rules: &Rbac, stat_prefix: &Name) -> Result<(), Stop> {
    let metrics = stream
        .connection
        .worker
        .rbac(&stream.manager.stat_prefix, stat_prefix);
    let Some(policy) = denied_by(rules, stream) else {
        metrics.allowed.increment(1);
        return Ok(());
    };
    metrics.denied.increment(1);
    let reply = LocalReply::text(StatusCode::FORBIDDEN, "RBAC: access denied", "rbac_access_denied");
    Err(reply
        .because(ResponseFlag::UnauthorizedDetails, &format!("denied by {policy}"))
        .into())
}

fn rate_limit(stream: &Stream, options: &Arc<LocalRateLimit>) -> Result<(), Stop> {
    let limit = stream.connection.worker.rate_limit(options);
    let own = options
        .per_connection
        .then(|| stream.connection.own_bucket(options))
        .flatten();
    let bucket = if options.per_connection {
        own.as_deref()
    } else {
        limit.bucket.as_deref()
    };
    let metrics = &limit.metrics;
    let verdict = local_rate_limit::check(options, bucket, local_rate_limit::now(), by_chance);
    if verdict != Verdict::Disabled {
        metrics.enabled.increment(1);
    }
    match verdict {
        Verdict::Disabled => Ok(()),
        Verdict::Allowed => {
            metrics.ok.increment(1);
            Ok(())
        }
        Verdict::NotEnforced => {
            metrics.rate_limited.increment(1);
            let head = &mut *stream.head.borrow_mut();
            let mut headers = std::mem::take(&mut head.headers);
            record::with_facts_of(stream, head, Some(&headers.clone()), None, |facts| {
                apply(
                    &mut headers,
                    Side::Request,
                    &options.request_headers_to_add,
                    facts,
                );
            });
            head.headers = headers;
            Ok(())
        }
        Verdict::Refused {
            status,
            grpc_status,
            body,
        } => {
            metrics.rate_limited.increment(1);
            metrics.enforced.increment(1);
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
            let mut reply = LocalReply::text(status, body, "local_rate_limited");
            reply.grpc_status = Some(grpc_status);
            let mut headers = HeaderMap::new();
            let head = stream.head.borrow();
            record::with_facts_of(stream, &head, None, None, |facts| {
                apply(
                    &mut headers,
                    Side::Response,
                    &options.response_headers_to_add,
                    facts,
                );
            });
            reply
                .headers
                .extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            Err(reply
                .because(ResponseFlag::RateLimited, "over the local rate limit")
                .into())
        }
    }
}

/// The rule by which the newest configuration would keep a request out that is under way.
pub(in crate::http) fn denied_now(stream: &Stream) -> Option<Arc<str>> {
    let manager = (stream.connection.manager)();
    manager.http_filters.iter().find_map(|filter| match filter {
        HttpFilter::Rbac {
            rules: Some(rules), ..
        } => denied_by(rules, stream),
        _ => None,
    })
}

fn denied_by(rules: &Rbac, stream: &Stream) -> Option<Arc<str>> {
    let (head, metadata) = (stream.head.borrow(), stream.metadata.borrow());
    let view = RequestView {
        head: &head,
        metadata: &metadata,
    };
    let verdict = rules.evaluate(&stream.downstream.borrow(), Some(&view));
    (verdict.action == Action::Deny).then_some(verdict.policy)
}

/// A request's head and metadata while a filter waits; put back however that ends.
struct Lent<'a> {
    stream: &'a Stream,
    head: RequestHead,
    metadata: Metadata,
}

impl<'a> Lent<'a> {
    fn of(stream: &'a Stream) -> Self {
        let nothing = RequestHead::nothing(Method::GET);
        Self {
            stream,
            head: stream.head.replace(nothing),
            metadata: stream.metadata.take(),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        std::mem::swap(&mut self.head, &mut self.stream.head.borrow_mut());
        std::mem::swap(&mut self.metadata, &mut self.stream.metadata.borrow_mut());
    }
}

impl Request for RequestHead {
    fn header(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        self.header_text(name)
    }

    fn any_value(&self, name: &str, holds: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        self.any_header_value(name, holds)
    }

    fn path(&self) -> &str {
        Self::path(self)
    }

    fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<std::borrow::Cow<'_, str>> {
        None
    }
}

impl JwtRequest for RequestHead {
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

async fn jwt(stream: &Stream, config: &Arc<JwtAuthn>) -> Result<(), Stop> {
    let prefix = format!("http.{}.", stream.manager.stat_prefix);
    let filter = stream.connection.worker.jwks.filter(config, &prefix);
    let mut lent = Lent::of(stream);
    let Lent { head, metadata, .. } = &mut lent;
    // Routes are looked for once, after the filters: there is no choice to clear.
    match filter.authenticate(head, metadata, SystemTime::now()).await {
        Ok(_) => Ok(()),
        Err(refusal) => Err(refused(refusal).into()),
    }
}

fn refused(refusal: Refusal) -> LocalReply {
    let why = match &refusal.reason {
        Some(reason) => (ResponseFlag::None, reason.to_string()),
        None => (
            ResponseFlag::DownstreamProtocolError,
            "a claim cannot be a header".to_owned(),
        ),
    };
    let mut reply = LocalReply::text(refusal.status, refusal.body, "");
    reply.details = refusal.details.into();
    reply
        .headers
        .extend(refusal.www_authenticate.map(|value| (WWW_AUTHENTICATE, value)));
    reply.because(why.0, &format!("JWT: {}", why.1))
}
