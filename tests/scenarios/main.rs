//! Scenarios over a mesh of real sidecar processes, one module a subject, linked once.

mod carry;

/// The sidecar under test.
const ATTACHE: &str = env!("CARGO_BIN_EXE_attache-under-test");
