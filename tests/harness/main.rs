//! The shipped binary's `main`, built beside the scenarios that run it.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let environment = attache_bootstrap::env::env_from_os(std::env::vars_os());
    ExitCode::from(attache::cli::run(std::env::args_os(), &environment))
}
