//! The command line, as clap reads it: shapes and help texts only.
//!
//! What needs the environment, the files or a second flag to be judged stays text here and is
//! validated by [`load`](crate::load()), which collects every problem instead of stopping at the
//! first as clap does.

mod envoy;

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::Secret;
use crate::config::{LogFormat, LogLevel};

pub(crate) use envoy::EnvoyArgs;

const RUN_EXAMPLES: &str = "\
Examples:
  Under Nomad, as the connect-proxy task of a service: the environment says which proxy this is.
    attache run

  On a host, for a service that is registered with a sidecar:
    attache run --sidecar-for web-1

  With no registration at all:
    attache run --service web --listen 0.0.0.0:20000 --local-service 127.0.0.1:8000 \\
                --upstream db:5432 --upstream cache:6379@dc2

  To see what would be used, from where, and what is missing:
    attache bootstrap --sidecar-for web-1";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "attache",
    version,
    about = "A sidecar proxy for Consul service mesh",
    long_about = "A sidecar proxy for Consul service mesh: mutual TLS, intentions and discovery, \
                  without Envoy.\n\nThe environment that Nomad and Consul give is read; arguments win over it.",
    after_help = "Start with `attache demo`, or see `attache run --help`.",
    after_long_help = end_of_help(),
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) envoy: Box<EnvoyArgs>,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

fn end_of_help() -> String {
    format!(
        "Without a command, Attaché stands in Envoy's place and takes Envoy's arguments.\nThose not shown \
         are accepted; what does nothing here is named in the log.\n\n{}",
        crate::exit::help()
    )
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the sidecar on Consul's HTTP endpoints.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Print the configuration `run` would use, as JSON: each value, its source, what is missing.
    #[command(after_help = RUN_EXAMPLES)]
    Bootstrap(Box<RunArgs>),
    /// Start a whole mesh on this machine: two services, two sidecars, a page that counts.
    Demo(Box<DemoArgs>),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  attache completions bash > /etc/bash_completion.d/attache")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Arguments of `run` and `bootstrap`, not yet judged.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    #[command(flatten)]
    pub(crate) manual: ManualArgs,
    #[command(flatten)]
    pub(crate) consul: ConsulArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Which proxy (Nomad's environment says it by itself)")]
pub(crate) struct WhichArgs {
    /// ID of the sidecar's own registration (kind connect-proxy).
    #[arg(long, value_name = "ID")]
    pub(crate) proxy_id: Option<String>,
    /// ID of the service whose one sidecar this is.
    #[arg(long, value_name = "ID")]
    pub(crate) sidecar_for: Option<String>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "By hand, with no registration")]
pub(crate) struct ManualArgs {
    /// Service whose certificate and intentions are used.
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Where other sidecars connect by mutual TLS; `:PORT` means every address.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where the service itself listens, in plain; `:PORT` means 127.0.0.1.
    #[arg(long, value_name = "ADDR")]
    pub(crate) local_service: Option<String>,
    /// An upstream on 127.0.0.1:PORT, in datacenter DC where given; may be repeated.
    #[arg(long, value_name = "NAME:PORT[@DC]")]
    pub(crate) upstream: Vec<String>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Consul")]
pub(crate) struct ConsulArgs {
    /// The agent's HTTP API: host:port, http://, https:// or unix:// [env: CONSUL_HTTP_ADDR].
    #[arg(long, value_name = "ADDR")]
    pub(crate) http_addr: Option<String>,
    /// ACL token; seen by everyone who may list processes [env: CONSUL_HTTP_TOKEN].
    #[arg(long, value_name = "TOKEN", value_parser = secret_parser())]
    pub(crate) token: Option<Secret>,
    /// File with the ACL token, watched for a new one [env: CONSUL_HTTP_TOKEN_FILE].
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Auth method at which a JWT is exchanged for a token.
    #[arg(long, value_name = "NAME")]
    pub(crate) auth_method: Option<String>,
    /// The JWT for --auth-method [default: the one nomad_*.jwt of NOMAD_SECRETS_DIR].
    #[arg(long, value_name = "FILE")]
    pub(crate) jwt_file: Option<PathBuf>,
    /// PEM file of the authorities trusted for the agent [env: CONSUL_CACERT].
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Folder of such PEM files [env: CONSUL_CAPATH].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) ca_path: Option<PathBuf>,
    /// Client certificate, PEM [env: CONSUL_CLIENT_CERT].
    #[arg(long, value_name = "FILE")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Client key, PEM [env: CONSUL_CLIENT_KEY].
    #[arg(long, value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// Name to verify instead of the address's host [env: CONSUL_TLS_SERVER_NAME].
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// Consul Enterprise namespace [env: CONSUL_NAMESPACE].
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Consul Enterprise admin partition [env: CONSUL_PARTITION].
    #[arg(long, value_name = "NAME")]
    pub(crate) partition: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Process")]
pub(crate) struct ProcessArgs {
    /// Admin API; given, it must be free [default: 127.0.0.1:19000 or the next free].
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) admin_bind: Option<String>,
    /// Worker threads; 1 is what Nomad gives a sidecar [default: 1].
    #[arg(long, value_name = "N", value_parser = workers_parser())]
    pub(crate) concurrency: Option<u16>,
    /// Seconds a drain may last; Nomad kills after 5 [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) drain_time_s: Option<u32>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LogArgs {
    /// Lowest level logged: trace, debug, info, warning, error, critical, off [default: info].
    #[arg(short = 'l', long, value_name = "LEVEL", hide_possible_values = true, value_parser = log_level_parser())]
    pub(crate) log_level: Option<LogLevel>,
    /// One line of text or one JSON object an event: text, json [default: text].
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, value_parser = log_format_parser())]
    pub(crate) log_format: Option<LogFormat>,
}

/// Arguments of `demo`, not yet judged.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// A real Consul agent instead of the built-in stand-in (its token and TLS from CONSUL_*).
    #[arg(long, value_name = "ADDR")]
    pub(crate) consul: Option<String>,
    /// Port of the page.
    #[arg(long, value_name = "PORT", default_value_t = 9002, value_parser = port_parser())]
    pub(crate) dashboard_port: u16,
    /// Port of the counting service.
    #[arg(long, value_name = "PORT", default_value_t = 9001, value_parser = port_parser())]
    pub(crate) api_port: u16,
    /// Port where the page's sidecar offers the counting service.
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = port_parser())]
    pub(crate) upstream_port: u16,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Shells that a completion script can be printed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say what they are")]
pub enum Shell {
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    PowerShell,
    Zsh,
}

/// The command line's definition, from which the binary generates completions.
pub fn command() -> clap::Command {
    Cli::command()
}

fn port_parser() -> impl TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(1..)
}

/// More workers than this is a slip of the pen, not a machine.
const MOST_WORKERS: i64 = 1024;

fn workers_parser() -> impl TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(1..=MOST_WORKERS)
}

fn secret_parser() -> impl TypedValueParser<Value = Secret> {
    clap::builder::StringValueParser::new().map(Secret::new)
}

/// Envoy's names; it takes both spellings of a warning.
fn log_level_parser() -> impl TypedValueParser<Value = LogLevel> {
    PossibleValuesParser::new([
        PossibleValue::new("trace"),
        PossibleValue::new("debug"),
        PossibleValue::new("info"),
        PossibleValue::new("warning").alias("warn"),
        PossibleValue::new("error"),
        PossibleValue::new("critical"),
        PossibleValue::new("off"),
    ])
    .map(|name| match name.as_str() {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "warning" | "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "critical" => LogLevel::Critical,
        "off" => LogLevel::Off,
        _ => LogLevel::Info,
    })
}

fn log_format_parser() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(["text", "json"]).map(|name| match name.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    })
}
