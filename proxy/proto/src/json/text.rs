//! The strings of proto3 JSON that are not plain: durations, times, bytes and field masks.
//! See <https://protobuf.dev/programming-guides/json/>.

const NANOS: i128 = 1_000_000_000;
/// protobuf's bound of a duration, about ten thousand years.
const MAX_SECONDS: i64 = 315_576_000_000;
/// Days before each month of a year that is not a leap year.
const BEFORE_MONTH: [i64; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];
/// Days from 0001-01-01 to 1970-01-01.
const EPOCH: i64 = 719_162;

/// Nanoseconds of up to nine decimals, such as `025` (of a second).
fn nanos(decimals: &str) -> Option<i32> {
    if decimals.is_empty() || decimals.len() > 9 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{decimals:0<9}").parse().ok()
}

/// `.025`, with 3, 6 or 9 decimals, or nothing.
fn decimals(nanos: i128) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

/// Seconds and nanoseconds of a string such as `5s` or `-0.25s`.
pub(super) fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = number.strip_prefix('-').map_or((1, number), |rest| (-1, rest));
    let (whole, fraction) = number
        .split_once('.')
        .map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    if whole.is_empty() || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|seconds| *seconds <= MAX_SECONDS)?;
    let nanos = fraction.map_or(Some(0), nanos)?;
    Some((sign * seconds, i32::try_from(sign).ok()? * nanos))
}

/// What [`parse_duration`] reads; also for values beyond protobuf's bounds, which Consul sends for long JWKS
/// caches.
pub(super) fn format_duration(seconds: i64, nanos: i32) -> String {
    let total = i128::from(seconds) * NANOS + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.abs();
    format!("{sign}{}{}s", total / NANOS, decimals(total % NANOS))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0001-01-01 to the first day of the year.
fn before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)
}

fn before_month(year: i64, month: usize) -> Option<i64> {
    Some(BEFORE_MONTH.get(month)? + i64::from(month >= 2 && is_leap(year)))
}

fn digits(text: &str, range: std::ops::Range<usize>) -> Option<i64> {
    let part = text.get(range)?;
    part.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| part.parse().ok())?
}

/// Seconds east of UTC of `Z` or `+01:00`.
fn parse_offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.as_bytes() {
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let (hours, minutes) = (digits(zone, 1..3)?, digits(zone, 4..6)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time in the years 1 to 9999.
pub(super) fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let separators = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    if !separators
        .iter()
        .all(|(at, separator)| text.get(*at..at + 1) == Some(separator))
    {
        return None;
    }
    matches!(text.get(10..11)?, "T" | "t").then_some(())?;
    let (year, month, day) = (digits(text, 0..4)?, digits(text, 5..7)?, digits(text, 8..10)?);
    let (hour, minute, second) = (
        digits(text, 11..13)?,
        digits(text, 14..16)?,
        digits(text, 17..19)?,
    );
    let rest = text.get(19..)?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (fraction, zone) = rest.split_at_checked(zone_at)?;
    let nanos = if fraction.is_empty() {
        0
    } else {
        nanos(fraction.strip_prefix('.')?)?
    };
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    let start = before_month(year, month)?;
    if year == 0
        || day == 0
        || day > before_month(year, month + 1)? - start
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let days = before_year(year) + start + day - 1 - EPOCH;
    Some((
        days * 86_400 + hour * 3600 + minute * 60 + second - parse_offset(zone)?,
        nanos,
    ))
}

/// RFC 3339 in UTC.
pub(super) fn format_timestamp(seconds: i64, nanos: i32) -> String {
    let total = i128::from(seconds) * NANOS + i128::from(nanos);
    let seconds = i64::try_from(total.div_euclid(NANOS)).unwrap_or(seconds);
    let (days, second) = (seconds.div_euclid(86_400) + EPOCH, seconds.rem_euclid(86_400));
    // 400 years have 146,097 days: a first guess that is a year off at most.
    let guess = i128::from(days) * 400 / 146_097;
    let mut year = i64::try_from(guess).unwrap_or_default();
    while before_year(year + 1) <= days {
        year += 1;
    }
    while before_year(year) > days {
        year -= 1;
    }
    let day = days - before_year(year);
    let month = (0..12)
        .rev()
        .find(|month| before_month(year, *month).is_some_and(|start| start <= day))
        .unwrap_or(0);
    let day = day - before_month(year, month).unwrap_or(0) + 1;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let decimals = decimals(total.rem_euclid(NANOS));
    format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{decimals}Z",
        month + 1
    )
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
pub(super) fn format_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let index = usize::try_from(word >> (18 - 6 * at) & 63).unwrap_or(0);
            let letter = ALPHABET.get(index).map_or('=', |byte| char::from(*byte));
            out.push(if at > chunk.len() { '=' } else { letter });
        }
    }
    out
}

/// Standard or URL-safe base64, with or without padding.
pub(super) fn parse_base64(text: &str) -> Option<Vec<u8>> {
    let letters = text.trim_end_matches('=');
    if text.len() - letters.len() > 2 || letters.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(letters.len() / 4 * 3 + 2);
    let (mut word, mut bits) = (0_u32, 0);
    for byte in letters.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

/// `foo_bar.baz` of `fooBar.baz`.
pub(super) fn snake_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `fooBar.baz` of `foo_bar.baz`.
pub(super) fn camel_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for c in path.chars() {
        match c {
            '_' => upper = true,
            _ => out.push(if std::mem::take(&mut upper) {
                c.to_ascii_uppercase()
            } else {
                c
            }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds, nanos) in [
            ("5s", 5, 0),
            ("0s", 0, 0),
            ("0.025s", 0, 25_000_000),
            ("-1.500s", -1, -500_000_000),
            ("-0.000001s", 0, -1000),
            ("315576000000.999999999s", MAX_SECONDS, 999_999_999),
        ] {
            assert_eq!(parse_duration(text), Some((seconds, nanos)), "{text}");
            assert_eq!(format_duration(seconds, nanos), text);
        }
        assert_eq!(parse_duration("0.5s"), Some((0, 500_000_000)));
        for wrong in [
            "",
            "s",
            "5",
            "5m",
            ".5s",
            "5.s",
            "+5s",
            "--5s",
            "5.0000000001s",
            "1e3s",
            "315576000001s",
            "٣s",
        ] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(
            format_duration(i64::MAX, i32::MAX),
            "9223372036854775809.147483647s"
        );
        assert_eq!(format_duration(1, -1), "0.999999999s");
    }

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T23:59:59.123Z", 951_868_799, 123_000_000),
            ("2026-11-22T23:37:34.000000001Z", 1_795_390_654, 1),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59.999999999Z", 253_402_300_799, 999_999_999),
        ] {
            assert_eq!(parse_timestamp(text), Some((seconds, nanos)), "{text}");
            assert_eq!(format_timestamp(seconds, nanos), text);
        }
        assert_eq!(parse_timestamp("1970-01-01T01:30:00+01:30"), Some((0, 0)));
        assert_eq!(parse_timestamp("1969-12-31T23:00:00-01:00"), Some((0, 0)));
        for wrong in [
            "",
            "1970",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-13-01T00:00:00Z",
            "1970-00-01T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "1970-01-00T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00+1:00",
            "0000-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z ",
            "197é-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(wrong), None, "{wrong}");
        }
        // What no calendar has does not stop a dump.
        for seconds in [i64::MIN, i64::MAX] {
            assert!(format_timestamp(seconds, i32::MIN).ends_with('Z'));
        }
    }

    #[test]
    fn base64() {
        // RFC 4648, section 10.
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(format_base64(plain.as_bytes()), text);
            assert_eq!(parse_base64(text).as_deref(), Some(plain.as_bytes()));
            assert_eq!(
                parse_base64(text.trim_end_matches('=')).as_deref(),
                Some(plain.as_bytes())
            );
        }
        assert_eq!(parse_base64("-_8="), parse_base64("+/8="));
        for wrong in ["A", "Zg===", "Z g=", "Zm9v!", "=Zg"] {
            assert_eq!(parse_base64(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn field_masks() {
        assert_eq!(snake_case("fooBar.bazQux"), "foo_bar.baz_qux");
        assert_eq!(camel_case("foo_bar.baz_qux"), "fooBar.bazQux");
    }
}
