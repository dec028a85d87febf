//! The figures: their names and units, and the samples of a run.

use clap::ValueEnum;

/// A group of figures that is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Small requests over 64 connections.
    Rps,
    /// Small requests over one connection.
    Latency,
    /// New connections.
    Connections,
    /// Bulk transfers up and down.
    Bulk,
    /// Memory of idle connections.
    Idle,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    RequestCpu,
    RequestRate,
    RequestP50,
    RequestP99,
    LatencyP50,
    LatencyP99,
    ConnectionCpu,
    ConnectionRate,
    UpCpu,
    UpRate,
    DownCpu,
    DownRate,
    IdleConnection,
    IdleProxy,
    InboundStart,
    OutboundStart,
    FirstResponse,
    Others,
}

/// How a figure is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    /// Its name in JSON.
    pub(crate) key: &'static str,
    /// Its name in tables.
    pub(crate) label: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Digits after the point.
    pub(crate) decimals: usize,
}

impl Figure {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 18] = [
        Self::RequestCpu,
        Self::RequestRate,
        Self::RequestP50,
        Self::RequestP99,
        Self::LatencyP50,
        Self::LatencyP99,
        Self::ConnectionCpu,
        Self::ConnectionRate,
        Self::UpCpu,
        Self::UpRate,
        Self::DownCpu,
        Self::DownRate,
        Self::IdleConnection,
        Self::IdleProxy,
        Self::InboundStart,
        Self::OutboundStart,
        Self::FirstResponse,
        Self::Others,
    ];

    /// How it is shown.
    pub(crate) fn text(self) -> Text {
        let (key, label, unit, decimals) = match self {
            Self::RequestCpu => ("request_cpu_us", "small requests: CPU each", "µs", 1),
            Self::RequestRate => ("request_rate", "small requests: rate", "/s", 0),
            Self::RequestP50 => ("request_p50_us", "small requests: p50", "µs", 0),
            Self::RequestP99 => ("request_p99_us", "small requests: p99", "µs", 0),
            Self::LatencyP50 => ("latency_p50_us", "one connection: p50", "µs", 0),
            Self::LatencyP99 => ("latency_p99_us", "one connection: p99", "µs", 0),
            Self::ConnectionCpu => ("connection_cpu_us", "new connections: CPU each", "µs", 0),
            Self::ConnectionRate => ("connection_rate", "new connections: rate", "/s", 0),
            Self::UpCpu => ("bulk_up_cpu_s_gb", "bulk up: CPU a GB", "s", 2),
            Self::UpRate => ("bulk_up_gbit_s", "bulk up: rate", "Gbit/s", 2),
            Self::DownCpu => ("bulk_down_cpu_s_gb", "bulk down: CPU a GB", "s", 2),
            Self::DownRate => ("bulk_down_gbit_s", "bulk down: rate", "Gbit/s", 2),
            Self::IdleConnection => ("idle_connection_kb", "idle connection: PSS a proxy", "KB", 1),
            Self::IdleProxy => ("idle_proxy_mb", "idle proxy: PSS", "MB", 1),
            Self::InboundStart => ("start_inbound_ms", "start: inbound listens", "ms", 0),
            Self::OutboundStart => ("start_outbound_ms", "start: outbound listens", "ms", 0),
            Self::FirstResponse => ("first_response_ms", "start: first response", "ms", 0),
            Self::Others => ("others_percent", "(machine used by others)", "%", 0),
        };
        Text {
            key,
            label,
            unit,
            decimals,
        }
    }
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
    /// All, sorted.
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

    /// One cell of the table; `None` where nothing was measured.
    pub(crate) fn summary(&self, peer: &str, figure: Figure) -> Option<Summary> {
        let fits = self.0.iter().filter(|it| it.0 == peer && it.1 == figure);
        let mut all: Vec<f64> = fits.map(|it| it.2).collect();
        all.sort_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len() % 2 == 1 {
            all[middle]
        } else {
            f64::midpoint(all[middle - 1], all[middle])
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
    use super::{Figure, Samples};

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        let mut samples = Samples::default();
        assert_eq!(samples.summary("a", Figure::UpCpu), None);
        for value in [9.0, 1.0, 2.0] {
            samples.add("a", [(Figure::UpCpu, value), (Figure::UpRate, 100.0)]);
            samples.add("b", [(Figure::UpCpu, 100.0)]);
        }
        let summary = samples.summary("a", Figure::UpCpu).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.0, 9.0));
        samples.add("a", [(Figure::UpCpu, 3.0)]);
        assert_eq!(samples.summary("a", Figure::UpCpu).unwrap().median, 2.5);
    }
}
