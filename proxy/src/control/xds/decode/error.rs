//! Where in a resource something stands, and why it cannot be carried out.

use std::fmt;

use crate::model::Name;

/// Why a resource does not become part of the model. Reads as one sentence, which also is what the control
/// plane gets to see in a NACK; it never quotes a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The resource's type and name, such as `Listener "public_listener:10.0.0.1:20000"`.
    pub resource: String,
    /// The field, such as `filter_chains[0].filters[1].typed_config.rules`; empty for the resource itself.
    pub path: String,
    /// What about it.
    pub why: Why,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is invalid or not supported, in words for a person.
    Refused(String),
    /// Nothing is: a secret of this name must arrive first.
    Waiting(Name),
}

/// A place in a resource. A chain of borrowed steps: it costs nothing until it is written out.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Resource { kind: &'a str, name: &'a str },
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    /// A resource: the last part of its type, such as `Listener`, and its name.
    pub const fn resource(kind: &'a str, name: &'a str) -> Self {
        Self {
            parent: None,
            step: Step::Resource { kind, name },
        }
    }

    /// A field of it; several, joined by dots, go for one.
    pub fn field(&'a self, name: &'a str) -> At<'a> {
        self.then(Step::Field(name))
    }

    /// An element of the list that it is.
    pub fn index(&'a self, index: usize) -> At<'a> {
        self.then(Step::Index(index))
    }

    /// An entry of the map that it is.
    pub fn key(&'a self, key: &'a str) -> At<'a> {
        self.then(Step::Key(key))
    }

    fn then(&'a self, step: Step<'a>) -> At<'a> {
        At {
            parent: Some(self),
            step,
        }
    }

    /// The error that this place cannot be carried out, and why: a predicate such as `is not a port`.
    pub fn refuse(&self, why: impl Into<String>) -> DecodeError {
        self.error(Why::Refused(why.into()))
    }

    /// The error that a secret must be known first.
    pub fn waiting(&self, secret: &str) -> DecodeError {
        self.error(Why::Waiting(secret.into()))
    }

    fn error(&self, why: Why) -> DecodeError {
        DecodeError {
            resource: self.root(),
            path: self.to_string(),
            why,
        }
    }

    /// The resource's type and name.
    pub fn root(&self) -> String {
        match (self.parent, self.step) {
            (Some(parent), _) => parent.root(),
            (None, Step::Resource { kind, name }) => format!("{kind} {name:?}"),
            (None, _) => String::new(),
        }
    }
}

/// The path within the resource.
impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        let nested = self.parent.is_some_and(|parent| parent.parent.is_some());
        match self.step {
            Step::Resource { .. } => Ok(()),
            Step::Field(name) if nested => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        match &self.why {
            Why::Refused(why) => write!(f, " {why}"),
            Why::Waiting(secret) => write!(f, " waits for the secret {secret:?}"),
        }
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_sentence_with_the_place() {
        let root = At::resource("Listener", "public");
        assert_eq!(
            root.refuse("has no address").to_string(),
            "Listener \"public\" has no address"
        );
        let chains = root.field("filter_chains");
        let chain = chains.index(2);
        let filters = chain.field("filters.policies");
        let error = filters.key("a b").refuse("is empty");
        assert_eq!(error.path, "filter_chains[2].filters.policies[\"a b\"]");
        assert_eq!(
            error.to_string(),
            "Listener \"public\": filter_chains[2].filters.policies[\"a b\"] is empty"
        );
        let waiting = chain.field("tls").waiting("leaf");
        assert_eq!(waiting.why, Why::Waiting("leaf".into()));
        assert_eq!(
            waiting.to_string(),
            "Listener \"public\": filter_chains[2].tls waits for the secret \"leaf\""
        );
    }
}
