//! The commands: what each does with a loaded configuration, what it prints, how it exits.
//!
//! Owns the control thread's runtime. The only place that writes to standard output.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::rc::Rc;

use attache_bootstrap::env::{Env, RealFiles};
use attache_bootstrap::{exit, Command, Failure, Loaded, Rejected, Shell, ENVOY_FILE_NOT_READ};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::app::{self, AppError};
use crate::control::consul::{self, ConsulSource};
use crate::control::status_channel;
use crate::telemetry::logging;

/// Carries out a command line and returns the process's exit code ([`exit`]).
pub fn run(arguments: impl IntoIterator<Item = OsString>, environment: &dyn Env) -> u8 {
    match attache_bootstrap::load(arguments, environment, &RealFiles) {
        Ok(Command::Run(loaded)) => sidecar(&loaded),
        Ok(Command::Bootstrap(loaded)) => explain(&loaded),
        Ok(Command::Demo(config)) => demo(*config),
        Ok(Command::Completions(shell)) => completions(shell),
        Ok(Command::Envoy(_)) => {
            complain(ENVOY_FILE_NOT_READ);
            exit::USAGE
        }
        Err(Failure::Usage(error)) => {
            let _ = error.print();
            Failure::Usage(error).exit_code()
        }
        Err(Failure::Config(rejected)) => refuse(&rejected),
    }
}

fn sidecar(loaded: &Loaded) -> u8 {
    let config = &loaded.config;
    logging::init(config.log);
    for note in loaded.report.notes() {
        tracing::info!("{note}");
    }
    for gap in loaded.report.gaps() {
        tracing::warn!("{gap}");
    }
    let (status, reader) = status_channel();
    let reader = RefCell::new(reader);
    let describe = Rc::new(move || reader.borrow_mut().borrow_and_update().to_json());
    let served = block_on(app::run(config, describe, |publisher| {
        consul::run(ConsulSource::new(config.clone(), publisher, status))
    }));
    match served {
        Some(Ok(())) => exit::OK,
        Some(Err(error)) => {
            tracing::error!("{error}");
            match error {
                AppError::Bind(_) | AppError::Admin(_) => exit::UNAVAILABLE,
                AppError::Source(_) => exit::CONFIG,
                AppError::System(_) | AppError::Worker => exit::INTERNAL,
            }
        }
        None => exit::INTERNAL,
    }
}

/// `attache bootstrap`: the report, completed by what the agent says if it answers.
fn explain(loaded: &Loaded) -> u8 {
    let live = block_on(consul::inspect(&loaded.config));
    let report = match live {
        Some(Ok(live)) => loaded.report.to_json(Some(&live)),
        Some(Err(error)) => {
            let mut report = loaded.report.to_json(None);
            if let Some(notes) = report.get_mut("notes").and_then(serde_json::Value::as_array_mut) {
                notes.push(format!("not completed by the agent: {error}").into());
            }
            report
        }
        None => return exit::INTERNAL,
    };
    print(&format!("{report:#}\n"));
    exit::OK
}

fn refuse(rejected: &Rejected) -> u8 {
    if rejected.by_bootstrap {
        print(&format!("{:#}\n", rejected.report.to_json(None)));
    } else {
        complain(&rejected.to_string());
    }
    exit::CONFIG
}

fn completions(shell: Shell) -> u8 {
    use clap_complete::aot;
    let mut command = attache_bootstrap::command();
    let mut script = Vec::new();
    let name = "attache";
    match shell {
        Shell::Bash => clap_complete::generate(aot::Bash, &mut command, name, &mut script),
        Shell::Elvish => clap_complete::generate(aot::Elvish, &mut command, name, &mut script),
        Shell::Fish => clap_complete::generate(aot::Fish, &mut command, name, &mut script),
        Shell::PowerShell => clap_complete::generate(aot::PowerShell, &mut command, name, &mut script),
        Shell::Zsh => clap_complete::generate(aot::Zsh, &mut command, name, &mut script),
    }
    print(&String::from_utf8_lossy(&script));
    exit::OK
}

#[cfg(feature = "demo")]
fn demo(config: attache_bootstrap::DemoConfig) -> u8 {
    let sidecar_program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            complain(&format!("the path of this program cannot be told: {error}"));
            return exit::INTERNAL;
        }
    };
    logging::init(config.log);
    let options = crate::demo::DemoOptions::new(config, sidecar_program, crate::net::holder::of);
    match block_on(crate::demo::run(options)) {
        Some(Ok(())) => exit::OK,
        Some(Err(error)) => {
            complain(&error.to_string());
            exit::UNAVAILABLE
        }
        None => exit::INTERNAL,
    }
}

#[cfg(not(feature = "demo"))]
fn demo(_: attache_bootstrap::DemoConfig) -> u8 {
    complain("this binary was built without the demo (cargo feature `demo`)");
    exit::USAGE
}

fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    let runtime: std::io::Result<LocalRuntime> =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(future);
            // A name look-up on a helper thread must not hold up the end.
            runtime.shutdown_background();
            Some(ended)
        }
        Err(error) => {
            complain(&format!("no runtime: {error}"));
            None
        }
    }
}

fn print(text: &str) {
    // A reader that went away (`attache bootstrap | head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "attache: {}", text.trim_end());
}
