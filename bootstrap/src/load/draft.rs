//! A configuration while it is being put together.
//!
//! Owns the report and the reading of one value from a flag or a variable; knows no rule of any
//! particular value.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::env::{Env, Files};
use crate::problem::{Problem, ProblemKind};
use crate::report::{Report, Sourced};

/// What the rules of one value see and write.
pub(super) struct Draft<'a> {
    env: &'a dyn Env,
    pub(super) files: &'a dyn Files,
    pub(super) report: Report,
}

impl<'a> Draft<'a> {
    pub(super) fn new(env: &'a dyn Env, files: &'a dyn Files) -> Self {
        Self {
            env,
            files,
            report: Report::default(),
        }
    }

    pub(super) fn missing(&mut self, what: String, fix: String) {
        self.problem(ProblemKind::Missing, what, fix);
    }

    pub(super) fn invalid(&mut self, what: String, fix: String) {
        self.problem(ProblemKind::Invalid, what, fix);
    }

    pub(super) fn conflict(&mut self, what: String, fix: String) {
        self.problem(ProblemKind::Conflict, what, fix);
    }

    /// One variable may be read for several values; its problem is said once.
    fn problem(&mut self, kind: ProblemKind, what: String, fix: String) {
        let problem = Problem { kind, what, fix };
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }

    pub(super) fn gap(&mut self, what: String, fix: String) {
        let kind = ProblemKind::Missing;
        self.report.gaps.push(Problem { kind, what, fix });
    }

    pub(super) fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    /// The variable `name`; an empty one counts as not given, as it does for Consul.
    pub(super) fn var(&mut self, name: &str) -> Option<Sourced<String>> {
        if self.is_not_utf8(name) {
            self.not_utf8(name);
            return None;
        }
        let value = self.env.var(name).filter(|value| !value.is_empty())?;
        Some(Sourced::new(value, name))
    }

    /// Like [`var`](Self::var), without a word about a value that is no text.
    pub(super) fn peek(&self, name: &str) -> Option<String> {
        self.env.var(name).filter(|value| !value.is_empty())
    }

    /// Whether the variable `name` exists with something in it, text or not.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.peek(name).is_some() || self.is_not_utf8(name)
    }

    /// What follows `prefix` in the names of all variables, each of which is text.
    pub(super) fn names_after(&mut self, prefix: &str) -> Vec<String> {
        let broken: Vec<String> = self.env.not_utf8();
        for name in broken.iter().filter(|name| name.starts_with(prefix)) {
            self.not_utf8(name);
        }
        let names = self.env.names();
        let rests = names.iter().filter_map(|name| name.strip_prefix(prefix));
        let mut rests: Vec<String> = rests.map(str::to_owned).collect();
        rests.sort();
        rests
    }

    fn is_not_utf8(&self, name: &str) -> bool {
        self.env.not_utf8().iter().any(|broken| broken == name)
    }

    fn not_utf8(&mut self, name: &str) {
        self.invalid(
            format!("the environment variable {name} is not UTF-8"),
            format!("set {name} to plain text, or unset it"),
        );
    }

    /// The flag's value if given, else the variable's. An empty flag is a problem: somebody's
    /// template came out empty, and the variable behind it was not meant.
    pub(super) fn pick<T>(&mut self, flag: &str, given: Option<T>, variable: &str) -> Option<Sourced<T>>
    where
        T: From<String> + AsRef<OsStr>,
    {
        match given {
            Some(_) => self.flag(flag, given),
            None => {
                let variable = self.var(variable)?;
                Some(Sourced::new(T::from(variable.value), variable.from))
            }
        }
    }

    /// The value of a flag that no variable stands behind.
    pub(super) fn flag<T: AsRef<OsStr>>(&mut self, flag: &str, given: Option<T>) -> Option<Sourced<T>> {
        let value = given?;
        if value.as_ref().is_empty() {
            self.invalid(
                format!("{flag} is given with nothing in it"),
                format!("give {flag} a value, or leave it away"),
            );
            return None;
        }
        Some(Sourced::new(value, flag))
    }

    /// Refuses a path at which nothing is.
    pub(super) fn must_exist(&mut self, path: &Sourced<PathBuf>) {
        if !self.files.exists(&path.value) {
            self.absent(path, "it does not exist");
        }
    }

    /// Refuses a file that cannot be read as text.
    pub(super) fn must_read(&mut self, path: &Sourced<PathBuf>) {
        if let Err(error) = self.files.read(&path.value) {
            self.absent(path, &error.to_string());
        }
    }

    /// Refuses a folder that cannot be listed or has nothing in it.
    pub(super) fn must_list(&mut self, path: &Sourced<PathBuf>) {
        match self.files.list_dir(&path.value) {
            Ok(names) if names.is_empty() => self.absent(path, "the folder is empty"),
            Ok(_) => {}
            Err(error) => self.absent(path, &error.to_string()),
        }
    }

    fn absent(&mut self, path: &Sourced<PathBuf>, why: &str) {
        self.invalid(
            format!(
                "{} names {:?}, which cannot be used: {why}",
                path.from, path.value
            ),
            format!("correct {}, or put the file there", path.from),
        );
    }
}

/// A path as it is printed.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// `IP:PORT`, `localhost:PORT`, or `:PORT` at `default`. Port 0 passes; most callers refuse it.
pub(super) fn address(text: &str, default: Ipv4Addr) -> Option<SocketAddr> {
    let at = |ip, port: &str| Some(SocketAddr::new(IpAddr::V4(ip), port.parse().ok()?));
    if let Some(port) = text.strip_prefix(':') {
        return at(default, port);
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        return at(Ipv4Addr::LOCALHOST, port);
    }
    text.parse().ok()
}

/// Decimal digits of a port that can be bound by name: not 0, no sign, no blank.
pub(super) fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}
