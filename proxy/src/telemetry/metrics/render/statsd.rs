//! Lines for statsd and DogStatsD.
//!
//! Counters are sent as what was added since the last flush, histograms as a value for each bucket that
//! grew, with a sample rate that says how many samples it stands for.

use std::fmt::Write;

use crate::telemetry::metrics::cell::{BUCKETS, Distribution};
use crate::telemetry::metrics::registry::{Sample, Value};

/// Which dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Full names, no tags (Envoy's `StatsdSink`).
    Statsd,
    /// Names without their tags, and the tags after them (Envoy's `DogStatsdSink`).
    DogStatsd,
}

/// The lines of samples that [`Registry::flush`](crate::telemetry::metrics::Registry::flush) gave. What
/// was never counted or set is left out, as Envoy does; so are text readouts.
pub fn lines(samples: &[Sample], dialect: Dialect, prefix: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for sample in samples.iter().filter(|sample| sample.used) {
        let name = match dialect {
            Dialect::Statsd => &*sample.name,
            Dialect::DogStatsd => &*sample.identity.name,
        };
        let name = plain(&format!("{prefix}.{name}"));
        let tags = match dialect {
            Dialect::Statsd => String::new(),
            Dialect::DogStatsd => tags(sample),
        };
        match &sample.value {
            Value::Counter { delta, .. } => lines.push(format!("{name}:{delta}|c{tags}")),
            Value::Gauge(level) => lines.push(format!("{name}:{}|g{tags}", level.cast_unsigned())),
            // A signed gauge would be taken for a change.
            Value::FloatGauge(level) => lines.push(format!("{name}:{}|g{tags}", level.max(0.0))),
            Value::Histogram { interval, .. } => timers(&mut lines, &name, &tags, interval),
            Value::Text(_) => {}
        }
    }
    lines
}

/// Joins lines to datagrams of at most `most` bytes; a longer line is one by itself.
pub fn datagrams(lines: &[String], most: usize) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= most => {
                last.push('\n');
                last.push_str(line);
            }
            _ => datagrams.push(line.clone()),
        }
    }
    datagrams
}

fn timers(lines: &mut Vec<String>, name: &str, tags: &str, interval: &Distribution) {
    for (bucket, count) in interval
        .counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
    {
        #[expect(clippy::cast_precision_loss, reason = "a figure in a text format")]
        let samples = *count as f64;
        let value = if *count == interval.count() {
            interval.sum / samples
        } else {
            let lower = bucket.checked_sub(1).map_or(0.0, |below| BUCKETS[below]);
            let upper = BUCKETS.get(bucket).copied().unwrap_or(lower);
            f64::midpoint(lower, upper)
        };
        let rate = match count {
            1 => String::new(),
            _ => format!("|@{}", 1.0 / samples),
        };
        lines.push(format!("{name}:{value}|ms{rate}{tags}"));
    }
}

fn tags(sample: &Sample) -> String {
    let mut tags = String::new();
    for (tag, value) in sample.identity.tags.iter() {
        let separator = if tags.is_empty() { "|#" } else { "," };
        let _ = write!(tags, "{separator}{}:{}", plain(tag), plain(value));
    }
    tags
}

/// Without the characters that end a name, a value or a line.
fn plain(text: &str) -> String {
    text.replace([':', '|', ',', '#', '@', '\n', '\r'], "_")
}
