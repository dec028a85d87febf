//! Statistics with names, tags and values from strangers: every page and every line stays one that can be
//! read.
//!
//! The lines are a cluster, a listener, a tag's name, its expression, its fixed value, the rest of a
//! statistic's name and a text readout.

#![no_main]

use attache::telemetry::metrics::render::{admin, prometheus, statsd};
use attache::telemetry::metrics::tags::{TagRules, TagSpecifier, TagValue};
use attache::telemetry::metrics::{ClusterMetrics, ListenerMetrics, StatsConfig, registry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let (cluster, listener, tag, regex, fixed) = (next(), next(), next(), next(), next());
    let (rest, words) = (next(), next());
    let stats_tags = vec![
        TagSpecifier {
            tag_name: format!("a{tag}"),
            value: TagValue::Regex(regex),
        },
        TagSpecifier {
            tag_name: tag,
            value: TagValue::Fixed(fixed),
        },
    ];
    let config = StatsConfig {
        stats_tags,
        use_all_default_tags: true,
    };
    match TagRules::new(&config) {
        Ok(rules) => registry().set_rules(rules),
        Err(error) => assert!(error.to_string().contains("stats_tags"), "{error}"),
    }
    let cluster_metrics = ClusterMetrics::new(&cluster);
    cluster_metrics.dialled.increment(1);
    cluster_metrics.connect_ms.record(1.5);
    cluster_metrics.tls_established("TLSv1.3", "TLS_AES_128_GCM_SHA256", Some("X25519"));
    let listener_metrics = ListenerMetrics::new(&listener);
    listener_metrics.opened.increment(1);
    let scope = registry().scope(&cluster);
    scope.counter(rest.clone()).increment(1);
    scope.text(format!("{rest}_text"), &words);

    let samples = registry().flush();
    assert!(samples.is_sorted_by(|a, b| a.name <= b.name));
    scrape(&prometheus::render(&samples, true));
    for dialect in [statsd::Dialect::Statsd, statsd::Dialect::DogStatsd] {
        let lines = statsd::lines(&samples, dialect, "envoy");
        for line in &lines {
            let (head, _) = line.split_once('|').expect("a line has a type");
            assert_eq!(head.matches(':').count(), 1, "{line}");
            assert!(!line.contains(['\n', '\r']), "{line}");
        }
        let joined: Vec<String> = statsd::datagrams(&lines, 512);
        assert_eq!(
            joined.join("\n"),
            lines.join("\n"),
            "nothing is lost in datagrams"
        );
    }
    assert!(admin::json(&samples)["stats"].is_array());
    assert!(admin::text(&samples).ends_with('\n'));
});

/// Reads a page as a scraper does.
fn scrape(page: &str) {
    let word = |text: &str| {
        let mut letters = text.chars();
        letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            assert!(
                word(name) && ["counter", "gauge", "histogram"].contains(&kind),
                "{line}"
            );
            continue;
        }
        let (name, mut rest) = line.split_once('{').expect("labels, be they none");
        assert!(word(name), "{line}");
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"").expect("a value in quotes");
            assert!(word(label.trim_start_matches(',')), "{line}");
            let mut escaped = false;
            let end = value
                .find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
                .expect("the quote's end");
            rest = &value[end + 1..];
        }
        assert!(rest[1..].trim().parse::<f64>().is_ok(), "{line}");
    }
}
