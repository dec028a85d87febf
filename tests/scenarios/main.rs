//! Scenarios over a mesh of real sidecar processes, one module a subject, linked once.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the helpers of scenarios fail the test that uses them"
)]

mod attack;
mod bootstrap;
mod carry;
mod consul_away;
mod endpoints;
mod ends;
mod envoy;
mod grpc;
mod http1_messages;
mod http2_conformance;
mod http_balance;
mod http_grpc;
mod http_headers;
mod http_limits;
mod http_live;
mod http_local_replies;
mod http_manager;
mod http_memory;
mod http_messages;
mod http_normalization;
mod http_rbac;
mod http_redeploy;
mod http_refused_log;
mod http_retries;
mod http_rewrites;
mod http_routes;
mod http_timeouts;
mod http_tracing;
mod intentions;
mod l7_entries;
mod load;
mod many;
mod observe;
mod process;
mod real_consul;
mod refusals;
mod rotation;
mod sidecars;
mod static_file;
mod static_tcp;
mod stop;
mod transparent;
mod xds;
mod xds_mesh;
mod xds_refused;
mod xds_start;
mod xds_token;

/// The sidecar under test.
const ATTACHE: &str = env!("CARGO_BIN_EXE_attache-under-test");
