//! The `attache` binary: the allocator, the process's arguments and environment, the exit code.

use std::process::ExitCode;

/// Gives memory back after a burst of connections, where glibc keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let environment = attache_bootstrap::env::env_from_os(std::env::vars_os());
    ExitCode::from(attache::cli::run(std::env::args_os(), &environment))
}
