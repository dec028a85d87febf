//! A group of cases on one configuration, run by Envoy and by Attaché at the same time and compared.
//!
//! Environment, for who works on a difference: `HTTP_DIFF_ONLY=words` runs the cases whose name has them,
//! `HTTP_DIFF_TWICE=1` puts Envoy on both sides (there must be no difference), `HTTP_DIFF_SHOW=1` prints every
//! outcome, `HTTP_DIFF_REPORT=file` appends the differences to a file.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Arc;

use super::bed::{Bed, Upstreams};
use super::case::{Case, Deviation, Path};
use super::config::{Cluster, Manager, cluster};
use super::diff;
use crate::envoy::Program;

/// The page on which every deviation has its reason.
const DEVIATIONS: &str = include_str!("../../DEVIATIONS.md");

/// How many outcomes that are wrong alike are named.
const SHOWN: usize = 8;

/// Cases and what they run on.
#[derive(Debug)]
pub struct Group {
    name: String,
    upstreams: Vec<String>,
    managers: Vec<Manager>,
    clusters: Vec<Cluster>,
    cases: Vec<Case>,
    refused: Option<(&'static str, &'static str)>,
}

/// A case over some versions, with what came of it on both sides.
type Outcome<'a> = (&'a Case, Path, Vec<String>, Option<Vec<String>>);

impl Group {
    /// With the upstreams and clusters `a`, `b` and `c`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            upstreams: ["a", "b", "c"].map(str::to_owned).to_vec(),
            managers: Vec::new(),
            clusters: ["a", "b", "c"].map(cluster).to_vec(),
            cases: Vec::new(),
            refused: None,
        }
    }

    /// With one more upstream.
    pub fn upstream(mut self, name: &str) -> Self {
        self.upstreams.push(name.to_owned());
        self
    }

    /// With one more connection manager.
    pub fn manager(mut self, manager: Manager) -> Self {
        self.managers.push(manager);
        self
    }

    /// With one more cluster, or another one of that name.
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        self.clusters.retain(|known| known.name != cluster.name);
        self.clusters.push(cluster);
        self
    }

    /// With these cases.
    pub fn cases(mut self, cases: impl IntoIterator<Item = Case>) -> Self {
        self.cases.extend(cases);
        self
    }

    /// Attaché refuses this configuration with these words, for the reason in `DEVIATIONS.md` under `id`.
    pub fn refused(mut self, id: &'static str, words: &'static str) -> Self {
        self.refused = Some((id, words));
        self
    }

    /// Runs all of it on Envoy and on `ours` and fails with every difference that is not known. Without an
    /// Envoy on PATH only that `ours` answers is looked at.
    pub async fn run(mut self, ours: Program) {
        let twice = setting("HTTP_DIFF_TWICE").is_some();
        let ours = if twice { Program::Envoy } else { ours };
        if let Some((id, words)) = self.refused.filter(|_| !twice) {
            return self.is_refused(ours, id, words).await;
        }
        if let Some(only) = setting("HTTP_DIFF_ONLY") {
            self.cases.retain(|case| case.name.contains(&only));
        }
        let (theirs, ours) = tokio::join!(self.outcomes(Program::Envoy), self.outcomes(ours));
        let Some(ours) = ours else {
            return;
        };
        let mut theirs = theirs.map(Vec::into_iter);
        let all = ours.into_iter().map(|(case, path, ours)| {
            let theirs = theirs.as_mut().and_then(Iterator::next);
            let theirs = theirs.map(|(_, _, lines)| lines);
            (case, path, ours, theirs)
        });
        let all: Vec<Outcome<'_>> = all.collect();
        let judged = all.iter().filter_map(|outcome| self.judge(outcome, twice));
        self.report(judged.collect(), all.len());
    }

    async fn is_refused(&self, ours: Program, id: &str, words: &str) {
        assert!(has_reason(id), "DEVIATIONS.md has no heading {id:?}");
        let upstreams = Upstreams::start(&self.upstreams).await;
        let said = Bed::refusal(ours, &upstreams, &self.managers, &self.clusters).await;
        let said = said.unwrap();
        assert!(said.contains(words), "it does not say {words:?}:\n{said}");
    }

    async fn outcomes(&self, program: Program) -> Option<Vec<(&Case, Path, Vec<String>)>> {
        program.found()?;
        let upstreams = Arc::new(Upstreams::start(&self.upstreams).await);
        let mut bed = Bed::start(program, upstreams, &self.managers, &self.clusters).await?;
        let first = &self.managers.first().unwrap().name;
        let mut all = Vec::new();
        for case in &self.cases {
            for &path in &case.paths {
                let manager = case.manager.as_ref().unwrap_or(first);
                let lines = bed.run(case, manager, path).await;
                all.push((case, path, lines));
                assert!(
                    bed.proxy.process.is_running(),
                    "{program:?} ended in {:?}; it said:\n{}",
                    case.name,
                    bed.proxy.process.log()
                );
            }
        }
        Some(all)
    }

    /// The name of an outcome and what is wrong with it; `None` if nothing is.
    fn judge(&self, (case, path, ours, theirs): &Outcome<'_>, twice: bool) -> Option<(String, Vec<String>)> {
        let name = format!("{} [{path}] {} {}", case.name, case.ask.method, case.ask.path);
        if setting("HTTP_DIFF_SHOW").is_some() {
            let theirs = theirs.as_deref().unwrap_or_default().join("\n  - ");
            let ours = ours.join("\n  + ");
            let _ = writeln!(
                std::io::stderr(),
                "== {}: {name}\n  - {theirs}\n  + {ours}",
                self.name
            );
        }
        let known = case.deviation(*path).filter(|_| !twice);
        let wrong = match theirs {
            Some(theirs) => compared(diff::lines(theirs, ours), known),
            None => alone(ours, known),
        };
        (!wrong.is_empty()).then_some((name, wrong))
    }

    /// Fails with what is wrong, outcomes that are wrong alike together.
    fn report(&self, wrong: Vec<(String, Vec<String>)>, all: usize) {
        let sum = format!("{}: {} of {all} differ", self.name, wrong.len());
        let mut kinds: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for (name, lines) in wrong {
            match kinds.iter_mut().find(|(_, known)| *known == lines) {
                Some((names, _)) => names.push(name),
                None => kinds.push((vec![name], lines)),
            }
        }
        let mut text = String::new();
        for (names, lines) in &kinds {
            let _ = writeln!(text, "{}\n  {}\n", named(names), lines.join("\n  "));
        }
        let _ = writeln!(std::io::stderr(), "{sum}");
        if let Some(path) = setting("HTTP_DIFF_REPORT") {
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            let _ = writeln!(file, "# {sum}\n{text}");
        }
        assert!(kinds.is_empty(), "{sum}\n{text}");
    }
}

/// The first few names, and how many more there are.
fn named(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(SHOWN));
    let mut text = shown.join("\n");
    if !more.is_empty() {
        let _ = write!(text, "\nand {} more alike", more.len());
    }
    text
}

/// What is wrong with a difference.
fn compared(lines: Vec<String>, known: Option<&Deviation>) -> Vec<String> {
    let Some(known) = known else {
        return lines;
    };
    if !has_reason(known.id) {
        return vec![format!("DEVIATIONS.md has no heading {:?}", known.id)];
    }
    if lines == known.lines {
        return Vec::new();
    }
    let mut wrong = vec![format!("differs otherwise than {:?} says:", known.id)];
    wrong.extend(lines);
    wrong
}

/// Whether the page has this heading.
fn has_reason(id: &str) -> bool {
    DEVIATIONS.contains(&format!("## {id}\n"))
}

/// What is wrong with an outcome that there is nothing to compare with.
fn alone(ours: &[String], known: Option<&Deviation>) -> Vec<String> {
    let hangs = |line: &String| line.starts_with("cut: silent") || line.contains("unfinished");
    let wrong = |what: String| {
        let mut lines = vec![what];
        lines.extend_from_slice(ours);
        lines
    };
    if ours.iter().any(hangs) {
        return wrong("it hangs:".to_owned());
    }
    let expected = known.map(|known| known.lines.as_slice()).unwrap_or_default();
    let mut expected = expected.iter().filter_map(|line| line.strip_prefix('+'));
    match expected.find(|line| !ours.iter().any(|one| one == line)) {
        Some(missing) => wrong(format!("no {missing:?} in")),
        None => Vec::new(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "who works on a difference says how by the environment"
)]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
