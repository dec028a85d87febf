//! Envoy's own arguments: shapes, and the table of those that do nothing here.
//!
//! The names and what each takes are those of `envoy --help` 1.40; which of them mean something is
//! said by which struct they stand in. Judged by [`load`](crate::load()).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::Secret;
use crate::config::LogLevel;
use crate::envoy::{IgnoredOption, Mode};

/// Envoy's arguments that are carried out, as Nomad and `consul connect envoy` pass them.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "In Envoy's place")]
pub(crate) struct EnvoyArgs {
    /// Envoy's bootstrap file, JSON or .yaml [default: in a Nomad task, the one Nomad wrote].
    #[arg(short = 'c', long, value_name = "FILE")]
    pub(crate) config_path: Option<PathBuf>,
    /// YAML or JSON that is merged over the file, or stands alone.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = text_parser())]
    pub(crate) config_yaml: Option<Secret>,
    /// Whether to serve, or to validate: judge the configuration and exit [default: serve].
    #[arg(long, value_name = "MODE", hide_possible_values = true, value_parser = mode_parser())]
    pub(crate) mode: Option<Mode>,
    /// Lowest level: trace, debug, info, warning, error, critical, off [default: info].
    #[arg(short = 'l', long, value_name = "LEVEL", hide_possible_values = true, value_parser = super::log_level_parser())]
    pub(crate) log_level: Option<LogLevel>,
    /// Worker threads; not one a core as Envoy, but what Nomad gives a sidecar [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=super::MOST_WORKERS))]
    pub(crate) concurrency: Option<u32>,
    /// Seconds a drain may last; Nomad kills after 5 [default: 4.5].
    #[arg(long, value_name = "N")]
    pub(crate) drain_time_s: Option<u32>,
    /// Node ID, instead of the file's.
    #[arg(long, value_name = "ID")]
    pub(crate) service_node: Option<String>,
    /// Node cluster, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) service_cluster: Option<String>,
    /// Zone of the node's locality, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) service_zone: Option<String>,
    /// File that the admin API's address is written to.
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_address_path: Option<PathBuf>,
    /// A tag of every metric; may be repeated.
    #[arg(long, value_name = "TAG:VALUE")]
    pub(crate) stats_tag: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) allow_unknown_fields: bool,
    #[arg(long, hide = true)]
    pub(crate) allow_unknown_static_fields: bool,
    #[arg(long, hide = true)]
    pub(crate) reject_unknown_dynamic_fields: bool,
    #[arg(long, hide = true)]
    pub(crate) ignore_unknown_dynamic_fields: bool,
    // There is no hot restart here: these three are what says so, and are accepted without a word.
    #[arg(long, hide = true)]
    pub(crate) disable_hot_restart: bool,
    #[arg(long, hide = true, value_name = "N")]
    pub(crate) base_id: Option<u32>,
    #[arg(long, hide = true, value_name = "N")]
    pub(crate) parent_shutdown_time_s: Option<u32>,
    #[arg(long, hide = true)]
    pub(crate) hot_restart_version: bool,
    #[command(flatten)]
    pub(crate) ignored: IgnoredArgs,
    /// What follows `--`, which Envoy ignores too.
    #[arg(last = true, hide = true)]
    pub(crate) rest: Vec<OsString>,
}

/// What stands behind an ignored option.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    Text,
    Number,
    OneOf(&'static [&'static str]),
}

const HOT_RESTART: &str = "there is no hot restart here";
const LOG_FORM: &str = "lines go to standard error in the form that Attaché gives them";
const LOG_FLUSH: &str = "every access log line is written at once";

/// Envoy's options that do nothing here: name, what it takes, why.
const IGNORED: &[(&str, Takes, &str)] = &[
    ("restart-epoch", Takes::Number, HOT_RESTART),
    ("use-dynamic-base-id", Takes::Nothing, HOT_RESTART),
    ("base-id-path", Takes::Text, HOT_RESTART),
    ("socket-path", Takes::Text, HOT_RESTART),
    ("socket-mode", Takes::Text, HOT_RESTART),
    ("skip-hot-restart-on-no-parent", Takes::Nothing, HOT_RESTART),
    ("skip-hot-restart-parent-stats", Takes::Nothing, HOT_RESTART),
    (
        "drain-strategy",
        Takes::OneOf(&["gradual", "immediate"]),
        "only the end of the process drains",
    ),
    ("log-path", Takes::Text, LOG_FORM),
    ("log-format", Takes::Text, LOG_FORM),
    ("log-format-escaped", Takes::Nothing, LOG_FORM),
    ("log-stacktrace-single-entry", Takes::Nothing, LOG_FORM),
    (
        "component-log-level",
        Takes::Text,
        "Envoy's components are not those of Attaché; --log-level is for all",
    ),
    (
        "enable-fine-grain-logging",
        Takes::Nothing,
        "--log-level is for all",
    ),
    (
        "skip-deprecated-logs",
        Takes::Nothing,
        "nothing is logged about deprecated fields",
    ),
    ("file-flush-interval-msec", Takes::Number, LOG_FLUSH),
    ("file-flush-min-size-kb", Takes::Number, LOG_FLUSH),
    (
        "cpuset-threads",
        Takes::Nothing,
        "the default is one worker; give --concurrency",
    ),
    (
        "local-address-ip-version",
        Takes::OneOf(&["v4", "v6"]),
        "the machine's own address is not told to anybody",
    ),
    (
        "disable-extensions",
        Takes::Text,
        "Attaché has no extensions; what it does not know is refused",
    ),
    (
        "enable-mutex-tracing",
        Takes::Nothing,
        "there are no locks to trace",
    ),
    (
        "enable-core-dump",
        Takes::Nothing,
        "the machine's own limit decides (ulimit -c)",
    ),
];

/// Those of [`IGNORED`] that were given.
#[derive(Debug, Default)]
pub(crate) struct IgnoredArgs(pub(crate) Vec<IgnoredOption>);

impl Args for IgnoredArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        IGNORED.iter().fold(command, |command, (name, takes, why)| {
            let arg = Arg::new(*name).long(*name).help(*why).hide(true);
            command.arg(match takes {
                Takes::Nothing => arg.action(ArgAction::SetTrue),
                // A log format may well begin with a dash.
                Takes::Text => arg.value_name("TEXT").allow_hyphen_values(true),
                Takes::Number => arg.value_name("N").value_parser(clap::value_parser!(u32)),
                Takes::OneOf(values) => arg.value_parser(PossibleValuesParser::new(*values)),
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for IgnoredArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let option = |(name, takes, why): &(&'static str, Takes, &'static str)| {
            if matches.value_source(name) != Some(ValueSource::CommandLine) {
                return None;
            }
            let raw = matches.get_raw(name).and_then(|mut values| values.next());
            let value = raw.map(|value| value.to_string_lossy().into_owned());
            Some(IgnoredOption {
                name,
                value: value.filter(|_| !matches!(takes, Takes::Nothing)),
                why,
            })
        };
        Ok(Self(IGNORED.iter().filter_map(option).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Blanks at the beginning are part of YAML. The text may hold a token.
fn text_parser() -> impl TypedValueParser<Value = Secret> {
    clap::builder::StringValueParser::new().map(Secret::verbatim)
}

fn mode_parser() -> impl TypedValueParser<Value = Mode> {
    let names = ["serve", "validate"].map(PossibleValue::new);
    PossibleValuesParser::new(names).map(|name| match name.as_str() {
        "validate" => Mode::Validate,
        _ => Mode::Serve,
    })
}
