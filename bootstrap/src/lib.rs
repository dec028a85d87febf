//! Arguments, environment and files in, [`Config`] out.
//!
//! Pure: no sockets, no runtime, no global state. The process's environment and files reach it
//! through [`env::Env`] and [`env::Files`], so a test passes a map. Whoever calls [`load`] owns the
//! result; a secret in it is zeroed when dropped and never printed.

mod args;
pub mod config;
pub mod document;
pub mod env;
pub mod envoy;
pub mod exit;
mod load;
mod names;
mod options;
mod problem;
mod report;
pub mod secret;

pub use args::{Shell, command};
pub use config::Config;
pub use envoy::{ENVOY_VERSION, EnvoyConfig};
pub use load::{Command, DemoConfig, Loaded, load};
pub use names::clean_name;
pub use problem::{Failure, Problem, ProblemKind, Rejected};
pub use report::{LiveBind, LiveFacts, LiveUpstream, Report, Sourced};
pub use secret::Secret;
