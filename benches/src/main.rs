//! Side-by-side benches: two sidecars of one kind beside two of another, on equal work in one run.
//!
//! This file owns the arguments, the rounds and the exit code. Load, backend and the Consul
//! stand-in run in this process; only the proxies are processes of their own, and they end with
//! it. See README.md beside the package.

mod backend;
mod envoy;
mod figure;
mod haproxy;
mod load;
mod measure;
mod nginx;
mod peer;
mod process;
mod report;
mod scene;
mod turn;
mod wire;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::figure::{Group, Samples};
use crate::peer::{Peer, Programs};
use crate::report::{DIRECT, Report};
use crate::scene::Scene;
use crate::turn::{Plan, Turn};

/// A shell's code for a program that was interrupted.
const EXIT_INTERRUPTED: u8 = 130;

/// Measures pairs of sidecars, outbound to inbound over mutual TLS, side by side.
#[derive(Debug, Parser)]
#[command(name = "attache-benches")]
struct Arguments {
    /// What the sidecars carry.
    #[arg(value_enum, default_value = "tcp")]
    kind: Kind,
    /// Who takes part: attache, envoy, envoy-full (no session is resumed), haproxy, nginx.
    #[arg(long, value_delimiter = ',', default_value = "attache,envoy")]
    peers: Vec<String>,
    /// Groups of figures [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// How long each figure that time bounds is measured.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often every peer has its turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Another peer, whose COMMAND is run with `-c FILE` and Nomad's arguments on Envoy's file.
    #[arg(long, value_name = "NAME=COMMAND")]
    config_file_peer: Vec<String>,
    /// The attache binary [default: built now, in release mode].
    #[arg(long, value_name = "PATH")]
    attache: Option<PathBuf>,
    /// The envoy binary [default: from PATH, or what the wrapper there stands for].
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Writes every sample there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table there.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// TCP over mutual TLS.
    Tcp,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Kind::Tcp = arguments.kind;
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    if cfg!(debug_assertions) {
        say("this load generator is a debug build: use cargo run --release, or the proxies wait for it");
    }
    raise_file_limit()?;
    let mut report = find_peers(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    // Dropping `measure` where it stands ends the proxies and removes their files.
    let finished = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            done = Box::pin(measure(arguments, &mut report)) => done.map(|()| true),
            _ = interrupt.recv() => Ok(false),
            _ = terminate.recv() => Ok(false),
        }
    })?;
    if !finished {
        say("interrupted");
        return Ok(ExitCode::from(EXIT_INTERRUPTED));
    }
    publish(arguments, &report)?;
    Ok(if report.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Idle connections need one descriptor each here and two in a proxy, which inherits the limit.
fn raise_file_limit() -> Result<(), String> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most))
        .map_err(|error| format!("the limit of open files: {error}"))
}

fn find_peers(arguments: &Arguments) -> Result<Report, String> {
    let attache = match &arguments.attache {
        Some(path) => path.clone(),
        None if arguments.peers.iter().any(|name| name == "attache") => build_attache()?,
        None => PathBuf::new(),
    };
    let programs = Programs {
        attache,
        envoy: arguments.envoy.clone(),
    };
    let named = arguments.peers.iter().map(|name| Peer::find(name, &programs));
    let given = arguments
        .config_file_peer
        .iter()
        .map(|text| Peer::from_command(text));
    let (mut peers, mut skipped) = (Vec::new(), Vec::new());
    for found in named.chain(given) {
        match found {
            Ok(peer) => peers.push(peer),
            Err(why) => {
                say(&format!("skipped: {why}"));
                skipped.push(why);
            }
        }
    }
    if peers.is_empty() {
        return Err("there is no peer to measure".to_owned());
    }
    Ok(Report {
        peers,
        samples: Samples::default(),
        skipped,
        failures: Vec::new(),
        settings: format!("{} rounds, {} s a figure", arguments.rounds, arguments.seconds),
    })
}

/// Cargo builds no binaries of a dependency, and one that lies there may be an old one.
fn build_attache() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    say("building attache");
    let built = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "attache",
            "--bin",
            "attache",
        ])
        .current_dir(workspace)
        .status();
    let built = built.map_err(|error| format!("cargo: {error}"))?;
    if !built.success() {
        return Err("attache does not build".to_owned());
    }
    // This program is <target>/<profile>/attache-benches.
    let own = std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let target = own.ancestors().nth(2).unwrap_or(Path::new("target"));
    Ok(target.join("release").join("attache"))
}

async fn measure(arguments: &Arguments, report: &mut Report) -> Result<(), String> {
    let groups = if arguments.only.is_empty() {
        Group::value_variants().to_vec()
    } else {
        arguments.only.clone()
    };
    let plan = Plan {
        groups,
        duration: Duration::from_secs(arguments.seconds),
    };
    let scene = Scene::set()?;
    let mut failed = vec![false; report.peers.len()];
    for round in 0..arguments.rounds as usize {
        let place = format!("round {} of {}", round + 1, arguments.rounds);
        report
            .samples
            .add(DIRECT, Turn::direct(&plan, scene.backend).await?.figures);
        // Whoever is first in one round is last in the next.
        for turn in 0..report.peers.len() {
            let index = (round + turn) % report.peers.len();
            let peer = &report.peers[index];
            if failed[index] {
                continue;
            }
            say(&format!("{place}: {}", peer.name));
            let done = Turn::of(&plan, peer, &scene).await;
            // Whoever did not even start is not tried again.
            failed[index] = done.figures.is_empty();
            report.samples.add(&peer.name, done.figures);
            if let Some(failure) = done.failure {
                let failure = format!("{}, {place}: {failure}", peer.name);
                say(&failure);
                report.failures.push(failure);
            }
        }
    }
    Ok(())
}

fn publish(arguments: &Arguments, report: &Report) -> Result<(), String> {
    let write = |path: &Option<PathBuf>, text: String| match path {
        Some(path) => fs::write(path, text).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(()),
    };
    write(&arguments.json, format!("{:#}\n", report.json()))?;
    write(&arguments.markdown, report.markdown())?;
    let mut out = io::stdout().lock();
    write!(out, "\n{}", report.text()).map_err(|error| format!("standard output: {error}"))
}

/// A line of progress; whoever closed standard error does not want it.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
