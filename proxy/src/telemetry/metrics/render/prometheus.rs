//! The Prometheus text exposition format, version 0.0.4, as Envoy writes it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::telemetry::metrics::cell::{BUCKETS, Distribution};
use crate::telemetry::metrics::registry::{Identity, Sample, Tags, Value};

/// Renders the samples: counters, gauges, text readouts where `text_readouts` asks for them, then
/// histograms, each kind in the order of names.
pub fn render(samples: &[Sample], text_readouts: bool) -> String {
    let mut families: BTreeMap<(Kind, String), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let kind = match &sample.value {
            Value::Counter { .. } => Kind::Counter,
            Value::Gauge(_) | Value::FloatGauge(_) => Kind::Gauge,
            Value::Text(_) if text_readouts => Kind::Text,
            Value::Text(_) => continue,
            Value::Histogram { .. } => Kind::Histogram,
        };
        families
            .entry((kind, metric_name(&sample.identity)))
            .or_default()
            .push(sample);
    }
    let mut out = String::new();
    let mut labels = Labels::default();
    for ((kind, name), samples) in families {
        let _ = writeln!(out, "# TYPE {name} {}", kind.as_str());
        for sample in samples {
            let labels = labels.of(&sample.identity.tags);
            match &sample.value {
                Value::Counter { total, .. } => line(&mut out, &name, labels, total),
                Value::Gauge(level) => line(&mut out, &name, labels, &level.cast_unsigned()),
                Value::FloatGauge(level) => line(&mut out, &name, labels, level),
                Value::Histogram { all, .. } => histogram(&mut out, &name, labels, all),
                Value::Text(text) => {
                    let separator = if labels.is_empty() { "" } else { "," };
                    let text = escaped(text);
                    let _ = writeln!(out, "{name}{{{labels}{separator}text_value=\"{text}\"}} 0");
                }
            }
        }
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Counter,
    Gauge,
    Text,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Text => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The labels of the tags rendered last: those of a scope are mostly the same.
#[derive(Default)]
struct Labels {
    tags: Option<Tags>,
    rendered: String,
}

impl Labels {
    fn of(&mut self, tags: &Tags) -> &str {
        if !self.tags.as_ref().is_some_and(|last| Arc::ptr_eq(last, tags)) {
            self.rendered.clear();
            for (index, (tag, value)) in tags.iter().enumerate() {
                let separator = if index == 0 { "" } else { "," };
                let _ = write!(
                    self.rendered,
                    "{separator}{}=\"{}\"",
                    label_name(tag),
                    escaped(value)
                );
            }
            self.tags = Some(Arc::clone(tags));
        }
        &self.rendered
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: &impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn histogram(out: &mut String, name: &str, labels: &str, distribution: &Distribution) {
    let separator = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (index, count) in distribution.counts.iter().enumerate() {
        below += count;
        let _ = match BUCKETS.get(index) {
            Some(bound) => writeln!(out, "{name}_bucket{{{labels}{separator}le=\"{bound}\"}} {below}"),
            None => writeln!(out, "{name}_bucket{{{labels}{separator}le=\"+Inf\"}} {below}"),
        };
    }
    let _ = writeln!(
        out,
        "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {below}",
        distribution.sum
    );
}

/// `envoy_` and the name without its tags; Attaché's own stand as they are.
fn metric_name(identity: &Identity) -> String {
    let plain = plain(&identity.name);
    if identity.is_own() {
        plain
    } else {
        format!("envoy_{plain}")
    }
}

/// Letters, digits and `_`; anything else is a `_`.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

/// A label's name must not begin with a digit, or be empty.
fn label_name(tag: &str) -> String {
    let plain = plain(tag);
    match plain.as_bytes().first() {
        Some(first) if !first.is_ascii_digit() => plain,
        _ => format!("_{plain}"),
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
