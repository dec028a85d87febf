//! The numbers: their file, and what is said where one is not what it was.
//!
//! Pure but for reading and writing the file. One line a bench, sorted, so that a change of one is a line of a
//! diff.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// A rise above this fails. The counts of one build repeat to well within 1 %; the rest is room for what a new
/// compiler or a change next door moves.
pub(crate) const TOLERANCE_PERCENT: u64 = 5;

/// Instructions by bench.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<String, u64>);

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// A line a bench.
    pub(crate) lines: Vec<String>,
    /// A count rose too far, or has nothing to be compared with.
    pub(crate) failed: bool,
}

impl Counts {
    /// A file that is not there has no numbers.
    ///
    /// # Errors
    /// It cannot be read, or is none of ours.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(Self)
    }

    /// Renews the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        fs::write(path, self.text()).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn text(&self) -> String {
        let lines: Vec<_> = self
            .0
            .iter()
            .map(|(name, count)| format!("  \"{name}\": {count}"))
            .collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }

    /// With these instead of its own.
    pub(crate) fn with(mut self, newer: Self) -> Self {
        self.0.extend(newer.0);
        self
    }

    /// Those that `others` has, too.
    pub(crate) fn only(mut self, others: &Self) -> Self {
        self.0.retain(|name, _| others.0.contains_key(name));
        self
    }

    /// Adds some.
    pub(crate) fn extend(&mut self, more: Vec<(String, u64)>) {
        self.0.extend(more);
    }
}

/// Holds what was counted to what was kept.
pub(crate) fn compare(before: &Counts, now: &Counts) -> Report {
    let mut report = Report {
        lines: Vec::new(),
        failed: false,
    };
    let names: std::collections::BTreeSet<_> = before.0.keys().chain(now.0.keys()).collect();
    for name in names {
        let (failed, line) = match (before.0.get(name), now.0.get(name)) {
            (Some(&before), Some(&now)) => judge(before, now),
            (None, Some(now)) => (true, format!("{now:>9}  FAILED: has no number")),
            (before, None) => {
                let before = before.copied().unwrap_or_default();
                (
                    true,
                    format!("{:>9}  FAILED: no such bench, but a number, {before}", "-"),
                )
            }
        };
        report.lines.push(format!("{name:<28} {line}"));
        report.failed |= failed;
    }
    report
}

fn judge(before: u64, now: u64) -> (bool, String) {
    let (b, n, tolerance) = (u128::from(before), u128::from(now), u128::from(TOLERANCE_PERCENT));
    if n * 100 > b * (100 + tolerance) {
        return (
            true,
            format!("{now:>9}  FAILED: was {before}, {}", change(before, now)),
        );
    }
    if n * 100 < b * (100 - tolerance) {
        let line = format!(
            "{now:>9}  was {before}, {}: keep it by --write",
            change(before, now)
        );
        return (false, line);
    }
    (false, format!("{now:>9}  {}", change(before, now)))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn change(before: u64, now: u64) -> String {
    if before == 0 {
        return "from nothing".to_owned();
    }
    format!("{:+.2} %", (now as f64 / before as f64 - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(&str, u64)]) -> Counts {
        Counts(
            all.iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
        )
    }

    #[test]
    fn a_file_is_a_line_a_bench_and_is_read_again() {
        let some = counts(&[("b", 2), ("a", 1)]);
        assert_eq!(some.text(), "{\n  \"a\": 1,\n  \"b\": 2\n}\n");
        assert_eq!(Counts::parse(&some.text()).unwrap(), some);
        assert_eq!(
            Counts::parse(&Counts::default().text()).unwrap(),
            Counts::default()
        );
        for none in ["", "[]", "{\"a\": -1}", "{\"a\": \"1\"}", "{\"a\": 1.5}"] {
            assert!(Counts::parse(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn a_rise_of_over_five_percent_fails_by_name() {
        let before = counts(&[("verdict", 1000), ("route", 1000)]);
        let at = |now| compare(&before, &counts(&[("verdict", now), ("route", 1000)]));
        let risen = at(1060);
        assert!(risen.failed);
        assert_eq!(
            risen.lines[1],
            "verdict                           1060  FAILED: was 1000, +6.00 %"
        );
        assert!(!risen.lines[0].contains("FAILED"));
        assert!(at(1051).failed);
        assert!(!at(1050).failed);
    }

    #[test]
    fn a_fall_is_said_and_passes() {
        let before = counts(&[("verdict", 1000)]);
        let fallen = compare(&before, &counts(&[("verdict", 900)]));
        assert!(!fallen.failed);
        assert!(fallen.lines[0].ends_with("was 1000, -10.00 %: keep it by --write"));
        let little = compare(&before, &counts(&[("verdict", 950)]));
        assert!(little.lines[0].ends_with("950  -5.00 %"));
    }

    #[test]
    fn every_bench_has_a_number_and_every_number_a_bench() {
        let (one, both) = (counts(&[("a", 1)]), counts(&[("a", 1), ("b", 2)]));
        let without_number = compare(&one, &both);
        assert!(without_number.failed);
        assert!(without_number.lines[1].ends_with("FAILED: has no number"));
        let without_bench = compare(&both, &one);
        assert!(without_bench.failed);
        assert!(without_bench.lines[1].ends_with("FAILED: no such bench, but a number, 2"));
        assert!(!compare(&both.clone().only(&one), &one).failed);
        assert_eq!(one.with(counts(&[("b", 2)])), both);
    }

    #[test]
    fn nothing_before_is_no_division() {
        assert!(compare(&counts(&[("a", 0)]), &counts(&[("a", 1)])).failed);
        assert!(!compare(&counts(&[("a", 0)]), &counts(&[("a", 0)])).failed);
    }
}
