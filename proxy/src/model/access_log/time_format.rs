//! Formats of times, as `%START_TIME(…)%` takes them: strftime's conversions, and those that Envoy adds.

use std::sync::Arc;

/// A parsed format of a time in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Vec<TimePart>);

/// A piece of a [`TimeFormat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePart {
    /// Text as it stands.
    Literal(Arc<str>),
    /// One of strftime's conversions of the C locale, such as `Y`; one of [`TimeFormat::CONVERSIONS`].
    Field(char),
    /// `%E3S`: seconds with this many decimals.
    Seconds(u8),
    /// `%E*S`: seconds with as many decimals as are not zero.
    SecondsFull,
    /// `%3f`, `%E3f`: this many digits of the second's fraction; `%f` has nine.
    Fraction(u8),
    /// `%E4Y`: the year with at least four digits.
    Year4,
    /// `%Ez`: the offset from UTC with a colon.
    Offset,
    /// `%E*z`: the offset from UTC with seconds.
    OffsetFull,
}

impl Default for TimeFormat {
    /// Envoy's `%Y-%m-%dT%H:%M:%E3SZ`.
    fn default() -> Self {
        let between = |text: &str| TimePart::Literal(text.into());
        let field = TimePart::Field;
        Self(vec![
            field('Y'),
            between("-"),
            field('m'),
            between("-"),
            field('d'),
            between("T"),
            field('H'),
            between(":"),
            field('M'),
            between(":"),
            TimePart::Seconds(3),
            between("Z"),
        ])
    }
}

impl TimeFormat {
    /// The letters that may follow a `%`, as in C's strftime, with glibc's `%k %l %P %s`.
    pub const CONVERSIONS: &'static str = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ";

    /// The pieces in order.
    pub fn parts(&self) -> &[TimePart] {
        &self.0
    }

    /// Parses a format. A conversion that nobody knows stays as it is written, as in Envoy.
    ///
    /// # Errors
    /// What glibc adds to a conversion and is not carried out: flags and widths (`%-d`, `%5Y`), `%O`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let (part, length) = conversion(after)?;
            match part {
                Some(part) => {
                    if !literal.is_empty() {
                        parts.push(TimePart::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(part);
                    rest = after.get(length..).unwrap_or_default();
                }
                None => {
                    literal.push('%');
                    // Of `%%` one is left; any other letter is looked at again.
                    rest = after.strip_prefix('%').unwrap_or(after);
                }
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(TimePart::Literal(literal.into()));
        }
        Ok(Self(parts))
    }
}

/// The conversion at the start of what follows a `%`, and how long it is; none where there is none.
fn conversion(after: &str) -> Result<(Option<TimePart>, usize), &'static str> {
    let digit = |byte: Option<&u8>| byte.filter(|b| b.is_ascii_digit()).map(|b| b - b'0');
    let bytes = after.as_bytes();
    let found = match bytes {
        [b'f', ..] => (TimePart::Fraction(9), 1),
        [b'1'..=b'9', b'f', ..] => (TimePart::Fraction(digit(bytes.first()).unwrap_or(9)), 2),
        [b'E', b'z', ..] => (TimePart::Offset, 2),
        [b'E', b'*', b'z', ..] => (TimePart::OffsetFull, 3),
        [b'E', b'*', b'S', ..] => (TimePart::SecondsFull, 3),
        [b'E', b'4', b'Y', ..] => (TimePart::Year4, 3),
        [b'E', b'0'..=b'9', b'S', ..] => (TimePart::Seconds(digit(bytes.get(1)).unwrap_or(0)), 3),
        [b'E', b'0'..=b'9', b'f', ..] => (TimePart::Fraction(digit(bytes.get(1)).unwrap_or(0)), 3),
        [b'0'..=b'9' | b'-' | b'_' | b'^' | b'#' | b'+' | b'E' | b'O', ..] => {
            return Err("a conversion with a flag, width or modifier is not supported");
        }
        [letter, ..] if TimeFormat::CONVERSIONS.contains(char::from(*letter)) => {
            (TimePart::Field(char::from(*letter)), 1)
        }
        _ => return Ok((None, 0)),
    };
    Ok((Some(found.0), found.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_its_text_means() {
        let parsed = TimeFormat::parse("%Y-%m-%dT%H:%M:%E3SZ").unwrap();
        assert_eq!(parsed, TimeFormat::default());
    }

    #[test]
    fn what_is_no_conversion_stays_and_what_is_not_carried_out_is_refused() {
        let literal = |text: &str| TimePart::Literal(text.into());
        for (text, parts) in [
            ("", vec![]),
            ("%", vec![literal("%")]),
            ("100%%", vec![literal("100%")]),
            ("%Y%%m", vec![TimePart::Field('Y'), literal("%m")]),
            ("%Q", vec![literal("%Q")]),
            ("%é", vec![literal("%é")]),
            (
                "%s.%3f",
                vec![TimePart::Field('s'), literal("."), TimePart::Fraction(3)],
            ),
        ] {
            assert_eq!(TimeFormat::parse(text).unwrap().parts(), parts, "{text}");
        }
        for text in ["%-d", "%10f", "%05d", "%Ey", "%Od", "%0f"] {
            assert!(TimeFormat::parse(text).is_err(), "{text}");
        }
    }
}
