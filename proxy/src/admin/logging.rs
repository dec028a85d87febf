//! `/logging`: shows and changes the levels of loggers.

use std::fmt::Write;

use attache_bootstrap::config::LogLevel;

use super::query::Query;
use crate::telemetry::logging;

/// Changes what the query says, and shows the levels.
///
/// # Errors
/// Says what is not known, and how it is used.
pub(super) fn answer(query: &Query) -> Result<String, String> {
    change(query).map_err(|error| {
        format!(
            "error: {error}\n\
             usage: /logging (show), /logging?level=<level> (all loggers), /logging?<logger>=<level> (one),\n\
             /logging?paths=<logger>:<level>,<logger>:<level> (several)\n\
             levels: trace, debug, info, warning, error, critical, off\n"
        )
    })?;
    let mut out = String::from("active loggers:\n");
    for (logger, level) in logging::levels() {
        let _ = writeln!(out, "  {logger}: {}", level.name());
    }
    Ok(out)
}

fn change(query: &Query) -> Result<(), String> {
    let mut parameters = query.iter();
    let Some((name, value)) = parameters.next() else {
        return Ok(());
    };
    if parameters.next().is_some() {
        return Err("one parameter is taken at a time".to_owned());
    }
    let set = |changes: &[(&str, LogLevel)]| logging::set(changes).map_err(|error| error.to_string());
    match name {
        "level" => {
            logging::set_all(level(value)?);
            Ok(())
        }
        "paths" => {
            let changes = value.split(',').map(|pair| {
                let (logger, name) = pair
                    .split_once(':')
                    .ok_or_else(|| format!("{pair:?} has no level"))?;
                Ok((logger, level(name)?))
            });
            set(&changes.collect::<Result<Vec<_>, String>>()?)
        }
        logger => set(&[(logger, level(value)?)]),
    }
}

fn level(name: &str) -> Result<LogLevel, String> {
    Ok(match name {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warning" | "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "critical" => LogLevel::Critical,
        "off" => LogLevel::Off,
        _ => return Err(format!("there is no level {name:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_changes_nothing_and_is_named() {
        for (query, wanted) in [
            ("level=loud", "there is no level \"loud\""),
            ("nobody=debug", "there is no logger \"nobody\""),
            ("paths=tls:debug,x", "\"x\" has no level"),
            ("level=debug&tls=info", "one parameter"),
        ] {
            let error = answer(&Query::parse(query)).unwrap_err();
            assert!(error.contains(wanted) && error.contains("usage:"), "{error}");
        }
        assert!(
            answer(&Query::default())
                .unwrap()
                .starts_with("active loggers:\n  access: ")
        );
    }
}
