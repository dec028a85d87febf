//! Where in a message something is, as it is told to people: `static_resources.listeners[0].address`.

use std::fmt;

/// Deepest nesting of messages that is read, written or searched. Envoy's own configurations stay below 40.
pub(crate) const MAX_DEPTH: usize = 64;

enum Step {
    Field(&'static str),
    Index(usize),
    Key(String),
}

/// The fields, list positions and map keys from the outermost message inwards.
pub(crate) struct Path {
    root: &'static str,
    steps: Vec<Step>,
}

impl Path {
    /// `root` stands for the outermost message itself.
    pub(crate) fn new(root: &'static str) -> Self {
        Self {
            root,
            steps: Vec::new(),
        }
    }

    pub(crate) fn enter(&mut self, field: &'static str) {
        self.steps.push(Step::Field(field));
    }

    pub(crate) fn enter_index(&mut self, index: usize) {
        self.steps.push(Step::Index(index));
    }

    pub(crate) fn enter_key(&mut self, key: &str) {
        self.steps.push(Step::Key(key.to_owned()));
    }

    pub(crate) fn leave(&mut self) {
        self.steps.pop();
    }

    /// The path of something in the message that the path has reached.
    pub(crate) fn within(&self, name: &str) -> String {
        if self.steps.is_empty() {
            name.to_owned()
        } else {
            format!("{self}.{name}")
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return f.write_str(self.root);
        }
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Field(name) if at == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}
