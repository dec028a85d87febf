//! Each format, line by line; and that no name, tag or value breaks a line.

use std::sync::Arc;

use super::{admin, prometheus, statsd};
use crate::telemetry::metrics::registry::{Registry, Sample};
use crate::telemetry::metrics::tags::TagRules;
use crate::telemetry::metrics::{Scope, StatsConfig};

fn registry() -> &'static Registry {
    let registry = Box::leak(Box::<Registry>::default());
    let config = StatsConfig::default().with_source("w\"e\\b\n", "default", "default", "dc1");
    registry.set_rules(TagRules::new(&config).unwrap());
    registry
}

/// One of each kind, with the scope that keeps them.
fn some(registry: &'static Registry) -> (Scope, Vec<Sample>) {
    let scope = registry.scope("cluster.a.");
    scope.counter("c").increment(3);
    scope.counter("idle");
    scope.gauge("g").set(7);
    let histogram = scope.histogram("h_ms");
    for value in [2.0, 4.0, 30.0] {
        histogram.record(value);
    }
    scope.histogram("none_ms");
    scope.text("words", "say \"hi\"");
    scope.own_counter("attache_own", &[("k", "a:b")]).increment(1);
    let samples = registry.flush();
    (scope, samples)
}

#[test]
fn prometheus_lines() {
    let (_scope, samples) = some(registry());
    let page = prometheus::render(&samples, true);
    let source = "local_cluster=\"w\\\"e\\\\b\\n\",consul_source_service=\"w\\\"e\\\\b\\n\",\
                  consul_source_namespace=\"default\",consul_source_partition=\"default\",\
                  consul_source_datacenter=\"dc1\",envoy_cluster_name=\"a\"";
    let page = page.replace(source, "…");
    let wanted = "# TYPE attache_own counter\nattache_own{k=\"a:b\"} 1\n\
                  # TYPE envoy_cluster_c counter\nenvoy_cluster_c{…} 3\n\
                  # TYPE envoy_cluster_idle counter\nenvoy_cluster_idle{…} 0\n\
                  # TYPE envoy_cluster_g gauge\nenvoy_cluster_g{…} 7\n\
                  # TYPE envoy_cluster_words gauge\nenvoy_cluster_words{…,text_value=\"say \\\"hi\\\"\"} 0\n\
                  # TYPE envoy_cluster_h_ms histogram\nenvoy_cluster_h_ms_bucket{…,le=\"0.5\"} 0\n\
                  envoy_cluster_h_ms_bucket{…,le=\"1\"} 0\nenvoy_cluster_h_ms_bucket{…,le=\"5\"} 2\n\
                  envoy_cluster_h_ms_bucket{…,le=\"10\"} 2\nenvoy_cluster_h_ms_bucket{…,le=\"25\"} 2\n\
                  envoy_cluster_h_ms_bucket{…,le=\"50\"} 3\n";
    assert!(page.starts_with(wanted), "{page}");
    for line in [
        "envoy_cluster_h_ms_bucket{…,le=\"3600000\"} 3\n",
        "envoy_cluster_h_ms_bucket{…,le=\"+Inf\"} 3\nenvoy_cluster_h_ms_sum{…} 36\nenvoy_cluster_h_ms_count{…} 3\n",
    ] {
        assert!(page.contains(line), "{page}");
    }
}

#[test]
fn the_text_page() {
    let (_scope, samples) = some(registry());
    assert_eq!(
        admin::text(&samples),
        "cluster.a.words: \"say \\\"hi\\\"\"\n\
         cluster.a.attache_own.k.a_b: 1\n\
         cluster.a.c: 3\n\
         cluster.a.g: 7\n\
         cluster.a.idle: 0\n\
         cluster.a.h_ms: P0(nan,2) P25(nan,3.125) P50(nan,4.25) P75(nan,26.25) P90(nan,28.5) P95(nan,29.25) \
         P99(nan,29.85) P99.5(nan,29.925) P99.9(nan,29.985) P100(nan,30)\n\
         cluster.a.none_ms: No recorded values\n"
    );
}

#[test]
fn the_json_page() {
    let (_scope, samples) = some(registry());
    let page = admin::json(&samples);
    let stats = page["stats"].as_array().unwrap();
    assert_eq!(stats[0]["value"], "say \"hi\"");
    assert_eq!(stats[2].to_string(), "{\"name\":\"cluster.a.c\",\"value\":3}");
    let histograms = &stats.last().unwrap()["histograms"];
    assert_eq!(histograms["supported_quantiles"].as_array().unwrap().len(), 10);
    let computed = histograms["computed_quantiles"].as_array().unwrap();
    assert_eq!(computed[0]["name"], "cluster.a.h_ms");
    assert_eq!(computed[0]["values"][9]["cumulative"], 30.0);
    assert!(computed[1]["values"][0]["cumulative"].is_null());
}

#[test]
fn statsd_lines() {
    let registry = registry();
    let (scope, samples) = some(registry);
    assert_eq!(
        statsd::lines(&samples, statsd::Dialect::Statsd, "envoy"),
        [
            "envoy.cluster.a.attache_own.k.a_b:1|c",
            "envoy.cluster.a.c:3|c",
            "envoy.cluster.a.g:7|g",
            "envoy.cluster.a.h_ms:3|ms|@0.5",
            "envoy.cluster.a.h_ms:37.5|ms",
        ]
    );
    scope.counter("c").increment(2);
    scope.histogram("h_ms").record(6.0);
    let dog = statsd::lines(&registry.flush(), statsd::Dialect::DogStatsd, "p");
    let tags = "|#local_cluster:w\"e\\b_,consul.source.service:w\"e\\b_,consul.source.namespace:default,\
                consul.source.partition:default,consul.source.datacenter:dc1,envoy.cluster_name:a";
    assert_eq!(
        dog,
        [
            "p.attache_own:0|c|#k:a_b".to_owned(),
            format!("p.cluster.c:2|c{tags}"),
            format!("p.cluster.g:7|g{tags}"),
            format!("p.cluster.h_ms:6|ms{tags}"),
        ]
    );
}

#[test]
fn datagrams_are_filled_and_not_overfilled() {
    let lines: Vec<String> = ["a:1|c", "b:1|c", "c:1|c", &"x".repeat(20), "d:1|c"]
        .map(str::to_owned)
        .into();
    let long = "x".repeat(20);
    assert_eq!(
        statsd::datagrams(&lines, 11),
        ["a:1|c\nb:1|c", "c:1|c", &long, "d:1|c"]
    );
    assert_eq!(statsd::datagrams(&[], 11), [""; 0]);
}

/// Reads a page of the text format as a scraper does; gives the number of samples.
fn scrape(page: &str) -> usize {
    let mut samples = 0;
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            assert_eq!(declared.split(' ').count(), 2, "{line}");
            continue;
        }
        let name_end = line
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap();
        assert!(name_end > 0 && !line.as_bytes()[0].is_ascii_digit(), "{line}");
        let mut rest = line[name_end..]
            .strip_prefix('{')
            .unwrap_or_else(|| panic!("{line}"));
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            let label = label.trim_start_matches(',');
            let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            assert!(
                plain && !label.starts_with(|c: char| c.is_ascii_digit()),
                "{line}"
            );
            let mut escaped = false;
            let end = value
                .find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
                .unwrap_or_else(|| panic!("{line}"));
            rest = &value[end + 1..];
        }
        assert!(rest[1..].trim().parse::<f64>().is_ok(), "{line}");
        samples += 1;
    }
    samples
}

#[test]
fn no_name_and_no_tag_breaks_a_line() {
    let alphabet = [
        "a", ".", "_rq_", "2xx", "\"", "\\", "\n", "é", "{", "}", ",", " ", "1", "cluster.", ":", "|",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut word = |most: usize| -> String {
        (0..random.usize(..most))
            .map(|_| alphabet[random.usize(..alphabet.len())])
            .collect()
    };
    for _ in 0..300 {
        let registry = registry();
        let (prefix, rest, text) = (word(4), word(6), word(5));
        let scope = registry.scope(&prefix);
        scope.counter(format!("c{rest}")).increment(1);
        scope.histogram(format!("h{rest}")).record(1.0);
        scope.text(format!("t{rest}"), &text);
        scope.shared_counter(&word(3), &[(&word(3), &word(4))]);
        let samples = registry.flush();
        assert_eq!(
            scrape(&prometheus::render(&samples, true)),
            1 + 22 + 1 + 1,
            "{prefix:?} {rest:?}"
        );
        for dialect in [statsd::Dialect::Statsd, statsd::Dialect::DogStatsd] {
            for line in statsd::lines(&samples, dialect, "p") {
                assert_eq!(line.lines().count(), 1, "{line}");
                assert_eq!(line.split('|').next().unwrap().matches(':').count(), 1, "{line}");
            }
        }
        assert!(admin::json(&samples).is_object());
        let tags: Arc<_> = Arc::clone(&samples[0].identity.tags);
        assert!(tags.len() >= 5 || samples[0].identity.tags.len() == 1);
    }
}
