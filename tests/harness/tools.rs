//! Real programs on PATH that some scenarios run against.

use std::io::Write;
use std::path::PathBuf;

/// The path of `name` on PATH. Where it is absent, says so for the reader of a test's output.
#[expect(clippy::disallowed_methods, reason = "PATH is what is asked for")]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let found = std::env::var("PATH")
        .ok()?
        .split(':')
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        // Written past libtest's capture, which holds back what passing tests print.
        let _ = writeln!(std::io::stderr(), "skipped: no {name} on PATH");
    }
    found
}
