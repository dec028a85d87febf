//! What is said while a run goes on: a bar where somebody looks at a terminal, plain lines
//! otherwise. All of it on standard error.

use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{bar:24} {pos}/{len}  {elapsed} gone, {eta} to go  {msg}";

/// How far a run is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Of so many turns.
    pub(crate) fn new(turns: usize) -> Self {
        let bar = ProgressBar::new(turns as u64);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// A turn begins.
    pub(crate) fn begin(&self, turn: &str) {
        if self.bar.is_hidden() {
            let (now, all) = (self.bar.position() + 1, self.bar.length().unwrap_or_default());
            say(&format!("{now}/{all} {turn}"));
        } else {
            self.bar.set_message(turn.to_owned());
        }
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        self.bar.inc(1);
    }

    /// Something that is to stay on the screen.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line; whoever closed standard error does not want it.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
