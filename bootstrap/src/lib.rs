//! Arguments, environment and files in, [`Config`] out.
//!
//! Pure: no sockets, no runtime, no global state. The process's environment and files reach it
//! through [`env::Env`] and [`env::Files`], so a test passes a map. Whoever calls [`load`] owns the
//! result; a secret in it is zeroed when dropped and never printed.

mod args;
pub mod config;
pub mod env;
pub mod exit;
mod load;
mod names;
mod problem;
mod report;
pub mod secret;

pub use args::{ENVOY_VERSION, EnvoyArgs, Shell, command};
pub use config::Config;
pub use load::{Command, DemoConfig, ENVOY_FILE_NOT_READ, Loaded, load};
pub use names::clean_name;
pub use problem::{Failure, Problem, ProblemKind, Rejected};
pub use report::{LiveBind, LiveFacts, LiveUpstream, Report, Sourced};
pub use secret::Secret;
