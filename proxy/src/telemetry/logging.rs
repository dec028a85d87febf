//! The subscriber: text or JSON lines on standard error, at a level that can be changed while it runs.
//!
//! Lines tell state changes and, one a connection, the access log (target `access`); never bytes. Loggers
//! are what Envoy's `/logging` calls so: each is a part of the code with a level of its own.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use attache_bootstrap::config::{LogConfig, LogFormat, LogLevel};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// The loggers, and what their lines' targets begin with. What belongs to none is `main`'s.
const LOGGERS: [(&str, &str); 11] = [
    ("access", "access"),
    ("admin", "attache::admin"),
    ("config", "attache::control"),
    ("drain", "attache::drain"),
    ("filter", "attache::filter"),
    ("http", "attache::http"),
    ("listener", "attache::listener"),
    ("main", ""),
    ("telemetry", "attache::telemetry"),
    ("tls", "attache::tls"),
    ("upstream", "attache::upstream"),
];

/// No logger is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no logger {0:?}")]
pub struct UnknownLogger(pub String);

/// The filter in use; none before [`init`], or where another subscriber is.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

fn current() -> MutexGuard<'static, BTreeMap<&'static str, LevelFilter>> {
    static LEVELS: LazyLock<Mutex<BTreeMap<&'static str, LevelFilter>>> = LazyLock::new(|| {
        let levels = LOGGERS.iter().map(|(name, _)| (*name, LevelFilter::INFO));
        Mutex::new(levels.collect())
    });
    LEVELS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the subscriber; a second call in one process changes nothing.
pub fn init(config: LogConfig) {
    let level = filter(config.level);
    let mut levels = current();
    levels.values_mut().for_each(|have| *have = level);
    let (reloadable, handle) = reload::Layer::new(targets(&levels));
    drop(levels);
    let lines = tracing_subscriber::fmt::layer()
        .with_timer(SystemTime)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let installed = tracing_subscriber::registry()
        .with(reloadable)
        .with(lines)
        .try_init();
    if installed.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Every logger and its level, in order of names.
pub fn levels() -> Vec<(&'static str, LogLevel)> {
    current()
        .iter()
        .map(|(name, level)| (*name, named(*level)))
        .collect()
}

/// Sets the level of every logger.
pub fn set_all(level: LogLevel) {
    let mut levels = current();
    levels.values_mut().for_each(|have| *have = filter(level));
    reload(&levels);
}

/// Sets the levels of some loggers: of all of them or, where one is unknown, of none.
///
/// # Errors
/// The name that no logger has.
pub fn set(changes: &[(&str, LogLevel)]) -> Result<(), UnknownLogger> {
    let mut levels = current();
    let unknown = changes
        .iter()
        .find(|(name, _)| LOGGERS.iter().all(|(logger, _)| logger != name));
    if let Some((name, _)) = unknown {
        return Err(UnknownLogger((*name).to_owned()));
    }
    for (name, have) in levels.iter_mut() {
        // The last one that is given for a logger holds.
        if let Some((_, level)) = changes.iter().rev().find(|(changed, _)| changed == name) {
            *have = filter(*level);
        }
    }
    reload(&levels);
    Ok(())
}

fn reload(levels: &BTreeMap<&'static str, LevelFilter>) {
    if let Some(handle) = FILTER.get() {
        // It fails only when the subscriber is gone, and nobody logs then.
        let _ = handle.reload(targets(levels));
    }
}

fn targets(levels: &BTreeMap<&'static str, LevelFilter>) -> Targets {
    LOGGERS.iter().fold(Targets::new(), |targets, (name, prefix)| {
        let level = levels.get(name).copied().unwrap_or(LevelFilter::INFO);
        if prefix.is_empty() {
            targets.with_default(level)
        } else {
            targets.with_target(*prefix, level)
        }
    })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
    }
}

fn named(level: LevelFilter) -> LogLevel {
    match level {
        LevelFilter::TRACE => LogLevel::Trace,
        LevelFilter::DEBUG => LogLevel::Debug,
        LevelFilter::INFO => LogLevel::Info,
        LevelFilter::WARN => LogLevel::Warn,
        LevelFilter::ERROR => LogLevel::Error,
        _ => LogLevel::Off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_set_together_or_not_at_all() {
        let of = |name| {
            let levels = levels();
            levels
                .into_iter()
                .find(|(have, _)| *have == name)
                .map(|(_, level)| level)
        };
        let refused = set(&[("tls", LogLevel::Trace), ("nobody", LogLevel::Debug)]);
        assert_eq!(refused, Err(UnknownLogger("nobody".to_owned())));
        assert_ne!(of("tls"), Some(LogLevel::Trace));
        set(&[("tls", LogLevel::Trace), ("access", LogLevel::Off)]).unwrap();
        assert_eq!(
            (of("tls"), of("access")),
            (Some(LogLevel::Trace), Some(LogLevel::Off))
        );
        set_all(LogLevel::Critical);
        assert!(levels().iter().all(|(_, level)| *level == LogLevel::Error));
    }
}
