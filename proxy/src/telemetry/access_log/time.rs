//! Times in the formats of `%START_TIME(…)%`, in UTC and the C locale.

use std::fmt::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::model::access_log::{TimeFormat, TimePart};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Writes `at` as `format` says. A time that no calendar has is written as 1970.
pub(super) fn write(at: SystemTime, format: &TimeFormat, out: &mut String) {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i128::try_from(since.as_nanos()).unwrap_or_default();
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    for part in format.parts() {
        // Writing to a `String` cannot fail.
        let _ = match part {
            TimePart::Literal(text) => out.write_str(text),
            TimePart::Field(letter) => field(at, *letter, out),
            TimePart::Seconds(digits) => {
                let _ = write!(out, "{:02}", at.second());
                if *digits > 0 {
                    out.push('.');
                }
                fraction(at, *digits, out)
            }
            TimePart::SecondsFull => {
                let nanos = format!("{:09}", at.nanosecond());
                match nanos.trim_end_matches('0') {
                    "" => write!(out, "{:02}", at.second()),
                    digits => write!(out, "{:02}.{digits}", at.second()),
                }
            }
            TimePart::Fraction(digits) => fraction(at, *digits, out),
            TimePart::Year4 => write!(out, "{:04}", at.year()),
            TimePart::Offset => out.write_str("+00:00"),
            TimePart::OffsetFull => out.write_str("+00:00:00"),
        };
    }
}

fn fraction(at: OffsetDateTime, digits: u8, out: &mut String) -> std::fmt::Result {
    let all = format!("{:09}", at.nanosecond());
    out.write_str(all.get(..usize::from(digits)).unwrap_or(&all))
}

fn field(at: OffsetDateTime, letter: char, out: &mut String) -> std::fmt::Result {
    let day = DAYS[usize::from(at.weekday().number_days_from_sunday())];
    let month = MONTHS[usize::from(u8::from(at.month())) - 1];
    let hour12 = match at.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    let all = |letters: &str, out: &mut String| {
        letters.chars().try_for_each(|part| match part {
            '/' | ':' | ' ' | '-' => out.write_char(part),
            letter => field(at, letter, out),
        })
    };
    match letter {
        'a' => out.write_str(&day[..3]),
        'A' => out.write_str(day),
        'b' | 'h' => out.write_str(&month[..3]),
        'B' => out.write_str(month),
        'c' => all("a b e H:M:S Y", out),
        'C' => write!(out, "{:02}", at.year() / 100),
        'd' => write!(out, "{:02}", at.day()),
        'D' | 'x' => all("m/d/y", out),
        'e' => write!(out, "{:2}", at.day()),
        'F' => all("Y-m-d", out),
        'g' => write!(out, "{:02}", at.to_iso_week_date().0 % 100),
        'G' => write!(out, "{}", at.to_iso_week_date().0),
        'H' => write!(out, "{:02}", at.hour()),
        'I' => write!(out, "{hour12:02}"),
        'j' => write!(out, "{:03}", at.ordinal()),
        'k' => write!(out, "{:2}", at.hour()),
        'l' => write!(out, "{hour12:2}"),
        'm' => write!(out, "{:02}", u8::from(at.month())),
        'M' => write!(out, "{:02}", at.minute()),
        'n' => out.write_char('\n'),
        'p' => out.write_str(if at.hour() < 12 { "AM" } else { "PM" }),
        'P' => out.write_str(if at.hour() < 12 { "am" } else { "pm" }),
        'r' => all("I:M:S p", out),
        'R' => all("H:M", out),
        's' => write!(out, "{}", at.unix_timestamp()),
        'S' => write!(out, "{:02}", at.second()),
        't' => out.write_char('\t'),
        'T' | 'X' => all("H:M:S", out),
        'u' => write!(out, "{}", at.weekday().number_from_monday()),
        'U' => write!(out, "{:02}", at.sunday_based_week()),
        'V' => write!(out, "{:02}", at.iso_week()),
        'w' => write!(out, "{}", at.weekday().number_days_from_sunday()),
        'W' => write!(out, "{:02}", at.monday_based_week()),
        'y' => write!(out, "{:02}", at.year() % 100),
        'Y' => write!(out, "{}", at.year()),
        'z' => out.write_str("+0000"),
        'Z' => out.write_str("UTC"),
        // The parser lets no other through.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(at: Duration, format: &str) -> String {
        let mut out = String::new();
        let format = TimeFormat::parse(format).unwrap();
        write(SystemTime::UNIX_EPOCH + at, &format, &mut out);
        out
    }

    #[test]
    fn fractions_are_cut_not_rounded() {
        let at = Duration::new(1_795_450_898, 918_179_000);
        for (format, text) in [
            ("%Y-%m-%dT%H:%M:%E3SZ", "2026-11-23T16:21:38.918Z"),
            ("%s.%3f", "1795450898.918"),
            ("%f", "918179000"),
            ("%6f", "918179"),
            ("%E5S", "38.91817"),
            ("%E0S", "38"),
            ("%E*S", "38.918179"),
            ("%Ez %E*z %z %Z", "+00:00 +00:00:00 +0000 UTC"),
            ("%m/%d %H:%M:%S.%9f", "11/23 16:21:38.918179000"),
        ] {
            assert_eq!(written(at, format), text, "{format}");
        }
        assert_eq!(written(Duration::from_secs(7), "%E*S"), "07");
    }

    /// Every conversion against the C library's, by the tool that has it.
    #[test]
    fn conversions_are_strftimes() {
        let letters: Vec<String> = TimeFormat::CONVERSIONS
            .chars()
            .map(|c| format!("[%{c}]"))
            .collect();
        let format = letters.concat();
        for seconds in [
            0,
            86_399,
            1_709_164_800,
            1_735_689_599,
            1_795_450_898,
            4_102_444_800,
        ] {
            let date = std::process::Command::new("date")
                .env("LC_ALL", "C")
                .args(["-u", "-d", &format!("@{seconds}"), &format!("+{format}")])
                .output()
                .unwrap();
            let expected = String::from_utf8(date.stdout).unwrap();
            let ours = written(Duration::from_secs(seconds), &format);
            assert_eq!(format!("{ours}\n"), expected, "at {seconds}");
        }
    }
}
