//! Requests of our own to a cluster: key sets, and what tracers send.
//!
//! One try each, over the worker's pools. Who asks bounds its time; dropping it gives the request up.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::ready;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use hyper::header::HeaderMap;

use super::body::Chunk;
use super::exchange::{Exchange, ExchangeError};
use super::message::{RequestHead, Version};
use super::pool::{Acquired, Link, Pools};
use super::{h1, h2};
use crate::model::Name;
use crate::upstream::{ClusterManager, ConnectError, LoadBalancerContext};

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Empty where there are none.
    pub(super) trailers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The exchange failed.
    #[error("{0}")]
    Exchange(#[from] ExchangeError),
    /// The answer is larger than whoever asked can use.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The answer was cut, or the request is none.
    #[error("{0}")]
    Broken(String),
}

/// Sends a request with this body to an endpoint of `cluster` and reads at most `most` bytes of its answer.
///
/// # Errors
/// [`ClientError`].
pub(super) async fn ask(
    pools: &Rc<Pools>,
    clusters: &Rc<ClusterManager>,
    cluster: &Name,
    head: &RequestHead,
    body: Bytes,
    most: usize,
) -> Result<Answer, ClientError> {
    let context = LoadBalancerContext {
        per_request: true,
        ..LoadBalancerContext::default()
    };
    let http2 = head.version == Version::Http2;
    let acquired = pools.acquire(clusters, cluster, context, http2).await?;
    let Acquired {
        link,
        place: _counted,
        ..
    } = acquired;
    let bodyless = body.is_empty();
    let (mut exchange, lease) = match link {
        Link::Http1 { wire, lease } => {
            let exchange = h1::client::Exchange::begin(wire, head, bodyless);
            (Exchange::Http1(Box::new(exchange)), Some(lease))
        }
        Link::Http2(stream) => {
            let begun = h2::client::Exchange::begin(&mut stream.0.sender.borrow_mut(), head, bodyless);
            let exchange = begun.map_err(|error| ClientError::Broken(error.to_string()))?;
            (Exchange::Http2(Box::new(exchange)), None)
        }
    };
    if !bodyless {
        exchange.write(body)?;
        exchange.end(None)?;
    }
    let answer = poll_fn(|cx| {
        let _ = exchange.poll_flush(cx)?;
        exchange.poll_head(cx)
    })
    .await?;
    let (body, trailers) = read(&mut exchange, most).await?;
    if let (Exchange::Http1(exchange), Some(lease)) = (exchange, lease)
        && let Some(wire) = exchange.into_connection()
    {
        pools.give_back(wire, lease);
    }
    Ok(Answer {
        status: answer.status,
        headers: answer.headers,
        body,
        trailers,
    })
}

async fn read(exchange: &mut Exchange, most: usize) -> Result<(Bytes, HeaderMap), ClientError> {
    let mut all = BytesMut::new();
    let mut ends_with = HeaderMap::new();
    poll_fn(|cx| {
        while !exchange.has_ended() {
            match ready!(exchange.poll_body(cx)) {
                None => break,
                Some(Ok(Chunk::Trailers(trailers))) => {
                    ends_with = trailers;
                    break;
                }
                Some(Ok(Chunk::Data(bytes))) if all.len() + bytes.len() > most => {
                    return Err(ClientError::TooLarge(most)).into();
                }
                Some(Ok(Chunk::Data(bytes))) => all.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(ClientError::Broken(error.to_string())).into(),
            }
        }
        Ok(()).into()
    })
    .await?;
    Ok((all.freeze(), ends_with))
}
