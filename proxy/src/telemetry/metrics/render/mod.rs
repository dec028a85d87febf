//! The formats in which statistics are shown: pure functions from samples to text.

pub mod admin;
pub mod prometheus;
pub mod statsd;

#[cfg(test)]
mod tests;
