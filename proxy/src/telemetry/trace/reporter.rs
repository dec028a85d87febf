//! A worker's spans on their way to the collector: gathered, written, and handed to a sender.
//!
//! Reporting a span never waits. At most so many are kept; what comes while a slow collector holds them back
//! is dropped and counted. Owns the spans; the sender owns connections and timeouts.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval_at};

use super::otlp::OtlpWriter;
use super::span::{LocalService, Span};
use super::zipkin::ZipkinWriter;
use crate::model::http::TracingProvider;
use crate::telemetry::metrics::http::{OpenTelemetryMetrics, ZipkinMetrics};
use crate::telemetry::metrics::{Counter, Scope, registry};

/// Envoy's `tracing.….flush_interval_ms`.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Envoy's `tracing.….min_flush_spans`: so many go without waiting for the time.
const MIN_FLUSH_SPANS: usize = 5;

/// Spans kept while a batch is under way: Envoy's default of `max_cache_size`, here for Zipkin too.
const MAX_SPANS: usize = 1024;

/// Writes spans for a collector.
pub trait Writer {
    /// Of what it writes.
    fn content_type(&self) -> &'static str;
    /// One batch.
    fn write(&self, spans: &[Span]) -> Vec<u8>;
}

/// What is sent at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many spans are in it.
    pub spans: usize,
    /// Of its body.
    pub content_type: &'static str,
    /// For gRPC, the message without its frame.
    pub body: Vec<u8>,
}

/// Why a batch did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The collector's cluster is not there.
    #[error("the collector's cluster is not known")]
    NoCluster,
    /// An answer that is no success.
    #[error("the collector answered {0}")]
    Refused(u16),
    /// No answer.
    #[error("the collector did not answer")]
    Failed,
}

/// Sends batches to a collector, one at a time: no second one is given before the first one's end. It must
/// come to an end itself, as by a timeout.
pub trait BatchSender {
    /// Sends one.
    fn send(&self, batch: Batch) -> impl Future<Output = Result<(), SendError>>;
}

/// Takes the spans of one worker for one provider. When it is dropped, what it has is sent, and
/// [`Reporter::new`]'s task ends.
#[derive(Debug)]
pub struct Reporter {
    buffer: Rc<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    spans: RefCell<Vec<Span>>,
    max: usize,
    closed: Cell<bool>,
    wake: Notify,
    counts: Counts,
}

#[derive(Debug)]
enum Counts {
    Zipkin {
        metrics: ZipkinMetrics,
        dropped: Counter,
        _scope: Scope,
    },
    OpenTelemetry(OpenTelemetryMetrics),
}

impl Reporter {
    /// A reporter to the collector of `provider`, and the task that sends: it belongs on the worker's own
    /// runtime.
    pub fn new<S: BatchSender>(
        provider: &TracingProvider,
        local: LocalService,
        sender: S,
    ) -> (Self, impl Future<Output = ()> + use<S>) {
        let (writer, counts, max): (Box<dyn Writer>, _, _) = match provider {
            TracingProvider::Zipkin(zipkin) => (
                Box::new(ZipkinWriter::new(zipkin.format, local)),
                Counts::zipkin(),
                MAX_SPANS,
            ),
            TracingProvider::OpenTelemetry(config) => (
                Box::new(OtlpWriter::new(config.clone())),
                Counts::OpenTelemetry(OpenTelemetryMetrics::new()),
                usize::try_from(config.max_cache_size).unwrap_or(MAX_SPANS),
            ),
        };
        let buffer = Rc::new(Buffer {
            spans: RefCell::default(),
            max,
            closed: Cell::new(false),
            wake: Notify::new(),
            counts,
        });
        let task = run(Rc::clone(&buffer), writer, sender);
        (Self { buffer }, task)
    }

    /// Takes a span that has ended. One that is not sampled goes nowhere.
    pub fn report(&self, span: Span) {
        if !span.context.sampled {
            return;
        }
        let buffer = &self.buffer;
        let mut spans = buffer.spans.borrow_mut();
        if spans.len() >= buffer.max {
            buffer.counts.dropped(1);
            return;
        }
        spans.push(span);
        if spans.len() == MIN_FLUSH_SPANS.min(buffer.max) {
            buffer.wake.notify_one();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.buffer.closed.set(true);
        self.buffer.wake.notify_one();
    }
}

async fn run(buffer: Rc<Buffer>, writer: Box<dyn Writer>, sender: impl BatchSender) {
    let mut timer = interval_at(tokio::time::Instant::now() + FLUSH_INTERVAL, FLUSH_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let timed = {
            let woken = pin!(buffer.wake.notified());
            tokio::select! {
                () = woken => false,
                _ = timer.tick() => true,
            }
        };
        let closed = buffer.closed.get();
        if timed {
            buffer.counts.timer_flushed();
        }
        let spans = std::mem::take(&mut *buffer.spans.borrow_mut());
        if !spans.is_empty() {
            let batch = Batch {
                spans: spans.len(),
                content_type: writer.content_type(),
                body: writer.write(&spans),
            };
            drop(spans);
            let number = batch.spans;
            let outcome = sender.send(batch).await;
            buffer.counts.sent(number, outcome);
        }
        if closed {
            return;
        }
    }
}

impl Counts {
    fn zipkin() -> Self {
        let scope = registry().scope("tracing.");
        Self::Zipkin {
            metrics: ZipkinMetrics::new(),
            dropped: scope.own_counter("attache_tracing_spans_dropped", &[("tracer", "zipkin")]),
            _scope: scope,
        }
    }

    fn dropped(&self, number: u64) {
        match self {
            Self::Zipkin { dropped, .. } => dropped.increment(number),
            Self::OpenTelemetry(metrics) => metrics.spans_dropped.increment(number),
        }
    }

    fn timer_flushed(&self) {
        match self {
            Self::Zipkin { metrics, .. } => metrics.timer_flushed.increment(1),
            Self::OpenTelemetry(metrics) => metrics.timer_flushed.increment(1),
        }
    }

    fn sent(&self, spans: usize, outcome: Result<(), SendError>) {
        let spans = u64::try_from(spans).unwrap_or(0);
        match self {
            Self::Zipkin { metrics, .. } => {
                metrics.spans_sent.increment(spans);
                let report = match outcome {
                    Ok(()) => &metrics.reports_sent,
                    Err(SendError::NoCluster) => &metrics.reports_skipped_no_cluster,
                    Err(SendError::Refused(_)) => &metrics.reports_dropped,
                    Err(SendError::Failed) => &metrics.reports_failed,
                };
                report.increment(1);
            }
            Self::OpenTelemetry(metrics) if outcome.is_ok() => metrics.spans_sent.increment(spans),
            Self::OpenTelemetry(metrics) => metrics.spans_dropped.increment(spans),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::sync::Semaphore;
    use tokio::task::{JoinHandle, LocalSet};

    use super::*;
    use crate::telemetry::metrics::registry::Value;
    use crate::telemetry::trace::testing::{open_telemetry, span, zipkin};

    /// A collector that answers when it is allowed to.
    #[derive(Clone)]
    struct Collector {
        got: Rc<RefCell<Vec<usize>>>,
        answers: Rc<Semaphore>,
        outcome: Result<(), SendError>,
    }

    impl BatchSender for Collector {
        async fn send(&self, batch: Batch) -> Result<(), SendError> {
            assert!(!batch.body.is_empty());
            self.got.borrow_mut().push(batch.spans);
            self.answers.acquire().await.unwrap().forget();
            self.outcome
        }
    }

    fn collector(outcome: Result<(), SendError>) -> Collector {
        Collector {
            got: Rc::default(),
            answers: Rc::new(Semaphore::new(0)),
            outcome,
        }
    }

    fn start(provider: &TracingProvider, collector: &Collector) -> (Reporter, JoinHandle<()>) {
        let (reporter, task) = Reporter::new(provider, LocalService::default(), collector.clone());
        (reporter, tokio::task::spawn_local(task))
    }

    fn test(body: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, body);
    }

    fn report(reporter: &Reporter, number: usize) {
        for _ in 0..number {
            reporter.report(span(SystemTime::UNIX_EPOCH));
        }
    }

    #[test]
    fn a_few_go_at_once_and_fewer_after_a_while() {
        test(async {
            let collector = collector(Ok(()));
            collector.answers.add_permits(2);
            let (reporter, task) = start(&zipkin(false), &collector);
            report(&reporter, 5);
            while collector.got.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            let before = tokio::time::Instant::now();
            report(&reporter, 1);
            while collector.got.borrow().len() < 2 {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            assert!(
                before.elapsed() >= Duration::from_secs(4),
                "{:?}",
                before.elapsed()
            );
            assert_eq!(*collector.got.borrow(), [5, 1]);
            drop(reporter);
            task.await.unwrap();
        });
    }

    #[test]
    fn what_a_slow_collector_holds_back_is_bounded_and_sent_at_the_end() {
        test(async {
            let collector = collector(Ok(()));
            let TracingProvider::OpenTelemetry(mut config) = open_telemetry() else {
                panic!("OpenTelemetry")
            };
            config.max_cache_size = 7;
            let (reporter, task) = start(&TracingProvider::OpenTelemetry(config), &collector);
            report(&reporter, 5);
            while collector.got.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            report(&reporter, 9);
            let mut unsampled = span(SystemTime::UNIX_EPOCH);
            unsampled.context.sampled = false;
            reporter.report(unsampled);
            assert_eq!(reporter.buffer.spans.borrow().len(), 7);
            drop(reporter);
            collector.answers.add_permits(2);
            task.await.unwrap();
            assert_eq!(*collector.got.borrow(), [5, 7]);
        });
    }

    fn counted(name: &str) -> u64 {
        match registry()
            .collect(|found| found == name)
            .first()
            .map(|s| &s.value)
        {
            Some(Value::Counter { total, .. }) => *total,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn every_outcome_is_counted() {
        test(async {
            let counts = Counts::zipkin();
            let _held = OpenTelemetryMetrics::new();
            for (outcome, name) in [
                (Ok(()), "reports_sent"),
                (Err(SendError::NoCluster), "reports_skipped_no_cluster"),
                (Err(SendError::Refused(500)), "reports_dropped"),
                (Err(SendError::Failed), "reports_failed"),
            ] {
                let name = format!("tracing.zipkin.{name}");
                let before = counted(&name);
                counts.sent(3, outcome);
                // Other tests count too.
                assert!(counted(&name) > before, "{name}");
            }
            let names = [
                "tracing.opentelemetry.spans_sent",
                "tracing.opentelemetry.spans_dropped",
            ];
            let before = names.map(counted);
            let counts = Counts::OpenTelemetry(OpenTelemetryMetrics::new());
            counts.sent(3, Ok(()));
            counts.sent(2, Err(SendError::Failed));
            counts.dropped(1);
            let now = names.map(counted);
            assert!(
                now[0] >= before[0] + 3 && now[1] >= before[1] + 3,
                "{before:?} {now:?}"
            );
        });
    }
}
