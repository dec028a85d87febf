//! The chart of a run: a small multiple for each figure, a bar for each peer, shorter is better.
//!
//! It stands alone: no script, no font of its own, and a ground of its own, so that it can be read
//! on a light page and on a dark one.

use std::fmt::Write as _;

use crate::figure::{Better, Figure, Summary, What};
use crate::kind::Kind;
use crate::peer::{ATTACHE, ENVOY};
use crate::report::Report;

/// Pixels. Three columns are as wide as a README shows them without making them smaller.
const COLUMNS: usize = 3;
const PANEL_WIDTH: f64 = 280.0;
const GAP: f64 = 24.0;
const MARGIN: f64 = 20.0;
const WIDTH: f64 = 2.0 * MARGIN + COLUMNS as f64 * PANEL_WIDTH + (COLUMNS - 1) as f64 * GAP;
const HEAD: f64 = 56.0;
const FOOT: f64 = 20.0;
const SECTION: f64 = 30.0;
const TITLE: f64 = 20.0;
const ROW: f64 = 17.0;
const BAR: f64 = 11.0;

/// Within a panel: where bars begin, where values end, and where ratios do.
const BARS_FROM: f64 = 58.0;
const BARS_TO: f64 = 180.0;
const VALUES_TO: f64 = 232.0;

/// How far beyond the longest bar a spread may reach before it is cut off.
const SPREAD_MOST: f64 = 1.4;

const STYLE: &str = "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.kind{font-size:13px;font-weight:600}.quiet{fill:#59636e}\
.own{font-weight:600}.value{text-anchor:end}\
.ground{fill:#ffffff}.bar{fill:#b7bfc8}.ours{fill:#2f81f7}.spread{stroke:#1f2328;stroke-width:1}\
.rule{stroke:#d1d9e0}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.ground{fill:#0d1117}\
.bar{fill:#4b535d}.ours{fill:#4493f8}.spread{stroke:#e6edf3}.rule{stroke:#3d444d}}";

/// One figure's part of the chart.
struct Panel {
    title: String,
    decimals: usize,
    /// Each peer's name, what it came to, and its ratio to Envoy.
    bars: Vec<(String, Summary, Option<f64>)>,
}

impl Report {
    /// For a README.
    pub(crate) fn svg(&self) -> String {
        let mut body = String::new();
        let mut y = HEAD;
        for kind in self.kinds() {
            let panels: Vec<Panel> = self.panels(kind);
            if panels.is_empty() {
                continue;
            }
            let _ = writeln!(
                body,
                r#"<line class="rule" x1="{MARGIN}" y1="{y}" x2="{}" y2="{y}"/>"#,
                WIDTH - MARGIN
            );
            let baseline = y + 20.0;
            let _ = writeln!(
                body,
                r#"<text class="kind" x="{MARGIN}" y="{baseline}">{}</text>"#,
                escaped(kind.label())
            );
            y += SECTION;
            for row in panels.chunks(COLUMNS) {
                for (column, panel) in row.iter().enumerate() {
                    let x = MARGIN + column as f64 * (PANEL_WIDTH + GAP);
                    panel.draw(&mut body, x, y);
                }
                let most = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
                y += TITLE + most as f64 * ROW + GAP / 2.0;
            }
        }
        let height = y + FOOT;
        let footer = format!("{}; {}", self.settings, crate::report::machine());
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">
<title>Two sidecars of each kind on equal work</title>
<style>{STYLE}</style>
<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>
<text class="title" x="{MARGIN}" y="26">Two sidecars in a row over mutual TLS: shorter is better</text>
<text class="quiet" x="{MARGIN}" y="44">bar: median; line: least to greatest; ×: ratio to Envoy; CPU and memory are the sidecars' own</text>
{body}<text class="quiet" x="{MARGIN}" y="{}">{}</text>
</svg>
"#,
            height - 12.0,
            escaped(&footer)
        )
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.samples.figures().iter().map(|it| it.kind).collect();
        kinds.dedup();
        kinds
    }

    fn panels(&self, kind: Kind) -> Vec<Panel> {
        let figures = self.samples.figures().into_iter();
        let shown = figures.filter(|figure| figure.kind == kind && is_shown(*figure));
        let panel = |figure: Figure| {
            let text = figure.text();
            let bars = self.peers.iter().filter_map(|peer| {
                let summary = self.samples.summary(&peer.name, figure)?;
                Some((peer.name.clone(), summary, self.ratio(&peer.name, figure)))
            });
            let unit = if text.unit.is_empty() { "" } else { ", " };
            Panel {
                title: format!("{}{unit}{}", text.short, text.unit),
                decimals: text.decimals,
                bars: bars.collect(),
            }
        };
        shown.map(panel).filter(|panel| panel.bars.len() > 1).collect()
    }
}

impl Panel {
    fn draw(&self, into: &mut String, x: f64, y: f64) {
        let baseline = y + 12.0;
        let title = escaped(&self.title);
        let _ = writeln!(into, r#"<text x="{x}" y="{baseline}">{title}</text>"#);
        let scale = scale(self.bars.iter().map(|it| &it.1));
        for (index, (name, summary, ratio)) in self.bars.iter().enumerate() {
            let top = y + TITLE + index as f64 * ROW;
            let (text_y, middle) = (top + BAR - 1.0, top + BAR / 2.0);
            let from = x + BARS_FROM;
            let at = |value: f64| from + (value * scale).clamp(0.0, BARS_TO - BARS_FROM);
            let (text_class, bar_class) = if name == ATTACHE {
                ("own", "ours")
            } else {
                ("quiet", "bar")
            };
            let _ = writeln!(
                into,
                r#"<text class="{text_class}" x="{x}" y="{text_y}">{}</text><rect class="{bar_class}" x="{from}" y="{top}" width="{:.1}" height="{BAR}" rx="2"/>"#,
                escaped(display_name(name)),
                (at(summary.median) - from).max(1.0),
            );
            if summary.all.len() > 1 {
                let _ = writeln!(
                    into,
                    r#"<line class="spread" x1="{:.1}" y1="{middle}" x2="{:.1}" y2="{middle}"/>"#,
                    at(summary.min),
                    at(summary.max),
                );
            }
            let value = format!("{:.*}", self.decimals, summary.median);
            let _ = writeln!(
                into,
                r#"<text class="value {text_class}" x="{}" y="{text_y}">{value}</text>"#,
                x + VALUES_TO
            );
            if let Some(ratio) = ratio {
                let _ = writeln!(
                    into,
                    r#"<text class="value {text_class}" x="{}" y="{text_y}">×{ratio:.2}</text>"#,
                    x + PANEL_WIDTH
                );
            }
        }
    }
}

/// What a chart can do with: of each group the figures that noise harms least.
fn is_shown(figure: Figure) -> bool {
    let is_one = figure.count == 1;
    match figure.what {
        What::RequestCpu | What::RequestP99 => !is_one,
        What::RequestP50 => is_one,
        // These two are told in one by the ratio, or by another figure.
        What::WorkerCpu | What::WorkersCpu | What::AloneCpu | What::CrowdCpu => false,
        What::ChurnBefore | What::InboundStart | What::OutboundStart => false,
        _ => figure.text().better == Better::Lower,
    }
}

/// Pixels a unit.
fn scale<'a>(bars: impl Iterator<Item = &'a Summary> + Clone) -> f64 {
    let median = bars.clone().map(|it| it.median).fold(0.0, f64::max);
    let max = bars.map(|it| it.max).fold(0.0, f64::max);
    let longest = max.min(median * SPREAD_MOST).max(median);
    if longest > 0.0 {
        (BARS_TO - BARS_FROM) / longest
    } else {
        0.0
    }
}

fn display_name(name: &str) -> &str {
    match name {
        ATTACHE => "Attaché",
        ENVOY => "Envoy",
        "haproxy" => "HAProxy",
        other => other,
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::{BARS_FROM, BARS_TO, escaped, is_shown, scale};
    use crate::figure::{Figure, Summary, What};
    use crate::kind::Kind;

    fn bar(median: f64, max: f64) -> Summary {
        Summary {
            median,
            min: median,
            max,
            all: vec![median, max],
        }
    }

    #[test]
    fn text_cannot_end_the_element_it_is_in() {
        assert_eq!(escaped(r#"<a> & "b" é"#), "&lt;a&gt; &amp; &quot;b&quot; é");
    }

    #[test]
    fn the_longest_bar_or_spread_fills_the_room_there_is() {
        let room = BARS_TO - BARS_FROM;
        let reach = |bars: &[Summary], value: f64| (scale(bars.iter()) * value).round();
        assert_eq!(reach(&[bar(10.0, 10.0), bar(5.0, 12.0)], 12.0), room);
        // One wild sample does not make all bars small.
        assert_eq!(reach(&[bar(10.0, 1000.0)], 14.0), room);
        assert_eq!(reach(&[bar(0.0, 0.0)], 1.0), 0.0);
    }

    #[test]
    fn rates_are_not_in_a_chart_where_shorter_is_better() {
        assert!(!is_shown(Figure::new(Kind::Tcp, What::UpRate)));
        assert!(is_shown(Figure::new(Kind::Tcp, What::UpCpu)));
        assert!(!is_shown(Figure::with_count(Kind::Tcp, What::RequestCpu, 1)));
        assert!(is_shown(Figure::with_count(Kind::Tcp, What::RequestCpu, 64)));
        assert!(!is_shown(Figure::new(Kind::Tcp, What::Others)));
    }
}
