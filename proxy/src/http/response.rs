//! The response of an upstream on its way to the downstream, beside what is left of the request: piece by piece, or
//! held as a whole for gRPC's bridge to HTTP/1.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use hyper::StatusCode;
use hyper::header::CONTENT_LENGTH;

use super::body::{BodyError, Chunk};
use super::filters;
use super::headers;
use super::local_reply::LocalReply;
use super::message::{ResponseHead, Version};
use super::route::{self, Plan};
use super::stream::{ATTEMPT_COUNT, Stop, Stream};
use super::trace;
use super::upstream::{self, Live, TryError};
use crate::model::http::HttpFilter;
use crate::telemetry::ResponseFlag;

/// The largest answer of gRPC to a downstream of HTTP/1, held until its trailers are there: Envoy's default for
/// `per_connection_buffer_limit_bytes`.
const BRIDGED_BYTES: usize = 1024 * 1024;

impl Stream {
    /// Hands the response on, and what is left of the request.
    pub(super) async fn respond(
        &self,
        plan: &Plan<'_>,
        mut head: ResponseHead,
        mut live: Live,
    ) -> Result<(), Stop> {
        live.stands(self);
        if let Some(call) = &mut *self.call.borrow_mut() {
            call.ended(&head.headers);
        }
        headers::received_response(self, plan, &mut head.headers);
        self.facts.status.set(Some(head.status));
        self.facts.details.replace("via_upstream".into());
        route::change_response(self, plan.share, &mut head.headers);
        if plan.tell_attempts.1 {
            head.headers
                .insert(ATTEMPT_COUNT, self.facts.attempts.get().into());
        }
        self.finish_response_headers(&mut head);
        if self.bridges() {
            return self.bridge(head, live).await;
        }
        let end = live.exchange.has_ended();
        self.start(head, end)?;
        let mut changed = pin!(self.connection.worker.changed.notified());
        changed.as_mut().enable();
        let (mut over, mut piece) = (end, None);
        poll_fn(|cx| {
            if changed.as_mut().poll(cx).is_ready() {
                changed.set(self.connection.worker.changed.notified());
                changed.as_mut().enable();
                if let Some(policy) = filters::denied_now(self) {
                    return Poll::Ready(Err(Stop::Reset(
                        ResponseFlag::UnauthorizedDetails,
                        format!("reset: newer rules deny it ({policy})"),
                    )));
                }
            }
            // What the upstream does not want any more of a request does not matter once it has answered.
            let request = upstream::poll_request(self, &mut live, cx);
            if let Poll::Ready(Err(TryError::Stop(stop))) = request {
                return Poll::Ready(Err(stop));
            }
            while !over {
                match self.poll_response(&mut live, &mut piece, cx) {
                    Poll::Ready(Ok(true)) => over = true,
                    Poll::Ready(Ok(false)) => {}
                    Poll::Ready(Err(stop)) => return Poll::Ready(Err(stop)),
                    Poll::Pending => {
                        live.exchange.fetch(cx);
                        let _ = self.sink.poll_flush(cx)?;
                        return Poll::Pending;
                    }
                }
            }
            ready!(self.sink.poll_flush(cx))?;
            Poll::Ready(Ok(()))
        })
        .await?;
        let took = self.clock.since_request_end();
        live.cluster().http_metrics().response_complete(false, took);
        live.give_back(self);
        Ok(())
    }

    /// Whether gRPC's trailers become headers for a downstream of HTTP/1 (`grpc_http1_bridge`).
    fn bridges(&self) -> bool {
        let bridge = |filter: &HttpFilter| matches!(filter, HttpFilter::GrpcHttp1Bridge);
        let head = self.head.borrow();
        head.version != Version::Http2 && head.is_grpc() && self.manager.http_filters.iter().any(bridge)
    }

    /// Holds the response until its trailers are there, as far as a downstream of gRPC may send at once.
    async fn bridge(&self, mut head: ResponseHead, mut live: Live) -> Result<(), Stop> {
        self.facts.details.replace("via_upstream".into());
        let mut body = BytesMut::new();
        let ends_with = poll_fn(|cx| {
            let _ = upstream::poll_request(self, &mut live, cx);
            loop {
                if live.exchange.has_ended() {
                    return Poll::Ready(Ok(None));
                }
                match ready!(live.exchange.poll_body(cx)) {
                    None => return Poll::Ready(Ok(None)),
                    Some(Ok(Chunk::Trailers(trailers))) => {
                        if let Some(call) = &mut *self.call.borrow_mut() {
                            call.ended(&trailers);
                        }
                        return Poll::Ready(Ok(Some(trailers)));
                    }
                    Some(Ok(Chunk::Data(bytes))) if body.len() + bytes.len() > BRIDGED_BYTES => {
                        return Poll::Ready(Err(too_large()));
                    }
                    Some(Ok(Chunk::Data(bytes))) => body.extend_from_slice(&bytes),
                    Some(Err(error)) => {
                        let why = format!("the response was cut: {error}");
                        return Poll::Ready(Err(Stop::Reset(
                            ResponseFlag::UpstreamConnectionTermination,
                            why,
                        )));
                    }
                }
            }
        })
        .await?;
        if let Some(trailers) = ends_with.filter(|trailers| trailers.contains_key("grpc-status")) {
            for name in ["grpc-status", "grpc-message"] {
                if let Some(value) = trailers.get(name) {
                    head.headers.insert(name, value.clone());
                }
            }
            if trailers.get("grpc-status").is_some_and(|status| status != "0") {
                head.status = StatusCode::SERVICE_UNAVAILABLE;
            }
            head.headers.insert(CONTENT_LENGTH, body.len().into());
        }
        let took = self.clock.since_request_end();
        live.cluster().http_metrics().response_complete(false, took);
        live.give_back(self);
        self.start(head, body.is_empty())?;
        if !body.is_empty() {
            self.facts.sent.set(body.len() as u64);
            self.sink.write(Chunk::Data(body.freeze()))?;
            self.sink.end()?;
        }
        poll_fn(|cx| self.sink.poll_flush(cx)).await?;
        Ok(())
    }

    /// One piece of the response, which waits in `piece` while the downstream takes none; true at its end.
    fn poll_response(
        &self,
        live: &mut Live,
        piece: &mut Option<Chunk>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Stop>> {
        let read = match piece.take() {
            Some(piece) => Some(Ok(piece)),
            None => ready!(live.exchange.poll_body(cx)),
        };
        match read {
            Some(Ok(chunk)) => {
                if let Chunk::Data(bytes) = &chunk
                    && !bytes.is_empty()
                    && self.sink.poll_ready(bytes.len(), cx)?.is_pending()
                {
                    *piece = Some(chunk);
                    return Poll::Pending;
                }
                self.clock.moved();
                let last = matches!(chunk, Chunk::Trailers(_));
                self.passed(&chunk);
                self.sink.write(chunk)?;
                if !last && live.exchange.has_ended() {
                    self.sink.end()?;
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Ok(last))
            }
            Some(Err(error)) => {
                let flag = match &error {
                    BodyError::Malformed(_) => ResponseFlag::UpstreamProtocolError,
                    BodyError::Http2(error) if error.is_reset() && error.is_remote() => {
                        ResponseFlag::UpstreamRemoteReset
                    }
                    BodyError::Incomplete | BodyError::Io(_) | BodyError::Http2(_) => {
                        live.ended_by_endpoint();
                        ResponseFlag::UpstreamConnectionTermination
                    }
                };
                Poll::Ready(Err(Stop::Reset(flag, format!("the response was cut: {error}"))))
            }
            None => {
                self.sink.end()?;
                Poll::Ready(Ok(true))
            }
        }
    }

    /// Counts a piece of the response.
    fn passed(&self, chunk: &Chunk) {
        let call = &mut *self.call.borrow_mut();
        match (chunk, call) {
            (Chunk::Data(bytes), call) => {
                self.facts.sent.set(self.facts.sent.get() + bytes.len() as u64);
                if let Some(call) = call {
                    call.responded(bytes);
                }
            }
            (Chunk::Trailers(trailers), Some(call)) => call.ended(trailers),
            (Chunk::Trailers(_), None) => {}
        }
        if let Chunk::Trailers(trailers) = chunk {
            trace::responded(self, trailers);
        }
    }
}

fn too_large() -> Stop {
    LocalReply::text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "Internal Server Error",
        "response_payload_too_large",
    )
    .because(
        ResponseFlag::LocalReset,
        "more of a response than is held for a bridge",
    )
    .into()
}
