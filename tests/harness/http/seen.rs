//! What the upstreams of a bed saw, request by request, and how each exchange ended there.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::outcome;
use super::wire::Headers;

/// A request as an upstream got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The upstream.
    pub upstream: Arc<str>,
    /// The request line; of HTTP/2 made up alike.
    pub first: String,
    /// Headers, those that begin with a colon included, in their order.
    pub headers: Headers,
    /// The body, and why it is not whole.
    pub body: Vec<u8>,
    /// Trailers in their order.
    pub trailers: Headers,
    /// How it ended: `answered`, or why not.
    pub end: String,
}

/// The record of a bed, shared by its upstreams.
#[derive(Clone, Debug, Default)]
pub struct Book(Arc<Pages>);

#[derive(Debug, Default)]
struct Pages {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    open: usize,
    /// How often it was taken: an entry of an earlier case changes nothing of this one's.
    taken: usize,
}

/// An exchange under way; its drop is its end.
#[derive(Debug)]
pub struct Entry {
    book: Book,
    at: usize,
    taken: usize,
    /// Which request of the case this is, from 1.
    pub number: usize,
}

impl Book {
    /// Writes down a request, whose headers came.
    pub fn begin(&self, seen: Seen) -> Entry {
        let mut state = self.0.state.lock().unwrap();
        state.open += 1;
        state.seen.push(seen);
        Entry {
            book: self.clone(),
            at: state.seen.len() - 1,
            taken: state.taken,
            number: state.seen.len(),
        }
    }

    /// Waits until every exchange has ended, and takes the record. What does not end in the time is said in it.
    pub async fn take(&self) -> Vec<Seen> {
        let quiet = async {
            loop {
                let moved = self.0.moved.notified();
                if self.0.state.lock().unwrap().open == 0 {
                    return;
                }
                moved.await;
            }
        };
        let _ = tokio::time::timeout(super::wire::SILENCE, quiet).await;
        let mut state = self.0.state.lock().unwrap();
        state.taken += 1;
        std::mem::take(&mut state.seen)
    }
}

impl Entry {
    /// Changes what is written of it. One whose case is over already is not there any more.
    pub fn with(&self, change: impl FnOnce(&mut Seen)) {
        let mut state = self.book.0.state.lock().unwrap();
        if state.taken != self.taken {
            return;
        }
        if let Some(seen) = state.seen.get_mut(self.at) {
            change(seen);
        }
    }

    /// Ends it in this manner.
    pub fn end(self, how: &str) {
        self.with(|seen| how.clone_into(&mut seen.end));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.book.0.state.lock().unwrap().open -= 1;
        self.book.0.moved.notify_one();
    }
}

impl Seen {
    /// As lines of an outcome.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("> {}: {}", self.upstream, self.first)];
        lines.extend(
            outcome::headers(&self.headers)
                .into_iter()
                .map(|l| format!(">   {l}")),
        );
        lines.push(format!(">   {}", outcome::body(&self.body)));
        let trailers = outcome::headers(&self.trailers).into_iter();
        lines.extend(trailers.map(|l| format!(">   trailer {l}")));
        let end = if self.end.is_empty() {
            "unfinished"
        } else {
            &self.end
        };
        lines.push(format!(">   {end}"));
        lines
    }
}
