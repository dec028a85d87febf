//! A group of cases on one configuration, run by Envoy and by Attaché at the same time and compared.
//!
//! Environment, for who works on a difference: `HTTP_DIFF_ONLY=words` runs the cases whose name has them,
//! `HTTP_DIFF_TWICE=1` puts Envoy on both sides (there must be no difference), `HTTP_DIFF_SHOW=1` prints every
//! outcome, `HTTP_DIFF_REPORT=file` appends the differences to a file.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use super::bed::{Bed, Upstreams};
use super::case::{Case, Path};
use super::config::{Cluster, Manager, cluster};
use super::diff;
use crate::envoy::Program;

/// The page on which every deviation has its reason.
const DEVIATIONS: &str = include_str!("../../DEVIATIONS.md");

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
            let theirs = theirs
                .as_mut()
                .and_then(Iterator::next)
                .map(|(_, _, lines)| lines);
            (case, path, ours, theirs)
        });
        let all: Vec<Outcome<'_>> = all.collect();
        let judged = all.iter().filter_map(|outcome| self.judge(outcome, twice));
        self.report(&judged.collect::<Vec<_>>(), all.len());
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

    /// What is wrong with an outcome; `None` if nothing is.
    fn judge(&self, (case, path, ours, theirs): &Outcome<'_>, twice: bool) -> Option<String> {
        let name = format!(
            "{}: {} [{path}] {} {}",
            self.name, case.name, case.ask.method, case.ask.path
        );
        let show = || {
            let theirs = theirs.as_deref().unwrap_or_default().join("\n  - ");
            format!("\n  - {theirs}\n  + {}", ours.join("\n  + "))
        };
        if setting("HTTP_DIFF_SHOW").is_some() {
            let _ = writeln!(std::io::stderr(), "== {name}{}", show());
        }
        let known = case.deviation(*path).filter(|_| !twice);
        let Some(theirs) = theirs else {
            return alone(ours, known.map(|known| known.lines.as_slice()))
                .map(|what| format!("{name}\n  {what}"));
        };
        let lines = diff::lines(theirs, ours);
        match known {
            None if lines.is_empty() => None,
            None => Some(format!("{name}\n  {}\n", lines.join("\n  "))),
            Some(known) if !has_reason(known.id) => {
                Some(format!("{name}\n  DEVIATIONS.md has no heading {:?}\n", known.id))
            }
            Some(known) if lines == known.lines => None,
            Some(known) => Some(format!(
                "{name}\n  differs otherwise than {:?} says:\n  {}\n",
                known.id,
                lines.join("\n  ")
            )),
        }
    }

    fn report(&self, wrong: &[String], all: usize) {
        let mut text = String::new();
        for one in wrong {
            let _ = writeln!(text, "{one}");
        }
        let sum = format!("{}: {} of {all} differ", self.name, wrong.len());
        let _ = writeln!(std::io::stderr(), "{sum}");
        if let Some(path) = setting("HTTP_DIFF_REPORT") {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            let _ = writeln!(file, "# {sum}\n{text}");
        }
        assert!(wrong.is_empty(), "{sum}\n{text}");
    }
}

/// Whether the page has this heading.
fn has_reason(id: &str) -> bool {
    DEVIATIONS.contains(&format!("## {id}\n"))
}

/// What is wrong with an outcome that there is nothing to compare with.
fn alone(ours: &[String], known: Option<&[String]>) -> Option<String> {
    let silent = ours
        .iter()
        .any(|line| line.starts_with("cut: silent") || line.contains("unfinished"));
    if silent {
        return Some(format!("it hangs:\n  {}\n", ours.join("\n  ")));
    }
    let mut expected = known
        .unwrap_or_default()
        .iter()
        .filter_map(|line| line.strip_prefix('+'));
    let missing = expected.find(|line| !ours.iter().any(|one| one == line))?;
    Some(format!("no {missing:?} in\n  {}\n", ours.join("\n  ")))
}

#[expect(
    clippy::disallowed_methods,
    reason = "who works on a difference says how by the environment"
)]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
