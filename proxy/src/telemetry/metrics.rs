//! The recorder behind the `metrics` facade, and the handles that the data plane holds.
//!
//! A series is a name with labels; each thread that uses it has a cell of its own, so counting never
//! contends, and a scrape sums the cells. Handles are resolved once a listener or cluster, never on a
//! connection's path. Names and labels are those of Envoy's Prometheus output.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use crate::model::flags::ResponseFlag;

/// Envoy's default histogram buckets, milliseconds; `+Inf` comes after the last.
const BUCKETS_MS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// The one registry of a process.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);
    &REGISTRY
}

/// Makes [`registry`] the recorder behind `metrics::counter!` and its kin.
pub fn install() {
    // A second installation in one process (tests) finds the same registry in place.
    let _ = metrics::set_global_recorder(Front);
}

/// All series of a process.
#[derive(Debug, Default)]
pub struct Registry {
    series: Mutex<BTreeMap<String, Family>>,
}

#[derive(Debug, Default)]
struct Family {
    /// By rendered labels, such as `{envoy_cluster_name="local_app"}`.
    series: BTreeMap<String, Series>,
}

#[derive(Debug)]
enum Series {
    Counter(HashMap<ThreadId, Arc<Cell>>),
    Gauge(HashMap<ThreadId, Arc<GaugeCell>>),
    Histogram(HashMap<ThreadId, Arc<Buckets>>),
}

/// One thread's share of a counter, alone in its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

/// One thread's share of a gauge. Increments sum over threads; `set` is for gauges of one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
struct GaugeCell(AtomicU64);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BUCKETS_MS.len() + 1],
    /// Microseconds, so that sub-millisecond samples add up.
    sum_us: AtomicU64,
}

struct Front;

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

impl GaugeFn for GaugeCell {
    fn increment(&self, value: f64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + value).to_bits())
        });
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = BUCKETS_MS
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(BUCKETS_MS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "negative samples count as 0"
        )]
        self.sum_us
            .fetch_add((value.max(0.0) * 1000.0) as u64, Ordering::Relaxed);
    }
}

impl Recorder for Front {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        registry().counter(key.name(), &labels(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        registry().gauge(key.name(), &labels(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        registry().histogram(key.name(), &labels(key))
    }
}

fn labels(key: &Key) -> Vec<(&str, &str)> {
    key.labels().map(|label| (label.key(), label.value())).collect()
}

impl Registry {
    /// This thread's handle of a counter.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Counter {
        self.with_series(
            name,
            labels,
            || Series::Counter(HashMap::new()),
            |series| match series {
                Series::Counter(cells) => {
                    Some(Counter::from_arc(Arc::clone(cells.entry(thread()).or_default())))
                }
                Series::Gauge(_) | Series::Histogram(_) => None,
            },
        )
        .unwrap_or_else(Counter::noop)
    }

    /// This thread's handle of a gauge.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Gauge {
        self.with_series(
            name,
            labels,
            || Series::Gauge(HashMap::new()),
            |series| match series {
                Series::Gauge(cells) => Some(Gauge::from_arc(Arc::clone(cells.entry(thread()).or_default()))),
                Series::Counter(_) | Series::Histogram(_) => None,
            },
        )
        .unwrap_or_else(Gauge::noop)
    }

    /// This thread's handle of a histogram of milliseconds.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        self.with_series(
            name,
            labels,
            || Series::Histogram(HashMap::new()),
            |series| match series {
                Series::Histogram(cells) => Some(Histogram::from_arc(Arc::clone(
                    cells.entry(thread()).or_default(),
                ))),
                Series::Counter(_) | Series::Gauge(_) => None,
            },
        )
        .unwrap_or_else(Histogram::noop)
    }

    /// Forgets every series that has the label, such as those of a cluster that is gone.
    pub fn remove(&self, label: &str, value: &str) {
        let needle = render_labels(&[(label, value)]);
        let needle = needle.trim_matches(['{', '}']);
        for family in self.lock().values_mut() {
            family
                .series
                .retain(|labels, _| !labels.trim_matches(['{', '}']).split(',').any(|l| l == needle));
        }
    }

    /// The Prometheus text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in self.lock().iter() {
            let mut typed = false;
            for (labels, series) in &family.series {
                if !typed {
                    let _ = writeln!(out, "# TYPE {name} {}", series.kind());
                    typed = true;
                }
                series.render(name, labels, &mut out);
            }
        }
        out
    }

    fn with_series<T>(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        new: impl FnOnce() -> Series,
        f: impl FnOnce(&mut Series) -> T,
    ) -> T {
        let mut families = self.lock();
        let family = families.entry(name.to_owned()).or_default();
        f(family.series.entry(render_labels(labels)).or_insert_with(new))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn thread() -> ThreadId {
    std::thread::current().id()
}

fn render_labels(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let rendered: Vec<String> = labels
        .iter()
        .map(|(key, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{key}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", rendered.join(","))
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        match self {
            Self::Counter(cells) => {
                let sum: u64 = cells.values().map(|cell| cell.0.load(Ordering::Relaxed)).sum();
                let _ = writeln!(out, "{name}{labels} {sum}");
            }
            Self::Gauge(cells) => {
                let sum: f64 = cells
                    .values()
                    .map(|cell| f64::from_bits(cell.0.load(Ordering::Relaxed)))
                    .sum();
                let _ = writeln!(out, "{name}{labels} {sum}");
            }
            Self::Histogram(cells) => {
                let inner = labels.trim_matches(['{', '}']);
                let separator = if inner.is_empty() { "" } else { "," };
                let mut cumulative = 0;
                for i in 0..=BUCKETS_MS.len() {
                    cumulative += cells
                        .values()
                        .map(|b| b.counts[i].load(Ordering::Relaxed))
                        .sum::<u64>();
                    let bound = BUCKETS_MS
                        .get(i)
                        .map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                    let _ = writeln!(
                        out,
                        "{name}_bucket{{{inner}{separator}le=\"{bound}\"}} {cumulative}"
                    );
                }
                let sum: u64 = cells.values().map(|b| b.sum_us.load(Ordering::Relaxed)).sum();
                #[expect(clippy::cast_precision_loss, reason = "a sum in a text format")]
                let sum = sum as f64 / 1000.0;
                let _ = writeln!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {cumulative}");
            }
        }
    }
}

/// Envoy's label for a listener: its address with `_` for `:`. Names are `<what>:<address>`.
pub fn listener_label(listener: &str) -> String {
    listener
        .split_once(':')
        .map_or(listener, |(_, address)| address)
        .replace(':', "_")
}

/// The stat prefix that Consul gives its RBAC filter.
const RBAC: [(&str, &str); 1] = [("envoy_rbac_prefix", "connect_authz")];

/// A worker's handles for one listener.
#[derive(Debug)]
pub struct ListenerMetrics {
    /// `envoy_listener_downstream_cx_total`.
    pub opened: Counter,
    /// `envoy_listener_downstream_cx_active`.
    pub active: Gauge,
    /// `envoy_listener_ssl_handshake`.
    pub handshakes: Counter,
    /// `envoy_listener_ssl_connection_error`.
    pub handshake_errors: Counter,
    /// `envoy_rbac_allowed`.
    pub allowed: Counter,
    /// `envoy_rbac_denied`.
    pub denied: Counter,
    /// `attache_rbac_cut`: live connections that newer rules denied.
    pub cut: Counter,
    closed: Counter,
    received: Counter,
    sent: Counter,
    length: Histogram,
    flagged: [(ResponseFlag, Counter); 12],
}

impl ListenerMetrics {
    /// Resolves the handles for this thread.
    pub fn new(listener: &str) -> Self {
        let registry = registry();
        let address = listener_label(listener);
        let labels = [("envoy_listener_address", address.as_str())];
        let prefix = [("envoy_tcp_prefix", listener.split(':').next().unwrap_or(listener))];
        let counter = |name| registry.counter(name, &labels);
        let flagged = |flag: ResponseFlag| {
            let labels = [
                ("envoy_listener_address", address.as_str()),
                ("flag", flag.as_str()),
            ];
            (flag, registry.counter("attache_downstream_cx_ended", &labels))
        };
        Self {
            opened: counter("envoy_listener_downstream_cx_total"),
            active: registry.gauge("envoy_listener_downstream_cx_active", &labels),
            handshakes: counter("envoy_listener_ssl_handshake"),
            handshake_errors: counter("envoy_listener_ssl_connection_error"),
            allowed: registry.counter("envoy_rbac_allowed", &RBAC),
            denied: registry.counter("envoy_rbac_denied", &RBAC),
            cut: counter("attache_rbac_cut"),
            closed: counter("envoy_listener_downstream_cx_destroy"),
            received: registry.counter("envoy_tcp_downstream_cx_rx_bytes_total", &prefix),
            sent: registry.counter("envoy_tcp_downstream_cx_tx_bytes_total", &prefix),
            length: registry.histogram("envoy_listener_downstream_cx_length_ms", &labels),
            flagged: [
                flagged(ResponseFlag::UpstreamConnectionFailure),
                flagged(ResponseFlag::NoHealthyUpstream),
                flagged(ResponseFlag::UpstreamOverflow),
                flagged(ResponseFlag::NoClusterFound),
                flagged(ResponseFlag::NoRouteFound),
                flagged(ResponseFlag::DownstreamConnectionTermination),
                flagged(ResponseFlag::UpstreamConnectionTermination),
                flagged(ResponseFlag::UnauthorizedDetails),
                flagged(ResponseFlag::OverloadManager),
                flagged(ResponseFlag::StreamIdleTimeout),
                flagged(ResponseFlag::LocalReset),
                flagged(ResponseFlag::DownstreamProtocolError),
            ],
        }
    }

    /// Accounts for a connection that ended.
    pub fn closed(&self, received: u64, sent: u64, duration: Duration, flag: ResponseFlag) {
        self.closed.increment(1);
        self.active.decrement(1.0);
        self.received.increment(received);
        self.sent.increment(sent);
        self.length.record(duration.as_secs_f64() * 1000.0);
        if let Some((_, counter)) = self.flagged.iter().find(|(f, _)| *f == flag) {
            counter.increment(1);
        }
    }
}

/// A worker's handles for one cluster.
#[derive(Debug)]
pub struct ClusterMetrics {
    /// `envoy_cluster_upstream_cx_total`: dials begun.
    pub dialled: Counter,
    /// `envoy_cluster_upstream_cx_active`.
    pub active: Gauge,
    /// `envoy_cluster_upstream_cx_connect_fail`.
    pub connect_fail: Counter,
    /// `envoy_cluster_upstream_cx_connect_timeout`.
    pub connect_timeout: Counter,
    /// `envoy_cluster_upstream_cx_none_healthy`.
    pub none_healthy: Counter,
    /// `envoy_cluster_upstream_cx_overflow`.
    pub overflow: Counter,
    /// `envoy_cluster_upstream_cx_connect_ms`: dial and handshake.
    pub connect_ms: Histogram,
    /// `attache_cluster_waited`: connections that waited for a first or returning endpoint.
    pub waited: Counter,
}

impl ClusterMetrics {
    /// Resolves the handles for this thread.
    pub fn new(cluster: &str) -> Self {
        let registry = registry();
        let labels = [("envoy_cluster_name", cluster)];
        let counter = |name| registry.counter(name, &labels);
        Self {
            dialled: counter("envoy_cluster_upstream_cx_total"),
            active: registry.gauge("envoy_cluster_upstream_cx_active", &labels),
            connect_fail: counter("envoy_cluster_upstream_cx_connect_fail"),
            connect_timeout: counter("envoy_cluster_upstream_cx_connect_timeout"),
            none_healthy: counter("envoy_cluster_upstream_cx_none_healthy"),
            overflow: counter("envoy_cluster_upstream_cx_overflow"),
            connect_ms: registry.histogram("envoy_cluster_upstream_cx_connect_ms", &labels),
            waited: counter("attache_cluster_waited"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_summed_and_series_removed() {
        let registry = Registry::default();
        registry.counter("c", &[("l", "a\"b")]).increment(2);
        std::thread::scope(|scope| {
            scope.spawn(|| registry.counter("c", &[("l", "a\"b")]).increment(3));
        });
        registry.gauge("g", &[]).increment(4.0);
        registry.histogram("h", &[("l", "x")]).record(3.0);
        let text = registry.render();
        assert!(text.contains("# TYPE c counter\nc{l=\"a\\\"b\"} 5\n"), "{text}");
        assert!(text.contains("g 4\n"), "{text}");
        assert!(
            text.contains("h_bucket{l=\"x\",le=\"1\"} 0\nh_bucket{l=\"x\",le=\"5\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("h_sum{l=\"x\"} 3\nh_count{l=\"x\"} 1\n"), "{text}");
        registry.remove("l", "x");
        assert!(!registry.render().contains("h_bucket"));
    }
}
