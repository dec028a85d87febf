//! The commands: what each does with a loaded configuration, what it prints, how it exits.
//!
//! Owns the control thread's runtime. The only place that writes to standard output.

use std::cell::RefCell;
use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;

use attache_bootstrap::config::AdminBind;
use attache_bootstrap::env::{Env, RealFiles};
use attache_bootstrap::envoy::{EnvoyConfig, Mode};
use attache_bootstrap::{
    Command, Config, Failure, LiveBind, LiveFacts, LiveUpstream, Loaded, Rejected, Shell, exit,
};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;

use crate::app::{self, AppError, Serve};
use crate::control::consul::{self, ConsulSource};
use crate::control::xds::{self, XdsError, XdsSource};
use crate::control::{SourceStatus, status_channel};
use crate::dump::ConfigSource;
use crate::model::Identity;
use crate::snapshot::channel;
use crate::telemetry::logging;
use crate::telemetry::metrics::StatsConfig;
use crate::telemetry::sink::FLUSH_INTERVAL;
use crate::tls;
use crate::tls::identity::certified_key;

/// Carries out a command line and returns the process's exit code ([`exit`]).
pub fn run(arguments: impl IntoIterator<Item = OsString>, environment: &dyn Env) -> u8 {
    match attache_bootstrap::load(arguments, environment, &RealFiles) {
        Ok(Command::Run(loaded)) => sidecar(&loaded),
        Ok(Command::Bootstrap(loaded)) => explain(&loaded),
        Ok(Command::Demo(config)) => demo(*config),
        Ok(Command::Completions(shell)) => completions(shell),
        Ok(Command::Envoy(config)) => envoy(*config, environment),
        Ok(Command::Print(text)) => {
            print(&text);
            exit::OK
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
    tls::warm_up();
    let (status, reader) = status_channel();
    let serve = Serve {
        admin: Some(config.admin),
        admin_address_path: None,
        concurrency: config.concurrency,
        drain_time: config.drain_time,
        stats: StatsConfig::consul(),
        sinks: Vec::new(),
        flush_interval: FLUSH_INTERVAL,
        strict: true,
    };
    let served = block_on(app::run(&serve, |publisher| {
        let source = consul::run(ConsulSource {
            config: config.clone(),
            publisher,
            status,
            check: usable,
        });
        let described: Rc<dyn ConfigSource> = Rc::new(Described(describe(reader)));
        Ok((described, source))
    }));
    ended(served)
}

/// In Envoy's place: the bootstrap file decides.
fn envoy(config: EnvoyConfig, environment: &dyn Env) -> u8 {
    logging::init(config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let bootstrap = match xds::read(&config) {
        Ok(bootstrap) => bootstrap,
        Err(error) => {
            tracing::error!("{error}");
            return exit::CONFIG;
        }
    };
    for note in &bootstrap.notes {
        tracing::warn!("bootstrap: {note}");
    }
    tls::warm_up();
    let variables = environment.names().into_iter();
    let variables = variables
        .filter_map(|name| Some((name.clone(), environment.var(&name)?)))
        .collect();
    let admin = |address: SocketAddr| AdminBind {
        address: address.ip(),
        port: address.port(),
        explicit: true,
    };
    let serve = Serve {
        admin: bootstrap.admin.map(admin),
        admin_address_path: config.admin_address_path.clone(),
        concurrency: config.concurrency,
        drain_time: config.drain_time,
        stats: bootstrap.statistics.config.clone().with_tags(&config.stats_tags),
        sinks: bootstrap.statistics.sinks.clone(),
        flush_interval: bootstrap.statistics.flush_interval,
        strict: bootstrap.ads.is_none(),
    };
    let validate = config.mode == Mode::Validate;
    let (status, reader) = status_channel();
    let prepare = |publisher| {
        let source = XdsSource {
            config,
            bootstrap,
            variables,
            check: usable,
            publisher,
            status,
        };
        xds::prepare(source, describe(reader))
    };
    if validate {
        return match prepare(channel().0) {
            Ok(_) => {
                print("configuration OK\n");
                exit::OK
            }
            Err(error) => {
                complain(&error.to_string());
                exit::CONFIG
            }
        };
    }
    ended(block_on(app::run(&serve, |publisher| {
        let prepared = prepare(publisher)?;
        let described = prepared.config_source();
        Ok::<_, XdsError>((described, async { Ok(prepared.run().await) }))
    })))
}

/// A source that is described by its status alone.
struct Described<F>(F);

impl<F: Fn() -> serde_json::Value> ConfigSource for Described<F> {
    fn status(&self) -> serde_json::Value {
        (self.0)()
    }
}

fn describe(reader: watch::Receiver<SourceStatus>) -> impl Fn() -> serde_json::Value {
    let reader = RefCell::new(reader);
    move || reader.borrow_mut().borrow_and_update().to_json()
}

fn ended(served: Option<Result<(), AppError>>) -> u8 {
    match served {
        Some(Ok(())) => exit::OK,
        Some(Err(error)) => {
            tracing::error!("{error}");
            match error {
                AppError::Bind(_) | AppError::Admin(_) => exit::UNAVAILABLE,
                AppError::Source(_) | AppError::Stats(_) => exit::CONFIG,
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
        Some(Ok(live)) => loaded.report.to_json(Some(&facts(&loaded.config, live))),
        Some(Err(consul::InspectError::Waiting(what))) => {
            let mut report = loaded.report.clone();
            report.not_there_yet(what);
            report.to_json(None)
        }
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

/// Whether a leaf can be presented: its key is known to the provider and fits.
fn usable(identity: &Identity) -> Result<(), String> {
    certified_key(identity)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// What the agent said, as the report wants it.
fn facts(config: &Config, live: consul::LiveFacts) -> LiveFacts {
    let upstream = |upstream: consul::LiveUpstream| LiveUpstream {
        bind: match upstream.bind.parse() {
            Ok(address) => LiveBind::Address(address),
            Err(_) => LiveBind::Socket(upstream.bind.into()),
        },
        destination: upstream.destination,
        destination_type: upstream.kind,
        datacenter: upstream.datacenter,
        namespace: upstream.namespace,
        partition: upstream.partition,
        peer: upstream.peer,
    };
    LiveFacts {
        agent: config.consul.address.to_string(),
        proxy_id: live.proxy_id,
        public_listener: live.public_listener.ok(),
        upstreams: live.upstreams.into_iter().map(upstream).collect(),
    }
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
    use attache_bootstrap::config::{ConsulAddress, TokenSource as Token};

    let sidecar_program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            complain(&format!("the path of this program cannot be told: {error}"));
            return exit::INTERNAL;
        }
    };
    logging::init(config.log);
    let mut options = crate::demo::DemoOptions::new(sidecar_program);
    (options.dashboard_port, options.api_port, options.upstream_port) =
        (config.dashboard_port, config.api_port, config.upstream_port);
    options.who_holds = crate::net::holder::of;
    match config.consul.map(|agent| (agent.address, agent.token)) {
        None => {}
        Some((ConsulAddress::Http { host, port }, token)) => {
            options.consul = Some(format!("{host}:{port}"));
            options.token = match token {
                Token::Literal(token) => Some(token.expose().to_owned()),
                Token::None | Token::Files(_) | Token::Login { .. } => None,
            };
        }
        Some(_) => {
            complain("demo --consul takes an agent's plain HTTP address, such as 127.0.0.1:8500");
            return exit::USAGE;
        }
    }
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
    let runtime: std::io::Result<LocalRuntime> = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default());
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
