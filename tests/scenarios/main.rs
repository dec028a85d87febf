//! Scenarios over a mesh of real sidecar processes, one module a subject, linked once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of scenarios fail the test that uses them"
)]

mod attack;
mod carry;
mod endpoints;
mod ends;
mod envoy;
mod load;
mod observe;
mod process;
mod refusals;

/// The sidecar under test.
const ATTACHE: &str = env!("CARGO_BIN_EXE_attache-under-test");
