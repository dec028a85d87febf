//! The figures: what they are called and measured in, and the samples of a run.

use clap::ValueEnum;

use crate::kind::Kind;

/// A group of figures that is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Requests of each size at each concurrency.
    Requests,
    /// New connections, with resumed sessions and without (TCP).
    Connections,
    /// Bulk transfers up and down (not gRPC).
    Bulk,
    /// Memory of idle connections.
    Idle,
    /// Memory after many connections came and went.
    Churn,
    /// What an outbound sidecar uses that has 100 upstreams and nothing to do.
    Upstreams,
    /// Two workers instead of one; few busy connections among many open ones.
    Scaling,
}

/// What was measured, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    RequestCpu,
    RequestRate,
    RequestP50,
    RequestP99,
    ResumedCpu,
    ResumedRate,
    FullCpu,
    FullRate,
    UpCpu,
    UpRate,
    DownCpu,
    DownRate,
    IdleConnection,
    IdleProxy,
    ChurnBefore,
    ChurnAfter,
    UpstreamsCpu,
    UpstreamsSleeps,
    UpstreamsMemory,
    WorkerCpu,
    WorkersCpu,
    WorkersRatio,
    OutboundShare,
    InboundShare,
    AloneCpu,
    CrowdCpu,
    CrowdRatio,
    InboundStart,
    OutboundStart,
    FirstResponse,
    Others,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    /// What the sidecars carried.
    pub(crate) kind: Kind,
    /// What was measured.
    pub(crate) what: What,
    /// Bytes of a response, where that is a choice.
    pub(crate) size: usize,
    /// Connections, or requests at once, where that is a choice.
    pub(crate) count: usize,
}

/// Which values of a figure are the good ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Small ones.
    Lower,
    /// Great ones.
    Higher,
    /// It says nothing about a peer.
    Neither,
}

/// How a figure is shown.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    /// Its name in JSON.
    pub(crate) key: String,
    /// Its name in tables.
    pub(crate) label: String,
    /// The same where the kind is known.
    pub(crate) short: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Digits after the point.
    pub(crate) decimals: usize,
    /// How to read it.
    pub(crate) better: Better,
}

impl Figure {
    /// One without a choice.
    pub(crate) fn new(kind: Kind, what: What) -> Self {
        Self::with_count(kind, what, 0)
    }

    /// One of so many connections.
    pub(crate) fn with_count(kind: Kind, what: What, count: usize) -> Self {
        Self {
            kind,
            what,
            size: 0,
            count,
        }
    }

    /// Where it stands in the table: by kind, and requests by size and concurrency.
    pub(crate) fn place(self) -> impl Ord {
        let is_request = self.what <= What::RequestP99;
        let group = if is_request { What::RequestCpu } else { self.what };
        (self.kind, group, self.size, self.count, self.what)
    }

    /// How it is shown.
    pub(crate) fn text(self) -> Text {
        let (key, label, unit, decimals) = self.what.text();
        let (kind, count) = (self.kind, grouped(self.count));
        let mut key = format!("{}_{key}", kind.key());
        if self.size > 0 {
            key = format!("{key}_{}b", self.size);
        }
        if self.count > 0 {
            key = format!("{key}_c{}", self.count);
        }
        let short = match (self.size, self.count) {
            (0, 0) => label.to_owned(),
            (0, _) => label.replace('#', &count),
            (size, _) => format!("{}, c={count}: {label}", size_text(size)),
        };
        let better = match self.what {
            What::RequestRate | What::ResumedRate | What::FullRate | What::UpRate | What::DownRate => {
                Better::Higher
            }
            What::Others => Better::Neither,
            _ => Better::Lower,
        };
        Text {
            key,
            label: format!("{}, {short}", kind.label()),
            short,
            unit,
            decimals,
            better,
        }
    }
}

impl What {
    /// Whether it compares a peer with itself: its ratio to Envoy's would say nothing more.
    pub(crate) fn is_relative(self) -> bool {
        matches!(
            self,
            Self::WorkersRatio | Self::CrowdRatio | Self::OutboundShare | Self::InboundShare
        )
    }

    /// Key, label (with `#` where a count belongs), unit, digits after the point.
    fn text(self) -> (&'static str, &'static str, &'static str, usize) {
        match self {
            Self::RequestCpu => ("request_cpu_us", "CPU a request", "µs", 1),
            Self::RequestRate => ("request_rate", "requests", "/s", 0),
            Self::RequestP50 => ("request_p50_us", "p50", "µs", 0),
            Self::RequestP99 => ("request_p99_us", "p99", "µs", 0),
            Self::ResumedCpu => ("resumed_cpu_us", "new connections: CPU each", "µs", 0),
            Self::ResumedRate => ("resumed_rate", "new connections: rate", "/s", 0),
            Self::FullCpu => (
                "full_cpu_us",
                "new connections, full handshake: CPU each",
                "µs",
                0,
            ),
            Self::FullRate => ("full_rate", "new connections, full handshake: rate", "/s", 0),
            Self::UpCpu => ("bulk_up_cpu_s_gb", "bulk up: CPU a GB", "s", 2),
            Self::UpRate => ("bulk_up_gbit_s", "bulk up: rate", "Gbit/s", 2),
            Self::DownCpu => ("bulk_down_cpu_s_gb", "bulk down: CPU a GB", "s", 2),
            Self::DownRate => ("bulk_down_gbit_s", "bulk down: rate", "Gbit/s", 2),
            Self::IdleConnection => ("idle_connection_kb", "# idle: memory of one in a proxy", "KB", 1),
            Self::IdleProxy => ("idle_proxy_mb", "idle proxy: PSS", "MB", 1),
            Self::ChurnBefore => ("churn_before_mb", "before # connections: PSS a proxy", "MB", 1),
            Self::ChurnAfter => ("churn_after_mb", "after # connections: PSS a proxy", "MB", 1),
            Self::UpstreamsCpu => ("upstreams_cpu_ms", "# upstreams, idle: CPU in 10 s", "ms", 1),
            Self::UpstreamsSleeps => ("upstreams_wakeups", "# upstreams, idle: wake-ups in 10 s", "", 0),
            Self::UpstreamsMemory => ("upstreams_mb", "# upstreams, idle: PSS", "MB", 1),
            Self::WorkerCpu => ("worker_cpu_us", "c=#, 1 worker: CPU a request", "µs", 1),
            Self::WorkersCpu => ("workers_cpu_us", "c=#, 2 workers: CPU a request", "µs", 1),
            Self::WorkersRatio => ("workers_ratio", "c=#: CPU a request, 2 workers to 1", "×", 2),
            Self::OutboundShare => ("outbound_share", "c=#: outbound's busier worker", "%", 0),
            Self::InboundShare => ("inbound_share", "c=#: inbound's busier worker", "%", 0),
            Self::AloneCpu => ("alone_cpu_us", "100 busy alone: CPU a request", "µs", 1),
            Self::CrowdCpu => ("crowd_cpu_us", "100 busy of # open: CPU a request", "µs", 1),
            Self::CrowdRatio => ("crowd_ratio", "100 busy of # open to 100 alone: CPU", "×", 2),
            Self::InboundStart => ("start_inbound_ms", "start: inbound listens", "ms", 0),
            Self::OutboundStart => ("start_outbound_ms", "start: outbound listens", "ms", 0),
            Self::FirstResponse => ("first_response_ms", "start: first response", "ms", 0),
            Self::Others => ("others_percent", "(machine used by others)", "%", 0),
        }
    }
}

/// Bytes as a table shows them.
pub(crate) fn size_text(bytes: usize) -> String {
    const KIB: usize = 1024;
    if bytes >= KIB * KIB && bytes.is_multiple_of(KIB * KIB) {
        format!("{} MiB", bytes / (KIB * KIB))
    } else if bytes >= KIB && bytes.is_multiple_of(KIB) {
        format!("{} KiB", bytes / KIB)
    } else {
        format!("{bytes} B")
    }
}

/// A number with a comma before each three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for index in (first..digits.len()).step_by(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text += &digits[index..index + 3];
    }
    text
}

/// What each peer's turns gave.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(String, Figure, f64)>);

/// The middle of some samples, and how far they lie apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    /// Half of the samples are not above it.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// All, in the order of the rounds.
    pub(crate) all: Vec<f64>,
}

impl Samples {
    /// Adds what a turn gave.
    pub(crate) fn add(&mut self, peer: &str, turn: impl IntoIterator<Item = (Figure, f64)>) {
        let named = turn
            .into_iter()
            .map(|(figure, value)| (peer.to_owned(), figure, value));
        self.0.extend(named);
    }

    /// All figures that anybody has, in the order of the table.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = self.0.iter().map(|it| it.1).collect();
        figures.sort_by_key(|figure| figure.place());
        figures.dedup();
        figures
    }

    /// Whether anything was measured of this peer.
    pub(crate) fn has(&self, peer: &str) -> bool {
        self.0.iter().any(|it| it.0 == peer)
    }

    /// One cell of the table; `None` where nothing was measured.
    pub(crate) fn summary(&self, peer: &str, figure: Figure) -> Option<Summary> {
        let fits = self.0.iter().filter(|it| it.0 == peer && it.1 == figure);
        let all: Vec<f64> = fits.map(|it| it.2).collect();
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary {
            median,
            min,
            max,
            all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Samples, What, grouped, size_text};
    use crate::kind::Kind;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        let up = Figure::new(Kind::Tcp, What::UpCpu);
        let rate = Figure::new(Kind::Tcp, What::UpRate);
        let mut samples = Samples::default();
        assert_eq!(samples.summary("a", up), None);
        for value in [9.0, 1.0, 2.0] {
            samples.add("a", [(up, value), (rate, 100.0)]);
            samples.add("b", [(up, 100.0)]);
        }
        let summary = samples.summary("a", up).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.0, 9.0));
        assert_eq!(summary.all, [9.0, 1.0, 2.0]);
        samples.add("a", [(up, 3.0)]);
        assert_eq!(samples.summary("a", up).unwrap().median, 2.5);
    }

    #[test]
    fn the_table_goes_by_kind_and_requests_by_size_and_concurrency() {
        let request = |what, size, count| Figure {
            kind: Kind::Http1,
            what,
            size,
            count,
        };
        let ordered = [
            Figure::new(Kind::Tcp, What::Others),
            request(What::RequestCpu, 64, 1),
            request(What::RequestP99, 64, 1),
            request(What::RequestCpu, 64, 1000),
            request(What::RequestCpu, 1024, 1),
            Figure::new(Kind::Http1, What::IdleProxy),
        ];
        let mut samples = Samples::default();
        for figure in ordered.into_iter().rev().chain(ordered) {
            samples.add("a", [(figure, 1.0)]);
        }
        assert_eq!(samples.figures(), ordered);
        let text = ordered[3].text();
        assert_eq!(text.label, "HTTP/1.1, 64 B, c=1,000: CPU a request");
        assert_eq!(text.key, "http1_request_cpu_us_64b_c1000");
    }

    #[test]
    fn numbers_and_sizes_are_easy_to_read() {
        let numbers = [0, 12, 123, 1234, 10_000, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "12", "123", "1,234", "10,000", "1,234,567"]);
        let sizes = [64, 1000, 1024, 128 * 1024, 1024 * 1024].map(size_text);
        assert_eq!(sizes, ["64 B", "1000 B", "1 KiB", "128 KiB", "1 MiB"]);
    }
}
