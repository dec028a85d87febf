//! Why a command line, an environment or a file cannot be used, and what to do about it.
//!
//! Owns the words and the exit codes; says nothing about where the words are printed.

use std::fmt;

use crate::exit;
use crate::report::Report;

/// What is the matter with a piece of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It is needed and nowhere given.
    Missing,
    /// It is given and cannot be meant.
    Invalid,
    /// Two pieces say different things.
    Conflict,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Missing, invalid or contradictory.
    pub kind: ProblemKind,
    /// What it is; names the flag, the variable or the file.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    to fix it: {}", self.what, self.fix)
    }
}

/// A configuration that cannot be run: everything that is wrong with it, not only the first thing.
#[derive(Debug)]
pub struct Rejected {
    /// Whether `attache bootstrap` asked, whose output is the report itself.
    pub by_bootstrap: bool,
    /// At least one.
    pub problems: Vec<Problem>,
    /// What is known all the same, and the problems once more.
    pub report: Report,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => writeln!(f, "the configuration has a problem:")?,
            n => writeln!(f, "the configuration has {n} problems:")?,
        }
        for problem in &self.problems {
            writeln!(f, "  - {problem}")?;
        }
        write!(
            f,
            "what is known so far, and from where:\n{:#}",
            self.report.to_json(None)
        )
    }
}

/// Why [`load`](crate::load()) gives no command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line cannot be understood, or only help or the version was asked for. clap's
    /// error prints itself, in colour where there is a terminal, and to the right stream.
    #[error(transparent)]
    Usage(clap::Error),
    /// The command is understood, what it would run with is not usable.
    #[error("{0}")]
    Config(Box<Rejected>),
}

impl Failure {
    /// The code of [`exit`] that the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if error.use_stderr() => exit::USAGE,
            Self::Usage(_) => exit::OK,
            Self::Config(_) => exit::CONFIG,
        }
    }
}
