//! `/stats` and `/stats/prometheus`: which statistics are asked for, and in which format.

use regex::{Regex, RegexBuilder};
use serde_json::Value as Json;

use super::query::Query;
use crate::telemetry::metrics::Registry;
use crate::telemetry::metrics::registry::{Sample, Value};
use crate::telemetry::metrics::render::{admin, prometheus};

/// A filter's compiled form is no larger.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// A page.
#[derive(Debug)]
pub(super) enum Page {
    /// Text, also Prometheus'.
    Text(String),
    /// JSON.
    Json(Json),
}

/// Answers `/stats?…`.
///
/// # Errors
/// Says which parameter cannot be used, and what could.
pub(super) fn page(registry: &Registry, query: &Query) -> Result<Page, String> {
    let samples = || samples(registry, query);
    match query.get("format").unwrap_or("text") {
        "text" | "" => Ok(Page::Text(admin::text(&samples()?))),
        "json" => Ok(Page::Json(admin::json(&samples()?))),
        "prometheus" => Ok(Page::Text(prometheus(registry, query)?)),
        other => Err(format!(
            "format={other} is not known; use one of text, json, prometheus\n"
        )),
    }
}

/// Answers `/stats/prometheus?…`.
///
/// # Errors
/// As [`page`].
pub(super) fn prometheus(registry: &Registry, query: &Query) -> Result<String, String> {
    Ok(prometheus::render(
        &samples(registry, query)?,
        query.has("text_readouts"),
    ))
}

fn samples(registry: &Registry, query: &Query) -> Result<Vec<Sample>, String> {
    let filter = query.get("filter").filter(|filter| !filter.is_empty());
    let filter = filter
        .map(expression)
        .transpose()
        .map_err(|error| format!("filter cannot be used: {error}\n"))?;
    let used_only = query.has("usedonly");
    let kind = query.get("type").unwrap_or("All").to_ascii_lowercase();
    if !["all", "counters", "gauges", "histograms", "textreadouts"].contains(&&*kind) {
        return Err(format!(
            "type={kind} is not known; use one of All, Counters, Gauges, Histograms, TextReadouts\n"
        ));
    }
    let mut samples = registry.collect(|name| filter.as_ref().is_none_or(|filter| filter.is_match(name)));
    samples.retain(|sample| {
        let wanted = match sample.value {
            Value::Counter { .. } => "counters",
            Value::Gauge(_) | Value::FloatGauge(_) => "gauges",
            Value::Histogram { .. } => "histograms",
            Value::Text(_) => "textreadouts",
        };
        (kind == "all" || kind == wanted) && (sample.used || !used_only)
    });
    Ok(samples)
}

/// An expression that is looked for anywhere in a name.
///
/// # Errors
/// The parser's words.
pub(super) fn expression(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(query: &str) -> Result<String, String> {
        let registry: &'static Registry = Box::leak(Box::default());
        let scope = registry.scope("cluster.a.");
        scope.counter("upstream_cx_connect_fail").increment(1);
        scope.counter("update_rejected");
        scope.gauge("level");
        scope.histogram("h_ms").record(1.0);
        scope.text("version_text", "v1");
        match page(registry, &Query::parse(query))? {
            Page::Text(text) => Ok(text),
            Page::Json(json) => Ok(json.to_string()),
        }
    }

    #[test]
    fn what_is_asked_for() {
        let names = |query: &str| -> Vec<String> {
            let page = text(query).unwrap();
            let lines = page
                .lines()
                .map(|line| line.split(": ").next().unwrap().to_owned());
            lines.collect()
        };
        let all = [
            "version_text",
            "level",
            "update_rejected",
            "upstream_cx_connect_fail",
            "h_ms",
        ];
        assert_eq!(names(""), all.map(|rest| format!("cluster.a.{rest}")));
        assert_eq!(
            names("filter=update_&type=Counters"),
            ["cluster.a.update_rejected"]
        );
        assert_eq!(
            names("usedonly&type=counters"),
            ["cluster.a.upstream_cx_connect_fail"]
        );
        assert_eq!(names("type=Gauges"), ["cluster.a.level"]);
        assert_eq!(names("type=TextReadouts"), ["cluster.a.version_text"]);
        assert!(
            text("format=prometheus")
                .unwrap()
                .contains("# TYPE envoy_cluster_a_level gauge")
        );
    }

    #[test]
    fn as_consul_troubleshoot_reads_it() {
        let json = text("format=json&filter=upstream_cx_connect_fail&type=Counters").unwrap();
        assert_eq!(
            json,
            "{\"stats\":[{\"name\":\"cluster.a.upstream_cx_connect_fail\",\"value\":1}]}"
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (query, wanted) in [
            ("filter=(", "filter cannot be used"),
            ("type=Things", "type=things is not known"),
            ("format=xml", "format=xml is not known"),
        ] {
            let error = text(query).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
