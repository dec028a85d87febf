//! Arguments, environment and files in, a command out.
//!
//! Two stages: clap's shapes and the raw environment first, then one pass that judges them together
//! and collects every problem. Owns the order of judgement; each folder-mate owns the rules of its
//! part. Nothing is dialled and no secret is read: token files are listed for whoever watches them.

mod agent;
mod draft;
mod envoy;
mod manual;
mod nomad;
mod token;
mod which;

#[cfg(test)]
mod cases;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextValue, ErrorKind};

use crate::args::{Cli, ConsulArgs, DemoArgs, LogArgs, ProcessArgs, RunArgs, Shell, Verb};
use crate::config::{AdminBind, Config, ConsulAgent, LogConfig, LogFormat, LogLevel};
use crate::env::{Env, Files};
use crate::envoy::EnvoyConfig;
use crate::problem::{Failure, Rejected};
use crate::report::Report;
use draft::Draft;

/// What the command line asks for, ready to be done.
#[derive(Debug)]
pub enum Command {
    /// `attache run`.
    Run(Box<Loaded>),
    /// `attache bootstrap`: print [`Loaded::report`].
    Bootstrap(Box<Loaded>),
    /// `attache demo`.
    Demo(Box<DemoConfig>),
    /// `attache completions SHELL`: generate from [`command`](crate::command).
    Completions(Shell),
    /// No subcommand: Envoy's place, with Envoy's arguments.
    Envoy(Box<EnvoyConfig>),
    /// `--version` and `--hot-restart-version`: this text, as it is, and nothing else.
    Print(String),
}

/// A configuration that can be run, and how it came about.
#[derive(Debug)]
pub struct Loaded {
    /// What to run with.
    pub config: Config,
    /// The same with sources.
    pub report: Report,
}

/// What `attache demo` starts with.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// A real agent; without one, the stand-in.
    pub consul: Option<ConsulAgent>,
    /// Port of the page.
    pub dashboard_port: u16,
    /// Port of the counting service.
    pub api_port: u16,
    /// Port where the page's sidecar offers the counting service.
    pub upstream_port: u16,
    /// How log lines look and which are written.
    pub log: LogConfig,
}

/// Reads `args` (the program's name first) together with `env` and `files`. Arguments win.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Env,
    files: &dyn Files,
) -> Result<Command, Failure> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayVersion => {
            return envoy::version_text(Draft::new(env, files)).map(Command::Print);
        }
        Err(error) => return Err(Failure::Usage(without_values(error))),
    };
    match cli.verb {
        // What Envoy prints where hot restart is disabled.
        None if cli.envoy.hot_restart_version => Ok(Command::Print("disabled\n".to_owned())),
        None => {
            envoy::config(*cli.envoy, Draft::new(env, files)).map(|config| Command::Envoy(Box::new(config)))
        }
        Some(Verb::Completions { shell }) => Ok(Command::Completions(shell)),
        Some(Verb::Demo(args)) => {
            demo(*args, Draft::new(env, files)).map(|demo| Command::Demo(Box::new(demo)))
        }
        Some(Verb::Run(args)) => {
            run(*args, Draft::new(env, files), false).map(|run| Command::Run(Box::new(run)))
        }
        Some(Verb::Bootstrap(args)) => {
            run(*args, Draft::new(env, files), true).map(|run| Command::Bootstrap(Box::new(run)))
        }
    }
}

/// Behind `--` a flag is a word like others, and clap quotes it with its value, which may be a token.
fn without_values(mut error: clap::Error) -> clap::Error {
    let flag = |text: &str| {
        let (flag, _) = text.split_once('=')?;
        flag.starts_with("--")
            .then(|| ContextValue::String(flag.to_owned()))
    };
    let quoted = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, flag(text)?)),
        _ => None,
    });
    for (kind, value) in quoted.collect::<Vec<_>>() {
        error.insert(kind, value);
    }
    error
}

fn run(args: RunArgs, mut draft: Draft<'_>, by_bootstrap: bool) -> Result<Loaded, Failure> {
    let admin = admin(&args.process, &mut draft);
    // A proxy by hand has nothing to do with the allocation it may run in, faulty or not.
    let by_hand = !manual::flags(&args.manual).is_empty();
    let proxy = which::proxy(args.which, args.manual, admin, &mut draft);
    let (upstream_hints, public_hint) = if by_hand {
        (Vec::new(), None)
    } else {
        let upstreams = nomad::upstreams(&mut draft);
        (upstreams, nomad::public_listener(&mut draft))
    };
    let consul = agent::consul(args.consul, "--http-addr", &mut draft);
    let concurrency = usize::from(args.process.concurrency.unwrap_or(CONCURRENCY));
    let drain_time_s = args.process.drain_time_s.unwrap_or(DRAIN_TIME_S);
    let drain_time = Duration::from_secs(drain_time_s.into());
    let log = log(args.process.log);
    process_report(&args.process, admin, &mut draft.report);

    let report = draft.report;
    match (proxy, consul, admin) {
        (Some(proxy), Some(consul), Some(admin)) if report.problems.is_empty() => {
            let config = Config {
                proxy,
                consul,
                upstream_hints,
                public_hint,
                admin,
                concurrency,
                drain_time,
                log,
            };
            Ok(Loaded { config, report })
        }
        _ => Err(rejected(report, by_bootstrap)),
    }
}

fn demo(args: DemoArgs, mut draft: Draft<'_>) -> Result<DemoConfig, Failure> {
    let ports = [
        ("--dashboard-port", args.dashboard_port),
        ("--api-port", args.api_port),
        ("--upstream-port", args.upstream_port),
    ];
    for (index, (flag, port)) in ports.iter().enumerate() {
        for (other, _) in ports.iter().take(index).filter(|(_, taken)| taken == port) {
            draft.conflict(
                format!("{other} and {flag} are both {port}"),
                "give each a port of its own".into(),
            );
        }
    }
    let mut consul = None;
    if args.consul.is_some() {
        let args = ConsulArgs {
            http_addr: args.consul,
            ..Default::default()
        };
        consul = agent::consul(args, "--consul", &mut draft);
    }
    if !draft.report.problems.is_empty() {
        return Err(rejected(draft.report, false));
    }
    Ok(DemoConfig {
        consul,
        dashboard_port: args.dashboard_port,
        api_port: args.api_port,
        upstream_port: args.upstream_port,
        log: log(args.log),
    })
}

fn rejected(report: Report, by_bootstrap: bool) -> Failure {
    Failure::Config(Box::new(Rejected {
        by_bootstrap,
        problems: report.problems.clone(),
        report,
    }))
}

/// What Nomad itself asks of a sidecar, where nothing else is given.
const CONCURRENCY: u16 = 1;

/// In seconds: one less than Nomad's kill timeout.
const DRAIN_TIME_S: u32 = 4;

fn log(args: LogArgs) -> LogConfig {
    LogConfig {
        level: args.log_level.unwrap_or(LogLevel::Info),
        format: args.log_format.unwrap_or(LogFormat::Text),
    }
}

/// Envoy's customary admin port.
const ADMIN_PORT: u16 = 19_000;

fn admin(args: &ProcessArgs, draft: &mut Draft<'_>) -> Option<AdminBind> {
    let Some(text) = &args.admin_bind else {
        return Some(AdminBind {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: ADMIN_PORT,
            explicit: false,
        });
    };
    // Port 0 is allowed here alone: the process says which port it got.
    match draft::address(text, Ipv4Addr::LOCALHOST) {
        Some(address) => Some(AdminBind {
            address: address.ip(),
            port: address.port(),
            explicit: true,
        }),
        None => {
            draft.invalid(
                format!("--admin-bind {text:?} is not an address and port"),
                "write it like 127.0.0.1:19000 or [::1]:19000".into(),
            );
            None
        }
    }
}

fn process_report(args: &ProcessArgs, admin: Option<AdminBind>, report: &mut Report) {
    if let Some(admin) = admin {
        let address = SocketAddr::new(admin.address, admin.port).to_string();
        let from = if admin.explicit {
            "--admin-bind"
        } else {
            "default; the next free port where it is taken"
        };
        report.put_process("admin", address, from);
    }
    let log = log(args.log);
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let from = |given: bool, flag| if given { flag } else { "default" };
    report.put_process(
        "concurrency",
        args.concurrency.unwrap_or(CONCURRENCY),
        from(args.concurrency.is_some(), "--concurrency"),
    );
    report.put_process(
        "drain_time_s",
        args.drain_time_s.unwrap_or(DRAIN_TIME_S),
        from(args.drain_time_s.is_some(), "--drain-time-s"),
    );
    report.put_process(
        "log_level",
        log.level.name(),
        from(args.log.log_level.is_some(), "--log-level"),
    );
    report.put_process(
        "log_format",
        format,
        from(args.log.log_format.is_some(), "--log-format"),
    );
}
