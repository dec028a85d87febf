//! The peers: how each is found, configured and launched as a pair of sidecars.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kind::Kind;
use crate::nginx::Stream;
use crate::process::Process;
use crate::scene::{CALLEE, CALLER, Scene};
use crate::setup::{Handshakes, Setup};
use crate::{envoy, haproxy, nginx};

/// Our own name.
pub(crate) const ATTACHE: &str = "attache";

/// The name that ratios refer to.
pub(crate) const ENVOY: &str = "envoy";

/// Where a Python package keeps the real program, which `envoy` on PATH only wraps.
const ENVOY_OF_PYTHON: &str = "import envoy, os; print(os.path.dirname(envoy.__file__) + '/_bin/envoy')";

/// One kind of proxy.
#[derive(Debug)]
pub(crate) struct Peer {
    /// What its column is called.
    pub(crate) name: String,
    /// What it says of itself.
    pub(crate) version: String,
    /// Where its work is not quite the same.
    pub(crate) note: Option<&'static str>,
    launch: Launch,
}

#[derive(Debug)]
enum Launch {
    /// `attache run` on the stand-in, or, for what that does not tell, on Envoy's file.
    Attache(PathBuf),
    /// A program and its first arguments, on Envoy's file.
    EnvoyFile(Vec<String>, Handshakes),
    Haproxy,
    Nginx(Stream),
}

/// Where programs are that are not looked for on PATH.
#[derive(Debug)]
pub(crate) struct Programs {
    /// The built binary.
    pub(crate) attache: PathBuf,
    /// Given by hand.
    pub(crate) envoy: Option<PathBuf>,
}

/// A running pair.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Up before the outbound one.
    pub(crate) inbound: Process,
    /// Just started.
    pub(crate) outbound: Process,
    /// Milliseconds from start to listening.
    pub(crate) inbound_start_ms: f64,
    /// The same of the outbound one.
    pub(crate) outbound_start_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inbound,
    Outbound,
}

impl Programs {
    fn envoy(&self, handshakes: Handshakes) -> Result<Launch, String> {
        let program = self.envoy.clone().map_or_else(find_envoy, Ok)?;
        let words = vec![program.to_string_lossy().into_owned()];
        Ok(Launch::EnvoyFile(words, handshakes))
    }
}

impl Peer {
    /// Finds the program of a known name; the error says why this peer is skipped.
    pub(crate) fn find(name: &str, programs: &Programs) -> Result<Self, String> {
        let (launch, note) = match name {
            ATTACHE => (Launch::Attache(programs.attache.clone()), None),
            ENVOY => (programs.envoy(Handshakes::Resumed)?, None),
            "envoy-full" => (programs.envoy(Handshakes::Full)?, Some(envoy::FULL_NOTE)),
            "haproxy" => (Launch::Haproxy, Some(haproxy::NOTE)),
            "nginx" => {
                let stream = Stream::find(&output("nginx", &["-V"])?);
                let note = match stream {
                    Stream::Missing => nginx::HTTP_ONLY_NOTE,
                    _ => nginx::NOTE,
                };
                (Launch::Nginx(stream), Some(note))
            }
            _ => {
                return Err(format!(
                    "{name} is not one of attache, envoy, envoy-full, haproxy, nginx"
                ));
            }
        };
        Self::with_version(name, launch, note)
    }

    /// A peer that is run on Envoy's file, from `NAME=COMMAND`.
    pub(crate) fn from_command(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not NAME=COMMAND"))?;
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        Self::with_version(name, Launch::EnvoyFile(words, Handshakes::Resumed), None)
    }

    fn with_version(name: &str, launch: Launch, note: Option<&'static str>) -> Result<Self, String> {
        let text = match &launch {
            Launch::Attache(program) => output(&program.to_string_lossy(), &["--version"]),
            Launch::EnvoyFile(words, _) => match words.split_first() {
                Some((program, rest)) => {
                    let rest = rest.iter().map(String::as_str);
                    output(program, &rest.chain(["--version"]).collect::<Vec<_>>())
                }
                None => Err(format!("{name}= names no command")),
            },
            Launch::Haproxy => output("haproxy", &["-v"]),
            Launch::Nginx(_) => output("nginx", &["-v"]),
        };
        let text = text?;
        let version = text.lines().map(str::trim).find(|line| !line.is_empty());
        // Envoy and attache begin with the path that they were started by.
        let version = version.map(|line| line.split_once("version: ").map_or(line, |(_, rest)| rest));
        Ok(Self {
            name: name.to_owned(),
            version: version.unwrap_or("of no known version").to_owned(),
            note,
            launch,
        })
    }

    /// Whether it can do what the turns of that kind ask.
    pub(crate) fn carries(&self, kind: Kind) -> bool {
        match self.launch {
            Launch::Attache(_) | Launch::EnvoyFile(..) => true,
            Launch::Nginx(Stream::Missing) => kind == Kind::Http1,
            Launch::Haproxy | Launch::Nginx(_) => !kind.has_streams(),
        }
    }

    /// Whether its inbound sidecar is to tell the backend who calls.
    pub(crate) fn names_caller(&self, kind: Kind) -> bool {
        let is_told_to = matches!(self.launch, Launch::Attache(_) | Launch::EnvoyFile(..));
        is_told_to && matches!(kind, Kind::Http1 | Kind::Http2)
    }

    /// Whether all its handshakes are full ones, whatever a turn asks.
    pub(crate) fn never_resumes(&self) -> bool {
        matches!(self.launch, Launch::EnvoyFile(_, Handshakes::Full))
    }

    /// Starts the inbound sidecar and then the outbound one, and waits until both listen.
    pub(crate) async fn start(&self, scene: &Scene, setup: Setup) -> Result<Pair, String> {
        let mut inbound = self.start_side(scene, setup, Side::Inbound)?;
        let inbound_start_ms = inbound.listening(scene.inbound).await?;
        let mut outbound = self.start_side(scene, setup, Side::Outbound)?;
        let outbound_start_ms = outbound.listening(scene.outbound).await?;
        if setup.further_upstreams {
            for address in &scene.further_upstreams {
                outbound.listening(*address).await?;
            }
        }
        Ok(Pair {
            inbound,
            outbound,
            inbound_start_ms,
            outbound_start_ms,
        })
    }

    fn start_side(&self, scene: &Scene, setup: Setup, side: Side) -> Result<Process, String> {
        let side_name = match side {
            Side::Inbound => "inbound",
            Side::Outbound => "outbound",
        };
        let log = scene.folder().join(format!("{}-{side_name}.log", self.name));
        let write = |text: &str| scene.write(&format!("{}-{side_name}.conf", self.name), text);
        let on_envoy_file = |words: &[String], handshakes| {
            let setup = Setup { handshakes, ..setup };
            let text = match side {
                Side::Inbound => envoy::inbound(scene, setup),
                Side::Outbound => envoy::outbound(scene, setup),
            };
            let name = format!("{}-{side_name}.json", self.name);
            let path = scene.write(&name, &text.to_string())?;
            Ok::<_, String>(envoy_command(words, &path, setup.workers))
        };
        let command = match &self.launch {
            Launch::Attache(program) if is_told_by_consul(setup) => attache(scene, setup, program, side),
            Launch::Attache(program) => {
                let words = [program.to_string_lossy().into_owned()];
                on_envoy_file(&words, setup.handshakes)?
            }
            Launch::EnvoyFile(words, Handshakes::Resumed) => on_envoy_file(words, setup.handshakes)?,
            Launch::EnvoyFile(words, Handshakes::Full) => on_envoy_file(words, Handshakes::Full)?,
            Launch::Haproxy => {
                let text = match side {
                    Side::Inbound => haproxy::inbound(scene, setup),
                    Side::Outbound => haproxy::outbound(scene, setup),
                };
                let mut command = Command::new("haproxy");
                command.arg("-f").arg(write(&text?)?).arg("-db");
                command
            }
            Launch::Nginx(stream) => {
                let text = match side {
                    Side::Inbound => nginx::inbound(scene, setup, stream),
                    Side::Outbound => nginx::outbound(scene, setup, stream),
                };
                nginx::command(scene, &write(&text?)?)
            }
        };
        Process::start(command, log)
    }
}

impl Pair {
    /// Both of them.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.inbound.pid(), self.outbound.pid()]
    }

    /// The last lines of both logs, for an error message.
    pub(crate) fn tails(&self) -> String {
        format!(
            "\n  inbound:{}\n  outbound:{}",
            self.inbound.tail(),
            self.outbound.tail()
        )
    }
}

/// The stand-in's two services speak TCP, with the sessions and upstreams that are usual.
fn is_told_by_consul(setup: Setup) -> bool {
    setup.kind == Kind::Tcp && setup.handshakes == Handshakes::Resumed && !setup.further_upstreams
}

fn attache(scene: &Scene, setup: Setup, program: &Path, side: Side) -> Command {
    let (service, admin) = match side {
        Side::Inbound => (CALLEE, scene.inbound_admin),
        Side::Outbound => (CALLER, scene.outbound_admin),
    };
    let mut command = Command::new(program);
    // Envoy writes no line for a connection here; Attaché's are of level info.
    command
        .args(["run", "--sidecar-for", service])
        .args(["--http-addr", &scene.consul.to_string()])
        .args(["--admin-bind", &admin.to_string()])
        .args(["--concurrency", &setup.workers.to_string()])
        .args(["--log-level", "warning"]);
    command
}

/// With Nomad's arguments.
fn envoy_command(words: &[String], file: &Path, workers: usize) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command
        .args(words)
        .arg("-c")
        .arg(file)
        .args(["-l", "error", "--concurrency", &workers.to_string()])
        .arg("--disable-hot-restart");
    command
}

/// The program itself: a wrapper on PATH would add an interpreter's start to the figures.
fn find_envoy() -> Result<PathBuf, String> {
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|folder| folder.join(ENVOY))
            .find(|file| file.is_file())
    });
    let on_path = on_path.ok_or_else(|| "no envoy on PATH".to_owned())?;
    if is_elf(&on_path) {
        return Ok(on_path);
    }
    let python = ["python3", "python"].into_iter().find_map(|python| {
        let path = PathBuf::from(output(python, &["-c", ENVOY_OF_PYTHON]).ok()?.trim());
        is_elf(&path).then_some(path)
    });
    python.ok_or_else(|| {
        format!(
            "{} is a wrapper; give the program with --envoy",
            on_path.display()
        )
    })
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// What a program prints, on whichever of the two outputs.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound if program.contains('/') => format!("no {program}"),
        std::io::ErrorKind::NotFound => format!("no {program} on PATH"),
        _ => format!("{program}: {error}"),
    })?;
    let both = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}
