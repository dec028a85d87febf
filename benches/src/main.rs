//! Side-by-side benches: two sidecars of one kind beside two of another, on equal work in one run.
//!
//! This file owns the arguments, the rounds and the exit code. Load, backend and the Consul
//! stand-in run in this process; only the proxies are processes of their own, and they end with
//! it. See README.md beside the package.

mod arguments;
mod backend;
mod backend_http;
mod body;
mod client;
mod envoy;
mod envoy_http;
mod figure;
mod haproxy;
mod kind;
mod load;
mod measure;
mod message;
mod nginx;
mod peer;
mod process;
mod progress;
mod report;
mod scaling;
mod scene;
mod setup;
mod svg;
mod turn;
mod wire;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::Arguments;
use crate::figure::Samples;
use crate::kind::Kind;
use crate::peer::{ATTACHE, Peer, Programs};
use crate::progress::{Progress, say};
use crate::report::{DIRECT, Report};
use crate::scene::Scene;
use crate::turn::{Plan, Turn};

/// A shell's code for a program that was interrupted.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
    let (plan, remarks) = arguments.plan(raise_file_limit()?);
    let mut report = find_peers(arguments)?;
    for remark in remarks {
        say(&remark);
        report.remarks.push(remark);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    // Dropping `measure` where it stands ends the proxies and removes their files.
    let finished = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            done = Box::pin(measure(arguments, &plan, &mut report)) => done.map(|()| true),
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

/// As many as there may be, which proxies inherit; gives how many. A process with the right to has
/// more.
fn raise_file_limit() -> Result<u64, String> {
    const WANTED: u64 = 100_000;
    let failed = |error| format!("the limit of open files: {error}");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if most < WANTED && setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED).is_ok() {
        return Ok(WANTED);
    }
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(failed)?;
    Ok(most)
}

fn find_peers(arguments: &Arguments) -> Result<Report, String> {
    let attache = match &arguments.attache {
        Some(path) => path.clone(),
        None if arguments.peers.iter().any(|name| name == ATTACHE) => build_attache()?,
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
        remarks: Vec::new(),
        settings: settings(arguments),
    })
}

fn settings(arguments: &Arguments) -> String {
    let metadata = if arguments.no_metadata {
        ", no metadata"
    } else {
        ""
    };
    format!(
        "{} rounds, {} s a figure{metadata}",
        arguments.rounds, arguments.seconds
    )
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

async fn measure(arguments: &Arguments, plan: &Plan, report: &mut Report) -> Result<(), String> {
    let scene = Scene::set(plan.needs())?;
    let kinds = arguments.kinds();
    let turns_of = |kind: &Kind| 1 + report.peers.iter().filter(|peer| peer.carries(*kind)).count();
    let turns = kinds.iter().map(turns_of).sum::<usize>() * arguments.rounds as usize;
    let progress = Progress::new(turns);
    let mut failed = Vec::new();
    for round in 0..arguments.rounds as usize {
        for &kind in &kinds {
            let place = format!("round {} of {}, {}", round + 1, arguments.rounds, kind.label());
            progress.begin(&format!("{place}: {DIRECT}"));
            let direct = Turn::direct(plan, kind, &scene).await?;
            report.samples.add(DIRECT, direct.figures);
            progress.end();
            // Whoever is first in one round is last in the next.
            for turn in 0..report.peers.len() {
                let index = (round + turn) % report.peers.len();
                let peer = &report.peers[index];
                if !peer.carries(kind) {
                    continue;
                }
                progress.begin(&format!("{place}: {}", peer.name));
                if failed.contains(&(kind, index)) {
                    progress.end();
                    continue;
                }
                let done = Turn::of(plan, peer, kind, &scene).await;
                // Whoever did not even start is not tried again.
                if done.figures.is_empty() {
                    failed.push((kind, index));
                }
                report.samples.add(&peer.name, done.figures);
                progress.end();
                if let Some(failure) = done.failure {
                    let failure = format!("{}, {place}: {failure}", peer.name);
                    progress.note(&failure);
                    report.failures.push(failure);
                }
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
    write(&arguments.svg, report.svg())?;
    let mut out = io::stdout().lock();
    write!(out, "\n{}", report.text()).map_err(|error| format!("standard output: {error}"))
}
