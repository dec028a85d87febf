//! Responses by status code: `…_rq_200`, `…_rq_2xx`, `…_rq_completed`.

use std::cell::{OnceCell, RefCell};

use crate::telemetry::metrics::{Counter, Scope};

/// The classes, by a status code's first digit less 1.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Which class a status code is of; none outside 100 to 599.
pub(super) fn class(code: u16) -> Option<usize> {
    matches!(code, 100..=599).then(|| usize::from(code / 100) - 1)
}

/// Responses of connection managers by class: all of them exist from the start.
#[derive(Debug)]
pub(super) struct Classes {
    completed: Counter,
    classes: [Counter; 5],
    _scope: Scope,
}

impl Classes {
    /// `<prefix>downstream_rq_…` in `scope`.
    pub(super) fn new(scope: Scope, prefix: &str) -> Self {
        Self {
            completed: scope.counter(format!("{prefix}downstream_rq_completed")),
            classes: CLASSES.map(|class| scope.counter(format!("{prefix}downstream_rq_{class}"))),
            _scope: scope,
        }
    }

    /// Counts a response.
    pub(super) fn count(&self, code: u16) {
        self.completed.increment(1);
        if let Some(class) = class(code) {
            self.classes[class].increment(1);
        }
    }
}

/// Responses from a cluster: each code and class exists from its first response on.
#[derive(Debug)]
pub(super) struct Codes {
    scope: Scope,
    /// Such as `internal.`; empty for all of them.
    prefix: &'static str,
    completed: Counter,
    classes: [OnceCell<Counter>; 5],
    /// Few a cluster; the ones seen first, which are mostly the frequent ones, are found first.
    codes: RefCell<Vec<(u16, Counter)>>,
}

impl Codes {
    /// `<prefix>upstream_rq_…` in `scope`.
    pub(super) fn new(scope: Scope, prefix: &'static str) -> Self {
        Self {
            completed: scope.counter(format!("{prefix}upstream_rq_completed")),
            classes: [const { OnceCell::new() }; 5],
            codes: RefCell::default(),
            prefix,
            scope,
        }
    }

    /// Counts a response.
    pub(super) fn count(&self, code: u16) {
        self.completed.increment(1);
        if let Some(class) = class(code) {
            let name = CLASSES[class];
            let class = self.classes[class].get_or_init(|| self.counter(name));
            class.increment(1);
        }
        let mut codes = self.codes.borrow_mut();
        if let Some((_, counter)) = codes.iter().find(|(known, _)| *known == code) {
            counter.increment(1);
            return;
        }
        let counter = self.counter(&code.to_string());
        counter.increment(1);
        codes.push((code, counter));
    }

    fn counter(&self, what: &str) -> Counter {
        self.scope.counter(format!("{}upstream_rq_{what}", self.prefix))
    }
}
