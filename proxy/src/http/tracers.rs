//! A worker's tracers: the provider of each tracing configuration, its tags, and the way to its collector.
//!
//! Owns the reporters and sends their batches over the worker's pools, one at a time and bounded in time.
//! What a span says is `trace`'s.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::{self, Arc};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use super::client::{self, Answer, ClientError};
use super::message::{RequestHead, Version};
use super::pool::Pools;
use crate::model::http::{OpenTelemetryTracer, TracerTarget, Tracing, TracingProvider, Zipkin};
use crate::model::{Name, Node};
use crate::net::machine;
use crate::telemetry::trace::{Batch, BatchSender, CustomTags, LocalService, Reporter, SendError};
use crate::upstream::{ClusterManager, ConnectError};

/// Envoy's `tracing.zipkin.request_timeout`; for gRPC too, where Envoy has none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of a collector's answer no more is read: it says nothing that is used.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where OTLP is sent over gRPC.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// One tracing configuration as it runs.
pub(super) struct Tracer {
    pub(super) provider: TracingProvider,
    pub(super) custom: CustomTags,
    pub(super) local: LocalService,
    /// None where the provider has no collector.
    pub(super) reporter: Option<Rc<Reporter>>,
}

/// One a worker.
pub(super) struct Tracers {
    pools: Weak<Pools>,
    clusters: Weak<ClusterManager>,
    node: RefCell<Arc<Node>>,
    /// The bootstrap's, of configurations without one.
    fallback: RefCell<Option<Arc<TracingProvider>>>,
    known: RefCell<Vec<(sync::Weak<Tracing>, Rc<Tracer>)>>,
    /// By provider: equal ones have one collector.
    reporters: RefCell<Vec<(TracingProvider, Weak<Reporter>)>>,
}

impl Tracers {
    pub(super) fn new(pools: &Rc<Pools>, clusters: &Rc<ClusterManager>) -> Self {
        Self {
            pools: Rc::downgrade(pools),
            clusters: Rc::downgrade(clusters),
            node: RefCell::default(),
            fallback: RefCell::default(),
            known: RefCell::default(),
            reporters: RefCell::default(),
        }
    }

    /// Takes what a snapshot says of this proxy and of the bootstrap's provider.
    pub(super) fn apply(&self, node: &Arc<Node>, fallback: Option<&Arc<TracingProvider>>) {
        let same =
            self.node.borrow().as_ref() == node.as_ref() && self.fallback.borrow().as_ref() == fallback;
        self.node.borrow_mut().clone_from(node);
        *self.fallback.borrow_mut() = fallback.cloned();
        if !same {
            // Equal providers of another node are another service.
            self.reporters.borrow_mut().clear();
        }
        let mut known = self.known.borrow_mut();
        known.retain(|(tracing, _)| same && tracing.strong_count() > 0);
    }

    /// What runs of a configuration; none where neither it nor the bootstrap names a provider.
    #[expect(
        clippy::disallowed_methods,
        reason = "which variables a tag names is known with the configuration alone; read once a tracer"
    )]
    pub(super) fn get(&self, tracing: &Arc<Tracing>) -> Option<Rc<Tracer>> {
        let found = {
            let known = self.known.borrow();
            let found = known.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(tracing));
            found.map(|(_, tracer)| Rc::clone(tracer))
        };
        if found.is_some() {
            return found;
        }
        let provider = match &tracing.provider {
            Some(provider) => provider.clone(),
            None => TracingProvider::clone(self.fallback.borrow().as_ref()?),
        };
        let node = Arc::clone(&self.node.borrow());
        let local = LocalService {
            cluster: node.cluster.to_string(),
            node_id: node.id.to_string(),
            zone: node.zone.to_string(),
            address: Some(machine::address()),
        };
        let made = Rc::new(Tracer {
            custom: CustomTags::new(&tracing.custom_tags, |name| std::env::var(name).ok()),
            reporter: self.reporter(&provider, &local),
            provider,
            local,
        });
        let mut known = self.known.borrow_mut();
        known.push((Arc::downgrade(tracing), Rc::clone(&made)));
        Some(made)
    }

    fn reporter(&self, provider: &TracingProvider, local: &LocalService) -> Option<Rc<Reporter>> {
        let mut all = self.reporters.borrow_mut();
        let known = all.iter().find(|(of, _)| of == provider);
        if let Some(known) = known.and_then(|(_, reporter)| reporter.upgrade()) {
            return Some(known);
        }
        let collector = Collector::new(self.pools.clone(), self.clusters.clone(), provider)?;
        all.retain(|(_, reporter)| reporter.strong_count() > 0);
        let (reporter, task) = Reporter::new(provider, local.clone(), collector);
        tokio::task::spawn_local(task);
        let reporter = Rc::new(reporter);
        all.push((provider.clone(), Rc::downgrade(&reporter)));
        Some(reporter)
    }
}

/// Whether an answer means that the spans arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// 202.
    Zipkin,
    /// 2xx.
    Otlp,
    /// `grpc-status` 0.
    Grpc,
}

/// Sends batches to a cluster.
struct Collector {
    pools: Weak<Pools>,
    clusters: Weak<ClusterManager>,
    cluster: Name,
    /// Of each request, but for what depends on the batch.
    head: RequestHead,
    protocol: Protocol,
    patience: Duration,
}

impl Collector {
    fn new(pools: Weak<Pools>, clusters: Weak<ClusterManager>, provider: &TracingProvider) -> Option<Self> {
        let (cluster, head, protocol, patience) = match provider {
            TracingProvider::Zipkin(zipkin) => (
                Name::clone(&zipkin.collector_cluster),
                zipkin_head(zipkin),
                Protocol::Zipkin,
                PATIENCE,
            ),
            TracingProvider::OpenTelemetry(tracer) => match tracer.target.as_ref()? {
                TracerTarget::Grpc { cluster } => (
                    Name::clone(cluster),
                    grpc_head(cluster, tracer),
                    Protocol::Grpc,
                    PATIENCE,
                ),
                TracerTarget::Http {
                    cluster,
                    host,
                    path,
                    timeout,
                } => (
                    Name::clone(cluster),
                    post(host, path, headers(tracer)),
                    Protocol::Otlp,
                    // None set is none to Envoy; a sender must come to an end.
                    if timeout.is_zero() { PATIENCE } else { *timeout },
                ),
            },
        };
        Some(Self {
            pools,
            clusters,
            cluster,
            head,
            protocol,
            patience,
        })
    }

    async fn post(&self, batch: Batch) -> Result<(), SendError> {
        let (Some(pools), Some(clusters)) = (self.pools.upgrade(), self.clusters.upgrade()) else {
            return Err(SendError::Failed);
        };
        let mut head = self.head.clone();
        let body = match self.protocol {
            Protocol::Grpc => framed(&batch.body),
            Protocol::Zipkin | Protocol::Otlp => {
                let kind = HeaderValue::from_static(batch.content_type);
                head.headers.insert(CONTENT_TYPE, kind);
                head.headers.insert(CONTENT_LENGTH, batch.body.len().into());
                Bytes::from(batch.body)
            }
        };
        let asked = client::ask(&pools, &clusters, &self.cluster, &head, body, MAX_ANSWER_BYTES).await;
        let answer = asked.map_err(|error| {
            tracing::debug!(cluster = &*self.cluster, %error, "spans were not sent");
            match error {
                ClientError::Connect(ConnectError::NoCluster(_)) => SendError::NoCluster,
                _ => SendError::Failed,
            }
        })?;
        self.protocol.judge(&answer)
    }
}

impl BatchSender for Collector {
    async fn send(&self, batch: Batch) -> Result<(), SendError> {
        let sent = timeout(self.patience, self.post(batch)).await;
        sent.unwrap_or(Err(SendError::Failed))
    }
}

impl Protocol {
    fn judge(self, answer: &Answer) -> Result<(), SendError> {
        let arrived = match self {
            Self::Zipkin => answer.status == StatusCode::ACCEPTED,
            Self::Otlp => answer.status.is_success(),
            Self::Grpc => {
                let said = |headers: &HeaderMap| headers.get(GRPC_STATUS).map(|status| status == "0");
                let status = said(&answer.trailers).or_else(|| said(&answer.headers));
                answer.status == StatusCode::OK && status == Some(true)
            }
        };
        match arrived {
            true => Ok(()),
            false => Err(SendError::Refused(answer.status.as_u16())),
        }
    }
}

fn zipkin_head(zipkin: &Zipkin) -> RequestHead {
    let host = match &*zipkin.collector_hostname {
        "" => &zipkin.collector_cluster,
        host => host,
    };
    post(host, &zipkin.collector_endpoint, HeaderMap::new())
}

fn grpc_head(cluster: &str, tracer: &OpenTelemetryTracer) -> RequestHead {
    let mut headers = headers(tracer);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    RequestHead {
        version: Version::Http2,
        ..post(cluster, EXPORT, headers)
    }
}

fn post(host: &str, path: &str, headers: HeaderMap) -> RequestHead {
    RequestHead {
        authority: host.to_owned(),
        target: path.to_owned(),
        version: Version::Http11,
        headers,
        ..RequestHead::nothing(Method::POST)
    }
}

/// The configured ones; what is no header's is left out.
fn headers(tracer: &OpenTelemetryTracer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let agent = concat!("attache/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in &tracer.headers.0 {
        if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}

/// A message of gRPC, not compressed.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_arrived_counts() {
        let answer = |status: u16, headers: &[&'static str], trailers: &[&'static str]| {
            let map = |list: &[&'static str]| {
                let statuses = list.iter().map(|s| (GRPC_STATUS, HeaderValue::from_static(s)));
                statuses.collect::<HeaderMap>()
            };
            Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: map(headers),
                body: Bytes::new(),
                trailers: map(trailers),
            }
        };
        for (protocol, answer, arrived) in [
            (Protocol::Zipkin, answer(202, &[], &[]), true),
            (Protocol::Zipkin, answer(200, &[], &[]), false),
            (Protocol::Otlp, answer(200, &[], &[]), true),
            (Protocol::Otlp, answer(503, &[], &[]), false),
            (Protocol::Grpc, answer(200, &[], &["0"]), true),
            (Protocol::Grpc, answer(200, &["0"], &[]), true),
            (Protocol::Grpc, answer(200, &["14"], &[]), false),
            (Protocol::Grpc, answer(200, &[], &["8"]), false),
            (Protocol::Grpc, answer(200, &[], &[]), false),
            (Protocol::Grpc, answer(503, &[], &["0"]), false),
        ] {
            assert_eq!(
                protocol.judge(&answer).is_ok(),
                arrived,
                "{protocol:?} {answer:?}"
            );
        }
    }

    #[test]
    fn a_frame_begins_with_its_length() {
        assert_eq!(&framed(b"abc")[..], b"\0\0\0\0\x03abc");
    }
}
