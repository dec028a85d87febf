//! The formats in which statistics are shown: pure functions from samples to text.

pub mod prometheus;
