//! The pages of Envoy's `/stats`: lines of text, and JSON.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use crate::telemetry::metrics::cell::Distribution;
use crate::telemetry::metrics::registry::{Sample, Value};

/// The quantiles that Envoy computes, in percent.
pub const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// `name: value` a line: text readouts, then counters and gauges, then histograms. Of a histogram,
/// Envoy shows the last interval and all time; here the interval is always `nan`.
pub fn text(samples: &[Sample]) -> String {
    let mut out = String::new();
    for Sample { name, value, .. } in in_order(samples) {
        let _ = match value {
            Value::Counter { total, .. } => writeln!(out, "{name}: {total}"),
            Value::Gauge(level) => writeln!(out, "{name}: {}", level.cast_unsigned()),
            Value::FloatGauge(level) => writeln!(out, "{name}: {level}"),
            Value::Text(text) => writeln!(out, "{name}: \"{}\"", text.escape_debug()),
            Value::Histogram { all, .. } => writeln!(out, "{name}: {}", summary(all)),
        };
    }
    out
}

/// Envoy's JSON: `{"stats": [{"name": …, "value": …}, …, {"histograms": {…}}]}`.
pub fn json(samples: &[Sample]) -> Json {
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for Sample { name, value, .. } in in_order(samples) {
        let value = match value {
            Value::Counter { total, .. } => json!(total),
            Value::Gauge(level) => json!(level.cast_unsigned()),
            Value::FloatGauge(level) => json!(level),
            Value::Text(text) => json!(&**text),
            Value::Histogram { all, .. } => {
                let values: Vec<Json> = QUANTILES
                    .iter()
                    .map(|percent| {
                        let cumulative = all.quantile(percent / 100.0);
                        json!({ "interval": null, "cumulative": cumulative })
                    })
                    .collect();
                histograms.push(json!({ "name": name, "values": values }));
                continue;
            }
        };
        stats.push(json!({ "name": name, "value": value }));
    }
    if !histograms.is_empty() {
        let mut shown = Map::new();
        shown.insert("supported_quantiles".to_owned(), json!(QUANTILES));
        shown.insert("computed_quantiles".to_owned(), Json::Array(histograms));
        stats.push(json!({ "histograms": shown }));
    }
    json!({ "stats": stats })
}

fn in_order(samples: &[Sample]) -> Vec<&Sample> {
    let mut samples: Vec<&Sample> = samples.iter().collect();
    samples.sort_by_key(|sample| match sample.value {
        Value::Text(_) => 0,
        Value::Counter { .. } | Value::Gauge(_) | Value::FloatGauge(_) => 1,
        Value::Histogram { .. } => 2,
    });
    samples
}

fn summary(distribution: &Distribution) -> String {
    let quantiles: Vec<String> = QUANTILES
        .iter()
        .filter_map(|percent| {
            Some(format!(
                "P{percent}(nan,{})",
                distribution.quantile(percent / 100.0)?
            ))
        })
        .collect();
    if quantiles.is_empty() {
        return "No recorded values".to_owned();
    }
    quantiles.join(" ")
}
