//! HTTP filters: those of a folder of their own, and their run over a request.

mod chain;
pub mod jwt;

pub(super) use chain::{denied_now, run};
