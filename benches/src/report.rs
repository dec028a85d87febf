//! What a run says in the end: a table for the terminal, the same in Markdown, and all samples as
//! JSON.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Map, Value, json};

use crate::figure::{Better, Figure, Samples, Summary};
use crate::peer::{ENVOY, Peer};

/// The reference without proxies.
pub(crate) const DIRECT: &str = "direct";

/// Everything a run came to.
#[derive(Debug)]
pub(crate) struct Report {
    /// The peers that took part.
    pub(crate) peers: Vec<Peer>,
    /// The figures.
    pub(crate) samples: Samples,
    /// Who did not take part, and why.
    pub(crate) skipped: Vec<String>,
    /// What went wrong: no figure of a run that has any is to be trusted.
    pub(crate) failures: Vec<String>,
    /// What was not measured as it was asked for.
    pub(crate) remarks: Vec<String>,
    /// Rounds, seconds and the like.
    pub(crate) settings: String,
}

impl Report {
    /// For the terminal.
    pub(crate) fn text(&self) -> String {
        let rows = self.rows();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
        let mut text = String::new();
        for row in &rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            text += cells.join("  ").trim_end();
            text.push('\n');
        }
        text.push('\n');
        for line in self.remarks() {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// For a README.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.rows().iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if index == 0 {
                let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
            }
        }
        text.push('\n');
        for line in self.remarks() {
            let _ = writeln!(text, "- {}", line.replace('\n', " "));
        }
        text
    }

    /// Every sample.
    pub(crate) fn json(&self) -> Value {
        let mut figures = Map::new();
        for figure in self.samples.figures() {
            let mut peers = Map::new();
            for name in self.columns() {
                if let Some(summary) = self.samples.summary(name, figure) {
                    let cell = json!({
                        "median": summary.median,
                        "min": summary.min,
                        "max": summary.max,
                        "ratio_to_envoy": self.ratio(name, figure),
                        "samples": summary.all,
                    });
                    peers.insert(name.to_owned(), cell);
                }
            }
            let text = figure.text();
            let entry = json!({ "label": text.label, "unit": text.unit, "peers": peers });
            figures.insert(text.key, entry);
        }
        let peer = |it: &Peer| json!({ "name": it.name, "version": it.version, "note": it.note });
        json!({
            "machine": machine(),
            "settings": self.settings,
            "peers": self.peers.iter().map(peer).collect::<Vec<_>>(),
            "skipped": self.skipped,
            "remarks": self.remarks,
            "failures": self.failures,
            "figures": figures,
        })
    }

    /// Direct first and Envoy second, then the others, each followed by its ratio.
    fn columns(&self) -> Vec<&str> {
        let names = || self.peers.iter().map(|peer| peer.name.as_str());
        let mut columns = vec![DIRECT];
        columns.extend(names().filter(|name| *name == ENVOY));
        columns.extend(names().filter(|name| *name != ENVOY));
        columns.retain(|name| self.samples.has(name));
        columns
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let columns = self.columns();
        let has_ratio = |name: &str| {
            let compared = columns.contains(&ENVOY);
            compared && name != ENVOY && name != DIRECT
        };
        let mut head = vec!["median (min–max)".to_owned(), "unit".to_owned()];
        for name in &columns {
            head.push((*name).to_owned());
            if has_ratio(name) {
                head.push(format!("{name} / envoy"));
            }
        }
        let mut rows = vec![head];
        for figure in self.samples.figures() {
            let text = figure.text();
            let mut row = vec![text.label, text.unit.to_owned()];
            for name in &columns {
                let summary = self.samples.summary(name, figure);
                row.push(summary.map_or(String::new(), |it| cell(&it, text.decimals)));
                if has_ratio(name) {
                    let ratio = self.ratio(name, figure);
                    row.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
                }
            }
            rows.push(row);
        }
        rows
    }

    /// Its median to Envoy's, where that says something.
    pub(crate) fn ratio(&self, name: &str, figure: Figure) -> Option<f64> {
        if [ENVOY, DIRECT].contains(&name)
            || figure.text().better == Better::Neither
            || figure.what.is_relative()
        {
            return None;
        }
        let own = self.samples.summary(name, figure)?.median;
        let reference = self.samples.summary(ENVOY, figure)?.median;
        (reference > 0.0).then_some(own / reference)
    }

    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![self.settings.clone(), machine()];
        for peer in &self.peers {
            let note = peer.note.map_or(String::new(), |note| format!(" ({note})"));
            lines.push(format!("{}: {}{note}", peer.name, peer.version));
        }
        lines.extend(self.remarks.iter().cloned());
        lines.extend(self.skipped.iter().map(|why| format!("skipped: {why}")));
        lines.extend(self.failures.iter().map(|what| format!("FAILED: {what}")));
        lines
    }
}

fn cell(summary: &Summary, decimals: usize) -> String {
    let Summary {
        median,
        min,
        max,
        all,
    } = summary;
    if all.len() == 1 {
        return format!("{median:.decimals$}");
    }
    format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
}

/// What it runs on.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("processor of no known model", |(_, model)| model.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, {model}, Linux {}", kernel.trim())
}
