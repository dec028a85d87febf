//! HTTP filters: those of a folder of their own, and their run over a request.

mod chain;
pub(super) mod grpc_stats;
mod header_to_metadata;
pub mod jwt;
pub(super) mod local_rate_limit;

pub(super) use chain::{denied_now, run};
