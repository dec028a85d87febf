//! Go's duration strings (`5s`, `1m30s`, `1.5h`), as Consul writes them into JSON.

use std::time::Duration;

/// Parses a non-negative Go duration; `None` when it is none or too long for a timer.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (unit, seconds) = unit(tail)?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &tail[unit..];
    }
    Some(total)
}

/// The unit at the front of `text`: its length in bytes and its length in seconds.
fn unit(text: &str) -> Option<(usize, f64)> {
    // Two-letter units come first: `ms` also begins with `m`.
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let found = UNITS.iter().find(|(name, _)| text.starts_with(name))?;
    Some((found.0.len(), found.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go() {
        for (text, millis) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("1h0m0s", 3_600_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0s", 0),
            ("0", 0),
            ("2562047h", 9_223_369_200_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("3µs"), Some(Duration::from_micros(3)));
        for text in ["", "s", "5", "-5s", "5x", "1..5s", "5s ", "+"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
